//! Devices: which function reaches memory through which *dma* space, which message it may send, and
//! what an IOMMU that found an offence changes.
//!
//! Functions and lines can be given to somebody else at once; what makes that safe is that nothing is
//! attached and no message bound before the IOMMU has answered all it was asked. Memory is kept until
//! it has answered what was asked when the memory was taken back (`settle`).

use crate::id::Ref;
use crate::kernel::Kernel;
use crate::machine::{Answer, Ask, Machine};
use crate::notification::Notification;
use crate::slot::{SlotRef, flag};
use crate::translate::AddressSpace;
use microvisor_abi::cap::{ATTACHED, LINES_ISA, Stopped};
use microvisor_abi::{SpaceKind, Status};

/// Functions that can be attached at once.
pub(crate) const ATTACHED_MAX: usize = 64;

/// A function that is attached. Its domain, the IOMMU's name for what it has cached, is the number
/// of this entry plus 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attachment {
    pub(crate) function: u16,
    pub(crate) space: Ref<AddressSpace>,
    /// The capability through which it was attached; none: the entry is free.
    pub(crate) owner: SlotRef,
    pub(crate) note: Ref<Notification>,
    pub(crate) bits: u64,
    /// A `Stopped` word, or 0.
    pub(crate) stopped: u64,
}

impl Attachment {
    pub(crate) const FREE: Attachment = Attachment {
        function: 0,
        space: Ref::NULL,
        owner: SlotRef::NONE,
        note: Ref::NULL,
        bits: 0,
        stopped: 0,
    };
}

/// Who may send a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    /// The `Interrupt` capability, none: nobody.
    pub(crate) interrupt: SlotRef,
    /// The `Device` capability.
    pub(crate) device: SlotRef,
    /// What to send: address, data << 32.
    pub(crate) message: u64,
}

impl Source {
    pub(crate) const FREE: Source = Source {
        interrupt: SlotRef::NONE,
        device: SlotRef::NONE,
        message: 0,
    };
}

fn domain(index: usize) -> u16 {
    index as u16 + 1
}

impl<M: Machine> Kernel<M> {
    /// The only function of a `Device` capability.
    fn function(&self, device: SlotRef) -> Result<u16, Status> {
        match self.arena.slot(device).range() {
            (first, 1) => u16::try_from(first).map_err(|_| Status::InvalidArgument),
            _ => Err(Status::InvalidArgument),
        }
    }

    fn attachment_of(&mut self, owner: SlotRef) -> Option<(usize, &mut Attachment)> {
        let mut all = self.attached.iter_mut().enumerate();
        all.find(|(_, a)| a.owner == owner)
    }

    /// `Bind` with `Role::Dma`.
    pub(crate) fn attach(
        &mut self,
        owner: SlotRef,
        space: Ref<AddressSpace>,
    ) -> Result<(), Status> {
        let function = self.function(owner)?;
        if space.is_null() {
            self.detach_device(owner);
            return Ok(());
        }
        let s = self.arena.get(space).ok_or(Status::InvalidCap)?;
        if s.kind() != SpaceKind::Dma {
            return Err(Status::WrongKind);
        }
        let root = s.root;
        let taken = |a: &Attachment| a.owner.is_some() && a.function == function;
        if self.attached.iter().any(taken) {
            return Err(Status::Busy);
        }
        let mut all = self.attached.iter();
        let index = all.position(|a| !a.owner.is_some());
        let index = index.ok_or(Status::NoMemory)?;
        self.iommu_is_idle()?;
        self.attached[index] = Attachment {
            function,
            space,
            owner,
            ..Attachment::FREE
        };
        self.machine.ask(Ask::Attach {
            function,
            domain: domain(index),
            root,
        });
        let slot = self.arena.slot_mut(owner);
        slot.flags |= flag::MAPPED;
        slot.space = space.raw();
        Ok(())
    }

    /// The function attached through this capability, if any, reaches no memory any more.
    pub(crate) fn detach_device(&mut self, owner: SlotRef) {
        if let Some((index, a)) = self.attachment_of(owner) {
            let function = a.function;
            *a = Attachment::FREE;
            self.block(function, domain(index), false);
        }
        let slot = self.arena.slot_mut(owner);
        slot.flags &= !flag::MAPPED;
        slot.space = 0;
    }

    /// The functions attached to a space that ends reach no memory any more.
    pub(crate) fn detach_all(&mut self, space: Ref<AddressSpace>) {
        for index in 0..ATTACHED_MAX {
            let a = &mut self.attached[index];
            if a.owner.is_some() && a.space == space {
                let function = a.function;
                *a = Attachment::FREE;
                self.block(function, domain(index), false);
            }
        }
    }

    fn block(&mut self, function: u16, domain: u16, quiet: bool) {
        self.machine.ask(Ask::Block {
            function,
            domain,
            quiet,
        });
    }

    /// The IOMMU is to forget what it cached of a space.
    pub(crate) fn forget_translations(&mut self, space: Ref<AddressSpace>) {
        for (index, a) in self.attached.iter().enumerate() {
            if a.owner.is_some() && a.space == space {
                let domain = domain(index);
                self.machine.ask(Ask::Forget { domain });
            }
        }
    }

    /// The tables of a *dma* space were written to on the way to `address`.
    pub(crate) fn wrote_table(&mut self, space: Ref<AddressSpace>, address: u64) {
        if let Some(s) = self.arena.get(space).filter(|s| s.kind() == SpaceKind::Dma) {
            self.machine.wrote_table(s.root, address);
        }
    }

    /// `Bind` with `Role::Stops`.
    pub(crate) fn bind_stops(
        &mut self,
        device: SlotRef,
        note: Ref<Notification>,
        bits: u64,
    ) -> Result<(), Status> {
        let (_, a) = self.attachment_of(device).ok_or(Status::NotBound)?;
        (a.note, a.bits) = (note, bits);
        Ok(())
    }

    /// What `Inspect` tells of the only function of this capability.
    pub(crate) fn device_word(&self, device: SlotRef) -> u64 {
        let function = self.function(device);
        let is_it = |a: &&Attachment| a.owner.is_some() && Ok(a.function) == function;
        let found = self.attached.iter().find(is_it);
        found.map_or(0, |a| ATTACHED | a.stopped)
    }

    /// The IOMMU blocked something that this function did. From now on it blocks all of it, and does
    /// not mention it again.
    pub fn device_fault(&mut self, function: u16, why: Stopped) {
        let mut found = 0;
        let mut tell = (Ref::NULL, 0);
        let mut all = self.attached.iter_mut().enumerate();
        let it = all.find(|(_, a)| a.owner.is_some() && a.function == function);
        if let Some((index, a)) = it {
            if a.stopped != 0 {
                return;
            }
            a.stopped = why.word();
            (found, tell) = (domain(index), (a.note, a.bits));
        }
        self.block(function, found, true);
        self.signal(tell.0, tell.1);
    }

    /// `Bind` with `Role::Source`: to nothing if `device` is none.
    pub(crate) fn bind_source(
        &mut self,
        interrupt: SlotRef,
        device: Option<SlotRef>,
    ) -> Result<(), Status> {
        let (line, count) = self.arena.slot(interrupt).range();
        if count != 1 || line < LINES_ISA {
            return Err(Status::InvalidArgument);
        }
        let source = self.sources.get(line as usize);
        let source = *source.ok_or(Status::InvalidArgument)?;
        let Some(device) = device else {
            if source.interrupt == interrupt {
                self.free_source(line as usize);
            }
            return Ok(());
        };
        let function = self.function(device)?;
        if source.interrupt.is_some() {
            return Err(Status::Busy);
        }
        self.iommu_is_idle()?;
        let message = self.machine.message(line as u32, Some(function));
        if message == 0 {
            return Err(Status::NoMemory);
        }
        self.sources[line as usize] = Source {
            interrupt,
            device,
            message,
        };
        Ok(())
    }

    fn free_source(&mut self, line: usize) {
        self.sources[line] = Source::FREE;
        self.machine.message(line as u32, None);
    }

    /// Messages that this capability was needed for are nobody's any more.
    pub(crate) fn unbind_sources(&mut self, cap: SlotRef) {
        for line in LINES_ISA as usize..self.sources.len() {
            let source = &self.sources[line];
            if source.interrupt == cap || source.device == cap {
                self.free_source(line);
            }
        }
    }

    /// The message bound through this capability, or 0.
    pub(crate) fn message_of(&self, interrupt: SlotRef) -> u64 {
        let mut all = self.sources.iter();
        all.find(|s| s.interrupt == interrupt)
            .map_or(0, |s| s.message)
    }

    /// Nothing that the IOMMU was asked is open: what was somebody's can be somebody else's.
    fn iommu_is_idle(&self) -> Result<(), Status> {
        self.answered(self.machine.asked())
    }

    fn answered(&self, ticket: u64) -> Result<(), Status> {
        match self.machine.answered(ticket) {
            Answer::Done => Ok(()),
            Answer::Waiting => Err(Status::Again),
            Answer::Never => Err(Status::Timeout),
        }
    }

    /// A table that no IOMMU has cached any more may be used again. One that may be cached is lost.
    pub(crate) fn table_is_free(&self, space: Ref<AddressSpace>) -> bool {
        let s = self.arena.get(space);
        s.is_some_and(|s| s.kind() != SpaceKind::Dma) || self.iommu_is_idle().is_ok()
    }

    /// What a capability names was in an IOMMU's reach and was taken back: waits until it has answered
    /// all that it was asked by the time of the first call. `Again`: it has not yet. `Timeout`: it
    /// never will, and the capability stays, so that nothing is made of its memory.
    pub(crate) fn settle(&mut self, slot: SlotRef) -> Result<(), Status> {
        let cap = self.arena.slot(slot);
        if !cap.has_flag(flag::IOMMU) {
            return Ok(());
        }
        if !cap.has_flag(flag::SETTLING) {
            let ticket = self.machine.asked();
            let cap = self.arena.slot_mut(slot);
            cap.flags |= flag::SETTLING;
            cap.mark = ticket;
        }
        if cfg!(not(planted = "reused-before-answer")) {
            self.answered(self.arena.slot(slot).mark)?;
        }
        self.arena.slot_mut(slot).flags &= !(flag::IOMMU | flag::SETTLING);
        Ok(())
    }

    /// A capability moved: what was bound through it follows.
    pub(crate) fn rename_device(&mut self, from: SlotRef, to: SlotRef) {
        for a in self.attached.iter_mut().filter(|a| a.owner == from) {
            a.owner = to;
        }
        for source in &mut self.sources {
            for name in [&mut source.interrupt, &mut source.device] {
                if *name == from {
                    *name = to;
                }
            }
        }
    }
}
