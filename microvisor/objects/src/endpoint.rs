//! Endpoints and replies: synchronous call and answer.
//!
//! A caller's message stays in its own registers and buffer until a receiver takes it, so nothing
//! is copied twice and a queue costs no memory. One queue serves both directions: an endpoint has
//! waiting senders or waiting receivers, never both.

use crate::arena::Object;
use crate::id::{FrameKind, Ref};
use crate::kernel::{Done, Kernel};
use crate::machine::Machine;
use crate::notification::Notification;
use crate::slot::SlotRef;
use crate::thread::{State, Thread};
use microvisor_abi::message::{CAPS_MAX, MessageInfo, RECEIVE_SLOTS, SEND_SLOTS};
use microvisor_abi::thread::Registers;
use microvisor_abi::{FOREVER, Kind, Rights, Status};

/// Messages whose capabilities a receiver could not take that one `Receive` turns away before it
/// asks to be called again.
const REFUSALS: usize = 16;

/// Where calls go.
#[derive(Debug)]
#[repr(C)]
pub struct Endpoint {
    pub(crate) head: Ref<Thread>,
    pub(crate) tail: Ref<Thread>,
    /// The queue holds receivers, not senders.
    pub(crate) receivers: bool,
    /// How often the server behind it was replaced.
    pub(crate) epoch: u32,
}

impl Endpoint {
    /// True if nobody waits.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_null()
    }

    /// The only thread that waited does so no more.
    #[inline]
    pub(crate) fn empty(&mut self) {
        self.head = Ref::NULL;
        self.tail = Ref::NULL;
    }

    /// Makes a thread that is in no queue the only receiver.
    #[inline]
    pub(crate) fn only_receiver(&mut self, thread: Ref<Thread>) {
        self.head = thread;
        self.tail = thread;
        self.receivers = true;
    }
}

// SAFETY: `repr(C)`, words and a bool, valid when zero, small; the only object of this kind.
unsafe impl Object for Endpoint {
    const KIND: FrameKind = FrameKind::Endpoint;
}

/// Where one answer goes.
#[derive(Debug)]
#[repr(C)]
pub struct Reply {
    /// The thread that waits for this answer.
    pub(crate) caller: Ref<Thread>,
    /// A receiver that will use this object for the next message.
    pub(crate) receiver: Ref<Thread>,
}

// SAFETY: `repr(C)`, words, valid when zero, small; the only object of this kind.
unsafe impl Object for Reply {
    const KIND: FrameKind = FrameKind::Reply;
}

/// The registers that carry a message's words.
#[inline]
fn words(r: &Registers) -> [u64; 4] {
    [r.rdx, r.r10, r.r8, r.r9]
}

#[inline]
fn deliver_words(to: &mut Registers, badge: u64, info: MessageInfo, words: [u64; 4]) {
    to.rax = Status::Ok as u64;
    to.rdi = badge;
    to.rsi = info.0;
    [to.rdx, to.r10, to.r8, to.r9] = words;
}

impl<M: Machine> Kernel<M> {
    fn enqueue(&mut self, endpoint: Ref<Endpoint>, thread: Ref<Thread>, receivers: bool) {
        let Some(e) = self.arena.get_mut(endpoint) else {
            return;
        };
        let tail = e.tail;
        e.tail = thread;
        e.receivers = receivers;
        if e.head.is_null() {
            e.head = thread;
        }
        if let Some(last) = self.arena.get_mut(tail) {
            last.queue_next = thread;
        }
        if let Some(t) = self.arena.get_mut(thread) {
            t.queue_prev = tail;
            t.queue_next = Ref::NULL;
        }
    }

    fn dequeue(&mut self, endpoint: Ref<Endpoint>, thread: Ref<Thread>) {
        let Some(t) = self.arena.get_mut(thread) else {
            return;
        };
        let (prev, next) = (t.queue_prev, t.queue_next);
        t.queue_prev = Ref::NULL;
        t.queue_next = Ref::NULL;
        if let Some(p) = self.arena.get_mut(prev) {
            p.queue_next = next;
        }
        if let Some(n) = self.arena.get_mut(next) {
            n.queue_prev = prev;
        }
        if let Some(e) = self.arena.get_mut(endpoint) {
            if e.head == thread {
                e.head = next;
            }
            if e.tail == thread {
                e.tail = prev;
            }
        }
    }

    /// Takes a thread that sends or receives out of the endpoint's queue.
    pub(crate) fn leave_endpoint(&mut self, thread: Ref<Thread>) {
        let Some(t) = self.arena.get_mut(thread) else {
            return;
        };
        let (endpoint, reply) = (t.endpoint, t.reply);
        let queued = !t.bound_only;
        t.endpoint = Ref::NULL;
        t.bound_only = false;
        if t.state == State::Receiving {
            t.reply = Ref::NULL;
            if let Some(r) = self.arena.get_mut(reply) {
                r.receiver = Ref::NULL;
            }
        }
        if queued {
            self.dequeue(endpoint, thread);
        }
    }

    /// The caller stops waiting for its answer.
    pub(crate) fn leave_reply(&mut self, thread: Ref<Thread>) {
        let Some(t) = self.arena.get_mut(thread) else {
            return;
        };
        let reply = t.reply;
        t.reply = Ref::NULL;
        if let Some(r) = self.arena.get_mut(reply)
            && r.caller == thread
            && cfg!(not(planted = "cancelled-call-answered"))
        {
            r.caller = Ref::NULL;
        }
    }

    /// Copies payload and capabilities of a message. All or nothing: `CapsRefused` when a
    /// capability cannot be placed, and then nothing was changed.
    fn transfer(
        &mut self,
        from: Ref<Thread>,
        to: Ref<Thread>,
        info: MessageInfo,
    ) -> Result<(), Status> {
        let caps = info.caps();
        if caps > 0 {
            self.transfer_caps(from, to, caps)?;
        }
        self.arena.copy(from.buffer(), to.buffer(), info.bytes());
        Ok(())
    }

    fn transfer_caps(
        &mut self,
        from: Ref<Thread>,
        to: Ref<Thread>,
        count: usize,
    ) -> Result<(), Status> {
        let mut moves = [(SlotRef::NONE, SlotRef::NONE); CAPS_MAX];
        for index in 0..count {
            let at = index as u64 * 4;
            let source: u32 = self.arena.read(from.buffer().add(SEND_SLOTS as u64 + at));
            let target: u32 = self.arena.read(to.buffer().add(RECEIVE_SLOTS as u64 + at));
            let source = self.slot_of(from, source)?;
            let target = self.slot_of(to, target).map_err(|_| Status::CapsRefused)?;
            let seen = moves.iter().take(index).any(|m| m.1 == target);
            if self.arena.slot(source).is_empty() {
                return Err(Status::InvalidCap);
            }
            if matches!(self.arena.slot(source).kind(), Kind::Memory | Kind::Tables) {
                // There is only one name for these; `derive` would refuse it half-way.
                return Err(Status::WrongKind);
            }
            let occupied = !self.arena.slot(target).is_empty();
            if seen || occupied && cfg!(not(planted = "slot-overwritten")) {
                return Err(Status::CapsRefused);
            }
            if self.arena.slot(source).depth == u16::MAX {
                return Err(Status::TooDeep);
            }
            if let Some(pair) = moves.get_mut(index) {
                *pair = (source, target);
            }
        }
        for &(source, target) in moves.iter().take(count) {
            // Cannot fail: checked above, and inserting a child deepens nothing that is listed.
            self.derive(source, target, Rights::ALL)?;
        }
        Ok(())
    }

    /// `Call`.
    pub(crate) fn call(
        &mut self,
        caller: Ref<Thread>,
        endpoint: Ref<Endpoint>,
        badge: u64,
        called_by: Rights,
        info: MessageInfo,
    ) -> Result<Done, Status> {
        if !info.valid() {
            return Err(Status::InvalidArgument);
        }
        if info.caps() > 0 && !called_by.has(Rights::GRANT) {
            return Err(Status::NoRight);
        }
        let e = self.arena.get(endpoint).ok_or(Status::InvalidCap)?;
        let receiver = if e.receivers { e.head } else { Ref::NULL };
        if receiver.is_null() {
            let t = self.arena.get_mut(caller).ok_or(Status::InvalidCap)?;
            t.state = State::Sending;
            t.endpoint = endpoint;
            t.bound_only = false;
            t.badge = badge;
            t.called_by = called_by;
            self.enqueue(endpoint, caller, false);
            return Ok(Done::Blocked);
        }
        let epoch = e.epoch;
        self.transfer(caller, receiver, info)?;
        let t = self.arena.get_mut(caller).ok_or(Status::InvalidCap)?;
        t.await_reply(endpoint, epoch);
        t.called_by = called_by;
        let message = words(&t.regs);
        self.hand_over(caller, receiver, endpoint, badge, info, message);
        self.switch_to(receiver);
        Ok(Done::Blocked)
    }

    /// The receiver leaves the queue with the message and holds the caller in its reply object.
    fn hand_over(
        &mut self,
        caller: Ref<Thread>,
        receiver: Ref<Thread>,
        endpoint: Ref<Endpoint>,
        badge: u64,
        info: MessageInfo,
        message: [u64; 4],
    ) {
        self.dequeue(endpoint, receiver);
        self.stop_timer(receiver);
        let Some(r) = self.arena.get_mut(receiver) else {
            return;
        };
        let reply = r.reply;
        r.reply = Ref::NULL;
        r.endpoint = Ref::NULL;
        deliver_words(&mut r.regs, badge, info, message);
        if let Some(object) = self.arena.get_mut(reply) {
            object.caller = match cfg!(planted = "reply-to-another") {
                true => receiver,
                false => caller,
            };
            object.receiver = Ref::NULL;
        }
        if let Some(t) = self.arena.get_mut(caller) {
            t.reply = reply;
        }
    }

    /// `Receive`. A null `reply` waits for the bound notification only.
    pub(crate) fn receive(
        &mut self,
        thread: Ref<Thread>,
        endpoint: Ref<Endpoint>,
        reply: Ref<Reply>,
        deadline: u64,
    ) -> Result<Done, Status> {
        let t = self.arena.get(thread).ok_or(Status::InvalidCap)?;
        let (bound, heard) = (t.bound, t.heard);
        if reply.is_null() && !self.arena.alive(bound) {
            return Err(Status::NotBound);
        }
        if let Some(r) = self.arena.get(reply)
            && (self.arena.alive(r.caller) || self.arena.alive(r.receiver))
        {
            return Err(Status::Busy);
        }
        // Turn by turn, so that neither signals without end keep callers waiting, nor calls signals.
        if !heard && self.hear(thread, bound) {
            return Ok(Done::Written);
        }
        let mut refused = 0;
        while !reply.is_null() {
            let e = self.arena.get(endpoint).ok_or(Status::InvalidCap)?;
            let sender = e.head;
            if e.receivers || sender.is_null() {
                break;
            }
            if self.take_message(thread, endpoint, reply, sender) {
                return Ok(Done::Written);
            }
            refused += 1;
            if refused == REFUSALS {
                return Err(Status::Again);
            }
        }
        if self.hear(thread, bound) {
            return Ok(Done::Written);
        }
        self.block_receiver(thread, endpoint, reply, deadline)
    }

    /// Gives `thread` the bits of its notification, if there are any.
    fn hear(&mut self, thread: Ref<Thread>, bound: Ref<Notification>) -> bool {
        let Some(bits) = self.take_bits(bound) else {
            return false;
        };
        self.deliver_bits(thread, bits);
        if let Some(t) = self.arena.get_mut(thread) {
            t.heard = true;
        }
        true
    }

    /// Gives the first sender's message to `thread`; false if it had to be turned away.
    fn take_message(
        &mut self,
        thread: Ref<Thread>,
        endpoint: Ref<Endpoint>,
        reply: Ref<Reply>,
        sender: Ref<Thread>,
    ) -> bool {
        let Some(s) = self.arena.get(sender) else {
            return false;
        };
        let (info, badge, message) = (MessageInfo(s.regs.rsi), s.badge, words(&s.regs));
        if let Err(status) = self.transfer(sender, thread, info) {
            self.unblock(sender, status);
            return false;
        }
        self.dequeue(endpoint, sender);
        let epoch = self.arena.get(endpoint).map_or(0, |e| e.epoch);
        if let Some(s) = self.arena.get_mut(sender) {
            s.await_reply(endpoint, epoch);
            s.reply = reply;
        }
        if let Some(r) = self.arena.get_mut(reply) {
            r.caller = sender;
        }
        if let Some(t) = self.arena.get_mut(thread) {
            t.heard = false;
            deliver_words(&mut t.regs, badge, info, message);
        }
        true
    }

    fn block_receiver(
        &mut self,
        thread: Ref<Thread>,
        endpoint: Ref<Endpoint>,
        reply: Ref<Reply>,
        deadline: u64,
    ) -> Result<Done, Status> {
        if deadline != FOREVER && deadline <= self.machine.now() {
            return Err(Status::Timeout);
        }
        let t = self.arena.get_mut(thread).ok_or(Status::InvalidCap)?;
        t.state = State::Receiving;
        t.endpoint = endpoint;
        t.reply = reply;
        t.bound_only = reply.is_null();
        if let Some(r) = self.arena.get_mut(reply) {
            r.receiver = thread;
            self.enqueue(endpoint, thread, true);
        }
        if deadline != FOREVER {
            self.start_timer(thread, deadline);
        }
        Ok(Done::Blocked)
    }

    /// `Reply`: answers the caller that the object holds. The caller is not made ready yet: it is
    /// returned for the scheduler to place.
    pub(crate) fn answer(
        &mut self,
        thread: Ref<Thread>,
        reply: Ref<Reply>,
        info: MessageInfo,
        message: [u64; 4],
    ) -> Result<Ref<Thread>, Status> {
        if !info.valid() {
            return Err(Status::InvalidArgument);
        }
        let caller = self.arena.get(reply).ok_or(Status::InvalidCap)?.caller;
        let c = self.arena.get(caller).ok_or(Status::NoCaller)?;
        if info.caps() > 0 && !c.called_by.has(Rights::GRANT) {
            return Err(Status::NoRight);
        }
        self.transfer(thread, caller, info)?;
        if let Some(r) = self.arena.get_mut(reply)
            && cfg!(not(planted = "reply-usable-twice"))
        {
            r.caller = Ref::NULL;
        }
        if let Some(c) = self.arena.get_mut(caller) {
            c.reply = Ref::NULL;
            deliver_words(&mut c.regs, 0, info, message);
        }
        Ok(caller)
    }

    /// `Bind` with `Role::Server`: whoever took messages from this endpoint answers no more. Senders
    /// that wait in the queue were seen by nobody; the next server takes them.
    pub(crate) fn replace_server(&mut self, endpoint: Ref<Endpoint>) -> Result<(), Status> {
        let e = self.arena.get_mut(endpoint).ok_or(Status::InvalidCap)?;
        e.epoch = e.epoch.wrapping_add(1);
        Ok(())
    }

    /// A reply object is about to go. Its caller hears whether calling again makes sense.
    pub(crate) fn lose_reply(&mut self, reply: Ref<Reply>) {
        let caller = self.arena.get(reply).map_or(Ref::NULL, |r| r.caller);
        let replaced = self.arena.get(caller).is_some_and(|c| {
            let endpoint = self.arena.get(c.endpoint);
            endpoint.is_some_and(|e| e.epoch != c.epoch)
        });
        if replaced {
            self.unblock(caller, Status::Restarted);
        }
        self.abort_reply(reply, Status::Aborted);
    }

    /// Drops the caller that a reply object holds, telling it why.
    pub(crate) fn abort_reply(&mut self, reply: Ref<Reply>, status: Status) {
        let Some(r) = self.arena.get(reply) else {
            return;
        };
        let (caller, receiver) = (r.caller, r.receiver);
        self.unblock(caller, status);
        self.unblock(receiver, status);
    }

    /// Wakes threads that wait at an endpoint, at most `limit`; true when none is left.
    pub(crate) fn drain_endpoint(&mut self, endpoint: Ref<Endpoint>, limit: usize) -> bool {
        for _ in 0..limit {
            let Some(e) = self.arena.get(endpoint) else {
                return true;
            };
            if e.head.is_null() {
                return true;
            }
            self.unblock(e.head, Status::Aborted);
        }
        self.arena.get(endpoint).is_none_or(|e| e.head.is_null())
    }
}
