//! The `log` facade's back end: every message goes to the log ring, and to COM1 until root owns
//! the port.

use crate::ring;
use crate::serial::Serial;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

struct Logger;

static BUSY: AtomicBool = AtomicBool::new(false);
static QUIET: AtomicBool = AtomicBool::new(false);

struct Both;

impl Write for Both {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        ring::append(text);
        if !QUIET.load(Ordering::Relaxed) {
            Serial.write_str(text)?;
        }
        Ok(())
    }
}

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata) -> bool {
        true
    }

    fn log(&self, record: &log::Record) {
        // One message at a time; messages are rare and short.
        while BUSY.swap(true, Ordering::Acquire) {
            core::hint::spin_loop();
        }
        let _ = writeln!(Both, "core: {}", record.args());
        BUSY.store(false, Ordering::Release);
    }

    fn flush(&self) {}
}

/// Starts logging to COM1.
pub fn init() {
    crate::serial::init();
    let _ = log::set_logger(&Logger);
    log::set_max_level(log::LevelFilter::Info);
}

/// From now on COM1 belongs to a component.
pub fn give_up_serial() {
    Serial.drain();
    QUIET.store(true, Ordering::Relaxed);
}
