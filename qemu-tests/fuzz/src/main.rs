//! The fuzzer: libFuzzer around the target that `FUZZ_TARGET` names. Built and started by
//! `cargo suite spec` (`qemu-tests/src/fuzz.rs`), which says how. What a target begins from is written
//! into the folder `FUZZ_SEEDS` first.
#![no_main]

use fuzz_targets::{Target, target};
use std::sync::LazyLock;
use std::{env, fs, io, process};

static TARGET: LazyLock<&'static Target> = LazyLock::new(|| {
    let name = env::var("FUZZ_TARGET").unwrap_or_default();
    let Some(found) = target(&name) else {
        eprintln!("FUZZ_TARGET names no target: {name:?}");
        process::exit(2)
    };
    if let Err(error) = write_seeds(found) {
        eprintln!("FUZZ_SEEDS: {error}");
        process::exit(2)
    }
    found
});

fn write_seeds(target: &Target) -> io::Result<()> {
    let Some(folder) = env::var_os("FUZZ_SEEDS") else {
        return Ok(());
    };
    fs::create_dir_all(&folder)?;
    for (number, seed) in (target.seeds)().iter().enumerate() {
        fs::write(
            std::path::Path::new(&folder).join(format!("seed-{number:02}")),
            seed,
        )?;
    }
    Ok(())
}

libfuzzer_sys::fuzz_target!(
    init: LazyLock::force(&TARGET),
    |data: &[u8]| (TARGET.run)(data)
);
