//! Tables that are right, damaged and hostile; overlays against a plain model.

use std::collections::BTreeMap;

use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::gpt::Partition;

const BLOCKS: u64 = 2048;

/// A disk with a table at both ends, as sgdisk writes it.
fn disk(partitions: &[(u64, u64, &str)], blocks: u64) -> Vec<u8> {
    let mut entries = std::vec![0; 128 * 128];
    for (index, (first, last, label)) in partitions.iter().enumerate() {
        let entry = &mut entries[index * 128..][..128];
        entry[..16].copy_from_slice(&[7; 16]);
        entry[16..32].copy_from_slice(&[index as u8 + 1; 16]);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
        for (place, letter) in entry[56..].chunks_mut(2).zip(label.encode_utf16()) {
            place.copy_from_slice(&letter.to_le_bytes());
        }
    }
    let header = |here: u64, other: u64, list: u64| {
        let mut header = std::vec![0; 512];
        header[..8].copy_from_slice(b"EFI PART");
        header[8..12].copy_from_slice(&0x1_0000u32.to_le_bytes());
        header[12..16].copy_from_slice(&92u32.to_le_bytes());
        for (at, word) in [
            (24, here),
            (32, other),
            (40, 34),
            (48, blocks - 34),
            (72, list),
        ] {
            header[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        header[80..84].copy_from_slice(&128u32.to_le_bytes());
        header[84..88].copy_from_slice(&128u32.to_le_bytes());
        let sum = gpt::crc32(entries.iter().copied());
        header[88..92].copy_from_slice(&sum.to_le_bytes());
        let sum = gpt::crc32(header[..92].iter().copied());
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        header
    };
    let mut disk = std::vec![0; blocks as usize * 512];
    disk[512..1024].copy_from_slice(&header(1, blocks - 1, 2));
    disk[1024..][..entries.len()].copy_from_slice(&entries);
    let end = (blocks as usize - 1) * 512;
    disk[end..].copy_from_slice(&header(blocks - 1, 1, blocks - 33));
    disk[end - entries.len()..end].copy_from_slice(&entries);
    disk
}

fn read(disk: &[u8]) -> Result<Vec<Partition>, Missing> {
    gpt::read(512, disk.len() as u64 / 512, |block, into| {
        let start = block as usize * 512;
        let there = disk.get(start..start + into.len());
        there.map(|bytes| into.copy_from_slice(bytes)).is_some()
    })
}

fn labelled(disk: &[u8], label: &str) -> Result<Extent, Missing> {
    find(&read(disk)?, 512, |one| one.label == label)
}

#[test]
fn checksums_are_those_of_ieee() {
    assert_eq!(gpt::crc32(*b"123456789"), 0xcbf4_3926);
}

#[test]
fn a_partition_is_found_by_label_and_by_guid() {
    let disk = disk(&[(34, 99, "boot"), (100, 1999, "Wurzel-ß")], BLOCKS);
    let extent = Extent {
        first: 100,
        sectors: 1900,
    };
    assert_eq!(labelled(&disk, "Wurzel-ß"), Ok(extent));
    let by_guid = find(&read(&disk).unwrap(), 512, |one| one.unique == [2; 16]);
    assert_eq!(by_guid, Ok(extent));
    assert_eq!(labelled(&disk, "root"), Err(Missing::Partition));
    // Of a disk with blocks of 4096 bytes the same numbers mean eight times as many sectors.
    let large = find(&read(&disk).unwrap(), 4096, |one| one.label == "boot");
    assert_eq!(large.unwrap().first, 34 * 8);
}

#[test]
fn the_second_table_stands_in_for_a_damaged_first_one() {
    let mut bytes = disk(&[(34, 99, "boot")], BLOCKS);
    bytes[512 + 60] ^= 1;
    assert_eq!(labelled(&bytes, "boot").unwrap().first, 34);
    bytes[(BLOCKS as usize - 2) * 512] ^= 1;
    assert_eq!(labelled(&bytes, "boot"), Err(Missing::Table));
}

#[test]
fn partitions_that_are_not_one_guests_alone_are_refused() {
    let twice = disk(&[(34, 99, "a"), (100, 199, "a")], BLOCKS);
    assert_eq!(labelled(&twice, "a"), Err(Missing::Ambiguous));
    let overlap = disk(&[(34, 120, "a"), (100, 199, "b")], BLOCKS);
    assert_eq!(labelled(&overlap, "a"), Err(Missing::Overlap));
    let outside = disk(&[(34, BLOCKS, "a"), (20, 99, "b"), (99, 34, "c")], BLOCKS);
    for label in ["a", "b", "c"] {
        assert_eq!(
            labelled(&outside, label),
            Err(Missing::Partition),
            "{label}"
        );
    }
}

#[test]
fn an_extent_ends_where_it_ends() {
    let extent = Extent {
        first: 100,
        sectors: 10,
    };
    assert_eq!(extent.locate(0, 10), Some(100));
    assert_eq!(extent.locate(9, 1), Some(109));
    for (sector, count) in [(0, 11), (10, 1), (9, 2), (u64::MAX, 1), (1, u64::MAX)] {
        assert_eq!(extent.locate(sector, count), None, "{sector} {count}");
    }
}

#[test]
fn an_image_is_read_only_without_an_overlay_and_ends_in_zeros() {
    let image: &[u8] = &[7; 700];
    let plain = Volume::new(Base::Image(image), 512, false, 0);
    assert!(plain.read_only && plain.sectors() == 2);
    let mut bytes = [1; 1024];
    plain.read(0, &mut bytes);
    assert_eq!((bytes[699], bytes[700]), (7, 0));
    let mut over = Volume::new(Base::Image(image), 512, false, 4096);
    assert!(!over.read_only && over.forgets());
    over.write(1, &[9; 512]).unwrap();
    over.read(0, &mut bytes);
    assert_eq!((bytes[511], bytes[512], bytes[1023]), (7, 9, 9));
    assert_eq!(over.write(8, &[9; 512]), Err(Full));
    assert_eq!(over.write(7, &[9; 512]), Ok(()));
    assert_eq!(over.overlay_use(), Some((4096, 4096)));
}

#[test]
fn only_what_can_be_written_can_be_given_up() {
    let disk = |first| {
        Base::Disk(Extent {
            first,
            sectors: 4096,
        })
    };
    let said = |base, read_only, overlay, granularity| {
        let volume = Volume::new(base, 512, read_only, overlay);
        let discard = volume.on_discarding_disk(granularity).discard();
        discard.map(|said| (said.granularity, said.alignment))
    };
    assert_eq!(said(disk(2048), false, 0, 512), Some((512, 0)));
    // Partitions that begin between two stretches: how far it is to the next one.
    assert_eq!(said(disk(34), false, 0, 4096), Some((4096, 3072)));
    assert_eq!(said(disk(63), false, 0, 1 << 20), Some((1 << 20, 1016320)));
    assert_eq!(said(disk(1), false, 0, 1536), Some((1536, 1024)));
    assert_eq!(said(disk(u64::MAX / 2), false, 0, 4096).unwrap().0, 4096);
    assert_eq!(said(disk(34), false, 0, 0), None);
    assert_eq!(said(disk(34), true, 0, 512), None);
    // What is written to memory is given up there, whatever the disk does.
    assert_eq!(said(disk(34), false, 8192, 0), Some((4096, 0)));
    assert_eq!(
        said(Base::Image(&[7; 512]), false, 8192, 0),
        Some((4096, 0))
    );
    assert_eq!(said(Base::Image(&[7; 512]), false, 0, 512), None);
    assert_eq!(said(Base::Image(&[7; 512]), true, 8192, 512), None);
}

#[test]
fn what_is_given_up_in_pieces_is_parted_between_stretches() {
    let extent = Extent {
        first: 34,
        sectors: 1 << 30,
    };
    let at_once = |granularity, sector, sectors, most| {
        let volume = Volume::new(Base::Disk(extent), 512, false, 0);
        let volume = volume.on_discarding_disk(granularity);
        volume.discarded_at_once(sector, sectors, most)
    };
    assert_eq!(at_once(4096, 0, 100, 100), 100);
    // Sector 34 of the disk is the third of its stretch.
    assert_eq!(at_once(4096, 0, 1000, 100), 94);
    assert_eq!(at_once(4096, 94, 1000, 96), 96);
    assert_eq!(at_once(512, 1, 1000, 99), 99);
    // Less than a stretch is all that a request carries.
    assert_eq!(at_once(1 << 20, 0, 1000, 10), 10);
    assert_eq!(at_once(0, 0, 1000, 10), 10);
}

#[test]
fn what_is_given_up_reads_as_the_image_and_its_memory_serves_other_sectors() {
    let image: &[u8] = &[7; 64 << 10];
    let mut over = Volume::new(Base::Image(image), 512, false, 8192);
    over.write(0, &[9; 8192]).unwrap();
    assert_eq!(over.write(40, &[3; 512]), Err(Full));
    // A block and a half: the half stays in use.
    over.forget(0, 12);
    assert_eq!(over.overlay_use(), Some((4096, 8192)));
    over.write(40, &[3; 512]).unwrap();
    let mut bytes = [1; 32 << 10];
    over.read(0, &mut bytes);
    for (sector, bytes) in bytes.chunks(512).enumerate() {
        let expected = match sector {
            12..16 => 9,
            40 => 3,
            // Beside it in the same block is what the image has, not what was written elsewhere before.
            _ => 7,
        };
        assert!(bytes.iter().all(|byte| *byte == expected), "{sector}");
    }
    over.forget(u64::MAX, 1);
    over.forget(1, u64::MAX);
    over.forget(12, 0);
    assert_eq!(over.overlay_use(), Some((8192, 8192)));
    over.forget(0, u64::MAX);
    assert_eq!(over.overlay_use(), Some((0, 8192)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn damage_is_noticed_or_harmless(at in 512usize..18_000, value: u8, more in proptest::collection::vec((0usize..2048 * 512, any::<u8>()), 0..20)) {
        let mut bytes = disk(&[(34, 99, "boot"), (100, 1999, "root")], BLOCKS);
        bytes[at] = value;
        for (at, value) in more {
            bytes[at] = value;
        }
        if let Ok(partitions) = read(&bytes) {
            for one in &partitions {
                prop_assert!(one.first <= one.last && one.last < BLOCKS);
            }
            if let Ok(extent) = find(&partitions, 512, |one| one.label == "root") {
                prop_assert!(extent.first + extent.sectors <= BLOCKS);
            }
        }
    }

    #[test]
    fn any_header_with_a_right_checksum_is_read_within_bounds(fields in proptest::collection::vec(prop_oneof![0u64..4096, any::<u64>()], 9)) {
        let mut bytes = disk(&[(34, 99, "boot")], 64);
        for (at, field) in [24, 32, 40, 48, 72].into_iter().zip(&fields) {
            bytes[512 + at..][..8].copy_from_slice(&field.to_le_bytes());
        }
        for (at, field) in [12, 80, 84].into_iter().zip(&fields[5..]) {
            bytes[512 + at..][..4].copy_from_slice(&(*field as u32).to_le_bytes());
        }
        bytes[512 + 24..][..8].copy_from_slice(&1u64.to_le_bytes());
        bytes[512 + 16..][..4].fill(0);
        let length = (u32::from_le_bytes(bytes[524..528].try_into().unwrap()) as usize).clamp(92, 512);
        let sum = gpt::crc32(bytes[512..][..length].iter().copied());
        bytes[512 + 16..][..4].copy_from_slice(&sum.to_le_bytes());
        let _ = read(&bytes);
    }

    #[test]
    fn what_is_located_lies_inside(first in 0u64..1 << 40, sectors: u64, sector: u64, count: u64) {
        let extent = Extent { first, sectors: sectors >> 20 };
        if let Some(at) = extent.locate(sector, count) {
            prop_assert!(at >= extent.first && at + count <= extent.first + extent.sectors);
        }
    }

    #[test]
    fn an_overlay_is_what_was_written_last_over_what_was_there(
        writes in proptest::collection::vec((0u64..200, 1u64..20, any::<u8>(), 0u8..4), 0..60),
        blocks in 1u64..30,
    ) {
        let mut overlay = Overlay::new(blocks * 4096);
        let mut model: BTreeMap<u64, u8> = BTreeMap::new();
        for (sector, count, value, what) in writes {
            if what == 0 {
                let count = count * u64::from(value) / 16;
                overlay.forget(sector, count);
                model.retain(|kept, _| !(sector..sector + count).contains(kept));
                continue;
            }
            let data = std::vec![value; (count * SECTOR) as usize];
            let done = overlay.write(sector, &data);
            let mut known: Vec<u64> = model.keys().map(|sector| sector / 8).collect();
            known.dedup();
            let mut used = known.len() as u64;
            let mut full = false;
            for sector in sector..sector + count {
                if !known.contains(&(sector / 8)) {
                    if used == blocks { full = true; break; }
                    used += 1;
                    known.push(sector / 8);
                }
                model.insert(sector, value);
            }
            prop_assert_eq!(done.is_err(), full);
            let (in_use, most) = overlay.usage();
            prop_assert!(in_use <= most);
            prop_assert_eq!(in_use, used * 4096);
        }
        let mut read = std::vec![0xee; 220 * 512];
        overlay.read(0, &mut read);
        for (sector, bytes) in (0..).zip(read.chunks(512)) {
            let expected = model.get(&sector).copied().unwrap_or(0xee);
            prop_assert!(bytes.iter().all(|byte| *byte == expected), "sector {}", sector);
        }
    }
}
