//! What the Xen ABI may cause outside the domain's own state: implemented over [`Shared`].
//!
//! Runs under the domain lock, on the thread of the vCPU that made the hypercall, or on the
//! service thread.

use core::sync::atomic::Ordering;
use core::task::Poll;

use sdk::prelude::*;
use sdk::sync::Guard;
use sdk::time;
use vmm_guest::desk::{GrantAsk, PortAsk};
use vmm_guest::ram::Word;
use x86_platform::lookaside::Lookaside;
use xen_abi::{
    Env, Errno, GrantCopy, GrantToken, LegacyLine, LinkId, MapError, ServiceId, ShutdownReason,
    SpecialFrame, Upcall, VcpuStart,
};

use crate::foreign::Foreign;
use crate::map::Removed;
use crate::shared::{Shared, flag, service};
use crate::stop::Reason;

/// The console ring's service.
pub const CONSOLE: ServiceId = ServiceId(1);
/// The xenstore ring's.
pub const STORE: ServiceId = ServiceId(2);

/// No vCPU: the service thread.
pub const NOBODY: u32 = u32::MAX;

/// Effects of one call into the domain. What concerns the calling vCPU itself is not posted to its
/// mailbox: the caller takes [`Effects::upcall`], and asks the domain for the next deadline again.
pub struct Effects<'a> {
    shared: &'a Shared,
    /// The vCPU on whose thread this runs, or [`NOBODY`].
    vcpu: u32,
    /// By which linear addresses of this vCPU are translated, as far as any are expected.
    lookaside: Option<&'a mut Lookaside<Word>>,
    /// This vCPU's Xen upcall may be pending.
    pub upcall: bool,
    /// Other guests' VMMs are to be asked or told something: `ask::settle`.
    pub abroad: bool,
}

impl<'a> Effects<'a> {
    /// Effects of a call on the thread of `vcpu`.
    #[inline(always)]
    pub fn new(
        shared: &'a Shared,
        vcpu: u32,
        lookaside: Option<&'a mut Lookaside<Word>>,
    ) -> Effects<'a> {
        Effects {
            shared,
            vcpu,
            lookaside,
            upcall: false,
            abroad: false,
        }
    }

    /// Other guests' grants and ports; for what leaves something to do.
    fn abroad(&mut self) -> Guard<'_, Foreign> {
        self.abroad = true;
        self.shared.foreign.lock()
    }

    #[inline(never)]
    fn post(&self, vcpu: u32, flags: u32) {
        if let Some(mailbox) = self.shared.mailboxes.get(vcpu as usize) {
            mailbox.post(flags, vcpu == self.vcpu);
        }
    }
}

impl Env for Effects<'_> {
    fn tsc(&mut self) -> u64 {
        time::now()
    }

    #[inline(always)]
    fn translate(&mut self, linear: u64, access: xen_abi::Access) -> Option<u64> {
        let write = access == xen_abi::Access::Write;
        let lookaside = self.lookaside.as_mut()?;
        lookaside.translate(&self.shared.ram, linear, write).ok()
    }

    #[inline(always)]
    fn upcall(&mut self, vcpu: u32, how: Upcall) {
        match how {
            Upcall::WakeOnly | Upcall::Line(LegacyLine::Gsi(_) | LegacyLine::PciIntx { .. }) => {
                // A PVH guest has no IO-APIC or PIC that a line could lead to.
                self.wake(vcpu);
            }
            Upcall::Vector(_) if vcpu == self.vcpu => self.upcall = true,
            Upcall::Vector(_) => self.post(vcpu, flag::UPCALL),
            Upcall::Lapic(vector) => {
                if let Some(mailbox) = self.shared.mailboxes.get(vcpu as usize) {
                    mailbox.upcall_vector.store(vector.into(), Ordering::SeqCst);
                    mailbox.post_vector(vector, vcpu == self.vcpu);
                }
            }
        }
    }

    fn wake(&mut self, vcpu: u32) {
        if vcpu != self.vcpu {
            self.post(vcpu, flag::WAKE);
        }
    }

    fn service_event(&mut self, id: ServiceId) {
        let bit = match id {
            CONSOLE => service::GUEST_CONSOLE,
            STORE => service::GUEST_STORE,
            _ => return,
        };
        // Fails only when the capability is gone, and the VMM with it.
        let _ = self.shared.service.signal(bit);
    }

    fn channel_event(&mut self, link: LinkId, channel: u16) {
        if !self.shared.channel_event(link, channel) {
            self.shared.foreign.lock().send(link, channel);
        }
    }

    fn reaches(&mut self, domid: u16) -> Poll<bool> {
        let vcpu = self.vcpu;
        self.abroad().reaches(vcpu, domid)
    }

    fn grant_open(
        &mut self,
        domid: u16,
        reference: u32,
        write: bool,
    ) -> Poll<Result<GrantToken, i16>> {
        let vcpu = self.vcpu;
        let ask = GrantAsk {
            domid,
            reference,
            write,
        };
        self.abroad().open(vcpu, ask)
    }

    fn grant_soon(&mut self, domid: u16, reference: u32, write: bool) {
        let vcpu = self.vcpu;
        let ask = GrantAsk {
            domid,
            reference,
            write,
        };
        self.abroad().open_soon(vcpu, ask);
    }

    fn grant_place(&mut self, token: GrantToken, gfn: u64) -> bool {
        self.shared.foreign.lock().place(self.shared, token, gfn)
    }

    fn grant_copy(&mut self, copy: GrantCopy) -> Poll<Result<(), i16>> {
        let vcpu = self.vcpu;
        self.abroad().copy(vcpu, copy)
    }

    fn grant_close(&mut self, token: GrantToken) {
        let (shared, vcpu) = (self.shared, self.vcpu);
        self.abroad().close(shared, vcpu, token);
    }

    fn bind_remote(
        &mut self,
        domid: u16,
        port: u32,
        local: u32,
    ) -> Poll<Result<(LinkId, u16), Errno>> {
        let vcpu = self.vcpu;
        let ask = PortAsk { domid, port, local };
        self.abroad().bind(vcpu, ask)
    }

    fn channel_closed(&mut self, link: LinkId, channel: u16) {
        let vcpu = self.vcpu;
        self.abroad().unbind(vcpu, link, channel);
    }

    fn shutdown(&mut self, reason: ShutdownReason) {
        self.shared.stop(Reason::Guest(reason));
    }

    fn console_write(&mut self, bytes: &[u8]) {
        self.shared.lines.lock().add(bytes);
    }

    fn map_special(&mut self, frame: SpecialFrame, gfn: u64) -> Result<(), MapError> {
        self.shared
            .map
            .lock()
            .map_special(&self.shared.ram, frame, gfn)
    }

    fn remove_page(&mut self, gfn: u64) -> bool {
        self.shared
            .map
            .lock()
            .remove(&self.shared.ram, gfn)
            .is_ok_and(|removed| removed != Removed::Nothing)
    }

    fn populate_page(&mut self, gfn: u64) -> Result<bool, MapError> {
        self.shared.map.lock().populate(&self.shared.ram, gfn, true)
    }

    fn is_ram(&mut self, gfn: u64) -> bool {
        self.shared.ram.is_plain(gfn)
    }

    fn initialise_vcpu(&mut self, vcpu: u32, state: VcpuStart) {
        if let Some(place) = self.shared.initial.get(vcpu as usize) {
            *place.lock() = Some(state);
        }
    }

    fn vcpu_up(&mut self, vcpu: u32) {
        self.post(vcpu, flag::UP);
    }

    fn vcpu_down(&mut self, vcpu: u32) {
        self.post(vcpu, flag::DOWN);
    }

    fn nmi(&mut self, vcpu: u32) {
        self.post(vcpu, flag::NMI);
    }

    fn flush_tlb(&mut self, vcpus: u128) {
        for vcpu in 0..self.shared.mailboxes.len() as u32 {
            if vcpus.checked_shr(vcpu).unwrap_or(0) & 1 != 0 {
                self.post(vcpu, flag::FLUSH);
            }
        }
    }
}
