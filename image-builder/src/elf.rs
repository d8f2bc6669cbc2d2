//! ELF files: what is loaded of them, and a copy without the rest. The copy keeps segments at
//! offsets congruent to their addresses modulo 4096, so that pages of the file can be mapped.

use anyhow::{Context, Result, bail};
use microvisor_abi::cap::Map;
use object::LittleEndian as LE;
use object::elf::{FileHeader64, PF_R, PF_W, PF_X, PT_LOAD, PT_NOTE, ProgramHeader64};
use object::read::elf::{FileHeader, ProgramHeader};

const PAGE: u64 = 4096;
const EHDR: usize = 64;
const PHDR: usize = 56;

/// A program in loadable form.
#[derive(Clone, Debug, Default)]
pub struct Loadable {
    /// Address of the first instruction.
    pub entry: u64,
    /// Segments, page aligned, apart.
    pub segments: Vec<Segment>,
}

/// A piece of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Page-aligned address.
    pub address: u64,
    /// Content.
    pub bytes: Vec<u8>,
    /// Size in memory; beyond the content it is zero.
    pub memory_bytes: u64,
    /// `cap::Map` flags.
    pub flags: u64,
}

struct Parsed<'a> {
    file: &'a [u8],
    header: &'a FileHeader64<LE>,
    programs: &'a [ProgramHeader64<LE>],
}

fn parse(file: &[u8]) -> Result<Parsed<'_>> {
    let header = FileHeader64::<LE>::parse(file).context("not a 64-bit ELF file")?;
    let programs = header
        .program_headers(LE, file)
        .context("damaged program headers")?;
    Ok(Parsed {
        file,
        header,
        programs,
    })
}

impl<'a> Parsed<'a> {
    fn loads(&self) -> impl Iterator<Item = &'a ProgramHeader64<LE>> {
        self.programs
            .iter()
            .filter(|p| p.p_type(LE) == PT_LOAD && p.p_memsz(LE) > 0)
    }

    fn data(&self, program: &ProgramHeader64<LE>) -> Result<&'a [u8]> {
        match program.data(LE, self.file) {
            Ok(bytes) => Ok(bytes),
            Err(()) => bail!("a segment lies outside the file"),
        }
    }
}

/// The segments of a ring-3 program, as the core loads them. Refuses what cannot be mapped: two
/// segments on one page, or one that is writable and executable.
pub fn loadable(file: &[u8]) -> Result<Loadable> {
    let parsed = parse(file)?;
    let mut segments: Vec<Segment> = Vec::new();
    for program in parsed.loads() {
        let start = program.p_vaddr(LE);
        let address = start - start % PAGE;
        let mut bytes = vec![0; (start - address) as usize];
        bytes.extend_from_slice(parsed.data(program)?);
        let flag = |elf, ours| {
            if program.p_flags(LE).0 & elf != 0 {
                ours
            } else {
                0
            }
        };
        let flags = flag(PF_R.0, Map::READ) | flag(PF_W.0, Map::WRITE) | flag(PF_X.0, Map::EXECUTE);
        if flags & (Map::WRITE | Map::EXECUTE) == Map::WRITE | Map::EXECUTE {
            bail!("the segment at {start:#x} is writable and executable");
        }
        segments.push(Segment {
            address,
            bytes,
            memory_bytes: start - address + program.p_memsz(LE),
            flags,
        });
    }
    segments.sort_by_key(|segment| segment.address);
    for pair in segments.windows(2) {
        if let [a, b] = pair
            && (a.address + a.memory_bytes).next_multiple_of(PAGE) > b.address
        {
            bail!(
                "the segments at {:#x} and {:#x} share a page",
                a.address,
                b.address
            );
        }
    }
    Ok(Loadable {
        entry: parsed.header.e_entry(LE),
        segments,
    })
}

/// Bytes of code: the sections that are executed.
pub fn text_bytes(file: &[u8]) -> Result<u64> {
    use object::{Object, ObjectSection, SectionKind};
    let elf = object::File::parse(file).context("not an ELF file")?;
    let code = elf
        .sections()
        .filter(|section| section.kind() == SectionKind::Text);
    Ok(code.map(|section| section.size()).sum())
}

/// The same program without sections, symbols and debug information.
pub fn strip(file: &[u8]) -> Result<Vec<u8>> {
    let parsed = parse(file)?;
    let kept: Vec<_> = parsed
        .programs
        .iter()
        .filter(|p| [PT_LOAD, PT_NOTE].contains(&p.p_type(LE)))
        .collect();
    let mut out = vec![0; EHDR + kept.len() * PHDR];
    // Old and new offset of each loaded piece, for the notes inside of them.
    let mut moved: Vec<(std::ops::Range<u64>, u64)> = Vec::new();
    for program in parsed.loads() {
        let data = parsed.data(program)?;
        let (old, size) = program.file_range(LE);
        let here = out.len() as u64;
        let offset = here.next_multiple_of(PAGE) + program.p_vaddr(LE) % PAGE;
        moved.push((old..old + size, offset));
        if !data.is_empty() {
            out.resize(offset as usize, 0);
            out.extend_from_slice(data);
        }
    }
    let header = parsed.header;
    let mut head = Vec::with_capacity(EHDR);
    head.extend_from_slice(file.get(..16).context("not an ELF file")?);
    head.extend_from_slice(&header.e_type(LE).0.to_le_bytes());
    head.extend_from_slice(&header.e_machine(LE).0.to_le_bytes());
    head.extend_from_slice(&header.e_version(LE).to_le_bytes());
    head.extend_from_slice(&header.e_entry(LE).to_le_bytes());
    head.extend_from_slice(&(EHDR as u64).to_le_bytes());
    head.extend_from_slice(&0u64.to_le_bytes());
    head.extend_from_slice(&header.e_flags(LE).0.to_le_bytes());
    for half in [EHDR as u16, PHDR as u16, kept.len() as u16, 64, 0, 0] {
        head.extend_from_slice(&half.to_le_bytes());
    }
    for program in kept {
        let old = program.p_offset(LE);
        let inside = moved
            .iter()
            .find(|(range, _)| range.contains(&old) || range.start == old)
            .map(|(range, new)| new + (old - range.start));
        let offset = match inside {
            Some(offset) => offset,
            None if program.p_filesz(LE) == 0 => program.p_vaddr(LE) % PAGE,
            None => bail!("a note lies outside of what is loaded"),
        };
        head.extend_from_slice(&program.p_type(LE).0.to_le_bytes());
        head.extend_from_slice(&program.p_flags(LE).0.to_le_bytes());
        let words = [
            offset,
            program.p_vaddr(LE),
            program.p_paddr(LE),
            program.p_filesz(LE),
            program.p_memsz(LE),
            program.p_align(LE),
        ];
        for word in words {
            head.extend_from_slice(&word.to_le_bytes());
        }
    }
    if let Some(place) = out.get_mut(..head.len()) {
        place.copy_from_slice(&head);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A small ELF: (address, flags, content, size in memory) for each segment, and junk at the end.
    pub(crate) fn sample(segments: &[(u64, u32, &[u8], u64)]) -> Vec<u8> {
        let mut body = Vec::new();
        let mut heads = Vec::new();
        let start = EHDR + segments.len() * PHDR;
        for (address, flags, bytes, memory) in segments {
            let offset = (start + body.len()) as u64;
            heads.extend(PT_LOAD.0.to_le_bytes());
            heads.extend(flags.to_le_bytes());
            for word in [offset, *address, *address, bytes.len() as u64, *memory, 1] {
                heads.extend(word.to_le_bytes());
            }
            body.extend_from_slice(bytes);
        }
        let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        out.extend(2u16.to_le_bytes());
        out.extend(62u16.to_le_bytes());
        out.extend(1u32.to_le_bytes());
        out.extend(0x20_0010u64.to_le_bytes());
        out.extend((EHDR as u64).to_le_bytes());
        out.extend(0u64.to_le_bytes());
        out.extend(0u32.to_le_bytes());
        for half in [64u16, 56, segments.len() as u16, 64, 0, 0] {
            out.extend(half.to_le_bytes());
        }
        out.extend(heads);
        out.extend(body);
        out.extend(b"debug information");
        out
    }

    #[test]
    fn stripping_keeps_what_is_loaded() {
        let file = sample(&[
            (0x20_0000, PF_R.0 | PF_X.0, b"code", 4),
            (0x20_1010, PF_R.0 | PF_W.0, b"data", 0x3000),
        ]);
        let before = loadable(&file).unwrap();
        let after = loadable(&strip(&file).unwrap()).unwrap();
        assert_eq!(before.entry, after.entry);
        assert_eq!(before.segments, after.segments);
        assert_eq!(before.segments[1].address, 0x20_1000);
        assert_eq!(before.segments[1].memory_bytes, 0x3010);
    }

    #[test]
    fn pages_are_never_shared_nor_writable_code() {
        let shared = sample(&[
            (0x20_0000, PF_R.0 | PF_X.0, b"code", 4),
            (0x20_0800, PF_R.0, b"x", 1),
        ]);
        assert!(
            loadable(&shared)
                .unwrap_err()
                .to_string()
                .contains("share a page")
        );
        let both = sample(&[(0x20_0000, PF_R.0 | PF_W.0 | PF_X.0, b"code", 4)]);
        assert!(
            loadable(&both)
                .unwrap_err()
                .to_string()
                .contains("writable and executable")
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn damaged_files_are_refused_without_panic(at in 0usize..190, value: u8) {
            let mut file = sample(&[(0x20_0000, PF_R.0 | PF_X.0, b"code", 4), (0x20_1000, PF_R.0, b"x", 1)]);
            file[at] = value;
            let _ = loadable(&file);
            let _ = strip(&file);
        }
    }
}
