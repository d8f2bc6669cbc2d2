//! The state of one domain, its creation, and the dispatch of its hypercalls.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::access::{Caller, Reply};
use crate::call::{Mode, Next, Outcome, Registers, Width};
use crate::config::{Config, ConfigError};
use crate::env::{Env, ShutdownReason};
use crate::errno::Errno;
use crate::fifo::Fifo;
use crate::foreign::Foreign;
use crate::grant::frames::{GrantTable, Version, status_frames};
use crate::hvm::{PARAMETERS, initial_parameters};
use crate::memory::{GuestMemory, SpecialFrame};
use crate::ports::Ports;
use crate::sched::Watchdogs;
use crate::time::TscScale;
use crate::upcall::Callback;
use crate::vcpu::Vcpu;
use crate::{MAX_GRANT_FRAMES, MAX_VCPUS, PAGE_SIZE};

/// `DOMID_SELF`.
pub(crate) const DOMID_SELF: u16 = 0x7ff0;
/// Number of the domain that, to a guest, is the rest of the system: there is none, but the other ends of
/// its store and console are named so, and what it may not do to it fails as in Xen.
pub(crate) const SYSTEM: u16 = 0;

/// Hypercall numbers (`public/xen.h`) that an HVM domain's table has an entry for.
pub(crate) mod number {
    pub const PLATFORM_OP: u64 = 7;
    pub const MEMORY_OP: u64 = 12;
    pub const MULTICALL: u64 = 13;
    pub const SET_TIMER_OP: u64 = 15;
    pub const XEN_VERSION: u64 = 17;
    pub const CONSOLE_IO: u64 = 18;
    pub const GRANT_TABLE_OP: u64 = 20;
    pub const VM_ASSIST: u64 = 21;
    pub const VCPU_OP: u64 = 24;
    pub const MMUEXT_OP: u64 = 26;
    pub const SCHED_OP: u64 = 29;
    pub const EVENT_CHANNEL_OP: u64 = 32;
    pub const PHYSDEV_OP: u64 = 33;
    pub const HVM_OP: u64 = 34;
    pub const SYSCTL: u64 = 35;
    pub const DOMCTL: u64 = 36;
    pub const XENPMU_OP: u64 = 40;
    pub const DM_OP: u64 = 41;
    pub const HYPFS_OP: u64 = 42;
    pub const PAGING_DOMCTL_CONT: u64 = 49;
    /// No call has a higher one.
    pub const LAST: u64 = PAGING_DOMCTL_CONT;
}

/// One guest.
#[derive(Debug)]
pub struct Domain {
    pub(crate) config: Config,
    pub(crate) scale: TscScale,
    /// Layout of shared info, latched from the guest's mode.
    pub(crate) width: Width,
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) ports: Ports,
    /// Queues of events, if the guest asked for them; two levels otherwise.
    pub(crate) fifo: Option<Box<Fifo>>,
    /// vCPUs that block in `SCHEDOP_poll`.
    pub(crate) pollers: u32,
    pub(crate) parameters: [u64; PARAMETERS],
    pub(crate) callback: Callback,
    pub(crate) shared_info_gfn: Option<u64>,
    pub(crate) grants: GrantTable,
    /// Other domains' grants that this one uses.
    pub(crate) foreign: Foreign,
    pub(crate) watchdogs: Watchdogs,
    pub(crate) shutdown_code: Option<u8>,
    pub(crate) shut_down: bool,
    /// `VMASST_TYPE_runstate_update_flag`.
    pub(crate) runstate_update_flag: bool,
    /// How often deadlines changed.
    pub(crate) deadlines: u64,
    /// What is left to ask of a call that is to be made again.
    pub(crate) left: [u64; 6],
}

impl Domain {
    /// A domain whose vCPU 0 is up and whose others are down and not initialised. Writes shared
    /// info through `memory`, which must reach the special frames.
    pub fn new<M: GuestMemory>(config: Config, memory: &M) -> Result<Domain, ConfigError> {
        if config.vcpus == 0 || config.vcpus > MAX_VCPUS {
            return Err(ConfigError::Vcpus);
        }
        if config.grant_frames == 0 || config.grant_frames > MAX_GRANT_FRAMES {
            return Err(ConfigError::GrantFrames);
        }
        let scale = TscScale::new(config.tsc, config.tsc_at_start)?;
        let highest = Version::of(config.max_grant_version).ok_or(ConfigError::GrantVersion)?;
        let last = match highest {
            Version::V1 => SpecialFrame::GrantTable(config.grant_frames - 1),
            Version::V2 => SpecialFrame::GrantStatus(status_frames(config.grant_frames) - 1),
        }
        .address();
        let mut probe = [0; 1];
        for at in [last + PAGE_SIZE - 1, SpecialFrame::SharedInfo.address()] {
            memory
                .read(at, &mut probe)
                .map_err(|_| ConfigError::SpecialFrames)?;
        }
        let domain = Domain {
            scale,
            width: Width::Bits64,
            vcpus: (0..config.vcpus).map(Vcpu::new).collect(),
            ports: Ports::new(),
            fifo: None,
            pollers: 0,
            parameters: initial_parameters(&config),
            callback: Callback::None,
            shared_info_gfn: None,
            grants: GrantTable::new(config.grant_frames, highest),
            foreign: Foreign::default(),
            watchdogs: Watchdogs::default(),
            shutdown_code: None,
            shut_down: false,
            runstate_update_flag: false,
            deadlines: 0,
            left: [0; 6],
            config,
        };
        for vcpu in 0..domain.config.vcpus {
            domain.publish_time(vcpu, memory);
        }
        domain
            .publish_wallclock(memory)
            .map_err(|_| ConfigError::SpecialFrames)?;
        Ok(domain)
    }

    /// Answers one hypercall of `vcpu`.
    #[inline]
    pub fn hypercall<M: GuestMemory, E: Env>(
        &mut self,
        vcpu: u32,
        registers: &Registers,
        memory: &M,
        env: &mut E,
    ) -> Outcome {
        let Registers {
            mut number,
            arguments: [mut a, mut b, mut c, mut d, ..],
            mode,
            cpl,
            interrupts,
        } = *registers;
        let width = match mode {
            Mode::Bits64 => Width::Bits64,
            Mode::Real | Mode::Vm86 | Mode::Bits32 => {
                // A 32-bit caller's registers are 32 bits wide.
                for word in [&mut number, &mut a, &mut b, &mut c, &mut d] {
                    *word &= 0xffff_ffff;
                }
                Width::Bits32
            }
        };
        let permitted = match mode {
            Mode::Vm86 => false,
            Mode::Real => true,
            Mode::Bits32 | Mode::Bits64 => cpl == 0,
        };
        let mut caller = Caller {
            memory,
            env,
            vcpu,
            width,
            interrupts,
            next: Next::Continue,
        };
        let reply = if !permitted {
            Err(Errno::Perm)
        } else if vcpu >= self.config.vcpus {
            Err(Errno::Inval)
        } else if number == number::MULTICALL {
            self.multicall(&mut caller, a, b)
        } else {
            self.dispatch(&mut caller, number, [a, b, c, d])
        };
        Outcome {
            result: to_register(reply, width),
            next: caller.next,
        }
    }

    /// The call is to be made again with these arguments.
    pub(crate) fn restart<M, E>(&mut self, caller: &mut Caller<M, E>, arguments: [u64; 6]) {
        caller.next = Next::Restart;
        self.left = arguments;
    }

    /// After a hypercall with [`Next::Restart`] and before the next one: its arguments.
    #[must_use]
    pub fn arguments_left(&self) -> [u64; 6] {
        self.left
    }

    /// A hypercall from a list.
    #[inline(never)]
    pub(crate) fn dispatch_entry<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        number: u64,
        arguments: [u64; 6],
    ) -> Reply {
        let [a, b, c, d, ..] = arguments;
        self.dispatch(caller, number, [a, b, c, d])
    }

    /// Every hypercall but multicall, which must not nest. One `match`: what is absent here is
    /// absent from Xen's table for HVM domains. None has more than four arguments. Part of its
    /// callers, so that the frequent ones, which are parts of it, cost no frame of their own.
    #[inline(always)]
    fn dispatch<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        number: u64,
        [a, b, c, d]: [u64; 4],
    ) -> Reply {
        match number {
            number::EVENT_CHANNEL_OP => self.event_channel_op(caller, a as u32, b),
            number::SCHED_OP => self.sched_op(caller, a as u32, b),
            number::XEN_VERSION => self.xen_version(caller, a as u32, b),
            number::VCPU_OP => self.vcpu_op(caller, a as u32, b as u32, c),
            number::SET_TIMER_OP => self.set_timer_op(caller, a, b),
            number::MEMORY_OP => self.memory_op(caller, [a, b, c, d, 0, 0]),
            number::GRANT_TABLE_OP => self.grant_table_op(caller, [a, b, c, d, 0, 0]),
            number::HVM_OP => self.hvm_op(caller, a, b),
            number::CONSOLE_IO => self.console_io(caller, [a, b, c, d, 0, 0]),
            number::VM_ASSIST => self.vm_assist(a as u32, b as u32),
            // A domain without physical interrupts has none of these operations.
            number::PHYSDEV_OP => Err(Errno::NoSys),
            number::MMUEXT_OP => self.mmuext_op(d as u32),
            number::PLATFORM_OP => self.platform_op(caller, a),
            number::SYSCTL => self.sysctl(caller, a),
            number::DOMCTL => self.domctl(caller, a),
            number::DM_OP => self.dm_op(caller, a as u16, b as u32, c),
            // An HVM domain has a local APIC, so its PMU is not Xen's paravirtual one.
            number::XENPMU_OP => Err(Errno::OpNotSupp),
            number::HYPFS_OP => Err(Errno::Perm),
            number::PAGING_DOMCTL_CONT => self.paging_domctl_cont(caller, a),
            _ => Err(Errno::NoSys),
        }
    }

    /// A domain id that must be the caller's own: `Perm` for domain 0, as Xen's default policy
    /// refuses it, `Srch` for one that does not exist.
    pub(crate) fn require_self(&self, domid: u16) -> Result<(), Errno> {
        if domid == DOMID_SELF || domid == self.config.domid {
            Ok(())
        } else if domid == SYSTEM {
            Err(Errno::Perm)
        } else {
            Err(Errno::Srch)
        }
    }

    /// Bytes in an `unsigned long` of shared info's layout.
    pub(crate) fn word_of_shared_info(&self) -> u64 {
        match self.width {
            Width::Bits32 => 4,
            Width::Bits64 => 8,
        }
    }

    /// Shuts the domain down, once; the first code given counts.
    pub(crate) fn shut_down<E: Env>(&mut self, code: u8, env: &mut E) {
        let code = *self.shutdown_code.get_or_insert(code);
        if !self.shut_down {
            self.shut_down = true;
            env.shutdown(ShutdownReason::from_code(code));
        }
    }
}

/// Errors as Xen returns them: negative, in the width of the caller.
pub(crate) fn to_register(reply: Reply, width: Width) -> u64 {
    let value = reply.unwrap_or_else(Errno::as_return) as u64;
    match width {
        Width::Bits32 => value & 0xffff_ffff,
        Width::Bits64 => value,
    }
}
