//! Claims about loading, on kernels made here.

mod common;

use common::{bzimage, elf_kernel};
use guest_loader::{Error, Guest, Input, layout, load, payload};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn guest<'a>(kernel: &'a [u8], initrd: Option<&'a [u8]>) -> Guest<'a> {
    Guest {
        kernel,
        initrd,
        cmdline: b"console=hvc0",
        vcpus: 2,
        ram: 32 * MIB,
    }
}

fn word(ram: &[u8], at: u64) -> u32 {
    u32::from_le_bytes(
        ram[at as usize..at as usize + 4]
            .try_into()
            .expect("four bytes"),
    )
}

fn long(ram: &[u8], at: u64) -> u64 {
    u64::from_le_bytes(
        ram[at as usize..at as usize + 8]
            .try_into()
            .expect("eight bytes"),
    )
}

#[test]
fn an_elf_kernel_lands_where_it_says_with_its_start_info() {
    let kernel = elf_kernel(0x2000);
    let initrd = vec![7u8; 5000];
    let mut ram = vec![0u8; 32 << 20];
    let loaded = load(&guest(&kernel, Some(&initrd)), &mut ram).expect("loads");
    assert_eq!(loaded.entry, 0x0100_0010);
    assert_eq!(
        &ram[16 << 20..(16 << 20) + 0x101],
        [&[0xab; 0x100][..], &[0]].concat()
    );
    let info = loaded.start_info;
    assert_eq!((word(&ram, info), word(&ram, info + 4)), (0x336e_c578, 1));
    let module = long(&ram, info + 16);
    let (at, bytes) = (long(&ram, module), long(&ram, module + 8));
    assert_eq!(&ram[at as usize..(at + bytes) as usize], &initrd[..]);
    let cmdline = long(&ram, info + 24) as usize;
    assert_eq!(&ram[cmdline..cmdline + 13], b"console=hvc0\0");
    assert_eq!(long(&ram, info + 32), loaded.rsdp);
    assert_eq!(
        word(&ram, info + 48) as usize,
        layout::memory_map(32 * MIB).len()
    );
}

#[test]
fn start_info_is_in_reach_of_a_linux_that_starts_however_large_the_guest() {
    let kernel = elf_kernel(0x2000);
    let initrd = [7; 5000];
    for ram in [32 * MIB, 1025 * MIB, 1536 * MIB] {
        // Zero pages that nobody touches take no memory here.
        let mut bytes = vec![0u8; ram as usize];
        let guest = Guest {
            ram,
            ..guest(&kernel, Some(&initrd))
        };
        let loaded = load(&guest, &mut bytes).expect("loads");
        let info = loaded.start_info;
        let cmdline = long(&bytes, info + 24);
        let map = long(&bytes, info + 40);
        for at in [info, cmdline + 13, map + 24 * 8] {
            assert!(at <= 1 << 30, "{at:#x} in a guest of {ram:#x}");
        }
        assert_eq!(word(&bytes, info), 0x336e_c578);
    }
}

#[test]
fn acpi_tables_have_right_checksums_and_name_each_processor() {
    let kernel = elf_kernel(0x2000);
    let mut ram = vec![0u8; 32 << 20];
    let loaded = load(&guest(&kernel, None), &mut ram).expect("loads");
    let sum = |at: u64, bytes: u64| {
        ram[at as usize..(at + bytes) as usize]
            .iter()
            .fold(0u8, |s, b| s.wrapping_add(*b))
    };
    let rsdp = loaded.rsdp;
    assert_eq!(&ram[rsdp as usize..rsdp as usize + 8], b"RSD PTR ");
    assert_eq!((sum(rsdp, 20), sum(rsdp, 36)), (0, 0));
    let xsdt = long(&ram, rsdp + 24);
    assert_eq!(sum(xsdt, word(&ram, xsdt + 4).into()), 0);
    let mut names = Vec::new();
    for entry in 0..2 {
        let table = long(&ram, xsdt + 36 + entry * 8);
        names.push(ram[table as usize..table as usize + 4].to_vec());
        assert_eq!(sum(table, word(&ram, table + 4).into()), 0);
    }
    assert_eq!(names, [b"FACP".to_vec(), b"APIC".to_vec()]);
    let madt = long(&ram, xsdt + 44);
    assert_eq!(word(&ram, madt + 4), 44 + 2 * 8);
    assert_eq!(
        (ram[madt as usize + 44 + 2], ram[madt as usize + 44 + 3]),
        (0, 0)
    );
    assert_eq!(
        (ram[madt as usize + 52 + 2], ram[madt as usize + 52 + 3]),
        (1, 2)
    );
}

#[test]
fn the_machine_is_hardware_reduced_and_without_legacy_devices() {
    let at = 0x1000;
    let tables = guest_loader::acpi::tables(1, at);
    let here = |address: u64| address - at;
    let xsdt = here(long(&tables, 24));
    let fadt = here(long(&tables, xsdt + 36));
    // ACPI 6.4, 5.2.9: length of revision 6; HW_REDUCED_ACPI; neither VGA nor CMOS clock.
    assert_eq!(
        (word(&tables, fadt + 4), tables[fadt as usize + 8]),
        (276, 6)
    );
    assert_ne!(word(&tables, fadt + 112) & 1 << 20, 0);
    assert_eq!(word(&tables, fadt + 108) >> 8 & 0xffff, 1 << 2 | 1 << 5);
    let dsdt = long(&tables, fadt + 140);
    assert_eq!(u64::from(word(&tables, fadt + 40)), dsdt);
    assert_eq!(word(&tables, here(dsdt)), u32::from_le_bytes(*b"DSDT"));
    assert_eq!(word(&tables, here(dsdt) + 4), 36);
}

#[test]
fn processors_beyond_eight_bits_are_x2apics() {
    let tables = guest_loader::acpi::tables(129, 0);
    let madt = long(&tables, long(&tables, 24) + 44);
    assert_eq!(word(&tables, madt + 4), 44 + 128 * 8 + 16);
    let last = madt + 44 + 128 * 8;
    assert_eq!(tables[last as usize..last as usize + 2], [9, 16]);
    let values = [4, 8, 12].map(|offset| word(&tables, last + offset));
    assert_eq!(values, [256, 1, 128]);
}

#[test]
fn a_guest_too_small_is_told_what_did_not_fit() {
    let mut ram = vec![0u8; 32 << 20];
    let kernel = elf_kernel(20 * MIB);
    assert!(matches!(
        load(&guest(&kernel, None), &mut ram),
        Err(Error::NoMemory {
            input: Input::Kernel,
            ..
        })
    ));
    let kernel = elf_kernel(MIB);
    let initrd = vec![0u8; 15 << 20];
    assert!(matches!(
        load(&guest(&kernel, Some(&initrd)), &mut ram),
        Err(Error::NoMemory {
            input: Input::Initrd,
            ..
        })
    ));
}

#[test]
fn other_files_are_refused_by_name() {
    let mut ram = vec![0u8; 32 << 20];
    assert_eq!(load(&guest(b"MZ", None), &mut ram), Err(Error::NotAKernel));
    let mut kernel = elf_kernel(MIB);
    kernel[0x408] = 17;
    assert_eq!(
        load(&guest(&kernel, None), &mut ram),
        Err(Error::NoPvhEntry)
    );
    kernel[18] = 183;
    assert_eq!(
        load(&guest(&kernel, None), &mut ram),
        Err(Error::Machine(183))
    );
}

#[test]
fn an_entry_outside_of_the_kernel_is_none() {
    let mut kernel = elf_kernel(0x2000);
    kernel[0x410..0x414].copy_from_slice(&0x0100_2000u32.to_le_bytes());
    let mut ram = vec![0u8; 32 << 20];
    assert_eq!(
        load(&guest(&kernel, None), &mut ram),
        Err(Error::NoPvhEntry)
    );
}

#[test]
fn memory_of_another_size_than_the_guests_is_refused() {
    let kernel = elf_kernel(0x2000);
    let mut ram = vec![0u8; 31 << 20];
    assert_eq!(
        load(&guest(&kernel, None), &mut ram),
        Err(Error::NoMemory {
            input: Input::Kernel,
            needed: 32 * MIB,
            available: 31 * MIB,
        })
    );
}

#[test]
fn nothing_overlaps() {
    // Kernel, initial RAM disk, start info and tables, in a guest that they nearly fill.
    let kernel = elf_kernel(12 * MIB);
    let initrd = vec![7u8; (4 << 20) - (64 << 10) - 4096];
    let mut ram = vec![0u8; 32 << 20];
    let loaded = load(&guest(&kernel, Some(&initrd)), &mut ram).expect("loads");
    let info = loaded.start_info;
    let module = long(&ram, info + 16);
    let (initrd_at, initrd_size) = (long(&ram, module), long(&ram, module + 8));
    let map_end = long(&ram, info + 40) + 24 * u64::from(word(&ram, info + 48));
    let cmdline_end = long(&ram, info + 24) + 13;
    assert_eq!(loaded.kernel_end, 28 * MIB);
    assert!(loaded.kernel_end <= info && info + 56 <= module);
    assert!(map_end.max(cmdline_end) <= initrd_at);
    assert!(initrd_at + initrd_size <= loaded.rsdp);
    assert!(initrd_at.is_multiple_of(layout::PAGE));
    let more = vec![7u8; initrd.len() + 1];
    assert!(matches!(
        load(&guest(&kernel, Some(&more)), &mut vec![0u8; 32 << 20]),
        Err(Error::NoMemory {
            input: Input::Cmdline,
            needed: 1..4096,
            available: 0,
        })
    ));
}

#[test]
fn the_memory_map_covers_ram_once() {
    for ram in [2 * MIB, 512 * MIB, 3 << 30, 5 << 30] {
        let map = layout::memory_map(ram);
        let usable: u64 = map
            .iter()
            .filter(|r| r.kind != layout::RangeKind::Reserved)
            .map(|r| r.bytes)
            .sum();
        assert_eq!(usable, ram);
        for pair in map.windows(2) {
            assert!(pair[0].start + pair[0].bytes <= pair[1].start);
        }
    }
}

#[test]
fn a_boot_image_is_unpacked_and_loaded() {
    let kernel = elf_kernel(0x2000);
    let mut lz4 = 0x184c_2102u32.to_le_bytes().to_vec();
    let packed = lz4_flex::block::compress(&kernel);
    lz4.extend((packed.len() as u32).to_le_bytes());
    lz4.extend(packed);
    let file = bzimage(&lz4, kernel.len() as u32);
    let mut ram = vec![0u8; 32 << 20];
    assert_eq!(
        load(&guest(&file, None), &mut ram).expect("loads").entry,
        0x0100_0010
    );
    let huge = bzimage(&lz4, u32::MAX);
    assert!(matches!(
        load(&guest(&huge, None), &mut ram),
        Err(Error::NoMemory { .. })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_mutated_kernel_never_panics(at in 0usize..0x500, value: u8, more in prop::collection::vec((0usize..0x1000, any::<u8>()), 0..8)) {
        let mut kernel = elf_kernel(0x2000);
        kernel[at] = value;
        for (at, value) in more {
            kernel[at] = value;
        }
        let mut ram = vec![0u8; 18 << 20];
        let _ = load(&Guest { ram: 18 * MIB, ..guest(&kernel, None) }, &mut ram);
    }

    #[test]
    fn random_payloads_never_panic(kind in 0usize..4, tail in prop::collection::vec(any::<u8>(), 0..2000)) {
        let heads: [&[u8]; 4] = [
            &[0x1f, 0x8b, 8],
            &[0xfd, b'7', b'z', b'X', b'Z', 0, 0, 4, 0xe6, 0xd6, 0xb4, 0x46],
            &[0x28, 0xb5, 0x2f, 0xfd],
            &[0x02, 0x21, 0x4c, 0x18],
        ];
        let file = [heads[kind], &tail].concat();
        let _ = payload::unpack(&file, 4096);
        let file = bzimage(&file, 4096);
        let _ = load(&Guest { ram: 4 * MIB, ..guest(&file, None) }, &mut vec![0u8; 4 << 20]);
    }
}
