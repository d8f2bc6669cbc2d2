//! What chance rarely brings about, by short stories of their own: each refusal for a missing right,
//! what callers hear when things go wrong, calls that are done in steps, the deepest derivation.
//! Root is the actor; threads beside it share its spaces.

use super::driver::{Checked, Pair};
use super::world::World;
use super::{bindings, ended, messages, reused, threads};
use crate::machine::Answer;
use microvisor_abi::cap::Role;
use microvisor_abi::message::{MessageInfo, RECEIVE_SLOTS, SEND_SLOTS};
use microvisor_abi::{Call, FOREVER, Kind, Status};
use microvisor_spec::Event;
use microvisor_spec::state::Frame;

/// A capability that is sent, in a message that carries one.
const ONE: u64 = MessageInfo::new(1, 0, 1).0;

/// Root, alone to begin with.
pub struct Story {
    /// Both worlds.
    pub pair: Pair,
    ram: u64,
    device: u64,
}

impl Story {
    pub fn begin(frames: u64) -> Checked<Story> {
        let world = World::with(frames);
        let (ram, device) = (world.ram(), world.info.memories[1].slot.into());
        let pair = Pair::new(world)?;
        Ok(Story { pair, ram, device })
    }

    /// A call on this CPU; `None` if it blocks.
    pub fn on(&mut self, cpu: usize, call: Call, args: &[u64]) -> Checked<Option<Status>> {
        let mut words = [0; 6];
        words[..args.len()].copy_from_slice(args);
        self.pair.call(cpu, call as u64, words)
    }

    pub fn gets(&mut self, cpu: usize, call: Call, args: &[u64], want: Status) -> Checked {
        match self.on(cpu, call, args)? {
            Some(seen) if seen == want => Ok(()),
            other => Err(format!(
                "{call:?} {args:x?} answered {other:?}, not {want:?}"
            )),
        }
    }

    /// A call that succeeds, however many steps it takes.
    pub fn ok(&mut self, call: Call, args: &[u64]) -> Checked {
        for _ in 0..1000 {
            match self.on(0, call, args)? {
                Some(Status::Again) => {}
                Some(Status::Ok) => return Ok(()),
                other => return Err(format!("{call:?} {args:x?} answered {other:?}")),
            }
        }
        Err(format!("{call:?} {args:x?} never ends"))
    }

    pub fn blocks(&mut self, cpu: usize, call: Call, args: &[u64]) -> Checked {
        match self.on(cpu, call, args)? {
            None => Ok(()),
            other => Err(format!("{call:?} {args:x?} answered {other:?}")),
        }
    }

    pub fn make(&mut self, kind: Kind, size: u64, slot: u64) -> Checked {
        let args = [self.ram, kind as u64 | size << 8, 0, slot | 1 << 32];
        self.ok(Call::Retype, &args)
    }

    /// A thread in root's spaces, in slots `slot` and `slot + 1`, on CPU 1.
    pub fn thread(&mut self, slot: u64, priority: u64) -> Checked {
        self.make(Kind::Thread, 0, slot)?;
        self.make(Kind::SchedContext, 0, slot + 1)?;
        self.ok(Call::SchedSet, &[slot + 1, 7, 1, priority, 1, 1])?;
        self.ok(Call::Bind, &[slot + 1, slot, Role::Time as u64])?;
        let begin = [slot, 2, 1, 0x20_0000, 0x30_0000, 0];
        self.ok(Call::ThreadConfigure, &begin)?;
        self.ok(Call::ThreadControl, &[slot, 0])
    }

    pub fn look(&mut self, cpu: usize) -> Checked {
        self.pair.event(Event::Reschedule { cpu })
    }

    pub fn me(&self, cpu: usize) -> Checked<Frame> {
        self.pair
            .current(cpu)
            .ok_or_else(|| format!("CPU {cpu} is idle"))
    }
}

/// Everything but memory can be held without the right to use it.
fn without_rights() -> Checked<Pair> {
    let mut s = Story::begin(8192)?;
    let weak = |s: &mut Story, from: u64, to: u64| s.ok(Call::Copy, &[from, 0, to, 0, 0, 0]);
    s.make(Kind::CapSpace, 1, 500)?;
    weak(&mut s, 500, 501)?;
    let refused = Status::NoRight;
    let endpoint = [s.ram, Kind::Endpoint as u64, 501, 5 | 1 << 32];
    s.gets(0, Call::Retype, &endpoint, refused)?;
    s.gets(0, Call::Copy, &[500, 501, 5, 0, 0, 0], refused)?;
    for call in [Call::Delete, Call::Revoke, Call::Inspect, Call::Move] {
        s.gets(0, call, &[501, 1, 0, 600], refused)?;
        s.gets(0, call, &[0, 70_000, 0, 600], Status::InvalidCap)?;
        s.gets(0, call, &[3, 1, 0, 600], Status::WrongKind)?;
    }
    s.make(Kind::AddressSpace, 1, 502)?;
    s.make(Kind::Tables, 1, 504)?;
    let kinds = [
        (Kind::AddressSpace, Call::Fill),
        (Kind::Endpoint, Call::Call),
        (Kind::Endpoint, Call::Receive),
        (Kind::Notification, Call::Signal),
        (Kind::Notification, Call::Wait),
        (Kind::Reply, Call::Reply),
        (Kind::Vcpu, Call::VcpuRun),
        (Kind::Vcpu, Call::VcpuControl),
        (Kind::Thread, Call::ThreadControl),
        (Kind::Thread, Call::ThreadConfigure),
        (Kind::SchedContext, Call::SchedSet),
    ];
    for (slot, (kind, call)) in (510..).step_by(2).zip(kinds) {
        s.make(kind, 0, slot)?;
        weak(&mut s, slot, slot + 1)?;
        s.gets(0, call, &[slot + 1, 504], refused)?;
        s.gets(0, call, &[500, 504], Status::WrongKind)?;
        s.gets(0, call, &[499, 504], Status::InvalidCap)?;
    }
    weak(&mut s, 6, 540)?;
    s.gets(0, Call::InterruptControl, &[540], refused)?;
    s.gets(0, Call::Bind, &[540, 0, Role::Line as u64], refused)?;
    weak(&mut s, 5, 541)?;
    s.gets(0, Call::PortsGrant, &[541, 3], refused)?;
    s.gets(0, Call::PortsGrant, &[5, 3], Status::InvalidArgument)?;
    for slot in 550..555 {
        s.ok(Call::Copy, &[5, 0, slot, 1, 0x60 | 1 << 32, 0])?;
        let want = if slot < 554 {
            Status::Ok
        } else {
            Status::NoMemory
        };
        s.gets(0, Call::PortsGrant, &[slot, 3], want)?;
    }
    s.gets(0, Call::PortsGrant, &[550, 3], Status::AlreadyMapped)?;
    // 530 is a scheduling context that was never set, 528 a thread.
    s.gets(
        0,
        Call::Bind,
        &[530, 528, Role::Time as u64],
        Status::NotBound,
    )?;
    s.make(Kind::Frame, 12, 560)?;
    s.make(Kind::Frame, 12, 561)?;
    let map = |cap| [cap, 2, 0x7fff_0200_0000, 3];
    s.gets(0, Call::Map, &[560, 513, 0, 1], Status::WrongKind)?;
    s.gets(0, Call::Map, &[560, 511, 0, 1], refused)?;
    s.gets(0, Call::Map, &[560, 510, 0, 1], Status::NeedTable)?;
    s.make(Kind::Tables, 8, 562)?;
    s.gets(0, Call::Map, &map(562), Status::WrongKind)?;
    s.ok(Call::Fill, &[2, 562])?;
    s.ok(Call::Map, &map(560))?;
    s.gets(0, Call::Map, &map(560), Status::AlreadyMapped)?;
    s.gets(0, Call::Map, &map(561), Status::Occupied)?;
    s.ok(Call::Unmap, &[560])?;
    s.gets(0, Call::Unmap, &[560], Status::NotMapped)?;
    let device = [s.device, Kind::Frame as u64 | 12 << 8, 0, 570 | 1 << 32];
    s.ok(Call::Retype, &device)?;
    s.ok(Call::Map, &map(570))?;
    Ok(s.pair)
}

/// The vCPU is run by one thread at a time, and its end ends the run.
fn a_vcpu_that_is_shared() -> Checked<Pair> {
    let mut s = Story::begin(8192)?;
    s.make(Kind::Vcpu, 0, 500)?;
    s.make(Kind::AddressSpace, 1, 501)?;
    s.gets(0, Call::VcpuRun, &[500], Status::NotBound)?;
    s.ok(Call::VcpuControl, &[500, 0, 501])?;
    s.thread(510, 15)?;
    s.look(1)?;
    s.blocks(1, Call::VcpuRun, &[500])?;
    s.gets(0, Call::VcpuRun, &[500], Status::Busy)?;
    s.gets(0, Call::VcpuControl, &[500, 2, 0], Status::Busy)?;
    s.ok(Call::VcpuControl, &[500, 1])?;
    s.look(1)?;
    s.blocks(1, Call::VcpuRun, &[500])?;
    s.ok(Call::Delete, &[0, 500])?;
    s.look(1)?;
    Ok(s.pair)
}

/// An answer that cannot be taken; a server that is replaced; one whose endpoint goes.
fn servers_that_fail() -> Checked<Pair> {
    let mut s = Story::begin(8192)?;
    s.make(Kind::Endpoint, 0, 500)?;
    s.make(Kind::Reply, 0, 501)?;
    s.thread(510, 15)?;
    s.look(1)?;
    let (root, server) = (s.me(0)?, s.me(1)?);
    s.pair.write_buffer(root, RECEIVE_SLOTS, &[3]);
    s.pair.write_buffer(server, RECEIVE_SLOTS, &[3]);
    s.pair.write_buffer(root, SEND_SLOTS, &[500]);
    s.pair.write_buffer(server, SEND_SLOTS, &[500]);
    s.blocks(1, Call::Receive, &[500, 501, FOREVER])?;
    s.gets(0, Call::Call, &[500, ONE], Status::CapsRefused)?;
    s.blocks(0, Call::Call, &[500, 0])?;
    s.look(1)?;
    s.gets(1, Call::Reply, &[501, ONE], Status::CapsRefused)?;
    s.gets(1, Call::Reply, &[501, u64::MAX], Status::InvalidArgument)?;
    s.gets(1, Call::Reply, &[501, 0], Status::Ok)?;
    s.gets(1, Call::Reply, &[501, 0], Status::NoCaller)?;
    s.look(0)?;
    // Without the right to grant, neither the call nor its answer carries anything.
    s.ok(Call::Copy, &[500, 0, 502, 1, 0, 0])?;
    s.gets(0, Call::Call, &[502, ONE], Status::NoRight)?;
    s.blocks(0, Call::Call, &[502, 0])?;
    s.gets(1, Call::Receive, &[500, 501, FOREVER], Status::Ok)?;
    s.gets(1, Call::Reply, &[501, ONE], Status::NoRight)?;
    s.gets(1, Call::Receive, &[500, 501, FOREVER], Status::Busy)?;
    s.gets(1, Call::Bind, &[500, 0, Role::Server as u64], Status::Ok)?;
    s.gets(1, Call::Delete, &[0, 501], Status::Ok)?;
    s.look(0)?;
    // Callers and servers that are called off.
    s.make(Kind::Reply, 0, 501)?;
    s.blocks(1, Call::ReplyReceive, &[500 | 501 << 32, 0])?;
    s.ok(Call::ThreadControl, &[510, 2])?;
    s.look(1)?;
    s.blocks(0, Call::Call, &[500, 0])?;
    s.gets(1, Call::ThreadControl, &[3, 2], Status::Ok)?;
    s.look(0)?;
    s.blocks(0, Call::Call, &[500, 0])?;
    s.gets(1, Call::Delete, &[0, 500], Status::Ok)?;
    s.look(0)?;
    s.gets(0, Call::Receive, &[500, 0, 0], Status::InvalidCap)?;
    Ok(s.pair)
}

/// A deadline in the far half of time is far: no timer interrupt ends it.
fn a_distant_deadline() -> Checked<Pair> {
    let mut s = Story::begin(8192)?;
    s.make(Kind::Notification, 0, 500)?;
    s.thread(510, 15)?;
    s.look(1)?;
    s.blocks(1, Call::Wait, &[500, FOREVER - 1])?;
    s.pair.event(Event::Time { now: 1 << 40 })?;
    s.pair.event(Event::Timer { cpu: 1 })?;
    s.ok(Call::Signal, &[500, 1])?;
    Ok(s.pair)
}

/// Part of a frame lies inside it, up to the last byte.
fn parts_of_frames() -> Checked<Pair> {
    let mut s = Story::begin(8192)?;
    for (order, slot) in [(12, 500), (21, 501)] {
        s.make(Kind::Frame, order, slot)?;
        let part = |offset: u64| [slot, 0, slot + 10, 0xff, offset, 12];
        for beyond in [1 << order, 1 << 63, u64::MAX - 4095] {
            s.gets(0, Call::Copy, &part(beyond), Status::InvalidArgument)?;
        }
        s.gets(0, Call::Copy, &part((1 << order) - 4096), Status::Ok)?;
    }
    Ok(s.pair)
}

/// Work that does not fit one call: deletions of many, and messages that are turned away.
fn in_steps() -> Checked<Pair> {
    let mut s = Story::begin(8192)?;
    s.make(Kind::Endpoint, 0, 500)?;
    s.make(Kind::Reply, 0, 501)?;
    s.make(Kind::CapSpace, 2, 502)?;
    for slot in 1..90 {
        s.ok(Call::Copy, &[500, 502, slot, 0xff, 0, 0])?;
    }
    s.gets(0, Call::Revoke, &[0, 500], Status::Again)?;
    s.ok(Call::Revoke, &[0, 500])?;
    for slot in 1..90 {
        s.ok(Call::Copy, &[500, 502, slot, 0xff, 0, 0])?;
    }
    s.gets(0, Call::Delete, &[0, 502], Status::Again)?;
    // Half-way, it resolves nothing any more.
    s.gets(
        0,
        Call::Copy,
        &[500, 502, 95, 0xff, 0, 0],
        Status::InvalidCap,
    )?;
    s.ok(Call::Delete, &[0, 502])?;
    let root = s.me(0)?;
    s.pair.write_buffer(root, RECEIVE_SLOTS, &[3]);
    for slot in (600..640).step_by(2) {
        s.thread(slot, 15)?;
    }
    s.look(1)?;
    let send = |s: &mut Story, count: usize| {
        for _ in 0..count {
            let sender = s.me(1)?;
            s.pair.write_buffer(sender, SEND_SLOTS, &[500]);
            s.blocks(1, Call::Call, &[500, ONE])?;
        }
        Ok::<(), String>(())
    };
    send(&mut s, 20)?;
    s.gets(0, Call::Receive, &[500, 501, FOREVER], Status::Again)?;
    s.look(1)?;
    send(&mut s, 16)?;
    s.gets(0, Call::ReplyReceive, &[500 | 501 << 32, 0], Status::Again)?;
    Ok(s.pair)
}

/// A memory leaves with a dying space, in steps; whoever holds what was made of it goes on meanwhile.
fn handed_up_in_steps() -> Checked<Pair> {
    let mut s = Story::begin(8192)?;
    let of = |from: u64, kind: Kind, size: u64, to: u64| {
        [from, kind as u64 | size << 8, 0, to | 1 << 32]
    };
    for steps in 0..12 {
        let at = 1000 + steps * 100;
        let (space, memory, whole) = (at, at + 1, at + 2);
        s.make(Kind::CapSpace, 1, space)?;
        s.make(Kind::Memory, 16, whole)?;
        s.ok(Call::Retype, &of(whole, Kind::Memory, 8, memory))?;
        s.ok(Call::Retype, &of(whole, Kind::Memory, 1, at + 3))?;
        for n in 0..4 {
            let (part, page) = (at + 10 + n, at + 20 + n);
            s.ok(Call::Retype, &of(memory, Kind::Memory, 2, part))?;
            s.ok(Call::Retype, &of(part, Kind::Memory, 1, page))?;
            s.ok(Call::Retype, &of(page, Kind::Notification, 0, at + 30 + n))?;
        }
        // So that a call stops at another place each time.
        for n in 0..steps % 3 {
            s.ok(Call::Retype, &of(whole, Kind::Notification, 0, at + 50 + n))?;
            s.ok(Call::Copy, &[at + 50 + n, 0, at + 53 + n, 0xff, 0, 0])?;
            s.ok(Call::Move, &[0, at + 53 + n, space, 1 + n])?;
        }
        s.ok(Call::Move, &[0, memory, space, 5])?;
        for _ in 0..steps / 3 {
            s.on(0, Call::Delete, &[0, space])?;
        }
        let n = steps % 4;
        s.gets(
            0,
            Call::Retype,
            &of(at + 20 + n, Kind::Endpoint, 0, at + 40),
            Status::NoMemory,
        )?;
        s.ok(Call::Retype, &of(at + 10 + n, Kind::Endpoint, 0, at + 41))?;
        s.ok(Call::Inspect, &[0, at + 10 + n])?;
        s.ok(Call::Revoke, &[0, at + 10 + n])?;
        if steps % 3 != 0 {
            s.on(0, Call::Delete, &[0, space])?;
            s.ok(Call::Delete, &[0, at + 10 + (n + 1) % 4])?;
        }
        s.ok(Call::Revoke, &[0, at + 3])?;
        s.ok(Call::Delete, &[0, space])?;
        s.ok(Call::Revoke, &[0, whole])?;
    }
    Ok(s.pair)
}

/// A frame of 1 GiB is zeroed in steps, and is there in the end.
fn a_frame_of_a_gibibyte() -> Checked<Pair> {
    let mut s = Story::begin(2 << 18)?;
    let args = [s.ram, Kind::Frame as u64 | 30 << 8, 0, 500 | 1 << 32];
    s.gets(0, Call::Retype, &args, Status::Again)?;
    s.pair.blind = true;
    for _ in 0..600 {
        if s.on(0, Call::Retype, &args)? == Some(Status::Ok) {
            s.pair.open_eyes()?;
            return Ok(s.pair);
        }
    }
    Err("a frame of 1 GiB never gets ready".into())
}

/// Lines, waits that end early, a thread that has no space any more.
fn what_chance_may_leave_out() -> Checked<Pair> {
    let mut s = Story::begin(8192)?;
    s.gets(0, Call::Unmap, &[499], Status::InvalidCap)?;
    s.make(Kind::Notification, 0, 500)?;
    s.ok(Call::Copy, &[6, 0, 501, 0xff, 4 | 1 << 32, 0])?;
    s.ok(Call::Bind, &[501, 500, Role::Line as u64])?;
    s.ok(Call::InterruptControl, &[501, 4, 0])?;
    s.gets(0, Call::InterruptControl, &[500, 4, 0], Status::WrongKind)?;
    s.thread(510, 15)?;
    s.look(1)?;
    s.blocks(1, Call::Wait, &[500, FOREVER])?;
    s.ok(Call::ThreadControl, &[510, 2])?;
    s.look(1)?;
    s.blocks(1, Call::Wait, &[500, FOREVER])?;
    s.ok(Call::Delete, &[0, 500])?;
    s.look(1)?;
    s.make(Kind::Thread, 0, 520)?;
    s.gets(0, Call::ThreadControl, &[520, 0], Status::NotBound)?;
    Ok(s.pair)
}

/// A machine without an IOMMU has no space for devices, but messages.
fn without_an_iommu() -> Checked<Pair> {
    let world = World::new();
    world.seen.without_iommu.set(true);
    let (ram, device) = (world.ram(), world.info.memories[1].slot.into());
    let pair = Pair::new(world)?;
    let mut s = Story { pair, ram, device };
    let space = [s.ram, Kind::AddressSpace as u64 | 2 << 8, 0, 500 | 1 << 32];
    s.gets(0, Call::Retype, &space, Status::Unsupported)?;
    s.ok(Call::Copy, &[10, 0, 501, 0xff, 0x10 | 1 << 32, 0])?;
    s.ok(Call::Copy, &[6, 0, 502, 0xff, 20 | 1 << 32, 0])?;
    s.gets(
        0,
        Call::Bind,
        &[501, 2, Role::Dma as u64],
        Status::WrongKind,
    )?;
    s.ok(Call::Bind, &[502, 501, Role::Source as u64])?;
    s.ok(Call::Inspect, &[0, 502])?;
    Ok(s.pair)
}

/// A device is attached, stopped, and taken away; the IOMMU answers late, and then never.
fn devices_and_their_iommu() -> Checked<Pair> {
    let (dma, source, stops) = (Role::Dma as u64, Role::Source as u64, Role::Stops as u64);
    let mut s = Story::begin(8192)?;
    s.make(Kind::AddressSpace, 2, 500)?;
    s.make(Kind::Tables, 4, 501)?;
    s.ok(Call::Fill, &[500, 501])?;
    s.make(Kind::Frame, 12, 502)?;
    s.make(Kind::Frame, 12, 503)?;
    s.make(Kind::Frame, 30, 504)
        .err()
        .ok_or("a frame of 1 GiB in so little memory")?;
    s.make(Kind::Notification, 0, 505)?;
    let device = |s: &mut Story, slot: u64, function: u64| {
        s.ok(Call::Copy, &[10, 0, slot, 0xff, function | 1 << 32, 0])
    };
    device(&mut s, 510, 0x20)?;
    let refused = Status::InvalidArgument;
    s.gets(0, Call::Bind, &[10, 500, dma], refused)?;
    s.gets(0, Call::Bind, &[505, 510, stops], Status::NotBound)?;
    s.ok(Call::Bind, &[510, 500, dma])?;
    s.gets(0, Call::Bind, &[510, 500, dma], Status::Busy)?;
    s.ok(Call::Bind, &[505, 510, stops])?;
    s.gets(0, Call::Map, &[502, 500, 0x1000, 5], refused)?;
    s.gets(0, Call::Map, &[502, 500, 1 << 39, 3], refused)?;
    s.ok(Call::Map, &[502, 500, 0x1000, 3])?;
    s.ok(Call::Map, &[503, 500, 0x2000, 1])?;
    let why = 0x5000 | 1;
    s.pair.event(Event::DeviceFault {
        function: 0x20,
        why,
    })?;
    s.pair.event(Event::DeviceFault {
        function: 0x21,
        why,
    })?;
    s.ok(Call::Inspect, &[0, 510])?;
    s.ok(Call::Wait, &[505, 0])?;
    // A message: of the right capabilities, once.
    s.ok(Call::Copy, &[6, 0, 520, 0xff, 20 | 1 << 32, 0])?;
    s.ok(Call::Copy, &[6, 0, 521, 0xff, 4 | 1 << 32, 0])?;
    s.gets(0, Call::Bind, &[521, 510, source], refused)?;
    s.ok(Call::Bind, &[520, 510, source])?;
    s.gets(0, Call::Bind, &[520, 510, source], Status::Busy)?;
    s.ok(Call::Inspect, &[0, 520])?;
    s.ok(Call::Move, &[0, 520, 0, 522])?;
    s.ok(Call::Move, &[0, 510, 0, 511])?;
    // As many functions as can be.
    for function in 0..64 {
        device(&mut s, 600 + function, 0x100 + function)?;
        let want = if function < 63 {
            Status::Ok
        } else {
            Status::NoMemory
        };
        s.gets(0, Call::Bind, &[600 + function, 500, dma], want)?;
    }
    s.ok(Call::Bind, &[511, 0, dma])?;
    s.ok(Call::Bind, &[663, 500, dma])?;
    s.ok(Call::Delete, &[0, 511])?;
    s.ok(Call::Bind, &[600, 0, dma])?;
    // It has not answered yet.
    let again = Status::Again;
    s.pair.world.seen.mute.set(Some(Answer::Waiting));
    s.gets(0, Call::Unmap, &[502], again)?;
    s.gets(0, Call::Map, &[502, 500, 0x3000, 3], Status::AlreadyMapped)?;
    s.gets(0, Call::Unmap, &[502], again)?;
    s.gets(0, Call::Delete, &[0, 503], again)?;
    s.gets(0, Call::Bind, &[600, 500, dma], again)?;
    s.pair.world.seen.mute.set(None);
    s.ok(Call::Unmap, &[502])?;
    s.ok(Call::Delete, &[0, 503])?;
    s.ok(Call::Bind, &[600, 500, dma])?;
    // It never will.
    s.ok(Call::Map, &[502, 500, 0x1000, 3])?;
    s.ok(Call::Bind, &[601, 0, dma])?;
    s.pair.world.seen.mute.set(Some(Answer::Never));
    let never = Status::Timeout;
    s.gets(0, Call::Bind, &[601, 500, dma], never)?;
    s.gets(0, Call::Unmap, &[502], never)?;
    s.gets(0, Call::Delete, &[0, 502], never)?;
    s.gets(0, Call::Delete, &[0, 500], never)?;
    s.gets(0, Call::Revoke, &[0, s.ram], never)?;
    Ok(s.pair)
}

/// The deepest derivation there is: a memory made of a memory, 65,535 times.
fn as_deep_as_it_goes() -> Checked<Pair> {
    let mut s = Story::begin(16384)?;
    s.make(Kind::CapSpace, 1100, 500)?;
    s.make(Kind::Endpoint, 0, 501)?;
    s.make(Kind::Reply, 0, 502)?;
    s.thread(520, 15)?;
    s.look(1)?;
    s.pair.blind = true;
    let memory = |of: u64, to: u64| [of, Kind::Memory as u64 | 2 << 8, 0, to | 1 << 32];
    let args = memory(s.ram, 600);
    s.ok(Call::Retype, &args)?;
    for depth in 1..65_534 {
        let (from, to) = (600 + (depth + 1) % 2, 600 + depth % 2);
        s.ok(Call::Retype, &memory(from, to))?;
        s.ok(Call::Move, &[0, from, 500, depth])?;
    }
    // The deepest memory but one is in slot 601; below it, an endpoint and a memory cannot both be.
    let endpoint = |of: u64| [of, Kind::Endpoint as u64, 0, 610 | 1 << 32];
    s.ok(Call::Retype, &endpoint(601))?;
    s.pair.open_eyes()?;
    s.gets(0, Call::Copy, &[610, 0, 611, 0xff, 0, 0], Status::TooDeep)?;
    let (root, server) = (s.me(0)?, s.me(1)?);
    s.pair.write_buffer(root, SEND_SLOTS, &[610]);
    s.pair.write_buffer(server, SEND_SLOTS, &[610]);
    s.pair.write_buffer(root, RECEIVE_SLOTS, &[620]);
    s.pair.write_buffer(server, RECEIVE_SLOTS, &[621]);
    s.blocks(1, Call::Receive, &[501, 502, FOREVER])?;
    s.gets(0, Call::Call, &[501, ONE], Status::TooDeep)?;
    s.blocks(0, Call::Call, &[501, 0])?;
    s.look(1)?;
    s.gets(1, Call::Reply, &[502, ONE], Status::TooDeep)?;
    s.gets(1, Call::Delete, &[0, 610], Status::Ok)?;
    let whole = memory(601, 610);
    s.gets(1, Call::Retype, &whole, Status::Ok)?;
    s.gets(1, Call::Retype, &endpoint(610)[..], Status::SlotOccupied)?;
    let below = [610, Kind::Endpoint as u64, 0, 611 | 1 << 32];
    s.gets(1, Call::Retype, &below, Status::TooDeep)?;
    Ok(s.pair)
}

/// A thread uses its budget up, waits for the next period, and does so again: it is refilled once each.
fn a_budget_that_ends() -> Checked<Pair> {
    let mut s = Story::begin(8192)?;
    s.thread(500, 15)?;
    s.ok(Call::SchedSet, &[501, 7, 1, 15, 100, 1000])?;
    s.look(1)?;
    let begin = s.pair.state.now;
    for period in 0..3 {
        let now = begin + period * 1000;
        s.pair.event(Event::Time { now: now + 100 })?;
        s.look(1)?;
        s.pair.event(Event::Time { now: now + 1000 })?;
        s.pair.event(Event::Timer { cpu: 1 })?;
        s.me(1)?;
    }
    Ok(s.pair)
}

/// A directed story.
pub type Told = fn() -> Checked<Pair>;

/// All of them, by name.
pub fn stories() -> impl Iterator<Item = &'static (&'static str, Told)> {
    let lists = [
        bindings::STORIES,
        ended::STORIES,
        messages::STORIES,
        reused::STORIES,
        threads::STORIES,
        STORIES,
    ];
    lists.into_iter().flatten()
}

const STORIES: &[(&str, Told)] = &[
    ("without_rights", without_rights),
    ("a_vcpu_that_is_shared", a_vcpu_that_is_shared),
    ("servers_that_fail", servers_that_fail),
    ("a_distant_deadline", a_distant_deadline),
    ("a_budget_that_ends", a_budget_that_ends),
    ("parts_of_frames", parts_of_frames),
    ("in_steps", in_steps),
    ("handed_up_in_steps", handed_up_in_steps),
    ("what_chance_may_leave_out", what_chance_may_leave_out),
    ("without_an_iommu", without_an_iommu),
    ("devices_and_their_iommu", devices_and_their_iommu),
    ("a_frame_of_a_gibibyte", a_frame_of_a_gibibyte),
    ("as_deep_as_it_goes", as_deep_as_it_goes),
];
