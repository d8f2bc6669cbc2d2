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

    fn port(self, offset: u16) -> Option<u16> {
        (offset < self.count)
            .then(|| self.first.checked_add(offset))
            .flatten()
    }

    /// Reads the byte port at `offset`; 0xff outside of the range, as from a port without device.
    pub fn read(self, offset: u16) -> u8 {
        self.port(offset).map_or(0xff, in_byte)
    }

    /// Writes the byte port at `offset`; nothing outside of the range.
    pub fn write(self, offset: u16, value: u8) {
        if let Some(port) = self.port(offset) {
            out_byte(port, value);
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

#[cfg(not(target_os = "none"))]
use crate::host::{read_port as in_byte, write_port as out_byte};
