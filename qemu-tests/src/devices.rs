//! Group `iommu`, the core's part: the component `device-probe` in root's place, which drives QEMU's
//! `edu` device as a hostile driver would, without an IOMMU, with Intel's and with AMD's. Every claim
//! is its own; here is the list of what it must say on each machine, and, for the checks that the
//! claims depend on, builds in which one is off and the claim must fail.

use anyhow::{Context, Result, bail};
use image_builder::controls::DEVICE_CONTROLS;
use image_builder::qemu::Machine;

use crate::machines::Machines;
use crate::report::Report;

/// A machine: its title, its IOMMU, and the claims that hold there.
struct Kind {
    title: &'static str,
    iommu: &'static [&'static str],
    says: &'static str,
    claims: &'static [&'static [&'static str]],
}

const MESSAGES: &[&str] = &["a_message_arrives", "an_isa_line_arrives"];
const UNPROTECTED: &[&str] = &["without_an_iommu_there_are_no_dma_spaces"];
const PROTECTED: &[&str] = &[
    "a_device_reaches_nothing_before_it_is_attached",
    "a_device_reaches_what_is_mapped_where_it_is_mapped",
    "a_write_outside_is_blocked_and_stops_the_device",
    "a_read_outside_is_blocked_and_stops_the_device",
    "a_write_to_what_is_read_only_is_blocked",
    "memory_taken_back_is_out_of_the_devices_reach",
    "a_detached_device_reaches_nothing",
];
/// QEMU's AMD-Vi logs no event up to version 10.0 at least.
const REPORTED: &[&str] = &["the_core_reports_the_device_by_name"];
const REMAPPED: &[&str] = &[
    "a_message_of_another_device_is_blocked",
    "a_message_that_is_nobodys_is_blocked",
];
/// QEMU's VT-d lets interrupts in the old format pass, whatever it is told.
const STRICT: &[&str] = &["a_message_that_bypasses_remapping_is_blocked"];

const MACHINES: &[Kind] = &[
    Kind {
        title: "devices-none",
        iommu: &[],
        says: "protection false, remapping false, AMD false",
        claims: &[MESSAGES, UNPROTECTED],
    },
    Kind {
        title: "devices-vtd",
        iommu: &["-device", "intel-iommu,intremap=on,caching-mode=on"],
        says: "protection true, remapping true, AMD false",
        claims: &[MESSAGES, PROTECTED, REPORTED, REMAPPED],
    },
    Kind {
        title: "devices-amdvi",
        // Without `pt=off` it translates nothing.
        iommu: &["-device", "amd-iommu,intremap=on,xtsup=on,pt=off"],
        says: "protection true, remapping true, AMD true",
        claims: &[MESSAGES, PROTECTED, REMAPPED, STRICT],
    },
];

/// Runs them.
pub fn run(machines: &mut Machines, report: &mut Report) {
    for kind in MACHINES {
        if !machines.wants(kind.title) {
            continue;
        }
        let text = match transcript(machines, kind) {
            Ok(text) => text,
            Err(error) => {
                report.fail(kind.title, format!("{error:#}"));
                continue;
            }
        };
        let title = kind.title;
        report.claim(&format!("{title}_is_what_the_core_found"), || {
            match text.contains(kind.says) {
                true => Ok(()),
                false => bail!("it does not say: {}", kind.says),
            }
        });
        for name in kind.claims.iter().copied().flatten() {
            report.claim(&format!("{title}: {name}"), || holds(&text, name));
        }
        report.claim(&format!("{title}: every claim is listed"), || {
            let said = text.lines().filter(|line| {
                line.starts_with("device-probe: ")
                    && (line.trim().ends_with(" ok") || line.contains("FAILED"))
            });
            let listed: usize = kind.claims.iter().map(|claims| claims.len()).sum();
            match said.count() {
                all if all == listed => Ok(()),
                all => bail!("it made {all} claims, {listed} are listed"),
            }
        });
    }
    for control in DEVICE_CONTROLS {
        let (name, claim) = (control.name, control.claim);
        let title = format!("devices-control-{name}");
        if !machines.wants(&title) {
            continue;
        }
        report.claim(&format!("without {name}, {claim} fails"), || {
            let mut machines = machines.control(control);
            let text = transcript(&mut machines, &MACHINES[1])?;
            match holds(&text, claim) {
                Ok(()) => bail!("it holds"),
                Err(_) if text.contains(&format!("{claim} FAILED: Wrong(")) => Ok(()),
                Err(error) => Err(error),
            }
        });
    }
}

/// What it wrote until it was done.
fn transcript(machines: &mut Machines, kind: &Kind) -> Result<String> {
    let image = machines.image("device-probe")?;
    let machine = Machine::of(&image);
    let mut session = machines.boot_with(kind.title, &image, &machine, |qemu| {
        // The last of two options of a kind is added to the first.
        qemu.args(["-machine", "kernel-irqchip=split"]);
        qemu.args(kind.iommu);
        qemu.args(["-device", "edu,dma_mask=0xffffffffffffffff"]);
    })?;
    session
        .saw("device-probe: done", 600)
        .context("its last line")?;
    Ok(session.text())
}

/// The claim's line says that it holds.
fn holds(text: &str, name: &str) -> Result<()> {
    let start = format!("device-probe: {name} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&start));
    match line.map(str::trim) {
        Some("ok") => Ok(()),
        Some(other) => bail!("{other}"),
        None => bail!("it says nothing of it"),
    }
}
