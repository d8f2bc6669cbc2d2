//! Group `boot`: every way to boot, and every size of machine, ends in a guest's prompt. A way is
//! a medium, a firmware, a machine and a system; few ways cover all values. Where Linux is not
//! needed, GRUB as a Xen PVH guest is the guest, because it is small and takes a command.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use image_builder::image::{self, Image};
use image_builder::qemu::{Machine, Medium};

use crate::guests::to_the_shell;
use crate::machines::Machines;
use crate::report::{Claim, Report};
use crate::session::Session;

/// Seconds until a prompt, on a slow and shared machine.
pub const PROMPT: u64 = 180;
/// The same for the firmware and the boot loader before the core.
const LOADER: u64 = 240;

/// GRUB runs a command: its output is not in what was typed.
pub fn takes_a_command(session: &mut Session) -> Result<()> {
    session.send("echo it \"wor\"ks\r")?;
    session.expect("it works", 60).map(|_| ())
}

/// A way to boot.
struct Way {
    name: &'static str,
    /// Of `systems/`; it says how many CPUs and how much memory there are.
    system: &'static str,
    /// Another kernel than the system's.
    kernel: Option<&'static str>,
    medium: Medium,
    /// UEFI firmware.
    uefi: bool,
    /// QEMU's CPU.
    cpu: &'static str,
    /// Only under `--full`.
    full: bool,
    /// What it must show.
    claims: &'static [Claim<Booted>],
}

const WAY: Way = Way {
    name: "",
    system: "grub",
    kernel: None,
    medium: Medium::Direct,
    uefi: false,
    cpu: "max",
    full: false,
    claims: GRUB,
};

const WAYS: &[Way] = &[
    Way {
        name: "direct",
        claims: &[
            ("the_core_runs_every_cpu", runs_every_cpu),
            ("root_starts_the_guest", starts_the_guest),
            ("guest_reaches_its_prompt", grub_prompt),
            ("takes_a_command", |booted| {
                takes_a_command(&mut booted.session)
            }),
            ("x2apic_is_used", |booted| {
                booted.says(", x2APIC", ", xAPIC")
            }),
        ],
        ..WAY
    },
    Way {
        name: "direct_xapic",
        cpu: "max,-x2apic",
        claims: &[
            ("the_core_runs_every_cpu", runs_every_cpu),
            ("root_starts_the_guest", starts_the_guest),
            ("guest_reaches_its_prompt", grub_prompt),
            ("xapic_is_used", |booted| booted.says(", xAPIC", ", x2APIC")),
        ],
        ..WAY
    },
    Way {
        name: "iso_ovmf",
        medium: Medium::Iso,
        uefi: true,
        ..WAY
    },
    Way {
        name: "disk_seabios",
        medium: Medium::Disk,
        ..WAY
    },
    // SeaBIOS, one CPU, 256 MiB.
    Way {
        name: "iso_seabios",
        system: "small",
        medium: Medium::Iso,
        claims: LINUX,
        ..WAY
    },
    // OVMF, four CPUs, 8 GiB.
    Way {
        name: "disk_ovmf",
        system: "large",
        medium: Medium::Disk,
        uefi: true,
        claims: LINUX,
        ..WAY
    },
    Way {
        name: "kernel_6_12",
        system: "linux",
        kernel: Some("6.12"),
        medium: Medium::Disk,
        full: true,
        claims: LINUX_6_12,
        ..WAY
    },
    Way {
        name: "kernel_6_1_cloud",
        system: "linux",
        kernel: Some("6.1-cloud"),
        medium: Medium::Iso,
        uefi: true,
        full: true,
        claims: LINUX_CLOUD,
        ..WAY
    },
    Way {
        name: "kernel_6_12_cloud",
        system: "linux",
        kernel: Some("6.12-cloud"),
        full: true,
        claims: LINUX_6_12_CLOUD,
        ..WAY
    },
];

const GRUB: &[Claim<Booted>] = &[
    ("the_core_runs_every_cpu", runs_every_cpu),
    ("root_starts_the_guest", starts_the_guest),
    ("guest_reaches_its_prompt", grub_prompt),
];

const LINUX: &[Claim<Booted>] = &[
    ("the_core_runs_every_cpu", runs_every_cpu),
    ("the_core_finds_all_memory", finds_all_memory),
    ("linux_reaches_its_shell", linux_shell),
    ("linux_has_its_memory_and_vcpus", has_memory_and_vcpus),
];

const LINUX_6_12: &[Claim<Booted>] = &[
    ("linux_reaches_its_shell", linux_shell),
    ("it_is_that_kernel", |booted| booted.release("6.12.", false)),
    ("linux_has_its_memory_and_vcpus", has_memory_and_vcpus),
];

const LINUX_CLOUD: &[Claim<Booted>] = &[
    ("linux_reaches_its_shell", linux_shell),
    ("it_is_that_kernel", |booted| booted.release("6.1.", true)),
    ("linux_has_its_memory_and_vcpus", has_memory_and_vcpus),
];

const LINUX_6_12_CLOUD: &[Claim<Booted>] = &[
    ("linux_reaches_its_shell", linux_shell),
    ("it_is_that_kernel", |booted| booted.release("6.12.", true)),
    ("linux_has_its_memory_and_vcpus", has_memory_and_vcpus),
];

/// A machine that was started.
struct Booted {
    session: Session,
    image: Image,
}

impl Booted {
    fn says(&mut self, what: &str, not: &str) -> Result<()> {
        self.session.saw(what, 1)?;
        if self.session.text().contains(not) {
            bail!("the core says {not:?}\n{}", self.session.tail());
        }
        Ok(())
    }

    fn release(&mut self, starts: &str, cloud: bool) -> Result<()> {
        let release = self.session.shell("uname -r", 60)?;
        ensure!(
            release.starts_with(starts) && release.contains("cloud") == cloud,
            "the kernel is {release}"
        );
        Ok(())
    }
}

fn runs_every_cpu(booted: &mut Booted) -> Result<()> {
    let line = format!("core: {} CPUs run", booted.image.cpus);
    booted.session.expect(&line, LOADER).map(|_| ())
}

fn starts_the_guest(booted: &mut Booted) -> Result<()> {
    let line = "[root] guest grub: starting";
    booted.session.expect(line, 90).map(|_| ())
}

fn grub_prompt(booted: &mut Booted) -> Result<()> {
    booted.session.expect("grub>", PROMPT).map(|_| ())
}

/// What the core counts, in MiB, is what QEMU gave but for firmware's own.
fn finds_all_memory(booted: &mut Booted) -> Result<()> {
    booted.session.saw(" MiB of memory", 1)?;
    let text = booted.session.text();
    let found = text
        .split(" MiB of memory")
        .next()
        .and_then(|before| before.split_whitespace().last())
        .and_then(|word| word.parse::<u64>().ok())
        .context("the core counts no memory")?;
    let given = booted.image.memory_mib;
    ensure!(
        found <= given && found + 64 > given,
        "the core finds {found} MiB of {given}"
    );
    Ok(())
}

fn linux_shell(booted: &mut Booted) -> Result<()> {
    to_the_shell(&mut booted.session)
}

/// Linux has the vCPUs of its description, and its memory but for what the kernel itself takes.
fn has_memory_and_vcpus(booted: &mut Booted) -> Result<()> {
    let guest = booted.image.manifest.guests.first().context("no guest")?;
    let (mib, vcpus) = (guest.memory_mib, guest.vcpus.len());
    let printed = booted.session.shell("nproc", 60)?;
    ensure!(printed == vcpus.to_string(), "nproc says {printed}");
    let printed = booted
        .session
        .shell("awk '/MemTotal/ { print $2 }' /proc/meminfo", 60)?;
    let total = printed.parse::<u64>().context(printed)? >> 10;
    ensure!(
        total <= mib && total + 48 + mib / 16 > mib,
        "Linux has {total} MiB of {mib}"
    );
    Ok(())
}

/// Runs the group.
pub fn run(machines: &mut Machines, report: &mut Report, full: bool) {
    for way in WAYS {
        let title = format!("boot-{}", way.name);
        if !machines.wants(&title) {
            continue;
        }
        if way.full && !full {
            for (claim, _) in way.claims {
                report.leave_out(&format!("{}::{claim}", way.name));
            }
            continue;
        }
        let booted = boot(machines, &title, way);
        report.prefixed(way.name, booted, way.claims);
    }
    if machines.wants("boot-reproducible") {
        report.claim("same_input_same_bytes", || builds_again(machines, false));
        if full {
            report.claim("programs_built_again_are_the_same_bytes", || {
                builds_again(machines, true)
            });
        } else {
            report.leave_out("programs_built_again_are_the_same_bytes");
        }
    }
}

fn boot(machines: &mut Machines, title: &str, way: &Way) -> Result<Booted> {
    let image = machines.image_on(way.system, way.kernel, way.medium)?;
    let mut machine = Machine::of(&image);
    machine.cpu = way.cpu.into();
    machine.medium = way.medium;
    machine.uefi = way.uefi;
    let session = machines.boot(title, &image, &machine)?;
    Ok(Booted { session, image })
}

/// Builds ISO and disk image once more, elsewhere and later, and compares; `programs`: compiles
/// core and components from scratch as well.
fn builds_again(machines: &mut Machines, programs: bool) -> Result<()> {
    let folder = machines.folder().join("again");
    let target = machines.folder().join("again-target");
    let gone = |folder: &Path| match folder.exists() {
        true => fs::remove_dir_all(folder),
        false => Ok(()),
    };
    let mut workspace = machines.workspace.clone();
    if programs {
        // One compilation serves both media.
        gone(&target)?;
        workspace.target.clone_from(&target);
    }
    for medium in [Medium::Iso, Medium::Disk] {
        let first = machines.image_on("grub", None, medium)?;
        gone(&folder)?;
        // The name of the description is in the image, so it is the same one.
        let order = machines.order("grub", None, medium, &folder)?;
        let second = image::build(&workspace, &order)?;
        let files = [
            (Some(&first.core), Some(&second.core)),
            (Some(&first.archive), Some(&second.archive)),
            (first.iso.as_ref(), second.iso.as_ref()),
            (first.disk.as_ref(), second.disk.as_ref()),
        ];
        for (first, second) in files {
            if let (Some(first), Some(second)) = (first, second) {
                same(first, second)?;
            }
        }
    }
    gone(&folder)?;
    gone(&target)?;
    Ok(())
}

fn same(first: &Path, second: &Path) -> Result<()> {
    let (a, b) = (fs::read(first)?, fs::read(second)?);
    let differ = a.iter().zip(&b).filter(|(a, b)| a != b).count();
    ensure!(
        a == b,
        "{} and {}: {} and {} bytes, {differ} differ, the first at {:#x}",
        first.display(),
        second.display(),
        a.len(),
        b.len(),
        a.iter().zip(&b).take_while(|(a, b)| a == b).count()
    );
    Ok(())
}
