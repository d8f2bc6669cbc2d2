//! Communication: messages through endpoints, answers through replies, bits through notifications.

use crate::lookup::{Checked, require};
use crate::state::*;
use microvisor_abi::message::{RECEIVE_SLOTS, SEND_SLOTS};
use microvisor_abi::{FOREVER, Kind, MessageInfo, NOW, Rights, Status};

/// How a call that may block ended.
pub(crate) enum Over {
    /// With its results in the thread's registers.
    Done,
    /// Not yet: whoever wakes the thread writes its results.
    Blocked,
}

impl Thread {
    /// In a call that somebody else ends.
    pub fn is_blocked(&self) -> bool {
        matches!(
            self.doing,
            Doing::Sending { .. }
                | Doing::Awaiting { .. }
                | Doing::Receiving { .. }
                | Doing::Waiting { .. }
        )
    }

    /// Slot number `index` of a list in the message buffer.
    fn listed(&self, list: usize, index: usize) -> u64 {
        let byte =
            |at: usize| u64::from(self.buffer.get(list + index * 4 + at).copied().unwrap_or(0));
        (0..4).map(|at| byte(at) << (at * 8)).sum()
    }

    /// Replaces the beginning of the message buffer.
    pub fn write_buffer(&mut self, at: usize, bytes: &[u8]) {
        let length = self.buffer.len().max(at + bytes.len());
        self.buffer.resize(length, 0);
        self.buffer[at..at + bytes.len()].copy_from_slice(bytes);
        let used = self
            .buffer
            .iter()
            .rposition(|b| *b != 0)
            .map_or(0, |n| n + 1);
        self.buffer.truncate(used);
    }

    fn deliver(&mut self, badge: u64, info: u64, message: [u64; 4]) {
        let [w0, w1, w2, w3] = message;
        self.rax = Status::Ok as u64;
        self.words = [badge, info, w0, w1, w2, w3];
    }

    /// Bits of a bound notification arrive as a message; `w1..w3` stay.
    fn deliver_bits(&mut self, bits: u64) {
        self.rax = Status::Ok as u64;
        self.words[..3].copy_from_slice(&[0, MessageInfo::NOTIFICATION.0, bits]);
    }
}

impl State {
    /// A blocked thread leaves where it waits.
    pub(crate) fn leave(&mut self, thread: Frame) {
        match self.thread(thread).doing {
            Doing::Sending { endpoint, .. } => self.leave_endpoint(endpoint, thread),
            Doing::Receiving {
                at: Some((endpoint, reply)),
            } => {
                self.leave_endpoint(endpoint, thread);
                if let Some(reply) = self.replies.get_mut(&reply) {
                    reply.receiver = None;
                }
            }
            Doing::Awaiting { reply, .. } => {
                if let Some(reply) = self.replies.get_mut(&reply) {
                    reply.caller = None;
                }
            }
            Doing::Waiting { notification } => {
                if let Some(notification) = self.notifications.get_mut(&notification) {
                    notification.queue.retain(|t| *t != thread);
                }
            }
            _ => {}
        }
    }

    fn leave_endpoint(&mut self, endpoint: Frame, thread: Frame) {
        if let Some(endpoint) = self.endpoints.get_mut(&endpoint) {
            endpoint.queue.retain(|t| *t != thread);
            endpoint.receivers &= !endpoint.queue.is_empty();
        }
    }

    /// A message's payload and capabilities go from one thread to another: all or nothing. Each
    /// capability becomes a child of the sender's, with the same rights.
    /// - `InvalidCap`: the sender listed an empty slot.
    /// - `WrongKind`: `Memory` and `Tables` have only one name.
    /// - `CapsRefused`: the receiver has no empty slot ready for each.
    /// - `TooDeep`.
    fn transfer(&mut self, from: Frame, to: Frame, info: MessageInfo) -> Checked<()> {
        let mut moves: Vec<(Place, Place, Cap)> = Vec::new();
        for index in 0..info.caps() {
            let (sender, receiver) = (self.thread(from), self.thread(to));
            let source = self.slot_of(sender.caps, sender.listed(SEND_SLOTS, index))?;
            let target = self
                .slot_of(receiver.caps, receiver.listed(RECEIVE_SLOTS, index))
                .map_err(|_| Status::CapsRefused)?;
            require(self.caps.contains_key(&source), Status::InvalidCap)?;
            // What the sender did wrong is said before what the receiver did.
            let child = self.child_of(source)?;
            let taken = moves.iter().any(|(_, other, _)| *other == target);
            require(
                !taken && !self.caps.contains_key(&target),
                Status::CapsRefused,
            )?;
            self.may_have_child(source)?;
            moves.push((source, target, child));
        }
        for (source, target, cap) in moves {
            self.insert(source, target, cap);
        }
        if from != to {
            let mut payload = self.thread(from).buffer.clone();
            payload.resize(info.bytes(), 0);
            self.thread_mut(to).write_buffer(0, &payload);
        }
        Ok(())
    }

    /// `Call(endpoint, info, w0..w3)`: blocks until the answer, which arrives in the same registers.
    ///
    /// A waiting receiver gets the message at once; otherwise it waits in the caller's registers and
    /// buffer, behind those that came before.
    /// - `InvalidArgument`: `info` is not a message.
    /// - `NoRight`: capabilities, without `GRANT`.
    /// - what [`State::transfer`] says: nothing was sent.
    /// - later: `Aborted` (endpoint or reply was destroyed), `Restarted` (so was the reply, and the
    ///   server had been replaced since), `Cancelled`.
    pub(crate) fn call(&mut self, cpu: usize, me: Frame, a: [u64; 6]) -> Checked<Over> {
        let place = self.cap_of(me, a[0], Kind::Endpoint, Rights::CALL)?;
        let (cap, info) = (self.at(place), MessageInfo(a[1]));
        let (badge, grant) = (cap.badge(), cap.allows(Rights::GRANT));
        require(info.valid(), Status::InvalidArgument)?;
        require(info.caps() == 0 || grant, Status::NoRight)?;
        let endpoint = cap.object().ok_or(Status::InvalidCap)?;
        let at = &self.endpoints[&endpoint];
        let epoch = at.epoch;
        let receiver = at.queue.first().copied().filter(|_| at.receivers);
        let Some(receiver) = receiver else {
            self.thread_mut(me).doing = Doing::Sending {
                endpoint,
                badge,
                grant,
            };
            if let Some(endpoint) = self.endpoints.get_mut(&endpoint) {
                endpoint.queue.push(me);
            }
            return Ok(Over::Blocked);
        };
        self.transfer(me, receiver, info)?;
        let Doing::Receiving {
            at: Some((_, reply)),
        } = self.thread(receiver).doing
        else {
            return Err(Status::InvalidCap);
        };
        self.leave(receiver);
        self.stop_timer(receiver);
        self.hold(me, endpoint, epoch, reply, grant);
        let message = [a[2], a[3], a[4], a[5]];
        self.thread_mut(receiver).deliver(badge, a[1], message);
        self.switch_to(cpu, receiver);
        Ok(Over::Blocked)
    }

    /// The reply object holds the caller whose message was taken.
    fn hold(&mut self, caller: Frame, endpoint: Frame, epoch: u32, reply: Frame, grant: bool) {
        self.thread_mut(caller).doing = Doing::Awaiting {
            endpoint: Some(endpoint),
            epoch,
            reply,
            grant,
        };
        if let Some(reply) = self.replies.get_mut(&reply) {
            reply.caller = Some(caller);
        }
    }

    /// `Receive(endpoint, reply, deadline)`.
    ///
    /// Bits of the bound notification come first, unless they did the last time: then the message that
    /// has waited longest, if there is one. A message
    /// whose capabilities this thread cannot take is turned away: its sender hears why. With `reply`
    /// 0, only bits are waited for.
    /// - `NotBound`: no reply object, and no notification is bound.
    /// - `Busy`: the reply object holds a caller, or is promised to another receiver.
    /// - `Timeout`: the deadline passed, now or later.
    /// - `Again`: many messages were turned away.
    /// - later: `Aborted` (endpoint or reply was destroyed), `Cancelled`.
    pub(crate) fn receive(&mut self, me: Frame, a: [u64; 6]) -> Checked<Over> {
        let endpoint = self.object(me, a[0], Kind::Endpoint, Rights::RECEIVE)?;
        let reply = self.optional(me, a[1], Kind::Reply)?;
        self.receive_at(me, endpoint, reply, a[2])
    }

    fn receive_at(
        &mut self,
        me: Frame,
        endpoint: Frame,
        reply: Option<Frame>,
        deadline: u64,
    ) -> Checked<Over> {
        let bound = self.thread(me).bound;
        require(reply.is_some() || bound.is_some(), Status::NotBound)?;
        if let Some(reply) = reply {
            let used = &self.replies[&reply];
            let free = used.caller.is_none() && used.receiver.is_none();
            require(free, Status::Busy)?;
        }
        // Turn by turn, so that neither signals without end keep callers waiting, nor calls signals.
        if !self.thread(me).heard && self.hear(me, bound) {
            return Ok(Over::Done);
        }
        if let Some(reply) = reply {
            loop {
                let at = &self.endpoints[&endpoint];
                let Some(&sender) = at.queue.first().filter(|_| !at.receivers) else {
                    break;
                };
                if self.take_message(me, endpoint, reply, sender) {
                    return Ok(Over::Done);
                }
            }
        }
        if self.hear(me, bound) {
            return Ok(Over::Done);
        }
        self.require_time_left(deadline)?;
        self.thread_mut(me).doing = Doing::Receiving {
            at: reply.map(|reply| (endpoint, reply)),
        };
        if let Some(reply) = reply.and_then(|reply| self.replies.get_mut(&reply)) {
            reply.receiver = Some(me);
            if let Some(endpoint) = self.endpoints.get_mut(&endpoint) {
                endpoint.queue.push(me);
                endpoint.receivers = true;
            }
        }
        self.wait_until(me, deadline);
        Ok(Over::Blocked)
    }

    /// Gives a thread the bits of its notification, if there are any.
    fn hear(&mut self, me: Frame, bound: Option<Frame>) -> bool {
        let bits = bound.and_then(|bound| self.take_bits(bound));
        if let Some(bits) = bits {
            self.thread_mut(me).deliver_bits(bits);
            self.thread_mut(me).heard = true;
        }
        bits.is_some()
    }

    fn take_message(&mut self, me: Frame, endpoint: Frame, reply: Frame, sender: Frame) -> bool {
        let [_, info, w0, w1, w2, w3] = self.thread(sender).words;
        let Doing::Sending { badge, grant, .. } = self.thread(sender).doing else {
            return false;
        };
        if let Err(status) = self.transfer(sender, me, MessageInfo(info)) {
            self.unblock(sender, status);
            return false;
        }
        let epoch = self.endpoints[&endpoint].epoch;
        self.leave(sender);
        self.hold(sender, endpoint, epoch, reply, grant);
        self.thread_mut(me).heard = false;
        self.thread_mut(me).deliver(badge, info, [w0, w1, w2, w3]);
        true
    }

    fn require_time_left(&self, deadline: u64) -> Checked<()> {
        require(deadline == FOREVER || deadline > self.now, Status::Timeout)
    }

    fn wait_until(&mut self, me: Frame, deadline: u64) {
        if deadline != FOREVER {
            self.start_timer(me, deadline);
        }
    }

    /// `Reply(reply, info, w0..w3)`: the caller that the object holds gets the answer and goes on.
    /// - `InvalidArgument`: `info` is not a message.
    /// - `NoCaller`: it holds none: never called, answered already, or the caller gave up.
    /// - `NoRight`: capabilities, and the caller's capability had no `GRANT`.
    /// - what [`State::transfer`] says: nothing was sent, the caller still waits.
    pub(crate) fn reply(&mut self, me: Frame, a: [u64; 6]) -> Checked<()> {
        let reply = self.object(me, a[0], Kind::Reply, Rights::USE)?;
        let caller = self.answer(me, reply, a)?;
        self.make_ready(caller, false);
        Ok(())
    }

    fn answer(&mut self, me: Frame, reply: Frame, a: [u64; 6]) -> Checked<Frame> {
        let info = MessageInfo(a[1]);
        require(info.valid(), Status::InvalidArgument)?;
        let caller = self.replies[&reply].caller.ok_or(Status::NoCaller)?;
        let may = matches!(
            self.thread(caller).doing,
            Doing::Awaiting { grant: true, .. }
        );
        require(info.caps() == 0 || may, Status::NoRight)?;
        self.transfer(me, caller, info)?;
        self.leave(caller);
        self.thread_mut(caller)
            .deliver(0, a[1], [a[2], a[3], a[4], a[5]]);
        Ok(caller)
    }

    /// `ReplyReceive(endpoint | reply << 32, info, w0..w3)`: `Reply`, then `Receive` for ever with the
    /// same reply object. An answer that cannot be delivered is dropped: whoever waits at the reply
    /// object hears `Aborted`, and this call goes on as if it had been.
    pub(crate) fn reply_receive(&mut self, cpu: usize, me: Frame, a: [u64; 6]) -> Checked<Over> {
        let endpoint = self.object(me, a[0] & 0xffff_ffff, Kind::Endpoint, Rights::RECEIVE)?;
        let reply = self.object(me, a[0] >> 32, Kind::Reply, Rights::USE)?;
        let answered = self.answer(me, reply, a);
        if answered.is_err() {
            self.abort(reply);
        }
        let over = self.receive_at(me, endpoint, Some(reply), FOREVER);
        if let Ok(caller) = answered {
            self.switch_to(cpu, caller);
        }
        over
    }

    /// Whoever waits at a reply object stops waiting.
    fn abort(&mut self, reply: Frame) {
        let Reply { caller, receiver } = self.replies[&reply].clone();
        for thread in [caller, receiver].into_iter().flatten() {
            self.unblock(thread, Status::Aborted);
        }
    }

    /// A caller learns whether calling again reaches somebody: the server was replaced since.
    pub(crate) fn destroy_reply(&mut self, reply: Frame) {
        if let Some(caller) = self.replies[&reply].caller
            && let Doing::Awaiting {
                endpoint: Some(endpoint),
                epoch,
                ..
            } = self.thread(caller).doing
            && self.endpoints[&endpoint].epoch != epoch
        {
            self.unblock(caller, Status::Restarted);
        }
        self.abort(reply);
        self.replies.remove(&reply);
    }

    /// `Signal(notification, bits)`: sets the capability's badge, or `bits` when it has none. The
    /// thread that has waited longest takes all bits; or else the bound thread, if it receives.
    pub(crate) fn do_signal(&mut self, me: Frame, a: [u64; 6]) -> Checked<()> {
        let place = self.cap_of(me, a[0], Kind::Notification, Rights::SIGNAL)?;
        let notification = self.at(place).object().ok_or(Status::InvalidCap)?;
        let badge = self.at(place).badge();
        self.signal(notification, if badge != 0 { badge } else { a[1] });
        Ok(())
    }

    /// Bits are never lost: they stay until one thread takes all of them.
    pub(crate) fn signal(&mut self, notification: Frame, bits: u64) {
        let Some(word) = self.notifications.get_mut(&notification) else {
            return;
        };
        word.bits |= bits;
        let (waiter, bound) = (word.queue.first().copied(), word.thread);
        if bits == 0 {
            return;
        }
        let receives = |t: &Frame| matches!(self.thread(*t).doing, Doing::Receiving { .. });
        if let Some(thread) = waiter.or(bound.filter(receives)) {
            let taken = self.take_bits(notification).unwrap_or(0);
            self.leave(thread);
            self.stop_timer(thread);
            let t = self.thread_mut(thread);
            if waiter.is_some() {
                t.rax = Status::Ok as u64;
                t.words[0] = taken;
            } else {
                t.deliver_bits(taken);
            }
            self.make_ready(thread, false);
        }
    }

    fn take_bits(&mut self, notification: Frame) -> Option<u64> {
        let word = self.notifications.get_mut(&notification)?;
        let bits = std::mem::take(&mut word.bits);
        (bits != 0).then_some(bits)
    }

    /// `Wait(notification, deadline)` takes all bits, or waits for some.
    /// - `Timeout`: the deadline passed, now or later. If it had passed before and is not `NOW`, the
    ///   caller's turn is over.
    /// - later: `Aborted` (the notification was destroyed), `Cancelled`.
    pub(crate) fn wait(&mut self, me: Frame, a: [u64; 6]) -> Checked<Over> {
        let notification = self.object(me, a[0], Kind::Notification, Rights::WAIT)?;
        if let Some(bits) = self.take_bits(notification) {
            self.thread_mut(me).words[0] = bits;
            return Ok(Over::Done);
        }
        if let Err(over) = self.require_time_left(a[1]) {
            let turn = self
                .home_of(me)
                .map(|(cpu, _)| &mut self.cpus[cpu].slice_end);
            if let Some(end) = turn.filter(|end| a[1] != NOW && **end != u64::MAX) {
                *end = 0;
            }
            return Err(over);
        }
        self.thread_mut(me).doing = Doing::Waiting { notification };
        if let Some(word) = self.notifications.get_mut(&notification) {
            word.queue.push(me);
        }
        self.wait_until(me, a[1]);
        Ok(Over::Blocked)
    }
}
