//! Capability spaces: looking capabilities up, deriving, moving and deleting them.

use crate::arena::{Arena, Object};
use crate::id::{FrameKind, PhysAddr, Ref};
use crate::kernel::Kernel;
use crate::machine::{Flush, Machine};
use crate::slot::{Slot, SlotRef, flag};
use crate::thread::Thread;
use microvisor_abi::{Kind, Rights, Status};

/// Header of a capability space. It takes the first 64 bytes; slot 0 follows.
#[derive(Debug)]
#[repr(C)]
pub struct CapSpace {
    /// Slots, number 0 included.
    pub(crate) slots: u64,
    /// Next slot to look at while the space is emptied.
    cursor: u64,
}

// SAFETY: `repr(C)`, words, valid when zero, 16 bytes; the only object of this kind.
unsafe impl Object for CapSpace {
    const KIND: FrameKind = FrameKind::CapSpace;
}

/// Slots in one frame.
pub const SLOTS_PER_FRAME: u64 = 64;
/// Capabilities that one call deletes at most before it asks to be called again. The refinement's
/// worlds are small: there it stops sooner, so that others call meanwhile.
const DELETE_STEPS: usize = if cfg!(test) { 3 } else { 64 };

impl Arena {
    /// The slot with this number, which may be empty.
    #[inline]
    pub(crate) fn slot_in(&self, space: Ref<CapSpace>, slot: u32) -> Result<SlotRef, Status> {
        let header = self.get(space).ok_or(Status::InvalidCap)?;
        if slot == 0 || slot as u64 >= header.slots {
            return Err(Status::InvalidCap);
        }
        Ok(SlotRef(home(space).0 + slot))
    }

    /// Kind, rights and object of a slot, readable without the kernel lock.
    #[inline]
    pub(crate) fn peek(&self, slot: SlotRef) -> (u8, Rights, u64) {
        let addr = slot.addr();
        let kind = self.read(addr.add(core::mem::offset_of!(Slot, kind) as u64));
        let rights = self.read(addr.add(core::mem::offset_of!(Slot, rights) as u64));
        let object = self.read(addr.add(core::mem::offset_of!(Slot, object) as u64));
        (kind, Rights(rights), object)
    }

    /// Makes a capability space of `frames` frames at `at`, which are zero.
    pub(crate) fn create_cap_space(&mut self, at: PhysAddr, frames: u64) -> Ref<CapSpace> {
        let space = self.create::<CapSpace>(at);
        if let Some(header) = self.get_mut(space) {
            header.slots = frames * SLOTS_PER_FRAME - 1;
            header.cursor = 1;
        }
        space
    }
}

impl<M: Machine> Kernel<M> {
    /// The slot of a thread's own space.
    #[inline]
    pub(crate) fn slot_of(&self, thread: Ref<Thread>, slot: u32) -> Result<SlotRef, Status> {
        let caps = self.arena.get(thread).ok_or(Status::InvalidCap)?.caps;
        self.arena.slot_in(caps, slot)
    }

    /// The slot named by an argument word, holding a capability.
    #[inline]
    pub(crate) fn cap(&self, thread: Ref<Thread>, word: u64) -> Result<SlotRef, Status> {
        let slot = self.slot_of(thread, u32::try_from(word).map_err(|_| Status::InvalidCap)?)?;
        if self.arena.slot(slot).is_empty() {
            Err(Status::InvalidCap)
        } else {
            Ok(slot)
        }
    }

    /// The capability named by an argument word, of this kind and with these rights.
    #[inline]
    pub(crate) fn cap_of(
        &self,
        thread: Ref<Thread>,
        word: u64,
        kind: Kind,
        rights: Rights,
    ) -> Result<SlotRef, Status> {
        let slot = self.cap(thread, word)?;
        let cap = self.arena.slot(slot);
        if cap.kind != kind as u8 && cfg!(not(control = "kind")) {
            return Err(Status::WrongKind);
        }
        if !cap.rights.has(rights) && cfg!(not(control = "rights")) {
            return Err(Status::NoRight);
        }
        Ok(slot)
    }

    /// The object that the capability names.
    #[inline]
    pub(crate) fn object<T: Object>(
        &self,
        thread: Ref<Thread>,
        word: u64,
        kind: Kind,
        rights: Rights,
    ) -> Result<Ref<T>, Status> {
        let slot = self.cap_of(thread, word, kind, rights)?;
        let cap = self.arena.slot(slot);
        let object = cap.object::<T>();
        // A space that is being emptied takes nothing in any more.
        if self.arena.alive(object) && !cap.has_flag(flag::DYING) {
            Ok(object)
        } else {
            Err(Status::InvalidCap)
        }
    }

    /// A slot in the space that `space` names (0: the caller's own).
    pub(crate) fn place(
        &self,
        thread: Ref<Thread>,
        space: u64,
        slot: u64,
    ) -> Result<SlotRef, Status> {
        let slot = u32::try_from(slot).map_err(|_| Status::InvalidCap)?;
        if space == 0 {
            return self.slot_of(thread, slot);
        }
        let space: Ref<CapSpace> = self.object(thread, space, Kind::CapSpace, Rights::USE)?;
        self.arena.slot_in(space, slot)
    }

    /// As [`Kernel::place`], and the slot must be empty.
    pub(crate) fn empty_place(
        &self,
        thread: Ref<Thread>,
        space: u64,
        slot: u64,
    ) -> Result<SlotRef, Status> {
        let slot = self.place(thread, space, slot)?;
        if self.arena.slot(slot).is_empty() {
            Ok(slot)
        } else {
            Err(Status::SlotOccupied)
        }
    }

    /// `Inspect`.
    pub(crate) fn inspect(&self, slot: SlotRef) -> microvisor_abi::cap::Slot {
        let cap = self.arena.slot(slot);
        let kind = cap.kind();
        let (number, more) = match kind {
            Kind::Endpoint | Kind::Notification | Kind::Tables | Kind::CapSpace => (cap.extra, 0),
            // What was made of it may all be gone: then the next `Retype` starts over.
            Kind::Memory if !self.arena.has_children(slot) => (cap.extra, 0),
            Kind::Memory => (cap.extra, cap.mark & 0xffff_ffff),
            Kind::IoPorts => (cap.object, 0),
            Kind::Interrupt => (cap.object, self.message_of(slot)),
            Kind::Device => (cap.object, self.device_word(slot)),
            Kind::Cpu => (cap.object, cap.extra),
            _ => (0, 0),
        };
        microvisor_abi::cap::Slot {
            kind,
            rights: cap.rights,
            order: cap.order,
            // To something that exists: an address space, or whoever has the ports.
            mapped: cap.has_flag(flag::MAPPED) && self.arena.alive(Ref::<()>::from_raw(cap.space)),
            number,
            more,
        }
    }

    /// Puts a child of `source` with at most `rights` into the empty slot `to`.
    pub(crate) fn derive(
        &mut self,
        source: SlotRef,
        to: SlotRef,
        rights: Rights,
    ) -> Result<(), Status> {
        let mut cap = *self.arena.slot(source);
        cap.rights = cap.rights.and(rights);
        cap.flags &= flag::DEVICE | flag::DYING;
        cap.space = 0;
        cap.address = 0;
        if matches!(cap.kind(), Kind::Memory | Kind::Tables) {
            // These are unique: a second name for the same untyped memory would amplify.
            return Err(Status::WrongKind);
        }
        self.arena.insert(source, to, cap)
    }

    /// `Copy`.
    pub(crate) fn copy(
        &mut self,
        source: SlotRef,
        to: SlotRef,
        rights: Rights,
        badge: u64,
        order: u64,
    ) -> Result<(), Status> {
        let cap = *self.arena.slot(source);
        let mut child = cap;
        child.rights = match cfg!(control = "amplify") {
            true => rights,
            false => cap.rights.and(rights),
        };
        child.flags &= flag::DEVICE | flag::DYING;
        child.space = 0;
        child.address = 0;
        match cap.kind() {
            Kind::Null => return Err(Status::InvalidCap),
            Kind::Memory | Kind::Tables => return Err(Status::WrongKind),
            Kind::Endpoint | Kind::Notification => {
                if badge != 0 && cap.extra != 0 {
                    return Err(Status::InvalidArgument);
                }
                if badge != 0 {
                    child.extra = badge;
                }
            }
            Kind::Frame if order != 0 => {
                let size = 1u64.checked_shl(order as u32).unwrap_or(0);
                let whole = 1u64 << cap.order;
                let room = whole + u64::from(cfg!(planted = "sub-frame-escapes")) * 4096;
                let inside = badge.checked_add(size).is_some_and(|end| end <= room);
                if !matches!(order, 12 | 21 | 30) || !inside || !badge.is_multiple_of(size) {
                    return Err(Status::InvalidArgument);
                }
                child.object = cap.object + badge;
                child.order = order as u8;
            }
            Kind::IoPorts | Kind::Interrupt | Kind::Device | Kind::Cpu if badge != 0 => {
                let (first, count) = cap.range();
                let (sub, length) = (badge & 0xffff_ffff, badge >> 32);
                if length == 0 || sub < first || sub + length > first + count {
                    return Err(Status::InvalidArgument);
                }
                child.object = badge;
            }
            _ => {}
        }
        if cap.kind() == Kind::Cpu {
            child.extra = cap.extra.min(order);
        }
        self.arena.insert(source, to, child)
    }

    /// `Delete` (with `itself`) and `Revoke` (without). Bounded: `Again` when more is left.
    pub(crate) fn delete(&mut self, slot: SlotRef, itself: bool) -> Result<(), Status> {
        let done = self.delete_some(slot, itself);
        // Nothing was made of what was freed meanwhile: the lock was held.
        self.pay();
        done
    }

    fn delete_some(&mut self, slot: SlotRef, itself: bool) -> Result<(), Status> {
        for _ in 0..DELETE_STEPS {
            let this = self.arena.slot(slot);
            if this.is_empty() {
                return Ok(());
            }
            if self.arena.has_children(slot) && cfg!(not(control = "revoke")) {
                let child = this.next;
                let leaf = !self.arena.has_children(child);
                if cfg!(planted = "revoke-skips-a-child") && !itself && leaf {
                    return Ok(());
                }
                if self.arena.is_leaving(child) {
                    self.arena.pass_up(child);
                } else {
                    self.remove_child(child)?;
                }
            } else if !itself {
                return Ok(());
            } else if !is_cap_space(this) {
                self.finalise(slot)?;
                self.arena.remove(slot);
            } else if !self.empty_one(slot)? {
                self.end_cap_space(slot);
            }
        }
        Err(Status::Again)
    }

    /// One step towards removing a capability below the one that is deleted.
    fn remove_child(&mut self, child: SlotRef) -> Result<(), Status> {
        let cap = *self.arena.slot(child);
        if !is_cap_space(&cap) {
            self.finalise(child)?;
            self.arena.remove(child);
        } else if child != home(cap.object()) {
            self.shelve(child);
        } else if !self.empty_one(child)? {
            self.end_cap_space(child);
        }
        Ok(())
    }

    /// One step towards emptying the space whose original name is in `name`; false when it holds
    /// nothing else. It stops resolving at the first step. What its capabilities had derived for
    /// others is handed to their parents: losing a space is not revoking what it gave away.
    fn empty_one(&mut self, name: SlotRef) -> Result<bool, Status> {
        self.kill_cap_space(name);
        let space = self.arena.slot(name).object::<CapSpace>();
        // Looks at no more slots than a frame holds per step.
        for _ in 0..SLOTS_PER_FRAME {
            let Some(header) = self.arena.get(space) else {
                return Ok(false);
            };
            if header.cursor >= header.slots {
                return Ok(false);
            }
            let inner = SlotRef(home(space).0 + header.cursor as u32);
            if inner == name || self.arena.slot(inner).is_empty() {
                if let Some(header) = self.arena.get_mut(space) {
                    header.cursor += 1;
                }
                continue;
            }
            if self.arena.has_children(inner) {
                self.arena.pass_up(inner);
            } else if is_cap_space(self.arena.slot(inner)) {
                self.shelve(inner);
            } else {
                self.finalise(inner)?;
                self.arena.remove(inner);
            }
            return Ok(true);
        }
        Ok(true)
    }

    /// The space stops resolving: threads that use it and capabilities that name it find nothing.
    fn kill_cap_space(&mut self, name: SlotRef) {
        let cap = self.arena.slot(name);
        if cap.has_flag(flag::DYING) {
            return;
        }
        let space = cap.object::<CapSpace>();
        let tag = self.arena.retag(space.addr(), FrameKind::CapSpace);
        let cap = self.arena.slot_mut(name);
        cap.flags |= flag::DYING;
        cap.object = Ref::<CapSpace>::new(space.addr().frame() as u32, tag).raw();
    }

    /// A space loses the place where its original name was. The name moves into the space itself,
    /// which stays, dead, below its memory until that is revoked.
    fn shelve(&mut self, name: SlotRef) {
        self.kill_cap_space(name);
        let space = self.arena.slot(name).object::<CapSpace>();
        self.arena.relocate(name, home(space));
    }

    fn end_cap_space(&mut self, name: SlotRef) {
        let space = self.arena.slot(name).object::<CapSpace>();
        self.arena.remove(name);
        self.arena.destroy(space);
        // A CPU about to run a vCPU may be reading one of its slots without the lock.
        self.owe(Flush::Quiesce);
    }
}

/// True for the capability whose deletion destroys a capability space.
fn is_cap_space(cap: &Slot) -> bool {
    cap.kind() == Kind::CapSpace && cap.has_flag(flag::ORIGINAL)
}

/// The place inside a space for its own name once that has no other: number 0, which calls never
/// resolve.
fn home(space: Ref<CapSpace>) -> SlotRef {
    SlotRef((space.addr().0 >> 6) as u32 + 1)
}
