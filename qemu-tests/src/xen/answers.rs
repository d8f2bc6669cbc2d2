//! What the hostile guest was answered: its logs out of the memory of the machine it ran in; the
//! table that those of registers, ports and addresses become, which is what is recorded and
//! compared; and an answer to a call as text.
//!
//! A row has a key (what was asked) and the answer. Only what is not answered as most are has a
//! row: #GP, all ones, all ones.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use hostile_calls::layout::{PAGE, RAM};
use hostile_calls::log::{self, MSR_BYTES, NO_EXCEPTION, PLACE_BYTES, PORT_BYTES, logs, msr};
use hostile_calls::operations::number;
use hostile_calls::places::{PLACES, SWEEP};
use hostile_calls::{Class, MSRS, WIDTHS};

/// The logs by number.
pub type Logs = BTreeMap<u32, Vec<u8>>;

/// Finds the pages of logs in a machine's memory.
pub fn logs_in(memory: &Path) -> Result<Logs> {
    let mut file =
        File::open(memory).with_context(|| format!("cannot read {}", memory.display()))?;
    let mut pages: BTreeMap<(u32, u32), Vec<u8>> = BTreeMap::new();
    let mut block = vec![0; PAGE as usize * 256];
    loop {
        let mut got = 0;
        while got < block.len() {
            match file.read(&mut block[got..])? {
                0 => break,
                more => got += more,
            }
        }
        for page in block[..got].chunks(PAGE as usize) {
            if let Some(page) = log::read(page) {
                let content = page.content.to_vec();
                let old = pages.insert((page.log, page.number), content);
                ensure!(
                    old.is_none_or(|old| old == page.content),
                    "two pages {} of log {}",
                    page.number,
                    page.log
                );
            }
        }
        if got < block.len() {
            break;
        }
    }
    let mut out = Logs::new();
    let mut next = BTreeMap::new();
    for ((log, number), content) in pages {
        let expected = next.entry(log).or_insert(0);
        ensure!(
            number == *expected,
            "page {expected} of log {log} is missing"
        );
        *expected += 1;
        out.entry(log).or_default().extend(content);
    }
    Ok(out)
}

/// The answer to each question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table(pub BTreeMap<String, String>);

impl Table {
    /// What registers and ports did.
    pub fn of_registers(logs: &Logs) -> Result<Table> {
        let mut table = Table::default();
        let numbers = MSRS.iter().flat_map(|(first, last)| *first..=*last);
        let count = numbers.clone().count();
        for (number, record) in numbers.zip(records(logs, logs::MSRS, MSR_BYTES, count)?) {
            if record[0] != 0 {
                table
                    .0
                    .insert(format!("msr {number:08x}"), register(number, record));
            }
        }
        let ports = WIDTHS
            .iter()
            .flat_map(|bytes| (0..=u16::MAX).map(move |port| (*bytes, port)));
        let count = WIDTHS.len() << 16;
        for ((bytes, port), record) in ports.zip(records(logs, logs::PORTS, PORT_BYTES, count)?) {
            let ones = u32::MAX >> (32 - 8 * u32::from(bytes));
            let value = word(record, 2);
            if record[..2] != [NO_EXCEPTION; 2] || value != ones {
                let text = format!(
                    "in {}, out {}",
                    outcome(record[0], value),
                    outcome(record[1], 0)
                );
                table.0.insert(format!("port {port:04x} by {bytes}"), text);
            }
        }
        Ok(table)
    }

    /// What addresses did.
    pub fn of_places(logs: &Logs) -> Result<Table> {
        let mut table = Table::default();
        for (place, record) in
            PLACES
                .iter()
                .zip(records(logs, logs::PLACES, PLACE_BYTES, PLACES.len())?)
        {
            let text = format!(
                "load {}, store {}, call {}, then {:#x}",
                outcome(record[0], word(record, 4)),
                outcome(record[1], 0),
                outcome(record[2], 0),
                word(record, 8)
            );
            table.0.insert(format!("place {}", place.name), text);
        }
        let addresses = (RAM..1 << 32).step_by(SWEEP as usize);
        let count = addresses.clone().count();
        for (address, record) in addresses.zip(records(logs, logs::SWEEP, 5, count)?) {
            let value = word(record, 1);
            if record[0] != NO_EXCEPTION || value != u32::MAX {
                table
                    .0
                    .insert(format!("load {address:#x}"), outcome(record[0], value));
            }
        }
        Ok(table)
    }

    /// Reads the text of one.
    pub fn parse(text: &str) -> Result<Table> {
        let mut table = Table::default();
        for line in text.lines() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (key, answer) = line
                .split_once(" | ")
                .with_context(|| format!("not a row: {line:?}"))?;
            table.0.insert(key.to_owned(), answer.to_owned());
        }
        Ok(table)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, answer) in &self.0 {
            writeln!(out, "{key} | {answer}")?;
        }
        Ok(())
    }
}

/// The records of a log, which must be so many.
pub fn records(
    logs: &Logs,
    log: u32,
    bytes: usize,
    count: usize,
) -> Result<std::slice::ChunksExact<'_, u8>> {
    let content = logs
        .get(&log)
        .with_context(|| format!("there is no log {log:#x}"))?;
    ensure!(
        content.len() == bytes * count,
        "log {log:#x} has {} bytes, not {}",
        content.len(),
        bytes * count
    );
    Ok(content.chunks_exact(bytes))
}

fn word(record: &[u8], at: usize) -> u32 {
    let bytes = record.get(at..).and_then(|rest| rest.first_chunk());
    bytes.copied().map_or(0, u32::from_le_bytes)
}

fn outcome(vector: u8, value: u32) -> String {
    match vector {
        NO_EXCEPTION if value == 0 => "ok".into(),
        NO_EXCEPTION => format!("{value:#x}"),
        vector => format!("#{vector}"),
    }
}

/// An answer as text: the result, and what the structure told. Sizes of memory are only numbers:
/// they are the system's business.
pub fn answer(class: &Class, record: &[u8]) -> String {
    let (result, told) = (word(record, 0) as i32, word(record, 4));
    let is_size = u64::from(class.number) == number::MEMORY
        && matches!(class.operation, 2 | 3 | 4 | 14)
        && result > 0;
    match (is_size, told) {
        (true, _) => "a number".into(),
        (false, 0) => result.to_string(),
        // Statuses are 16 bits with a sign.
        (false, told) => format!("{result} tells {told:#x}"),
    }
}

fn register(number: u32, record: &[u8]) -> String {
    let happened = record[0];
    let value = u64::from(word(record, 1)) | u64::from(word(record, 5)) << 32;
    let mut words = Vec::new();
    if happened & msr::READ != 0 {
        words.push(match number {
            // The time.
            0x10 => "reads the time".to_owned(),
            _ => format!("reads {value:#x}"),
        });
    }
    for (bit, text) in [
        (msr::WRITE_BACK, "takes that back"),
        (msr::WRITE_ZERO, "takes 0"),
        (msr::WRITE_ONES, "takes ones"),
        (msr::STRANGE, "raises what is no #GP(0)"),
    ] {
        if happened & bit != 0 {
            words.push(text.to_owned());
        }
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_table_is_read_as_it_was_written(
            rows in prop::collection::btree_map("[a-z0-9 .]{1,20}[a-z]", "[a-z0-9#, |]{0,20}", 0..10)
        ) {
            let table = Table(rows);
            prop_assert_eq!(Table::parse(&table.to_string()).unwrap(), table);
        }

        #[test]
        fn any_text_is_read_without_panic(text in "[ -~\n]{0,200}") {
            let _ = Table::parse(&text);
        }
    }
}
