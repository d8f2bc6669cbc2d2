//! Guests whose disks' front ends misbehave (`qemu-tests/hostile-guest/src/disk`), each in its own way, beside
//! one with a disk that goes on (`systems/hostile-disks.toml`), and guests that break the rings of store and
//! console. A bad request is answered with an error; what is no ring closes that one connection, with a
//! report; nobody else notices.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use image_builder::qemu::Machine;

use crate::machines::Machines;
use crate::report::{Claim, Report};
use crate::session::Session;

/// Seconds until a role has done what it does.
const ROLE: u64 = 900;
/// Bytes of the disks: the 1024 sectors that `hostile-guest` takes for granted, and more.
const SCRATCH: usize = 1 << 20;
/// Roles that end.
const ROLES: &[&str] = &[
    "jump",
    "grants",
    "twice",
    "requests",
    "ring",
    "store",
    "part",
    "store-jump",
    "store-answers",
    "store-long",
    "console",
];
/// What role `ring` spoils before it says that its ring is ready, and what the backend says of it.
const SPOILT: &[(&str, &str)] = &[
    ("ring-ref 4294967295", "a ring's page is not granted"),
    (
        "ring-ref 99999999999999999999",
        "node ring-ref is no number",
    ),
    ("ring-ref none", "node ring-ref is no number"),
    ("event-channel -1", "node event-channel is no number"),
    ("event-channel 1000", "its port 1000 is not ours"),
    ("protocol none", "its protocol is unknown"),
    (
        "multi-queue-num-queues 4000000000",
        "more rings, or larger ones, than were offered",
    ),
    (
        "multi-queue-num-queues 0",
        "more rings, or larger ones, than were offered",
    ),
    (
        "ring-page-order 31",
        "more rings, or larger ones, than were offered",
    ),
    ("the ring is not granted", "a ring's page is not granted"),
    ("the ring may only be read", "a ring's page is not granted"),
    ("the ring is no memory", "a ring's page is not granted"),
    ("the ring is broken", "its ring's counters make no sense"),
];

const CLAIMS: &[Claim<Session>] = &[
    ("a_neighbour_with_a_disk_starts", |s| {
        s.saw("disk good: 16 rounds right", ROLE)
    }),
    ("a_ring_that_jumps_is_closed_with_a_report", |s| {
        done(s, "jump")?;
        let text = s.text();
        ensure!(after(&text, "jump: a read before: ")? == "0", "{text}");
        for by in [33, 1u32 << 31] {
            let closed = after(&text, &format!("jump: by {by}: "))?;
            ensure!(closed == "closed true", "by {by}: {closed}");
        }
        let reports = text
            .matches("[blkback] ERROR: domain 2: disk 51712: ")
            .count();
        ensure!(
            reports == 2,
            "blkback reports {reports} broken rings, not 2"
        );
        Ok(())
    }),
    ("a_guest_whose_ring_was_closed_opens_it_anew", |s| {
        let text = s.text();
        ensure!(after(&text, "jump: a read afterwards: ")? == "0");
        Ok(())
    }),
    ("bad_grants_are_answered_with_an_error", |s| {
        done(s, "grants")?;
        refused(
            &s.text(),
            "grants",
            &[
                "of nothing",
                "beyond the table",
                "the largest number",
                "of another domain",
                "read only, to be written",
                "of no memory",
                "of the last frame",
                "transitive",
                "to be transferred",
            ],
        )?;
        goes_on(&s.text(), "grants")
    }),
    ("what_may_only_be_read_is_written_to_the_disk", |s| {
        let status = after(&s.text(), "grants: read only, to be read: ")?.to_owned();
        ensure!(status == "0", "{status}");
        Ok(())
    }),
    (
        "one_page_many_times_and_grants_that_change_harm_nobody",
        |s| {
            done(s, "twice")?;
            let text = s.text();
            let (answers, _) = after(&text, "twice: grants changed in use: ")?
                .split_once(' ')
                .context("no count")?;
            ensure!(answers == "256", "{answers} answers of 256");
            ensure!(after(&text, "twice: one page eleven times: ")? == "0");
            let full = after(&text, "twice: a ring full of one page: ")?;
            ensure!(full == "32 answers", "{full} of 32");
            goes_on(&text, "twice")
        },
    ),
    ("what_no_request_is_is_answered_with_an_error", |s| {
        done(s, "requests")?;
        refused(
            &s.text(),
            "requests",
            &[
                "beyond the end",
                "at the last number",
                "write beyond the end",
                "too many segments",
                "no operation",
                "a piece that runs backwards",
                "a piece larger than its page",
                "discard of nothing",
                "discard beyond the end",
                "discard across the end",
                "discard across all numbers",
                "discard of all numbers",
                "discard of all numbers twice",
                "secure discard",
                "descriptors without a page",
                "too many descriptors",
                "descriptors of descriptors",
            ],
        )?;
        // Neither is wrong, and both must be answered.
        for what in [
            "no segments",
            "descriptors that describe themselves",
            "no descriptors",
        ] {
            let status = after(&s.text(), &format!("requests: {what}: "))?.to_owned();
            ensure!(status != "none", "{what}: no answer");
        }
        ensure!(after(&s.text(), "requests: discard: ")? == "0");
        goes_on(&s.text(), "requests")
    }),
    (
        "a_ring_taken_back_and_states_in_no_order_harm_nobody",
        |s| {
            done(s, "ring")?;
            let text = s.text();
            let taken = after(&text, "ring: a read with the ring's grant taken back: ")?;
            ensure!(taken == "0", "what was mapped is gone: {taken}");
            goes_on(&text, "ring")
        },
    ),
    (
        "a_ring_that_cannot_be_opened_is_closed_with_a_report",
        |s| spoilt(&s.text()),
    ),
    ("a_ring_left_amid_requests_keeps_no_page_in_use", |s| {
        done(s, "part")?;
        super::volumes::parts(&s.text())
    }),
    ("a_store_flooded_by_a_guest_stops_it_at_its_quota", |s| {
        done(s, "store")?;
        let text = s.text();
        for what in ["watches", "transactions", "nodes"] {
            let stopped = format!(" {what}, then E");
            let line = text
                .lines()
                .find(|line| line.contains("disk store: ") && line.contains(&stopped));
            ensure!(line.is_some(), "{what} have no end");
        }
        goes_on(&text, "store")
    }),
    ("a_broken_ring_of_the_store_is_closed_with_a_report", |s| {
        // XENSTORE_ERROR_RINGIDX and _COMM (public/io/xs_wire.h).
        for (role, error) in [("store-jump", 2), ("store-answers", 2), ("store-long", 1)] {
            done(s, role)?;
            let text = s.text();
            for (what, expected) in [
                ("it works before: ", "true".to_owned()),
                ("closed with error ", error.to_string()),
                ("nobody takes requests any more: ", "true".to_owned()),
            ] {
                let said = after(&text, &format!("{role}: {what}"))?;
                ensure!(said == expected, "{role}: {what}{said}, not {expected}");
            }
            let report =
                format!("[vmm-{role}] WARN: guest broke its xenstore ring ({error}): closed");
            ensure!(text.contains(&report), "no report of {role}");
        }
        Ok(())
    }),
    ("a_console_that_jumps_loses_its_own_text_only", |s| {
        done(s, "console")?;
        let met = after(&s.text(), "console: the counters met again after ")?.to_owned();
        ensure!(met == "3 jumps", "{met}");
        s.saw("the console works after jumps", 120)
    }),
    ("the_neighbour_goes_on", |s| {
        for role in ROLES {
            done(s, role)?;
        }
        let end = s.end();
        s.saw_after(end, " rounds right", ROLE)?;
        ensure!(!s.text().contains("disk good: round"), "a round failed");
        Ok(())
    }),
    ("backend_and_store_go_on", |s| {
        let bad = ["panic", "died", "fault: ", ": restarted ("];
        let text = s.text();
        let line = text
            .lines()
            .find(|line| bad.iter().any(|bad| line.contains(bad)));
        match line {
            Some(line) => bail!("{line}"),
            None => Ok(()),
        }
    }),
];

/// Runs them.
pub fn run(machines: &mut Machines, report: &mut Report) {
    if !machines.wants("hostile-disks") {
        return;
    }
    let session = scratch(machines, "scratch.img", 0).and_then(|()| {
        let image = machines.image("hostile-disks")?;
        machines.boot("hostile-disks", &image, &Machine::of(&image))
    });
    report.prefixed("hostile-disks", session, CLAIMS);
}

/// Makes an image that disks are of, all bytes alike. A system's description names it.
pub fn scratch(machines: &Machines, name: &str, byte: u8) -> Result<()> {
    let folder = machines.workspace.root.join("build/suite");
    fs::create_dir_all(&folder)?;
    Ok(fs::write(folder.join(name), vec![byte; SCRATCH])?)
}

/// Each ring that role `ring` spoilt was closed, and the backend said why, once for each.
fn spoilt(text: &str) -> Result<()> {
    for (what, _) in SPOILT {
        let said = after(text, &format!("ring: {what}: "))?;
        ensure!(said == "ready true, closed true", "{what}: {said}");
    }
    let why = |line: &&str| -> Option<String> {
        let (_, why) = line.split_once("[blkback] ERROR: domain 6: disk 51712: ")?;
        Some(why.trim().to_owned())
    };
    let reports: Vec<String> = text.lines().filter_map(|line| why(&line)).collect();
    // What came before was said of states in no order, if anything was.
    let own = reports.len().checked_sub(SPOILT.len());
    let own = own.and_then(|first| reports.get(first..));
    let own = own.with_context(|| format!("only {} reports: {reports:?}", reports.len()))?;
    for ((what, expected), said) in SPOILT.iter().zip(own) {
        ensure!(said.starts_with(expected), "{what}: {said:?}");
    }
    Ok(())
}

/// Waits until a guest has done its role.
pub fn done(session: &mut Session, role: &str) -> Result<()> {
    session.saw(&format!("[vmm-{role}] guest: hostile: disk done"), ROLE)
}

/// What a guest said after `what` on one line.
pub fn after<'a>(text: &'a str, what: &str) -> Result<&'a str> {
    let start = format!("guest: disk {what}");
    let rest = text.split_once(&start);
    let (_, rest) = rest.with_context(|| format!("no guest said {start:?}"))?;
    Ok(rest.lines().next().unwrap_or_default().trim())
}

/// Each try was answered, with an error (`BLKIF_RSP_ERROR`, `_EOPNOTSUPP`).
fn refused(text: &str, role: &str, tries: &[&str]) -> Result<()> {
    for what in tries {
        let status = after(text, &format!("{role}: {what}: "))?;
        ensure!(["-1", "-2"].contains(&status), "{what}: {status}");
    }
    Ok(())
}

/// The connection works after all of that.
fn goes_on(text: &str, role: &str) -> Result<()> {
    let status = after(text, &format!("{role}: a read afterwards: "))?;
    ensure!(status == "0", "a read afterwards: {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_that_stays_open_and_a_report_that_is_missing_are_noticed() {
        let said = |(what, _): &(&str, &str)| {
            format!("[vmm-ring] guest: disk ring: {what}: ready true, closed true\r\n")
        };
        let report = |(_, why): &(&str, &str)| {
            format!("[blkback] ERROR: domain 6: disk 51712: {why}: status -3\r\n")
        };
        let all: String = SPOILT.iter().map(|one| said(one) + &report(one)).collect();
        spoilt(&all).unwrap();
        assert!(spoilt(&all.replacen("closed true", "closed false", 1)).is_err());
        assert!(spoilt(&all.replacen(&report(&SPOILT[4]), "", 1)).is_err());
        let other = all.replacen(&report(&SPOILT[4]), &report(&SPOILT[0]), 1);
        assert!(spoilt(&other).is_err());
    }

    #[test]
    fn an_answer_that_is_no_error_is_noticed() {
        let text = "[vmm-grants] guest: disk grants: of nothing: -1\r\n\
                    [vmm-grants] guest: disk grants: transitive: 0\r\n\
                    [vmm-grants] guest: disk grants: a read afterwards: none\r\n";
        assert!(refused(text, "grants", &["of nothing"]).is_ok());
        assert!(refused(text, "grants", &["of nothing", "transitive"]).is_err());
        assert!(refused(text, "grants", &["of another domain"]).is_err());
        assert!(goes_on(text, "grants").is_err());
        assert!(goes_on(text, "ring").is_err());
    }
}
