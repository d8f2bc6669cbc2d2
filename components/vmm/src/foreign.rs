//! Other guests' grants and event channels, for a guest that is their driver domain: what its hypercalls
//! find here. A guest that is nobody's driver domain has no wire to root's `peers`, and nothing here ever
//! asks anybody for it.
//!
//! Used by vCPUs' threads and the service thread, under a lock of its own that is held for moments only:
//! nothing in this file waits for another VMM. What has to be asked of one is noted on the vCPU's desk
//! (`vmm_guest::desk`), and `ask.rs` does that when no lock is held. VMMs that wait for each other in a circle
//! there cannot be, because root gives no wire to a guest that is its own driver domain, through whomever
//! (`root_plan::peers`).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::task::Poll;

use sdk::peer::{Bell, Channel, Mapped, Peer};
use sdk::prelude::*;
use sdk::startup::PEERS_MAX;
use vmm_guest::desk::{Ask, Bound, Desk, GrantAsk, Left, PortAsk};
use xen_abi::{Domain, Errno, GrantCopy, GrantToken, LinkId};

use crate::ask::Line;
use crate::env::{Effects, NOBODY};
use crate::shared::{Shared, service};

/// Links from here on are connections to others' VMMs; those below are others' to us.
const FIRST_LINK: u16 = 0x100;

/// A connection.
struct Link {
    domid: u16,
    /// By which its VMM is asked.
    line: Arc<Line>,
    /// Events need no question.
    bell: Bell,
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
    /// Where the guest has it.
    place: Option<u64>,
}

/// Something that is over, which the other VMM is to be told.
pub enum Ended {
    /// A grant is not used any more.
    Grant(Mapped),
    /// A channel was closed.
    Channel(u32),
}

/// What a vCPU's thread has to do with other VMMs.
#[derive(Default)]
pub struct Work {
    /// To be asked, in order.
    pub asks: Vec<Ask>,
    /// To be told, with the number of the connection.
    pub ended: Vec<(u64, Ended)>,
}

/// A vCPU's part.
#[derive(Default)]
struct Part {
    desk: Desk,
    ended: Vec<(u64, Ended)>,
}

/// All of them.
pub struct Foreign {
    /// Root's `peers`, if this guest is a driver domain.
    pub root: Option<EndpointTransport>,
    /// The service thread's notification.
    pub own: Cap<cap::Notification>,
    /// At most [`PEERS_MAX`], each in its place for good or until it ends.
    links: Vec<Option<Link>>,
    grants: BTreeMap<u64, Grant>,
    parts: Vec<Part>,
    /// Domains that are not tried: root does not let us reach them, or they did not answer in time.
    refused: BTreeSet<u16>,
    next: u64,
}

impl Foreign {
    /// Nothing in use, by a guest of so many vCPUs. `own` is the service thread's notification.
    pub fn new(
        root: Option<Cap<cap::Endpoint>>,
        own: Cap<cap::Notification>,
        vcpus: u32,
    ) -> Foreign {
        Foreign {
            root: root.map(EndpointTransport),
            own,
            links: (0..PEERS_MAX).map(|_| None).collect(),
            grants: BTreeMap::new(),
            parts: (0..vcpus).map(|_| Part::default()).collect(),
            refused: BTreeSet::new(),
            next: 0,
        }
    }

    fn link(&mut self, id: LinkId) -> Option<&mut Link> {
        let place = id.0.checked_sub(FIRST_LINK)?;
        self.links.get_mut(usize::from(place))?.as_mut()
    }

    /// The connection of this number and its place.
    fn numbered(&mut self, number: u64) -> Option<(LinkId, &mut Link)> {
        let mut links = (FIRST_LINK..).zip(self.links.iter_mut());
        links.find_map(|(id, link)| {
            let link = link.as_mut().filter(|link| link.number == number)?;
            Some((LinkId(id), link))
        })
    }

    /// By what a domain is asked, and the number of the connection.
    pub fn line(&self, domid: u16) -> Option<(u64, Arc<Line>)> {
        let mut links = self.links.iter().flatten();
        let link = links.find(|link| link.domid == domid)?;
        Some((link.number, Arc::clone(&link.line)))
    }

    /// The same by the number.
    pub fn line_of(&mut self, number: u64) -> Option<Arc<Line>> {
        let (_, link) = self.numbered(number)?;
        Some(Arc::clone(&link.line))
    }

    fn desk(&mut self, vcpu: u32) -> Option<&mut Desk> {
        Some(&mut self.parts.get_mut(vcpu as usize)?.desk)
    }

    /// Whether a domain can be reached; if there is no connection yet, that is to be found out.
    pub fn reaches(&mut self, vcpu: u32, domid: u16) -> Poll<bool> {
        if self.root.is_none() || self.refused.contains(&domid) {
            return Poll::Ready(false);
        }
        if self.links.iter().flatten().any(|link| link.domid == domid) {
            return Poll::Ready(true);
        }
        self.desk(vcpu)
            .map_or(Poll::Ready(false), |desk| desk.reach(domid))
    }

    /// Where the next connection goes: its place, and the bit of the own notification for its events.
    pub fn free_place(&self) -> Option<(usize, u64)> {
        let place = self.links.iter().position(Option::is_none)?;
        Some((place, service::foreign(place)))
    }

    /// There is a connection now.
    pub fn connected(&mut self, place: usize, domid: u16, peer: Peer) {
        self.next += 1;
        let link = Link {
            domid,
            bell: peer.bell(),
            line: Arc::new(Line::new(peer)),
            number: self.next,
            ports: BTreeMap::new(),
        };
        if let Some(place) = self.links.get_mut(place) {
            *place = Some(link);
        }
    }

    /// There is none, for this call at least; for good if `refused`, which is until a VMM goes.
    pub fn unreachable(&mut self, vcpu: u32, domid: u16, refused: bool) {
        if refused {
            self.refused.insert(domid);
        }
        if let Some(desk) = self.desk(vcpu) {
            desk.unreachable(domid);
        }
    }

    /// The other VMM is gone, or is not to be waited for any more: so is what it gave.
    pub fn end(&mut self, number: u64, refused: bool) {
        let of = |link: &&mut Option<Link>| link.as_ref().is_some_and(|l| l.number == number);
        if let Some(link) = self.links.iter_mut().find(of).and_then(Option::take) {
            log::info!("domain {} is gone", link.domid);
            if refused {
                self.refused.insert(link.domid);
            }
            link.line.end();
        }
    }

    /// Ends the connections whose VMMs are gone.
    pub fn lost(&mut self) {
        self.refused.clear();
        let gone: Vec<u64> = self
            .links
            .iter()
            .flatten()
            .filter(|link| !link.bell.is_alive())
            .map(|link| link.number)
            .collect();
        gone.into_iter().for_each(|number| self.end(number, false));
    }

    /// Begins to use a grant.
    pub fn open(&mut self, vcpu: u32, ask: GrantAsk) -> Poll<Result<GrantToken, i16>> {
        self.desk(vcpu)
            .map_or(Poll::Ready(Err(crate::ask::GENERAL_ERROR)), |desk| {
                desk.grant(ask)
            })
    }

    /// Copies between grants, or between one and own memory.
    pub fn copy(&mut self, vcpu: u32, copy: GrantCopy) -> Poll<Result<(), i16>> {
        self.desk(vcpu)
            .map_or(Poll::Ready(Err(crate::ask::GENERAL_ERROR)), |desk| {
                desk.copy(copy)
            })
    }

    /// It was made, or refused.
    pub fn copied(&mut self, vcpu: u32, copy: GrantCopy, answer: Result<(), i16>) {
        if let Some(desk) = self.desk(vcpu) {
            desk.copied(copy, answer);
        }
    }

    /// A grant is going to be opened.
    pub fn open_soon(&mut self, vcpu: u32, ask: GrantAsk) {
        if let Some(desk) = self.desk(vcpu) {
            desk.grant_soon(ask);
        }
    }

    /// The other VMM's answer.
    pub fn opened(&mut self, vcpu: u32, link: u64, ask: GrantAsk, answer: Result<Mapped, i16>) {
        let answer = answer.map(|mapped| {
            self.next += 1;
            let grant = Grant {
                link,
                mapped,
                write: ask.write,
                place: None,
            };
            self.grants.insert(self.next, grant);
            GrantToken(self.next)
        });
        if let Some(desk) = self.desk(vcpu) {
            desk.granted(ask, answer);
        }
    }

    /// Puts its page into the guest's map.
    pub fn place(&mut self, shared: &Shared, token: GrantToken, gfn: u64) -> bool {
        let Some(grant) = self.grants.get_mut(&token.0) else {
            return false;
        };
        let (frame, write) = (grant.mapped.frame, grant.write);
        let mut map = shared.map.lock();
        let placed = map.place(&shared.ram, frame, gfn, write).is_ok();
        grant.place = placed.then_some(gfn);
        placed
    }

    /// Ends the use. The page goes when the other VMM is told, which is before the hypercall returns.
    pub fn close(&mut self, shared: &Shared, vcpu: u32, token: GrantToken) {
        if let Some(grant) = self.grants.get_mut(&token.0)
            && let Some(gfn) = grant.place.take()
        {
            shared.map.lock().let_go(grant.mapped.frame, gfn);
        }
        self.over(vcpu, token);
    }

    fn over(&mut self, vcpu: u32, token: GrantToken) {
        if let Some(grant) = self.grants.remove(&token.0) {
            self.tell(vcpu, grant.link, Ended::Grant(grant.mapped));
        }
    }

    fn tell(&mut self, vcpu: u32, link: u64, ended: Ended) {
        // Only vCPUs' threads end anything: others have no part, and no hypercalls.
        if let Some(part) = self.parts.get_mut(vcpu as usize) {
            part.ended.push((link, ended));
        }
    }

    /// Binds another domain's port to the own port `local`.
    pub fn bind(&mut self, vcpu: u32, ask: PortAsk) -> Poll<Result<(LinkId, u16), Errno>> {
        let Some(desk) = self.desk(vcpu) else {
            return Poll::Ready(Err(Errno::Srch));
        };
        desk.port(ask).map(|answer| {
            let bound = answer?;
            let current = self.link(bound.link).filter(|l| l.number == bound.number);
            // The connection may have ended meanwhile.
            current
                .map(|_| (bound.link, bound.channel))
                .ok_or(Errno::Srch)
        })
    }

    /// The other VMM's answer: the channel.
    pub fn bound(&mut self, vcpu: u32, number: u64, ask: PortAsk, answer: Result<Channel, Errno>) {
        let answer = answer.and_then(|Channel(channel)| {
            let (link, at) = self.numbered(number).ok_or(Errno::Srch)?;
            at.ports.insert(channel, ask.local);
            Ok(Bound {
                link,
                number,
                channel: channel as u16,
            })
        });
        if let Some(desk) = self.desk(vcpu) {
            desk.bound(ask, answer);
        }
    }

    /// The guest closed its end.
    pub fn unbind(&mut self, vcpu: u32, id: LinkId, channel: u16) {
        let channel = channel.into();
        if let Some(link) = self.link(id)
            && link.ports.remove(&channel).is_some()
        {
            let number = link.number;
            self.tell(vcpu, number, Ended::Channel(channel));
        }
    }

    /// The guest sent an event.
    pub fn send(&mut self, id: LinkId, channel: u16) {
        if let Some(link) = self.link(id) {
            // One that is gone is found out by the service thread.
            link.bell.signal(Channel(channel.into()));
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
            let Some(link) = self.link(id) else {
                continue;
            };
            for Channel(channel) in link.bell.pending() {
                if let Some(port) = link.ports.get(&channel) {
                    let number = channel as u16;
                    domain.notify_channel(*port, id, number, &shared.ram, &mut effects);
                }
            }
        }
    }

    /// Takes what a vCPU's thread is to ask and tell after a hypercall, which is `finished` unless it is
    /// made again.
    pub fn take_work(&mut self, vcpu: u32, finished: bool) -> Work {
        let Some(desk) = self.desk(vcpu) else {
            return Work::default();
        };
        let Left { grants, channels } = desk.left(finished);
        let asks = desk.take_asks();
        for token in grants {
            self.over(vcpu, token);
        }
        for bound in channels {
            if self
                .link(bound.link)
                .is_some_and(|l| l.number == bound.number)
            {
                self.unbind(vcpu, bound.link, bound.channel);
            }
        }
        let part = self.parts.get_mut(vcpu as usize);
        let ended = part.map(|part| core::mem::take(&mut part.ended));
        Work {
            asks,
            ended: ended.unwrap_or_default(),
        }
    }

    /// What is done, for the room that it takes to be used again.
    pub fn give_back(&mut self, vcpu: u32, mut work: Work) {
        work.asks.clear();
        work.ended.clear();
        if let Some(part) = self.parts.get_mut(vcpu as usize)
            && part.ended.is_empty()
        {
            part.ended = work.ended;
            part.desk.give_back(work.asks);
        }
    }

    /// Whether answers wait for a vCPU's next attempt.
    pub fn has_answers(&mut self, vcpu: u32) -> bool {
        self.desk(vcpu).is_some_and(|desk| !desk.is_empty())
    }
}
