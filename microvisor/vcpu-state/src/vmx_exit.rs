//! What a VMX exit means: basic exit reasons and qualifications (Intel SDM vol. 3, appendix C and
//! 28.2) normalised to the state page's [`Exit`]. Words of the VMCS are asked for one by one, since
//! reading one costs: an exit asks for what it needs.

use crate::exit::Report;
use microvisor_abi::vcpu::{Exit, fault, io};

/// A word of the VMCS that describes an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Exit qualification.
    Qualification,
    /// Length of the instruction.
    Length,
    /// Guest-physical address.
    Physical,
    /// Interruption information.
    Interruption,
    /// Interruption error code.
    ErrorCode,
}

/// What the core does about an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// Tell the VMM.
    Report(Report),
    /// Something for the host that is still pending: interrupt, INIT. Let it in and go on.
    Host,
    /// An NMI, which the exit took: hand it to the host's own handler.
    Nmi,
    /// A machine check, likewise.
    MachineCheck,
    /// The guest can take an interrupt.
    InterruptWindow,
    /// The guest can take an NMI.
    NmiWindow,
    /// The guest uses a debug register: give it its own.
    DebugRegister,
    /// A #DB with these causes, in DR6's bits; interruption information. Its delivery can loop for
    /// ever in microcode, which is why it exits: inject it again.
    Debug(u64, u64),
    /// An #AC with this error code, likewise.
    Alignment(u64),
}

/// External interrupt; the commonest exit that is not the guest's doing.
pub const EXTERNAL_INTERRUPT: u64 = 1;
/// Set in the exit reason if the entry failed.
pub const ENTRY_FAILED: u64 = 1 << 31;
/// EPT violation.
pub const EPT_VIOLATION: u64 = 48;

/// True if the exit may have cut the delivery of an event short (28.2.4): those that an access to
/// memory or an exception causes, and task switches.
#[inline(always)]
pub const fn may_cut_delivery(reason: u64) -> bool {
    matches!(reason, 0 | 9 | 48 | 49)
}

/// Says what an exit for `reason` means.
#[inline(always)]
pub fn decode(reason: u64, read: impl Fn(Word) -> u64) -> Decoded {
    let instruction = |exit, mode| {
        Decoded::Report(Report {
            exit,
            info: [0, 0],
            length: read(Word::Length),
            mode,
        })
    };
    match reason {
        // The preemption timer, too: somebody looks whether an interrupt is pending.
        EXTERNAL_INTERRUPT | 3 | 4 | 52 => Decoded::Host,
        10 => instruction(Exit::Cpuid, false),
        12 => instruction(Exit::Hlt, false),
        18 => instruction(Exit::Hypercall, true),
        30 => port(&read),
        31 => instruction(Exit::MsrRead, false),
        32 => instruction(Exit::MsrWrite, false),
        EPT_VIOLATION => violation(&read),
        7 => Decoded::InterruptWindow,
        8 => Decoded::NmiWindow,
        0 => exception(&read),
        29 => Decoded::DebugRegister,
        28 => instruction(Exit::ControlRegister, true),
        55 => instruction(Exit::Xsetbv, true),
        13 | 54 => instruction(Exit::CacheFlush, false),
        15 => instruction(Exit::Rdpmc, false),
        36 | 39 => instruction(Exit::Mwait, false),
        40 => instruction(Exit::Pause, false),
        // GETSEC, RSM, VMX's own instructions, INVEPT, INVVPID, VMFUNC, ENCLS, XSAVES, XRSTORS.
        11 | 17 | 19..=27 | 50 | 53 | 59 | 60 | 63 | 64 => instruction(Exit::Undefined, false),
        2 => event(Exit::Shutdown, [0, 0], false),
        9 => event(Exit::TaskSwitch, [read(Word::Qualification), 0], true),
        // EPT misconfigurations among them, with their address.
        _ => event(Exit::Invalid, [reason, read(Word::Physical)], false),
    }
}

fn event(exit: Exit, info: [u64; 2], mode: bool) -> Decoded {
    Decoded::Report(Report {
        exit,
        info,
        length: 0,
        mode,
    })
}

/// Table 28-5.
fn port(read: &impl Fn(Word) -> u64) -> Decoded {
    let word = read(Word::Qualification);
    let mut info = word >> 16 & 0xffff | ((word & 7) + 1) << 16;
    if word & 8 != 0 {
        info |= io::IN;
    }
    if word & 1 << 4 != 0 {
        info |= io::STRING;
    }
    if word & 1 << 5 != 0 {
        info |= io::REP;
    }
    Decoded::Report(Report {
        exit: Exit::Io,
        info: [info, 0],
        length: read(Word::Length),
        mode: word & 1 << 4 != 0,
    })
}

/// Table 28-7.
fn violation(read: &impl Fn(Word) -> u64) -> Decoded {
    let word = read(Word::Qualification);
    let mut flags = 0;
    if word & 7 << 3 != 0 {
        flags |= fault::PRESENT;
    }
    flags |= if word & 2 != 0 {
        fault::WRITE
    } else if word & 4 != 0 {
        fault::FETCH
    } else {
        fault::READ
    };
    // A linear address is known (bit 7), but the access was not to what it translates to (bit 8).
    if word & (1 << 7 | 1 << 8) == 1 << 7 {
        flags |= fault::WALK;
    }
    event(Exit::NestedFault, [read(Word::Physical), flags], true)
}

/// Interruption information (table 25-19): vector, type in bits 8-10.
fn exception(read: &impl Fn(Word) -> u64) -> Decoded {
    let word = read(Word::Interruption);
    match (word >> 8 & 7, word & 0xff) {
        (2, _) => Decoded::Nmi,
        (_, 18) => Decoded::MachineCheck,
        (_, 1) => Decoded::Debug(read(Word::Qualification), word),
        (_, 17) => Decoded::Alignment(read(Word::ErrorCode)),
        (_, vector) => event(Exit::Exception, [vector, read(Word::ErrorCode)], false),
    }
}
