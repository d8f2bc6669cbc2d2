//! `hvm_op` (`public/hvm/hvm_op.h`, `params.h`): parameters with Xen's rules for a domain that
//! acts on itself, the upcall vector, and the few operations that are not a toolstack's.

use crate::access::{Caller, Fields, Reply};
use crate::call::Next;
use crate::config::Config;
use crate::domain::Domain;
use crate::env::Env;
use crate::errno::Errno;
use crate::memory::GuestMemory;
use crate::upcall::Callback;

/// `HVMOP_*`.
pub(crate) mod op {
    pub const SET_PARAM: u64 = 0;
    pub const GET_PARAM: u64 = 1;
    pub const FLUSH_TLBS: u64 = 5;
    pub const PAGETABLE_DYING: u64 = 9;
    pub const GET_TIME: u64 = 10;
    pub const XENTRACE: u64 = 11;
    pub const GET_MEM_TYPE: u64 = 15;
    pub const SET_EVTCHN_UPCALL_VECTOR: u64 = 23;
    pub const GUEST_REQUEST_VM_EVENT: u64 = 24;
    pub const ALTP2M: u64 = 25;
}

/// `HVM_NR_PARAMS` of Xen 4.17.
pub(crate) const PARAMETERS: usize = 39;

/// `HVM_PARAM_*`.
pub(crate) mod parameter {
    pub const CALLBACK_IRQ: u32 = 0;
    pub const STORE_PFN: u32 = 1;
    pub const STORE_EVTCHN: u32 = 2;
    pub const PAE_ENABLED: u32 = 4;
    pub const DM_DOMAIN: u32 = 13;
    pub const VM86_TSS: u32 = 15;
    pub const CONSOLE_PFN: u32 = 17;
    pub const CONSOLE_EVTCHN: u32 = 18;
    pub const ACPI_IOPORTS_LOCATION: u32 = 19;
    pub const MEMORY_EVENT_CR0: u32 = 20;
    pub const BUFIOREQ_EVTCHN: u32 = 26;
    pub const MEMORY_EVENT_MSR: u32 = 30;
    pub const VM_GENERATION_ID_ADDR: u32 = 34;
    pub const ALTP2M: u32 = 35;
    pub const X87_FIP_WIDTH: u32 = 36;
    pub const VM86_TSS_SIZED: u32 = 37;
}

/// Bytes in a 32-bit TSS, the least that `VM86_TSS_SIZED` accepts.
const TSS32_SIZE: u64 = 104;
/// Base structure, interrupt redirection map, I/O map and the byte past it: the most of use.
const TSS32_FULL: u64 = TSS32_SIZE + 0x100 / 8 + 0x10000 / 8 + 1;

/// `SHUTDOWN_crash`.
const CODE_CRASH: u8 = 3;

/// Values that the toolstack of a Xen guest would have set.
pub(crate) fn initial_parameters(config: &Config) -> [u64; PARAMETERS] {
    let mut parameters = [0; PARAMETERS];
    parameters[parameter::STORE_PFN as usize] = config.store_gfn;
    parameters[parameter::CONSOLE_PFN as usize] = config.console_gfn;
    parameters
}

fn is_deprecated(index: u32) -> bool {
    matches!(
        index,
        parameter::PAE_ENABLED | parameter::DM_DOMAIN | parameter::MEMORY_EVENT_CR0
            ..=parameter::BUFIOREQ_EVTCHN | parameter::MEMORY_EVENT_MSR
    )
}

fn may_set(index: u32) -> Result<(), Errno> {
    match index {
        parameter::CALLBACK_IRQ
        | parameter::VM86_TSS
        | parameter::VM86_TSS_SIZED
        | parameter::ACPI_IOPORTS_LOCATION
        | parameter::VM_GENERATION_ID_ADDR
        | parameter::STORE_EVTCHN
        | parameter::CONSOLE_EVTCHN
        | parameter::X87_FIP_WIDTH => Ok(()),
        _ if is_deprecated(index) => Err(Errno::Inval),
        _ => Err(Errno::Perm),
    }
}

fn may_get(index: u32) -> Result<(), Errno> {
    match index {
        parameter::STORE_PFN | parameter::CONSOLE_PFN | parameter::ALTP2M => Ok(()),
        _ => may_set(index),
    }
}

impl Domain {
    #[inline(never)]
    pub(crate) fn hvm_op<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        command: u64,
        argument: u64,
    ) -> Reply {
        match command {
            op::SET_PARAM => {
                let bytes: [u8; 16] = caller.fetch(argument)?;
                let index = checked_index(&bytes)?;
                self.require_hvm(bytes.u16_at(0), Errno::Inval)?;
                self.set_parameter(caller, index, bytes.u64_at(8))
            }
            op::GET_PARAM => {
                let bytes: [u8; 16] = caller.fetch(argument)?;
                let index = checked_index(&bytes)?;
                self.require_hvm(bytes.u16_at(0), Errno::Inval)?;
                may_get(index)?;
                let value = match index {
                    parameter::VM86_TSS => self.parameter(parameter::VM86_TSS_SIZED) & 0xffff_ffff,
                    _ => self.parameter(index),
                };
                caller.write(argument.wrapping_add(8), &value.to_le_bytes())?;
                Ok(0)
            }
            op::SET_EVTCHN_UPCALL_VECTOR => {
                let bytes: [u8; 8] = caller.fetch(argument)?;
                let vector = bytes.u8_at(4);
                if vector < 0x10 {
                    return Err(Errno::Inval);
                }
                let vcpu = bytes.u32_at(0);
                self.vcpus
                    .get_mut(vcpu as usize)
                    .ok_or(Errno::NoEnt)?
                    .upcall_vector = vector;
                self.assert_upcall(vcpu, caller.env);
                Ok(0)
            }
            op::FLUSH_TLBS if argument == 0 => {
                let all = u128::MAX >> (128 - self.config.vcpus.clamp(1, 128));
                caller.env.flush_tlb(all);
                Ok(0)
            }
            op::FLUSH_TLBS => Err(Errno::Inval),
            op::PAGETABLE_DYING => {
                // A hint for shadow paging, which this is not.
                let bytes: [u8; 16] = caller.fetch(argument)?;
                self.require_hvm(bytes.u16_at(0), Errno::OpNotSupp)?;
                Err(Errno::Inval)
            }
            op::GET_TIME => {
                let now = self.system_time(caller.env.tsc());
                caller.write(argument, &now.to_le_bytes())?;
                Ok(0)
            }
            op::XENTRACE => {
                // event (16 bits), extra_bytes (16 bits), extra[7] of 4 bytes. Nobody collects
                // the records, as in a Xen whose trace buffers are off.
                let bytes: [u8; 32] = caller.fetch(argument)?;
                if bytes.u16_at(2) > 28 || bytes.u16_at(0) & 0xf000 != 0 {
                    return Err(Errno::Inval);
                }
                Ok(0)
            }
            op::GET_MEM_TYPE => {
                // domid, mem_type, two pads, pfn. HVMMEM_ram_rw is 0, HVMMEM_mmio_dm is 2.
                let bytes: [u8; 16] = caller.fetch(argument)?;
                self.require_self(bytes.u16_at(0))?;
                let pfn = bytes.u64_at(8);
                let mapped = self.page_at(caller.env, pfn).is_some();
                let kind: u16 = if mapped { 0 } else { 2 };
                caller.write(argument.wrapping_add(2), &kind.to_le_bytes())?;
                Ok(0)
            }
            // No monitor listens.
            op::GUEST_REQUEST_VM_EVENT if argument == 0 => Ok(0),
            op::GUEST_REQUEST_VM_EVENT => Err(Errno::Inval),
            op::ALTP2M => Err(Errno::OpNotSupp),
            _ => Err(Errno::NoSys),
        }
    }

    /// The VMM tells the guest the port of its console or store, as a toolstack would.
    pub fn set_service_ports(&mut self, store: u32, console: u32) {
        self.store_parameter(parameter::STORE_EVTCHN, u64::from(store));
        self.store_parameter(parameter::CONSOLE_EVTCHN, u64::from(console));
    }

    /// Xen crashes a domain that gives itself a TSS that cannot be one.
    fn crash<M: GuestMemory, E: Env>(&mut self, caller: &mut Caller<M, E>) -> Reply {
        self.shut_down(CODE_CRASH, caller.env);
        caller.next = Next::Stop;
        Err(Errno::Inval)
    }

    /// As [`Domain::require_self`], where Xen asks first whether the domain is HVM; domain 0 is not.
    fn require_hvm(&self, domid: u16, other: Errno) -> Result<(), Errno> {
        match self.require_self(domid) {
            Err(Errno::Perm) => Err(other),
            answer => answer,
        }
    }

    fn parameter(&self, index: u32) -> u64 {
        self.parameters.get(index as usize).copied().unwrap_or(0)
    }

    fn store_parameter(&mut self, index: u32, value: u64) {
        if let Some(slot) = self.parameters.get_mut(index as usize) {
            *slot = value;
        }
    }

    fn set_parameter<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        index: u32,
        value: u64,
    ) -> Reply {
        may_set(index)?;
        match index {
            parameter::CALLBACK_IRQ => {
                self.callback = Callback::decode(value, self.config.callback_lines, self.callback);
                for vcpu in 0..self.config.vcpus {
                    let pending = self.upcall_is_pending(vcpu, caller.memory);
                    if pending && self.is_up(vcpu) {
                        self.assert_upcall(vcpu, caller.env);
                    }
                }
                self.latch_width(caller.width, caller.memory);
            }
            parameter::X87_FIP_WIDTH if !matches!(value, 0 | 4 | 8) => return Err(Errno::Inval),
            // An HVM guest's PM timer; there is none.
            parameter::ACPI_IOPORTS_LOCATION => return Err(Errno::NoDev),
            parameter::VM86_TSS => {
                if value > u64::from(u32::MAX) {
                    return self.crash(caller);
                }
                let sized = if value == 0 { 0 } else { 128 << 32 | value };
                self.store_parameter(parameter::VM86_TSS_SIZED, sized);
                return Ok(0);
            }
            parameter::VM86_TSS_SIZED => {
                let size = value >> 32;
                if size < TSS32_SIZE {
                    return self.crash(caller);
                }
                let sized = size.min(TSS32_FULL) << 32 | (value & 0xffff_ffff);
                self.store_parameter(index, sized);
                return Ok(0);
            }
            _ => {}
        }
        self.store_parameter(index, value);
        Ok(0)
    }
}

fn checked_index(bytes: &[u8; 16]) -> Result<u32, Errno> {
    let index = bytes.u32_at(4);
    if (index as usize) < PARAMETERS {
        Ok(index)
    } else {
        Err(Errno::Inval)
    }
}
