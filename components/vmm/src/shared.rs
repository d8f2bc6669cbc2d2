//! What the threads of a VMM share: the Xen domain, the guest's memory, and a mailbox per vCPU.
//!
//! Locks: `connecting`, `domain`, then `foreign`, then `map`; never the other way round. All are the sdk's mutexes, which block
//! their waiters, because the service thread runs on a vCPU's CPU with another priority. Mailboxes take no lock, so that an interrupt between vCPUs never waits for a
//! hypercall.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use sdk::prelude::*;
use sdk::sync::Mutex;
use x86_platform::apic::{Delivery, Ipi, Route};
use xen_abi::{Domain, VcpuStart};

use crate::foreign::Foreign;
use crate::map::GuestMap;
use crate::peers::Outlet;
use crate::stop::Stop;
use vmm_guest::deadline::Deadlines;
use vmm_guest::ram::Ram;

/// Bits of [`Mailbox::flags`]: what a vCPU's thread has to look at.
pub mod flag {
    /// The Xen event upcall may be pending.
    pub const UPCALL: u32 = 1 << 0;
    /// Vectors were posted for the local APIC.
    pub const VECTORS: u32 = 1 << 1;
    /// An NMI.
    pub const NMI: u32 = 1 << 2;
    /// INIT.
    pub const INIT: u32 = 1 << 3;
    /// SIPI; its vector is in `Mailbox::startup`.
    pub const STARTUP: u32 = 1 << 4;
    /// Deadlines or the state of a block changed.
    pub const WAKE: u32 = 1 << 5;
    /// `VCPUOP_up`.
    pub const UP: u32 = 1 << 6;
    /// `VCPUOP_down`.
    pub const DOWN: u32 = 1 << 7;
    /// Flush the TLB.
    pub const FLUSH: u32 = 1 << 8;
    /// The domain stops.
    pub const STOP: u32 = 1 << 9;
}

/// How other threads reach a vCPU.
#[derive(Debug)]
pub struct Mailbox {
    /// [`flag`] bits.
    pub flags: AtomicU32,
    /// Vector of the last SIPI.
    pub startup: AtomicU32,
    vectors: [AtomicU32; 8],
    /// Vector by which the guest last got a Xen upcall through its local APIC, or 0.
    pub upcall_vector: AtomicU32,
    /// [`Route`] of the local APIC, as its owner published it.
    pub route: AtomicU64,
    /// Bound to the vCPU: its bits end a run, and its thread waits on it when halted.
    pub wake: Cap<cap::Notification>,
}

impl Mailbox {
    /// An empty mailbox.
    pub fn new(wake: Cap<cap::Notification>, route: Route) -> Mailbox {
        Mailbox {
            flags: AtomicU32::new(0),
            startup: AtomicU32::new(0),
            vectors: [const { AtomicU32::new(0) }; 8],
            upcall_vector: AtomicU32::new(0),
            route: AtomicU64::new(route.to_word()),
            wake,
        }
    }

    /// Sets flags and, unless the owner itself does it, wakes the owner. The owner clears flags
    /// only after it took its notification's bits, so a flag found set has a signal under way.
    pub fn post(&self, flags: u32, from_owner: bool) {
        let before = self.flags.fetch_or(flags, Ordering::SeqCst);
        if !from_owner && before & flags != flags {
            // Fails only when the capability is gone, and the VMM with it.
            let _ = self.wake.signal(1);
        }
    }

    /// Posts a vector for the local APIC.
    pub fn post_vector(&self, vector: u8, from_owner: bool) {
        if let Some(word) = self.vectors.get(usize::from(vector >> 5)) {
            word.fetch_or(1 << (vector & 31), Ordering::SeqCst);
        }
        self.post(flag::VECTORS, from_owner);
    }

    /// Takes the posted vectors.
    pub fn take_vectors(&self) -> impl Iterator<Item = u8> + '_ {
        self.vectors
            .iter()
            .zip((0u8..).step_by(32))
            .flat_map(|(word, base)| {
                let bits = word.swap(0, Ordering::SeqCst);
                (0..32u8)
                    .filter(move |bit| bits >> bit & 1 != 0)
                    .map(move |bit| base + bit)
            })
    }
}

/// Everything shared.
pub struct Shared {
    /// Guest memory.
    pub ram: Ram,
    /// The guest's address space.
    pub map: Mutex<GuestMap>,
    /// The Xen ABI's state.
    pub domain: Mutex<Domain>,
    /// One per vCPU.
    pub mailboxes: Box<[Mailbox]>,
    /// Start states that `VCPUOP_initialise` gave, one per vCPU.
    pub initial: Box<[Mutex<Option<VcpuStart>>]>,
    /// Why and that the domain stopped.
    pub stop: Stop,
    /// The service thread's notification.
    pub service: Cap<cap::Notification>,
    /// Where events for those go who use the guest's grants and event channels.
    pub outlets: Box<[Outlet]>,
    /// Other guests' grants and event channels.
    pub foreign: Mutex<Foreign>,
    /// Whoever connects to another guest's VMM has this; nobody waits for it who has another lock.
    pub connecting: Mutex<()>,
    /// Until when vCPUs' threads wait for other guests' VMMs.
    pub deadlines: Deadlines,
    /// vCPUs' threads.
    pub threads: Box<[Cap<cap::Thread>]>,
    /// Lines of the guest that go to the log.
    pub lines: Mutex<vmm_guest::console::Lines>,
    /// Which instruction this CPU's guests call with.
    pub vendor: xen_abi::Vendor,
    /// A guest TSC of this many ticks per millisecond.
    pub tsc_khz: u64,
}

/// Bits of the service thread's notification.
pub mod service {
    /// The console component took output or brought input.
    pub const CONSOLE: u64 = 1 << 0;
    /// The guest sent an event for its console ring.
    pub const GUEST_CONSOLE: u64 = 1 << 1;
    /// The domain stopped.
    pub const STOPPED: u64 = 1 << 2;
    /// The guest sent an event for its xenstore ring.
    pub const GUEST_STORE: u64 = 1 << 3;
    /// The store has watch events for the guest.
    pub const STORE: u64 = 1 << 4;
    /// A vCPU's thread waits for another guest's VMM, and nobody looks for how long.
    pub const WATCH: u64 = 1 << 5;
    /// The first caller of interface `peer` set events; the others' bits follow.
    const PEER: u64 = 1 << 8;

    /// The bit of a caller of interface `peer`.
    pub const fn peer(caller: usize) -> u64 {
        PEER << caller
    }

    /// The bits of all callers.
    pub const CALLERS: u64 = foreign(0) - peer(0);

    /// The bits of all connections to other guests' VMMs.
    pub const FOREIGN: u64 = foreign(sdk::startup::PEERS_MAX) - foreign(0);

    /// The bit of a connection to another guest's VMM, by its place.
    pub const fn foreign(place: usize) -> u64 {
        peer(sdk::startup::PEERS_MAX + place)
    }
    const _: () = assert!(foreign(sdk::startup::PEERS_MAX - 1) < sdk::startup::DOMAINS);
}

impl Shared {
    /// Delivers an interrupt that `from` sent to all vCPUs that it is for.
    pub fn deliver(&self, ipi: &Ipi, from: u32) {
        for (index, mailbox) in self.mailboxes.iter().enumerate() {
            if !Route::from_word(mailbox.route.load(Ordering::SeqCst)).accepts(ipi) {
                continue;
            }
            let own = index == from as usize;
            match ipi.delivery {
                Delivery::Fixed(vector) => mailbox.post_vector(vector, own),
                Delivery::LowestPriority(vector) => {
                    mailbox.post_vector(vector, own);
                    return;
                }
                Delivery::Nmi => mailbox.post(flag::NMI, own),
                Delivery::Init => mailbox.post(flag::INIT, own),
                Delivery::Startup(vector) => {
                    mailbox.startup.store(vector.into(), Ordering::SeqCst);
                    mailbox.post(flag::STARTUP, own);
                }
            }
        }
    }

    /// Stops the domain, once: the first reason stands.
    pub fn stop(&self, reason: crate::stop::Reason) {
        if self.stop.set(reason) {
            for mailbox in &self.mailboxes {
                mailbox.post(flag::STOP, false);
            }
            let _ = self.service.signal(service::STOPPED);
        }
    }
}
