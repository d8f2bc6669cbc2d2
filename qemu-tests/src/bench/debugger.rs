//! The other end of QEMU's gdb stub: as much of gdb's remote protocol as it takes to stop a machine
//! at addresses, look where it stands, and pass lines to QEMU's monitor (GDB manual, appendix
//! "Remote Serial Protocol"; QEMU's own part: its manual, "GDB usage"). Only [`super::trace`] uses it. It never
//! writes to the machine's memory or registers.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Between two attempts to connect, while QEMU makes its socket.
const RETRY: Duration = Duration::from_millis(20);

/// How the machine came to a halt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It stands at an address where it was to stop, or after a step.
    Paused,
    /// QEMU is gone.
    Ended,
}

/// Where the CPU stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// RIP, of the instruction that comes next.
    pub address: u64,
    /// CPL, 0 to 3.
    pub ring: u8,
}

/// A machine of one CPU that is stopped, but during [`Debugger::resume`].
pub struct Debugger {
    stream: UnixStream,
    /// What came and is not yet used.
    input: Vec<u8>,
    deadline: Instant,
}

impl Debugger {
    /// Connects to the stub at `socket`. Nothing may wait longer than until `deadline`.
    pub fn connect(socket: &Path, deadline: Instant) -> Result<Debugger> {
        loop {
            match UnixStream::connect(socket) {
                Ok(stream) => {
                    return Ok(Debugger {
                        stream,
                        input: Vec::new(),
                        deadline,
                    });
                }
                Err(error) if Instant::now() > deadline => {
                    return Err(error).context("QEMU's gdb stub cannot be reached");
                }
                Err(_) => std::thread::sleep(RETRY),
            }
        }
    }

    /// Steps take no interrupt, so that the instruction under a step is executed; clocks go on.
    pub fn steps_without_interrupts(&mut self) -> Result<()> {
        // SSTEP_ENABLE | SSTEP_NOIRQ (QEMU, include/hw/core/cpu.h).
        self.order("Qqemu.sstep=3")
    }

    /// The machine is to stop before the instruction at this virtual address, in whatever space.
    pub fn stop_at(&mut self, address: u64) -> Result<()> {
        self.order(&format!("Z1,{address:x},1"))
    }

    /// Runs until the next stop.
    pub fn resume(&mut self) -> Result<Stop> {
        self.run("c")
    }

    /// Executes one instruction, past a stop at its own address.
    pub fn step(&mut self) -> Result<Stop> {
        self.run("s")
    }

    /// Where the CPU stands.
    pub fn place(&mut self) -> Result<Place> {
        let reply = self.ask("g")?.context("QEMU ended")?;
        place(&reply).with_context(|| format!("registers are not understood: {reply}"))
    }

    /// Code or data at a virtual address of the space in use; `None` where it has none.
    pub fn memory(&mut self, address: u64, bytes: usize) -> Result<Option<Vec<u8>>> {
        let reply = self.ask(&format!("m{address:x},{bytes:x}"))?;
        Ok(from_hex(&reply.context("QEMU ended")?))
    }

    /// Gives a line to QEMU's monitor, which must not answer anything.
    pub fn monitor(&mut self, line: &str) -> Result<()> {
        self.send(&format!("qRcmd,{}", to_hex(line.as_bytes())))?;
        let mut said = Vec::new();
        loop {
            let reply = self.receive()?.context("QEMU ended")?;
            match reply.strip_prefix('O').and_then(from_hex) {
                Some(text) => said.extend(text),
                None if reply == "OK" && said.is_empty() => return Ok(()),
                None => bail!(
                    "QEMU's monitor answers {line:?} with {reply} {}",
                    String::from_utf8_lossy(&said).trim()
                ),
            }
        }
    }

    fn run(&mut self, command: &str) -> Result<Stop> {
        match self.ask(command)? {
            None => Ok(Stop::Ended),
            Some(reply) if reply.starts_with(['W', 'X']) => Ok(Stop::Ended),
            Some(reply) if reply.starts_with(['T', 'S']) => Ok(Stop::Paused),
            Some(reply) => bail!("QEMU's gdb stub answers {command:?} with {reply:?}"),
        }
    }

    fn order(&mut self, command: &str) -> Result<()> {
        match self.ask(command)?.as_deref() {
            Some("OK") => Ok(()),
            reply => bail!("QEMU's gdb stub answers {command:?} with {reply:?}"),
        }
    }

    /// A command's answer; `None` once QEMU is gone.
    fn ask(&mut self, command: &str) -> Result<Option<String>> {
        match self.send(command) {
            Ok(()) => self.receive(),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn send(&mut self, command: &str) -> std::io::Result<()> {
        self.stream.write_all(&packet(command))
    }

    fn receive(&mut self) -> Result<Option<String>> {
        loop {
            if let Some((reply, used)) = first_packet(&self.input)? {
                self.input.drain(..used);
                // The last packet of all may find nobody who waits for this.
                match self.stream.write_all(b"+") {
                    Err(error) if !is_gone(&error) => return Err(error.into()),
                    _ => return Ok(Some(reply)),
                }
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("QEMU's gdb stub said nothing in time");
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(count) => self.input.extend(buffer.iter().take(count)),
                Err(error) if is_gone(&error) => return Ok(None),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn is_gone(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof
    )
}

fn checksum(content: &[u8]) -> u8 {
    content
        .iter()
        .fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

/// `$content#checksum`.
fn packet(content: &str) -> Vec<u8> {
    format!("${content}#{:02x}", checksum(content.as_bytes())).into_bytes()
}

/// The first whole packet's content, and how many bytes it and what stood before it (`+`) take;
/// `None` if more must come.
fn first_packet(input: &[u8]) -> Result<Option<(String, usize)>> {
    let Some(start) = input.iter().position(|byte| *byte == b'$') else {
        return Ok(None);
    };
    let rest = input.get(start + 1..).unwrap_or(&[]);
    let Some(length) = rest.iter().position(|byte| *byte == b'#') else {
        return Ok(None);
    };
    let (content, tail) = rest.split_at(length);
    let Some(sum) = tail.get(1..3) else {
        return Ok(None);
    };
    if from_hex(&String::from_utf8_lossy(sum)) != Some(vec![checksum(content)]) {
        bail!("a packet of QEMU's gdb stub is damaged");
    }
    let content = String::from_utf8_lossy(content).into_owned();
    Ok(Some((content, start + 1 + length + 3)))
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = text.chars().map(|letter| letter.to_digit(16)).collect();
    let digits = digits?;
    if digits.len() % 2 != 0 {
        return None;
    }
    Some(
        digits
            .chunks_exact(2)
            .map(|pair| pair.iter().fold(0, |sum, digit| sum << 4 | *digit as u8))
            .collect(),
    )
}

/// RIP and CPL out of the reply to `g`: sixteen registers of eight bytes, RIP, EFLAGS of four, CS
/// of four (QEMU, gdb-xml/i386-64bit.xml).
fn place(reply: &str) -> Option<Place> {
    let bytes = from_hex(reply)?;
    let address = u64::from_le_bytes(bytes.get(128..136)?.try_into().ok()?);
    let ring = bytes.get(140)? & 3;
    Some(Place { address, ring })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn packets_are_as_the_protocol_wants_them() {
        // The GDB manual's example of a checksum is the plain sum modulo 256.
        assert_eq!(packet("OK"), b"$OK#9a");
        assert_eq!(
            first_packet(b"+$OK#9a$x").unwrap(),
            Some(("OK".to_owned(), 7))
        );
        assert_eq!(first_packet(b"+$OK#9").unwrap(), None);
        assert!(first_packet(b"$OK#9b").is_err());
    }

    #[test]
    fn the_place_is_read_from_registers() {
        let mut registers = vec![0; 200];
        registers[128] = 0x34;
        registers[129] = 0x12;
        registers[140] = 0x23;
        let expected = Place {
            address: 0x1234,
            ring: 3,
        };
        assert_eq!(place(&to_hex(&registers)), Some(expected));
        assert_eq!(place("E01"), None);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_without_panic(input: Vec<u8>, text: String) {
            let _ = first_packet(&input);
            let _ = place(&text);
        }

        #[test]
        fn what_is_packed_is_unpacked(content in "[a-zA-Z0-9,;:.]{0,40}", rest: Vec<u8>) {
            let mut input = packet(&content);
            let length = input.len();
            input.extend(rest);
            prop_assert_eq!(first_packet(&input).unwrap(), Some((content, length)));
        }

        #[test]
        fn bytes_survive_hex(bytes: Vec<u8>) {
            prop_assert_eq!(from_hex(&to_hex(&bytes)), Some(bytes));
        }
    }
}
