//! What is said about a component that faulted: who, what, registers, backtrace, and the capability
//! that it was refused last. Everything read from the dead component is untrusted and only ever
//! printed. A component that dies of the same thing again and again does so in one line each.

use alloc::vec::Vec;

use root_plan::backtrace::{DEPTH, Named, vector_name, walk};
use sdk::abi::FRAME;
use sdk::abi::call::CALLS;
use sdk::abi::thread::{Report, State};
use sdk::memory::{READ, Window};
use sdk::panic::{MAGIC, MESSAGE_BYTES};
use sdk::prelude::*;

use super::instance::Instance;
use super::maker::Region;

/// Reads a dead component's memory through copies of its frames.
struct Corpse<'a> {
    regions: &'a [Region],
    window: &'a mut Window,
}

impl Corpse<'_> {
    fn read(&mut self, address: u64, into: &mut [u8]) -> Option<()> {
        let region = self.regions.iter().find(|region| {
            let end = region.address + u64::from(region.count) * FRAME;
            (region.address..end).contains(&address)
        })?;
        let page = u32::try_from((address - region.address) / FRAME).ok()?;
        let offset = (address % FRAME) as usize;
        let first = into.len().min(FRAME as usize - offset);
        let (head, tail) = into.split_at_mut_checked(first)?;
        let frame = Cap::<cap::Frame>::new(region.frames.slot() + page);
        let copy = frame.copy(Rights::READ).ok()?;
        let done = self.window.with(copy, 1, READ, |bytes| {
            bytes
                .get(offset..offset + head.len())
                .map(|from| head.copy_from_slice(from))
        });
        // The copy is ours; that it goes is certain unless it never was.
        let _ = copy.delete();
        done.ok()??;
        if tail.is_empty() {
            return Some(());
        }
        self.read(address.checked_add(first as u64)?, tail)
    }

    fn word(&mut self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Some(u64::from_le_bytes(bytes))
    }
}

/// What a thread died of.
#[derive(PartialEq, Eq)]
pub struct Cause {
    vector: u64,
    error_code: u64,
    address: u64,
    frames: heapless::Vec<u64, DEPTH>,
    message: Option<heapless::Vec<u8, MESSAGE_BYTES>>,
}

/// Reports each thread that faulted; true if there was one. `causes` are those of the time before,
/// and then of this one.
pub fn faults(
    name: &str,
    instance: &Instance,
    symbols: &[u8],
    window: &mut Window,
    causes: &mut Vec<Cause>,
) -> bool {
    let before = core::mem::take(causes);
    for (index, thread) in instance.threads.iter().enumerate() {
        let Ok(report) = thread.inspect() else {
            continue;
        };
        if report.state == State::Faulted as u64 {
            let mut corpse = Corpse {
                regions: instance.regions(),
                window,
            };
            let cause = cause(&report, &mut corpse);
            if before.contains(&cause) {
                log::error!(
                    "component {name}: the same again: {} in thread {index}",
                    vector_name(report.vector)
                );
            } else {
                fault(name, index, &report, &cause, symbols);
                refusal(&report, instance);
            }
            causes.push(cause);
        }
    }
    !causes.is_empty()
}

fn cause(report: &Report, corpse: &mut Corpse<'_>) -> Cause {
    let r = &report.registers;
    let message = (report.vector == 6 && r.rax == MAGIC).then(|| {
        let mut message = heapless::Vec::new();
        let length = usize::try_from(r.rsi).unwrap_or(0).min(MESSAGE_BYTES);
        // Not more than there is room for.
        let _ = message.resize_default(length);
        if corpse.read(r.rdi, &mut message).is_none() {
            message.clear();
        }
        message
    });
    Cause {
        vector: report.vector,
        error_code: report.error_code,
        address: report.address,
        frames: walk(r.rip, r.rbp, |address| corpse.word(address)),
        message,
    }
}

/// The last call that the core refused for its capability: often what the component tripped on.
fn refusal(report: &Report, instance: &Instance) {
    let [call, first, second] = report.refused;
    let number = call & 0xffff_ffff;
    let row = CALLS.iter().find(|row| row.call as u64 == number);
    let (Some(row), Some(status)) = (row, Status::from_raw(call >> 32)) else {
        return;
    };
    log::error!(
        "  last refused: {}({first:#x}, {second:#x}): {status:?}",
        row.name
    );
    for word in [first, second] {
        if let Some((slot, what)) = instance.wires.iter().find(|wire| u64::from(wire.0) == word) {
            log::error!("  slot {slot:#x} is {what}");
        }
    }
}

fn fault(name: &str, thread: usize, report: &Report, cause: &Cause, symbols: &[u8]) {
    let r = &report.registers;
    let named = |address| Named { address, symbols };
    if let Some(message) = &cause.message {
        let text = core::str::from_utf8(message).unwrap_or("");
        let text = if text.is_empty() {
            "(message not readable)"
        } else {
            text
        };
        log::error!("component {name}: panic: {}", Plain(text));
    } else {
        log::error!(
            "component {name}: fault: {} (vector {}, code {:#x}, address {:#x}) in thread {thread} at {}",
            vector_name(report.vector),
            report.vector,
            report.error_code,
            report.address,
            named(r.rip)
        );
    }
    log::error!(
        "  rip {:016x} rsp {:016x} rbp {:016x} rflags {:08x}",
        r.rip,
        r.rsp,
        r.rbp,
        r.rflags
    );
    log::error!(
        "  rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}",
        r.rax,
        r.rbx,
        r.rcx,
        r.rdx
    );
    log::error!(
        "  rsi {:016x} rdi {:016x} r8  {:016x} r9  {:016x}",
        r.rsi,
        r.rdi,
        r.r8,
        r.r9
    );
    log::error!(
        "  r10 {:016x} r11 {:016x} r12 {:016x} r13 {:016x} r14 {:016x} r15 {:016x}",
        r.r10,
        r.r11,
        r.r12,
        r.r13,
        r.r14,
        r.r15
    );
    for (depth, &address) in cause.frames.iter().enumerate() {
        // A return address is after the call; the call itself may be the function's last bytes.
        let shown = if depth == 0 {
            address
        } else {
            address.saturating_sub(1)
        };
        log::error!("  #{depth} {}", named(shown));
    }
}

/// Text of a component without control characters: it must not move the operator's cursor.
struct Plain<'a>(&'a str);

impl core::fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        use core::fmt::Write;
        self.0
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .try_for_each(|c| f.write_char(c))
    }
}

/// A detail that a component gave, made printable.
pub fn plain(text: &str) -> impl core::fmt::Display + '_ {
    Plain(text)
}
