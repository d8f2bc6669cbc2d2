//! Other guests' grants and event channels, for a guest that is their driver domain: its hypercalls end
//! here, and interface `peer` of the other guest's VMM answers. A guest that is nobody's driver
//! domain has no wire to root's `peers`, and nothing here ever calls anybody for it.
//!
//! Used by vCPUs' threads and the service thread, under the domain's lock and, below that, its own. A
//! call waits for the other VMM: whoever serves guests waits for them. VMMs that wait for each other in a
//! circle there cannot be, because root gives no wire to a guest that is its own driver domain, through
//! whomever (`root_plan::peers`).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use idl::peer::PeerError;
use idl::peers::PeersError;
use sdk::peer::{Channel, Error, GrantRef, Mapped, Page, Peer};
use sdk::prelude::*;
use sdk::startup::PEERS_MAX;
use xen_abi::{Domain, Errno, GrantToken, LinkId};

use crate::env::{Effects, NOBODY};
use crate::shared::{Shared, service};

/// Links from here on are connections to others' VMMs; those below are others' to us.
const FIRST_LINK: u16 = 0x100;
/// `GNTST_general_error`, `GNTST_bad_domain`, `GNTST_no_device_space`.
const GENERAL_ERROR: i16 = -1;
const BAD_DOMAIN: i16 = -2;
const NO_DEVICE_SPACE: i16 = -7;

/// A connection.
struct Link {
    domid: u16,
    peer: Peer,
    /// Distinguishes it from an earlier one in its place.
    number: u64,
    /// Own ports by channel.
    ports: BTreeMap<u32, u32>,
}

/// A grant in use.
struct Grant {
    /// Number of its connection.
    link: u64,
    mapped: Mapped,
    write: bool,
    /// Own mapping, once bytes were copied.
    page: Option<Page>,
    /// Where the guest has it, and the copy that is mapped there.
    place: Option<(u64, Cap<cap::Frame>)>,
}

/// All of them.
pub struct Foreign {
    /// Root's `peers`, if this guest is a driver domain.
    root: Option<EndpointTransport>,
    own: Cap<cap::Notification>,
    /// At most [`PEERS_MAX`], each in its place for good or until it ends.
    links: Vec<Option<Link>>,
    grants: BTreeMap<u64, Grant>,
    /// Domains that root does not let us reach.
    refused: BTreeSet<u16>,
    next: u64,
}

impl Foreign {
    /// Nothing in use. `own` is the service thread's notification.
    pub fn new(root: Option<Cap<cap::Endpoint>>, own: Cap<cap::Notification>) -> Foreign {
        Foreign {
            root: root.map(EndpointTransport),
            own,
            links: (0..PEERS_MAX).map(|_| None).collect(),
            grants: BTreeMap::new(),
            refused: BTreeSet::new(),
            next: 0,
        }
    }

    fn link(&mut self, place: usize) -> Option<&mut Link> {
        self.links.get_mut(place)?.as_mut()
    }

    fn numbered(&mut self, number: u64) -> Option<&mut Link> {
        let mut links = self.links.iter_mut().flatten();
        links.find(|link| link.number == number)
    }

    /// The place of the connection to a domain, which is made if there is none.
    pub fn reach(&mut self, domid: u16) -> Option<usize> {
        let root = self.root?;
        let found = self.links.iter().position(|link| {
            let link = link.as_ref();
            link.is_some_and(|link| link.domid == domid)
        });
        if found.is_some() || self.refused.contains(&domid) {
            return found;
        }
        let place = self.links.iter().position(Option::is_none)?;
        match Peer::connect(root, domid, self.own, service::foreign(place)) {
            Ok(peer) => {
                self.next += 1;
                let link = Link {
                    domid,
                    peer,
                    number: self.next,
                    ports: BTreeMap::new(),
                };
                *self.links.get_mut(place)? = Some(link);
                Some(place)
            }
            Err(Error::Root(PeersError::NoDomain | PeersError::NotWired)) => {
                self.refused.insert(domid);
                None
            }
            Err(error) => {
                log::warn!("domain {domid} cannot be reached: {error:?}");
                None
            }
        }
    }

    /// The other VMM is gone: so is what it gave.
    fn end(&mut self, place: usize) {
        if let Some(link) = self.links.get_mut(place).and_then(Option::take) {
            log::info!("domain {} is gone", link.domid);
            link.peer.close();
        }
    }

    /// Ends the connections whose VMMs are gone.
    pub fn lost(&mut self) {
        self.refused.clear();
        for place in 0..self.links.len() {
            if self.link(place).is_some_and(|link| !link.peer.is_alive()) {
                self.end(place);
            }
        }
    }

    /// Begins to use a grant.
    pub fn open(&mut self, domid: u16, reference: u32, write: bool) -> Result<GrantToken, i16> {
        let place = self.reach(domid).ok_or(BAD_DOMAIN)?;
        let link = self.link(place).ok_or(BAD_DOMAIN)?;
        let number = link.number;
        let mapped = match link.peer.map(&[GrantRef { reference, write }]) {
            Ok(mut one) => one.pop().unwrap_or(Err(GENERAL_ERROR))?,
            Err(Error::Refused(PeerError::Full) | Error::Core(_)) => return Err(NO_DEVICE_SPACE),
            Err(error) => {
                log::warn!("domain {domid} answers no more: {error:?}");
                self.end(place);
                return Err(GENERAL_ERROR);
            }
        };
        self.next += 1;
        let grant = Grant {
            link: number,
            mapped,
            write,
            page: None,
            place: None,
        };
        self.grants.insert(self.next, grant);
        Ok(GrantToken(self.next))
    }

    /// Puts its page into the guest's map.
    pub fn place(&mut self, shared: &Shared, token: GrantToken, gfn: u64) -> bool {
        let Some(grant) = self.grants.get_mut(&token.0) else {
            return false;
        };
        let (frame, write) = (grant.mapped.frame, grant.write);
        let mut map = shared.map.lock();
        let placed = map.place(&shared.ram, frame, gfn, write).ok();
        grant.place = placed.map(|copy| (gfn, copy));
        placed.is_some()
    }

    /// The page in own addresses.
    fn page(&mut self, token: GrantToken) -> Option<&Page> {
        let grant = self.grants.get(&token.0)?;
        let (number, mapped, write) = (grant.link, grant.mapped, grant.write);
        if grant.page.is_none() {
            let page = self.numbered(number)?.peer.page(mapped, write).ok()?;
            self.grants.get_mut(&token.0)?.page = Some(page);
        }
        self.grants.get(&token.0)?.page.as_ref()
    }

    /// Reads from it.
    pub fn read(&mut self, token: GrantToken, offset: usize, into: &mut [u8]) -> bool {
        self.page(token).is_some_and(|page| page.read(offset, into))
    }

    /// Writes to it.
    pub fn write(&mut self, token: GrantToken, offset: usize, from: &[u8]) -> bool {
        self.page(token)
            .is_some_and(|page| page.write(offset, from))
    }

    /// Ends the use.
    pub fn close(&mut self, shared: &Shared, token: GrantToken) {
        let Some(grant) = self.grants.remove(&token.0) else {
            return;
        };
        if let Some((gfn, copy)) = grant.place {
            shared.map.lock().take_out(copy, gfn);
        }
        // What a connection that ended had is gone already.
        if let Some(link) = self.numbered(grant.link) {
            let done = match grant.page {
                Some(page) => link.peer.unmap_pages(Vec::from([page])),
                None => link.peer.unmap(&[grant.mapped.handle]),
            };
            if let Err(error) = done {
                log::warn!("domain {} answers no more: {error:?}", link.domid);
            }
        }
    }

    /// Binds another domain's port to the own port `local`.
    pub fn bind(&mut self, domid: u16, port: u32, local: u32) -> Result<(LinkId, u16), Errno> {
        let place = self.reach(domid).ok_or(Errno::Srch)?;
        let link = self.link(place).ok_or(Errno::Srch)?;
        let Channel(number) = link.peer.bind(port).map_err(|_| Errno::Inval)?;
        link.ports.insert(number, local);
        Ok((LinkId(FIRST_LINK + place as u16), number as u16))
    }

    /// The guest closed its end.
    pub fn unbind(&mut self, link: LinkId, channel: u16) {
        if let Some(link) = link
            .0
            .checked_sub(FIRST_LINK)
            .and_then(|place| self.link(place.into()))
            && link.ports.remove(&channel.into()).is_some()
        {
            // One that is gone has nothing bound.
            let _ = link.peer.unbind(Channel(channel.into()));
        }
    }

    /// The guest sent an event.
    pub fn send(&mut self, link: LinkId, channel: u16) {
        let place = link.0.checked_sub(FIRST_LINK);
        if let Some(link) = place.and_then(|place| self.link(place.into())) {
            // One that is gone is found out by the service thread.
            link.peer.signal(Channel(channel.into()));
        }
    }

    /// Makes the guest's ports pending whose bits other VMMs set.
    pub fn woken(&mut self, bits: u64, shared: &Shared, domain: &mut Domain) {
        let mut effects = Effects::new(shared, NOBODY, None);
        let mut bits = bits & service::FOREIGN;
        while bits != 0 {
            let place = (bits.trailing_zeros() - service::foreign(0).trailing_zeros()) as usize;
            bits &= bits - 1;
            let id = LinkId(FIRST_LINK + place as u16);
            let Some(link) = self.link(place) else {
                continue;
            };
            for Channel(channel) in link.peer.pending() {
                if let Some(port) = link.ports.get(&channel) {
                    let number = channel as u16;
                    domain.notify_channel(*port, id, number, &shared.ram, &mut effects);
                }
            }
        }
    }
}
