//! A component's ELF file as pages to map. Reads any bytes; never panics.

use alloc::vec::Vec;

use elf::ElfBytes;
use elf::abi::{EM_X86_64, ET_EXEC, PF_R, PF_W, PF_X, PT_LOAD};
use elf::endian::LittleEndian;
use microvisor_abi::FRAME;
use microvisor_abi::cap::Map;
use sdk::abi as microvisor_abi;

/// Lowest address an image may have: nothing is mapped at the null page and near it.
pub const LOWEST: u64 = 0x1_0000;
/// One past the highest.
pub const HIGHEST: u64 = 0x4000_0000;

/// A segment, in whole pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First page's address.
    pub address: u64,
    /// Pages.
    pub frames: u32,
    /// `Map` flags; never writable and executable.
    pub flags: u64,
    /// Offset of the content in the first page.
    pub skip: usize,
    /// The content in the file; the rest is zero.
    pub content: core::ops::Range<usize>,
}

/// A program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// First instruction.
    pub entry: u64,
    /// What to map.
    pub segments: Vec<Segment>,
}

/// Why a file is not a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// Not a static ELF executable for x86-64.
    NotAProgram,
    /// A segment lies outside of the file or of the addresses for images, or shares a page.
    Segment(u64),
    /// A segment is writable and executable.
    WriteExecute(u64),
    /// The entry point is not in an executable segment.
    Entry(u64),
}

impl Image {
    /// Reads the program headers.
    pub fn parse(file: &[u8]) -> Result<Image, ImageError> {
        let elf =
            ElfBytes::<LittleEndian>::minimal_parse(file).map_err(|_| ImageError::NotAProgram)?;
        if elf.ehdr.e_type != ET_EXEC || elf.ehdr.e_machine != EM_X86_64 {
            return Err(ImageError::NotAProgram);
        }
        let mut segments: Vec<Segment> = Vec::new();
        for header in elf.segments().ok_or(ImageError::NotAProgram)?.iter() {
            if header.p_type != PT_LOAD || header.p_memsz == 0 {
                continue;
            }
            let wrong = ImageError::Segment(header.p_vaddr);
            let end = header.p_vaddr.checked_add(header.p_memsz).ok_or(wrong)?;
            let file_end = header.p_offset.checked_add(header.p_filesz).ok_or(wrong)?;
            let previous = segments
                .last()
                .map_or(LOWEST, |s| s.address + u64::from(s.frames) * FRAME);
            let address = header.p_vaddr & !(FRAME - 1);
            if address < previous
                || end > HIGHEST
                || header.p_filesz > header.p_memsz
                || file_end > file.len() as u64
            {
                return Err(wrong);
            }
            if header.p_flags & PF_W != 0 && header.p_flags & PF_X != 0 {
                return Err(ImageError::WriteExecute(header.p_vaddr));
            }
            let flag = |bit, flag| if header.p_flags & bit != 0 { flag } else { 0 };
            segments.push(Segment {
                address,
                // Below HIGHEST, so this is a small number.
                frames: ((end - address).div_ceil(FRAME)) as u32,
                flags: flag(PF_R, Map::READ) | flag(PF_W, Map::WRITE) | flag(PF_X, Map::EXECUTE),
                skip: (header.p_vaddr - address) as usize,
                content: header.p_offset as usize..file_end as usize,
            });
        }
        let entry = elf.ehdr.e_entry;
        let inside = segments.iter().any(|s| {
            s.flags & Map::EXECUTE != 0
                && (s.address..s.address + u64::from(s.frames) * FRAME).contains(&entry)
        });
        if !inside {
            return Err(ImageError::Entry(entry));
        }
        Ok(Image { entry, segments })
    }

    /// Pages of all segments.
    pub fn frames(&self) -> u64 {
        self.segments.iter().map(|s| u64::from(s.frames)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An ELF file with the given segments: address, flags, file bytes, memory bytes.
    fn program(entry: u64, segments: &[(u64, u32, u64, u64)]) -> Vec<u8> {
        let mut file = Vec::from(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        file.extend(2u16.to_le_bytes());
        file.extend(62u16.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        file.extend(entry.to_le_bytes());
        file.extend(64u64.to_le_bytes());
        file.extend(0u64.to_le_bytes());
        file.extend(0u32.to_le_bytes());
        for half in [64u16, 56, segments.len() as u16, 0, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        for &(address, flags, bytes, memory) in segments {
            file.extend(1u32.to_le_bytes());
            file.extend(flags.to_le_bytes());
            for word in [0x1000, address, address, bytes, memory, 4096] {
                file.extend(u64::to_le_bytes(word));
            }
        }
        file.resize(0x3000, 7);
        file
    }

    #[test]
    fn segments_become_whole_pages() {
        let file = program(
            0x200010,
            &[(0x200010, 5, 100, 100), (0x202000, 6, 10, 5000)],
        );
        let image = Image::parse(&file).unwrap();
        assert_eq!(image.frames(), 3);
        assert_eq!(image.segments[0].skip, 0x10);
        assert_eq!(image.segments[0].flags, Map::READ | Map::EXECUTE);
        assert_eq!(image.segments[1].content, 0x1000..0x100a);
    }

    #[test]
    fn hostile_images_are_refused() {
        let cases = [
            (
                program(0x200000, &[(0x200000, 7, 1, 1)]),
                ImageError::WriteExecute(0x200000),
            ),
            (
                program(0x200000, &[(0x200000, 6, 1, 1)]),
                ImageError::Entry(0x200000),
            ),
            (
                program(0x200000, &[(0x200000, 5, 0x10000, 0x10000)]),
                ImageError::Segment(0x200000),
            ),
            (program(0x200000, &[(0, 5, 1, 1)]), ImageError::Segment(0)),
            (
                program(0x200000, &[(u64::MAX, 5, 1, 9)]),
                ImageError::Segment(u64::MAX),
            ),
            (
                program(0x200000, &[(0x200000, 5, 1, 1), (0x200800, 4, 1, 1)]),
                ImageError::Segment(0x200800),
            ),
        ];
        for (file, error) in cases {
            assert_eq!(Image::parse(&file), Err(error));
        }
        assert_eq!(Image::parse(b"#!/bin/sh"), Err(ImageError::NotAProgram));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn damaged_images_never_panic(at in 0usize..176, byte: u8, cut in 0usize..0x3000) {
            let mut file = program(0x200010, &[(0x200000, 5, 100, 100), (0x202000, 6, 10, 5000)]);
            file[at] = byte;
            file.truncate(cut);
            let _ = Image::parse(&file);
        }
    }
}
