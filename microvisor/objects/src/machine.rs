//! What the object code asks of the hardware. The core implements this trait over real CPUs; host
//! tests implement it over counters.
//!
//! Every method is called with the kernel lock held, must be bounded, and must not call back.

use crate::id::{PhysAddr, VcpuArea};
use microvisor_abi::Status;

/// What must leave the translation caches of every CPU before memory changes hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// One page of the host space whose root table is `root`.
    HostPage {
        /// Physical address of the root table.
        root: PhysAddr,
        /// Page's virtual address.
        address: u64,
    },
    /// Everything of that host space; a CPU that has it loaded moves to the core's own tables.
    HostSpace {
        /// Physical address of the root table.
        root: PhysAddr,
    },
    /// Everything cached of the guest space whose root table is `root`: each vCPU that runs in it
    /// leaves the guest, and no vCPU enters it again without a flush (the space's epoch was
    /// advanced before this call).
    GuestSpace {
        /// Physical address of the root table.
        root: PhysAddr,
        /// The CPUs that ever ran a vCPU in it, a bit each.
        cpus: u64,
    },
    /// More than one of these, but `HostSpace`: every CPU forgets all that it cached of the host
    /// space that it has loaded, and quiesces.
    Everything,
    /// Nothing to flush: only wait until every other CPU has left whatever it was doing in the
    /// core or in a guest, so that no stale reference survives. Each also looks again at the ports
    /// of its thread.
    Quiesce,
}

impl Flush {
    /// One flush that does the work of both.
    pub fn and(self, other: Flush) -> Flush {
        match (self, other) {
            (Flush::GuestSpace { root, cpus }, Flush::GuestSpace { root: r, cpus: c })
                if root == r =>
            {
                let cpus = cpus | c;
                Flush::GuestSpace { root, cpus }
            }
            (one, two) if one == two => one,
            _ => Flush::Everything,
        }
    }
}

/// The bit layout of translation tables of guest spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestTables {
    /// AMD nested paging: the layout of host tables, user bit set.
    Npt,
    /// Intel EPT.
    Ept,
}

/// The bit layout of translation tables of *dma* spaces, and what the IOMMU can do with them. They
/// always have four levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaTables {
    /// AMD's I/O page tables, otherwise Intel's second-level tables.
    pub amd: bool,
    /// Bits of an address that a device may use, at most 48.
    pub bits: u8,
    /// Log2 of the largest leaf: 12, 21 or 30.
    pub largest: u8,
}

/// What an IOMMU is asked to do. It does what it is asked in order, and answers later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// A function's accesses go through the tables at `root`; what is cached of them is named by
    /// `domain`. It was blocked before.
    Attach {
        /// Requester id.
        function: u16,
        /// From 1; no other function has it.
        domain: u16,
        /// Physical address of the root table.
        root: PhysAddr,
    },
    /// A function reaches nothing any more, and nothing cached of it is left.
    Block {
        /// Requester id.
        function: u16,
        /// As when it was attached; 0 if it was not.
        domain: u16,
        /// Its further attempts are not reported.
        quiet: bool,
    },
    /// Nothing cached of a domain is left.
    Forget {
        /// As when it was attached.
        domain: u16,
    },
}

/// Whether something that the IOMMU was asked is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is.
    Done,
    /// Not yet.
    Waiting,
    /// It has not answered for so long that it never will.
    Never,
}

/// Hardware, as the objects see it.
pub trait Machine {
    /// Absolute time in TSC ticks.
    fn now(&self) -> u64;

    /// The CPU that this code runs on.
    fn cpu(&self) -> usize;

    /// Makes another CPU enter the core and reschedule soon (an IPI). Never waits.
    fn kick(&self, cpu: usize);

    /// True if that CPU waits for the kernel lock in order to make its thread's system call, or to
    /// begin its thread's run of a vCPU: neither has had any effect. Asked after a flush.
    fn waits_to_call(&self, cpu: usize) -> bool;

    /// Carries out a flush on this CPU and every other that it concerns, and returns when all have done it. CPUs
    /// that spin for the kernel lock answer while they spin.
    fn flush(&self, flush: Flush);

    /// Layout of guest tables.
    fn guest_tables(&self) -> GuestTables;

    /// Lets an ISA line be delivered, or not. A message cannot be held back.
    fn set_line(&self, line: u32, enabled: bool);

    /// True if guests can run.
    fn virtualisation(&self) -> bool;

    /// Prepares a vCPU's hardware area: all zero on entry.
    fn vcpu_init(&self, vcpu: VcpuArea);

    /// Tells the vCPU which guest tables it runs under.
    fn vcpu_attach(&self, vcpu: VcpuArea, root: PhysAddr);

    /// Brings groups (`abi::vcpu::group`) up to date in the state page.
    fn vcpu_fetch(&self, vcpu: VcpuArea, groups: u64);

    /// Copies from the extended state image; answers the image's size. Out of range offsets copy
    /// nothing.
    fn vcpu_get_extended(&self, vcpu: VcpuArea, offset: usize, to: &mut [u8]) -> usize;

    /// Replaces part of the extended state image, sanitised.
    fn vcpu_set_extended(
        &self,
        vcpu: VcpuArea,
        offset: usize,
        from: &[u8],
    ) -> Result<usize, Status>;

    /// Lets the vCPU use ports without exits, or no longer.
    fn vcpu_grant_ports(&self, vcpu: VcpuArea, first: u16, count: u32, granted: bool);

    /// The vCPU is about to be destroyed: forget cached state (FPU, VMCS) on every CPU.
    fn vcpu_forget(&self, vcpu: VcpuArea);

    /// Tables of *dma* spaces; `None` without an IOMMU, and then nothing below is called but
    /// `message`, `asked` and `answered`.
    fn dma_tables(&self) -> Option<DmaTables>;

    /// Asks the IOMMU. Never waits for its answer.
    fn ask(&self, ask: Ask);

    /// A number for all that was asked so far; later ones are not smaller.
    fn asked(&self) -> u64;

    /// Whether all that was asked when `asked` answered this is done. May wait for a few
    /// microseconds.
    fn answered(&self, ticket: u64) -> Answer;

    /// Entries on the way from the table at `root` to `address` were written: makes an IOMMU see it
    /// that does not look into caches of CPUs.
    fn wrote_table(&self, root: PhysAddr, address: u64);

    /// Lets a function, and nobody else, send a message that arrives as `line`; nobody for `None`.
    /// Answers address and data << 32; 0 if that is not possible.
    fn message(&self, line: u32, function: Option<u16>) -> u64;
}
