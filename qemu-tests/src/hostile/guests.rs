//! Bad guests beside a good one: `qemu-tests/hostile-guest` in four roles, and GRUB. What they were
//! answered is read out of the machine's memory and held against what a real Xen answered
//! (`crate::xen`).

use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use image_builder::qemu::Machine;

use super::Verdict;
use super::controls::{Experiment, says_so};
use crate::boot::{PROMPT, takes_a_command};
use crate::machines::Machines;
use crate::report::{Claim, Report};
use crate::session::Session;
use crate::xen::answers::{Logs, Table, logs_in};
use crate::xen::differences::{Pairs, compare, parse};
use crate::xen::recorded::Recorded;
use crate::xen::{ORACLE, memory_in_file, record};

/// Seeds that every run of the group makes, and all of them.
pub const FEW_SEEDS: Range<u32> = 0..4;
/// See [`FEW_SEEDS`].
pub const ALL_SEEDS: Range<u32> = 0..100;
/// Seconds until a role must be done.
const ROLE: u64 = 1500;
/// Seconds until a role has begun.
const STARTED: u64 = 300;
/// Seconds until the end of a line whose beginning is there.
const LINE: u64 = 30;
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
        // None of these guests takes an interrupt, and each must be alone with its faults.
        machine.one_thread = true;
        let archive = machines.folder().join("hostile-guests.archive");
        image.write_archive(&archive)?;
        machine.archive = Some(archive);
        let memory = machines.folder().join("hostile-guests.memory");
        let _ = fs::remove_file(&memory);
        let mut command = machine.command(&image);
        memory_in_file(&mut command, &memory, machine.memory_mib);
        let transcript = machines.folder().join("hostile-guests.log");
        let mut session = Session::start(command, &transcript)?;
        if let Some(control) = machines.workspace.control {
            says_so(&mut session, control)?;
        }
        Ok(Scene {
            session,
            memory,
            root: machines.workspace.root.clone(),
            seeds,
        })
    }

    fn done(&mut self, role: &str, seconds: u64) -> Result<()> {
        self.session
            .saw(&format!("guest: hostile: {role} done"), seconds)
    }

    /// What the guest of registers and ports found where only the machine has something; it says
    /// so before it writes anywhere.
    fn peeked(&mut self, what: &str) -> Result<String> {
        const GONE: &str = "[root] guest registers: failed";
        let found = format!("guest: hostile: {what} ");
        match self.session.saw_one_of(&[&found, GONE], STARTED)? {
            0 => self.session.saw_line(&found, LINE),
            _ => bail!("the guest ended before\n{}", self.session.tail()),
        }
    }

    /// What the guests have logged so far: anew each time, as they are done one after the other.
    fn logs(&self) -> Result<Logs> {
        logs_in(&self.memory)
    }

    fn read(&self, path: &str) -> Result<String> {
        let path = self.root.join(path);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    fn compared(&self, part: &str, here: &Table) -> Result<()> {
        let xen = Table::parse(&self.read(&record::file(part))?)?;
        self.explained(part, &Pairs::of_tables(&xen, here), true)
    }

    /// Each pair of different answers has a reason in the list of its part; with `whole`, each
    /// reason has such a pair.
    fn explained(&self, part: &str, pairs: &Pairs, whole: bool) -> Result<()> {
        let list = parse(&self.read(&format!("{ORACLE}/differences-{part}.txt"))?)?;
        let mut found = compare(pairs, &list);
        if !whole {
            found.unused.clear();
        }
        // The whole of it is for whoever explains it.
        let folder = self.memory.parent().context("no folder")?;
        let mut text = found.unexplained.join("\n") + "\n";
        for (reason, count) in &found.reasons {
            text += &format!("# {count} times: {reason}\n");
        }
        fs::write(folder.join(format!("unexplained-{part}.txt")), text)?;
        println!(
            "     {part}: {} answered as by Xen, {} otherwise and explained",
            pairs.same, found.explained
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
    for (key, answer) in &table.0 {
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
        let load = answer.trim_start_matches("load ");
        let nothing = load.starts_with("0xffffffff") || load.starts_with('#');
        let still = !answer.contains("then")
            || answer.ends_with("then 0xffffffff")
            || answer.ends_with("then 0x0");
        ensure!(nothing && still, "{key}: {answer}");
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
    (REGISTERS, |scene| {
        registers_are_out_of_reach(scene)?.holds()
    }),
    (PORTS, |scene| ports_are_out_of_reach(scene)?.holds()),
    (CALLS, |scene| calls_are_answered(scene)?.holds()),
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
    ("registers_and_ports_answer_as_xens", |scene| {
        let table = Table::of_registers(&scene.logs()?)?;
        scene.compared("registers", &table)
    }),
    ("hypercalls_answer_as_xens", |scene| {
        let logs = scene.logs()?;
        let mut pairs = Pairs::default();
        for seed in scene.seeds.clone() {
            let here = Recorded::of_logs(&logs, seed)?;
            Recorded::load(&scene.root, seed)?.compare(&here, seed, &mut pairs);
        }
        scene.explained("calls", &pairs, scene.seeds == ALL_SEEDS)
    }),
];

/// A register that only the machine has and a guest may not even read: VM_HSAVE_PA is where the
/// core's own registers are kept (AMD APM vol. 2, 15.30).
const VM_HSAVE_PA: &str = "c0010117";
/// Line status of COM1, which the machine has and no guest.
const COM1_STATUS: &str = "3fd";

fn registers_are_out_of_reach(scene: &mut Scene) -> Result<Verdict> {
    // First what tells at once: a guest that has the machine's registers may stop the machine when
    // it goes on to write them.
    let found = scene.peeked(&format!("register {VM_HSAVE_PA}"))?;
    if found.starts_with("is ") {
        return Ok(Verdict::Fails(format!("register {VM_HSAVE_PA} {found}")));
    }
    ensure!(found.starts_with("raises "), "the guest says {found:?}");
    scene.done("registers", ROLE)?;
    let table = Table::of_registers(&scene.logs()?)?;
    Ok(match table.0.get(&format!("msr {VM_HSAVE_PA}")) {
        Some(answers) => Verdict::Fails(format!("register {VM_HSAVE_PA}: {answers:?}")),
        None => Verdict::Holds,
    })
}

/// No port answers but the debug console of Xen's ABI, whatever the machine has behind them.
fn ports_are_out_of_reach(scene: &mut Scene) -> Result<Verdict> {
    let found = scene.peeked(&format!("port {COM1_STATUS}"))?;
    ensure!(found.starts_with("is "), "the guest says {found:?}");
    if found != "is 0xff" {
        return Ok(Verdict::Fails(format!("port {COM1_STATUS} {found}")));
    }
    scene.done("registers", ROLE)?;
    let table = Table::of_registers(&scene.logs()?)?;
    for (key, answers) in &table.0 {
        if key.starts_with("port ") && key != "port 00e9 by 1" {
            return Ok(Verdict::Fails(format!("{key}: {answers:?}")));
        }
    }
    Ok(Verdict::Holds)
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

/// Whatever the guest calls, its VMM answers and lives.
fn calls_are_answered(scene: &mut Scene) -> Result<Verdict> {
    const DIES: &str = "[root] ERROR: component vmm-calls: fault: ";
    let seconds = ROLE + 60 * scene.seeds.len() as u64;
    let ends = ["guest: hostile: calls done", DIES];
    match scene.session.saw_one_of(&ends, seconds)? {
        0 => Ok(Verdict::Holds),
        _ => {
            let fault = scene.session.saw_line(DIES, LINE)?;
            Ok(Verdict::Fails(format!("the VMM dies: {fault}")))
        }
    }
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
