//! COM1 and QEMU's debug exit. Used by `main` only.

use core::fmt;

use sdk::abi::boot::{SLOT_IO_PORTS, SLOT_THREAD};
use sdk::port::Ports;
use sdk::prelude::*;

/// First port of COM1.
const COM1: u16 = 0x3f8;
/// Line status register: the holding register is empty (16550 datasheet).
const LINE_STATUS: u16 = 5;
const EMPTY: u8 = 0x20;
/// QEMU's `isa-debug-exit`.
const EXIT: u16 = 0xf4;

/// Where lines go.
pub struct Serial {
    com1: Ports,
    exit: Ports,
}

/// A range of ports as a badge of `Copy`.
pub fn range(first: u16, count: u16) -> u64 {
    u64::from(first) | u64::from(count) << 32
}

impl Serial {
    /// Grants this thread the ports.
    pub fn open() -> Result<Serial, Status> {
        let all: Cap<cap::IoPorts> = Cap::new(SLOT_IO_PORTS);
        let open = |first, count| {
            let some = all.mint(Rights::ALL, range(first, count))?;
            Ports::grant(some, Cap::new(SLOT_THREAD), first, count)
        };
        Ok(Serial {
            com1: open(COM1, 8)?,
            exit: open(EXIT, 1)?,
        })
    }

    /// Ends the machine, with status 1.
    pub fn end(&mut self) {
        self.exit.write(0, 0);
    }
}

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while self.com1.read(LINE_STATUS) & EMPTY == 0 {
                core::hint::spin_loop();
            }
            self.com1.write(0, byte);
        }
        Ok(())
    }
}
