//! `sched_op` (`public/sched.h`): yield, block, poll, shutdown, watchdogs.

use crate::access::{Caller, Fields, Reply};
use crate::call::Next;
use crate::domain::{Domain, SYSTEM};
use crate::env::Env;
use crate::errno::Errno;
use crate::memory::GuestMemory;
use crate::ports::Binding;

/// `SCHEDOP_*`.
pub(crate) mod op {
    pub const YIELD: u32 = 0;
    pub const BLOCK: u32 = 1;
    pub const SHUTDOWN: u32 = 2;
    pub const POLL: u32 = 3;
    pub const REMOTE_SHUTDOWN: u32 = 4;
    pub const SHUTDOWN_CODE: u32 = 5;
    pub const WATCHDOG: u32 = 6;
    pub const PIN_OVERRIDE: u32 = 7;
}

/// Most ports of one poll, as in Xen.
const MAX_POLLED: u32 = 128;

/// `SHUTDOWN_watchdog`.
const CODE_WATCHDOG: u8 = 4;

const NS_PER_S: u64 = 1_000_000_000;

/// What a blocked vCPU waits for, besides its own upcall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    polls: Polled,
    /// System time at which a poll ends.
    pub deadline: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Polled {
    /// `SCHEDOP_block`.
    Nothing,
    One(u32),
    /// Several: any event ends it and the guest looks again, as in Xen.
    Any,
}

impl Block {
    pub fn waits_for(self, port: u32) -> bool {
        match self.polls {
            Polled::Nothing => false,
            Polled::One(polled) => polled == port,
            Polled::Any => true,
        }
    }

    pub fn is_poll(self) -> bool {
        self.polls != Polled::Nothing
    }
}

/// The domain's watchdogs (`NR_DOMAIN_WATCHDOG_TIMERS`): system times at which they bite.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Watchdogs([Option<u64>; 2]);

impl Watchdogs {
    #[inline]
    pub fn earliest(&self) -> Option<u64> {
        let [first, second] = self.0;
        match (first, second) {
            (Some(first), Some(second)) => Some(first.min(second)),
            (one, other) => one.or(other),
        }
    }

    fn set(&mut self, id: u32, seconds: u32, now: u64) -> Reply {
        let deadline = now.saturating_add(u64::from(seconds) * NS_PER_S);
        if id == 0 {
            let Some(free) = self.0.iter().position(Option::is_none) else {
                // Xen's error goes through 32 bits without a sign, which a 64-bit caller sees.
                return Ok(i64::from(Errno::NoSpc.as_return() as u32));
            };
            self.0[free] = Some(deadline);
            return Ok(free as i64 + 1);
        }
        match self.0.get_mut(id as usize - 1) {
            Some(slot) if slot.is_some() => {
                *slot = (seconds != 0).then_some(deadline);
                Ok(0)
            }
            _ => Err(Errno::Inval),
        }
    }
}

impl Domain {
    #[inline(never)]
    pub(crate) fn sched_op<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        command: u32,
        argument: u64,
    ) -> Reply {
        match command {
            op::YIELD => {
                caller.next = Next::Yield;
                Ok(0)
            }
            op::BLOCK => {
                self.clear_upcall_mask(caller.vcpu, caller.memory);
                if !self.upcall_is_pending(caller.vcpu, caller.memory) {
                    self.block(caller, Polled::Nothing, None);
                }
                Ok(0)
            }
            op::POLL => self.poll(caller, argument),
            op::SHUTDOWN => {
                let code = caller.fetch_u32(argument)? as u8;
                self.shut_down(code, caller.env);
                caller.next = Next::Stop;
                Ok(0)
            }
            op::SHUTDOWN_CODE => {
                let code = caller.fetch_u32(argument)? as u8;
                self.shutdown_code.get_or_insert(code);
                Ok(0)
            }
            op::WATCHDOG => {
                let bytes: [u8; 8] = caller.fetch(argument)?;
                let now = self.system_time(caller.env.tsc());
                self.deadlines += 1;
                let reply = self.watchdogs.set(bytes.u32_at(0), bytes.u32_at(4), now);
                // vCPU 0 watches over them.
                caller.env.wake(0);
                reply
            }
            op::REMOTE_SHUTDOWN => {
                let bytes: [u8; 8] = caller.fetch(argument)?;
                // DOMID_SELF is not taken here.
                match bytes.u16_at(0) {
                    SYSTEM => Err(Errno::Perm),
                    own if own == self.config.domid => Err(Errno::Perm),
                    _ => Err(Errno::Srch),
                }
            }
            op::PIN_OVERRIDE => Err(Errno::Perm),
            _ => Err(Errno::NoSys),
        }
    }

    /// Whether the vCPU still waits for what [`Next::Block`] began. The VMM also ends it, by
    /// [`Domain::unblock`], when it has an interrupt for the vCPU.
    #[must_use]
    pub fn is_blocked(&self, vcpu: u32) -> bool {
        self.vcpus
            .get(vcpu as usize)
            .is_some_and(|state| state.blocked.is_some())
    }

    /// Ends a block or poll: the VMM has an interrupt to deliver.
    pub fn unblock(&mut self, vcpu: u32) {
        if let Some(state) = self.vcpus.get_mut(vcpu as usize)
            && let Some(block) = state.blocked.take()
        {
            self.deadlines += 1;
            self.pollers -= u32::from(block.is_poll());
        }
    }

    /// Whether the domain has shut down.
    #[must_use]
    pub fn is_shut_down(&self) -> bool {
        self.shut_down
    }

    /// Shuts the domain down if a watchdog is due.
    pub(crate) fn expire_watchdogs<E: Env>(&mut self, now: u64, env: &mut E) {
        let mut bitten = false;
        for slot in &mut self.watchdogs.0 {
            if slot.is_some_and(|deadline| deadline <= now) {
                *slot = None;
                self.deadlines += 1;
                bitten = true;
            }
        }
        if bitten {
            self.shut_down(CODE_WATCHDOG, env);
        }
    }

    fn block<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        polls: Polled,
        deadline: Option<u64>,
    ) {
        self.unblock(caller.vcpu);
        if let Some(state) = self.vcpus.get_mut(caller.vcpu as usize) {
            let block = Block { polls, deadline };
            self.pollers += u32::from(block.is_poll());
            state.blocked = Some(block);
            self.deadlines += 1;
            caller.next = Next::Block;
        }
    }

    fn poll<M: GuestMemory, E: Env>(&mut self, caller: &mut Caller<M, E>, argument: u64) -> Reply {
        // Handle, number, and a timeout that is 8-aligned only in the native layout.
        let (ports, count, timeout) = if caller.is_compat() {
            let bytes: [u8; 16] = caller.fetch(argument)?;
            (u64::from(bytes.u32_at(0)), bytes.u32_at(4), bytes.u64_at(8))
        } else {
            let bytes: [u8; 24] = caller.fetch(argument)?;
            (bytes.u64_at(0), bytes.u32_at(8), bytes.u64_at(16))
        };
        if count > MAX_POLLED {
            return Err(Errno::Inval);
        }
        // An upcall that cannot be delivered now is nothing that would end the poll.
        if caller.interrupts && self.upcall_is_pending(caller.vcpu, caller.memory) {
            return Ok(0);
        }
        let mut last = 0;
        for index in 0..u64::from(count) {
            last = caller.fetch_u32(ports.wrapping_add(index * 4))?;
            match self.ports.get(last) {
                Some(port) if !matches!(port.binding, Binding::Free | Binding::Reserved) => {}
                _ => return Err(Errno::Inval),
            }
            if self.is_pending(last, caller.memory) {
                return Ok(0);
            }
        }
        let polls = if count == 1 {
            Polled::One(last)
        } else {
            Polled::Any
        };
        self.block(caller, polls, (timeout != 0).then_some(timeout));
        Ok(0)
    }

    /// `SCHEDOP_block` opens the upcall mask, which HVM guests do not use otherwise.
    fn clear_upcall_mask<M: GuestMemory>(&self, vcpu: u32, memory: &M) {
        if let Some(info) = self.vcpus.get(vcpu as usize).and_then(|state| state.info) {
            let _ = memory.fetch_and_u32(info, !0xff00);
        }
    }
}
