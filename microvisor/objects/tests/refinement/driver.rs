//! The real objects and the specification, side by side: each step is made by both, then the whole
//! states are compared, and what the specification cannot see is checked of the machine: flushes,
//! interrupts to other CPUs, memory that is zero.

use super::abstraction::abstraction;
use super::world::World;
use crate::id::{PhysAddr, Ref};
use crate::machine::{Ask, Flush};
use crate::thread::Thread;
use microvisor_abi::cap::Stopped;
use microvisor_abi::{Call, Kind, SpaceKind, Status};
use microvisor_spec::state::{Frame, Leaf, Place, State, What};
use microvisor_spec::{Event, Request, event, invariants, statuses, step};
use std::collections::{BTreeMap, BTreeSet};

/// What went wrong, in words.
pub type Checked<T = ()> = Result<T, String>;

/// Calls and statuses seen, by number; the thread's call that is under way.
#[derive(Default)]
pub struct Coverage {
    /// Number of the call, status.
    pub seen: BTreeSet<(u64, u64)>,
    /// Threads whose call blocked: which call.
    blocked: BTreeMap<Frame, u64>,
}

/// Both.
pub struct Pair {
    /// The real code, over the fake machine.
    pub world: World,
    /// The specification's state.
    pub state: State,
    /// What was seen of the table of statuses.
    pub coverage: Coverage,
    /// What happened, to be read.
    pub story: Vec<String>,
    /// Only the real code makes the steps; the specification catches up later.
    pub blind: bool,
    /// CPUs that were asked to look again.
    asked: [bool; 2],
    /// When each CPU's timer goes off, as it was last set.
    armed: [u64; 2],
    /// Lines that the machine lets through.
    enabled: BTreeSet<u64>,
    /// What CPUs may have cached: by root table and address. Filled with every translation there
    /// is, emptied only by flushes.
    cached: BTreeMap<(u64, u64), Leaf>,
    /// Root tables of the IOMMU's domains.
    domains: BTreeMap<u16, u64>,
    /// How much of what the IOMMU was asked was looked at.
    heard: usize,
}

impl Pair {
    /// Both, in the state that the real code is in.
    pub fn new(world: World) -> Checked<Pair> {
        let state = abstraction(&world.kernel, world.seen.now.get(), BTreeSet::new())?;
        let mut pair = Pair {
            world,
            state,
            coverage: Coverage::default(),
            story: vec![],
            blind: false,
            asked: [false; 2],
            armed: [u64::MAX; 2],
            enabled: BTreeSet::new(),
            cached: BTreeMap::new(),
            domains: BTreeMap::new(),
            heard: 0,
        };
        pair.look()?;
        invariants::check(&pair.state)?;
        for cpu in 0..2 {
            pair.armed[cpu] = pair.world.kernel.deadline(cpu);
        }
        Ok(pair)
    }

    /// The specification takes over the state that the real code is in.
    pub fn open_eyes(&mut self) -> Checked {
        self.look()?;
        self.blind = false;
        self.asked = [true; 2];
        self.state = self.real()?;
        self.compare()
    }

    /// The thread that a CPU runs.
    pub fn current(&self, cpu: usize) -> Option<Frame> {
        self.state.cpus[cpu].current
    }

    /// The real state, abstracted.
    fn real(&self) -> Checked<State> {
        abstraction(
            &self.world.kernel,
            self.world.seen.now.get(),
            self.enabled.clone(),
        )
    }

    fn thread(&self, cpu: usize) -> Ref<Thread> {
        self.world.kernel.current(cpu)
    }

    /// A call by the current thread of `cpu`, by both. Answers its status unless it blocks.
    pub fn call(&mut self, cpu: usize, number: u64, args: [u64; 6]) -> Checked<Option<Status>> {
        let Some(me) = self.current(cpu) else {
            return Err("a CPU without a thread makes no calls".into());
        };
        self.world.seen.cpu.set(cpu);
        let thread = self.thread(cpu);
        if self.blind {
            let (stirred, _) = self.make_real_call(cpu, thread, number, args);
            let result = self.world.results(thread).0;
            if stirred {
                self.world.kernel.reschedule(cpu);
            }
            let same = self.thread(cpu) == thread;
            return Ok(same.then_some(result));
        }
        let before = self.state.clone();
        let (mut stirred, fast) = self.make_real_call(cpu, thread, number, args);
        let result = self.world.kernel.arena.get(thread).map(|t| t.regs);
        let status = result.and_then(|r| Status::from_raw(r.rax));
        let most = match result {
            Some(r) if number == Call::Retype as u64 && r.rax == 0 => r.rdi,
            _ => 1,
        };
        let request = Request {
            cpu,
            number,
            args,
            most,
        };
        let (after, answer) = step(&before, request);
        self.tell(cpu, me, request, answer, &before);
        invariants::new_capabilities_come_from_old_ones(&before, &after)?;
        self.look()?;
        let again = Call::from_raw(number).is_some_and(|c| statuses::may_answer(c, Status::Again));
        let mute = matches!(
            Call::from_raw(number),
            Some(Call::Delete | Call::Revoke | Call::Unmap | Call::Bind)
        );
        let open = status == Some(Status::Again) || mute && status == Some(Status::Timeout);
        let answer = if again && open {
            // Part of the work is done; what, is the core's choice.
            self.adopt(&before, &after)?;
            stirred = true;
            status
        } else {
            self.state = after;
            self.compare()?;
            answer
        };
        self.cover(me, number, answer)?;
        if number == Call::Retype as u64 && answer == Some(Status::Ok) {
            self.new_frames_are_zero(&before)?;
        }
        if !stirred && !fast {
            let same = before.cpus == self.state.cpus;
            if !same {
                return Err("the call changed what CPUs do and said that it did not".into());
            }
        }
        if stirred {
            self.reschedule(cpu)?;
        }
        self.others(cpu)?;
        Ok(answer)
    }

    /// As the core's entry does it. Answers whether the CPU is to look again, and whether the short
    /// path was taken.
    fn make_real_call(
        &mut self,
        cpu: usize,
        thread: Ref<Thread>,
        number: u64,
        args: [u64; 6],
    ) -> (bool, bool) {
        let kernel = &mut self.world.kernel;
        if let Some(t) = kernel.arena.get_mut(thread) {
            let r = &mut t.regs;
            r.rax = number;
            [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9] = args;
        }
        let fast = match Call::from_raw(number) {
            Some(Call::Call) => kernel.fast_call(cpu),
            Some(Call::ReplyReceive) => kernel.fast_reply_receive(cpu),
            _ => None,
        };
        if fast.is_some() {
            return (false, true);
        }
        if number == Call::VcpuRun as u64 {
            let found = kernel.arena.vcpu_find(thread, args[0], cpu);
            let begun = found.and_then(|(vcpu, run)| run.begin(cpu).map(|()| vcpu));
            match begun {
                Ok(vcpu) => {
                    if let Some(t) = kernel.arena.get_mut(thread) {
                        t.vcpu = vcpu;
                    }
                    self.enter_real(cpu);
                }
                Err(status) => {
                    if let Some(t) = kernel.arena.get_mut(thread) {
                        t.regs.rax = status as u64;
                    }
                }
            }
            return (false, true);
        }
        (kernel.syscall(), false)
    }

    /// The current thread of a CPU goes on with its guest, as the core's run loop does it.
    fn enter_real(&mut self, cpu: usize) {
        let thread = self.thread(cpu);
        let arena = &mut self.world.kernel.arena;
        let Some(vcpu) = arena.get(thread).map(|t| t.vcpu).filter(|v| !v.is_null()) else {
            return;
        };
        let status = if !arena.alive(vcpu) {
            Status::Aborted
        } else if arena.vcpu_run(vcpu, cpu).is_none_or(|run| {
            run.go_on(cpu);
            run.wanted()
        }) {
            Status::Ok
        } else {
            return;
        };
        self.finish_real(cpu, status);
    }

    fn finish_real(&mut self, cpu: usize, status: Status) {
        let thread = self.thread(cpu);
        let arena = &mut self.world.kernel.arena;
        if let Some(t) = arena.get_mut(thread) {
            let vcpu = core::mem::replace(&mut t.vcpu, Ref::NULL);
            t.regs.rax = status as u64;
            arena.vcpu_end(vcpu);
        }
    }

    /// Something that is not a call, by both.
    pub fn event(&mut self, what: Event) -> Checked {
        self.story.push(format!("{what:x?}"));
        let before = self.state.clone();
        let on = match what {
            Event::Time { now } => {
                self.world.seen.now.set(now);
                None
            }
            Event::Timer { cpu } => {
                self.world.seen.cpu.set(cpu);
                self.world.kernel.timer(cpu);
                Some(cpu)
            }
            Event::Reschedule { cpu } => {
                self.world.seen.cpu.set(cpu);
                return self.reschedule(cpu);
            }
            Event::Interrupt { line } => {
                self.world.seen.cpu.set(0);
                self.world.kernel.line(line as u32);
                Some(0)
            }
            Event::DeviceFault { function, why } => {
                self.world.seen.cpu.set(0);
                let why = Stopped::from_word(why).ok_or("not stopped")?;
                self.world.kernel.device_fault(function as u16, why);
                Some(0)
            }
            Event::Fault { cpu, fault } => {
                self.world.seen.cpu.set(cpu);
                self.world.kernel.fault(fault[0] as u8, fault[1], fault[2]);
                Some(cpu)
            }
            Event::Enter { cpu } => {
                self.enter_real(cpu);
                None
            }
            Event::Exit { cpu } => {
                self.finish_real(cpu, Status::Ok);
                None
            }
        };
        self.look()?;
        self.state = event(&before, what);
        let tie = |timers: &[(u64, Frame)]| timers.windows(2).any(|pair| pair[0].0 == pair[1].0);
        if let Event::Timer { cpu } = what
            && tie(&before.timers(cpu))
        {
            // Which of two equal deadlines comes first is the core's choice.
            self.state = self.real()?;
            invariants::check(&self.state)?;
        }
        self.compare()?;
        if let Some(cpu) = on {
            self.reschedule(cpu)?;
            self.others(cpu)?;
        }
        Ok(())
    }

    /// A component writes to its own message buffer.
    pub fn write_buffer(&mut self, thread: Frame, at: usize, words: &[u32]) {
        for (index, word) in words.iter().enumerate() {
            let at = at + index * 4;
            let address = PhysAddr((thread + 1) << 12).add(at as u64);
            self.world.kernel.arena.write(address, *word);
            if let Some(t) = self.state.threads.get_mut(&thread) {
                t.write_buffer(at, &word.to_le_bytes());
            }
        }
    }

    /// A CPU decides, and goes on with a guest if its thread is in one.
    fn reschedule(&mut self, cpu: usize) -> Checked {
        self.world.seen.cpu.set(cpu);
        self.world.kernel.reschedule(cpu);
        self.asked[cpu] = false;
        self.armed[cpu] = self.world.kernel.deadline(cpu);
        self.state = event(&self.state, Event::Reschedule { cpu });
        self.enter_real(cpu);
        self.state = event(&self.state, Event::Enter { cpu });
        self.look()?;
        self.compare()
            .map_err(|why| format!("when CPU {cpu} decides: {why}"))
    }

    /// The whole states are the same, and every invariant holds.
    fn compare(&mut self) -> Checked {
        let real = self.real()?;
        if real != self.state {
            return Err(difference(&self.state, &real));
        }
        invariants::check(&self.state)?;
        self.cover_ended()?;
        self.nothing_stale(&real)
    }

    /// After `Again`: the real state lies between where the call began and where it leads.
    fn adopt(&mut self, before: &State, after: &State) -> Checked {
        let real = self.real()?;
        let grew = real.caps.keys().filter(|p| p.slot != 0);
        for place in grew {
            if !before.caps.contains_key(place) {
                return Err(format!("half-way, {place:?} is new"));
            }
        }
        let stays = |p: &&Place| before.caps.contains_key(p) && p.slot != 0;
        let mut kept = after.caps.keys().filter(stays);
        let lost = kept.find(|p| !real.caps.contains_key(p));
        if let Some(place) = lost {
            return Err(format!("half-way, {place:?} is lost"));
        }
        invariants::check(&real)?;
        self.state = real;
        Ok(())
    }

    /// Notes what the machine was asked to do.
    fn look(&mut self) -> Checked {
        let me = self.world.seen.cpu.get();
        for cpu in self.world.seen.kicks.borrow_mut().drain(..) {
            self.asked[cpu] = true;
        }
        for (line, enabled) in self.world.seen.lines.borrow_mut().drain(..) {
            if enabled {
                self.enabled.insert(line.into());
            } else {
                self.enabled.remove(&line.into());
            }
        }
        let flushes: Vec<Flush> = self.world.seen.flushes.borrow_mut().drain(..).collect();
        for flush in flushes {
            self.asked[1 - me] = true;
            match flush {
                Flush::HostPage { root, address, .. } => {
                    self.cached.remove(&(root.frame(), address));
                }
                Flush::HostSpace { root, .. } | Flush::GuestSpace { root, .. } => {
                    self.cached.retain(|(r, _), _| *r != root.frame());
                }
                Flush::Everything => self.cached.clear(),
                Flush::Quiesce => {}
            }
        }
        let asked = self.world.seen.asked.borrow();
        for ask in &asked[self.heard..] {
            match *ask {
                Ask::Attach { domain, root, .. } => {
                    self.domains.insert(domain, root.frame());
                }
                Ask::Block { domain, .. } | Ask::Forget { domain } => {
                    let root = self.domains.get(&domain);
                    self.cached.retain(|(r, _), _| Some(r) != root);
                }
            }
        }
        self.heard = asked.len();
        Ok(())
    }

    /// No CPU can have cached a translation that is not there any more.
    fn nothing_stale(&mut self, real: &State) -> Checked {
        let mut now = BTreeMap::new();
        for (at, space) in &real.spaces {
            let attached = real.devices.values().any(|device| device.space == *at);
            if space.kind == SpaceKind::Dma && !attached {
                continue;
            }
            for (address, leaf) in &space.leaves {
                now.insert((space.root, *address), *leaf);
            }
        }
        for (key, leaf) in &self.cached {
            if now.get(key) != Some(leaf) {
                return Err(format!("{key:x?} was not flushed: {leaf:x?}"));
            }
        }
        self.cached = now;
        Ok(())
    }

    /// Other CPUs that should do something else now were asked to look. Those that a flush waited for
    /// look at once.
    fn others(&mut self, me: usize) -> Checked {
        for cpu in (0..2).filter(|cpu| *cpu != me) {
            let next = event(&self.state, Event::Reschedule { cpu });
            // When its turn is over its own timer tells it.
            let over = self.state.now >= self.state.cpus[cpu].slice_end;
            let wants = !over && next.cpus[cpu].current != self.state.cpus[cpu].current;
            let earlier = self.world.kernel.deadline(cpu) < self.armed[cpu] && !over;
            let leaves = event(&self.state, Event::Enter { cpu }) != self.state;
            if (wants || earlier || leaves) && !self.asked[cpu] {
                return Err(format!(
                    "CPU {cpu} has something to do and was not told: \
                     switch {wants}, deadline {earlier}, leave its guest {leaves}"
                ));
            }
            let lost = self.state.cpus[cpu].current.is_none();
            if self.asked[cpu] && lost {
                self.reschedule(cpu)?;
            }
        }
        Ok(())
    }

    /// What `Retype` made of RAM is zero; then it is used.
    fn new_frames_are_zero(&mut self, before: &State) -> Checked {
        let fresh: Vec<(u64, u8)> = self
            .state
            .caps
            .iter()
            .filter(|(place, _)| !before.caps.contains_key(place))
            .filter_map(|(_, cap)| match cap.what {
                What::Page {
                    base,
                    order,
                    device: false,
                } => Some((base, order)),
                _ => None,
            })
            .collect();
        for (base, order) in fresh {
            let step = if order == 12 { 8 } else { 4096 - 8 };
            for at in (0..1u64 << order).step_by(step) {
                let address = PhysAddr(((base << 12) + at) & !7);
                if self.world.kernel.arena.read::<u64>(address) != 0 {
                    return Err(format!("{address:x?} was handed out with content"));
                }
                self.world.kernel.arena.write(address, u64::MAX);
            }
        }
        Ok(())
    }

    /// Keeps which statuses calls answered, those that blocked included.
    fn cover(&mut self, me: Frame, number: u64, answer: Option<Status>) -> Checked {
        match answer {
            Some(status) => self.note(number, status)?,
            None => {
                self.coverage.blocked.insert(me, number);
            }
        }
        Ok(())
    }

    /// Calls that had blocked and are over now.
    fn cover_ended(&mut self) -> Checked {
        let over: Vec<(Frame, u64)> = self
            .coverage
            .blocked
            .iter()
            .filter(|(thread, _)| {
                let t = self.state.threads.get(thread);
                t.is_none_or(|t| !t.is_blocked() && t.run == microvisor_spec::state::Run::No)
            })
            .map(|(thread, number)| (*thread, *number))
            .collect();
        for (thread, number) in over {
            self.coverage.blocked.remove(&thread);
            let status = self.state.threads.get(&thread).map(|t| t.rax);
            if let Some(status) = status.and_then(Status::from_raw) {
                self.note(number, status)?;
            }
        }
        Ok(())
    }

    fn note(&mut self, number: u64, status: Status) -> Checked {
        self.coverage.seen.insert((number, status as u64));
        match Call::from_raw(number) {
            Some(call) if !statuses::may_answer(call, status) => {
                Err(format!("{call:?} never answers {status:?}"))
            }
            None if status != Status::InvalidCall => Err("a call without a number".into()),
            _ => Ok(()),
        }
    }

    fn tell(
        &mut self,
        cpu: usize,
        me: Frame,
        request: Request,
        answer: Option<Status>,
        before: &State,
    ) {
        let name = Call::from_raw(request.number).map_or("?".into(), |c| format!("{c:?}"));
        let info = microvisor_abi::call::CALLS
            .iter()
            .find(|info| info.call as u64 == request.number);
        let caps = before.threads.get(&me).and_then(|t| t.caps);
        let words: Vec<String> = info
            .map_or(&[][..], |info| info.arguments)
            .iter()
            .zip(request.args)
            .map(|(name, word)| {
                let place = before.slot_of(caps, word).ok();
                let cap = place.and_then(|p| before.caps.get(&p)).map(|c| c.kind());
                match cap {
                    Some(kind) if kind != Kind::Null => format!("{name}={word:#x} ({kind:?})"),
                    _ => format!("{name}={word:#x}"),
                }
            })
            .collect();
        let answer = answer.map_or("...".into(), |status| format!("{status:?}"));
        self.story.push(format!(
            "CPU {cpu}, thread {me:#x}: {name}({}) = {answer}",
            words.join(", ")
        ));
    }
}

/// Where two states differ, in words.
fn difference(spec: &State, real: &State) -> String {
    let mut out = String::new();
    let (mut spec, mut real) = (spec.clone(), real.clone());
    for (at, thread) in &mut spec.threads {
        if let Some(other) = real.threads.get_mut(at)
            && other.buffer == thread.buffer
        {
            // Long, and the same.
            other.buffer.clear();
            thread.buffer.clear();
        }
    }
    macro_rules! maps {
        ($($field:ident)*) => { $(
            let keys: BTreeSet<_> = spec.$field.keys().chain(real.$field.keys()).collect();
            for key in keys {
                let (s, r) = (spec.$field.get(key), real.$field.get(key));
                if s != r {
                    out += &format!("{} {key:x?}:\n  specified {s:x?}\n  real      {r:x?}\n", stringify!($field));
                }
            }
        )* };
    }
    maps!(caps cap_spaces spaces threads scheds endpoints replies notifications vcpus lines devices sources);
    if spec.cpus != real.cpus {
        out += &format!(
            "cpus:\n  specified {:x?}\n  real      {:x?}\n",
            spec.cpus, real.cpus
        );
    }
    if spec.enabled != real.enabled {
        out += &format!(
            "lines that may interrupt: specified {:?}, real {:?}\n",
            spec.enabled, real.enabled
        );
    }
    if out.is_empty() {
        out = format!("machine or time: {:?} {:?}", spec.machine, real.machine);
    }
    out
}
