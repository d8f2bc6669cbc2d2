//! `domains`: which guests there are, for those who keep something for each: the store. Root serves it,
//! and sets bit `sdk::startup::DOMAINS` of its clients' notifications when an answer would be another
//! one. It grants nothing: what is told can be read in the system's description.

use crate::volume::{DISKS_MAX, Disk};
use crate::{Name, heapless, interface, message};

/// A guest.
#[message]
pub struct DomainInfo {
    /// Its domain id.
    pub domain: u16,
    /// Its name.
    pub name: Name,
    /// How often it was built: the same domain id with another number is another domain.
    pub starts: u32,
    /// It is being built or runs; otherwise nothing is left of it.
    pub present: bool,
    /// vCPUs.
    pub vcpus: u32,
    /// Memory in KiB.
    pub memory_kib: u64,
    /// Its disks.
    pub disks: heapless::Vec<Disk, DISKS_MAX>,
}

/// Served by root.
#[interface]
pub trait Domains {
    /// The guest with this number, counted from 0 in the order of the system's description; nothing
    /// after the last one.
    fn domain(&self, index: u32) -> Option<DomainInfo>;
}
