//! Role `version-2`: a disk whose grants are of version 2, and what that version has and no disk uses: parts
//! of pages, which are copied but not mapped, and grants of others' grants, which are neither.
//! `qemu-tests/src/debian/versions.rs` reads what is said.

use core::sync::atomic::Ordering::SeqCst;

use guest_kit::disk::front::{Front, PATIENCE, READ, whole};
use guest_kit::disk::store::Dead;
use guest_kit::grants::{Grants, IN_USE, PERMIT, READ_ONLY, SUB_PAGE, TRANSITIVE};
use guest_kit::pages::Page;
use guest_kit::say;
use guest_kit::xen::{Copy, Errno, Xen};

use super::{BACKEND, DATA, DATA_GRANT, RING_GRANT, open, read, round, tell};

/// The page of status words, and the one that is copied to.
const STATUS: usize = 2;
const TO: usize = 3;
/// A grant that is tried.
const TRIED: u32 = DATA_GRANT + 100;
/// Rounds of writing and reading.
const ROUNDS: u64 = 64;
/// The part of a page that is granted: its first byte, and how many.
const PART: (u16, u16) = (512, 256);
/// `DOMID_SELF`.
const SELF: u16 = 0x7ff0;

/// Goes over, tries, and goes back.
pub fn run(xen: Xen, front: &mut Front<'_>) -> Result<(), Dead> {
    let before = front.grants;
    match before.second(xen, Page::own(STATUS)) {
        Ok(second) => front.grants = second,
        Err(Errno(error)) => {
            say!("disk version-2: to version 2: error {error}");
            return Ok(());
        }
    }
    say!("disk version-2: to version 2: done");
    if !open(front, "version-2")? {
        return Ok(());
    }
    let right = (1..=ROUNDS).take_while(|number| round(front, "version-2", *number));
    say!("disk version-2: rounds right: {}", right.count());
    let (used, flags) = (front.grants.used(RING_GRANT), front.flags(RING_GRANT));
    let flags = flags.load(SeqCst);
    say!("disk version-2: the ring's status: {used:#x}, its flags: {flags:#x}");
    // While the ring is in use.
    leave(xen, front, "with a ring");
    mapped(front);
    let own: u16 = front
        .store
        .read("domid")?
        .text()
        .parse()
        .map_err(|_| Dead)?;
    copied(xen, front.grants, own);
    tell("version-2", "a read afterwards", read(front));
    front.close()?;
    let grants = (DATA_GRANT..DATA_GRANT + 8).chain([RING_GRANT]);
    for _ in 0..PATIENCE {
        if grants.clone().all(|grant| front.grants.used(grant) == 0) {
            break;
        }
        front.wait();
    }
    if leave(xen, front, "without a ring") && open(front, "version-2")? {
        tell("version-2", "a read with version 1", read(front));
        let used = front.grants.used(RING_GRANT) == IN_USE;
        say!("disk version-2: version 1 tells of use: {used}");
    }
    Ok(())
}

/// Tries to go back to version 1; true if that is done.
fn leave(xen: Xen, front: &mut Front<'_>, when: &str) -> bool {
    match front.grants.first(xen) {
        Ok(first) => {
            front.grants = first;
            say!("disk version-2: back {when}: done");
            true
        }
        Err(Errno(error)) => {
            say!("disk version-2: back {when}: error {error}");
            false
        }
    }
}

/// What the backend would have to map and cannot.
fn mapped(front: &mut Front<'_>) {
    let page = Page::own(DATA).frame();
    let tries: &[(&str, u16, (u16, u16))] = &[
        ("a whole page", PERMIT, (0, 0)),
        ("a part", PERMIT | SUB_PAGE, PART),
        ("a part that is a page", PERMIT | SUB_PAGE, (0, 4096)),
        ("another's grant", TRANSITIVE, (0, 8)),
        ("read only, to be written", PERMIT | READ_ONLY, (0, 0)),
    ];
    for (what, flags, part) in tries {
        let grants = front.grants;
        grants.set_part(TRIED, page, *flags, BACKEND, *part);
        front.put(READ, 0, 1, &[whole(TRIED)]);
        let status = front.go();
        tell("version-2", what, status);
    }
    // Of version 1 there were so many more in a page.
    front.put(READ, 0, 1, &[whole(256)]);
    let status = front.go();
    tell("version-2", "beyond the table", status);
}

/// Copies of a part of a page that is granted to the own domain.
fn copied(xen: Xen, grants: Grants, own: u16) {
    let (page, to) = (Page::own(DATA), Page::own(TO));
    for byte in 0..4096 {
        page.byte(byte).store((byte / 8) as u8, SeqCst);
    }
    let (first, bytes) = PART;
    grants.set_part(TRIED, page.frame(), PERMIT | SUB_PAGE, own, PART);
    for (what, offset, length) in [
        ("all of a part", first, bytes),
        ("before a part", first - 1, bytes),
        ("behind a part", first, bytes + 1),
        ("the end of a part", first + bytes - 8, 8),
        ("beyond the page", 4000, 97),
    ] {
        to.clear();
        let status = xen.copy(&mut Copy::part(SELF, TRIED, offset, length, to));
        let same = |at: u16| {
            let expected = page.byte(usize::from(offset + at)).load(SeqCst);
            to.byte(at.into()).load(SeqCst) == expected
        };
        let came = (0..length).all(same);
        let nothing = (0..4096).all(|at| to.byte(at).load(SeqCst) == 0);
        match status {
            Ok(status) => {
                say!("disk version-2: copy of {what}: {status}, all {came}, nothing {nothing}")
            }
            Err(Errno(error)) => say!("disk version-2: copy of {what}: error {error}"),
        }
    }
    grants.set_part(TRIED, 0, TRANSITIVE, own, (BACKEND, 0));
    if let Ok(status) = xen.copy(&mut Copy::part(SELF, TRIED, 0, 8, to)) {
        say!("disk version-2: copy of another's grant: {status}");
    }
    let used = grants.used(TRIED);
    say!("disk version-2: in use after copies: {used:#x}");
}
