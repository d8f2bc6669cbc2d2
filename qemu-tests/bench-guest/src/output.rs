//! Where the lines go: the console ring if the domain has one, else Xen's own console, else (not
//! on Xen) the first serial port.

use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use guest_kit::boot::MAPPED_END;
use guest_kit::cpu;
use guest_kit::xen::{PARAM_CONSOLE_EVTCHN, PARAM_CONSOLE_PFN, Xen};

/// Bytes in `xencons_interface.in` and `.out`, and where its words are (public/io/console.h).
const IN_BYTES: u64 = 1024;
const OUT_BYTES: u32 = 2048;
const OUT_CONSUMER: u64 = 3072 + 8;
const OUT_PRODUCER: u64 = 3072 + 12;
/// How often to let others run before the console is taken for dead. A living one needs few.
const PATIENCE: u32 = 1 << 20;
/// Data and line status register of the first serial port; its "transmitter empty" bit.
const SERIAL: u16 = 0x3f8;
const SERIAL_STATUS: u16 = SERIAL + 5;
const SERIAL_EMPTY: u8 = 0x20;

/// A place for lines.
#[derive(Clone, Copy, Debug)]
pub enum Output {
    /// The ring at this address, with its event channel.
    Ring(Xen, u64, u32),
    /// `CONSOLEIO_write`.
    Hypercall(Xen),
    /// 0x3f8.
    Serial,
}

impl Output {
    /// The best there is.
    pub fn find() -> Output {
        let Some(xen) = Xen::find() else {
            return Output::Serial;
        };
        let frame = xen.param(PARAM_CONSOLE_PFN).unwrap_or(0);
        let port = xen.param(PARAM_CONSOLE_EVTCHN).unwrap_or(0);
        match frame.checked_mul(4096) {
            Some(address) if frame != 0 && port != 0 && address < MAPPED_END => {
                Output::Ring(xen, address, port as u32)
            }
            _ => Output::Hypercall(xen),
        }
    }

    /// Writes all of `bytes` or, when nobody reads them, drops the rest.
    fn write(&self, bytes: &[u8]) {
        match *self {
            Output::Ring(xen, ring, port) => {
                for &byte in bytes {
                    if !wait(xen, || used(ring) < OUT_BYTES) {
                        let _ = xen.console_write(bytes);
                        return;
                    }
                    let producer = word(ring, OUT_PRODUCER).load(Ordering::Relaxed);
                    let place = IN_BYTES + u64::from(producer % OUT_BYTES);
                    // SAFETY: inside the ring's page, which Xen mapped for this; the other side
                    // only reads it, hence atomic.
                    unsafe { &*((ring + place) as *const AtomicU8) }.store(byte, Ordering::Relaxed);
                    word(ring, OUT_PRODUCER).store(producer.wrapping_add(1), Ordering::Release);
                    if used(ring) == OUT_BYTES {
                        let _ = xen.send(&port);
                    }
                }
            }
            Output::Hypercall(xen) => {
                let _ = xen.console_write(bytes);
            }
            Output::Serial => {
                for &byte in bytes {
                    let mut patience = PATIENCE;
                    // SAFETY: a serial port does not write memory.
                    while unsafe { cpu::in_byte(SERIAL_STATUS) } & SERIAL_EMPTY == 0 && patience > 0
                    {
                        patience -= 1;
                    }
                    // SAFETY: the same.
                    unsafe { cpu::out_byte(SERIAL, byte) };
                }
            }
        }
    }

    /// Writes a line and waits until it was taken, so that showing it is not measured with what
    /// follows.
    pub fn line(&self, line: fmt::Arguments<'_>) {
        let _ = fmt::Write::write_fmt(&mut Writer(self), line);
        self.write(b"\n");
        if let Output::Ring(xen, ring, port) = *self {
            let _ = xen.send(&port);
            wait(xen, || used(ring) == 0);
        }
    }
}

struct Writer<'a>(&'a Output);

impl fmt::Write for Writer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

fn word(ring: u64, offset: u64) -> &'static AtomicU32 {
    // SAFETY: inside the ring's page and aligned; both sides write it, hence atomic.
    unsafe { &*((ring + offset) as *const AtomicU32) }
}

/// Bytes that wait in the ring. More than fit can only be a broken other side: then it is full.
fn used(ring: u64) -> u32 {
    let producer = word(ring, OUT_PRODUCER).load(Ordering::Relaxed);
    let consumer = word(ring, OUT_CONSUMER).load(Ordering::Acquire);
    producer.wrapping_sub(consumer).min(OUT_BYTES)
}

/// Lets others run until `done`; false if they never get there.
fn wait(xen: Xen, done: impl Fn() -> bool) -> bool {
    for _ in 0..PATIENCE {
        if done() {
            return true;
        }
        let _ = xen.yield_now();
    }
    false
}

macro_rules! say {
    ($output:expr, $($text:tt)*) => { $output.line(format_args!($($text)*)) };
}
pub(crate) use say;
