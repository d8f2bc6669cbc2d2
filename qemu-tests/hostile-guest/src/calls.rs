//! Seeded random hypercalls. Before every block of them the domain returns to a known state, so
//! that a call that is answered otherwise does not change all answers after it.

use core::sync::atomic::Ordering;

use guest_kit::cpu;
use hostile_calls::layout::{
    AREAS, ARGUMENT_BYTES, ARGUMENTS, GRANT_TABLE, HOLE, HOLE_PAGES, PAGE, PLAYGROUND,
    PLAYGROUND_PAGES, SHARED_INFO, VCPU_INFO,
};
use hostile_calls::operations::{number, told};
use hostile_calls::{Arena, BLOCK, CALLS, Call, Seed};

use crate::console::say;
use crate::log::{self, Log};
use crate::xen::{DOMID_SELF, Xen, clear, long, word};

/// What the first word of an undisturbed page of the playground is.
const MARK: u64 = 0x706c_6179_6772_0000;
/// What is read where no memory is.
const NOTHING: u32 = u32::MAX;
/// Mappings of grants that are remembered until they are given back; a block makes fewer.
const MAPPED: usize = BLOCK as usize;

/// The guest's memory.
struct Memory;

impl Arena for Memory {
    fn put(&mut self, address: u64, bytes: &[u8]) {
        if address < ARGUMENTS || address + bytes.len() as u64 > ARGUMENTS + ARGUMENT_BYTES {
            return;
        }
        // SAFETY: in the argument area, which is RAM and has no other use.
        unsafe {
            core::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len());
        }
    }

    fn is_present(&self, frame: u64) -> bool {
        let address = frame.saturating_mul(PAGE);
        let own = |start: u64, pages: u64| (start..start + pages * PAGE).contains(&address);
        (own(PLAYGROUND, PLAYGROUND_PAGES) || own(HOLE, HOLE_PAGES))
            && cpu::try_load(address) != Ok(NOTHING)
    }
}

struct Domain<'a> {
    xen: &'a Xen,
    mapped: [(u64, u32); MAPPED],
    count: usize,
}

impl Domain<'_> {
    fn memory(&self, command: u64, words: &mut [u32]) -> i64 {
        self.xen.call_words(number::MEMORY, command, words)
    }

    /// `XENMEM_add_to_physmap` (public/memory.h).
    fn map(&self, space: u32, index: u32, address: u64) {
        let frame = (address / PAGE) as u32;
        self.memory(7, &mut [DOMID_SELF.into(), space, index, 0, frame, 0]);
    }

    /// `XENMEM_remove_from_physmap`.
    fn unmap(&self, frame: u64) {
        self.memory(15, &mut [DOMID_SELF.into(), 0, frame as u32, 0]);
    }

    /// `XENMEM_populate_physmap` of one page.
    fn populate(&self, frame: u64) {
        let list = [frame];
        let at = list.as_ptr() as u64;
        let mut words = [
            at as u32,
            (at >> 32) as u32,
            1,
            0,
            0,
            0,
            DOMID_SELF.into(),
            0,
        ];
        self.memory(6, &mut words);
    }

    /// Once, before the first seed.
    fn prepare(&mut self) {
        // All frames that the grant table may have, so that none is added later.
        for index in (0..64).rev() {
            self.map(1, index, GRANT_TABLE);
        }
        self.map(0, 0, SHARED_INFO);
        // VCPUOP_register_vcpu_info (public/vcpu.h), which is once for all.
        let frame = (VCPU_INFO / PAGE) as u32;
        let mut words = [frame, 0, 0, 0];
        let at = words.as_mut_ptr() as u64;
        // SAFETY: the structure is alive, and the page it names has no other use.
        unsafe { self.xen.call(number::VCPU, &[10, 0, at, 0, 0]) };
        for index in 0..PLAYGROUND_PAGES {
            // SAFETY: the playground is RAM without another use.
            unsafe { long(PLAYGROUND + index * PAGE) }.store(MARK + index, Ordering::SeqCst);
        }
    }

    /// The known state.
    fn reset(&mut self) {
        for &(address, handle) in self.mapped.iter().take(self.count) {
            // GNTTABOP_unmap_grant_ref (public/grant_table.h).
            let mut words = [address as u32, (address >> 32) as u32, 0, 0, handle, 0];
            let at = words.as_mut_ptr() as u64;
            // SAFETY: the structure is alive.
            unsafe { self.xen.call(number::GRANT, &[1, at, 1, 0, 0]) };
        }
        self.count = 0;
        self.map(0, 0, SHARED_INFO);
        self.map(1, 0, GRANT_TABLE);
        for index in 0..HOLE_PAGES {
            let address = HOLE + index * PAGE;
            if cpu::try_load(address) != Ok(NOTHING) {
                self.unmap(address / PAGE);
            }
        }
        for index in 0..PLAYGROUND_PAGES {
            let address = PLAYGROUND + index * PAGE;
            // SAFETY: mapped, whether there is memory or not.
            let mark = unsafe { long(address) };
            if mark.load(Ordering::SeqCst) != MARK + index {
                self.unmap(address / PAGE);
                self.populate(address / PAGE);
                mark.store(MARK + index, Ordering::SeqCst);
            }
        }
        // EVTCHNOP_reset (public/event_channel.h).
        self.xen
            .call_words(number::EVENT, 10, &mut [DOMID_SELF.into()]);
        // HVMOP_set_param of HVM_PARAM_CALLBACK_IRQ: none.
        self.xen
            .call_words(number::HVM, 0, &mut [DOMID_SELF.into(), 0, 0, 0]);
        for watchdog in [1, 2] {
            // SCHEDOP_watchdog: off.
            self.xen.call_words(number::SCHED, 6, &mut [watchdog, 0]);
        }
        // SAFETY: no pointers. VCPUOP_stop_periodic_timer and stop_singleshot_timer, set_timer_op.
        unsafe {
            self.xen.call(number::VCPU, &[7, 0, 0, 0, 0]);
            self.xen.call(number::VCPU, &[9, 0, 0, 0, 0]);
            self.xen.call(number::SET_TIMER, &[0; 5]);
        }
        // SAFETY: pages without another use; the argument area up to the end of what is drawn.
        unsafe {
            clear(SHARED_INFO + 2048, 1024);
            clear(VCPU_INFO, 64);
            clear(0, PAGE);
            clear(AREAS, PAGE);
            clear(ARGUMENTS, 24 << 10);
            clear(hostile_calls::layout::LISTS, PAGE);
        }
        for reference in 0..40u32 {
            // grant_entry_v1: permit_access, read-only for some; grantee; frame.
            let flags = 1 | if reference & 4 == 0 { 0 } else { 4 };
            let domid = if reference % 3 == 0 {
                0
            } else {
                self.xen.domid
            };
            let frame = (PLAYGROUND / PAGE) as u32 + reference % PLAYGROUND_PAGES as u32;
            let at = GRANT_TABLE + u64::from(reference) * 8;
            // SAFETY: the table's first frame is mapped there.
            unsafe {
                word(at).store(flags | u32::from(domid) << 16, Ordering::SeqCst);
                word(at + 4).store(frame, Ordering::SeqCst);
            }
        }
    }

    /// Makes a call; its record.
    fn make(&mut self, call: &Call) -> [u8; 8] {
        // SAFETY: what calls are given to write to is kept for them, see `operations`.
        let answer = unsafe { self.xen.call(call.number, &call.arguments) };
        let mut told_word = 0;
        if let (0, Some(at)) = (answer, call.at) {
            if let Some((offset, bytes)) = told(call) {
                told_word = read(at + offset, bytes);
            }
            if call.number == number::GRANT
                && call.class.operation == 0
                && call.arguments[2] != 0
                && read(at + 18, 2) == 0
                && let Some(slot) = self.mapped.get_mut(self.count)
            {
                let address = u64::from(read(at, 4)) | u64::from(read(at + 4, 4)) << 32;
                *slot = (address, read(at + 20, 4));
                self.count += 1;
            }
        }
        let answer = answer.clamp(i32::MIN.into(), i32::MAX.into()) as i32;
        let mut record = [0; 8];
        record[..4].copy_from_slice(&answer.to_le_bytes());
        record[4..].copy_from_slice(&told_word.to_le_bytes());
        record
    }
}

/// Reads 2 or 4 bytes of the argument area.
fn read(at: u64, bytes: u8) -> u32 {
    // SAFETY: in the argument area; any alignment.
    unsafe {
        match bytes {
            2 => (at as *const u16).read_unaligned().into(),
            _ => (at as *const u32).read_unaligned(),
        }
    }
}

/// Makes the calls of `count` seeds; the pages logged.
pub fn run(xen: &Xen, first: u64, count: u64) -> u64 {
    let mut domain = Domain {
        xen,
        mapped: [(0, 0); MAPPED],
        count: 0,
    };
    domain.prepare();
    for number in first..first + count {
        let mut log = Log::new(number as u32);
        let mut seed = Seed::new(number, xen.domid);
        for index in 0..CALLS {
            if index % BLOCK == 0 {
                domain.reset();
            }
            let call = seed.next(&mut Memory);
            log.append(&domain.make(&call));
        }
        log.finish();
        say!("hostile: seed {number} logged");
    }
    domain.reset();
    log::pages()
}
