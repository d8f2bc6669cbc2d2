//! Version 2 of the grant table, by a guest that changes to it, has its disk by it, copies parts of pages, and
//! goes back (`qemu-tests/hostile-guest/src/disk/version2.rs`, `systems/grant-versions.toml`).

use anyhow::{Result, ensure};
use image_builder::qemu::Machine;

use super::hostile::{after, done, scratch};
use crate::machines::Machines;
use crate::report::{Claim, Report};
use crate::session::Session;

const CLAIMS: &[Claim<Session>] = &[
    ("a_guest_that_may_have_version_1_only_stays_with_it", |s| {
        s.saw("[vmm-first-only] guest: hostile: disk done", 300)?;
        let text = s.text();
        let own = text
            .lines()
            .filter(|line| line.contains("[vmm-first-only]"));
        let own: Vec<&str> = own.collect();
        // -ENOSYS.
        let refused = own
            .iter()
            .any(|line| line.ends_with("to version 2: error 38"));
        ensure!(refused, "{own:#?}");
        Ok(())
    }),
    ("a_disk_works_by_grants_of_version_2", |s| {
        done(s, "version-2")?;
        let own: String = own(s);
        says(&own, "to version 2", "done")?;
        says(&own, "rounds right", "64")
    }),
    ("that_a_grant_is_in_use_is_told_by_its_status_alone", |s| {
        says(&own(s), "the ring's status", "0x18, its flags: 0x1")
    }),
    ("nobody_leaves_a_version_while_grants_are_in_use", |s| {
        // -EBUSY.
        says(&own(s), "back with a ring", "error 16")
    }),
    ("a_backend_maps_whole_pages_only", |s| {
        let own = own(s);
        says(&own, "a whole page", "0")?;
        for what in [
            "a part",
            "a part that is a page",
            "another's grant",
            "read only, to be written",
            "beyond the table",
        ] {
            says(&own, what, "-1")?;
        }
        says(&own, "a read afterwards", "0")
    }),
    ("a_copy_keeps_to_the_part_that_is_granted", |s| {
        let own = own(s);
        // `GNTST_okay`, `GNTST_general_error`, `GNTST_bad_copy_arg` (public/grant_table.h).
        for (what, said) in [
            ("all of a part", "0, all true, nothing false"),
            ("the end of a part", "0, all true, nothing false"),
            ("before a part", "-1, all false, nothing true"),
            ("behind a part", "-1, all false, nothing true"),
            ("beyond the page", "-10, all false, nothing true"),
            ("another's grant", "-1"),
        ] {
            says(&own, &format!("copy of {what}"), said)?;
        }
        says(&own, "in use after copies", "0x0")
    }),
    ("a_guest_goes_back_to_version_1_and_its_disk_with_it", |s| {
        let own = own(s);
        says(&own, "back without a ring", "done")?;
        says(&own, "a read with version 1", "0")?;
        says(&own, "version 1 tells of use", "true")
    }),
];

/// What the guest with version 2 said.
fn own(session: &Session) -> String {
    let text = session.text();
    let own = text.lines().filter(|line| line.contains("[vmm-version-2]"));
    own.map(|line| format!("{}\n", line.trim_end())).collect()
}

fn says(text: &str, what: &str, expected: &str) -> Result<()> {
    let said = after(text, &format!("version-2: {what}: "))?;
    ensure!(said == expected, "{what}: {said:?}");
    Ok(())
}

/// Runs them.
pub fn run(machines: &mut Machines, report: &mut Report) {
    if !machines.wants("grant-versions") {
        return;
    }
    let session = scratch(machines, "scratch.img", 0).and_then(|()| {
        let image = machines.image("grant-versions")?;
        machines.boot("grant-versions", &image, &Machine::of(&image))
    });
    report.prefixed("grant-versions", session, CLAIMS);
}
