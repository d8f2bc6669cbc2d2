//! The parsers of what firmware says of IOMMUs: any bytes are survived, right ones are understood.

#[path = "../src/boot"]
mod boot {
    mod bytes;
    pub mod remap;
}

use boot::remap::{Remapping, Unit, dmar, function, ivrs, table};
use proptest::prelude::*;

/// A table with this signature: 48 bytes of header, then structures; its checksum is right.
fn acpi(signature: &[u8; 4], flags: u8, body: &[u8]) -> Vec<u8> {
    let mut table = vec![0; 48];
    table[..4].copy_from_slice(signature);
    table[37] = flags;
    table.extend(body);
    let length = table.len() as u32;
    table[4..8].copy_from_slice(&length.to_le_bytes());
    table[9] = table.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b));
    table
}

/// A DMAR structure: kind, then what follows its length.
fn structure(kind: u16, body: &[u8]) -> Vec<u8> {
    let length = (4 + body.len() as u16).to_le_bytes();
    [&kind.to_le_bytes()[..], &length, body].concat()
}

fn scope(kind: u8, id: u8, bus: u8, path: &[u8]) -> Vec<u8> {
    [&[kind, 6 + path.len() as u8, 0, 0, id, bus][..], path].concat()
}

fn unit(segment: u16, base: u64, scopes: &[u8]) -> Vec<u8> {
    let head = [&[1u8, 0][..], &segment.to_le_bytes(), &base.to_le_bytes()];
    structure(0, &[&head.concat()[..], scopes].concat())
}

fn reserved(start: u64, last: u64, scopes: &[u8]) -> Vec<u8> {
    let head = [&[0u8; 4][..], &start.to_le_bytes(), &last.to_le_bytes()];
    structure(1, &[&head.concat()[..], scopes].concat())
}

#[test]
fn dmar_gives_units_io_apics_and_reserved_memory() {
    let body = [
        unit(0, 0xfed9_0000, &scope(1, 0, 0, &[2, 0])),
        unit(0, 0xfed9_1000, &scope(3, 8, 0xf0, &[0x1f, 7])),
        unit(1, 0xfed9_2000, &[]),
        reserved(0x7800_0000, 0x7fff_ffff, &scope(1, 0, 0, &[2, 0])),
        reserved(0x6000_0000, 0x6000_ffff, &scope(1, 0, 0, &[0x1c, 0, 0, 1])),
    ];
    let found = dmar(&acpi(b"DMAR", 1, &body.concat()));
    let bases: Vec<u64> = found.units.iter().map(|u| u.base).collect();
    assert_eq!(bases, [0xfed9_0000, 0xfed9_1000], "segment 1 is not ours");
    assert!(found.interrupts && !found.amd);
    assert_eq!(found.io_apics.as_slice(), [(8, 0xf0ff)]);
    let [graphics, behind] = found.reserved.as_slice() else {
        panic!("two reserved ranges");
    };
    assert_eq!((graphics.start, graphics.end), (0x7800_0000, 0x8000_0000));
    assert_eq!(graphics.path.1.as_slice(), [(2, 0)]);
    assert_eq!(behind.path.1.as_slice(), [(0x1c, 0), (0, 1)]);
    assert_eq!(function(0, (2, 0)), 0x10);
}

fn ivhd(kind: u8, base: u64, entries: &[u8]) -> Vec<u8> {
    let head = if kind == 0x10 { 24 } else { 40 };
    let mut block = vec![0u8; head];
    block[0] = kind;
    block[2..4].copy_from_slice(&((head + entries.len()) as u16).to_le_bytes());
    block[4..6].copy_from_slice(&0x0010u16.to_le_bytes());
    block[8..16].copy_from_slice(&base.to_le_bytes());
    block.extend(entries);
    block
}

#[test]
fn ivrs_gives_each_unit_once_io_apics_and_reserved_memory() {
    // All devices; an alias (8 bytes); an ACPI device with a name of 3; an I/O APIC; an HPET.
    let mut acpi_device = vec![0u8; 22];
    (acpi_device[0], acpi_device[21]) = (240, 3);
    acpi_device.extend(b"abc");
    let entries = [
        vec![1, 0, 0, 0],
        vec![66, 0, 1, 0, 0, 0, 2, 0],
        acpi_device,
        vec![72, 0, 0, 0, 5, 0xa0, 0x00, 1],
        vec![72, 0, 0, 0, 0, 0xa1, 0x00, 2],
    ];
    let mut memory = vec![0u8; 32];
    (memory[0], memory[1], memory[2]) = (0x22, 1, 32);
    memory[4..6].copy_from_slice(&8u16.to_le_bytes());
    memory[6..8].copy_from_slice(&15u16.to_le_bytes());
    memory[16..24].copy_from_slice(&0x7000_0000u64.to_le_bytes());
    memory[24..32].copy_from_slice(&0x10_0000u64.to_le_bytes());
    let body = [
        ivhd(0x10, 0xfeb8_0000, &entries.concat()),
        ivhd(0x11, 0xfeb8_0000, &entries.concat()),
        memory,
    ];
    let found = ivrs(&acpi(b"IVRS", 0, &body.concat()));
    let unit = Unit {
        base: 0xfeb8_0000,
        function: 0x10,
    };
    assert_eq!(found.units.as_slice(), [unit]);
    assert_eq!(found.io_apics.as_slice(), [(5, 0xa0)]);
    let [one] = found.reserved.as_slice() else {
        panic!("one reserved range");
    };
    assert_eq!(one.functions, Some((8, 15)));
    assert_eq!((one.start, one.end), (0x7000_0000, 0x7010_0000));
}

/// Physical memory with an RSDP at 0x100, a list of tables at 0x200 and this table at 0x400.
fn firmware(revision: u8, found: &[u8]) -> Vec<u8> {
    let mut memory = vec![0u8; 0x1000];
    memory[0x10f] = revision;
    memory[0x110..0x114].copy_from_slice(&0x200u32.to_le_bytes());
    memory[0x118..0x120].copy_from_slice(&0x300u64.to_le_bytes());
    // Both lists name a table that is not asked for, too.
    memory[0x204..0x208].copy_from_slice(&44u32.to_le_bytes());
    memory[0x224..0x228].copy_from_slice(&0x800u32.to_le_bytes());
    memory[0x228..0x22c].copy_from_slice(&0x400u32.to_le_bytes());
    memory[0x304..0x308].copy_from_slice(&52u32.to_le_bytes());
    memory[0x324..0x32c].copy_from_slice(&0x800u64.to_le_bytes());
    memory[0x32c..0x334].copy_from_slice(&0x400u64.to_le_bytes());
    memory[0x400..0x400 + found.len()].copy_from_slice(found);
    memory
}

fn look_up<'a>(memory: &'a [u8], signature: &[u8; 4]) -> Option<&'a [u8]> {
    table(0x100, signature, |at, length| {
        memory.get(at as usize..)?.get(..length as usize)
    })
}

#[test]
fn a_table_is_found_by_either_list_if_its_checksum_is_right() {
    let good = acpi(b"DMAR", 1, &[]);
    for revision in [0, 2] {
        let memory = firmware(revision, &good);
        assert_eq!(look_up(&memory, b"DMAR"), Some(&good[..]));
        assert_eq!(look_up(&memory, b"IVRS"), None);
    }
    let mut bad = good;
    bad[40] += 1;
    assert_eq!(look_up(&firmware(2, &bad), b"DMAR"), None);
}

/// Nothing was made up: no more than fits, and no empty ranges.
fn sane(found: &Remapping) {
    assert!(found.reserved.iter().all(|r| r.start < r.end));
    assert!(found.units.iter().all(|unit| unit.base != 0));
}

#[test]
fn a_table_that_is_shorter_than_its_header_is_none() {
    let mut memory = vec![0; 0x400];
    memory[16] = 64;
    memory[64..72].copy_from_slice(b"RSDT\x28\0\0\0");
    memory[100] = 128;
    memory[128..132].copy_from_slice(b"DMAR");
    let read = |at: u64, length: u64| memory.get(at as usize..)?.get(..length as usize);
    assert_eq!(table(0, b"DMAR", read), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        sane(&dmar(&bytes));
        sane(&ivrs(&bytes));
    }

    // Mostly plausible kinds and lengths, so that the parsers get far.
    #[test]
    fn damaged_structures_are_survived(
        words in proptest::collection::vec((0..4u8, 0..80u8, any::<[u8; 12]>()), 0..40),
        amd in any::<bool>(),
    ) {
        let mut body = Vec::new();
        for (kind, length, rest) in words {
            let kind = if amd { [0x10, 0x11, 0x20, 0x22][usize::from(kind)] } else { kind };
            if amd {
                body.extend([kind, 1, length, 0]);
            } else {
                body.extend([kind, 0, length, 0]);
            }
            body.extend(rest);
        }
        sane(&dmar(&acpi(b"DMAR", 1, &body)));
        sane(&ivrs(&acpi(b"IVRS", 0, &body)));
    }

    #[test]
    fn any_firmware_is_survived(noise in proptest::collection::vec(any::<u8>(), 0x1000), at in 0u64..0x2000) {
        let read = |at: u64, length: u64| noise.get(at as usize..)?.get(..length as usize);
        let _ = table(at, b"DMAR", read);
    }
}
