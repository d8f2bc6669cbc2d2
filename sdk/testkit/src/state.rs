//! A simulated system from inside: threads and whose turn it is, the clock, and deaths. One thread
//! runs at a time, so that a run is the same every time; a call switches to its server at once, as
//! on one CPU of the machine. Calls are carried out in [`crate::calls`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use microvisor_abi::message::MessageInfo;
use microvisor_abi::{FOREVER, Rights, Status};
use sdk::host;
use sdk::startup::PEERS;

use crate::component::{Component, Restart};
use crate::fault::{Fault, Plan, Random, Site};
use crate::graph::{CapId, Graph, ObjectId, State as ObjectState};
use crate::judge::{Counts, Death, Told};
use crate::message::BUFFER;

/// System calls of one run, after which it counts as one without end.
const FUEL: u64 = 2_000_000;

/// What a thread does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Run {
    /// It has its turn, or waits for it.
    Ready,
    /// Its request waits for a server.
    Sending {
        endpoint: ObjectId,
        badge: u64,
        rights: Rights,
    },
    /// Its request was taken.
    Awaiting {
        endpoint: ObjectId,
        epoch: u32,
        rights: Rights,
        reply: ObjectId,
    },
    /// In `Receive`.
    Receiving {
        endpoint: Option<ObjectId>,
        reply: Option<ObjectId>,
        deadline: u64,
    },
    /// In `Wait`.
    Waiting { on: ObjectId, deadline: u64 },
    /// For good.
    Ended,
}

pub(crate) struct Thread {
    pub component: usize,
    pub run: Run,
    /// The call's registers.
    pub regs: [u64; 6],
    pub answer: Option<(Status, [u64; 6])>,
    pub buffer: Box<[u8; BUFFER]>,
    /// Faults of the call that it is in.
    pub faults: Vec<Fault>,
    /// Dies as soon as it has its turn.
    pub doomed: Option<Death>,
    pub turn: Arc<Condvar>,
}

/// A component of the system.
pub(crate) struct Member {
    pub spec: Arc<Component>,
    pub host: Option<Arc<host::Component>>,
    pub thread: Option<usize>,
    pub notification: Option<ObjectId>,
    pub deaths: Vec<Death>,
    pub told: Vec<Told>,
    pub log: Vec<String>,
    pub restarts: u32,
    pub memory_left: u64,
    pub mapped: BTreeMap<u64, ObjectId>,
    pub ports: Vec<(u16, u16)>,
    /// Calls by interface, ever.
    pub calls: BTreeMap<String, u64>,
    /// System calls, ever.
    pub system_calls: u64,
    /// What it had when the test said that this is all it may have.
    pub mark: Option<Counts>,
}

/// An endpoint of root's.
pub(crate) struct Wire {
    pub interface: String,
    /// `None`: root itself.
    pub server: Option<usize>,
    pub object: ObjectId,
    pub cap: CapId,
}

pub(crate) struct State {
    pub graph: Graph,
    pub threads: Vec<Thread>,
    pub members: Vec<Member>,
    pub wires: Vec<Wire>,
    pub ring_pages: Vec<CapId>,
    pub clock: u64,
    pub plan: Plan,
    pub sites: Vec<Site>,
    /// Whose turn it is; `None` for the test.
    pub current: Option<usize>,
    pub ready: VecDeque<usize>,
    pub prefer: Option<usize>,
    pub random: Option<Random>,
    /// The thread that the test runs as, while it does.
    pub driven: Option<usize>,
    pub stuck: Option<String>,
    pub fuel: u64,
    /// Components to be started as soon as possible.
    pub starts: Vec<usize>,
    pub over: bool,
    pub joins: Vec<JoinHandle<()>>,
}

/// The state and where the test waits.
pub(crate) struct Shared {
    state: Mutex<State>,
    pub idle: Condvar,
}

impl Shared {
    pub fn new(state: State) -> Shared {
        Shared {
            state: Mutex::new(state),
            idle: Condvar::new(),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        // A component that died is no reason for the others to.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub fn new(plan: Plan) -> State {
        State {
            graph: Graph::default(),
            threads: Vec::new(),
            members: Vec::new(),
            wires: Vec::new(),
            ring_pages: Vec::new(),
            clock: 1_000_000,
            plan,
            sites: Vec::new(),
            current: None,
            ready: VecDeque::new(),
            prefer: None,
            random: None,
            driven: None,
            stuck: None,
            fuel: FUEL,
            starts: Vec::new(),
            over: false,
            joins: Vec::new(),
        }
    }

    pub fn name(&self, component: usize) -> &str {
        &self.members[component].spec.name
    }

    /// Faults planned for here.
    pub fn faults_at(&mut self, site: Site) -> Vec<Fault> {
        let faults = self.plan.take(&site);
        self.sites.push(site);
        faults
    }

    /// The thread goes on with this answer.
    pub fn wake(&mut self, thread: usize, status: Status, results: [u64; 6]) {
        let Some(t) = self.threads.get_mut(thread) else {
            return;
        };
        if t.run == Run::Ended {
            return;
        }
        t.run = Run::Ready;
        t.answer = Some((status, results));
        self.ready.push_back(thread);
    }

    /// Gives the turn to the next thread; to the test if there is none.
    pub fn switch(&mut self, shared: &Shared) {
        let next = self.next();
        self.current = next;
        match next {
            Some(thread) => self.threads[thread].turn.notify_one(),
            None => shared.idle.notify_all(),
        }
    }

    fn next(&mut self) -> Option<usize> {
        if let Some(at) = self.prefer.take()
            && let Some(place) = self.ready.iter().position(|&t| t == at)
        {
            let whim = self.random.as_mut().is_some_and(|r| r.next() & 1 == 0);
            if !whim {
                self.ready.remove(place);
                return Some(at);
            }
        }
        if let Some(random) = &mut self.random
            && self.ready.len() > 1
        {
            let at = random.next() as usize % self.ready.len();
            return self.ready.remove(at);
        }
        if let Some(first) = self.ready.pop_front() {
            return Some(first);
        }
        // Nobody can go on. A test that waits for time gets it; one that waits for nothing else
        // would wait for ever.
        let driven = self.driven?;
        if self.threads[driven].run == Run::Ready {
            return Some(driven);
        }
        let deadlines = self.threads.iter().filter_map(|t| match t.run {
            Run::Receiving { deadline, .. } | Run::Waiting { deadline, .. } => Some(deadline),
            _ => None,
        });
        match deadlines.filter(|&d| d != FOREVER).min() {
            Some(deadline) => self.advance_to(deadline),
            None => {
                self.stuck = Some(self.describe());
                self.threads[driven].doomed = Some(Death::Killed);
                return Some(driven);
            }
        }
        self.next()
    }

    /// Moves the clock; deadlines that pass end what waits for them.
    pub fn advance_to(&mut self, clock: u64) {
        self.clock = self.clock.max(clock);
        for thread in 0..self.threads.len() {
            if let Run::Receiving { deadline, .. } | Run::Waiting { deadline, .. } =
                self.threads[thread].run
                && deadline != FOREVER
                && deadline <= self.clock
            {
                self.wake(thread, Status::Timeout, [0; 6]);
            }
        }
    }

    /// Who waits for what.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for thread in &self.threads {
            let what = match &thread.run {
                Run::Ended => continue,
                Run::Ready => "can run".into(),
                Run::Sending { endpoint, .. } => {
                    format!("calls {}, which nobody takes", self.object(*endpoint))
                }
                Run::Awaiting { endpoint, .. } => {
                    format!("waits for the answer of {}", self.object(*endpoint))
                }
                Run::Receiving { .. } => "waits for messages".into(),
                Run::Waiting { on, .. } => format!("waits for {}", self.object(*on)),
            };
            text += &format!("\n  {} {what}", self.name(thread.component));
        }
        text
    }

    fn object(&self, id: ObjectId) -> &str {
        &self.graph.object(id).name
    }

    /// Sets bits of a notification and tells whoever waits.
    pub fn signal(&mut self, object: ObjectId, bits: u64) {
        let ObjectState::Notification { bits: all, bound } =
            &mut self.graph.object_mut(object).state
        else {
            return;
        };
        *all |= bits;
        let (now, bound) = (*all, *bound);
        if now == 0 {
            return;
        }
        let waits = |t: &Thread| matches!(t.run, Run::Waiting { on, .. } if on == object);
        if let Some(waiter) = self.threads.iter().position(waits) {
            self.take_bits(object);
            self.wake(waiter, Status::Ok, [now, 0, 0, 0, 0, 0]);
        } else if let Some(thread) = bound
            && matches!(self.threads[thread].run, Run::Receiving { .. })
        {
            self.take_bits(object);
            self.wake(thread, Status::Ok, Self::bits_message(now));
        }
    }

    pub fn bits_message(bits: u64) -> [u64; 6] {
        [0, MessageInfo::NOTIFICATION.0, bits, 0, 0, 0]
    }

    pub fn take_bits(&mut self, object: ObjectId) -> u64 {
        match &mut self.graph.object_mut(object).state {
            ObjectState::Notification { bits, .. } => std::mem::take(bits),
            _ => 0,
        }
    }

    /// Objects are gone: whoever waited for them hears it.
    pub fn objects_gone(&mut self, gone: &[ObjectId]) {
        for &object in gone {
            if let ObjectState::Reply { caller } = &mut self.graph.object_mut(object).state
                && let Some(caller) = caller.take()
            {
                self.lose(caller);
            }
            for thread in 0..self.threads.len() {
                let waits = match self.threads[thread].run {
                    Run::Waiting { on, .. } => on == object,
                    Run::Sending { endpoint, .. } => endpoint == object,
                    Run::Receiving { endpoint, .. } => endpoint == Some(object),
                    _ => false,
                };
                if waits {
                    self.wake(thread, Status::Aborted, [0; 6]);
                }
            }
        }
    }

    /// A caller's answer will not come.
    fn lose(&mut self, caller: usize) {
        if let Run::Awaiting {
            endpoint, epoch, ..
        } = self.threads[caller].run
        {
            let moved = match self.graph.object(endpoint).state {
                ObjectState::Endpoint { epoch: now } => now != epoch,
                _ => false,
            };
            let status = if moved {
                Status::Restarted
            } else {
                Status::Aborted
            };
            self.wake(caller, status, [0; 6]);
        }
    }

    /// What root does when a component dies.
    pub fn died(&mut self, component: usize, death: Death) {
        let member = &mut self.members[component];
        let again = match (&death, member.spec.restart) {
            (Death::Exited, _) | (_, Restart::Never) => false,
            (_, Restart::Always) => true,
            (_, Restart::Times(times)) => member.restarts < times,
        };
        member.deaths.push(death);
        member.mapped.clear();
        member.ports.clear();
        if let Some(thread) = member.thread.take() {
            let run = std::mem::replace(&mut self.threads[thread].run, Run::Ended);
            self.ready.retain(|&t| t != thread);
            if let Run::Awaiting { reply, .. } = run
                && let ObjectState::Reply { caller } = &mut self.graph.object_mut(reply).state
            {
                *caller = None;
            }
        }
        let served = self.wires.iter().filter(|w| w.server == Some(component));
        let served: Vec<(ObjectId, CapId)> = served.map(|w| (w.object, w.cap)).collect();
        if again {
            for (object, _) in &served {
                if let ObjectState::Endpoint { epoch } = &mut self.graph.object_mut(*object).state {
                    *epoch = epoch.wrapping_add(1);
                }
            }
        }
        let gone = self.graph.end_space(component);
        self.objects_gone(&gone);
        if !again {
            for (_, cap) in served {
                let gone = self.graph.delete(cap);
                self.objects_gone(&gone);
            }
        }
        for peer in self.peers(component) {
            if let Some(notification) = self.members[peer].notification {
                self.signal(notification, PEERS);
            }
        }
        if again && !self.over {
            self.members[component].restarts += 1;
            self.starts.push(component);
        }
    }

    fn peers(&self, component: usize) -> Vec<usize> {
        let calls = |from: usize, to: usize| {
            let served = &self.members[to].spec.serves;
            let needs = &self.members[from].spec.needs;
            needs.iter().any(|need| served.contains(&need.interface))
        };
        (0..self.members.len())
            .filter(|&other| other != component)
            .filter(|&other| calls(component, other) || calls(other, component))
            .collect()
    }
}
