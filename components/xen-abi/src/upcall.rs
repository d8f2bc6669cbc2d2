//! Delivery of events: pending, mask and selector bits in the order Xen keeps
//! (`evtchn_2l_set_pending`), the upcall that follows, and whom it wakes. Of guests that asked for
//! queues instead of bits, `fifo.rs` knows the first half.

use crate::domain::Domain;
use crate::env::{Env, LegacyLine, Upcall};
use crate::memory::{GuestMemory, Unbacked};
use crate::shared_info::{Layout, test, test_and_clear, test_and_set};

/// Pins of an HVM guest's IO-APIC: lines from here on do not exist.
const GSIS: u8 = 48;

/// What `HVM_PARAM_CALLBACK_IRQ` set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Callback {
    None,
    Line(LegacyLine),
    Vector(u8),
}

impl Callback {
    /// Decodes the parameter: type in bits 56..=63. Zero is "none"; lines only where the guest has
    /// a controller for them, otherwise Xen keeps what was.
    pub fn decode(value: u64, lines: bool, before: Callback) -> Callback {
        let line = match value >> 56 {
            2 => return Callback::Vector(value as u8),
            0 => match value as u8 {
                0 | GSIS.. => None,
                gsi => Some(LegacyLine::Gsi(u32::from(gsi))),
            },
            1 => Some(LegacyLine::PciIntx {
                device: (value >> 11) as u8 & 31,
                pin: value as u8 & 3,
            }),
            _ => None,
        };
        match line {
            _ if !lines => before,
            Some(line) => Callback::Line(line),
            None => Callback::None,
        }
    }
}

impl Domain {
    /// Makes a port pending and tells its vCPU, unless it is masked or was pending. Every failure
    /// of guest memory is the guest's own loss.
    #[inline(never)]
    pub(crate) fn set_pending<M: GuestMemory, E: Env>(
        &mut self,
        port: u32,
        vcpu: u32,
        memory: &M,
        env: &mut E,
    ) {
        self.set_pending_inline(port, vcpu, memory, env);
    }

    /// The same as a part of the caller.
    #[inline(always)]
    pub(crate) fn set_pending_inline<M: GuestMemory, E: Env>(
        &mut self,
        port: u32,
        vcpu: u32,
        memory: &M,
        env: &mut E,
    ) {
        if self.fifo.is_some() {
            return self.raise_fifo(port, vcpu, memory, env);
        }
        let layout = Layout::of(self.width);
        if port >= layout.ports()
            || !matches!(test_and_set(memory, layout.pending, port), Ok(false))
        {
            return;
        }
        if matches!(test(memory, layout.mask, port), Ok(false)) {
            let _ = self.select(port, vcpu, layout, memory, env);
        }
        self.wake_pollers(port, env);
    }

    /// `EVTCHNOP_unmask`.
    pub(crate) fn unmask<M: GuestMemory, E: Env>(
        &mut self,
        port: u32,
        vcpu: u32,
        memory: &M,
        env: &mut E,
    ) {
        if self.fifo.is_some() {
            return self.unmask_fifo(port, vcpu, memory, env);
        }
        let layout = Layout::of(self.width);
        if port < layout.ports()
            && matches!(test_and_clear(memory, layout.mask, port), Ok(true))
            && matches!(test(memory, layout.pending, port), Ok(true))
        {
            let _ = self.select(port, vcpu, layout, memory, env);
        }
    }

    /// Sets a port's selector bit at its vCPU and, if that was clear, the upcall.
    #[inline(always)]
    fn select<M: GuestMemory, E: Env>(
        &mut self,
        port: u32,
        vcpu: u32,
        layout: Layout,
        memory: &M,
        env: &mut E,
    ) -> Result<(), Unbacked> {
        let info = self.vcpus.get(vcpu as usize).and_then(|state| state.info);
        // Without a vcpu_info there is nothing to set; registering one marks everything pending.
        let Some(info) = info else { return Ok(()) };
        if !test_and_set(memory, info + layout.selector, port / layout.word_bits)? {
            self.mark_in(info, vcpu, memory, env)?;
        }
        Ok(())
    }

    /// Sets `evtchn_upcall_pending` and, if it was clear, asserts the upcall.
    pub(crate) fn mark_events_pending<M: GuestMemory, E: Env>(
        &mut self,
        vcpu: u32,
        memory: &M,
        env: &mut E,
    ) -> Result<(), Unbacked> {
        let info = self.vcpus.get(vcpu as usize).and_then(|state| state.info);
        info.map_or(Ok(()), |info| self.mark_in(info, vcpu, memory, env))
    }

    /// The same in the `vcpu_info` at `info`, which is the vCPU's.
    #[inline(always)]
    fn mark_in<M: GuestMemory, E: Env>(
        &mut self,
        info: u64,
        vcpu: u32,
        memory: &M,
        env: &mut E,
    ) -> Result<(), Unbacked> {
        if memory.fetch_or_u32(info, 1)? & 0xff == 0 {
            self.assert_upcall(vcpu, env);
        }
        Ok(())
    }

    /// Xen's `hvm_assert_evtchn_irq`; every way also ends a block.
    #[inline(always)]
    pub(crate) fn assert_upcall<E: Env>(&mut self, vcpu: u32, env: &mut E) {
        let Some(state) = self.vcpus.get(vcpu as usize) else {
            return;
        };
        let vector = state.upcall_vector;
        if state.blocked.is_some() {
            self.unblock(vcpu);
        }
        match self.callback {
            _ if vector != 0 => env.upcall(vcpu, Upcall::Lapic(vector)),
            Callback::Vector(vector) => env.upcall(vcpu, Upcall::Vector(vector)),
            Callback::Line(line) if vcpu == 0 => env.upcall(vcpu, Upcall::Line(line)),
            Callback::Line(_) | Callback::None => env.upcall(vcpu, Upcall::WakeOnly),
        }
    }

    /// The vector to inject past the local APIC before the next entry, if an upcall is pending and
    /// the callback is such a vector. It stays pending until the guest clears
    /// `evtchn_upcall_pending`.
    #[must_use]
    pub fn pending_upcall<M: GuestMemory>(&self, vcpu: u32, memory: &M) -> Option<u8> {
        match self.callback {
            Callback::Vector(vector) if self.upcall_is_pending(vcpu, memory) => Some(vector),
            _ => None,
        }
    }

    /// The line of the callback and its level, if the callback is a line: vCPU 0's
    /// `evtchn_upcall_pending`.
    #[must_use]
    pub fn callback_line<M: GuestMemory>(&self, memory: &M) -> Option<(LegacyLine, bool)> {
        match self.callback {
            Callback::Line(line) => Some((line, self.upcall_is_pending(0, memory))),
            _ => None,
        }
    }

    /// Whether the vCPU's `evtchn_upcall_pending` is set. HVM guests' upcall mask is not looked at.
    pub(crate) fn upcall_is_pending<M: GuestMemory>(&self, vcpu: u32, memory: &M) -> bool {
        self.vcpus
            .get(vcpu as usize)
            .and_then(|state| state.info)
            .is_some_and(|info| memory.read_u32(info).is_ok_and(|word| word & 0xff != 0))
    }

    /// Whether a port is pending in the guest.
    pub(crate) fn is_pending<M: GuestMemory>(&self, port: u32, memory: &M) -> bool {
        if let Some(fifo) = &self.fifo {
            return fifo.is_pending(port, memory);
        }
        let layout = Layout::of(self.width);
        port < layout.ports() && matches!(test(memory, layout.pending, port), Ok(true))
    }

    /// What is pending of a port that was closed is nobody's.
    pub(crate) fn forget_pending<M: GuestMemory>(&mut self, port: u32, memory: &M) {
        if let Some(fifo) = &mut self.fifo {
            return fifo.closed(port, memory);
        }
        let layout = Layout::of(self.width);
        if port < layout.ports() {
            let _ = test_and_clear(memory, layout.pending, port);
        }
    }

    #[inline(always)]
    pub(crate) fn wake_pollers<E: Env>(&mut self, port: u32, env: &mut E) {
        if self.pollers != 0 {
            self.wake_some_poller(port, env);
        }
    }

    #[inline(never)]
    fn wake_some_poller<E: Env>(&mut self, port: u32, env: &mut E) {
        for vcpu in 0..self.config.vcpus {
            let blocked = self
                .vcpus
                .get(vcpu as usize)
                .and_then(|state| state.blocked);
            if blocked.is_some_and(|block| block.waits_for(port)) {
                self.unblock(vcpu);
                env.wake(vcpu);
            }
        }
    }
}
