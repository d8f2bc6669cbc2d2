//! Interface `peers`, and what makes using another's grants safe: the pages that a guest's VMM shares with
//! those who may call it, and empty pages in the place of granted ones that are gone.
//!
//! A guest's memory may be revoked, or a grant taken away by its VMM, while a backend reads or writes it.
//! The backend's thread then faults in the range that `sdk::peer` maps grants in. Root puts a zeroed page
//! of that backend's own memory there and lets the thread go on. So no guest, and no VMM, can
//! kill a backend, and root waits for nobody when it takes a guest down. A component that
//! asks for more such pages than it can need dies of its fault like any other.

use alloc::vec::Vec;

use idl::manifest::Manifest;
use idl::peer::Badge;
use idl::peers::{PeersError, PeersServer};
use root_plan::peers::{Caller, callers, drives_itself};
use root_plan::plan;
use sdk::abi::FRAME;
use sdk::abi::thread::State;
use sdk::memory::{ORDER_4K, READ_WRITE, Window};
use sdk::prelude::*;
use sdk::startup::{GRANTS_ADDRESS, GRANTS_BYTES, PEERS};

use super::guests::GuestPlace;
use super::instance::{Connection, Instance};
use super::maker::Maker;
use super::system::{self, Place, System};

/// Empty pages that one instance has at a time at most; its memory has room for them.
pub const EMPTY_MAX: usize = 128;
/// Vector of a page fault.
const PAGE_FAULT: u64 = 14;

/// The empty pages of an instance.
#[derive(Default)]
pub struct Empty {
    /// Where they are.
    used: Vec<(u64, Cap<cap::Frame>)>,
    /// Not mapped, and not zeroed.
    spare: Vec<Cap<cap::Frame>>,
}

impl Empty {
    /// Puts one at the page of `address`; true if there is one now.
    fn put(
        &mut self,
        maker: &mut Maker,
        window: &mut Window,
        space: Cap<cap::AddressSpace>,
        address: u64,
    ) -> bool {
        let address = address & !(FRAME - 1);
        if self.used.iter().any(|(at, _)| *at == address) {
            // Two threads fell over the same one.
            return true;
        }
        if self.used.len() >= EMPTY_MAX {
            return false;
        }
        let frame = match self.spare.pop() {
            Some(frame) => window
                .with(frame, 1, READ_WRITE, |bytes| bytes.fill(0))
                .map(|()| frame),
            None => maker.one::<cap::Frame>(ORDER_4K),
        };
        let Ok(frame) = frame else {
            return false;
        };
        // Nothing was ever mapped where there is no table, and what is mapped was touched wrongly.
        match frame.map(space, address, READ_WRITE) {
            Ok(()) => {
                self.used.push((address, frame));
                true
            }
            Err(_) => {
                self.spare.push(frame);
                false
            }
        }
    }

    /// Takes the one at `address` away.
    fn take(&mut self, address: u64) -> Result<(), PeersError> {
        let found = self.used.iter().position(|(at, _)| *at == address);
        let index = found.ok_or(PeersError::NoPage)?;
        let (_, frame) = self.used.swap_remove(index);
        frame
            .unmap()
            .map_err(|status| PeersError::Core(status as u32))?;
        self.spare.push(frame);
        Ok(())
    }
}

impl Instance {
    /// Lets threads go on that fell over grants that are gone.
    pub fn mend(&mut self, window: &mut Window) {
        for thread in self.threads.clone() {
            let Ok(report) = thread.inspect() else {
                continue;
            };
            let in_grants = report
                .address
                .checked_sub(GRANTS_ADDRESS)
                .is_some_and(|offset| offset < GRANTS_BYTES);
            if report.state == State::Faulted as u64
                && report.vector == PAGE_FAULT
                && in_grants
                && self
                    .empty
                    .put(&mut self.maker, window, self.space, report.address)
            {
                // What does not go on is found faulted.
                let _ = thread.resume();
            }
        }
    }

    /// The right to call this VMM with a badge, for its life.
    fn right(&mut self, badge: Badge) -> Result<Cap<cap::Endpoint>, PeersError> {
        let endpoint = self.peer.ok_or(PeersError::NotRunning)?;
        if let Some((_, right)) = self.rights.iter().find(|(other, _)| *other == badge) {
            return Ok(*right);
        }
        let rights = Rights::CALL.or(Rights::GRANT);
        let right = self.maker.badged(endpoint, rights, badge.word());
        let right = right.map_err(|status| PeersError::Core(status as u32))?;
        self.rights.push((badge, right));
        Ok(right)
    }
}

/// Answers one request.
pub struct Desk<'a> {
    /// The system's description.
    pub manifest: &'a Manifest,
    /// Guests in its order.
    pub guests: &'a [GuestPlace],
    /// All instances.
    pub places: &'a mut [Place],
}

/// The place of the component that asks.
fn place(client: u64) -> usize {
    // Badges are root's own: instance + 1, interface.
    usize::try_from(client >> 8).unwrap_or(0).wrapping_sub(1)
}

impl PeersServer for Desk<'_> {
    fn open(
        &mut self,
        client: u64,
        domain: u16,
    ) -> Result<(Cap<cap::Endpoint>, Cap<cap::Frame>), PeersError> {
        let mut all = self.guests.iter();
        let index = all.position(|guest| guest.domain == domain);
        let index = index.ok_or(PeersError::NoDomain)?;
        let caller = caller_at(self.places, self.guests, place(client));
        let callers = callers(self.manifest, index);
        let number = callers
            .iter()
            .position(|other| Some(*other) == caller)
            .ok_or(PeersError::NotWired)?;
        let badge = Badge {
            caller: number as u16,
            domain: callers.get(number).map_or(0, |caller| {
                caller.domain(|guest| self.guests.get(guest).map_or(0, |guest| guest.domain))
            }),
        };
        let guest = self.guests.get(index).ok_or(PeersError::NoDomain)?;
        let mut pages = guest.pages.iter();
        let page = pages.find(|(whose, _)| Some(*whose) == caller);
        let (_, page) = page.ok_or(PeersError::NotRunning)?;
        let vmm = self.places.get_mut(guest.vmm);
        let vmm = vmm.and_then(|place| place.instance.as_mut());
        let right = vmm.ok_or(PeersError::NotRunning)?.right(badge)?;
        Ok((right, *page))
    }

    fn mend(&mut self, client: u64, address: u64) -> Result<(), PeersError> {
        let place = self.places.get_mut(place(client));
        let instance = place.and_then(|place| place.instance.as_mut());
        instance.ok_or(PeersError::NoPage)?.empty.take(address)
    }
}

/// Who is at this place, if that could be one who uses grants: no guest's builder is.
fn caller_at(places: &[Place], guests: &[GuestPlace], index: usize) -> Option<Caller> {
    let place = places.get(index)?;
    match place.guest {
        None => Some(Caller::Component(place.component)),
        Some(guest) => {
            let vmm = guests.get(guest)?.vmm;
            (vmm == index).then_some(Caller::Guest(guest))
        }
    }
}

impl System {
    /// The pages that a guest's VMM shares with those who may call it, by their numbers. A place has one
    /// for each caller, made once and kept: the next VMM has the same, and so has the next guest there.
    pub(super) fn peer_pages(&mut self, guest: usize) -> Vec<Cap<cap::Frame>> {
        let mut pages = Vec::new();
        for caller in callers(&self.manifest, guest) {
            let kept = &mut self.guests[guest].pages;
            if let Some((_, page)) = kept.iter().find(|(whose, _)| *whose == caller) {
                pages.push(*page);
                continue;
            }
            let page = sdk::memory::own()
                .retype::<cap::Frame>(ORDER_4K)
                .and_then(|page| page.copy(Rights::READ.or(Rights::WRITE)));
            match page {
                Ok(page) => {
                    kept.push((caller, page));
                    pages.push(page);
                }
                Err(status) => {
                    log::error!("no page to share with a guest's backend: {status:?}");
                    break;
                }
            }
        }
        pages
    }

    /// Whether one of two instances may use the other's guest's grants.
    pub(super) fn share_grants(&self, one: usize, other: usize) -> bool {
        let uses = |user: usize, of: usize| {
            let caller = caller_at(&self.places, &self.guests, user);
            let guest = self.places.get(of).and_then(|place| place.guest);
            guest.is_some_and(|guest| {
                self.guests.get(guest).is_some_and(|place| place.vmm == of)
                    && callers(&self.manifest, guest)
                        .iter()
                        .any(|found| Some(*found) == caller)
            })
        };
        uses(one, other) || uses(other, one)
    }

    /// Tells those who use a guest's grants that its VMM is gone.
    pub(super) fn tell_users(&self, vmm: usize) {
        for (index, place) in self.places.iter().enumerate() {
            if index != vmm
                && let Some(instance) = &place.instance
                && self.share_grants(vmm, index)
                && let Err(status) = instance.notification.signal(PEERS)
            {
                log::error!("component {}: not told: {status:?}", place.name);
            }
        }
    }

    /// The wire `peers` of the VMM of a guest that is a driver domain of another one: no other VMM
    /// has it.
    pub(super) fn driver_wire(&self, index: usize) -> Option<Connection> {
        let guest = self.places[index].guest?;
        let drives = |other| callers(&self.manifest, other).contains(&Caller::Guest(guest));
        if self.guests[guest].vmm != index || !(0..self.manifest.guests.len()).any(drives) {
            return None;
        }
        if drives_itself(&self.manifest, guest) {
            log::error!(
                "guest {}: is its own driver domain, and gets no other guest's grants",
                self.manifest.guests[guest].name
            );
            return None;
        }
        Some(Connection {
            interface: "peers".into(),
            server: plan::ROOT.into(),
            endpoint: self.endpoint,
            rights: Rights::CALL.or(Rights::GRANT),
            badge: (index as u64 + 1) << 8 | system::PEERS,
        })
    }
}
