//! Time: who runs when. Per CPU: fixed priorities, turns among equals, a budget per period, and
//! deadlines. A thread runs only on the time bound to it.

use crate::lookup::{Checked, require};
use crate::state::*;
use microvisor_abi::{Kind, Rights, Status};

/// Threads that one timer interrupt wakes at most; the rest is due at once again.
const DUE_AT_ONCE: usize = 64;

impl SchedContext {
    /// True if it grants less than all of the CPU.
    pub fn limited(&self) -> bool {
        self.set
            .is_some_and(|[_, _, budget, period]| budget < period)
    }
}

impl State {
    /// The time of a thread.
    fn time_of(&self, thread: Frame) -> Option<&SchedContext> {
        let sched = self.threads.get(&thread)?.sched?;
        self.scheds.get(&sched)
    }

    /// CPU and priority of a thread that has time.
    pub fn home_of(&self, thread: Frame) -> Option<(usize, u64)> {
        let [cpu, priority, ..] = self.time_of(thread)?.set?;
        Some((cpu as usize, priority))
    }

    fn is_limited(&self, thread: Frame) -> bool {
        self.time_of(thread).is_some_and(SchedContext::limited)
    }

    fn runs(&self, thread: Frame) -> bool {
        self.threads
            .get(&thread)
            .is_some_and(|t| t.doing == Doing::Running)
    }

    /// The thread wants to run: it goes to the end (or front) of its priority's queue. Without time
    /// it wants in vain, until it is given some.
    pub(crate) fn make_ready(&mut self, thread: Frame, front: bool) {
        self.thread_mut(thread).doing = Doing::Ready;
        if let Some((cpu, priority)) = self.home_of(thread) {
            let queue = self.cpus[cpu].ready.entry(priority).or_default();
            queue.insert(if front { 0 } else { queue.len() }, thread);
        }
    }

    fn unready(&mut self, thread: Frame) {
        if let Some((cpu, priority)) = self.home_of(thread) {
            let ready = &mut self.cpus[cpu].ready;
            if let Some(queue) = ready.get_mut(&priority) {
                queue.retain(|t| *t != thread);
                if queue.is_empty() {
                    ready.remove(&priority);
                }
            }
        }
    }

    pub(crate) fn start_timer(&mut self, thread: Frame, deadline: u64) {
        self.thread_mut(thread).deadline = Some(deadline);
    }

    pub(crate) fn stop_timer(&mut self, thread: Frame) {
        self.thread_mut(thread).deadline = None;
    }

    /// Threads of a CPU that have a deadline, the next one first. Of equal ones either may be first.
    pub fn timers(&self, cpu: usize) -> Vec<(u64, Frame)> {
        let here = self.threads.iter().filter(|(_, t)| t.cpu == cpu);
        let timed = here.filter_map(|(at, t)| Some((t.deadline?, *at)));
        let mut timers: Vec<_> = timed.collect();
        timers.sort_unstable();
        timers
    }

    /// A timer interrupt on a CPU: calls whose deadline passed end with `Timeout`, throttled threads
    /// want to run again.
    pub(crate) fn timer(&mut self, cpu: usize) {
        let now = self.now;
        let due = self.timers(cpu).into_iter().filter(|(at, _)| *at <= now);
        for (_, thread) in due.take(DUE_AT_ONCE) {
            if self.thread(thread).doing == Doing::Throttled {
                self.stop_timer(thread);
                self.make_ready(thread, false);
            } else {
                self.unblock(thread, Status::Timeout);
            }
        }
    }

    /// Accounts the time that the current thread used; it stops being the current one.
    fn charge(&mut self, cpu: usize) {
        let used = self.now - std::mem::take(&mut self.cpus[cpu].charged);
        if let Some(thread) = self.cpus[cpu].current.take()
            && self.is_limited(thread)
            && let Some(sched) = self.thread(thread).sched
            && let Some(sched) = self.scheds.get_mut(&sched)
        {
            sched.remaining = sched.remaining.saturating_sub(used);
        }
    }

    /// A CPU decides what it runs. The current thread goes on while nothing more urgent wants to run
    /// and its turn is not over; what takes its place is the most urgent, the longest waiting first.
    /// A turn that something more urgent cut short goes on later.
    pub(crate) fn reschedule(&mut self, cpu: usize) {
        if let Some(current) = self.cpus[cpu].current {
            let runs = self.runs(current);
            if runs && self.thread(current).space.is_some() {
                let Some((_, mine)) = self.home_of(current) else {
                    return;
                };
                let highest = self.cpus[cpu].ready.keys().next_back().copied();
                let slice_end = self.cpus[cpu].slice_end;
                let over = slice_end != u64::MAX && self.now >= slice_end;
                if !over && highest.is_none_or(|h| h <= mine) {
                    if slice_end == u64::MAX && highest == Some(mine) {
                        // It was alone; now it has an equal.
                        self.cpus[cpu].slice_end = self.now.saturating_add(self.machine.slice);
                    }
                    return;
                }
                self.charge(cpu);
                if slice_end != u64::MAX {
                    let left = slice_end.saturating_sub(self.now);
                    self.thread_mut(current).turn_left = left;
                }
                if !self.throttle(current) {
                    self.make_ready(current, !over);
                }
            } else {
                self.charge(cpu);
                if runs {
                    // Its address space is gone: there is nothing it could run on.
                    self.stop_with_fault(current, [14, 0, 0]);
                }
            }
        }
        self.pick(cpu);
    }

    /// Parks a thread whose budget is used up until the next period.
    fn throttle(&mut self, thread: Frame) -> bool {
        let now = self.now;
        let Some(sched) = self
            .thread(thread)
            .sched
            .filter(|_| self.is_limited(thread))
        else {
            return false;
        };
        let Some(sched) = self.scheds.get_mut(&sched) else {
            return false;
        };
        let [_, _, budget, period] = sched.set.unwrap_or_default();
        if now >= sched.refill {
            sched.remaining = budget;
            sched.refill = now.saturating_add(period);
        }
        let refill = sched.refill;
        if sched.remaining > 0 {
            return false;
        }
        self.thread_mut(thread).doing = Doing::Throttled;
        self.start_timer(thread, refill);
        true
    }

    fn pick(&mut self, cpu: usize) {
        while let Some((_, queue)) = self.cpus[cpu].ready.last_key_value() {
            let thread = queue[0];
            self.unready(thread);
            if self.throttle(thread) {
                continue;
            }
            let limited = self.time_of(thread).filter(|s| s.limited());
            let budget = limited.map_or(u64::MAX, |s| s.remaining);
            self.thread_mut(thread).doing = Doing::Running;
            let (_, mine) = self.home_of(thread).unwrap_or_default();
            let alone = !self.cpus[cpu].ready.contains_key(&mine);
            let left = std::mem::take(&mut self.thread_mut(thread).turn_left);
            let whole = self.machine.slice;
            let turn = if left == 0 { whole } else { left.min(whole) };
            let slice = if alone { budget } else { budget.min(turn) };
            let now = self.now;
            let state = &mut self.cpus[cpu];
            state.slice_end = now.saturating_add(slice);
            state.charged = if budget == u64::MAX { 0 } else { now };
            state.current = Some(thread);
            return;
        }
        self.cpus[cpu].slice_end = u64::MAX;
    }

    /// The current thread blocked with something for `next`, which goes on at once if it lives on
    /// this CPU, has unlimited time, and is the most urgent. The turn goes on with it.
    pub(crate) fn switch_to(&mut self, cpu: usize, next: Frame) {
        let most_urgent = self.home_of(next).is_some_and(|(home, priority)| {
            let ready = &self.cpus[cpu].ready;
            home == cpu && ready.keys().next_back().is_none_or(|h| *h < priority)
        });
        let unlimited = self.time_of(next).is_some_and(|s| !s.limited());
        let current = self.cpus[cpu].current;
        let blocked = current.is_some_and(|c| self.threads.contains_key(&c) && !self.runs(c));
        if !(most_urgent && unlimited && blocked) {
            return self.make_ready(next, false);
        }
        self.charge(cpu);
        self.thread_mut(next).doing = Doing::Running;
        self.cpus[cpu].current = Some(next);
    }

    /// Ends whatever a thread is doing: it is stopped, and in no queue.
    pub(crate) fn detach(&mut self, thread: Frame) {
        match self.thread(thread).doing {
            Doing::Ready => self.unready(thread),
            Doing::Running => {
                let cpu = self.thread(thread).cpu;
                self.charge(cpu);
            }
            _ => self.leave(thread),
        }
        self.stop_timer(thread);
        self.thread_mut(thread).doing = Doing::Stopped;
    }

    /// Ends a thread's blocking call with a status. Threads that are not blocked are left alone.
    pub(crate) fn unblock(&mut self, thread: Frame, status: Status) {
        if self.thread(thread).is_blocked() {
            self.leave(thread);
            self.stop_timer(thread);
            self.thread_mut(thread).rax = status as u64;
            self.make_ready(thread, false);
        }
    }

    /// `SchedSet(sched, cpus, cpu, priority, budget, period)`: `budget` ticks in every `period`, on
    /// CPU `cpu`, at `priority`; a new period begins. The thread bound to it moves there, with its
    /// deadline if it is in a call; it lines up behind its new equals unless it was running.
    /// - `NoRight`: the `Cpu` capability does not cover that CPU or priority.
    /// - `InvalidArgument`: no budget, or one longer than its period.
    pub(crate) fn sched_set(&mut self, me: u64, a: [u64; 6]) -> Checked<()> {
        let [_, _, cpu, priority, budget, period] = a;
        let sched = self.object(me, a[0], Kind::SchedContext, Rights::USE)?;
        let cpus = self.cap_of(me, a[1], Kind::Cpu, Rights::USE)?;
        if let What::Range {
            first,
            count,
            highest,
            ..
        } = self.at(cpus).what
        {
            let covered = cpu >= first && cpu < first + count && priority <= highest;
            require(covered, Status::NoRight)?;
        }
        let exists = (cpu as usize) < self.cpus.len();
        let sensible = budget != 0 && budget <= period;
        require(exists && sensible, Status::InvalidArgument)?;
        let thread = self.scheds[&sched].thread;
        let ran = thread.is_some_and(|t| self.runs(t));
        let runnable = thread.filter(|t| self.is_runnable(*t));
        if let Some(thread) = runnable {
            self.detach(thread);
        }
        let limited = budget < period;
        let refill = self.now.saturating_add(period);
        let context = SchedContext {
            thread,
            set: Some([cpu, priority, budget, period]),
            remaining: if limited { budget } else { 0 },
            refill: if limited { refill } else { 0 },
        };
        self.scheds.insert(sched, context);
        if let Some(thread) = thread {
            self.thread_mut(thread).cpu = cpu as usize;
        }
        if let Some(thread) = runnable {
            self.make_ready(thread, ran);
        }
        Ok(())
    }

    fn is_runnable(&self, thread: Frame) -> bool {
        matches!(
            self.thread(thread).doing,
            Doing::Ready | Doing::Running | Doing::Throttled
        )
    }

    /// `Bind` with `Role::Time`: the thread runs on this time; 0 takes it away.
    /// - `Busy`: one of the two is bound already.
    /// - `NotBound`: the time was never set.
    pub(crate) fn bind_time(&mut self, sched: Frame, thread: Option<Frame>) -> Checked<()> {
        let context = &self.scheds[&sched];
        let Some(thread) = thread else {
            if let Some(bound) = context.thread {
                self.unbind_time(bound);
            }
            return Ok(());
        };
        require(context.thread.is_none(), Status::Busy)?;
        require(context.set.is_some(), Status::NotBound)?;
        require(self.thread(thread).sched.is_none(), Status::Busy)?;
        let [cpu, ..] = context.set.unwrap_or_default();
        let t = self.thread_mut(thread);
        (t.sched, t.cpu) = (Some(sched), cpu as usize);
        if let Some(context) = self.scheds.get_mut(&sched) {
            context.thread = Some(thread);
        }
        if self.thread(thread).doing == Doing::Ready {
            self.make_ready(thread, false);
        }
        Ok(())
    }

    /// The thread stays what it is, but does not run. A call that it is in keeps its deadline.
    pub(crate) fn unbind_time(&mut self, thread: Frame) {
        let runnable = self.is_runnable(thread);
        if runnable {
            self.detach(thread);
        }
        let sched = self.thread_mut(thread).sched.take();
        if let Some(sched) = sched.and_then(|s| self.scheds.get_mut(&s)) {
            sched.thread = None;
        }
        if runnable {
            self.thread_mut(thread).doing = Doing::Ready;
        }
    }
}
