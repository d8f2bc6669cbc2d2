//! `console`: the serial port, shared. A client attaches once; after that bytes flow through a
//! shared ring page ([`crate::ring::RingPage`]) and two notifications, without calls.

use crate::{Cap, Name, cap, interface, message};

/// What a client is.
#[message]
#[derive(Copy)]
pub enum ClientKind {
    /// A guest's console: raw bytes, both ways, shown while it has the focus.
    Guest,
    /// A component's log: whole lines, always shown, prefixed with the name. No input.
    Log,
}

/// Why `attach` failed.
#[message]
#[derive(Copy)]
pub enum ConsoleError {
    /// All places are taken; how many there are.
    Full(u32),
    /// The core refused something: its status number.
    Core(u32),
}

/// Shows clients' output on the serial port and gives the focused guest the input.
#[interface]
pub trait Console {
    /// Attaches the caller under `name` and answers its ring page, to be mapped as a
    /// [`crate::ring::RingPage`], and a notification to signal (with any bit) after writing output
    /// or taking input. The console signals `wake` when it took output or brought input. A
    /// component has one page for each kind, always the same: it gets it again when it, or the
    /// console, was started again, with what is still in it.
    ///
    /// The page is neither side's memory but root's, so that either may die without the other
    /// faulting on it. `sdk::console::attach` does all of this.
    fn attach(
        &self,
        name: Name,
        kind: ClientKind,
        wake: Cap<cap::Notification>,
    ) -> Result<(Cap<cap::Frame>, Cap<cap::Notification>), ConsoleError>;
}
