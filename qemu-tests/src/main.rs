//! `cargo suite`: every test, on the host and in emulators. A test is a claim with a name; a boot
//! in QEMU answers many of them. `cargo suite GROUP...` runs a part.
//!
//! | module | does |
//! |---|---|
//! | [`host`], [`boot`], [`guests`], [`hostile`], [`devices`], [`mod@iommu`], [`store`], [`debian`], [`selftest`], [`interference`], [`restart`], [`size`], [`mod@bench`], [`against`], [`vmx`] | the groups |
//! | [`session`] | a machine under test: type, wait, transcript |
//! | [`machines`], [`bochs`] | images, each built once; where they boot |
//! | [`report`] | claims, summary, skips |
//! | [`bounded`] | programs that may not end |
//!
//! Transcripts are in `build/suite`. The suite changes nothing on the machine but missing Debian
//! packages, and those only when run as root.
#![forbid(unsafe_code)]

mod against;
mod bench;
mod bochs;
mod boot;
mod bounded;
mod debian;
mod devices;
mod driver_domain;
mod fuzz;
mod guests;
mod host;
mod hostile;
mod interference;
mod iommu;
mod machines;
mod made;
mod mutants;
mod operator;
mod planted;
mod report;
mod restart;
mod rust_text;
mod selftest;
mod session;
mod shares;
mod size;
mod spec;
mod store;
mod vmx;
mod xen;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use image_builder::packages;

use crate::machines::Machines;
use crate::report::Report;

/// Runs the project's tests. The last line says `N passed, N failed, N skipped`.
#[derive(Parser)]
#[command(name = "cargo suite", bin_name = "cargo suite")]
struct Cli {
    /// Groups to run; all of them if none is named.
    groups: Vec<Group>,
    /// With `bench`: rows as JSON, one object a line, on standard output; all else goes to
    /// standard error.
    #[arg(long)]
    json: bool,
    /// With `bench`: also the functions in which each row spends its instructions.
    #[arg(long)]
    segments: bool,
    /// With `bench`: what is counted becomes the baseline that later runs are held to.
    #[arg(long)]
    record: bool,
    /// With `bench`, instead of its own rows: the same guest here and there, side by side.
    #[arg(long, value_name = "SYSTEM")]
    against: Option<Against>,
    /// With `hostile`: also its tests in builds where the check that a test depends on is off, and
    /// where it must fail.
    #[arg(long)]
    controls: bool,
    /// With `spec`: many more random stories, and Miri.
    #[arg(long)]
    deep: bool,
    /// With `spec`: also builds in which one check is off, each of which must be caught.
    #[arg(long)]
    planted: bool,
    /// With `spec`: also mutants of the object code, each of which must be noticed or explained.
    #[arg(long)]
    mutants: bool,
    /// Also what takes too long for the gate; without it, the summary counts and lists what was
    /// left out.
    #[arg(long)]
    full: bool,
    /// With `oracle`: also seeds whose answers are recorded.
    #[arg(long)]
    again: bool,
    /// Of `boot`, `guests` and `hostile`, only the machines whose name contains this; their transcripts are
    /// called so.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Fail if a claim is skipped that this file does not list.
    #[arg(long, value_name = "FILE")]
    allowed_skips: Option<PathBuf>,
}

/// What the same guest is measured on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Against {
    /// Debian's Xen with a dom0.
    Xen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Group {
    /// Formatting, lints, unit tests, documentation.
    Host,
    /// Ways to boot.
    Boot,
    /// Unmodified guests.
    Guests,
    /// Hostile components and guests.
    Hostile,
    /// Components that die.
    Restart,
    /// Not run unless it is named: records anew what a real Xen answers to hostile guests.
    Oracle,
    /// Devices and what keeps them in their bounds.
    Iommu,
    /// The store that guests and components share.
    Store,
    /// Guests that the operator makes of files.
    Operator,
    /// Disks' hostile front ends; ends of volumes; driver domains. If it is named also Debian on a disk, whose
    /// backend and driver are killed.
    Devices,
    /// The core's calls, driven from ring 3 on four CPUs; what a component observes of another; a
    /// component made from the template.
    Selftest,
    /// The core's object code against its specification.
    Spec,
    /// Lines and unsafe blocks of the core.
    Size,
    /// Instructions of single operations.
    Bench,
    /// Guests on Intel's VMX, in Bochs: one boot, or with --full everything that runs on SVM.
    Vmx,
}

const ALL: &[Group] = &[
    Group::Size,
    Group::Spec,
    Group::Host,
    Group::Boot,
    Group::Guests,
    Group::Hostile,
    Group::Iommu,
    Group::Store,
    Group::Operator,
    Group::Devices,
    Group::Selftest,
    Group::Restart,
    Group::Bench,
    Group::Vmx,
];

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<bool> {
    let groups = if cli.groups.is_empty() {
        ALL
    } else {
        &cli.groups
    };
    let allowed = match &cli.allowed_skips {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let lines = text
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty() && !line.starts_with('#'));
            Some(lines.map(str::to_owned).collect::<Vec<_>>())
        }
    };
    // All packages at once, so that somebody who must install them by hand is told once.
    let mut tools = Vec::new();
    if groups.iter().any(|group| {
        matches!(
            group,
            Group::Boot
                | Group::Guests
                | Group::Hostile
                | Group::Oracle
                | Group::Restart
                | Group::Iommu
                | Group::Store
                | Group::Operator
                | Group::Devices
                | Group::Selftest
                | Group::Bench
        ) || *group == Group::Spec && (cli.planted || cli.deep)
    }) {
        tools.push(packages::QEMU);
    }
    if groups.contains(&Group::Spec) {
        tools.push(packages::CXX);
    }
    if groups.contains(&Group::Boot) || groups.contains(&Group::Vmx) {
        tools.extend_from_slice(packages::MEDIA);
        tools.push(packages::OVMF);
    }
    packages::ensure(&tools)?;

    let mut machines = Machines::new(cli.only.clone())?;
    let mut report = Report::default();
    if cli.json {
        report.aside();
    }
    for group in groups {
        report.begin(&format!("{group:?}").to_lowercase());
        match group {
            Group::Host => host::run(&machines.workspace, &mut report),
            Group::Boot => boot::run(&mut machines, &mut report, cli.full),
            Group::Guests => guests::run(&mut machines, &mut report),
            Group::Hostile => hostile::run(&mut machines, &mut report, cli.controls, cli.full),
            Group::Restart => restart::run(&mut machines, &mut report),
            Group::Iommu => {
                devices::run(&mut machines, &mut report);
                iommu::run(&mut machines, &mut report, cli.full);
            }
            Group::Store => store::run(&mut machines, &mut report),
            Group::Operator => operator::run(&mut machines, &mut report),
            Group::Devices => {
                // Debian on a disk takes too long beside everything else.
                let named = cli.groups.contains(group);
                debian::run(&mut machines, &mut report, named, cli.full);
                driver_domain::run(&mut machines, &mut report);
            }
            Group::Oracle => xen::record::run(&mut machines, &mut report, cli.full, cli.again),
            Group::Selftest => {
                selftest::run(&mut machines, &mut report);
                interference::run(&mut machines, &mut report);
                made::run(&machines, &mut report);
            }
            Group::Size => size::run(&machines.workspace, &mut report),
            Group::Spec => spec::run(&machines, &mut report, cli.deep, cli.planted, cli.mutants),
            Group::Bench => match cli.against {
                Some(Against::Xen) => against::run(&mut machines, &mut report),
                None => {
                    let options = bench::Options {
                        json: cli.json,
                        segments: cli.segments,
                        record: cli.record,
                    };
                    bench::run(&mut machines, &mut report, options);
                }
            },
            Group::Vmx => vmx::run(&machines, &mut report, cli.full),
        }
    }
    Ok(report.finish(allowed.as_deref()))
}
