//! Memory: retype, mapping and what happens when a capability goes away.

use crate::id::{FrameKind, PhysAddr, Ref};
use crate::kernel::Kernel;
use crate::machine::{Flush, Machine};
use crate::slot::{Slot, SlotRef, flag};
use crate::thread::{PortRange, THREAD_FRAMES, Thread};
use crate::translate::{AddressSpace, Leaf, SPACE_FRAMES, check_address, format};
use crate::vcpu::Vcpu;
use core::sync::atomic::Ordering;
use microvisor_abi::cap::Map;
use microvisor_abi::{FRAME, Kind, Rights, SpaceKind, Status};

/// Bytes that one call zeroes at most, roughly: it ends with the object that passes this.
const ZERO_LIMIT: u64 = 2 << 20;
/// Capabilities that one call makes at most.
const RETYPE_LIMIT: u64 = 64;
/// Waiting threads that one step of deletion wakes.
const DRAIN_LIMIT: usize = 32;
/// Slots lie below this address, so that a slot's number fits in 32 bits.
const SLOT_LIMIT: u64 = 256 << 30;
/// Largest capability space, frames.
const CAP_SPACE_FRAMES_MAX: u64 = 4096;
/// Frames in a row that may be passed over because they carry no further object.
const SPENT_MOST: u64 = 64;
/// Most frames of one donation of tables: `Fill` works through all of them.
const TABLES_MAX: u64 = 512;

impl<M: Machine> Kernel<M> {
    /// Frames that one object takes, and the alignment of its base in frames.
    fn object_size(&self, kind: Kind, size: u64) -> Result<(u64, u64), Status> {
        let frames = match kind {
            Kind::Frame => {
                let frames = match size {
                    12 => 1,
                    21 => 512,
                    30 => 512 * 512,
                    _ => return Err(Status::InvalidArgument),
                };
                return Ok((frames, frames));
            }
            Kind::Memory if size > 0 && size <= u32::MAX as u64 => size,
            Kind::Tables if size > 0 && size <= TABLES_MAX => size,
            Kind::CapSpace if size > 0 && size <= CAP_SPACE_FRAMES_MAX => size,
            Kind::AddressSpace => {
                let space = SpaceKind::from_raw(size).ok_or(Status::InvalidArgument)?;
                if space == SpaceKind::Dma && self.machine.dma_tables().is_none() {
                    return Err(Status::Unsupported);
                }
                SPACE_FRAMES
            }
            _ if size != 0 => return Err(Status::InvalidArgument),
            Kind::Thread => THREAD_FRAMES,
            Kind::Vcpu if self.machine.virtualisation() => 2 + self.vcpu_frames,
            Kind::Vcpu => return Err(Status::Unsupported),
            Kind::SchedContext | Kind::Endpoint | Kind::Reply | Kind::Notification => 1,
            _ => return Err(Status::InvalidArgument),
        };
        Ok((frames, 1))
    }

    /// `Retype`: makes up to `count` objects; answers how many.
    pub(crate) fn retype(
        &mut self,
        thread: Ref<Thread>,
        memory: SlotRef,
        (kind, size): (Kind, u64),
        (space, slot): (u64, u64),
        count: u64,
    ) -> Result<u64, Status> {
        let (frames, align) = self.object_size(kind, size)?;
        if count == 0 {
            return Err(Status::InvalidArgument);
        }
        let device = self.arena.slot(memory).has_flag(flag::DEVICE);
        if device
            && !matches!(kind, Kind::Frame | Kind::Memory)
            && cfg!(not(planted = "device-retyped"))
        {
            return Err(Status::InvalidArgument);
        }
        if !self.arena.has_children(memory) && self.arena.slot(memory).mark >> 32 == 0 {
            // Nothing made of it is left, nor being made: all of it may be used again, and none of it
            // is zero.
            self.arena.slot_mut(memory).mark = 0;
        }
        let mut done = 0;
        let mut zeroed = 0;
        while done < count.min(RETYPE_LIMIT) && zeroed < ZERO_LIMIT {
            let to = self.empty_place(thread, space, slot + done);
            let step = to.and_then(|to| self.retype_one(memory, kind, size, (frames, align), to));
            match step {
                Ok(true) => done += 1,
                Ok(false) if done > 0 => break,
                Ok(false) => return Err(Status::Again),
                Err(status) if done == 0 => return Err(status),
                Err(_) => break,
            }
            zeroed += frames * FRAME;
        }
        Ok(done)
    }

    /// One object; false when its memory is still being zeroed.
    fn retype_one(
        &mut self,
        memory: SlotRef,
        kind: Kind,
        size: u64,
        (frames, align): (u64, u64),
        to: SlotRef,
    ) -> Result<bool, Status> {
        let m = *self.arena.slot(memory);
        let (used, ahead) = (m.mark & 0xffff_ffff, m.mark >> 32);
        let base = PhysAddr(m.object).frame();
        let mut start = (base + used).next_multiple_of(align) - base;
        if !matches!(kind, Kind::Frame | Kind::Memory | Kind::Tables) {
            let spent = |start| self.arena.is_spent(base + start);
            let mut candidates = start..start + SPENT_MOST;
            start = candidates.find(|&s| !spent(s)).ok_or(Status::NoMemory)?;
        }
        // What was zeroed ahead lies where the last object would have begun.
        let ahead = if start == used { ahead } else { 0 };
        let end = start.checked_add(frames).ok_or(Status::NoMemory)?;
        if end > m.extra && cfg!(not(control = "bounds")) {
            return Err(Status::NoMemory);
        }
        if m.depth == u16::MAX {
            return Err(Status::TooDeep);
        }
        let at = PhysAddr(m.object + start * FRAME);
        let device = m.flags & flag::DEVICE;
        if kind == Kind::CapSpace && at.0 + frames * FRAME > SLOT_LIMIT {
            return Err(Status::Unsupported);
        }
        let zeroed = matches!(kind, Kind::Frame | Kind::CapSpace) && device == 0;
        if zeroed && !self.zero_ahead(memory, at, frames, start, ahead) {
            return Ok(false);
        }
        let mut cap = match kind {
            Kind::Frame | Kind::Memory | Kind::Tables => Slot::original(kind, at.0),
            _ => Slot::original(kind, self.create_object(kind, at, frames, size)),
        };
        cap.flags |= device;
        cap.order = if kind == Kind::Frame { size as u8 } else { 0 };
        if kind == Kind::AddressSpace && size == SpaceKind::Dma as u64 {
            cap.flags |= flag::IOMMU;
        }
        if matches!(kind, Kind::Memory | Kind::Tables | Kind::CapSpace) {
            cap.extra = frames;
        }
        self.arena.insert(memory, to, cap)?;
        self.arena.slot_mut(memory).mark = end - u64::from(cfg!(planted = "retype-overlaps"));
        Ok(true)
    }

    /// Zeroes memory for a frame or a capability space, at most [`ZERO_LIMIT`] bytes a call; true when all is zero.
    fn zero_ahead(
        &mut self,
        memory: SlotRef,
        at: PhysAddr,
        frames: u64,
        start: u64,
        ahead: u64,
    ) -> bool {
        let ahead = ahead.min(frames);
        let left = frames - ahead;
        let now = left.min(ZERO_LIMIT / FRAME);
        if cfg!(not(control = "zero")) {
            self.arena.zero(at.add(ahead * FRAME), now * FRAME);
        }
        if now < left {
            // `start` counts as used: the alignment gap before a large frame stays unused.
            self.arena.slot_mut(memory).mark = start | (ahead + now) << 32;
        }
        now == left
    }

    fn create_object(&mut self, kind: Kind, at: PhysAddr, frames: u64, size: u64) -> u64 {
        use crate::endpoint::{Endpoint, Reply};
        use crate::notification::Notification;
        use crate::sched::SchedContext;
        match kind {
            Kind::CapSpace => self.arena.create_cap_space(at, frames).raw(),
            Kind::AddressSpace => {
                let kind = SpaceKind::from_raw(size).unwrap_or(SpaceKind::Host);
                self.arena.create_space(at, kind, self.core_root).raw()
            }
            Kind::Thread => {
                self.arena.zero(at.add(FRAME), FRAME);
                self.arena.create::<Thread>(at).raw()
            }
            Kind::Vcpu => {
                self.arena.zero(at.add(FRAME), (frames - 1) * FRAME);
                let vcpu = self.arena.create::<Vcpu>(at);
                self.machine.vcpu_init(vcpu.area());
                vcpu.raw()
            }
            Kind::SchedContext => self.arena.create::<SchedContext>(at).raw(),
            Kind::Endpoint => self.arena.create::<Endpoint>(at).raw(),
            Kind::Reply => self.arena.create::<Reply>(at).raw(),
            Kind::Notification => self.arena.create::<Notification>(at).raw(),
            _ => 0,
        }
    }

    /// `Map`. The second word of an error is the level of the missing table.
    pub(crate) fn map(
        &mut self,
        cap: SlotRef,
        space: Ref<AddressSpace>,
        address: u64,
        flags: u64,
    ) -> Result<(), (Status, u64)> {
        let invalid = (Status::InvalidArgument, 0);
        let c = *self.arena.slot(cap);
        let kind = self.arena.get(space).ok_or((Status::InvalidCap, 0))?.kind();
        let access = Map::READ | Map::WRITE | Map::EXECUTE;
        if flags & !access != 0 || flags & Map::READ == 0 {
            return Err(invalid);
        }
        let leaf = match c.kind() {
            Kind::Frame => {
                if !c.rights.has(Rights(flags as u8)) {
                    return Err((Status::NoRight, 0));
                }
                let device = c.has_flag(flag::DEVICE);
                Leaf {
                    base: PhysAddr(c.object),
                    order: c.order as u32,
                    flags,
                    device,
                }
            }
            Kind::Thread | Kind::Vcpu => {
                if flags & Map::EXECUTE != 0 || kind != SpaceKind::Host {
                    return Err(invalid);
                }
                if !c.rights.has(Rights::USE) {
                    return Err((Status::NoRight, 0));
                }
                // The shared page follows the object in both cases.
                let base = c.object::<Thread>().buffer();
                Leaf {
                    base,
                    order: 12,
                    flags,
                    device: false,
                }
            }
            Kind::Tables if cfg!(planted = "table-mapped") => Leaf {
                base: PhysAddr(c.object),
                order: 12,
                flags,
                device: false,
            },
            _ => return Err((Status::WrongKind, 0)),
        };
        if kind == SpaceKind::Host
            && flags & (Map::WRITE | Map::EXECUTE) == (Map::WRITE | Map::EXECUTE)
        {
            return Err(invalid);
        }
        let dma = self.machine.dma_tables().filter(|_| kind == SpaceKind::Dma);
        if let Some(dma) = dma
            && (leaf.order > dma.largest.into() || flags & Map::EXECUTE != 0)
        {
            return Err(invalid);
        }
        check_address(kind, dma, address, leaf.order).map_err(|status| (status, 0))?;
        let mapped = self.arena.alive(Ref::<AddressSpace>::from_raw(c.space));
        if c.has_flag(flag::MAPPED) && mapped || c.has_flag(flag::SETTLING) {
            return Err((Status::AlreadyMapped, 0));
        }
        let format = format(kind, self.machine.guest_tables(), dma);
        let replaced = self.arena.map_leaf(space, format, address, leaf)?;
        self.wrote_table(space, address);
        if let Some(table) = replaced {
            self.owe_page(space, address);
            self.pay();
            if self.table_is_free(space) {
                self.arena.recycle_table(space, table);
            }
        }
        let c = self.arena.slot_mut(cap);
        c.flags |= flag::MAPPED;
        if kind == SpaceKind::Dma {
            c.flags |= flag::IOMMU;
        }
        c.space = space.raw();
        c.address = address;
        Ok(())
    }

    /// `Unmap`.
    pub(crate) fn unmap(&mut self, cap: SlotRef) -> Result<(), Status> {
        let done = self.take_mapping(cap);
        self.pay();
        done
    }

    /// Undoes a mapping; what CPUs cached of it is owed.
    fn take_mapping(&mut self, cap: SlotRef) -> Result<(), Status> {
        let c = *self.arena.slot(cap);
        if !matches!(c.kind(), Kind::Frame | Kind::Thread | Kind::Vcpu) {
            return Err(Status::WrongKind);
        }
        if !c.has_flag(flag::MAPPED) {
            return Err(Status::NotMapped);
        }
        let space = Ref::<AddressSpace>::from_raw(c.space);
        if !c.has_flag(flag::SETTLING) {
            self.clear_mapping(&c, space);
        }
        // A space that was destroyed took its translations with it.
        let was = self.arena.alive(space) || c.has_flag(flag::SETTLING);
        self.settle(cap)?;
        let slot = self.arena.slot_mut(cap);
        slot.flags &= !flag::MAPPED;
        slot.space = 0;
        if was { Ok(()) } else { Err(Status::NotMapped) }
    }

    fn clear_mapping(&mut self, c: &Slot, space: Ref<AddressSpace>) {
        let Some(s) = self.arena.get(space) else {
            return;
        };
        let kind = s.kind();
        let (base, order) = match c.kind() {
            Kind::Frame => (PhysAddr(c.object), c.order as u32),
            _ => (c.object::<Thread>().buffer(), 12),
        };
        let format = format(kind, self.machine.guest_tables(), self.machine.dma_tables());
        self.arena.unmap_leaf(space, format, c.address, base, order);
        self.wrote_table(space, c.address);
        self.owe_page(space, c.address);
    }

    /// Notes a flush that must be made before anything can be made of the memory that is taken
    /// away. One deletion has many, and makes one.
    pub(crate) fn owe(&mut self, flush: Flush) {
        self.owed = Some(self.owed.map_or(flush, |owed| owed.and(flush)));
    }

    /// Makes the flush that is owed.
    pub(crate) fn pay(&mut self) {
        if let Some(flush) = self.owed.take() {
            self.machine.flush(flush);
        }
    }

    /// CPUs, or the IOMMU, must forget what they cached for a page of a space that exists.
    fn owe_page(&mut self, space: Ref<AddressSpace>, address: u64) {
        let Some(s) = self.arena.get(space) else {
            return;
        };
        if cfg!(planted = "unmap-without-flush") {
            return;
        }
        s.epoch.fetch_add(1, Ordering::SeqCst);
        let root = s.root;
        let flush = match s.kind() {
            SpaceKind::Host => Flush::HostPage { root, address },
            SpaceKind::Guest => Flush::GuestSpace {
                root,
                cpus: s.cpus.load(Ordering::SeqCst),
            },
            SpaceKind::Dma => return self.forget_translations(space),
        };
        self.owe(flush);
    }

    /// `Fill`.
    pub(crate) fn fill(&mut self, space: Ref<AddressSpace>, tables: SlotRef) -> Result<(), Status> {
        let t = *self.arena.slot(tables);
        if t.has_flag(flag::DONATED) {
            return Err(Status::Busy);
        }
        self.arena.fill_space(space, PhysAddr(t.object), t.extra);
        let kind = self.arena.get(space).map(AddressSpace::kind);
        let slot = self.arena.slot_mut(tables);
        slot.flags |= flag::DONATED;
        if kind == Some(SpaceKind::Dma) {
            slot.flags |= flag::IOMMU;
        }
        slot.space = space.raw();
        Ok(())
    }

    /// `PortsGrant` to a thread.
    pub(crate) fn grant_ports(&mut self, ports: SlotRef, to: Ref<Thread>) -> Result<(), Status> {
        let p = *self.arena.slot(ports);
        let granted =
            p.has_flag(flag::MAPPED) && self.arena.alive(Ref::<Thread>::from_raw(p.space));
        let (first, count) = p.range();
        if granted {
            return Err(Status::AlreadyMapped);
        }
        if count > 4096 {
            return Err(Status::InvalidArgument);
        }
        let t = self.arena.get_mut(to).ok_or(Status::InvalidCap)?;
        let range = PortRange {
            first: first as u16,
            count: count as u16,
        };
        let free = t
            .ports
            .iter_mut()
            .find(|r| r.count == 0)
            .ok_or(Status::NoMemory)?;
        *free = range;
        t.count_ports();
        let slot = self.arena.slot_mut(ports);
        slot.flags |= flag::MAPPED;
        slot.space = to.raw();
        self.machine.flush(Flush::Quiesce);
        Ok(())
    }

    /// `PortsGrant` to a vCPU. Where two grants to one vCPU overlap, the end of either closes what
    /// both have.
    pub(crate) fn grant_ports_to_vcpu(
        &mut self,
        ports: SlotRef,
        to: Ref<Vcpu>,
    ) -> Result<(), Status> {
        let p = *self.arena.slot(ports);
        if p.has_flag(flag::MAPPED) && self.arena.alive(Ref::<Vcpu>::from_raw(p.space)) {
            return Err(Status::AlreadyMapped);
        }
        if !self.arena.alive(to) {
            return Err(Status::InvalidCap);
        }
        let (first, count) = p.range();
        self.machine
            .vcpu_grant_ports(to.area(), first as u16, count as u32, true);
        let slot = self.arena.slot_mut(ports);
        slot.flags |= flag::MAPPED;
        slot.space = to.raw();
        Ok(())
    }

    fn take_ports_back(&mut self, cap: &Slot) {
        if !cap.has_flag(flag::MAPPED) {
            return;
        }
        let (first, count) = cap.range();
        let range = PortRange {
            first: first as u16,
            count: count as u16,
        };
        let vcpu = Ref::<Vcpu>::from_raw(cap.space);
        // The tag tells which of the two it was granted to: it is the same word.
        if vcpu.tag() as u8 == FrameKind::Vcpu as u8 && self.arena.alive(vcpu) {
            self.machine
                .vcpu_grant_ports(vcpu.area(), first as u16, count as u32, false);
            return self.owe(Flush::Quiesce);
        }
        let thread = Ref::<Thread>::from_raw(cap.space);
        let Some(t) = self.arena.get_mut(thread) else {
            return;
        };
        if let Some(r) = t.ports.iter_mut().find(|r| **r == range) {
            *r = PortRange::default();
        }
        t.count_ports();
        self.owe(Flush::Quiesce);
    }

    /// What has to happen before a capability disappears. `Again` when bounded work was done and
    /// more is left. Capability spaces are handled by the caller.
    pub(crate) fn finalise(&mut self, slot: SlotRef) -> Result<(), Status> {
        let cap = *self.arena.slot(slot);
        if cfg!(not(control = "unmap"))
            && cap.has_flag(flag::MAPPED)
            && matches!(cap.kind(), Kind::Frame | Kind::Thread | Kind::Vcpu)
        {
            let taken = self.take_mapping(slot);
            if let Err(Status::Again | Status::Timeout) = taken {
                return taken;
            }
        }
        match cap.kind() {
            // Remembered by the CPUs whose threads run it.
            Kind::Vcpu => self.owe(Flush::Quiesce),
            Kind::IoPorts => self.take_ports_back(&cap),
            Kind::Interrupt => {
                self.unbind_lines(slot);
                self.unbind_sources(slot);
            }
            Kind::Device => {
                self.detach_device(slot);
                self.unbind_sources(slot);
            }
            Kind::Tables if cap.has_flag(flag::DONATED) => {
                self.destroy_space(Ref::from_raw(cap.space));
                self.settle(slot)?;
            }
            _ => {}
        }
        if !cap.has_flag(flag::ORIGINAL) {
            return Ok(());
        }
        match cap.kind() {
            Kind::AddressSpace => {
                self.destroy_space(cap.object());
                self.settle(slot)?;
            }
            Kind::Thread => self.destroy_thread(cap.object()),
            Kind::SchedContext => {
                let sched = cap.object::<crate::sched::SchedContext>();
                let thread = self.arena.get(sched).map_or(Ref::NULL, |s| s.thread);
                self.unbind_time(thread);
                self.arena.destroy(sched);
            }
            Kind::Endpoint => {
                if !self.drain_endpoint(cap.object(), DRAIN_LIMIT) {
                    return Err(Status::Again);
                }
                self.arena
                    .destroy(cap.object::<crate::endpoint::Endpoint>());
            }
            Kind::Reply => {
                self.lose_reply(cap.object());
                self.arena.destroy(cap.object::<crate::endpoint::Reply>());
            }
            Kind::Notification => {
                if !self.drain_notification(cap.object(), DRAIN_LIMIT) {
                    return Err(Status::Again);
                }
                self.arena
                    .destroy(cap.object::<crate::notification::Notification>());
                // A CPU about to enter a guest may be reading the word.
                self.owe(Flush::Quiesce);
            }
            Kind::Vcpu => {
                let vcpu = cap.object::<Vcpu>();
                self.arena.destroy(vcpu);
                self.machine.vcpu_forget(vcpu.area());
                self.owe(Flush::Quiesce);
            }
            _ => {}
        }
        Ok(())
    }

    fn destroy_space(&mut self, space: Ref<AddressSpace>) {
        self.stirred = true;
        let Some(s) = self.arena.get(space) else {
            return;
        };
        let (root, kind) = (s.root, s.kind());
        s.epoch.fetch_add(1, Ordering::SeqCst);
        self.arena.destroy(space);
        match kind {
            SpaceKind::Host => self.machine.flush(Flush::HostSpace { root }),
            // Every CPU: one may be on its way into a space that it never ran before.
            SpaceKind::Guest => self.owe(Flush::GuestSpace {
                root,
                cpus: u64::MAX,
            }),
            SpaceKind::Dma => self.detach_all(space),
        }
    }

    fn destroy_thread(&mut self, thread: Ref<Thread>) {
        self.detach(thread);
        self.unbind_time(thread);
        if let Some(t) = self.arena.get(thread) {
            let vcpu = t.vcpu;
            self.arena.vcpu_end(vcpu);
        }
        let cpu = self.machine.cpu();
        if self.cpus[cpu].current == thread {
            self.cpus[cpu].current = Ref::NULL;
        }
        self.arena.destroy(thread);
    }
}
