//! Kinds of capability, rights, and the small enumerations that calls take.

numbered! {
/// What a capability names.
#[derive(Hash)]
#[repr(u8)]
pub enum Kind from u8 {
    /// Empty slot.
    Null = 0,
    /// Untyped physical memory, RAM or device.
    Memory = 1,
    /// Memory that can be mapped: 4 KiB, 2 MiB or 1 GiB.
    Frame = 2,
    /// Frames for an address space's page tables.
    Tables = 3,
    /// A table of capabilities; one frame holds 64 slots.
    CapSpace = 4,
    /// A translation tree.
    AddressSpace = 5,
    /// A host execution context.
    Thread = 6,
    /// CPU time.
    SchedContext = 7,
    /// Where calls go.
    Endpoint = 8,
    /// Where one answer goes.
    Reply = 9,
    /// A word of sticky bits.
    Notification = 10,
    /// A virtual CPU.
    Vcpu = 11,
    /// A range of interrupts: ISA lines below [`LINES_ISA`], messages from there to [`LINES`].
    Interrupt = 12,
    /// A range of I/O ports.
    IoPorts = 13,
    /// A range of CPUs, up to a priority: the right to hand out their time.
    Cpu = 14,
    /// A range of PCI functions, each by its requester id (`bus << 8 | device << 3 | function`): the
    /// right to let them use memory and interrupt.
    Device = 15,
}
}

/// What [`crate::Call::Inspect`] tells of a slot. It says what its holder may do, never where in
/// memory that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// What it names; `Null` for an empty slot.
    pub kind: Kind,
    /// With these rights.
    pub rights: Rights,
    /// `Frame`: log2 of its size.
    pub order: u8,
    /// It records a mapping (`IoPorts`: a grant; `Device`: it is attached).
    pub mapped: bool,
    /// `Endpoint`, `Notification`: badge. `Memory`, `Tables`, `CapSpace`: frames. `Interrupt`,
    /// `IoPorts`, `Cpu`, `Device`: `first | count << 32`. Otherwise 0.
    pub number: u64,
    /// `Memory`: frames of it that were handed out. `Cpu`: highest priority. `Interrupt`: the message
    /// that its device has to send, address in the low half, data in the high one; 0 without
    /// [`Role::Source`]. `Device` of one function: [`ATTACHED`], and the [`Stopped`] word if it was stopped,
    /// whoever attached it. Otherwise 0.
    pub more: u64,
}

impl Slot {
    /// From the result words.
    pub const fn from_words(what: u64, number: u64, more: u64) -> Option<Slot> {
        let Some(kind) = Kind::from_raw(what as u8) else {
            return None;
        };
        Some(Slot {
            kind,
            rights: Rights((what >> 8) as u8),
            order: (what >> 16) as u8,
            mapped: what >> 24 & 1 != 0,
            number,
            more,
        })
    }

    /// The result words.
    pub const fn words(self) -> [u64; 3] {
        let what = self.kind as u64
            | (self.rights.0 as u64) << 8
            | (self.order as u64) << 16
            | (self.mapped as u64) << 24;
        [what, self.number, self.more]
    }
}

/// A set of rights. What a bit allows depends on the kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Rights(pub u8);

impl Rights {
    /// No right.
    pub const NONE: Rights = Rights(0);
    /// Every right the source has.
    pub const ALL: Rights = Rights(0xff);
    /// `Frame`: may be mapped readable.
    pub const READ: Rights = Rights(1);
    /// `Frame`: may be mapped writable.
    pub const WRITE: Rights = Rights(2);
    /// `Frame`: may be mapped executable.
    pub const EXECUTE: Rights = Rights(4);
    /// `Endpoint`: may call.
    pub const CALL: Rights = Rights(1);
    /// `Endpoint`: may receive.
    pub const RECEIVE: Rights = Rights(2);
    /// `Endpoint`: calls, and answers to them, may carry capabilities.
    pub const GRANT: Rights = Rights(4);
    /// `Endpoint`: may say that its server was replaced.
    pub const MANAGE: Rights = Rights(8);
    /// `Notification`: may signal.
    pub const SIGNAL: Rights = Rights(1);
    /// `Notification`: may wait and bind.
    pub const WAIT: Rights = Rights(2);
    /// Any other kind: may be used at all. A copy without it can only be passed on or deleted.
    pub const USE: Rights = Rights(1);

    /// True if all of `other` is in this set.
    #[inline]
    pub const fn has(self, other: Rights) -> bool {
        self.0 & other.0 == other.0
    }

    /// The rights in both.
    #[inline]
    pub const fn and(self, other: Rights) -> Rights {
        Rights(self.0 & other.0)
    }

    /// The rights in either.
    #[inline]
    pub const fn or(self, other: Rights) -> Rights {
        Rights(self.0 | other.0)
    }
}

numbered! {
/// What walks an address space's tables.
#[derive(Hash)]
#[repr(u8)]
pub enum SpaceKind from u64 {
    /// A component's own addresses.
    Host = 0,
    /// Guest-physical addresses (NPT, EPT).
    Guest = 1,
    /// Addresses that devices use (IOMMU).
    Dma = 2,
}
}

/// Flags of [`crate::Call::Map`]. Device memory is always mapped uncached in host spaces.
pub struct Map;

impl Map {
    /// Readable.
    pub const READ: u64 = 1;
    /// Writable. A mapping is never writable and executable at once in a host space.
    pub const WRITE: u64 = 2;
    /// Executable.
    pub const EXECUTE: u64 = 4;
}

numbered! {
/// The role of a binding made by [`crate::Call::Bind`].
#[repr(u64)]
pub enum Role from u64 {
    /// `SchedContext` to `Thread`: the thread runs on it.
    Time = 0,
    /// `Notification` to `Thread`: bits arrive where the thread receives.
    Messages = 1,
    /// `Notification` to `Thread`: the capability's badge is signalled when the thread faults.
    Faults = 2,
    /// `Notification` to `Vcpu`: pending bits end or prevent a run.
    Run = 3,
    /// `Interrupt` to `Notification`: an interrupt signals the capability's badge.
    Line = 4,
    /// `Endpoint` to nothing: the server that took messages from it is being replaced. A caller
    /// whose message that server took hears `Restarted` when the reply object goes.
    Server = 5,
    /// `Device` to `AddressSpace`: the only function of the capability reaches memory through that
    /// *dma* space. Until then, and untied, it reaches none.
    Dma = 6,
    /// `Interrupt` to `Device`: a message, the only one of its capability, is what that function,
    /// the only one of its, may send.
    Source = 7,
    /// `Notification` to `Device`: the capability's badge is signalled when the IOMMU stops the
    /// function. Only while the function is attached through that capability.
    Stops = 8,
}
}

numbered! {
/// Operations of [`crate::Call::InterruptControl`].
#[repr(u64)]
pub enum InterruptOp from u64 {
    /// Handled: lets the line interrupt again. A line is masked from delivery until this.
    Acknowledge = 0,
}
}

/// ISA lines are the interrupts below this number.
pub const LINES_ISA: u64 = 16;
/// One past the last interrupt.
pub const LINES: u64 = 128;
/// PCI functions of a segment.
pub const FUNCTIONS: u64 = 1 << 16;

/// Bit of `Slot::more`: the function is attached to a *dma* space.
pub const ATTACHED: u64 = 1 << 9;

/// Why the IOMMU stopped a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// The address it used, a multiple of 4 KiB.
    pub address: u64,
    /// It wanted to write.
    pub write: bool,
    /// The IOMMU's own number for what was wrong, not 0: Intel VT-d specification, appendix A; AMD
    /// IOMMU specification, 2.5, the event code.
    pub reason: u8,
}

impl Stopped {
    /// As one word, not 0.
    pub const fn word(self) -> u64 {
        let reason = if self.reason == 0 { 0xff } else { self.reason };
        self.address & !0xfff | (self.write as u64) << 8 | reason as u64
    }

    /// From a word: `None` if it was not stopped.
    pub const fn from_word(word: u64) -> Option<Stopped> {
        if word as u8 == 0 {
            return None;
        }
        Some(Stopped {
            address: word & !0xfff,
            write: word >> 8 & 1 != 0,
            reason: word as u8,
        })
    }
}

/// Highest priority of a scheduling context; 0 is the lowest.
pub const PRIORITY_MAX: u64 = 31;
