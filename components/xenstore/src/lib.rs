//! The xenstore as pure logic: a tree of small values with permissions, watches and transactions,
//! the messages of Xen's `public/io/xs_wire.h` that domains read and change it with, and a journal
//! from which a store that was started again goes on.
//!
//! Called by the component's binary, and by tests. Everything in a message is the sender's: lengths,
//! paths and ids are checked, what a domain can keep here is bounded by [`quota`], and nothing it
//! sends makes this panic.
//!
//! What a request changes is a list of [`record::Record`]s, made from the state without changing it
//! ([`request`]). They are written to the journal, committed by one store, and only then applied
//! ([`state`]); a restarted store applies the same records again. So both are the same by
//! construction, and a request happened wholly or not at all.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod journal;
mod path;
pub mod record;
mod request;
mod service;
mod session;
mod state;
mod store;
pub mod toolstack;
mod view;

pub use idl::xs_wire::{Errno, Header, PAYLOAD_MAX, kind};
pub use path::home;
pub use record::{Access, Content, Permission, Permissions};
pub use service::{Recovered, Service};

/// The toolstack's domain: everything is allowed to it.
pub const PRIVILEGED: u16 = 0;

/// What one unprivileged domain may have. Counts are the defaults of Xen 4.17's xenstored, but for
/// [`quota::BYTES`], which keeps one domain from filling the memory of all.
pub mod quota {
    /// Nodes that it owns, those that its transactions would make included.
    pub const NODES: usize = 1000;
    /// Bytes that all it has takes in the journal: nodes, watches, changes of open transactions.
    pub const BYTES: usize = 128 * 1024;
    /// Watches.
    pub const WATCHES: usize = 128;
    /// Transactions at a time.
    pub const TRANSACTIONS: usize = 10;
    /// Bytes of the paths that its open transactions have looked at.
    pub const SEEN: usize = 128 * 1024;
    /// Bytes of a node's name and value together.
    pub const ENTRY: usize = 2048;
    /// Permissions of one node.
    pub const PERMISSIONS: usize = 5;
    /// Bytes of watch events that wait to be fetched. What fires beyond them is made up for by one
    /// event of every watch, when those were fetched.
    pub const QUEUED: usize = 32 * 1024;
    /// Sessions that the store has at a time.
    pub const SESSIONS: usize = 64;
}

#[cfg(test)]
mod tests;
