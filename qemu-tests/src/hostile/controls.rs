//! Controls: each test of isolation once more in a build where the one check that it depends on is
//! off, and where it must fail. A test that passes there proves nothing. The list, with what is off
//! and which claim fails, is `image_builder::controls`; here is how each is tried.
//!
//! A control passes if the core says that it is such a build, the test gets as far as judging, and
//! its judgement is that the claim fails, for what it saw. A machine that stops before, or says
//! nothing in time, proves nothing, and the control fails.
//!
//! Not here, because no emulator shows it: that SYSRET never goes to an address that is not
//! canonical (`microvisor/src/trap.rs`; it faults in ring 0 on Intel's CPUs only, and QEMU has
//! none that runs this core), and that a translation of a guest is flushed by its ASID (QEMU
//! flushes at every entry; `microvisor/vcpu-state/tests/asid.rs` has a model of the TLB and its own
//! controls).

use anyhow::{Context, Result, bail};
use image_builder::controls::{CONTROLS, Control};
use image_builder::image::Image;
use image_builder::qemu::Machine;

use super::{Verdict, components, guests};
use crate::machines::Machines;
use crate::report::Report;
use crate::session::Session;

/// Tries a claim on images that `Machines` builds, with a check off.
pub type Experiment = fn(&mut Machines) -> Result<Verdict>;

/// Seconds until the core has said what build it is.
const SAYS_SO: u64 = 120;

/// Controls that are quick enough for every run of the group.
const QUICK: &[&str] = &["rights", "task-switched"];

/// Seconds until a component must have judged.
const JUDGED: u64 = 180;

/// Controls that need another CPU than QEMU's `max`, and why: what would catch the failure too.
const CPUS: &[(&str, &str)] = &[
    // Pages of the core that user mode may touch are pages that the core may not.
    ("supervisor", "max,-smap,-smep"),
];

/// Runs the quick controls, or all.
pub fn run(machines: &mut Machines, report: &mut Report, all: bool) {
    for control in CONTROLS {
        let title = format!("control-{}", control.name);
        if !machines.wants(&title) {
            continue;
        }
        let name = format!("without_{}::{}_fails", control.name, control.claim);
        if !all && !QUICK.contains(&control.name) {
            report.leave_out(&name);
            continue;
        }
        let mut machines = machines.control(control);
        report.claim(&name, || match judged(&mut machines, control)? {
            Verdict::Fails(why) => {
                println!("     seen: {why}");
                Ok(())
            }
            Verdict::Holds => bail!("the claim holds although nobody checks"),
        });
    }
}

/// Tries a control's claim, on machines that are built with it.
pub fn judged(machines: &mut Machines, control: &Control) -> Result<Verdict> {
    let mut experiments = guests::EXPERIMENTS.iter();
    match experiments.find(|(claim, _)| *claim == control.claim) {
        Some((_, experiment)) => experiment(machines),
        None => component(machines, control),
    }
}

/// A claim that a component judges.
fn component(machines: &mut Machines, control: &Control) -> Result<Verdict> {
    let (_, role) = components::JUDGED
        .iter()
        .find(|(claim, _)| *claim == control.claim)
        .with_context(|| format!("nobody tries {}", control.claim))?;
    let mut image = machines.image("hostile-components")?;
    only(&mut image, role);
    let archive = machines.folder().join("archive");
    image.write_archive(&archive)?;
    let mut machine = Machine::of(&image);
    machine.archive = Some(archive);
    if let Some((_, cpu)) = CPUS.iter().find(|(name, _)| *name == control.name) {
        machine.cpu = (*cpu).into();
    }
    let mut session = machines.boot(role, &image, &machine)?;
    says_so(&mut session, control)?;
    components::judged(&mut session, control.claim, JUDGED)
}

/// The core says that it was built with this check off.
pub fn says_so(session: &mut Session, control: &Control) -> Result<()> {
    let line = format!("CONTROL BUILD: check {} is off", control.name);
    session.saw(&line, SAYS_SO)
}

/// Leaves out whom a role does not need, so that nothing else goes wrong first.
fn only(image: &mut Image, role: &str) {
    let manifest = &mut image.manifest;
    manifest.guests.clear();
    let wanted = [
        "console",
        "xenstore",
        "neighbour",
        "hostile-mute",
        "secret",
        role,
    ];
    manifest
        .components
        .retain(|component| component.per_guest || wanted.contains(&component.name.as_str()));
    image.contents.manifest = image.manifest.encode();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_control_has_a_claim_that_somebody_tries() {
        for control in CONTROLS {
            let judged = components::JUDGED
                .iter()
                .any(|(claim, _)| *claim == control.claim);
            let tried = guests::EXPERIMENTS
                .iter()
                .any(|(claim, _)| *claim == control.claim);
            assert!(judged != tried, "{}: {}", control.name, control.claim);
        }
        for name in QUICK.iter().chain(CPUS.iter().map(|(name, _)| name)) {
            assert!(Control::find(name).is_some(), "{name}");
        }
    }
}
