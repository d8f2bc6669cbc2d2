//! Capabilities come from capabilities: `Copy`, `Move`, `Delete`, `Revoke`, `Inspect`.

use crate::lookup::{Checked, require};
use crate::state::{Cap, Place, State, What};
use microvisor_abi::cap::Slot;
use microvisor_abi::{Kind, Rights, Status};

/// Generations of derivation below an original given at boot.
const DEPTH_MAX: usize = u16::MAX as usize;

impl State {
    /// How many capabilities are above this one.
    pub fn depth(&self, place: Place) -> usize {
        let mut depth = 0;
        let mut above = self.at(place).parent;
        while let Some(parent) = above {
            depth += 1;
            above = self.at(parent).parent;
        }
        depth
    }

    /// `TooDeep` if nothing more can be derived from this capability.
    pub(crate) fn may_have_child(&self, place: Place) -> Checked<()> {
        require(self.depth(place) < DEPTH_MAX, Status::TooDeep)
    }

    /// Puts `cap` into an empty place, as the newest child of `parent`.
    pub(crate) fn insert(&mut self, parent: Place, to: Place, cap: Cap) {
        let cap = Cap {
            parent: Some(parent),
            children: Vec::new(),
            ..cap
        };
        self.caps.insert(to, cap);
        self.at_mut(parent).children.insert(0, to);
    }

    /// A copy as `Copy` and messages make it: no mapping, not the original.
    /// `Memory` and `Tables` have only one name: a second one would let its holder make of the same
    /// memory something else (`WrongKind`).
    pub(crate) fn child_of(&self, source: Place) -> Checked<Cap> {
        let cap = self.at(source);
        let unique = matches!(cap.kind(), Kind::Memory | Kind::Tables);
        require(!unique, Status::WrongKind)?;
        let mut child = cap.clone();
        child.original = false;
        child.mapped = None;
        child.settling = false;
        Ok(child)
    }

    /// `Copy(source, space, slot, rights, badge, order)`.
    ///
    /// A child of `source` with the rights that are both in `source` and in `rights`: never more.
    /// - `InvalidArgument`: a badge for what has one; a sub-frame that is not aligned to its size,
    ///   of no size that exists, or not inside; a range that is empty or not inside.
    /// - `WrongKind`: `source` is a `Memory` or `Tables`.
    pub(crate) fn copy(&mut self, me: u64, a: [u64; 6]) -> Checked<()> {
        let [source, space, slot, rights, badge, order] = a;
        let source = self.cap(me, source)?;
        let to = self.empty_place(me, space, slot)?;
        let mut child = self.child_of(source)?;
        child.rights &= rights as u8;
        match &mut child.what {
            What::Object {
                kind: Kind::Endpoint | Kind::Notification,
                number,
                ..
            } => {
                require(badge == 0 || *number == 0, Status::InvalidArgument)?;
                *number |= badge;
            }
            What::Page {
                base, order: whole, ..
            } if order != 0 => {
                require(matches!(order, 12 | 21 | 30), Status::InvalidArgument)?;
                let size = 1u64 << order;
                let inside = badge
                    .checked_add(size)
                    .is_some_and(|end| end <= 1 << *whole);
                require(
                    inside && badge.is_multiple_of(size),
                    Status::InvalidArgument,
                )?;
                *base += badge >> 12;
                *whole = order as u8;
            }
            What::Range {
                kind,
                first,
                count,
                highest,
            } if badge != 0 => {
                let (sub, length) = (badge & 0xffff_ffff, badge >> 32);
                let inside = length != 0 && sub >= *first && sub + length <= *first + *count;
                require(inside, Status::InvalidArgument)?;
                (*first, *count) = (sub, length);
            }
            _ => {}
        }
        if let What::Range {
            kind: Kind::Cpu,
            highest,
            ..
        } = &mut child.what
        {
            *highest = order.min(*highest);
        }
        self.may_have_child(source)?;
        self.insert(source, to, child);
        Ok(())
    }

    /// `Move(source_space, source, space, slot)`: the capability keeps its place in the forest, its
    /// mapping and the lines bound through it.
    pub(crate) fn move_cap(&mut self, me: u64, a: [u64; 6]) -> Checked<()> {
        let source = self.place(me, a[0], a[1])?;
        require(self.caps.contains_key(&source), Status::InvalidCap)?;
        let to = self.empty_place(me, a[2], a[3])?;
        self.relocate(source, to);
        Ok(())
    }

    pub(crate) fn relocate(&mut self, from: Place, to: Place) {
        let cap = self.caps.remove(&from).expect("a capability moves");
        for child in &cap.children {
            self.at_mut(*child).parent = Some(to);
        }
        if let Some(parent) = cap.parent {
            let rename = |place: &mut Place| {
                if *place == from {
                    *place = to;
                }
            };
            self.at_mut(parent).children.iter_mut().for_each(rename);
        }
        let lines = self.lines.values_mut().map(|line| &mut line.owner);
        let devices = self.devices.values_mut().map(|device| &mut device.owner);
        let sources = self.sources.values_mut();
        let sources = sources.flat_map(|s| [&mut s.interrupt, &mut s.device]);
        for name in lines.chain(devices).chain(sources) {
            if *name == from {
                *name = to;
            }
        }
        self.caps.insert(to, cap);
    }

    /// `Delete(space, slot)` with `itself`, `Revoke(space, slot)` without. An empty slot is fine.
    ///
    /// Removes everything derived from the capability, ancestors first, newest first; then, for
    /// `Delete`, the capability. What removing one does is in [`State::finalise`]. A capability
    /// space is emptied before it goes:
    /// what its capabilities had derived for others stays, as children of *their* parents (losing a
    /// space is not revoking what it gave away), and spaces whose own name was in it live on, dead,
    /// below their memory.
    ///
    /// `Again`: some of this was done. The same call goes on. `Timeout`: as far as it could be done;
    /// what an IOMMU may still reach, which does not answer, stays.
    pub(crate) fn delete(&mut self, me: u64, a: [u64; 6], itself: bool) -> Checked<()> {
        let place = self.place(me, a[0], a[1])?;
        self.remove_below(place, itself);
        Ok(())
    }

    fn remove_below(&mut self, place: Place, itself: bool) {
        while let Some(cap) = self.caps.get(&place) {
            match cap.children.first() {
                Some(&child) => self.remove_child(child, place),
                None if !itself => return,
                None if cap.is_space_itself() => self.empty_space(place, place),
                None => self.remove_one(place),
            }
        }
    }

    /// One step towards removing a capability below `root`.
    fn remove_child(&mut self, child: Place, root: Place) {
        if !self.at(child).is_space_itself() {
            self.remove_one(child);
        } else if child.slot != 0 {
            self.shelve(child);
        } else {
            self.empty_space(child, root);
        }
    }

    /// The capability ends. Its children, if any, become its parent's, where they were.
    fn remove_one(&mut self, place: Place) {
        self.finalise(place);
        self.pass_up(place);
        self.take_out(place);
    }

    /// Hands the children of a capability to its parent; each keeps what was derived from it.
    fn pass_up(&mut self, place: Place) {
        let children = std::mem::take(&mut self.at_mut(place).children);
        let parent = self.at(place).parent;
        for child in &children {
            self.at_mut(*child).parent = parent;
        }
        if let Some(parent) = parent {
            let above = &mut self.at_mut(parent).children;
            if let Some(at) = above.iter().position(|c| *c == place) {
                above.splice(at..at, children);
            }
        }
    }

    /// Takes a capability without children out of the forest.
    fn take_out(&mut self, place: Place) {
        let parent = self.caps.remove(&place).and_then(|cap| cap.parent);
        if let Some(parent) = parent {
            self.lose_child(parent, place);
        }
    }

    fn lose_child(&mut self, parent: Place, child: Place) {
        let Some(parent) = self.caps.get_mut(&parent) else {
            return;
        };
        parent.children.retain(|c| *c != child);
        if let What::Untyped { used, .. } = &mut parent.what
            && parent.children.is_empty()
        {
            // Nothing made of it is left: all of it may be used again.
            *used = 0;
        }
    }

    /// One step towards the end of the capability space whose own name is in `name`: it stops
    /// resolving, then loses its capabilities in order, then it is gone. If what is being deleted, `root`,
    /// is in it, the space outlives that, dead: its name goes to the parent of `root`.
    fn empty_space(&mut self, name: Place, root: Place) {
        let space = self.at(name).object().expect("its own name");
        self.kill_space(space);
        let slots = Place { space, slot: 1 }..Place {
            space: space + 1,
            slot: 0,
        };
        let inner = self.caps.range(slots).map(|(place, _)| *place);
        match inner.filter(|place| *place != name).min() {
            None => {
                // Copies of the name are below whatever is being deleted, too.
                self.pass_up(name);
                self.take_out(name);
                self.cap_spaces.remove(&space);
            }
            Some(inner) if inner == root && name != root => {
                self.pass_up(name);
                self.lose_child(root, name);
                let parent = self.at(root).parent;
                self.at_mut(name).parent = parent;
                if let Some(parent) = parent {
                    let above = &mut self.at_mut(parent).children;
                    let at = above.iter().position(|c| *c == root).unwrap_or(0);
                    above.insert(at, name);
                }
            }
            Some(inner) => {
                self.pass_up(inner);
                if self.at(inner).is_space_itself() {
                    self.shelve(inner);
                } else {
                    self.remove_one(inner);
                }
            }
        }
    }

    /// From now on the space resolves nothing: copies of its name and threads that use it find
    /// nothing.
    fn kill_space(&mut self, space: u64) {
        if let Some(table) = self.cap_spaces.get_mut(&space) {
            table.dead = true;
        }
        self.forget(Kind::CapSpace, space);
    }

    /// A space lost the place of its own name: the name moves into the space, which is dead now.
    fn shelve(&mut self, name: Place) {
        let space = self.at(name).object().expect("its own name");
        self.kill_space(space);
        self.relocate(name, Place { space, slot: 0 });
    }

    /// `Inspect(space, slot)`: what is in a slot, an empty one included, as `cap::Slot`.
    pub(crate) fn inspect(&mut self, me: u64, a: [u64; 6]) -> Checked<()> {
        let place = self.place(me, a[0], a[1])?;
        let mut told = Slot {
            kind: Kind::Null,
            rights: Rights::NONE,
            order: 0,
            mapped: false,
            number: 0,
            more: 0,
        };
        if let Some(cap) = self.caps.get(&place) {
            told.kind = cap.kind();
            told.rights = Rights(cap.rights);
            told.mapped = cap.mapped.is_some();
            match cap.what {
                What::Untyped { frames, used, .. } => (told.number, told.more) = (frames, used),
                What::Page { order, .. } => told.order = order,
                What::Tables { frames, .. } => told.number = frames,
                What::Object { number, .. } => told.number = number,
                What::Range {
                    first,
                    count,
                    highest,
                    ..
                } => (told.number, told.more) = (first | count << 32, highest),
            }
            match told.kind {
                Kind::Interrupt => told.more = self.message_of(place),
                Kind::Device => told.more = self.device_word(place),
                _ => {}
            }
        }
        self.thread_mut(me).words[..3].copy_from_slice(&told.words());
        Ok(())
    }
}
