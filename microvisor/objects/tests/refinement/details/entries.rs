//! Entries of translation tables as the manuals have them, and which of them the code takes for what.

use super::Memory;
use crate::id::{FrameKind, PhysAddr};
use crate::machine::{DmaTables, GuestTables};
use crate::translate::{Format, Leaf, check_address, format};
use microvisor_abi::cap::Map;
use microvisor_abi::{SpaceKind, Status, USER_END};
use std::vec::Vec;

const BASE: u64 = 0x12_3460_0000;
const RW: u64 = Map::READ | Map::WRITE;
const RX: u64 = Map::READ | Map::EXECUTE;
const NX: u64 = 1 << 63;

fn leaf(order: u32, flags: u64, device: bool) -> Leaf {
    let base = PhysAddr(BASE);
    Leaf {
        base,
        order,
        flags,
        device,
    }
}

#[test]
fn leaves_are_what_the_manuals_say() {
    // Small and readable, writable, executable; large and writable; of a device and writable.
    let cases = [
        // P 1, RW 2, US 4, PWT 8, PCD 10, A 20, D 40, PS 80 (Intel SDM vol. 3, 4.5).
        (
            Format::Host,
            [0x65 | NX, 0x67 | NX, 0x65, 0xe7 | NX, 0x7f | NX],
        ),
        (
            Format::Npt,
            [0x65 | NX, 0x67 | NX, 0x65, 0xe7 | NX, 0x7f | NX],
        ),
        // R 1, W 2, X 4, write-back 30, large 80, A 100, D 200 (Intel SDM vol. 3, 29.3.2).
        (Format::Ept, [0x331, 0x333, 0x335, 0x3b3, 0x303]),
        // R 1, W 2, large 80 (VT-d specification 3.3, 9.8).
        (Format::VtD, [1, 3, 1, 0x83, 3]),
        // PR 1, FC bit 60, IR 61, IW 62 (AMD IOMMU specification 3.08, 2.2.3).
        (
            Format::AmdVi,
            [
                3 << 60 | 1,
                7 << 60 | 1,
                3 << 60 | 1,
                7 << 60 | 1,
                6 << 60 | 1,
            ],
        ),
    ];
    for (format, entries) in cases {
        let leaves = [
            leaf(12, Map::READ, false),
            leaf(12, RW, false),
            leaf(12, RX, false),
            leaf(21, RW, false),
            leaf(12, RW, true),
        ];
        for (leaf, entry) in leaves.into_iter().zip(entries) {
            let made = format.leaf(leaf);
            assert_eq!(made, BASE | entry, "{format:?} {leaf:?}: {made:#x}");
            let level = if leaf.order == 12 { 1 } else { 2 };
            assert!(format.present(made) && format.is_leaf(made, level));
        }
    }
}

#[test]
fn entries_that_name_tables_are_what_the_manuals_say() {
    for level in 2..=4 {
        // They allow everything: what is allowed is said by the leaf.
        let amd = u64::from(level - 1) << 9 | 1 | 3 << 61;
        for (format, entry) in [
            (Format::Host, 7),
            (Format::Npt, 7),
            (Format::Ept, 7),
            (Format::VtD, 3),
            (Format::AmdVi, amd),
        ] {
            let made = format.table(PhysAddr(BASE), level);
            assert_eq!(made, BASE | entry, "{format:?} {level}");
            assert!(format.present(made) && !format.is_leaf(made, level));
        }
    }
}

#[test]
fn an_entry_is_present_if_the_hardware_would_use_it() {
    // Bits of which any one makes an entry present.
    for (format, bits) in [
        (Format::Host, 1u64),
        (Format::Npt, 1),
        (Format::AmdVi, 1),
        (Format::Ept, 7),
        (Format::VtD, 3),
    ] {
        for bit in 0..64 {
            let wanted = bits & 1 << bit != 0;
            assert_eq!(format.present(1 << bit), wanted, "{format:?} {bit}");
        }
    }
}

#[test]
fn an_entry_of_the_lowest_table_is_a_leaf_whatever_it_says() {
    for format in [
        Format::Host,
        Format::Npt,
        Format::Ept,
        Format::VtD,
        Format::AmdVi,
    ] {
        assert!(format.is_leaf(0, 1) && format.is_leaf(u64::MAX, 1));
        // AMD's I/O tables name the level of the next table, 0 for none; the others have a bit.
        assert_eq!(format.is_leaf(0, 2), format == Format::AmdVi);
        assert!(format.is_leaf(1 << 7, 2) && !format.is_leaf(7 << 9, 2));
    }
}

#[test]
fn tables_have_the_format_of_what_walks_them() {
    let dma = |amd| {
        Some(DmaTables {
            amd,
            bits: 48,
            largest: 30,
        })
    };
    let (npt, ept) = (GuestTables::Npt, GuestTables::Ept);
    for (kind, guest, dma, wanted) in [
        (SpaceKind::Host, npt, dma(true), Format::Host),
        (SpaceKind::Host, ept, dma(false), Format::Host),
        (SpaceKind::Guest, npt, dma(false), Format::Npt),
        (SpaceKind::Guest, ept, dma(true), Format::Ept),
        (SpaceKind::Dma, npt, dma(true), Format::AmdVi),
        (SpaceKind::Dma, npt, dma(false), Format::VtD),
    ] {
        assert_eq!(format(kind, guest, dma), wanted);
    }
}

#[test]
fn an_address_lies_in_its_space_to_the_last_byte_and_on_its_size() {
    let dma = Some(DmaTables {
        amd: false,
        bits: 39,
        largest: 30,
    });
    for (kind, end) in [
        (SpaceKind::Host, USER_END),
        (SpaceKind::Guest, 1 << 48),
        (SpaceKind::Dma, 1 << 39),
    ] {
        for order in [12, 21, 30] {
            let fits = |address: u64| check_address(kind, dma, address, order);
            let size = 1u64 << order;
            for good in [0, size, (end - size) & !(size - 1)] {
                assert_eq!(fits(good), Ok(()), "{kind:?} {order} {good:#x}");
            }
            let last = !(size - 1);
            for bad in [1, size - 1, size / 2, end, end + size, last] {
                let wanted = Err(Status::InvalidArgument);
                assert_eq!(fits(bad), wanted, "{kind:?} {order} {bad:#x}");
            }
        }
    }
    let none = check_address(SpaceKind::Dma, None, 0, 12);
    assert_eq!(none, Err(Status::InvalidArgument));
}

#[test]
fn every_table_is_marked_as_one() {
    let mut memory = Memory::new(0, 16);
    let arena = &mut memory.arena;
    let space = arena.create_space(PhysAddr(0x1000), SpaceKind::Guest, PhysAddr(0));
    arena.fill_space(space, PhysAddr(0x4000), 4);
    let table = |frame: u64| arena.tag_of(frame) as u8 == FrameKind::PageTable as u8;
    let tables: Vec<u64> = (0..16).filter(|frame| table(*frame)).collect();
    assert_eq!(tables, [2, 4, 5, 6, 7]);
}

#[test]
fn only_the_leaf_that_is_expected_is_taken_out() {
    let mut memory = Memory::new(0, 16);
    let arena = &mut memory.arena;
    let space = arena.create_space(PhysAddr(0x1000), SpaceKind::Host, PhysAddr(0));
    arena.fill_space(space, PhysAddr(0x4000), 4);
    let (at, format) = (0x4020_0000, Format::Host);
    let map = |arena: &mut crate::Arena, order| {
        let leaf = leaf(order, RW, false);
        assert_eq!(arena.map_leaf(space, format, at, leaf), Ok(None));
    };
    map(arena, 21);
    let large = |arena: &crate::Arena, offset: u64| {
        let found = arena.translate(PhysAddr(0x2000), at + offset);
        found.map(|(to, _)| to.0)
    };
    assert_eq!(large(arena, 0x12_3456), Some(BASE + 0x12_3456));
    for (address, base, order) in [
        (at, BASE + 0x20_0000, 21),
        (at, BASE, 12),
        (at, BASE, 30),
        (at + 0x20_0000, BASE, 21),
        (at + 0x4000_0000, BASE, 21),
    ] {
        let taken = arena.unmap_leaf(space, format, address, PhysAddr(base), order);
        assert!(!taken, "{address:#x} {base:#x} {order}");
    }
    assert_eq!(large(arena, 0), Some(BASE));
    assert!(arena.unmap_leaf(space, format, at, PhysAddr(BASE), 21));
    assert_eq!(large(arena, 0), None);
    assert!(!arena.unmap_leaf(space, format, at, PhysAddr(BASE), 21));
    // The walk ends where nothing is.
    assert_eq!(arena.translate(PhysAddr(0x2000), 0), None);
}

#[test]
fn no_table_of_a_pool_is_lost() {
    let mut memory = Memory::new(0, 16);
    let arena = &mut memory.arena;
    let space = arena.create_space(PhysAddr(0x1000), SpaceKind::Guest, PhysAddr(0));
    arena.fill_space(space, PhysAddr(0x4000), 5);
    let map = |arena: &mut crate::Arena, at: u64, order| {
        let leaf = leaf(order, RW, false);
        arena.map_leaf(space, Format::Npt, at, leaf)
    };
    let (small, far) = (0x1000, 1 << 39);
    assert_eq!(map(arena, small, 12), Ok(None));
    // Two are left, and this takes three: it takes none.
    assert_eq!(map(arena, far, 12), Err((Status::NeedTable, 3)));
    // A table that maps something is not replaced.
    assert_eq!(map(arena, 0, 21), Err((Status::Occupied, 0)));
    assert!(arena.unmap_leaf(space, Format::Npt, small, PhysAddr(BASE), 12));
    let empty = map(arena, 0, 21).expect("nothing is in the way");
    let empty = empty.expect("a table was");
    arena.recycle_table(space, empty);
    assert_eq!(map(arena, far, 12), Ok(None));
    assert_eq!(map(arena, 2 * far, 30), Err((Status::NeedTable, 3)));
}
