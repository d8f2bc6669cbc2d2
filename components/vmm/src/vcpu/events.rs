//! What a vCPU takes before it runs on: interrupted deliveries, exceptions, NMIs, the Xen upcall,
//! local APIC interrupts, in the order in which Xen takes them (`hvm_vcpu_has_pending_irq`).

use sdk::abi::vcpu::{blocked, event, group, window};
use sdk::field;
use x86_platform::event::{NMI, interrupt};
use x86_platform::registers::IF;

use super::{Activity, Vcpu};

/// An external interrupt that could be injected.
#[derive(Clone, Copy)]
enum Candidate {
    /// The Xen upcall's vector; the local APIC does not see it.
    Upcall(u8),
    /// The local APIC's.
    Apic(u8),
}

impl Vcpu {
    /// Writes `inject` and `window` for the next run.
    #[inline(always)]
    pub(super) fn deliver_events(&mut self) {
        let delivering = self.page.get(field!(delivering)) & event::VALID;
        let words = delivering | self.exception | self.redeliver | self.window;
        if words != 0 || self.upcall | self.nmi | self.apic.requested() {
            self.choose_event();
        }
    }

    /// Whether there is an interrupt that ends a HLT, without looking at the clock; it is in the page
    /// then, for the run that comes next.
    pub(super) fn ends_halt(&mut self) -> bool {
        if self.activity != Activity::Halted || !(self.upcall | self.apic.requested()) {
            return false;
        }
        self.choose_event();
        let chosen = self.page.get(field!(inject)) & event::VALID != 0;
        if chosen {
            self.activity = Activity::Running;
        }
        chosen
    }

    #[inline(never)]
    fn choose_event(&mut self) {
        let delivering = self.page.get(field!(delivering));
        // One exit's word is used once, whatever becomes of the next run.
        self.page.set(field!(delivering), 0);
        let held = self.page.get(field!(interruptibility));
        let enabled = self.page.get(field!(regs.rflags)) & IF != 0;
        // A run that did not enter leaves what it was to inject.
        let left = self.page.get(field!(inject));
        let mut inject = 0;
        let mut wanted = 0;
        if left & event::VALID != 0 {
            inject = left;
        } else if self.exception != 0 {
            inject = core::mem::take(&mut self.exception);
        } else if delivering & event::VALID != 0 {
            inject = delivering;
        } else if self.redeliver != 0 {
            inject = core::mem::take(&mut self.redeliver);
        }
        if self.nmi {
            if inject == 0 && held == 0 {
                inject = NMI;
                self.nmi = false;
            } else {
                wanted |= window::NMI;
            }
        }
        if let Some(candidate) = self.candidate() {
            if inject == 0 && enabled && held & blocked::SHADOW == 0 {
                inject = match candidate {
                    Candidate::Upcall(vector) => interrupt(vector),
                    Candidate::Apic(vector) => {
                        self.apic.acknowledge(vector);
                        interrupt(vector)
                    }
                };
                if self.apic.pending().is_some() {
                    wanted |= window::INTERRUPT;
                }
            } else {
                wanted |= window::INTERRUPT;
            }
        }
        if inject != 0 {
            self.page.set(field!(inject), inject);
            self.modified |= group::EVENTS;
        }
        if wanted != self.window {
            self.window = wanted;
            self.page.set(field!(window), wanted);
            self.modified |= group::EVENTS;
        }
    }

    fn candidate(&mut self) -> Option<Candidate> {
        if self.upcall {
            let shared = self.shared;
            let pending = shared.domain.lock().pending_upcall(self.index, &shared.ram);
            match pending {
                Some(vector) => return Some(Candidate::Upcall(vector)),
                None => self.upcall = false,
            }
        }
        self.apic.pending().map(Candidate::Apic)
    }
}
