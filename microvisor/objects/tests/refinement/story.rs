//! Random calls that are plausible as often as not: what a word means depends on where it stands, and
//! is looked up in the specification's state when the call is made. So a sequence stays sensible
//! while proptest shortens it.

use super::driver::{Checked, Pair};
use super::world::World;
use microvisor_abi::message::{MessageInfo, RECEIVE_SLOTS, SEND_SLOTS};
use microvisor_abi::{Call, FOREVER, Kind, Status};
use microvisor_spec::Event;
use microvisor_spec::state::{Frame, Place, Run};
use proptest::prelude::*;

/// One step of a story. Numbers are seeds: see [`Words`].
#[derive(Clone, Debug)]
pub enum Deed {
    /// A call by the current thread of a CPU (or of the other one, if that has none).
    Call {
        cpu: usize,
        call: u8,
        words: [u16; 6],
    },
    /// The current thread of a CPU writes the slots it sends from and receives into.
    Slots { cpu: usize, words: [u16; 4] },
    /// Time passes.
    Time(u16),
    /// A timer interrupt.
    Timer(usize),
    /// An interrupt to a CPU arrives.
    Look(usize),
    /// A line fires.
    Line(u8),
    /// The current thread of a CPU faults.
    Fault(usize),
    /// The IOMMU stops a function.
    Stop(u8),
    /// The guest of a CPU exits.
    Exit(usize),
}

/// A story of at most `most` deeds.
pub fn story(most: usize) -> impl Strategy<Value = Vec<Deed>> {
    let cpu = || 0..2usize;
    let deed = prop_oneof![
        40 => (cpu(), 0..64u8, any::<[u16; 6]>())
            .prop_map(|(cpu, call, words)| Deed::Call { cpu, call, words }),
        4 => (cpu(), any::<[u16; 4]>()).prop_map(|(cpu, words)| Deed::Slots { cpu, words }),
        2 => (1..3000u16).prop_map(Deed::Time),
        2 => cpu().prop_map(Deed::Timer),
        2 => cpu().prop_map(Deed::Look),
        1 => (0..6u8).prop_map(Deed::Line),
        1 => cpu().prop_map(Deed::Fault),
        1 => (0x10..0x14u8).prop_map(Deed::Stop),
        3 => cpu().prop_map(Deed::Exit),
    ];
    proptest::collection::vec(deed, 1..most)
}

/// What a word of a call stands for.
#[derive(Clone, Copy)]
enum Means {
    /// A capability of this kind.
    Cap(Kind),
    /// Any capability.
    Any,
    /// A capability of this kind, or 0.
    Maybe(Kind),
    /// A space to put something into: mostly the caller's own.
    Space,
    /// A slot of that space that is empty.
    Empty,
    /// A slot of that space that is not.
    Full,
    /// What to make, and how large.
    KindSize,
    /// Where, and how many.
    SlotCount,
    Rights,
    /// Badge, offset or range, as the source wants it.
    Badge,
    Order,
    Address,
    Access,
    User,
    Deadline,
    Info,
    /// Up to this.
    Below(u64),
    Budget,
    Period,
    EndpointReply,
    Line,
}

/// A message's words are only carried.
const WORD: Means = Means::Below(1 << 16);

fn meaning(call: Call) -> [Means; 6] {
    use Means::*;
    let none = Below(1);
    match call {
        Call::Retype => [Cap(Kind::Memory), KindSize, Space, SlotCount, none, none],
        Call::Copy => [Any, Space, Empty, Rights, Badge, Order],
        Call::Move => [Space, Full, Space, Empty, none, none],
        Call::Delete | Call::Revoke | Call::Inspect => [Space, Full, none, none, none, none],
        Call::Map => [Any, Cap(Kind::AddressSpace), Address, Access, none, none],
        Call::Unmap => [Any, none, none, none, none, none],
        Call::Fill => {
            let space = Cap(Kind::AddressSpace);
            [space, Cap(Kind::Tables), none, none, none, none]
        }
        Call::ThreadConfigure => [
            Cap(Kind::Thread),
            Cap(Kind::AddressSpace),
            Cap(Kind::CapSpace),
            User,
            User,
            WORD,
        ],
        Call::ThreadControl => [Cap(Kind::Thread), Below(5), none, none, none, none],
        Call::SchedSet => [
            Cap(Kind::SchedContext),
            Cap(Kind::Cpu),
            Below(3),
            Below(33),
            Budget,
            Period,
        ],
        // `what` and `to` depend on the role; see `Words::word`.
        Call::Bind => [Any, Any, Below(10), none, none, none],
        Call::Call => [Cap(Kind::Endpoint), Info, WORD, WORD, WORD, WORD],
        Call::Receive => {
            let endpoint = Cap(Kind::Endpoint);
            [endpoint, Maybe(Kind::Reply), Deadline, none, none, none]
        }
        Call::Reply => [Cap(Kind::Reply), Info, WORD, WORD, WORD, WORD],
        Call::ReplyReceive => [EndpointReply, Info, WORD, WORD, WORD, WORD],
        Call::Signal => [Cap(Kind::Notification), WORD, none, none, none, none],
        Call::Wait => [Cap(Kind::Notification), Deadline, none, none, none, none],
        Call::VcpuRun => [Cap(Kind::Vcpu), none, none, none, none, none],
        Call::VcpuControl => {
            let space = Cap(Kind::AddressSpace);
            [Cap(Kind::Vcpu), Below(6), space, Below(5000), none, none]
        }
        Call::InterruptControl => [Cap(Kind::Interrupt), Line, Below(2), none, none, none],
        Call::PortsGrant => [Cap(Kind::IoPorts), Any, none, none, none, none],
    }
}

/// From seeds to words, in the eyes of one thread.
struct Words<'a> {
    pair: &'a Pair,
    me: Frame,
}

impl Words<'_> {
    fn caps(&self) -> Option<Frame> {
        self.pair.state.threads.get(&self.me)?.caps
    }

    /// Slots of a space that hold something, of a kind if one is named.
    fn full(&self, space: Option<Frame>, kind: Option<Kind>) -> Vec<u64> {
        let state = &self.pair.state;
        let Some(space) = space else { return vec![] };
        let slots = Place { space, slot: 1 }..Place {
            space: space + 1,
            slot: 0,
        };
        let wanted = |k| kind.is_none_or(|kind| kind == k);
        state
            .caps
            .range(slots)
            .filter(|(_, cap)| wanted(cap.kind()))
            .map(|(place, _)| u64::from(place.slot))
            .collect()
    }

    fn choose(&self, list: &[u64], seed: u16) -> u64 {
        let any = u64::from(seed >> 3) % 70;
        match list.len() {
            _ if seed % 16 == 15 => any,
            0 => any,
            n => list[usize::from(seed >> 4) % n],
        }
    }

    fn cap(&self, kind: Option<Kind>, seed: u16) -> u64 {
        self.choose(&self.full(self.caps(), kind), seed)
    }

    /// The space that a word already chosen names.
    fn space(&self, word: u64) -> Option<Frame> {
        if word == 0 {
            return self.caps();
        }
        let place = self.pair.state.slot_of(self.caps(), word).ok()?;
        self.pair.state.caps.get(&place)?.object()
    }

    fn word(&self, call: Call, at: usize, seed: u16, so_far: &[u64]) -> u64 {
        use Kind::*;
        let n = u64::from(seed);
        let spaced = |at: usize| self.space(so_far.get(at).copied().unwrap_or(0));
        let nearest = at.saturating_sub(1);
        match meaning(call)[at] {
            Means::Any if call == Call::PortsGrant => {
                self.cap(Some(Thread).filter(|_| n % 3 > 0), seed / 3)
            }
            Means::Any if matches!(call, Call::Map | Call::Unmap) => {
                let kinds = [Frame, Frame, Frame, Thread, Vcpu];
                self.cap(kinds.get(usize::from(seed % 6)).copied(), seed / 6)
            }
            Means::Any => self.cap(None, seed),
            Means::Cap(kind) => self.cap(Some(kind), seed),
            Means::Maybe(_) if seed.is_multiple_of(8) => 0,
            Means::Maybe(kind) => self.cap(Some(kind), seed),
            Means::Space if !seed.is_multiple_of(4) => 0,
            Means::Space => self.cap(Some(CapSpace), seed / 4),
            Means::Empty | Means::SlotCount => {
                let taken = self.full(spaced(nearest), None);
                let empty: Vec<u64> = (1..64).filter(|s| !taken.contains(s)).take(6).collect();
                let list = if seed % 16 == 14 { &taken } else { &empty };
                let slot = self.choose(list, seed);
                match meaning(call)[at] {
                    Means::SlotCount => slot | (n >> 9 & 3).max(u64::from(n % 64 != 1)) << 32,
                    _ => slot,
                }
            }
            Means::Full => self.choose(&self.full(spaced(nearest), None), seed),
            Means::KindSize => {
                let (kind, size) = [
                    (Memory, 1 + n % 9),
                    (Frame, 12),
                    (Frame, 12),
                    (Frame, 21),
                    (Frame, 30),
                    (Tables, 1 + n % 5),
                    (CapSpace, 1),
                    (AddressSpace, n % 4),
                    (Thread, 0),
                    (SchedContext, 0),
                    (Endpoint, 0),
                    (Reply, 0),
                    (Notification, 0),
                    (Vcpu, 0),
                    (Cpu, 0),
                    (Reply, 1),
                ][usize::from(seed >> 4) % 16];
                kind as u64 | size << 8
            }
            Means::Rights => [0xff, 0xff, 1, 2, 3, 5, 7, 0][usize::from(seed % 8)],
            Means::Badge => [
                0,
                0,
                n >> 3,
                (n & 7) << 12,
                (n & 7) << 21,
                (n >> 3 & 63) | (1 << 32),
                3 | (2 << 32),
            ][usize::from(seed % 7)],
            Means::Order => [0, 0, 12, 21, 30, 5][usize::from(seed % 6)],
            Means::Address => [
                0x4000_0000 + ((n >> 3 & 3) << 12),
                0x4000_0000 + ((n >> 3 & 3) << 21),
                (n >> 3 & 1) << 30,
                0x4020_0000,
                n,
                u64::MAX - 0xfff,
                1 << 47,
            ][usize::from(seed % 7)],
            Means::Access => [1, 3, 3, 5, 7, 0, 9, 1][usize::from(seed % 8)],
            Means::User => {
                [0x20_0000, 0x30_0000, u64::MAX][usize::from(seed % 31).saturating_sub(28)]
            }
            Means::Deadline => match seed % 4 {
                0 => 0,
                1 => self.pair.state.now + 1 + (n >> 2),
                _ => FOREVER,
            },
            Means::Info => match seed % 16 {
                0..8 => MessageInfo::new(seed.into(), 0, 0).0,
                8..10 => MessageInfo::new(seed.into(), usize::from(seed % 64), 0).0,
                10..14 => MessageInfo::new(1, 8, 1).0,
                14 => MessageInfo::new(1, 0, 2).0,
                _ => u64::MAX,
            },
            Means::Below(limit) => n % limit,
            Means::Budget => [1000, 100, 0, 5000][usize::from(seed % 16).saturating_sub(12)],
            Means::Period => 1000,
            Means::EndpointReply => {
                let (low, high) = (seed & 0xff, seed >> 8);
                let list = self.full(self.caps(), Some(Endpoint));
                let endpoint = self.choose(&list, low << 4 | low >> 4);
                let list = self.full(self.caps(), Some(Reply));
                endpoint | self.choose(&list, high << 4 | high >> 4) << 32
            }
            Means::Line => [3, 4, n % 70][usize::from(seed % 3)],
        }
    }

    fn words(&self, call: Call, seeds: [u16; 6]) -> [u64; 6] {
        let mut out = [0; 6];
        for at in 0..6 {
            out[at] = self.word(call, at, seeds[at], &out[..at]);
        }
        if call == Call::Bind && !seeds[5].is_multiple_of(8) {
            use Kind::*;
            let (what, to) = match out[2] {
                0 => (SchedContext, Thread),
                1 | 2 => (Notification, Thread),
                3 => (Notification, Vcpu),
                4 => (Interrupt, Notification),
                6 => (Device, AddressSpace),
                7 => (Interrupt, Device),
                8 => (Notification, Device),
                _ => (Endpoint, Null),
            };
            out[0] = self.cap(Some(what), seeds[0]);
            let nothing = seeds[1].is_multiple_of(5) || to == Null;
            out[1] = if nothing {
                0
            } else {
                self.cap(Some(to), seeds[1])
            };
        }
        out
    }
}

/// Calls, each as often as it is interesting.
const MIX: &[Call] = &[
    Call::Retype,
    Call::Retype,
    Call::Retype,
    Call::Retype,
    Call::Retype,
    Call::Copy,
    Call::Copy,
    Call::Copy,
    Call::Copy,
    Call::Copy,
    Call::Move,
    Call::Move,
    Call::Delete,
    Call::Delete,
    Call::Revoke,
    Call::Map,
    Call::Map,
    Call::Map,
    Call::Map,
    Call::Unmap,
    Call::Fill,
    Call::Fill,
    Call::ThreadConfigure,
    Call::ThreadConfigure,
    Call::ThreadControl,
    Call::ThreadControl,
    Call::ThreadControl,
    Call::ThreadControl,
    Call::SchedSet,
    Call::SchedSet,
    Call::Bind,
    Call::Bind,
    Call::Bind,
    Call::Bind,
    Call::Bind,
    Call::Call,
    Call::Call,
    Call::Call,
    Call::Call,
    Call::Receive,
    Call::Receive,
    Call::Receive,
    Call::Reply,
    Call::Reply,
    Call::ReplyReceive,
    Call::ReplyReceive,
    Call::Signal,
    Call::Signal,
    Call::Signal,
    Call::Wait,
    Call::Wait,
    Call::VcpuRun,
    Call::VcpuRun,
    Call::VcpuControl,
    Call::VcpuControl,
    Call::VcpuControl,
    Call::InterruptControl,
    Call::InterruptControl,
    Call::PortsGrant,
    Call::PortsGrant,
    Call::Inspect,
];

impl Pair {
    /// Does one deed. False if nobody is left to do anything.
    pub fn deed(&mut self, deed: &Deed) -> Checked<bool> {
        match *deed {
            Deed::Call { cpu, call, words } => {
                let user = |cpu: usize| {
                    let thread = self.current(cpu)?;
                    (self.state.threads.get(&thread)?.run == Run::No).then_some(thread)
                };
                let Some((cpu, me)) = [cpu, 1 - cpu].into_iter().find_map(|c| Some((c, user(c)?)))
                else {
                    return self.somebody_wakes();
                };
                match MIX.get(usize::from(call)) {
                    Some(&call) => {
                        let args = Words { pair: self, me }.words(call, words);
                        self.call(cpu, call as u64, args)?;
                    }
                    None => {
                        self.call(cpu, 100, [0; 6])?;
                    }
                }
            }
            Deed::Slots { cpu, words } => {
                if let Some(me) = self.current(cpu) {
                    let w = Words { pair: self, me };
                    let taken = w.full(w.caps(), None);
                    let empty: Vec<u64> = (1..64).filter(|s| !taken.contains(s)).take(4).collect();
                    let send = [w.cap(None, words[0]) as u32, w.cap(None, words[1]) as u32];
                    let receive = [
                        w.choose(&empty, words[2]) as u32,
                        w.choose(&empty, words[3]) as u32,
                    ];
                    self.write_buffer(me, SEND_SLOTS, &send);
                    self.write_buffer(me, RECEIVE_SLOTS, &receive);
                }
            }
            Deed::Time(ticks) => {
                let now = self.state.now + u64::from(ticks);
                self.event(Event::Time { now })?;
            }
            Deed::Timer(cpu) => self.event(Event::Timer { cpu })?,
            Deed::Look(cpu) => self.event(Event::Reschedule { cpu })?,
            Deed::Line(line) => {
                if self.state.enabled.contains(&line.into()) {
                    self.event(Event::Interrupt { line: line.into() })?;
                }
            }
            Deed::Fault(cpu) => {
                let idle = |t: Frame| self.state.threads[&t].run == Run::No;
                // Root is left alone: without it nobody is left to start anything.
                if self.current(cpu).is_some_and(idle) && cpu == 1 {
                    let fault = [14, 6, 0xdead_b000];
                    self.event(Event::Fault { cpu, fault })?;
                }
            }
            Deed::Stop(function) => {
                let (function, why) = (function.into(), 0x1000 | 1);
                self.event(Event::DeviceFault { function, why })?;
            }
            Deed::Exit(cpu) => {
                let inside = |t: Frame| self.state.threads[&t].run != Run::No;
                if self.current(cpu).is_some_and(inside) {
                    self.event(Event::Exit { cpu })?;
                }
            }
        }
        Ok(true)
    }

    /// Nobody can make a call: guests exit, or time passes until the next deadline.
    fn somebody_wakes(&mut self) -> Checked<bool> {
        for cpu in 0..2 {
            if self.current(cpu).is_some() {
                self.event(Event::Exit { cpu })?;
                return Ok(true);
            }
        }
        for cpu in 0..2 {
            if let Some((at, _)) = self.state.timers(cpu).first() {
                let now = self.state.now.max(*at);
                self.event(Event::Time { now })?;
                self.event(Event::Timer { cpu })?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A call that must succeed, while the world is set up.
    pub fn ok(&mut self, call: Call, args: &[u64]) -> Checked {
        let mut words = [0; 6];
        words[..args.len()].copy_from_slice(args);
        match self.call(0, call as u64, words)? {
            Some(Status::Ok) => Ok(()),
            other => Err(format!("{call:?} {args:x?} answered {other:?}")),
        }
    }
}

/// Slots that every domain finds its things in.
pub mod slot {
    /// Its own capability space.
    pub const CAPS: u64 = 1;
    /// Its address space.
    pub const SPACE: u64 = 2;
    /// Its thread.
    pub const THREAD: u64 = 3;
    /// Its time.
    pub const SCHED: u64 = 4;
    /// Memory of its own.
    pub const MEMORY: u64 = 5;
    /// What is shared.
    pub const SHARED: u64 = 8;
}

/// Three domains beside root, which sleeps: two of them on CPU 0, one on CPU 1. Each has a capability
/// space, some memory, and names of shared objects; the first has the originals of those, and of
/// everybody's threads and times.
/// While it is made, a `blind` pair is not compared.
pub fn world(blind: bool) -> Checked<Pair> {
    let world = World::new();
    let ram = world.ram();
    let device = world.info.memories[1].slot.into();
    let mut p = Pair::new(world)?;
    p.blind = blind;
    let retype = |kind: Kind, size: u64, slot: u64, count: u64| {
        [ram, kind as u64 | size << 8, 0, slot | count << 32]
    };
    // Root's slots 100+: domains; 200+: shared objects.
    p.ok(Call::Retype, &retype(Kind::CapSpace, 1, 100, 3))?;
    p.ok(Call::Retype, &retype(Kind::AddressSpace, 0, 110, 3))?;
    p.ok(Call::Retype, &retype(Kind::AddressSpace, 1, 113, 1))?;
    p.ok(Call::Retype, &retype(Kind::Thread, 0, 120, 3))?;
    p.ok(Call::Retype, &retype(Kind::SchedContext, 0, 130, 3))?;
    p.ok(Call::Retype, &retype(Kind::Memory, 1200, 140, 1))?;
    p.ok(Call::Retype, &retype(Kind::Memory, 24, 141, 2))?;
    p.ok(Call::Retype, &retype(Kind::Endpoint, 0, 200, 2))?;
    p.ok(Call::Retype, &retype(Kind::Reply, 0, 202, 3))?;
    p.ok(Call::Retype, &retype(Kind::Notification, 0, 205, 3))?;
    p.ok(Call::Retype, &retype(Kind::Vcpu, 0, 208, 1))?;
    p.ok(Call::Retype, &retype(Kind::Frame, 21, 209, 1))?;
    p.ok(Call::Retype, &retype(Kind::Tables, 3, 210, 1))?;
    p.ok(Call::Copy, &[6, 0, 211, 0xff, 3 | 1 << 32, 0])?;
    p.ok(Call::Copy, &[6, 0, 212, 0xff, 4 | 2 << 32, 0])?;
    p.ok(Call::Copy, &[5, 0, 213, 0xff, 0x60 | 8 << 32, 0])?;
    p.ok(Call::Copy, &[7, 0, 214, 0xff, 2 << 32, 20])?;
    // Devices, messages, and spaces for them.
    p.ok(Call::Retype, &retype(Kind::AddressSpace, 2, 310, 2))?;
    p.ok(Call::Copy, &[10, 0, 312, 0xff, 0x10 | 4 << 32, 0])?;
    p.ok(Call::Copy, &[10, 0, 313, 0xff, 0x11 | 1 << 32, 0])?;
    p.ok(Call::Copy, &[6, 0, 314, 0xff, 16 | 6 << 32, 0])?;
    p.ok(Call::Copy, &[6, 0, 315, 0xff, 17 | 1 << 32, 0])?;
    for domain in 0..3u64 {
        let (caps, space, thread) = (100 + domain, 110 + domain, 120 + domain);
        let sched = 130 + domain;
        let into = |p: &mut Pair, source: u64, slot: u64, badge: u64| {
            p.ok(Call::Copy, &[source, caps, slot, 0xff, badge, 0])
        };
        into(&mut p, caps, slot::CAPS, 0)?;
        into(&mut p, space, slot::SPACE, 0)?;
        into(&mut p, thread, slot::THREAD, 0)?;
        into(&mut p, sched, slot::SCHED, 0)?;
        p.ok(Call::Move, &[0, 140 + domain, caps, slot::MEMORY])?;
        for shared in 0..15 {
            let badge = if shared < 2 || (5..8).contains(&shared) {
                domain
            } else {
                0
            };
            if shared != 10 {
                into(&mut p, 200 + shared, slot::SHARED + shared, badge)?;
            }
        }
        into(&mut p, 100 + (domain + 1) % 3, 30, 0)?;
        into(&mut p, 120 + (domain + 1) % 3, 31, 0)?;
        into(&mut p, 113, 32, 0)?;
        for device in 0..6 {
            into(&mut p, 310 + device, 33 + device, 0)?;
        }
        into(&mut p, 312, 39, (0x12 + domain / 2) | 1 << 32)?;
        into(&mut p, 314, 60, (18 + domain / 2) | 1 << 32)?;
        let time = [sched, 7, domain / 2, 15, 1000, 1000];
        p.ok(Call::SchedSet, &time)?;
        p.ok(Call::Bind, &[sched, thread, 0])?;
        let configure = [thread, space, caps, 0x20_0000, 0x30_0000, 0];
        p.ok(Call::ThreadConfigure, &configure)?;
    }
    // The first domain has the originals of what is shared, and of the others' means of life.
    for original in [200, 202, 205, 206, 208, 209, 211, 213] {
        p.ok(
            Call::Move,
            &[0, original, 100, 200 - 160 + (original - 200)],
        )?;
    }
    p.ok(Call::Move, &[0, 210, 100, 55])?;
    p.ok(Call::Move, &[0, device, 100, 56])?;
    // Tables for everybody, so that mapping is a matter of course.
    p.ok(Call::Retype, &retype(Kind::Tables, 5, 220, 6))?;
    for domain in 0..4 {
        p.ok(Call::Fill, &[110 + domain, 220 + domain])?;
    }
    p.ok(Call::Fill, &[310, 224])?;
    p.ok(Call::Fill, &[311, 225])?;
    for domain in 0..3 {
        p.ok(Call::ThreadControl, &[120 + domain, 0])?;
    }
    p.ok(Call::Retype, &retype(Kind::Notification, 0, 300, 1))?;
    let asleep = p.call(0, Call::Wait as u64, [300, FOREVER, 0, 0, 0, 0])?;
    if asleep.is_some() {
        return Err("root does not sleep".into());
    }
    p.open_eyes()?;
    p.event(Event::Reschedule { cpu: 1 })?;
    p.story.clear();
    Ok(p)
}
