//! What each exit asks for: the dispatch, and the instructions without operands.

use sdk::abi::thread::Registers;
use sdk::abi::vcpu::{Exit, group, io};
use sdk::field;
use sdk::time;
use sdk::vcpu::Field;
use x86_platform::cpuid::{Context, Cpuid, Needs};
use x86_platform::decode::Fixed;
use x86_platform::execute::{Linear, Progress};
use x86_platform::mode::{CR0_PE, CodeSize, Mode};
use x86_platform::paging::{self, Access as PageAccess};
use x86_platform::port::{self, Ports, StringForm};
use x86_platform::registers::IF;
use xen_abi::Next;

use crate::env::Effects;
use crate::shared::Shared;

use super::{Activity, Handled, Interruption, Vcpu};

/// Port of Xen's debug console for guests (`XEN_HVM_DEBUGCONS_IOPORT`).
const DEBUG_CONSOLE: u16 = 0xe9;
/// RFLAGS.VM.
const VM86: u64 = 1 << 17;
/// First and last of Xen's CPUID leaves.
const XEN_LEAVES: core::ops::Range<u32> = 0x4000_0000..0x4000_0100;

/// A PVH guest's ports: nothing answers but the debug console.
struct NoDevices<'a>(&'a Shared);

impl NoDevices<'_> {
    /// Whether a write to `port` has any effect.
    fn hears(port: u16) -> bool {
        port == DEBUG_CONSOLE
    }
}

impl Ports for NoDevices<'_> {
    fn read(&mut self, port: u16, bytes: u8) -> u32 {
        // The debug console answers its own number, by which guests find it.
        if port == DEBUG_CONSOLE && bytes == 1 {
            return DEBUG_CONSOLE.into();
        }
        u32::MAX
    }

    fn write(&mut self, port: u16, bytes: u8, value: u32) {
        if port == DEBUG_CONSOLE && bytes == 1 {
            self.0.lines.lock().add(&[value as u8]);
        }
    }
}

/// Guest memory by segment and offset, for string instructions.
pub(super) struct Segmented<'a> {
    pub shared: &'a Shared,
    pub mode: &'a Mode,
    pub rflags: u64,
    /// Bases of ES, CS, SS, DS, FS, GS, zero in 64-bit mode where the CPU ignores them.
    pub bases: [u64; 6],
}

impl Segmented<'_> {
    fn linear(&self, segment: u8, offset: u64) -> u64 {
        let base = self.bases.get(usize::from(segment)).copied().unwrap_or(0);
        let linear = base.wrapping_add(offset);
        match self.mode.code_size() {
            CodeSize::Bits64 => linear,
            _ => linear & 0xffff_ffff,
        }
    }

    /// Calls `each` with guest-physical pieces of one or two pages.
    fn pieces(
        &self,
        linear: u64,
        bytes: u8,
        access: PageAccess,
        mut each: impl FnMut(u64, core::ops::Range<usize>) -> Result<(), Interruption>,
    ) -> Handled {
        let here = (4096 - (linear & 0xfff)).min(bytes.into()) as u8;
        let translate = |address| {
            paging::translate(&self.shared.ram, self.mode, self.rflags, address, access)
                .map_err(Interruption::from)
        };
        let first = translate(linear)?;
        let second = if here < bytes {
            Some(translate(linear.wrapping_add(here.into()))?)
        } else {
            None
        };
        each(first, 0..usize::from(here))?;
        match second {
            Some(second) => each(second, usize::from(here)..usize::from(bytes)),
            None => Ok(()),
        }
    }
}

impl Linear for Segmented<'_> {
    type Fault = Interruption;

    fn load(&mut self, segment: u8, offset: u64, bytes: u8) -> Result<u64, Interruption> {
        use x86_platform::memory::GuestMemory;
        let mut value = [0u8; 8];
        let linear = self.linear(segment, offset);
        self.pieces(linear, bytes.min(8), PageAccess::Read, |address, range| {
            if let Some(piece) = value.get_mut(range)
                && GuestMemory::read(&self.shared.ram, address, piece).is_err()
            {
                // Nothing there: all ones, as from any unbacked address.
                piece.fill(0xff);
            }
            Ok(())
        })?;
        Ok(u64::from_le_bytes(value))
    }

    fn store(&mut self, segment: u8, offset: u64, bytes: u8, value: u64) -> Handled {
        use x86_platform::memory::GuestMemory;
        let linear = self.linear(segment, offset);
        let value = value.to_le_bytes();
        self.pieces(linear, bytes.min(8), PageAccess::Write, |address, range| {
            if let Some(piece) = value.get(range) {
                // Writes to nothing are dropped.
                let _ = GuestMemory::write(&self.shared.ram, address, piece);
            }
            Ok(())
        })
    }
}

/// How often a hypercall is made again before the guest has a say: as often as one has something new to ask.
const ATTEMPTS: u32 = 4;

/// Where the arguments of hypercalls are: no one has more.
fn arguments(long: bool) -> [Field; 4] {
    if long {
        [
            field!(regs.rdi),
            field!(regs.rsi),
            field!(regs.rdx),
            field!(regs.r10),
        ]
    } else {
        [
            field!(regs.rbx),
            field!(regs.rcx),
            field!(regs.rdx),
            field!(regs.rsi),
        ]
    }
}

impl Vcpu {
    #[inline(always)]
    pub(super) fn handle(&mut self, exit: Option<Exit>) -> Handled {
        let Some(exit) = exit else {
            return Err(Interruption::Unsupported {
                what: "unknown exit",
                word: self.page.get(field!(exit)),
            });
        };
        match exit {
            Exit::Cpuid => self.cpuid(),
            Exit::Hypercall => self.hypercall(),
            Exit::Io => self.port(),
            Exit::MsrRead => self.msr_read(),
            Exit::MsrWrite => self.msr_write(),
            Exit::NestedFault => self.nested_fault(),
            Exit::InterruptWindow | Exit::NmiWindow => Ok(()),
            Exit::Interrupted => {
                // The bits are taken first and the flags after: see `Mailbox::post`.
                match sdk::caps::NotificationCap::poll(self.mailbox().wake) {
                    Ok(_) => Ok(()),
                    Err(status) => Err(status.into()),
                }
            }
            Exit::Deadline => {
                self.expire();
                Ok(())
            }
            Exit::Hlt => self.halt(),
            Exit::ControlRegister => self.control_register(),
            Exit::Xsetbv => self.xsetbv(),
            Exit::CacheFlush => self.skip_fixed(Fixed::CacheFlush),
            Exit::Pause => self.skip_fixed(Fixed::Pause),
            Exit::Rdpmc => Err(Interruption::GENERAL_PROTECTION),
            Exit::Mwait | Exit::Undefined => Err(Interruption::INVALID_OPCODE),
            Exit::Exception => self.exception(),
            Exit::Shutdown => {
                self.triple_fault();
                Ok(())
            }
            Exit::Init => Ok(()),
            Exit::TaskSwitch => Err(Interruption::Unsupported {
                what: "hardware task switch",
                word: self.page.get(field!(info)),
            }),
            Exit::Invalid => Err(Interruption::Unsupported {
                what: "state that the CPU refuses",
                word: self.page.get(field!(info)),
            }),
        }
    }

    fn cpuid(&mut self) -> Handled {
        let leaf = self.page.get(field!(regs.rax)) as u32;
        let subleaf = self.page.get(field!(regs.rcx)) as u32;
        let length = self.length(Fixed::Cpuid)?;
        let [a, b, c, d] = if XEN_LEAVES.contains(&leaf) {
            let domain = self.shared.domain.lock();
            domain.cpuid(self.index, leaf, subleaf).unwrap_or_default()
        } else {
            let mut context = Context::default();
            match Cpuid::needs(leaf) {
                Needs::Nothing => {}
                Needs::Cr4 => {
                    self.need(group::MODE)?;
                    context.cr4 = self.page.get(field!(cr4));
                }
                Needs::Xcr0 => {
                    self.need(group::MISC)?;
                    context.xcr0 = self.page.get(field!(xcr0));
                }
            }
            self.cpuid.get(leaf, subleaf, &context)
        };
        self.page.set(field!(regs.rax), a.into());
        self.page.set(field!(regs.rbx), b.into());
        self.page.set(field!(regs.rcx), c.into());
        self.page.set(field!(regs.rdx), d.into());
        self.skip(length)
    }

    /// The mode in which the guest called, in the Xen ABI's terms.
    pub(super) fn caller_mode(&self, mode: &Mode) -> xen_abi::Mode {
        if mode.code_size() == CodeSize::Bits64 {
            // Nearly all; neither real nor virtual-8086 mode is possible there.
            xen_abi::Mode::Bits64
        } else if mode.cr0 & CR0_PE == 0 {
            xen_abi::Mode::Real
        } else if self.page.get(field!(regs.rflags)) & VM86 != 0 {
            xen_abi::Mode::Vm86
        } else {
            xen_abi::Mode::Bits32
        }
    }

    fn hypercall(&mut self) -> Handled {
        self.observe()?;
        let length = self.decoded_length(Fixed::Hypercall)?;
        let mode = self.lookaside.mode();
        let (caller, cpl) = (self.caller_mode(mode), mode.privilege());
        let get = |field| self.page.get(field);
        let interrupts = get(field!(regs.rflags)) & IF != 0;
        let long = caller == xen_abi::Mode::Bits64;
        if long
            && cpl == 0
            && let Some(result) = xen_abi::stateless(get(field!(regs.rax)), get(field!(regs.rdi)))
        {
            self.page.set(field!(regs.rax), result);
            return self.skip(length);
        }
        let mut registers = if long {
            xen_abi::Registers {
                number: get(field!(regs.rax)),
                arguments: [
                    get(field!(regs.rdi)),
                    get(field!(regs.rsi)),
                    get(field!(regs.rdx)),
                    get(field!(regs.r10)),
                    get(field!(regs.r8)),
                    get(field!(regs.r9)),
                ],
                mode: caller,
                cpl,
                interrupts,
            }
        } else {
            let low = |field| get(field) & 0xffff_ffff;
            xen_abi::Registers {
                number: low(field!(regs.rax)),
                arguments: [
                    low(field!(regs.rbx)),
                    low(field!(regs.rcx)),
                    low(field!(regs.rdx)),
                    low(field!(regs.rsi)),
                    low(field!(regs.rdi)),
                    low(field!(regs.rbp)),
                ],
                mode: caller,
                cpl,
                interrupts,
            }
        };
        let shared = self.shared;
        let mut attempt = 0;
        // One place that calls, so that the usual call has no loop and no call in it.
        let outcome = loop {
            let mut effects = Effects::new(shared, self.index, Some(&mut self.lookaside));
            let (outcome, abroad);
            {
                let mut domain = shared.domain.lock();
                outcome = domain.hypercall(self.index, &registers, &shared.ram, &mut effects);
                let (upcall, asks) = (effects.upcall, effects.abroad);
                self.upcall |= upcall;
                abroad = asks;
                // The call may have set a timer of this vCPU, or ended a block of it.
                if domain.deadlines() != self.xen_deadlines {
                    self.refresh_xen_deadline(&domain);
                }
                if outcome.next == Next::Restart {
                    self.set_arguments(long, domain.arguments_left());
                }
            }
            let again = outcome.next == Next::Restart;
            attempt += 1;
            if !(abroad | self.answers)
                || !self.settle(again, long, &mut registers)
                || attempt > ATTEMPTS
            {
                break outcome;
            }
        };
        if outcome.next == Next::Restart {
            return Ok(());
        }
        let result = if long {
            outcome.result
        } else {
            outcome.result & 0xffff_ffff
        };
        self.page.set(field!(regs.rax), result);
        self.skip(length)?;
        match outcome.next {
            Next::Continue | Next::Restart => Ok(()),
            Next::Yield => {
                // It fails only for want of memory for the first such wait; then nobody waited.
                let _ = time::give_way();
                Ok(())
            }
            Next::Block => {
                self.activity = Activity::Blocked;
                Ok(())
            }
            // The flags say why.
            Next::Stop => Ok(()),
        }
    }

    /// Other guests' VMMs are asked and told what a hypercall left to do, with no lock held. True: it is to be
    /// made `again`, with the arguments that it left, here, since the guest would do nothing else.
    #[cold]
    #[inline(never)]
    fn settle(&mut self, again: bool, long: bool, registers: &mut xen_abi::Registers) -> bool {
        self.answers = crate::ask::settle(self.shared, self.index, !again);
        for (argument, field) in registers.arguments.iter_mut().zip(arguments(long)) {
            *argument = self.page.get(field);
        }
        again
    }

    /// The arguments of a hypercall that is made again. No hypercall has more than four, and guests do not
    /// expect that registers change which stand for no argument.
    #[cold]
    #[inline(never)]
    fn set_arguments(&mut self, long: bool, arguments: [u64; 6]) {
        for (field, value) in self::arguments(long).into_iter().zip(arguments) {
            self.page.set(field, value);
        }
        self.modified |= group::GENERAL;
    }

    fn port(&mut self) -> Handled {
        let info = self.page.get(field!(info));
        if info & io::STRING != 0 {
            return self.port_string(&port::Access::from_info(info));
        }
        let length = self.length(Fixed::Port)?;
        if info & io::IN != 0 || NoDevices::hears(info as u16) {
            self.port_access(&port::Access::from_info(info));
        }
        self.skip(length)
    }

    #[inline(never)]
    fn port_access(&mut self, access: &port::Access) {
        let mut ports = NoDevices(self.shared);
        let rax = self.page.get(field!(regs.rax));
        if access.input {
            let value = ports.read(access.port, access.bytes);
            let rax = port::set_accumulator(rax, access.bytes, value);
            self.page.set(field!(regs.rax), rax);
        } else {
            ports.write(access.port, access.bytes, rax as u32);
        }
    }

    #[cold]
    #[inline(never)]
    fn port_string(&mut self, access: &port::Access) -> Handled {
        let mode = self.mode()?;
        let code = self.code(&mode)?;
        let form = StringForm::decode(&code, mode.code_size())?;
        let mut registers = self.registers();
        let mut linear = self.segmented(&mode)?;
        let shared = self.shared;
        let progress = port::string(
            access,
            &form,
            &mut registers,
            &mut NoDevices(shared),
            &mut linear,
        );
        self.set_registers(&registers);
        match progress? {
            Progress::Done => self.skip(form.length),
            Progress::Repeat => Ok(()),
        }
    }

    /// Guest memory by segment, in this mode.
    pub(super) fn segmented<'a>(&mut self, mode: &'a Mode) -> Result<Segmented<'a>, Interruption> {
        self.need(group::SEGMENTS)?;
        let mut bases = [
            self.page.segment(field!(es)).base,
            mode.cs.base,
            mode.ss.base,
            self.page.segment(field!(ds)).base,
            self.page.segment(field!(fs)).base,
            self.page.segment(field!(gs)).base,
        ];
        if mode.code_size() == CodeSize::Bits64 {
            for base in bases.iter_mut().take(4) {
                *base = 0;
            }
        }
        Ok(Segmented {
            shared: self.shared,
            mode,
            rflags: self.page.get(field!(regs.rflags)),
            bases,
        })
    }

    /// A copy of the general registers.
    pub(super) fn registers(&self) -> Registers {
        let get = |field| self.page.get(field);
        Registers {
            rax: get(field!(regs.rax)),
            rbx: get(field!(regs.rbx)),
            rcx: get(field!(regs.rcx)),
            rdx: get(field!(regs.rdx)),
            rsi: get(field!(regs.rsi)),
            rdi: get(field!(regs.rdi)),
            rbp: get(field!(regs.rbp)),
            r8: get(field!(regs.r8)),
            r9: get(field!(regs.r9)),
            r10: get(field!(regs.r10)),
            r11: get(field!(regs.r11)),
            r12: get(field!(regs.r12)),
            r13: get(field!(regs.r13)),
            r14: get(field!(regs.r14)),
            r15: get(field!(regs.r15)),
            rip: get(field!(regs.rip)),
            rsp: get(field!(regs.rsp)),
            rflags: get(field!(regs.rflags)),
        }
    }

    /// Writes the copy back.
    pub(super) fn set_registers(&mut self, registers: &Registers) {
        let mut set = |field, value| self.page.set(field, value);
        set(field!(regs.rax), registers.rax);
        set(field!(regs.rbx), registers.rbx);
        set(field!(regs.rcx), registers.rcx);
        set(field!(regs.rdx), registers.rdx);
        set(field!(regs.rsi), registers.rsi);
        set(field!(regs.rdi), registers.rdi);
        set(field!(regs.rbp), registers.rbp);
        set(field!(regs.r8), registers.r8);
        set(field!(regs.r9), registers.r9);
        set(field!(regs.r10), registers.r10);
        set(field!(regs.r11), registers.r11);
        set(field!(regs.r12), registers.r12);
        set(field!(regs.r13), registers.r13);
        set(field!(regs.r14), registers.r14);
        set(field!(regs.r15), registers.r15);
        set(field!(regs.rip), registers.rip);
        set(field!(regs.rsp), registers.rsp);
        set(field!(regs.rflags), registers.rflags);
        self.modified |= group::GENERAL;
    }

    /// HLT. With interrupts off nothing but an NMI could end it; Xen takes such a vCPU down
    /// (`hvm_hlt`).
    fn halt(&mut self) -> Handled {
        self.skip_fixed(Fixed::Hlt)?;
        if self.page.get(field!(regs.rflags)) & IF == 0 && !self.nmi {
            self.go_down();
        } else {
            self.activity = Activity::Halted;
        }
        Ok(())
    }

    /// An exception that the core intercepts for its own reasons: the guest gets it.
    fn exception(&mut self) -> Handled {
        let info = field!(info);
        let (vector, error) = (self.page.get_at(info, 0) as u8, self.page.get_at(info, 1));
        if vector >= 32 {
            return Err(Interruption::Unsupported {
                what: "exception without a number",
                word: self.page.get(info),
            });
        }
        self.raise(vector, error as u32);
        Ok(())
    }
}
