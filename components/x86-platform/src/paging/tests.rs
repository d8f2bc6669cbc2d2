use super::*;
use crate::memory::TestMemory;
use microvisor_abi::vcpu::Segment;
use proptest::prelude::*;

fn put(memory: &TestMemory, at: u64, value: u64) {
    memory.write(at, &value.to_le_bytes()).unwrap();
}

fn mode(cr0: u64, cr4: u64, efer: u64, privilege: u16) -> Mode {
    Mode {
        cr0: cr0 | CR0_PE,
        cr3: 0x1000,
        cr4,
        efer,
        cs: Segment::new(8, 0x29b, u32::MAX, 0),
        ss: Segment::new(0x10, 0x93 | privilege << 5, u32::MAX, 0),
    }
}

fn long(privilege: u16) -> Mode {
    mode(
        CR0_PG | CR0_WP,
        CR4_PAE,
        EFER_LME | EFER_LMA | EFER_NXE,
        privilege,
    )
}

/// Maps linear 0x40_0000 to 0x5000 with `flags`, and 0x8000_0000 as a 1 GiB page.
fn tables(flags: u64) -> TestMemory {
    let memory = TestMemory::new(0x10000);
    put(&memory, 0x1000, 0x2000 | 7);
    put(&memory, 0x2000, 0x3000 | 7);
    put(&memory, 0x2010, 0x4000_0000 | 0x83);
    put(&memory, 0x3010, 0x4000 | 7);
    put(&memory, 0x4000, 0x5000 | flags);
    memory
}

#[test]
fn long_mode_walk_sets_accessed_and_dirty() {
    let memory = tables(7);
    let at = |access| translate(&memory, &long(0), 0, 0x40_0123, access);
    assert_eq!(at(Access::Read), Ok(0x5123));
    assert_eq!(memory.read_u64(0x4000), Ok(0x5027));
    assert_eq!(memory.read_u64(0x1000), Ok(0x2027));
    assert_eq!(at(Access::Write), Ok(0x5123));
    assert_eq!(memory.read_u64(0x4000), Ok(0x5067));
    let big = translate(&memory, &long(0), 0, 0x8123_4567, Access::Read);
    assert_eq!(big, Ok(0x4123_4567));
}

#[test]
fn permissions_are_those_of_the_cpu() {
    let fault = |code| {
        Err(Fault::Page {
            address: 0x40_0000,
            code,
        })
    };
    let at = |flags, mode: &Mode, rflags, access| {
        translate(&tables(flags), mode, rflags, 0x40_0000, access)
    };
    assert_eq!(at(0, &long(0), 0, Access::Read), fault(0));
    assert_eq!(at(5, &long(0), 0, Access::Write), fault(3));
    assert_eq!(at(3, &long(3), 0, Access::Read), fault(5));
    assert_eq!(at(7 | NO_EXECUTE, &long(0), 0, Access::Fetch), fault(17));
    let mut strict = long(0);
    strict.cr4 |= CR4_SMEP | CR4_SMAP;
    assert_eq!(at(7, &strict, 0, Access::Fetch), fault(17));
    assert_eq!(at(7, &strict, 0, Access::Read), fault(1));
    assert_eq!(at(7, &strict, RFLAGS_AC, Access::Read), Ok(0x5000));
    let mut lax = long(0);
    lax.cr0 &= !CR0_WP;
    assert_eq!(at(5, &lax, 0, Access::Write), Ok(0x5000));
}

#[test]
fn pae_and_legacy_walks_work() {
    let memory = TestMemory::new(0x10000);
    put(&memory, 0x1000, 0x2000 | 1);
    put(&memory, 0x2010, 0x3000 | 7);
    put(&memory, 0x3000, 0x5000 | 7);
    let pae = mode(CR0_PG, CR4_PAE, 0, 0);
    assert_eq!(
        translate(&memory, &pae, 0, 0x40_0010, Access::Read),
        Ok(0x5010)
    );

    let memory = TestMemory::new(0x10000);
    memory.write(0x1004, &0x3007u32.to_le_bytes()).unwrap();
    memory.write(0x1008, &0x0080_0087u32.to_le_bytes()).unwrap();
    memory.write(0x3000, &0x5007u32.to_le_bytes()).unwrap();
    let legacy = mode(CR0_PG, CR4_PSE, 0, 0);
    let at = |address| translate(&memory, &legacy, 0, address, Access::Read);
    assert_eq!(at(0x40_0010), Ok(0x5010));
    assert_eq!(at(0x80_1234), Ok(0x80_1234));
}

#[test]
fn five_levels_and_odd_addresses_are_refused() {
    let memory = tables(7);
    let mut five = long(0);
    five.cr4 |= CR4_LA57;
    assert_eq!(
        translate(&memory, &five, 0, 0x40_0000, Access::Read),
        Err(Fault::Unsupported)
    );
    assert_eq!(
        translate(&memory, &long(0), 0, 1 << 47, Access::Read),
        Err(Fault::NonCanonical)
    );
}

#[test]
fn fetch_crosses_pages_and_stops_at_a_missing_one() {
    let memory = tables(7);
    put(&memory, 0x4008, 0x7000 | 7);
    memory.write(0x5ffe, &[0x0f, 0xa2]).unwrap();
    memory.write(0x7000, &[1, 2, 3]).unwrap();
    let code = fetch(&memory, &long(0), 0, 0x40_0ffe).unwrap();
    assert_eq!(code.bytes()[..5], [0x0f, 0xa2, 1, 2, 3]);
    assert_eq!(code.count(), 15);
    put(&memory, 0x4008, 0);
    let code = fetch(&memory, &long(0), 0, 0x40_0ffe).unwrap();
    assert_eq!((code.count(), code.words()), (2, [0xa20f, 0]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn fetch_gives_the_bytes_that_are_there(offset in 0u64..4096) {
        let memory = tables(7);
        put(&memory, 0x4008, 0x7000 | 7);
        let byte = |address: u64| (address * 7 + address / 256) as u8;
        for at in 0..4096u64 {
            memory.write(0x5000 + at, &[byte(at)]).unwrap();
            memory.write(0x7000 + at, &[byte(4096 + at)]).unwrap();
        }
        let code = fetch(&memory, &long(0), 0, 0x40_0000 + offset).unwrap();
        let wanted: std::vec::Vec<u8> = (offset..offset + 15).map(byte).collect();
        prop_assert_eq!(&code.bytes()[..15], &wanted[..]);
        prop_assert_eq!(code.count(), 15);
        prop_assert_eq!(code.words()[1] >> 56, 0);
    }

    #[test]
    fn any_tables_give_an_answer(
        words in prop::collection::vec(any::<u64>(), 64),
        address in any::<u64>(), cr4 in any::<u64>(), efer in any::<u64>(), cr3 in any::<u64>(),
    ) {
        let memory = TestMemory::new(0x4000);
        for (index, word) in words.iter().enumerate() {
            // Addresses cut so that some walks get far.
            put(&memory, index as u64 * 256, word & !0x000f_ffff_ffff_c000 | 3);
        }
        let mut any = mode(CR0_PG, cr4, efer, (address & 3) as u16);
        any.cr3 = cr3 & 0x3fe0;
        for access in [Access::Read, Access::Write, Access::Fetch] {
            let _ = translate(&memory, &any, 0, address, access);
            let _ = fetch(&memory, &any, 0, address);
        }
    }

    /// The short way and the long way agree wherever the short way answers.
    #[test]
    fn the_usual_walk_answers_as_the_whole_one(
        entries in any::<[u64; 4]>(),
        flags in any::<[u16; 4]>(),
        address in 0u64..1 << 47,
        cr4 in any::<u64>(), nxe in any::<bool>(), wp in any::<bool>(), privilege in 0u16..4,
    ) {
        let memory = TestMemory::new(0x6000);
        let mut table = 0x1000;
        for (level, (entry, flags)) in entries.iter().zip(flags).enumerate() {
            let index = address >> (39 - 9 * level) & 0x1ff;
            // Mostly present and accessed, sometimes large or not executable.
            let mut value = u64::from(flags) & 0xfff | 0x21 | (level as u64 + 2) << 12;
            if entry % 4 == 0 {
                value |= NO_EXECUTE;
            }
            if entry % 8 > 1 {
                value &= !LARGE;
            }
            if entry % 64 == 63 {
                value &= !PRESENT;
            }
            put(&memory, table + index * 8, value);
            table = (level as u64 + 2) << 12;
        }
        let mut any = long(privilege);
        any.cr4 = cr4 & !CR4_LA57 | CR4_PAE;
        if !nxe {
            any.efer &= !EFER_NXE;
        }
        if !wp {
            any.cr0 &= !CR0_WP;
        }
        for access in [Access::Read, Access::Write, Access::Fetch] {
            if let Some(physical) = usual(&memory, &any, address, access) {
                prop_assert_eq!(walk(&memory, &any, 0, address, access), Ok(physical));
            }
        }
    }
}
