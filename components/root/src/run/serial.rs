//! Root's words while there is no console component: straight to COM1 (16550, ports 0x3f8-0x3ff),
//! by polling. Also used when the console died.

use sdk::port::Ports;
use sdk::prelude::*;
use sdk::sync::Mutex;

const COM1: u16 = 0x3f8;
const COUNT: u16 = 8;
/// Line status register; bit 5: a byte can be written, bit 6: nothing is left to send.
const LINE_STATUS: u16 = 5;
const CAN_WRITE: u8 = 1 << 5;
const IDLE: u8 = 1 << 6;
/// Polls before a byte is given up: the port is not there, or stuck.
const PATIENCE: u32 = 1_000_000;

struct Serial {
    ports: Ports,
    at_line_start: bool,
}

static SERIAL: Mutex<Option<Serial>> = Mutex::new(None);

/// A capability for ports out of root's, in a new slot.
pub fn ports(first: u16, count: u16) -> Result<Cap<cap::IoPorts>, Status> {
    Cap::<cap::IoPorts>::new(sdk::abi::boot::SLOT_IO_PORTS)
        .mint(Rights::ALL, u64::from(first) | u64::from(count) << 32)
}

/// Takes the port and sends the log there. Without the port, root is mute until there is a
/// console.
pub fn start() {
    let granted =
        ports(COM1, COUNT).and_then(|ports| Ports::grant(ports, super::THREAD, COM1, COUNT));
    if let Ok(ports) = granted {
        *SERIAL.lock() = Some(Serial {
            ports,
            at_line_start: true,
        });
        sdk::logging::set_direct(write);
    }
}

/// Writes lines, each with root's name before it.
pub fn write(bytes: &[u8]) {
    if let Some(serial) = SERIAL.lock().as_mut() {
        for &byte in bytes {
            if core::mem::replace(&mut serial.at_line_start, byte == b'\n') {
                b"[root] ".iter().for_each(|&byte| serial.put(byte));
            }
            if byte == b'\n' {
                serial.put(b'\r');
            }
            serial.put(byte);
        }
    }
}

impl Serial {
    fn put(&self, byte: u8) {
        for _ in 0..PATIENCE {
            if self.ports.read(LINE_STATUS) & CAN_WRITE != 0 {
                return self.ports.write(0, byte);
            }
        }
    }
}

/// True if the port has nothing left to send.
pub fn idle() -> bool {
    SERIAL
        .lock()
        .as_ref()
        .is_none_or(|serial| serial.ports.read(LINE_STATUS) & IDLE != 0)
}
