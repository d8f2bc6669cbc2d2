//! Group `boot`: every way to boot ends in a guest's prompt on two CPUs. GRUB as a Xen PVH guest
//! is the guest, because it is small and takes a command.

use anyhow::{Result, bail};
use image_builder::qemu::Machine;

use crate::machines::Machines;
use crate::report::{Claim, Report};
use crate::session::Session;

/// Seconds until a prompt, on a slow and shared machine.
pub const PROMPT: u64 = 180;

/// What every boot must show.
const EVERY_BOOT: &[Claim<Session>] = &[
    ("all_cpus_are_up", |session| {
        session.expect("2 CPUs run", 90).map(|_| ())
    }),
    ("root_starts_the_guest", |session| {
        session
            .expect("[root] guest grub: starting", 90)
            .map(|_| ())
    }),
    ("guest_reaches_its_prompt", |session| {
        session.expect("grub>", PROMPT).map(|_| ())
    }),
];

/// GRUB runs a command: its output is not in what was typed.
pub fn takes_a_command(session: &mut Session) -> Result<()> {
    session.send("echo it \"wor\"ks\r")?;
    session.expect("it works", 60).map(|_| ())
}

fn sees(session: &mut Session, what: &str, not: &str) -> Result<()> {
    session.saw(what, 1)?;
    if session.text().contains(not) {
        bail!("the core says {not:?}\n{}", session.tail());
    }
    Ok(())
}

/// A way to boot.
struct Way {
    name: &'static str,
    /// QEMU's CPU.
    cpu: &'static str,
    /// GRUB from the ISO, by Multiboot2; else QEMU's `-kernel`, by the PVH entry.
    iso: bool,
    /// UEFI firmware.
    uefi: bool,
    /// What only this way must show.
    more: &'static [Claim<Session>],
}

const WAYS: &[Way] = &[
    Way {
        name: "direct",
        cpu: "max",
        iso: false,
        uefi: false,
        more: &[
            ("takes_a_command", takes_a_command),
            ("x2apic_is_used", |session| {
                sees(session, ", x2APIC", ", xAPIC")
            }),
        ],
    },
    Way {
        name: "direct_xapic",
        cpu: "max,-x2apic",
        iso: false,
        uefi: false,
        more: &[("xapic_is_used", |session| {
            sees(session, ", xAPIC", ", x2APIC")
        })],
    },
    Way {
        name: "iso_seabios",
        cpu: "max",
        iso: true,
        uefi: false,
        more: &[],
    },
    Way {
        name: "iso_ovmf",
        cpu: "max",
        iso: true,
        uefi: true,
        more: &[],
    },
];

/// Runs the group.
pub fn run(machines: &mut Machines, report: &mut Report) {
    for way in WAYS {
        let title = format!("boot-{}", way.name);
        if !machines.wants(&title) {
            continue;
        }
        let session = machines.image("grub", way.iso).and_then(|image| {
            let mut machine = Machine::of(&image);
            machine.cpu = way.cpu.into();
            machine.iso = way.iso;
            machine.uefi = way.uefi;
            machines.boot(&title, &image, &machine)
        });
        let claims: Vec<Claim<Session>> = EVERY_BOOT.iter().chain(way.more).copied().collect();
        report.prefixed(way.name, session, &claims);
    }
}
