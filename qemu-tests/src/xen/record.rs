//! `cargo suite oracle [--full] [--again]`: runs the hostile guest under a real Xen and writes down
//! what it was answered. The results are committed.
//!
//! Registers, ports and addresses take a minute or two and are recorded each time; a seed takes
//! about 20 s, and is recorded if its file is missing or answers other calls, or with `--again`.
//! All seeds are made by one guest of one boot. What is done is written as it goes, so that an
//! interrupted run is taken up where it ended.

use std::fs;
use std::ops::Range;

use anyhow::{Context, Result};
use hostile_calls::layout::RAM;
use image_builder::debian::Cache;
use image_builder::workspace::Flavour;

use super::answers::{Table, logs_in};
use super::dom0::{Guest, READY, VERSION, assemble};
use super::recorded::{Recorded, missing};
use super::{ORACLE, memory_in_file};
use crate::hostile::guests::{ALL_SEEDS, FEW_SEEDS};
use crate::machines::Machines;
use crate::report::Report;
use crate::session::Session;

/// Memory of the machine in MiB.
const MEMORY: u64 = 1024;
/// Seconds until dom0 is up, on a busy machine.
const BOOT: u64 = 600;
/// Seconds for one guest, or one seed.
const GUEST: u64 = 3600;
/// Seeds after which what is done is written.
const AT_ONCE: u32 = 8;

/// The table's file for a part of the oracle.
pub fn file(part: &str) -> String {
    format!("{ORACLE}/xen-{VERSION}-{part}.txt")
}

/// Records the registers, ports and addresses, and of a few seeds, with `full` of all, those that
/// are not recorded; with `again` those that are as well.
pub fn run(machines: &mut Machines, report: &mut Report, full: bool, again: bool) {
    report.claim("real_xen_is_recorded", || {
        let seeds = if full { ALL_SEEDS } else { FEW_SEEDS };
        let seeds = match again {
            true => seeds,
            false => {
                let missing = missing(&machines.workspace.root, seeds);
                let first = missing.first().copied().unwrap_or(0);
                first..missing.last().map_or(first, |last| last + 1)
            }
        };
        under_xen(machines, seeds)
    });
}

fn under_xen(machines: &Machines, seeds: Range<u32>) -> Result<()> {
    let root = &machines.workspace.root;
    let built = machines
        .workspace
        .build(Flavour::Component, &["hostile-guest"])?;
    let kernel = built.first().context("no hostile guest")?;
    let cache = Cache::new(&root.join("build/cache"));
    let folder = machines.folder().join("xen");
    let guest = |name, cmdline: String| Guest {
        name,
        kernel,
        cmdline,
        initrd: None,
        memory_mib: RAM >> 20,
        more: "",
    };
    let calls = format!("calls {} {}", seeds.start, seeds.len());
    let guests = [
        guest("calls", calls),
        guest("reach", "reach".into()),
        guest("registers", "registers".into()),
    ];
    let xen = assemble(&cache, &folder, &guests, "")?;
    let memory = folder.join("memory");
    let _ = fs::remove_file(&memory);
    let mut command = xen.command(MEMORY);
    memory_in_file(&mut command, &memory, MEMORY);
    let mut session = Session::start(command, &folder.join("transcript"))?;
    session.expect(READY, BOOT)?;

    // The calls come first: what is asked depends on the number of the domain, which is 1 then.
    if !seeds.is_empty() {
        session.shell("xl create /guests/calls.cfg", BOOT)?;
        let mut written = seeds.start;
        for seed in seeds.clone() {
            session.saw(&format!("hostile: seed {seed} logged"), GUEST)?;
            if (seed + 1 - seeds.start).is_multiple_of(AT_ONCE) || seed + 1 == seeds.end {
                let logs = logs_in(&memory)?;
                for seed in written..=seed {
                    Recorded::of_logs(&logs, seed)?.store(root, seed, &xen.version)?;
                }
                written = seed + 1;
                println!("     {written} of {} seeds", seeds.end);
            }
        }
        session.saw("hostile: calls done", GUEST)?;
    }
    for name in ["reach", "registers"] {
        session.shell(&format!("xl create /guests/{name}.cfg"), BOOT)?;
        session.saw(&format!("hostile: {name} done"), GUEST)?;
    }
    let logs = logs_in(&memory)?;
    drop(session);
    fs::remove_file(&memory)?;
    let parts = [
        ("addresses", Table::of_places(&logs)?),
        ("registers", Table::of_registers(&logs)?),
    ];
    for (part, table) in parts {
        let text = format!(
            "# What {} answered to qemu-tests/hostile-guest in QEMU. Written by\n\
             # `cargo suite oracle`; see docs/xen-differences.md.\n{table}",
            xen.version
        );
        fs::write(root.join(file(part)), text)?;
    }
    Ok(())
}
