//! The system calls of a simulated system, after `docs/calls.md`. What is not simulated answers
//! `Unsupported`: vCPUs, further threads, other components' capability spaces. Called by
//! [`crate::seat`] with the turn in hand.

use microvisor_abi::cap::{Role, Slot};
use microvisor_abi::message::{PAYLOAD_MAX, RECEIVE_SLOTS, SEND_SLOTS};
use microvisor_abi::{Call, FOREVER, Kind, MessageInfo, Rights, Status};
use sdk::host::Page;
use sdk::startup::SLOT_THREAD;

use crate::fault::{Fault, Site};
use crate::graph::{ObjectId, State as ObjectState};
use crate::judge::Death;
use crate::message::Message;
use crate::state::{Run, State};

/// How a system call goes on.
pub(crate) enum Flow {
    Return(Status, [u64; 6]),
    /// Somebody wakes the thread.
    Block,
    Die(Death),
}

type Outcome = Result<Flow, Status>;

const DONE: Outcome = Ok(Flow::Return(Status::Ok, [0; 6]));

fn done(results: [u64; 6]) -> Outcome {
    Ok(Flow::Return(Status::Ok, results))
}

impl State {
    /// Carries out system call `number` of `thread`.
    pub fn execute(&mut self, thread: usize, number: u64) -> Flow {
        let component = self.threads[thread].component;
        let member = &mut self.members[component];
        let site = Site::SystemCall {
            component: member.spec.name.clone(),
            number: member.system_calls,
        };
        member.system_calls += 1;
        for fault in self.faults_at(site) {
            match fault {
                Fault::Die => return Flow::Die(Death::Injected),
                Fault::Refuse(status) => return Flow::Return(status, [0; 6]),
                _ => {}
            }
        }
        let a = self.threads[thread].regs;
        let outcome = match Call::from_raw(number) {
            Some(Call::Call) => self.call(thread, a),
            Some(Call::Receive) => self.receive(thread, a[0], a[1], a[2]),
            Some(Call::Reply) => self.reply(thread, a[0]),
            Some(Call::ReplyReceive) => self.reply_receive(thread, a[0]),
            Some(Call::Wait) => self.wait(thread, a),
            Some(call) => self.plain(component, call, a),
            None => Err(Status::InvalidCall),
        };
        outcome.unwrap_or_else(|status| Flow::Return(status, [0; 6]))
    }

    fn plain(&mut self, me: usize, call: Call, a: [u64; 6]) -> Outcome {
        match call {
            Call::Retype => self.retype(me, a),
            Call::Copy => {
                own(a[1])?;
                let source = self.graph.any(me, a[0])?;
                let how = "copied".to_owned();
                let slot = slot(a[2])?;
                let child = self
                    .graph
                    .derive(source, (me, slot), Rights(a[3] as u8), a[4], how)?;
                let _ = child;
                DONE
            }
            Call::Move => {
                own(a[0])?;
                own(a[2])?;
                let source = self.graph.any(me, a[1])?;
                self.graph.shift(source, slot(a[3])?)?;
                DONE
            }
            Call::Delete | Call::Revoke => {
                own(a[0])?;
                // An empty slot is done already: what was in it may have gone with its giver.
                let Some(cap) = self.graph.at(me, slot(a[1])?) else {
                    return DONE;
                };
                let gone = match call {
                    Call::Delete => {
                        if let Some(address) = self.graph.cap(cap).and_then(|cap| cap.mapped) {
                            self.members[me].mapped.remove(&address);
                        }
                        self.graph.delete(cap)
                    }
                    _ => self.graph.revoke(cap),
                };
                self.objects_gone(&gone);
                DONE
            }
            Call::Map => self.map(me, a),
            Call::Unmap => {
                let cap = self.graph.any(me, a[0])?;
                let cap = self.graph.cap_mut(cap).ok_or(Status::InvalidCap)?;
                let address = cap.mapped.take().ok_or(Status::NotMapped)?;
                self.members[me].mapped.remove(&address);
                DONE
            }
            Call::Fill => {
                self.graph.find(me, a[1], Kind::Tables, Rights::USE)?;
                DONE
            }
            Call::Bind => self.bind(me, a),
            Call::Signal => {
                let cap = self
                    .graph
                    .find(me, a[0], Kind::Notification, Rights::SIGNAL)?;
                let cap = self.graph.cap(cap).ok_or(Status::InvalidCap)?;
                let bits = if cap.badge != 0 { cap.badge } else { a[1] };
                self.signal(cap.object, bits);
                DONE
            }
            Call::InterruptControl => {
                self.graph.find(me, a[0], Kind::Interrupt, Rights::USE)?;
                DONE
            }
            Call::PortsGrant => {
                let cap = self.graph.find(me, a[0], Kind::IoPorts, Rights::USE)?;
                self.graph.find(me, a[1], Kind::Thread, Rights::USE)?;
                let object = self.object_of(cap)?;
                if let ObjectState::Ports { first, count } = self.graph.object(object).state {
                    self.members[me].ports.push((first, count));
                }
                DONE
            }
            Call::Inspect => {
                own(a[0])?;
                let (kind, rights, number, mapped) = match self.graph.any(me, a[1]) {
                    Err(_) => (Kind::Null, Rights::NONE, 0, false),
                    Ok(id) => {
                        let cap = self.graph.cap(id).ok_or(Status::InvalidCap)?;
                        let kind = self.graph.object(cap.object).kind;
                        (kind, cap.rights, cap.badge, cap.mapped.is_some())
                    }
                };
                let slot = Slot {
                    kind,
                    rights,
                    order: if kind == Kind::Frame { 12 } else { 0 },
                    mapped,
                    number,
                    more: 0,
                };
                let [what, number, more] = slot.words();
                done([what, number, more, 0, 0, 0])
            }
            _ => Err(Status::Unsupported),
        }
    }

    fn object_of(&self, cap: crate::graph::CapId) -> Result<ObjectId, Status> {
        self.graph
            .cap(cap)
            .map(|cap| cap.object)
            .ok_or(Status::InvalidCap)
    }

    fn retype(&mut self, me: usize, a: [u64; 6]) -> Outcome {
        self.graph.find(me, a[0], Kind::Memory, Rights::USE)?;
        own(a[2])?;
        let kind = Kind::from_raw(a[1] as u8).ok_or(Status::InvalidArgument)?;
        let size = a[1] >> 8;
        let (first, count) = (slot(a[3] & 0xffff_ffff)?, a[3] >> 32);
        for index in 0..count as u32 {
            let place = first
                .checked_add(index)
                .ok_or(Status::InvalidArgument)
                .and_then(|at| slot(at.into()))?;
            if self.graph.at(me, place).is_some() {
                return Err(Status::SlotOccupied);
            }
            let frames = match (kind, size) {
                (Kind::Frame, 12..=30) => 1 << (size - 12),
                (Kind::Frame, _) => return Err(Status::InvalidArgument),
                (Kind::Tables | Kind::CapSpace | Kind::Memory, _) => size,
                _ => 1,
            };
            let left = &mut self.members[me].memory_left;
            *left = left.checked_sub(frames).ok_or(Status::NoMemory)?;
            let (state, what) = match kind {
                Kind::Endpoint => (ObjectState::Endpoint { epoch: 0 }, "endpoint"),
                Kind::Reply => (ObjectState::Reply { caller: None }, "reply object"),
                Kind::Notification => (
                    ObjectState::Notification {
                        bits: 0,
                        bound: None,
                    },
                    "notification",
                ),
                Kind::Frame => {
                    let page: &'static Page = Box::leak(Box::new(Page::new()));
                    (ObjectState::Frame { page }, "frame")
                }
                Kind::Tables => (ObjectState::Plain, "tables"),
                _ => return Err(Status::Unsupported),
            };
            let name = format!("{what} of {}", self.name(me));
            self.graph
                .make(kind, state, name, Some(me), Some((me, place)));
        }
        done([count, 0, 0, 0, 0, 0])
    }

    fn map(&mut self, me: usize, a: [u64; 6]) -> Outcome {
        let wanted = Rights((a[3] & 7) as u8);
        let id = self.graph.find(me, a[0], Kind::Frame, wanted)?;
        self.graph.find(me, a[1], Kind::AddressSpace, Rights::USE)?;
        if self.members[me].mapped.contains_key(&a[2]) {
            return Err(Status::Occupied);
        }
        let cap = self.graph.cap_mut(id).ok_or(Status::InvalidCap)?;
        if cap.mapped.is_some() {
            return Err(Status::AlreadyMapped);
        }
        cap.mapped = Some(a[2]);
        let object = cap.object;
        self.members[me].mapped.insert(a[2], object);
        DONE
    }

    fn bind(&mut self, me: usize, a: [u64; 6]) -> Outcome {
        match Role::from_raw(a[2]).ok_or(Status::InvalidArgument)? {
            Role::Messages => {
                let cap = self
                    .graph
                    .find(me, a[0], Kind::Notification, Rights::WAIT)?;
                self.graph.find(me, a[1], Kind::Thread, Rights::USE)?;
                if a[1] != u64::from(SLOT_THREAD) {
                    return Err(Status::Unsupported);
                }
                let (object, thread) = (self.object_of(cap)?, self.members[me].thread);
                if let ObjectState::Notification { bound, .. } =
                    &mut self.graph.object_mut(object).state
                {
                    *bound = thread;
                }
                DONE
            }
            Role::Line => {
                let line = self.graph.find(me, a[0], Kind::Interrupt, Rights::USE)?;
                let to = self
                    .graph
                    .find(me, a[1], Kind::Notification, Rights::SIGNAL)?;
                let to = self.graph.cap(to).ok_or(Status::InvalidCap)?;
                let target = Some((to.object, to.badge));
                let object = self.object_of(line)?;
                if let ObjectState::Interrupt { to } = &mut self.graph.object_mut(object).state {
                    *to = target;
                }
                DONE
            }
            _ => Err(Status::Unsupported),
        }
    }

    fn wait(&mut self, thread: usize, a: [u64; 6]) -> Outcome {
        let me = self.threads[thread].component;
        let cap = self
            .graph
            .find(me, a[0], Kind::Notification, Rights::WAIT)?;
        let on = self.object_of(cap)?;
        match self.take_bits(on) {
            0 if a[1] != FOREVER && a[1] <= self.clock => Err(Status::Timeout),
            0 => {
                let deadline = a[1];
                self.threads[thread].run = Run::Waiting { on, deadline };
                Ok(Flow::Block)
            }
            bits => done([bits, 0, 0, 0, 0, 0]),
        }
    }

    fn call(&mut self, thread: usize, a: [u64; 6]) -> Outcome {
        let me = self.threads[thread].component;
        let id = self.graph.find(me, a[0], Kind::Endpoint, Rights::CALL)?;
        let cap = self.graph.cap(id).ok_or(Status::InvalidCap)?;
        let (endpoint, badge, rights) = (cap.object, cap.badge, cap.rights);
        if !MessageInfo(a[1]).valid() {
            return Err(Status::InvalidArgument);
        }
        if MessageInfo(a[1]).caps() > 0 && !rights.has(Rights::GRANT) {
            return Err(Status::NoRight);
        }
        let wire = self.wires.iter().find(|wire| wire.object == endpoint);
        let (interface, server) = match wire {
            Some(wire) => (wire.interface.clone(), wire.server),
            None => (String::new(), Some(me)),
        };
        let member = &mut self.members[me];
        let number = member.calls.entry(interface.clone()).or_insert(0);
        let site = Site::Call {
            client: member.spec.name.clone(),
            interface,
            number: *number,
        };
        *number += 1;
        let mut faults = self.faults_at(site);
        for fault in &faults {
            match *fault {
                Fault::CapsRefused => return Err(Status::CapsRefused),
                Fault::Request(how) => self.message(thread).mangle(how),
                Fault::Spurious(bits) => {
                    if let Some(n) = server.and_then(|s| self.members[s].notification) {
                        self.signal(n, bits);
                    }
                }
                _ => {}
            }
        }
        if self.message(thread).code() != idl::HELLO {
            faults.retain(|fault| *fault != Fault::OtherSchema);
        }
        self.threads[thread].faults = faults;
        let Some(_) = server else {
            return self.supervise(thread, badge);
        };
        let takes = |run: &Run| matches!(run, Run::Receiving { endpoint: Some(e), reply: Some(_), .. } if *e == endpoint);
        let receiver = self.threads.iter().position(|t| takes(&t.run));
        self.threads[thread].run = Run::Sending {
            endpoint,
            badge,
            rights,
        };
        let Some(receiver) = receiver else {
            return Ok(Flow::Block);
        };
        let Run::Receiving {
            reply: Some(reply), ..
        } = self.threads[receiver].run
        else {
            return Err(Status::InvalidCap);
        };
        match self.hand_over(thread, receiver, reply) {
            Ok(results) => {
                self.wake(receiver, Status::Ok, results);
                self.prefer = Some(receiver);
                Ok(Flow::Block)
            }
            Err(status) => {
                self.threads[thread].run = Run::Ready;
                Err(status)
            }
        }
    }

    /// The request of a thread that sends goes to `receiver`, whose results are answered.
    fn hand_over(
        &mut self,
        caller: usize,
        receiver: usize,
        reply: ObjectId,
    ) -> Result<[u64; 6], Status> {
        let Run::Sending {
            endpoint,
            badge,
            rights,
        } = self.threads[caller].run
        else {
            return Err(Status::InvalidCap);
        };
        self.transfer(caller, receiver)?;
        let epoch = match self.graph.object(endpoint).state {
            ObjectState::Endpoint { epoch } => epoch,
            _ => 0,
        };
        if let ObjectState::Reply { caller: holds } = &mut self.graph.object_mut(reply).state {
            *holds = Some(caller);
        }
        self.threads[caller].run = Run::Awaiting {
            endpoint,
            epoch,
            rights,
            reply,
        };
        let faults = self.threads[caller].faults.clone();
        if faults.contains(&Fault::DieBefore) {
            self.threads[receiver].doomed = Some(Death::Injected);
        }
        if faults.contains(&Fault::Cancel) {
            if let ObjectState::Reply { caller: holds } = &mut self.graph.object_mut(reply).state {
                *holds = None;
            }
            self.wake(caller, Status::Cancelled, [0; 6]);
        }
        let regs = self.threads[caller].regs;
        Ok([badge, regs[1], regs[2], regs[3], regs[4], regs[5]])
    }

    /// Payload and capabilities; all or nothing.
    fn transfer(&mut self, from: usize, to: usize) -> Result<(), Status> {
        let info = MessageInfo(self.threads[from].regs[1]);
        let (source, target) = (self.threads[from].component, self.threads[to].component);
        let mut moves = Vec::new();
        for index in 0..info.caps() {
            let cap = word(&self.threads[from].buffer[..], SEND_SLOTS + 4 * index);
            let place = word(&self.threads[to].buffer[..], RECEIVE_SLOTS + 4 * index);
            let cap = self.graph.any(source, cap.into())?;
            let kind = self.graph.object(self.object_of(cap)?).kind;
            if matches!(kind, Kind::Memory | Kind::Tables) {
                return Err(Status::WrongKind);
            }
            let twice = moves.iter().any(|(_, other)| *other == place);
            if place == 0 || twice || self.graph.at(target, place).is_some() {
                return Err(Status::CapsRefused);
            }
            moves.push((cap, place));
        }
        let how = format!("received from {}", self.name(source));
        for (cap, place) in moves {
            self.graph
                .derive(cap, (target, place), Rights::ALL, 0, how.clone())?;
        }
        let length = info.bytes().min(PAYLOAD_MAX);
        let bytes = self.threads[from].buffer[..length].to_vec();
        self.threads[to].buffer[..length].copy_from_slice(&bytes);
        Ok(())
    }

    fn receive(&mut self, thread: usize, endpoint: u64, reply: u64, deadline: u64) -> Outcome {
        let me = self.threads[thread].component;
        let cap = self
            .graph
            .find(me, endpoint, Kind::Endpoint, Rights::RECEIVE)?;
        let endpoint = self.object_of(cap)?;
        let reply = match reply {
            0 => None,
            slot => {
                let cap = self.graph.find(me, slot, Kind::Reply, Rights::USE)?;
                Some(self.object_of(cap)?)
            }
        };
        let holds = |object: ObjectId| match self.graph.object(object).state {
            ObjectState::Reply { caller } => caller.is_some(),
            _ => false,
        };
        if reply.is_some_and(holds) {
            return Err(Status::Busy);
        }
        if let Some(bound) = self.bound_to(thread) {
            let bits = self.take_bits(bound);
            if bits != 0 {
                return done(Self::bits_message(bits));
            }
        } else if reply.is_none() {
            return Err(Status::NotBound);
        }
        if let Some(reply) = reply {
            let sends =
                |run: &Run| matches!(run, Run::Sending { endpoint: e, .. } if *e == endpoint);
            while let Some(sender) = self.threads.iter().position(|t| sends(&t.run)) {
                match self.hand_over(sender, thread, reply) {
                    Ok(results) => return done(results),
                    Err(status) => self.wake(sender, status, [0; 6]),
                }
            }
        }
        if deadline != FOREVER && deadline <= self.clock {
            return Err(Status::Timeout);
        }
        self.threads[thread].run = Run::Receiving {
            endpoint: reply.map(|_| endpoint),
            reply,
            deadline,
        };
        Ok(Flow::Block)
    }

    /// The notification whose bits a thread hears where it receives.
    fn bound_to(&self, thread: usize) -> Option<ObjectId> {
        let me = self.threads[thread].component;
        let mut objects = self.graph.held(me).map(|(_, cap, _)| cap.object);
        objects.find(|&object| match self.graph.object(object).state {
            ObjectState::Notification { bound, .. } => bound == Some(thread),
            _ => false,
        })
    }

    fn reply(&mut self, thread: usize, reply: u64) -> Outcome {
        let me = self.threads[thread].component;
        let cap = self.graph.find(me, reply, Kind::Reply, Rights::USE)?;
        let reply = self.object_of(cap)?;
        match self.answer(thread, reply)? {
            None => DONE,
            Some(death) => Ok(Flow::Die(death)),
        }
    }

    fn reply_receive(&mut self, thread: usize, both: u64) -> Outcome {
        let me = self.threads[thread].component;
        let (endpoint, slot) = (both & 0xffff_ffff, both >> 32);
        self.graph
            .find(me, endpoint, Kind::Endpoint, Rights::RECEIVE)?;
        let cap = self.graph.find(me, slot, Kind::Reply, Rights::USE)?;
        let reply = self.object_of(cap)?;
        match self.answer(thread, reply) {
            Ok(None) => {}
            Ok(Some(death)) => return Ok(Flow::Die(death)),
            // The answer cannot be delivered; its caller must not wait for ever.
            Err(_) => {
                if let ObjectState::Reply { caller } = &mut self.graph.object_mut(reply).state
                    && let Some(caller) = caller.take()
                {
                    self.wake(caller, Status::Aborted, [0; 6]);
                }
            }
        }
        self.receive(thread, endpoint, slot, FOREVER)
    }

    /// Answers the caller that a reply object holds; the server's death if a fault says so.
    fn answer(&mut self, thread: usize, reply: ObjectId) -> Result<Option<Death>, Status> {
        if !MessageInfo(self.threads[thread].regs[1]).valid() {
            return Err(Status::InvalidArgument);
        }
        let caller = match self.graph.object(reply).state {
            ObjectState::Reply {
                caller: Some(caller),
            } => caller,
            _ => return Err(Status::NoCaller),
        };
        let Run::Awaiting { rights, .. } = self.threads[caller].run else {
            return Err(Status::NoCaller);
        };
        if self.damage(thread, caller) {
            return Ok(Some(Death::Injected));
        }
        let info = MessageInfo(self.threads[thread].regs[1]);
        if info.caps() > 0 && !rights.has(Rights::GRANT) {
            return Err(Status::NoRight);
        }
        self.transfer(thread, caller)?;
        if let ObjectState::Reply { caller } = &mut self.graph.object_mut(reply).state {
            *caller = None;
        }
        let [_, _, w0, w1, w2, w3] = self.threads[thread].regs;
        self.wake(caller, Status::Ok, [0, info.0, w0, w1, w2, w3]);
        self.prefer = Some(caller);
        Ok(None)
    }

    /// What the faults of `caller`'s call do to its answer; true if the server dies.
    fn damage(&mut self, thread: usize, caller: usize) -> bool {
        for fault in self.threads[caller].faults.clone() {
            match fault {
                Fault::DieAfter => return true,
                Fault::Delay(ticks) => self.advance_to(self.clock.saturating_add(ticks)),
                Fault::Answer(how) => self.message(thread).mangle(how),
                Fault::OtherSchema => self.message(thread).other_hash(),
                _ => {}
            }
        }
        false
    }

    pub fn message(&mut self, thread: usize) -> Message<'_> {
        let thread = &mut self.threads[thread];
        let [_, info, words @ ..] = &mut thread.regs;
        Message {
            info,
            words,
            buffer: &mut thread.buffer,
        }
    }
}

/// Only the own capability space is simulated; `0` is its name.
fn own(space: u64) -> Result<(), Status> {
    match space {
        0 => Ok(()),
        _ => Err(Status::Unsupported),
    }
}

/// A slot number that a space of [`crate::SLOTS`] has.
fn slot(raw: u64) -> Result<u32, Status> {
    u32::try_from(raw)
        .ok()
        .filter(|slot| *slot != 0 && *slot < crate::SLOTS)
        .ok_or(Status::InvalidCap)
}

fn word(buffer: &[u8], at: usize) -> u32 {
    let bytes = buffer.get(at..).and_then(|rest| rest.first_chunk());
    bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}
