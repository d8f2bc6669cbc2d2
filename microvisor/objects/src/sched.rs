//! Scheduling: per-CPU run queues with fixed priorities, round robin within one, budgets.
//!
//! Called by the calls that block or wake threads and by the core's exit path. Everything here is
//! guarded by the kernel lock.

use crate::arena::Object;
use crate::id::{FrameKind, Ref};
use crate::kernel::Kernel;
use crate::machine::Machine;
use crate::thread::{State, Thread};
use microvisor_abi::Status;
use microvisor_abi::cap::PRIORITY_MAX;

/// CPUs that the core can run on.
pub const CPUS_MAX: usize = 64;
const PRIORITIES: usize = PRIORITY_MAX as usize + 1;
/// Length of the SYSCALL instruction.
const SYSCALL_BYTES: u64 = 2;

/// CPU time that a thread can be bound to.
#[derive(Debug)]
#[repr(C)]
pub struct SchedContext {
    pub(crate) thread: Ref<Thread>,
    pub(crate) cpu: u64,
    pub(crate) priority: u64,
    /// TSC ticks it may use per period; equal to the period: no limit.
    pub(crate) budget: u64,
    pub(crate) period: u64,
    pub(crate) remaining: u64,
    /// When the budget is next refilled.
    pub(crate) refill: u64,
    pub(crate) set: bool,
}

// SAFETY: `repr(C)`, integers and a bool, valid when zero, small; the only object of this kind.
unsafe impl Object for SchedContext {
    const KIND: FrameKind = FrameKind::SchedContext;
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Queue {
    pub(crate) head: Ref<Thread>,
    pub(crate) tail: Ref<Thread>,
}

/// What one CPU is doing.
#[derive(Debug)]
pub struct Cpu {
    pub(crate) current: Ref<Thread>,
    pub(crate) queues: [Queue; PRIORITIES],
    pub(crate) occupied: u32,
    /// The thread with the earliest deadline; see `timer`.
    pub(crate) timers: Ref<Thread>,
    pub(crate) slice_end: u64,
    pub(crate) charged: u64,
}

impl Cpu {
    /// A CPU with nothing to do.
    pub(crate) const IDLE: Cpu = Cpu {
        current: Ref::NULL,
        queues: [Queue {
            head: Ref::NULL,
            tail: Ref::NULL,
        }; PRIORITIES],
        occupied: 0,
        timers: Ref::NULL,
        slice_end: u64::MAX,
        charged: 0,
    };

    /// True if a thread of this priority or a higher one is ready.
    #[inline]
    pub(crate) fn urgent(&self, priority: u8) -> bool {
        self.occupied.wrapping_shr(priority.into()) != 0
    }

    fn highest(&self) -> Option<usize> {
        (31 - self.occupied.leading_zeros() as i32).try_into().ok()
    }
}

impl<M: Machine> Kernel<M> {
    /// The current thread of a CPU; null when idle.
    #[inline]
    pub fn current(&self, cpu: usize) -> Ref<Thread> {
        self.cpus[cpu].current
    }

    /// Makes a thread that is in no queue ready to run.
    pub(crate) fn make_ready(&mut self, thread: Ref<Thread>) {
        self.push(thread, false);
    }

    fn push(&mut self, thread: Ref<Thread>, front: bool) {
        self.stirred = true;
        let Some(t) = self.arena.get_mut(thread) else {
            return;
        };
        if t.sched.is_null() {
            // Without time it cannot run; `Bind` makes it ready later.
            t.state = State::Ready;
            return;
        }
        t.state = State::Ready;
        let (cpu, priority) = (t.cpu as usize, t.priority as usize);
        let queue = self.cpus[cpu].queues[priority];
        t.queue_prev = if front { Ref::NULL } else { queue.tail };
        t.queue_next = if front { queue.head } else { Ref::NULL };
        let neighbour = if front { queue.head } else { queue.tail };
        if let Some(n) = self.arena.get_mut(neighbour) {
            if front {
                n.queue_prev = thread
            } else {
                n.queue_next = thread
            }
        }
        let state = &mut self.cpus[cpu];
        let queue = &mut state.queues[priority];
        if front || queue.head.is_null() {
            queue.head = thread;
        }
        if !front || queue.tail.is_null() {
            queue.tail = thread;
        }
        state.occupied |= 1 << priority;
        let current = state.current;
        if cpu != self.machine.cpu() {
            // An equal starts sharing the CPU: its current thread needs a slice from now on.
            let below = self
                .arena
                .get(current)
                .is_none_or(|c| c.priority as usize <= priority);
            if below && cfg!(not(planted = "wake-up-lost")) {
                self.machine.kick(cpu);
            }
        }
    }

    /// Takes a ready thread off its run queue.
    pub(crate) fn unready(&mut self, thread: Ref<Thread>) {
        let Some(t) = self.arena.get_mut(thread) else {
            return;
        };
        let (cpu, priority) = (t.cpu as usize, t.priority as usize);
        let (prev, next) = (t.queue_prev, t.queue_next);
        t.queue_prev = Ref::NULL;
        t.queue_next = Ref::NULL;
        if t.sched.is_null() {
            return;
        }
        if let Some(p) = self.arena.get_mut(prev) {
            p.queue_next = next;
        }
        if let Some(n) = self.arena.get_mut(next) {
            n.queue_prev = prev;
        }
        let state = &mut self.cpus[cpu];
        let queue = &mut state.queues[priority];
        if queue.head == thread {
            queue.head = next;
        }
        if queue.tail == thread {
            queue.tail = prev;
        }
        if queue.head.is_null() {
            state.occupied &= !(1 << priority);
        }
    }

    /// Accounts the time that the current thread used since it was last accounted.
    fn charge(&mut self, cpu: usize, now: u64) {
        let used = now.wrapping_sub(self.cpus[cpu].charged);
        self.cpus[cpu].charged = now;
        let Some(t) = self.arena.get(self.cpus[cpu].current) else {
            return;
        };
        let sched = t.sched;
        if let Some(s) = self.arena.get_mut(sched)
            && s.budget < s.period
        {
            s.remaining = s.remaining.saturating_sub(used);
        }
    }

    /// Decides what a CPU does next. Called by the core after every kernel entry that may have
    /// changed it, with the kernel lock held; answers the current thread, or null for idle.
    pub fn reschedule(&mut self, cpu: usize) -> Ref<Thread> {
        let current = self.cpus[cpu].current;
        let highest = self.cpus[cpu].highest();
        if let Some(t) = self.arena.get(current)
            && t.state == State::Running
            && self.arena.alive(t.space)
        {
            let mine = t.priority as usize;
            let slice_end = self.cpus[cpu].slice_end;
            let due = slice_end != u64::MAX && self.machine.now() >= slice_end;
            if !due && highest.is_none_or(|h| h <= mine) {
                // A thread that was alone needs a slice once it has company.
                if slice_end == u64::MAX && highest == Some(mine) {
                    self.cpus[cpu].slice_end = self.machine.now().saturating_add(self.slice);
                }
                return current;
            }
            self.put_back(cpu, current, due);
        } else if !current.is_null() {
            let now = self.machine.now();
            self.charge(cpu, now);
            self.cpus[cpu].current = Ref::NULL;
            if self
                .arena
                .get(current)
                .is_some_and(|t| t.state == State::Running)
            {
                // Its address space is gone: there is nothing it could run on.
                self.stop_with_fault(current, 14, 0, 0);
            }
        }
        self.pick(cpu)
    }

    fn put_back(&mut self, cpu: usize, current: Ref<Thread>, due: bool) {
        let now = self.machine.now();
        self.charge(cpu, now);
        self.cpus[cpu].current = Ref::NULL;
        let end = self.cpus[cpu].slice_end;
        if let Some(t) = self.arena.get_mut(current)
            && end != u64::MAX
        {
            // A new turn each time would starve its equals.
            t.turn_left = end.saturating_sub(now);
        }
        if !self.throttle(current, now) {
            self.push(current, !due);
        }
    }

    /// The current thread's turn is over, if there are others to have one.
    pub(crate) fn give_way(&mut self) {
        let state = &mut self.cpus[self.machine.cpu()];
        if state.slice_end != u64::MAX {
            state.slice_end = 0;
            self.stirred = true;
        }
    }

    /// If the thread's budget is used up, parks it until the next period.
    fn throttle(&mut self, thread: Ref<Thread>, now: u64) -> bool {
        let Some(sched) = self.arena.get(thread).map(|t| t.sched) else {
            return false;
        };
        let Some(s) = self.arena.get_mut(sched) else {
            return false;
        };
        if s.budget >= s.period {
            return false;
        }
        if now >= s.refill {
            s.remaining = s.budget;
            s.refill = match cfg!(planted = "budget-refilled-twice") {
                true => s.refill,
                false => now.saturating_add(s.period),
            };
        }
        if s.remaining > 0 {
            return false;
        }
        let refill = s.refill;
        if let Some(t) = self.arena.get_mut(thread) {
            t.state = State::Throttled;
        }
        self.start_timer(thread, refill);
        true
    }

    fn pick(&mut self, cpu: usize) -> Ref<Thread> {
        let now = self.machine.now();
        while let Some(priority) = self.cpus[cpu].highest() {
            let thread = self.cpus[cpu].queues[priority].head;
            self.unready(thread);
            if self.throttle(thread, now) {
                continue;
            }
            let limit = self.arena.get(thread).and_then(|t| self.arena.get(t.sched));
            let budget = match limit {
                Some(s) if s.budget < s.period => s.remaining,
                _ => u64::MAX,
            };
            let mut turn = self.slice;
            if let Some(t) = self.arena.get_mut(thread) {
                t.state = State::Running;
                if t.turn_left != 0 {
                    turn = turn.min(core::mem::take(&mut t.turn_left));
                }
            }
            let state = &mut self.cpus[cpu];
            let alone = state.queues[priority].head.is_null();
            let slice = if alone { budget } else { budget.min(turn) };
            state.slice_end = now.saturating_add(slice);
            state.charged = now;
            state.current = thread;
            return thread;
        }
        self.cpus[cpu].slice_end = u64::MAX;
        Ref::NULL
    }

    /// Hands the CPU from the current thread, which just blocked, straight to `next`, which is in
    /// no queue. Falls back to the run queue when something more urgent waits or `next` lives
    /// elsewhere or has a limited budget.
    pub(crate) fn switch_to(&mut self, next: Ref<Thread>) {
        let cpu = self.machine.cpu();
        let Some(t) = self.arena.get(next) else {
            return;
        };
        let direct = t.cpu as usize == cpu
            && self.cpus[cpu]
                .highest()
                .is_none_or(|h| h < t.priority as usize)
            && self
                .arena
                .get(t.sched)
                .is_some_and(|s| s.budget >= s.period);
        let blocked = self
            .arena
            .get(self.cpus[cpu].current)
            .is_some_and(|c| c.state != State::Running);
        if !direct || !blocked {
            return self.make_ready(next);
        }
        let now = self.machine.now();
        self.charge(cpu, now);
        if let Some(t) = self.arena.get_mut(next) {
            t.state = State::Running;
        }
        // The slice goes on: two threads that call each other do not starve their equals.
        self.cpus[cpu].current = next;
    }

    /// Ends whatever a thread is doing and leaves it in no queue, `Stopped`. If it runs on another
    /// CPU, this returns once that CPU has let go of it.
    pub(crate) fn detach(&mut self, thread: Ref<Thread>) {
        self.stirred = true;
        let Some(t) = self.arena.get(thread) else {
            return;
        };
        let (state, cpu) = (t.state, t.cpu as usize);
        match state {
            State::Ready => self.unready(thread),
            State::Sending | State::Receiving => self.leave_endpoint(thread),
            State::Waiting => self.leave_notification(thread),
            State::AwaitingReply => self.leave_reply(thread),
            State::Running => {
                // Its CPU must not take it for its own again if it runs elsewhere by then.
                let now = self.machine.now();
                self.charge(cpu, now);
                self.cpus[cpu].current = Ref::NULL;
            }
            State::Stopped | State::Throttled | State::Faulted => {}
        }
        self.stop_timer(thread);
        if let Some(t) = self.arena.get_mut(thread) {
            t.state = State::Stopped;
        }
        if state == State::Running && cpu != self.machine.cpu() {
            self.machine.flush(crate::machine::Flush::Quiesce);
            if self.machine.waits_to_call(cpu)
                && let Some(t) = self.arena.get_mut(thread)
            {
                // The call it was about to make has not happened: it makes it when it runs again.
                t.regs.rip -= SYSCALL_BYTES;
                let vcpu = core::mem::replace(&mut t.vcpu, Ref::NULL);
                self.arena.vcpu_end(vcpu);
            }
        }
    }

    /// Ends a thread's blocking call with `status` and makes it ready.
    pub(crate) fn unblock(&mut self, thread: Ref<Thread>, status: Status) {
        let Some(t) = self.arena.get(thread) else {
            return;
        };
        match t.state {
            State::Sending | State::Receiving => self.leave_endpoint(thread),
            State::Waiting => self.leave_notification(thread),
            State::AwaitingReply => self.leave_reply(thread),
            _ => return,
        }
        self.stop_timer(thread);
        if let Some(t) = self.arena.get_mut(thread) {
            t.regs.rax = status as u64;
        }
        self.make_ready(thread);
    }

    /// `SchedSet`: the caller checked the right to the CPU and priority.
    pub(crate) fn sched_set(
        &mut self,
        sched: Ref<SchedContext>,
        cpu: u64,
        priority: u64,
        budget: u64,
        period: u64,
    ) -> Result<(), Status> {
        if budget == 0 || budget > period || cpu >= self.cpu_count as u64 {
            return Err(Status::InvalidArgument);
        }
        let thread = self.arena.get(sched).ok_or(Status::InvalidCap)?.thread;
        let was = self.arena.get(thread).map(|t| t.state);
        let runnable = matches!(was, Some(State::Ready | State::Running | State::Throttled));
        if runnable {
            self.detach(thread);
        }
        let now = self.machine.now();
        let s = self.arena.get_mut(sched).ok_or(Status::InvalidCap)?;
        s.cpu = cpu;
        s.priority = priority;
        s.budget = budget;
        s.period = period;
        s.remaining = budget;
        s.refill = now.saturating_add(period);
        s.set = true;
        self.settle_at(thread, cpu as u8, priority as u8, budget == period);
        if runnable {
            // Who ran goes on before its new equals.
            self.push(thread, was == Some(State::Running));
        }
        Ok(())
    }

    /// Moves a thread that is in no run queue to a CPU and priority. A deadline goes with it.
    fn settle_at(&mut self, thread: Ref<Thread>, cpu: u8, priority: u8, unlimited: bool) {
        let timed = self.arena.get(thread).is_some_and(|t| t.timed);
        self.stop_timer(thread);
        let Some(t) = self.arena.get_mut(thread) else {
            return;
        };
        t.cpu = cpu;
        t.priority = priority;
        t.unlimited = unlimited;
        let deadline = t.deadline;
        if timed {
            self.start_timer(thread, deadline);
        }
    }

    /// Binds time to a thread, or takes it away.
    pub(crate) fn bind_time(
        &mut self,
        sched: Ref<SchedContext>,
        thread: Ref<Thread>,
    ) -> Result<(), Status> {
        let s = self.arena.get(sched).ok_or(Status::InvalidCap)?;
        if thread.is_null() {
            let bound = s.thread;
            self.unbind_time(bound);
            return Ok(());
        }
        if self.arena.alive(s.thread) {
            return Err(Status::Busy);
        }
        if !s.set {
            return Err(Status::NotBound);
        }
        let (cpu, priority) = (s.cpu as u8, s.priority as u8);
        let unlimited = s.budget >= s.period;
        let t = self.arena.get(thread).ok_or(Status::InvalidCap)?;
        if self.arena.alive(t.sched) {
            return Err(Status::Busy);
        }
        let ready = t.state == State::Ready;
        self.settle_at(thread, cpu, priority, unlimited);
        if let Some(t) = self.arena.get_mut(thread) {
            t.sched = sched;
        }
        if let Some(s) = self.arena.get_mut(sched) {
            s.thread = thread;
        }
        if ready {
            self.make_ready(thread);
        }
        Ok(())
    }

    /// Takes a thread's time away: it stays where it is but does not run.
    pub(crate) fn unbind_time(&mut self, thread: Ref<Thread>) {
        let Some(t) = self.arena.get(thread) else {
            return;
        };
        let (state, sched) = (t.state, t.sched);
        let runnable = matches!(state, State::Ready | State::Running | State::Throttled);
        if runnable {
            self.detach(thread);
        }
        if let Some(s) = self.arena.get_mut(sched) {
            s.thread = Ref::NULL;
        }
        if let Some(t) = self.arena.get_mut(thread) {
            t.sched = Ref::NULL;
            t.unlimited = false;
            if runnable {
                t.state = State::Ready;
            }
        }
    }
}
