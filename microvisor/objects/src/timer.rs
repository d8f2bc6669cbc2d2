//! Deadlines of threads, per CPU: a leftist heap (Crane 1972; Knuth vol. 3, 5.2.3) in links that
//! the threads themselves carry. Starting and stopping one deadline takes steps in the order of the
//! logarithm of how many the CPU has, whoever they belong to.
//!
//! Called by what blocks and wakes threads. Guarded by the kernel lock.

use crate::id::Ref;
use crate::kernel::Kernel;
use crate::machine::Machine;
use crate::thread::{State, Thread};
use microvisor_abi::Status;

/// Threads that one timer interrupt wakes.
const WAKES: usize = 64;

/// A thread's place in its CPU's heap.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Links {
    pub(crate) up: Ref<Thread>,
    pub(crate) left: Ref<Thread>,
    pub(crate) right: Ref<Thread>,
    /// Threads on the way down along `right`, this one included. Never less on the left.
    pub(crate) rank: u64,
}

impl Links {
    /// A heap of its own.
    const ALONE: Links = Links {
        up: Ref::NULL,
        left: Ref::NULL,
        right: Ref::NULL,
        rank: 1,
    };
}

impl<M: Machine> Kernel<M> {
    /// Enters a thread's deadline at its CPU.
    pub(crate) fn start_timer(&mut self, thread: Ref<Thread>, deadline: u64) {
        self.stirred = true;
        let Some(t) = self.arena.get_mut(thread) else {
            return;
        };
        t.deadline = deadline;
        t.timed = true;
        t.timer = Links::ALONE;
        let cpu = t.cpu as usize;
        let first = self.meld(self.cpus[cpu].timers, thread);
        self.cpus[cpu].timers = first;
        if first == thread && cpu != self.machine.cpu() {
            self.machine.kick(cpu);
        }
    }

    /// Takes a thread's deadline out of its CPU's heap, if it has one.
    pub(crate) fn stop_timer(&mut self, thread: Ref<Thread>) {
        let Some(t) = self.arena.get_mut(thread) else {
            return;
        };
        if !t.timed {
            return;
        }
        t.timed = false;
        let (
            cpu,
            Links {
                up, left, right, ..
            },
        ) = (t.cpu as usize, t.timer);
        let rest = self.meld(left, right);
        if let Some(r) = self.arena.get_mut(rest) {
            r.timer.up = up;
        }
        match self.arena.get_mut(up) {
            None => self.cpus[cpu].timers = rest,
            Some(u) => {
                if u.timer.left == thread {
                    u.timer.left = rest;
                } else {
                    u.timer.right = rest;
                }
                self.balance(up, false);
            }
        }
    }

    /// Makes one heap of two. Goes down along `right` only, where ranks fall at each step.
    fn meld(&mut self, mut a: Ref<Thread>, mut b: Ref<Thread>) -> Ref<Thread> {
        let (mut first, mut above) = (Ref::NULL, Ref::<Thread>::NULL);
        loop {
            match (self.arena.get(a), self.arena.get(b)) {
                (Some(x), Some(y)) if y.deadline < x.deadline => core::mem::swap(&mut a, &mut b),
                (None, _) => core::mem::swap(&mut a, &mut b),
                _ => {}
            }
            match self.arena.get_mut(above) {
                Some(t) => t.timer.right = a,
                None => first = a,
            }
            let Some(t) = self.arena.get_mut(a) else {
                break;
            };
            t.timer.up = above;
            if b.is_null() {
                break;
            }
            above = a;
            a = t.timer.right;
        }
        self.balance(above, true);
        first
    }

    /// Puts ranks right from `at` upwards; to the top, or until one stays as it was.
    fn balance(&mut self, mut at: Ref<Thread>, to_top: bool) {
        while let Some(t) = self.arena.get(at) {
            let Links {
                up,
                left,
                right,
                rank,
            } = t.timer;
            let rank_of = |t| self.arena.get(t).map_or(0, |t: &Thread| t.timer.rank);
            let (on_left, on_right) = (rank_of(left), rank_of(right));
            let now = on_left.min(on_right) + 1;
            if let Some(t) = self.arena.get_mut(at) {
                t.timer.rank = now;
                if on_left < on_right {
                    (t.timer.left, t.timer.right) = (right, left);
                }
            }
            if now == rank && !to_top {
                return;
            }
            at = up;
        }
    }

    /// Wakes what is due on this CPU. Called on a timer interrupt; what is too much for one call is
    /// due again at once.
    pub fn timer(&mut self, cpu: usize) {
        let now = self.machine.now();
        for _ in 0..WAKES {
            let thread = self.cpus[cpu].timers;
            let Some(t) = self.arena.get(thread) else {
                return;
            };
            let early = match cfg!(planted = "deadline-signed") {
                true => t.deadline as i64 > now as i64,
                false => t.deadline > now,
            };
            if early {
                return;
            }
            match t.state {
                State::Throttled => {
                    self.stop_timer(thread);
                    self.make_ready(thread);
                }
                _ => self.unblock(thread, Status::Timeout),
            }
        }
    }

    /// When this CPU next needs a timer interrupt, in TSC ticks; `u64::MAX` for never.
    #[inline]
    pub fn deadline(&self, cpu: usize) -> u64 {
        let state = &self.cpus[cpu];
        let timer = self
            .arena
            .get(state.timers)
            .map_or(u64::MAX, |t| t.deadline);
        timer.min(state.slice_end)
    }
}
