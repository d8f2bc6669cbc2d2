//! Naming: from a word in a register to a capability, and what may go wrong on the way.
//!
//! Every call starts here. The order of the checks is part of the interface: *the slot holds
//! something* (`InvalidCap`), *of the right kind* (`WrongKind`), *with the right* (`NoRight`), *and
//! what it names still exists* (`InvalidCap`).

use crate::state::{Cap, Frame, Place, State, Thread};
use microvisor_abi::{Kind, Rights, Status};

/// What a check or an effect answers: the value, or the status that the call ends with.
pub type Checked<T> = Result<T, Status>;

/// A rule that a call insists on.
pub fn require(rule: bool, otherwise: Status) -> Checked<()> {
    if rule { Ok(()) } else { Err(otherwise) }
}

impl State {
    /// A thread that exists.
    pub fn thread(&self, thread: Frame) -> &Thread {
        &self.threads[&thread]
    }

    pub(crate) fn thread_mut(&mut self, thread: Frame) -> &mut Thread {
        self.threads.get_mut(&thread).expect("the thread exists")
    }

    /// The capability in a place that holds one.
    pub fn at(&self, place: Place) -> &Cap {
        &self.caps[&place]
    }

    pub(crate) fn at_mut(&mut self, place: Place) -> &mut Cap {
        self.caps.get_mut(&place).expect("the place holds one")
    }

    /// Slot `slot` of a space: `InvalidCap` if the space is gone or has no such slot.
    pub fn slot_of(&self, space: Option<Frame>, slot: u64) -> Checked<Place> {
        let space = space.ok_or(Status::InvalidCap)?;
        let table = self.cap_spaces.get(&space).ok_or(Status::InvalidCap)?;
        let inside = slot != 0 && slot < table.slots && slot <= u64::from(u32::MAX);
        require(!table.dead && inside, Status::InvalidCap)?;
        let slot = slot as u32;
        Ok(Place { space, slot })
    }

    /// A capability of the caller.
    pub fn cap(&self, me: Frame, word: u64) -> Checked<Place> {
        let place = self.slot_of(self.thread(me).caps, word)?;
        require(self.caps.contains_key(&place), Status::InvalidCap)?;
        Ok(place)
    }

    /// A capability of the caller of this kind and with these rights.
    pub fn cap_of(&self, me: Frame, word: u64, kind: Kind, rights: Rights) -> Checked<Place> {
        let place = self.cap(me, word)?;
        require(self.at(place).kind() == kind, Status::WrongKind)?;
        require(self.at(place).allows(rights), Status::NoRight)?;
        Ok(place)
    }

    /// The object that a capability of the caller names. A capability space that is being destroyed
    /// exists no more.
    pub fn object(&self, me: Frame, word: u64, kind: Kind, rights: Rights) -> Checked<Frame> {
        let place = self.cap_of(me, word, kind, rights)?;
        let object = self.at(place).object().ok_or(Status::InvalidCap)?;
        let dead = self.cap_spaces.get(&object).is_some_and(|s| s.dead);
        require(!dead, Status::InvalidCap)?;
        Ok(object)
    }

    /// As [`State::object`], where the word 0 means none.
    pub fn optional(&self, me: Frame, word: u64, kind: Kind) -> Checked<Option<Frame>> {
        if word == 0 {
            return Ok(None);
        }
        self.object(me, word, kind, Rights::USE).map(Some)
    }

    /// A slot of the space that `space` names; 0 names the caller's own.
    pub fn place(&self, me: Frame, space: u64, slot: u64) -> Checked<Place> {
        require(slot <= u64::from(u32::MAX), Status::InvalidCap)?;
        let space = match space {
            0 => self.thread(me).caps,
            named => Some(self.object(me, named, Kind::CapSpace, Rights::USE)?),
        };
        self.slot_of(space, slot)
    }

    /// As [`State::place`]; it must be empty: `SlotOccupied`.
    pub fn empty_place(&self, me: Frame, space: u64, slot: u64) -> Checked<Place> {
        let place = self.place(me, space, slot)?;
        require(!self.caps.contains_key(&place), Status::SlotOccupied)?;
        Ok(place)
    }
}
