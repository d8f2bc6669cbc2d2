//! Holds what a guest was answered here against what Xen answered to the same question, and both
//! against the list of explained differences. The list is checked both ways: a difference that no entry explains is a
//! failure, as is an entry that explains nothing.
//!
//! The list is text. A line that begins with `#` is a reason; the entries below it, until the next
//! reason, have it:
//!
//! ```text
//! # Here is no domain 0.
//! call 32.* * domain-0 : -1; -22 => -3
//! ```
//!
//! An entry is a pattern of keys (`*` stands for anything), what Xen answers, and what is answered
//! here: answers separated by `;`, each a pattern too. It explains a question that Xen answers with one of
//! the former and that is answered with one of the latter here.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};

use super::answers::Table;

/// The answer to what a table has no row for: #GP of a register, ones of a port or an address.
pub const USUAL: &str = "as usual";

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Why.
    pub reason: String,
    keys: String,
    xen: Vec<String>,
    here: Vec<String>,
}

/// A question and two answers to it that differ.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// What was asked.
    pub key: String,
    /// What Xen answered.
    pub xen: String,
    /// What was answered here.
    pub here: String,
}

/// How often something was seen, and where for the first time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    count: u64,
    first: String,
}

/// All pairs of answers.
#[derive(Clone, Debug, Default)]
pub struct Pairs {
    /// Questions answered alike.
    pub same: u64,
    differences: BTreeMap<Difference, Seen>,
}

impl Pairs {
    /// Adds a question; `place` says where it was asked.
    pub fn add(&mut self, key: String, xen: String, here: String, place: impl FnOnce() -> String) {
        if xen == here {
            self.same += 1;
            return;
        }
        let difference = Difference { key, xen, here };
        self.differences
            .entry(difference)
            .and_modify(|seen| seen.count += 1)
            .or_insert_with(|| Seen {
                count: 1,
                first: place(),
            });
    }

    /// Those of two tables.
    pub fn of_tables(xen: &Table, here: &Table) -> Pairs {
        let mut pairs = Pairs::default();
        let keys: BTreeSet<&String> = xen.0.keys().chain(here.0.keys()).collect();
        for key in keys {
            let answer = |table: &Table| {
                let answer = table.0.get(key).map_or(USUAL, String::as_str);
                answer.to_owned()
            };
            pairs.add(key.clone(), answer(xen), answer(here), String::new);
        }
        pairs
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

/// What the comparison found.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Differences without an explanation, as text.
    pub unexplained: Vec<String>,
    /// Entries that explain nothing, as text.
    pub unused: Vec<String>,
    /// Questions that are answered otherwise, with an explanation.
    pub explained: u64,
    /// For each reason, how many questions it explains.
    pub reasons: BTreeMap<String, u64>,
}

/// Compares.
pub fn compare(pairs: &Pairs, list: &[Entry]) -> Comparison {
    let mut used = vec![false; list.len()];
    let mut out = Comparison::default();
    for (difference, seen) in &pairs.differences {
        let known = |patterns: &[String], answer: &str| {
            patterns.iter().any(|pattern| matches(pattern, answer))
        };
        let explains = |entry: &Entry| {
            matches(&entry.keys, &difference.key)
                && known(&entry.xen, &difference.xen)
                && known(&entry.here, &difference.here)
        };
        let mut entries = list.iter().zip(&mut used);
        if let Some((entry, used)) = entries.find(|(entry, _)| explains(entry)) {
            *used = true;
            out.explained += seen.count;
            *out.reasons.entry(entry.reason.clone()).or_default() += seen.count;
        } else {
            let Difference { key, xen, here } = difference;
            let Seen { count, first } = seen;
            out.unexplained
                .push(format!("{key} : {xen} => {here} x{count} {first}"));
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

    const LIST: &str = "# Here is\n# no domain 0.\ncall 32.* domain-0 : -1 => -3; -22\n\n# Other.\nmsr * : a* => as usual\n";

    fn pairs(xen: &str, here: &str) -> Pairs {
        Pairs::of_tables(&Table::parse(xen).unwrap(), &Table::parse(here).unwrap())
    }

    #[test]
    fn a_difference_needs_an_entry_and_an_entry_a_difference() {
        let list = parse(LIST).unwrap();
        assert_eq!(list[0].reason, "Here is no domain 0.");
        assert_eq!(list[1].reason, "Other.");
        let xen = "call 32.4 good domain-0 | -1\nmsr 1 | abc\nmsr 2 | b\n";
        let found = compare(
            &pairs(xen, "call 32.4 good domain-0 | -3\nmsr 2 | b\n"),
            &list,
        );
        assert!(
            found.unexplained.is_empty() && found.unused.is_empty(),
            "{found:?}"
        );
        assert_eq!(found.explained, 2);
        assert_eq!(found.reasons["Other."], 1);

        let found = compare(
            &pairs(xen, "call 32.4 good domain-0 | -5\nmsr 2 | b\n"),
            &list,
        );
        assert_eq!((found.unexplained.len(), found.unused.len()), (1, 1));
        let found = compare(&pairs(xen, xen), &list);
        assert_eq!((found.explained, found.unused.len()), (0, 2));
    }

    #[test]
    fn the_two_answers_must_belong_to_one_entry() {
        let list = parse("# One.\na : 1 => 2\n\n# Other.\na : 3 => 4\n").unwrap();
        let found = compare(&pairs("a | 1\n", "a | 4\n"), &list);
        assert_eq!(found.unexplained, ["a : 1 => 4 x1 "]);
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
