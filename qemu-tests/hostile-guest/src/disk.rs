//! A disk's front end that misbehaves, one way for each role, and one that does not. What came of each try is
//! a line on the debug port: `disk ROLE: TRY: ANSWER`, where an answer is a status of public/io/blkif.h, or
//! `none` if the connection was closed or nothing came.
//!
//! | role | does |
//! |---|---|
//! | `good` | writes and reads its disk for ever, and says so every few rounds |
//! | `jump` | moves the ring's index far ahead |
//! | `grants` | names grants that are not there, not the backend's, or not to be written |
//! | `twice` | names one page many times, takes grants back and changes them while they are in use |
//! | `requests` | sends what no request is: sectors beyond the end, pieces that run backwards, descriptors that lead to themselves |
//! | `ring` | takes the ring's grant away, names the table's own page, jumps between states |
//! | `store` | floods the store with watches, nodes and transactions |
//! | `part` | closes while requests are open, and takes back the pages that they use ([`volumes`]) |
//! | `bounds`, `overlay`, `fixed` | look for the ends of what the disk is made of ([`volumes`]) |
//! | `version-2` | uses grants of version 2, and none that only that has ([`version2`]) |
//! | `store-jump`, `store-long`, `console` | break the rings of store and console ([`rings`]) |

mod rings;
mod version2;
mod volumes;

use core::sync::atomic::Ordering::SeqCst;

use guest_kit::disk::event::Events;
use guest_kit::disk::front::{
    CLOSING, CONNECTED, Front, INDIRECT, INIT_WAIT, INITIALISED, INITIALISING, READ, RING, Segment,
    Status, Text, WRITE, whole,
};
use guest_kit::disk::store::{Dead, Kind};
use guest_kit::grants::{IN_USE, PERMIT, READ_ONLY};
use guest_kit::pages::Page;
use guest_kit::say;
use guest_kit::xen::Xen;

/// Pages by what they are for.
const GRANTS: usize = 0;
const RING_PAGE: usize = 1;
const DATA: usize = 4;
/// Grants of the ring, and of the pages from [`DATA`] on: 0 and 1 are console and store.
const RING_GRANT: u32 = 8;
const DATA_GRANT: u32 = 16;
/// A reference that the table's first page has no entry for.
const BEYOND: u32 = 512;
/// The backend's domain, and one that is somebody else.
const BACKEND: u16 = 0;
const OTHER: u16 = 5;
/// Sectors that the disk has at least.
const SECTORS: u64 = 1024;
/// Rounds of `good` between two of its lines.
const ROUNDS: u64 = 16;

/// Does what `role` says; returns when that is done.
pub fn run(role: &str) {
    let Some((xen, events)) = Xen::find().and_then(|xen| Some((xen, Events::new(xen)?))) else {
        return say!("disk {role}: no events");
    };
    if let Some(broken) = rings::find(role) {
        return broken(xen, &events);
    }
    let front = Front::new(xen, &events, Page::own(GRANTS), Page::own(RING_PAGE));
    let done = front.and_then(|mut front| match role {
        "good" => good(&mut front),
        "jump" => jump(&mut front),
        "grants" => grants(&mut front),
        "twice" => twice(&mut front),
        "requests" => requests(&mut front),
        "ring" => ring(&mut front),
        "store" => flood(&mut front),
        "part" => volumes::part(&mut front),
        "bounds" => volumes::bounds(&mut front),
        "overlay" => volumes::overlay(&mut front),
        "fixed" => volumes::fixed(&mut front),
        "version-2" => version2::run(xen, &mut front),
        _ => Ok(()),
    });
    if done.is_err() {
        say!("disk {role}: the store does not answer");
    }
}

/// A line for what a try came to.
fn tell(role: &str, what: &str, status: Status) {
    match status {
        Some(status) => say!("disk {role}: {what}: {status}"),
        None => say!("disk {role}: {what}: none"),
    }
}

/// Opens the ring, or says that it cannot.
fn open(front: &mut Front<'_>, role: &str) -> Result<bool, Dead> {
    for index in 0..8 {
        let page = Page::own(DATA + index).frame();
        front.grant(DATA_GRANT + index as u32, page, PERMIT, BACKEND);
    }
    let connected = front.connect(RING_GRANT)?;
    if !connected {
        say!("disk {role}: no connection");
    }
    Ok(connected)
}

/// Reads the disk's first page; a healthy connection answers 0.
fn read(front: &mut Front<'_>) -> Status {
    front.put(READ, 0, 1, &[whole(DATA_GRANT)]);
    front.go()
}

/// Writes a page and reads it into another: true if that is what was written.
fn round(front: &mut Front<'_>, role: &str, round: u64) -> bool {
    let (from, to) = (Page::own(DATA), Page::own(DATA + 1));
    let sector = round * 8 % SECTORS;
    for word in 0..512 {
        from.long(word * 8).store(round << 16 | word as u64, SeqCst);
        to.long(word * 8).store(0, SeqCst);
    }
    front.put(WRITE, sector, 1, &[whole(DATA_GRANT)]);
    let wrote = front.go();
    front.put(READ, sector, 1, &[whole(DATA_GRANT + 1)]);
    let read = front.go();
    let same = (0..512).all(|word| to.long(word * 8).load(SeqCst) == round << 16 | word as u64);
    let right = (wrote, read, same) == (Some(0), Some(0), true);
    if !right {
        say!("disk {role}: round {round} fails: {wrote:?} {read:?} {same}");
    }
    right
}

fn good(front: &mut Front<'_>) -> Result<(), Dead> {
    if !open(front, "good")? {
        return Ok(());
    }
    for round in 1u64.. {
        if !self::round(front, "good", round) {
            return Ok(());
        }
        if round % ROUNDS == 0 {
            say!("disk good: {round} rounds right");
        }
    }
    Ok(())
}

fn jump(front: &mut Front<'_>) -> Result<(), Dead> {
    for by in [RING + 1, 1 << 31] {
        if !open(front, "jump")? {
            return Ok(());
        }
        tell("jump", "a read before", read(front));
        let produced = front.produced;
        front.publish(produced.wrapping_add(by));
        let closed = front.backend_is(CLOSING)?;
        say!("disk jump: by {by}: closed {closed}");
        front.close()?;
    }
    if open(front, "jump")? {
        tell("jump", "a read afterwards", read(front));
    }
    Ok(())
}

fn grants(front: &mut Front<'_>) -> Result<(), Dead> {
    if !open(front, "grants")? {
        return Ok(());
    }
    let page = Page::own(DATA).frame();
    let bad = DATA_GRANT + 100;
    let tried = |front: &mut Front<'_>, what: &str, operation: u8, grant: u32| {
        front.put(operation, 0, 1, &[whole(grant)]);
        let status = front.go();
        tell("grants", what, status);
    };
    tried(front, "of nothing", READ, bad);
    tried(front, "beyond the table", READ, BEYOND);
    tried(front, "the largest number", READ, u32::MAX);
    front.grant(bad, page, PERMIT, OTHER);
    tried(front, "of another domain", READ, bad);
    front.grant(bad, page, PERMIT | READ_ONLY, BACKEND);
    tried(front, "read only, to be written", READ, bad);
    front.grant(bad, 0x000f_ffff, PERMIT, BACKEND);
    tried(front, "of no memory", READ, bad);
    front.grant(bad, u32::MAX, PERMIT, BACKEND);
    tried(front, "of the last frame", READ, bad);
    // GTF_transitive, GTF_accept_transfer (public/grant_table.h).
    front.grant(bad, page, 3, BACKEND);
    tried(front, "transitive", READ, bad);
    front.grant(bad, page, 2, BACKEND);
    tried(front, "to be transferred", READ, bad);
    front.grant(bad, page, PERMIT | READ_ONLY, BACKEND);
    tried(front, "read only, to be read", WRITE, bad);
    tell("grants", "a read afterwards", read(front));
    Ok(())
}

fn twice(front: &mut Front<'_>) -> Result<(), Dead> {
    if !open(front, "twice")? {
        return Ok(());
    }
    let same = [whole(DATA_GRANT); 11];
    front.put(READ, 0, 11, &same);
    front.put(READ, 8, 11, &same);
    front.publish(front.produced);
    for _ in 0..2 {
        let status = front.answer().map(|(_, status)| status);
        tell("twice", "one page eleven times", status);
    }
    // Grants change while requests that name them are under way. Any status is right, and each is one.
    let mut answers = 0;
    for round in 0..64u32 {
        for index in 0..4 {
            let segment = whole(DATA_GRANT + (round + index) % 8);
            front.put(READ, u64::from(index) * 8, 1, &[segment]);
        }
        front.publish(front.produced);
        for index in 0..8 {
            front.flags(DATA_GRANT + index).store(0, SeqCst);
            let page = Page::own(DATA + (index + round) as usize % 8).frame();
            front.grant(DATA_GRANT + index, page, PERMIT, BACKEND);
        }
        for _ in 0..4 {
            match front.answer() {
                Some(_) => answers += 1,
                None => break,
            }
        }
    }
    say!("disk twice: grants changed in use: {answers} answers");
    for index in 0..8 {
        let page = Page::own(DATA + index as usize).frame();
        front.grant(DATA_GRANT + index, page, PERMIT, BACKEND);
    }
    // More uses of one grant than Xen counts (128): each request is answered, well or not.
    for _ in 0..RING {
        front.put(READ, 0, 11, &same);
    }
    front.publish(front.produced);
    let answers = (0..RING).filter_map(|_| front.answer()).count();
    say!("disk twice: a ring full of one page: {answers} answers");
    for index in 0..8 {
        let page = Page::own(DATA + index as usize).frame();
        front.grant(DATA_GRANT + index, page, PERMIT, BACKEND);
    }
    tell("twice", "a read afterwards", read(front));
    Ok(())
}

fn requests(front: &mut Front<'_>) -> Result<(), Dead> {
    if !open(front, "requests")? {
        return Ok(());
    }
    let tries: &[(&str, u8, u64, u8, Segment)] = &[
        ("beyond the end", READ, 1 << 40, 1, whole(DATA_GRANT)),
        ("at the last number", READ, u64::MAX, 1, whole(DATA_GRANT)),
        ("write beyond the end", WRITE, 1 << 40, 1, whole(DATA_GRANT)),
        ("no segments", READ, 0, 0, whole(DATA_GRANT)),
        ("too many segments", READ, 0, 255, whole(DATA_GRANT)),
        ("no operation", 200, 0, 1, whole(DATA_GRANT)),
        (
            "a piece that runs backwards",
            READ,
            0,
            1,
            Segment {
                grant: DATA_GRANT,
                first: 5,
                last: 2,
            },
        ),
        (
            "a piece larger than its page",
            READ,
            0,
            1,
            Segment {
                grant: DATA_GRANT,
                first: 0,
                last: 200,
            },
        ),
    ];
    for (what, operation, sector, count, segment) in tries {
        front.put(*operation, *sector, *count, &[*segment]);
        let status = front.go();
        tell("requests", what, status);
    }
    let discards: &[(&str, u8, u64, u64)] = &[
        ("discard of nothing", 0, 0, 0),
        ("discard beyond the end", 0, 1 << 40, 8),
        ("discard across the end", 0, 0, 1 << 40),
        ("discard across all numbers", 0, u64::MAX - 7, 16),
        ("discard of all numbers", 0, 0, u64::MAX),
        ("discard of all numbers twice", 0, u64::MAX, u64::MAX),
        ("secure discard", 1, 0, 8),
    ];
    for (what, flag, sector, sectors) in discards {
        front.put_discard(*flag, *sector, *sectors);
        let status = front.go();
        tell("requests", what, status);
    }
    // Flags that nobody knows change nothing.
    front.put_discard(0xfe, 0, 8);
    let status = front.go();
    tell("requests", "discard", status);
    // Descriptors: a page that describes itself as data, one that is not there, more than there are.
    let list = Page::own(DATA + 7);
    for index in 0..512 {
        list.word(index * 8).store(DATA_GRANT + 7, SeqCst);
        list.word(index * 8 + 4).store(7 << 8, SeqCst);
    }
    let indirect: &[(&str, u8, u16, u32)] = &[
        (
            "descriptors that describe themselves",
            READ,
            8,
            DATA_GRANT + 7,
        ),
        ("descriptors without a page", READ, 8, DATA_GRANT + 100),
        ("too many descriptors", READ, u16::MAX, DATA_GRANT + 7),
        ("no descriptors", READ, 0, DATA_GRANT + 7),
        ("descriptors of descriptors", INDIRECT, 8, DATA_GRANT + 7),
    ];
    for (what, operation, segments, page) in indirect {
        front.put_indirect(*operation, 0, *segments, &[*page]);
        let status = front.go();
        tell("requests", what, status);
    }
    tell("requests", "a read afterwards", read(front));
    Ok(())
}

fn ring(front: &mut Front<'_>) -> Result<(), Dead> {
    if !open(front, "ring")? {
        return Ok(());
    }
    tell("ring", "a read before", read(front));
    let in_use = front.flags(RING_GRANT).load(SeqCst) & IN_USE != 0;
    say!("disk ring: its grant is in use {in_use}");
    // Requests change after they were published.
    for round in 0..64u32 {
        let before = front.produced;
        front.put(READ, 0, 1, &[whole(DATA_GRANT)]);
        front.publish(front.produced);
        front.produced = before;
        front.put(WRITE, 1 << 40, 255, &[whole(BEYOND + round)]);
        if front.answer().is_none() {
            break;
        }
    }
    // The grant's flags go while it is mapped: what was mapped stays.
    front.flags(RING_GRANT).store(0, SeqCst);
    tell(
        "ring",
        "a read with the ring's grant taken back",
        read(front),
    );
    for state in [
        INITIALISING,
        CONNECTED,
        INITIALISED,
        INIT_WAIT,
        "99",
        "",
        "-1",
        INITIALISED,
    ] {
        front.set("state", state)?;
    }
    // Nodes that make no sense, one at a time, each of which the backend refuses by closing.
    front.close()?;
    for (node, value) in [
        ("ring-ref", "4294967295"),
        ("ring-ref", "99999999999999999999"),
        ("ring-ref", "none"),
        ("event-channel", "-1"),
        ("event-channel", "1000"),
        ("protocol", "none"),
        ("multi-queue-num-queues", "4000000000"),
        ("multi-queue-num-queues", "0"),
        ("ring-page-order", "31"),
    ] {
        refused(front, node, value, |front| {
            front.set(node, value).map(|_| ())
        })?;
        if ["multi-queue-num-queues", "ring-page-order"].contains(&node) {
            front.remove(node)?;
        }
    }
    // Pages that no ring can be in, and a ring that is broken before it is opened.
    refused(front, "the ring", "is not granted", |front| {
        front.flags(RING_GRANT).store(0, SeqCst);
        Ok(())
    })?;
    refused(front, "the ring", "may only be read", |front| {
        let frame = front.ring.frame();
        front.grant(RING_GRANT, frame, PERMIT | READ_ONLY, BACKEND);
        Ok(())
    })?;
    refused(front, "the ring", "is no memory", |front| {
        front.grant(RING_GRANT, u32::MAX, PERMIT, BACKEND);
        Ok(())
    })?;
    refused(front, "the ring", "is broken", |front| {
        front.ring.word(0).store(1 << 31, SeqCst);
        Ok(())
    })?;
    if open(front, "ring")? {
        tell("ring", "a read afterwards", read(front));
    }
    Ok(())
}

/// Says that a ring is ready whose nodes or page `spoil` has spoilt, waits until the backend closes, and
/// begins anew.
fn refused(
    front: &mut Front<'_>,
    what: &str,
    how: &str,
    spoil: impl FnOnce(&mut Front<'_>) -> Result<(), Dead>,
) -> Result<(), Dead> {
    let ready = front.prepare(RING_GRANT)?;
    spoil(front)?;
    front.set("state", INITIALISED)?;
    let closed = front.backend_is(CLOSING)?;
    say!("disk ring: {what} {how}: ready {ready}, closed {closed}");
    front.close()?;
    Ok(())
}

fn flood(front: &mut Front<'_>) -> Result<(), Dead> {
    // At its quota a guest has no nodes left for a new connection: it has its own before.
    if !open(front, "store")? {
        return Ok(());
    }
    let mut flooded = |what: &str, kind: Kind, parts: &dyn Fn(u32) -> Text| -> Result<(), Dead> {
        for count in 0..4096 {
            let text = parts(count);
            let answer = front.store.request(kind, &[text.as_str()])?;
            if answer.refused {
                say!("disk store: {count} {what}, then {}", answer.text());
                return Ok(());
            }
        }
        say!("disk store: {what} without an end");
        Ok(())
    };
    flooded("watches", Kind::WATCH, &|n| {
        Text::of(format_args!("data\0token{n}\0"))
    })?;
    flooded("transactions", Kind::TRANSACTION_START, &|_| {
        Text::of(format_args!("\0"))
    })?;
    flooded("nodes", Kind::WRITE, &|n| {
        Text::of(format_args!("data/{n}\0x"))
    })?;
    tell("store", "a read afterwards", read(front));
    Ok(())
}
