//! The state of one domain, and the entry points that the VMM calls.

use crate::call::{Next, Outcome, Registers};
use crate::config::{Config, ConfigError};
use crate::env::{Env, LegacyLine, ServiceId};
use crate::errno::Errno;
use crate::memory::GuestMemory;

/// One guest.
#[derive(Debug)]
pub struct Domain {
    config: Config,
}

impl Domain {
    /// A domain whose vCPU 0 is up and whose others are down. Writes shared info.
    pub fn new<M: GuestMemory>(config: Config, _memory: &M) -> Result<Domain, ConfigError> {
        Ok(Domain { config })
    }

    /// Answers one hypercall of `vcpu`.
    pub fn hypercall<M: GuestMemory, E: Env>(
        &mut self,
        _vcpu: u32,
        _registers: &Registers,
        _memory: &M,
        _env: &mut E,
    ) -> Outcome {
        Outcome {
            result: Errno::NoSys.as_return() as u64,
            next: Next::Continue,
        }
    }

    /// Allocates a port of the guest that leads to a service of the VMM's side.
    pub fn alloc_service_port(&mut self, _service: ServiceId) -> Result<u32, Errno> {
        Err(Errno::NoSys)
    }

    /// Makes a service's port pending in the guest.
    pub fn notify_guest<M: GuestMemory, E: Env>(
        &mut self,
        _port: u32,
        _memory: &M,
        _env: &mut E,
    ) -> Result<(), Errno> {
        Err(Errno::NoSys)
    }

    /// The vector to inject now past the local APIC, if an upcall is pending.
    pub fn pending_upcall<M: GuestMemory>(&self, _vcpu: u32, _memory: &M) -> Option<u8> {
        None
    }

    /// The line of the callback and its level, if the callback is one.
    pub fn callback_line<M: GuestMemory>(&self, _memory: &M) -> Option<(LegacyLine, bool)> {
        None
    }

    /// Whether the vCPU still waits for what [`Next::Block`] began.
    pub fn is_blocked(&self, _vcpu: u32) -> bool {
        false
    }

    /// System time, in ns, of a guest TSC.
    pub fn system_time(&self, _tsc: u64) -> u64 {
        0
    }

    /// The guest TSC at which system time will be `ns`, rounded up.
    pub fn tsc_at(&self, _ns: u64) -> u64 {
        0
    }

    /// Earliest deadline of the vCPU's timers and polls, in ns of system time.
    pub fn next_deadline(&self, _vcpu: u32) -> Option<u64> {
        None
    }

    /// Fires what is due of the vCPU's timers and polls.
    pub fn expire<M: GuestMemory, E: Env>(&mut self, _vcpu: u32, _memory: &M, _env: &mut E) {}

    /// Xen's CPUID leaves: EAX, EBX, ECX, EDX; `None` outside 0x40000000..=0x400000ff.
    pub fn cpuid(&self, _vcpu: u32, _leaf: u32, _subleaf: u32) -> Option<[u32; 4]> {
        let _ = &self.config;
        None
    }
}
