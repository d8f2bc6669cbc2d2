//! Events, without interrupts: ports are polled (`SCHEDOP_poll`) for at most a second at a time.

use guest_kit::xen::SharedInfo;
use hostile_calls::operations::number;

use crate::xen::Xen;

/// `SCHEDOP_poll` (public/sched.h).
const POLL: u64 = 3;
/// `EVTCHNOP_send`, `_alloc_unbound` (public/event_channel.h).
const SEND: u64 = 4;
const ALLOC_UNBOUND: u64 = 6;
/// `DOMID_SELF` (public/xen.h).
const DOMID_SELF: u32 = 0x7ff0;
/// Nanoseconds of a wait.
const WAIT: u64 = 1_000_000_000;

/// `sched_poll` (public/sched.h).
#[repr(C)]
struct Poll {
    ports: u64,
    count: u32,
    pad: u32,
    deadline: u64,
}

/// The right to wait.
pub struct Events<'a> {
    xen: &'a Xen,
    shared: SharedInfo,
}

impl<'a> Events<'a> {
    /// With the shared information mapped.
    pub fn new(xen: &'a Xen) -> Option<Self> {
        let shared = guest_kit::xen::Xen::find()?.shared_info().ok()?;
        shared.mask_upcalls();
        Some(Events { xen, shared })
    }

    /// Sends an event.
    pub fn send(&self, port: u32) {
        self.xen.call_words(number::EVENT, SEND, &mut [port]);
    }

    /// A port that domain `domain` may bind.
    pub fn offer(&self, domain: u16) -> Option<u32> {
        // `evtchn_alloc_unbound`: domain, remote domain, port.
        let mut words = [DOMID_SELF | u32::from(domain) << 16, 0];
        let answer = self
            .xen
            .call_words(number::EVENT, ALLOC_UNBOUND, &mut words);
        (answer == 0).then_some(words[1])
    }

    /// Waits for the port's event or a second, and takes the event back.
    pub fn wait(&self, port: u32) {
        let ports = [port];
        // SAFETY: reading the TSC changes nothing.
        let now = self
            .shared
            .system_time(unsafe { core::arch::x86_64::_rdtsc() });
        let poll = Poll {
            ports: ports.as_ptr() as u64,
            count: 1,
            pad: 0,
            deadline: now.saturating_add(WAIT),
        };
        if !self.shared.is_pending(port) {
            let at = &raw const poll as u64;
            // SAFETY: both are alive during the call, and only read.
            unsafe { self.xen.call(number::SCHED, &[POLL, at, 0, 0, 0]) };
        }
        self.shared.clear(port);
    }
}
