//! Virtual CPUs, as objects: who may run one, what ends a run. The hardware's part is behind
//! `Machine` and in the core's `virt` module.
//!
//! Runs take no lock. What makes that sound: a vCPU is destroyed in the order *tag changed, every
//! CPU quiesced, memory freed*, and a CPU in the middle of a run counts as not quiesced until it
//! has left the guest and checked the tag again.

use crate::arena::{Arena, Object};
use crate::id::{FrameKind, PhysAddr, Ref, SharedRef, VcpuArea};
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
    /// CPU that runs it, plus one; 0 when none does; [`HELD`] while a call works on it.
    pub(crate) running: AtomicU32,
    /// A sticky request to return to the VMM.
    pub(crate) poked: AtomicU32,
    pub(crate) space: SharedRef<AddressSpace>,
    pub(crate) notification: SharedRef<Notification>,
}

/// `Vcpu::running` while the holder of the kernel lock works on the vCPU. Runs take no lock, so this
/// is what keeps one from beginning with what is half changed.
const HELD: u32 = u32::MAX;

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
    /// The vCPU that a slot of the thread's space names, looked up without the kernel lock. What it
    /// finds holds until this CPU answers a flush: whoever removes or moves a vCPU's capability,
    /// or gives a thread another space, quiesces every CPU.
    #[inline]
    pub fn vcpu_find(
        &self,
        thread: Ref<Thread>,
        slot: u64,
        cpu: usize,
    ) -> Result<(Ref<Vcpu>, Run<'_>), Status> {
        let slot = u32::try_from(slot).map_err(|_| Status::InvalidCap)?;
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
        let vcpu = Ref::from_raw(object);
        if !self.alive(vcpu) {
            return Err(Status::InvalidCap);
        }
        let run = self.vcpu_run(vcpu, cpu).ok_or(Status::NotBound)?;
        Ok((vcpu, run))
    }

    /// The vCPU with its space, to be run on this CPU. Notes that this CPU runs vCPUs of the space,
    /// for those who take translations away. `None` if either is gone.
    #[inline(always)]
    pub fn vcpu_run(&self, vcpu: Ref<Vcpu>, cpu: usize) -> Option<Run<'_>> {
        let vcpu = self.get(vcpu)?;
        let space = self.get(vcpu.space.get())?;
        if space.cpus.load(Ordering::Relaxed) >> cpu & 1 == 0 {
            space.cpus.fetch_or(1 << cpu, Ordering::SeqCst);
        }
        Some(Run {
            arena: self,
            vcpu,
            space,
        })
    }

    /// Ends a run of a vCPU that may be gone.
    #[inline]
    pub fn vcpu_end(&self, vcpu: Ref<Vcpu>) {
        if let Some(v) = self.get(vcpu) {
            v.running.store(0, Ordering::SeqCst);
        }
    }
}

/// A vCPU that is being run, or about to be. Made without the lock, so it must not be kept when this
/// CPU answers a flush.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    arena: &'a Arena,
    vcpu: &'a Vcpu,
    space: &'a AddressSpace,
}

impl Run<'_> {
    /// Begins. `Busy` if another thread runs it.
    #[inline(always)]
    pub fn begin(&self, cpu: usize) -> Result<(), Status> {
        let running = &self.vcpu.running;
        match running.compare_exchange(0, cpu as u32 + 1, Ordering::SeqCst, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            Err(_) => Err(Status::Busy),
        }
    }

    /// Goes on, on this CPU: the thread may have been moved here meanwhile.
    #[inline(always)]
    pub fn go_on(&self, cpu: usize) {
        self.vcpu.running.store(cpu as u32 + 1, Ordering::SeqCst);
    }

    /// Epoch of the guest tables it runs under, for deciding whether to flush at entry.
    #[inline(always)]
    pub fn epoch(&self) -> u64 {
        self.space.epoch.load(Ordering::SeqCst)
    }

    /// True if the guest must not be entered: poked, or bits are pending. Clears the poke.
    #[inline(always)]
    pub fn wanted(&self) -> bool {
        if self.vcpu.poked.load(Ordering::SeqCst) != 0 {
            self.vcpu.poked.store(0, Ordering::SeqCst);
            return true;
        }
        let notification = self.arena.get(self.vcpu.notification.get());
        notification.is_some_and(|n| n.bits.load(Ordering::SeqCst) != 0)
    }

    /// Ends.
    #[inline(always)]
    pub fn end(&self) {
        self.vcpu.running.store(0, Ordering::SeqCst);
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
            if cfg!(not(planted = "poke-lost")) {
                self.interrupt_vcpu(vcpu);
            }
            return Ok(0);
        }
        let running = &v.running;
        let held = running.compare_exchange(0, HELD, Ordering::SeqCst, Ordering::Relaxed);
        if held.is_err() {
            return Err(Status::Busy);
        }
        let done = self.work_on(thread, vcpu, op, a, b);
        self.arena.vcpu_end(vcpu);
        done
    }

    /// An operation on a vCPU that nobody runs meanwhile.
    fn work_on(
        &mut self,
        thread: Ref<Thread>,
        vcpu: Ref<Vcpu>,
        op: Op,
        a: u64,
        b: u64,
    ) -> Result<u64, Status> {
        let v = self.arena.get(vcpu).ok_or(Status::InvalidCap)?;
        match op {
            Op::Configure => {
                if self.arena.alive(v.space.get()) {
                    return Err(Status::Busy);
                }
                let space: Ref<AddressSpace> =
                    self.object(thread, a, Kind::AddressSpace, Rights::USE)?;
                let s = self.arena.get(space).ok_or(Status::InvalidCap)?;
                if s.kind() != SpaceKind::Guest {
                    return Err(Status::WrongKind);
                }
                self.machine.vcpu_attach(vcpu.area(), s.root);
                v.space.set(space);
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
