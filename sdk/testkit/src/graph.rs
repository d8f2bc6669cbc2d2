//! Objects and capabilities of a simulated system: who holds what, and what was derived from what.
//! Called by the kit's system calls; knows nothing of threads. The rules are those of
//! `microvisor/objects`: a copy is a child with at most its parent's rights, deleting a capability
//! deletes what was derived from it, deleting an object's first name destroys the object.

use std::collections::BTreeMap;

use microvisor_abi::{Kind, Rights, Status};
use sdk::host::Page;

/// An object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ObjectId(pub usize);

/// A capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CapId(usize);

/// What only objects of one kind have.
pub(crate) enum State {
    /// How often its server was replaced.
    Endpoint { epoch: u32 },
    /// The thread that waits for this answer.
    Reply { caller: Option<usize> },
    /// Its bits, and the thread that hears them where it receives.
    Notification { bits: u64, bound: Option<usize> },
    /// What is in it.
    Frame { page: &'static Page },
    /// The notification it signals, and the bits.
    Interrupt { to: Option<(ObjectId, u64)> },
    /// Ports: first and count.
    Ports { first: u16, count: u16 },
    /// Anything else.
    Plain,
}

pub(crate) struct Object {
    pub kind: Kind,
    pub state: State,
    /// For reports.
    pub name: String,
    /// The component whose memory it was made of; it goes with that.
    pub made_by: Option<usize>,
    alive: bool,
    /// Its first name.
    original: Option<CapId>,
}

#[derive(Clone)]
pub(crate) struct Cap {
    pub object: ObjectId,
    pub rights: Rights,
    pub badge: u64,
    pub mapped: Option<u64>,
    /// How its holder came by it, for reports.
    pub how: String,
    parent: Option<CapId>,
    /// Component and slot.
    place: Option<(usize, u32)>,
}

/// All objects and capabilities.
#[derive(Default)]
pub(crate) struct Graph {
    objects: Vec<Object>,
    caps: Vec<Option<Cap>>,
    /// Slots of each component.
    spaces: Vec<BTreeMap<u32, CapId>>,
}

impl Graph {
    pub fn add_space(&mut self) -> usize {
        self.spaces.push(BTreeMap::new());
        self.spaces.len() - 1
    }

    /// A new object. Its first name is in nobody's slot, which is how root holds things, or in
    /// `place`.
    pub fn make(
        &mut self,
        kind: Kind,
        state: State,
        name: String,
        made_by: Option<usize>,
        place: Option<(usize, u32)>,
    ) -> CapId {
        let object = ObjectId(self.objects.len());
        let how = format!("made {name}");
        self.objects.push(Object {
            kind,
            state,
            name,
            made_by,
            alive: true,
            original: None,
        });
        let cap = self.add(Cap {
            object,
            rights: Rights::ALL,
            badge: 0,
            mapped: None,
            how,
            parent: None,
            place,
        });
        self.objects[object.0].original = Some(cap);
        cap
    }

    fn add(&mut self, cap: Cap) -> CapId {
        let id = CapId(self.caps.len());
        if let Some((space, slot)) = cap.place {
            self.spaces[space].insert(slot, id);
        }
        self.caps.push(Some(cap));
        id
    }

    pub fn object(&self, id: ObjectId) -> &Object {
        &self.objects[id.0]
    }

    pub fn object_mut(&mut self, id: ObjectId) -> &mut Object {
        &mut self.objects[id.0]
    }

    pub fn is_alive(&self, id: ObjectId) -> bool {
        self.objects[id.0].alive
    }

    pub fn cap(&self, id: CapId) -> Option<&Cap> {
        self.caps.get(id.0).and_then(Option::as_ref)
    }

    pub fn cap_mut(&mut self, id: CapId) -> Option<&mut Cap> {
        self.caps.get_mut(id.0).and_then(Option::as_mut)
    }

    pub fn at(&self, space: usize, slot: u32) -> Option<CapId> {
        self.spaces.get(space)?.get(&slot).copied()
    }

    /// What is in a slot, if it is of this kind and has these rights.
    pub fn find(
        &self,
        space: usize,
        slot: u64,
        kind: Kind,
        rights: Rights,
    ) -> Result<CapId, Status> {
        let id = self.any(space, slot)?;
        let cap = self.cap(id).ok_or(Status::InvalidCap)?;
        if self.objects[cap.object.0].kind != kind {
            return Err(Status::WrongKind);
        }
        if !self.is_alive(cap.object) {
            return Err(Status::InvalidCap);
        }
        if !cap.rights.has(rights) {
            return Err(Status::NoRight);
        }
        Ok(id)
    }

    /// What is in a slot.
    pub fn any(&self, space: usize, slot: u64) -> Result<CapId, Status> {
        u32::try_from(slot)
            .ok()
            .and_then(|slot| self.at(space, slot))
            .ok_or(Status::InvalidCap)
    }

    /// A child in an empty slot.
    pub fn derive(
        &mut self,
        source: CapId,
        (space, slot): (usize, u32),
        rights: Rights,
        badge: u64,
        how: String,
    ) -> Result<CapId, Status> {
        let cap = self.cap(source).ok_or(Status::InvalidCap)?.clone();
        let kind = self.objects[cap.object.0].kind;
        if matches!(kind, Kind::Memory | Kind::Tables) {
            return Err(Status::WrongKind);
        }
        let named = matches!(kind, Kind::Endpoint | Kind::Notification);
        if named && badge != 0 && cap.badge != 0 {
            return Err(Status::InvalidArgument);
        }
        if slot == 0 || self.at(space, slot).is_some() {
            return Err(Status::SlotOccupied);
        }
        Ok(self.add(Cap {
            rights: cap.rights.and(rights),
            badge: if named && badge != 0 {
                badge
            } else {
                cap.badge
            },
            mapped: None,
            how,
            parent: Some(source),
            place: Some((space, slot)),
            ..cap
        }))
    }

    /// Moves a capability to an empty slot of the same component.
    pub fn shift(&mut self, id: CapId, slot: u32) -> Result<(), Status> {
        let (space, old) = self
            .cap(id)
            .and_then(|cap| cap.place)
            .ok_or(Status::InvalidCap)?;
        if slot == 0 || self.at(space, slot).is_some() {
            return Err(Status::SlotOccupied);
        }
        self.spaces[space].remove(&old);
        self.spaces[space].insert(slot, id);
        if let Some(cap) = self.cap_mut(id) {
            cap.place = Some((space, slot));
        }
        Ok(())
    }

    fn children(&self, parent: CapId) -> Vec<CapId> {
        let is_child = |cap: &Option<Cap>| cap.as_ref().is_some_and(|c| c.parent == Some(parent));
        let numbers = self.caps.iter().enumerate();
        numbers
            .filter(|(_, cap)| is_child(cap))
            .map(|(n, _)| CapId(n))
            .collect()
    }

    /// Deletes all that was derived from a capability; answers the objects that went.
    pub fn revoke(&mut self, id: CapId) -> Vec<ObjectId> {
        let children = self.children(id);
        children.into_iter().flat_map(|c| self.delete(c)).collect()
    }

    /// Deletes a capability and all that was derived from it; answers the objects that went.
    pub fn delete(&mut self, id: CapId) -> Vec<ObjectId> {
        let mut gone = self.revoke(id);
        gone.extend(self.remove(id));
        gone
    }

    fn remove(&mut self, id: CapId) -> Option<ObjectId> {
        let cap = self.caps.get_mut(id.0)?.take()?;
        if let Some((space, slot)) = cap.place {
            self.spaces[space].remove(&slot);
        }
        let object = &mut self.objects[cap.object.0];
        (object.original == Some(id)).then(|| {
            object.alive = false;
            cap.object
        })
    }

    /// A component goes: what was made of its memory is destroyed, and its slots are emptied; what
    /// it had passed on of others' stays. Answers the objects that went.
    pub fn end_space(&mut self, space: usize) -> Vec<ObjectId> {
        let made: Vec<CapId> = self
            .objects
            .iter()
            .filter(|object| object.made_by == Some(space) && object.alive)
            .filter_map(|object| object.original)
            .collect();
        let mut gone: Vec<ObjectId> = made.into_iter().flat_map(|id| self.delete(id)).collect();
        let held: Vec<CapId> = self.spaces[space].values().copied().collect();
        for id in held {
            let parent = self.cap(id).and_then(|cap| cap.parent);
            for child in self.children(id) {
                if let Some(cap) = self.cap_mut(child) {
                    cap.parent = parent;
                }
            }
            gone.extend(self.remove(id));
        }
        gone
    }

    /// What a component holds, by slot.
    pub fn held(&self, space: usize) -> impl Iterator<Item = (u32, &Cap, &Object)> {
        let slots = self.spaces.get(space).into_iter().flatten();
        slots.filter_map(|(slot, id)| {
            let cap = self.cap(*id)?;
            Some((*slot, cap, self.objects.get(cap.object.0)?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notification(graph: &mut Graph, made_by: Option<usize>) -> CapId {
        let state = State::Notification {
            bits: 0,
            bound: None,
        };
        graph.make(Kind::Notification, state, "n".into(), made_by, None)
    }

    fn give(graph: &mut Graph, cap: CapId, place: (usize, u32), badge: u64) -> CapId {
        let how = String::new();
        graph.derive(cap, place, Rights::ALL, badge, how).unwrap()
    }

    #[test]
    fn revoke_reaches_grandchildren_in_other_spaces() {
        let mut graph = Graph::default();
        let (a, b) = (graph.add_space(), graph.add_space());
        let root = notification(&mut graph, None);
        let child = give(&mut graph, root, (a, 5), 0);
        give(&mut graph, child, (b, 6), 0);
        assert!(graph.revoke(root).is_empty());
        assert_eq!((graph.held(a).count(), graph.held(b).count()), (0, 0));
    }

    #[test]
    fn what_a_dead_component_passed_on_of_others_stays() {
        let mut graph = Graph::default();
        let (a, b) = (graph.add_space(), graph.add_space());
        let (lent, own) = (
            notification(&mut graph, None),
            notification(&mut graph, Some(a)),
        );
        for (object, slot) in [(lent, 5), (own, 6)] {
            let first = give(&mut graph, object, (a, slot), 0);
            give(&mut graph, first, (b, slot), 0);
        }
        assert_eq!(graph.end_space(a).len(), 1);
        assert_eq!(graph.held(a).count(), 0);
        let left: Vec<u32> = graph.held(b).map(|(slot, ..)| slot).collect();
        assert_eq!(left, [5]);
    }

    #[test]
    fn a_badge_is_given_once_and_rights_only_shrink() {
        let mut graph = Graph::default();
        let a = graph.add_space();
        let root = notification(&mut graph, None);
        let badged = give(&mut graph, root, (a, 5), 8);
        let again = graph.derive(badged, (a, 6), Rights::ALL, 4, String::new());
        assert_eq!(again, Err(Status::InvalidArgument));
        let weak = graph.derive(badged, (a, 6), Rights::SIGNAL, 0, String::new());
        let strong = graph.derive(weak.unwrap(), (a, 7), Rights::ALL, 0, String::new());
        let strong = graph.cap(strong.unwrap()).unwrap();
        assert_eq!((strong.rights, strong.badge), (Rights::SIGNAL, 8));
    }
}
