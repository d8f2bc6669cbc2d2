//! Interface `peer` on the machine: capabilities for backends and other guests' VMMs, and events from
//! them. What they may have is decided in `vmm_guest::links`; this file makes it.
//!
//! Runs on the service thread. It calls nobody, so that who waits for it waits for no third party;
//! a caller that is gone is found out by its notification.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use alloc::boxed::Box;
use alloc::vec::Vec;
use idl::peer::{Badge, ChannelPage, GrantCopy, GrantRef, Peer, PeerError, PeerServer, UNMAP_MAX};
use sdk::memory;
use sdk::prelude::*;
use sdk::startup::PeersStart;
use xen_abi::{Domain, LinkId};

use crate::env::{Effects, NOBODY};
use crate::shared::{Shared, service};
use vmm_guest::links::{Frames, Links, Side};
use vmm_guest::ram::Ram;

/// Where events for one caller go; used by all threads, under the domain's lock.
#[derive(Debug)]
pub struct Outlet {
    page: &'static ChannelPage,
    /// The caller's notification, 0 while it is not attached.
    wake: AtomicU32,
}

impl Outlet {
    /// The outlets for all callers that there can be.
    pub fn all(start: &PeersStart) -> Result<Box<[Outlet]>, Status> {
        let page = |slot: &u32| {
            let page = memory::map_shared::<ChannelPage>(Cap::new(*slot))?;
            Ok(Outlet {
                page,
                wake: AtomicU32::new(0),
            })
        };
        start.pages.iter().map(page).collect()
    }

    fn wake(&self) -> Option<Cap<cap::Notification>> {
        let slot = self.wake.load(Ordering::SeqCst);
        (slot != 0).then(|| Cap::new(slot))
    }

    /// Sends an event to the caller. One that is gone is found out by others.
    pub fn send(&self, channel: u16) {
        if self.page.to_caller.set(channel.into())
            && let Some(wake) = self.wake()
        {
            let _ = wake.signal(1);
        }
    }
}

/// It was said that pages could not be granted: whoever asks for them could have it said without end.
static SAID: AtomicBool = AtomicBool::new(false);

/// The guest's pages as capabilities.
struct Pages<'a>(&'a Shared);

impl Frames for Pages<'_> {
    type Frame = Cap<cap::Frame>;

    fn grant(&mut self, gfn: u64, write: bool) -> Option<Cap<cap::Frame>> {
        match self.0.map.lock().page(gfn, write) {
            Ok(frame) => Some(frame),
            Err(status) => {
                if !SAID.swap(true, Ordering::Relaxed) {
                    log::warn!(
                        "guest frame {gfn:#x} not granted: {status:?}; no more is said of that"
                    );
                }
                None
            }
        }
    }

    fn revoke(&mut self, frame: Cap<cap::Frame>) {
        if let Err(status) = frame.delete() {
            log::error!("a granted page not taken back: {status:?}");
        }
    }

    fn is_ram(&self, gfn: u64) -> bool {
        self.0.ram.is_plain(gfn)
    }
}

/// The server.
pub struct Peers {
    shared: &'static Shared,
    links: Links<Cap<cap::Frame>>,
    /// What each caller signals us by; those that it was given are derived from it.
    doorbells: Vec<Cap<cap::Notification>>,
}

/// Receives for the server, and the bits of the service thread's notification.
pub fn receiver(env: &Env, start: &PeersStart) -> Result<Receiver, Status> {
    env.notification().bind_messages(env.thread())?;
    Receiver::new(Cap::new(start.endpoint), REPLY, 1)
}

impl Peers {
    /// Serves as many callers as there are outlets.
    pub fn new(shared: &'static Shared) -> Result<Peers, Status> {
        let mint = |caller| shared.service.mint(Rights::SIGNAL, service::peer(caller));
        Ok(Peers {
            shared,
            links: Links::default(),
            doorbells: (0..shared.outlets.len())
                .map(mint)
                .collect::<Result<_, Status>>()?,
        })
    }

    /// Answers one request.
    pub fn answer(&mut self, receiver: &mut Receiver, message: Message) {
        // The caller may be gone when the answer comes: then `lost` finds it.
        let _ = receiver.answer::<Peer, _>(message, self);
    }

    /// Takes the events of the callers whose bits these are.
    pub fn woken(&mut self, bits: u64) {
        let shared = self.shared;
        for (caller, outlet) in shared.outlets.iter().enumerate() {
            if bits & service::peer(caller) != 0 {
                let mut effects = Effects::new(shared, NOBODY, None);
                let mut domain = shared.domain.lock();
                self.links.events(
                    caller as u16,
                    outlet.page,
                    &mut domain,
                    &shared.ram,
                    &mut effects,
                );
            }
        }
    }

    /// Ends the connections of callers that are gone, so that the guest can end its grants.
    pub fn lost(&mut self) {
        let callers: Vec<u16> = self.links.callers().collect();
        for caller in callers {
            let outlet = self.shared.outlets.get(usize::from(caller));
            let alive = outlet
                .and_then(Outlet::wake)
                .is_some_and(|wake| wake.signal(1).is_ok());
            if let (false, Some(outlet)) = (alive, outlet) {
                self.with(|links, side| links.detach(caller, outlet.page, side));
                drop_wake(outlet);
            }
        }
    }

    fn with<R>(
        &mut self,
        work: impl FnOnce(&mut Links<Cap<cap::Frame>>, &mut Side<'_, Ram, Pages<'_>>) -> R,
    ) -> R {
        let shared = self.shared;
        let mut domain = shared.domain.lock();
        let mut side = Side {
            domain: &mut domain,
            memory: &shared.ram,
            frames: &mut Pages(shared),
        };
        work(&mut self.links, &mut side)
    }

    fn events<R>(
        &mut self,
        work: impl FnOnce(&mut Links<Cap<cap::Frame>>, &mut Domain, &mut Effects<'_>) -> R,
    ) -> R {
        let shared = self.shared;
        let mut effects = Effects::new(shared, NOBODY, None);
        work(&mut self.links, &mut shared.domain.lock(), &mut effects)
    }
}

/// Nobody is to be woken any more.
fn drop_wake(outlet: &Outlet) {
    if let Some(wake) = outlet.wake() {
        outlet.wake.store(0, Ordering::SeqCst);
        sdk::slots::discard(wake);
    }
}

/// The caller that a badge names.
fn caller(client: u64) -> Result<Badge, PeerError> {
    Badge::of(client).ok_or(PeerError::Unattached)
}

impl PeerServer for Peers {
    fn attach(
        &mut self,
        client: u64,
        wake: Cap<cap::Notification>,
    ) -> Result<Cap<cap::Notification>, PeerError> {
        let place = caller(client).ok().and_then(|badge| {
            let index = usize::from(badge.caller);
            let outlet = self.shared.outlets.get(index)?;
            Some((badge, outlet, *self.doorbells.get(index)?))
        });
        let Some((badge, outlet, doorbell)) = place else {
            sdk::slots::discard(wake);
            return Err(PeerError::Unattached);
        };
        let shared = self.shared;
        self.with(|links, side| {
            links.attach(badge.caller, badge.domain, outlet.page, side);
            // Under the domain's lock: no thread uses the old one.
            drop_wake(outlet);
            outlet.wake.store(wake.slot(), Ordering::SeqCst);
        });
        // An earlier instance's goes.
        doorbell.revoke().map_err(|_| PeerError::Full)?;
        log::debug!(
            "caller {} attached as domain {}, {} grants in use",
            badge.caller,
            badge.domain,
            shared.domain.lock().pinned_grants()
        );
        Ok(doorbell)
    }

    fn map(&mut self, client: u64, grant: GrantRef) -> Result<(u32, Cap<cap::Frame>), PeerError> {
        let badge = caller(client)?;
        self.with(|links, side| links.map(badge.caller, grant, side))
    }

    fn map_four(
        &mut self,
        client: u64,
        grants: [GrantRef; 4],
    ) -> Result<
        (
            [u32; 4],
            Cap<cap::Frame>,
            Cap<cap::Frame>,
            Cap<cap::Frame>,
            Cap<cap::Frame>,
        ),
        PeerError,
    > {
        let badge = caller(client)?;
        let [a, b, c, d] = self.with(|links, side| links.map_four(badge.caller, grants, side))?;
        Ok(([a.0, b.0, c.0, d.0], a.1, b.1, c.1, d.1))
    }

    fn unmap(&mut self, client: u64, handles: idl::heapless::Vec<u32, UNMAP_MAX>) -> u32 {
        let Ok(badge) = caller(client) else {
            return 0;
        };
        self.with(|links, side| {
            let known = handles
                .iter()
                .filter(|handle| links.unmap(badge.caller, **handle, side));
            known.count() as u32
        })
    }

    fn bind(&mut self, client: u64, port: u32) -> Result<u32, PeerError> {
        let badge = caller(client)?;
        let caller = badge.caller;
        self.events(|links, domain, effects| links.bind(caller, port, None, domain, effects))
    }

    fn bind_port(&mut self, client: u64, port: u32, own: u32) -> Result<u32, PeerError> {
        let caller = caller(client)?.caller;
        self.events(|links, domain, effects| links.bind(caller, port, Some(own), domain, effects))
    }

    fn copy(&mut self, client: u64, part: GrantCopy) -> Result<(), PeerError> {
        let caller = caller(client)?.caller;
        let outlet = self.shared.outlets.get(usize::from(caller));
        let page = outlet.ok_or(PeerError::Unattached)?.page;
        self.with(|links, side| links.copy(caller, part, page, side))
    }

    fn unbind(&mut self, client: u64, channel: u32) {
        if let Ok(badge) = caller(client) {
            self.events(|links, domain, _| links.unbind(badge.caller, channel, domain));
        }
    }
}

impl Shared {
    /// The guest sent an event to a channel of this connection; false if it is not one of callers'.
    pub fn channel_event(&self, link: LinkId, channel: u16) -> bool {
        let outlet = self.outlets.get(usize::from(link.0));
        if let Some(outlet) = outlet {
            outlet.send(channel);
        }
        outlet.is_some()
    }
}
