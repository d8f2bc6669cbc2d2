//! Only in a build with `cfg(planted = "by-name")`: every fault and every switched-off check that the
//! object code names in a `cfg!` is there at once, and the environment's `PLANTED` chooses one by its
//! name, or none. So one build tries them all; `qemu-tests/src/planted.rs` makes it and runs it.

/// True if this fault was chosen.
pub fn chosen(name: &str) -> bool {
    static NAME: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    NAME.get_or_init(|| std::env::var("PLANTED").unwrap_or_default()) == name
}

/// True if the environment's `MUTANT` is this number (`qemu-tests/src/mutants`).
#[allow(dead_code, reason = "for builds with mutants in them")]
pub fn mutant(number: u32) -> bool {
    static NUMBER: std::sync::LazyLock<u32> = std::sync::LazyLock::new(|| {
        let said = std::env::var("MUTANT").ok();
        said.and_then(|number| number.parse().ok()).unwrap_or(0)
    });
    *NUMBER == number
}

/// In the place of the compiler's own `cfg!`.
macro_rules! cfg {
    (planted = $name:literal) => {
        crate::planted::chosen($name)
    };
    (not(planted = $name:literal)) => {
        !crate::planted::chosen($name)
    };
    (control = $name:literal) => {
        crate::planted::chosen($name)
    };
    (not(control = $name:literal)) => {
        !crate::planted::chosen($name)
    };
    ($($other:tt)*) => {
        core::cfg!($($other)*)
    };
}
