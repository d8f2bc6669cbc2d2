//! Who uses this guest's grants and event channels from outside: backends, and VMMs of other guests.
//! The state behind interface `peer`, without the core: what is mapped and bound by whom, and that all of
//! it ends with the connection.
//!
//! Called by the VMM's service thread with the domain locked. Every caller is distrusted: what it has is
//! counted, and it names what it has by numbers that mean something in its own connection only.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use idl::peer::{CHANNELS, COPY_MAX, ChannelPage, GrantCopy, GrantRef, MAPPINGS_MAX, PeerError};
use xen_abi::{Domain, Env, GuestMemory, LinkId};

/// `EINVAL` and `ENOSPC` of Xen's public/errno.h.
const EINVAL: u16 = 22;
const ENOSPC: u16 = 28;
/// `GNTST_general_error`, `GNTST_bad_copy_arg`.
const GENERAL_ERROR: i16 = -1;
const BAD_COPY_ARG: i16 = -10;
const PAGE: u64 = 4096;

/// Makes what callers get: capabilities to pages of the guest.
pub trait Frames {
    /// One of them. Nothing refers to it once it was revoked.
    type Frame: Copy;
    /// A capability to the page at guest frame `gfn`, which is RAM; none when there is no slot.
    fn grant(&mut self, gfn: u64, write: bool) -> Option<Self::Frame>;
    /// Takes it away from everybody.
    fn revoke(&mut self, frame: Self::Frame);
    /// Whether RAM is at this guest frame.
    fn is_ram(&self, gfn: u64) -> bool;
}

#[derive(Debug)]
struct Mapping<F> {
    reference: u32,
    write: bool,
    frame: F,
}

/// A connection.
#[derive(Debug)]
struct Link<F> {
    /// The domain as which the caller speaks.
    domain: u16,
    mappings: BTreeMap<u32, Mapping<F>>,
    next: u32,
    /// The guest's port of each channel; 0 for none.
    ports: Vec<u32>,
}

/// All connections, by the number of the caller.
#[derive(Debug)]
pub struct Links<F> {
    links: BTreeMap<u16, Link<F>>,
}

impl<F> Default for Links<F> {
    fn default() -> Self {
        Links {
            links: BTreeMap::new(),
        }
    }
}

/// What the guest's side of a request needs.
pub struct Side<'a, M, S: Frames> {
    /// The guest's domain, locked.
    pub domain: &'a mut Domain,
    /// Its memory.
    pub memory: &'a M,
    /// Its pages.
    pub frames: &'a mut S,
}

impl<F: Copy> Links<F> {
    /// Begins a connection of `caller`, which speaks as `domain`, or begins it anew.
    pub fn attach<M: GuestMemory, S: Frames<Frame = F>>(
        &mut self,
        caller: u16,
        domain: u16,
        page: &ChannelPage,
        side: &mut Side<'_, M, S>,
    ) {
        self.detach(caller, page, side);
        let link = Link {
            domain,
            mappings: BTreeMap::new(),
            next: 0,
            ports: alloc::vec![0; CHANNELS as usize],
        };
        self.links.insert(caller, link);
    }

    /// Ends a connection: what it mapped is taken away, its channels are unbound.
    pub fn detach<M: GuestMemory, S: Frames<Frame = F>>(
        &mut self,
        caller: u16,
        page: &ChannelPage,
        side: &mut Side<'_, M, S>,
    ) {
        if let Some(link) = self.links.remove(&caller) {
            for mapping in link.mappings.into_values() {
                end(&mapping, side);
            }
            for (channel, port) in (0..).zip(link.ports) {
                side.domain.unbind_channel(port, LinkId(caller), channel);
            }
        }
        page.to_guest.clear();
        page.to_caller.clear();
    }

    /// Callers that are attached.
    pub fn callers(&self) -> impl Iterator<Item = u16> + '_ {
        self.links.keys().copied()
    }

    fn link(&mut self, caller: u16) -> Result<&mut Link<F>, PeerError> {
        self.links.get_mut(&caller).ok_or(PeerError::Unattached)
    }

    /// Maps one grant: its handle and the page.
    pub fn map<M: GuestMemory, S: Frames<Frame = F>>(
        &mut self,
        caller: u16,
        grant: GrantRef,
        side: &mut Side<'_, M, S>,
    ) -> Result<(u32, F), PeerError> {
        let link = self.link(caller)?;
        if link.mappings.len() >= MAPPINGS_MAX as usize {
            return Err(PeerError::Full);
        }
        let GrantRef { reference, write } = grant;
        let frames = &mut *side.frames;
        let is_ram = |gfn| frames.is_ram(gfn);
        let gfn = side
            .domain
            .pin_grant(link.domain, reference, write, side.memory, is_ram)
            .map_err(PeerError::Grant)?;
        let Some(frame) = frames.grant(gfn, write) else {
            side.domain.unpin_grant(reference, write, side.memory);
            return Err(PeerError::Full);
        };
        // Fewer than all numbers are taken.
        while link.mappings.contains_key(&link.next) {
            link.next = link.next.wrapping_add(1);
        }
        let handle = link.next;
        link.next = handle.wrapping_add(1);
        let mapping = Mapping {
            reference,
            write,
            frame,
        };
        link.mappings.insert(handle, mapping);
        Ok((handle, frame))
    }

    /// Maps four grants or none.
    pub fn map_four<M: GuestMemory, S: Frames<Frame = F>>(
        &mut self,
        caller: u16,
        grants: [GrantRef; 4],
        side: &mut Side<'_, M, S>,
    ) -> Result<[(u32, F); 4], PeerError> {
        let mut made = Vec::with_capacity(grants.len());
        for grant in grants {
            match self.map(caller, grant, side) {
                Ok(one) => made.push(one),
                Err(error) => {
                    made.iter().for_each(|(handle, _)| {
                        self.unmap(caller, *handle, side);
                    });
                    return Err(error);
                }
            }
        }
        made.try_into().map_err(|_| PeerError::Full)
    }

    /// Copies between a grant and the page of the connection.
    pub fn copy<M: GuestMemory, S: Frames<Frame = F>>(
        &mut self,
        caller: u16,
        part: GrantCopy,
        page: &ChannelPage,
        side: &mut Side<'_, M, S>,
    ) -> Result<(), PeerError> {
        let user = self.link(caller)?.domain;
        let GrantCopy {
            reference,
            write,
            offset,
            length,
        } = part;
        if usize::from(length) > COPY_MAX {
            return Err(PeerError::Grant(BAD_COPY_ARG));
        }
        let (domain, memory, frames) = (&mut *side.domain, side.memory, &*side.frames);
        let is_ram = |gfn| frames.is_ram(gfn);
        let gfn = domain
            .pin_for_copy(user, reference, write, (offset, length), memory, is_ram)
            .map_err(PeerError::Grant)?;
        let (address, length) = (gfn * PAGE + u64::from(offset), length.into());
        let done = if write {
            memory.write_shared(address, &page.data, length)
        } else {
            memory.read_shared(address, &page.data, length)
        };
        domain.unpin_grant(reference, write, memory);
        done.map_err(|_| PeerError::Grant(GENERAL_ERROR))
    }

    /// Ends a mapping; true if there was one.
    pub fn unmap<M: GuestMemory, S: Frames<Frame = F>>(
        &mut self,
        caller: u16,
        handle: u32,
        side: &mut Side<'_, M, S>,
    ) -> bool {
        let mapping = self
            .links
            .get_mut(&caller)
            .and_then(|link| link.mappings.remove(&handle));
        if let Some(mapping) = &mapping {
            end(mapping, side);
        }
        mapping.is_some()
    }

    /// Binds the guest's port to a channel: its number. The caller's end gets an event at once, as a
    /// port of Xen's does when it is bound: what the guest sent before is not lost. `own` is what the
    /// caller's guest calls its end; what is no guest has the number of the channel for that.
    pub fn bind<E: Env>(
        &mut self,
        caller: u16,
        port: u32,
        own: Option<u32>,
        domain: &mut Domain,
        env: &mut E,
    ) -> Result<u32, PeerError> {
        let link = self.link(caller)?;
        let id = LinkId(caller);
        // A channel whose port the guest has closed is free.
        let free = (0u16..)
            .zip(&mut link.ports)
            .find(|(channel, port)| !domain.is_channel(**port, id, *channel));
        let (channel, place) = free.ok_or(PeerError::Event(ENOSPC))?;
        domain
            .bind_channel(
                port,
                link.domain,
                id,
                channel,
                own.unwrap_or(channel.into()),
            )
            .map_err(|_| PeerError::Event(EINVAL))?;
        *place = port;
        env.channel_event(id, channel);
        Ok(channel.into())
    }

    /// Ends a channel.
    pub fn unbind(&mut self, caller: u16, channel: u32, domain: &mut Domain) {
        if let Some(link) = self.links.get_mut(&caller)
            && let Some(port) = link.ports.get_mut(channel as usize)
        {
            domain.unbind_channel(*port, LinkId(caller), channel as u16);
            *port = 0;
        }
    }

    /// Makes the guest's ports pending whose bits the caller set.
    pub fn events<M: GuestMemory, E: Env>(
        &self,
        caller: u16,
        page: &ChannelPage,
        domain: &mut Domain,
        memory: &M,
        env: &mut E,
    ) {
        let Some(link) = self.links.get(&caller) else {
            return;
        };
        for channel in page.to_guest.take() {
            if let Some(port) = link.ports.get(channel as usize) {
                domain.notify_channel(*port, LinkId(caller), channel as u16, memory, env);
            }
        }
    }
}

/// The frame first: flags that are clear say that nobody reads or writes.
fn end<M: GuestMemory, S: Frames>(mapping: &Mapping<S::Frame>, side: &mut Side<'_, M, S>) {
    side.frames.revoke(mapping.frame);
    side.domain
        .unpin_grant(mapping.reference, mapping.write, side.memory);
}

#[cfg(test)]
mod tests;
