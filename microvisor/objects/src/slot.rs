//! Capability slots and the derivation forest.
//!
//! The forest is kept as lists in pre-order: the entries after a slot with a greater depth are
//! what was derived from it. So a child is inserted, a slot is moved, and a leaf is removed in
//! constant time, and a whole subtree is removed by removing "the next entry while it is deeper",
//! which can stop and go on at any point.

use crate::arena::Arena;
use crate::id::{PhysAddr, Ref};
use microvisor_abi::{Kind, Rights, Status};

/// Where a slot is: physical address / 64. Slots live below 256 GiB. 0 is no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct SlotRef(pub u32);

impl SlotRef {
    /// No slot.
    pub const NONE: SlotRef = SlotRef(0);

    /// The slot's physical address.
    #[inline]
    pub const fn addr(self) -> PhysAddr {
        PhysAddr((self.0 as u64) << 6)
    }

    /// True for a slot, false for [`SlotRef::NONE`].
    #[inline]
    pub const fn is_some(self) -> bool {
        self.0 != 0
    }
}

/// Flags of a slot.
pub mod flag {
    /// Memory that is not RAM.
    pub const DEVICE: u8 = 1;
    /// `space` and `address` record a mapping (or, of `IoPorts`, a grant).
    pub const MAPPED: u8 = 2;
    /// Made by `Retype` (or at boot): deleting this capability destroys the object.
    pub const ORIGINAL: u8 = 4;
    /// `Tables`: donated to the address space in `space`.
    pub const DONATED: u8 = 8;
    /// `CapSpace` being emptied before it is destroyed.
    pub const DYING: u8 = 16;
    /// What it names is in an IOMMU's reach: see `Kernel::settle`.
    pub const IOMMU: u8 = 32;
    /// It was taken back, and `mark` is the ticket to wait for.
    pub const SETTLING: u8 = 64;
}

/// One capability. 64 bytes, so that a frame holds 64.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Slot {
    /// Neighbours in the pre-order list.
    pub(crate) prev: SlotRef,
    pub(crate) next: SlotRef,
    /// Distance from the root of its tree.
    pub(crate) depth: u16,
    /// A [`Kind`], as its number.
    pub(crate) kind: u8,
    pub(crate) rights: Rights,
    /// `Frame`: log2 of its size.
    pub(crate) order: u8,
    pub(crate) flags: u8,
    pub(crate) spare: u16,
    /// Objects: a `Ref`. `Memory`, `Frame`, `Tables`: physical base. Ranges: `first | count << 32`.
    pub(crate) object: u64,
    /// `Endpoint`, `Notification`: badge. `Memory`, `Tables`, `CapSpace`: frames. `Cpu`: highest
    /// priority.
    pub(crate) extra: u64,
    /// `Memory`: frames handed out (low half), frames zeroed ahead of that (high half). With
    /// `SETTLING`: a ticket.
    pub(crate) mark: u64,
    /// Mapping: the address space, as a raw `Ref`.
    pub(crate) space: u64,
    /// Mapping: the virtual address.
    pub(crate) address: u64,
    pub(crate) reserved: u64,
}
const _: () = assert!(core::mem::size_of::<Slot>() == 64);

impl Slot {
    /// An empty slot.
    pub(crate) const EMPTY: Slot = Slot {
        prev: SlotRef::NONE,
        next: SlotRef::NONE,
        depth: 0,
        kind: Kind::Null as u8,
        rights: Rights::NONE,
        order: 0,
        flags: 0,
        spare: 0,
        object: 0,
        extra: 0,
        mark: 0,
        space: 0,
        address: 0,
        reserved: 0,
    };

    /// A capability of this kind with every right, derived from nothing.
    pub(crate) const fn original(kind: Kind, object: u64) -> Slot {
        let mut slot = Slot::EMPTY;
        slot.kind = kind as u8;
        slot.rights = Rights::ALL;
        slot.flags = flag::ORIGINAL;
        slot.object = object;
        slot
    }

    /// The kind.
    #[inline]
    pub(crate) fn kind(&self) -> Kind {
        Kind::from_raw(self.kind).unwrap_or(Kind::Null)
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.kind == Kind::Null as u8
    }

    #[inline]
    pub(crate) fn has_flag(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The object, as a reference of type `T`; the caller has checked the kind.
    #[inline]
    pub(crate) fn object<T>(&self) -> Ref<T> {
        Ref::from_raw(self.object)
    }

    /// First and count of a range capability.
    #[inline]
    pub(crate) fn range(&self) -> (u64, u64) {
        (self.object & 0xffff_ffff, self.object >> 32)
    }
}

impl Arena {
    /// The slot. `slot` was made from a capability space that exists, or from a slot's links.
    #[inline]
    pub(crate) fn slot(&self, slot: SlotRef) -> &Slot {
        // SAFETY: a `SlotRef` that is not NONE is only made from the base of a live capability
        // space and an index below its size, or read from the links of such a slot. A capability
        // space's frames are reused only after every slot in it was emptied and unlinked, so links
        // never lead out. Slots are 64-byte aligned by construction. Callers do not pass NONE.
        unsafe { &*self.pointer(slot.addr()).cast::<Slot>() }
    }

    #[inline]
    pub(crate) fn slot_mut(&mut self, slot: SlotRef) -> &mut Slot {
        // SAFETY: as `slot`; `&mut self` makes it exclusive.
        unsafe { &mut *self.pointer(slot.addr()).cast::<Slot>() }
    }

    /// True if the entry after `slot` was derived from it.
    fn is_above_next(&self, slot: SlotRef) -> bool {
        let this = self.slot(slot);
        this.next.is_some() && self.slot(this.next).depth > this.depth
    }

    /// True if `slot` has anything derived from it.
    pub(crate) fn has_children(&self, slot: SlotRef) -> bool {
        let this = self.slot(slot);
        if !this.next.is_some() || this.next != self.leaving {
            return self.is_above_next(slot);
        }
        // What follows behind the one that leaves is still to pass it, and to go up one level.
        let leaving = self.slot(this.next);
        let behind =
            self.is_above_next(this.next) && self.slot(leaving.next).depth - 1 > this.depth;
        leaving.depth > this.depth || behind
    }

    /// True for the capability whose children are being handed up.
    pub(crate) fn is_leaving(&self, slot: SlotRef) -> bool {
        slot == self.leaving
    }

    /// Puts a capability into the empty slot `to`, derived from `parent` (or from nothing).
    pub(crate) fn insert(
        &mut self,
        parent: SlotRef,
        to: SlotRef,
        mut cap: Slot,
    ) -> Result<(), Status> {
        cap.prev = parent;
        cap.next = SlotRef::NONE;
        cap.depth = 0;
        if parent.is_some() {
            let above = self.slot(parent);
            cap.depth = above.depth.checked_add(1).ok_or(Status::TooDeep)?;
            cap.next = above.next;
        }
        let next = cap.next;
        *self.slot_mut(to) = cap;
        if parent.is_some() {
            self.slot_mut(parent).next = to;
        }
        if next.is_some() {
            self.slot_mut(next).prev = to;
        }
        Ok(())
    }

    /// Takes a slot out of its list and empties it. What was derived from it stays in the list.
    pub(crate) fn remove(&mut self, slot: SlotRef) {
        let Slot { prev, next, .. } = *self.slot(slot);
        if prev.is_some() {
            self.slot_mut(prev).next = next;
        }
        if next.is_some() {
            self.slot_mut(next).prev = prev;
        }
        *self.slot_mut(slot) = Slot::EMPTY;
        if slot == self.leaving {
            self.leaving = SlotRef::NONE;
        }
        self.revise();
    }

    /// One step of handing what was derived from `slot` to its parent. If another capability's
    /// children are being handed up already, it is a step of that: there is one at a time, because
    /// until it is through, entries that it has passed may have children behind it.
    pub(crate) fn pass_up(&mut self, slot: SlotRef) {
        if !self.leaving.is_some() {
            self.leaving = slot;
        }
        let leaving = self.leaving;
        if self.is_above_next(leaving) {
            self.pass_up_one(leaving);
        }
        if !self.is_above_next(leaving) {
            self.leaving = SlotRef::NONE;
        }
    }

    /// The first entry below `slot` moves before it, one level up. When nothing is left below, every
    /// entry has kept its place relative to the others.
    fn pass_up_one(&mut self, slot: SlotRef) {
        let Slot {
            prev, next: child, ..
        } = *self.slot(slot);
        let after = self.slot(child).next;
        if prev.is_some() {
            self.slot_mut(prev).next = child;
        }
        let c = self.slot_mut(child);
        c.prev = prev;
        c.next = slot;
        c.depth -= 1;
        let s = self.slot_mut(slot);
        s.prev = child;
        s.next = after;
        if after.is_some() {
            self.slot_mut(after).prev = slot;
        }
    }

    /// Moves a capability, with its place in the forest, to the empty slot `to`.
    pub(crate) fn relocate(&mut self, from: SlotRef, to: SlotRef) {
        let cap = *self.slot(from);
        *self.slot_mut(to) = cap;
        if cap.prev.is_some() {
            self.slot_mut(cap.prev).next = to;
        }
        if cap.next.is_some() {
            self.slot_mut(cap.next).prev = to;
        }
        *self.slot_mut(from) = Slot::EMPTY;
        if from == self.leaving {
            self.leaving = to;
        }
        self.revise();
    }
}
