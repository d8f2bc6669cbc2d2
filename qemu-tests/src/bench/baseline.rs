//! The counts that were committed, `qemu-tests/baseline.json`, and the gate on them: a row that takes
//! over 3 % more fails, named with the functions that grew. Counts are exact, so the margin is for
//! what a change is worth, not for noise. `cargo suite bench --record` writes the file anew; its
//! difference is then part of the change that it belongs to.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// How much a row may grow, in percent.
const MARGIN: u64 = 3;
/// Functions that a failure names.
const NAMED: usize = 4;

/// One row: its instructions, and where they are spent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// All of them.
    pub instructions: u64,
    /// By function, as `--segments` shows them.
    pub segments: BTreeMap<String, u64>,
}

/// Costs by row.
pub type Costs = BTreeMap<String, Cost>;

/// Where the file is.
pub fn path(root: &Path) -> PathBuf {
    root.join("qemu-tests/baseline.json")
}

/// Reads the file.
pub fn load(root: &Path) -> Result<Costs> {
    let path = path(root);
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| path.display().to_string())
}

/// Writes the file.
pub fn store(root: &Path, costs: &Costs) -> Result<()> {
    let rows: serde_json::Map<String, Value> = costs
        .iter()
        .map(|(name, cost)| {
            let value = json!({ "instructions": cost.instructions, "segments": cost.segments });
            (name.clone(), value)
        })
        .collect();
    let path = path(root);
    fs::write(&path, serde_json::to_string_pretty(&rows)? + "\n")
        .with_context(|| format!("cannot write {}", path.display()))
}

fn parse(text: &str) -> Result<Costs> {
    let rows: BTreeMap<String, Value> = serde_json::from_str(text)?;
    rows.into_iter()
        .map(|(name, row)| {
            let cost = cost(&row).with_context(|| format!("row {name}"))?;
            Ok((name, cost))
        })
        .collect()
}

fn cost(row: &Value) -> Result<Cost> {
    let instructions = row.get("instructions").and_then(Value::as_u64);
    let segments = row.get("segments").and_then(Value::as_object);
    let segments = segments.context("no segments")?.iter();
    Ok(Cost {
        instructions: instructions.context("no number of instructions")?,
        segments: segments
            .map(|(name, count)| Some((name.clone(), count.as_u64()?)))
            .collect::<Option<_>>()
            .context("a segment without a number")?,
    })
}

/// Holds what was measured against what was committed. Every row must be in both.
pub fn hold(measured: &Costs, committed: &Costs) -> Result<()> {
    let mut wrong = Vec::new();
    for (name, cost) in measured {
        match committed.get(name) {
            None => wrong.push(format!("{name} is not in the baseline")),
            // In 128 bits, where no number of a file can overflow.
            Some(before)
                if u128::from(cost.instructions) * 100
                    > u128::from(before.instructions) * u128::from(100 + MARGIN) =>
            {
                wrong.push(format!(
                    "{name} takes {}, the baseline is {}; grown: {}",
                    cost.instructions,
                    before.instructions,
                    grown(&cost.segments, &before.segments)
                ));
            }
            Some(_) => {}
        }
    }
    let missing = committed
        .keys()
        .filter(|name| !measured.contains_key(*name));
    wrong.extend(missing.map(|name| format!("{name} was not measured")));
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(())
}

/// The functions in which more is executed than before, most first.
fn grown(now: &BTreeMap<String, u64>, before: &BTreeMap<String, u64>) -> String {
    let mut grown: Vec<(u64, &str)> = now
        .iter()
        .map(|(name, count)| {
            let before = before.get(name).copied().unwrap_or(0);
            (count.saturating_sub(before), name.as_str())
        })
        .filter(|(more, _)| *more > 0)
        .collect();
    if grown.is_empty() {
        return "no function by itself".into();
    }
    grown.sort_by_key(|(more, _)| std::cmp::Reverse(*more));
    let named: Vec<String> = grown
        .iter()
        .take(NAMED)
        .map(|(more, name)| format!("{name} by {more}"))
        .collect();
    named.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Name, instructions, segments.
    type Row<'a> = (&'a str, u64, &'a [(&'a str, u64)]);

    fn costs(rows: &[Row<'_>]) -> Costs {
        let rows = rows.iter().map(|(name, instructions, segments)| {
            let segments = segments
                .iter()
                .map(|(name, count)| ((*name).to_owned(), *count))
                .collect();
            let cost = Cost {
                instructions: *instructions,
                segments,
            };
            ((*name).to_owned(), cost)
        });
        rows.collect()
    }

    #[test]
    fn three_percent_pass_and_more_fails_with_the_row_and_the_function_that_grew() {
        let before = costs(&[("cpuid", 1000, &[("enter", 600), ("exit", 400)])]);
        assert!(hold(&costs(&[("cpuid", 1030, &[])]), &before).is_ok());
        assert!(hold(&costs(&[("cpuid", 500, &[])]), &before).is_ok());
        let worse = costs(&[("cpuid", 1031, &[("enter", 590), ("exit", 441)])]);
        let why = hold(&worse, &before).unwrap_err().to_string();
        assert!(why.contains("cpuid takes 1031"), "{why}");
        assert!(
            why.contains("exit by 41") && !why.contains("enter"),
            "{why}"
        );
    }

    #[test]
    fn a_row_on_one_side_only_fails() {
        let one = costs(&[("cpuid", 1, &[])]);
        assert!(hold(&one, &Costs::new()).is_err());
        assert!(hold(&Costs::new(), &one).is_err());
        assert!(hold(&one, &one).is_ok());
    }

    #[test]
    fn what_is_stored_is_read_again() {
        let folder = std::env::temp_dir().join(format!("suite-baseline-{}", std::process::id()));
        fs::create_dir_all(folder.join("qemu-tests")).unwrap();
        let written = costs(&[("cpuid", 7, &[("enter", 6)]), ("rdmsr", 3, &[])]);
        store(&folder, &written).unwrap();
        assert_eq!(load(&folder).unwrap(), written);
        fs::remove_dir_all(&folder).unwrap();
        assert!(load(&folder).is_err());
    }

    proptest! {
        #[test]
        fn any_file_is_read_without_panic(text: String, number: u64) {
            let _ = parse(&text);
            let row = format!("{{\"a\":{{\"instructions\":{number},\"segments\":{{\"b\":{number}}}}}}}");
            let costs = parse(&row).unwrap();
            prop_assert!(hold(&costs, &costs).is_ok());
        }
    }
}
