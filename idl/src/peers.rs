//! `peers`: how a backend, or the VMM of a guest that is a driver domain, comes to call another guest's
//! VMM (interface `peer`). Root serves it: who may is what the system's description says, nobody
//! can ask for more. A caller may call again and again: a guest that was built anew has another VMM.

use crate::{Cap, cap, interface, message};

/// Why root gives no connection.
#[message]
#[derive(Copy)]
pub enum PeersError {
    /// There is no guest with this domain id.
    NoDomain,
    /// The system's description does not wire the caller to this guest.
    NotWired,
    /// The guest is not running, or its VMM is not there yet.
    NotRunning,
    /// Root put no page at this address.
    NoPage,
    /// The core refused: its status number.
    Core(u32),
}

/// Served by root.
#[interface]
pub trait Peers {
    /// The right to call the VMM of the guest with this domain id, and the page that the caller shares
    /// with it (`idl::peer::ChannelPage`). The right ends with the VMM: then calls answer `Aborted`,
    /// later ones `InvalidCap`, and bit `sdk::startup::PEERS` of the caller's notification is set. The
    /// page is root's and stays; whoever opens it again gets the same one.
    fn open(&self, domain: u16) -> Result<(Cap<cap::Endpoint>, Cap<cap::Frame>), PeersError>;
    /// Takes away the empty page that root put at this address of the caller, because a thread of the
    /// caller touched it after the granted frame there was gone.
    fn mend(&self, address: u64) -> Result<(), PeersError>;
}
