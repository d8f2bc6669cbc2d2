//! I/O APICs and ISA lines. Every line is masked until a component listens to it.
//!
//! A level-triggered line is masked by `set_line`. An edge that comes while the line is off would
//! be lost if the hardware masked it, so an edge line stays open once used: an edge that comes
//! while it is off masks it, is remembered, and is delivered when the line is on again.

use crate::apic::{self, VECTOR_LINES};
use crate::boot::acpi::{IoApic, Line, Platform};
use crate::iommu;
use crate::lock::Once;
use crate::paging::DEVICES;
use core::sync::atomic::{AtomicU8, Ordering::Relaxed};
use heapless::Vec;
use x86_64::instructions::port::Port;

const VERSION: u32 = 1;
const REDIRECTION: u32 = 0x10;
const MASKED: u32 = 1 << 16;

const ON: u8 = 1;
const PENDING: u8 = 2;

struct State {
    apics: Vec<IoApic, 8>,
    lines: Option<[Line; 16]>,
    target: u32,
}

static STATE: Once<State> = Once::new(State {
    apics: Vec::new(),
    lines: None,
    target: 0,
});
/// Per line: [`ON`], [`PENDING`]. Guarded by the kernel lock.
static LINES: [AtomicU8; 16] = [const { AtomicU8::new(0) }; 16];

/// Where the registers of I/O APIC `index` are mapped.
pub fn address(index: usize) -> u64 {
    DEVICES + (1 + index as u64) * 4096
}

fn read(index: usize, register: u32) -> u32 {
    let base = address(index) as *mut u32;
    // SAFETY: the page is mapped; index and window registers (82093AA datasheet, 3.1).
    unsafe {
        base.write_volatile(register);
        base.add(4).read_volatile()
    }
}

fn write(index: usize, register: u32, value: u32) {
    let base = address(index) as *mut u32;
    // SAFETY: as above; entries name vectors that the core handles.
    unsafe {
        base.write_volatile(register);
        base.add(4).write_volatile(value);
    }
}

/// Masks the old interrupt controllers and every input of every I/O APIC. `target` is the local
/// APIC id of the CPU that gets all lines. Boot CPU, registers mapped.
pub fn init(platform: &Platform, target: u32) {
    // The 8259s are initialised to harmless vectors and masked (Intel 8259A datasheet).
    for (port, value) in [
        (0x20u16, 0x11u8),
        (0xa0, 0x11),
        (0x21, 0x20),
        (0xa1, 0x28),
        (0x21, 4),
        (0xa1, 2),
        (0x21, 1),
        (0xa1, 1),
        (0x21, 0xff),
        (0xa1, 0xff),
    ] {
        // SAFETY: the controllers' own registers.
        unsafe { Port::new(port).write(value) };
    }
    // SAFETY: other CPUs do not run yet.
    unsafe {
        STATE.set(State {
            apics: platform.io_apics.clone(),
            lines: Some(platform.lines),
            target,
        });
    }
    for index in 0..platform.io_apics.len() {
        for input in 0..inputs(index) {
            write(index, REDIRECTION + 2 * input, MASKED);
        }
    }
}

fn inputs(index: usize) -> u32 {
    (read(index, VERSION) >> 16 & 0xff) + 1
}

fn program(number: u32, masked: bool) {
    let state = STATE.get();
    let Some(line) = state
        .lines
        .as_ref()
        .and_then(|lines| lines.get(number as usize))
    else {
        return;
    };
    let Some((index, input)) = state.apics.iter().enumerate().find_map(|(index, apic)| {
        let input = line.gsi.checked_sub(apic.base)?;
        (input < inputs(index)).then_some((index, input))
    }) else {
        return;
    };
    let low = (u32::from(VECTOR_LINES) + number)
        | u32::from(line.low) << 13
        | u32::from(line.level) << 15
        | if masked { MASKED } else { 0 };
    let apic = &state.apics[index];
    let high = iommu::line(number, apic.id, line.level).unwrap_or(state.target << 24);
    write(index, REDIRECTION + 2 * input + 1, high);
    write(index, REDIRECTION + 2 * input, low);
}

fn is_level(number: u32) -> bool {
    let lines = STATE.get().lines.as_ref();
    lines
        .and_then(|lines| lines.get(number as usize))
        .is_some_and(|line| line.level)
}

/// Lets an ISA line be delivered, or not. Kernel lock held.
pub fn set_line(number: u32, on: bool) {
    let Some(state) = LINES.get(number as usize) else {
        return;
    };
    let before = state.load(Relaxed);
    if !on {
        state.store(before & !ON, Relaxed);
        if is_level(number) {
            program(number, true);
        }
        return;
    }
    state.store(ON, Relaxed);
    program(number, false);
    if before & PENDING != 0 {
        apic::send(STATE.get().target, VECTOR_LINES + number as u8);
    }
}

/// The message with which a device interrupts as `line`, if nothing translates it: address, and data
/// in the high half (Intel SDM vol. 3, 11.11).
pub fn message(line: u32) -> u64 {
    let data = u32::from(VECTOR_LINES) + line;
    0xfee0_0000 | u64::from(STATE.get().target & 0xff) << 12 | u64::from(data) << 32
}

/// An interrupt of this line arrived: true if it is to be delivered. Kernel lock held.
pub fn arrived(number: u32) -> bool {
    let Some(state) = LINES.get(number as usize) else {
        // A message: its device sends no other until it was looked after, or does no harm.
        return true;
    };
    let before = state.load(Relaxed);
    if before & ON != 0 {
        return true;
    }
    state.store(before | PENDING, Relaxed);
    program(number, true);
    false
}
