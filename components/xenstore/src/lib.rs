//! The xenstore as pure logic: a tree of small values with permissions, watches and transactions,
//! and the messages of `public/io/xs_wire.h` that a guest reads and changes it with.
//!
//! Called by `vmm`, which so far gives each guest a store of its own with what a toolstack would
//! put there. Everything in a message is the guest's: lengths, paths and ids are checked, what a
//! guest can keep here is bounded by [`quota`], and nothing it sends makes this panic.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod connection;
mod path;
mod store;
mod wire;

pub use connection::{Broken, Connection};
pub use store::{Access, Permission, Permissions, Store};
pub use wire::{Errno, Header, PAYLOAD_MAX};

/// What one guest may have. Counts are the defaults of Xen 4.17's xenstored.
pub mod quota {
    /// Nodes that it owns.
    pub const NODES: usize = 1000;
    /// Bytes of names and values of the nodes that it owns.
    pub const BYTES: usize = 128 * 1024;
    /// Paths that one transaction changes.
    pub const CHANGES: usize = 4 * NODES;
    /// Watches.
    pub const WATCHES: usize = 128;
    /// Transactions at a time.
    pub const TRANSACTIONS: usize = 10;
    /// Bytes of a node's name and value together.
    pub const ENTRY: usize = 2048;
    /// Permissions of one node.
    pub const PERMISSIONS: usize = 5;
    /// Bytes of answers and events that wait for room in the ring; a guest that reads none of
    /// them loses events beyond this.
    pub const QUEUED: usize = 64 * 1024;
}
