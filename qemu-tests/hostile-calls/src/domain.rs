//! The domain around the calls: what is set up before the first seed, the known state to which it
//! returns before every block, so that a call that is answered otherwise does not change all
//! answers after it, and the record of an answer.
//!
//! For the hostile guest, and for the host, which makes the same calls to the library that
//! answers them. Touches memory and the hypervisor through [`Machine`] only.

use crate::call::{Arena, Call, Seed};
use crate::layout::{
    AREAS, ARGUMENT_BYTES, ARGUMENTS, GRANT_TABLE, HOLE, HOLE_PAGES, LISTS, PAGE, PLAYGROUND,
    PLAYGROUND_PAGES, SCRATCH, SHARED_INFO, VCPU_INFO,
};
use crate::log::CALL_BYTES;
use crate::operations::{number, told};
use crate::{BLOCK, CALLS};

/// What the guest has: one-to-one memory below 4 GiB, and a hypervisor.
pub trait Machine {
    /// Makes a hypercall.
    fn call(&mut self, number: u64, arguments: &[u64; 5]) -> i64;
    /// Loads 4 bytes at a multiple of 4; ones where no memory is.
    fn load(&self, address: u64) -> u32;
    /// Stores 4 bytes at a multiple of 4; nothing happens where no memory is.
    fn store(&mut self, address: u64, value: u32);
    /// Writes to the argument area, which is always memory.
    fn write(&mut self, address: u64, bytes: &[u8]);
    /// Stores zeros, as many bytes as a multiple of 4.
    fn clear(&mut self, address: u64, bytes: u64) {
        for at in (address..address + bytes).step_by(4) {
            self.store(at, 0);
        }
    }
}

/// `DOMID_SELF` (public/xen.h).
const DOMID_SELF: u32 = 0x7ff0;
/// What the first word of an undisturbed page of the playground is, plus the page's number.
const MARK: u64 = 0x706c_6179_6772_0000;
/// What is read where no memory is.
const NOTHING: u32 = u32::MAX;
/// Frames that the grant table may have.
const GRANT_FRAMES: u32 = 64;
/// References that the known state fills in.
const REFERENCES: u32 = 40;

/// The domain.
#[derive(Debug)]
pub struct Domain<M> {
    machine: M,
    own: u16,
    /// Address and handle of each grant that is mapped; a block makes no more.
    mapped: [(u64, u32); BLOCK as usize],
    count: usize,
}

/// Memory for the drawing of calls.
struct Drawing<'a, M>(&'a mut M);

impl<M: Machine> Arena for Drawing<'_, M> {
    fn put(&mut self, address: u64, bytes: &[u8]) {
        if address >= ARGUMENTS && address + bytes.len() as u64 <= ARGUMENTS + ARGUMENT_BYTES {
            self.0.write(address, bytes);
        }
    }

    fn is_present(&self, frame: u64) -> bool {
        let address = frame.saturating_mul(PAGE);
        let own = |start: u64, pages: u64| (start..start + pages * PAGE).contains(&address);
        (own(PLAYGROUND, PLAYGROUND_PAGES) || own(HOLE, HOLE_PAGES))
            && self.0.load(address) != NOTHING
    }
}

impl<M: Machine> Domain<M> {
    /// The domain whose number is `own`, set up for the first seed.
    pub fn new(machine: M, own: u16) -> Domain<M> {
        let mut domain = Domain {
            machine,
            own,
            mapped: [(0, 0); BLOCK as usize],
            count: 0,
        };
        // All frames that the grant table may have, so that none is added later.
        for index in (0..GRANT_FRAMES).rev() {
            domain.map(1, index, GRANT_TABLE);
        }
        domain.map(0, 0, SHARED_INFO);
        // VCPUOP_register_vcpu_info (public/vcpu.h), which is once for all.
        domain.place(&[(VCPU_INFO / PAGE) as u32, 0, 0, 0]);
        domain.machine.call(number::VCPU, &[10, 0, SCRATCH, 0, 0]);
        for index in 0..PLAYGROUND_PAGES {
            domain.mark(index);
        }
        domain
    }

    /// Makes the calls of a seed; each record goes to `log`.
    pub fn seed(&mut self, seed: u64, mut log: impl FnMut(&[u8; CALL_BYTES])) {
        let mut calls = Seed::new(seed, self.own);
        for index in 0..CALLS {
            if index % BLOCK == 0 {
                self.reset();
            }
            let call = calls.next(&mut Drawing(&mut self.machine));
            log(&self.make(&call));
        }
    }

    /// Puts a structure where calls find it.
    fn place(&mut self, words: &[u32]) {
        for (at, word) in (SCRATCH..).step_by(4).zip(words) {
            self.machine.store(at, *word);
        }
    }

    /// A call whose argument is a structure of 32-bit words.
    fn call_words(&mut self, number: u64, command: u64, words: &[u32]) {
        self.place(words);
        self.machine.call(number, &[command, SCRATCH, 0, 0, 0]);
    }

    /// `XENMEM_add_to_physmap` (public/memory.h).
    fn map(&mut self, space: u32, index: u32, address: u64) {
        let frame = (address / PAGE) as u32;
        self.call_words(number::MEMORY, 7, &[DOMID_SELF, space, index, 0, frame, 0]);
    }

    /// `XENMEM_remove_from_physmap`.
    fn unmap(&mut self, address: u64) {
        let frame = (address / PAGE) as u32;
        self.call_words(number::MEMORY, 15, &[DOMID_SELF, 0, frame, 0]);
    }

    /// `XENMEM_populate_physmap` of one page: the list is behind the structure.
    fn populate(&mut self, address: u64) {
        let list = (SCRATCH + 32) as u32;
        let frame = (address / PAGE) as u32;
        let words = [list, 0, 1, 0, 0, 0, DOMID_SELF, 0, frame, 0];
        self.call_words(number::MEMORY, 6, &words);
    }

    fn mark(&mut self, index: u64) {
        let (address, mark) = (PLAYGROUND + index * PAGE, MARK + index);
        self.machine.store(address, mark as u32);
        self.machine.store(address + 4, (mark >> 32) as u32);
    }

    fn is_marked(&self, index: u64) -> bool {
        self.load_long(PLAYGROUND + index * PAGE) == MARK + index
    }

    fn load_long(&self, address: u64) -> u64 {
        u64::from(self.machine.load(address)) | u64::from(self.machine.load(address + 4)) << 32
    }

    /// Returns to the known state.
    pub fn reset(&mut self) {
        for index in 0..core::mem::take(&mut self.count) {
            let Some(&(address, handle)) = self.mapped.get(index) else {
                break;
            };
            // GNTTABOP_unmap_grant_ref (public/grant_table.h).
            self.place(&[address as u32, (address >> 32) as u32, 0, 0, handle, 0]);
            self.machine.call(number::GRANT, &[1, SCRATCH, 1, 0, 0]);
        }
        self.map(0, 0, SHARED_INFO);
        self.map(1, 0, GRANT_TABLE);
        for address in (HOLE..HOLE + HOLE_PAGES * PAGE).step_by(PAGE as usize) {
            if self.machine.load(address) != NOTHING {
                self.unmap(address);
            }
        }
        for index in 0..PLAYGROUND_PAGES {
            if !self.is_marked(index) {
                self.unmap(PLAYGROUND + index * PAGE);
                self.populate(PLAYGROUND + index * PAGE);
                self.mark(index);
            }
        }
        // EVTCHNOP_reset (public/event_channel.h).
        self.call_words(number::EVENT, 10, &[DOMID_SELF]);
        // HVMOP_set_param of HVM_PARAM_CALLBACK_IRQ: none.
        self.call_words(number::HVM, 0, &[DOMID_SELF, 0, 0, 0]);
        for watchdog in [1, 2] {
            // SCHEDOP_watchdog: off.
            self.call_words(number::SCHED, 6, &[watchdog, 0]);
        }
        // VCPUOP_stop_periodic_timer and stop_singleshot_timer, set_timer_op.
        self.machine.call(number::VCPU, &[7, 0, 0, 0, 0]);
        self.machine.call(number::VCPU, &[9, 0, 0, 0, 0]);
        self.machine.call(number::SET_TIMER, &[0; 5]);
        self.machine.clear(SHARED_INFO + 2048, 1024);
        self.machine.clear(VCPU_INFO, 64);
        self.machine.clear(0, PAGE);
        self.machine.clear(AREAS, PAGE);
        self.machine.clear(ARGUMENTS, 24 << 10);
        self.machine.clear(LISTS, PAGE);
        for reference in 0..REFERENCES {
            // grant_entry_v1: permit_access, read-only for some; grantee; frame.
            let flags = 1 | if reference & 4 == 0 { 0 } else { 4 };
            let domid = if reference % 3 == 0 { 0 } else { self.own };
            let frame = (PLAYGROUND / PAGE) as u32 + reference % PLAYGROUND_PAGES as u32;
            let at = GRANT_TABLE + u64::from(reference) * 8;
            self.machine.store(at, flags | u32::from(domid) << 16);
            self.machine.store(at + 4, frame);
        }
    }

    /// Up to 4 bytes of the argument area.
    fn read(&self, at: u64, bytes: u8) -> u32 {
        let low = at & !3;
        let value = (self.load_long(low) >> (8 * (at - low))) as u32;
        match bytes {
            2 => value & 0xffff,
            _ => value,
        }
    }

    /// Makes a call; its record.
    fn make(&mut self, call: &Call) -> [u8; CALL_BYTES] {
        let answer = self.machine.call(call.number, &call.arguments);
        let mut told_word = 0;
        if let (0, Some(at)) = (answer, call.at) {
            if let Some((offset, bytes)) = told(call) {
                told_word = self.read(at + offset, bytes);
            }
            if call.number == number::GRANT
                && call.class.operation == 0
                && call.arguments[2] != 0
                && self.read(at + 18, 2) == 0
            {
                let address = u64::from(self.read(at, 4)) | u64::from(self.read(at + 4, 4)) << 32;
                let handle = self.read(at + 20, 4);
                if let Some(slot) = self.mapped.get_mut(self.count) {
                    *slot = (address, handle);
                    self.count += 1;
                }
            }
        }
        let answer = answer.clamp(i32::MIN.into(), i32::MAX.into()) as i32;
        let mut record = [0; CALL_BYTES];
        record[..4].copy_from_slice(&answer.to_le_bytes());
        record[4..].copy_from_slice(&told_word.to_le_bytes());
        record
    }
}
