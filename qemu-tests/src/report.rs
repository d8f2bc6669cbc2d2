//! Claims and what became of them. Every claim is printed when it is known; the summary comes at
//! the end and its last line is `N passed, N failed, N skipped`.

use std::time::{Duration, Instant};

use anyhow::Result;

/// What became of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

/// Collects claims.
#[derive(Debug)]
pub struct Report {
    claims: Vec<(String, Outcome)>,
    /// Passed claims that are counted but not named.
    unnamed: usize,
    /// Claims that only `--full` tries.
    left_out: Vec<String>,
    groups: Vec<(String, Duration)>,
    group: String,
    started: Instant,
    /// Standard output is for something else.
    aside: bool,
}

impl Default for Report {
    fn default() -> Self {
        Report {
            claims: Vec::new(),
            unnamed: 0,
            left_out: Vec::new(),
            groups: Vec::new(),
            group: String::new(),
            started: Instant::now(),
            aside: false,
        }
    }
}

impl Report {
    /// Leaves standard output to others, and writes to standard error.
    pub fn aside(&mut self) {
        self.aside = true;
    }

    /// A line of the report.
    pub fn line(&self, text: impl std::fmt::Display) {
        if self.aside {
            eprintln!("{text}");
        } else {
            println!("{text}");
        }
    }

    /// Claims from here on belong to `group`.
    pub fn begin(&mut self, group: &str) {
        self.end();
        eprintln!("\n== {group}");
        self.group = group.to_owned();
        self.started = Instant::now();
    }

    /// The group is over.
    pub fn end(&mut self) {
        if !self.group.is_empty() {
            self.groups
                .push((std::mem::take(&mut self.group), self.started.elapsed()));
        }
    }

    fn add(&mut self, name: &str, outcome: Outcome) {
        let name = format!("{}::{name}", self.group);
        match &outcome {
            Outcome::Passed => self.line(format_args!("pass {name}")),
            Outcome::Failed(why) => {
                self.line(format_args!(
                    "FAIL {name}\n     {}",
                    why.replace('\n', "\n     ")
                ));
            }
            Outcome::Skipped(why) => self.line(format_args!("skip {name}: {why}")),
        }
        self.claims.push((name, outcome));
    }

    /// It holds.
    pub fn pass(&mut self, name: &str) {
        self.add(name, Outcome::Passed);
    }

    /// So many more hold.
    pub fn passes(&mut self, count: usize) {
        self.unnamed += count;
    }

    /// It does not.
    pub fn fail(&mut self, name: &str, why: impl std::fmt::Display) {
        self.add(name, Outcome::Failed(why.to_string()));
    }

    /// It could not be tried, and why.
    pub fn skip(&mut self, name: &str, why: impl std::fmt::Display) {
        self.add(name, Outcome::Skipped(why.to_string()));
    }

    /// It takes too long here; `--full` tries it. Neither passed nor skipped.
    pub fn leave_out(&mut self, name: &str) {
        self.left_out.push(format!("{}::{name}", self.group));
    }

    /// It holds if `check` says so.
    pub fn claim(&mut self, name: &str, check: impl FnOnce() -> Result<()>) {
        match check() {
            Ok(()) => self.pass(name),
            Err(error) => self.fail(name, format!("{error:#}")),
        }
    }

    /// Several claims that need `subject`; without it all of them fail for the same reason.
    pub fn claims<T>(&mut self, subject: Result<T>, claims: &[Claim<T>]) -> Option<T> {
        self.prefixed("", subject, claims)
    }

    /// The same, `prefix` before each name.
    pub fn prefixed<T>(
        &mut self,
        prefix: &str,
        subject: Result<T>,
        claims: &[Claim<T>],
    ) -> Option<T> {
        let full = |name: &str| match prefix {
            "" => name.to_owned(),
            _ => format!("{prefix}::{name}"),
        };
        match subject {
            Ok(mut subject) => {
                for (name, check) in claims {
                    self.claim(&full(name), || check(&mut subject));
                }
                Some(subject)
            }
            Err(error) => {
                let mut why = format!("{error:#}");
                for (name, _) in claims {
                    self.fail(&full(name), why);
                    why = "as above".into();
                }
                None
            }
        }
    }

    /// Prints the summary. True if nothing failed and every skip is in `allowed`, if that is given.
    pub fn finish(&mut self, allowed: Option<&[String]>) -> bool {
        self.end();
        self.line("");
        for (group, time) in &self.groups {
            self.line(format_args!("group {group}: {:.0} s", time.as_secs_f64()));
        }
        for name in &self.left_out {
            self.line(format_args!("left out: {name}"));
        }
        if !self.left_out.is_empty() {
            self.line(format_args!(
                "{} claims left out for their time: cargo suite --full tries them",
                self.left_out.len()
            ));
        }
        let mut counts = [self.unnamed, 0, 0];
        let mut good = true;
        for (name, outcome) in &self.claims {
            match outcome {
                Outcome::Passed => counts[0] += 1,
                Outcome::Failed(_) => {
                    counts[1] += 1;
                    self.line(format_args!("failed: {name}"));
                }
                Outcome::Skipped(why) => {
                    counts[2] += 1;
                    self.line(format_args!("skipped: {name}: {why}"));
                    if allowed.is_some_and(|allowed| !allowed.contains(name)) {
                        self.line(format_args!(
                            "         this skip is not on the list of allowed ones"
                        ));
                        good = false;
                    }
                }
            }
        }
        self.line(format_args!(
            "{} passed, {} failed, {} skipped",
            counts[0], counts[1], counts[2]
        ));
        good && counts[1] == 0
    }
}

/// A name, and what must hold of the subject.
pub type Claim<T> = (&'static str, fn(&mut T) -> Result<()>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_subject_fails_every_claim() {
        let mut report = Report::default();
        let claims: &[Claim<u32>] = &[("a", |_| Ok(())), ("b", |_| Ok(()))];
        assert_eq!(report.claims(Err(anyhow::anyhow!("no boot")), claims), None);
        assert!(
            report
                .claims
                .iter()
                .all(|(_, outcome)| matches!(outcome, Outcome::Failed(_)))
        );
        assert!(!report.finish(None));
    }

    #[test]
    fn only_listed_skips_are_accepted() {
        let mut report = Report::default();
        report.begin("g");
        report.skip("x", "no such machine");
        assert!(report.finish(None));
        assert!(!report.finish(Some(&[])));
        assert!(report.finish(Some(&["g::x".to_owned()])));
    }
}
