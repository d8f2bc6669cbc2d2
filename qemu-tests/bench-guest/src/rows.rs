//! What is measured: one call of [`Bench::row`] each, so a new row is a few lines here.
//!
//! Each operation exits on Xen and on microvisor, as a PVH guest without ports of its own. On
//! other machines the rows that need no Xen are measured all the same, which tests this program.

use core::fmt;

use measure::{Line, Meter};

use crate::output::{Output, say};
use guest_kit::boot::LAPIC_ADDRESS;
use guest_kit::cpu;
use guest_kit::peer::Peer;
use guest_kit::xen::Xen;

/// IA32_APIC_BASE, its enable bit and its x2APIC bit (Intel SDM vol. 3, 10.4.4 and 10.12.1).
const APIC_BASE: u32 = 0x1b;
const APIC_ENABLED: u64 = 1 << 11;
const APIC_X2: u64 = 1 << 10;
/// The local APIC's version register: it has no side effects (Intel SDM vol. 3, 10.4.8).
const APIC_VERSION: u64 = LAPIC_ADDRESS + 0x30;
/// A port that no PC device decodes, in a gap below COM2. Neither 0x80 nor 0xed would do: Xen
/// lets HVM guests have those without an exit.
const UNUSED_PORT: u16 = 0x2f0;

/// Measures rows and prints them.
pub struct Bench<'a> {
    meter: Meter,
    output: &'a Output,
}

impl<'a> Bench<'a> {
    /// A bench that prints to `output`.
    pub fn new(output: &'a Output) -> Self {
        Bench {
            meter: Meter::new(),
            output,
        }
    }

    #[inline(always)]
    pub(crate) fn row<P, R>(
        &self,
        name: &str,
        prepare: impl FnMut() -> P,
        operation: impl FnMut(P) -> R,
    ) {
        let summary = self.meter.measure(prepare, operation);
        say!(self.output, "{}", Line::Row(name, summary));
    }

    pub(crate) fn skip(&self, name: &str, reason: fmt::Arguments<'_>) {
        say!(self.output, "BENCH-SKIP name={name} reason={reason}");
    }

    /// Every row; `other` is the domain of the other guest.
    pub fn all(&self, other: Option<u16>) {
        // Before anything is measured the other guest has come to rest.
        let peer = Xen::find().zip(other);
        let peer = peer.and_then(|(xen, other)| Peer::find(xen, other));
        self.cpu();
        self.local_apic();
        match Xen::find() {
            Some(xen) => {
                self.xen(xen);
                self.disk(xen);
            }
            None => {
                for name in ["hypercall_xen_version", "evtchn_send_ipi"] {
                    self.skip(name, format_args!("not on Xen"));
                }
            }
        }
        match (Xen::find(), peer) {
            (Some(xen), Some(peer)) => self.another_guest(xen, peer),
            _ => {
                for name in ["grant_map_unmap", "grant_copy_4k", "event_there_and_back"] {
                    self.skip(name, format_args!("there is no other guest"));
                }
            }
        }
    }

    fn cpu(&self) {
        self.row("cpuid", || (), |()| cpu::cpuid(0));
        self.row("rdmsr_apic_base", || (), |()| cpu::rdmsr(APIC_BASE));
        // SAFETY: nothing is behind this port.
        let out = |()| unsafe { cpu::out_byte(UNUSED_PORT, 0) };
        self.row("port_out", || (), out);
    }

    fn local_apic(&self) {
        let base = cpu::rdmsr(APIC_BASE);
        if base & (APIC_ENABLED | APIC_X2) != APIC_ENABLED || base & !0xfff != LAPIC_ADDRESS {
            return self.skip("lapic_read", format_args!("IA32_APIC_BASE is {base:#x}"));
        }
        // SAFETY: the register is there, as was just found, and reading it changes nothing.
        let read = |()| unsafe { (APIC_VERSION as *const u32).read_volatile() };
        self.row("lapic_read", || (), read);
    }

    fn xen(&self, xen: Xen) {
        match xen.version() {
            Ok(_) => self.row("hypercall_xen_version", || (), |()| xen.version()),
            Err(errno) => self.skip("hypercall_xen_version", format_args!("{errno:?}")),
        }
        self.event(xen);
    }

    /// An event to this vCPU, new each time, whose upcall cannot come: it has no vector, it is
    /// masked, and interrupts are off.
    fn event(&self, xen: Xen) {
        let name = "evtchn_send_ipi";
        let (shared, port) = match (xen.shared_info(), xen.bind_ipi()) {
            (Ok(shared), Ok(port)) => (shared, port),
            (Err(errno), _) => return self.skip(name, format_args!("no shared info, {errno:?}")),
            (_, Err(errno)) => return self.skip(name, format_args!("no port, {errno:?}")),
        };
        shared.mask_upcalls();
        if let Err(errno) = xen.send(&port) {
            return self.skip(name, format_args!("send failed, {errno:?}"));
        }
        if !shared.is_pending(port) {
            return self.skip(name, format_args!("the event did not become pending"));
        }
        self.row(name, || shared.clear(port), |()| xen.send(&port));
    }
}
