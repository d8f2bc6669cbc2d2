//! Group `guests`: what unmodified guests see, and what happens to a system with a bad one in it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use idl::manifest::{Component, Guest, Manifest};
use image_builder::image::Image;
use image_builder::qemu::{GUEST_FAILED, Machine, POWERED_OFF};

use crate::boot::{PROMPT, takes_a_command};
use crate::machines::Machines;
use crate::report::{Claim, Report};
use crate::session::Session;

/// Seconds until Linux is in its shell.
const SHELL: u64 = 300;
const READY: &str = "End with: poweroff -f, reboot -f";

/// Runs the group.
pub fn run(machines: &mut Machines, report: &mut Report) {
    linux(machines, report);
    grub(machines, report);
    neighbours(machines, report);
    damaged_manifest(machines, report);
    crate::shares::run(machines, report);
}

/// Linux is in its shell and runs a command.
pub fn to_the_shell(session: &mut Session) -> Result<()> {
    session.expect(READY, SHELL)?;
    // The prompt comes with the shell's start; a command that works proves that it listens.
    session.expect("# ", 60)?;
    session.shell("true", 60).map(|_| ())
}

fn is(printed: &str, expected: &str) -> Result<()> {
    ensure!(printed == expected, "it says {printed:?}, not {expected:?}");
    Ok(())
}

/// Interrupts so far, per CPU, of the lines of /proc/interrupts that contain `what`.
fn interrupts(session: &mut Session, what: &str) -> Result<Vec<u64>> {
    let text = session.shell("cat /proc/interrupts", 60)?;
    let cpus = text
        .lines()
        .next()
        .map_or(0, |line| line.split_whitespace().count());
    let mut sums = vec![0; cpus];
    for line in text.lines().filter(|line| line.contains(what)) {
        for (sum, word) in sums.iter_mut().zip(line.split_whitespace().skip(1)) {
            *sum += word.parse::<u64>().unwrap_or(0);
        }
    }
    ensure!(
        sums.iter().any(|sum| *sum > 0),
        "no interrupt {what:?} in:\n{text}"
    );
    Ok(sums)
}

/// The loops that `count` shells in the guest do in five seconds, each on the vCPU of its number.
pub fn spin(session: &mut Session, cpus: &[u32]) -> Result<Vec<u64>> {
    let mut command = String::new();
    for cpu in cpus {
        command += &format!(
            "(n=0; taskset {:x} sh -c 'n=0; trap \"echo spun-{cpu}-\\$n-; exit\" TERM; while :; do n=$((n+1)); done' & p=$!; sleep 5; kill $p; wait $p) & ",
            1 << cpu
        );
    }
    let text = session.shell(&format!("{command}wait"), 120)?;
    cpus.iter()
        .map(|cpu| {
            let found = text
                .split(&format!("spun-{cpu}-"))
                .nth(1)
                .and_then(|rest| rest.split('-').next());
            found
                .and_then(|n| n.parse().ok())
                .with_context(|| format!("no count of {cpu} in {text:?}"))
        })
        .collect()
}

const LINUX: &[Claim<Session>] = &[
    ("linux_boots_to_a_shell", to_the_shell),
    ("hypervisor_type_is_xen", |session| {
        is(&session.shell("cat /sys/hypervisor/type", 60)?, "xen")
    }),
    ("guest_type_is_pvh", |session| {
        is(&session.shell("cat /sys/hypervisor/guest_type", 60)?, "PVH")
    }),
    ("interrupts_count_xen_events", |session| {
        let before = interrupts(session, "xen-dyn")?;
        session.shell("sleep 1", 60)?;
        let after = interrupts(session, "xen-dyn")?;
        ensure!(after > before, "the counts stay at {before:?}");
        let upcalls = interrupts(session, "HYP")?;
        ensure!(
            upcalls.iter().all(|count| *count > 0),
            "a vCPU took no upcall: {upcalls:?}"
        );
        Ok(())
    }),
    ("two_vcpus_are_up", |session| {
        is(
            &session.shell("cat /sys/devices/system/cpu/online", 60)?,
            "0-1",
        )?;
        is(&session.shell("grep -c ^processor /proc/cpuinfo", 60)?, "2")
    }),
    ("each_vcpu_runs_on_a_cpu_of_its_own", |session| {
        // On one CPU the two would share what one does alone. The machine under the emulator is
        // shared too: that only takes loops away, so the best of some rounds is nearest the truth,
        // and clearly more than a half each is asked for.
        let (mut alone, mut both) = (0, 0);
        for _ in 0..4 {
            alone = alone.max(spin(session, &[0])?.iter().sum());
            both = both.max(spin(session, &[0, 1])?.iter().sum());
            if alone > 0 && 10 * both > 13 * alone {
                return Ok(());
            }
        }
        bail!("two vCPUs together do {both} loops, one alone {alone}")
    }),
    ("sleep_takes_its_time", |session| {
        let minute = Duration::from_secs(60);
        session.send("echo sta''rt; sleep 10; echo sto''p\n")?;
        let (_, start) = session.expect_at("start", minute)?;
        let (_, stop) = session.expect_at("stop", minute)?;
        let took = stop.duration_since(start).as_secs_f64();
        ensure!(
            (9.5..=10.5).contains(&took),
            "sleep 10 took {took:.2} s by the outside clock"
        );
        Ok(())
    }),
    ("focus_key_shows_help", |session| {
        session.send("\x1dh")?;
        session.expect("Ctrl-]", 30)?;
        session.shell("true", 60).map(|_| ())
    }),
    ("reboot_is_reported", |session| {
        session.send("reboot -f\n")?;
        session.expect("[root] guest linux: reboot", 60).map(|_| ())
    }),
    ("reboot_starts_the_guest_again", to_the_shell),
    ("poweroff_is_reported", |session| {
        session.send("poweroff -f\n")?;
        session
            .expect("[root] guest linux: poweroff", 60)
            .map(|_| ())
    }),
    ("poweroff_ends_the_system", |session| {
        let status = session.wait(60)?;
        ensure!(
            status == POWERED_OFF,
            "QEMU's status is {status}, not {POWERED_OFF}"
        );
        Ok(())
    }),
];

fn linux(machines: &mut Machines, report: &mut Report) {
    if !machines.wants("guests-linux") {
        return;
    }
    let session = machines
        .image("linux")
        .and_then(|image| machines.boot("guests-linux", &image, &Machine::of(&image)));
    report.claims(session, LINUX);
}

fn grub(machines: &mut Machines, report: &mut Report) {
    if !machines.wants("guests-grub") {
        return;
    }
    let session = machines
        .image("grub")
        .and_then(|image| machines.boot("guests-grub", &image, &Machine::of(&image)));
    report.claims(
        session,
        &[
            ("grub_pvh_reaches_its_prompt", |session| {
                session.expect("grub>", PROMPT).map(|_| ())
            }),
            ("grub_pvh_takes_a_command", takes_a_command),
            ("grub_pvh_halts", |session| {
                session.send("halt\r")?;
                session.expect("[root] guest grub: poweroff", 60)?;
                let status = session.wait(60)?;
                ensure!(
                    [POWERED_OFF, GUEST_FAILED].contains(&status),
                    "QEMU's status is {status}"
                );
                Ok(())
            }),
        ],
    );
}

/// What is done to the manifest of `neighbours`, and what the system says of it.
struct Harm {
    name: &'static str,
    does: fn(&mut Manifest),
    says: &'static [&'static str],
}

fn broken(manifest: &mut Manifest) -> Option<&mut Guest> {
    manifest
        .guests
        .iter_mut()
        .find(|guest| guest.name == "broken")
}

fn deaf_vmm(manifest: &mut Manifest) {
    let Some(vmm) = manifest.component("vmm").cloned() else {
        return;
    };
    let needs = vmm
        .needs
        .iter()
        .filter(|need| need.interface != "supervisor")
        .cloned()
        .collect();
    manifest.components.push(Component {
        name: "deaf".into(),
        needs,
        ..vmm
    });
    if let Some(guest) = broken(manifest) {
        guest.vmm = "deaf".into();
    }
}

const HARMS: &[Harm] = &[
    Harm {
        name: "missing_kernel_is_named",
        does: |manifest| {
            if let Some(guest) = broken(manifest) {
                guest.kernel = "guests/nowhere/kernel".into();
            }
        },
        says: &["guests/nowhere/kernel is not in the boot archive"],
    },
    Harm {
        name: "guest_larger_than_memory_is_refused",
        does: |manifest| {
            if let Some(guest) = broken(manifest) {
                guest.memory_mib = 1 << 20;
            }
        },
        says: &["guest broken: needs 1048576 MiB of memory"],
    },
    Harm {
        name: "what_is_no_kernel_is_refused",
        does: |manifest| {
            if let Some(guest) = broken(manifest) {
                guest.kernel = "symbols/root".into();
            }
        },
        says: &["guest broken: cannot be built"],
    },
    Harm {
        name: "component_without_a_right_names_it",
        does: deaf_vmm,
        says: &[
            "lacks a right: supervisor",
            "Add \"supervisor\" to `needs` of component deaf",
        ],
    },
];

fn with_manifest(
    machines: &mut Machines,
    change: impl FnOnce(&mut Image),
) -> Result<(Image, Machine)> {
    let mut image = machines.image("neighbours")?;
    change(&mut image);
    let mut machine = Machine::of(&image);
    let path = machines.folder().join("changed.archive");
    image.write_archive(&path)?;
    machine.archive = Some(path);
    Ok((image, machine))
}

fn neighbours(machines: &mut Machines, report: &mut Report) {
    for harm in HARMS {
        let title = format!("guests-{}", harm.name);
        if !machines.wants(&title) {
            continue;
        }
        let outcome = with_manifest(machines, |image| {
            (harm.does)(&mut image.manifest);
            image.contents.manifest = image.manifest.encode();
        })
        .and_then(|(image, machine)| {
            let mut session = machines.boot(&title, &image, &machine)?;
            for says in harm.says {
                session.saw(says, 90)?;
            }
            session.expect("grub>", PROMPT).context("the neighbour")?;
            takes_a_command(&mut session).context("the neighbour")?;
            Ok(())
        });
        report.claim(harm.name, || outcome);
    }
}

/// What is done to the manifest's bytes, and what root says of it.
struct Damage {
    name: &'static str,
    does: fn(&mut Vec<u8>),
    says: &'static str,
}

const DAMAGES: &[Damage] = &[
    Damage {
        name: "damaged_manifest_is_refused",
        does: |bytes| bytes.truncate(20),
        says: "system manifest is damaged",
    },
    Damage {
        name: "manifest_of_another_version_is_refused",
        does: |bytes| {
            if let Some(version) = bytes.get_mut(4) {
                *version = 99;
            }
        },
        says: "system manifest has version 99",
    },
];

fn damaged_manifest(machines: &mut Machines, report: &mut Report) {
    for damage in DAMAGES {
        let title = format!("guests-{}", damage.name);
        if !machines.wants(&title) {
            continue;
        }
        let outcome = with_manifest(machines, |image| {
            (damage.does)(&mut image.contents.manifest)
        })
        .and_then(|(image, machine)| machines.boot(&title, &image, &machine))
        .and_then(|mut session| session.expect(damage.says, 60).map(|_| ()));
        report.claim(damage.name, || outcome);
    }
}
