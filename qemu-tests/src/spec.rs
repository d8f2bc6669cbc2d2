//! Group `spec`: the core's object code held against the executable specification. Needs no emulator;
//! the same tests run in group `host`, here they are told one by one and can be made to try harder.
//!
//! - always: refinement, coverage of statuses, small worlds, models of the paths without the lock, a
//!   short run of the fuzzer;
//! - `--deep`: many more random stories, the fuzzer for longer, Miri where a nightly toolchain has it,
//!   and `--planted`;
//! - `--planted`: builds with one fault each, of which every one must be caught (`planted`);
//! - `--mutants`: small changes of the object code, of which every one must be noticed (`mutants`).

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use image_builder::progress::step;
use image_builder::workspace::Workspace;

use crate::bounded;
use crate::fuzz::{self, Effort};
use crate::machines::Machines;
use crate::mutants;
use crate::planted;
use crate::report::Report;

/// Random stories of a plain run and of a deep run.
const STORIES: [&str; 2] = ["150", "1000"];

/// How long the fuzzer tries each parser in a plain run and in a deep run.
const FUZZING: [Effort; 2] = [
    Effort {
        runs: 20_000,
        seconds: 5,
    },
    Effort {
        runs: u64::MAX >> 33,
        seconds: 15,
    },
];

/// The specification may have this part of the core's lines.
const PART: usize = 4;

/// Runs the group.
pub fn run(machines: &Machines, report: &mut Report, deep: bool, planted: bool, mutants: bool) {
    let workspace = &machines.workspace;
    if machines.wants("spec") {
        always(workspace, report, deep);
    }
    if planted || deep {
        planted::run(machines, report);
    }
    if mutants {
        mutants::run(machines, report);
    }
    if deep {
        miri(workspace, report);
    }
}

/// What every run of the group tries, unless `--only` names something else.
fn always(workspace: &Workspace, report: &mut Report, deep: bool) {
    let stories = STORIES[usize::from(deep)];
    let tests: &[&[&str]] = &[
        &["-p", "microvisor-objects", "--lib", "--", "refinement"],
        &["-p", "microvisor-spec"],
    ];
    for arguments in tests {
        if let Err(error) = told(workspace, report, arguments, stories) {
            report.fail("tests_run", format!("{error:#}"));
        }
    }
    report.claim("the_specification_is_short", || short(workspace));
    fuzz::run(workspace, report, FUZZING[usize::from(deep)]);
}

fn test(workspace: &Workspace, arguments: &[&str], stories: &str) -> Command {
    let mut command = Command::new("cargo");
    command
        .args(["test", "--quiet"])
        .args(arguments)
        .args(if arguments.contains(&"--") {
            &[][..]
        } else {
            &["--"]
        })
        .args(["--format=pretty", "--show-output"])
        .current_dir(&workspace.root)
        .env("CARGO_TERM_COLOR", "never")
        .env("PROPTEST_CASES", stories);
    command
}

/// Runs tests and reports each as a claim, with what it measured.
fn told(
    workspace: &Workspace,
    report: &mut Report,
    arguments: &[&str],
    stories: &str,
) -> Result<()> {
    let line = format!("cargo test {}", arguments.join(" "));
    let out = step("Running", &line, || {
        test(workspace, arguments, stories).output()
    })
    .context("cannot start cargo")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let mut seen = 0;
    for line in text.lines() {
        if let Some(measured) = line.strip_prefix("measured: ") {
            report.line(format_args!("     {measured}"));
        }
        let Some((name, outcome)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.rsplit_once(" ... "))
        else {
            continue;
        };
        let name = name.rsplit("::").next().unwrap_or(name);
        seen += 1;
        match outcome {
            "ok" => report.pass(name),
            "ignored" => {}
            _ => report.fail(name, story(&text, name)),
        }
    }
    if seen == 0 || (!out.status.success() && !text.contains("FAILED")) {
        let errors = String::from_utf8_lossy(&out.stderr);
        let lines: Vec<&str> = errors.lines().take(40).collect();
        bail!("{line}:\n{}", lines.join("\n"));
    }
    Ok(())
}

/// What a failed test said: the shortened story.
fn story(text: &str, name: &str) -> String {
    let said = text
        .split("\n---- ")
        .find(|part| part.starts_with("refinement::") && part.contains(name))
        .unwrap_or(text);
    let lines = said
        .lines()
        .take_while(|line| !line.contains("stack backtrace"));
    lines.take(60).collect::<Vec<_>>().join("\n")
}

/// Tests of the object code that Miri interprets: all of its `unsafe` is in the arena and the slots, and
/// every test there goes through both. Refinement would take days, and reaches no other code.
const MIRI: &[&str] = &[
    "claims",
    "authority",
    "devices",
    "fast",
    "handing_up",
    "ports",
];

/// Without the model of aliasing: with it the objects do not even boot within minutes.
const MIRI_FLAGS: &str = "-Zmiri-disable-isolation -Zmiri-disable-stacked-borrows";

/// How long Miri may take for one of them. What takes it longer is skipped, and says so.
const INTERPRETED: Duration = Duration::from_secs(90);

/// Undefined behaviour that tests meet by chance or never: Miri interprets them. Needs nightly. The other
/// crates of the core that build for the host forbid `unsafe`.
fn miri(workspace: &Workspace, report: &mut Report) {
    let has = Command::new("cargo")
        .args(["+nightly", "miri", "--version"])
        .output()
        .is_ok_and(|out| out.status.success());
    if !has {
        return report.skip("miri_finds_nothing", "no nightly toolchain with Miri");
    }
    // What it is to interpret is built first, outside of any limit.
    for (only_build, tests) in [(true, &MIRI[..1]), (false, MIRI)] {
        for test in tests {
            let name = format!("miri_finds_nothing_in_{test}");
            let mut command = Command::new("cargo");
            command
                .args(["+nightly", "miri", "test", "--quiet"])
                .args(["-p", "microvisor-objects", "--test", test])
                .args(only_build.then_some("--no-run"))
                .current_dir(&workspace.root)
                .env("CARGO_TARGET_DIR", workspace.target.join("miri"))
                .env("PROPTEST_CASES", "2")
                .env("MIRIFLAGS", MIRI_FLAGS);
            let limit = INTERPRETED * if only_build { 10 } else { 1 };
            let started = Instant::now();
            let out = step("Interpreting", test, || {
                bounded::output(&mut command, limit)
            });
            match out {
                Err(error) => report.fail(&name, format!("{error:#}")),
                Ok(None) => report.skip(&name, format!("not done within {} s", limit.as_secs())),
                Ok(Some(out)) if !out.status.success() => {
                    let errors = String::from_utf8_lossy(&out.stderr);
                    let lines: Vec<&str> = errors.lines().filter(|l| l.contains("error")).collect();
                    report.fail(&name, lines.join("\n"));
                }
                Ok(Some(_)) if only_build => {}
                Ok(Some(_)) => {
                    report.pass(&name);
                    report.line(format_args!("     in {:.0?}", started.elapsed()));
                }
            }
        }
    }
}

/// The specification is a reference to be read: at most a quarter of the core.
fn short(workspace: &Workspace) -> Result<()> {
    let core = crate::size::measure(workspace)?.lines;
    let spec = crate::size::lines(&workspace.root.join("microvisor/spec/src"))?;
    eprintln!("     specification {spec} lines, core {core}");
    ensure!(spec * PART <= core, "{spec} lines, the core has {core}");
    Ok(())
}
