//! Small worlds, explored until nothing new is reached: every order of a few calls by two or three
//! threads on two CPUs. Every state must satisfy every invariant; paths to states are then replayed on
//! the real code, which is compared at each step.
//!
//! The search is over the specification, breadth first, so that what is found wrong is shortest.

use super::directed::Story;
use super::driver::{Checked, Pair};
use microvisor_abi::cap::Role;
use microvisor_abi::{Call, FOREVER, Kind, NOW};
use microvisor_spec::state::{Run, State};
use microvisor_spec::{Event, Request, event, invariants, step};
use std::collections::HashMap;

/// What can happen next.
#[derive(Clone, Copy, Debug)]
pub enum Move {
    /// The current thread of a CPU makes a call.
    Call(usize, Call, [u64; 6]),
    /// Something else.
    Event(Event),
}

/// A world, and what may happen in it.
pub struct Small {
    /// Its name.
    pub name: &'static str,
    begin: fn() -> Checked<Story>,
    moves: fn() -> Vec<Move>,
}

/// What an exploration found.
pub struct Explored {
    /// States, the first included.
    pub states: usize,
    /// Moves made.
    pub moves: usize,
    /// Paths replayed on the real code.
    pub replayed: usize,
}

/// What tells two states apart here: not what threads last said and heard, nor when turns end.
fn key(state: &State) -> State {
    let mut key = state.clone();
    for thread in key.threads.values_mut() {
        (thread.rax, thread.words, thread.refused) = (0, [0; 6], [0; 3]);
        thread.turn_left = 0;
    }
    for cpu in &mut key.cpus {
        cpu.slice_end = 0;
    }
    key
}

fn make(state: &State, what: Move) -> Option<State> {
    match what {
        Move::Event(happens) => Some(event(state, happens)),
        Move::Call(cpu, call, args) => {
            let thread = state.cpus[cpu].current?;
            if state.threads[&thread].run != Run::No {
                return None;
            }
            let request = Request {
                cpu,
                number: call as u64,
                args,
                most: 1,
            };
            let (after, _) = step(state, request);
            let after = event(&after, Event::Reschedule { cpu });
            Some(event(&after, Event::Enter { cpu }))
        }
    }
}

impl Small {
    /// Explores it to the fixed point; replays the paths to about `replays` states.
    pub fn explore(&self, replays: usize) -> Checked<Explored> {
        let first = (self.begin)()?.pair.state;
        let moves = (self.moves)();
        let mut seen = HashMap::from([(key(&first), 0)]);
        let mut states = vec![first];
        let mut from: Vec<Option<(usize, Move)>> = vec![None];
        let (mut at, mut made) = (0, 0);
        while at < states.len() {
            for what in &moves {
                let Some(next) = make(&states[at], *what) else {
                    continue;
                };
                made += 1;
                let key = key(&next);
                if seen.contains_key(&key) {
                    continue;
                }
                seen.insert(key, states.len());
                let holds = invariants::check(&next);
                states.push(next);
                from.push(Some((at, *what)));
                if let Err(why) = holds {
                    let path = path(&from, states.len() - 1);
                    return Err(format!("{why}, after {path:x?}"));
                }
                if states.len() > 60_000 {
                    return Err("this world is not small".into());
                }
            }
            // What is not needed any more: nothing but the path is.
            at += 1;
        }
        let every = (states.len() / replays.max(1)).max(1);
        let chosen: Vec<usize> = (0..states.len()).rev().step_by(every).collect();
        for end in &chosen {
            let mut pair = (self.begin)()?.pair;
            replay(&mut pair, &path(&from, *end))
                .map_err(|why| format!("\n  {}\n{why}", pair.story.join("\n  ")))?;
        }
        Ok(Explored {
            states: states.len(),
            moves: made,
            replayed: chosen.len(),
        })
    }
}

fn path(from: &[Option<(usize, Move)>], mut end: usize) -> Vec<Move> {
    let mut path = vec![];
    while let Some((before, what)) = from[end] {
        path.push(what);
        end = before;
    }
    path.reverse();
    path
}

fn replay(pair: &mut Pair, path: &[Move]) -> Checked {
    for what in path {
        match *what {
            Move::Event(happens) => pair.event(happens)?,
            Move::Call(cpu, call, args) => {
                let idle = |t| pair.state.threads[&t].run == Run::No;
                if pair.current(cpu).is_some_and(idle) {
                    pair.call(cpu, call as u64, args)?;
                }
            }
        }
    }
    Ok(())
}

fn call(cpu: usize, call: Call, words: &[u64]) -> Move {
    let mut args = [0; 6];
    args[..words.len()].copy_from_slice(words);
    Move::Call(cpu, call, args)
}

/// Two capability spaces, a frame, and a slot for a copy in each; the second space can be deleted, and
/// the memory that it and the frame were made of.
fn authority() -> Checked<Story> {
    let mut s = Story::begin(8192)?;
    s.pair.blind = true;
    s.make(Kind::Memory, 4, 500)?;
    s.ok(
        Call::Retype,
        &[500, Kind::Frame as u64 | 12 << 8, 0, 501 | 1 << 32],
    )?;
    s.ok(
        Call::Retype,
        &[500, Kind::CapSpace as u64 | 1 << 8, 0, 502 | 1 << 32],
    )?;
    s.pair.open_eyes()?;
    Ok(s)
}

fn authority_moves() -> Vec<Move> {
    // Slot 503 of root, slot 1 of the other space (502).
    let places = [(0, 501), (0, 503), (502, 1)];
    let mut moves = vec![];
    for source in [501, 503, 502] {
        for (space, slot) in &places[1..] {
            for rights in [1, 3] {
                moves.push(call(0, Call::Copy, &[source, *space, *slot, rights]));
            }
        }
    }
    for (space, slot) in places.iter().chain(&[(0, 502), (0, 500)]) {
        moves.push(call(0, Call::Delete, &[*space, *slot]));
        moves.push(call(0, Call::Revoke, &[*space, *slot]));
        for (to, place) in &places[1..] {
            moves.push(call(0, Call::Move, &[*space, *slot, *to, *place]));
        }
    }
    moves.push(call(0, Call::Map, &[503, 2, 0x21_0000, 1]));
    moves.push(call(0, Call::Map, &[503, 2, 0x21_0000, 3]));
    moves.push(call(0, Call::Unmap, &[503]));
    let frame = Kind::Frame as u64 | 12 << 8;
    moves.push(call(0, Call::Retype, &[500, frame, 0, 501 | 1 << 32]));
    moves
}

/// Root on one CPU, a thread on the other; an endpoint, a reply object and a notification.
fn communication() -> Checked<Story> {
    let mut s = Story::begin(8192)?;
    s.pair.blind = true;
    s.make(Kind::Endpoint, 0, 500)?;
    s.make(Kind::Reply, 0, 501)?;
    s.make(Kind::Notification, 0, 502)?;
    s.thread(510, 15)?;
    s.pair.open_eyes()?;
    s.look(1)?;
    Ok(s)
}

fn communication_moves() -> Vec<Move> {
    let mut moves = vec![];
    for cpu in 0..2 {
        moves.extend([
            call(cpu, Call::Call, &[500, 0]),
            call(cpu, Call::Receive, &[500, 501, FOREVER]),
            call(cpu, Call::Receive, &[500, 501, NOW]),
            call(cpu, Call::Reply, &[501, 0]),
            call(cpu, Call::ReplyReceive, &[500 | 501 << 32, 0]),
            call(cpu, Call::Signal, &[502, 1]),
            call(cpu, Call::Wait, &[502, FOREVER]),
            Move::Event(Event::Reschedule { cpu }),
        ]);
    }
    let messages = Role::Messages as u64;
    moves.extend([
        call(0, Call::Bind, &[502, 510, messages]),
        call(0, Call::Bind, &[502, 0, messages]),
        call(0, Call::ThreadControl, &[510, 2]),
        call(0, Call::ThreadControl, &[510, 1]),
        call(0, Call::ThreadControl, &[510, 0]),
        call(0, Call::Delete, &[0, 501]),
        call(0, Call::Delete, &[0, 502]),
    ]);
    moves
}

/// A vCPU that two CPUs may run, bits and pokes that end its runs, and its end.
fn guests() -> Checked<Story> {
    let mut s = Story::begin(8192)?;
    s.pair.blind = true;
    s.make(Kind::Vcpu, 0, 500)?;
    s.make(Kind::AddressSpace, 1, 501)?;
    s.make(Kind::Notification, 0, 502)?;
    s.make(Kind::Tables, 3, 503)?;
    s.make(Kind::Frame, 12, 504)?;
    s.ok(Call::Fill, &[501, 503])?;
    s.thread(510, 15)?;
    s.pair.open_eyes()?;
    s.look(1)?;
    Ok(s)
}

fn guests_moves() -> Vec<Move> {
    let mut moves = vec![];
    for cpu in 0..2 {
        moves.extend([
            call(cpu, Call::VcpuRun, &[500]),
            call(cpu, Call::VcpuControl, &[500, 0, 501]),
            call(cpu, Call::VcpuControl, &[500, 1]),
            call(cpu, Call::Signal, &[502, 1]),
            call(cpu, Call::Wait, &[502, NOW]),
            call(cpu, Call::Bind, &[502, 500, Role::Run as u64]),
            call(cpu, Call::Bind, &[502, 0, Role::Run as u64]),
            call(cpu, Call::Map, &[504, 501, 0x1000, 3]),
            call(cpu, Call::Unmap, &[504]),
            call(cpu, Call::Delete, &[0, 500]),
            call(cpu, Call::Delete, &[0, 501]),
            call(cpu, Call::Delete, &[0, 502]),
            Move::Event(Event::Reschedule { cpu }),
            Move::Event(Event::Enter { cpu }),
        ]);
    }
    moves.push(call(0, Call::ThreadControl, &[510, 2]));
    moves
}

/// All of them.
pub const WORLDS: &[Small] = &[
    Small {
        name: "authority",
        begin: authority,
        moves: authority_moves,
    },
    Small {
        name: "communication",
        begin: communication,
        moves: communication_moves,
    },
    Small {
        name: "guests",
        begin: guests,
        moves: guests_moves,
    },
];
