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
    /// The ring page could not be mapped: the core's status number.
    Ring(u32),
    /// The notification could not be made: the core's status number.
    Notification(u32),
}

/// Shows clients' output on the serial port and gives the focused guest the input.
#[interface]
pub trait Console {
    /// Attaches the caller under `name`. `ring` is a page of 4 KiB, zeroed, that both write.
    /// The console signals `wake` when it took output or brought input; the caller signals the
    /// notification in the answer when it wrote output or took input. Attaching again under the
    /// same name replaces the client that had it (a restarted VMM).
    fn attach(
        &self,
        name: Name,
        kind: ClientKind,
        ring: Cap<cap::Frame>,
        wake: Cap<cap::Notification>,
    ) -> Result<Cap<cap::Notification>, ConsoleError>;
}
