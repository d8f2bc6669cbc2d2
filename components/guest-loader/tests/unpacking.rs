//! Claims about payloads and boot images.

mod common;
mod packed;

use common::{bzimage, elf_kernel};
use guest_loader::load::unpack_bzimage;
use guest_loader::{Compression, Error, Guest, Input, load, payload};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn guest(kernel: &[u8], ram: u64) -> Guest<'_> {
    Guest {
        kernel,
        initrd: None,
        cmdline: b"console=hvc0",
        vcpus: 2,
        ram,
    }
}

fn lz4_legacy(data: &[u8], block: usize) -> Vec<u8> {
    let mut out = 0x184c_2102u32.to_le_bytes().to_vec();
    for block in data.chunks(block) {
        let packed = lz4_flex::block::compress(block);
        out.extend((packed.len() as u32).to_le_bytes());
        out.extend(packed);
    }
    out
}

/// One kernel in every format.
fn in_every_format() -> Vec<(Compression, Vec<u8>)> {
    let kernel = elf_kernel(0x2000);
    vec![
        (Compression::None, kernel.clone()),
        (Compression::Gzip, packed::GZIP.to_vec()),
        (Compression::Xz, packed::XZ_BCJ.to_vec()),
        (Compression::Xz, packed::XZ_CRC64.to_vec()),
        (Compression::Lz4, lz4_legacy(&kernel, 1000)),
        (Compression::Zstd, packed::ZSTD_CHECKED.to_vec()),
    ]
}

#[test]
fn lz4_legacy_and_gzip_payloads_unpack_to_what_was_packed() {
    let data: Vec<u8> = (0..100_000u32).map(|i| (i / 7) as u8).collect();
    let mut lz4 = 0x184c_2102u32.to_le_bytes().to_vec();
    for block in data.chunks(40_000) {
        let packed = lz4_flex::block::compress(block);
        lz4.extend((packed.len() as u32).to_le_bytes());
        lz4.extend(packed);
    }
    assert_eq!(payload::compression(&lz4), Compression::Lz4);
    assert_eq!(payload::unpack(&lz4, data.len()).as_deref(), Ok(&data[..]));
    let mut gzip = vec![0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 3];
    gzip.extend(b"name\0");
    gzip.extend(miniz_oxide::deflate::compress_to_vec(&data, 6));
    assert_eq!(payload::unpack(&gzip, data.len()).as_deref(), Ok(&data[..]));
    assert_eq!(
        payload::unpack(&gzip, data.len() + 1),
        Err(Error::Payload(Compression::Gzip))
    );
    lz4.truncate(lz4.len() - 1);
    assert_eq!(
        payload::unpack(&lz4, data.len()),
        Err(Error::Payload(Compression::Lz4))
    );
}

#[test]
fn every_format_unpacks_to_the_same_kernel() {
    let kernel = elf_kernel(0x2000);
    for (how, packed) in in_every_format() {
        assert_eq!(payload::compression(&packed), how);
        let unpacked = payload::unpack(&packed, kernel.len());
        assert_eq!(unpacked.as_deref(), Ok(&kernel[..]), "{how:?}");
        let file = bzimage(&packed, kernel.len() as u32);
        assert_eq!(unpack_bzimage(&file, MIB).as_deref(), Ok(&kernel[..]));
    }
}

#[test]
fn a_payload_that_is_not_as_long_as_it_says_is_damaged() {
    let size = elf_kernel(0x2000).len();
    for (how, packed) in in_every_format() {
        let damaged = Err(Error::Payload(how));
        assert_eq!(payload::unpack(&packed, size + 1), damaged);
        if how != Compression::None {
            assert_eq!(payload::unpack(&packed, size - 1), damaged);
            assert_eq!(payload::unpack(&packed[..packed.len() / 2], size), damaged);
        }
    }
}

#[test]
fn a_boot_image_leaves_guest_memory_as_its_elf_file_does() {
    let kernel = elf_kernel(0x2000);
    let mut expected = vec![0u8; 32 << 20];
    let loaded = load(&guest(&kernel, 32 * MIB), &mut expected).expect("loads");
    for (how, packed) in in_every_format() {
        let file = bzimage(&packed, kernel.len() as u32);
        let mut ram = vec![0u8; 32 << 20];
        assert_eq!(
            load(&guest(&file, 32 * MIB), &mut ram),
            Ok(loaded),
            "{how:?}"
        );
        assert!(ram == expected, "{how:?}");
    }
}

#[test]
fn a_kernel_fits_though_its_unpacked_file_does_not_beside_it() {
    // 3 MiB of file, and 15 MiB in memory from 16 MiB on, of 32: the file cannot lie above.
    let mut kernel = elf_kernel(15 * MIB);
    kernel.resize(3 << 20, 0x5a);
    let file = bzimage(&lz4_legacy(&kernel, 1 << 20), kernel.len() as u32);
    let mut ram = vec![0u8; 32 << 20];
    let loaded = load(&guest(&file, 32 * MIB), &mut ram).expect("loads");
    assert_eq!(loaded.kernel_end, 31 * MIB);
    assert_eq!(ram[(16 << 20) + 0xff], 0xab);
    // Nothing of the file stays behind.
    assert!(!ram.contains(&0x5a));
    let kernel = elf_kernel(16 * MIB);
    let file = bzimage(&kernel, kernel.len() as u32);
    assert_eq!(
        load(&guest(&file, 32 * MIB), &mut ram),
        Err(Error::NoMemory {
            input: Input::Kernel,
            needed: 32 * MIB,
            available: 32 * MIB - (64 << 10),
        })
    );
}

#[test]
fn a_dictionary_or_window_beyond_the_limit_is_refused() {
    // 1.5 GiB of dictionary, with the header's checksum mended.
    let mut xz = packed::XZ_CRC64.to_vec();
    assert_eq!(xz[12..17], [2, 0, 0x21, 1, 0x16]);
    xz[16] = 37;
    let sum = crc32(&xz[12..20]);
    xz[20..24].copy_from_slice(&sum.to_le_bytes());
    let unpacked = payload::unpack(&xz, 4096);
    assert_eq!(unpacked, Err(Error::Payload(Compression::Xz)));
    // 256 MiB of window.
    let mut zstd = packed::ZSTD_CHECKED.to_vec();
    assert_eq!(zstd[5], 17 << 3);
    zstd[5] = 18 << 3;
    let unpacked = payload::unpack(&zstd, 4096);
    assert_eq!(unpacked, Err(Error::Payload(Compression::Zstd)));
}

/// CRC-32 of the xz format (ISO 3309).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| {
            sum >> 1 ^ (0xedb8_8320 * (sum & 1))
        })
    })
}

proptest! {
    // Few: each xz case zeroes its dictionary of 8 or 32 MiB.
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_mutated_boot_image_never_panics(
        which in 0usize..6,
        cut in any::<prop::sample::Index>(),
        whole in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let (_, packed) = in_every_format().swap_remove(which);
        let mut file = bzimage(&packed, 4096);
        for (at, value) in changes {
            let at = at.index(file.len());
            file[at] = value;
        }
        if !whole {
            file.truncate(cut.index(file.len()));
        }
        let _ = load(&guest(&file, 18 * MIB), &mut vec![0u8; 18 << 20]);
    }

    #[test]
    fn a_mutated_payload_never_panics(
        which in 0usize..6,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let (_, mut packed) = in_every_format().swap_remove(which);
        for (at, value) in changes {
            let at = at.index(packed.len());
            packed[at] = value;
        }
        let _ = payload::unpack(&packed, 4096);
    }
}
