//! Guests whose disks' front ends misbehave (`qemu-tests/hostile-guest/src/disk`), each in its own way, beside
//! one with a disk that goes on (`systems/hostile-disks.toml`). A bad request is answered with an error; what
//! is no ring closes that one connection, with a report; nobody else notices.

use std::fs::{self, File};

use anyhow::{Context, Result, bail, ensure};
use image_builder::qemu::Machine;

use crate::machines::Machines;
use crate::report::{Claim, Report};
use crate::session::Session;

/// Seconds until a role has done what it does.
const ROLE: u64 = 900;
/// Bytes of the disks: the 1024 sectors that `hostile-guest` takes for granted, and more.
const SCRATCH: u64 = 1 << 20;
/// Roles that end.
const ROLES: &[&str] = &["jump", "grants", "twice", "requests", "ring", "store"];

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
        goes_on(&s.text(), "requests")
    }),
    (
        "a_ring_taken_back_and_states_in_no_order_harm_nobody",
        |s| {
            done(s, "ring")?;
            goes_on(&s.text(), "ring")
        },
    ),
    ("a_store_flooded_by_a_guest_stops_it_at_its_quota", |s| {
        done(s, "store")?;
        let text = s.text();
        for what in ["watches", "transactions", "nodes"] {
            ensure!(
                !text.contains(&format!("store: {what} without an end")),
                "{what} have no end"
            );
        }
        goes_on(&text, "store")
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
    let session = scratch(machines).and_then(|()| {
        let image = machines.image("hostile-disks")?;
        machines.boot("hostile-disks", &image, &Machine::of(&image))
    });
    report.prefixed("hostile-disks", session, CLAIMS);
}

/// Makes the image that all the disks are of: zeros. The system's description names it.
fn scratch(machines: &Machines) -> Result<()> {
    let folder = machines.workspace.root.join("build/suite");
    fs::create_dir_all(&folder)?;
    let file = File::create(folder.join("scratch.img"))?;
    Ok(file.set_len(SCRATCH)?)
}

/// Waits until a guest has done its role.
fn done(session: &mut Session, role: &str) -> Result<()> {
    session.saw(&format!("[vmm-{role}] guest: hostile: disk done"), ROLE)
}

/// What a guest said after `what` on one line.
fn after<'a>(text: &'a str, what: &str) -> Result<&'a str> {
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
