//! Boots both systems, one CPU each under -icount, and reads what the guests say and what each system
//! says of itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use image_builder::debian::Cache;
use image_builder::image::{self, Image, Order};
use image_builder::qemu::Machine;
use image_builder::workspace::Flavour;
use object::{Object, ObjectSegment};

use super::icount::{self, Counter};
use super::linux;
use super::measured::Measured;
use crate::bench::{self, Segments};
use crate::machines::Machines;
use crate::session::Session;
use crate::shares;
use crate::xen::Xen;
use crate::xen::dom0::{self, Guest, assemble};

/// Memory in MiB: of the machine, of the guest that measures and of Linux, of each of many guests
/// that do nothing. `systems/compare.toml` has the first two as well.
const MACHINE: u64 = 1536;
const GUEST: u64 = 512;
const SMALL: u64 = 32;
/// How many guests that do nothing.
const MANY: u64 = 10;
/// Seconds until the next thing is done, on a busy machine.
const PATIENCE: u64 = 3000;

/// What the boots of one system gave.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Which system.
    pub version: String,
    /// What the guest measured.
    pub measured: Measured,
    /// Where each row's instructions are spent, by function; of this system only.
    pub segments: BTreeMap<String, Segments>,
    /// Instructions from power-on to the entry of the first guest's kernel.
    pub entry: Option<u64>,
    /// Instructions from the order to create a guest with Linux to its shell.
    pub create: Option<u64>,
    /// Instructions in a second in which nobody does anything, with that guest.
    pub idle: Option<u64>,
    /// The same without a guest.
    pub idle_alone: Option<u64>,
    /// KiB that the system occupies with one guest, and with [`MANY`], besides their memory.
    pub memory_one: Option<u64>,
    /// See [`Run::memory_one`].
    pub memory_many: Option<u64>,
    /// Bytes of the hypervisor, as loaded: the kernel of a dom0 is not in it.
    pub privileged: Option<u64>,
}

impl Run {
    /// KiB that each further guest takes besides its memory.
    pub fn memory_each(&self) -> Option<u64> {
        let more = self.memory_many?.checked_sub(self.memory_one?)?;
        Some(more / (MANY - 1))
    }
}

/// A machine whose instructions can be asked for.
struct Counted {
    session: Session,
    counter: Counter,
}

impl Counted {
    /// Waits for a text that was not there before; the instructions until then.
    fn at(&mut self, text: &str) -> Result<u64> {
        self.session.expect(text, PATIENCE)?;
        self.counter.executed()
    }
}

/// This system's boot number `time` with the guest that measures.
pub fn here(machines: &mut Machines, time: u32) -> Result<Run> {
    let image = machines.image("compare")?;
    let mut counted = boot(machines, &format!("against-here-{time}"), &image)?;
    let entry = counted.at("compare: entry")?;
    counted.session.expect("compare: done", PATIENCE)?;
    Ok(Run {
        version: "microvisor".into(),
        measured: Measured::read(&counted.session.text()),
        entry: Some(entry),
        privileged: Some(loaded(&image.folder.join("microvisor.elf"))?),
        ..Run::default()
    })
}

/// Where each row of this system spends its instructions.
pub fn segments_here(machines: &mut Machines, run: &mut Run) -> Result<()> {
    let image = machines.image("compare")?;
    let segments = bench::guest_segments(machines, &image, &machine(&image), "compare")?;
    let names = &run.measured.order;
    ensure!(
        segments.len() == names.len(),
        "{} rows were measured, {} recorded",
        names.len(),
        segments.len()
    );
    run.segments = names.iter().cloned().zip(segments).collect();
    Ok(())
}

/// The rows of this system as a whole.
pub fn whole_here(machines: &mut Machines, run: &mut Run) -> Result<()> {
    let initrd = initrd(machines)?;
    let guest = format!(
        "[[guest]]\nname = \"linux\"\nkernel = \"debian:linux-image-amd64\"\ninitrd = \"{}\"\n\
         cmdline = \"{}\"\nmemory = \"{GUEST}M\"\n",
        initrd.display(),
        linux::CMDLINE
    );
    let image = made(machines, "compare-linux", &guest)?;
    let mut counted = boot(machines, "against-here-linux", &image)?;
    let created = counted.at("[root] guest linux: building")?;
    let shell = counted.at(linux::SHELL)?;
    let rested = counted.at(linux::RESTED)?;
    run.create = shell.checked_sub(created);
    run.idle = idle(shell, rested);
    // Nobody runs at all without a guest: there is no tick.
    run.idle_alone = None;
    drop(counted);

    for count in [1, MANY] {
        let guests: String = (0..count)
            .map(|number| {
                format!(
                    "[[guest]]\nname = \"idle{number}\"\nkernel = \"package:compare-guest\"\n\
                     cmdline = \"idle\"\nmemory = \"{SMALL}M\"\n"
                )
            })
            .collect();
        let image = made(machines, &format!("compare-{count}"), &guests)?;
        let mut counted = boot(machines, &format!("against-here-idle-{count}"), &image)?;
        for number in 0..count {
            let line = format!("[vmm-idle{number}] guest: compare: entry");
            counted.session.saw(&line, PATIENCE)?;
        }
        let [_, _, _, free, _] = shares::info(&mut counted.session)?;
        let besides = (MACHINE << 10).checked_sub(free + count * (SMALL << 10));
        match count {
            1 => run.memory_one = besides,
            _ => run.memory_many = besides,
        }
    }
    Ok(())
}

fn idle(from: u64, to: u64) -> Option<u64> {
    Some(to.checked_sub(from)? / linux::IDLE_SECONDS)
}

/// An image of a system that is described here.
fn made(machines: &Machines, name: &str, guests: &str) -> Result<Image> {
    let system = machines.folder().join(format!("{name}.toml"));
    let text = format!("[system]\ncpus = 1\nmemory = \"{MACHINE}M\"\n\n{guests}");
    fs::write(&system, text)?;
    let order = Order {
        system,
        out: Some(machines.folder().join(name)),
        iso: false,
        disk: false,
        kernel: None,
    };
    image::build(&machines.workspace, &order)
}

fn machine(image: &Image) -> Machine {
    let mut machine = Machine::of(image);
    machine.smp = 1;
    machine.icount = true;
    machine.memory_mib = MACHINE;
    machine
}

fn boot(machines: &Machines, title: &str, image: &Image) -> Result<Counted> {
    let socket = icount::socket(title);
    let session = machines.boot_with(title, image, &machine(image), |command| {
        icount::listen(command, &socket);
    })?;
    Ok(Counted {
        session,
        counter: Counter::connect(&socket)?,
    })
}

fn initrd(machines: &Machines) -> Result<PathBuf> {
    let path = machines.folder().join("against.initrd");
    let cache = Cache::new(&machines.workspace.root.join("build/cache"));
    linux::initramfs(&cache, &path)?;
    Ok(path)
}

/// The TSC without an exit for every reading: the emulated one is not invariant, for which Xen would
/// emulate it.
const MORE: &str = "tsc_mode = \"native\"\n";

/// What dom0 does by itself: so nothing depends on when somebody types. It sleeps for longer than each
/// guest has to do, since to ask after them costs more than they do.
const BEGIN: &str = "\
say() { echo \"compare-dom0: $*\"; }
free() { xl info | awk '/^free_memory/ { print $3 }'; }
xl create /guests/peer.cfg
xl create /guests/compare.cfg
sleep 30
xl destroy compare
xl destroy peer
say rests
sleep 1000
say rested
say creates
xl create /guests/linux.cfg
sleep 1100
xl destroy linux
for number in 0 1 2 3 4 5 6 7 8 9; do
    xl create /guests/idle.cfg name=\\\"idle$number\\\"
    say guests $number free $(free) MiB
done
say memory $(xl info | awk '/^total_memory/ { print $3 }') MiB
say end
";

/// Xen, dom0 and guests.
pub fn prepare_xen(machines: &Machines) -> Result<Xen> {
    let built = machines
        .workspace
        .build(Flavour::Component, &["compare-guest"])?;
    let kernel = built.first().context("no guest that measures")?;
    let cache = Cache::new(&machines.workspace.root.join("build/cache"));
    let stock = cache.kernel("linux-image-amd64", None)?;
    let initrd = initrd(machines)?;
    let guest = |name, cmdline: &str, memory_mib| Guest {
        name,
        kernel,
        cmdline: cmdline.to_owned(),
        initrd: None,
        memory_mib,
        more: MORE,
    };
    let linux = Guest {
        kernel: &stock,
        initrd: Some(&initrd),
        ..guest("linux", linux::CMDLINE, GUEST)
    };
    // Their domain ids are 1 and 2, as in `systems/compare.toml`.
    let guests = [
        guest("peer", "peer 2", SMALL),
        guest("compare", "with 1", GUEST),
        linux,
        guest("idle", "idle", SMALL),
    ];
    let folder = machines.folder().join("against-xen");
    let xen = assemble(&cache, &folder, &guests, BEGIN)?;
    dom0::leave_cr0_reads_alone(&xen)?;
    Ok(xen)
}

/// Xen's boot number `time`, until the guest has measured; with `whole`, all the rest too.
pub fn under_xen(machines: &Machines, xen: &Xen, time: u32, whole: bool) -> Result<Run> {
    let mut command = xen.command(MACHINE);
    // Nothing of the host's may get in, or no two runs are the same.
    command.args(["-rtc", "base=2026-01-01,clock=vm", "-seed", "1"]);
    let title = format!("against-xen-{time}");
    let socket = icount::socket(&title);
    icount::listen(&mut command, &socket);
    let transcript = machines.folder().join(format!("{title}.log"));
    let mut counted = Counted {
        session: Session::start(command, &transcript)?,
        counter: Counter::connect(&socket)?,
    };
    let entry = counted.at("compare: entry")?;
    counted.session.expect("compare: done", PATIENCE)?;
    let mut run = Run {
        version: format!("Xen {}", short(&xen.version)),
        measured: Measured::read(&counted.session.text()),
        entry: Some(entry),
        ..Run::default()
    };
    if whole {
        whole_under_xen(&mut counted, &mut run, xen)?;
    }
    Ok(run)
}

fn whole_under_xen(counted: &mut Counted, run: &mut Run, xen: &Xen) -> Result<()> {
    let from = counted.at("compare-dom0: rests")?;
    let to = counted.at("compare-dom0: rested")?;
    run.idle_alone = idle(from, to);
    let created = counted.at("compare-dom0: creates")?;
    let shell = counted.at(linux::SHELL)?;
    let rested = counted.at(linux::RESTED)?;
    run.create = shell.checked_sub(created);
    run.idle = idle(shell, rested);
    counted.session.expect("compare-dom0: end", PATIENCE)?;
    let text = counted.session.text();
    let mib = |after: &str| -> Option<u64> {
        let rest = text.split_once(&format!("compare-dom0: {after} "))?.1;
        rest.split_whitespace().next()?.parse().ok()
    };
    let all = mib("memory");
    let besides = |free: Option<u64>, guests: u64| {
        let occupied = all?.checked_sub(free? + guests * SMALL)?;
        Some(occupied << 10)
    };
    run.memory_one = besides(mib("guests 0 free"), 1);
    run.memory_many = besides(mib("guests 9 free"), MANY);
    run.privileged = Some(loaded(&xen.hypervisor)?);
    Ok(())
}

/// Bytes of an ELF file that are loaded.
fn loaded(path: &Path) -> Result<u64> {
    let file = fs::read(path)?;
    let elf = object::File::parse(&*file).with_context(|| path.display().to_string())?;
    Ok(elf.segments().map(|segment| segment.file_range().1).sum())
}

/// The upstream version out of a package's folder name.
fn short(version: &str) -> &str {
    let version = version.rsplit('_').next().unwrap_or(version);
    version.split(['+', '-']).next().unwrap_or(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_in_short() {
        let folder = "xen-hypervisor-4.17-amd64_4.17.7+13-g2445b30a44-0+deb12u1";
        assert_eq!(short(folder), "4.17.7");
    }

    #[test]
    fn further_guests_share_what_they_take() {
        let run = Run {
            memory_one: Some(1000),
            memory_many: Some(1000 + 9 * 50),
            ..Run::default()
        };
        assert_eq!(run.memory_each(), Some(50));
        assert_eq!(Run::default().memory_each(), None);
    }
}
