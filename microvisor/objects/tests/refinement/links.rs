//! What the specification does not know and the next call relies on: queues and heaps of threads are
//! whole, and a thread that has left one keeps nothing of it. Called for every state that is read.

use super::world::Fake;
use crate::id::Ref;
use crate::kernel::Kernel;
use crate::thread::{State, Thread};
use microvisor_spec::state as spec;
use std::collections::BTreeSet;
use std::format;

type Frame = u64;

/// Links of all threads, of which `state` has the names.
pub fn check(kernel: &Kernel<Fake>, state: &spec::State) -> Result<(), String> {
    let mut links = Links {
        kernel,
        queued: BTreeSet::new(),
        timed: BTreeSet::new(),
    };
    for frame in state.endpoints.keys() {
        let e = links.at::<crate::endpoint::Endpoint>(*frame)?;
        links.queue(e.head, e.tail)?;
    }
    for frame in state.notifications.keys() {
        let n = links.at::<crate::notification::Notification>(*frame)?;
        links.queue(n.head, n.tail)?;
    }
    for (number, cpu) in kernel.cpus.iter().enumerate().take(kernel.cpu_count) {
        for (priority, queue) in cpu.queues.iter().enumerate() {
            links.queue(queue.head, queue.tail)?;
            if (cpu.occupied >> priority & 1 == 0) != queue.head.is_null() {
                return Err(format!("CPU {number} is wrong about priority {priority}"));
            }
        }
        links.heap(number, cpu.timers, Ref::NULL, 0)?;
    }
    for frame in state.threads.keys() {
        links.thread(*frame)?;
    }
    Ok(())
}

struct Links<'a> {
    kernel: &'a Kernel<Fake>,
    /// Threads that are in a queue.
    queued: BTreeSet<Frame>,
    /// Threads that are in a heap of deadlines.
    timed: BTreeSet<Frame>,
}

impl<'a> Links<'a> {
    fn at<T: crate::arena::Object>(&self, frame: Frame) -> Result<&'a T, String> {
        let object = Ref::new(frame as u32, self.kernel.arena.tag_of(frame));
        let found = self.kernel.arena.get::<T>(object);
        found.ok_or_else(|| format!("frame {frame:#x} holds something else"))
    }

    /// Neighbours name each other, and the tail is the last.
    fn queue(&mut self, head: Ref<Thread>, tail: Ref<Thread>) -> Result<(), String> {
        let (mut at, mut before) = (head, Ref::NULL);
        while !at.is_null() {
            let frame = at.addr().frame();
            let t = self.kernel.arena.get(at).ok_or("a dead thread is queued")?;
            if t.queue_prev != before {
                return Err(format!("thread {frame:#x} has another before it"));
            }
            if !self.queued.insert(frame) {
                return Err(format!("thread {frame:#x} is queued twice"));
            }
            (before, at) = (at, t.queue_next);
        }
        if tail != before {
            return Err("a queue ends elsewhere than at its tail".into());
        }
        Ok(())
    }

    /// A leftist heap: nothing is due before what is above it, and the way along `right` is never
    /// longer than along `left`. Answers its rank.
    fn heap(
        &mut self,
        cpu: usize,
        at: Ref<Thread>,
        up: Ref<Thread>,
        after: u64,
    ) -> Result<u64, String> {
        if at.is_null() {
            return Ok(0);
        }
        let frame = at.addr().frame();
        let t = self.kernel.arena.get(at).ok_or("a dead thread is timed")?;
        if !t.timed || t.cpu as usize != cpu || t.timer.up != up || t.deadline < after {
            return Err(format!("the deadline of {frame:#x} is out of place"));
        }
        if !self.timed.insert(frame) {
            return Err(format!("thread {frame:#x} is timed twice"));
        }
        let left = self.heap(cpu, t.timer.left, at, t.deadline)?;
        let right = self.heap(cpu, t.timer.right, at, t.deadline)?;
        if left < right || t.timer.rank != right + 1 {
            return Err(format!("the heap leans the wrong way at {frame:#x}"));
        }
        Ok(right + 1)
    }

    /// What a thread names of others is what it is in.
    fn thread(&self, frame: Frame) -> Result<(), String> {
        let t = self.at::<Thread>(frame)?;
        let wrong = |what: &str| Err(format!("thread {frame:#x} {:?}: {what}", t.state));
        let in_queue = match t.state {
            State::Ready => !t.sched.is_null(),
            State::Receiving => !t.bound_only,
            State::Sending | State::Waiting => true,
            _ => false,
        };
        if self.queued.contains(&frame) != in_queue {
            return wrong("in a queue, or not");
        }
        let alone = t.queue_prev.is_null() && t.queue_next.is_null();
        if !in_queue && !alone {
            return wrong("has neighbours in no queue");
        }
        if self.timed.contains(&frame) != t.timed {
            return wrong("in a heap of deadlines, or not");
        }
        if t.notification.is_null() == (t.state == State::Waiting) {
            return wrong("waits, or does not");
        }
        let answers = t.state == State::AwaitingReply || t.state == State::Receiving && in_queue;
        if t.reply.is_null() == answers {
            return wrong("has a reply object, or does not");
        }
        if t.bound_only && t.state != State::Receiving {
            return wrong("is still bound to hear bits only");
        }
        Ok(())
    }
}
