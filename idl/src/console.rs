//! `console`: the serial port, shared. A client attaches once; after that bytes flow through a
//! shared ring page ([`crate::ring::RingPage`]) and two notifications, without calls.

use core::sync::atomic::{AtomicU8, Ordering};

use crate::{Cap, Name, cap, heapless, interface, message};

/// What a client is.
#[message]
#[derive(Copy)]
pub enum ClientKind {
    /// A guest's console: raw bytes, both ways, shown while it has the focus. Only for a client
    /// whose [`Badge`] says which guest.
    Guest,
    /// A component's log: whole lines, always shown, prefixed with the name. No input.
    Log,
    /// Who carries out the operator's commands: its input is lines that were typed, its output what
    /// answers them, see [`END`]. Only for a client whose [`Badge`] says so.
    Operator,
}

/// Ends the answer to a command: a line of its own that begins with this byte. What follows on the line
/// is nothing, or the name of a guest whose console is to be shown.
pub const END: u8 = 0x04;
/// Longest command line, without its end.
pub const COMMAND_MAX: usize = 240;

/// Why `attach` failed.
#[message]
#[derive(Copy)]
pub enum ConsoleError {
    /// All places are taken; how many there are.
    Full(u32),
    /// The caller speaks for no guest that this console shows.
    NoGuest,
    /// The caller may not carry out the operator's commands.
    NotOperator,
}

/// Who a client is: the badge of its capability to a console. Whoever wires the system writes it,
/// so that no client chooses what it is: what is typed goes to guests, and a component that could
/// call itself one would be given it.
///
/// ```
/// use idl::console::Badge;
/// let badge = Badge { component: 3, guest: Some(0), operator: false };
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
    /// It may carry out the operator's commands.
    pub operator: bool,
}

impl Badge {
    const OPERATOR: u64 = 1 << 63;

    /// As a word: component + 1 in the low half, guest + 1 in the high half, 0 there for none; the
    /// highest bit for the operator's.
    pub const fn word(self) -> u64 {
        let guest = match self.guest {
            Some(guest) => guest as u64 + 1,
            None => 0,
        };
        let operator = if self.operator { Self::OPERATOR } else { 0 };
        operator | guest << 32 | (self.component as u64 + 1)
    }

    /// The badge of a word; none if it marks no component.
    pub fn of(word: u64) -> Option<Badge> {
        let number = |half: u64| (half as u32).checked_sub(1);
        Some(Badge {
            component: number(word)?,
            guest: number((word & !Self::OPERATOR) >> 32),
            operator: word & Self::OPERATOR != 0,
        })
    }
}

/// Bytes of a name on the page of [`Names`].
const NAME_BYTES: usize = 32;
/// Names of each kind there.
pub const NAMES: usize = 64;

/// Names of clients and guests that came after the console was started: root writes them, the console
/// reads. Each is for one number; a number is used again when its first holder is gone for good.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Names {
    components: [[AtomicU8; NAME_BYTES]; NAMES],
    guests: [[AtomicU8; NAME_BYTES]; NAMES],
}
const _: () = assert!(size_of::<Names>() == 4096);

/// Which of the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// Of a client, by its number less the first that was free when the system started.
    Component(u32),
    /// Of a guest, likewise.
    Guest(u32),
}

impl Names {
    /// No names.
    pub const fn new() -> Names {
        Names {
            components: [const { [const { AtomicU8::new(0) }; NAME_BYTES] }; NAMES],
            guests: [const { [const { AtomicU8::new(0) }; NAME_BYTES] }; NAMES],
        }
    }

    fn bytes(&self, which: Named) -> Option<&[AtomicU8; NAME_BYTES]> {
        match which {
            Named::Component(number) => self.components.get(number as usize),
            Named::Guest(number) => self.guests.get(number as usize),
        }
    }

    /// Writes a name; one that has no place is not written.
    pub fn set(&self, which: Named, name: &str) {
        let rest = name.bytes().chain(core::iter::repeat(0));
        let places = self.bytes(which).into_iter().flatten();
        places
            .zip(rest)
            .for_each(|(place, byte)| place.store(byte, Ordering::Relaxed));
    }

    /// The name, if there is one.
    pub fn get(&self, which: Named) -> Option<Name> {
        let mut bytes = heapless::Vec::<u8, NAME_BYTES>::new();
        for byte in self.bytes(which)? {
            match byte.load(Ordering::Relaxed) {
                0 => break,
                byte => bytes.push(byte).ok()?,
            }
        }
        let name = core::str::from_utf8(&bytes).ok()?;
        (!name.is_empty()).then(|| crate::name(name))
    }
}

impl Default for Names {
    fn default() -> Self {
        Names::new()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_written_and_a_shorter_one_leaves_nothing_behind() {
        let names = Names::new();
        assert_eq!(names.get(Named::Guest(0)), None);
        names.set(Named::Guest(0), "debian-with-a-long-name");
        names.set(Named::Component(0), "vmm-debian");
        names.set(Named::Guest(0), "netbsd");
        assert_eq!(names.get(Named::Guest(0)).as_deref(), Some("netbsd"));
        assert_eq!(
            names.get(Named::Component(0)).as_deref(),
            Some("vmm-debian")
        );
        names.set(Named::Component(63), &"x".repeat(40));
        assert_eq!(
            names.get(Named::Component(63)),
            Some(crate::name(&"x".repeat(40)))
        );
        names.set(Named::Component(64), "nobody");
        assert_eq!(names.get(Named::Component(64)), None);
    }

    #[test]
    fn the_operators_mark_is_beside_the_guests_number() {
        for operator in [false, true] {
            for guest in [None, Some(0), Some(7)] {
                let badge = Badge {
                    component: 9,
                    guest,
                    operator,
                };
                assert_eq!(Badge::of(badge.word()), Some(badge));
            }
        }
    }
}
