//! `cargo suite oracle [--full]`: runs the hostile guest under a real Xen and writes down what it was
//! answered. Takes some minutes; the results are committed.

use std::fs;
use std::ops::Range;

use anyhow::{Context, Result, ensure};
use hostile_calls::layout::RAM;
use image_builder::debian::Cache;
use image_builder::workspace::Flavour;

use super::answers::{Logs, Table, logs_in};
use super::dom0::{Guest, READY, VERSION, assemble};
use super::{ORACLE, memory_in_file};
use crate::hostile::guests::{ALL_SEEDS, FEW_SEEDS};
use crate::machines::Machines;
use crate::report::Report;
use crate::session::Session;

/// Memory of the machine in MiB.
const MEMORY: u64 = 1024;
/// Seconds until dom0 is up, on a busy machine.
const BOOT: u64 = 600;
/// Seconds for one guest.
const GUEST: u64 = 3600;

/// The table's file for a part of the oracle.
pub fn file(part: &str) -> String {
    format!("{ORACLE}/xen-{VERSION}-{part}.txt")
}

/// Records the registers, ports and addresses, and the calls of a few seeds; with `full`, of all.
pub fn run(machines: &mut Machines, report: &mut Report, full: bool) {
    report.claim("real_xen_is_recorded", || {
        let seeds = if full { ALL_SEEDS } else { FEW_SEEDS };
        let (logs, version) = logs_under_xen(machines, &seeds)?;
        let mut parts = vec![
            ("addresses", Table::of_places(&logs)?),
            ("registers", Table::of_registers(&logs)?),
            ("few", Table::of_calls(&logs, FEW_SEEDS)?),
        ];
        if full {
            parts.push(("all", Table::of_calls(&logs, ALL_SEEDS)?));
        }
        for (part, table) in parts {
            let path = machines.workspace.root.join(file(part));
            let text = format!(
                "# What {version} answered to qemu-tests/hostile-guest in QEMU. Written by\n\
                 # `cargo suite oracle --full`; see docs/xen-differences.md.\n{table}"
            );
            fs::create_dir_all(path.parent().context("no folder")?)?;
            fs::write(&path, text)?;
        }
        Ok(())
    });
}

fn logs_under_xen(machines: &Machines, seeds: &Range<u32>) -> Result<(Logs, String)> {
    let built = machines
        .workspace
        .build(Flavour::Component, &["hostile-guest"])?;
    let kernel = built.first().context("no hostile guest")?;
    let cache = Cache::new(&machines.workspace.root.join("build/cache"));
    let folder = machines.folder().join("xen");
    let guest = |name, cmdline: String| Guest {
        name,
        kernel,
        cmdline,
        memory_mib: RAM >> 20,
    };
    // The calls come first: what is asked depends on the number of the domain, which is 1 here.
    let seeds = format!("calls {} {}", seeds.start, seeds.len());
    let guests = [
        guest("calls", seeds),
        guest("reach", "reach".into()),
        guest("registers", "registers".into()),
    ];
    let xen = assemble(&cache, &folder, &guests)?;
    let memory = folder.join("memory");
    let _ = fs::remove_file(&memory);
    let mut command = xen.command(MEMORY);
    memory_in_file(&mut command, &memory, MEMORY);
    let mut session = Session::start(command, &folder.join("transcript"))?;
    session.expect(READY, BOOT)?;
    for guest in &guests {
        session.shell(&format!("xl create /guests/{}.cfg", guest.name), BOOT)?;
        session.saw(&format!("hostile: {} done", guest.name), GUEST)?;
    }
    let logs = logs_in(&memory)?;
    drop(session);
    fs::remove_file(&memory)?;
    ensure!(!logs.is_empty(), "no log was found in the machine's memory");
    Ok((logs, xen.version))
}
