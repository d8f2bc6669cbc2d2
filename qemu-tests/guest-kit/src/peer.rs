//! Two guests that have to do with each other: one measures, the other grants it a page and answers its
//! events. Each knows the other's domain id from its command line.
//!
//! The page says on which port the answering guest waits. Both halt while they wait.

use core::sync::atomic::Ordering::SeqCst;

use crate::grants::{Grants, PERMIT};
use crate::interrupts;
use crate::pages::Page;
use crate::xen::{MapGrant, Xen};

/// The grant by which the page is shared: the lower ones are console and store.
pub const GRANT: u32 = 8;
/// Where it is mapped: guest-physical, above all memory and below the local APIC, mapped one to one.
pub const PLACE: u64 = 0xe000_0000;
/// Offsets in the page: that all is ready, the port, that there is nothing more to do.
const READY: usize = 0;
const PORT: usize = 4;
const END: usize = 8;
/// What READY holds then.
const MAGIC: u32 = 0x7065_6572;
/// How often to let others run before the other guest is taken for missing.
const PATIENCE: u32 = 1 << 20;

/// Answers events of the domain `other` until it says that there are no more of them; `table` and `page` are
/// pages for the grant table and for what is shared. `None` if Xen refuses what is needed.
pub fn answer(xen: Xen, other: u16, table: Page, page: Page) -> Option<()> {
    let shared = xen.shared_info().ok()?;
    // SAFETY: such a handler.
    unsafe { interrupts::install(interrupts::quiet()) };
    xen.upcall_by(interrupts::VECTOR).ok()?;
    let port = xen.offer(other).ok()?;
    page.clear();
    page.word(PORT).store(port, SeqCst);
    page.word(READY).store(MAGIC, SeqCst);
    Grants::at(xen, table)
        .ok()?
        .set(GRANT, page.frame(), PERMIT, other);
    loop {
        interrupts::wait(shared, port);
        shared.clear(port);
        if page.word(END).load(SeqCst) != 0 {
            return Some(());
        }
        let _ = xen.send(&port);
    }
}

/// The guest that answers, as the one that measures sees it.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Its domain.
    pub domain: u16,
    /// The own port that leads to it.
    pub port: u32,
}

impl Peer {
    /// Waits for it, maps its page for good, and binds its port. Leaves the shared info alone: where that is
    /// mapped, a large page of the program is split, and walks to its neighbours are longer from then on.
    pub fn find(xen: Xen, domain: u16) -> Option<Peer> {
        let mut map = MapGrant::of(domain, GRANT, PLACE);
        for _ in 0..PATIENCE {
            // SAFETY: nothing of the program is there, and `page` is used through atomics.
            let done = unsafe { xen.map_grant(&mut map) };
            if done.is_ok() && map.status == 0 {
                if page().word(READY).load(SeqCst) == MAGIC {
                    let remote = page().word(PORT).load(SeqCst);
                    let port = xen.bind(domain, remote).ok()?;
                    return Some(Peer { domain, port });
                }
                // SAFETY: `page` is used only above.
                unsafe { xen.unmap_grant(&mut map.end()) }.ok()?;
            }
            let _ = xen.yield_now();
        }
        None
    }

    /// The other guest goes on to its end.
    pub fn end(self, xen: Xen) {
        page().word(END).store(1, SeqCst);
        let _ = xen.send(&self.port);
    }
}

/// The other guest's page, while it is mapped.
fn page() -> Page {
    Page::mapped(PLACE)
}
