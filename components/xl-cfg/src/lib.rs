//! Guests' configuration files in the language of Xen's `xl`: xl.cfg(5). The component `toolstack`
//! reads them for the operator.
//!
//! [`syntax`] reads the language and prints it, [`disk`] the specification of one disk
//! (xl-disk-configuration(5)), [`mod@guest`] says what a file means here: what is supported, what is only
//! told, and what is refused because a guest without it would be another guest. Never opens a file
//! and knows nothing of the machine but its number of CPUs. Files are untrusted: any bytes may come.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod disk;
pub mod guest;
pub mod syntax;

pub use disk::Disk;
pub use guest::{Guest, Remark, guest};
pub use syntax::{Config, Kind, Mistake, Place, Value, parse};
