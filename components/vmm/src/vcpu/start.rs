//! States in which a vCPU starts: as Xen starts a PVH kernel, after INIT and SIPI, and as
//! `VCPUOP_initialise` says; and what INIT, SIPI, up and down do.

use core::sync::atomic::Ordering;

use sdk::abi::thread::Registers;
use sdk::abi::vcpu::{Segment, group};
use sdk::field;
use x86_platform::cpuid::Context;
use xen_abi::{RunstateKind, StartSegment, VcpuStart, VcpuStart32, VcpuStart64};

use crate::shared::flag;
use crate::stop::Reason;

use super::{Activity, Vcpu};

/// PAT after reset (SDM vol. 3, 12.12.4).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
const DR6_RESET: u64 = 0xffff_0ff0;
const DR7_RESET: u64 = 0x400;
/// RFLAGS bit 1, which is always set.
const RFLAGS_RESET: u64 = 2;
/// CR0 after INIT: caches off, ET.
const CR0_RESET: u64 = 0x6000_0010;
const CR0_PE_ET: u64 = 0x11;

/// Flat segments: present, DPL 0, 4 GiB, 32-bit.
const CODE32: u16 = 0xc9b;
const DATA32: u16 = 0xc93;
/// 64-bit code.
const CODE64: u16 = 0xa9b;
/// Busy 32-bit TSS, present.
const TSS32: u16 = 0x8b;
const LDT: u16 = 0x82;
/// Real-mode code and data.
const CODE16: u16 = 0x9b;
const DATA16: u16 = 0x93;

impl Vcpu {
    /// Puts everything into the state after INIT, with these registers and this paging mode.
    fn reset(&mut self, registers: &Registers, cr0: u64, cr3: u64, cr4: u64, efer: u64) {
        let page = &mut self.page;
        let zero = [
            field!(star),
            field!(lstar),
            field!(cstar),
            field!(sfmask),
            field!(kernel_gs_base),
            field!(sysenter_cs),
            field!(sysenter_esp),
            field!(sysenter_eip),
            field!(cr2),
            field!(cr8),
            field!(xss),
            field!(tsc_offset),
            field!(tsc_aux),
            field!(inject),
            field!(delivering),
            field!(window),
            field!(interruptibility),
        ];
        for field in zero {
            page.set(field, 0);
        }
        for index in 0..4 {
            if let Some(field) = field!(dr).word(index) {
                page.set(field, 0);
            }
        }
        page.set(field!(dr6), DR6_RESET);
        page.set(field!(dr7), DR7_RESET);
        page.set(field!(pat), PAT_RESET);
        page.set(field!(xcr0), 1);
        page.set(field!(cr0), cr0);
        page.set(field!(cr3), cr3);
        page.set(field!(cr4), cr4);
        page.set(field!(efer), efer);
        let table = Segment::new(0, 0, 0xffff, 0);
        page.set_segment(field!(gdtr), table);
        page.set_segment(field!(idtr), table);
        page.set_segment(field!(ldtr), Segment::new(0, LDT, 0xffff, 0));
        page.set_segment(field!(tr), Segment::new(0, TSS32, 0xffff, 0));
        self.set_registers(registers);
        // Without the length of instructions from the hardware, most exits need it.
        self.page.set(field!(wanted), group::MODE);
        // The page is the newest there is, also if the next run does not enter.
        self.page.set(field!(valid), group::ALL);
        self.valid = group::ALL;
        self.modified = group::ALL;
        self.window = 0;
        self.exception = 0;
        self.redeliver = 0;
        self.nmi = false;
    }

    fn set_flat(&mut self, code: Segment, data: Segment) {
        self.page.set_segment(field!(cs), code);
        for field in [field!(ss), field!(ds), field!(es), field!(fs), field!(gs)] {
            self.page.set_segment(field, data);
        }
    }

    /// The state in which a PVH kernel is entered: 32-bit protected mode, paging off, EBX =
    /// `hvm_start_info` (Xen docs/misc/pvh).
    pub fn start_pvh(&mut self, entry: u64, start_info: u64) {
        let registers = Registers {
            rbx: start_info,
            rip: entry,
            rflags: RFLAGS_RESET,
            ..Registers::default()
        };
        self.reset(&registers, CR0_PE_ET, 0, 0, 0);
        self.set_flat(
            Segment::new(0, CODE32, u32::MAX, 0),
            Segment::new(0, DATA32, u32::MAX, 0),
        );
        self.page
            .set_segment(field!(tr), Segment::new(0, TSS32, 0x67, 0));
        self.set_running();
    }

    fn set_running(&mut self) {
        self.activity = Activity::Running;
        self.set_runstate(RunstateKind::Running);
    }

    /// Real mode at `vector << 12`, as SIPI starts a CPU.
    fn start_real(&mut self, vector: u8) {
        let signature = self.cpuid.get(1, 0, &Context::default())[0];
        let registers = Registers {
            rdx: signature.into(),
            rflags: RFLAGS_RESET,
            ..Registers::default()
        };
        self.reset(&registers, CR0_RESET, 0, 0, 0);
        self.set_flat(
            Segment::new(
                u16::from(vector) << 8,
                CODE16,
                0xffff,
                u64::from(vector) << 12,
            ),
            Segment::new(0, DATA16, 0xffff, 0),
        );
    }

    fn start_initialised(&mut self, start: &VcpuStart) {
        match start {
            VcpuStart::Mode32(state) => self.start_32(state),
            VcpuStart::Mode64(state) => self.start_64(state),
        }
    }

    fn start_32(&mut self, state: &VcpuStart32) {
        let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi] = state.registers.map(u64::from);
        let registers = Registers {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rbp,
            rsp,
            rip: state.eip.into(),
            rflags: u64::from(state.eflags) | RFLAGS_RESET,
            ..Registers::default()
        };
        self.reset(
            &registers,
            state.cr0.into(),
            state.cr3.into(),
            state.cr4.into(),
            state.efer,
        );
        let segment = |s: &StartSegment| Segment::new(0, s.attributes, s.limit, s.base.into());
        let [cs, ds, ss, es, tr] = &state.segments;
        self.set_flat(segment(cs), segment(ds));
        self.page.set_segment(field!(ss), segment(ss));
        self.page.set_segment(field!(es), segment(es));
        self.page.set_segment(field!(tr), segment(tr));
        // FS and GS have no place in the structure: unusable.
        self.page.set_segment(field!(fs), Segment::default());
        self.page.set_segment(field!(gs), Segment::default());
    }

    fn start_64(&mut self, state: &VcpuStart64) {
        let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi] = state.registers;
        let registers = Registers {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rbp,
            rsp,
            rip: state.rip,
            rflags: state.rflags | RFLAGS_RESET,
            ..Registers::default()
        };
        self.reset(&registers, state.cr0, state.cr3, state.cr4, state.efer);
        self.set_flat(
            Segment::new(0, CODE64, u32::MAX, 0),
            Segment::new(0, DATA32, u32::MAX, 0),
        );
        self.page
            .set_segment(field!(tr), Segment::new(0, TSS32, 0x67, 0));
    }

    /// INIT, SIPI, `VCPUOP_up`, `VCPUOP_down`, and TLB flushes, in this order.
    #[cold]
    pub(super) fn look_at_power_flags(&mut self, flags: u32) {
        if flags & flag::INIT != 0 && self.activity != Activity::WaitStartup {
            self.set_up(false);
            self.apic.init();
            // The domain asserts an upcall once, when its pending bit rises. One that INIT wiped
            // out while the bit stays set would never come again, and a CPU that Linux takes down
            // and up would hear no event any more. One too many does no harm.
            let vector = self.mailbox().upcall_vector.load(Ordering::SeqCst) as u8;
            if vector != 0 {
                self.apic.request(vector, false);
            }
            self.publish_route();
            self.activity = Activity::WaitStartup;
            self.set_runstate(RunstateKind::Offline);
            self.set_deadline();
        }
        if flags & flag::STARTUP != 0 && self.activity == Activity::WaitStartup {
            let vector = self.mailbox().startup.load(Ordering::SeqCst) as u8;
            self.start_real(vector);
            self.set_up(true);
            self.set_running();
        }
        if flags & flag::DOWN != 0 && self.activity != Activity::WaitStartup {
            self.activity = Activity::Down;
            self.set_runstate(RunstateKind::Offline);
        }
        if flags & flag::UP != 0 {
            let start = self
                .shared
                .initial
                .get(self.index as usize)
                .and_then(|place| place.lock().take());
            match (start, self.activity) {
                (Some(start), Activity::WaitStartup | Activity::Down) => {
                    self.start_initialised(&start);
                    self.set_running();
                }
                // Up again after `VCPUOP_down`: goes on where it was.
                (None, Activity::Down) => self.set_running(),
                _ => {}
            }
        }
        if flags & flag::FLUSH != 0 && self.activity == Activity::Running {
            // Loading the paging registers again flushes.
            match self.need(group::MODE) {
                Ok(()) => self.modified |= group::MODE,
                Err(status) => self.crash("vCPU state not fetched", status as u64),
            }
        }
    }

    /// HLT with interrupts off: the vCPU is down, and with the last one the domain is off.
    pub(super) fn go_down(&mut self) {
        self.activity = Activity::Down;
        self.set_up(false);
        self.set_runstate(RunstateKind::Offline);
        let domain = self.shared.domain.lock();
        let any = (0..self.shared.mailboxes.len() as u32).any(|vcpu| domain.is_up(vcpu));
        drop(domain);
        if !any {
            self.shared.stop(Reason::AllDown);
        }
    }

    fn set_up(&mut self, up: bool) {
        self.shared.domain.lock().set_up(self.index, up);
    }
}
