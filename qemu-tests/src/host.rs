//! Group `host`: what needs no emulator. Formatting, lints, unit and property tests of every
//! crate that builds on the host, documentation, and two promises about the source: which crates
//! may depend on `postcard`, and which forbid `unsafe`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use image_builder::progress::step;
use image_builder::workspace::{CORE, TARGET, Workspace};

use crate::report::Report;
use crate::size::metadata;

/// Crates that may name `postcard`: the wire format and its two users.
const POSTCARD: &[&str] = &["idl", "sdk"];
/// Private items are documented too, so links to them are good.
const RUSTDOC: &str =
    "-D warnings -A rustdoc::private_intra_doc_links -A rustdoc::redundant_explicit_links";
/// Sources without hardware access, which must forbid `unsafe`.
const SAFE: &[&str] = &[
    "idl/src/lib.rs",
    "idl/macros/src/lib.rs",
    "components/xen-abi/src/lib.rs",
    "components/x86-platform/src/lib.rs",
    "components/guest-loader/src/lib.rs",
    "components/xenstore/src/lib.rs",
    "components/console/src/lib.rs",
    "components/toolstack/src/lib.rs",
    "components/xl-cfg/src/lib.rs",
    "components/pci/src/lib.rs",
    "components/virtio-blk/src/lib.rs",
    "components/nvme/src/lib.rs",
    "components/root/src/lib.rs",
    "microvisor/vcpu-state/src/lib.rs",
    "sdk/testkit/src/lib.rs",
    "image-builder/src/lib.rs",
    "image-builder/src/main.rs",
    "qemu-tests/src/main.rs",
];

/// Runs the group.
pub fn run(workspace: &Workspace, report: &mut Report) {
    report.claim("source_is_formatted", || {
        cargo(workspace, &["fmt", "--all", "--check"], &[])
    });
    report.claim("host_code_has_no_lints", || {
        cargo(
            workspace,
            &["clippy", "--quiet", "--all-targets", "--", "-D", "warnings"],
            &[],
        )
    });
    report.claim("core_has_no_lints", || {
        lint_target(workspace, &[CORE.to_owned()], "core")
    });
    report.claim("components_have_no_lints", || {
        let packages: Vec<String> = workspace.packages.keys().cloned().collect();
        lint_target(workspace, &packages, "components")
    });
    report.claim("documentation_builds", || {
        let flags = [("RUSTDOCFLAGS", RUSTDOC)];
        cargo(
            workspace,
            &["doc", "--quiet", "--no-deps", "--document-private-items"],
            &flags,
        )
    });
    report.claim("only_wire_formats_use_postcard", || postcard(workspace));
    report.claim("pure_crates_forbid_unsafe", || forbids_unsafe(workspace));
    if let Err(error) = unit_tests(workspace, report) {
        report.fail("unit_tests_run", format!("{error:#}"));
    }
}

fn command(workspace: &Workspace, arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command
        .args(arguments)
        .current_dir(&workspace.root)
        .env("CARGO_TERM_COLOR", "never");
    command
}

fn cargo(workspace: &Workspace, arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let line = format!("cargo {}", arguments.join(" "));
    let mut command = command(workspace, arguments);
    command.envs(environment.iter().copied());
    let out = step("Running", &line, || command.output()).context("cannot start cargo")?;
    if out.status.success() {
        return Ok(());
    }
    let text =
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    let lines: Vec<&str> = text.lines().collect();
    let head = lines.get(..lines.len().min(60)).unwrap_or(&[]);
    bail!("{line} failed:\n{}", head.join("\n"))
}

/// Clippy for bare metal, in the target folder of the builds, where the dependencies are.
fn lint_target(workspace: &Workspace, packages: &[String], folder: &str) -> Result<()> {
    let folder = workspace.target.join(folder);
    let folder = folder.to_string_lossy();
    let mut arguments = vec![
        "clippy",
        "--quiet",
        "--release",
        "--target",
        TARGET,
        "--target-dir",
        &folder,
    ];
    for package in packages {
        arguments.extend(["-p", package]);
    }
    arguments.extend(["--", "-D", "warnings"]);
    cargo(workspace, &arguments, &[])
}

fn postcard(workspace: &Workspace) -> Result<()> {
    let value = metadata(workspace, &["--no-deps"])?;
    let mut wrong = Vec::new();
    for package in value["packages"].as_array().context("no packages")? {
        let name = package["name"].as_str().unwrap_or("");
        let uses = package["dependencies"].as_array().is_some_and(|list| {
            list.iter()
                .any(|dependency| dependency["name"] == "postcard" && dependency["kind"].is_null())
        });
        if uses && !POSTCARD.contains(&name) {
            wrong.push(name);
        }
    }
    ensure!(
        wrong.is_empty(),
        "{} must not depend on postcard; use idl",
        wrong.join(", ")
    );
    Ok(())
}

fn forbids_unsafe(workspace: &Workspace) -> Result<()> {
    for file in SAFE {
        let text = fs::read_to_string(workspace.root.join(file))
            .with_context(|| format!("cannot read {file}"))?;
        ensure!(
            text.contains("#![forbid(unsafe_code)]"),
            "{file} does not forbid unsafe code"
        );
    }
    Ok(())
}

/// Runs the tests of every default member and reports each as a claim.
fn unit_tests(workspace: &Workspace, report: &mut Report) -> Result<()> {
    let mut child = command(workspace, &["test", "--no-fail-fast"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let mut stderr = BufReader::new(child.stderr.take().context("no pipe")?);
    // Cargo says on standard error which crate's tests come next; it is read on the side, so that
    // neither pipe fills up.
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        while let Ok(1..) = stderr.read_line(&mut text) {}
        text
    });
    let mut results = Results::default();
    for line in BufReader::new(child.stdout.take().context("no pipe")?).lines() {
        results.line(&line?);
    }
    let status = child.wait()?;
    let errors = errors.join().unwrap_or_default();
    let any_failed = results
        .tests
        .iter()
        .any(|(_, outcome)| matches!(outcome, Test::Failed));
    let good = results
        .tests
        .iter()
        .filter(|(_, outcome)| matches!(outcome, Test::Passed))
        .count();
    // Hundreds of good ones would hide everything else on the screen, so they are counted silently.
    report.passes(good);
    for (name, outcome) in &results.tests {
        match outcome {
            Test::Passed => {}
            Test::Failed => report.fail(name, results.detail(name)),
            Test::Ignored(why) => report.skip(name, why),
        }
    }
    report.line(format_args!("pass host::{good} unit tests"));
    if !status.success() && !any_failed {
        bail!("cargo test failed:\n{}", tail(&errors, 40));
    }
    ensure!(good > 0, "no test ran:\n{}", tail(&errors, 40));
    Ok(())
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..)
        .unwrap_or(&[])
        .join("\n")
}

/// What libtest said of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Passed,
    Failed,
    Ignored(String),
}

/// libtest's output, read line by line.
#[derive(Default)]
struct Results {
    tests: Vec<(String, Test)>,
    /// Sections `---- name stdout ----`.
    details: Vec<(String, String)>,
    inside: bool,
}

impl Results {
    fn line(&mut self, line: &str) {
        if let Some(name) = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            self.details.push((name.to_owned(), String::new()));
            self.inside = true;
            return;
        }
        if line == "failures:" || line.starts_with("test result:") {
            self.inside = false;
        }
        if self.inside {
            if let Some((_, text)) = self.details.last_mut() {
                *text += line;
                text.push('\n');
            }
            return;
        }
        let Some((name, outcome)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.rsplit_once(" ... "))
        else {
            return;
        };
        // An example that is only to be read says so with `ignore`; it claims nothing.
        if name.contains(" - ") && outcome.starts_with("ignored") {
            return;
        }
        let outcome = match outcome {
            "ok" => Test::Passed,
            "FAILED" => Test::Failed,
            other => match other.strip_prefix("ignored") {
                Some(why) => Test::Ignored(why.trim_start_matches([',', ' ']).to_owned()),
                None => return,
            },
        };
        self.tests.push((name.to_owned(), outcome));
    }

    fn detail(&self, name: &str) -> String {
        let found = self.details.iter().find(|(known, _)| known == name);
        found.map_or(String::new(), |(_, text)| tail(text, 30))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn libtest_output_is_read() {
        let mut results = Results::default();
        for line in [
            "running 4 tests",
            "test a::b ... ok",
            "test c ... FAILED",
            "test d ... ignored, needs a month",
            "test src/lib.rs - x (line 3) ... ok",
            "",
            "failures:",
            "",
            "---- c stdout ----",
            "test e ... ok",
            "it broke",
            "",
            "failures:",
            "    c",
            "test result: FAILED. 2 passed; 1 failed; 1 ignored",
        ] {
            results.line(line);
        }
        let count = |wanted: &Test| results.tests.iter().filter(|(_, o)| o == wanted).count();
        assert_eq!((count(&Test::Passed), count(&Test::Failed)), (2, 1));
        assert_eq!(count(&Test::Ignored("needs a month".into())), 1);
        assert!(results.detail("c").contains("it broke"));
    }

    proptest! {
        #[test]
        fn any_output_is_read_without_panic(lines in proptest::collection::vec("[ -~]{0,40}", 0..20)) {
            let mut results = Results::default();
            for line in &lines {
                results.line(line);
            }
        }
    }
}
