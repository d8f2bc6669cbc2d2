//! `console`: the serial port, shared. A client attaches once; after that bytes flow through a
//! shared ring page ([`crate::ring::RingPage`]) and two notifications, without calls.

use crate::{Cap, Name, cap, interface, message};

/// What a client is.
#[message]
#[derive(Copy)]
pub enum ClientKind {
    /// A guest's console: raw bytes, both ways, shown while it has the focus. Only for a client
    /// whose [`Badge`] says which guest.
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
    /// The caller speaks for no guest that this console shows.
    NoGuest,
}

/// Who a client is: the badge of its capability to a console. Whoever wires the system writes it,
/// so that no client chooses what it is: what is typed goes to guests, and a component that could
/// call itself one would be given it.
///
/// ```
/// use idl::console::Badge;
/// let badge = Badge { component: 3, guest: Some(0) };
/// assert_eq!(Badge::of(badge.word()), Some(badge));
/// assert_eq!(Badge::of(0), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Badge {
    /// Number of the component, counted from 0: whose log it is.
    pub component: u32,
    /// Number of the guest whose console it may be, counted from 0 among those that the console
    /// shows, in the order of the system's description.
    pub guest: Option<u32>,
}

impl Badge {
    /// As a word: component + 1 in the low half, guest + 1 in the high half, 0 there for none.
    pub const fn word(self) -> u64 {
        let guest = match self.guest {
            Some(guest) => guest as u64 + 1,
            None => 0,
        };
        guest << 32 | (self.component as u64 + 1)
    }

    /// The badge of a word; none if it marks no component.
    pub fn of(word: u64) -> Option<Badge> {
        let number = |half: u64| (half as u32).checked_sub(1);
        Some(Badge {
            component: number(word)?,
            guest: number(word >> 32),
        })
    }
}

/// Shows clients' output on the serial port and gives the focused guest the input.
#[interface]
pub trait Console {
    /// Attaches the caller and answers its ring page, to be mapped as a
    /// [`crate::ring::RingPage`], and a notification to signal (with any bit) after writing output
    /// or taking input. The console signals `wake` when it took output or brought input. A
    /// component has one page for each kind, always the same: it gets it again when it, or the
    /// console, was started again, with what is still in it. `name` is what the caller calls
    /// itself; a console shows it under the name that its badge stands for.
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
