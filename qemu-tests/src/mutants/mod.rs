//! Mutants of the object code: small changes, each of which some test must notice. Called by group
//! `spec` with `--mutants`; `--only mutants-FILE` takes one file, `--only mutants-FILE,mutants-OTHER` two.
//!
//! All mutants are in one build of the tests, each behind a condition, and the environment's `MUTANT`
//! chooses one: a mutant costs the run of the tests that notice it, and no build. The build is made of
//! a copy of the sources in `build/mutants`, which a wrapper gives the compiler instead of the crate's
//! own. What does not compile as a mutant is left out, and counted.
//!
//! Those that live, and why they may, are in `microvisor/objects/mutants.md`.

mod source;

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, Permissions};
use std::hash::{Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use image_builder::progress::step;

use self::source::Mutant;
use crate::bounded;
use crate::machines::Machines;
use crate::report::Report;

/// The files, those first whose faults would cost most.
const FILES: &[&str] = &[
    "slot",
    "cap_space",
    "memory",
    "translate",
    "endpoint",
    "fast",
    "notification",
    "sched",
    "device",
    "vcpu",
    "thread",
    "timer",
    "arena",
    "kernel",
    "interrupt",
];

/// Tests of the crate's own program, quickest first.
const LAST: &[&str] = &[
    "details::",
    "making_a_world",
    "a_walker_sees",
    "the_real_code",
    "directed_stories",
];

/// Random stories about a mutant.
const STORIES: &str = "24";

/// A test that takes so many times as long as without a mutant does not end.
const PATIENCE: u32 = 8;

/// Shorter than this is no sign of anything on a busy machine.
const AT_LEAST: Duration = Duration::from_secs(8);

/// Mutants tried at once: their tests are mostly one thread each.
const AT_ONCE: usize = 2;

/// What explains mutants that live.
const EXPLAINED: &str = "microvisor/objects/mutants.md";

/// Tries the mutants of every file that is wanted.
pub fn run(machines: &Machines, report: &mut Report) {
    let wanted = |file: &&&str| machines.wants(&format!("mutants-{file}"));
    let files: Vec<&str> = FILES.iter().filter(wanted).copied().collect();
    if files.is_empty() {
        return;
    }
    let bench = match Bench::new(machines, &files) {
        Ok(bench) => bench,
        Err(error) => return report.fail("the_mutants_build", format!("{error:#}")),
    };
    report.line(format_args!(
        "     {} mutants, {} more do not compile",
        bench.mutants.len(),
        bench.without.len()
    ));
    for file in files {
        report.claim(
            &format!("every_mutant_of_{file}_is_noticed_or_explained"),
            || bench.judge(file),
        );
    }
}

/// A test to run: a program, and of its tests those whose name contains this.
struct Test {
    program: PathBuf,
    part: &'static str,
    /// What it takes without a mutant.
    takes: Duration,
    /// Mutants that it noticed.
    noticed: AtomicU32,
}

/// The build with all mutants.
struct Bench<'a> {
    machines: &'a Machines,
    mutants: Vec<Mutant>,
    without: Vec<u32>,
    tests: Vec<Test>,
}

impl<'a> Bench<'a> {
    fn new(machines: &'a Machines, files: &[&str]) -> Result<Self> {
        let mut bench = Bench {
            machines,
            mutants: Vec::new(),
            without: Vec::new(),
            tests: Vec::new(),
        };
        let mut programs = None;
        for _ in 0..40 {
            bench.write(files)?;
            programs = bench.build()?;
            if programs.is_some() {
                break;
            }
        }
        let programs = programs.context("what does not compile never ends")?;
        let (refinement, others): (Vec<_>, Vec<_>) = programs
            .into_iter()
            .partition(|(name, _)| name == "microvisor_objects");
        let (_, refinement) = refinement
            .into_iter()
            .next()
            .context("no tests of refinement")?;
        let others = others.into_iter().map(|(_, program)| (program, ""));
        let last = LAST.iter().map(|part| (refinement.clone(), *part));
        for (program, part) in others.chain(last) {
            let mut test = Test {
                program,
                part,
                takes: Duration::from_secs(600),
                noticed: AtomicU32::new(0),
            };
            let started = Instant::now();
            let noticed = step("Trying", format!("no mutant, {part}"), || test.notices(0))?;
            ensure!(
                !noticed,
                "{} {part} fails with no mutant",
                test.program.display()
            );
            test.takes = started.elapsed();
            bench.tests.push(test);
        }
        Ok(bench)
    }

    fn folder(&self) -> PathBuf {
        self.machines.workspace.root.join("build/mutants")
    }

    /// Writes the copy of the crate's sources, with mutants in the files that are wanted.
    fn write(&mut self, wanted: &[&str]) -> Result<()> {
        let own = self.machines.workspace.root.join("microvisor/objects");
        let copy = self.folder();
        fs::create_dir_all(copy.join("src"))?;
        if fs::symlink_metadata(copy.join("tests")).is_err() {
            std::os::unix::fs::symlink(own.join("tests"), copy.join("tests"))?;
        }
        self.mutants.clear();
        for entry in fs::read_dir(own.join("src"))? {
            let path = entry?.path();
            let name = path
                .file_name()
                .context("a name")?
                .to_string_lossy()
                .into_owned();
            let text = fs::read_to_string(&path)?;
            let stem = name.trim_end_matches(".rs");
            let place = FILES.iter().position(|file| *file == stem);
            let text = match place.filter(|_| wanted.contains(&stem)) {
                // A file's numbers are its own, whatever else is mutated.
                Some(place) => {
                    let first = (place as u32 + 1) * 10_000;
                    let made = source::mutate(&name, &text, first, &self.without)?;
                    self.mutants.extend(made.mutants);
                    made.text
                }
                None => text.replace("#![cfg_attr(not(test), no_std)]", ""),
            };
            // What stays as it is keeps its time, so that nothing is built again for it.
            let place = copy.join("src").join(name);
            if fs::read_to_string(&place).is_ok_and(|there| there == text) {
                continue;
            }
            fs::write(place, text)?;
        }
        Ok(())
    }

    /// Builds all tests of the crate: their names and programs; `None` if mutants were found that do
    /// not compile, which are left out from then on.
    fn build(&mut self) -> Result<Option<Vec<(String, PathBuf)>>> {
        let workspace = &self.machines.workspace;
        let wrapper = self.wrapper()?;
        let mut command = Command::new("cargo");
        command
            .args(["test", "--no-run", "--quiet", "--message-format=json"])
            .args(["-p", "microvisor-objects", "--lib", "--tests"])
            .current_dir(&workspace.root)
            .env("CARGO_TARGET_DIR", workspace.target.join("mutants"))
            .env("RUSTC_WORKSPACE_WRAPPER", wrapper)
            .env("CARGO_INCREMENTAL", "0");
        let out = step("Building", "the mutants", || command.output())?;
        let text = String::from_utf8_lossy(&out.stdout);
        let messages: Vec<serde_json::Value> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        if out.status.success() {
            let programs = messages.iter().filter_map(|message| {
                let program = message["executable"].as_str()?;
                Some((
                    message["target"]["name"].as_str()?.to_owned(),
                    program.into(),
                ))
            });
            return Ok(Some(programs.collect()));
        }
        let known = self.without.len();
        for message in messages.iter().map(|m| &m["message"]) {
            if message["level"] != "error" {
                continue;
            }
            for span in message["spans"].as_array().into_iter().flatten() {
                let number = self.blame(span)?;
                self.without
                    .extend(number.filter(|n| !self.without.contains(n)));
            }
        }
        if self.without.len() == known {
            bail!(
                "no mutant is to blame:\n{}",
                String::from_utf8_lossy(&out.stderr)
            );
        }
        Ok(None)
    }

    /// The mutant in which an error lies.
    fn blame(&self, span: &serde_json::Value) -> Result<Option<u32>> {
        let (Some(name), Some(place)) = (span["file_name"].as_str(), span["byte_start"].as_u64())
        else {
            return Ok(None);
        };
        if !name.contains("build/mutants/src") {
            return Ok(None);
        }
        let text = fs::read_to_string(self.machines.workspace.root.join(name))?;
        Ok(source::before(&text, place as usize))
    }

    /// The compiler for crates of this workspace: the object code is the copy. Its name says what it
    /// does, and no more: cargo knows from the compiler which files it read, and other crates are not
    /// built again because a mutant is left out.
    fn wrapper(&self) -> Result<PathBuf> {
        let copy = self.folder();
        let script = format!(
            "#!/bin/bash\nfor a; do case \"$a\" in\n\
             microvisor/objects/src/lib.rs) w+=('{}/src/lib.rs' --cfg 'planted=\"by-name\"' -Awarnings);;\n\
             *) w+=(\"$a\");;\nesac; done\nexec \"${{w[@]}}\"\n",
            copy.display()
        );
        let mut hasher = DefaultHasher::new();
        script.hash(&mut hasher);
        let path = copy.join(format!("rustc-{:016x}", hasher.finish()));
        if !path.exists() {
            fs::write(&path, script)?;
            fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        }
        Ok(path)
    }

    /// Tries the mutants of a file; fails with those that live and are not explained.
    fn judge(&self, file: &str) -> Result<()> {
        let explained = explained(&self.machines.workspace.root.join(EXPLAINED));
        let name = format!("{file}.rs");
        let started = Instant::now();
        let mutants: Vec<&Mutant> = self.mutants.iter().filter(|m| m.file == name).collect();
        ensure!(!mutants.is_empty(), "there are no mutants");
        let (next, alive) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let some = || -> Result<()> {
            while let Some(mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
                if self.notices(mutant.number)? {
                    continue;
                }
                let (line, which) = (told(mutant), which(&mutants, mutant));
                let known =
                    explained.contains(&line) || explained.contains(&(line.clone() + &which));
                let line = line + &which;
                eprintln!(
                    "     lives{}: {}:{} {line}",
                    if known { ", explained" } else { "" },
                    mutant.file,
                    mutant.line
                );
                if !known {
                    let mut alive = alive.lock().map_err(|_| anyhow!("a list half written"))?;
                    alive.push(format!("{}:{} {line}", mutant.file, mutant.line));
                }
            }
            Ok(())
        };
        thread::scope(|scope| -> Result<()> {
            let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(some)).collect();
            for worker in workers {
                let done = worker.join();
                done.map_err(|_| anyhow!("trying mutants panicked"))??;
            }
            Ok(())
        })?;
        let alive = alive
            .into_inner()
            .map_err(|_| anyhow!("a list half written"))?;
        eprintln!(
            "     {file}: {} mutants, {} live unexplained, {:.0?}",
            mutants.len(),
            alive.len(),
            started.elapsed()
        );
        ensure!(
            alive.is_empty(),
            "{} of {} live:\n{}",
            alive.len(),
            mutants.len(),
            alive.join("\n")
        );
        Ok(())
    }

    /// True if any test notices a mutant. Those come first that noticed most for the time they take.
    fn notices(&self, mutant: u32) -> Result<bool> {
        let mut tests: Vec<&Test> = self.tests.iter().collect();
        tests.sort_by_key(|test| test.takes / (1 + test.noticed.load(Ordering::Relaxed)));
        for test in tests {
            if test.notices(mutant)? {
                test.noticed.fetch_add(1, Ordering::Relaxed);
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// A mutant as the file of explanations names it: without its line, which moves.
fn told(mutant: &Mutant) -> String {
    format!("`{}` {}: {}", mutant.file, mutant.function, mutant.what)
}

/// Which of the changes of a function that are called the same: nothing if there is one.
fn which(all: &[&Mutant], mutant: &Mutant) -> String {
    let same = all.iter().filter(|other| told(other) == told(mutant));
    let before = same.clone().filter(|other| other.number < mutant.number);
    match same.clone().count() {
        1 => String::new(),
        count => format!(" ({} of {count})", before.count() + 1),
    }
}

/// The list items of the explanations, up to their dash. One that does not say which of several of the
/// same name it means, means all of them.
fn explained(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let items = text.lines().filter_map(|line| line.strip_prefix("- "));
    items
        .map(|item| item.split(" — ").next().unwrap_or(item).trim().to_owned())
        .collect()
}

impl Test {
    /// True if it fails with this mutant, or does not end.
    fn notices(&self, mutant: u32) -> Result<bool> {
        let mut command = Command::new(&self.program);
        command
            .arg(self.part)
            .args((!self.part.is_empty()).then_some("--test-threads=1"))
            .env("MUTANT", mutant.to_string())
            .env("PROPTEST_CASES", STORIES)
            .env("PROPTEST_MAX_SHRINK_ITERS", "0")
            .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1");
        let limit = (self.takes * PATIENCE).max(AT_LEAST);
        let ended = bounded::output(&mut command, limit)?;
        Ok(ended.is_none_or(|out| !out.status.success()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_the_same_name_are_counted() {
        let mutant = |number, what: &str| Mutant {
            number,
            file: "a.rs".into(),
            line: 1,
            function: "f".into(),
            what: what.into(),
        };
        let all = [mutant(1, "a"), mutant(2, "b"), mutant(3, "a")];
        let all: Vec<&Mutant> = all.iter().collect();
        let which = |at: usize| super::which(&all, all[at]);
        assert_eq!(
            [which(0), which(1), which(2)],
            [" (1 of 2)", "", " (2 of 2)"]
        );
    }
}
