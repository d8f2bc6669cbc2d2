//! Memory: `Retype`, `Map`, `Unmap`, `Fill`, and what the end of a capability does.

use crate::lookup::{Checked, require};
use crate::state::*;
use microvisor_abi::cap::Map;
use microvisor_abi::{Kind, Rights, SpaceKind, Status, USER_END};

/// Level of a root table; level 1 holds leaves of 4 KiB.
const ROOT_LEVEL: u64 = 4;

/// Bytes that one entry of a table of this level covers.
fn span(level: u64) -> u64 {
    1 << (12 + 9 * (level - 1))
}

/// The level whose entries are leaves of this order.
fn level_of(order: u8) -> u64 {
    (u64::from(order) - 12) / 9 + 1
}

impl State {
    /// Frames that an object takes, and the alignment of its first, in frames.
    fn extent(&self, kind: Kind, size: u64) -> Checked<(u64, u64)> {
        let one = |frames| Ok((frames, 1));
        match (kind, size) {
            (Kind::Frame, 12 | 21 | 30) => Ok((1 << (size - 12), 1 << (size - 12))),
            (Kind::Memory, 1..=0xffff_ffff) => one(size),
            (Kind::Tables, 1..=512) => one(size),
            (Kind::CapSpace, 1..=4096) => one(size),
            (Kind::AddressSpace, 0 | 1) => one(2),
            (Kind::AddressSpace, 2) if self.machine.dma.is_some() => one(2),
            (Kind::AddressSpace, 2) => Err(Status::Unsupported),
            (Kind::Thread, 0) => one(2),
            (Kind::Vcpu, 0) if self.machine.virtualisation => one(self.machine.vcpu_frames),
            (Kind::Vcpu, 0) => Err(Status::Unsupported),
            (Kind::SchedContext | Kind::Endpoint | Kind::Reply | Kind::Notification, 0) => one(1),
            _ => Err(Status::InvalidArgument),
        }
    }

    /// `Retype(memory, kind | size << 8, space, slot | count << 32)` answers how many.
    ///
    /// Objects are taken from the front of the memory, each aligned; once nothing made of it is left
    /// it is whole again. Frames that are not device memory are zero. The core may make fewer than
    /// asked, but one at least: `most` is its choice. An object that cannot be made ends the
    /// call, with its status if it is the first.
    /// - `InvalidArgument`: no such kind or size; none asked for; device memory becomes only
    ///   `Frame` and `Memory`.
    /// - `Unsupported`: this machine has no use for that kind; or a `CapSpace` above 256 GiB.
    /// - `NoMemory`: not enough left, for one of this alignment.
    /// - `Again`: a large frame is not all zero yet.
    pub(crate) fn retype(&mut self, me: u64, a: [u64; 6], most: u64) -> Checked<()> {
        let memory = self.cap_of(me, a[0], Kind::Memory, Rights::USE)?;
        let kind = Kind::from_raw(a[1] as u8).ok_or(Status::InvalidArgument)?;
        let size = a[1] >> 8;
        let (slot, count) = (a[3] & 0xffff_ffff, a[3] >> 32);
        let extent = self.extent(kind, size)?;
        require(count != 0, Status::InvalidArgument)?;
        let What::Untyped { device, .. } = self.at(memory).what else {
            return Err(Status::WrongKind);
        };
        let mappable = matches!(kind, Kind::Frame | Kind::Memory);
        require(!device || mappable, Status::InvalidArgument)?;
        let mut made = 0;
        while made < count.min(most) {
            let to = self.empty_place(me, a[2], slot + made);
            match to.and_then(|to| self.make(memory, kind, size, extent, to)) {
                Ok(()) => made += 1,
                Err(status) if made == 0 => return Err(status),
                Err(_) => break,
            }
        }
        self.thread_mut(me).words[0] = made;
        Ok(())
    }

    fn make(
        &mut self,
        memory: Place,
        kind: Kind,
        size: u64,
        (length, align): (u64, u64),
        to: Place,
    ) -> Checked<()> {
        let What::Untyped {
            base,
            frames,
            device,
            used,
        } = self.at(memory).what
        else {
            return Err(Status::WrongKind);
        };
        let at = (base + used).next_multiple_of(align);
        let end = at - base + length;
        require(end <= frames, Status::NoMemory)?;
        self.may_have_child(memory)?;
        let what = match kind {
            Kind::Memory => What::Untyped {
                base: at,
                frames: length,
                device,
                used: 0,
            },
            Kind::Frame => What::Page {
                base: at,
                order: size as u8,
                device,
            },
            Kind::Tables => What::Tables {
                base: at,
                frames: length,
                donated: false,
                to: None,
            },
            _ => {
                self.create(kind, size, at);
                let number = if kind == Kind::CapSpace { length } else { 0 };
                let at = Some(at);
                What::Object { kind, at, number }
            }
        };
        let cap = Cap {
            what,
            rights: Rights::ALL.0,
            original: true,
            mapped: None,
            settling: false,
            parent: None,
            children: Vec::new(),
        };
        self.insert(memory, to, cap);
        if let What::Untyped { used, .. } = &mut self.at_mut(memory).what {
            *used = end;
        }
        Ok(())
    }

    fn create(&mut self, kind: Kind, size: u64, at: Frame) {
        match kind {
            Kind::CapSpace => {
                let slots = size * 64 - 1;
                let dead = false;
                self.cap_spaces.insert(at, CapSpace { slots, dead });
            }
            Kind::AddressSpace => {
                let space = AddressSpace {
                    kind: SpaceKind::from_raw(size).unwrap_or(SpaceKind::Host),
                    root: at + 1,
                    leaves: Default::default(),
                    tables: Default::default(),
                    frames: Default::default(),
                };
                self.spaces.insert(at, space);
            }
            Kind::Thread => {
                self.threads.insert(at, Thread::NEW);
            }
            Kind::SchedContext => {
                self.scheds.insert(at, Default::default());
            }
            Kind::Endpoint => {
                self.endpoints.insert(at, Default::default());
            }
            Kind::Reply => {
                self.replies.insert(at, Default::default());
            }
            Kind::Notification => {
                self.notifications.insert(at, Default::default());
            }
            Kind::Vcpu => {
                self.vcpus.insert(at, Default::default());
            }
            _ => {}
        }
    }

    /// `Map(cap, space, address, flags)`.
    ///
    /// A `Frame` is mapped at its own size, with no more than its rights; a `Thread`'s message buffer
    /// or a `Vcpu`'s state page at 4 KiB, in a host space, never executable. One mapping a
    /// capability. Nothing changes unless the call succeeds.
    /// - `InvalidArgument`: flags that do not exist or without `READ`; writable and executable
    ///   at once in a host space; executable, or larger than 2 MiB, in a *dma* space; an address that is not aligned to the size or beyond the space.
    /// - `NoRight`: the capability does not allow this access (`USE` for pages of objects).
    /// - `WrongKind`: it names nothing that can be mapped.
    /// - `AlreadyMapped`: by this capability, elsewhere or here.
    /// - `Occupied`: something else is mapped there, or a table with something in it is.
    /// - `NeedTable`: the pool has fewer tables than are missing; answers the level of the first, and
    ///   0 with whatever else is wrong with the mapping.
    pub(crate) fn map(&mut self, me: u64, a: [u64; 6]) -> Checked<()> {
        let place = self.cap(me, a[0])?;
        let space = self.object(me, a[1], Kind::AddressSpace, Rights::USE)?;
        let leaf = self.leaf(place, self.spaces[&space].kind, a[2], a[3]);
        let entered = leaf.map_err(|status| (status, 0));
        match entered.and_then(|leaf| self.enter(space, a[2], leaf)) {
            Ok(()) => self.at_mut(place).mapped = Some((space, a[2])),
            Err((status, level)) => {
                self.thread_mut(me).words[0] = level;
                return Err(status);
            }
        }
        Ok(())
    }

    /// The translation that a capability allows at an address of a space of this kind.
    fn leaf(&self, place: Place, kind: SpaceKind, address: u64, flags: u64) -> Checked<Leaf> {
        let cap = self.at(place);
        let invalid = Status::InvalidArgument;
        let readable = flags <= 7 && flags & Map::READ != 0;
        require(readable, invalid)?;
        let host = kind == SpaceKind::Host;
        let both = Map::WRITE | Map::EXECUTE;
        let leaf = match cap.what {
            What::Page {
                base,
                order,
                device,
            } => {
                require(cap.allows(Rights(flags as u8)), Status::NoRight)?;
                Leaf {
                    base,
                    order,
                    access: flags,
                    device,
                }
            }
            What::Object {
                kind: Kind::Thread | Kind::Vcpu,
                at,
                ..
            } => {
                require(host && flags & Map::EXECUTE == 0, invalid)?;
                require(cap.allows(Rights::USE), Status::NoRight)?;
                let base = at.ok_or(Status::InvalidCap)? + 1;
                Leaf {
                    base,
                    order: 12,
                    access: flags,
                    device: false,
                }
            }
            _ => return Err(Status::WrongKind),
        };
        require(!host || flags & both != both, invalid)?;
        let dma = kind == SpaceKind::Dma;
        // Only CPUs have caches that device memory must stay out of.
        let leaf = Leaf {
            device: leaf.device && !dma,
            ..leaf
        };
        require(
            !dma || flags & Map::EXECUTE == 0 && leaf.order <= 21,
            invalid,
        )?;
        let end = match kind {
            SpaceKind::Host => USER_END,
            SpaceKind::Guest => 1 << 48,
            SpaceKind::Dma => 1 << self.machine.dma.unwrap_or(0),
        };
        let size = 1u64 << leaf.order;
        let fits = address.checked_add(size).is_some_and(|last| last <= end);
        require(fits && address.is_multiple_of(size), invalid)?;
        let free = cap.mapped.is_none() && !cap.settling;
        require(free, Status::AlreadyMapped)?;
        Ok(leaf)
    }

    /// Enters a leaf; otherwise status and level of the missing table.
    fn enter(&mut self, space: Frame, address: u64, leaf: Leaf) -> Result<(), (Status, u64)> {
        let space = self.spaces.get_mut(&space).ok_or((Status::InvalidCap, 0))?;
        let level = level_of(leaf.order);
        let base_at = |level: u64| address & !(span(level + 1) - 1);
        // Down through the tables that exist, until an entry at which the walk ends.
        let mut at = ROOT_LEVEL;
        while at > level && space.tables.contains(&(at - 1, base_at(at - 1))) {
            at -= 1;
        }
        let entry = address & !(span(at) - 1);
        let leaf_there = space
            .leaves
            .get(&entry)
            .is_some_and(|l| level_of(l.order) == at);
        if leaf_there {
            return Err((Status::Occupied, 0));
        }
        if at == level && level > 1 && space.tables.contains(&(level - 1, address)) {
            // An empty table makes room for a large leaf, and goes back to the pool.
            let covered = address..address + span(level);
            let leaves = space.leaves.range(covered.clone()).next().is_some();
            let inside = |&(l, base): &(u64, u64)| l < level - 1 && covered.contains(&base);
            if leaves || space.tables.iter().any(inside) {
                return Err((Status::Occupied, 0));
            }
            space.tables.remove(&(level - 1, address));
        }
        if at - level > space.pool() {
            return Err((Status::NeedTable, at - 1));
        }
        for missing in level..at {
            space.tables.insert((missing, base_at(missing)));
        }
        space.leaves.insert(address, leaf);
        Ok(())
    }

    /// `Unmap(cap)`. `WrongKind`: it names nothing that can be mapped. `NotMapped`: it is not, or
    /// its space is gone. `Again`: an IOMMU has still to answer, and the same call asks it again;
    /// `Timeout`: it never will.
    pub(crate) fn unmap(&mut self, me: u64, a: [u64; 6]) -> Checked<()> {
        let place = self.cap(me, a[0])?;
        let mappable = matches!(
            self.at(place).kind(),
            Kind::Frame | Kind::Thread | Kind::Vcpu
        );
        require(mappable, Status::WrongKind)?;
        let settling = std::mem::take(&mut self.at_mut(place).settling);
        let there = self.at(place).mapped.is_some() || settling;
        require(there, Status::NotMapped)?;
        self.unmap_cap(place);
        Ok(())
    }

    fn unmap_cap(&mut self, place: Place) {
        if let Some((space, address)) = self.at_mut(place).mapped.take()
            && let Some(space) = self.spaces.get_mut(&space)
        {
            space.leaves.remove(&address);
        }
    }

    /// `Fill(space, tables)`: the frames join the space's pool. `Busy`: they were given before.
    pub(crate) fn fill(&mut self, me: u64, a: [u64; 6]) -> Checked<()> {
        let space = self.object(me, a[0], Kind::AddressSpace, Rights::USE)?;
        let place = self.cap_of(me, a[1], Kind::Tables, Rights::USE)?;
        let What::Tables {
            base,
            frames,
            donated,
            to,
        } = &mut self.at_mut(place).what
        else {
            return Err(Status::WrongKind);
        };
        require(!*donated, Status::Busy)?;
        (*donated, *to) = (true, Some(space));
        let given = *base..*base + *frames;
        if let Some(space) = self.spaces.get_mut(&space) {
            space.frames.extend(given);
        }
        Ok(())
    }

    /// What the end of a capability does. Capability spaces are not handled here.
    /// - Its mapping goes, or its grant of ports, or the lines and messages bound through it; a function
    ///   attached through it reaches nothing any more.
    /// - Tables that were given take the space with them: it lived in them.
    /// - The original ends the object; whoever waits for it hears `Aborted`.
    pub(crate) fn finalise(&mut self, place: Place) {
        let cap = self.at(place).clone();
        match cap.what {
            What::Range {
                kind: Kind::IoPorts,
                first,
                count,
                ..
            } => {
                if let Some((thread, _)) = cap.mapped {
                    self.take_ports(thread, (first, count));
                }
            }
            What::Range {
                kind: Kind::Interrupt,
                ..
            } => {
                self.unbind_lines(place);
                self.unbind_sources(place);
            }
            What::Range {
                kind: Kind::Device, ..
            } => {
                self.detach_device(place);
                self.unbind_sources(place);
            }
            What::Tables { to: Some(to), .. } => self.destroy(Kind::AddressSpace, to),
            _ => self.unmap_cap(place),
        }
        if let (true, Some(object)) = (cap.original, cap.object()) {
            self.destroy(cap.kind(), object);
        }
    }

    fn destroy(&mut self, kind: Kind, object: Frame) {
        match kind {
            Kind::AddressSpace => {
                self.spaces.remove(&object);
            }
            Kind::Thread => self.destroy_thread(object),
            Kind::SchedContext => {
                if let Some(thread) = self.scheds[&object].thread {
                    self.unbind_time(thread);
                }
                self.scheds.remove(&object);
            }
            Kind::Endpoint => {
                for thread in self.endpoints[&object].queue.clone() {
                    self.unblock(thread, Status::Aborted);
                }
                self.endpoints.remove(&object);
            }
            Kind::Reply => self.destroy_reply(object),
            Kind::Notification => {
                for thread in self.notifications[&object].queue.clone() {
                    self.unblock(thread, Status::Aborted);
                }
                self.notifications.remove(&object);
            }
            Kind::Vcpu => {
                self.vcpus.remove(&object);
            }
            _ => {}
        }
        self.forget(kind, object);
    }

    /// Nothing names the object any more. Only the original of a capability space still does, until
    /// the space is empty.
    pub(crate) fn forget(&mut self, kind: Kind, object: Frame) {
        let clear = |name: &mut Option<Frame>| {
            if *name == Some(object) {
                *name = None;
            }
        };
        for cap in self.caps.values_mut() {
            let space_itself = cap.is_space_itself();
            match &mut cap.what {
                What::Object { kind: k, at, .. } if *k == kind && !space_itself => clear(at),
                What::Tables { to, .. } if kind == Kind::AddressSpace => clear(to),
                _ => {}
            }
            if cap.mapped.is_some_and(|(to, _)| to == object)
                && matches!(kind, Kind::AddressSpace | Kind::Thread | Kind::Vcpu)
            {
                cap.mapped = None;
            }
        }
        for thread in self.threads.values_mut() {
            match kind {
                Kind::AddressSpace => clear(&mut thread.space),
                Kind::CapSpace => clear(&mut thread.caps),
                Kind::Notification => {
                    clear(&mut thread.bound);
                    thread.supervisor = thread.supervisor.filter(|(to, _)| *to != object);
                }
                Kind::Vcpu if thread.run == Run::In(object) => thread.run = Run::Lost,
                Kind::Endpoint => {
                    if let Doing::Awaiting { endpoint, .. } = &mut thread.doing {
                        clear(endpoint);
                    }
                }
                _ => {}
            }
        }
        for notification in self.notifications.values_mut() {
            match kind {
                Kind::Thread => clear(&mut notification.thread),
                Kind::Vcpu => clear(&mut notification.vcpu),
                _ => {}
            }
        }
        for vcpu in self.vcpus.values_mut() {
            match kind {
                Kind::AddressSpace => clear(&mut vcpu.space),
                Kind::Notification => clear(&mut vcpu.notification),
                _ => {}
            }
        }
        if kind == Kind::AddressSpace {
            self.devices.retain(|_, device| device.space != object);
        }
        if kind == Kind::Notification {
            for line in self.lines.values_mut() {
                line.to = line.to.filter(|(to, _)| *to != object);
            }
            for device in self.devices.values_mut() {
                device.tell = device.tell.filter(|(to, _)| *to != object);
            }
        }
    }
}
