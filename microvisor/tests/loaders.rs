//! The parsers of what boot loaders hand over, and the sets of memory ranges: any bytes are
//! survived, right ones are understood.

#[path = "../src/boot"]
mod boot {
    #[allow(dead_code)] // other parsers use the rest
    mod bytes;
    pub mod map;
    pub mod multiboot2;
    pub mod pvh;
}

use boot::map::{Firmware, PAGE, Ranges, Region, page_up};
use boot::{multiboot2, pvh};
use proptest::prelude::*;

fn tag(kind: u32, body: &[u8]) -> Vec<u8> {
    let mut tag = Vec::new();
    tag.extend(kind.to_le_bytes());
    tag.extend((8 + body.len() as u32).to_le_bytes());
    tag.extend(body);
    tag.resize(tag.len().next_multiple_of(8), 0);
    tag
}

fn entry(base: u64, length: u64, kind: u32) -> Vec<u8> {
    let mut entry = Vec::new();
    entry.extend(base.to_le_bytes());
    entry.extend(length.to_le_bytes());
    entry.extend(kind.to_le_bytes());
    entry.extend(0u32.to_le_bytes());
    entry
}

#[test]
fn multiboot2_gives_map_first_module_and_newest_rsdp() {
    let mut bytes = vec![0; 8];
    for module in [(0x1000u32, 0x3000u32), (0x8000, 0x9000)] {
        bytes.extend(tag(
            3,
            &[module.0.to_le_bytes(), module.1.to_le_bytes()].concat(),
        ));
    }
    let mut map = [24u32.to_le_bytes(), 0u32.to_le_bytes()].concat();
    map.extend(entry(0x10_0000, 0x20_0000, 1));
    map.extend(entry(0xf000_0000, 0x1000, 2));
    bytes.extend(tag(6, &map));
    bytes.extend(tag(14, b"RSD PTR old"));
    let newest = bytes.len() as u64 + 8;
    bytes.extend(tag(15, b"RSD PTR new"));
    bytes.extend(tag(0, &[]));
    bytes.extend(tag(3, &[0; 8]));
    let firmware = multiboot2::parse(&bytes, 0x5000);
    assert_eq!(firmware.archive, Some((0x1000, 0x3000)));
    assert_eq!(firmware.rsdp, 0x5000 + newest);
    let regions = [
        Region::new(0x10_0000, 0x20_0000, 1),
        Region::new(0xf000_0000, 0x1000, 2),
    ];
    assert_eq!(firmware.map.as_slice(), &regions);
}

#[test]
fn pvh_start_info_is_followed_to_module_and_map() {
    let mut memory = vec![0u8; 0x400];
    let mut put = |at: usize, bytes: &[u8]| memory[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x100, &pvh::MAGIC.to_le_bytes());
    put(0x104, &1u32.to_le_bytes());
    put(0x10c, &1u32.to_le_bytes());
    put(0x110, &0x200u64.to_le_bytes());
    put(0x120, &0xf_5250u64.to_le_bytes());
    put(0x128, &0x300u64.to_le_bytes());
    put(0x130, &2u32.to_le_bytes());
    put(
        0x200,
        &[0x7000u64.to_le_bytes(), 0x123u64.to_le_bytes()].concat(),
    );
    put(0x300, &entry(0, 0x9_f000, 1));
    put(0x318, &entry(0x10_0000, 0x70_0000, 1));
    let firmware = pvh::parse(0x100, |address, length| {
        memory.get(address as usize..)?.get(..length as usize)
    })
    .unwrap();
    assert_eq!(firmware.archive, Some((0x7000, 0x7123)));
    assert_eq!(firmware.rsdp, 0xf_5250);
    assert_eq!(firmware.memory().bytes(), 0x9_f000 + 0x70_0000);
}

#[test]
fn a_page_that_any_region_reserves_is_not_memory() {
    let mut firmware = Firmware::default();
    firmware.add(Region::new(0, 0x10_0000, 1));
    firmware.add(Region::new(0x8_0800, 0x1000, 2));
    let memory: Vec<_> = firmware.memory().iter().collect();
    assert_eq!(memory, [(0, 0x8_0000), (0x8_2000, 0x10_0000)]);
}

#[test]
fn device_memory_is_what_is_not_memory_on_both_sides_of_4_gib() {
    let mut ram = Ranges::default();
    for (start, end) in [(0, 0x9_fc00), (1 << 20, 2 << 30), (4 << 30, 10 << 30)] {
        ram.add(start, end);
    }
    let devices = |bits| ram.devices(bits).iter().collect::<Vec<_>>();
    let low = [
        (0xa_0000, 1 << 20),
        (2 << 30, 0xfee0_0000),
        (0xfef0_0000, 4 << 30),
    ];
    assert_eq!(devices(32), low);
    let above = [&low[..], &[(10 << 30, 1 << 36)]].concat();
    assert_eq!(devices(36), above);
    // The last 12 GiB of the first TiB are the bus's.
    let two = [&low[..], &[(10 << 30, 0xfd << 32), (1 << 40, 1 << 48)]].concat();
    assert_eq!(devices(48), two);
    assert!(devices(255).last().is_some_and(|last| last.1 == 1 << 52));
}

#[test]
fn take_prefers_high_memory_below_the_limit() {
    let mut ranges = Ranges::default();
    ranges.add(0x10_0000, 0x100_0000);
    ranges.add(0x1_0000_0000, 0x2_0000_0000);
    assert_eq!(ranges.take(0x1000, 0x20_0000, 1 << 32), Some(0xe0_0000));
    assert!(!ranges.contains(0xe0_0000, 0xe0_1000));
    assert_eq!(ranges.take(1 << 33, PAGE, u64::MAX), None);
}

#[test]
fn a_region_in_the_last_page_of_all_addresses_is_no_memory() {
    let mut firmware = Firmware::default();
    firmware.add(Region::new(u64::MAX - 5, 100, 1));
    assert_eq!(firmware.memory().iter().count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_multiboot2_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        multiboot2::parse(&bytes, 0x1000).memory();
    }

    #[test]
    fn any_multiboot2_tags_are_survived(
        tags in prop::collection::vec((0u32..20, 0u32..80, any::<[u64; 6]>()), 0..20)
    ) {
        let mut bytes = vec![0; 8];
        for (kind, size, words) in tags {
            bytes.extend(kind.to_le_bytes());
            bytes.extend(size.to_le_bytes());
            bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        }
        multiboot2::parse(&bytes, u64::MAX / 2).memory();
    }

    #[test]
    fn any_pvh_memory_is_survived(words in prop::collection::vec(any::<u16>(), 64)) {
        // Small numbers, so that pointers point somewhere.
        let mut bytes: Vec<u8> =
            words.iter().flat_map(|&word| u64::from(word % 600).to_le_bytes()).collect();
        bytes[..4].copy_from_slice(&pvh::MAGIC.to_le_bytes());
        if let Some(firmware) = pvh::parse(0, |address, length| {
            bytes.get(usize::try_from(address).ok()?..)?.get(..length as usize)
        }) {
            firmware.memory();
        }
    }

    #[test]
    fn ranges_equal_a_bitmap(
        steps in prop::collection::vec((any::<bool>(), 0u64..64, 0u64..64), 1..40)
    ) {
        let mut ranges = Ranges::default();
        let mut model = [false; 64];
        for (add, start, end) in steps {
            if add { ranges.add(start, end) } else { ranges.remove(start, end) }
            for bit in start..end {
                model[bit as usize] = add;
            }
        }
        for bit in 0..64 {
            prop_assert_eq!(ranges.contains(bit, bit + 1), model[bit as usize]);
        }
        prop_assert_eq!(ranges.bytes(), model.iter().filter(|&&bit| bit).count() as u64);
        let sorted: Vec<_> = ranges.iter().collect();
        prop_assert!(sorted.windows(2).all(|pair| pair[0].1 < pair[1].0));
    }

    #[test]
    fn regions_at_the_end_of_memory_do_not_wrap(base: u64, length: u64, kind in 0u32..4) {
        let mut firmware = Firmware::default();
        firmware.add(Region::new(base, length, kind));
        firmware.memory();
        prop_assert!(page_up(base) >= base.min(!(PAGE - 1)));
    }
}
