//! A thread that serves one guest: its connection to the guest's VMM, and its disks. Everybody it calls
//! but the VMM is trusted; the VMM may keep it waiting for ever, and then only this guest waits.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use blkback::device::{Blocks, Fault};
use blkback::grants::{Gone, Guest};
use idl::peer::MAPPINGS_MAX;
use idl::peers::PeersError;
use sdk::peer::{Channel, Error, GrantRef, Page, Peer};
use sdk::prelude::*;

use crate::hub::{DISK_BIT, Done, GONE_BIT, GUEST_BIT, Hub, STORE_BIT, Way};
use crate::server::{self, BACKENDS, LOOK};
use crate::vbd::Vbd;

/// Grants that one guest's disks map at a time, all together.
const MAPPED_MAX: usize = 1000;
const _: () = assert!(MAPPED_MAX < MAPPINGS_MAX as usize);

/// A guest's VMM, and how much of it is mapped.
pub struct Side {
    pub peer: Peer,
    mapped: usize,
}

impl Guest for Side {
    type Page = Page;

    fn map(&mut self, grants: &[(u32, bool)]) -> Result<Vec<Result<Page, i16>>, Gone> {
        if grants.is_empty() {
            return Ok(Vec::new());
        }
        let wanted: Vec<GrantRef> = grants
            .iter()
            .map(|&(reference, write)| GrantRef { reference, write })
            .collect();
        match self.peer.map_pages(&wanted) {
            Ok(pages) => {
                self.mapped += pages.iter().filter(|page| page.is_ok()).count();
                Ok(pages)
            }
            Err(error) => {
                log::warn!("grants cannot be mapped: {error:?}");
                Err(Gone)
            }
        }
    }

    fn unmap(&mut self, pages: Vec<Page>) -> Result<(), Gone> {
        self.mapped = self.mapped.saturating_sub(pages.len());
        self.peer.unmap_pages(pages).map_err(|_| Gone)
    }

    fn room(&self) -> usize {
        MAPPED_MAX.saturating_sub(self.mapped)
    }
}

/// What a thread has of its guest.
struct Served<'a> {
    hub: &'a Hub,
    seat: usize,
    domain: u16,
    side: Option<Side>,
    disks: BTreeMap<u32, Vbd>,
}

/// Serves whichever guest its seat is for, one after the other, for ever.
pub fn serve(hub: &Hub, seat: usize) {
    let Some(own) = hub.seats.get(seat) else {
        return;
    };
    let mut served = Served {
        hub,
        seat,
        domain: 0,
        side: None,
        disks: BTreeMap::new(),
    };
    let mut more = false;
    loop {
        let bits = match more {
            true => own.bell.poll(),
            false => own.bell.wait(FOREVER),
        };
        let bits = match bits {
            Ok(bits) => bits,
            Err(Status::Cancelled | Status::Timeout) => 0,
            Err(status) => panic!("cannot wait: {status:?}"),
        };
        served.domain = own.domain.load(Ordering::Acquire) as u16;
        if served.domain == 0 {
            more = false;
            continue;
        }
        if bits & GONE_BIT != 0
            && let Some(side) = &served.side
            && !side.peer.is_alive()
        {
            served.lost();
        }
        let done = core::mem::take(&mut *own.done.lock());
        served.completed(done);
        if bits & GUEST_BIT != 0
            && let Some(side) = &mut served.side
        {
            // Whichever it was: all rings are looked at.
            side.peer.pending().for_each(drop);
        }
        if bits & (STORE_BIT | GONE_BIT) != 0 {
            served.look();
        }
        more = served.work();
        if served.disks.is_empty() {
            served.leave();
        }
    }
}

impl Served<'_> {
    /// The connection is of no use any more: the guest is gone, or its VMM hostile.
    fn lost(&mut self) {
        log::info!("domain {}: its VMM is gone", self.domain);
        let Some(mut side) = self.side.take() else {
            return;
        };
        for disk in self.disks.values_mut() {
            disk.let_go(&mut side, None);
        }
        side.peer.close();
    }

    /// Nothing is to be served here: the seat is free for another guest.
    fn leave(&mut self) {
        let Some(own) = self.hub.seats.get(self.seat) else {
            return;
        };
        // A disk may have come meanwhile, whose event was for this seat.
        if let Some(side) = self.side.take() {
            side.peer.close();
        }
        own.domain.store(0, Ordering::Release);
        let _ = self.hub.main.signal(LOOK);
    }

    /// Hands on what the disk answered.
    fn completed(&mut self, done: Vec<Done>) {
        let mut way = Way {
            hub: self.hub,
            seat: self.seat,
        };
        let mut gone = false;
        for Done {
            token,
            request,
            status,
        } in done
        {
            if let Some(disk) = self.disks.get_mut(&token.device) {
                match disk.complete(token, request, status, self.side.as_mut(), &mut way) {
                    Ok(()) | Err(Fault::Broken) => {}
                    Err(Fault::Gone) => gone = true,
                }
            }
            way.release(request.place, request.room());
        }
        if gone {
            self.lost();
        }
    }

    /// Connects to the guest, if it is there.
    fn connect(&mut self) -> bool {
        if self.side.is_some() {
            return true;
        }
        let Some(own) = self.hub.seats.get(self.seat) else {
            return false;
        };
        match Peer::connect(self.hub.peers, self.domain, own.bell, GUEST_BIT) {
            Ok(peer) => {
                self.side = Some(Side { peer, mapped: 0 });
                true
            }
            // The store tells when it is.
            Err(Error::Root(PeersError::NotRunning | PeersError::NoDomain)) => false,
            Err(error) => {
                log::error!("domain {}: no connection: {error:?}", self.domain);
                false
            }
        }
    }

    /// Looks at the store: disks that came, went, or are in another state.
    fn look(&mut self) {
        let folder = alloc::format!("{BACKENDS}/{}", self.domain);
        let listed = match server::directory(self.hub, &folder) {
            Ok(listed) => listed,
            Err(error) => return log::error!("the store cannot be read: {error:?}"),
        };
        let numbers: Vec<u32> = listed.iter().filter_map(|name| name.parse().ok()).collect();
        for number in &numbers {
            if !self.disks.contains_key(number)
                && let Some(disk) = Vbd::open(self.hub, self.domain, *number)
            {
                self.disks.insert(*number, disk);
            }
        }
        for (number, disk) in &mut self.disks {
            if !numbers.contains(number) {
                disk.removed(self.hub, self.side.as_mut());
            }
        }
        self.disks.retain(|_, disk| !disk.is_over());
        let all: Vec<u32> = self.disks.keys().copied().collect();
        for number in all {
            if self
                .disks
                .get(&number)
                .is_some_and(|disk| disk.wants_guest(self.hub))
            {
                self.connect();
            }
            let share = self.disks.len();
            if let Some(disk) = self.disks.get_mut(&number)
                && disk.step(self.hub, self.side.as_mut(), share) == Err(Gone)
            {
                return self.lost();
            }
        }
    }

    /// Goes through all rings; true if there is more to do at once.
    fn work(&mut self) -> bool {
        let mut more = false;
        let mut gone = false;
        let mut parted = false;
        for disk in self.disks.values_mut() {
            let mut way = Way {
                hub: self.hub,
                seat: self.seat,
            };
            if let Some(side) = &mut self.side {
                match disk.work(self.hub, side, &mut way) {
                    Ok(again) => more |= again,
                    Err(Gone) => gone = true,
                }
            }
            parted |= disk.parted(self.hub);
        }
        if gone {
            self.lost();
        }
        if parted {
            // The next step may be due.
            self.look();
        }
        more
    }
}

/// Tells a guest of answers.
pub fn tell(side: &Side, channels: &[Channel]) {
    for channel in channels {
        // A VMM that is gone is found out by the next call.
        let _ = side.peer.signal(*channel);
    }
}

const _: () = assert!(DISK_BIT | STORE_BIT | GUEST_BIT | GONE_BIT == 15);
