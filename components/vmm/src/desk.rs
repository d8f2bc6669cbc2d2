//! What a vCPU's hypercall wants of other domains, until it has the answers. A call that needs another
//! domain's VMM notes that here and ends; its vCPU's thread asks when it has let go of the domain's lock,
//! and the guest makes the call again, which finds the answers here.
//!
//! Called by the VMM's `foreign`, under its lock; asks nobody itself. A guest may change its mind between
//! two attempts, so an answer is for exactly what was asked, is given once, and what nobody fetches is
//! told by [`Desk::left`] to be undone.

use alloc::vec::Vec;
use core::task::Poll;

use xen_abi::{Errno, GrantCopy, GrantToken, LinkId};

/// Answers that wait at most: more than one call has use for. A guest that makes other calls each time
/// loses what it does not fetch.
pub const ANSWERS_MAX: usize = 64;

/// A grant to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantAsk {
    /// Whose.
    pub domid: u16,
    /// Which.
    pub reference: u32,
    /// To write.
    pub write: bool,
}

/// A port to be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortAsk {
    /// Whose.
    pub domid: u16,
    /// Which.
    pub port: u32,
    /// The own port that is to be its other end.
    pub local: u32,
}

/// A channel that was bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The connection's place.
    pub link: LinkId,
    /// Which of the connections that were in this place.
    pub number: u64,
    /// The channel in it.
    pub channel: u16,
}

/// Something to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Whether the domain can be reached.
    Reach(u16),
    /// A grant.
    Grant(GrantAsk),
    /// A port.
    Port(PortAsk),
    /// A copy.
    Copy(GrantCopy),
}

/// What nobody fetched.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Grants in use.
    pub grants: Vec<GrantToken>,
    /// Channels that are bound.
    pub channels: Vec<Bound>,
}

/// The desk of one vCPU.
#[derive(Debug, Default)]
pub struct Desk {
    asks: Vec<Ask>,
    unreachable: Vec<u16>,
    grants: Vec<(GrantAsk, Result<GrantToken, i16>)>,
    ports: Vec<(PortAsk, Result<Bound, Errno>)>,
    copies: Vec<(GrantCopy, Result<(), i16>)>,
}

/// `GNTST_general_error`.
const GENERAL_ERROR: i16 = -1;

/// A refusal as the guest is told it. A hostile VMM may refuse with a status that says that all went well,
/// and the guest would go on with a page that is not there.
fn refusal(status: i16) -> i16 {
    match status {
        ..0 => status,
        _ => GENERAL_ERROR,
    }
}

/// The answer to exactly this, which goes with it.
fn fetch<Q: PartialEq, A>(answers: &mut Vec<(Q, A)>, question: &Q) -> Option<A> {
    let place = answers.iter().position(|(of, _)| of == question)?;
    Some(answers.remove(place).1)
}

impl Desk {
    /// Whether a domain to which there is no connection can be reached.
    pub fn reach(&mut self, domid: u16) -> Poll<bool> {
        if self.unreachable.contains(&domid) {
            return Poll::Ready(false);
        }
        if !self.asks.contains(&Ask::Reach(domid)) {
            self.asks.push(Ask::Reach(domid));
        }
        Poll::Pending
    }

    /// A grant.
    pub fn grant(&mut self, ask: GrantAsk) -> Poll<Result<GrantToken, i16>> {
        match fetch(&mut self.grants, &ask) {
            Some(answer) => Poll::Ready(answer),
            None => {
                self.asks.push(Ask::Grant(ask));
                Poll::Pending
            }
        }
    }

    /// A copy, which is made before there is an answer.
    pub fn copy(&mut self, copy: GrantCopy) -> Poll<Result<(), i16>> {
        match fetch(&mut self.copies, &copy) {
            Some(answer) => Poll::Ready(answer),
            None => {
                self.asks.push(Ask::Copy(copy));
                Poll::Pending
            }
        }
    }

    /// A grant that will be asked for.
    pub fn grant_soon(&mut self, ask: GrantAsk) {
        self.asks.push(Ask::Grant(ask));
    }

    /// A port.
    pub fn port(&mut self, ask: PortAsk) -> Poll<Result<Bound, Errno>> {
        match fetch(&mut self.ports, &ask) {
            Some(answer) => Poll::Ready(answer),
            None => {
                self.asks.push(Ask::Port(ask));
                Poll::Pending
            }
        }
    }

    /// Takes what is to be asked.
    pub fn take_asks(&mut self) -> Vec<Ask> {
        core::mem::take(&mut self.asks)
    }

    /// An empty list, for the next questions, so that each call does not need memory anew.
    pub fn give_back(&mut self, asks: Vec<Ask>) {
        if self.asks.is_empty() {
            self.asks = asks;
        }
    }

    /// An answer: there is no way to this domain.
    pub fn unreachable(&mut self, domid: u16) {
        self.unreachable.push(domid);
    }

    /// An answer.
    pub fn copied(&mut self, copy: GrantCopy, answer: Result<(), i16>) {
        self.copies.push((copy, answer.map_err(refusal)));
    }

    /// An answer.
    pub fn granted(&mut self, ask: GrantAsk, answer: Result<GrantToken, i16>) {
        self.grants.push((ask, answer.map_err(refusal)));
    }

    /// An answer.
    pub fn bound(&mut self, ask: PortAsk, answer: Result<Bound, Errno>) {
        self.ports.push((ask, answer));
    }

    /// Whether answers wait.
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    fn count(&self) -> usize {
        self.unreachable.len() + self.grants.len() + self.ports.len() + self.copies.len()
    }

    /// What will not be fetched any more: everything when the call is `finished`, or when there is more
    /// than one call has use for.
    pub fn left(&mut self, finished: bool) -> Left {
        if !finished && self.count() <= ANSWERS_MAX {
            return Left::default();
        }
        self.unreachable.clear();
        // Nothing stays in use of a copy that was made.
        self.copies.clear();
        let grants = self.grants.drain(..).filter_map(|(_, answer)| answer.ok());
        let channels = self.ports.drain(..).filter_map(|(_, answer)| answer.ok());
        Left {
            grants: grants.collect(),
            channels: channels.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use proptest::prelude::*;
    use std::vec;
    use xen_abi::CopySide;

    const GRANT: GrantAsk = GrantAsk {
        domid: 3,
        reference: 8,
        write: true,
    };

    #[test]
    fn an_answer_is_for_what_was_asked_and_is_given_once() {
        let mut desk = Desk::default();
        assert!(desk.grant(GRANT).is_pending());
        assert_eq!(desk.take_asks(), [Ask::Grant(GRANT)]);
        desk.granted(GRANT, Ok(GrantToken(1)));
        let reader = GrantAsk {
            write: false,
            ..GRANT
        };
        assert!(desk.grant(reader).is_pending());
        assert_eq!(desk.grant(GRANT), Poll::Ready(Ok(GrantToken(1))));
        assert!(desk.grant(GRANT).is_pending());
    }

    #[test]
    fn a_refusal_is_never_told_as_a_success() {
        let mut desk = Desk::default();
        let copy = GrantCopy {
            from: CopySide::Own(0),
            to: CopySide::Own(0),
            length: 1,
        };
        for (said, told) in [
            (0, -1),
            (1, -1),
            (i16::MAX, -1),
            (-3, -3),
            (i16::MIN, i16::MIN),
        ] {
            desk.granted(GRANT, Err(said));
            assert_eq!(desk.grant(GRANT), Poll::Ready(Err(told)));
            desk.copied(copy, Err(said));
            assert_eq!(desk.copy(copy), Poll::Ready(Err(told)));
        }
    }

    #[test]
    fn a_domain_that_cannot_be_reached_is_not_asked_for_again_in_the_same_call() {
        let mut desk = Desk::default();
        assert!(desk.reach(3).is_pending());
        assert!(desk.reach(3).is_pending());
        assert_eq!(desk.take_asks(), [Ask::Reach(3)]);
        desk.unreachable(3);
        assert_eq!(desk.reach(3), Poll::Ready(false));
        assert_eq!(desk.left(true), Left::default());
        assert!(desk.reach(3).is_pending(), "another call asks anew");
    }

    #[test]
    fn what_a_finished_call_left_is_told_once() {
        let mut desk = Desk::default();
        let ask = PortAsk {
            domid: 3,
            port: 7,
            local: 9,
        };
        let bound = Bound {
            link: LinkId(0x100),
            number: 1,
            channel: 2,
        };
        desk.granted(GRANT, Ok(GrantToken(1)));
        desk.granted(GRANT, Err(-3));
        desk.bound(ask, Ok(bound));
        assert_eq!(desk.left(false), Left::default());
        let left = Left {
            grants: vec![GrantToken(1)],
            channels: vec![bound],
        };
        assert_eq!(desk.left(true), left);
        assert_eq!(desk.left(true), Left::default());
        assert!(desk.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// Whatever a guest asks for, and whenever it gives up, each grant that was opened is fetched or told
        /// to be left, and no desk grows without bound.
        #[test]
        fn no_answer_is_lost(steps in proptest::collection::vec((0u32..6, any::<bool>(), 0u8..8), 1..120)) {
            let mut desk = Desk::default();
            let (mut next, mut open) = (0, BTreeSet::new());
            for (reference, write, what) in steps {
                let ask = GrantAsk { domid: 1, reference, write };
                if let Poll::Ready(Ok(token)) = desk.grant(ask) {
                    prop_assert!(open.remove(&token));
                }
                for left in desk.left(what == 0).grants {
                    prop_assert!(open.remove(&left));
                }
                for ask in desk.take_asks() {
                    if let Ask::Grant(ask) = ask {
                        next += 1;
                        open.insert(GrantToken(next));
                        desk.granted(ask, Ok(GrantToken(next)));
                    }
                }
                prop_assert!(desk.grants.len() <= ANSWERS_MAX + 1);
            }
            for left in desk.left(true).grants {
                prop_assert!(open.remove(&left));
            }
            prop_assert!(open.is_empty());
        }
    }
}
