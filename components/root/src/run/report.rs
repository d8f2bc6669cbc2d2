//! What is said about a component that faulted: who, what, registers, backtrace. Everything read
//! from the dead component is untrusted and only ever printed.

use root_plan::backtrace::{Named, vector_name, walk};
use sdk::abi::FRAME;
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

/// Reports each thread that faulted; true if there was one.
pub fn faults(name: &str, instance: &Instance, symbols: &[u8], window: &mut Window) -> bool {
    let mut found = false;
    for (index, thread) in instance.threads.iter().enumerate() {
        let Ok(report) = thread.inspect() else {
            continue;
        };
        if report.state == State::Faulted as u64 {
            found = true;
            let corpse = Corpse {
                regions: instance.regions(),
                window,
            };
            fault(name, index, &report, symbols, corpse);
        }
    }
    found
}

fn fault(name: &str, thread: usize, report: &Report, symbols: &[u8], mut corpse: Corpse<'_>) {
    let r = &report.registers;
    let named = |address| Named { address, symbols };
    if report.vector == 6 && r.rax == MAGIC {
        let mut message = [0; MESSAGE_BYTES];
        let length = usize::try_from(r.rsi).unwrap_or(0).min(MESSAGE_BYTES);
        let text = message
            .get_mut(..length)
            .filter(|part| !part.is_empty())
            .and_then(|part| {
                corpse.read(r.rdi, part)?;
                Some(&*part)
            });
        let text = core::str::from_utf8(text.unwrap_or(b"(message not readable)"))
            .unwrap_or("(message not readable)");
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
    let frames = walk(r.rip, r.rbp, |address| corpse.word(address));
    for (depth, &address) in frames.iter().enumerate() {
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
