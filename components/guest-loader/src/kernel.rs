//! ELF kernels: what to put where, and the PVH entry note.

use crate::error::{Error, Input};
use alloc::vec::Vec;
use elf::ElfBytes;
use elf::abi::{EM_386, EM_X86_64, PT_LOAD, PT_NOTE, SHT_NOTE};
use elf::endian::LittleEndian;
use elf::note::Note;

/// Xen public/elfnote.h: physical address of the 32-bit PVH entry point. Its sibling
/// XEN_ELFNOTE_PHYS32_RELOC (19), by which newer Linux says that it may be placed elsewhere, is of
/// no use here: guest RAM has no gap below [`crate::layout::LOW_END`], so that what does not fit at
/// its own address (the lowest that Linux accepts) fits nowhere.
const XEN_ELFNOTE_PHYS32_ENTRY: u64 = 18;

/// A part of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Guest-physical address.
    pub address: u64,
    /// Its bytes.
    pub bytes: &'a [u8],
    /// Bytes in memory; zero beyond `bytes`.
    pub memory: u64,
}

/// A kernel that can be started as a PVH guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel<'a> {
    /// What to load.
    pub segments: Vec<Segment<'a>>,
    /// The 32-bit entry point.
    pub entry: u32,
}

impl Kernel<'_> {
    /// Lowest and highest guest-physical address it occupies.
    pub fn extent(&self) -> (u64, u64) {
        let start = self.segments.iter().map(|s| s.address).min().unwrap_or(0);
        let end = self
            .segments
            .iter()
            .map(|s| s.address + s.memory)
            .max()
            .unwrap_or(0);
        (start, end)
    }
}

/// True if the file is ELF.
pub fn is_elf(file: &[u8]) -> bool {
    file.starts_with(b"\x7fELF")
}

/// Reads an ELF kernel, 32 or 64 bits.
pub fn parse(file: &[u8]) -> Result<Kernel<'_>, Error> {
    let malformed = |offset: u64| Error::Malformed {
        input: Input::Kernel,
        offset,
    };
    let elf = ElfBytes::<LittleEndian>::minimal_parse(file).map_err(|_| malformed(0))?;
    if !matches!(elf.ehdr.e_machine, EM_386 | EM_X86_64) {
        return Err(Error::Machine(elf.ehdr.e_machine));
    }
    let headers = elf.segments().ok_or(malformed(elf.ehdr.e_phoff))?;
    let mut segments = Vec::new();
    let mut entry = None;
    for header in headers.iter() {
        match header.p_type {
            PT_LOAD if header.p_memsz > 0 => {
                let bytes = elf.segment_data(&header).map_err(|_| Error::Truncated {
                    input: Input::Kernel,
                    offset: header.p_offset.saturating_add(header.p_filesz),
                    length: file.len() as u64,
                })?;
                if header.p_filesz > header.p_memsz
                    || header.p_paddr.checked_add(header.p_memsz).is_none()
                {
                    return Err(malformed(header.p_offset));
                }
                segments.push(Segment {
                    address: header.p_paddr,
                    bytes,
                    memory: header.p_memsz,
                });
            }
            PT_NOTE => {
                let notes = elf
                    .segment_data_as_notes(&header)
                    .map_err(|_| malformed(header.p_offset))?;
                entry = entry.or_else(|| notes.into_iter().find_map(entry_of));
            }
            _ => {}
        }
    }
    if entry.is_none() {
        // Some kernels (grub's) describe their notes by sections only.
        for header in elf
            .section_headers()
            .into_iter()
            .flat_map(|table| table.iter())
        {
            if header.sh_type == SHT_NOTE
                && let Ok(notes) = elf.section_data_as_notes(&header)
            {
                entry = entry.or_else(|| notes.into_iter().find_map(entry_of));
            }
        }
    }
    if segments.is_empty() {
        return Err(malformed(elf.ehdr.e_phoff));
    }
    // An entry outside of the kernel is none.
    let entry = entry
        .filter(|&entry| {
            let inside =
                |s: &Segment<'_>| (s.address..s.address + s.memory).contains(&entry.into());
            segments.iter().any(inside)
        })
        .ok_or(Error::NoPvhEntry)?;
    Ok(Kernel { segments, entry })
}

fn entry_of(note: Note<'_>) -> Option<u32> {
    let Note::Unknown(note) = note else {
        return None;
    };
    let name = note.name.strip_suffix(b"\0").unwrap_or(note.name);
    if name != b"Xen" || note.n_type != XEN_ELFNOTE_PHYS32_ENTRY {
        return None;
    }
    // 4 bytes in 32-bit kernels, 8 in 64-bit ones.
    match note.desc.len() {
        4 => crate::u32_at(note.desc, 0),
        8 if crate::u32_at(note.desc, 4) == Some(0) => crate::u32_at(note.desc, 0),
        _ => None,
    }
}
