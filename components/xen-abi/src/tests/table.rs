//! The ABI table agrees with the dispatch, with the tests, and with the page in `docs/`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::string::String;
use std::{env, fs, println};

use super::harness::*;
use crate::Next;
use crate::table::{Answer, Row, TABLE};

const SOURCES: &[&str] = &[
    include_str!("event.rs"),
    include_str!("fifo.rs"),
    include_str!("foreign.rs"),
    include_str!("grant.rs"),
    include_str!("grant_v2.rs"),
    include_str!("hvm.rs"),
    include_str!("memory_op.rs"),
    include_str!("multicall.rs"),
    include_str!("refusals.rs"),
    include_str!("sched.rs"),
    include_str!("time.rs"),
    include_str!("vcpu.rs"),
    include_str!("version.rs"),
];

const NOSYS: i64 = -38;

/// Calls an operation with a structure that names the domain itself, as far as one pattern fits.
fn probe(row: &Row) -> i64 {
    let mut guest = Guest::new(2);
    guest.put(ARG, &[0; 256]);
    guest.put_u32s(ARG, &[u32::from(SELF)]);
    guest.put_u32s(ARG + 24, &[u32::from(SELF)]);
    let arguments = match (row.operation, row.call) {
        // vCPU 1, its argument third.
        (Some((_, operation)), "vcpu_op") => [operation, 1, ARG, 0],
        (Some((_, operation)), "grant_table_op") => [operation, ARG, 1, 0],
        (Some((_, operation)), "console_io") => [operation, 1, ARG, 0],
        (Some((_, operation)), _) => [operation, ARG, 0, 0],
        (None, "vm_assist") => [0, 5, 0, 0],
        (None, "multicall") => [ARG, 0, 0, 0],
        (None, "mmuext_op") => [ARG, 1, 0, u64::from(SELF)],
        (None, "dm_op") => [u64::from(SELF), 0, 0, 0],
        (None, _) => [ARG, 0, 0, 0],
    };
    let outcome = guest.outcome(row.number, &arguments);
    assert_ne!(outcome.next, Next::Restart);
    outcome.result as i64
}

#[test]
fn table_and_dispatch_agree() {
    for row in TABLE {
        let reply = probe(row);
        match row.answer {
            Answer::Done(_) | Answer::Declined(..) => {
                assert_ne!(reply, NOSYS, "{row:?} is not implemented");
            }
            Answer::Refused(errors, ..) => {
                let expected = errors.iter().any(|errno| errno.as_return() == reply);
                assert!(expected, "{row:?} answers {reply}");
            }
        }
    }
}

#[test]
fn what_the_table_does_not_list_does_not_exist() {
    let listed: BTreeSet<(u64, Option<u64>)> = TABLE
        .iter()
        .map(|row| (row.number, row.operation.map(|(_, number)| number)))
        .collect();
    assert_eq!(listed.len(), TABLE.len(), "a row is there twice");
    for number in 0..64 {
        if listed.contains(&(number, None)) {
            continue;
        }
        for operation in 0..64 {
            // console_io checks privilege before the command.
            if listed.contains(&(number, Some(operation))) || number == 18 {
                continue;
            }
            let mut guest = Guest::new(1);
            let reply = guest.call(number, &[operation, 0, 0]);
            assert_eq!(reply, NOSYS, "{number}, {operation} is not in the table");
        }
    }
}

#[test]
fn tests_that_the_table_names_exist() {
    for row in TABLE {
        let (Answer::Done(test) | Answer::Refused(_, _, test) | Answer::Declined(_, test)) =
            row.answer;
        let definition = std::format!("\nfn {test}() {{");
        let exists = SOURCES.iter().any(|source| source.contains(&definition));
        assert!(exists, "{row:?} names a test that does not exist");
    }
}

fn page() -> String {
    let mut page = String::from(
        "# The Xen ABI of a guest\n\n\
         Every hypercall and sub-operation of Xen 4.17, who uses it, and what becomes of it.\n\
         Tests are those of `components/xen-abi`. Generated from `components/xen-abi/src/table.rs`;\n\
         after a change there, `XEN_ABI_BLESS=1 cargo test -p xen-abi page_in_docs` writes it anew.\n\n\
         | hypercall | operation | used by | here | test |\n|---|---|---|---|---|\n",
    );
    for row in TABLE {
        let operation = match row.operation {
            Some((name @ "others", _)) => String::from(name),
            Some((name, number)) => std::format!("{number} {name}"),
            None => String::new(),
        };
        let (here, test) = match row.answer {
            Answer::Done(test) => (String::from("done"), test),
            Answer::Declined(why, test) => (std::format!("declined: {why}"), test),
            Answer::Refused(errors, why, test) => {
                let mut here = String::from("refused: ");
                for (index, errno) in errors.iter().enumerate() {
                    let separator = if index == 0 { "" } else { ", " };
                    let name = std::format!("{errno:?}").to_uppercase();
                    let _ = write!(here, "{separator}-E{name}");
                }
                let _ = write!(here, " ({why})");
                (here, test)
            }
        };
        let Row {
            call,
            number,
            users,
            ..
        } = row;
        let _ = writeln!(
            page,
            "| {number} {call} | {operation} | {users} | {here} | `{test}` |"
        );
    }
    page
}

#[test]
fn page_in_docs_is_the_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/xen-abi.md");
    let page = page();
    if env::var_os("XEN_ABI_BLESS").is_some() {
        fs::write(path, &page).expect("docs/ can be written");
        println!("wrote {path}");
    }
    let there = fs::read_to_string(path).unwrap_or_default();
    assert!(
        there == page,
        "docs/xen-abi.md is not the table: see its first lines"
    );
}
