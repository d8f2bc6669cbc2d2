//! IN and OUT. The right to a port range is an `IoPorts` capability granted to the thread
//! (`PortsCap::grant_thread`); without it the instruction faults.

use idl::Cap;
use idl::cap::{IoPorts, Thread};
use microvisor_abi::Status;

use crate::caps::PortsCap;

/// Ports granted to the running thread.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    first: u16,
    count: u16,
}

impl Ports {
    /// Grants `ports` (a capability for `count` ports from `first`) to `thread`, which is the
    /// running one.
    pub fn grant(
        ports: Cap<IoPorts>,
        thread: Cap<Thread>,
        first: u16,
        count: u16,
    ) -> Result<Ports, Status> {
        ports.grant_thread(thread)?;
        Ok(Ports { first, count })
    }

    fn port(self, offset: u16, width: u16) -> Option<u16> {
        let end = offset.checked_add(width);
        end.is_some_and(|end| end <= self.count)
            .then(|| self.first.checked_add(offset))
            .flatten()
    }

    /// Reads the byte port at `offset`; 0xff outside of the range, as from a port without device.
    pub fn read(self, offset: u16) -> u8 {
        self.port(offset, 1).map_or(0xff, in_byte)
    }

    /// Writes the byte port at `offset`; nothing outside of the range.
    pub fn write(self, offset: u16, value: u8) {
        if let Some(port) = self.port(offset, 1) {
            out_byte(port, value);
        }
    }

    /// Reads four ports from `offset` on at once; all ones outside of the range.
    pub fn read32(self, offset: u16) -> u32 {
        self.port(offset, 4).map_or(u32::MAX, in_word)
    }

    /// Writes four ports from `offset` on at once; nothing outside of the range.
    pub fn write32(self, offset: u16, value: u32) {
        if let Some(port) = self.port(offset, 4) {
            out_word(port, value);
        }
    }
}

#[cfg(target_os = "none")]
fn in_byte(port: u16) -> u8 {
    let value: u8;
    // SAFETY: the port belongs to a range that was granted; ports that can do DMA or change
    // the machine are not given to components that are not trusted with them.
    unsafe {
        core::arch::asm!("in al, dx", in("dx") port, out("al") value,
            options(nomem, nostack, preserves_flags));
    }
    value
}

#[cfg(target_os = "none")]
fn out_byte(port: u16, value: u8) {
    // SAFETY: as for `in_byte`.
    unsafe {
        core::arch::asm!("out dx, al", in("dx") port, in("al") value,
            options(nomem, nostack, preserves_flags));
    }
}

#[cfg(target_os = "none")]
fn in_word(port: u16) -> u32 {
    let value: u32;
    // SAFETY: as for `in_byte`.
    unsafe {
        core::arch::asm!("in eax, dx", in("dx") port, out("eax") value,
            options(nomem, nostack, preserves_flags));
    }
    value
}

#[cfg(target_os = "none")]
fn out_word(port: u16, value: u32) {
    // SAFETY: as for `in_byte`.
    unsafe {
        core::arch::asm!("out dx, eax", in("dx") port, in("eax") value,
            options(nomem, nostack, preserves_flags));
    }
}

/// On a host, four ports of a byte each.
#[cfg(not(target_os = "none"))]
fn in_word(port: u16) -> u32 {
    u32::from_le_bytes([0, 1, 2, 3].map(|byte| in_byte(port.wrapping_add(byte))))
}

#[cfg(not(target_os = "none"))]
fn out_word(port: u16, value: u32) {
    for (byte, at) in value.to_le_bytes().into_iter().zip(0..) {
        out_byte(port.wrapping_add(at), byte);
    }
}

#[cfg(not(target_os = "none"))]
use crate::host::{read_port as in_byte, write_port as out_byte};
