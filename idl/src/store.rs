//! `store`: the xenstore, as its component serves it. What is asked are whole messages of Xen's wire
//! protocol ([`crate::xs_wire`]); a guest's VMM hands on what its guest put into its ring, a component
//! makes its own. `sdk::store` does all of this.
//!
//! A message may be longer than a call carries, so both ways it travels in pieces. Requests are
//! numbered by their client: a server that was started again knows the last number of each client,
//! and answers it again instead of carrying it out twice. So a client that hears `Restarted` sends
//! the same request again, from its first piece.

use crate::{Cap, Piece, cap, interface, message};

/// Bytes of a message in one call.
pub const PIECE: usize = 2048;

/// Who a client is, and as which domain it speaks: the badge of its capability to a store. Whoever
/// wires the system writes it. Permissions of the store know domains only.
///
/// ```
/// use idl::store::Badge;
/// let badge = Badge { component: 3, domain: Some(0) };
/// assert_eq!(Badge::of(badge.word()), Some(badge));
/// assert_eq!(Badge::of(0), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Badge {
    /// Number of the component, counted from 0. Watches and transactions are its own.
    pub component: u32,
    /// A guest's VMM speaks as its guest's domain, other components as domain 0, which rules the
    /// store; none for who may not use it.
    pub domain: Option<u16>,
}

impl Badge {
    /// As a word: component + 1 in the low half, domain + 1 in the high half, 0 there for none.
    pub const fn word(self) -> u64 {
        let domain = match self.domain {
            Some(domain) => domain as u64 + 1,
            None => 0,
        };
        domain << 32 | (self.component as u64 + 1)
    }

    /// The badge of a word; none if it marks no component.
    pub fn of(word: u64) -> Option<Badge> {
        let domain = ((word >> 32) as u32).checked_sub(1);
        Some(Badge {
            component: (word as u32).checked_sub(1)?,
            domain: domain.map(u16::try_from).transpose().ok()?,
        })
    }
}

/// Where a guest's rings are; what the store's nodes tell the guest.
#[message]
#[derive(Copy)]
pub struct Rings {
    /// Guest frame of its console ring.
    pub console_frame: u64,
    /// Its event channel.
    pub console_port: u32,
    /// Guest frame of its store ring.
    pub store_frame: u64,
    /// Its event channel.
    pub store_port: u32,
}

/// How a session begins.
#[message]
#[derive(Copy)]
pub enum Session {
    /// Anew: watches and transactions of an earlier one are gone, requests count from 1. With a guest's
    /// rings its domain is introduced.
    New(Option<Rings>),
    /// It goes on at a server that was started again. Each watch fires once, because what fired
    /// meanwhile may be lost.
    Again,
}

/// The answer to a request that is whole.
#[message]
pub struct Answer {
    /// Bytes of the whole message.
    pub length: u32,
    /// The first of them.
    pub piece: Piece<PIECE>,
    /// Watch events wait.
    pub events: bool,
}

/// Why the store does not serve a client.
#[message]
#[derive(Copy)]
pub enum StoreError {
    /// The caller's badge speaks for no domain.
    Nobody,
    /// Root knows of no such domain, or it is being taken down.
    NoDomain,
    /// There is no session; attach.
    NoSession,
    /// There is a session, but this instance does not know whom to wake: go on with it first.
    Unattached,
    /// The piece does not follow what came before: send the request from its beginning.
    Gap,
    /// The message is longer than messages may be, or not as long as its header says.
    Length,
    /// The store has as many clients or domains as it can have.
    Full,
}

/// Serves the store.
#[interface]
pub trait Store {
    /// Begins a session, or goes on with it. `wake` is signalled when watch events wait.
    fn attach(&self, session: Session, wake: Cap<cap::Notification>) -> Result<(), StoreError>;
    /// A piece, from `offset` on, of request number `number` of `length` bytes, header included. Numbers
    /// grow by one from 1; the last one may be sent again. Nothing is answered until it is whole.
    fn send(
        &self,
        number: u32,
        length: u32,
        offset: u32,
        piece: Piece<PIECE>,
    ) -> Result<Option<Answer>, StoreError>;
    /// What follows `offset` of the answer to request `number`, the last one.
    fn rest(&self, number: u32, offset: u32) -> Result<Piece<PIECE>, StoreError>;
    /// Bytes of watch events, and whether more wait. Events follow each other as whole messages; a piece
    /// may end within one.
    fn events(&self) -> Result<(Piece<PIECE>, bool), StoreError>;
}
