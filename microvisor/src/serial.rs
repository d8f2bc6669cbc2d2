//! COM1, for boot messages and panics. Once root runs, the port belongs to a component and only a
//! panic still writes to it.

use core::fmt;
use x86_64::instructions::port::Port;

const BASE: u16 = 0x3f8;

fn out(register: u16, value: u8) {
    // SAFETY: the 16550's registers (National Semiconductor PC16550D, 8.0) have no effect on memory.
    unsafe { Port::new(BASE + register).write(value) }
}

fn status() -> u8 {
    // SAFETY: as in `out`.
    unsafe { Port::new(BASE + 5).read() }
}

/// 115200 baud, 8N1, FIFOs on, no interrupts.
pub fn init() {
    for (register, value) in [
        (1, 0),
        (3, 0x80),
        (0, 1),
        (1, 0),
        (3, 3),
        (2, 0xc7),
        (4, 0x0b),
    ] {
        out(register, value);
    }
}

/// A writer to the port. Waits for room, but not for ever: an absent or stuck port loses bytes.
pub struct Serial;

impl Serial {
    fn byte(&mut self, byte: u8) {
        for _ in 0..100_000 {
            if status() & 0x20 != 0 {
                break;
            }
            core::hint::spin_loop();
        }
        out(0, byte);
    }

    /// Waits until the last byte has left the chip.
    pub fn drain(&mut self) {
        for _ in 0..1_000_000 {
            if status() & 0x40 != 0 {
                break;
            }
            core::hint::spin_loop();
        }
    }
}

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.byte(b'\r');
            }
            self.byte(byte);
        }
        Ok(())
    }
}
