//! The `log` crate's sink: lines go into the console's ring. Before the ring is attached, and
//! while it is full, they wait in a backlog; when that is full too, lines are dropped and counted,
//! because a component must not stop for its log.

use core::fmt::{self, Write};

use idl::Cap;
use idl::cap::{Endpoint, Notification};
use idl::console::ClientKind;
use idl::ring::{OUT_BYTES, RingPage, Writer};
use log::{LevelFilter, Log, Metadata, Record};

use crate::caps::{MemoryCap, NotificationCap};
use crate::console::{self, AttachError, Attached};
use crate::ipc::EndpointTransport;
use crate::memory;
use crate::sync::Mutex;
use crate::time;

/// Bytes that wait while there is no room.
const BACKLOG: usize = 8192;

/// Where lines go when they leave the backlog.
enum Sink {
    None,
    Ring {
        writer: Writer<'static, OUT_BYTES>,
        reader: Wake,
    },
    /// Called with each piece; root's way before there is a console.
    Direct(fn(&[u8])),
}

/// How the reader of a ring is told.
enum Wake {
    /// The console that root started: root hears of its end otherwise.
    Root(Cap<Notification>, u64),
    /// Whichever console there is.
    Console(Attached),
}

impl Wake {
    fn signal(&mut self) {
        // A console that is down for good does not stop us: lines are lost, and counted.
        let _ = match self {
            Wake::Root(wake, bits) => wake.signal(*bits).is_ok(),
            Wake::Console(attached) => attached.signal().is_ok(),
        };
    }
}

struct Lines {
    backlog: heapless::Vec<u8, BACKLOG>,
    lost: u32,
    sink: Sink,
}

impl Lines {
    const fn new() -> Self {
        Lines {
            backlog: heapless::Vec::new(),
            lost: 0,
            sink: Sink::None,
        }
    }

    fn add(&mut self, arguments: fmt::Arguments<'_>) {
        // The line and the note about those lost before it go in together or not at all.
        let before = self.backlog.len();
        let noted = match self.lost {
            0 => Ok(()),
            lost => writeln!(self.backlog, "({lost} lines lost)"),
        };
        if noted
            .and_then(|()| writeln!(self.backlog, "{arguments}"))
            .is_ok()
        {
            self.lost = 0;
        } else {
            self.backlog.truncate(before);
            self.lost = self.lost.saturating_add(1);
        }
    }

    fn flush(&mut self) {
        let written = match &mut self.sink {
            Sink::None => 0,
            Sink::Direct(write) => {
                write(&self.backlog);
                self.backlog.len()
            }
            Sink::Ring { writer, reader } => {
                let written = writer.write(&self.backlog);
                if written != 0 {
                    reader.signal();
                }
                written
            }
        };
        let left = self.backlog.len().saturating_sub(written);
        self.backlog.copy_within(written.., 0);
        self.backlog.truncate(left);
    }
}

static LINES: Mutex<Lines> = Mutex::new(Lines::new());

struct Logger;

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &Record<'_>) {
        let mut lines = LINES.lock();
        match record.level() {
            log::Level::Info => lines.add(*record.args()),
            level => lines.add(format_args!("{level}: {}", record.args())),
        }
        lines.flush();
    }
    fn flush(&self) {
        LINES.lock().flush();
    }
}

/// Makes `log`'s macros arrive here; the entry code calls it.
pub(crate) fn init() {
    // The second call of a program fails, and changes nothing.
    let _ = log::set_logger(&Logger);
    log::set_max_level(LevelFilter::Info);
}

/// Writes what waits as far as there is room: a component calls it when its console woke it.
pub fn flush() {
    LINES.lock().flush();
}

/// Waits until the console has shown every line. A log drops lines while its console is slow, and its
/// last ones stay until there is another one: whoever says something that must be seen, and then
/// nothing more, waits. Never ends if there is no console any more.
pub fn drain() {
    while !drained() {
        flush();
        let pause = time::microseconds(1000);
        // It fails only without memory for a notification; then this is a short loop.
        let _ = time::sleep_until(time::now().saturating_add(pause));
    }
}

/// True if nothing waits: neither here nor in the ring.
pub fn drained() -> bool {
    let lines = LINES.lock();
    let ring_empty = match &lines.sink {
        Sink::Ring { writer, .. } => writer.space() == OUT_BYTES,
        Sink::None | Sink::Direct(_) => true,
    };
    ring_empty && lines.backlog.is_empty()
}

/// Sends lines into a ring whose reader hears `bits` of `wake`. For root.
pub fn set_ring(page: &'static RingPage, wake: Cap<Notification>, bits: u64) {
    set_sink(Sink::Ring {
        writer: page.output.writer(),
        reader: Wake::Root(wake, bits),
    });
}

fn set_sink(sink: Sink) {
    let mut lines = LINES.lock();
    lines.sink = sink;
    lines.flush();
}

/// Sends lines to a function. It must not log.
pub fn set_direct(write: fn(&[u8])) {
    set_sink(Sink::Direct(write));
}

/// Attaches this component's log to the console behind `endpoint`.
pub fn attach(endpoint: Cap<Endpoint>, name: &str) -> Result<(), AttachError> {
    // The console tells when it took output; what waits then follows with the next line, so
    // nobody waits for this notification.
    let woken: Cap<Notification> = memory::own().retype(0).map_err(AttachError::Core)?;
    let attached = console::attach(EndpointTransport(endpoint), name, ClientKind::Log, woken)?;
    set_sink(Sink::Ring {
        writer: attached.page.output.writer(),
        reader: Wake::Console(attached),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_wait_until_there_is_a_ring() {
        let page = alloc::boxed::Box::leak(alloc::boxed::Box::new(RingPage::new()));
        let mut lines = Lines::new();
        lines.add(format_args!("one {}", 1));
        lines.flush();
        lines.sink = Sink::Ring {
            writer: page.output.writer(),
            reader: Wake::Root(Cap::new(0), 0),
        };
        lines.add(format_args!("two"));
        lines.flush();
        let mut out = [0; 64];
        let count = page.output.reader().read(&mut out).unwrap();
        assert_eq!(&out[..count], b"one 1\ntwo\n");
    }

    #[test]
    fn lost_lines_are_counted_and_told() {
        let mut lines = Lines::new();
        let long = "x".repeat(1000);
        for _ in 0..12 {
            lines.add(format_args!("{long}"));
        }
        assert_eq!(lines.lost, 4);
        assert_eq!(lines.backlog.len(), 8 * 1001);
        lines.backlog.clear();
        lines.add(format_args!("again"));
        assert_eq!(&lines.backlog[..], b"(4 lines lost)\nagain\n");
    }
}
