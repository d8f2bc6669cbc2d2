//! The local APIC, in x2APIC mode where the CPU has it and by memory-mapped registers otherwise:
//! interrupts between CPUs, end of interrupt, and the one-shot timer (Intel SDM vol. 3, 11).

use crate::paging::DEVICES;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use raw_cpuid::CpuId;
use x86_64::registers::model_specific::Msr;

/// Vectors of interrupts, ISA lines and messages, start here.
pub const VECTOR_LINES: u8 = 0x30;
/// Asks a CPU to reschedule.
pub const VECTOR_RESCHEDULE: u8 = 0xf0;
/// Asks a CPU to carry out a flush.
pub const VECTOR_FLUSH: u8 = 0xf1;
/// The timer.
pub const VECTOR_TIMER: u8 = 0xf2;
const VECTOR_ERROR: u8 = 0xf3;
/// An IOMMU has something to report.
pub const VECTOR_IOMMU: u8 = 0xf4;
/// Spurious: takes no end of interrupt.
pub const VECTOR_SPURIOUS: u8 = 0xff;

const APIC_BASE: u32 = 0x1b;
const TSC_DEADLINE: u32 = 0x6e0;

const ID: u32 = 0x20;
const TPR: u32 = 0x80;
const EOI: u32 = 0xb0;
const SVR: u32 = 0xf0;
const ICR: u32 = 0x300;
const ICR_HIGH: u32 = 0x310;
const LVT_TIMER: u32 = 0x320;
const LVT_LINT0: u32 = 0x350;
const LVT_LINT1: u32 = 0x360;
const LVT_ERROR: u32 = 0x370;
const INITIAL_COUNT: u32 = 0x380;
const CURRENT_COUNT: u32 = 0x390;
const DIVIDE: u32 = 0x3e0;

const MASKED: u32 = 1 << 16;
const MODE_NMI: u32 = 4 << 8;
const TIMER_DEADLINE: u32 = 2 << 17;

static X2APIC: AtomicBool = AtomicBool::new(false);
static DEADLINE_MODE: AtomicBool = AtomicBool::new(false);
/// Timer ticks per TSC tick, as a 32.32 fixed-point number.
static SCALE: AtomicU64 = AtomicU64::new(0);

fn read(register: u32) -> u32 {
    // SAFETY: reads of the local APIC's registers change nothing in memory; its page is mapped.
    unsafe {
        if X2APIC.load(Relaxed) {
            Msr::new(0x800 + (register >> 4)).read() as u32
        } else {
            ((DEVICES + u64::from(register)) as *const u32).read_volatile()
        }
    }
}

#[inline(always)]
fn write(register: u32, value: u32) {
    // SAFETY: the callers below write values that the registers define; the page is mapped.
    unsafe {
        if X2APIC.load(Relaxed) {
            Msr::new(0x800 + (register >> 4)).write(value.into());
        } else {
            ((DEVICES + u64::from(register)) as *mut u32).write_volatile(value);
        }
    }
}

/// Chooses the mode. Boot CPU, before `activate`; the registers' page is mapped at `DEVICES`.
pub fn init() {
    let features = CpuId::new().get_feature_info();
    let has = |test: fn(&raw_cpuid::FeatureInfo) -> bool| features.as_ref().is_some_and(test);
    X2APIC.store(has(raw_cpuid::FeatureInfo::has_x2apic), Relaxed);
    DEADLINE_MODE.store(has(raw_cpuid::FeatureInfo::has_tsc_deadline), Relaxed);
}

/// True if identifiers of CPUs have 32 bits.
pub fn is_x2apic() -> bool {
    X2APIC.load(Relaxed)
}

/// Name of the mode, for the log.
pub fn mode() -> &'static str {
    match (X2APIC.load(Relaxed), DEADLINE_MODE.load(Relaxed)) {
        (true, true) => "x2APIC, TSC deadline",
        (true, false) => "x2APIC, one-shot timer",
        (false, true) => "xAPIC, TSC deadline",
        (false, false) => "xAPIC, one-shot timer",
    }
}

/// Turns this CPU's local APIC on, everything masked but NMI.
pub fn activate() {
    // SAFETY: enabling bits of IA32_APIC_BASE; xAPIC to x2APIC is a permitted transition.
    unsafe {
        let mut base = Msr::new(APIC_BASE);
        let on = base.read() | 1 << 11;
        base.write(on);
        if X2APIC.load(Relaxed) {
            base.write(on | 1 << 10);
        }
    }
    write(SVR, 0x100 | u32::from(VECTOR_SPURIOUS));
    write(TPR, 0);
    write(LVT_LINT0, MASKED);
    write(LVT_LINT1, MODE_NMI);
    write(LVT_ERROR, u32::from(VECTOR_ERROR));
    write(DIVIDE, 0b1011);
    let timer = u32::from(VECTOR_TIMER);
    let deadline = DEADLINE_MODE.load(Relaxed);
    write(
        LVT_TIMER,
        if deadline {
            timer | TIMER_DEADLINE
        } else {
            timer
        },
    );
    end_of_interrupt();
}

/// This CPU's id.
pub fn id() -> u32 {
    let id = read(ID);
    if X2APIC.load(Relaxed) { id } else { id >> 24 }
}

/// Ends the interrupt in service.
#[inline(always)]
pub fn end_of_interrupt() {
    write(EOI, 0);
}

fn command(target: u32, low: u32) {
    if X2APIC.load(Relaxed) {
        // WRMSR to the ICR is not serialising (Intel SDM vol. 3, 11.12.3): earlier stores first.
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        // SAFETY: an inter-processor interrupt to a CPU that expects it.
        unsafe { Msr::new(0x800 + (ICR >> 4)).write(u64::from(target) << 32 | u64::from(low)) };
        return;
    }
    while read(ICR) & 1 << 12 != 0 {
        core::hint::spin_loop();
    }
    write(ICR_HIGH, target << 24);
    write(ICR, low);
}

/// Sends an interrupt to another CPU, or this one.
pub fn send(target: u32, vector: u8) {
    command(target, u32::from(vector) | 1 << 14);
}

/// Sends a non-maskable interrupt.
pub fn send_nmi(target: u32) {
    command(target, MODE_NMI | 1 << 14);
}

/// Sends INIT, which stops a CPU.
pub fn send_init(target: u32) {
    command(target, 5 << 8 | 1 << 14);
}

/// Starts a stopped CPU at `page` * 4096 in real mode.
pub fn send_startup(target: u32, page: u8) {
    command(target, 6 << 8 | 1 << 14 | u32::from(page));
}

/// Lets the timer count down from the top with its interrupt masked, for calibration.
pub fn calibration_start() {
    write(LVT_TIMER, MASKED | u32::from(VECTOR_TIMER));
    write(INITIAL_COUNT, u32::MAX);
}

/// Timer ticks since `calibration_start`.
pub fn calibration_ticks() -> u32 {
    u32::MAX - read(CURRENT_COUNT)
}

/// Ends calibration: `timer` ticks passed while the TSC made `tsc`.
pub fn calibration_end(timer: u64, tsc: u64) {
    write(INITIAL_COUNT, 0);
    SCALE.store(
        ((u128::from(timer) << 32) / u128::from(tsc.max(1))) as u64,
        Relaxed,
    );
    activate();
}

/// Arms the timer for `deadline`, absolute TSC; `u64::MAX` disarms it. May fire early when the
/// deadline is far: the caller looks again at each timer interrupt.
#[inline]
pub fn arm(deadline: u64) {
    if DEADLINE_MODE.load(Relaxed) {
        let value = if deadline == u64::MAX {
            0
        } else {
            deadline.max(1)
        };
        // SAFETY: IA32_TSC_DEADLINE only makes this CPU's timer interrupt.
        unsafe { Msr::new(TSC_DEADLINE).write(value) };
        return;
    }
    if deadline == u64::MAX {
        write(INITIAL_COUNT, 0);
        return;
    }
    // At most 2^40 TSC ticks ahead, so that the product stays in range.
    let ahead = deadline.saturating_sub(crate::time::now()).min(1 << 40);
    let ticks = (u128::from(ahead) * u128::from(SCALE.load(Relaxed))) >> 32;
    write(INITIAL_COUNT, (ticks as u64).clamp(1, 0xffff_0000) as u32);
}
