//! Roles that break the rings of store and console (public/io/xs_wire.h, public/io/console.h) from their
//! guest's side, and say what became of them. A guest has one of each for its life.

use core::sync::atomic::Ordering::SeqCst;

use guest_kit::disk::event::Events;
use guest_kit::disk::store::{Kind, Store};
use guest_kit::pages::Page;
use guest_kit::say;
use guest_kit::xen::Xen;

/// `HVM_PARAM_STORE_PFN`, `_STORE_EVTCHN`, `_CONSOLE_PFN`, `_CONSOLE_EVTCHN` (public/hvm/params.h).
const STORE: (u32, u32) = (1, 2);
const CONSOLE: (u32, u32) = (17, 18);
/// `xenstore_domain_interface`: what the other side says of the ring's end, and producers of requests and
/// consumer of answers.
const STORE_ERROR: usize = 2072;
const STORE_REQUESTS: usize = 2052;
const STORE_ANSWERS: usize = 2056;
/// `xencons_interface`: consumers and producers of input and output.
const INPUT_CONSUMER: usize = 3072;
const OUTPUT_CONSUMER: usize = 3080;
const OUTPUT_PRODUCER: usize = 3084;
/// Seconds that something is waited for.
const PATIENCE: u32 = 120;

/// What a role does.
type Role = fn(Xen, &Events);

/// The role of this name, if it is one of these.
pub fn find(role: &str) -> Option<Role> {
    match role {
        "store-jump" => Some(|xen, events| store(xen, events, "store-jump", jump)),
        "store-answers" => Some(|xen, events| store(xen, events, "store-answers", answers)),
        "store-long" => Some(|xen, events| store(xen, events, "store-long", long)),
        "console" => Some(console),
        _ => None,
    }
}

/// A ring's page and port.
fn ring(xen: Xen, (page, port): (u32, u32)) -> Option<(Page, u32)> {
    let page = xen.param(page).ok().and_then(Page::at)?;
    Some((page, xen.param(port).ok()? as u32))
}

/// Breaks the store's ring, and waits until the page says that it is closed.
fn store(xen: Xen, events: &Events, role: &str, spoil: fn(Page)) {
    let own = Store::find(xen, events);
    let before = own.and_then(|mut own| own.request(Kind::READ, &["domid", "\0"]));
    let works = before.is_ok_and(|answer| !answer.refused);
    say!("disk {role}: it works before: {works}");
    let Some((page, port)) = ring(xen, STORE) else {
        return say!("disk {role}: there is no ring");
    };
    spoil(page);
    events.send(port);
    let mut error = 0;
    for _ in 0..PATIENCE {
        error = page.word(STORE_ERROR).load(SeqCst);
        if error != 0 {
            break;
        }
        events.wait(port);
    }
    say!("disk {role}: closed with error {error}");
    // Nobody looks at it any more.
    let before = page.word(2048).load(SeqCst);
    page.word(STORE_REQUESTS)
        .store(before.wrapping_add(16), SeqCst);
    events.send(port);
    events.wait(port);
    let same = page.word(2048).load(SeqCst) == before;
    say!("disk {role}: nobody takes requests any more: {same}");
}

/// The requests' producer is far ahead.
fn jump(page: Page) {
    let producer = page.word(STORE_REQUESTS).load(SeqCst);
    let far = producer.wrapping_add(1 << 31);
    page.word(STORE_REQUESTS).store(far, SeqCst);
}

/// More answers were read than there were; a request that has one.
fn answers(page: Page) {
    let consumer = page.word(STORE_ANSWERS).load(SeqCst);
    let far = consumer.wrapping_add(1 << 30);
    page.word(STORE_ANSWERS).store(far, SeqCst);
    message(page, 1);
}

/// A message that is longer than any.
fn long(page: Page) {
    message(page, u32::MAX);
}

/// The header of a request that lists the root's children, with this length, and a byte of its payload.
fn message(page: Page, length: u32) {
    let producer = page.word(STORE_REQUESTS).load(SeqCst);
    let words = [1, 1, 0, length];
    let bytes = words.into_iter().flat_map(u32::to_le_bytes).chain([0]);
    let mut end = producer;
    for byte in bytes {
        page.byte((end % 1024) as usize).store(byte, SeqCst);
        end = end.wrapping_add(1);
    }
    page.word(STORE_REQUESTS).store(end, SeqCst);
}

/// Jumps with all counters of the console, then writes to it as one should.
fn console(xen: Xen, events: &Events) {
    let Some((page, port)) = ring(xen, CONSOLE) else {
        return say!("disk console: there is no ring");
    };
    let mut met = 0;
    for by in [1 << 31, u32::MAX, 2049] {
        for counter in [INPUT_CONSUMER, OUTPUT_PRODUCER] {
            let now = page.word(counter).load(SeqCst);
            page.word(counter).store(now.wrapping_add(by), SeqCst);
        }
        // What lies in the ring then is taken for nothing.
        for _ in 0..PATIENCE {
            events.send(port);
            let producer = page.word(OUTPUT_PRODUCER).load(SeqCst);
            if page.word(OUTPUT_CONSUMER).load(SeqCst) == producer {
                met += 1;
                break;
            }
            events.wait(port);
        }
    }
    say!("disk console: the counters met again after {met} jumps");
    let mut end = page.word(OUTPUT_PRODUCER).load(SeqCst);
    for byte in *b"the console works after jumps\n" {
        let place = 1024 + (end % 2048) as usize;
        page.byte(place).store(byte, SeqCst);
        end = end.wrapping_add(1);
    }
    page.word(OUTPUT_PRODUCER).store(end, SeqCst);
    events.send(port);
}
