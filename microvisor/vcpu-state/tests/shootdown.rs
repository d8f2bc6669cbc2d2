//! A page of a guest is taken away while another CPU is about to run a vCPU of its space: no guest
//! access after the shootdown finds the old translation. The two CPUs' steps, in every order that
//! they can have; and the same without each part of the protocol, where a stale access is found.
//!
//! What is modelled: the epoch and the mask of CPUs of a guest space (`objects`: `translate`,
//! `vcpu`, `memory`), and the identifiers of one CPU (`asid`). Emulators flush at every entry, so
//! this shows nowhere else.

use microvisor_vcpu_state::asid::{Asids, Entry, Held};
use std::collections::HashSet;

/// What of the protocol is there.
#[derive(Clone, Copy)]
struct Protocol {
    /// A CPU enters itself in the mask before it enters the guest.
    enters_itself: bool,
    /// Whoever unmaps moves the epoch on.
    epoch: bool,
    /// The CPUs in the mask are interrupted and waited for.
    asks: bool,
}

const WHOLE: Protocol = Protocol {
    enters_itself: true,
    epoch: true,
    asks: true,
};

/// Everything that the two CPUs share, and where each stands.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    // Memory.
    mapped: bool,
    epoch: u64,
    mask: bool,
    // The CPU that runs the vCPU: its next step, what it read, what it has cached and under what.
    runner: u8,
    read: u64,
    stamp: (u64, u64, u32),
    identifiers: u32,
    cached: Vec<(u32, bool)>,
    in_guest: bool,
    rounds: u8,
    // The CPU that unmaps: its next step, and whether it waits for the other.
    other: u8,
    asked: bool,
}

impl State {
    fn start(ran_before: bool, protocol: Protocol) -> State {
        State {
            mapped: true,
            epoch: 1,
            mask: ran_before && protocol.enters_itself,
            runner: 0,
            read: 0,
            stamp: if ran_before { (1, 1, 1) } else { (0, 0, 0) },
            identifiers: 1,
            cached: if ran_before {
                vec![(1, true)]
            } else {
                Vec::new()
            },
            in_guest: false,
            rounds: 0,
            other: 0,
            asked: false,
        }
    }

    /// The runner's next step; `Err` if the guest used what is not mapped any more though the
    /// shootdown was over.
    fn run(&self, protocol: Protocol) -> Result<Option<State>, ()> {
        let mut s = self.clone();
        match s.runner {
            // Between runs it answers what it is asked, if anything; then it begins.
            0 => {
                s.asked = false;
                if s.rounds == 2 {
                    s.runner = 9;
                } else {
                    s.rounds += 1;
                    s.runner = 1;
                }
            }
            1 => (s.mask, s.runner) = (protocol.enters_itself, 2),
            2 => (s.read, s.runner) = (s.epoch, 4),
            // Enters under an identifier that the real allocator chooses.
            4 => {
                let mut asids = Asids::new(0, 64);
                let mut held = Held::default();
                // Brings the allocator to where this CPU's stands.
                for step in 0..s.identifiers {
                    let _ = asids.enter(&mut held, 1000 + u64::from(step));
                }
                let now = held;
                let mut mine = match s.stamp {
                    (0, ..) => Held::default(),
                    (_, epoch, asid) => Held {
                        stamp: now.stamp,
                        epoch,
                        asid,
                    },
                };
                if asids.enter(&mut mine, s.read) != Entry::Keep {
                    s.identifiers += 1;
                }
                s.stamp = (1, mine.epoch, mine.asid);
                (s.in_guest, s.runner) = (true, 5);
            }
            // In the guest: an access; an interrupt ends it at an instruction's end.
            5 | 6 => {
                let asid = s.stamp.2;
                let known = s.cached.iter().find(|entry| entry.0 == asid).copied();
                let (_, through) = known.unwrap_or((asid, s.mapped));
                if known.is_none() {
                    s.cached.push((asid, through));
                }
                if through && !s.mapped && s.other == 9 {
                    return Err(());
                }
                s.runner += 1;
            }
            7 => (s.in_guest, s.runner) = (false, 0),
            _ => return Ok(None),
        }
        if self.asked && matches!(self.runner, 5 | 6) {
            // The interrupt comes before the next access.
            s = self.clone();
            (s.in_guest, s.runner) = (false, 0);
        }
        Ok(Some(s))
    }

    /// The unmapping CPU's next step, if it can make one.
    fn unmap(&self, protocol: Protocol) -> Option<State> {
        let mut s = self.clone();
        match s.other {
            0 => s.mapped = false,
            1 if protocol.epoch => s.epoch += 1,
            2 if protocol.asks => s.asked = s.mask,
            // Waits for the answer; then the page is somebody else's.
            3 if s.asked => return None,
            1..=3 => {}
            _ => return None,
        }
        s.other = if s.other == 3 { 9 } else { s.other + 1 };
        Some(s)
    }
}

/// True if some order of steps lets the guest use the page after it was taken away.
fn stale(protocol: Protocol) -> bool {
    let mut seen = HashSet::new();
    let mut open: Vec<State> = [false, true].map(|ran| State::start(ran, protocol)).into();
    while let Some(state) = open.pop() {
        if !seen.insert(state.clone()) {
            continue;
        }
        match state.run(protocol) {
            Err(()) => return true,
            Ok(next) => open.extend(next),
        }
        open.extend(state.unmap(protocol));
    }
    assert!(
        seen.iter()
            .any(|state| state.runner == 9 && state.other == 9)
    );
    false
}

#[test]
fn no_guest_uses_a_page_after_its_shootdown() {
    assert!(!stale(WHOLE));
}

/// The control.
#[test]
fn each_part_of_the_shootdown_is_needed() {
    for (what, protocol) in [
        (
            "the mask",
            Protocol {
                enters_itself: false,
                ..WHOLE
            },
        ),
        (
            "the epoch",
            Protocol {
                epoch: false,
                ..WHOLE
            },
        ),
        (
            "the interrupt",
            Protocol {
                asks: false,
                ..WHOLE
            },
        ),
    ] {
        assert!(stale(protocol), "{what} is not missed");
    }
}
