//! Time: the TSC, its frequency, whether CPUs agree on it, and the wall clock at boot.

use crate::apic;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use raw_cpuid::CpuId;
use x86_64::instructions::port::Port;

/// Input of the 8254 timer in Hz.
const PIT_HZ: u64 = 1_193_182;
/// Calibration window: 1/50 s at least.
const PIT_TICKS: u16 = (PIT_HZ / 50) as u16;

static TSC_KHZ: AtomicU64 = AtomicU64::new(0);

/// Now, in TSC ticks.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: RDTSC is always there in long mode.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// TSC ticks per millisecond.
pub fn tsc_khz() -> u64 {
    TSC_KHZ.load(Ordering::Relaxed)
}

/// True if the TSC's rate never changes (CPUID 8000_0007).
pub fn invariant_tsc() -> bool {
    CpuId::new()
        .get_advanced_power_mgmt_info()
        .is_some_and(|info| info.has_invariant_tsc())
}

fn port_read(port: u16) -> u8 {
    // SAFETY: timer, speaker gate and CMOS ports; reading them does not touch memory.
    unsafe { Port::new(port).read() }
}

fn port_write(port: u16, value: u8) {
    // SAFETY: as above.
    unsafe { Port::new(port).write(value) }
}

/// One moment on three clocks: TSC, local APIC timer, and what the 8254 has counted.
type Moment = (u64, u32, u16);

/// The moment, of some tries, whose clocks were read with the least TSC between them: whoever took
/// this CPU away in the middle of one try spoils that one only.
fn moment() -> Moment {
    let tries = [(); 8].map(|()| {
        let before = now();
        port_write(0x43, 0x80); // channel 2 keeps its count for reading
        let timer = apic::calibration_ticks();
        let between = now() - before;
        let count = u16::from_le_bytes([port_read(0x42), port_read(0x42)]);
        (between, (before + between / 2, timer, u16::MAX - count))
    });
    tries.into_iter().min().map_or((0, 0, 0), |best| best.1)
}

/// Lets the 8254's channel 2 count; what passed meanwhile on TSC, local APIC timer and 8254. False
/// if the count ran out before the end: it is then unknown how often.
fn against_pit() -> ((u64, u64, u64), bool) {
    let gate = port_read(0x61) & !3;
    port_write(0x61, gate);
    // Channel 2, both bytes, mode 0: output rises when the count is done.
    port_write(0x43, 0xb0);
    port_write(0x42, 0xff);
    port_write(0x42, 0xff);
    apic::calibration_start();
    port_write(0x61, gate | 1);
    let first = moment();
    let passed = loop {
        let last = moment();
        let pit = last.2.wrapping_sub(first.2);
        // A machine without the 8254 must not hang: no TSC makes 2^34 ticks in 1/50 s.
        if pit >= PIT_TICKS || last.0 - first.0 >= 1 << 34 {
            break (last.0 - first.0, (last.1 - first.1).into(), pit.into());
        }
    };
    let within = port_read(0x61) & 0x20 == 0;
    port_write(0x61, gate);
    (passed, within)
}

/// The TSC's frequency in kHz if the CPU or a hypervisor states it.
fn stated_khz() -> Option<u64> {
    let cpuid = CpuId::new();
    let crystal = cpuid
        .get_tsc_info()
        .and_then(|info| info.tsc_frequency())
        .map(|hz| hz / 1000);
    let hypervisor = || {
        let info = cpuid.get_hypervisor_info()?;
        info.tsc_frequency().map(u64::from)
    };
    crystal.or_else(hypervisor).filter(|&khz| khz > 0)
}

/// Measures TSC and local APIC timer. Boot CPU, after `apic::activate`.
pub fn calibrate() {
    let mut window = against_pit();
    for _ in 0..20 {
        if window.1 {
            break;
        }
        window = against_pit();
    }
    let (tsc, timer, pit) = window.0;
    apic::calibration_end(timer, tsc);
    let measured = tsc * PIT_HZ / pit.max(1) / 1000;
    let khz = stated_khz().unwrap_or(measured);
    TSC_KHZ.store(khz.max(1), Ordering::Relaxed);
    log::info!(
        "TSC {khz} kHz (measured {measured}{}), {}",
        if invariant_tsc() { ", invariant" } else { "" },
        apic::mode(),
    );
}

/// Waits; for the starting of CPUs only.
pub fn delay_microseconds(count: u64) {
    let end = now() + tsc_khz() * count / 1000;
    while now() < end {
        core::hint::spin_loop();
    }
}

static SYNC_TURN: AtomicUsize = AtomicUsize::new(0);
static SYNC_LAST: AtomicU64 = AtomicU64::new(0);
static SYNC_WORST: AtomicU64 = AtomicU64::new(0);
static SYNC_HELD: AtomicBool = AtomicBool::new(false);
const SYNC_ROUNDS: usize = 2000;

/// Both CPUs of a pair call this, `first` being 0 and 1; the pair takes turns reading the TSC. The
/// largest step backwards in ticks, 0 if their counters agree.
pub fn compare_tsc(first: usize) -> u64 {
    if first == 0 {
        SYNC_LAST.store(0, Ordering::Relaxed);
        SYNC_WORST.store(0, Ordering::Relaxed);
        SYNC_TURN.store(0, Ordering::Release);
        SYNC_HELD.store(true, Ordering::Release);
    }
    while !SYNC_HELD.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
    for round in 0..SYNC_ROUNDS {
        while SYNC_TURN.load(Ordering::Acquire) != 2 * round + first {
            core::hint::spin_loop();
        }
        let now = now();
        let back = SYNC_LAST.swap(now, Ordering::Relaxed).saturating_sub(now);
        SYNC_WORST.fetch_max(back, Ordering::Relaxed);
        SYNC_TURN.store(2 * round + first + 1, Ordering::Release);
    }
    while SYNC_TURN.load(Ordering::Acquire) < 2 * SYNC_ROUNDS {
        core::hint::spin_loop();
    }
    if first == 1 {
        SYNC_HELD.store(false, Ordering::Release);
    }
    SYNC_WORST.load(Ordering::Relaxed)
}

fn cmos(register: u8) -> u8 {
    port_write(0x70, register | 0x80);
    port_read(0x71)
}

/// Seconds since 1970 from the CMOS clock (MC146818A datasheet), taken as UTC; `None` if it reads
/// nonsense.
pub fn wall_seconds() -> Option<u64> {
    let read = || [0u8, 2, 4, 7, 8, 9, 0x32].map(cmos);
    // Two equal readings outside an update are one consistent time.
    let fields = (0..1000).find_map(|_| {
        if cmos(0x0a) & 0x80 != 0 {
            return None;
        }
        let fields = read();
        (fields == read()).then_some(fields)
    })?;
    let format = cmos(0x0b);
    let number = |value: u8| -> u64 {
        if format & 4 != 0 {
            value.into()
        } else {
            u64::from(value >> 4) * 10 + u64::from(value & 15)
        }
    };
    let [second, minute, hour, day, month, year, century] = fields;
    let mut hours = number(hour & 0x7f);
    if format & 2 == 0 {
        hours = hours % 12 + if hour & 0x80 != 0 { 12 } else { 0 };
    }
    let century = match number(century) {
        century @ 19..=21 => century,
        _ => 20,
    };
    let (year, month, day) = (century * 100 + number(year), number(month), number(day));
    let valid = (1970..2200).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hours < 24;
    valid.then(|| {
        days_since_1970(year, month, day) * 86400
            + hours * 3600
            + number(minute) * 60
            + number(second)
    })
}

/// Days from 1970-01-01 in the Gregorian calendar; the year is taken to start in March, so that
/// the leap day is its last.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    days - 719_468
}
