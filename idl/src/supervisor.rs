//! `supervisor`: what components tell root, which serves this interface. The caller is known by
//! its badge; it cannot speak for another.

use crate::{heapless, interface, message};

/// Why a guest stopped. Numbers of `SCHEDOP_shutdown` reasons: Xen public/sched.h.
#[message]
#[derive(Copy)]
pub enum StopReason {
    /// It switched itself off (SHUTDOWN_poweroff).
    Poweroff,
    /// It wants to start again (SHUTDOWN_reboot).
    Reboot,
    /// It said that it crashed (SHUTDOWN_crash).
    Crash,
    /// It asked to be suspended, which nothing here can resume (SHUTDOWN_suspend).
    Suspend,
    /// Its watchdog fired (SHUTDOWN_watchdog).
    Watchdog,
    /// A vCPU shut down by a triple fault: its number and instruction pointer.
    TripleFault {
        /// Which vCPU.
        vcpu: u32,
        /// Where it was.
        rip: u64,
    },
    /// The VMM cannot go on: what it could not do is in `detail`.
    Unsupported,
}

/// One line for the operator.
pub type Detail = heapless::String<256>;

/// Served by root.
#[interface]
pub trait Supervisor {
    /// The caller serves its endpoints now; its clients may start.
    fn ready(&self);
    /// The caller's guest stopped. Root tears the VMM down, so this may not return; after
    /// `Reboot` it builds the guest again.
    fn guest_stopped(&self, reason: StopReason, detail: Detail);
    /// The caller cannot go on and says why; root reports it and treats it as a fault.
    fn failed(&self, detail: Detail);
    /// The caller is done and wants to be torn down.
    fn exit(&self);
}
