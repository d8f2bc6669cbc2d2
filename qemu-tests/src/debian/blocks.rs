//! Blocks with sequence numbers, as `blocks.pl` writes them in a guest: which of them it was told are on the
//! disk, by what its console showed, and which of them the disk's file holds.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// Bytes of a block.
const BLOCK: usize = 4096;

/// The numbers that were acknowledged. What other programs print between two lines does no harm, and a
/// number that something else broke into is none.
pub fn acknowledged(console: &str) -> BTreeSet<u64> {
    let numbers = console.split("ack ").skip(1);
    numbers
        .filter_map(|rest| rest.split_once(';')?.0.parse().ok())
        .collect()
}

/// The words of a block, as the guest's program makes them.
fn content(number: u64) -> impl Iterator<Item = u8> {
    let mixed = (0..1022u64).map(move |word| {
        let mixed = number.wrapping_mul(2_654_435_761) + word * 40_503;
        (mixed as u32).to_le_bytes()
    });
    number.to_le_bytes().into_iter().chain(mixed.flatten())
}

/// Each of `numbers` is in the file, whole, at its place after byte `at`.
pub fn are_there(file: &Path, at: u64, numbers: &BTreeSet<u64>) -> Result<()> {
    ensure!(!numbers.is_empty(), "no block was acknowledged");
    let mut disk = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut missing = Vec::new();
    let mut block = vec![0; BLOCK];
    for number in numbers {
        disk.seek(SeekFrom::Start(at + number * BLOCK as u64))?;
        disk.read_exact(&mut block)?;
        if !content(*number).eq(block.iter().copied()) {
            missing.push(*number);
        }
    }
    if !missing.is_empty() {
        bail!(
            "{} of {} acknowledged blocks are not there: {:?}...",
            missing.len(),
            numbers.len(),
            &missing[..missing.len().min(10)]
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn only_whole_numbers_count_as_acknowledged() {
        let console = "ack 1;\r\nack 2;\r\n[root] x\r\nack 3[root] y\r\n4;\r\nack 5";
        assert_eq!(acknowledged(console), BTreeSet::from([1, 2]));
    }

    #[test]
    fn a_lost_block_and_a_torn_one_are_missed() {
        let path = std::env::temp_dir().join(format!("suite-blocks-{}", std::process::id()));
        let mut bytes = vec![0; 100];
        bytes.extend((0..4).flat_map(content));
        let numbers = BTreeSet::from([0, 1, 3]);
        let judge = |bytes: &[u8]| {
            File::create(&path).unwrap().write_all(bytes).unwrap();
            are_there(&path, 100, &numbers)
        };
        judge(&bytes).unwrap();
        let mut torn = bytes.clone();
        torn[100 + BLOCK + 512..100 + 2 * BLOCK].fill(0);
        assert!(judge(&torn).unwrap_err().to_string().contains("1 of 3"));
        // The block that nobody was promised.
        bytes[100 + 2 * BLOCK..100 + 3 * BLOCK].fill(0);
        judge(&bytes).unwrap();
        assert!(are_there(&path, 100, &BTreeSet::new()).is_err());
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn the_guests_program_writes_what_is_looked_for() {
        let path = std::env::temp_dir().join(format!("suite-blocks-pl-{}", std::process::id()));
        File::create(&path)
            .unwrap()
            .set_len(64 * BLOCK as u64)
            .unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/debian/blocks.pl");
        let mut program = std::process::Command::new("perl");
        program.arg(script).arg(&path).args(["3", "40", "4"]);
        let out = program.output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(said.ends_with("acknowledged 40 of 40\n"), "{said}");
        assert_eq!(acknowledged(&said), (3..43).collect());
        are_there(&path, 0, &acknowledged(&said)).unwrap();
        assert!(are_there(&path, 0, &BTreeSet::from([43])).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
