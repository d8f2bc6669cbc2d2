//! Frames that carry one object after another of the same kind, while somebody still refers to the
//! first: only the frame's generation tells them apart. Called by `directed::stories`.

use super::directed::{Story, Told};
use super::driver::{Checked, Pair};
use microvisor_abi::cap::Role;
use microvisor_abi::{Call, Kind};
use microvisor_spec::Event;

/// Makes an object in the first frame of the memory in slot 500, into slot 501; the last one there
/// is deleted first.
fn again(s: &mut Story, kind: Kind) -> Checked {
    s.ok(Call::Delete, &[0, 501])?;
    fresh(s, kind)
}

fn fresh(s: &mut Story, kind: Kind) -> Checked {
    s.ok(Call::Retype, &[500, kind as u64, 0, 501 | 1 << 32])
}

/// Who hears of a thread's faults or of a line, whose time a thread has, in whose space it runs: when
/// that is destroyed, what is made in its frame next is a stranger.
fn a_stranger_in_the_same_frame() -> Checked<Pair> {
    let mut s = Story::begin(8192)?;
    s.thread(510, 15)?;
    s.look(1)?;
    s.make(Kind::Memory, 2, 500)?;
    fresh(&mut s, Kind::Notification)?;
    s.ok(Call::Bind, &[501, 510, Role::Faults as u64])?;
    again(&mut s, Kind::Notification)?;
    s.pair.event(Event::Fault {
        cpu: 1,
        fault: [6, 0, 0],
    })?;
    s.look(1)?;
    again(&mut s, Kind::Notification)?;
    s.ok(Call::Copy, &[6, 0, 502, 0xff, 4 | 1 << 32, 0])?;
    s.ok(Call::Bind, &[502, 501, Role::Line as u64])?;
    again(&mut s, Kind::Notification)?;
    s.pair.event(Event::Interrupt { line: 4 })?;
    again(&mut s, Kind::AddressSpace)?;
    let begin = [510, 501, 1, 0x20_0000, 0x30_0000, 0];
    s.ok(Call::ThreadConfigure, &begin)?;
    again(&mut s, Kind::AddressSpace)?;
    s.on(0, Call::ThreadControl, &[510, 0])?;
    s.look(1)?;
    Ok(s.pair)
}

/// What somebody wrote into a page is gone when the page is handed out again.
fn nothing_is_left_in_a_page() -> Checked<Pair> {
    let mut s = Story::begin(8192)?;
    s.make(Kind::Memory, 1, 500)?;
    let page = [500, Kind::Frame as u64 | 12 << 8, 0, 501 | 1 << 32];
    for _ in 0..2 {
        // Whoever looks that it is zero writes into it then.
        s.ok(Call::Retype, &page)?;
        s.ok(Call::Delete, &[0, 501])?;
    }
    Ok(s.pair)
}

pub const STORIES: &[(&str, Told)] = &[
    ("a_stranger_in_the_same_frame", a_stranger_in_the_same_frame),
    ("nothing_is_left_in_a_page", nothing_is_left_in_a_page),
];
