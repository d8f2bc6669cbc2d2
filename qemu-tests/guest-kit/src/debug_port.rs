//! Lines on Xen's debug port, which every HVM and PVH domain has (`XEN_HVM_DEBUGCONS_IOPORT`).

use core::fmt;

use crate::cpu;

/// The port.
const PORT: u16 = 0xe9;

/// Writes to the port.
pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: the hypervisor takes the byte; no memory is involved.
            unsafe { cpu::out_byte(PORT, byte) };
        }
        Ok(())
    }
}

/// Writes a line to the port.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => {{
        use core::fmt::Write as _;
        let _ = writeln!($crate::debug_port::Console, $($text)*);
    }};
}
