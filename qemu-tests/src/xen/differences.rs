//! Holds what a guest was answered here against what Xen answered, and both against the list of
//! explained differences. The list is checked both ways: a difference that no entry explains is a
//! failure, as is an entry that explains nothing.
//!
//! The list is text. A line that begins with `#` is a reason; the entries below it, until the next
//! reason, have it:
//!
//! ```text
//! # Here is no domain 0.
//! call 32.* * domain-0 : -1 => -3
//! ```
//!
//! An entry is a pattern of keys (`*` stands for anything), what Xen answers oftener, and what is
//! answered oftener here: answers separated by `;`, each a pattern too.

use std::collections::BTreeSet;

use anyhow::{Context, Result};

use super::answers::Table;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Why.
    pub reason: String,
    keys: String,
    xen: Vec<String>,
    here: Vec<String>,
}

/// One difference: of an answer to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What was asked.
    pub key: String,
    /// Answers that Xen gives oftener, and by how much.
    pub xen: Vec<(String, u64)>,
    /// Answers that are given oftener here.
    pub here: Vec<(String, u64)>,
}

impl Difference {
    fn text(&self) -> String {
        let side = |answers: &[(String, u64)]| {
            let words: Vec<String> = answers
                .iter()
                .map(|(answer, count)| format!("{answer} x{count}"))
                .collect();
            words.join(" | ")
        };
        format!("{} : {} => {}", self.key, side(&self.xen), side(&self.here))
    }
}

/// Reads the list.
pub fn parse(text: &str) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut reason = String::new();
    let mut fresh = true;
    for line in text.lines().map(str::trim) {
        if let Some(words) = line.strip_prefix('#') {
            if fresh {
                reason.clear();
            } else if !reason.is_empty() {
                reason.push(' ');
            }
            fresh = false;
            reason += words.trim();
        } else if !line.is_empty() {
            let (keys, answers) = line.split_once(" : ").context("no \" : \"")?;
            let (xen, here) = answers
                .split_once("=>")
                .with_context(|| format!("no \"=>\" in {line:?}"))?;
            let list = |text: &str| -> Vec<String> {
                text.split(';')
                    .map(|answer| answer.trim().to_owned())
                    .filter(|answer| !answer.is_empty())
                    .collect()
            };
            entries.push(Entry {
                reason: reason.clone(),
                keys: keys.trim().to_owned(),
                xen: list(xen),
                here: list(here),
            });
            fresh = true;
        } else {
            fresh = true;
        }
    }
    Ok(entries)
}

/// Whether `text` is what `pattern` says; `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Every difference of two tables.
pub fn between(xen: &Table, here: &Table) -> Vec<Difference> {
    let keys: BTreeSet<&String> = xen.0.keys().chain(here.0.keys()).collect();
    let mut out = Vec::new();
    for key in keys {
        let count = |table: &Table, answer: &String| -> u64 {
            let row = table.0.get(key);
            row.and_then(|row| row.get(answer)).copied().unwrap_or(0)
        };
        let rows = [xen, here].into_iter().filter_map(|table| table.0.get(key));
        let answers: BTreeSet<&String> = rows.flat_map(|row| row.keys()).collect();
        let mut difference = Difference {
            key: key.clone(),
            xen: Vec::new(),
            here: Vec::new(),
        };
        for answer in answers {
            let (there, own) = (count(xen, answer), count(here, answer));
            if there > own {
                difference.xen.push((answer.clone(), there - own));
            } else if own > there {
                difference.here.push((answer.clone(), own - there));
            }
        }
        if !(difference.xen.is_empty() && difference.here.is_empty()) {
            out.push(difference);
        }
    }
    out
}

/// What the comparison found.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Differences without an explanation, as text.
    pub unexplained: Vec<String>,
    /// Entries that explain nothing, as text.
    pub unused: Vec<String>,
    /// Differences that are explained.
    pub explained: usize,
}

/// Compares.
pub fn compare(xen: &Table, here: &Table, list: &[Entry]) -> Comparison {
    let mut used = vec![false; list.len()];
    let mut out = Comparison::default();
    for difference in between(xen, here) {
        let mut left = difference.clone();
        for (entry, used) in list.iter().zip(&mut used) {
            if !matches(&entry.keys, &difference.key) {
                continue;
            }
            let known = |patterns: &[String], answer: &str| {
                patterns.iter().any(|pattern| matches(pattern, answer))
            };
            let before = left.xen.len() + left.here.len();
            left.xen.retain(|(answer, _)| !known(&entry.xen, answer));
            left.here.retain(|(answer, _)| !known(&entry.here, answer));
            *used |= left.xen.len() + left.here.len() < before;
        }
        if left.xen.is_empty() && left.here.is_empty() {
            out.explained += 1;
        } else {
            out.unexplained.push(difference.text());
        }
    }
    for (entry, used) in list.iter().zip(used) {
        if !used {
            let (xen, here) = (entry.xen.join("; "), entry.here.join("; "));
            out.unused.push(format!("{} : {xen} => {here}", entry.keys));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIST: &str = "# Here is\n# no domain 0.\ncall 32.* domain-0 : -1 => -3; -22\n\n# Other.\nmsr * : a* =>\n";

    fn table(text: &str) -> Table {
        Table::parse(text).unwrap()
    }

    #[test]
    fn a_difference_needs_an_entry_and_an_entry_a_difference() {
        let list = parse(LIST).unwrap();
        assert_eq!(list[0].reason, "Here is no domain 0.");
        assert_eq!(list[1].reason, "Other.");
        let xen = table("call 32.4 good domain-0 | -1 x4 | 0 x1\nmsr 1 | abc x1\nmsr 2 | b x1\n");
        let here = table("call 32.4 good domain-0 | -3 x4 | 0 x1\nmsr 2 | b x1\n");
        let found = compare(&xen, &here, &list);
        assert!(
            found.unexplained.is_empty() && found.unused.is_empty(),
            "{found:?}"
        );
        assert_eq!(found.explained, 2);

        let other = table("call 32.4 good domain-0 | -5 x4 | 0 x1\nmsr 2 | b x1\n");
        assert_eq!(compare(&xen, &other, &list).unexplained.len(), 1);
        let same = compare(&xen, &xen, &list);
        assert_eq!((same.explained, same.unused.len()), (0, 2));
    }

    #[test]
    fn a_changed_count_is_a_difference() {
        let found = between(&table("a | 0 x4\n"), &table("a | 0 x5\n"));
        assert_eq!(found[0].here, [("0".to_owned(), 1)]);
    }

    proptest! {
        #[test]
        fn a_pattern_with_a_piece_replaced_matches(text in "[a-c*]{0,12}", from in 0..12usize, to in 0..12usize) {
            let text = text.replace('*', "");
            let (from, to) = (from.min(to).min(text.len()), to.max(from).min(text.len()));
            let pattern = format!("{}*{}", &text[..from], &text[to..]);
            prop_assert!(matches(&pattern, &text));
            prop_assert!(matches("*", &text) && matches(&text, &text));
            let longer = text.clone() + "d";
            prop_assert!(!matches(&text, &longer));
        }

        #[test]
        fn any_list_is_read_without_panic(text in "[ -~\n]{0,200}") {
            let _ = parse(&text);
        }
    }
}
