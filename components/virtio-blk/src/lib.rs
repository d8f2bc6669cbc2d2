//! What the driver `virtio-blk` decides, free of the machine: where a device's registers are, which
//! features to take, and its queues. Called by the component's binary; host tests run it over plain
//! memory with a device that behaves, and with one that does not. Everything read from the device is
//! believed in nothing but its width. (Virtio 1.2, OASIS; section numbers are of that.)
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod layout;
pub mod queue;
#[cfg(test)]
mod tests;
