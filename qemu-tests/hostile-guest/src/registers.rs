//! Reads and writes every model-specific register of four ranges, and every port at three widths.

use guest_kit::cpu;
use guest_kit::trap::Exception;
use hostile_calls::log::{NO_EXCEPTION, msr};
use hostile_calls::{MSRS, WIDTHS, log::logs};

use crate::log::{self, Log};
use guest_kit::say;

/// #GP.
const PROTECTION: u8 = 13;

/// A register that only the machine has: where the core's own state is kept while a guest runs
/// (`VM_HSAVE_PA`, AMD APM vol. 2, 15.30).
const MACHINES_REGISTER: u32 = 0xc001_0117;
/// A port behind which most machines have a device: the line status of COM1 (National
/// Semiconductor PC16550D data sheet, table II).
const MACHINES_PORT: u16 = 0x3fd;

/// Reads what is the machine's, and says what came: reads only, so that this is told even where
/// what [`run`] writes after it would stop the machine.
pub fn peek() {
    match cpu::try_rdmsr(MACHINES_REGISTER) {
        Ok(value) => say!("hostile: register {MACHINES_REGISTER:x} is {value:#x}"),
        Err(exception) => say!(
            "hostile: register {MACHINES_REGISTER:x} raises {}",
            exception.vector
        ),
    }
    // SAFETY: reading the line status changes nothing but that device's error bits.
    match unsafe { cpu::try_in(MACHINES_PORT, 1) } {
        Ok(value) => say!("hostile: port {MACHINES_PORT:x} is {:#x}", value as u8),
        Err(exception) => say!(
            "hostile: port {MACHINES_PORT:x} raises {}",
            exception.vector
        ),
    }
}

/// Runs both; the pages logged.
pub fn run() -> u64 {
    let mut out = Log::new(logs::MSRS);
    for (first, last) in MSRS {
        for number in first..=last {
            out.append(&register(number));
        }
    }
    out.finish();
    let mut out = Log::new(logs::PORTS);
    for bytes in WIDTHS {
        for port in 0..=u16::MAX {
            out.append(&access(port, bytes));
        }
    }
    out.finish();
    log::pages()
}

fn register(number: u32) -> [u8; 9] {
    let mut happened = 0;
    let mut note = |bit, outcome: Result<(), Exception>| match outcome {
        Ok(()) => happened |= bit,
        Err(exception) if exception.vector != PROTECTION || exception.error != 0 => {
            happened |= msr::STRANGE;
        }
        Err(_) => {}
    };
    let before = cpu::try_rdmsr(number);
    note(msr::READ, before.map(|_| ()));
    let value = before.unwrap_or(0);
    // SAFETY: no value here takes anything away that this program needs: paging and long mode
    // cannot be left by EFER alone, segment bases and entry points of system calls are not in use,
    // and what could be read is put back.
    unsafe {
        note(msr::WRITE_BACK, cpu::try_wrmsr(number, value));
        note(msr::WRITE_ZERO, cpu::try_wrmsr(number, 0));
        note(msr::WRITE_ONES, cpu::try_wrmsr(number, u64::MAX));
        if before.is_ok() {
            let _ = cpu::try_wrmsr(number, value);
        }
    }
    let mut record = [happened; 9];
    record[1..].copy_from_slice(&value.to_le_bytes());
    record
}

fn access(port: u16, bytes: u8) -> [u8; 6] {
    // SAFETY: no device behind a port of a PVH guest writes its memory.
    let (read, written) = unsafe { (cpu::try_in(port, bytes), cpu::try_out(port, bytes, 0)) };
    let vector =
        |outcome: Result<(), Exception>| outcome.map_or_else(|e| e.vector, |()| NO_EXCEPTION);
    let mut record = [vector(read.map(|_| ())); 6];
    record[1] = vector(written);
    record[2..].copy_from_slice(&read.unwrap_or(0).to_le_bytes());
    record
}
