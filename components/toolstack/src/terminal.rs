//! The operator's end at the console: lines that were typed come in, lines of answers go out, over the
//! ring page that the console gave. The console may be started again at any time; the page stays.

use alloc::string::String;
use alloc::vec::Vec;

use idl::console::{COMMAND_MAX, ClientKind, END};
use idl::ring::{IN_BYTES, OUT_BYTES, Reader, Writer};
use sdk::console::{AttachError, Attached};
use sdk::prelude::*;

/// Bit of the own notification that the console signals.
pub const CONSOLE: u64 = 1;

/// The place at the console.
pub struct Terminal {
    attached: Attached,
    input: Reader<'static, IN_BYTES>,
    output: Writer<'static, OUT_BYTES>,
    own: Cap<cap::Notification>,
    /// A line of which the end has not come.
    line: Vec<u8>,
    /// Whole lines.
    lines: Vec<String>,
}

impl Terminal {
    /// Attaches.
    pub fn new(env: &Env) -> Result<Terminal, AttachError> {
        let own = env.notification();
        let wake = own
            .mint(Rights::SIGNAL, CONSOLE)
            .map_err(AttachError::Core)?;
        let console = env.transport("console");
        let attached = sdk::console::attach(console, &env.name, ClientKind::Operator, wake)?;
        Ok(Terminal {
            input: attached.page.input.reader(),
            output: attached.page.output.writer(),
            attached,
            own,
            line: Vec::new(),
            lines: Vec::new(),
        })
    }

    /// The next line that was typed, if one is there.
    pub fn line(&mut self) -> Option<String> {
        let mut bytes = [0; 256];
        // What the console's ring says wrongly is dropped; the next line is whole again.
        while let Ok(count @ 1..) = self.input.read(&mut bytes) {
            for &byte in bytes.get(..count).unwrap_or(&[]) {
                if byte == b'\n' {
                    let line = core::mem::take(&mut self.line);
                    self.lines.push(String::from_utf8_lossy(&line).into_owned());
                } else if self.line.len() < COMMAND_MAX {
                    self.line.push(byte);
                }
            }
            self.tell();
        }
        (!self.lines.is_empty()).then(|| self.lines.remove(0))
    }

    /// Something woke us: a console that was started again has to know us again.
    pub fn tell(&mut self) {
        if let Err(error) = self.attached.signal() {
            log::warn!("the console does not hear: {error:?}");
        }
    }

    /// Says a line.
    pub fn say(&mut self, line: &str) -> Result<(), Status> {
        let text = line.bytes().map(|byte| match byte {
            // Neither an end of the line nor an answer's.
            b'\n' | b'\r' | END => b' ',
            byte => byte,
        });
        let text: Vec<u8> = text.chain([b'\n']).collect();
        self.write(&text)
    }

    /// Ends the answer to a line. With a guest's name, its console is shown then.
    pub fn end(&mut self, show: Option<&str>) -> Result<(), Status> {
        let mut text = Vec::from([END]);
        text.extend(show.unwrap_or_default().bytes());
        text.push(b'\n');
        self.write(&text)
    }

    fn write(&mut self, mut rest: &[u8]) -> Result<(), Status> {
        loop {
            let count = self.output.write(rest);
            rest = rest.get(count..).unwrap_or(&[]);
            self.tell();
            if rest.is_empty() {
                return Ok(());
            }
            // Until the console took something. Of other bits nothing is lost: who waits for something
            // looks before it waits.
            self.own.wait(FOREVER)?;
        }
    }
}
