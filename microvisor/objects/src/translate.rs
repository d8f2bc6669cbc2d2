//! Address spaces: translation trees for components, guests and devices, made of donated tables.
//!
//! Entries are written by single aligned stores, top down when a path is built, so that a walker
//! sees either the old or the new mapping. Tables come from the space's own pool; a map that needs
//! more than the pool holds changes nothing.

use crate::arena::{Arena, Object};
use crate::id::{FrameKind, PhysAddr, Ref};
use crate::machine::{DmaTables, GuestTables};
use core::sync::atomic::AtomicU64;
use microvisor_abi::cap::Map;
use microvisor_abi::{SpaceKind, Status, USER_END};

/// One translation tree. The frame after it is its root table.
#[derive(Debug)]
#[repr(C)]
pub struct AddressSpace {
    /// Advanced whenever a translation is taken away; a vCPU that saw an older one flushes before
    /// it enters.
    pub(crate) epoch: AtomicU64,
    /// *guest*: the CPUs that ever ran a vCPU in it. A CPU enters itself before it first does, with
    /// an identifier under which nothing is cached; so whoever clears an entry and then reads this
    /// either finds the CPU, or it caches nothing older.
    pub(crate) cpus: AtomicU64,
    /// The root table.
    pub root: PhysAddr,
    /// Free tables, linked through their first word; 0 ends the list.
    pub(crate) pool: PhysAddr,
    pooled: u64,
    kind: u8,
}

// SAFETY: `repr(C)`, words, valid when zero, small; the only object of this kind.
unsafe impl Object for AddressSpace {
    const KIND: FrameKind = FrameKind::AddressSpace;
}

/// Frames that an address space takes: the descriptor and the root table.
pub const SPACE_FRAMES: u64 = 2;
/// Bits of an entry that hold an address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Level of the root table; level 1 holds 4 KiB leaves.
const ROOT_LEVEL: u32 = 4;

impl AddressSpace {
    /// What walks these tables.
    pub fn kind(&self) -> SpaceKind {
        SpaceKind::from_raw(self.kind as u64).unwrap_or(SpaceKind::Host)
    }
}

/// How entries of one kind of tree are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Component tables: Intel SDM vol. 3, 4.5; also read by AMD CPUs.
    Host,
    /// AMD nested tables: the same layout, every entry with the user bit (APM vol. 2, 15.25.5).
    Npt,
    /// Intel EPT (SDM vol. 3, 29.3.2).
    Ept,
    /// Intel second-level tables (VT-d specification 3.3, 9.8).
    VtD,
    /// AMD I/O page tables (AMD IOMMU specification 3.08, 2.2.3).
    AmdVi,
}

/// What a leaf says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// Physical base.
    pub base: PhysAddr,
    /// Log2 of its size: 12, 21 or 30.
    pub order: u32,
    /// `Map` flags.
    pub flags: u64,
    /// Not RAM: uncached.
    pub device: bool,
}

impl Format {
    pub(crate) fn present(self, entry: u64) -> bool {
        match self {
            Format::Host | Format::Npt | Format::AmdVi => entry & 1 != 0,
            Format::Ept => entry & 7 != 0,
            Format::VtD => entry & 3 != 0,
        }
    }

    pub(crate) fn is_leaf(self, entry: u64, level: u32) -> bool {
        level == 1
            || match self {
                // The level of the table that it points to.
                Format::AmdVi => entry >> 9 & 7 == 0,
                _ => entry & (1 << 7) != 0,
            }
    }

    /// An entry of a table of `level`.
    pub(crate) fn table(self, table: PhysAddr, level: u32) -> u64 {
        match self {
            // Present, writable, user for x86 layouts; read, write, execute for EPT: the same bits.
            Format::Host | Format::Npt | Format::Ept => table.0 | 7,
            Format::VtD => table.0 | 3,
            Format::AmdVi => table.0 | u64::from(level - 1) << 9 | 1 | 3 << 61,
        }
    }

    pub(crate) fn leaf(self, leaf: Leaf) -> u64 {
        let large = if leaf.order > 12 { 1 << 7 } else { 0 };
        let write = if leaf.flags & Map::WRITE != 0 {
            1 << 1
        } else {
            0
        };
        match self {
            Format::Host | Format::Npt => {
                // P, US, A, D; PCD and PWT for devices; NX unless executable.
                let nx = if leaf.flags & Map::EXECUTE == 0 && cfg!(not(control = "no-execute")) {
                    1 << 63
                } else {
                    0
                };
                let uncached = if leaf.device { 1 << 3 | 1 << 4 } else { 0 };
                leaf.base.0 | 1 | write | 1 << 2 | uncached | 1 << 5 | 1 << 6 | large | nx
            }
            Format::Ept => {
                let execute = if leaf.flags & Map::EXECUTE != 0 {
                    1 << 2
                } else {
                    0
                };
                // Memory type write-back is 6, uncacheable 0, in bits 5:3; A and D set.
                let memory_type = if leaf.device { 0 } else { 6 << 3 };
                leaf.base.0 | 1 | write | execute | memory_type | large | 1 << 8 | 1 << 9
            }
            Format::VtD => leaf.base.0 | 1 | write | large,
            // IR, IW; FC (coherent) but for devices.
            Format::AmdVi => {
                let coherent = if leaf.device { 0 } else { 1 << 60 };
                leaf.base.0 | 1 | coherent | 1 << 61 | write << 61
            }
        }
    }
}

/// The format of a space's tables on this machine.
pub(crate) fn format(kind: SpaceKind, guest: GuestTables, dma: Option<DmaTables>) -> Format {
    match (kind, guest) {
        (SpaceKind::Guest, GuestTables::Npt) => Format::Npt,
        (SpaceKind::Guest, GuestTables::Ept) => Format::Ept,
        (SpaceKind::Host, _) => Format::Host,
        (SpaceKind::Dma, _) if dma.is_some_and(|dma| dma.amd) => Format::AmdVi,
        (SpaceKind::Dma, _) => Format::VtD,
    }
}

fn index(address: u64, level: u32) -> u64 {
    (address >> (12 + 9 * (level - 1))) & 511
}

/// Checks an address for a kind of space: canonical lower half for components, four levels for
/// guests, what the IOMMU can do for devices; aligned to the leaf.
pub(crate) fn check_address(
    kind: SpaceKind,
    dma: Option<DmaTables>,
    address: u64,
    order: u32,
) -> Result<(), Status> {
    let size = 1u64 << order;
    let end = match kind {
        SpaceKind::Host => USER_END,
        SpaceKind::Guest => 1 << 48,
        SpaceKind::Dma => 1 << dma.map_or(0, |dma| dma.bits),
    };
    let fits = address.checked_add(size).is_some_and(|last| last <= end);
    if fits && address.is_multiple_of(size) {
        Ok(())
    } else {
        Err(Status::InvalidArgument)
    }
}

impl Arena {
    /// Makes an address space in two frames. Component spaces share the core's upper half, which
    /// is copied from the table at `core_root`.
    pub(crate) fn create_space(
        &mut self,
        at: PhysAddr,
        kind: SpaceKind,
        core_root: PhysAddr,
    ) -> Ref<AddressSpace> {
        let space = self.create::<AddressSpace>(at);
        let root = at.add(4096);
        self.zero(root, 4096);
        self.retag(root, FrameKind::PageTable);
        if kind == SpaceKind::Host {
            for entry in 256..512u64 {
                let value: u64 = self.read(core_root.add(entry * 8));
                self.write(root.add(entry * 8), value);
            }
        }
        if let Some(s) = self.get_mut(space) {
            s.root = root;
            s.kind = kind as u8;
        }
        space
    }

    /// Adds frames to a space's pool of tables.
    pub(crate) fn fill_space(&mut self, space: Ref<AddressSpace>, base: PhysAddr, frames: u64) {
        for frame in 0..frames {
            let table = base.add(frame * 4096);
            let Some(s) = self.get_mut(space) else { return };
            let next = s.pool;
            s.pool = table;
            s.pooled += 1;
            self.retag(table, FrameKind::PageTable);
            self.write(table, next.0);
        }
    }

    fn take_table(&mut self, space: Ref<AddressSpace>) -> Option<PhysAddr> {
        let table = self.get(space)?.pool;
        if table.0 == 0 {
            return None;
        }
        let next: u64 = self.read(table);
        let s = self.get_mut(space)?;
        s.pool = PhysAddr(next);
        s.pooled -= 1;
        if cfg!(not(planted = "table-not-cleared")) {
            self.zero(table, 4096);
        }
        Some(table)
    }

    /// Where the walk towards `address` ends at or above `level`: the entry's place, its value and
    /// its level.
    fn walk(
        &self,
        root: PhysAddr,
        format: Format,
        address: u64,
        level: u32,
    ) -> (PhysAddr, u64, u32) {
        let mut table = root;
        let mut at = ROOT_LEVEL;
        loop {
            let place = table.add(index(address, at) * 8);
            let entry: u64 = self.read(place);
            if at == level || !format.present(entry) || format.is_leaf(entry, at) {
                return (place, entry, at);
            }
            table = PhysAddr(entry & ADDRESS);
            at -= 1;
        }
    }

    /// True if a table maps nothing.
    fn table_is_empty(&self, table: PhysAddr) -> bool {
        (0..512u64).all(|entry| self.read::<u64>(table.add(entry * 8)) == 0)
    }

    /// Gives a table that hangs nowhere any more, and that no CPU has cached, back to the pool.
    pub(crate) fn recycle_table(&mut self, space: Ref<AddressSpace>, table: PhysAddr) {
        let Some(s) = self.get_mut(space) else { return };
        let next = s.pool;
        s.pool = table;
        s.pooled += 1;
        self.write(table, next.0);
    }

    /// Enters a leaf. On `Err((NeedTable, level))` and every other error nothing changed. A large
    /// leaf replaces a table that maps nothing; the table is answered, to be recycled once no CPU
    /// has it cached.
    pub(crate) fn map_leaf(
        &mut self,
        space: Ref<AddressSpace>,
        format: Format,
        address: u64,
        leaf: Leaf,
    ) -> Result<Option<PhysAddr>, (Status, u64)> {
        let level = (leaf.order - 12) / 9 + 1;
        let s = self.get(space).ok_or((Status::InvalidCap, 0))?;
        let (root, pooled) = (s.root, s.pooled);
        let (mut place, entry, at) = self.walk(root, format, address, level);
        if format.present(entry) {
            let table = PhysAddr(entry & ADDRESS);
            if at != level || format.is_leaf(entry, at) || !self.table_is_empty(table) {
                return Err((Status::Occupied, 0));
            }
            self.write(place, format.leaf(leaf));
            return Ok(Some(table));
        }
        let missing = (at - level) as u64;
        if missing > pooled {
            return Err((Status::NeedTable, (at - 1) as u64));
        }
        // Build the missing path from the bottom up and hang it in with one store.
        let value = format.leaf(leaf);
        if missing == 0 {
            self.write(place, value);
            return Ok(None);
        }
        let top = place;
        let mut first = PhysAddr(0);
        for step in 0..missing {
            let Some(table) = self.take_table(space) else {
                return Err((Status::NeedTable, at as u64 - 1 - step));
            };
            if step == 0 {
                first = table;
            } else {
                self.write(place, format.table(table, at - step as u32));
            }
            place = table.add(index(address, at - 1 - step as u32) * 8);
        }
        self.write(place, value);
        self.write(top, format.table(first, at));
        Ok(None)
    }

    /// Clears the leaf at `address`; false if the expected one is not there.
    pub(crate) fn unmap_leaf(
        &mut self,
        space: Ref<AddressSpace>,
        format: Format,
        address: u64,
        base: PhysAddr,
        order: u32,
    ) -> bool {
        let Some(root) = self.get(space).map(|s| s.root) else {
            return false;
        };
        let level = (order - 12) / 9 + 1;
        let (place, entry, at) = self.walk(root, format, address, level);
        let mask = ADDRESS & !((1 << order) - 1);
        let ours = at == level
            && format.present(entry)
            && format.is_leaf(entry, at)
            && entry & mask == base.0;
        if ours {
            self.write(place, 0u64);
        }
        ours
    }

    /// What a component's address translates to, for reports and tests: physical address and the
    /// raw leaf.
    pub fn translate(&self, root: PhysAddr, address: u64) -> Option<(PhysAddr, u64)> {
        let (_, entry, at) = self.walk(root, Format::Host, address, 1);
        if !Format::Host.present(entry) || !Format::Host.is_leaf(entry, at) {
            return None;
        }
        let size = 1u64 << (12 + 9 * (at - 1));
        Some((
            PhysAddr((entry & ADDRESS & !(size - 1)) + (address & (size - 1))),
            entry,
        ))
    }
}
