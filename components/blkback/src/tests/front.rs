//! A guest with a front end that behaves, and a disk in memory.

use std::boxed::Box;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

use alloc::sync::Arc;
use sdk::keep::Area;
use sdk::sync::Mutex;
use volume::{Base, Extent, Volume};

use super::disk::Disk;
use crate::device::{Blocks, Device, Fault, Queue};
use crate::grants::{Gone, Guest};
use crate::journal::{Key, Note};
use crate::pool::Pool;
use crate::proto::{Abi, PAGE, Segment, op};
use crate::ring::{Broken, Granted, Ring};

/// Stores that still take place: a back end that dies makes no more.
pub type Life = Rc<Cell<usize>>;

fn lives(life: &Life) -> bool {
    let left = life.get();
    life.set(left.saturating_sub(1));
    left > 0
}

/// Memory of a guest's page.
pub type Bytes = Rc<RefCell<Box<[u8; PAGE]>>>;

/// A mapped page.
pub struct Page {
    bytes: Bytes,
    write: bool,
    life: Life,
}

impl Granted for Page {
    fn load(&self, offset: usize) -> u32 {
        let bytes = self.bytes.borrow();
        u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
    }
    fn store(&self, offset: usize, value: u32) {
        if lives(&self.life) {
            self.bytes.borrow_mut()[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        }
    }
    fn read(&self, offset: usize, into: &mut [u8]) -> bool {
        let bytes = self.bytes.borrow();
        let from = bytes.get(offset..offset + into.len());
        from.map(|from| into.copy_from_slice(from)).is_some()
    }
    fn write(&self, offset: usize, from: &[u8]) -> bool {
        assert!(self.write, "written without the right");
        let mut bytes = self.bytes.borrow_mut();
        let Some(to) = bytes.get_mut(offset..offset + from.len()) else {
            return false;
        };
        // A death may tear it.
        for (to, from) in to.chunks_mut(4).zip(from.chunks(4)) {
            if lives(&self.life) {
                to.copy_from_slice(from);
            }
        }
        true
    }
}

/// What a guest granted.
pub struct Grants {
    pub pages: BTreeMap<u32, (Bytes, bool)>,
    pub mapped: usize,
    pub maps: usize,
    pub most: usize,
    pub life: Life,
}

impl Guest for Grants {
    type Page = Page;
    fn map(&mut self, grants: &[(u32, bool)]) -> Result<Vec<Result<Page, i16>>, Gone> {
        let map = |&(reference, write): &(u32, bool)| {
            let (bytes, writable) = self.pages.get(&reference).ok_or(-3i16)?;
            if write && !writable {
                return Err(-1);
            }
            self.mapped += 1;
            self.maps += 1;
            Ok(Page {
                bytes: Rc::clone(bytes),
                write,
                life: Rc::clone(&self.life),
            })
        };
        let all = grants.iter().map(map).collect();
        assert!(
            self.mapped <= self.most,
            "more mapped than there is room for"
        );
        Ok(all)
    }
    fn unmap(&mut self, pages: Vec<Page>) -> Result<(), Gone> {
        self.mapped -= pages.len();
        Ok(())
    }
    fn room(&self) -> usize {
        self.most - self.mapped
    }
}

/// Kept memory.
#[derive(Clone)]
pub struct Kept {
    pub words: Rc<RefCell<Vec<u64>>>,
    pub life: Life,
}

impl Area for Kept {
    fn words(&self) -> u64 {
        self.words.borrow().len() as u64
    }
    fn read(&self, word: u64) -> u64 {
        self.words.borrow()[word as usize]
    }
    fn write(&mut self, word: u64, value: u64) {
        if lives(&self.life) {
            self.words.borrow_mut()[word as usize] = value;
        }
    }
}

/// What a bench is like.
#[derive(Clone, Copy)]
pub struct Shape {
    pub abi: Abi,
    pub pages: usize,
    pub read_only: bool,
    pub block_bytes: u32,
    pub overlay: u64,
    pub kept: usize,
    pub room_pages: u32,
    pub places: usize,
    pub mappings: usize,
    /// The disk answers the newest request first.
    pub reverse: bool,
    /// Discards are offered.
    pub discard: bool,
    /// Bytes that the disk gives up together, and most that it gives up at once.
    pub granularity: u32,
    pub most_discarded: u32,
    /// The disk says that it does not discard after all.
    pub unable: bool,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            abi: Abi::X86_64,
            pages: 1,
            read_only: false,
            block_bytes: 512,
            overlay: 0,
            kept: 0,
            room_pages: 1024,
            places: 64,
            mappings: 600,
            reverse: false,
            discard: true,
            granularity: 512,
            most_discarded: 8192,
            unable: false,
        }
    }
}

/// First grant of the ring's pages.
const RING: u32 = 1000;
/// Sectors before the volume on the disk, and of it.
const FIRST: u64 = 64;
const SECTORS: u64 = 4096;
pub const KEY: Key = Key {
    domain: 7,
    device: 51712,
    queue: 0,
    grant: RING,
};

/// A guest, a disk, and a back end between.
pub struct Bench {
    pub shape: Shape,
    pub guest: Grants,
    disk: Disk,
    pub kept: Kept,
    device: Option<Device<Page, u32>>,
    produced: u32,
    consumed: u32,
    next: u64,
    told: usize,
    /// What is beside the volume.
    beside: u8,
    pub life: Life,
}

/// Segments of grants, first and last sector.
pub fn segments(list: &[(u32, u8, u8)]) -> Vec<Segment> {
    let segment = |&(reference, first, last): &(u32, u8, u8)| Segment {
        reference,
        first,
        last,
    };
    list.iter().map(segment).collect()
}

fn new_page() -> Bytes {
    Rc::new(RefCell::new(Box::new([0; PAGE])))
}

impl Bench {
    pub fn new(shape: Shape) -> Bench {
        let life: Life = Rc::new(Cell::new(usize::MAX));
        let numbers = (10..20).chain(RING..RING + shape.pages as u32);
        let bytes = (FIRST + SECTORS + 64) as usize * 512;
        let mut bench = Bench {
            shape,
            guest: Grants {
                pages: numbers.map(|number| (number, (new_page(), true))).collect(),
                mapped: 0,
                maps: 0,
                most: shape.mappings,
                life: Rc::clone(&life),
            },
            disk: Disk {
                data: vec![0; bytes],
                memory: vec![0; (shape.room_pages as usize + 1) * PAGE],
                pool: Pool::new(4096, (shape.room_pages + 1) * PAGE as u32, 1),
                places: shape.places,
                waiting: Vec::new(),
                life: Rc::clone(&life),
                most_discarded: shape.most_discarded,
                unable: shape.unable,
                discarded: Vec::new(),
                at_once: 0,
            },
            kept: Kept {
                words: Rc::new(RefCell::new(vec![0; 256])),
                life: Rc::clone(&life),
            },
            device: None,
            produced: 0,
            consumed: 0,
            next: 1,
            told: 0,
            beside: 0,
            life,
        };
        bench.event_at(1);
        bench.open().unwrap();
        bench
    }

    fn note(&self) -> Note<Kept> {
        let place = Note::place(&self.kept, KEY, &[]).unwrap();
        Note::at(self.kept.clone(), place, KEY)
    }

    /// Another instance of the back end; the one before is just gone.
    pub fn open(&mut self) -> Result<(), Broken> {
        self.life.set(usize::MAX);
        self.guest.mapped = 0;
        self.disk.waiting.clear();
        self.disk.pool = Pool::new(4096, (self.shape.room_pages + 1) * PAGE as u32, 1);
        let grants: Vec<(u32, bool)> = (0..self.shape.pages as u32)
            .map(|page| (RING + page, true))
            .collect();
        let pages = self.guest.map(&grants).unwrap();
        let pages = pages.into_iter().map(Result::unwrap).collect();
        let ring = match Ring::open(pages, self.shape.abi, &mut self.note()) {
            Ok(ring) => ring,
            Err((broken, pages)) => {
                self.guest.unmap(pages).unwrap();
                return Err(broken);
            }
        };
        let base = Base::Disk(Extent {
            first: FIRST,
            sectors: SECTORS,
        });
        let volume = Volume::new(base, self.shape.block_bytes, false, self.shape.overlay)
            .on_discarding_disk(self.shape.granularity);
        let queues = vec![Queue { ring, channel: 5 }];
        let volume = Arc::new(Mutex::new(volume));
        let Shape {
            read_only,
            discard,
            kept,
            ..
        } = self.shape;
        let device = Device::new(51712, volume, read_only, discard, queues, kept);
        self.device = Some(device);
        Ok(())
    }

    /// Lets back end and disk work until there is nothing to do, or one of them is dead.
    pub fn run(&mut self) {
        let _ = self.try_run(usize::MAX);
    }

    /// The same, for so many turns of the disk.
    pub fn try_run(&mut self, turns: usize) -> Result<(), Fault> {
        let mut device = self.device.take().expect("it is open");
        let outcome = (|| {
            for _ in 0..turns {
                let note = self.note();
                let Kept { words, life } = self.kept.clone();
                let place = Note::place(&self.kept, KEY, &[]).unwrap_or(0);
                drop(note);
                let journal = |_| {
                    let kept = Kept {
                        words: Rc::clone(&words),
                        life: Rc::clone(&life),
                    };
                    Note::at(kept, place, KEY)
                };
                let work = device.work(&mut self.guest, &mut self.disk, journal)?;
                self.told += work.tell.len();
                let next = match self.shape.reverse {
                    true => self.disk.waiting.pop(),
                    false if self.disk.waiting.is_empty() => None,
                    false => Some(self.disk.waiting.remove(0)),
                };
                let Some((token, request)) = next else {
                    if work.more {
                        continue;
                    }
                    return Ok(());
                };
                let status = self.disk.carry_out(request);
                device.complete(token, request, status, &mut self.guest, &mut self.disk)?;
                self.disk.release(request.place, request.room());
            }
            Ok(())
        })();
        self.device = Some(device);
        outcome
    }

    pub fn close(&mut self) {
        let mut device = self.device.take().expect("it is open");
        assert_eq!(device.close(&mut self.guest), Ok(vec![5]));
    }

    fn ring(&self, offset: usize, bytes: &[u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            let (page, _) = &self.guest.pages[&(RING + (at / PAGE) as u32)];
            page.borrow_mut()[at % PAGE] = *byte;
        }
    }

    fn ring_at<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        for (at, byte) in (offset..).zip(&mut bytes) {
            let (page, _) = &self.guest.pages[&(RING + (at / PAGE) as u32)];
            *byte = page.borrow()[at % PAGE];
        }
        bytes
    }

    /// Writes a counter.
    pub fn counter(&self, offset: usize, value: u32) {
        self.ring(offset, &value.to_le_bytes());
    }

    pub fn event_at(&mut self, number: u32) {
        self.counter(12, number);
    }

    pub fn entries(&self) -> u32 {
        self.shape.abi.entries(self.shape.pages)
    }

    /// Requests that have no answer yet.
    pub fn open_requests(&self) -> u32 {
        self.produced.wrapping_sub(self.consumed)
    }

    fn produce(&mut self, bytes: &[u8]) {
        let index = self.produced & (self.entries() - 1);
        self.ring(self.shape.abi.entry(index), bytes);
        self.produced = self.produced.wrapping_add(1);
        self.counter(0, self.produced);
    }

    fn head(&mut self, first: [u8; 4], sector: u64) -> (u64, Vec<u8>) {
        let id = self.next << 32 | 0x1234;
        self.next += 1;
        let mut bytes = Vec::from(first);
        if self.shape.abi == Abi::X86_64 {
            bytes.extend([0xee; 4]);
        }
        bytes.extend(id.to_le_bytes());
        bytes.extend(sector.to_le_bytes());
        (id, bytes)
    }

    fn list(list: &[Segment]) -> Vec<u8> {
        let bytes = |segment: &Segment| {
            let [a, b, c, d] = segment.reference.to_le_bytes();
            [a, b, c, d, segment.first, segment.last, 0xee, 0xee]
        };
        list.iter().flat_map(bytes).collect()
    }

    /// Puts a direct request into the ring; its identity.
    pub fn put(&mut self, kind: u8, sector: u64, list: &[Segment]) -> u64 {
        let (id, mut bytes) = self.head([kind, list.len() as u8, 0xee, 0xee], sector);
        bytes.extend(Self::list(list));
        self.produce(&bytes);
        id
    }

    pub fn transfer(&mut self, kind: u8, sector: u64, list: &[Segment]) -> u64 {
        let id = self.put(kind, sector, list);
        self.run();
        id
    }

    /// An indirect request that says `count`, its segments in the page of grant `page`.
    pub fn indirect(
        &mut self,
        kind: u8,
        sector: u64,
        list: &[Segment],
        count: u16,
        page: u32,
    ) -> u64 {
        let listed = Self::list(list);
        let (bytes, _) = &self.guest.pages[&page];
        bytes.borrow_mut()[..listed.len()].copy_from_slice(&listed);
        let [low, high] = count.to_le_bytes();
        let (id, mut bytes) = self.head([op::INDIRECT, kind, low, high], sector);
        bytes.extend([0xee; 4]);
        bytes.extend(page.to_le_bytes());
        self.produce(&bytes);
        self.run();
        id
    }

    /// Puts a discard into the ring (`blkif_request_discard`); its identity.
    pub fn put_discard(&mut self, flag: u8, sector: u64, sectors: u64) -> u64 {
        let (id, mut bytes) = self.head([op::DISCARD, flag, 0xee, 0xee], sector);
        bytes.extend(sectors.to_le_bytes());
        self.produce(&bytes);
        id
    }

    /// The status of a discard.
    pub fn discard(&mut self, sector: u64, sectors: u64) -> i16 {
        let id = self.put_discard(0, sector, sectors);
        self.run();
        match *self.answers() {
            [(answered, op::DISCARD, status)] if answered == id => status,
            ref other => panic!("{other:?}"),
        }
    }

    /// Takes answers: identity, operation and status.
    pub fn answers(&mut self) -> Vec<(u64, u8, i16)> {
        let produced = u32::from_le_bytes(self.ring_at(8));
        let mut all = Vec::new();
        while self.consumed != produced {
            let at = self.shape.abi.entry(self.consumed & (self.entries() - 1));
            let status = i16::from_le_bytes(self.ring_at(at + 10));
            let [operation] = self.ring_at(at + 8);
            all.push((u64::from_le_bytes(self.ring_at(at)), operation, status));
            self.consumed = self.consumed.wrapping_add(1);
        }
        self.event_at(self.consumed.wrapping_add(1));
        all
    }

    pub fn fill(&mut self, reference: u32, value: u8) {
        let (bytes, _) = &self.guest.pages[&reference];
        bytes.borrow_mut().fill(value);
    }

    pub fn page(&self, reference: u32) -> Vec<u8> {
        let (bytes, _) = &self.guest.pages[&reference];
        bytes.borrow().to_vec()
    }

    pub fn read_only_grant(&mut self, reference: u32) {
        self.guest.pages.insert(reference, (new_page(), false));
    }

    /// What is on the disk, by the volume's sectors.
    pub fn disk(&self, sector: u64, count: u64) -> Vec<u8> {
        let start = (FIRST + sector) as usize * 512;
        self.disk.data[start..start + count as usize * 512].to_vec()
    }

    /// What the disk discarded, by the volume's sectors, and how many it had to at a time.
    pub fn discarded(&self) -> (Vec<(u64, u64)>, usize) {
        let of_volume = |(sector, count): &(u64, u64)| (sector.wrapping_sub(FIRST), *count);
        let all = self.disk.discarded.iter().map(of_volume).collect();
        (all, self.disk.at_once)
    }

    /// Every byte of the disk, in the volume and beside it, is this from now on.
    pub fn disk_is(&mut self, value: u8) {
        self.disk.data.fill(value);
        self.beside = value;
    }

    /// Nothing beside the volume was written.
    pub fn outside_is_untouched(&self) -> bool {
        let (first, end) = (FIRST as usize * 512, (FIRST + SECTORS) as usize * 512);
        let mut outside = self.disk.data[..first].iter().chain(&self.disk.data[end..]);
        outside.all(|byte| *byte == self.beside)
    }

    pub fn sectors(&self) -> u64 {
        SECTORS
    }
    pub fn mapped(&self) -> usize {
        self.guest.mapped
    }
    pub fn maps(&self) -> usize {
        self.guest.maps
    }
    pub fn ring_pages(&self) -> usize {
        self.shape.pages
    }
    pub fn told(&self) -> usize {
        self.told
    }
}
