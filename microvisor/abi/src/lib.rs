//! The system call interface of the core: what `microvisor` implements and what the `sdk` wraps.
//!
//! Everything here is plain data: call numbers, status codes, capability kinds and rights, the
//! layout of the pages that the core shares with components, and the boot archive. There is no
//! code that touches hardware, and no code that needs `unsafe`.
//!
//! # Registers
//! A call is made with `syscall`: `rax` = [`Call`], arguments in `rdi rsi rdx r10 r8 r9`.
//! The core answers with `rax` = [`Status`] and up to six result words in the same six
//! registers (those not named by the call keep what they held). `rcx` and `r11` are lost to the
//! instruction; every other register is preserved.
//!
//! # Naming capabilities
//! A capability is named by its slot number in the caller's own capability space; slot 0 is
//! always empty. Calls that place a capability into *another* space name that space by a
//! `CapSpace` capability, or by 0 for the caller's own.
//!
//! # Derivation
//! Capabilities form a forest. `Retype`, `Copy` and a transfer by message each make a *child*.
//! Deleting a capability deletes everything derived from it; deleting the capability that
//! `Retype` made destroys the object.
#![no_std]
#![forbid(unsafe_code)]

/// An enumeration whose numbers travel between core and components, with the way back from the number
/// as it arrives.
macro_rules! numbered {
    ($(#[$meta:meta])* pub enum $name:ident from $raw:ty {
        $($(#[$doc:meta])* $variant:ident = $number:literal,)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])* $variant = $number,)* }

        impl $name {
            /// What has this number.
            pub const fn from_raw(raw: $raw) -> Option<$name> {
                match raw { $($number => Some($name::$variant),)* _ => None }
            }
        }
    };
}

pub mod archive;
pub mod boot;
pub mod call;
pub mod cap;
pub mod message;
pub mod status;
pub mod symbols;
pub mod thread;
pub mod vcpu;

pub use call::Call;
pub use cap::{Kind, Rights, SpaceKind};
pub use message::MessageInfo;
pub use status::Status;

/// Bytes in the smallest frame.
pub const FRAME: u64 = 4096;
/// Deadline that never comes, for [`Call::Wait`] and [`Call::Receive`].
pub const FOREVER: u64 = u64::MAX;
/// Deadline that has always passed: makes a wait into a poll.
pub const NOW: u64 = 0;
/// First address above those that a component may map.
pub const USER_END: u64 = 0x0000_7fff_ffff_f000;
