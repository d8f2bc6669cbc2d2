//! A controller by the book, for host tests: it follows addresses and doorbells, not the driver's
//! layout. Told to, it does one thing wrong at a command that the test chooses.

use block_driver::memory::Plain;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

use crate::controller::{self, Machine};
use crate::layout::register;

/// Where the controller sees memory: the driver's, then from [`CLIENT`] on a client's.
pub const BUS: u64 = 0x1000_0000;
/// Where it sees the client's.
pub const CLIENT: u64 = BUS + (1 << 20);
/// Bytes of the client's.
pub const SHARED: u32 = 2 << 20;
const _: () = assert!(controller::BYTES <= 1 << 20);

/// What goes wrong at a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not answered.
    Drop,
    /// It is answered as another one.
    Identity(u16),
    /// It is answered as one of another queue.
    Queue,
    /// The queue's head in its answer is beyond the queue.
    Head,
    /// It is answered twice.
    Twice,
    /// It ends with this status, undone.
    Status(u16),
    /// The controller fails.
    Fatal,
    /// It is pulled out.
    Gone,
}

struct Submissions {
    base: u64,
    size: u16,
    head: u16,
    to: u16,
}

struct Completions {
    base: u64,
    size: u16,
    tail: u16,
    /// Where the driver says that it is.
    head: u16,
    phase: bool,
}

/// The controller, and what a test may set before it is started and read afterwards.
pub struct Sim {
    pub memory: Plain,
    pub cap: u64,
    pub version: u32,
    pub status: u32,
    /// Neither becomes ready, nor stops once it is.
    pub stuck: bool,
    /// Fails when it is enabled.
    pub fails_at_once: bool,
    pub register_bytes: u64,
    /// Answers to Identify for controller and namespace, from the offset on.
    pub controller: Vec<(usize, Vec<u8>)>,
    pub namespace: Vec<(usize, Vec<u8>)>,
    /// What the list of namespaces says.
    pub active: u32,
    /// I/O queues that it has.
    pub queues: u16,
    pub block_bytes: u32,
    pub disk: Vec<u8>,
    /// By opcode: what happens at the next such admin command.
    pub admin_faults: BTreeMap<u8, Fault>,
    /// By number of the I/O command, counted from 0 over all resets.
    pub faults: BTreeMap<u32, Fault>,
    /// At every I/O command.
    pub always: Option<Fault>,
    /// I/O commands wait for [`Sim::finish`].
    pub hold: bool,
    pub pending: Vec<(u16, [u8; 64])>,
    /// Resets while it worked.
    pub resets: u32,
    pub flushes: u32,
    /// Blocks that were given up: first and count.
    pub discarded: Vec<(u64, u32)>,
    /// What it says of limits; `None`: it is of before they could be asked for.
    pub limits: Option<(u32, u64)>,
    pub commands: u32,
    pub vectors: Vec<Option<u16>>,
    now: u64,
    registers: BTreeMap<u64, u32>,
    submissions: BTreeMap<u16, Submissions>,
    completions: BTreeMap<u16, Completions>,
}

/// What the driver under test has of it.
#[derive(Clone)]
pub struct Handle(pub Rc<RefCell<Sim>>);

impl Sim {
    pub fn new() -> Sim {
        Sim {
            memory: Plain::new(BUS, 3 << 20),
            // 1024 entries, 2 s, the NVM command set.
            cap: 1023 | 1 << 16 | 4 << 24 | 1 << 37,
            version: 0x1_0400,
            status: 0,
            stuck: false,
            fails_at_once: false,
            register_bytes: 0x2000,
            controller: Vec::new(),
            namespace: Vec::new(),
            active: 1,
            queues: 64,
            block_bytes: 512,
            disk: vec![0; 1 << 20],
            admin_faults: BTreeMap::new(),
            faults: BTreeMap::new(),
            always: None,
            hold: false,
            pending: Vec::new(),
            resets: 0,
            flushes: 0,
            discarded: Vec::new(),
            limits: None,
            commands: 0,
            vectors: Vec::new(),
            now: 0,
            registers: BTreeMap::new(),
            submissions: BTreeMap::new(),
            completions: BTreeMap::new(),
        }
    }

    /// Where the completions of an I/O queue are.
    pub fn completions_of(&self, number: u16) -> u64 {
        self.completions.get(&number).expect("a queue").base
    }

    /// Lets time pass.
    pub fn pass(&mut self, milliseconds: u64) {
        self.now += milliseconds;
    }

    fn register(&self, at: u64) -> u32 {
        self.registers.get(&at).copied().unwrap_or(0)
    }

    fn wide(&self, at: u64) -> u64 {
        u64::from(self.register(at)) | u64::from(self.register(at + 4)) << 32
    }

    fn configure(&mut self, before: u32, after: u32) {
        if self.stuck {
            return;
        }
        if after & 1 == 0 {
            self.resets += before & 1;
            self.status = 0;
            self.submissions.clear();
            self.completions.clear();
            self.pending.clear();
        } else if before & 1 == 0 {
            // Pages of 4 KiB, the NVM command set, entries of 64 and 16 bytes.
            assert_eq!(after & 0x00ff_ffff, 0x46_0001);
            let sizes = self.register(register::AQA);
            let (asq, acq) = (self.wide(register::ASQ), self.wide(register::ACQ));
            assert!(asq.is_multiple_of(4096) && acq.is_multiple_of(4096));
            self.submit_from(0, asq, (sizes & 0xfff) as u16 + 1, 0);
            self.complete_to(0, acq, (sizes >> 16 & 0xfff) as u16 + 1);
            self.status = if self.fails_at_once { 2 } else { 1 };
        }
    }

    fn submit_from(&mut self, number: u16, base: u64, size: u16, to: u16) {
        let queue = Submissions {
            base,
            size,
            head: 0,
            to,
        };
        self.submissions.insert(number, queue);
    }

    fn complete_to(&mut self, number: u16, base: u64, size: u16) {
        let queue = Completions {
            base,
            size,
            tail: 0,
            head: 0,
            phase: true,
        };
        self.completions.insert(number, queue);
    }

    fn ring(&mut self, at: u64, value: u32) {
        let stride = 4 << (self.cap >> 32 & 0xf);
        assert!((at - register::DOORBELLS).is_multiple_of(stride));
        let number = (at - register::DOORBELLS) / stride;
        let queue = (number / 2) as u16;
        if number % 2 == 1 {
            let completions = self.completions.get_mut(&queue).expect("a queue");
            assert!(value < completions.size.into());
            completions.head = value as u16;
            return;
        }
        loop {
            let from = self.submissions.get_mut(&queue).expect("a queue");
            assert!(value < from.size.into());
            if u32::from(from.head) == value {
                break;
            }
            let at = from.base + 64 * u64::from(from.head);
            let command: [u8; 64] = self.memory.take(at).expect("a command in memory");
            from.head = (from.head + 1) % from.size;
            self.pending.push((queue, command));
        }
        if queue == 0 || !self.hold {
            while !self.pending.is_empty() && self.status & 2 == 0 {
                self.finish(0);
            }
        }
    }

    /// Carries out one of the commands that wait.
    pub fn finish(&mut self, index: usize) {
        let (queue, command) = self.pending.remove(index);
        let opcode = command[0];
        let fault = match queue {
            0 => self.admin_faults.remove(&opcode),
            _ => {
                self.commands += 1;
                self.always.or(self.faults.remove(&(self.commands - 1)))
            }
        };
        let identity = u16::from_le_bytes([command[2], command[3]]);
        // Invalid field in command.
        let refused = (queue, opcode, command[40]) == (0, 6, 6) && self.limits.is_none();
        match fault.or(refused.then_some(Fault::Status(0x002))) {
            None => {
                let result = self.carry_out(queue, &command);
                self.answer(queue, identity, 0, result, 0);
            }
            Some(Fault::Drop) => {}
            Some(Fault::Identity(other)) => self.answer(queue, identity ^ other, 0, 0, 0),
            Some(Fault::Queue) => self.answer(queue, identity, 1, 0, 0),
            Some(Fault::Head) => self.answer(queue, identity, 0x8000_0000, 0, 0),
            Some(Fault::Twice) => {
                let result = self.carry_out(queue, &command);
                self.answer(queue, identity, 0, result, 0);
                self.answer(queue, identity, 0, result, 0);
            }
            Some(Fault::Status(status)) => self.answer(queue, identity, 0, 0, status),
            Some(Fault::Fatal) => self.status |= 2,
            Some(Fault::Gone) => self.status = u32::MAX,
        }
    }

    /// Writes a completion. `wrong` is mixed into what it says of queues.
    fn answer(&mut self, queue: u16, identity: u16, wrong: u32, result: u32, status: u16) {
        let from = self.submissions.get(&queue).expect("a queue");
        let (head, number) = (from.head, from.to);
        let to = self.completions.get_mut(&number).expect("a queue");
        let next = (to.tail + 1) % to.size;
        assert_ne!(next, to.head, "the completion queue is full");
        let queues = match wrong {
            0x8000_0000 => u32::from(queue) << 16 | 0xffff,
            wrong => (u32::from(queue) ^ wrong) << 16 | u32::from(head),
        };
        let last = u32::from(identity) | u32::from(to.phase) << 16 | u32::from(status) << 17;
        let at = to.base + 16 * u64::from(to.tail);
        let words = [result, 0, queues, last];
        for (index, word) in words.into_iter().enumerate() {
            let at = at + 4 * index as u64;
            self.memory.give(at, word.to_le_bytes()).expect("memory");
        }
        to.tail = next;
        to.phase ^= next == 0;
    }

    fn carry_out(&mut self, queue: u16, command: &[u8; 64]) -> u32 {
        let dword = |index: usize| {
            let bytes = command[4 * index..].first_chunk().expect("a dword");
            u32::from_le_bytes(*bytes)
        };
        let data = [dword(6), dword(7), dword(8), dword(9)].map(u64::from);
        let (first, second) = (data[0] | data[1] << 32, data[2] | data[3] << 32);
        if queue != 0 {
            assert_eq!(dword(1), self.active);
            let block = u64::from(dword(10)) | u64::from(dword(11)) << 32;
            if command[0] == 9 {
                // One range, to be given up.
                assert_eq!([dword(10), dword(11), dword(12)], [0, 4, 0]);
                self.deallocate(first);
                return 0;
            }
            let start = block * u64::from(self.block_bytes);
            let bytes = ((dword(12) & 0xffff) + 1) * self.block_bytes;
            match command[0] {
                0 => self.flushes += 1,
                opcode @ (1 | 2) => self.copy(start, first, second, bytes, opcode == 1),
                other => panic!("opcode {other}"),
            }
            return 0;
        }
        let (number, size) = (dword(10) as u16, (dword(10) >> 16) as u16);
        match command[0] {
            1 => {
                assert!(dword(11) & 1 == 1 && number >= 1 && number <= self.queues);
                let to = (dword(11) >> 16) as u16;
                assert!(self.completions.contains_key(&to));
                self.submit_from(number, first, size + 1, to);
            }
            5 => {
                assert!(dword(11) & 1 == 1 && number >= 1 && number <= self.queues);
                let interrupts = dword(11) & 2 != 0;
                self.vectors
                    .push(interrupts.then_some((dword(11) >> 16) as u16));
                self.complete_to(number, first, size + 1);
            }
            6 => self.identify(dword(10), dword(1), first),
            9 => {
                assert_eq!(dword(10), 7);
                let most = u32::from(self.queues - 1);
                return (dword(11) & 0xffff).min(most) | (dword(11) >> 16).min(most) << 16;
            }
            other => panic!("admin opcode {other}"),
        }
        0
    }

    /// What a range says is zeros from now on, as with DLFEAT 1.
    fn deallocate(&mut self, range: u64) {
        assert!(range.is_multiple_of(4) && range % 4096 <= 4080);
        let range: [u8; 16] = self.memory.take(range).expect("memory");
        let word = |at: usize| u32::from_le_bytes(*range[at..].first_chunk().expect("a word"));
        let (blocks, block) = (word(4), u64::from(word(8)) | u64::from(word(12)) << 32);
        assert_eq!(word(0), 0);
        let unit = self.block_bytes as usize;
        let start = block as usize * unit;
        self.disk[start..start + blocks as usize * unit].fill(0);
        self.discarded.push((block, blocks));
    }

    fn identify(&mut self, about: u32, namespace: u32, to: u64) {
        let mut page = [0u8; 4096];
        let patches: &[(usize, Vec<u8>)] = match about {
            0 => {
                assert_eq!(namespace, self.active);
                let blocks = self.disk.len() as u64 / u64::from(self.block_bytes);
                page[..8].copy_from_slice(&blocks.to_le_bytes());
                page[130] = self.block_bytes.trailing_zeros() as u8;
                &self.namespace
            }
            1 => {
                page[4..8].copy_from_slice(b"1234");
                page[24..34].copy_from_slice(b"Simulated ");
                page[512..514].copy_from_slice(&[0x66, 0x44]);
                page[520] = 1 << 2;
                page[525] = 1;
                &self.controller
            }
            2 => {
                page[..4].copy_from_slice(&self.active.to_le_bytes());
                &[]
            }
            6 => {
                let (one, all) = self.limits.expect("a controller that tells limits");
                page[4..8].copy_from_slice(&one.to_le_bytes());
                page[8..16].copy_from_slice(&all.to_le_bytes());
                &[]
            }
            other => panic!("identify {other}"),
        };
        for (at, bytes) in patches {
            page[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        self.memory.give(to, page).expect("memory");
    }

    /// The data of a command, as PRP entries say (4.1.1).
    fn copy(&mut self, start: u64, first: u64, second: u64, bytes: u32, write: bool) {
        let mut left = u64::from(bytes);
        let mut at = start as usize;
        let mut piece = |bus: u64, bytes: u64| {
            // Blocks and pages are made of these.
            for offset in (0..bytes).step_by(512) {
                let place = self.disk[at..].first_chunk_mut::<512>();
                let place = place.expect("blocks of the disk");
                let bus = bus + offset;
                match write {
                    true => *place = self.memory.take(bus).expect("memory"),
                    false => self.memory.give(bus, *place).expect("memory"),
                }
                at += 512;
            }
        };
        assert!(first.is_multiple_of(512));
        let now = left.min(4096 - first % 4096);
        piece(first, now);
        left -= now;
        if left > 0 && left <= 4096 {
            assert!(second.is_multiple_of(4096));
            piece(second, left);
            return;
        }
        let mut entry = second;
        while left > 0 {
            // The last entry of a page leads on, if more than one is missing.
            assert!(entry % 4096 < 4088 || left <= 4096, "no chains here");
            let page = u64::from_le_bytes(self.memory.take(entry).expect("memory"));
            assert!(page.is_multiple_of(4096));
            piece(page, left.min(4096));
            left -= left.min(4096);
            entry += 8;
        }
    }
}

impl Machine for Handle {
    fn read(&self, offset: u64) -> u32 {
        let sim = self.0.borrow();
        match offset {
            _ if sim.status == u32::MAX => u32::MAX,
            register::CAP => sim.cap as u32,
            0x04 => (sim.cap >> 32) as u32,
            register::VS => sim.version,
            register::CSTS => sim.status,
            other => sim.register(other),
        }
    }

    fn write(&mut self, offset: u64, value: u32) {
        let mut sim = self.0.borrow_mut();
        assert!(offset + 4 <= sim.register_bytes);
        if sim.status == u32::MAX {
            return;
        }
        match offset {
            register::CC => {
                let before = sim.registers.insert(offset, value).unwrap_or(0);
                sim.configure(before, value);
            }
            register::DOORBELLS.. => sim.ring(offset, value),
            _ => {
                sim.registers.insert(offset, value);
            }
        }
    }

    fn bytes(&self) -> u64 {
        self.0.borrow().register_bytes
    }

    fn now(&self) -> u64 {
        self.0.borrow().now
    }

    fn pause(&mut self) {
        self.0.borrow_mut().now += 1;
    }
}
