//! Configuration space: 32-bit registers of functions, however they are reached.

use core::fmt;

/// A function's requester id: bus << 8 | device << 3 | function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id(pub u16);

impl Id {
    /// From its parts; what is too large is cut.
    pub const fn new(bus: u8, device: u8, function: u8) -> Id {
        Id((bus as u16) << 8 | ((device & 31) as u16) << 3 | (function & 7) as u16)
    }

    /// Its bus.
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Its function number in the device.
    pub const fn function(self) -> u8 {
        (self.0 & 7) as u8
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = self.0 >> 3 & 31;
        write!(f, "{:02x}:{device:02x}.{}", self.bus(), self.function())
    }
}

/// Access to configuration space. `offset` is a multiple of 4 below 4096; a register that cannot be
/// reached reads as all ones and takes no writes, as an absent function does.
pub trait Config {
    /// Reads a register.
    fn read(&mut self, id: Id, offset: u16) -> u32;
    /// Writes a register.
    fn write(&mut self, id: Id, offset: u16, value: u32);
}

/// What is written to port 0xcf8 to reach a register through port 0xcfc (PCI Local Bus 3.0, 3.2.2.3.2).
/// `None`: that way does not lead beyond the first 256 bytes.
pub const fn port_address(id: Id, offset: u16) -> Option<u32> {
    if offset < 256 {
        Some(1 << 31 | (id.0 as u32) << 8 | (offset & 0xfc) as u32)
    } else {
        None
    }
}

/// Offset of a register in a window that begins with bus 0 (PCIe 4.0, 7.2.2).
pub const fn window_offset(id: Id, offset: u16) -> u64 {
    (id.0 as u64) << 12 | (offset & 0xffc) as u64
}
