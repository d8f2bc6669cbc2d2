//! Roles that look for the ends of what a disk is made of: a partition, an image with an overlay, one that is
//! read only. `qemu-tests/src/debian/volumes.rs` reads what they say, and the disk's file afterwards.

use core::sync::atomic::Ordering::SeqCst;

use guest_kit::disk::front::{CLOSED, CLOSING, Front, PATIENCE, READ, WRITE, whole};
use guest_kit::disk::store::Dead;
use guest_kit::grants::{IN_USE, PERMIT};
use guest_kit::pages::Page;
use guest_kit::say;

use super::{BACKEND, DATA, DATA_GRANT, RING_GRANT, open, read, tell};

/// Sectors of a page.
const PAGE: u64 = 8;
/// What role `bounds` writes: every word of sector N is this and N.
const MARK: u64 = 0x6d61_726b_0000_0000;
/// Sectors that role `bounds` gives up.
const GIVEN_UP: u64 = 37;
const GIVEN_UP_SECTORS: u64 = 1001;
/// Rounds of role `part`, and requests that it leaves behind in each.
const ROUNDS: u32 = 8;
const LEFT: u64 = 24;
/// Pages that role `overlay` writes at most: more than any overlay of the tests has.
const FILL: u64 = 1024;

/// Fills the first data page for sectors from `sector` on.
fn fill(sector: u64) {
    let page = Page::own(DATA);
    for word in 0..512u64 {
        page.long(word as usize * 8)
            .store(MARK | sector.wrapping_add(word / 64), SeqCst);
    }
}

/// Sectors of the disk, as the backend says.
fn sectors(front: &mut Front<'_>) -> Result<u64, Dead> {
    front
        .of_backend("sectors")?
        .text()
        .parse()
        .map_err(|_| Dead)
}

/// Reads and writes around both ends of the disk.
pub fn bounds(front: &mut Front<'_>) -> Result<(), Dead> {
    if !open(front, "bounds")? {
        return Ok(());
    }
    let end = sectors(front)?;
    say!("disk bounds: sectors: {end}");
    let tries: &[(&str, u8, u64)] = &[
        ("read behind the end", READ, end),
        ("read across the end", READ, end - PAGE / 2),
        ("read far behind the end", READ, end + 4096),
        ("read before the beginning", READ, PAGE.wrapping_neg()),
        ("read across the beginning", READ, (PAGE / 2).wrapping_neg()),
        ("write behind the end", WRITE, end),
        ("write across the end", WRITE, end - PAGE / 2),
        ("write far behind the end", WRITE, end + 4096),
        ("write before the beginning", WRITE, PAGE.wrapping_neg()),
        (
            "write across the beginning",
            WRITE,
            (PAGE / 2).wrapping_neg(),
        ),
    ];
    for (what, operation, sector) in tries {
        // A read before left the page with what is foreign there, and to write that back changes nothing.
        fill(*sector);
        front.put(*operation, *sector, 1, &[whole(DATA_GRANT)]);
        let status = front.go();
        tell("bounds", what, status);
    }
    // The same by a list of pieces, of which the last is behind the end.
    let list = Page::own(DATA + 7);
    for index in 0..16 {
        list.word(index * 8).store(DATA_GRANT, SeqCst);
        list.word(index * 8 + 4).store(7 << 8, SeqCst);
    }
    for (what, operation) in [("list read", READ), ("list written", WRITE)] {
        fill(end);
        front.put_indirect(operation, end - 15 * PAGE, 16, &[DATA_GRANT + 7]);
        let status = front.go();
        tell("bounds", what, status);
    }
    for (what, sector, sectors) in [
        ("discard behind the end", end, PAGE),
        ("discard across the end", end - PAGE / 2, PAGE),
        ("discard far behind the end", end + 4096, PAGE),
        ("discard before the beginning", PAGE.wrapping_neg(), PAGE),
        (
            "discard across the beginning",
            (PAGE / 2).wrapping_neg(),
            PAGE,
        ),
        ("discard of more than there is", 0, end + 1),
    ] {
        front.put_discard(0, sector, sectors);
        let status = front.go();
        tell("bounds", what, status);
    }
    // What is inside goes, at a sector that is no multiple of anything.
    front.put_discard(0, GIVEN_UP, GIVEN_UP_SECTORS);
    let status = front.go();
    tell("bounds", "discard inside", status);
    say!("disk bounds: it reads: {:x?}", word_at(front, GIVEN_UP));
    for (what, sector) in [("first page", 0), ("last page", end - PAGE)] {
        fill(sector);
        front.put(WRITE, sector, 1, &[whole(DATA_GRANT)]);
        let status = front.go();
        tell("bounds", what, status);
    }
    tell("bounds", "a read afterwards", read(front));
    Ok(())
}

/// The word at the beginning of a sector, if it can be read.
fn word_at(front: &mut Front<'_>, sector: u64) -> Option<u64> {
    let page = Page::own(DATA + 1);
    page.clear();
    front.put(READ, sector, 1, &[whole(DATA_GRANT + 1)]);
    (front.go() == Some(0)).then(|| page.long(0).load(SeqCst))
}

/// Writes a page of marks; its status.
fn mark(front: &mut Front<'_>, sector: u64) -> Option<i16> {
    fill(sector);
    front.put(WRITE, sector, 1, &[whole(DATA_GRANT)]);
    front.go()
}

/// Writes more than the overlay holds, reads back what it holds, and has the backend killed.
pub fn overlay(front: &mut Front<'_>) -> Result<(), Dead> {
    if !open(front, "overlay")? {
        return Ok(());
    }
    let end = sectors(front)?;
    let mut held = 0;
    for page in 0..FILL.min(end / PAGE) {
        if mark(front, page * PAGE) != Some(0) {
            break;
        }
        held += 1;
    }
    say!("disk overlay: held: {held} of {} pages", end / PAGE);
    let mut right = 0;
    for page in 0..held {
        let sector = page * PAGE;
        right += u64::from(word_at(front, sector) == Some(MARK | sector));
    }
    say!("disk overlay: read back: {right}");
    let rest = word_at(front, end - PAGE);
    say!("disk overlay: the rest is: {rest:x?}");
    let again = mark(front, 0);
    tell("overlay", "a page that is held already", again);
    // What is given up reads as before, and others have its room, once.
    front.put_discard(0, PAGE, PAGE);
    let status = front.go();
    tell("overlay", "a discard", status);
    say!("disk overlay: it reads: {:x?}", word_at(front, PAGE));
    let in_its_room = mark(front, end - PAGE);
    tell("overlay", "a page in its room", in_its_room);
    let again = mark(front, PAGE);
    tell("overlay", "a page without room", again);
    // Whoever listens kills the backend.
    front.store.write("data", "order", "kill blkback")?;
    let closed = front.backend_is(CLOSING)?;
    say!("disk overlay: after a kill: closed {closed}");
    front.close()?;
    if open(front, "overlay")? {
        say!("disk overlay: anew it is: {:x?}", word_at(front, 0));
    }
    Ok(())
}

/// A disk that nobody may write, whoever opens it.
pub fn fixed(front: &mut Front<'_>) -> Result<(), Dead> {
    if !open(front, "fixed")? {
        return Ok(());
    }
    let before = word_at(front, 0);
    let wrote = mark(front, 0);
    tell("fixed", "a write", wrote);
    front.put_discard(0, 0, PAGE);
    let status = front.go();
    tell("fixed", "a discard", status);
    let same = before.is_some() && word_at(front, 0) == before;
    say!("disk fixed: unchanged: {same}");
    tell("fixed", "a read afterwards", read(front));
    Ok(())
}

/// Parts while requests are open, and takes the pages back that they use.
pub fn part(front: &mut Front<'_>) -> Result<(), Dead> {
    let mut parted = 0;
    let mut most = 0;
    for round in 0..ROUNDS {
        if !open(front, "part")? {
            return Ok(());
        }
        for index in 0..LEFT {
            let operation = if index % 2 == 0 { READ } else { WRITE };
            let page = DATA_GRANT + (index % 8) as u32;
            front.put(operation, index * PAGE, 1, &[whole(page)]);
        }
        front.publish(front.produced);
        // In half of the rounds the grants change meanwhile; in the others their flags tell the truth.
        for index in 0..if round % 4 < 2 { 8 } else { 0 } {
            front.flags(DATA_GRANT + index).store(0, SeqCst);
            let page = Page::own(DATA + (index + round) as usize % 8).frame();
            front.grant(DATA_GRANT + index, page, PERMIT, BACKEND);
        }
        // By both ways to part.
        front.set("state", if round % 2 == 0 { CLOSED } else { CLOSING })?;
        parted += u32::from(front.close()?);
        let mut in_use = 0;
        // A backend that died meanwhile gives them back when its connection is found to be over.
        for _ in 0..PATIENCE {
            let grants = (DATA_GRANT..DATA_GRANT + 8).chain([RING_GRANT]);
            let used = |grant: &u32| front.flags(*grant).load(SeqCst) & IN_USE != 0;
            in_use = grants.filter(used).count();
            if in_use == 0 {
                break;
            }
            front.wait();
        }
        most = most.max(in_use);
    }
    say!("disk part: parted: {parted} of {ROUNDS}");
    say!("disk part: grants in use afterwards: {most}");
    if open(front, "part")? {
        tell("part", "a read afterwards", read(front));
    }
    Ok(())
}
