//! Faults planted in the real code, one build each, and which tests must catch them: what shows that
//! the specification, the models, the property tests and the claims of booted systems can fail.
//!
//! A fault is `cfg(planted = "NAME")` at its place, or a check of `image_builder::controls` that is
//! switched off. Most are in the object code and tried on the host, all of them in one build that is
//! told which (`microvisor/objects/tests/refinement/planted.rs`); those that only CPUs show are booted.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use image_builder::controls::Control;
use image_builder::progress::step;
use image_builder::workspace::Workspace;

use crate::bounded;
use crate::hostile::{self, Verdict};
use crate::machines::Machines;
use crate::report::Report;
use crate::selftest;

/// Random stories told about a build with a fault.
const STORIES: &str = "400";

/// How long a test of a faulty build may take, many times what it takes of a sound one; one that does
/// not end caught nothing. Boots have the limits of the claims that they are for.
const TEST: Duration = Duration::from_secs(600);

/// How long a build may take.
const BUILD: Duration = Duration::from_secs(1200);

/// The build of the object code in which the environment's `PLANTED` names the fault.
const BY_NAME: &str = "by-name";

/// What is wrong in a build.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrong {
    /// `cfg(planted)` of this name.
    Planted(&'static str),
    /// The check of this name is off.
    Control(&'static str),
}

/// Who catches a fault.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// Refinement against the specification.
    Refinement,
    /// Tests of what may be in a vCPU, and the models of its TLB.
    VcpuState,
    /// The test of this name of the core, which is built for the host.
    Core(&'static str),
    /// This claim of the component `selftest`, in QEMU.
    Selftest(&'static str),
    /// A bad component, in QEMU; the control names the claim.
    Hostile,
}

use By::{Core, Hostile, Refinement, Selftest, VcpuState};
use Wrong::{Control as Off, Planted};

/// Every planted fault: what it is, its name in the source, and who catches it.
const FAULTS: &[(&str, Wrong, By)] = &[
    (
        "revoke skips one child",
        Planted("revoke-skips-a-child"),
        Refinement,
    ),
    ("revoke forgets a mapping", Off("unmap"), Refinement),
    ("mint may add a right", Off("amplify"), Refinement),
    (
        "a page-table frame can be mapped",
        Planted("table-mapped"),
        Refinement,
    ),
    (
        "a device frame can be retyped",
        Planted("device-retyped"),
        Refinement,
    ),
    (
        "retype overlaps its neighbour",
        Planted("retype-overlaps"),
        Refinement,
    ),
    (
        "a sub-frame escapes its parent by one page",
        Planted("sub-frame-escapes"),
        Refinement,
    ),
    (
        "unmap without any flush",
        Planted("unmap-without-flush"),
        Refinement,
    ),
    (
        "unmap without local flush",
        Off("local-flush"),
        Selftest("a_page_unmapped_here_is_gone_at_once"),
    ),
    (
        "unmap without remote flush",
        Off("shootdown"),
        Selftest("no_read_succeeds_after_a_revoke"),
    ),
    (
        "a frame is reused before the IOMMU's answer",
        Planted("reused-before-answer"),
        Refinement,
    ),
    (
        "an ASID is reused without flush",
        Planted("asid-without-flush"),
        VcpuState,
    ),
    (
        "a thread becomes ready and its CPU is not told",
        Planted("wake-up-lost"),
        Refinement,
    ),
    (
        "a wake-up is lost between check and sleep",
        Off("sleep"),
        Selftest("no_deadline_is_lost_on_the_way_to_sleep"),
    ),
    (
        "a poke is lost just before entry",
        Planted("poke-lost"),
        Refinement,
    ),
    (
        "a notification bit is overwritten",
        Planted("bit-overwritten"),
        Refinement,
    ),
    (
        "a reply is usable twice",
        Planted("reply-usable-twice"),
        Refinement,
    ),
    (
        "a reply goes to the wrong caller",
        Planted("reply-to-another"),
        Refinement,
    ),
    (
        "a cancelled call is answered",
        Planted("cancelled-call-answered"),
        Refinement,
    ),
    (
        "a budget is refilled twice",
        Planted("budget-refilled-twice"),
        Refinement,
    ),
    (
        "a stale generation is accepted",
        Off("generation"),
        Refinement,
    ),
    (
        "a capability is received into an occupied slot",
        Planted("slot-overwritten"),
        Refinement,
    ),
    (
        "the MSR bitmap is off by one",
        Planted("msr-bitmap-off-by-one"),
        VcpuState,
    ),
    (
        "the port bitmap is off by one",
        Planted("port-bitmap-off-by-one"),
        VcpuState,
    ),
    (
        "the state page is read twice",
        Planted("state-page-read-twice"),
        Core("state_page"),
    ),
    (
        "a reserved bit of CR4 is passed through",
        Planted("cr4-reserved-bit"),
        VcpuState,
    ),
    (
        "FPU state of another thread is left live",
        Off("release"),
        Hostile,
    ),
    (
        "a deadline is compared signed",
        Planted("deadline-signed"),
        Refinement,
    ),
    (
        "a walker sees a third mapping",
        Planted("table-not-cleared"),
        Refinement,
    ),
    (
        "a call needs no right to what it names",
        Off("rights"),
        Refinement,
    ),
    ("a call takes any kind of object", Off("kind"), Refinement),
    (
        "retype goes on behind its memory",
        Off("bounds"),
        Refinement,
    ),
    ("a new frame has old content", Off("zero"), Refinement),
    (
        "a page is executable without being asked",
        Off("no-execute"),
        Refinement,
    ),
    ("cancelling ends no call", Off("cancel"), Refinement),
];

/// Controls of the object code that group `hostile` catches: `preempt` shows in no state of it, only in
/// who runs when, and of `revoke` there is a finer fault here.
#[cfg(test)]
const ELSEWHERE: &[&str] = &["preempt", "revoke"];

impl Wrong {
    fn name(self) -> &'static str {
        match self {
            Planted(name) | Off(name) => name,
        }
    }

    /// What the compiler is told.
    fn cfg(self) -> String {
        match self {
            Planted(name) => format!("planted=\"{name}\""),
            Off(name) => format!("control=\"{name}\""),
        }
    }

    fn control(self) -> Result<&'static Control> {
        let control = match self {
            Planted(_) => None,
            Off(name) => Control::find(name),
        };
        control.context("only a control can be booted")
    }
}

/// Plants every fault whose name, `planted-` before it, the suite's `--only` allows.
pub fn run(machines: &Machines, report: &mut Report) {
    report.line(format_args!(
        "     a build may take {} s, a test {} s",
        BUILD.as_secs(),
        TEST.as_secs()
    ));
    let mut caught_all = Vec::new();
    let mut objects = Objects::default();
    let wanted = |wrong: &Wrong| machines.wants(&format!("planted-{}", wrong.name()));
    for &(what, wrong, by) in FAULTS.iter().filter(|(_, wrong, _)| wanted(wrong)) {
        let claim = format!("{}_is_caught", wrong.name().replace('-', "_"));
        let started = Instant::now();
        match caught(machines, &mut objects, wrong, by) {
            Ok(who) => {
                report.pass(&claim);
                let (name, took) = (wrong.name(), started.elapsed());
                caught_all.push(format!("| {what} | `{name}` | {who} | {took:.0?} |"));
            }
            Err(error) => report.fail(&claim, format!("{what}: {error:#}")),
        }
    }
    report.line("     | fault | name | caught by | time |");
    report.line("     |---|---|---|---|");
    for line in caught_all {
        report.line(format_args!("     {line}"));
    }
}

/// The tests of refinement, those first that take least time to catch most.
const REFINEMENT: &[&str] = &[
    "directed_stories_are_specified_step_by_step",
    "a_walker_sees_the_old_or_the_new_mapping",
    "the_real_code_does_what_the_specification_says",
    "small_worlds_hold_every_invariant_to_the_fixed_point",
];

/// The object code with all its faults, once it is built and was seen to pass with none chosen.
#[derive(Default)]
struct Objects(Option<String>);

impl Objects {
    /// Its program.
    fn program(&mut self, workspace: &Workspace) -> Result<&str> {
        if self.0.is_none() {
            let target = ["microvisor-objects", "--lib"];
            let program = build(workspace, Planted(BY_NAME), &target)?;
            let blamed = step("Trying", "no fault at all", || {
                one_that_fails(&program, "", REFINEMENT)
            })?;
            ensure!(
                blamed.is_empty(),
                "{blamed} fails although nothing is wrong"
            );
            self.0 = Some(program);
        }
        self.0.as_deref().context("it was built")
    }
}

/// With this fault, who should catch it fails: the names of the tests that did, or what was seen.
fn caught(machines: &Machines, objects: &mut Objects, wrong: Wrong, by: By) -> Result<String> {
    let workspace = &machines.workspace;
    let who = match by {
        Refinement => {
            let program = objects.program(workspace)?;
            step("Trying", wrong.name(), || {
                one_that_fails(program, wrong.name(), REFINEMENT)
            })?
        }
        Core(test) => {
            let program = build(workspace, wrong, &["microvisor", "--test", test])?;
            one_that_fails(&program, wrong.name(), &[""])?
        }
        VcpuState => by_vcpu_state(workspace, wrong)?,
        Selftest(claim) => {
            let control = wrong.control()?;
            let verdict = selftest::judged(&mut machines.control(control), control, claim)?;
            seen(claim, verdict)
        }
        Hostile => {
            let control = wrong.control()?;
            let verdict = hostile::judged(&mut machines.control(control), control)?;
            seen(control.claim, verdict)
        }
    };
    ensure!(!who.is_empty(), "nothing noticed it");
    Ok(who)
}

/// The claim and what it saw, if it failed.
fn seen(claim: &str, verdict: Verdict) -> String {
    match verdict {
        Verdict::Holds => String::new(),
        Verdict::Fails(why) => format!("{claim} ({why})"),
    }
}

/// Builds the tests in a target of a package, that target alone with the fault; answers the program.
fn build(workspace: &Workspace, wrong: Wrong, target: &[&str]) -> Result<String> {
    let mut build = Command::new("cargo");
    build
        .args(["rustc", "--quiet", "-p"])
        .args(target)
        .args(["--profile", "test", "--message-format=json", "--"])
        .args(["--cfg", &wrong.cfg()])
        .current_dir(&workspace.root)
        .env("CARGO_TARGET_DIR", workspace.target.join("planted"));
    let out = step("Planting", wrong.name(), || {
        bounded::output(&mut build, BUILD)
    })?
    .context("the build did not end")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let program = text.lines().filter_map(executable).next_back();
    program.with_context(|| {
        let errors = String::from_utf8_lossy(&out.stderr);
        format!("it did not build:\n{}", first_lines(&errors))
    })
}

/// Which of a program's tests fails first with this fault chosen, where the build has a choice. The
/// empty name stands for all tests there, of which those that failed are named.
fn one_that_fails(program: &str, fault: &str, tests: &[&str]) -> Result<String> {
    for name in tests {
        let mut test = Command::new(program);
        test.arg(name)
            .env("PLANTED", fault)
            .env("PROPTEST_CASES", STORIES)
            .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1");
        let out = bounded::output(&mut test, TEST)?
            .with_context(|| format!("{name} of {program} did not end"))?;
        let text = String::from_utf8_lossy(&out.stdout);
        ensure!(!text.contains("running 0 tests"), "there is no test {name}");
        if !out.status.success() {
            return match failed(&text)[..] {
                [] => bail!("it ended without a verdict: {}", first_lines(&text)),
                ref failed => Ok(failed.join(", ")),
            };
        }
    }
    Ok(String::new())
}

/// The program that a message of cargo names.
fn executable(message: &str) -> Option<String> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    Some(message.get("executable")?.as_str()?.to_owned())
}

/// Which tests of `microvisor-vcpu-state` fail. The fault goes to the crates of this workspace by way
/// of a wrapper around the compiler, so that all others are built once.
fn by_vcpu_state(workspace: &Workspace, wrong: Wrong) -> Result<String> {
    let folder = workspace.target.join("planted");
    fs::create_dir_all(&folder)?;
    let wrapper = folder.join(format!("rustc-{}", wrong.name()));
    let script = format!("#!/bin/sh\nexec \"$@\" --cfg '{}'\n", wrong.cfg());
    fs::write(&wrapper, script)?;
    fs::set_permissions(&wrapper, Permissions::from_mode(0o755))?;
    let mut command = Command::new("cargo");
    command
        .args(["test", "--quiet", "--no-fail-fast"])
        .args(["-p", "microvisor-vcpu-state", "--lib", "--tests"])
        .args(["--", "--format=pretty"])
        .current_dir(&workspace.root)
        .env("CARGO_TERM_COLOR", "never")
        .env("CARGO_TARGET_DIR", &folder)
        .env("RUSTC_WORKSPACE_WRAPPER", &wrapper)
        .env("PROPTEST_CASES", STORIES)
        .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1");
    let out = step("Planting", wrong.name(), || {
        bounded::output(&mut command, BUILD + TEST)
    })?
    .context("build and tests did not end")?;
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
    use image_builder::controls::CONTROLS;
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
        let listed = FAULTS.iter().filter_map(|(_, wrong, _)| match wrong {
            Planted(name) => Some(*name),
            Off(_) => None,
        });
        let listed = listed.chain([BY_NAME]).map(str::to_owned);
        assert_eq!(named, listed.collect::<BTreeSet<_>>());
    }

    #[test]
    fn a_name_is_of_one_fault() {
        let names: BTreeSet<_> = FAULTS.iter().map(|(_, wrong, _)| wrong.name()).collect();
        assert_eq!(names.len(), FAULTS.len());
    }

    /// What refinement is to catch is chosen by name while it runs, which an attribute cannot be.
    #[test]
    fn faults_of_the_object_code_are_no_attributes() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../microvisor/objects/src");
        for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
            let text = std::fs::read_to_string(entry.path()).expect("a file");
            for line in text.lines().filter(|line| line.contains("#[cfg(")) {
                let named = line.contains("planted") && !line.contains(BY_NAME);
                assert!(!named && !line.contains("control"), "{line}");
            }
        }
    }

    #[test]
    fn every_control_of_the_object_code_is_tried_here_or_elsewhere() {
        let here = |name: &str| {
            FAULTS
                .iter()
                .any(|(_, wrong, _)| *wrong == Off(named(name)))
        };
        for control in CONTROLS {
            if control.file.starts_with("microvisor/objects/") {
                let elsewhere = ELSEWHERE.contains(&control.name);
                assert!(here(control.name) != elsewhere, "{}", control.name);
            }
        }
        for (what, wrong, _) in FAULTS {
            if let Off(name) = wrong {
                assert!(Control::find(name).is_some(), "{what}");
            }
        }
    }

    fn named(name: &str) -> &'static str {
        Control::find(name).map_or("", |control| control.name)
    }

    #[test]
    fn failed_tests_are_read_from_what_cargo_prints() {
        let text = "running 2 tests\ntest a::b::one ... ok\ntest a::two ... FAILED\n";
        assert_eq!(failed(text), ["two"]);
    }
}
