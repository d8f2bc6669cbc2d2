//! How a controller is told where a request's data is (4.1.1): two entries in the command, the second
//! of which is the address of a list when the data touches more than two pages.

use crate::layout::{PAGE, REQUEST_MOST};

/// Entries of a list: data of the longest request touches this many pages besides the first.
pub const LIST: u64 = REQUEST_MOST as u64 / PAGE;
/// Bytes of a list. Two fit in a page, and none lies across two.
pub const LIST_BYTES: u64 = LIST * 8;
const _: () = assert!(PAGE.is_multiple_of(LIST_BYTES));

/// A request's data, as commands tell of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// Where it begins.
    pub first: u64,
    /// What else there is.
    pub rest: Rest,
}

/// Data besides the first page's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// None.
    Nothing,
    /// In this page.
    Page(u64),
    /// In so many pages from this one on.
    List {
        /// The first of them.
        from: u64,
        /// How many, at most [`LIST`].
        count: u64,
    },
}

impl Pages {
    /// Of `bytes` from `bus` on. `None` if they do not fit the longest list, or the end of addresses.
    pub fn of(bus: u64, bytes: u32) -> Option<Pages> {
        let last = bus.checked_add(u64::from(bytes.max(1)) - 1)?;
        let from = (bus / PAGE + 1).checked_mul(PAGE);
        let count = last / PAGE - bus / PAGE;
        let rest = match (count, from) {
            (0, _) => Rest::Nothing,
            (1, Some(from)) => Rest::Page(from),
            (2..=LIST, Some(from)) => Rest::List { from, count },
            _ => return None,
        };
        Some(Pages { first: bus, rest })
    }
}
