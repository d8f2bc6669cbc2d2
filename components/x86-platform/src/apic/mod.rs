//! One vCPU's local APIC: registers, priorities, mode changes and the local vector table.
//!
//! Called by the VMM thread that owns the vCPU; nothing here is shared between threads. What
//! concerns other vCPUs leaves as an [`Effect`], which the VMM routes with [`Route`]. Time comes
//! in as an argument, in ticks of the guest's TSC; nothing here reads a clock. Register layout
//! and rules: Intel SDM vol. 3, chapter 11 ("APIC"); the version and what is absent follow Xen's
//! virtual local APIC.

mod icr;
mod timer;

pub use icr::{Delivery, Destination, Ipi, Route};
pub use timer::Clock;

use timer::Timer;

/// Guest-physical address of the register page; the guest cannot move it.
pub const BASE_ADDRESS: u64 = 0xfee0_0000;
/// Bytes of the register page.
pub const PAGE_BYTES: u64 = 4096;

const BASE_BSP: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;

/// Version register: integrated APIC 0x14, six LVT entries, as Xen's (`VLAPIC_VERSION`).
const VERSION: u32 = 0x0005_0014;

const SVR_ENABLE: u32 = 1 << 8;
const LVT_MASKED: u32 = 1 << 16;

/// Register offsets in the xAPIC page; an x2APIC MSR is `0x800 + offset / 16`.
mod reg {
    pub const ID: u32 = 0x20;
    pub const VERSION: u32 = 0x30;
    pub const TPR: u32 = 0x80;
    pub const APR: u32 = 0x90;
    pub const PPR: u32 = 0xa0;
    pub const EOI: u32 = 0xb0;
    pub const LDR: u32 = 0xd0;
    pub const DFR: u32 = 0xe0;
    pub const SVR: u32 = 0xf0;
    pub const ISR: u32 = 0x100;
    pub const TMR: u32 = 0x180;
    pub const IRR: u32 = 0x200;
    pub const ESR: u32 = 0x280;
    pub const ICR: u32 = 0x300;
    pub const ICR_HIGH: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_ERROR: u32 = 0x370;
    pub const TIMER_INITIAL: u32 = 0x380;
    pub const TIMER_CURRENT: u32 = 0x390;
    pub const TIMER_DIVIDE: u32 = 0x3e0;
    pub const SELF_IPI: u32 = 0x3f0;
}

/// MSR of the APIC's base and mode.
pub const MSR_APIC_BASE: u32 = 0x1b;
/// MSR of the TSC deadline.
pub const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// First x2APIC MSR.
pub const MSR_X2APIC_FIRST: u32 = 0x800;
/// Last MSR of the range reserved for x2APIC.
pub const MSR_X2APIC_LAST: u32 = 0xbff;

/// The access raises #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

/// What a register write asks of the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Nothing beyond this APIC.
    None,
    /// Deliver this to the vCPUs whose [`Route`] matches.
    Ipi(Ipi),
    /// How other vCPUs address this one changed: publish [`LocalApic::route`] again.
    Rerouted,
}

/// The operating mode, from the APIC base MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Globally disabled.
    Disabled,
    /// Registers in the page at [`BASE_ADDRESS`].
    XApic,
    /// Registers as MSRs.
    X2Apic,
}

/// 256 bits, one per vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Vectors([u32; 8]);

impl Vectors {
    fn set(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] |= 1 << (vector & 31);
    }

    fn clear(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] &= !(1 << (vector & 31));
    }

    fn has(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 5)] & 1 << (vector & 31) != 0
    }

    fn highest(&self) -> Option<u8> {
        (0..8u8).rev().find_map(|index| {
            let word = self.0[usize::from(index)];
            (word != 0).then(|| index * 32 + (31 - word.leading_zeros() as u8))
        })
    }
}

/// A local APIC.
#[derive(Clone, Debug)]
pub struct LocalApic {
    id: u32,
    base: u64,
    tpr: u8,
    ldr: u32,
    dfr: u32,
    svr: u32,
    esr: u32,
    esr_pending: u32,
    icr: u64,
    /// Timer, thermal, performance, LINT0, LINT1, error.
    lvt: [u32; 6],
    irr: Vectors,
    isr: Vectors,
    tmr: Vectors,
    timer: Timer,
    /// Highest vector in `irr`, 0 when none: keeps [`LocalApic::pending`] short.
    irr_top: u8,
    /// Highest vector in `isr`, 0 when none.
    isr_top: u8,
}

impl LocalApic {
    /// An APIC after power-up, in xAPIC mode. `bootstrap` marks the first vCPU.
    pub fn new(id: u32, bootstrap: bool, clock: Clock) -> LocalApic {
        LocalApic {
            id,
            base: BASE_ADDRESS | BASE_ENABLE | if bootstrap { BASE_BSP } else { 0 },
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xff,
            esr: 0,
            esr_pending: 0,
            icr: 0,
            lvt: [LVT_MASKED; 6],
            irr: Vectors::default(),
            isr: Vectors::default(),
            tmr: Vectors::default(),
            timer: Timer::new(clock),
            irr_top: 0,
            isr_top: 0,
        }
    }

    /// What INIT does: everything but the id and the base MSR returns to its power-up value.
    pub fn init(&mut self) {
        let fresh = LocalApic::new(self.id, false, self.timer.clock());
        *self = LocalApic {
            base: self.base,
            ldr: if self.mode() == Mode::X2Apic {
                self.ldr
            } else {
                0
            },
            ..fresh
        };
    }

    /// The operating mode.
    pub fn mode(&self) -> Mode {
        match self.base & (BASE_ENABLE | BASE_X2APIC) {
            0 => Mode::Disabled,
            BASE_ENABLE => Mode::XApic,
            _ => Mode::X2Apic,
        }
    }

    /// How others address this APIC.
    pub fn route(&self) -> Route {
        Route::new(self.id, self.mode(), self.svr, self.ldr, self.dfr)
    }

    /// The base MSR.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Writes the base MSR. Refused: reserved bits, moving the page, and the mode changes that
    /// SDM vol. 3, 11.12.5 forbids.
    pub fn write_base(&mut self, value: u64) -> Result<Effect, GeneralProtection> {
        let mode_bits = BASE_ENABLE | BASE_X2APIC;
        if value & !(mode_bits | BASE_BSP) != BASE_ADDRESS {
            return Err(GeneralProtection);
        }
        let target = match value & mode_bits {
            0 => Mode::Disabled,
            BASE_ENABLE => Mode::XApic,
            BASE_X2APIC => return Err(GeneralProtection),
            _ => Mode::X2Apic,
        };
        match (self.mode(), target) {
            (Mode::Disabled, Mode::X2Apic) | (Mode::X2Apic, Mode::XApic) => {
                return Err(GeneralProtection);
            }
            (from, to) if from == to => return Ok(Effect::None),
            _ => {}
        }
        self.base = self.base & BASE_BSP | value & mode_bits | BASE_ADDRESS;
        match target {
            Mode::Disabled => self.init(),
            Mode::X2Apic => self.ldr = (self.id >> 4) << 16 | 1 << (self.id & 15),
            Mode::XApic => {}
        }
        Ok(Effect::Rerouted)
    }

    fn software_enabled(&self) -> bool {
        self.svr & SVR_ENABLE != 0 && self.base & BASE_ENABLE != 0
    }

    /// Processor priority (SDM vol. 3, 11.8.3.1).
    fn ppr(&self) -> u8 {
        if self.tpr & 0xf0 >= self.isr_top & 0xf0 {
            self.tpr
        } else {
            self.isr_top & 0xf0
        }
    }

    /// Task priority, the high half of which is CR8.
    pub fn task_priority(&self) -> u8 {
        self.tpr
    }

    /// Sets the task priority, as the TPR register and CR8 (shifted left by 4) do.
    pub fn set_task_priority(&mut self, value: u8) {
        self.tpr = value;
    }

    /// The vector to inject next, if one outranks what the CPU is doing.
    #[inline]
    pub fn pending(&self) -> Option<u8> {
        let vector = self.irr_top;
        (vector != 0 && vector & 0xf0 > self.ppr() & 0xf0 && self.software_enabled())
            .then_some(vector)
    }

    /// Whether [`LocalApic::pending`] may have something, in one look: some vector is requested.
    #[inline(always)]
    pub fn requested(&self) -> bool {
        self.irr_top != 0
    }

    /// The vector was injected: it moves from requested to in service.
    pub fn acknowledge(&mut self, vector: u8) {
        self.irr.clear(vector);
        self.irr_top = self.irr.highest().unwrap_or(0);
        self.isr.set(vector);
        self.isr_top = self.isr_top.max(vector);
    }

    /// Requests a fixed interrupt. Vectors below 16 are an error and are recorded as one. Stays
    /// requested while the APIC is software-disabled, as under Xen (`vlapic_set_irq`): whether a
    /// disabled APIC takes an IPI is for [`Route::accepts`] to say.
    pub fn request(&mut self, vector: u8, level: bool) {
        if vector < 16 {
            self.error(1 << 6);
            return;
        }
        self.irr.set(vector);
        self.irr_top = self.irr_top.max(vector);
        if level {
            self.tmr.set(vector);
        } else {
            self.tmr.clear(vector);
        }
    }

    fn error(&mut self, bits: u32) {
        let fresh = self.esr_pending & bits != bits;
        self.esr_pending |= bits;
        let lvt = self.lvt[5];
        let vector = lvt as u8;
        if fresh && lvt & LVT_MASKED == 0 && vector >= 16 && self.software_enabled() {
            self.irr.set(vector);
            self.irr_top = self.irr_top.max(vector);
        }
    }

    fn end_of_interrupt(&mut self) {
        if self.isr_top != 0 {
            self.isr.clear(self.isr_top);
            self.isr_top = self.isr.highest().unwrap_or(0);
        }
    }

    /// Lets the timer catch up with guest TSC `now`, requesting its interrupt if it expired.
    #[inline]
    pub fn advance(&mut self, now: u64) {
        if self.timer.expired(now) {
            self.timer_expired(now);
        }
    }

    fn timer_expired(&mut self, now: u64) {
        let lvt = self.lvt[0];
        self.timer.restart(now, lvt);
        if lvt & LVT_MASKED == 0 {
            self.request(lvt as u8, false);
        }
    }

    /// Guest TSC at which [`LocalApic::advance`] wants to be called, if the timer can interrupt.
    #[inline]
    pub fn deadline(&self) -> Option<u64> {
        if self.lvt[0] & LVT_MASKED != 0 {
            return None;
        }
        self.timer.deadline()
    }

    /// Reads a register of the xAPIC page. Offsets that are no register read as 0, and so does
    /// everything when the APIC is not in xAPIC mode (the VMM should not come here then).
    pub fn mmio_read(&mut self, offset: u32, now: u64) -> u32 {
        if self.mode() != Mode::XApic || offset & 0xf != 0 {
            return 0;
        }
        match offset {
            reg::ID => self.id << 24,
            reg::LDR => self.ldr,
            reg::DFR => self.dfr,
            reg::ICR_HIGH => (self.icr >> 32) as u32,
            reg::SELF_IPI => 0,
            _ => self.read(offset, now).unwrap_or(0),
        }
    }

    /// Writes a register of the xAPIC page; read-only and absent ones ignore it.
    pub fn mmio_write(&mut self, offset: u32, value: u32, now: u64) -> Effect {
        if self.mode() != Mode::XApic || offset & 0xf != 0 {
            return Effect::None;
        }
        match offset {
            reg::LDR => {
                self.ldr = value & 0xff00_0000;
                Effect::Rerouted
            }
            reg::DFR => {
                self.dfr = value | 0x0fff_ffff;
                Effect::Rerouted
            }
            reg::ICR => {
                self.icr = self.icr & !0xffff_ffff | u64::from(value & 0x000c_cfff);
                self.send((self.icr >> 56) as u32)
            }
            reg::ICR_HIGH => {
                self.icr = self.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32;
                Effect::None
            }
            reg::ESR => {
                self.latch_errors();
                Effect::None
            }
            reg::SELF_IPI => Effect::None,
            _ => self.write(offset, value, now).unwrap_or(Effect::None),
        }
    }

    /// Reads an x2APIC MSR ([`MSR_X2APIC_FIRST`]..=[`MSR_X2APIC_LAST`]).
    pub fn msr_read(&mut self, msr: u32, now: u64) -> Result<u64, GeneralProtection> {
        if self.mode() != Mode::X2Apic
            || !(MSR_X2APIC_FIRST..MSR_X2APIC_FIRST + 0x40).contains(&msr)
        {
            return Err(GeneralProtection);
        }
        match (msr - MSR_X2APIC_FIRST) << 4 {
            reg::ID => Ok(self.id.into()),
            reg::LDR => Ok(self.ldr.into()),
            reg::ICR => Ok(self.icr),
            reg::APR | reg::EOI | reg::DFR | reg::ICR_HIGH | reg::SELF_IPI => {
                Err(GeneralProtection)
            }
            offset => self
                .read(offset, now)
                .map(u64::from)
                .ok_or(GeneralProtection),
        }
    }

    /// Writes an x2APIC MSR.
    pub fn msr_write(
        &mut self,
        msr: u32,
        value: u64,
        now: u64,
    ) -> Result<Effect, GeneralProtection> {
        if self.mode() != Mode::X2Apic
            || !(MSR_X2APIC_FIRST..MSR_X2APIC_FIRST + 0x40).contains(&msr)
        {
            return Err(GeneralProtection);
        }
        let offset = (msr - MSR_X2APIC_FIRST) << 4;
        if offset == reg::ICR {
            if value & 0xfff3_3000 != 0 {
                return Err(GeneralProtection);
            }
            self.icr = value;
            return Ok(self.send((value >> 32) as u32));
        }
        let value = u32::try_from(value).map_err(|_| GeneralProtection)?;
        match offset {
            reg::SELF_IPI if value <= 0xff => {
                self.request(value as u8, false);
                Ok(Effect::None)
            }
            reg::ESR if value == 0 => {
                self.latch_errors();
                Ok(Effect::None)
            }
            reg::EOI if value != 0 => Err(GeneralProtection),
            reg::SELF_IPI | reg::ESR | reg::DFR | reg::LDR | reg::ICR_HIGH => {
                Err(GeneralProtection)
            }
            _ if value & Self::reserved(offset) != 0 => Err(GeneralProtection),
            _ => self.write(offset, value, now).ok_or(GeneralProtection),
        }
    }

    /// The TSC-deadline MSR: 0 when the timer is in another mode (SDM vol. 3, 11.5.4.1).
    pub fn tsc_deadline(&mut self, now: u64) -> u64 {
        self.advance(now);
        self.timer.tsc_deadline(self.lvt[0])
    }

    /// Writes the TSC-deadline MSR; ignored when the timer is in another mode.
    pub fn set_tsc_deadline(&mut self, value: u64, now: u64) {
        self.timer.set_tsc_deadline(value, self.lvt[0]);
        self.advance(now);
    }

    /// The guest's TSC jumped by `delta` (wrapping): a running count keeps its remaining time.
    pub fn tsc_moved(&mut self, delta: u64) {
        self.timer.tsc_moved(delta, self.lvt[0]);
    }

    /// Bits whose setting faults in x2APIC mode.
    fn reserved(offset: u32) -> u32 {
        match offset {
            reg::TPR => !0xff,
            reg::SVR => !0x1ff,
            reg::LVT_TIMER..=reg::LVT_ERROR => !Self::lvt_writable(offset) & !(1 << 12),
            reg::TIMER_DIVIDE => !0xb,
            _ => 0,
        }
    }

    fn lvt_writable(offset: u32) -> u32 {
        match offset {
            reg::LVT_TIMER => 0x0007_00ff,
            0x350 | 0x360 => 0x0001_a7ff,
            reg::LVT_ERROR => 0x0001_00ff,
            _ => 0x0001_07ff,
        }
    }

    fn latch_errors(&mut self) {
        self.esr = self.esr_pending;
        self.esr_pending = 0;
    }

    fn read(&mut self, offset: u32, now: u64) -> Option<u32> {
        let word = (offset as usize >> 4) & 7;
        Some(match offset {
            reg::VERSION => VERSION,
            reg::TPR => self.tpr.into(),
            reg::PPR => self.ppr().into(),
            reg::APR => 0,
            reg::SVR => self.svr,
            reg::ISR..=0x170 => self.isr.0[word],
            reg::TMR..=0x1f0 => self.tmr.0[word],
            reg::IRR..=0x270 => {
                self.advance(now);
                self.irr.0[word]
            }
            reg::ESR => self.esr,
            reg::ICR => self.icr as u32,
            reg::LVT_TIMER..=reg::LVT_ERROR => self.lvt[(offset as usize - 0x320) >> 4],
            reg::TIMER_INITIAL => self.timer.initial(),
            reg::TIMER_CURRENT => {
                self.advance(now);
                self.timer.current(now, self.lvt[0])
            }
            reg::TIMER_DIVIDE => self.timer.divide_register(),
            _ => return None,
        })
    }

    fn write(&mut self, offset: u32, value: u32, now: u64) -> Option<Effect> {
        match offset {
            reg::TPR => self.tpr = value as u8,
            reg::EOI => self.end_of_interrupt(),
            reg::SVR => {
                self.svr = value & 0x1ff;
                if value & SVR_ENABLE == 0 {
                    for lvt in &mut self.lvt {
                        *lvt |= LVT_MASKED;
                    }
                }
                return Some(Effect::Rerouted);
            }
            reg::LVT_TIMER..=reg::LVT_ERROR => {
                self.advance(now);
                let index = (offset as usize - 0x320) >> 4;
                let mut value = value & Self::lvt_writable(offset);
                if self.svr & SVR_ENABLE == 0 {
                    value |= LVT_MASKED;
                }
                if index == 0 {
                    self.timer.mode_changed(self.lvt[0], value);
                }
                self.lvt[index] = value;
            }
            reg::TIMER_INITIAL => {
                self.advance(now);
                self.timer.start(value, now, self.lvt[0]);
            }
            reg::TIMER_DIVIDE => {
                self.advance(now);
                self.timer.set_divide(value & 0xb, now, self.lvt[0]);
            }
            _ => return None,
        }
        Some(Effect::None)
    }

    fn send(&mut self, destination: u32) -> Effect {
        let x2apic = self.mode() == Mode::X2Apic;
        let Some(ipi) = Ipi::from_icr(self.icr as u32, destination, x2apic, self.id) else {
            return Effect::None;
        };
        match ipi.delivery {
            Delivery::Fixed(vector) | Delivery::LowestPriority(vector) if vector < 16 => {
                self.error(1 << 5);
                Effect::None
            }
            Delivery::Fixed(vector) if ipi.destination == Destination::OnlySelf => {
                self.request(vector, false);
                Effect::None
            }
            _ => Effect::Ipi(ipi),
        }
    }

    /// True while a vector is requested or in service; for tests and dumps.
    pub fn is_requested(&self, vector: u8) -> (bool, bool) {
        (self.irr.has(vector), self.isr.has(vector))
    }
}

#[cfg(test)]
mod tests;
