//! That a domain stopped, and why: set once by any thread, read by the service thread.

use idl::supervisor::StopReason;
use sdk::sync::Mutex;
use xen_abi::ShutdownReason;

/// Why a domain stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The guest said so.
    Guest(ShutdownReason),
    /// Every vCPU went down: off, as in Xen.
    AllDown,
    /// Triple fault of a vCPU at an instruction pointer.
    TripleFault {
        /// Which.
        vcpu: u32,
        /// Where.
        rip: u64,
    },
    /// The guest did something that this VMM cannot go on from.
    Unsupported {
        /// Which vCPU.
        vcpu: u32,
        /// Where.
        rip: u64,
        /// What.
        what: &'static str,
        /// A word that goes with it.
        word: u64,
    },
}

impl Reason {
    /// The reason in the supervisor's words.
    pub fn report(self) -> StopReason {
        match self {
            Reason::Guest(ShutdownReason::PowerOff) | Reason::AllDown => StopReason::Poweroff,
            Reason::Guest(ShutdownReason::Reboot) => StopReason::Reboot,
            Reason::Guest(ShutdownReason::Suspend) => StopReason::Suspend,
            Reason::Guest(ShutdownReason::Watchdog) => StopReason::Watchdog,
            // Xen takes codes that it does not know for a crash.
            Reason::Guest(ShutdownReason::Crash | ShutdownReason::Unknown(_)) => StopReason::Crash,
            // A new kernel in the same memory needs the domain's tear-down without it.
            Reason::Guest(ShutdownReason::SoftReset) => StopReason::Unsupported,
            Reason::TripleFault { vcpu, rip } => StopReason::TripleFault { vcpu, rip },
            Reason::Unsupported { .. } => StopReason::Unsupported,
        }
    }
}

/// The first reason, once there is one.
pub struct Stop(Mutex<Option<Reason>>);

impl Stop {
    /// Not stopped.
    pub const fn new() -> Stop {
        Stop(Mutex::new(None))
    }

    /// Notes the reason; false if there was one already.
    pub fn set(&self, reason: Reason) -> bool {
        let mut first = self.0.lock();
        let fresh = first.is_none();
        if fresh {
            *first = Some(reason);
        }
        fresh
    }

    /// The reason.
    pub fn reason(&self) -> Option<Reason> {
        *self.0.lock()
    }
}
