//! What is measured, and how. A row is added by a line or two here and one in the suite's list
//! (`qemu-tests/src/against/rows.rs`), which says what it is held to.
//!
//! # Lines
//! `compare: row <name> median <n> minimum <n>`, or `compare: none <name> <why>`.

use core::arch::asm;
use core::fmt;

use guest_kit::boot::LAPIC_ADDRESS;
use guest_kit::cpu;
use measure::{SAMPLES, ticks};

use crate::interrupts;
use guest_kit::peer::{self, Peer};
use guest_kit::say;
use guest_kit::xen::{Copy, Deadline, Errno, MapGrant, SharedInfo, Xen};

/// IA32_APIC_BASE, its enable bit and its x2APIC bit (Intel SDM vol. 3, 10.4.4 and 10.12.1).
const APIC_BASE: u32 = 0x1b;
const APIC_ENABLED: u64 = 1 << 11;
const APIC_X2: u64 = 1 << 10;
/// The local APIC's version register, which has no side effects, and its register for the end of
/// an interrupt, which has none when none is in service (Intel SDM vol. 3, 10.4.8 and 10.8.5).
const APIC_VERSION: u64 = LAPIC_ADDRESS + 0x30;
const APIC_EOI: u64 = LAPIC_ADDRESS + 0xb0;
/// A port that no PC device decodes, in a gap below COM2. Neither 0x80 nor 0xed would do: Xen
/// lets HVM guests have those without an exit.
const UNUSED_PORT: u16 = 0x2f0;
/// Where no memory is and no device either, on both systems: below the local APIC, above 3 GiB.
const NOTHING: u64 = 0xd000_0000;
/// Linear address that no table maps: the second entry of the highest one is empty.
const UNMAPPED: u64 = 1 << 39;
/// Memory that nothing has touched: from here on, one page of each 2 MiB. The domain's memory must
/// reach as far.
const UNTOUCHED: u64 = 32 << 20;
const LARGE_PAGE: u64 = 2 << 20;
/// Ticks from setting a timer to its deadline. Xen delays deadlines that are nearer than its
/// `timer_slop` of 50 us.
const AHEAD: u64 = 200_000;
/// Ticks beyond a deadline after which a timer is taken for lost.
const LOST: u64 = 100_000_000;

/// Why a row has no number.
#[derive(Clone, Copy, Debug)]
enum Why {
    /// The hypercall that it needs was refused.
    Refused(Errno),
    /// Something did not happen: an event, a timer.
    Missing(&'static str),
}

impl From<Errno> for Why {
    fn from(errno: Errno) -> Why {
        Why::Refused(errno)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Refused(errno) => write!(f, "refused, error {}", errno.0),
            Why::Missing(what) => f.write_str(what),
        }
    }
}

/// Median and minimum.
type Counted = Result<(u64, u64), Why>;

/// The TSC, without [`ticks`]' care.
fn clock() -> u64 {
    // SAFETY: RDTSC changes nothing but registers.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Sorts samples and takes the cost of measuring off.
fn counted(samples: &mut [u64; SAMPLES], empty: u64) -> (u64, u64) {
    samples.sort_unstable();
    let [median, minimum] = [samples[SAMPLES / 2], samples[0]];
    (median.saturating_sub(empty), minimum.saturating_sub(empty))
}

/// Results, kept until all is measured.
struct Rows {
    empty: u64,
    found: [(&'static str, Counted); 40],
    count: usize,
}

impl Rows {
    fn new() -> Rows {
        let mut samples = [0; SAMPLES];
        for sample in &mut samples {
            let start = ticks();
            *sample = ticks().wrapping_sub(start);
        }
        let nothing = Err(Why::Missing("not measured"));
        Rows {
            empty: counted(&mut samples, 0).1,
            found: [("", nothing); 40],
            count: 0,
        }
    }

    fn add(&mut self, name: &'static str, counted: Counted) {
        if let Some(place) = self.found.get_mut(self.count) {
            *place = (name, counted);
            self.count += 1;
        }
    }

    /// From before `operation` to after it; `prepare` runs before that.
    #[inline(always)]
    fn pair<R>(
        &mut self,
        name: &'static str,
        mut prepare: impl FnMut(),
        mut operation: impl FnMut() -> R,
    ) {
        let mut samples = [0; SAMPLES];
        for sample in &mut samples {
            prepare();
            let start = ticks();
            let result = operation();
            let end = ticks();
            core::hint::black_box(result);
            *sample = end.wrapping_sub(start);
        }
        let counted = counted(&mut samples, self.empty);
        self.add(name, Ok(counted));
    }

    /// From before `operation` to the beginning of the upcall that it leads to.
    #[inline(always)]
    fn until_upcall(
        &mut self,
        name: &'static str,
        prepare: impl Fn(),
        operation: impl Fn() -> Result<(), Errno>,
    ) {
        let empty = self.empty;
        let result = samples(|| {
            prepare();
            interrupts::forget();
            let start = ticks();
            operation()?;
            let began = interrupts::began();
            interrupts::off();
            match began {
                0 => Err(Why::Missing("the upcall did not come")),
                _ => Ok(began.wrapping_sub(start)),
            }
        });
        self.add(name, result.map(|mut samples| counted(&mut samples, empty)));
    }

    /// From a deadline to the beginning of the timer's upcall. `wait` ends after that. What reads
    /// the clock besides is not [`ticks`]: who records operations takes pairs of that for their ends,
    /// and sees the wait with what comes after it.
    fn after_deadline(
        &mut self,
        name: &'static str,
        xen: Xen,
        shared: SharedInfo,
        port: u32,
        wait: impl Fn(u64),
    ) {
        let result = samples(|| {
            shared.clear(port);
            interrupts::forget();
            let deadline = clock() + AHEAD;
            let at = shared.system_time(deadline);
            xen.set_timer(&Deadline { at, flags: 0 })?;
            core::hint::black_box(ticks());
            wait(deadline + LOST);
            interrupts::off();
            match interrupts::began() {
                0 => Err(Why::Missing("the timer did not come")),
                began => Ok(began.saturating_sub(deadline)),
            }
        });
        self.add(name, result.map(|mut samples| counted(&mut samples, 0)));
    }
}

fn samples(mut sample: impl FnMut() -> Result<u64, Why>) -> Result<[u64; SAMPLES], Why> {
    let mut samples = [0; SAMPLES];
    for place in &mut samples {
        *place = sample()?;
    }
    Ok(samples)
}

/// Measures every row, then prints them.
pub fn measure_and_say(xen: Xen, other: Option<u16>) {
    // Before anything is measured the other guest has come to rest.
    let peer = other.and_then(|other| Peer::find(xen, other));
    let mut rows = Rows::new();
    processor(&mut rows, xen);
    local_apic(&mut rows);
    memory(&mut rows);
    hypercalls(&mut rows, xen);
    let names = [
        "evtchn_send_new",
        "evtchn_send_pending",
        "evtchn_send_to_upcall",
        "hlt_with_event",
        "timer_set",
        "timer_to_upcall",
        "hlt_to_timer_upcall",
    ];
    let before = rows.count;
    let shared = xen.shared_info();
    let done = shared.and_then(|shared| events(&mut rows, xen, shared));
    if let Err(errno) = done {
        for name in names.iter().skip(rows.count - before) {
            rows.add(name, Err(Why::Refused(errno)));
        }
    }
    match (peer, shared) {
        (Some(peer), Ok(shared)) => {
            another_guest(&mut rows, xen, shared, peer);
            peer.end(xen);
        }
        _ => {
            for name in ["grant_map_unmap", "grant_copy_4k", "event_there_and_back"] {
                rows.add(name, Err(Why::Missing("there is no other guest")));
            }
        }
    }
    for (name, counted) in rows.found.iter().take(rows.count) {
        match counted {
            Ok((median, minimum)) => {
                say!("compare: row {name} median {median} minimum {minimum}");
            }
            Err(why) => say!("compare: none {name} {why}"),
        }
    }
}

fn processor(rows: &mut Rows, xen: Xen) {
    rows.pair("cpuid", || (), || cpu::cpuid(0));
    rows.pair("cpuid_xen_leaf", || (), || cpu::cpuid(xen.leaves + 1));
    rows.pair("rdmsr", || (), || cpu::rdmsr(APIC_BASE));
    let base = cpu::rdmsr(APIC_BASE);
    // SAFETY: the value that it has.
    let write = || unsafe { cpu::wrmsr(APIC_BASE, base) };
    rows.pair("wrmsr", || (), write);
    // SAFETY: nothing is behind this port.
    let out = || unsafe { cpu::out_byte(UNUSED_PORT, 0) };
    rows.pair("port_out", || (), out);
    // SAFETY: the same.
    let read = || unsafe { cpu::in_byte(UNUSED_PORT) };
    rows.pair("port_in", || (), read);

    unsafe extern "C" {
        /// The tables that `guest_kit::boot` made.
        static boot_pml4: u8;
    }
    let tables = &raw const boot_pml4 as u64;
    // SAFETY: the tables in use.
    let load = || unsafe { asm!("mov cr3, {}", in(reg) tables, options(nostack)) };
    rows.pair("cr3_write", || (), load);
    // SAFETY: forgets a translation, which is looked up again.
    let forget = || unsafe { asm!("invlpg [{}]", in(reg) UNTOUCHED, options(nostack)) };
    rows.pair("invlpg", || (), forget);
    rows.pair("page_fault", || (), || cpu::try_load(UNMAPPED));
}

fn local_apic(rows: &mut Rows) {
    let base = cpu::rdmsr(APIC_BASE);
    if base & (APIC_ENABLED | APIC_X2) != APIC_ENABLED || base & !0xfff != LAPIC_ADDRESS {
        for name in ["lapic_read", "lapic_write"] {
            rows.add(
                name,
                Err(Why::Missing("the local APIC is not where it was")),
            );
        }
        return;
    }
    // SAFETY: the register is there, as was just found, and reading it changes nothing.
    let read = || unsafe { (APIC_VERSION as *const u32).read_volatile() };
    rows.pair("lapic_read", || (), read);
    // SAFETY: ends no interrupt, as none is in service.
    let write = || unsafe { (APIC_EOI as *mut u32).write_volatile(0) };
    rows.pair("lapic_write", || (), write);
}

fn memory(rows: &mut Rows) {
    let mut at = UNTOUCHED - LARGE_PAGE;
    // The address is prepared before, in a place that the operation loads it from.
    let place = core::cell::Cell::new(at);
    let next = || {
        at += LARGE_PAGE;
        place.set(at);
    };
    // SAFETY: memory that this program has no other use for, mapped one to one.
    let touch = || unsafe { (place.get() as *const u64).read_volatile() };
    rows.pair("first_touch", next, touch);
    // SAFETY: mapped one to one; what is there, if anything, does not mind being read.
    let nothing = || unsafe { (NOTHING as *const u32).read_volatile() };
    rows.pair("read_of_nothing", || (), nothing);
}

fn hypercalls(rows: &mut Rows, xen: Xen) {
    rows.pair("xen_version", || (), || xen.version());
    rows.pair("unknown_hypercall", || (), || xen.unknown());
    rows.pair("sched_yield", || (), || xen.yield_now());
    let mut copy = Copy::of(64);
    match xen.copy(&mut copy) {
        Ok(0) => rows.pair("grant_copy_64", || (), || xen.copy(&mut copy)),
        Ok(_) => rows.add("grant_copy_64", Err(Why::Missing("the copy failed"))),
        Err(errno) => rows.add("grant_copy_64", Err(errno.into())),
    }
}

/// What is between two guests. Interrupts are installed.
fn another_guest(rows: &mut Rows, xen: Xen, shared: SharedInfo, peer: Peer) {
    // Beside the page that stays mapped.
    let mut map = MapGrant::of(peer.domain, peer::GRANT, peer::PLACE + LARGE_PAGE);
    let failed = |why| Err(Why::Missing(why));
    let mut map_and_unmap = || {
        // SAFETY: nothing is there, and nothing uses it.
        let mapped = unsafe { xen.map_grant(&mut map) };
        let mut end = map.end();
        // SAFETY: nothing uses it.
        let ended = unsafe { xen.unmap_grant(&mut end) };
        mapped.is_ok() && ended.is_ok() && (map.status, end.status) == (0, 0)
    };
    if map_and_unmap() {
        rows.pair("grant_map_unmap", || (), map_and_unmap);
    } else {
        rows.add("grant_map_unmap", failed("it is refused"));
    }
    let mut copy = Copy::granted(peer.domain, peer::GRANT, 4096);
    match xen.copy(&mut copy) {
        Ok(0) => rows.pair("grant_copy_4k", || (), || xen.copy(&mut copy)),
        Ok(_) => rows.add("grant_copy_4k", failed("the copy failed")),
        Err(errno) => rows.add("grant_copy_4k", Err(errno.into())),
    }
    rows.until_upcall(
        "event_there_and_back",
        || shared.clear(peer.port),
        || {
            xen.send(&peer.port)?;
            interrupts::halt();
            Ok(())
        },
    );
}

/// First without an upcall, then with.
fn events(rows: &mut Rows, xen: Xen, shared: SharedInfo) -> Result<(), Errno> {
    let port = xen.bind_ipi()?;
    // There is no vector yet, and interrupts are off: the upcall cannot come.
    xen.send(&port)?;
    if !shared.is_pending(port) {
        return Err(Errno(0));
    }
    rows.pair("evtchn_send_new", || shared.clear(port), || xen.send(&port));
    rows.pair(
        "evtchn_send_pending",
        || shared.mark(port),
        || xen.send(&port),
    );
    shared.clear(port);

    interrupts::install();
    xen.upcall_by(interrupts::VECTOR)?;
    rows.until_upcall(
        "evtchn_send_to_upcall",
        || {
            shared.clear(port);
            interrupts::on();
        },
        || xen.send(&port).map(drop),
    );
    // Interrupts are off while the event comes, so that it is there when the CPU halts.
    rows.until_upcall(
        "hlt_with_event",
        || {
            shared.clear(port);
            let _ = xen.send(&port);
        },
        || {
            interrupts::halt();
            Ok(())
        },
    );
    shared.clear(port);

    // Refused where there is none to stop, which is as good.
    let _ = xen.stop_periodic_timer();
    let timer = xen.bind_timer()?;
    let far = Deadline {
        at: u64::MAX >> 2,
        flags: 0,
    };
    rows.pair("timer_set", || (), || xen.set_timer(&far));
    rows.after_deadline("timer_to_upcall", xen, shared, timer, |until| {
        interrupts::on();
        while interrupts::began() == 0 && clock() < until {}
    });
    rows.after_deadline("hlt_to_timer_upcall", xen, shared, timer, |_| {
        interrupts::halt();
    });
    Ok(())
}
