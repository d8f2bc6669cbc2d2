//! VMREADs and VMWRITEs of each row of `bench-guest`, for [`super::in_bochs`]. Bochs's debugger prints
//! every instruction that is executed once the guest begins to measure; what stands between two
//! readings of the TSC is a round. Pure but for the reading; the debugger's text is not trusted to be
//! anything.

use std::io::{BufRead, BufReader, Read};

use anyhow::{Context, Result};

/// What a round, or an operation, executed: all instructions, the guest's own too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accesses {
    /// Instructions.
    pub instructions: u64,
    /// VMREADs.
    pub reads: u64,
    /// VMWRITEs.
    pub writes: u64,
}

/// The debugger's commands: run until `bench-guest` executes XCHG BX, BX, and print from there on.
pub const COMMANDS: &str = "c\ntrace on\nc\n";

/// Rounds by what is measured, in order: the empty pair first, then the rows.
pub fn rounds(from: impl Read, sites: &[u64]) -> Result<Vec<Vec<Accesses>>> {
    let mut measured: Vec<(u64, Vec<Accesses>)> = Vec::new();
    let mut open: Option<(u64, Accesses)> = None;
    let mut lines = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        if lines
            .read_until(b'\n', &mut line)
            .context("Bochs's output")?
            == 0
        {
            return Ok(measured.into_iter().map(|(_, rounds)| rounds).collect());
        }
        let Some((address, mnemonic)) = step(&String::from_utf8_lossy(&line)) else {
            continue;
        };
        if mnemonic == "rdtsc" && sites.contains(&address) {
            if let Some((first, round)) = open.take() {
                match measured.iter_mut().find(|(site, _)| *site == first) {
                    Some((_, rounds)) => rounds.push(round),
                    None => measured.push((first, vec![round])),
                }
                continue;
            }
            open = Some((address, Accesses::default()));
        }
        if let Some((_, round)) = &mut open {
            round.instructions += 1;
            round.reads += u64::from(mnemonic == "vmread");
            round.writes += u64::from(mnemonic == "vmwrite");
        }
    }
}

/// Of the rounds, the one that took as many instructions as were measured, beyond the empty pair.
pub fn of_length(empty: &[Accesses], rounds: &[Accesses], instructions: u64) -> Result<Accesses> {
    let empty = empty.iter().map(|round| round.instructions).min();
    let empty = empty.context("the empty pair was not printed")?;
    let found = rounds
        .iter()
        .find(|round| round.instructions == instructions + empty);
    found.copied().with_context(|| {
        let lengths: Vec<u64> = rounds.iter().map(|round| round.instructions).collect();
        format!("{instructions} instructions were measured, with the pair's {empty}: {lengths:?}")
    })
}

/// Linear address and mnemonic of a line like
/// `(0).[413032329] [0x000002c00a83] 0008:0000000000200a83 (unk. ctxt): rdtsc    ; 0f31`: the CPU, its
/// clock, the physical address, the linear one. Where the debugger stops, it prints the same without
/// the clock, and that instruction once more when it goes on.
fn step(line: &str) -> Option<(u64, String)> {
    let (place, text) = line.strip_prefix("(0).[")?.split_once("): ")?;
    let (_, place) = place.split_once("] [")?;
    let (_, address) = place.split_once("] ")?.1.split_once(':')?;
    let address = u64::from_str_radix(address.split(' ').next()?, 16).ok()?;
    Some((address, text.split_whitespace().next()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(steps: &[(u64, &str)]) -> String {
        let lines = steps.iter().map(|(address, instruction)| {
            format!(
                "(0).[413] [0x000001601272] 0008:{address:016x} (unk. ctxt): {instruction} ; 0f31\n"
            )
        });
        lines.collect()
    }

    #[test]
    fn what_stands_between_two_readings_is_a_round() {
        let steps = [
            (0x10, "rdtsc"),
            (0x20, "rdtsc"),
            (0x99, "vmread rax, rcx"),
            (0x30, "rdtsc"),
            (0x99, "vmread rax, rcx"),
            (0x98, "vmwrite rcx, rax"),
            (0x77, "rdtsc"),
            (0x40, "rdtsc"),
        ];
        let stop = "(0) [0x000001600010] 0008:0000000000000010 (unk. ctxt): rdtsc ; 0f31";
        let printed = format!("{stop}\nTracing enabled\n{}(0).[4] ???\n", text(&steps));
        let found = rounds(printed.as_bytes(), &[0x10, 0x20, 0x30, 0x40]).unwrap();
        let round = |instructions, reads, writes| Accesses {
            instructions,
            reads,
            writes,
        };
        assert_eq!(found, [[round(1, 0, 0)], [round(4, 1, 1)]]);
        assert_eq!(of_length(&found[0], &found[1], 3).unwrap(), round(4, 1, 1));
        assert!(of_length(&found[0], &found[1], 4).is_err());
        assert!(of_length(&[], &found[1], 4).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_output_is_read(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(rounds(&bytes[..], &[0x10]).is_ok());
        }
    }
}
