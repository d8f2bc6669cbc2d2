//! What the hostile guest does, as data that guest and host share: seeded hypercalls, the registers
//! and addresses it tries, and the pages in which it logs what came of them.
//!
//! The guest makes the calls and the host, which never sees their arguments, draws the same ones
//! from the same seed to know what each logged answer belongs to. Nothing here touches hardware
//! or memory but through [`Arena`].
#![no_std]
#![forbid(unsafe_code)]

pub mod call;
pub mod domain;
pub mod fingerprint;
pub mod layout;
pub mod log;
pub mod operations;
pub mod places;
pub mod random;

pub use call::{Arena, Call, Class, Domid, Nowhere, Pointer, Seed};

/// Calls of one seed.
pub const CALLS: u32 = 10_000;
/// Calls between two returns to the known state.
pub const BLOCK: u32 = 100;
/// The registers that are tried: first and last of each range.
pub const MSRS: [(u32, u32); 4] = [
    (0x0000_0000, 0x0000_1fff),
    (0x4000_0000, 0x4000_01ff),
    (0xc000_0000, 0xc000_1fff),
    (0xc001_0000, 0xc001_1fff),
];
/// Widths at which each port is tried, in bytes.
pub const WIDTHS: [u8; 3] = [1, 2, 4];
