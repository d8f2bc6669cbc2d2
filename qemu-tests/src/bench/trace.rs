//! Records, instruction by instruction, what single operations of an image execute.
//!
//! The producers of rows (the component `bench`, the guests `bench-guest` and `compare-guest`) read the TSC before and
//! after each operation, by `measure::ticks`, and nowhere else. The machine is stopped at each of
//! these readings; around a few rounds of each row QEMU logs every instruction. Code, clock and
//! interrupts are those of an undisturbed run, but the values that the stopped RDTSCs read are
//! worth nothing: rows are measured in a boot of their own. Only [`super`] uses this.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use image_builder::elf;
use image_builder::image::Image;
use image_builder::qemu::Machine;
use measure::SAMPLES;
use microvisor_abi::cap::Map;

use super::debugger::{Debugger, Stop};
use crate::machines::Machines;
use crate::session::Session;

/// The rounds of each row that are recorded: some after the first, which finds nothing prepared,
/// and more than one, since an interrupt may come into one.
const RECORDED: Range<usize> = 60..63;
/// For everything; with ten others at work on each core it took a minute.
const PATIENCE: Duration = Duration::from_secs(300);

/// `measure::ticks` as it is compiled: LFENCE, then RDTSC, `shl rdx, 32`, `or rax, rdx`.
const TICKS: [u8; 12] = [
    0x0f, 0xae, 0xe8, 0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0,
];
/// Where its RDTSC begins.
const RDTSC: usize = 3;

/// An instruction that was executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its linear address.
    pub address: u64,
    /// CPL, the guest's own if it was in a guest.
    pub ring: u8,
    /// In a guest.
    pub guest: bool,
}

/// What one operation executed, from the RDTSC before it (with it) to the one after it (without).
pub type Operation = Vec<Step>;

/// Who measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Producer {
    /// A component.
    Component,
    /// A guest.
    Guest,
}

/// The operations of one row that were recorded.
pub type Rounds = Vec<Operation>;

/// What was recorded, for each producer: its meter's empty pair first, then its rows in the order
/// in which they are measured.
#[derive(Debug, Default)]
pub struct Recorded {
    /// Of the component.
    pub component: Vec<Rounds>,
    /// Of the guest.
    pub guest: Vec<Rounds>,
}

/// The stops of one producer.
struct Stops {
    /// Addresses of its RDTSCs.
    sites: Vec<u64>,
    /// Between the first and the second reading of a round.
    open: bool,
    /// Finished ones, of all rows.
    rounds: usize,
    rows: Vec<Rounds>,
}

impl Stops {
    fn none() -> Stops {
        Stops {
            sites: Vec::new(),
            open: false,
            rounds: 0,
            rows: Vec::new(),
        }
    }

    fn new(program: &[u8]) -> Result<Stops> {
        let sites = sites(program)?;
        if sites.is_empty() {
            bail!("it never reads the TSC");
        }
        Ok(Stops {
            sites,
            ..Stops::none()
        })
    }

    /// At a reading of the TSC, before it.
    fn reading(&mut self, debugger: &mut Debugger, log: &mut Log) -> Result<()> {
        let round = self.rounds % SAMPLES;
        let recorded = RECORDED.contains(&round);
        if !self.open {
            if round == 0 {
                self.rows.push(Rounds::new());
            }
            if recorded {
                log.begin(debugger)?;
            }
        } else {
            if recorded {
                let operation = log.end(debugger)?;
                self.rows.last_mut().context("no row")?.push(operation);
            }
            self.rounds += 1;
        }
        self.open = !self.open;
        Ok(())
    }
}

/// Boots the image and records what `component`, if there is one, and `guest` measure.
pub fn record(
    machines: &Machines,
    image: &Image,
    machine: &Machine,
    component: Option<&str>,
    guest: &str,
) -> Result<Recorded> {
    let mut component = match component {
        None => Stops::none(),
        Some(name) => Stops::new(&fs::read(debug_file(image, name)?)?)
            .with_context(|| format!("component {name}"))?,
    };
    let file = guest_file(image, guest)?;
    let mut guest = Stops::new(file).with_context(|| format!("guest {guest}"))?;

    // A socket's path has a hundred bytes at most, which the workspace's may have used up.
    let socket = Removed(std::env::temp_dir().join(format!("bench-{}.sock", std::process::id())));
    let mut log = Log::new(machines.folder().join("bench-trace.instructions"))?;
    let mut machine = machine.clone();
    machine.serial = "stdio".into();
    let mut command = machine.command(image);
    command.arg("-S").arg("-D").arg(&log.path.0);
    let address = format!("unix:{},server=on,wait=off", socket.0.display());
    command.arg("-gdb").arg(address);
    let session = Session::start(command, &machines.folder().join("bench-trace.log"))?;

    let mut debugger = Debugger::connect(&socket.0, Instant::now() + PATIENCE)?;
    debugger.steps_without_interrupts()?;
    for address in component.sites.iter().chain(&guest.sites) {
        debugger.stop_at(*address)?;
    }
    let mut elsewhere = 0_u64;
    let ended = stops(&mut debugger, |debugger| {
        let place = debugger.place()?;
        // All components share their addresses, and the guest has them too: who stands here? The
        // core is elsewhere, so ring 0 is the guest.
        if place.ring == 0 && guest.sites.contains(&place.address) {
            guest.reading(debugger, &mut log)
        } else if component.sites.contains(&place.address) && reads_tsc(debugger, place.address)? {
            component.reading(debugger, &mut log)
        } else {
            elsewhere += 1;
            Ok(())
        }
    });
    ended.with_context(|| {
        format!(
            "after {} and {} rounds, and {elsewhere} stops of other programs\n{}",
            component.rounds,
            guest.rounds,
            session.tail()
        )
    })?;
    Ok(Recorded {
        component: component.rows,
        guest: guest.rows,
    })
}

/// Calls `at` for each stop, until QEMU ends.
fn stops(debugger: &mut Debugger, mut at: impl FnMut(&mut Debugger) -> Result<()>) -> Result<()> {
    while debugger.resume()? == Stop::Paused {
        at(debugger)?;
        if debugger.step()? == Stop::Ended {
            break;
        }
    }
    Ok(())
}

/// Whether the space in use has [`TICKS`] around this RDTSC.
fn reads_tsc(debugger: &mut Debugger, address: u64) -> Result<bool> {
    let start = address.saturating_sub(RDTSC as u64);
    Ok(debugger.memory(start, TICKS.len())?.as_deref() == Some(&TICKS))
}

/// The program that the image has for a guest.
pub fn guest_file<'a>(image: &'a Image, guest: &str) -> Result<&'a [u8]> {
    let kernel = image_builder::manifest::kernel_file(guest);
    let mut files = image.contents.files.iter();
    let found = files.find(|(name, _)| *name == kernel);
    let (_, file) = found.with_context(|| format!("the image has no guest {guest}"))?;
    Ok(file)
}

/// Addresses of the RDTSCs of `measure::ticks` in a program.
pub fn sites(program: &[u8]) -> Result<Vec<u64>> {
    let segments = elf::loadable(program)?.segments;
    let code = segments
        .iter()
        .filter(|segment| segment.flags & Map::EXECUTE != 0);
    Ok(code
        .flat_map(|segment| sites_in(segment.address, &segment.bytes))
        .collect())
}

/// The same in code that is loaded at `address`.
fn sites_in(address: u64, code: &[u8]) -> Vec<u64> {
    let windows = code.windows(TICKS.len()).enumerate();
    windows
        .filter(|(_, window)| *window == TICKS)
        .map(|(offset, _)| address + (offset + RDTSC) as u64)
        .collect()
}

/// The ELF file with symbols of a program of the image.
pub fn debug_file<'a>(image: &'a Image, program: &str) -> Result<&'a Path> {
    let mut files = image.debug.iter().map(PathBuf::as_path);
    files
        .find(|path| path.file_stem().is_some_and(|stem| stem == program))
        .with_context(|| format!("the image has no {program}"))
}

/// A file that nobody needs when this is dropped.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// QEMU's log of instructions; it writes each line at once.
struct Log {
    path: Removed,
    /// Bytes that were read of it.
    read: u64,
}

impl Log {
    fn new(path: PathBuf) -> Result<Log> {
        // QEMU appends.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
        Ok(Log {
            path: Removed(path),
            read: 0,
        })
    }

    /// From here on every instruction is a block of its own, and is logged.
    fn begin(&mut self, debugger: &mut Debugger) -> Result<()> {
        debugger.monitor("one-insn-per-tb on")?;
        debugger.monitor("log exec,nochain")
    }

    fn end(&mut self, debugger: &mut Debugger) -> Result<Operation> {
        debugger.monitor("log none")?;
        debugger.monitor("one-insn-per-tb off")?;
        let mut file = File::open(&self.path.0).context("QEMU's log of instructions")?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut text = String::new();
        self.read += file.read_to_string(&mut text)? as u64;
        Ok(steps(&text))
    }
}

/// The instructions that lines of QEMU's log say were executed.
fn steps(log: &str) -> Operation {
    let mut out = Operation::new();
    for line in log.lines() {
        if let Some(step) = step(line) {
            // An instruction at which a guest exits is begun and not executed. After an interrupt
            // this takes one too many; that round has another length than was measured anyway.
            if !step.guest && out.last().is_some_and(|last| last.guest) {
                out.pop();
            }
            out.push(step);
        } else if line.starts_with("Stopped execution of TB chain before") {
            // The block above was entered, but left before its instruction.
            out.pop();
        }
    }
    out
}

/// A line `Trace CPU: HOST [CS BASE/ADDRESS/FLAGS/COMPILER FLAGS] SYMBOL` (QEMU 10,
/// accel/tcg/cpu-exec.c). The flags hold the CPL in bits 0 and 1, and in bit 21 whether it is a
/// guest (target/i386/cpu.h, HF_CPL_SHIFT, HF_GUEST_SHIFT).
fn step(line: &str) -> Option<Step> {
    let rest = line.strip_prefix("Trace ")?;
    let (_, rest) = rest.split_once('[')?;
    let (fields, _) = rest.split_once(']')?;
    let mut fields = fields
        .split('/')
        .map(|field| u64::from_str_radix(field, 16).ok());
    let _base = fields.next()??;
    let address = fields.next()??;
    let flags = fields.next()??;
    let _compiler = fields.next()??;
    Some(Step {
        address,
        ring: (flags & 3) as u8,
        guest: flags & 1 << 21 != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Lines as a run has them.
    const LOG: &str = "\
Trace 0: 0x7f41d4000100 [00000000/0000000000201614/18d0cab3/ff062201] \n\
Trace 0: 0x7f41d4000240 [00000000/ffffffff80004010/18c0c0b0/ff062201] \n\
Stopped execution of TB chain before 0x7f41d4000240 [ffffffff80004010] \n\
Trace 0: 0x7f41d4000240 [00000000/ffffffff80004010/18c0c0b0/ff062201] \n\
Trace 0: 0x7f41d4000380 [ffff0000/00000000fffff000/00200040/ff062201] \n\
Trace 0: 0x7f41d4000380 [ffff0000/00000000fffff002/00200040/ff062201] \n\
Trace 0: 0x7f41d4000240 [00000000/ffffffff80004014/18c0c0b0/ff062201] \n";

    #[test]
    fn the_log_says_what_was_executed() {
        let step = |address, ring, guest| Step {
            address,
            ring,
            guest,
        };
        let expected = [
            step(0x20_1614, 3, false),
            step(0xffff_ffff_8000_4010, 0, false),
            step(0xffff_f000, 0, true),
            // The guest exited at its second instruction.
            step(0xffff_ffff_8000_4014, 0, false),
        ];
        assert_eq!(steps(LOG), expected);
    }

    #[test]
    fn readings_are_found_and_other_uses_of_the_instruction_are_not() {
        let mut code = vec![0x90; 100];
        code[10..22].copy_from_slice(&TICKS);
        code[40..42].copy_from_slice(&[0x0f, 0x31]);
        code[88..].copy_from_slice(&TICKS);
        assert_eq!(sites_in(0x1000, &code), [0x1000 + 13, 0x1000 + 91]);
    }

    proptest! {
        #[test]
        fn any_log_is_read_without_panic(text: String) {
            let _ = steps(&text);
            let _ = step(&format!("Trace {text}"));
            let _ = step(&format!("Trace 0: 0 [{text}]"));
        }

        #[test]
        fn damaged_programs_are_refused_without_panic(bytes: Vec<u8>) {
            let _ = sites(&bytes);
        }
    }
}
