//! Machines in Bochs, the emulator that has VMX. Boots an image's ISO; the serial port is a socket,
//! so a [`Session`] types and reads as with QEMU. Called by [`crate::machines`] alone.
//!
//! A machine in Bochs does not end with its system: what a test waits for is on the serial line.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use image_builder::image::Image;
use image_builder::packages::Tool;
use image_builder::qemu::Machine;

use crate::session::Session;

/// What must be installed.
pub const TOOLS: &[Tool] = &[
    Tool {
        what: "bochs-bin",
        package: "bochs",
    },
    Tool {
        what: "/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so",
        package: "bochs-term",
    },
    Tool {
        what: BIOS,
        package: "bochsbios",
    },
    Tool {
        what: VGA_BIOS,
        package: "seabios",
    },
];

/// Bochs's own firmware, which locks VMX on.
pub const BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";
/// Firmware that leaves VMX to whoever comes.
pub const SEABIOS: &str = "/usr/share/seabios/bios.bin";
const VGA_BIOS: &str = "/usr/share/seabios/vgabios-isavga.bin";
/// A CPU with EPT, VPID and unrestricted guests, whose clocks agree.
pub const CPU: &str = "corei7_haswell_4770";
/// Instructions that a second of the machine's time has: a fair share of what Bochs does in one.
const IPS: u32 = 200_000_000;
/// Bochs takes at most so much memory from its host.
const HOST_MIB: u64 = 1024;
/// Waits of a session take so many times as long as with QEMU.
const PATIENCE: u32 = 4;
/// For Bochs to open its serial port.
const START: Duration = Duration::from_secs(60);

/// Boots `image` with this firmware. Files are called after `transcript`.
pub fn start(
    image: &Image,
    machine: &Machine,
    firmware: &str,
    transcript: &Path,
) -> Result<Session> {
    Ok(launch(image, machine, firmware, transcript, None)?.0)
}

/// Boots `image` with commands for the debugger, which also stops at XCHG BX, BX. What it prints comes
/// as well, and has to be read.
pub fn debugged(
    image: &Image,
    machine: &Machine,
    transcript: &Path,
    commands: &str,
) -> Result<(Session, ChildStdout)> {
    let (session, printed) = launch(image, machine, BIOS, transcript, Some(commands))?;
    Ok((session, printed.context("no pipe")?))
}

fn launch(
    image: &Image,
    machine: &Machine,
    firmware: &str,
    transcript: &Path,
    orders: Option<&str>,
) -> Result<(Session, Option<ChildStdout>)> {
    let iso = image.iso.as_ref().context("the image has no ISO")?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let model = match machine.cpu.as_str() {
        "max" => CPU,
        other => other,
    };
    let log = transcript.with_extension("bochs");
    // Debian's Bochs has its debugger built in, which waits for a command.
    let (orders, stops, output) = match orders {
        None => ("c\n", 0, Stdio::null()),
        Some(orders) => (orders, 1, Stdio::piped()),
    };
    let lines = [
        "display_library: term".to_owned(),
        format!("romimage: file={firmware}, options=fastboot"),
        format!("vgaromimage: file={VGA_BIOS}"),
        format!(
            "memory: guest={}, host={}",
            machine.memory_mib,
            machine.memory_mib.min(HOST_MIB)
        ),
        format!(
            "cpu: model={model}, count={}, ips={IPS}, reset_on_triple_fault=0",
            machine.smp
        ),
        "clock: sync=none, time0=946684800".to_owned(),
        "pci: enabled=1, chipset=i440fx".to_owned(),
        "ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14".to_owned(),
        format!(
            "ata0-master: type=cdrom, path=\"{}\", status=inserted",
            iso.display()
        ),
        "boot: cdrom".to_owned(),
        format!("com1: enabled=1, mode=socket-client, dev=127.0.0.1:{port}"),
        "plugin_ctrl: unmapped=1, biosdev=1, speaker=0, e1000=0, es1370=0, sb16=0, gameport=0, parallel=0".to_owned(),
        "sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy".to_owned(),
        format!("log: {}", log.display()),
        format!("magic_break: enabled={stops}"),
        "panic: action=fatal".to_owned(),
        "error: action=report".to_owned(),
        "info: action=ignore".to_owned(),
        "debug: action=ignore".to_owned(),
    ];
    let configuration = transcript.with_extension("bochsrc");
    if let Some(folder) = transcript.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&configuration, lines.join("\n") + "\n")?;
    let commands = transcript.with_extension("debugger");
    fs::write(&commands, orders)?;
    let mut bochs = Command::new("bochs-bin");
    bochs.args(["-q", "-f"]).arg(&configuration);
    bochs.arg("-rc").arg(&commands).env("TERM", "dumb");
    let mut child = bochs
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start bochs-bin")?;
    listener.set_nonblocking(true)?;
    let printed = child.stdout.take();
    let deadline = Instant::now() + START;
    let stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        let ended = child.try_wait()?.is_some();
        if ended || Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            bail!("Bochs does not open its serial port: see {}", log.display());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    stream.set_nonblocking(false)?;
    let input = stream.try_clone()?;
    let mut session = Session::over(child, stream, Box::new(input), transcript)?;
    session.be_patient(PATIENCE);
    Ok((session, printed))
}
