//! The device: its configuration space, its registers, its DMA engine.

use crate::calls::{Failure, grant, read_port, until, write_port};

/// Vendor and device id of `edu`.
const EDU: u32 = 0x11e8_1234;
/// Where its buffer of 4 KiB is, as its DMA engine names it.
const BUFFER: u64 = 0x4_0000;

// Registers.
const ALIVE: u64 = 0x04;
const RAISE: u64 = 0x60;
const ACKNOWLEDGE: u64 = 0x64;
const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;

/// The function and its registers.
pub struct Edu {
    /// Requester id.
    pub function: u16,
    /// Where its registers are mapped.
    pub registers: u64,
}

/// A word of a function's configuration space (PCI specification 3.0, 3.2.2.3.2).
pub fn read_config(function: u16, at: u8) -> u32 {
    write_port(
        0xcf8,
        1 << 31 | u32::from(function) << 8 | u32::from(at & !3),
    );
    read_port(0xcfc)
}

/// Writes one.
pub fn write_config(function: u16, at: u8, value: u32) {
    write_port(
        0xcf8,
        1 << 31 | u32::from(function) << 8 | u32::from(at & !3),
    );
    write_port(0xcfc, value);
}

impl Edu {
    /// Looks for it on bus 0 and lets it use the bus; answers where its registers are.
    pub fn find() -> Result<(u16, u64), Failure> {
        grant(9002, 0xcf8, 8)?;
        let function = (0..256).find(|f| read_config(*f, 0) == EDU);
        let Some(function) = function else {
            return Err(Failure::Wrong("no edu device", 0, EDU.into()));
        };
        // Memory space and bus master.
        write_config(function, 4, read_config(function, 4) & 0xffff | 6);
        Ok((function, u64::from(read_config(function, 0x10) & !15)))
    }

    fn write(&self, register: u64, value: u64) {
        let at = (self.registers + register) as *mut u32;
        // SAFETY: the device's registers, mapped for as long as this program runs. Double words:
        // below 0x80 it takes no others.
        unsafe {
            at.write_volatile(value as u32);
            if register >= 0x80 {
                at.cast::<u64>().write_volatile(value);
            }
        }
    }

    fn read(&self, register: u64) -> u32 {
        // SAFETY: as `write`.
        unsafe { ((self.registers + register) as *const u32).read_volatile() }
    }

    /// True if it is there: it answers the inverse of what is written.
    pub fn is_alive(&self) -> bool {
        self.write(ALIVE, 0x1234_5678);
        self.read(ALIVE) == !0x1234_5678
    }

    fn transfer(&self, from: u64, to: u64, bytes: u64, command: u64) -> Result<(), Failure> {
        for (register, value) in [(SOURCE, from), (DESTINATION, to), (COUNT, bytes)] {
            self.write(register, value);
        }
        self.write(COMMAND, command | 1);
        until("a transfer ends", || self.read(COMMAND) & 1 == 0)
    }

    /// Reads memory at `address` into the device's buffer.
    pub fn fetch(&self, address: u64, bytes: u64) -> Result<(), Failure> {
        self.transfer(address, BUFFER, bytes, 0)
    }

    /// Writes the device's buffer to memory at `address`.
    pub fn store(&self, address: u64, bytes: u64) -> Result<(), Failure> {
        self.transfer(BUFFER, address, bytes, 2)
    }

    /// Interrupts.
    pub fn interrupt(&self) {
        self.write(RAISE, 1);
        self.write(ACKNOWLEDGE, 1);
    }

    /// Programs its message: address, data << 32.
    pub fn set_message(&self, message: u64) {
        let mut at = read_config(self.function, 0x34) as u8;
        while at != 0 && read_config(self.function, at) as u8 != 5 {
            at = (read_config(self.function, at) >> 8) as u8;
        }
        if at == 0 {
            return;
        }
        let head = read_config(self.function, at);
        write_config(self.function, at + 4, message as u32);
        write_config(self.function, at + 8, 0);
        write_config(self.function, at + 12, (message >> 32) as u32);
        write_config(self.function, at, head | 1 << 16);
    }
}
