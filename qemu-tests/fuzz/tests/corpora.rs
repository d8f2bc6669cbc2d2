//! The corpora of all targets are run again, on a stable compiler and without a fuzzer: what the
//! fuzzer has once found, or reached, stays tried.

use fuzz_targets::TARGETS;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora")
}

#[test]
fn every_input_of_every_corpus_is_survived() {
    for target in TARGETS {
        (target.run)(&[]);
        for seed in (target.seeds)() {
            (target.run)(&seed);
            // Cut anywhere.
            for end in (0..seed.len()).step_by(seed.len() / 8 + 1) {
                (target.run)(&seed[..end]);
            }
        }
        let mut count = 0;
        for entry in fs::read_dir(folder().join(target.name)).expect(target.name) {
            let path = entry.expect("an entry").path();
            let data = fs::read(&path).expect("an input");
            println!("{}", path.display());
            (target.run)(&data);
            count += 1;
        }
        assert!(count > 0, "{} has no corpus", target.name);
    }
}

#[test]
fn every_corpus_has_a_target() {
    let named: BTreeSet<String> = TARGETS.iter().map(|target| target.name.into()).collect();
    let there = fs::read_dir(folder()).expect("corpora");
    let there = there.map(|entry| {
        entry
            .expect("an entry")
            .file_name()
            .into_string()
            .expect("a name")
    });
    assert_eq!(there.collect::<BTreeSet<_>>(), named);
}
