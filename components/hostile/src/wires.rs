//! Interfaces between the roles.

use idl::{Cap, cap, interface};

/// Served by the neighbour: memory lent to somebody who will not give it back.
#[interface]
pub trait Lender {
    /// A page of the neighbour's, read-only, with a first secret in its first word.
    fn lend(&self) -> Result<Cap<cap::Frame>, u32>;
    /// Takes the page away again, from wherever it went, and puts another secret into it.
    fn take_back(&self) -> Result<(), u32>;
}

/// Served by the mute: takes calls and answers none.
#[interface]
pub trait Mute {
    /// Never returns.
    fn ask(&self) -> u64;
}

/// In the page while it is lent.
pub const LENT: u64 = 0x1e47_5ec4_e700_0001;
/// In it afterwards.
pub const PRIVATE: u64 = 0x9417_5ec4_e700_0002;
