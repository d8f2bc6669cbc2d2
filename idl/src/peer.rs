//! `peer`: what a guest's VMM does for whoever its guest granted pages to, or keeps an event channel
//! for: backends, which speak as domain 0, and VMMs of other guests, which speak as their guest's
//! domain. The caller's badge ([`Badge`]) says both; a caller never names itself.
//!
//! The right to call comes from root (interface `peers`), together with a page ([`ChannelPage`]) that
//! is root's and is mapped by both sides for good: events are bits in it, and need no call.
//!
//! What each side may assume of the other: nothing.
//!
//! - The VMM serves a hostile guest, and may be in its hands. A caller has to bear that an answer never
//!   comes (so it has a thread for each guest that it calls), that a mapped frame is taken away at any
//!   time (root then puts an empty page in its place: see `sdk::peer`), that any bits are set in the
//!   page, and that frames hold what another one of the guest's pages holds.
//! - The caller may be any component. The VMM gives it frames that its guest granted to the caller's
//!   domain and nothing else, counts what it has, and never waits for it.
//!
//! Numbers of statuses: `GNTST_*` of Xen's public/grant_table.h, errors of public/errno.h.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::{Cap, cap, interface, message};

/// Event channels of one connection.
pub const CHANNELS: u32 = 256;
const WORDS: usize = CHANNELS as usize / 64;
/// Mappings that one caller has at most at a time: two disks as busy as they can be, of which Linux's blkback
/// keeps 1056 pages mapped each (32 requests of 33 pages), and their rings.
pub const MAPPINGS_MAX: u32 = 2304;
/// Handles in one `unmap`.
pub const UNMAP_MAX: usize = 64;
/// Bytes that one `copy` moves at most: what the page has beside its events.
pub const COPY_MAX: usize = 4096 - 2 * 8 * WORDS;

/// A caller: the badge of its capability. Root writes it.
///
/// ```
/// use idl::peer::Badge;
/// let badge = Badge { caller: 3, domain: 0 };
/// assert_eq!(Badge::of(badge.word()), Some(badge));
/// assert_eq!(Badge::of(0), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Badge {
    /// Number of the caller among those that the guest is wired to, counted from 0: the place of the
    /// pair's page in `sdk::startup::GuestStart::peers`.
    pub caller: u16,
    /// The domain as which it speaks.
    pub domain: u16,
}

impl Badge {
    /// As a word: caller + 1 in bits 15-0, domain in bits 31-16.
    pub const fn word(self) -> u64 {
        (self.domain as u64) << 16 | (self.caller as u64 + 1)
    }

    /// The badge of a word; none if it marks no caller.
    pub fn of(word: u64) -> Option<Badge> {
        let word = u32::try_from(word).ok()?;
        Some(Badge {
            caller: (word as u16).checked_sub(1)?,
            domain: (word >> 16) as u16,
        })
    }
}

/// A grant to be mapped.
#[message]
#[derive(Copy)]
pub struct GrantRef {
    /// `grant_ref_t`.
    pub reference: u32,
    /// The caller wants to write; a grant for reading only is then refused.
    pub write: bool,
}

/// A part of a granted page to be copied.
#[message]
#[derive(Copy)]
pub struct GrantCopy {
    /// `grant_ref_t`.
    pub reference: u32,
    /// Into the grant, which has to be writable; otherwise out of it.
    pub write: bool,
    /// Where in the page, in bytes.
    pub offset: u16,
    /// Bytes, at most [`COPY_MAX`]. With 0 it is only said whether the grant can be used.
    pub length: u16,
}

/// Why the VMM refused.
#[message]
#[derive(Copy)]
pub enum PeerError {
    /// There is no connection: attach.
    Unattached,
    /// The grant table says no: a `GNTST_*`, negative.
    Grant(i16),
    /// The port is not the caller's to bind: an error of Xen's, positive (`EINVAL` is 22).
    Event(u16),
    /// The VMM has no slots or memory left for this.
    Full,
}

/// Served by each guest's VMM.
#[interface]
pub trait Peer {
    /// Begins anew: what an earlier connection of this caller mapped and bound is gone, and the page's
    /// bits are clear. The VMM signals `wake` after it set bits for the caller; the caller signals
    /// what is answered after it set bits for the VMM.
    fn attach(&self, wake: Cap<cap::Notification>) -> Result<Cap<cap::Notification>, PeerError>;
    /// Maps one grant: a handle, and the page of 4 KiB, readable, and writable if that was asked.
    fn map(&self, grant: GrantRef) -> Result<(u32, Cap<cap::Frame>), PeerError>;
    /// Maps four grants, or none: the error is that of the first that cannot be mapped.
    fn map_four(
        &self,
        grants: [GrantRef; 4],
    ) -> Result<
        (
            [u32; 4],
            Cap<cap::Frame>,
            Cap<cap::Frame>,
            Cap<cap::Frame>,
            Cap<cap::Frame>,
        ),
        PeerError,
    >;
    /// Ends mappings: the frames are taken away from the caller. Unknown handles are passed over;
    /// answers how many were known.
    fn unmap(&self, handles: crate::heapless::Vec<u32, UNMAP_MAX>) -> u32;
    /// Binds the guest's unbound port for the caller's domain: the number of the channel, below
    /// [`CHANNELS`].
    fn bind(&self, port: u32) -> Result<u32, PeerError>;
    /// Ends a channel; the guest's port is unbound again.
    fn unbind(&self, channel: u32);
    /// `bind` by a guest's VMM: `own` is that guest's port, which `EVTCHNOP_status` tells this one.
    fn bind_port(&self, port: u32, own: u32) -> Result<u32, PeerError>;
    /// Copies between a grant and [`ChannelPage::data`], with nothing mapped. The grant is in use for that
    /// time only.
    fn copy(&self, part: GrantCopy) -> Result<(), PeerError>;
}

/// Pending events of one direction. All zeros is none.
#[repr(C)]
#[derive(Debug)]
pub struct Pending([AtomicU64; WORDS]);

impl Pending {
    /// Sets a channel's bit. True if it was clear: then the receiver has to be signalled. If it was
    /// set, whoever set it does that, and the receiver takes bits only after it was signalled.
    pub fn set(&self, channel: u32) -> bool {
        let bit = 1 << (channel % 64);
        self.0
            .get(channel as usize / 64)
            .is_some_and(|word| word.fetch_or(bit, Ordering::SeqCst) & bit == 0)
    }

    /// Takes all bits: the channels, in order.
    pub fn take(&self) -> impl Iterator<Item = u32> + '_ {
        self.0
            .iter()
            .zip((0u32..).step_by(64))
            .flat_map(|(word, first)| {
                // Words without bits, which most are, are not written.
                let mut bits = match word.load(Ordering::SeqCst) {
                    0 => 0,
                    _ => word.swap(0, Ordering::SeqCst),
                };
                core::iter::from_fn(move || {
                    let lowest = (bits != 0).then(|| first + bits.trailing_zeros());
                    bits &= bits.wrapping_sub(1);
                    lowest
                })
            })
    }

    /// Clears all bits.
    pub fn clear(&self) {
        for word in &self.0 {
            word.store(0, Ordering::SeqCst);
        }
    }
}

/// What a caller and a VMM share.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct ChannelPage {
    /// Set by the caller, taken by the VMM.
    pub to_guest: Pending,
    /// Set by the VMM, taken by the caller.
    pub to_caller: Pending,
    /// The bytes of the `copy` that is under way. Either side may change them at any moment.
    pub data: [AtomicU64; COPY_MAX / 8],
}
const _: () = assert!(size_of::<ChannelPage>() == 4096);

impl ChannelPage {
    /// A page without events.
    pub const fn new() -> ChannelPage {
        ChannelPage {
            to_guest: Pending([const { AtomicU64::new(0) }; WORDS]),
            to_caller: Pending([const { AtomicU64::new(0) }; WORDS]),
            data: [const { AtomicU64::new(0) }; COPY_MAX / 8],
        }
    }
}

impl Default for ChannelPage {
    fn default() -> Self {
        ChannelPage::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn only_the_first_to_set_a_bit_signals() {
        let page = ChannelPage::new();
        assert!(page.to_guest.set(200));
        assert!(!page.to_guest.set(200));
        assert!(!page.to_guest.set(CHANNELS));
        assert_eq!(page.to_guest.take().collect::<Vec<_>>(), [200]);
        assert_eq!(page.to_caller.take().count(), 0);
        assert!(page.to_guest.set(200));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn what_is_set_is_taken_once(channels in proptest::collection::btree_set(0..CHANNELS, 0..40)) {
            let page = ChannelPage::new();
            for channel in &channels {
                prop_assert!(page.to_caller.set(*channel));
            }
            let taken: Vec<_> = page.to_caller.take().collect();
            prop_assert_eq!(taken, channels.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(page.to_caller.take().count(), 0);
        }

        #[test]
        fn any_word_is_read_as_a_badge_that_was_written(word: u64) {
            if let Some(badge) = Badge::of(word) {
                prop_assert_eq!(badge.word(), word);
            }
        }
    }
}
