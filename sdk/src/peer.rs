//! A guest from a backend's side: its grants and its event channels, by interface `peer` of its VMM.
//! VMMs use it too, towards the guests that theirs is a driver domain of.
//!
//! A [`Peer`] is one connection. Calls wait for the guest's VMM, which a hostile guest may have in its
//! hands and which then never answers: give each guest a thread of its own, and let nobody wait for that
//! thread. When the VMM goes (the guest is switched off, reset, destroyed) calls fail with
//! [`Error::Gone`], and bit [`crate::startup::PEERS`] comes; nothing can be done with the connection then
//! but to drop it with [`Peer::close`] and to open another one, when the store says that the guest is back.
//!
//! # Granted memory goes away at any time
//! The frames of a guest that ends, or whose VMM is hostile, are taken away while somebody reads or
//! writes them. So that a backend survives that, it maps them by [`Peer::map_pages`] and in no other way: those
//! addresses are in a range ([`crate::startup::GRANTS_ADDRESS`]) in which root answers a fault with an
//! empty page, and the thread goes on. What is read then is zeros, what is written is lost, which is no
//! more than the guest could have done itself. There is no reference into such a page ever: bytes are
//! copied in and out, words are loaded and stored.

mod window;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use idl::cap::{Frame, Notification};
pub use idl::peer::GrantRef;
use idl::peer::{CHANNELS, COPY_MAX, ChannelPage, GrantCopy, PeerClient, PeerError, UNMAP_MAX};
use idl::peers::{PeersClient, PeersError};
use idl::{CallError, Cap, ConnectError, Failure, heapless};
use microvisor_abi::{FRAME, Rights, Status};

use crate::caps::{AnyCap, Mappable, NotificationCap};
use crate::ipc::EndpointTransport;
use crate::memory::{self, OWN_SPACE, READ, READ_WRITE, SharedPage};
use crate::slots::discard;
use crate::startup::{GRANTS_ADDRESS, GRANTS_BYTES};
use crate::sync::Mutex;

// SAFETY: it consists of atomics and arrays of them, and is 4096 bytes.
unsafe impl SharedPage for ChannelPage {}

/// Why something failed for the whole connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Root gives no connection.
    Root(PeersError),
    /// The VMM, or root, was built from another version of the interface.
    Schema,
    /// The guest's VMM is gone, or was never there: drop the connection.
    Gone(Failure<Status>),
    /// The VMM refuses.
    Refused(PeerError),
    /// The core refused: no slots or memory of our own, most likely.
    Core(Status),
}

/// `GNTST_general_error`.
const GENERAL_ERROR: i16 = -1;

/// A mapped grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// By which it is unmapped.
    pub handle: u32,
    /// The page, 4 KiB. Goes away with [`Peer::unmap`], and whenever the guest's VMM wants.
    pub frame: Cap<Frame>,
}

/// An event channel, by its number in the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Channel(pub u32);

/// The events of a connection, which need no call: for those who must not wait for one that somebody
/// else makes.
#[derive(Clone, Copy, Debug)]
pub struct Bell {
    /// Of the VMM.
    doorbell: Cap<Notification>,
    page: &'static ChannelPage,
}

impl Bell {
    /// Sends an event: a bit, and a signal if it was clear. False: the VMM is gone.
    pub fn signal(&self, channel: Channel) -> bool {
        !self.page.to_guest.set(channel.0) || self.doorbell.signal(1).is_ok()
    }

    /// Takes the events that came. Only after a wait for the bit that was given to
    /// [`Peer::connect`], or the next event may not set it.
    pub fn pending(&self) -> impl Iterator<Item = Channel> + use<> {
        let page: &'static ChannelPage = self.page;
        page.to_caller.take().map(Channel)
    }

    /// Whether the VMM that was attached to is still there. To be asked when bit
    /// [`crate::startup::PEERS`] came. The VMM has to look for bits once more, no harm.
    pub fn is_alive(&self) -> bool {
        self.doorbell.signal(1).is_ok()
    }
}

/// A connection to one guest.
pub struct Peer {
    client: PeerClient<EndpointTransport>,
    endpoint: EndpointTransport,
    /// Given to the VMM.
    wake: Cap<Notification>,
    bell: Bell,
    page_frame: Cap<Frame>,
    page_address: u64,
    /// What is mapped, by handle.
    mapped: BTreeMap<u32, Cap<Frame>>,
}

fn connected<T>(answer: Result<T, ConnectError<Status>>) -> Result<T, Error> {
    answer.map_err(|error| match error {
        ConnectError::Schema { .. } => Error::Schema,
        ConnectError::Failure(failure) => Error::Gone(failure),
    })
}

fn gone(error: CallError<core::convert::Infallible, Status>) -> Error {
    match error {
        CallError::Answer(never) => match never {},
        CallError::Failure(failure) => Error::Gone(failure),
    }
}

fn refused(error: CallError<PeerError, Status>) -> Error {
    match error {
        CallError::Answer(error) => Error::Refused(error),
        CallError::Failure(failure) => Error::Gone(failure),
    }
}

impl Peer {
    /// Opens a connection to the guest with this domain id by root's interface `peers`, and attaches:
    /// what an earlier connection of this component to it mapped and bound is gone. `events` is a
    /// notification without a badge; `bit` of it is set when [`Peer::pending`] has something.
    pub fn connect(
        root: EndpointTransport,
        domain: u16,
        events: Cap<Notification>,
        bit: u64,
    ) -> Result<Peer, Error> {
        let peers = window::root(root)?;
        let (endpoint, frame) = peers.open(domain).map_err(|error| match error {
            CallError::Answer(error) => Error::Root(error),
            CallError::Failure(failure) => Error::Gone(failure),
        })?;
        let endpoint = EndpointTransport(endpoint);
        let made = Self::attach(endpoint, frame, events, bit);
        if made.is_err() {
            // A frame that is mapped is unmapped with it.
            discard(frame);
            discard(endpoint.0);
        }
        made
    }

    /// Attaches by the right to call and the page that root gave (`PeersClient::open`).
    pub fn attach(
        endpoint: EndpointTransport,
        page_frame: Cap<Frame>,
        events: Cap<Notification>,
        bit: u64,
    ) -> Result<Peer, Error> {
        let client = connected(PeerClient::connect(endpoint))?;
        let page_address = window::take().ok_or(Error::Core(Status::NoMemory))?;
        window::map_at(page_frame, page_address, READ_WRITE).map_err(Error::Core)?;
        let undo = |error| {
            let _ = page_frame.unmap();
            window::give_back(page_address);
            error
        };
        let wake = events
            .mint(Rights::SIGNAL, bit)
            .map_err(|status| undo(Error::Core(status)))?;
        let doorbell = client.attach(wake).map_err(|error| {
            let _ = wake.delete();
            undo(refused(error))
        })?;
        // SAFETY: just mapped, writable; the page is root's, which never takes it away, and it stays
        // mapped until `close`, which takes the `Peer`.
        let page: &'static ChannelPage = unsafe { memory::shared_at(page_address) };
        Ok(Peer {
            client,
            endpoint,
            wake,
            bell: Bell { doorbell, page },
            page_frame,
            page_address,
            mapped: BTreeMap::new(),
        })
    }

    /// Maps grants; each has its own outcome, an error being a `GNTST_*`. Four travel in a message.
    pub fn map(&mut self, grants: &[GrantRef]) -> Result<Vec<Result<Mapped, i16>>, Error> {
        let mut all = Vec::with_capacity(grants.len());
        let outcome = self.map_all(grants, &mut all);
        if let Err(Error::Refused(_) | Error::Core(_)) = outcome {
            // The connection goes on, so what was mapped is not to stay with nobody.
            let made = all.iter().filter_map(|one| one.as_ref().ok());
            let handles: Vec<u32> = made.map(|mapped| mapped.handle).collect();
            self.unmap(&handles)?;
        }
        outcome.map(|()| all)
    }

    fn map_all(
        &mut self,
        grants: &[GrantRef],
        all: &mut Vec<Result<Mapped, i16>>,
    ) -> Result<(), Error> {
        let (fours, rest) = grants.as_chunks::<4>();
        for four in fours {
            match self.client.map_four(*four) {
                Ok((handles, a, b, c, d)) => {
                    for (handle, frame) in handles.into_iter().zip([a, b, c, d]) {
                        all.push(Ok(self.note(handle, frame)));
                    }
                }
                // Whichever it was: one by one, each says for itself.
                Err(CallError::Answer(PeerError::Grant(_))) => {
                    for grant in four {
                        let one = self.map_one(*grant)?;
                        all.push(one);
                    }
                }
                Err(error) => return Err(refused(error)),
            }
        }
        for grant in rest {
            let one = self.map_one(*grant)?;
            all.push(one);
        }
        Ok(())
    }

    fn map_one(&mut self, grant: GrantRef) -> Result<Result<Mapped, i16>, Error> {
        match self.client.map(grant) {
            Ok((handle, frame)) => Ok(Ok(self.note(handle, frame))),
            Err(CallError::Answer(PeerError::Grant(status))) => Ok(Err(status)),
            Err(error) => Err(refused(error)),
        }
    }

    fn note(&mut self, handle: u32, frame: Cap<Frame>) -> Mapped {
        // A hostile VMM may give a handle twice.
        if let Some(old) = self.mapped.insert(handle, frame) {
            discard(old);
        }
        Mapped { handle, frame }
    }

    /// Copies `length` bytes of a grant from `offset` on, with nothing mapped; with none only asks whether the
    /// grant can be read. `taken` is told of each part: how many bytes came before, the words that it is in,
    /// which the VMM may change at any moment, and its bytes. It answers false to end the copy.
    pub fn read_grant(
        &mut self,
        reference: u32,
        offset: u16,
        length: u16,
        mut taken: impl FnMut(usize, &[AtomicU64], usize) -> bool,
    ) -> Result<(), Error> {
        for (before, part) in parts(reference, false, offset, length) {
            self.client.copy(part).map_err(refused)?;
            if !taken(before, &self.bell.page.data, part.length.into()) {
                return Err(Error::Refused(PeerError::Grant(GENERAL_ERROR)));
            }
        }
        Ok(())
    }

    /// The same in the other direction: `given` puts each part into the words.
    pub fn write_grant(
        &mut self,
        reference: u32,
        offset: u16,
        length: u16,
        mut given: impl FnMut(usize, &[AtomicU64], usize) -> bool,
    ) -> Result<(), Error> {
        for (before, part) in parts(reference, true, offset, length) {
            if !given(before, &self.bell.page.data, part.length.into()) {
                return Err(Error::Refused(PeerError::Grant(GENERAL_ERROR)));
            }
            self.client.copy(part).map_err(refused)?;
        }
        Ok(())
    }

    /// Maps grants, and the frames into the own space: for backends.
    pub fn map_pages(&mut self, grants: &[GrantRef]) -> Result<Vec<Result<Page, i16>>, Error> {
        let mut pages = Vec::with_capacity(grants.len());
        for (grant, mapped) in grants.iter().zip(self.map(grants)?) {
            let flags = if grant.write { READ_WRITE } else { READ };
            pages.push(match mapped {
                Err(status) => Err(status),
                Ok(Mapped { handle, frame }) => match window::place(frame, flags) {
                    Ok(address) => Ok(Page {
                        handle,
                        address,
                        write: grant.write,
                    }),
                    // Taken away before it could be mapped, or not what was asked: the VMM's doing.
                    Err(
                        Status::InvalidCap
                        | Status::WrongKind
                        | Status::NoRight
                        | Status::InvalidArgument,
                    ) => {
                        self.unmap(&[handle])?;
                        Err(GENERAL_ERROR)
                    }
                    Err(status) => return Err(Error::Core(status)),
                },
            });
        }
        Ok(pages)
    }

    /// Ends mappings that [`Peer::map_pages`] made.
    pub fn unmap_pages(&mut self, pages: Vec<Page>) -> Result<(), Error> {
        let handles: Vec<u32> = pages.iter().map(|page| page.handle).collect();
        let done = self.unmap(&handles);
        // The frames are deleted, whatever the VMM answered, so nothing of ours is mapped there.
        pages
            .iter()
            .for_each(|page| window::give_back(page.address));
        done
    }

    /// Ends mappings that [`Peer::map`] made. Everything that the frames were copied or mapped to goes
    /// with them.
    pub fn unmap(&mut self, handles: &[u32]) -> Result<(), Error> {
        for handle in handles {
            if let Some(frame) = self.mapped.remove(handle) {
                discard(frame);
            }
        }
        for some in handles.chunks(UNMAP_MAX) {
            let list = heapless::Vec::from_slice(some).unwrap_or_default();
            self.client.unmap(list).map_err(gone)?;
        }
        Ok(())
    }

    /// Binds the guest's unbound port for our domain.
    pub fn bind(&mut self, port: u32) -> Result<Channel, Error> {
        channel(self.client.bind(port))
    }

    /// [`Peer::bind`] for a guest whose own port is `own`.
    pub fn bind_port(&mut self, port: u32, own: u32) -> Result<Channel, Error> {
        channel(self.client.bind_port(port, own))
    }

    /// Ends a channel: the guest's port is unbound again.
    pub fn unbind(&mut self, channel: Channel) -> Result<(), Error> {
        self.client.unbind(channel.0).map_err(gone)
    }

    /// Its events, for others too. Of no use, and without harm, when the connection is closed.
    pub fn bell(&self) -> Bell {
        self.bell
    }

    /// As [`Bell::signal`].
    pub fn signal(&self, channel: Channel) -> bool {
        self.bell.signal(channel)
    }

    /// As [`Bell::pending`].
    pub fn pending(&mut self) -> impl Iterator<Item = Channel> + use<> {
        self.bell.pending()
    }

    /// As [`Bell::is_alive`].
    pub fn is_alive(&self) -> bool {
        self.bell.is_alive()
    }

    /// Ends the connection and gives back all that it held; the VMM takes it for ended when this
    /// component attaches again or is gone.
    pub fn close(mut self) {
        let handles: Vec<u32> = self.mapped.keys().copied().collect();
        let _ = self.unmap(&handles);
        self.abandon();
    }

    /// The same without a call, for a VMM that is gone or does not answer: what it gave is given back, and
    /// it is told nothing.
    pub fn abandon(mut self) {
        for frame in core::mem::take(&mut self.mapped).into_values() {
            discard(frame);
        }
        discard(self.page_frame);
        window::give_back(self.page_address);
        for notification in [self.wake, self.bell.doorbell] {
            discard(notification);
        }
        discard(self.endpoint.0);
    }
}

/// The parts of a copy, at least one, and how many bytes come before each. A whole page is two equal ones.
fn parts(
    reference: u32,
    write: bool,
    offset: u16,
    length: u16,
) -> impl Iterator<Item = (usize, GrantCopy)> {
    let each = match usize::from(length) {
        0..=COPY_MAX => length.max(1),
        _ => FRAME as u16 / 2,
    };
    (0..length.max(1)).step_by(each.into()).map(move |before| {
        let part = GrantCopy {
            reference,
            write,
            // What is no part of a page is refused.
            offset: offset.saturating_add(before),
            length: (length - before).min(each),
        };
        (before.into(), part)
    })
}

fn channel(number: Result<u32, CallError<PeerError, Status>>) -> Result<Channel, Error> {
    match number.map_err(refused)? {
        number @ 0..CHANNELS => Ok(Channel(number)),
        _ => Err(Error::Refused(PeerError::Event(0))),
    }
}

/// A granted page, mapped so that losing it is no fault. It lasts until [`Peer::unmap_pages`] or
/// [`Peer::close`]; touching it after the latter is of no use, and does no harm.
#[derive(Debug)]
pub struct Page {
    handle: u32,
    address: u64,
    write: bool,
}

/// Words that a granted page is read and written by.
pub trait Word: Copy {
    /// Loads from an aligned address.
    #[doc(hidden)]
    fn load(address: u64) -> Self;
    /// Stores to an aligned address.
    #[doc(hidden)]
    fn store(self, address: u64);
}

/// Own address of an address in the range of granted pages.
fn pointer<T>(address: u64) -> *mut T {
    #[cfg(target_os = "none")]
    return address as *mut T;
    #[cfg(not(target_os = "none"))]
    {
        let page = core::ptr::from_ref(crate::host::page(address & !(FRAME - 1)));
        page.cast::<u8>()
            .wrapping_add((address % FRAME) as usize)
            .cast_mut()
            .cast()
    }
}

macro_rules! words {
    ($($word:ident $atomic:ident)*) => {$(
        impl Word for $word {
            #[inline]
            fn load(address: u64) -> $word {
                // SAFETY: called by `Page` with aligned addresses inside of its page, which is
                // mapped or, if its frame is gone, gets an empty page when it is touched. Nobody has
                // references there; all accesses are atomic.
                unsafe { $atomic::from_ptr(pointer(address)) }.load(Ordering::Acquire)
            }
            #[inline]
            fn store(self, address: u64) {
                // SAFETY: as in `load`; `Page` stores only to what was mapped for writing.
                unsafe { $atomic::from_ptr(pointer(address)) }.store(self, Ordering::Release);
            }
        }
    )*};
}
words!(u8 AtomicU8 u16 AtomicU16 u32 AtomicU32 u64 AtomicU64);

impl Page {
    /// The address of `bytes` bytes at `offset`, if they are in the page.
    fn at(&self, offset: usize, bytes: usize) -> Option<u64> {
        let end = offset.checked_add(bytes)?;
        (end as u64 <= FRAME).then_some(self.address + offset as u64)
    }

    /// Loads a word; none if it is not wholly in the page or not aligned.
    #[inline]
    pub fn load<W: Word>(&self, offset: usize) -> Option<W> {
        let address = self.at(offset, size_of::<W>())?;
        address
            .is_multiple_of(size_of::<W>() as u64)
            .then(|| W::load(address))
    }

    /// Stores a word; false if it is not wholly in the page, not aligned, or the page is for reading.
    #[inline]
    pub fn store<W: Word>(&self, offset: usize, value: W) -> bool {
        match self.at(offset, size_of::<W>()) {
            Some(address) if self.write && address.is_multiple_of(size_of::<W>() as u64) => {
                value.store(address);
                true
            }
            _ => false,
        }
    }

    /// Copies out of the page; false if it is not all in there.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> bool {
        let Some(mut address) = self.at(offset, into.len()) else {
            return false;
        };
        if address.is_multiple_of(8) {
            let (words, rest) = into.as_chunks_mut::<8>();
            for word in words {
                *word = u64::load(address).to_le_bytes();
                address += 8;
            }
            return bytes_out(address, rest);
        }
        bytes_out(address, into)
    }

    /// Copies into the page; false if it does not fit or the page is for reading.
    pub fn write(&self, offset: usize, from: &[u8]) -> bool {
        let Some(mut address) = self.at(offset, from.len()).filter(|_| self.write) else {
            return false;
        };
        let mut rest = from;
        if address.is_multiple_of(8) {
            let (words, tail) = from.as_chunks::<8>();
            for word in words {
                u64::from_le_bytes(*word).store(address);
                address += 8;
            }
            rest = tail;
        }
        for byte in rest {
            byte.store(address);
            address += 1;
        }
        true
    }
}

fn bytes_out(mut address: u64, into: &mut [u8]) -> bool {
    for byte in into {
        *byte = u8::load(address);
        address += 1;
    }
    true
}
