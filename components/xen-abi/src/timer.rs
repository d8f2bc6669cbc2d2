//! Timers of a vCPU as absolute deadlines in ns of system time: single-shot, periodic,
//! `set_timer_op`, and the ends of polls. The VMM asks [`Domain::next_deadline`] and calls
//! [`Domain::expire`].

use crate::access::{Caller, Fields, Reply};
use crate::domain::Domain;
use crate::env::Env;
use crate::errno::Errno;
use crate::event::VIRQ_TIMER;
use crate::memory::GuestMemory;

/// Shortest period (`VCPUOP_set_periodic_timer`).
const MIN_PERIOD: u64 = 1_000_000;
/// Longest period, Xen's STIME_DELTA_MAX.
const MAX_PERIOD: u64 = u64::MAX >> 2;
/// `set_timer_op` takes what is further away for a wrapped time ...
const HUGE_TIMEOUT: u64 = 1 << 50;
/// ... and fires after this.
const HUGE_TIMEOUT_INSTEAD: u64 = 100_000_000;

impl Domain {
    /// A number that changes when an answer of [`Domain::next_deadline`] may have.
    #[must_use]
    #[inline(always)]
    pub fn deadlines(&self) -> u64 {
        self.deadlines
    }

    /// Earliest deadline of the vCPU's timers and poll, in ns of system time. vCPU 0 also watches
    /// over the domain's watchdogs.
    #[must_use]
    pub fn next_deadline(&self, vcpu: u32) -> Option<u64> {
        let state = self.vcpus.get(vcpu as usize)?;
        // What is not armed is never.
        let or_never = |deadline: Option<u64>| deadline.unwrap_or(u64::MAX);
        let mut next = or_never(state.singleshot)
            .min(state.periodic.map_or(u64::MAX, |(_, deadline)| deadline))
            .min(or_never(state.blocked.and_then(|block| block.deadline)));
        if vcpu == 0 {
            next = next.min(or_never(self.watchdogs.earliest()));
        }
        (next != u64::MAX).then_some(next)
    }

    /// Fires what is due of the vCPU's timers, and ends its poll if that is due.
    pub fn expire<M: GuestMemory, E: Env>(&mut self, vcpu: u32, memory: &M, env: &mut E) {
        let now = self.system_time(env.tsc());
        let Some(state) = self.vcpus.get_mut(vcpu as usize) else {
            return;
        };
        // Whatever is due: this is far from the usual path.
        self.deadlines += 1;
        let mut fires = false;
        if state.singleshot.is_some_and(|deadline| deadline <= now) {
            state.singleshot = None;
            fires = true;
        }
        if let Some((period, deadline)) = state.periodic
            && deadline <= now
        {
            state.periodic = Some((period, now.saturating_add(period)));
            fires = true;
        }
        if state
            .blocked
            .and_then(|block| block.deadline)
            .is_some_and(|deadline| deadline <= now)
        {
            self.unblock(vcpu);
        }
        if fires {
            self.raise_virq(vcpu, VIRQ_TIMER, memory, env);
        }
        if vcpu == 0 {
            self.expire_watchdogs(now, env);
        }
    }

    pub(crate) fn set_timer_op<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        low: u64,
        high: u64,
    ) -> Reply {
        let timeout = if caller.is_compat() {
            low | high << 32
        } else {
            low
        };
        let now = self.system_time(caller.env.tsc());
        let state = self
            .vcpus
            .get_mut(caller.vcpu as usize)
            .ok_or(Errno::Inval)?;
        state.singleshot = match timeout {
            0 => None,
            wrapped if wrapped as i64 <= 0 || wrapped.saturating_sub(now) >= HUGE_TIMEOUT => {
                Some(now.saturating_add(HUGE_TIMEOUT_INSTEAD))
            }
            deadline => Some(deadline),
        };
        self.deadlines += 1;
        Ok(0)
    }

    pub(crate) fn set_singleshot<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        vcpu: u32,
        argument: u64,
    ) -> Reply {
        if vcpu != caller.vcpu {
            return Err(Errno::Inval);
        }
        // The flags that follow have had no effect since Xen 4.17.
        let timeout = u64::from_le_bytes(caller.fetch(argument)?);
        let now = self.system_time(caller.env.tsc());
        let state = self.vcpus.get_mut(vcpu as usize).ok_or(Errno::NoEnt)?;
        self.deadlines += 1;
        if timeout < now {
            state.singleshot = None;
            self.raise_virq(vcpu, VIRQ_TIMER, caller.memory, caller.env);
        } else {
            state.singleshot = Some(timeout);
        }
        Ok(0)
    }

    pub(crate) fn set_periodic<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        vcpu: u32,
        argument: u64,
    ) -> Reply {
        let bytes: [u8; 8] = caller.fetch(argument)?;
        let period = bytes.u64_at(0);
        if !(MIN_PERIOD..=MAX_PERIOD).contains(&period) {
            return Err(Errno::Inval);
        }
        let now = self.system_time(caller.env.tsc());
        let state = self.vcpus.get_mut(vcpu as usize).ok_or(Errno::NoEnt)?;
        state.periodic = Some((period, now.saturating_add(period)));
        self.deadlines += 1;
        // Another vCPU's thread looks at its deadline anew.
        caller.env.wake(vcpu);
        Ok(0)
    }
}
