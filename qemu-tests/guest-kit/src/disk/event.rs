//! Events, without interrupts: ports are polled (`SCHEDOP_poll`) for at most a second at a time.

use crate::xen::{SharedInfo, Xen, number};

/// `SCHEDOP_poll` (public/sched.h).
const POLL: u64 = 3;
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
pub struct Events {
    xen: Xen,
    shared: SharedInfo,
}

impl Events {
    /// With the shared information mapped.
    pub fn new(xen: Xen) -> Option<Self> {
        let shared = xen.shared_info().ok()?;
        shared.mask_upcalls();
        Some(Events { xen, shared })
    }

    /// Sends an event.
    pub fn send(&self, port: u32) {
        let _ = self.xen.send(&port);
    }

    /// Waits for the port's event or a second, and takes the event back; whether there was one.
    pub fn wait(&self, port: u32) -> bool {
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
            let _ = unsafe { self.xen.call(number::SCHED_OP, POLL, at, 0) };
        }
        let came = self.shared.is_pending(port);
        self.shared.clear(port);
        came
    }
}
