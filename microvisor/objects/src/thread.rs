//! Threads: host execution contexts. A thread takes two frames: this structure, then the message
//! buffer that it shares with its component.

use crate::arena::{Memo, Object};
use crate::cap_space::CapSpace;
use crate::endpoint::{Endpoint, Reply};
use crate::id::{FrameKind, PhysAddr, Ref};
use crate::notification::Notification;
use crate::sched::SchedContext;
use crate::slot::Slot;
use crate::timer::Links;
use crate::translate::AddressSpace;
use crate::vcpu::Vcpu;
use microvisor_abi::Rights;
use microvisor_abi::thread::Registers;

/// Port ranges that one thread may be granted.
pub const PORT_RANGES: usize = 4;

/// What a thread is doing. Links of the thread belong to the queue that the state names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Not to be run until resumed.
    Stopped = 0,
    /// On its CPU's run queue.
    Ready,
    /// The current thread of its CPU.
    Running,
    /// Waiting for its budget to be replenished.
    Throttled,
    /// In an endpoint's queue, with a message.
    Sending,
    /// Waiting for the answer that a reply object will bring.
    AwaitingReply,
    /// In an endpoint's queue, for a message (or only for its bound notification).
    Receiving,
    /// In a notification's queue.
    Waiting,
    /// Stopped by a fault.
    Faulted,
}

/// A range of ports that user code of a thread may access; empty when `count` is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// How many.
    pub count: u16,
}

/// A thread.
#[derive(Debug)]
#[repr(C)]
pub struct Thread {
    /// User registers; entry stubs save into and restore from here, so it comes first.
    pub regs: Registers,
    /// Ports it may use.
    pub ports: [PortRange; PORT_RANGES],
    /// The vCPU it is running, between `VcpuRun` and its exit. Only its own CPU writes this.
    pub vcpu: Ref<Vcpu>,
    pub(crate) state: State,
    /// Its deadline is in its CPU's heap.
    pub(crate) timed: bool,
    /// While receiving: no endpoint, only the bound notification.
    pub(crate) bound_only: bool,
    pub(crate) cpu: u8,
    pub(crate) priority: u8,
    pub(crate) fault_vector: u8,
    /// It has time, and as much as it likes.
    pub(crate) unlimited: bool,
    /// One of `ports` is not empty.
    pub(crate) ported: bool,
    pub(crate) space: Ref<AddressSpace>,
    pub(crate) caps: Ref<CapSpace>,
    pub(crate) sched: Ref<SchedContext>,
    /// Neighbours in the queue that `state` names.
    pub(crate) queue_prev: Ref<Thread>,
    pub(crate) queue_next: Ref<Thread>,
    pub(crate) deadline: u64,
    pub(crate) timer: Links,
    /// The object it is blocked on. While awaiting a reply: where it called, and that endpoint's
    /// epoch then.
    pub(crate) endpoint: Ref<Endpoint>,
    pub(crate) epoch: u32,
    pub(crate) notification: Ref<Notification>,
    pub(crate) reply: Ref<Reply>,
    /// While sending: the badge of the capability it called through.
    pub(crate) badge: u64,
    /// While sending or awaiting: the rights of the capability it called through. With `GRANT` it
    /// may send capabilities, and receive some with the answer.
    pub(crate) called_by: Rights,
    /// While awaiting a reply whose server was lost.
    pub(crate) bound: Ref<Notification>,
    /// What it received last, without waiting for it, were bits of that: a message has its turn.
    pub(crate) heard: bool,
    pub(crate) fault_note: Ref<Notification>,
    pub(crate) fault_bits: u64,
    pub(crate) fault_code: u64,
    pub(crate) fault_address: u64,
    /// `Report::refused`.
    pub(crate) refused: [u64; 3],
    /// What is left of its turn, when something more urgent ended it early; else 0.
    pub(crate) turn_left: u64,
    /// Where its last call by the fast path went, and by which capability.
    pub(crate) called: Memo<Endpoint, Slot>,
    /// Where it last received by the fast path, and what holds the caller.
    pub(crate) served: Memo<Endpoint, Reply>,
}

// SAFETY: `repr(C)`, plain words, pointers and `repr(u8)` enums and bools with a zero variant, well
// below 4096 bytes; the only object with this kind.
unsafe impl Object for Thread {
    const KIND: FrameKind = FrameKind::Thread;
}
const _: () = assert!(core::mem::size_of::<Thread>() <= 4096);
const _: () = assert!(core::mem::offset_of!(Thread, regs) == 0);

/// Frames that a thread takes.
pub const THREAD_FRAMES: u64 = 2;

impl Thread {
    /// What it is doing, for tests and reports.
    pub fn doing(&self) -> State {
        self.state
    }

    /// After a change of `ports`.
    pub(crate) fn count_ports(&mut self) {
        self.ported = self.ports.iter().any(|range| range.count != 0);
    }

    /// Its message was taken. Every path that takes a message ends here, so that the caller hears
    /// of a restart.
    #[inline]
    pub(crate) fn await_reply(&mut self, endpoint: Ref<Endpoint>, epoch: u32) {
        self.state = State::AwaitingReply;
        self.endpoint = endpoint;
        self.epoch = epoch;
    }
}

impl Ref<Thread> {
    /// The thread's message buffer.
    #[inline]
    pub const fn buffer(self) -> PhysAddr {
        self.addr().add(4096)
    }
}

impl<M: crate::machine::Machine> crate::kernel::Kernel<M> {
    /// Root table of the space a thread runs in; `None` when it is gone.
    #[inline]
    pub fn space_root(&self, thread: Ref<Thread>) -> Option<PhysAddr> {
        let t = self.arena.get(thread)?;
        self.arena.get(t.space).map(|s| s.root)
    }

    /// The thread that a slot of another thread's space names.
    pub fn thread_in(&self, of: Ref<Thread>, slot: u32) -> Option<Ref<Thread>> {
        use microvisor_abi::{Kind, Rights};
        self.object(of, slot as u64, Kind::Thread, Rights::NONE)
            .ok()
    }
}
