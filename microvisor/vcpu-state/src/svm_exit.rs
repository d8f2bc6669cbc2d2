//! What an SVM exit means: exit codes and EXITINFO words (AMD APM vol. 2, appendix C and 15.10 to
//! 15.25) normalised to the state page's [`Exit`].

use crate::exit::Report;
use microvisor_abi::vcpu::{Exit, fault, io};

/// What the core does about an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// Tell the VMM.
    Report(Report),
    /// Something for the host: interrupt, NMI, SMI, INIT. Let it in and go on.
    Host,
    /// A machine check: hand it to the host's own handler.
    MachineCheck,
    /// The guest can take an interrupt.
    InterruptWindow,
    /// IRET is about to end the handling of an NMI.
    Iret,
    /// The guest uses a debug register: give it its own.
    DebugRegister,
    /// An exception that exits only because its delivery can loop for ever in microcode (#DB and
    /// #AC): inject it again.
    Reflect(u64),
}

/// The words of a VMCB that describe an exit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Words {
    /// EXITCODE.
    pub code: u64,
    /// EXITINFO1.
    pub info1: u64,
    /// EXITINFO2.
    pub info2: u64,
    /// RIP.
    pub rip: u64,
    /// nRIP, or 0 when the CPU does not save it.
    pub next_rip: u64,
}

/// Interception of a physical interrupt; the commonest exit that is not the guest's doing.
pub const INTR: u64 = 0x60;
/// Nested page fault.
pub const NPF: u64 = 0x400;
/// VMRUN refused the VMCB.
pub const INVALID: u64 = u64::MAX;

/// Bytes from `rip` to `next`, or 0 if that is no instruction's length.
#[inline]
const fn length(rip: u64, next: u64) -> u64 {
    let bytes = next.wrapping_sub(rip);
    if bytes > 15 { 0 } else { bytes }
}

impl Words {
    #[inline]
    const fn instruction(&self, exit: Exit) -> Decoded {
        let length = length(self.rip, self.next_rip);
        Decoded::Report(Report {
            exit,
            info: [0, 0],
            length,
            // Whoever has to decode the instruction needs to know how it is fetched.
            mode: length == 0,
        })
    }

    #[inline]
    const fn event(&self, exit: Exit, info0: u64, info1: u64, mode: bool) -> Decoded {
        Decoded::Report(Report {
            exit,
            info: [info0, info1],
            length: 0,
            mode,
        })
    }

    /// Says what this exit means.
    #[inline(always)]
    pub const fn decode(&self) -> Decoded {
        match self.code {
            INTR..=0x63 => Decoded::Host,
            0x64 => Decoded::InterruptWindow,
            0x72 => self.instruction(Exit::Cpuid),
            0x78 => self.instruction(Exit::Hlt),
            0x7b => self.io(),
            0x7c if self.info1 & 1 == 0 => self.instruction(Exit::MsrRead),
            0x7c => self.instruction(Exit::MsrWrite),
            0x81 => Decoded::Report(Report {
                exit: Exit::Hypercall,
                info: [0, 0],
                length: length(self.rip, self.next_rip),
                mode: true,
            }),
            NPF => self.nested_fault(),
            0x00..=0x1f | 0x65 => self.instruction(Exit::ControlRegister),
            0x20..=0x3f => Decoded::DebugRegister,
            0x41 => Decoded::Reflect(1),
            0x51 => Decoded::Reflect(17),
            0x52 => Decoded::MachineCheck,
            0x40..=0x5f => self.event(Exit::Exception, self.code - 0x40, self.info1, false),
            0x6f => self.instruction(Exit::Rdpmc),
            0x74 => Decoded::Iret,
            0x76 | 0x89 => self.instruction(Exit::CacheFlush),
            0x77 => self.instruction(Exit::Pause),
            0x7d => self.event(Exit::TaskSwitch, self.info1, self.info2, true),
            // FERR_FREEZE: an x87 error that a PC would raise as IRQ 13.
            0x7e => self.event(Exit::Exception, 16, 0, false),
            0x7f => self.event(Exit::Shutdown, 0, 0, false),
            // VMRUN, VMLOAD, VMSAVE, STGI, CLGI, SKINIT; INVLPGA; RSM; ICEBP; RDPRU.
            0x80 | 0x82..=0x86 | 0x7a | 0x73 | 0x88 | 0x8e => self.instruction(Exit::Undefined),
            0x8a..=0x8c => self.instruction(Exit::Mwait),
            0x8d => self.instruction(Exit::Xsetbv),
            _ => self.event(Exit::Invalid, self.code, self.info1, false),
        }
    }

    #[inline]
    const fn io(&self) -> Decoded {
        let word = self.info1;
        let mut info = word >> 16 & 0xffff | (word >> 4 & 7) << 16;
        if word & 1 != 0 {
            info |= io::IN;
        }
        if word & 4 != 0 {
            info |= io::STRING;
        }
        if word & 8 != 0 {
            info |= io::REP;
        }
        Decoded::Report(Report {
            exit: Exit::Io,
            info: [info, 0],
            // EXITINFO2 is the next instruction's address on every CPU (15.10.2).
            length: length(self.rip, self.info2),
            mode: word & 4 != 0,
        })
    }

    #[inline]
    const fn nested_fault(&self) -> Decoded {
        let word = self.info1;
        let mut flags = 0;
        // P or RSV: something was found.
        if word & (1 | 1 << 3) != 0 {
            flags |= fault::PRESENT;
        }
        flags |= if word & 2 != 0 {
            fault::WRITE
        } else if word & 1 << 4 != 0 {
            fault::FETCH
        } else {
            fault::READ
        };
        if word & 1 << 33 != 0 {
            flags |= fault::WALK;
        }
        self.event(Exit::NestedFault, self.info2, flags, true)
    }
}
