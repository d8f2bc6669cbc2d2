//! Faults planted in the real code, one build each, and which tests must catch them: what shows that
//! the specification, the models and the property tests can fail.
//!
//! A fault is `cfg(planted = "NAME")` at its place. The checks that `image_builder::controls` switches
//! off are tried here as well, where the object code alone shows that they are missing.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use image_builder::controls::CONTROLS;
use image_builder::progress::step;
use image_builder::workspace::Workspace;

use crate::report::Report;

/// Random stories told about a build with a fault.
const STORIES: &str = "400";

/// Controls of the object code that no state of it shows: they are in what the hardware is told or in
/// who runs when. Group `hostile` catches them.
const ELSEWHERE: &[&str] = &["preempt"];

/// Who catches a fault.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// Refinement against the specification.
    Refinement,
    /// Property tests of what may be in a vCPU, and the models of its TLB.
    VcpuState,
}

use By::{Refinement, VcpuState};

/// Every planted fault: its name in the source, and who catches it.
const FAULTS: &[(&str, By)] = &[
    ("revoke-skips-a-child", Refinement),
    ("table-mapped", Refinement),
    ("table-not-cleared", Refinement),
    ("device-retyped", Refinement),
    ("retype-overlaps", Refinement),
    ("sub-frame-escapes", Refinement),
    ("unmap-without-flush", Refinement),
    ("wake-up-lost", Refinement),
    ("poke-lost", Refinement),
    ("bit-overwritten", Refinement),
    ("reply-usable-twice", Refinement),
    ("reply-to-another", Refinement),
    ("cancelled-call-answered", Refinement),
    ("budget-refilled-twice", Refinement),
    ("slot-overwritten", Refinement),
    ("deadline-signed", Refinement),
    ("asid-without-flush", VcpuState),
    ("msr-bitmap-off-by-one", VcpuState),
    ("port-bitmap-off-by-one", VcpuState),
    ("cr4-reserved-bit", VcpuState),
];

/// Plants every fault.
pub fn run(workspace: &Workspace, report: &mut Report) {
    let controls = CONTROLS.iter().filter(|control| {
        control.file.starts_with("microvisor/objects/") && !ELSEWHERE.contains(&control.name)
    });
    let off = controls.map(|control| ("control", control.name, Refinement));
    let planted = FAULTS.iter().map(|&(name, by)| ("planted", name, by));
    for (kind, name, by) in off.chain(planted) {
        let claim = format!("{}_is_caught", name.replace('-', "_"));
        report.claim(&claim, || {
            caught(workspace, &format!("{kind}=\"{name}\""), by)
        });
    }
}

/// The tests of refinement, those first that take least time to catch most.
const REFINEMENT: &[&str] = &[
    "directed_stories_are_specified_step_by_step",
    "a_walker_sees_the_old_or_the_new_mapping",
    "the_real_code_does_what_the_specification_says",
    "small_worlds_hold_every_invariant_to_the_fixed_point",
];

/// With this fault, the tests that should catch it fail.
fn caught(workspace: &Workspace, fault: &str, by: By) -> Result<()> {
    let started = Instant::now();
    let who = match by {
        Refinement => by_refinement(workspace, fault)?,
        VcpuState => by_vcpu_state(workspace, fault)?,
    };
    ensure!(!who.is_empty(), "nothing noticed {fault}");
    eprintln!("     {fault}: {who}, {:.0?}", started.elapsed());
    Ok(())
}

/// Which of [`REFINEMENT`] fails first. Only the object code is built with the fault.
fn by_refinement(workspace: &Workspace, fault: &str) -> Result<String> {
    let mut build = Command::new("cargo");
    build
        .args(["rustc", "--quiet", "-p", "microvisor-objects", "--lib"])
        .args(["--profile", "test", "--message-format=json", "--"])
        .args(["--cfg", fault])
        .current_dir(&workspace.root)
        .env("CARGO_TARGET_DIR", workspace.target.join("planted"));
    let out = step("Planting", fault, || build.output()).context("cannot start cargo")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let program = text.lines().find_map(executable).with_context(|| {
        let errors = String::from_utf8_lossy(&out.stderr);
        format!("it did not build:\n{}", first_lines(&errors))
    })?;
    for name in REFINEMENT {
        let mut test = Command::new(&program);
        test.arg(name).env("PROPTEST_CASES", STORIES);
        let out = test
            .output()
            .with_context(|| format!("cannot start {program}"))?;
        let text = String::from_utf8_lossy(&out.stdout);
        ensure!(text.contains("running 1 test"), "there is no test {name}");
        if !out.status.success() {
            return Ok((*name).into());
        }
    }
    Ok(String::new())
}

/// The program that a message of cargo names.
fn executable(message: &str) -> Option<String> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    Some(message.get("executable")?.as_str()?.to_owned())
}

/// Which tests of `microvisor-vcpu-state` fail.
fn by_vcpu_state(workspace: &Workspace, fault: &str) -> Result<String> {
    let mut command = Command::new("cargo");
    command
        .args(["test", "--quiet", "--no-fail-fast"])
        .args(["-p", "microvisor-vcpu-state", "--lib", "--tests"])
        .args(["--", "--format=pretty"])
        .current_dir(&workspace.root)
        .env("CARGO_TERM_COLOR", "never")
        .env(
            "CARGO_TARGET_DIR",
            workspace.target.join("planted-vcpu-state"),
        )
        .env("RUSTFLAGS", format!("--cfg {fault}"))
        .env("PROPTEST_CASES", STORIES);
    let out = step("Planting", fault, || command.output()).context("cannot start cargo")?;
    let text = String::from_utf8_lossy(&out.stdout);
    if !text.contains("\nrunning ") {
        bail!(
            "it did not build:\n{}",
            first_lines(&String::from_utf8_lossy(&out.stderr))
        );
    }
    Ok(failed(&text).join(", "))
}

fn first_lines(text: &str) -> String {
    text.lines().take(20).collect::<Vec<_>>().join("\n")
}

/// The tests that failed, by their names without modules.
fn failed(text: &str) -> Vec<&str> {
    let outcomes = text.lines().filter_map(|line| {
        let (name, outcome) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
        (outcome == "FAILED").then(|| name.rsplit("::").next().unwrap_or(name))
    });
    outcomes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    #[test]
    fn the_list_and_the_source_name_the_same_faults() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../microvisor");
        let mut folders = vec![root];
        let mut named = BTreeSet::new();
        let mark = concat!("planted ", "= \"");
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let text = std::fs::read_to_string(path).expect("a file");
                    let names = text
                        .split(mark)
                        .skip(1)
                        .filter_map(|rest| rest.split('"').next());
                    named.extend(names.map(str::to_owned));
                }
            }
        }
        let listed: BTreeSet<String> = FAULTS.iter().map(|(name, _)| (*name).into()).collect();
        assert_eq!(named, listed);
    }

    #[test]
    fn failed_tests_are_read_from_what_cargo_prints() {
        let text = "running 2 tests\ntest a::b::one ... ok\ntest a::two ... FAILED\n";
        assert_eq!(failed(text), ["two"]);
    }
}
