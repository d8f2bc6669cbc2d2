//! What there is: the whole state of the core as plain data. No sharing, no addresses of the
//! implementation, nothing that is not observable by some sequence of calls.
//!
//! Objects are named by the frame in which they begin. A name that outlived its object is `None`
//! at once and everywhere: nothing dangles, so there are no generations here.

use microvisor_abi::{Kind, Rights, SpaceKind};
use std::collections::{BTreeMap, BTreeSet};

/// Number of a 4 KiB frame of physical memory. Names the object that begins there.
pub type Frame = u64;

/// Where a capability is: a slot of a capability space. Slot 0 is not reachable by calls; a space
/// that lost the place of its own name keeps it there until its memory is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The capability space.
    pub space: Frame,
    /// The slot.
    pub slot: u32,
}

/// What a capability names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// `Memory`: untyped frames, of which the first `used` were handed out.
    Untyped {
        /// First frame.
        base: Frame,
        /// How many.
        frames: u64,
        /// Not RAM.
        device: bool,
        /// Frames handed out, from the front, gaps for alignment included.
        used: u64,
    },
    /// `Frame`: memory that can be mapped, `1 << order` bytes.
    Page {
        /// First frame.
        base: Frame,
        /// 12, 21 or 30.
        order: u8,
        /// Not RAM.
        device: bool,
    },
    /// `Tables`: frames for page tables.
    Tables {
        /// First frame.
        base: Frame,
        /// How many.
        frames: u64,
        /// Given to a space.
        donated: bool,
        /// That space, while it exists.
        to: Option<Frame>,
    },
    /// An object; `None` once it was destroyed.
    Object {
        /// Its kind.
        kind: Kind,
        /// Where it is.
        at: Option<Frame>,
        /// `Endpoint`, `Notification`: the badge, 0 for none. `CapSpace`: its frames.
        number: u64,
    },
    /// `Interrupt`, `IoPorts`, `Device`, `Cpu`: a range of numbers.
    Range {
        /// Which of the four.
        kind: Kind,
        /// First number.
        first: u64,
        /// How many.
        count: u64,
        /// `Cpu`: the highest priority.
        highest: u64,
    },
}

/// A capability.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cap {
    /// What it names.
    pub what: What,
    /// `Rights` bits.
    pub rights: u8,
    /// Made by `Retype` or at boot: the object lives as long as this capability.
    pub original: bool,
    /// The mapping made with it: address space and address. Of `IoPorts`: who has them. Of `Device`:
    /// what it is attached to.
    pub mapped: Option<(Frame, u64)>,
    /// It was unmapped, but an IOMMU has not said yet that it cached nothing.
    pub settling: bool,
    /// What it was derived from.
    pub parent: Option<Place>,
    /// What was derived from it, newest first.
    pub children: Vec<Place>,
}

impl Cap {
    /// The kind.
    pub fn kind(&self) -> Kind {
        match self.what {
            What::Untyped { .. } => Kind::Memory,
            What::Page { .. } => Kind::Frame,
            What::Tables { .. } => Kind::Tables,
            What::Object { kind, .. } | What::Range { kind, .. } => kind,
        }
    }

    /// True if it carries all of these rights.
    pub fn allows(&self, rights: Rights) -> bool {
        Rights(self.rights).has(rights)
    }

    /// The object it names, if that exists.
    pub fn object(&self) -> Option<Frame> {
        match self.what {
            What::Object { at, .. } => at,
            _ => None,
        }
    }

    /// Its badge, 0 for none.
    pub fn badge(&self) -> u64 {
        match self.what {
            What::Object { number, .. } => number,
            _ => 0,
        }
    }

    /// True for the name whose deletion destroys a capability space.
    pub fn is_space_itself(&self) -> bool {
        self.original && self.kind() == Kind::CapSpace
    }
}

/// A table of capabilities.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CapSpace {
    /// Slots, number 0 included.
    pub slots: u64,
    /// Being destroyed, or waiting for its memory to be taken back: it resolves nothing.
    pub dead: bool,
}

/// One translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Leaf {
    /// First frame.
    pub base: Frame,
    /// 12, 21 or 30.
    pub order: u8,
    /// `Map` flags.
    pub access: u64,
    /// Uncached.
    pub device: bool,
}

/// A translation tree.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AddressSpace {
    /// What walks it.
    pub kind: SpaceKind,
    /// Its root table.
    pub root: Frame,
    /// What is mapped, by address.
    pub leaves: BTreeMap<u64, Leaf>,
    /// The tables that hang in the tree below the root: level and first address.
    pub tables: BTreeSet<(u64, u64)>,
    /// Every frame given for tables, used or not.
    pub frames: BTreeSet<Frame>,
}

impl AddressSpace {
    /// Tables that are not in use.
    pub fn pool(&self) -> u64 {
        self.frames.len() as u64 - self.tables.len() as u64
    }
}

/// What a thread is doing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Doing {
    /// Not to be run until resumed.
    Stopped,
    /// Stopped by a fault.
    Faulted,
    /// Wants to run.
    Ready,
    /// Runs.
    Running,
    /// Waits for its budget to be refilled.
    Throttled,
    /// Its message waits at an endpoint.
    Sending {
        /// Where.
        endpoint: Frame,
        /// Badge of the capability used.
        badge: u64,
        /// That capability carried `GRANT`.
        grant: bool,
    },
    /// Its message was taken; the answer is to come.
    Awaiting {
        /// Where it called, if that exists.
        endpoint: Option<Frame>,
        /// That endpoint's epoch when the message was taken.
        epoch: u32,
        /// Who answers.
        reply: Frame,
        /// The answer may carry capabilities.
        grant: bool,
    },
    /// Waits for a message; without one of the two, for its bound notification only.
    Receiving {
        /// Where, and with which reply object.
        at: Option<(Frame, Frame)>,
    },
    /// Waits for bits.
    Waiting {
        /// Of this notification.
        notification: Frame,
    },
}

/// The guest that a thread is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Run {
    /// None.
    No,
    /// It runs this vCPU.
    In(Frame),
    /// The vCPU it ran was destroyed; it learns that when it next has the CPU.
    Lost,
}

/// A thread.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Thread {
    /// What it is doing.
    pub doing: Doing,
    /// `rax`: number of the call, then its status.
    pub rax: u64,
    /// `rdi rsi rdx r10 r8 r9`: arguments, then results.
    pub words: [u64; 6],
    /// `rip rsp rflags`.
    pub control: [u64; 3],
    /// Its message buffer, without the zeros at the end.
    pub buffer: Vec<u8>,
    /// The address space it runs in.
    pub space: Option<Frame>,
    /// The capabilities it may name.
    pub caps: Option<Frame>,
    /// The time it runs on.
    pub sched: Option<Frame>,
    /// The CPU of that time, or of its last; there its deadline is kept.
    pub cpu: usize,
    /// What is left of its turn, if something more urgent ended it early; otherwise 0.
    pub turn_left: u64,
    /// When its call, or its throttling, ends.
    pub deadline: Option<u64>,
    /// The notification whose bits arrive where it receives.
    pub bound: Option<Frame>,
    /// What it received last, without waiting for it, were bits of that: a message has its turn.
    pub heard: bool,
    /// Who is told of its faults, and the bits.
    pub supervisor: Option<(Frame, u64)>,
    /// Vector, code and address of the last fault.
    pub fault: [u64; 3],
    /// Port ranges granted: first and count, in order.
    pub ports: Vec<(u64, u64)>,
    /// The last call refused for its capability: number and status, first two arguments.
    pub refused: [u64; 3],
    /// The guest it is in.
    pub run: Run,
}

/// CPU time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct SchedContext {
    /// The thread that has it.
    pub thread: Option<Frame>,
    /// It was set: CPU, priority, budget, period.
    pub set: Option<[u64; 4]>,
    /// Budget left in this period, if it is limited.
    pub remaining: u64,
    /// When the budget is refilled, if it is limited.
    pub refill: u64,
}

/// Where calls go.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Endpoint {
    /// Who waits, first come first served.
    pub queue: Vec<Frame>,
    /// They wait for messages, not with them. False when nobody waits.
    pub receivers: bool,
    /// How often its server was replaced.
    pub epoch: u32,
}

/// Where one answer goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Reply {
    /// Who waits for the answer.
    pub caller: Option<Frame>,
    /// The receiver that will use it for the next message.
    pub receiver: Option<Frame>,
}

/// A word of sticky bits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Notification {
    /// The bits.
    pub bits: u64,
    /// Who waits, first come first served.
    pub queue: Vec<Frame>,
    /// The thread it is bound to.
    pub thread: Option<Frame>,
    /// The vCPU it is bound to.
    pub vcpu: Option<Frame>,
}

/// A virtual CPU.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Vcpu {
    /// The guest memory it sees.
    pub space: Option<Frame>,
    /// Bits pending here end a run.
    pub notification: Option<Frame>,
    /// The CPU that runs it.
    pub running: Option<usize>,
    /// The current or next run is to end.
    pub poked: bool,
}

/// An interrupt line that was bound.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Line {
    /// The capability through which.
    pub owner: Place,
    /// Where it signals, and which bits, while that exists.
    pub to: Option<(Frame, u64)>,
}

/// A function that reaches memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Device {
    /// The capability through which it was attached.
    pub owner: Place,
    /// What it reaches.
    pub space: Frame,
    /// Who is told when it is stopped, and the bits.
    pub tell: Option<(Frame, u64)>,
    /// Why it was stopped, 0 if it was not.
    pub stopped: u64,
}

/// Who may send a message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// The `Interrupt` capability through which it was bound.
    pub interrupt: Place,
    /// The `Device` capability.
    pub device: Place,
    /// That function.
    pub function: u64,
}

/// What one CPU is doing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Cpu {
    /// The thread it runs.
    pub current: Option<Frame>,
    /// Threads that want to run, by priority, in order.
    pub ready: BTreeMap<u64, Vec<Frame>>,
    /// When the current thread's turn is over; `u64::MAX` for never.
    pub slice_end: u64,
    /// Up to when the current thread's time was accounted, if its budget is limited.
    pub charged: u64,
}

/// Facts about the machine that calls depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    /// Ticks of one turn among equals.
    pub slice: u64,
    /// Guests can run.
    pub virtualisation: bool,
    /// Frames of a vCPU.
    pub vcpu_frames: u64,
    /// Interrupt lines, messages included.
    pub lines: u64,
    /// Bits of an address in a *dma* space, if there is an IOMMU.
    pub dma: Option<u8>,
    /// A message without its line.
    pub message: u64,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Facts.
    pub machine: Machine,
    /// Absolute time, ticks.
    pub now: u64,
    /// Every capability, by its place.
    pub caps: BTreeMap<Place, Cap>,
    /// Capability spaces.
    pub cap_spaces: BTreeMap<Frame, CapSpace>,
    /// Address spaces.
    pub spaces: BTreeMap<Frame, AddressSpace>,
    /// Threads.
    pub threads: BTreeMap<Frame, Thread>,
    /// Scheduling contexts.
    pub scheds: BTreeMap<Frame, SchedContext>,
    /// Endpoints.
    pub endpoints: BTreeMap<Frame, Endpoint>,
    /// Replies.
    pub replies: BTreeMap<Frame, Reply>,
    /// Notifications.
    pub notifications: BTreeMap<Frame, Notification>,
    /// Virtual CPUs.
    pub vcpus: BTreeMap<Frame, Vcpu>,
    /// Lines that were bound.
    pub lines: BTreeMap<u64, Line>,
    /// Lines that may interrupt.
    pub enabled: BTreeSet<u64>,
    /// Functions that reach memory.
    pub devices: BTreeMap<u64, Device>,
    /// Messages that may be sent.
    pub sources: BTreeMap<u64, Source>,
    /// CPUs.
    pub cpus: Vec<Cpu>,
}
