//! Other guests' pages in the map of a guest that is their driver domain, and what stands in for them when
//! they are gone: a guest whose kernel reads and writes what another one granted must live on when that one
//! is destroyed. Under Xen the pages stay until the last user has let go of them; here they go at once, and
//! where one was are zeros. What is written there reaches nobody.
//!
//! Part of `map`, under its lock. A page that stands in is this VMM's own, so nothing of another guest shows
//! in it.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use sdk::abi::cap::Map;
use sdk::memory::{self, ORDER_4K, READ_WRITE, Window};
use sdk::prelude::*;
use sdk::slots;

const PAGE: u64 = 4096;
/// Pages that stand in to be written, at most: what this VMM's memory has room for. Beyond that, writes are
/// emulated, one by one, and dropped.
const WRITABLE_MAX: usize = 64;

/// What is at a guest frame.
#[derive(Clone, Copy, Debug)]
enum At {
    /// The page that was granted.
    Granted,
    /// A copy of the frame of zeros.
    Zeros(Cap<cap::Frame>),
    /// One of its own.
    Own(Cap<cap::Frame>),
}

#[derive(Debug)]
struct Page {
    /// What was placed there; goes away with the grant.
    frame: Cap<cap::Frame>,
    write: bool,
    at: At,
}

/// All of them.
#[derive(Default)]
pub struct Abroad {
    /// By guest frame.
    pages: BTreeMap<u64, Page>,
    /// Mapped nowhere, never written.
    zeros: Option<Cap<cap::Frame>>,
    /// Not in use; what is in them is old.
    spare: Vec<Cap<cap::Frame>>,
    /// How many there are, in use or not.
    made: usize,
    window: Option<Window>,
}

impl core::fmt::Debug for Abroad {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Abroad")
            .field("pages", &self.pages)
            .finish_non_exhaustive()
    }
}

impl Abroad {
    /// A granted page was mapped at `gfn`.
    pub fn placed(&mut self, gfn: u64, frame: Cap<cap::Frame>, write: bool) {
        let at = At::Granted;
        self.pages.insert(gfn, Page { frame, write, at });
    }

    /// Whether one is, or was, there.
    pub fn is_at(&self, gfn: u64) -> bool {
        self.pages.contains_key(&gfn)
    }

    /// Takes what is at `gfn` out of the map; true if there was something.
    pub fn take_out(&mut self, gfn: u64) -> bool {
        let Some(page) = self.pages.remove(&gfn) else {
            return false;
        };
        match page.at {
            // One that is gone is not mapped either.
            At::Granted => match page.frame.unmap() {
                Ok(()) | Err(Status::InvalidCap) => {}
                Err(status) => log::error!("guest frame {gfn:#x} not unmapped: {status:?}"),
            },
            at => self.clear(gfn, at),
        }
        true
    }

    /// What was placed at `gfn` by this frame goes with the frame, and what stands in for it goes now.
    pub fn let_go(&mut self, gfn: u64, frame: Cap<cap::Frame>) {
        if self.pages.get(&gfn).is_some_and(|page| page.frame == frame)
            && let Some(page) = self.pages.remove(&gfn)
        {
            self.clear(gfn, page.at);
        }
    }

    fn clear(&mut self, gfn: u64, at: At) {
        match at {
            At::Granted => {}
            // It is unmapped with the copy.
            At::Zeros(zeros) => slots::discard(zeros),
            At::Own(own) => match own.unmap() {
                Ok(()) => self.spare.push(own),
                Err(status) => log::error!("guest frame {gfn:#x} not unmapped: {status:?}"),
            },
        }
    }

    /// The guest of `space` touched `gfn` in vain, to write if `write`. True if it can try again.
    pub fn stands_in(&mut self, space: Cap<cap::AddressSpace>, gfn: u64, write: bool) -> bool {
        let Some(page) = self.pages.get(&gfn) else {
            return false;
        };
        let at = page.at;
        match at {
            At::Own(_) => true,
            _ if write && !page.write => false,
            At::Granted => self.put_zeros(space, gfn),
            // Another vCPU was faster.
            At::Zeros(_) if !write => true,
            At::Zeros(zeros) => self.put_own(space, gfn, zeros),
        }
    }

    fn set(&mut self, gfn: u64, at: At) {
        if let Some(page) = self.pages.get_mut(&gfn) {
            page.at = at;
        }
    }

    fn put_zeros(&mut self, space: Cap<cap::AddressSpace>, gfn: u64) -> bool {
        let zeros = match self.zeros {
            Some(zeros) => Ok(zeros),
            None => memory::own().retype(ORDER_4K),
        };
        let Ok(zeros) = zeros else {
            return false;
        };
        self.zeros = Some(zeros);
        let Ok(copy) = zeros.copy(Rights::READ) else {
            return false;
        };
        match memory::map_into(memory::own(), space, copy, gfn * PAGE, Map::READ) {
            Ok(()) => {
                self.set(gfn, At::Zeros(copy));
                true
            }
            Err(status) => {
                slots::discard(copy);
                // It is not gone: it came while the guest's access was on its way here.
                status == Status::Occupied
            }
        }
    }

    fn put_own(&mut self, space: Cap<cap::AddressSpace>, gfn: u64, zeros: Cap<cap::Frame>) -> bool {
        let Some(own) = self.blank() else {
            return false;
        };
        slots::discard(zeros);
        let flags = Map::READ | Map::WRITE;
        match memory::map_into(memory::own(), space, own, gfn * PAGE, flags) {
            Ok(()) => {
                self.set(gfn, At::Own(own));
                true
            }
            Err(_) => {
                self.spare.push(own);
                self.set(gfn, At::Granted);
                false
            }
        }
    }

    /// A page of zeros of its own.
    fn blank(&mut self) -> Option<Cap<cap::Frame>> {
        if let Some(own) = self.spare.pop() {
            let window = match &mut self.window {
                Some(window) => window,
                none => none.insert(Window::new().ok()?),
            };
            let cleared = window.with(own, 1, READ_WRITE, |bytes| bytes.fill(0));
            return cleared.is_ok().then_some(own);
        }
        if self.made >= WRITABLE_MAX {
            return None;
        }
        let own = memory::own().retype(ORDER_4K).ok()?;
        self.made += 1;
        Some(own)
    }
}
