//! Queues with a device that behaves, and with one that writes anything.

use block_driver::engine::{Broken, Full};
use block_driver::memory::{Memory, Plain};
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

use crate::layout::{self, Part, Place, Said, Unusable, choose, feature, geometry};
use crate::queue::{BYTES, Data, End, Kind, Queue, SIZE_MOST};

/// Memory for a queue, which test and queue share.
fn plain() -> Plain {
    Plain::new(BUS, BYTES)
}

const BUS: u64 = 0x1000_0000;

/// Address, length and flags.
type Descriptor = (u64, u32, u16);

/// A device by the book (2.7): it follows addresses, not the driver's layout.
struct Device {
    memory: Plain,
    size: u16,
    descriptors: u64,
    driver: u64,
    device: u64,
    taken: u16,
    used: u16,
    pending: Vec<(u16, Vec<Descriptor>)>,
}

impl Device {
    fn new<T>(memory: Plain, queue: &Queue<Plain, T>) -> Device {
        let addresses = queue.addresses();
        Device {
            memory,
            size: queue.size(),
            descriptors: addresses.descriptors - BUS,
            driver: addresses.driver - BUS,
            device: addresses.device - BUS,
            taken: 0,
            used: 0,
            pending: Vec::new(),
        }
    }

    fn look(&mut self) {
        while self.taken != self.memory.read16(self.driver + 2) {
            let entry = self.driver + 4 + 2 * u64::from(self.taken % self.size);
            let head = self.memory.read16(entry);
            let (mut at, mut chain) = (head, Vec::new());
            loop {
                let place = self.descriptors + 16 * u64::from(at);
                let low = u64::from(self.memory.read32(place));
                let bus = low | u64::from(self.memory.read32(place + 4)) << 32;
                let flags = self.memory.read16(place + 12);
                chain.push((bus, self.memory.read32(place + 8), flags));
                assert!(chain.len() <= usize::from(self.size));
                if flags & 1 == 0 {
                    break;
                }
                at = self.memory.read16(place + 14);
            }
            self.pending.push((head, chain));
            self.taken = self.taken.wrapping_add(1);
        }
    }

    fn finish(&mut self, index: usize, status: u8) {
        let (head, chain) = self.pending.remove(index);
        let (bus, bytes, flags) = *chain.last().unwrap();
        assert_eq!((bytes, flags), (1, 2));
        self.memory.write8(bus - BUS, status);
        let entry = self.device + 4 + 8 * u64::from(self.used % self.size);
        self.memory.write32(entry, head.into());
        self.memory.write32(entry + 4, 1);
        self.used = self.used.wrapping_add(1);
        self.memory.write16(self.device + 2, self.used);
    }
}

fn queue(size: u16) -> (Queue<Plain, u32>, Device) {
    let memory = plain();
    let queue = Queue::new(memory.clone(), BUS, size).unwrap();
    let device = Device::new(memory, &queue);
    (queue, device)
}

#[test]
fn a_device_by_the_book_finds_the_request() {
    let (mut queue, mut device) = queue(8);
    let data = Data {
        bus: 0x4567_0000,
        bytes: 4096,
    };
    queue.submit(Kind::In, 77, data, 1).unwrap();
    queue.submit(Kind::Out, 78, data, 2).unwrap();
    assert_eq!(queue.submit(Kind::Out, 78, data, 3), Err(Full));
    device.look();
    let (_, chain) = &device.pending[0];
    let (header, bytes, flags) = chain[0];
    assert_eq!((chain.len(), bytes, flags), (3, 16, 1));
    assert_eq!(chain[1], (0x4567_0000, 4096, 3));
    let header = header - BUS;
    assert_eq!(device.memory.read32(header), 0);
    assert_eq!(device.memory.read32(header + 8), 77);
    assert_eq!(device.pending[1].1[1], (0x4567_0000, 4096, 1));
    device.finish(1, 0);
    let done = queue.complete().unwrap().unwrap();
    assert_eq!((done.token, done.end), (2, End::Good));
    device.finish(0, 1);
    let done = queue.complete().unwrap().unwrap();
    assert_eq!((done.token, done.end), (1, End::Failed));
    assert_eq!((queue.complete(), queue.in_flight()), (Ok(None), 0));
}

#[test]
fn a_flush_has_no_data() {
    let (mut queue, mut device) = queue(8);
    let none = Data { bus: 0, bytes: 0 };
    queue.submit(Kind::Flush, 0, none, 1).unwrap();
    device.look();
    let (_, chain) = &device.pending[0];
    assert_eq!(chain.len(), 2);
    assert_eq!(device.memory.read32(chain[0].0 - BUS), 4);
}

#[test]
fn a_discard_says_where_in_a_segment_and_may_be_unsupported() {
    let (mut queue, mut device) = queue(8);
    let range = Data {
        bus: 0,
        bytes: 3 << 20,
    };
    queue.submit(Kind::Discard, 1 << 40 | 8, range, 1).unwrap();
    queue.submit(Kind::Discard, 16, range, 2).unwrap();
    device.look();
    let (_, chain) = &device.pending[0];
    let (header, bytes, flags) = chain[0];
    assert_eq!((chain.len(), bytes, flags), (3, 16, 1));
    let header = header - BUS;
    let words = [header, header + 8, header + 12];
    assert_eq!(words.map(|at| device.memory.read32(at)), [11, 0, 0]);
    // The device only reads it.
    let (segment, bytes, flags) = chain[1];
    assert_eq!((bytes, flags), (16, 1));
    let segment = segment - BUS;
    let words = [0, 4, 8, 12].map(|at| device.memory.read32(segment + at));
    assert_eq!(words, [8, 1 << 8, (3 << 20) / 512, 0]);
    assert_ne!(device.pending[1].1[1].0 - BUS, segment);
    device.finish(0, 2);
    let done = queue.complete().unwrap().unwrap();
    assert_eq!((done.token, done.end), (1, End::Unsupported));
    device.finish(0, 0);
    let done = queue.complete().unwrap().unwrap();
    assert_eq!((done.token, done.end), (2, End::Good));
    // The slot's next request has none of it.
    let data = Data {
        bus: 0x4567_0000,
        bytes: 512,
    };
    queue.submit(Kind::Out, 5, data, 3).unwrap();
    device.look();
    assert_eq!(device.pending[0].1[1], (0x4567_0000, 512, 1));
}

#[test]
fn a_device_that_says_nothing_of_the_end_did_not_succeed() {
    let (mut queue, mut device) = queue(8);
    queue
        .submit(Kind::Flush, 0, Data { bus: 0, bytes: 0 }, 1)
        .unwrap();
    device.look();
    let status = device.pending[0].1[1].0 - BUS;
    let before = device.memory.read8(status);
    device.finish(0, before);
    assert_eq!(queue.complete().unwrap().unwrap().end, End::Failed);
}

#[test]
fn completing_what_was_not_given_is_broken() {
    let data = Data { bus: 0, bytes: 512 };
    // More than there is; a head that is none; the same one twice.
    let (mut queue, mut device) = queue(16);
    device.memory.write16(device.device + 2, 1);
    assert_eq!(queue.complete(), Err(Broken));
    queue.submit(Kind::In, 0, data, 1).unwrap();
    device.memory.write32(device.device + 4, 1);
    assert_eq!(queue.complete(), Err(Broken));
    device.memory.write32(device.device + 4, u32::MAX);
    assert_eq!(queue.complete(), Err(Broken));

    let (mut queue, mut device) = self::queue(16);
    queue.submit(Kind::In, 0, data, 1).unwrap();
    queue.submit(Kind::In, 0, data, 2).unwrap();
    device.look();
    let again = device.pending[0].clone();
    device.finish(0, 0);
    device.pending.push(again);
    device.finish(1, 0);
    assert_eq!(queue.complete().unwrap().unwrap().token, 1);
    assert_eq!(queue.complete(), Err(Broken));
}

#[test]
fn sizes_that_no_queue_has_are_refused() {
    for size in [0, 1, 2, 3, 6, 100] {
        assert!(Queue::<_, u32>::new(plain(), 0, size).is_none());
    }
    let large = Queue::<_, u32>::new(plain(), 0, 1 << 15).unwrap();
    assert_eq!(large.size(), SIZE_MOST);
}

#[test]
fn a_device_that_would_go_past_the_iommu_is_refused() {
    let modern = feature::VERSION_1 | feature::FLUSH | 1 << 40;
    assert_eq!(choose(0, false), Err(Unusable::Legacy));
    assert_eq!(choose(modern, true), Err(Unusable::PastIommu));
    assert_eq!(
        choose(modern, false),
        Ok(feature::VERSION_1 | feature::FLUSH)
    );
    let held = modern | feature::ACCESS_PLATFORM;
    assert_eq!(choose(held, true), Ok(held & !(1 << 40)));
}

#[test]
fn the_disks_shape_is_what_was_agreed() {
    let said = Said {
        capacity: 1000,
        size_max: 10_000,
        block_size: 4096,
        queues: 9,
        ..Said::default()
    };
    let plain = geometry(feature::VERSION_1, &said);
    assert_eq!(
        (plain.block_bytes, plain.blocks, plain.queues),
        (512, 1000, 1)
    );
    assert_eq!(plain.request_bytes, layout::REQUEST_MOST);
    let all = geometry(u64::MAX, &said);
    assert_eq!((all.block_bytes, all.blocks, all.queues), (4096, 125, 4));
    assert_eq!(
        (all.request_bytes, all.read_only, all.write_cache),
        (8192, true, true)
    );
}

#[test]
fn a_device_discards_what_it_says_it_can() {
    let discard = |features, block_size, sectors, segments, alignment| {
        let said = Said {
            capacity: 1 << 20,
            block_size,
            discard_sectors: sectors,
            discard_segments: segments,
            discard_alignment: alignment,
            ..Said::default()
        };
        let discard = geometry(features, &said).discard;
        discard.map(|said| (said.bytes, said.granularity))
    };
    let can = feature::DISCARD | feature::BLOCK_SIZE;
    assert_eq!(discard(can, 512, 100, 1, 1), Some((51_200, 512)));
    assert_eq!(discard(can, 4096, 100, 1, 8), Some((49_152, 4096)));
    assert_eq!(discard(can, 4096, 100, 1, 2048), Some((49_152, 1 << 20)));
    let most = u32::MAX;
    assert_eq!(discard(can, 512, most, most, most), Some((1 << 30, 512)));
    // Stretches that are no whole blocks, or none.
    assert_eq!(discard(can, 4096, 100, 1, 3), Some((49_152, 4096)));
    assert_eq!(discard(can, 512, 100, 1, 0), Some((51_200, 512)));
    for (features, block_size, sectors, segments) in [
        (feature::BLOCK_SIZE, 512, 100, 1),
        (can | feature::READ_ONLY, 512, 100, 1),
        (can, 512, 0, 1),
        (can, 512, 100, 0),
        (can, 4096, 7, 1),
    ] {
        assert_eq!(discard(features, block_size, sectors, segments, 1), None);
    }
}

#[test]
fn parts_of_the_registers_are_found() {
    let mut bytes = [0; 64];
    bytes[..5].copy_from_slice(&[9, 0, 20, 2, 4]);
    bytes[8..12].copy_from_slice(&0x3000u32.to_le_bytes());
    bytes[12..16].copy_from_slice(&0x1000u32.to_le_bytes());
    bytes[16..20].copy_from_slice(&4u32.to_le_bytes());
    let place = Place {
        part: Part::Notify,
        bar: 4,
        offset: 0x3000,
        bytes: 0x1000,
        multiplier: 4,
    };
    assert_eq!(Place::parse(&bytes), Some(place));
    for (at, value) in [(0, 8), (2, 16), (3, 9), (4, 6)] {
        let mut wrong = bytes;
        wrong[at] = value;
        assert_eq!(Place::parse(&wrong), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn every_request_ends_once(
        steps in proptest::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..600),
        order in 2u32..9,
    ) {
        let (mut queue, mut device) = queue(1 << order);
        let (mut next, mut ended) = (0u32, Vec::new());
        for (submit, which) in steps {
            if submit {
                let data = Data { bus: 1, bytes: 512 };
                if queue.submit(Kind::Out, next.into(), data, next).is_ok() {
                    next += 1;
                }
            } else {
                device.look();
                if !device.pending.is_empty() {
                    let index = which.index(device.pending.len());
                    device.finish(index, 0);
                }
                while let Some(done) = queue.complete().unwrap() {
                    ended.push(done.token);
                }
            }
            prop_assert_eq!(queue.in_flight() as u32, next - ended.len() as u32);
        }
        ended.sort_unstable();
        ended.dedup();
        prop_assert_eq!(ended.len() as u32 + queue.in_flight() as u32, next);
    }

    #[test]
    fn whatever_the_device_writes_no_request_ends_twice(
        writes in proptest::collection::vec((0u64..BYTES / 2, any::<u16>()), 0..200),
        submits in 0u32..20,
    ) {
        let (mut queue, device) = queue(64);
        let mut memory = device.memory.clone();
        for token in 0..submits {
            let _ = queue.submit(Kind::In, 0, Data { bus: 1, bytes: 512 }, token);
        }
        let mut ended = vec![false; submits as usize];
        for (at, value) in writes {
            memory.write16(at * 2, value);
            // Most often where it matters.
            memory.write16(device.device + 2, value % 8);
            memory.write32(device.device + 4 + 8 * (at % 8), u32::from(value) % 70);
            for _ in 0..70 {
                match queue.complete() {
                    Ok(Some(done)) => {
                        prop_assert!(!ended[done.token as usize]);
                        ended[done.token as usize] = true;
                    }
                    Ok(None) | Err(Broken) => break,
                }
            }
        }
        // A driver resets a broken device; here it was only not let down by it.
        prop_assert!(queue.in_flight() <= submits as usize);
    }

    #[test]
    fn any_capability_and_any_shape_are_read(bytes in proptest::collection::vec(any::<u8>(), 64), features: u64,
        capacity: u64, size_max: u32, block_size: u32, queues: u16, discard: [u32; 3], nine: bool) {
        let mut bytes: [u8; 64] = bytes.try_into().unwrap();
        if nine {
            bytes[0] = 9;
            bytes[2] |= 0x40;
            bytes[3] &= 7;
            bytes[4] &= 7;
        }
        if let Some(place) = Place::parse(&bytes) {
            prop_assert!(place.bar < 6 && place.offset.checked_add(place.bytes).is_some());
        }
        let [discard_sectors, discard_segments, discard_alignment] = discard;
        let shape = geometry(features, &Said {
            capacity, size_max, block_size, queues, discard_sectors, discard_segments, discard_alignment,
        });
        if let Some(discard) = shape.discard {
            prop_assert!(discard.bytes > 0 && discard.bytes.is_multiple_of(shape.block_bytes));
            prop_assert!(discard.granularity > 0 && discard.granularity.is_multiple_of(shape.block_bytes));
        }
        prop_assert!(shape.request_bytes >= shape.block_bytes && shape.request_bytes.is_multiple_of(shape.block_bytes));
        prop_assert!((1..=4).contains(&shape.queues));
    }
}
