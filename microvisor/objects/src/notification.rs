//! Notifications: a word of sticky bits, with waiters, or bound to a thread or a vCPU.

use crate::arena::Object;
use crate::id::{FrameKind, Ref};
use crate::kernel::{Done, Kernel};
use crate::machine::Machine;
use crate::thread::{State, Thread};
use crate::vcpu::Vcpu;
use core::sync::atomic::{AtomicU64, Ordering};
use microvisor_abi::message::MessageInfo;
use microvisor_abi::{FOREVER, NOW, Status};

/// A word of sticky bits.
#[derive(Debug)]
#[repr(C)]
pub struct Notification {
    /// Read without the lock by a CPU that is about to enter a guest.
    pub(crate) bits: AtomicU64,
    pub(crate) head: Ref<Thread>,
    pub(crate) tail: Ref<Thread>,
    pub(crate) thread: Ref<Thread>,
    pub(crate) vcpu: Ref<Vcpu>,
}

// SAFETY: `repr(C)`, words, valid when zero, small; the only object of this kind.
unsafe impl Object for Notification {
    const KIND: FrameKind = FrameKind::Notification;
}

impl Notification {
    /// True if a bit is set.
    #[inline]
    pub(crate) fn is_set(&self) -> bool {
        self.bits.load(Ordering::SeqCst) != 0
    }
}

impl<M: Machine> Kernel<M> {
    /// Sets bits and wakes whoever waits for them.
    pub(crate) fn signal(&mut self, notification: Ref<Notification>, bits: u64) {
        let Some(n) = self.arena.get(notification) else {
            return;
        };
        match cfg!(planted = "bit-overwritten") {
            true => n.bits.store(bits, Ordering::SeqCst),
            false => _ = n.bits.fetch_or(bits, Ordering::SeqCst),
        }
        let (head, thread, vcpu) = (n.head, n.thread, n.vcpu);
        if bits == 0 {
            return;
        }
        if self.arena.alive(head) {
            let taken = self.take_bits(notification).unwrap_or(0);
            self.leave_notification(head);
            self.stop_timer(head);
            if let Some(t) = self.arena.get_mut(head) {
                t.regs.rax = Status::Ok as u64;
                t.regs.rdi = taken;
            }
            self.make_ready(head);
            return;
        }
        if self
            .arena
            .get(thread)
            .is_some_and(|t| t.state == State::Receiving)
        {
            let taken = self.take_bits(notification).unwrap_or(0);
            self.leave_endpoint(thread);
            self.stop_timer(thread);
            self.deliver_bits(thread, taken);
            self.make_ready(thread);
            return;
        }
        self.interrupt_vcpu(vcpu);
    }

    /// Bits that were set before a thread or vCPU was bound reach it as if they were set now: it may
    /// wait for them already.
    pub(crate) fn tell_pending(&mut self, notification: Ref<Notification>) {
        let bits = self.arena.get(notification).map(|n| &n.bits);
        let bits = bits.map_or(0, |bits| bits.load(Ordering::SeqCst));
        self.signal(notification, bits);
    }

    /// All bits, if any is set; they are cleared.
    pub(crate) fn take_bits(&mut self, notification: Ref<Notification>) -> Option<u64> {
        let bits = self.arena.get(notification)?.bits.swap(0, Ordering::SeqCst);
        (bits != 0).then_some(bits)
    }

    /// Writes a bound notification's bits as a message.
    pub(crate) fn deliver_bits(&mut self, thread: Ref<Thread>, bits: u64) {
        if let Some(t) = self.arena.get_mut(thread) {
            t.regs.rax = Status::Ok as u64;
            t.regs.rdi = 0;
            t.regs.rsi = MessageInfo::NOTIFICATION.0;
            t.regs.rdx = bits;
        }
    }

    /// `Wait`.
    pub(crate) fn wait(
        &mut self,
        thread: Ref<Thread>,
        notification: Ref<Notification>,
        deadline: u64,
    ) -> Result<Done, Status> {
        let n = self.arena.get(notification).ok_or(Status::InvalidCap)?;
        let tail = n.tail;
        if let Some(bits) = self.take_bits(notification) {
            if let Some(t) = self.arena.get_mut(thread) {
                t.regs.rdi = bits;
            }
            return Ok(Done::Status(Status::Ok));
        }
        if deadline != FOREVER && deadline <= self.machine.now() {
            if deadline != NOW {
                self.give_way();
            }
            return Err(Status::Timeout);
        }
        if let Some(last) = self.arena.get_mut(tail) {
            last.queue_next = thread;
        }
        if let Some(t) = self.arena.get_mut(thread) {
            t.state = State::Waiting;
            t.notification = notification;
            t.queue_prev = tail;
            t.queue_next = Ref::NULL;
        }
        if let Some(n) = self.arena.get_mut(notification) {
            n.tail = thread;
            if n.head.is_null() {
                n.head = thread;
            }
        }
        if deadline != FOREVER {
            self.start_timer(thread, deadline);
        }
        Ok(Done::Blocked)
    }

    /// Takes a waiting thread out of its notification's queue.
    pub(crate) fn leave_notification(&mut self, thread: Ref<Thread>) {
        let Some(t) = self.arena.get_mut(thread) else {
            return;
        };
        let (notification, prev, next) = (t.notification, t.queue_prev, t.queue_next);
        t.notification = Ref::NULL;
        t.queue_prev = Ref::NULL;
        t.queue_next = Ref::NULL;
        if let Some(p) = self.arena.get_mut(prev) {
            p.queue_next = next;
        }
        if let Some(n) = self.arena.get_mut(next) {
            n.queue_prev = prev;
        }
        if let Some(n) = self.arena.get_mut(notification) {
            if n.head == thread {
                n.head = next;
            }
            if n.tail == thread {
                n.tail = prev;
            }
        }
    }

    /// Wakes threads that wait for a notification, at most `limit`; true when none is left.
    pub(crate) fn drain_notification(
        &mut self,
        notification: Ref<Notification>,
        limit: usize,
    ) -> bool {
        for _ in 0..limit {
            let Some(n) = self.arena.get(notification) else {
                return true;
            };
            if n.head.is_null() {
                return true;
            }
            self.unblock(n.head, Status::Aborted);
        }
        self.arena
            .get(notification)
            .is_none_or(|n| n.head.is_null())
    }
}
