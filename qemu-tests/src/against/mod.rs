//! `cargo suite bench --against xen`: the same guest on this system and on Debian's Xen, in the same
//! emulator, both in one table. Each system is booted twice, which must give the same counts.
//!
//! | module | does |
//! |---|---|
//! | [`rows`] | the rows and what each is held to |
//! | [`measured`] | reads what the guest says |
//! | [`whole`] | the same for each system as a whole |
//! | [`boots`], [`linux`], [`icount`] | boots both systems; the guest and the counter for the rows about the whole |
//! | [`kvm`] | rows that Linux's KVM has too, to be seen beside the others and held to nothing |
//! | [`chart`] | the table as a picture |
//!
//! Results go to `build/suite/against-xen.json` and `.svg`. Xen boots take minutes on a busy machine,
//! so the gate does without them; what it has instead is the committed baseline of group `bench`.

mod boots;
mod chart;
mod icount;
mod kvm;
mod linux;
mod measured;
mod rows;
mod whole;

use std::fs;
use std::io::IsTerminal;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use self::boots::Run;
use self::measured::Measured;
use self::rows::{Goal, ROWS, Verdict};
use self::whole::WHOLE;
use crate::machines::Machines;
use crate::report::Report;

/// Segments that are shown of a row that misses its goal.
const SHOWN: usize = 8;

/// Runs the comparison.
pub fn run(machines: &mut Machines, report: &mut Report) {
    let (ours, xen) = match both(machines) {
        Ok(both) => both,
        Err(error) => return report.fail("both_systems_are_measured", format!("{error:#}")),
    };
    report.pass("both_systems_are_measured");
    report.claim("two_runs_here_give_the_same_counts", || same(&ours));
    report.claim("two_runs_under_xen_give_the_same_counts", || same(&xen));
    let (ours, xen) = (&ours[0], &xen[0]);
    let mut kvm = Measured::default();
    report.claim("linux_kvm_is_measured_beside", || {
        kvm = kvm::measure(machines)?;
        Ok(())
    });
    table(report, ours, xen, &kvm);
    for row in ROWS {
        match row.verdict(&ours.measured, &xen.measured) {
            Verdict::Met => report.pass(&row.claim()),
            Verdict::Missed(bound) => report.fail(
                &row.claim(),
                format!("{}, not {bound}", ours.measured.shown(row.name)),
            ),
            Verdict::Unknown => report.fail(
                &row.claim(),
                format!(
                    "here {}, under Xen {}",
                    ours.measured.shown(row.name),
                    xen.measured.shown(row.name)
                ),
            ),
        }
    }
    for row in WHOLE {
        if let Some(claim) = row.claim() {
            report.claim(&claim, || row.judge(ours, xen));
        }
    }
    let folder = machines.folder();
    report.claim("the_table_is_written_as_json_and_as_a_chart", || {
        write(&folder, &machines.workspace.root, ours, xen, &kvm)
    });
}

fn both(machines: &mut Machines) -> Result<([Run; 2], [Run; 2])> {
    let mut ours = [boots::here(machines, 1)?, boots::here(machines, 2)?];
    boots::segments_here(machines, &mut ours[0]).context("where the rows go")?;
    boots::whole_here(machines, &mut ours[0]).context("this system as a whole")?;
    let prepared = boots::prepare_xen(machines)?;
    let xen = [
        boots::under_xen(machines, &prepared, 1, true)?,
        boots::under_xen(machines, &prepared, 2, false)?,
    ];
    Ok((ours, xen))
}

/// Whether two runs agree, row by row.
fn same([first, second]: &[Run; 2]) -> Result<()> {
    let (first, second) = (&first.measured, &second.measured);
    let different: Vec<String> = ROWS
        .iter()
        .map(|row| row.name)
        .filter(|name| first.rows.get(*name) != second.rows.get(*name))
        .map(|name| {
            format!(
                "{name}: {:?}, then {:?}",
                first.rows.get(name),
                second.rows.get(name)
            )
        })
        .collect();
    ensure!(different.is_empty(), "{}", different.join("\n"));
    Ok(())
}

/// The table for people.
fn table(report: &Report, ours: &Run, xen: &Run, kvm: &Measured) {
    report.line(format_args!(
        "     {:<26}{:>12}{:>14}{:>12}{:>8}  goal",
        "row", "microvisor", xen.version, "Linux KVM", "ratio"
    ));
    for row in ROWS {
        let goal = match (row.goal, row.bound(&xen.measured)) {
            (Goal::Equal, _) => "equal".to_owned(),
            (_, Some(bound)) => format!("<= {bound}"),
            (_, None) => "?".to_owned(),
        };
        let line = format!(
            "{:<26}{:>12}{:>14}{:>12}{:>8}  {goal}",
            row.name,
            ours.measured.shown(row.name),
            xen.measured.shown(row.name),
            shown(kvm.count(row.name)),
            ratio(ours.measured.count(row.name), xen.measured.count(row.name)),
        );
        let met = row.verdict(&ours.measured, &xen.measured) == Verdict::Met;
        coloured(report, &line, met);
        // What would have to go. Where a timer ends the wait, it comes at another moment while
        // instructions are recorded, and the operation is another one.
        let Some(segments) = ours.segments.get(row.name).filter(|_| !met) else {
            continue;
        };
        let recorded: u64 = segments.iter().map(|(_, count)| count).sum();
        for (place, count) in segments.iter().take(SHOWN) {
            report.line(format_args!("     {:<26}{count:>12} {place}", ""));
        }
        report.line(format_args!(
            "     {:<26}{recorded:>12} recorded in all",
            ""
        ));
    }
    for name in &kvm.order {
        if !ROWS.iter().any(|row| row.name == name) {
            let count = shown(kvm.count(name));
            report.line(format_args!(
                "     {name:<26}{:>12}{:>14}{count:>12}",
                "-", "-"
            ));
        }
    }
    for row in WHOLE {
        let [here, there] = [(row.of)(ours), (row.of)(xen)];
        let goal = match row.bound(xen) {
            Ok(Some(bound)) => format!("<= {bound}"),
            Ok(None) => "-".to_owned(),
            Err(_) => "?".to_owned(),
        };
        let line = format!(
            "{:<26}{:>12}{:>14}{:>20}  {goal}, {}",
            row.name,
            shown(here),
            shown(there),
            ratio(here, there),
            row.unit
        );
        coloured(report, &line, row.judge(ours, xen).is_ok());
    }
}

/// A line of the table: red if its goal is missed.
fn coloured(report: &Report, line: &str, met: bool) {
    match (met, std::io::stdout().is_terminal()) {
        (true, _) => report.line(format_args!("     {line}")),
        (false, true) => report.line(format_args!("     \x1b[31m{line}  MISSED\x1b[0m")),
        (false, false) => report.line(format_args!("     {line}  MISSED")),
    }
}

fn shown(number: Option<u64>) -> String {
    number.map_or_else(|| "-".into(), |number| number.to_string())
}

fn ratio(ours: Option<u64>, xen: Option<u64>) -> String {
    match (ours, xen) {
        (Some(ours), Some(xen)) if xen != 0 => format!("{:.2}", ours as f64 / xen as f64),
        _ => "-".into(),
    }
}

fn write(folder: &Path, root: &Path, ours: &Run, xen: &Run, kvm: &Measured) -> Result<()> {
    let commit = commit(root);
    let rows: Vec<Value> = ROWS
        .iter()
        .map(|row| {
            let numbers = |run: &Run| match run.measured.rows.get(row.name) {
                Some(count) => json!({ "median": count.median, "minimum": count.minimum }),
                None => json!({ "none": run.measured.shown(row.name) }),
            };
            json!({
                "name": row.name,
                "what": row.what,
                "segments": ours.segments.get(row.name).map(|segments| {
                    let named = segments.iter().map(|(place, count)| (place.clone(), (*count).into()));
                    named.collect::<Map<String, Value>>()
                }),
                "microvisor": numbers(ours),
                "xen": numbers(xen),
                "kvm": kvm.count(row.name),
                "bound": row.bound(&xen.measured),
                "met": row.verdict(&ours.measured, &xen.measured) == Verdict::Met,
            })
        })
        .collect();
    let whole: Map<String, Value> = WHOLE
        .iter()
        .map(|row| {
            let numbers =
                json!({ "unit": row.unit, "microvisor": (row.of)(ours), "xen": (row.of)(xen) });
            (row.name.to_owned(), numbers)
        })
        .collect();
    let all = json!({
        "commit": commit,
        "xen": xen.version,
        "rows": rows,
        "whole_system": whole,
    });
    fs::write(
        folder.join("against-xen.json"),
        serde_json::to_string_pretty(&all)? + "\n",
    )?;
    let title = format!("Instructions, microvisor {commit} and {}", xen.version);
    fs::write(
        folder.join("against-xen.svg"),
        chart::draw(&ours.measured, &xen.measured, &title),
    )
    .context("the chart")
}

/// The commit that is measured, for the record; not a reason to fail.
fn commit(root: &Path) -> String {
    let git = Command::new("git")
        .args(["describe", "--always", "--dirty"])
        .current_dir(root)
        .output();
    match git {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "of unknown commit".into(),
    }
}
