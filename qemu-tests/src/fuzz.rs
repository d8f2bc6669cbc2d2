//! Coverage-guided fuzzing of the parsers of outside data: builds `qemu-tests/fuzz` with libFuzzer
//! and coverage in the code, on the stable compiler, and runs every target. Called by group `spec`:
//! for a moment always, longer with `--deep`. The corpora in `qemu-tests/fuzz/corpora` are where it
//! begins; `fuzz/tests/corpora.rs` runs them again without a fuzzer.
//!
//! What it finds by the way goes to `build/fuzz/TARGET`. To keep the part of it that reaches more
//! than the corpus does: `FUZZ_TARGET=TARGET FUZZER -merge=1 qemu-tests/fuzz/corpora/TARGET
//! build/fuzz/TARGET`, FUZZER being the program that [`build`] names.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use image_builder::progress::step;
use image_builder::workspace::Workspace;

use crate::report::Report;

/// Where it is built for: naming it keeps the flags away from build scripts.
const HOST: &str = "x86_64-unknown-linux-gnu";

/// What libFuzzer needs of the code (LLVM, SanitizerCoverage), and checks that a release build has not.
const FLAGS: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "-Cdebug-assertions",
    "-Coverflow-checks",
];

/// How long each target is tried: it ends with whichever comes first.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Inputs.
    pub runs: u64,
    /// Seconds.
    pub seconds: u64,
}

/// Runs every target.
pub fn run(workspace: &Workspace, report: &mut Report, effort: Effort) {
    let targets = targets(workspace);
    let ready = targets.and_then(|targets| Ok((targets, build(workspace)?)));
    let (targets, program) = match ready {
        Ok(ready) => ready,
        Err(error) => return report.fail("the_fuzzer_builds", format!("{error:#}")),
    };
    let mut reached = Vec::new();
    for target in targets {
        let name = format!("fuzzing_{}_finds_nothing", target.replace('-', "_"));
        report.claim(&name, || {
            let line = fuzz(workspace, &program, &target, effort)?;
            reached.push(format!("{target}: {line}"));
            Ok(())
        });
    }
    for line in reached {
        report.line(format_args!("     {line}"));
    }
}

/// Every folder of the corpora; a test there holds them against the list of targets.
fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let folder = workspace.root.join("qemu-tests/fuzz/corpora");
    let entries =
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    ensure!(!names.is_empty(), "there are no corpora");
    Ok(names)
}

/// Builds the fuzzer; answers where it is.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    let folder = workspace.target.join("fuzz");
    let mut command = Command::new("cargo");
    command
        .args(["build", "--quiet", "--release", "--target", HOST])
        .args([
            "-p",
            "fuzz-targets",
            "--features",
            "libfuzzer",
            "--bin",
            "fuzz",
        ])
        .current_dir(&workspace.root)
        .env("CARGO_TARGET_DIR", &folder)
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    let out = step("Building", "the fuzzer", || command.output()).context("cannot start cargo")?;
    if !out.status.success() {
        let errors = String::from_utf8_lossy(&out.stderr);
        bail!(
            "it did not build:\n{}",
            errors.lines().take(30).collect::<Vec<_>>().join("\n")
        );
    }
    Ok(folder.join(HOST).join("release/fuzz"))
}

/// Runs one target; what it reached.
fn fuzz(workspace: &Workspace, program: &Path, target: &str, effort: Effort) -> Result<String> {
    let out = workspace.root.join("build/fuzz");
    let (found, seeds) = (out.join(target), out.join("seeds").join(target));
    for folder in [&found, &seeds] {
        fs::create_dir_all(folder)?;
    }
    let mut command = Command::new(program);
    command
        .arg(format!("-runs={}", effort.runs))
        .arg(format!("-max_total_time={}", effort.seconds))
        .args([
            "-seed=1",
            "-max_len=4096",
            "-timeout=60",
            "-rss_limit_mb=2048",
        ])
        .arg(format!(
            "-artifact_prefix={}/found-{target}-",
            out.display()
        ))
        .args([&found, &seeds])
        .arg(workspace.root.join("qemu-tests/fuzz/corpora").join(target))
        .env("FUZZ_TARGET", target)
        .env("FUZZ_SEEDS", &seeds);
    let ended = step("Fuzzing", target, || command.output())
        .with_context(|| format!("cannot start {}", program.display()))?;
    let text = String::from_utf8_lossy(&ended.stderr);
    if ended.status.success() {
        let done = text.lines().rev().find_map(|line| line.split_once("DONE"));
        let (runs, rest) = done.context("it did not say that it is done")?;
        let rest = rest.split(" lim:").next().unwrap_or(rest).trim();
        return Ok(format!(
            "{} inputs, {rest}",
            runs.trim().trim_start_matches('#')
        ));
    }
    let mut lines = text
        .lines()
        .skip_while(|line| !line.contains("panicked") && !line.contains("ERROR"));
    let why: Vec<&str> = lines.by_ref().take(2).collect();
    let kept = text
        .lines()
        .find(|line| line.contains("Test unit written to"));
    bail!(
        "{}\n{}",
        why.join("\n"),
        kept.unwrap_or("no input was kept")
    )
}
