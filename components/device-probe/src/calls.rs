//! System calls and ports, raw: what is called here has no wrapper, or none that says what is meant.

use core::fmt;
use sdk::abi::boot::{SLOT_IO_PORTS, SLOT_THREAD};
use sdk::abi::{Call, Status};

/// Why something did not happen.
#[derive(Debug)]
#[allow(dead_code, reason = "for the report")]
pub enum Failure {
    /// The core refused a call.
    Refused(Call, Status),
    /// This did not happen in time, or at all.
    Wrong(&'static str, u64, u64),
}

/// A call; its first three result words.
pub fn call(call: Call, arguments: &[u64]) -> Result<[u64; 3], Failure> {
    let mut words = [0; 6];
    words[..arguments.len()].copy_from_slice(arguments);
    loop {
        // SAFETY: calls below map only at addresses of their own, where nothing was, and unmap
        // nothing that a reference points to.
        let (rax, results) = unsafe { sdk::raw::system_call(call as u64, words) };
        match Status::from_raw(rax).unwrap_or(Status::InvalidCall) {
            Status::Ok => return Ok([results[0], results[1], results[2]]),
            Status::Again => {}
            status => return Err(Failure::Refused(call, status)),
        }
    }
}

/// `seen` is `wanted`.
pub fn same(what: &'static str, seen: u64, wanted: u64) -> Result<(), Failure> {
    match seen == wanted {
        true => Ok(()),
        false => Err(Failure::Wrong(what, seen, wanted)),
    }
}

/// Waits until `holds`, half a minute at most.
pub fn until(what: &'static str, mut holds: impl FnMut() -> bool) -> Result<(), Failure> {
    let end = sdk::time::now() + 30_000 * sdk::time::tsc_khz();
    while !holds() {
        if sdk::time::now() > end {
            return Err(Failure::Wrong(what, 0, 1));
        }
        core::hint::spin_loop();
    }
    Ok(())
}

/// Lets this thread use ports; `slot` is empty.
pub fn grant(slot: u64, first: u16, count: u16) -> Result<(), Failure> {
    let range = u64::from(first) | u64::from(count) << 32;
    call(Call::Copy, &[SLOT_IO_PORTS.into(), 0, slot, 0xff, range, 0])?;
    call(Call::PortsGrant, &[slot, SLOT_THREAD.into()])?;
    Ok(())
}

/// Reads a double word from a granted port.
pub fn read_port(port: u16) -> u32 {
    let value;
    // SAFETY: the port was granted; otherwise this thread faults.
    unsafe { core::arch::asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack)) };
    value
}

/// Writes a double word to a granted port.
pub fn write_port(port: u16, value: u32) {
    // SAFETY: as `read_port`.
    unsafe { core::arch::asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack)) };
}

fn read_byte(port: u16) -> u8 {
    let value;
    // SAFETY: as `read_port`.
    unsafe { core::arch::asm!("in al, dx", in("dx") port, out("al") value, options(nostack)) };
    value
}

fn write_byte(port: u16, value: u8) {
    // SAFETY: as `read_port`.
    unsafe { core::arch::asm!("out dx, al", in("dx") port, in("al") value, options(nostack)) };
}

/// Lets COM1 interrupt when it has nothing to send, or not: its interrupt enable register, and in its
/// modem control register the gate to the line.
pub fn com1_interrupts(on: bool) {
    write_byte(COM1 + 4, if on { 8 } else { 0 });
    write_byte(COM1 + 1, if on { 2 } else { 0 });
}

/// COM1 and QEMU's debug exit.
pub struct Serial;

const COM1: u16 = 0x3f8;

impl Serial {
    /// Grants this thread the ports.
    pub fn open() -> Result<Serial, Failure> {
        grant(9000, COM1, 8)?;
        grant(9001, 0xf4, 4)?;
        Ok(Serial)
    }

    /// Ends the machine, with status 1.
    pub fn end(&mut self) {
        write_port(0xf4, 0);
    }
}

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // Line status: the holding register is empty (16550 datasheet).
            while read_byte(COM1 + 5) & 0x20 == 0 {
                core::hint::spin_loop();
            }
            write_byte(COM1, byte);
        }
        Ok(())
    }
}
