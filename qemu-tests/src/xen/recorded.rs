//! What is kept of Xen's answers to seeds: one file a seed, about 8 KiB.
//!
//! For: `record`, which writes them, and the group `hostile`, which compares with them, call by
//! call. A file is a line of text and the guest's log, deflated (RFC 1951). The line says for which calls
//! the answers are and what gave them:
//!
//! ```text
//! calls 2411a6c94a3aa38b, answers of xen-hypervisor-4.17-amd64_4.17.7
//! ```
//!
//! A file whose calls are not today's is as good as none.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use hostile_calls::fingerprint::fingerprint;
use hostile_calls::log::CALL_BYTES;
use hostile_calls::{BLOCK, CALLS, Class, Nowhere, Seed};
use miniz_oxide::deflate::compress_to_vec;
use miniz_oxide::inflate::decompress_to_vec_with_limit;

use super::ORACLE;
use super::answers::{Logs, answer, records};
use super::differences::Pairs;

/// The number of the domain that makes the calls, on both systems.
pub const OWN: u16 = 1;
/// Bytes of a seed's log.
const BYTES: usize = CALL_BYTES * CALLS as usize;
/// Most bytes of the line.
const LINE: usize = 200;
/// Ends the key of a call before which the two domains had come apart.
const AFTER: &str = ", after another";
/// As hard as miniz_oxide tries.
const LEVEL: u8 = 10;

fn path(root: &Path, seed: u32) -> PathBuf {
    root.join(format!("{ORACLE}/calls/{seed:02}"))
}

/// The log of a seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded(Vec<u8>);

impl Recorded {
    /// Out of a machine's logs.
    pub fn of_logs(logs: &Logs, seed: u32) -> Result<Recorded> {
        let log = records(logs, seed, CALL_BYTES, CALLS as usize)?;
        Ok(Recorded(log.flatten().copied().collect()))
    }

    /// A log that was made on the host.
    #[cfg(test)]
    pub fn of_bytes(log: Vec<u8>) -> Recorded {
        Recorded(log)
    }

    /// Reads the file of a seed.
    pub fn load(root: &Path, seed: u32) -> Result<Recorded> {
        let path = path(root, seed);
        let file = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        unpack(&file, fingerprint(seed.into(), OWN))
            .with_context(|| format!("{}; record it anew", path.display()))
    }

    /// Writes the file of a seed.
    pub fn store(&self, root: &Path, seed: u32, version: &str) -> Result<()> {
        let path = path(root, seed);
        fs::create_dir_all(path.parent().context("no folder")?)?;
        let file = pack(&self.0, fingerprint(seed.into(), OWN), version);
        fs::write(&path, file).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Adds the calls of a seed to `pairs`, each answer beside that of `here`.
    pub fn compare(&self, here: &Recorded, seed: u32, pairs: &mut Pairs) {
        let mut calls = Seed::new(seed.into(), OWN);
        let both = self
            .0
            .chunks_exact(CALL_BYTES)
            .zip(here.0.chunks_exact(CALL_BYTES));
        // Whether one of the two has done something that the other has not, since both domains
        // were in the known state.
        let mut apart = false;
        for (index, (xen, here)) in both.enumerate() {
            if (index as u32).is_multiple_of(BLOCK) {
                apart = false;
            }
            let call = calls.next(&mut Nowhere);
            let mut key = question(&call.class, &call.arguments);
            if apart {
                key += AFTER;
            }
            apart |= xen != here && (succeeds(xen) || succeeds(here));
            let (xen, here) = (answer(&call.class, xen), answer(&call.class, here));
            pairs.add(key, xen, here, || format!("seed {seed} call {index}"));
        }
    }
}

/// Seeds of `wanted` whose answers are not recorded.
pub fn missing(root: &Path, wanted: std::ops::Range<u32>) -> Vec<u32> {
    wanted
        .filter(|seed| Recorded::load(root, *seed).is_err())
        .collect()
}

fn succeeds(record: &[u8]) -> bool {
    record.get(3).is_some_and(|high| high >> 7 == 0)
}

/// What was asked. A memory operation that begins later in its list has a `+`.
fn question(class: &Class, arguments: &[u64; 5]) -> String {
    let text = class.to_string();
    let later = u64::from(class.number) == hostile_calls::operations::number::MEMORY
        && class.operation != Class::ODD_OPERATION
        && arguments[0] >> 6 != 0;
    match text.split_once(' ') {
        Some((name, rest)) if later => format!("call {name}+ {rest}"),
        _ => format!("call {text}"),
    }
}

fn first_line(calls: u64, version: &str) -> String {
    format!("calls {calls:016x}, answers of {version}\n")
}

fn pack(log: &[u8], calls: u64, version: &str) -> Vec<u8> {
    let mut out = first_line(calls, version).into_bytes();
    out.extend(compress_to_vec(log, LEVEL));
    out
}

fn unpack(file: &[u8], calls: u64) -> Result<Recorded> {
    let end = file
        .iter()
        .take(LINE)
        .position(|byte| *byte == b'\n')
        .context("there is no first line")?;
    let (line, rest) = file.split_at(end + 1);
    let expected = first_line(calls, "");
    let expected = expected.trim_end().as_bytes();
    if !line.starts_with(expected) {
        bail!("these are answers to other calls");
    }
    let log = decompress_to_vec_with_limit(rest, BYTES)
        .map_err(|error| anyhow::anyhow!("damaged: {error}"))?;
    ensure!(log.len() == BYTES, "{} bytes, not {BYTES}", log.len());
    Ok(Recorded(log))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile::guests::ALL_SEEDS;
    use proptest::prelude::*;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    #[test]
    fn all_seeds_are_recorded_for_the_calls_they_make_now() {
        assert_eq!(missing(&root(), ALL_SEEDS), Vec::<u32>::new());
    }

    #[test]
    fn answers_to_other_calls_are_refused() {
        let file = pack(&[0; BYTES], 7, "some Xen");
        assert_eq!(unpack(&file, 7).unwrap(), Recorded(vec![0; BYTES]));
        assert!(unpack(&file, 8).is_err());
        assert!(unpack(&pack(&[0; BYTES - 1], 7, "x"), 7).is_err());
        assert!(unpack(&pack(&[0; BYTES + 1], 7, "x"), 7).is_err());
    }

    proptest! {
        #[test]
        fn any_file_is_read_without_panic(mut file in prop::collection::vec(any::<u8>(), 0..300), line in any::<bool>()) {
            if line {
                file.splice(0..0, first_line(7, "some Xen").into_bytes());
            }
            let _ = unpack(&file, 7);
        }
    }
}
