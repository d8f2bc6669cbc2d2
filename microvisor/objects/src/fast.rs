//! The fast path of messages: `Call` to a server that waits, and `ReplyReceive` of a server that
//! has nothing else to do, on one CPU, with words only. What it does is a special case of what
//! `endpoint` and `sched` do, and leaves the same state behind; it decides at the start, before it
//! has changed anything, and whatever is not the common case (and every error) is theirs.
//!
//! Called by the core's system call entry with the kernel lock. Scheduling stays as it is: both
//! threads have unlimited time and the one that goes on is more urgent than whatever is ready, so
//! neither slice nor deadline moves.

use crate::arena::{Live, View};
use crate::endpoint::{Endpoint, Reply};
use crate::id::Ref;
use crate::kernel::Kernel;
use crate::machine::Machine;
use crate::sched::{CPUS_MAX, Cpu};
use crate::slot::SlotRef;
use crate::thread::{State, Thread};
use microvisor_abi::Status;
use microvisor_abi::thread::Registers;

/// Bits of an info word that say there is more than words: payload, capabilities, or nonsense.
const MORE_THAN_WORDS: u64 = 0xffff_ffff;

/// Which thread goes on after a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handover {
    /// The thread, now the CPU's current one.
    pub thread: Ref<Thread>,
    /// Its registers. It entered by a system call, and its results are in them.
    pub registers: *mut Registers,
    /// Physical address of the root of its tables; 0 if it shares those of the thread before.
    pub root: u64,
}

/// What a thread must be like, in four bytes that lie side by side and are compared as one.
#[inline(always)]
fn is(thread: &Thread, state: State, cpu: usize) -> bool {
    let bytes = [
        thread.state as u8,
        thread.timed as u8,
        thread.bound_only as u8,
        thread.cpu,
    ];
    u32::from_le_bytes(bytes) == u32::from_le_bytes([state as u8, 0, 0, cpu as u8])
}

/// True if a switch to or from this thread is registers and tables, and no account of its time.
#[inline(always)]
fn is_plain(thread: &Thread) -> bool {
    u16::from_le_bytes([thread.unlimited as u8, thread.ported as u8]) == 1
}

/// True if `next` may go on at once when the CPU's current thread blocks.
#[inline(always)]
fn may_follow(state: &Cpu, next: &Thread) -> bool {
    is_plain(next) && !state.urgent(next.priority)
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

/// Moves a message word by word, so that no more than one has to be held at a time. Answers the
/// receiver's registers.
#[inline(always)]
fn deliver<'v>(
    view: &mut View<'v>,
    from: Live<'v, Thread>,
    to: Live<'v, Thread>,
    badge: u64,
) -> *mut Registers {
    let regs = &mut view.get_mut(to).regs;
    regs.rax = Status::Ok as u64;
    regs.rdi = badge;
    let word = view.get(from).regs.rsi;
    view.get_mut(to).regs.rsi = word;
    let word = view.get(from).regs.rdx;
    view.get_mut(to).regs.rdx = word;
    let word = view.get(from).regs.r10;
    view.get_mut(to).regs.r10 = word;
    let word = view.get(from).regs.r8;
    view.get_mut(to).regs.r8 = word;
    let word = view.get(from).regs.r9;
    view.get_mut(to).regs.r9 = word;
    &raw mut view.get_mut(to).regs
}

impl<M: Machine> Kernel<M> {
    /// `Call`, if it can be answered with a handover to the server. `None`: nothing was changed.
    #[inline(always)]
    pub fn fast_call(&mut self, cpu: usize) -> Option<Handover> {
        let state = self.cpus.get_mut(cpu % CPUS_MAX)?;
        if state.current.is_null() {
            return None;
        }
        self.arena.freeze(|mut view| {
            // SAFETY: whoever takes a CPU's current thread away waits, with the lock held, until that
            // CPU has left the core; this CPU is in the core and has the lock.
            let me = unsafe { view.linked(state.current) };
            let t = view.get(me);
            let (endpoint, cap) = view.recall(&t.called, t.regs.rdi)?;
            let e = view.get(endpoint);
            let usual = t.regs.rsi & MORE_THAN_WORDS == 0 && e.receivers && !e.head.is_null();
            debug_assert!(is(t, State::Running, cpu));
            if !usual || !is_plain(t) {
                return None;
            }
            let server = e.head;
            // SAFETY: the head of the endpoint's queue; a thread leaves it before it is destroyed.
            let receiver = unsafe { view.linked(server) };
            let r = view.get(receiver);
            if !is(r, State::Receiving, cpu) || !may_follow(state, r) || !r.queue_next.is_null() {
                return None;
            }
            let root = root(&view, t, r)?;

            let reply = r.reply;
            // SAFETY: a reply object that goes away takes its receiver out of the queue first, and
            // a queued receiver has one (`bound_only` is false).
            let place = unsafe { view.linked(reply) };
            let object = view.get_mut(place);
            object.caller = state.current;
            object.receiver = Ref::NULL;
            let e = view.get_mut(endpoint);
            e.empty();
            let epoch = e.epoch;
            let (badge, rights) = (view.get(cap).extra, view.get(cap).rights);
            let t = view.get_mut(me);
            t.await_reply(t.called.names.0, epoch);
            t.reply = reply;
            t.called_by = rights;
            let r = view.get_mut(receiver);
            r.state = State::Running;
            r.reply = Ref::NULL;
            r.endpoint = Ref::NULL;
            state.current = server;
            Some(Handover {
                thread: server,
                registers: deliver(&mut view, me, receiver, badge),
                root,
            })
        })
    }

    /// `ReplyReceive`, if the caller can go on at once and the server has to wait. `None`: nothing
    /// was changed.
    #[inline(always)]
    pub fn fast_reply_receive(&mut self, cpu: usize) -> Option<Handover> {
        let state = self.cpus.get_mut(cpu % CPUS_MAX)?;
        if state.current.is_null() {
            return None;
        }
        self.arena.freeze(|mut view| {
            // SAFETY: whoever takes a CPU's current thread away waits, with the lock held, until that
            // CPU has left the core; this CPU is in the core and has the lock.
            let me = unsafe { view.linked(state.current) };
            let t = view.get(me);
            let (endpoint, reply) = view.recall(&t.served, t.regs.rdi)?;
            let client = view.get(reply).caller;
            let usual = t.regs.rsi & MORE_THAN_WORDS == 0
                && view.get(endpoint).is_empty()
                && !client.is_null();
            debug_assert!(is(t, State::Running, cpu));
            if !usual || !is_plain(t) {
                return None;
            }
            // A bound notification may have something to say first.
            if view.check(t.bound).is_some_and(|n| view.get(n).is_set()) {
                return None;
            }
            // SAFETY: the reply object's caller; a caller that goes away leaves it first.
            let caller = unsafe { view.linked(client) };
            let c = view.get(caller);
            if !is(c, State::AwaitingReply, cpu) || !may_follow(state, c) {
                return None;
            }
            let root = root(&view, t, c)?;

            let object = view.get_mut(reply);
            object.caller = Ref::NULL;
            object.receiver = state.current;
            view.get_mut(endpoint).only_receiver(state.current);
            let t = view.get_mut(me);
            t.state = State::Receiving;
            (t.endpoint, t.reply) = t.served.names;
            t.queue_prev = Ref::NULL;
            t.queue_next = Ref::NULL;
            let c = view.get_mut(caller);
            c.state = State::Running;
            c.reply = Ref::NULL;
            state.current = client;
            Some(Handover {
                thread: client,
                registers: deliver(&mut view, me, caller, 0),
                root,
            })
        })
    }

    /// A `Call` looked this up: the next with the same word need not.
    pub(crate) fn remember_call(
        &mut self,
        me: Ref<Thread>,
        word: u64,
        target: Ref<Endpoint>,
        cap: SlotRef,
    ) {
        self.arena.freeze(|mut view| {
            if let (Some(me), Some(endpoint)) = (view.check(me), view.check(target)) {
                let names = (target, Ref::NULL);
                view.get_mut(me).called = view.memo(word, endpoint, view.slot(cap), names);
            }
        });
    }

    /// As [`Kernel::remember_call`], for a `ReplyReceive`.
    pub(crate) fn remember_receive(
        &mut self,
        me: Ref<Thread>,
        word: u64,
        names: (Ref<Endpoint>, Ref<Reply>),
    ) {
        self.arena.freeze(|mut view| {
            if let (Some(me), Some(endpoint), Some(reply)) =
                (view.check(me), view.check(names.0), view.check(names.1))
            {
                view.get_mut(me).served = view.memo(word, endpoint, reply, names);
            }
        });
    }
}
