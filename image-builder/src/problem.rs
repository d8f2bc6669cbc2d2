//! What is wrong with a description: a line, a message, and what to do about it. All problems of a
//! file are collected and shown together. Made by `read` and `rules`; never printed in pieces.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The text of a description, kept so that positions can be shown as lines.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The file, as the user named it.
    pub path: PathBuf,
    /// Its content.
    pub text: String,
}

impl Source {
    /// Line (from 1) of a byte offset.
    pub fn line(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().get(..offset.min(self.text.len()));
        1 + before.map_or(0, |b| b.iter().filter(|&&byte| byte == b'\n').count())
    }

    /// The folder that relative paths in the description start from.
    pub fn folder(&self) -> &Path {
        match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        }
    }
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line in the description, from 1; 0 if the mistake has no place.
    pub line: usize,
    /// What is wrong.
    pub message: String,
    /// What to write instead; may be empty.
    pub advice: String,
}

/// Every mistake of one description, in the order of their lines.
#[derive(Debug, Default)]
pub struct Problems {
    source: Source,
    list: Vec<Problem>,
}

impl Problems {
    /// No problem yet.
    pub fn new(source: Source) -> Self {
        Problems {
            source,
            list: Vec::new(),
        }
    }

    /// Adds one that is at `span`.
    pub fn add(
        &mut self,
        span: &Range<usize>,
        message: impl fmt::Display,
        advice: impl fmt::Display,
    ) {
        // Defaults have no place in the user's file: an empty span at its very end.
        let line = if span.start == usize::MAX {
            0
        } else {
            self.source.line(span.start)
        };
        self.list.push(Problem {
            line,
            message: message.to_string(),
            advice: advice.to_string(),
        });
        self.list.sort_by_key(|problem| problem.line);
    }

    /// The file they are in.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// All of them.
    pub fn list(&self) -> &[Problem] {
        &self.list
    }

    /// `value` if there is no problem.
    pub fn into_result<T>(self, value: T) -> Result<T, Problems> {
        if self.list.is_empty() {
            Ok(value)
        } else {
            Err(self)
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.source.path.display();
        for problem in &self.list {
            match problem.line {
                0 => writeln!(f, "{path}: {}", problem.message)?,
                line => writeln!(f, "{path}:{line}: {}", problem.message)?,
            }
            if !problem.advice.is_empty() {
                writeln!(f, "    {}", problem.advice)?;
            }
        }
        let count = self.list.len();
        write!(
            f,
            "{count} mistake{} in {path}",
            if count == 1 { "" } else { "s" }
        )
    }
}

impl std::error::Error for Problems {}

/// The candidate closest to `word`, if it is close enough to be what was meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (slot, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let value = (diagonal + usize::from(x != y))
                .min(left + 1)
                .min(*slot + 1);
            diagonal = std::mem::replace(slot, value);
            left = value;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_is_that_of_levenshtein() {
        for (a, b, expected) in [
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("memory", "memroy", 2),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn a_typo_finds_its_key_and_nonsense_finds_none() {
        let keys = ["memory", "kernel", "initrd"];
        assert_eq!(nearest("memroy", keys), Some("memory"));
        assert_eq!(nearest("kernal", keys), Some("kernel"));
        assert_eq!(nearest("wheelbarrow", keys), None);
    }

    #[test]
    fn lines_count_from_one() {
        let source = Source {
            path: "s".into(),
            text: "a\nb\nc".into(),
        };
        assert_eq!((source.line(0), source.line(2), source.line(99)), (1, 2, 3));
    }
}
