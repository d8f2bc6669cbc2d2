//! Files that are started: components, kernels, and kernels inside Linux boot images.

use guest_loader::{kernel as elf, payload};
use root_plan::image::{HIGHEST, Image, LOWEST};

#[path = "../../../components/guest-loader/tests/packed/mod.rs"]
mod packed;

pub fn component(data: &[u8]) {
    let Ok(image) = Image::parse(data) else {
        return;
    };
    let mut end = LOWEST;
    for segment in &image.segments {
        let bytes = u64::from(segment.frames) * 4096;
        assert!(segment.address >= end && segment.address + bytes <= HIGHEST);
        assert!(segment.content.end <= data.len());
        assert!((segment.skip + segment.content.len()) as u64 <= bytes);
        end = segment.address + bytes;
    }
    assert!(image.segments.iter().any(|segment| {
        let bytes = u64::from(segment.frames) * 4096;
        (segment.address..segment.address + bytes).contains(&image.entry)
    }));
}

pub fn kernel(data: &[u8]) {
    let Ok(kernel) = elf::parse(data) else {
        return;
    };
    let (start, end) = kernel.extent();
    assert!(start <= end);
    for segment in &kernel.segments {
        assert!(segment.bytes.len() as u64 <= segment.memory);
    }
}

/// A 64-bit ELF executable with one segment of code and Xen's note of the PVH entry point.
pub fn elf_seeds() -> Vec<Vec<u8>> {
    let mut file = vec![0; 0x120];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(24, &0x20_0000u64.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, 2, 0, 64, 0]);
    let header = |kind: u32, flags: u32, offset: u64, address: u64, bytes: u64| {
        let words = [offset, address, address, bytes, bytes, 4].map(u64::to_le_bytes);
        [
            &kind.to_le_bytes()[..],
            &flags.to_le_bytes(),
            &words.concat(),
        ]
        .concat()
    };
    put(64, &header(1, 5, 0, 0x20_0000, 0x120));
    put(120, &header(4, 4, 0x100, 0x20_0100, 20));
    put(0x100, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    put(0x10c, b"Xen\0");
    put(0x110, &0x20_0000u32.to_le_bytes());
    vec![file]
}

/// Most bytes that a payload may claim to unpack to here.
const UNPACKED: u32 = 1 << 16;

/// A boot image, or else a payload by itself.
pub fn bzimage(data: &[u8]) {
    match guest_loader::bzimage::payload(data) {
        Ok(found) => {
            assert!(found.bytes.len() <= data.len());
            if found.unpacked <= UNPACKED {
                let _ = payload::unpack(found.bytes, found.unpacked as usize);
            }
        }
        Err(_) => {
            let _ = payload::unpack(data, 4096);
        }
    }
}

pub fn bzimage_seeds() -> Vec<Vec<u8>> {
    let lz4 = [&[2, 0x21, 0x4c, 0x18, 6, 0, 0, 0, 0x50][..], b"hello"].concat();
    let payloads = [
        packed::GZIP,
        packed::XZ_BCJ,
        packed::XZ_CRC64,
        packed::ZSTD_CHECKED,
        &lz4,
    ];
    let mut seeds: Vec<Vec<u8>> = payloads.iter().map(|payload| payload.to_vec()).collect();
    for payload in payloads {
        let mut file = vec![0; 1024];
        file[0x1f1] = 1;
        file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        file[0x24c..0x250].copy_from_slice(&(payload.len() as u32 + 4).to_le_bytes());
        file.extend(payload);
        file.extend(4096u32.to_le_bytes());
        seeds.push(file);
    }
    seeds
}
