//! Whole-state checks for tests: what must hold after every call.

use crate::cap_space::CapSpace;
use crate::id::Ref;
use crate::kernel::Kernel;
use crate::machine::Machine;
use crate::slot::{SlotRef, flag};
use crate::thread::{State, Thread};
use microvisor_abi::Kind;

impl<M: Machine> Kernel<M> {
    /// Checks the derivation forest as far as it is reachable from the current thread's space on
    /// CPU 0: links agree both ways, a child is one level deeper than an ancestor, what is made of
    /// a `Memory` lies inside it, and siblings do not overlap.
    pub fn check(&self) -> Result<(), &'static str> {
        let thread = self.cpus[0].current;
        let Some(t) = self.arena.get(thread) else {
            return Ok(());
        };
        self.check_thread(thread, t)?;
        for cpu in 0..self.cpu_count {
            self.check_timers(cpu, self.cpus[cpu].timers, Ref::NULL, 0)?;
        }
        let Some(header) = self.arena.get(t.caps) else {
            return Ok(());
        };
        for number in 1..header.slots.min(600) {
            let Ok(slot) = self.arena.slot_in(t.caps, number as u32) else {
                continue;
            };
            self.check_slot(slot)?;
        }
        Ok(())
    }

    fn check_thread(&self, thread: Ref<Thread>, t: &Thread) -> Result<(), &'static str> {
        if t.state == State::Running && self.cpus[t.cpu as usize].current != thread {
            return Err("a running thread is not its CPU's current one");
        }
        Ok(())
    }

    /// The heap of deadlines at and below `at`: links agree both ways, nothing is due before what is
    /// above it, and ranks are what keeps it shallow on the right.
    fn check_timers(
        &self,
        cpu: usize,
        at: Ref<Thread>,
        up: Ref<Thread>,
        after: u64,
    ) -> Result<u64, &'static str> {
        if at.is_null() {
            return Ok(0);
        }
        let t = self.arena.get(at).ok_or("a dead thread has a deadline")?;
        if !t.timed || t.cpu as usize != cpu || t.timer.up != up || t.deadline < after {
            return Err("a deadline is out of place");
        }
        let left = self.check_timers(cpu, t.timer.left, at, t.deadline)?;
        let right = self.check_timers(cpu, t.timer.right, at, t.deadline)?;
        if left < right || t.timer.rank != right + 1 {
            return Err("a heap of deadlines leans the wrong way");
        }
        Ok(right + 1)
    }

    fn check_slot(&self, slot: SlotRef) -> Result<(), &'static str> {
        let cap = self.arena.slot(slot);
        if cap.is_empty() {
            return if cap.prev.is_some() || cap.next.is_some() {
                Err("an empty slot has links")
            } else {
                Ok(())
            };
        }
        if cap.prev.is_some() && self.arena.slot(cap.prev).next != slot {
            return Err("the previous slot does not link here");
        }
        if cap.next.is_some() {
            let next = self.arena.slot(cap.next);
            if next.prev != slot {
                return Err("the next slot does not link back");
            }
            if next.is_empty() {
                return Err("the next slot is empty");
            }
            if next.depth > cap.depth + 1 && !self.arena.is_leaving(slot) {
                return Err("a level of the forest is missing");
            }
        }
        if cap.kind() == Kind::Memory {
            self.check_memory(slot)?;
        }
        if cap.kind() == Kind::CapSpace && cap.has_flag(flag::ORIGINAL) {
            let space = cap.object::<CapSpace>();
            if !self.arena.alive(space) {
                return Err("an original capability names a destroyed space");
            }
        }
        Ok(())
    }

    /// Everything made of a memory lies inside it, below its mark, and apart from its siblings.
    fn check_memory(&self, memory: SlotRef) -> Result<(), &'static str> {
        let m = *self.arena.slot(memory);
        let end = m.object + (m.mark & 0xffff_ffff) * 4096;
        let mut seen = [(0u64, 0u64); 64];
        let mut count = 0;
        let mut at = m.next;
        while at.is_some() && self.arena.slot(at).depth > m.depth {
            let child = *self.arena.slot(at);
            at = child.next;
            if child.depth != m.depth + 1 || !child.has_flag(flag::ORIGINAL) {
                continue;
            }
            let (base, bytes) = match child.kind() {
                Kind::Frame => (child.object, 1 << child.order),
                Kind::Memory | Kind::Tables => (child.object, child.extra * 4096),
                Kind::CapSpace => (child.object::<CapSpace>().addr().0, child.extra * 4096),
                _ => (child.object::<Thread>().addr().0, 4096),
            };
            if base < m.object || base + bytes > end {
                return Err("an object lies outside the memory it was made of");
            }
            if seen
                .iter()
                .take(count)
                .any(|&(b, n)| base < b + n && b < base + bytes)
            {
                return Err("two objects of one memory overlap");
            }
            if let Some(place) = seen.get_mut(count) {
                *place = (base, bytes);
                count += 1;
            }
        }
        Ok(())
    }
}
