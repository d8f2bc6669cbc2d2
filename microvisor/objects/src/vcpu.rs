//! Virtual CPUs, as objects: who may run one, what ends a run. The hardware's part is behind
//! `Machine` and in the core's `virt` module.
//!
//! Runs take no lock. What makes that sound: a vCPU is destroyed in the order *tag changed, every
//! CPU quiesced, memory freed*, and a CPU in the middle of a run counts as not quiesced until it
//! has left the guest and checked the tag again.

use crate::arena::{Arena, Object};
use crate::id::{FrameKind, PhysAddr, Ref, VcpuArea};
use crate::kernel::Kernel;
use crate::machine::Machine;
use crate::notification::Notification;
use crate::thread::Thread;
use crate::translate::AddressSpace;
use core::sync::atomic::{AtomicU32, Ordering};
use microvisor_abi::message::PAYLOAD_MAX;
use microvisor_abi::vcpu::{Op, group};
use microvisor_abi::{Kind, Rights, SpaceKind, Status};

/// A virtual CPU. Its frame is followed by the state page and the hardware area.
#[derive(Debug)]
#[repr(C)]
pub struct Vcpu {
    /// CPU that runs it, plus one; 0 when none does.
    pub(crate) running: AtomicU32,
    /// A sticky request to return to the VMM.
    pub(crate) poked: AtomicU32,
    pub(crate) space: Ref<AddressSpace>,
    pub(crate) notification: Ref<Notification>,
}

// SAFETY: `repr(C)`, atomics and words, valid when zero, small; the only object of this kind.
unsafe impl Object for Vcpu {
    const KIND: FrameKind = FrameKind::Vcpu;
}

impl Ref<Vcpu> {
    /// The state page that the VMM maps.
    pub const fn state_page(self) -> PhysAddr {
        self.addr().add(4096)
    }

    /// State page and hardware area.
    pub const fn area(self) -> VcpuArea {
        VcpuArea {
            state: self.addr().add(4096),
            area: self.addr().add(8192),
        }
    }
}

impl Arena {
    /// Starts a run, without the kernel lock: looks the capability up in the thread's space and
    /// claims the vCPU for this CPU.
    #[inline]
    pub fn vcpu_begin(
        &self,
        thread: Ref<Thread>,
        slot: u32,
        cpu: usize,
    ) -> Result<Ref<Vcpu>, Status> {
        let t = self.get(thread).ok_or(Status::InvalidCap)?;
        let slot = self.slot_in(t.caps, slot)?;
        let (kind, rights, object) = self.peek(slot);
        if kind != Kind::Vcpu as u8 {
            return Err(if kind == 0 {
                Status::InvalidCap
            } else {
                Status::WrongKind
            });
        }
        if !rights.has(Rights::USE) {
            return Err(Status::NoRight);
        }
        let vcpu = Ref::<Vcpu>::from_raw(object);
        let v = self.get(vcpu).ok_or(Status::InvalidCap)?;
        self.entered_by(v, cpu)?;
        v.running
            .compare_exchange(0, cpu as u32 + 1, Ordering::SeqCst, Ordering::Relaxed)
            .map_err(|_| Status::Busy)?;
        Ok(vcpu)
    }

    /// True if the run must not enter the guest: poked, or bits are pending. Clears the poke.
    #[inline]
    pub fn vcpu_wanted(&self, vcpu: Ref<Vcpu>) -> bool {
        let Some(v) = self.get(vcpu) else { return true };
        if !self.alive(v.space) {
            return true;
        }
        if v.poked.load(Ordering::SeqCst) != 0 {
            v.poked.store(0, Ordering::SeqCst);
            return true;
        }
        self.get(v.notification)
            .is_some_and(|n| n.bits.load(Ordering::SeqCst) != 0)
    }

    /// Epoch of the guest tables the vCPU runs under, for deciding whether to flush at entry.
    #[inline]
    pub fn vcpu_epoch(&self, vcpu: Ref<Vcpu>) -> u64 {
        self.get(vcpu)
            .and_then(|v| self.get(v.space))
            .map_or(0, |space| space.epoch.load(Ordering::SeqCst))
    }

    /// A run goes on on this CPU: its thread may have been moved here meanwhile.
    #[inline]
    pub fn vcpu_continue(&self, vcpu: Ref<Vcpu>, cpu: usize) {
        if let Some(v) = self.get(vcpu) {
            v.running.store(cpu as u32 + 1, Ordering::SeqCst);
            // A space that is gone is noticed before the guest is entered.
            let _ = self.entered_by(v, cpu);
        }
    }

    /// Notes that this CPU runs vCPUs of the space, for those who take translations away.
    #[inline(always)]
    fn entered_by(&self, vcpu: &Vcpu, cpu: usize) -> Result<(), Status> {
        let space = self.get(vcpu.space).ok_or(Status::NotBound)?;
        if space.cpus.load(Ordering::Relaxed) >> cpu & 1 == 0 {
            space.cpus.fetch_or(1 << cpu, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Ends a run.
    #[inline]
    pub fn vcpu_end(&self, vcpu: Ref<Vcpu>) {
        if let Some(v) = self.get(vcpu) {
            v.running.store(0, Ordering::SeqCst);
        }
    }
}

impl<M: Machine> Kernel<M> {
    /// Makes the CPU that runs this vCPU, if any, look at what is pending.
    pub(crate) fn interrupt_vcpu(&mut self, vcpu: Ref<Vcpu>) {
        let Some(v) = self.arena.get(vcpu) else {
            return;
        };
        let running = v.running.load(Ordering::SeqCst) as usize;
        if running != 0 && running - 1 != self.machine.cpu() {
            self.machine.kick(running - 1);
        }
    }

    /// `VcpuControl`.
    pub(crate) fn vcpu_control(
        &mut self,
        thread: Ref<Thread>,
        vcpu: Ref<Vcpu>,
        op: u64,
        a: u64,
        b: u64,
    ) -> Result<u64, Status> {
        let op = Op::from_raw(op).ok_or(Status::InvalidArgument)?;
        let v = self.arena.get(vcpu).ok_or(Status::InvalidCap)?;
        if op == Op::Poke {
            v.poked.store(1, Ordering::SeqCst);
            self.interrupt_vcpu(vcpu);
            return Ok(0);
        }
        if v.running.load(Ordering::SeqCst) != 0 {
            return Err(Status::Busy);
        }
        match op {
            Op::Configure => {
                if self.arena.alive(v.space) {
                    return Err(Status::Busy);
                }
                let space: Ref<AddressSpace> =
                    self.object(thread, a, Kind::AddressSpace, Rights::USE)?;
                let s = self.arena.get(space).ok_or(Status::InvalidCap)?;
                if s.kind() != SpaceKind::Guest {
                    return Err(Status::WrongKind);
                }
                let root = s.root;
                if let Some(v) = self.arena.get_mut(vcpu) {
                    v.space = space;
                }
                self.machine.vcpu_attach(vcpu.area(), root);
                Ok(0)
            }
            Op::Fetch => {
                if a & !group::ALL != 0 {
                    return Err(Status::InvalidArgument);
                }
                self.machine.vcpu_fetch(vcpu.area(), a);
                Ok(0)
            }
            Op::GetExtended => {
                let buffer = self.arena.bytes_mut(thread.buffer(), PAYLOAD_MAX);
                Ok(self
                    .machine
                    .vcpu_get_extended(vcpu.area(), a as usize, buffer) as u64)
            }
            Op::SetExtended => {
                if b > PAYLOAD_MAX as u64 {
                    return Err(Status::InvalidArgument);
                }
                let mut copy = [0u8; PAYLOAD_MAX];
                copy.copy_from_slice(self.arena.bytes_mut(thread.buffer(), PAYLOAD_MAX));
                let from = copy.get(..b as usize).ok_or(Status::InvalidArgument)?;
                self.machine
                    .vcpu_set_extended(vcpu.area(), a as usize, from)
                    .map(|n| n as u64)
            }
            Op::Poke => Ok(0),
        }
    }
}
