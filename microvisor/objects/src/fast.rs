//! The fast path of messages: `Call` to a server that waits, and `ReplyReceive` of a server that
//! has nothing else to do, on one CPU, with words only. What it does is a special case of what
//! `endpoint` and `sched` do, and leaves the same state behind; it decides at the start, before it
//! has changed anything, and whatever is not the common case (and every error) is theirs.
//!
//! Called by the core's system call entry with the kernel lock. Scheduling stays as it is: both
//! threads have unlimited time and the one that goes on is more urgent than whatever is ready, so
//! neither slice nor deadline moves.

use crate::arena::View;
use crate::cap_space::CapSpace;
use crate::endpoint::{Endpoint, Reply, deliver_words, words};
use crate::id::Ref;
use crate::kernel::Kernel;
use crate::machine::Machine;
use crate::sched::Cpu;
use crate::slot::Slot;
use crate::thread::{State, Thread};
use microvisor_abi::message::MessageInfo;
use microvisor_abi::{Kind, Rights};

/// Bits of an info word that say there is more than words: payload, capabilities, or nonsense.
const MORE_THAN_WORDS: u64 = 0xffff_ffff;

/// Which thread goes on after a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handover {
    /// The thread, now the CPU's current one.
    pub thread: Ref<Thread>,
    /// Physical address of the root of its tables; 0 if it shares those of the thread before.
    pub root: u64,
    /// One of the two has ports.
    pub ports: bool,
}

/// The capability in this slot, if it is of this kind and has these rights.
#[inline(always)]
fn cap<'v>(
    view: &'v View<'_>,
    space: Ref<CapSpace>,
    slot: u32,
    kind: Kind,
    rights: Rights,
) -> Option<&'v Slot> {
    let cap = view.slot(space, slot)?;
    (cap.kind == kind as u8 && cap.rights.has(rights)).then_some(cap)
}

/// True if `next` may go on at once when the CPU's current thread blocks.
#[inline(always)]
fn may_follow(state: &Cpu, cpu: usize, next: &Thread) -> bool {
    next.cpu as usize == cpu && next.unlimited && !state.urgent(next.priority)
}

/// Where `next` runs, as seen from `this`, whose tables are loaded.
#[inline(always)]
fn root(view: &View<'_>, this: &Thread, next: &Thread) -> Option<u64> {
    if this.space == next.space {
        return Some(0);
    }
    let space = view.check(next.space)?;
    Some(view.get(space).root.0)
}

impl<M: Machine> Kernel<M> {
    /// `Call`, if it can be answered with a handover to the server. `None`: nothing was changed.
    #[inline(always)]
    pub fn fast_call(&mut self, cpu: usize) -> Option<Handover> {
        let state = self.cpus.get_mut(cpu)?;
        self.arena.freeze(|mut view| {
            let me = view.check(state.current)?;
            let t = view.get(me);
            let info = MessageInfo(t.regs.rsi);
            let slot = u32::try_from(t.regs.rdi).ok()?;
            if info.0 & MORE_THAN_WORDS != 0 || !t.unlimited {
                return None;
            }
            let cap = cap(&view, t.caps, slot, Kind::Endpoint, Rights::CALL)?;
            let (target, badge) = (cap.object::<Endpoint>(), cap.extra);
            let may_grant = cap.rights.has(Rights::GRANT);
            let endpoint = view.check(target)?;
            let e = view.get(endpoint);
            let (server, epoch) = (e.head, e.epoch);
            if !e.receivers {
                return None;
            }
            let receiver = view.check(server)?;
            let r = view.get(receiver);
            let place = r.reply;
            let reply = view.check(place)?;
            if !may_follow(state, cpu, r) || r.timed || !r.queue_next.is_null() {
                return None;
            }
            let handover = Handover {
                thread: server,
                root: root(&view, t, r)?,
                ports: t.has_ports() || r.has_ports(),
            };

            let message = words(&t.regs);
            let object = view.get_mut(reply);
            object.caller = state.current;
            object.receiver = Ref::NULL;
            view.get_mut(endpoint).empty();
            let t = view.get_mut(me);
            t.await_reply(target, epoch);
            t.reply = place;
            t.may_grant = may_grant;
            let r = view.get_mut(receiver);
            r.state = State::Running;
            r.reply = Ref::NULL;
            r.endpoint = Ref::NULL;
            deliver_words(&mut r.regs, badge, info, message);
            state.current = server;
            Some(handover)
        })
    }

    /// `ReplyReceive`, if the caller can go on at once and the server has to wait. `None`: nothing
    /// was changed.
    #[inline(always)]
    pub fn fast_reply_receive(&mut self, cpu: usize) -> Option<Handover> {
        let state = self.cpus.get_mut(cpu)?;
        self.arena.freeze(|mut view| {
            let me = view.check(state.current)?;
            let t = view.get(me);
            let info = MessageInfo(t.regs.rsi);
            let (slot, reply_slot) = (t.regs.rdi as u32, (t.regs.rdi >> 32) as u32);
            if info.0 & MORE_THAN_WORDS != 0 || !t.unlimited {
                return None;
            }
            let target = cap(&view, t.caps, slot, Kind::Endpoint, Rights::RECEIVE)?.object();
            let place = cap(&view, t.caps, reply_slot, Kind::Reply, Rights::USE)?.object();
            let endpoint = view.check::<Endpoint>(target)?;
            let reply = view.check::<Reply>(place)?;
            let client = view.get(reply).caller;
            let caller = view.check(client)?;
            let c = view.get(caller);
            // A bound notification may have something to say first.
            let told = view.check(t.bound).is_some_and(|n| view.get(n).is_set());
            if told || !view.get(endpoint).is_empty() || !may_follow(state, cpu, c) {
                return None;
            }
            let handover = Handover {
                thread: client,
                root: root(&view, t, c)?,
                ports: t.has_ports() || c.has_ports(),
            };

            let message = words(&t.regs);
            let object = view.get_mut(reply);
            object.caller = Ref::NULL;
            object.receiver = state.current;
            view.get_mut(endpoint).only_receiver(state.current);
            let t = view.get_mut(me);
            t.state = State::Receiving;
            t.endpoint = target;
            t.reply = place;
            t.bound_only = false;
            t.queue_prev = Ref::NULL;
            t.queue_next = Ref::NULL;
            let c = view.get_mut(caller);
            c.state = State::Running;
            c.reply = Ref::NULL;
            deliver_words(&mut c.regs, 0, info, message);
            state.current = client;
            Some(handover)
        })
    }
}
