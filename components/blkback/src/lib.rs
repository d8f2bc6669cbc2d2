//! What the back end of guests' disks decides, free of the machine: Xen's block protocol as bytes
//! ([`proto`]), rings and the order of answers ([`ring`]), pages that guests granted ([`grants`]), what
//! becomes of a request ([`device`]), when front and back end come together ([`xenbus`]), and room for
//! data between guests and the disk ([`pool`]). Called by the component's binary; host tests run it with a
//! front end that behaves, and with one that does not.
//!
//! Everything in a guest's pages and store nodes is hostile: read once, checked, its failure a value that
//! ends a request, or that one connection, and nothing else.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod device;
pub mod grants;
mod job;
pub mod journal;
pub mod pool;
pub mod proto;
pub mod ring;
pub mod xenbus;

#[cfg(test)]
mod tests;
