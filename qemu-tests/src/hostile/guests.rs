//! Bad guests beside a good one: `qemu-tests/hostile-guest` in four roles, and GRUB. What they were
//! answered is read out of the machine's memory and held against what a real Xen answered
//! (`crate::xen`).

use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use image_builder::qemu::Machine;

use super::controls::Experiment;
use crate::boot::{PROMPT, takes_a_command};
use crate::machines::Machines;
use crate::report::{Claim, Report};
use crate::session::Session;
use crate::xen::answers::{Logs, Table, logs_in};
use crate::xen::differences::{compare, parse};
use crate::xen::{ORACLE, memory_in_file, record};

/// Seeds that every run of the group makes, and all of them.
pub const FEW_SEEDS: Range<u32> = 0..4;
/// See [`FEW_SEEDS`].
pub const ALL_SEEDS: Range<u32> = 0..100;
/// Seconds until a role must be done.
const ROLE: u64 = 1500;
/// Most differences that a failure shows.
const SHOWN: usize = 20;

/// The machine, and what its hostile guests have logged.
struct Scene {
    session: Session,
    memory: PathBuf,
    root: PathBuf,
    seeds: Range<u32>,
}

impl Scene {
    /// Boots all guests, or `only` one.
    fn start(machines: &mut Machines, seeds: Range<u32>, only: Option<&str>) -> Result<Scene> {
        let mut image = machines.image("hostile-guests")?;
        let guests = &mut image.manifest.guests;
        guests.retain(|guest| only.is_none_or(|only| guest.name == only));
        if let Some(guest) = guests.iter_mut().find(|guest| guest.name == "calls") {
            let line = format!("calls {} {}", seeds.start, seeds.len());
            guest.cmdline = line.as_str().into();
        }
        image.contents.manifest = image.manifest.encode();
        let mut machine = Machine::of(&image);
        machine.serial = "stdio".into();
        let archive = machines.folder().join("hostile-guests.archive");
        image.write_archive(&archive)?;
        machine.archive = Some(archive);
        let memory = machines.folder().join("hostile-guests.memory");
        let _ = fs::remove_file(&memory);
        let mut command = machine.command(&image);
        memory_in_file(&mut command, &memory, machine.memory_mib);
        let transcript = machines.folder().join("hostile-guests.log");
        Ok(Scene {
            session: Session::start(command, &transcript)?,
            memory,
            root: machines.workspace.root.clone(),
            seeds,
        })
    }

    fn done(&mut self, role: &str, seconds: u64) -> Result<()> {
        self.session
            .saw(&format!("guest: hostile: {role} done"), seconds)
    }

    /// What the guests have logged so far: anew each time, as they are done one after the other.
    fn logs(&self) -> Result<Logs> {
        logs_in(&self.memory)
    }

    fn compared(&self, part: &str, here: &Table) -> Result<()> {
        // The whole of it is for whoever explains it.
        let folder = self.memory.parent().context("no folder")?;
        fs::write(folder.join(format!("oracle-{part}.txt")), here.to_string())?;
        let read = |path: &str| {
            let path = self.root.join(path);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let xen = Table::parse(&read(&record::file(part))?)?;
        let kind = match part {
            "few" | "all" => "calls",
            other => other,
        };
        let list = parse(&read(&format!("{ORACLE}/differences-{kind}.txt"))?)?;
        let found = compare(&xen, here, &list);
        let unexplained = found.unexplained.join("\n") + "\n";
        fs::write(folder.join(format!("unexplained-{part}.txt")), unexplained)?;
        println!(
            "     {part}: {} questions, {} answered otherwise than by Xen and explained",
            xen.0.len(),
            found.explained
        );
        if found.unexplained.is_empty() && found.unused.is_empty() {
            return Ok(());
        }
        let some = |lines: &[String]| lines[..lines.len().min(SHOWN)].join("\n");
        bail!(
            "{} answers differ from Xen's without an explanation:\n{}\n{} explanations explain nothing:\n{}",
            found.unexplained.len(),
            some(&found.unexplained),
            found.unused.len(),
            some(&found.unused)
        )
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // As large as the machine's memory, and of no use after.
        let _ = fs::remove_file(&self.memory);
    }
}

/// Every place that is not the guest's has nothing in it: loads give ones or an exception, before
/// and after a store.
fn nothing_is_reached(scene: &mut Scene) -> Result<()> {
    scene.done("reach", ROLE)?;
    let table = Table::of_places(&scene.logs()?)?;
    for (key, answers) in &table.0 {
        let foreign = key.starts_with("load ") || key.starts_with("place ");
        let own = [
            "own page",
            "local APIC's version",
            "as RAM",
            "load 0xfee00000",
        ];
        if !foreign || own.iter().any(|own| key.contains(own)) {
            continue;
        }
        for answer in answers.keys() {
            let load = answer.trim_start_matches("load ");
            let nothing = load.starts_with("0xffffffff") || load.starts_with('#');
            let still = !answer.contains("then")
                || answer.ends_with("then 0xffffffff")
                || answer.ends_with("then 0x0");
            ensure!(nothing && still, "{key}: {answer}");
        }
    }
    Ok(())
}

const CLAIMS: &[Claim<Scene>] = &[
    ("neighbour_starts", neighbour_has_the_console),
    ("triple_fault_ends_its_guest_only", |scene| {
        scene.session.saw("guest triple: vCPU 0 at", ROLE)?;
        scene.session.saw("triple fault", 1)
    }),
    ("foreign_addresses_are_out_of_reach", nothing_is_reached),
    (REGISTERS, registers_are_out_of_reach),
    (PORTS, ports_are_out_of_reach),
    (CALLS, calls_are_answered),
    ("neighbour_goes_on", |scene| {
        neighbour_has_the_console(scene)?;
        takes_a_command(&mut scene.session)
    }),
    ("core_and_components_go_on", |scene| {
        let text = scene.session.text();
        for line in text.lines() {
            let own = line.contains("guest triple") || line.starts_with("[vmm-triple]");
            let bad = ["panic", "ERROR", "died", "fault at", ": failed"];
            if !own && bad.iter().any(|bad| line.contains(bad)) {
                bail!("{line}");
            }
        }
        Ok(())
    }),
    ("foreign_addresses_answer_as_xens", |scene| {
        let table = Table::of_places(&scene.logs()?)?;
        scene.compared("addresses", &table)
    }),
    ("hypercalls_answer_as_xens", |scene| {
        let seeds = scene.seeds.clone();
        let table = Table::of_calls(&scene.logs()?, seeds.clone())?;
        let part = if seeds == FEW_SEEDS { "few" } else { "all" };
        scene.compared(part, &table)
    }),
];

/// MSRs that only the machine has, of those a guest may not even read: VM_CR is there for guests,
/// VM_HSAVE_PA is where the core's own registers are kept (AMD APM vol. 2, 15.30).
const VM_HSAVE_PA: &str = "msr c0010117";

fn registers_are_out_of_reach(scene: &mut Scene) -> Result<()> {
    scene.done("registers", ROLE)?;
    let table = Table::of_registers(&scene.logs()?)?;
    let answer = table.0.get(VM_HSAVE_PA).map(|row| format!("{row:?}"));
    ensure!(
        answer.is_none(),
        "{VM_HSAVE_PA}: {}",
        answer.unwrap_or_default()
    );
    Ok(())
}

/// No port answers but the debug console of Xen's ABI, whatever the machine has behind them.
fn ports_are_out_of_reach(scene: &mut Scene) -> Result<()> {
    scene.done("registers", ROLE)?;
    let table = Table::of_registers(&scene.logs()?)?;
    for (key, answers) in &table.0 {
        let port = key.starts_with("port ") && key != "port 00e9 by 1";
        ensure!(!port, "{key}: {answers:?}");
    }
    Ok(())
}

/// The console is the neighbour's, whoever came first, and GRUB has a prompt there.
fn neighbour_has_the_console(scene: &mut Scene) -> Result<()> {
    // All VMMs are at the console by the time the last guest runs.
    for says in ["neighbour: starting", "reach begins", "calls begins"] {
        scene.session.saw(says, PROMPT)?;
    }
    scene.session.send("\x1d0console neighbour\r\r")?;
    scene.session.expect("grub>", PROMPT).map(|_| ())
}

fn calls_are_answered(scene: &mut Scene) -> Result<()> {
    let seeds = scene.seeds.len() as u64;
    scene.done("calls", ROLE + 60 * seeds)
}

/// Claims that controls try.
const REGISTERS: &str = "registers_of_the_machine_are_out_of_reach";
const PORTS: &str = "ports_of_the_machine_are_out_of_reach";
const CALLS: &str = "random_hypercalls_are_answered";

/// Runs the claims; with `full`, those of all seeds.
pub fn run(machines: &mut Machines, report: &mut Report, full: bool) {
    if !machines.wants("hostile-guests") {
        return;
    }
    let seeds = if full { ALL_SEEDS } else { FEW_SEEDS };
    if !full {
        report.leave_out("hypercalls_answer_as_xens, of seeds 4 to 99");
    }
    let scene = Scene::start(machines, seeds, None);
    report.claims(scene, CLAIMS);
}

/// Claims that controls can try: by name, on images built with a check off.
pub const EXPERIMENTS: &[(&str, Experiment)] = &[
    (REGISTERS, |machines| {
        registers_are_out_of_reach(&mut Scene::start(machines, FEW_SEEDS, Some("registers"))?)
    }),
    (PORTS, |machines| {
        ports_are_out_of_reach(&mut Scene::start(machines, FEW_SEEDS, Some("registers"))?)
    }),
    (CALLS, |machines| {
        calls_are_answered(&mut Scene::start(machines, 0..1, Some("calls"))?)
    }),
];
