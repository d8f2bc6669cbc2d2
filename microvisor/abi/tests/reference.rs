//! `docs/calls.md` is generated from the call table: this keeps the two the same.
//! `UPDATE_DOCS=1 cargo test -p microvisor-abi` writes it.

use microvisor_abi::call::CALLS;
use microvisor_abi::status::STATUSES;
use std::fmt::Write;

const REGISTERS: [&str; 6] = ["rdi", "rsi", "rdx", "r10", "r8", "r9"];

fn registers(names: &[&str]) -> String {
    if names.is_empty() {
        return "none".into();
    }
    let pairs = names
        .iter()
        .zip(REGISTERS)
        .map(|(name, register)| format!("`{name}` ({register})"));
    pairs.collect::<Vec<_>>().join(", ")
}

fn reference() -> String {
    let mut text = String::from(
        "# System calls\n\nGenerated from `microvisor/abi/src/call.rs`; see there for how registers are used.\n\
         A call is `syscall` with its number in `rax`; the status comes back in `rax`.\n",
    );
    for row in CALLS {
        let _ = writeln!(text, "\n## {} = {}\n", row.name, row.call as u64);
        let _ = writeln!(text, "- arguments: {}", registers(row.arguments));
        let _ = writeln!(text, "- results: {}\n", registers(row.results));
        for line in row.doc {
            let _ = writeln!(text, "{}", line.trim());
        }
    }
    text.push_str("\n## Status codes\n\n| number | name |\n|---|---|\n");
    for status in STATUSES {
        let _ = writeln!(text, "| {} | `{status:?}` |", *status as u64);
    }
    text
}

#[test]
fn the_call_reference_is_what_the_table_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/calls.md");
    let expected = reference();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, &expected).expect("docs/calls.md can be written");
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == expected,
        "docs/calls.md is old: UPDATE_DOCS=1 cargo test -p microvisor-abi"
    );
}

#[test]
fn the_interface_has_at_most_24_calls() {
    assert!(CALLS.len() <= 24);
}

#[test]
fn numbers_and_calls_correspond() {
    use microvisor_abi::Call;
    for row in CALLS {
        assert_eq!(Call::from_raw(row.call as u64), Some(row.call));
    }
    assert_eq!(Call::from_raw(0), None);
    assert_eq!(Call::from_raw(u64::MAX), None);
}
