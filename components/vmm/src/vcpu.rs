//! One vCPU: its registers' page, local APIC, CPUID and MSRs, and the loop that runs it.
//!
//! Owned by one thread, pinned by root to one CPU. Other threads reach it through its
//! [`Mailbox`](crate::shared::Mailbox) only. The loop is the path of every exit, so it does as
//! little as it can: look at the flags, deliver what is pending, run, dispatch.

mod code;
mod control;
mod events;
mod exits;
mod mmio;
mod msrs;
mod start;

use core::sync::atomic::Ordering;

use guest_loader::layout;
use sdk::abi::vcpu::{Exit, event, group};
use sdk::field;
use sdk::prelude::*;
use sdk::time;
use sdk::vcpu::StatePage;
use x86_platform::apic::{Clock, LocalApic};
use x86_platform::cpuid::{self, Cpuid};
use x86_platform::decode;
use x86_platform::event::vector;
use x86_platform::lookaside::{self, Lookaside};
use x86_platform::msr::Msrs;
use x86_platform::paging::Fault;

use vmm_guest::ram::Word;
use xen_abi::RunstateKind;

use crate::env::Effects;
use crate::shared::{Mailbox, Shared, flag};
use crate::stop::Reason;

/// What a vCPU is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activity {
    /// Runs when its thread does.
    Running,
    /// Executed HLT: waits for an interrupt.
    Halted,
    /// Waits in a Xen call (SCHEDOP_block, SCHEDOP_poll).
    Blocked,
    /// Never started, or reset by INIT: waits for SIPI or `VCPUOP_up`.
    WaitStartup,
    /// Down: only `VCPUOP_up` or INIT help.
    Down,
    /// The domain stopped.
    Stopped,
}

/// Why an exit's instruction does not simply complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interruption {
    /// Run it again: it changed under our eyes, or what it needs is on its way.
    Again,
    /// It raises an exception.
    Exception {
        /// Which.
        vector: u8,
        /// Its error code, if it has one.
        error: u32,
    },
    /// It raises #PF with this address.
    Page {
        /// CR2.
        address: u64,
        /// Error code.
        code: u32,
    },
    /// The VMM cannot go on with it: the domain crashes.
    Unsupported {
        /// What.
        what: &'static str,
        /// A word that goes with it.
        word: u64,
    },
}

impl Interruption {
    const GENERAL_PROTECTION: Interruption = Interruption::Exception {
        vector: vector::GENERAL_PROTECTION,
        error: 0,
    };
    const INVALID_OPCODE: Interruption = Interruption::Exception {
        vector: vector::INVALID_OPCODE,
        error: 0,
    };
}

impl From<Fault> for Interruption {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Page { address, code } => Interruption::Page { address, code },
            Fault::NonCanonical => Interruption::GENERAL_PROTECTION,
            Fault::Unsupported => Interruption::Unsupported {
                what: "page tables outside memory",
                word: 0,
            },
        }
    }
}

impl From<decode::Error> for Interruption {
    fn from(error: decode::Error) -> Self {
        match error {
            decode::Error::Mismatch => Interruption::Again,
            // What Xen does with an instruction that its emulator does not have.
            decode::Error::Unsupported => Interruption::INVALID_OPCODE,
        }
    }
}

impl From<lookaside::Error> for Interruption {
    fn from(error: lookaside::Error) -> Self {
        match error {
            lookaside::Error::Fault(fault) => fault.into(),
            lookaside::Error::Decode(error) => error.into(),
        }
    }
}

impl From<Status> for Interruption {
    fn from(status: Status) -> Self {
        Interruption::Unsupported {
            what: "the core refused a vCPU operation",
            word: status as u64,
        }
    }
}

type Handled = Result<(), Interruption>;

/// A virtual CPU.
pub struct Vcpu {
    index: u32,
    shared: &'static Shared,
    mailbox: &'static Mailbox,
    cap: Cap<cap::Vcpu>,
    page: StatePage,
    apic: LocalApic,
    cpuid: Cpuid,
    msrs: Msrs,
    lookaside: Lookaside<Word>,
    /// Operations by bytes that the CPU delivered.
    delivered: decode::Cache,
    activity: Activity,
    /// Groups of the page that are current.
    valid: u64,
    /// Groups that were changed since the last run.
    modified: u64,
    /// `deadline` as it stands in the page.
    deadline: u64,
    /// Host TSC at which the domain wants [`xen_abi::Domain::expire`], or never.
    xen_deadline: u64,
    /// The same in the domain's time, as the domain said it.
    xen_deadline_ns: Option<u64>,
    /// [`xen_abi::Domain::deadlines`] when it was asked.
    xen_deadlines: u64,
    /// A Xen upcall may be pending.
    upcall: bool,
    /// An NMI is pending.
    nmi: bool,
    /// Exception to inject, in the form of `State::inject`; 0 is none.
    exception: u64,
    /// What an emulation left of an interrupted delivery, to be delivered later.
    redeliver: u64,
    /// `window` as it stands in the page.
    window: u64,
    /// The last guest-physical address that faulted although memory is mapped there, and how
    /// often in a row.
    retry: (u64, u32),
    /// Other guests' VMMs have answered what the last hypercall asked, which is made again.
    answers: bool,
}

/// Executes CPUID on the CPU that this thread runs on.
fn host_cpuid(leaf: u32, subleaf: u32) -> cpuid::Leaf {
    let result = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    [result.eax, result.ebx, result.ecx, result.edx]
}

impl Vcpu {
    /// A vCPU in its power-up state; call on the thread that runs it. `apic_id` as in the MADT.
    pub fn new(
        index: u32,
        apic_id: u32,
        shared: &'static Shared,
        cap: Cap<cap::Vcpu>,
        invariant_tsc: bool,
    ) -> Result<Vcpu, Status> {
        let mailbox = shared.mailboxes.get(index as usize);
        let mailbox = mailbox.ok_or(Status::InvalidArgument)?;
        let config = cpuid::Config {
            apic_id,
            vcpus: shared.mailboxes.len() as u32,
            thread_bits: layout::apic_id(1).trailing_zeros(),
            invariant_tsc,
        };
        let cpuid = Cpuid::new(host_cpuid, config);
        let msrs = Msrs::new(&cpuid);
        let clock = Clock::new(shared.tsc_khz);
        let vcpu = Vcpu {
            index,
            shared,
            mailbox,
            cap,
            page: StatePage::map(cap)?,
            apic: LocalApic::new(apic_id, index == 0, clock),
            cpuid,
            msrs,
            lookaside: Lookaside::default(),
            delivered: decode::Cache::default(),
            activity: Activity::WaitStartup,
            valid: 0,
            modified: 0,
            deadline: 0,
            xen_deadline: FOREVER,
            xen_deadline_ns: None,
            xen_deadlines: u64::MAX,
            upcall: false,
            nmi: false,
            exception: 0,
            redeliver: 0,
            window: 0,
            retry: (0, 0),
            answers: false,
        };
        vcpu.publish_route();
        Ok(vcpu)
    }

    #[inline(always)]
    fn mailbox(&self) -> &'static Mailbox {
        self.mailbox
    }

    fn publish_route(&self) {
        self.mailbox
            .route
            .store(self.apic.route().to_word(), Ordering::SeqCst);
    }

    /// Runs until the domain stops.
    pub fn run(mut self) {
        self.set_deadline();
        loop {
            if self.mailbox().flags.load(Ordering::Acquire) != 0 {
                self.look_at_flags();
            }
            if self.activity != Activity::Running {
                if self.activity == Activity::Stopped {
                    return;
                }
                if !self.ends_halt() {
                    self.wait();
                    continue;
                }
            } else {
                self.deliver_events();
            }
            if self.modified != 0 {
                // A run that did not enter leaves what it was to load.
                let left = self.page.get(field!(modified));
                self.page.set(field!(modified), left | self.modified);
                self.modified = 0;
            }
            if let Err(status) = self.cap.run() {
                self.crash("vCPU not run", status as u64);
                continue;
            }
            self.valid = self.page.get(field!(valid));
            let exit = Exit::from_raw(self.page.get(field!(exit)));
            if let Err(interruption) = self.handle(exit) {
                self.interrupted(interruption);
            }
        }
    }

    fn rip(&self) -> u64 {
        self.page.get(field!(regs.rip))
    }

    fn crash(&mut self, what: &'static str, word: u64) {
        let (vcpu, rip) = (self.index, self.rip());
        self.shared.stop(Reason::Unsupported {
            vcpu,
            rip,
            what,
            word,
        });
    }

    #[cold]
    fn interrupted(&mut self, interruption: Interruption) {
        match interruption {
            Interruption::Again => {}
            Interruption::Exception { vector, error } => self.raise(vector, error),
            Interruption::Page { address, code } => match self.need(group::MISC) {
                Ok(()) => {
                    self.page.set(field!(cr2), address);
                    self.modified |= group::MISC;
                    self.raise(vector::PAGE_FAULT, code);
                }
                Err(status) => self.crash("vCPU state not fetched", status as u64),
            },
            Interruption::Unsupported { what, word } => self.crash(what, word),
        }
    }

    /// Brings groups of the page up to date.
    #[inline]
    fn need(&mut self, groups: u64) -> Result<(), Status> {
        let missing = groups & !self.valid;
        if missing == 0 {
            return Ok(());
        }
        // What was changed since the run is newer than what the core has.
        debug_assert!(self.modified & missing == 0);
        self.cap.fetch(missing)?;
        self.valid |= missing;
        Ok(())
    }

    /// Puts the nearest deadline into the page.
    fn set_deadline(&mut self) {
        let deadline = self.next_deadline();
        if deadline != self.deadline {
            self.deadline = deadline;
            self.page.set(field!(deadline), deadline);
        }
    }

    fn next_deadline(&self) -> u64 {
        self.apic
            .deadline()
            .map_or(self.xen_deadline, |apic| apic.min(self.xen_deadline))
    }

    /// Asks the domain for its next deadline again.
    fn refresh_xen_deadline(&mut self, domain: &xen_abi::Domain) {
        self.xen_deadlines = domain.deadlines();
        let next = domain.next_deadline(self.index);
        if next != self.xen_deadline_ns {
            self.xen_deadline_ns = next;
            self.xen_deadline = next.map_or(FOREVER, |ns| domain.tsc_at(ns));
            self.set_deadline();
        }
    }

    /// Fires what is due.
    fn expire(&mut self) {
        let now = time::now();
        self.apic.advance(now);
        if now >= self.xen_deadline {
            let shared = self.shared;
            let mut effects = Effects::new(shared, self.index, None);
            let mut domain = shared.domain.lock();
            domain.expire(self.index, &shared.ram, &mut effects);
            self.upcall |= effects.upcall;
            self.refresh_xen_deadline(&domain);
        }
        self.set_deadline();
    }

    /// Takes the flags and acts on them.
    #[cold]
    fn look_at_flags(&mut self) {
        let flags = self.mailbox().flags.swap(0, Ordering::SeqCst);
        if flags & flag::STOP != 0 {
            self.activity = Activity::Stopped;
            return;
        }
        if flags & flag::VECTORS != 0 {
            for vector in self.mailbox().take_vectors() {
                self.apic.request(vector, false);
            }
        }
        if flags & flag::UPCALL != 0 {
            self.upcall = true;
        }
        if flags & flag::NMI != 0 {
            self.nmi = true;
        }
        if flags & (flag::WAKE | flag::UPCALL) != 0 {
            let shared = self.shared;
            let domain = shared.domain.lock();
            if domain.deadlines() != self.xen_deadlines {
                self.refresh_xen_deadline(&domain);
            }
        }
        if flags & (flag::INIT | flag::STARTUP | flag::UP | flag::DOWN | flag::FLUSH) != 0 {
            self.look_at_power_flags(flags);
        }
    }

    /// The thread has nothing to run: waits for something that changes that.
    fn wait(&mut self) {
        let deadline = match self.activity {
            Activity::Halted | Activity::Blocked => {
                self.expire();
                if self.mailbox().flags.load(Ordering::Acquire) != 0 {
                    return;
                }
                if self.wakes() {
                    if self.activity == Activity::Blocked {
                        self.shared.domain.lock().unblock(self.index);
                    }
                    self.activity = Activity::Running;
                    return;
                }
                self.deadline
            }
            _ => FOREVER,
        };
        let halted = matches!(self.activity, Activity::Halted | Activity::Blocked);
        if halted {
            self.set_runstate(RunstateKind::Blocked);
        }
        match self.mailbox().wake.wait(deadline) {
            // Aborted: suspended here and resumed, when the guest was paused and goes on.
            Ok(_) | Err(Status::Timeout | Status::Cancelled | Status::Aborted) => {}
            Err(status) => self.crash("vCPU cannot wait", status as u64),
        }
        if halted {
            self.set_runstate(RunstateKind::Running);
        }
    }

    fn set_runstate(&self, kind: RunstateKind) {
        let shared = self.shared;
        let mut domain = shared.domain.lock();
        domain.set_runstate(self.index, kind, time::now(), &shared.ram);
    }

    /// Whether a halted or blocked vCPU goes on.
    fn wakes(&mut self) -> bool {
        if self.nmi || self.exception != 0 || self.apic.pending().is_some() {
            return true;
        }
        let shared = self.shared;
        if self.upcall {
            let domain = shared.domain.lock();
            if domain.pending_upcall(self.index, &shared.ram).is_some() {
                return true;
            }
            self.upcall = false;
        }
        self.activity == Activity::Blocked && !shared.domain.lock().is_blocked(self.index)
    }

    /// Queues an exception, combined with one whose delivery the exit interrupted.
    fn raise(&mut self, vector: u8, error: u32) {
        use x86_platform::event::{Combined, combine, exception};
        let delivering = self.page.get(field!(delivering));
        match combine(delivering, exception(vector, error)) {
            Combined::Inject(word) => {
                self.exception = word;
                if delivering & event::VALID != 0 && delivering & 7 << 8 != event::EXCEPTION {
                    self.redeliver = delivering;
                }
            }
            Combined::Shutdown => self.triple_fault(),
        }
    }

    /// The guest is at its end; what it looked like then is in the log.
    fn triple_fault(&mut self) {
        let (vcpu, rip) = (self.index, self.rip());
        let get = |field| self.page.get(field);
        log::info!(
            "vCPU {vcpu}: triple fault after exit {}, delivering {:#x}: rip {rip:x} rflags {:x} rsp {:x} \
             rbp {:x} rax {:x} rbx {:x} rcx {:x} rdx {:x} rsi {:x} rdi {:x}",
            get(field!(exit)),
            get(field!(delivering)),
            get(field!(regs.rflags)),
            get(field!(regs.rsp)),
            get(field!(regs.rbp)),
            get(field!(regs.rax)),
            get(field!(regs.rbx)),
            get(field!(regs.rcx)),
            get(field!(regs.rdx)),
            get(field!(regs.rsi)),
            get(field!(regs.rdi)),
        );
        self.shared.stop(Reason::TripleFault { vcpu, rip });
    }
}
