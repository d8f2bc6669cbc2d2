//! Rows about others: a disk, whose back end is a component, and another guest. The guest polls for the
//! disk's events, as it has no interrupts until it measures those of the other guest.

use core::sync::atomic::Ordering::SeqCst;

use guest_kit::disk::event::Events;
use guest_kit::disk::front::{Front, READ, whole};
use guest_kit::grants::PERMIT;
use guest_kit::interrupts;
use guest_kit::pages::Page;
use guest_kit::peer::{self, Peer};
use guest_kit::xen::{Copy, MapGrant, Xen};

use crate::rows::Bench;

/// The disk's back end is domain 0.
const BACKEND: u16 = 0;
/// Pages of the program by what they are for, and grants of some.
const GRANTS: usize = 0;
const RING: usize = 1;
const INDIRECT: usize = 2;
const DATA: usize = 4;
const RING_GRANT: u32 = 8;
const INDIRECT_GRANT: u32 = 9;
const DATA_GRANT: u32 = 16;
/// Pages of the long read.
const LONG: u32 = 32;
/// Sectors of a page.
const SECTORS: u64 = 8;
/// Where the reads begin: a long one, and a short one elsewhere, so that neither leaves what the other
/// expects.
const LONG_AT: u64 = 0;
const SHORT_AT: u64 = LONG as u64 * SECTORS;
/// Bytes between the rows' mappings of other guests' pages: a large page.
const BESIDE: u64 = 2 << 20;

impl Bench<'_> {
    /// The disk `xvda`, each 8-byte word of which holds its number.
    pub fn disk(&self, xen: Xen) {
        let names = ["blkfront_read_4k", "blkfront_read_128k"];
        let skip = |why: &str| {
            for name in names {
                self.skip(name, format_args!("{why}"));
            }
        };
        let Some(events) = Events::new(xen) else {
            return skip("no events");
        };
        let Ok(mut front) = Front::new(xen, &events, Page::own(GRANTS), Page::own(RING)) else {
            return skip("no store");
        };
        for page in 0..LONG {
            let reference = DATA_GRANT + page;
            let frame = Page::own(DATA + page as usize).frame();
            front.grant(reference, frame, PERMIT, BACKEND);
            // `blkif_request_segment` (public/io/blkif.h): grant, first and last sector.
            let at = page as usize * 8;
            let list = Page::own(INDIRECT);
            list.word(at).store(reference, SeqCst);
            list.word(at + 4).store((SECTORS as u32 - 1) << 8, SeqCst);
        }
        front.grant(INDIRECT_GRANT, Page::own(INDIRECT).frame(), PERMIT, BACKEND);
        // As Linux does.
        let ready = front.set("feature-persistent", "1");
        if !matches!(ready, Ok(true)) || !front.connect(RING_GRANT).is_ok_and(|done| done) {
            return skip("the disk does not connect");
        }
        let [short, long] = names;
        let mut done = Some(0);
        self.row(
            short,
            || (),
            |()| {
                front.put(READ, SHORT_AT, 1, &[whole(DATA_GRANT)]);
                done = done.and(front.go());
            },
        );
        self.right(short, done, SHORT_AT, 1);
        self.row(
            long,
            || (),
            |()| {
                front.put_indirect(READ, LONG_AT, LONG as u16, &[INDIRECT_GRANT]);
                done = done.and(front.go());
            },
        );
        self.right(long, done, LONG_AT, LONG as usize);
    }

    /// Says so if what was read is not what the disk has there.
    fn right(&self, name: &str, done: Option<i16>, sector: u64, pages: usize) {
        let first = |page: usize| (sector + page as u64 * SECTORS) * 64;
        let right = |page| Page::own(DATA + page).long(0).load(SeqCst) == first(page);
        if done != Some(0) || !(0..pages).all(right) {
            self.skip(name, format_args!("the disk reads wrong, {done:?}"));
        }
    }

    /// Another guest. Interrupts can come from here on.
    pub fn another_guest(&self, xen: Xen, peer: Peer) {
        let mut map = MapGrant::of(peer.domain, peer::GRANT, peer::PLACE + BESIDE);
        let mut done = true;
        self.row(
            "grant_map_unmap",
            || (),
            |()| {
                // SAFETY: nothing of the program is there.
                let mapped = unsafe { xen.map_grant(&mut map) };
                let mut end = map.end();
                // SAFETY: nothing uses it.
                let ended = unsafe { xen.unmap_grant(&mut end) };
                done &= mapped.is_ok() && ended.is_ok() && (map.status, end.status) == (0, 0);
            },
        );
        if !done {
            self.skip("grant_map_unmap", format_args!("{map:?}"));
        }
        let mut copy = Copy::granted(peer.domain, peer::GRANT, 4096);
        let mut done = true;
        self.row(
            "grant_copy_4k",
            || (),
            |()| {
                done &= xen.copy(&mut copy) == Ok(0);
            },
        );
        if !done {
            self.skip("grant_copy_4k", format_args!("{copy:?}"));
        }
        // SAFETY: such a handler.
        unsafe { interrupts::install(interrupts::quiet()) };
        let name = "event_there_and_back";
        let Ok(shared) = xen.shared_info() else {
            return self.skip(name, format_args!("no shared info"));
        };
        if let Err(errno) = xen.upcall_by(interrupts::VECTOR) {
            return self.skip(name, format_args!("no upcall, {errno:?}"));
        }
        let port = peer.port;
        self.row(
            name,
            || shared.clear(port),
            |()| {
                let sent = xen.send(&port);
                interrupts::wait(shared, port);
                sent
            },
        );
        peer.end(xen);
    }
}
