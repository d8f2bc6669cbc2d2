//! The log ring and the per-CPU trace rings, in one 2 MiB region that root may read.
//!
//! Layout, little-endian: one page of header ([`Header`]), [`LOG_BYTES`] of text, then one trace
//! ring per CPU of `trace_entries` [`Event`]s. Counters only grow; a reader takes them modulo the
//! ring's size. Any code in the core may write events; nothing reads them but a panic.

use crate::paging::DIRECT_MAP;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes of the whole region.
pub const BYTES: u64 = 2 << 20;
/// Bytes of log text.
pub const LOG_BYTES: u64 = 256 << 10;
const HEADER_BYTES: u64 = 4096;
/// First word of the region.
pub const MAGIC: u64 = 0x474e_4952_564d_0001;

/// What an event reports; `a` and `b` are its details.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Kind {
    /// System call `a` (its number) with first argument `b`.
    Call = 1,
    /// Interrupt `a` from user mode (`b` = 0) or a guest (`b` = 1).
    Interrupt = 2,
    /// Exception `a` in user mode at `b`.
    Fault = 3,
    /// The CPU goes on with another thread: `a` its registers' address, `b` its table root.
    Switch = 4,
    /// Nothing to run.
    Idle = 5,
    /// A vCPU exited: `a` exit, `b` guest instruction pointer.
    Exit = 6,
    /// A flush was answered: `a` its number.
    Flush = 7,
    /// A message, by call `b`, and the CPU went straight on with the other thread: `a` its
    /// registers' address.
    Message = 8,
}

const NAMES: [&str; 9] = [
    "?",
    "call",
    "interrupt",
    "fault",
    "switch",
    "idle",
    "exit",
    "flush",
    "message",
];

/// Name of an event kind.
pub fn name(kind: u64) -> &'static str {
    NAMES.get(kind as usize).unwrap_or(&NAMES[0])
}

/// One trace event.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Event {
    /// When, TSC.
    pub tsc: u64,
    /// A [`Kind`].
    pub kind: u64,
    /// First detail.
    pub a: u64,
    /// Second detail.
    pub b: u64,
}

/// Start of the region.
#[repr(C)]
struct Header {
    magic: u64,
    log_offset: u64,
    log_bytes: u64,
    /// Bytes ever written to the log.
    log_head: AtomicU64,
    trace_offset: u64,
    trace_entries: u64,
    cpus: u64,
}

/// A CPU's cursor into its trace ring; lives in the per-CPU area.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Trace {
    head: u64,
    mask: u64,
    events: *mut Event,
}

impl Trace {
    /// A cursor that goes nowhere: one entry, in a scratch place.
    pub const fn none() -> Trace {
        Trace {
            head: 0,
            mask: 0,
            events: core::ptr::null_mut(),
        }
    }

    /// Records an event.
    #[inline(always)]
    pub fn record(&mut self, kind: Kind, a: u64, b: u64) {
        // SAFETY: `events` has `mask + 1` entries inside the region, which only this CPU writes.
        unsafe {
            let event = self.events.add((self.head & self.mask) as usize);
            event.write(Event {
                tsc: core::arch::x86_64::_rdtsc(),
                kind: kind as u64,
                a,
                b,
            });
        }
        self.head += 1;
    }

    /// The last `count` events, oldest first.
    pub fn last(&self, count: u64) -> impl Iterator<Item = Event> + '_ {
        let count = count.min(self.head).min(self.mask + 1);
        (self.head - count..self.head).filter_map(|index| {
            if self.events.is_null() {
                return None;
            }
            // SAFETY: as in `record`; written entries only, since `index < head`.
            Some(unsafe { self.events.add((index & self.mask) as usize).read() })
        })
    }
}

static REGION: AtomicU64 = AtomicU64::new(0);

fn header() -> Option<&'static Header> {
    let region = REGION.load(Relaxed);
    // SAFETY: once set, REGION is the direct-map address of the initialised region.
    (region != 0).then(|| unsafe { &*(region as *const Header) })
}

/// Sets the region up. `physical` is 2 MiB aligned, mapped, and belongs to the rings for ever.
pub fn init(physical: u64, cpus: usize) {
    let base = DIRECT_MAP + physical;
    let room = BYTES - HEADER_BYTES - LOG_BYTES;
    let each = room / cpus.max(1) as u64 / size_of::<Event>() as u64;
    let entries = 1u64 << each.max(1).ilog2();
    // SAFETY: the caller gives the region away; it is mapped writable in the direct map.
    unsafe {
        core::ptr::write_bytes(base as *mut u8, 0, BYTES as usize);
        (base as *mut Header).write(Header {
            magic: MAGIC,
            log_offset: HEADER_BYTES,
            log_bytes: LOG_BYTES,
            log_head: AtomicU64::new(0),
            trace_offset: HEADER_BYTES + LOG_BYTES,
            trace_entries: entries,
            cpus: cpus as u64,
        });
    }
    REGION.store(base, Relaxed);
}

/// The trace cursor of a CPU. `init` came before.
pub fn trace(cpu: usize) -> Trace {
    header().map_or(Trace::none(), |header| Trace {
        head: 0,
        mask: header.trace_entries - 1,
        events: (REGION.load(Relaxed)
            + header.trace_offset
            + cpu as u64 * header.trace_entries * size_of::<Event>() as u64)
            as *mut Event,
    })
}

/// Appends text to the log ring. Writers are serialised by the caller.
pub fn append(text: &str) {
    let Some(header) = header() else { return };
    let mut head = header.log_head.load(Relaxed);
    let log = (REGION.load(Relaxed) + header.log_offset) as *mut u8;
    for byte in text.bytes() {
        // SAFETY: the offset is below `LOG_BYTES`, inside the region.
        unsafe { log.add((head % LOG_BYTES) as usize).write_volatile(byte) };
        head += 1;
    }
    header.log_head.store(head, Relaxed);
}
