//! A hypercall's registers in, its result and what the vCPU does next out.

use crate::domain::number;
use crate::errno::Errno;
use crate::version;

/// Which layout a caller's structures have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 32-bit caller: Xen's compat layouts.
    Bits32,
    /// 64-bit caller.
    Bits64,
}

/// The CPU mode of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real mode (CR0.PE clear).
    Real,
    /// Virtual-8086 mode.
    Vm86,
    /// Protected mode with 16- or 32-bit code, also under EFER.LMA.
    Bits32,
    /// 64-bit code.
    Bits64,
}

/// What the guest asked. 64-bit callers pass RAX and RDI, RSI, RDX, R10, R8, R9; all others pass
/// EAX and EBX, ECX, EDX, ESI, EDI, EBP, zero-extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// Hypercall number.
    pub number: u64,
    /// Arguments.
    pub arguments: [u64; 6],
    /// Mode of the caller.
    pub mode: Mode,
    /// Current privilege level.
    pub cpl: u8,
    /// Whether interrupts are enabled (RFLAGS.IF).
    pub interrupts: bool,
}

/// What the vCPU does after a hypercall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Goes on.
    Continue,
    /// Gives up the CPU once, then goes on.
    Yield,
    /// Waits as long as [`crate::Domain::is_blocked`] says so, calling
    /// [`crate::Domain::expire`] at [`crate::Domain::next_deadline`].
    Block,
    /// Calls again: the instruction pointer stays on the instruction, the number's register as it
    /// was, and [`crate::Domain::arguments_left`] become the arguments. So long operations stay
    /// preemptible.
    Restart,
    /// Stops: the vCPU is down or the domain has shut down.
    Stop,
}

/// The answer to a hypercall. The instruction pointer moves past the instruction and the result is
/// stored, except for [`Next::Restart`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// New RAX of a 64-bit caller; a 32-bit caller's EAX is its low half.
    pub result: u64,
    /// What follows.
    pub next: Next,
}

/// The result of a 64-bit kernel's call that concerns nobody's state: which Xen this is, and calls that
/// nobody has. Such a call waits for no other vCPU's. `None`: [`crate::Domain::hypercall`] knows.
#[must_use]
#[inline(always)]
pub fn stateless(number: u64, command: u64) -> Option<u64> {
    match number {
        number::XEN_VERSION if command as u32 == version::op::VERSION => {
            Some(u64::from(version::VERSION))
        }
        number if number > number::LAST => Some(Errno::NoSys.as_return() as u64),
        _ => None,
    }
}
