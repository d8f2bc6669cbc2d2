//! What `compare-guest` says, read from a transcript of either system.

use std::collections::BTreeMap;

/// A row's counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// The middle one of the samples.
    pub median: u64,
    /// The smallest one.
    pub minimum: u64,
}

/// What one boot told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Rows by name.
    pub rows: BTreeMap<String, Count>,
    /// Their names in the order in which they were measured.
    pub order: Vec<String>,
    /// Rows that have no number, and why.
    pub none: BTreeMap<String, String>,
}

impl Measured {
    /// Reads a transcript; what is not understood is passed over.
    pub fn read(text: &str) -> Measured {
        let mut measured = Measured::default();
        for line in text.lines() {
            let Some((_, rest)) = line.split_once("compare: ") else {
                continue;
            };
            let mut words = rest.split_whitespace();
            match words.next() {
                Some("row") => {
                    if let Some((name, count)) = row(words) {
                        measured.order.push(name.clone());
                        measured.rows.insert(name, count);
                    }
                }
                Some("none") => {
                    if let Some(name) = words.next() {
                        let why: Vec<&str> = words.collect();
                        measured.none.insert(name.to_owned(), why.join(" "));
                    }
                }
                _ => {}
            }
        }
        measured
    }

    /// A row's median.
    pub fn count(&self, name: &str) -> Option<u64> {
        self.rows.get(name).map(|count| count.median)
    }

    /// A row's median, or why there is none.
    pub fn shown(&self, name: &str) -> String {
        match (self.rows.get(name), self.none.get(name)) {
            (Some(count), _) => count.median.to_string(),
            (None, Some(why)) => why.clone(),
            (None, None) => "missing".into(),
        }
    }
}

/// `<name> median <n> minimum <n>`.
fn row<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<(String, Count)> {
    let name = words.next()?;
    let mut number = |label| {
        (words.next()? == label)
            .then(|| words.next()?.parse::<u64>().ok())
            .flatten()
    };
    let median = number("median")?;
    let minimum = number("minimum")?;
    Some((name.to_owned(), Count { median, minimum }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rows_of_both_systems_are_read() {
        let ours = "[vmm-compare] guest: compare: row cpuid median 525 minimum 520\r\n\
                    [vmm-compare] guest: compare: none hlt it did not come\r\n";
        let measured = Measured::read(ours);
        assert_eq!(measured.count("cpuid"), Some(525));
        assert_eq!(measured.rows["cpuid"].minimum, 520);
        assert_eq!(measured.shown("hlt"), "it did not come");
        assert_eq!(measured.shown("other"), "missing");
        let xen = "(d1) compare: row cpuid median 2494 minimum 2494\n(d1) compare: done\n";
        assert_eq!(Measured::read(xen).count("cpuid"), Some(2494));
    }

    proptest! {
        #[test]
        fn any_transcript_is_read_without_panic(text: String, words in "[a-z0-9 \\[\\]:()]{0,60}") {
            let _ = Measured::read(&text);
            let _ = Measured::read(&format!("(d1) compare: row {words}\ncompare: none {words}"));
        }
    }
}
