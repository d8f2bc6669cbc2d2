//! Interrupt lines: each is bound to at most one notification, and stays masked from the moment
//! it fires until it is acknowledged.

use crate::id::Ref;
use crate::kernel::Kernel;
use crate::machine::Machine;
use crate::notification::Notification;
use crate::slot::SlotRef;
use microvisor_abi::Status;

/// Lines that the core can bind. Others are beyond the capability that root has, so that nobody can
/// name them.
pub const LINES: usize = microvisor_abi::cap::LINES as usize;

/// One line's binding.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    pub(crate) notification: Ref<Notification>,
    pub(crate) bits: u64,
    /// The capability through which it was bound; losing that unbinds it.
    pub(crate) owner: SlotRef,
}

impl Line {
    /// Not bound.
    pub(crate) const FREE: Line = Line {
        notification: Ref::NULL,
        bits: 0,
        owner: SlotRef::NONE,
    };
}

impl<M: Machine> Kernel<M> {
    /// An interrupt arrived on a line. The caller has made sure that it does not fire again until
    /// `set_line` enables it.
    pub fn line(&mut self, line: u32) {
        let Some(l) = self.lines.get(line as usize).copied() else {
            return;
        };
        self.machine.set_line(line, false);
        if self.arena.alive(l.notification) {
            self.signal(l.notification, l.bits);
        }
    }

    /// Binds the only line of an `Interrupt` capability.
    pub(crate) fn bind_line(
        &mut self,
        owner: SlotRef,
        notification: Ref<Notification>,
        bits: u64,
    ) -> Result<(), Status> {
        let (first, count) = self.arena.slot(owner).range();
        if count != 1 {
            return Err(Status::InvalidArgument);
        }
        let line = self
            .lines
            .get_mut(first as usize)
            .ok_or(Status::InvalidArgument)?;
        if notification.is_null() {
            if line.owner == owner {
                *line = Line::FREE;
                self.machine.set_line(first as u32, false);
            }
            return Ok(());
        }
        if line.owner.is_some() && self.arena.alive(line.notification) {
            return Err(Status::Busy);
        }
        *line = Line {
            notification,
            bits,
            owner,
        };
        self.machine.set_line(first as u32, true);
        Ok(())
    }

    /// `InterruptControl` acknowledge.
    pub(crate) fn acknowledge(&mut self, cap: SlotRef, line: u64) -> Result<(), Status> {
        let (first, count) = self.arena.slot(cap).range();
        if line < first || line >= first + count {
            return Err(Status::InvalidArgument);
        }
        let l = self
            .lines
            .get(line as usize)
            .ok_or(Status::InvalidArgument)?;
        if !self.arena.alive(l.notification) {
            return Err(Status::NotBound);
        }
        self.machine.set_line(line as u32, true);
        Ok(())
    }

    /// Frees the lines that were bound through a capability.
    pub(crate) fn unbind_lines(&mut self, owner: SlotRef) {
        for (number, line) in self.lines.iter_mut().enumerate() {
            if line.owner == owner {
                *line = Line::FREE;
                self.machine.set_line(number as u32, false);
            }
        }
    }

    /// A capability moved: its lines follow.
    pub(crate) fn rename_owner(&mut self, from: SlotRef, to: SlotRef) {
        for line in self.lines.iter_mut().filter(|l| l.owner == from) {
            line.owner = to;
        }
        self.rename_device(from, to);
    }
}
