//! Address-space identifiers: which one a vCPU runs under on a physical CPU.
//!
//! Each CPU hands out identifiers in order. When they run out it starts a new *generation* with
//! one full flush, and identifiers of earlier generations mean nothing any more. A vCPU keeps its
//! identifier while it stays on the same CPU, in the same generation, in the same guest space, and
//! nothing was unmapped from that (whose *epoch* counts it); otherwise it gets a fresh one, under
//! which nothing can be cached. So no flush is needed but at the turn of a generation.

/// The identifiers of one physical CPU. Touched by that CPU only.
#[derive(Clone, Copy, Debug)]
pub struct Asids {
    stamp: u64,
    next: u32,
    count: u32,
}

/// What a vCPU remembers of the identifier it was last given. All zero: none yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// CPU and generation, as one word.
    pub stamp: u64,
    /// The guest space's epoch seen at that time.
    pub epoch: u64,
    /// The identifier.
    pub asid: u32,
}

impl Held {
    /// To be called when the vCPU gets another guest space: what is cached under its identifier is of
    /// the old one, and the epochs of the two say nothing about each other.
    pub const fn forget(&mut self) {
        self.stamp = 0;
    }
}

/// What the entry must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Run under the identifier held.
    Keep,
    /// Run under the fresh identifier now held; nothing is cached under it.
    Fresh,
    /// As `Fresh`, but first flush every identifier of this CPU.
    FreshAfterFlush,
}

impl Entry {
    /// What an entry with VMX invalidates: everything under every VPID; what is cached of the guest
    /// space's tables alone. The latter has no VPID (Intel SDM vol. 3, 29.4.1), and another vCPU of the
    /// space, or one of a space that had its root before, may have left it on this CPU. So it goes
    /// whenever the entry does not follow one on this CPU, in this epoch.
    pub const fn invalidates(self) -> (bool, bool) {
        match self {
            Entry::Keep => (false, false),
            Entry::Fresh => (false, true),
            Entry::FreshAfterFlush => (true, true),
        }
    }
}

/// Bits of a stamp that count generations; the CPU is above them.
const GENERATION_BITS: u32 = 48;

impl Asids {
    /// The identifiers of `cpu`, which has `count` of them including 0, the host's own. The first
    /// use flushes.
    pub const fn new(cpu: usize, count: u32) -> Asids {
        Asids {
            stamp: (cpu as u64 + 1) << GENERATION_BITS,
            next: u32::MAX,
            count,
        }
    }

    /// True if a vCPU that holds `held` may run under it, in a space whose epoch is `epoch`.
    #[inline(always)]
    pub const fn valid(&self, held: &Held, epoch: u64) -> bool {
        held.stamp == self.stamp && held.epoch == epoch
    }

    /// Decides what a vCPU runs under that holds `held`, in a space whose epoch is `epoch`.
    pub const fn enter(&mut self, held: &mut Held, epoch: u64) -> Entry {
        if self.valid(held, epoch) {
            return Entry::Keep;
        }
        let turn = self.next >= self.count;
        if turn {
            self.stamp += 1;
            self.next = 1;
        }
        *held = Held {
            stamp: self.stamp,
            epoch,
            asid: self.next,
        };
        self.next += 1;
        if turn && cfg!(not(planted = "asid-without-flush")) {
            Entry::FreshAfterFlush
        } else {
            Entry::Fresh
        }
    }
}
