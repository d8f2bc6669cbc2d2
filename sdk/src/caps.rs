//! What can be done with each kind of capability. One trait per kind, because the type
//! [`Cap`] lives in `idl`; `use sdk::prelude::*` brings them all.
//!
//! Every method is one system call, repeated while the core answers `Again`. Methods that make a
//! capability take a slot by themselves; those ending in `_in` place it into another space.

mod hardware;
mod mapping;

use idl::cap::{
    AddressSpace, CapSpace, Cpu, Device, Endpoint, Frame, Interrupt, IoPorts, Memory, Notification,
    Reply, SchedContext, Tables, Thread, Vcpu,
};
pub use idl::{Cap, cap};
use microvisor_abi::cap::{Role, Slot};
use microvisor_abi::{Call, Kind, Rights, SpaceKind, Status, thread, vcpu};

pub use self::hardware::{DeviceCap, InterruptCap, PortsCap};
pub use self::mapping::{AddressSpaceCap, MapError, MapKind, Mappable};
use crate::{local, raw, slots};

/// The own capability space, where calls take one as an argument.
pub const OWN: Cap<CapSpace> = Cap::new(0);

/// Marker types of `idl` and the numbers that the core knows.
pub trait KindOf {
    /// The number.
    const KIND: Kind;
}

macro_rules! kinds {
    ($($name:ident)*) => {$(impl KindOf for $name { const KIND: Kind = Kind::$name; })*};
}
kinds!(Memory Frame Tables CapSpace AddressSpace Thread SchedContext Endpoint Reply Notification
    Vcpu Interrupt IoPorts Cpu Device);

/// Where and how a copy is made; see `Call::Copy`.
#[derive(Clone, Copy, Debug)]
pub struct CopyTo {
    /// Space that gets it.
    pub space: Cap<CapSpace>,
    /// Empty slot there.
    pub slot: u32,
    /// Rights to leave.
    pub rights: Rights,
    /// Badge, or sub-range (see the call).
    pub badge: u64,
    /// Order of a sub-frame, or highest priority of CPUs; 0 otherwise.
    pub order: u64,
}

/// Any capability.
pub trait AnyCap<K>: Sized {
    /// Copies it as told.
    fn copy_to(self, to: CopyTo) -> Result<(), Status>;
    /// A copy in an own slot with at most these rights.
    fn copy(self, rights: Rights) -> Result<Cap<K>, Status>;
    /// A copy with a badge.
    fn mint(self, rights: Rights, badge: u64) -> Result<Cap<K>, Status>;
    /// Moves it to an empty slot of another space; the own slot is free afterwards.
    fn move_to(self, space: Cap<CapSpace>, slot: u32) -> Result<(), Status>;
    /// Deletes it with all that was derived from it, and frees the slot. Memory that was mapped
    /// through it faults when touched; its addresses are not used again.
    fn delete(self) -> Result<(), Status>;
    /// Deletes all that was derived from it.
    fn revoke(self) -> Result<(), Status>;
}

impl<K> AnyCap<K> for Cap<K> {
    fn copy_to(self, to: CopyTo) -> Result<(), Status> {
        raw::status_until_done(
            Call::Copy,
            [
                self.slot().into(),
                to.space.slot().into(),
                to.slot.into(),
                to.rights.0.into(),
                to.badge,
                to.order,
            ],
        )
    }

    fn copy(self, rights: Rights) -> Result<Cap<K>, Status> {
        self.mint(rights, 0)
    }

    fn mint(self, rights: Rights, badge: u64) -> Result<Cap<K>, Status> {
        in_new_slot(|slot| {
            self.copy_to(CopyTo {
                space: OWN,
                slot,
                rights,
                badge,
                order: 0,
            })
        })
    }

    fn move_to(self, space: Cap<CapSpace>, slot: u32) -> Result<(), Status> {
        raw::status_until_done(
            Call::Move,
            [
                0,
                self.slot().into(),
                space.slot().into(),
                slot.into(),
                0,
                0,
            ],
        )?;
        slots::give_back(self.slot());
        Ok(())
    }

    fn delete(self) -> Result<(), Status> {
        raw::status_until_done(Call::Delete, [0, self.slot().into(), 0, 0, 0, 0])?;
        slots::give_back(self.slot());
        Ok(())
    }

    fn revoke(self) -> Result<(), Status> {
        raw::status_until_done(Call::Revoke, [0, self.slot().into(), 0, 0, 0, 0])
    }
}

fn in_new_slot<K>(make: impl FnOnce(u32) -> Result<(), Status>) -> Result<Cap<K>, Status> {
    let slot = slots::take().ok_or(Status::SlotOccupied)?;
    match make(slot) {
        Ok(()) => Ok(Cap::new(slot)),
        Err(status) => {
            slots::give_back(slot);
            Err(status)
        }
    }
}

/// Deletes what is in a slot of another capability space (its holder's, for instance).
pub fn delete_in(space: Cap<CapSpace>, slot: u32) -> Result<(), Status> {
    raw::status_until_done(Call::Delete, [space.slot().into(), slot.into(), 0, 0, 0, 0])
}

/// What is in a slot of a capability space that one holds ([`OWN`]: the own one). A slot beyond its
/// end is `InvalidCap`.
pub fn inspect(space: Cap<CapSpace>, slot: u32) -> Result<Slot, Status> {
    let (status, [what, number, more, ..]) = raw::call(
        Call::Inspect,
        [space.slot().into(), slot.into(), 0, 0, 0, 0],
    );
    status.result()?;
    Slot::from_words(what, number, more).ok_or(Status::Unsupported)
}

/// Making objects out of untyped memory.
pub trait MemoryCap {
    /// `count` objects of kind `K` in consecutive slots of `space`. `size` as in `Call::Retype`.
    fn retype_in<K: KindOf>(
        self,
        size: u64,
        space: Cap<CapSpace>,
        slot: u32,
        count: u32,
    ) -> Result<(), Status>;
    /// `count` objects in own slots; answers the first, the others follow it.
    fn retype_many<K: KindOf>(self, size: u64, count: u32) -> Result<Cap<K>, Status>;
    /// One object. `size` is 0 for kinds that have one size.
    fn retype<K: KindOf>(self, size: u64) -> Result<Cap<K>, Status>;
    /// An address space.
    fn address_space(self, kind: SpaceKind) -> Result<Cap<AddressSpace>, Status>;
}

impl MemoryCap for Cap<Memory> {
    fn retype_in<K: KindOf>(
        self,
        size: u64,
        space: Cap<CapSpace>,
        slot: u32,
        count: u32,
    ) -> Result<(), Status> {
        let mut made = 0;
        while made < count {
            let (status, results) = raw::call(
                Call::Retype,
                [
                    self.slot().into(),
                    K::KIND as u64 | size << 8,
                    space.slot().into(),
                    u64::from(slot + made) | u64::from(count - made) << 32,
                    0,
                    0,
                ],
            );
            match status {
                Status::Ok => {
                    // At least one, or this would never end.
                    let done = u32::try_from(results[0]).unwrap_or(0);
                    if done == 0 {
                        return Err(Status::NoMemory);
                    }
                    made = made.saturating_add(done);
                }
                Status::Again => {}
                other => {
                    // All or nothing: what was made goes away again.
                    for undo in slot..slot + made {
                        let _ = delete_in(space, undo);
                    }
                    return Err(other);
                }
            }
        }
        Ok(())
    }

    fn retype_many<K: KindOf>(self, size: u64, count: u32) -> Result<Cap<K>, Status> {
        let first = slots::take_run(count).ok_or(Status::SlotOccupied)?;
        match self.retype_in::<K>(size, OWN, first, count) {
            Ok(()) => Ok(Cap::new(first)),
            Err(status) => {
                (first..first + count).for_each(slots::give_back);
                Err(status)
            }
        }
    }

    fn retype<K: KindOf>(self, size: u64) -> Result<Cap<K>, Status> {
        self.retype_many(size, 1)
    }

    fn address_space(self, kind: SpaceKind) -> Result<Cap<AddressSpace>, Status> {
        self.retype(kind as u64)
    }
}

/// Threads.
pub trait ThreadCap {
    /// Sets everything a stopped thread needs.
    fn configure(
        self,
        space: Cap<AddressSpace>,
        caps: Cap<CapSpace>,
        entry: u64,
        stack: u64,
        argument: u64,
    ) -> Result<(), Status>;
    /// Lets it run.
    fn resume(self) -> Result<(), Status>;
    /// Stops it.
    fn suspend(self) -> Result<(), Status>;
    /// Ends the blocking call or vCPU run that it is in.
    fn cancel(self) -> Result<(), Status>;
    /// Why and where it stands.
    fn inspect(self) -> Result<thread::Report, Status>;
}

fn thread_control(thread: Cap<Thread>, op: thread::Op) -> Result<(), Status> {
    raw::status_until_done(
        Call::ThreadControl,
        [thread.slot().into(), op as u64, 0, 0, 0, 0],
    )
}

impl ThreadCap for Cap<Thread> {
    fn configure(
        self,
        space: Cap<AddressSpace>,
        caps: Cap<CapSpace>,
        entry: u64,
        stack: u64,
        argument: u64,
    ) -> Result<(), Status> {
        raw::status_until_done(
            Call::ThreadConfigure,
            [
                self.slot().into(),
                space.slot().into(),
                caps.slot().into(),
                entry,
                stack,
                argument,
            ],
        )
    }
    fn resume(self) -> Result<(), Status> {
        thread_control(self, thread::Op::Resume)
    }
    fn suspend(self) -> Result<(), Status> {
        thread_control(self, thread::Op::Suspend)
    }
    fn cancel(self) -> Result<(), Status> {
        thread_control(self, thread::Op::Cancel)
    }
    fn inspect(self) -> Result<thread::Report, Status> {
        thread_control(self, thread::Op::Inspect)?;
        local::with_buffer(|buffer| thread::Report::from_bytes(buffer))
            .ok_or(Status::InvalidArgument)
    }
}

fn bind(what: u32, to: u32, role: Role) -> Result<(), Status> {
    raw::status_until_done(Call::Bind, [what.into(), to.into(), role as u64, 0, 0, 0])
}

/// Endpoints, for whoever wired them.
pub trait EndpointCap {
    /// The server behind it is being replaced: callers that it leaves without an answer hear
    /// `Restarted`. Needs `Rights::MANAGE`.
    fn replace_server(self) -> Result<(), Status>;
}

impl EndpointCap for Cap<idl::cap::Endpoint> {
    fn replace_server(self) -> Result<(), Status> {
        bind(self.slot(), 0, Role::Server)
    }
}

/// Scheduling contexts.
pub trait SchedCap {
    /// Sets CPU, priority and budget per period in TSC ticks (equal: no limit).
    fn set(
        self,
        cpus: Cap<Cpu>,
        cpu: u32,
        priority: u8,
        budget: u64,
        period: u64,
    ) -> Result<(), Status>;
    /// The thread runs on it.
    fn bind(self, thread: Cap<Thread>) -> Result<(), Status>;
}

impl SchedCap for Cap<SchedContext> {
    fn set(
        self,
        cpus: Cap<Cpu>,
        cpu: u32,
        priority: u8,
        budget: u64,
        period: u64,
    ) -> Result<(), Status> {
        raw::status_until_done(
            Call::SchedSet,
            [
                self.slot().into(),
                cpus.slot().into(),
                cpu.into(),
                priority.into(),
                budget,
                period,
            ],
        )
    }
    fn bind(self, thread: Cap<Thread>) -> Result<(), Status> {
        bind(self.slot(), thread.slot(), Role::Time)
    }
}

/// Notifications.
pub trait NotificationCap {
    /// Sets the badge's bits, or `bits` when this capability has no badge.
    fn signal(self, bits: u64) -> Result<(), Status>;
    /// Takes all bits; waits until one is set or the absolute TSC `deadline` passes.
    fn wait(self, deadline: u64) -> Result<u64, Status>;
    /// Takes all bits now; 0 if none are set.
    fn poll(self) -> Result<u64, Status>;
    /// Bits arrive where `thread` receives messages.
    fn bind_messages(self, thread: Cap<Thread>) -> Result<(), Status>;
    /// Is signalled when `thread` faults.
    fn bind_faults(self, thread: Cap<Thread>) -> Result<(), Status>;
    /// Pending bits end or prevent runs of `vcpu`.
    fn bind_run(self, vcpu: Cap<Vcpu>) -> Result<(), Status>;
}

impl NotificationCap for Cap<Notification> {
    #[inline]
    fn signal(self, bits: u64) -> Result<(), Status> {
        raw::status(Call::Signal, [self.slot().into(), bits, 0, 0, 0, 0])
    }
    #[inline]
    fn wait(self, deadline: u64) -> Result<u64, Status> {
        let (status, results) = raw::call(Call::Wait, [self.slot().into(), deadline, 0, 0, 0, 0]);
        status.result().map(|()| results[0])
    }
    fn poll(self) -> Result<u64, Status> {
        match self.wait(microvisor_abi::NOW) {
            Err(Status::Timeout) => Ok(0),
            other => other,
        }
    }
    fn bind_messages(self, thread: Cap<Thread>) -> Result<(), Status> {
        bind(self.slot(), thread.slot(), Role::Messages)
    }
    fn bind_faults(self, thread: Cap<Thread>) -> Result<(), Status> {
        bind(self.slot(), thread.slot(), Role::Faults)
    }
    fn bind_run(self, vcpu: Cap<Vcpu>) -> Result<(), Status> {
        bind(self.slot(), vcpu.slot(), Role::Run)
    }
}

/// Virtual CPUs; the state page is [`crate::vcpu::StatePage`].
pub trait VcpuCap {
    /// Sets the guest address space; once, before the first run.
    fn configure(self, space: Cap<AddressSpace>) -> Result<(), Status>;
    /// Runs it on this thread until it exits.
    fn run(self) -> Result<(), Status>;
    /// Makes the current or the next run return.
    fn poke(self) -> Result<(), Status>;
    /// Brings `groups` (`abi::vcpu::group`) of the state page up to date.
    fn fetch(self, groups: u64) -> Result<(), Status>;
    /// Reads a part of the XSAVE image from `offset`; answers the whole image's size.
    fn get_extended(self, offset: u64, into: &mut [u8]) -> Result<u64, Status>;
    /// Writes a part of the XSAVE image (at most 4032 bytes) at `offset`; answers its size.
    fn set_extended(self, offset: u64, bytes: &[u8]) -> Result<u64, Status>;
}

fn vcpu_control(vcpu: Cap<Vcpu>, op: vcpu::Op, a: u64, b: u64) -> Result<u64, Status> {
    loop {
        let (status, results) = raw::call(
            Call::VcpuControl,
            [vcpu.slot().into(), op as u64, a, b, 0, 0],
        );
        match status {
            Status::Again => {}
            other => return other.result().map(|()| results[0]),
        }
    }
}

impl VcpuCap for Cap<Vcpu> {
    fn configure(self, space: Cap<AddressSpace>) -> Result<(), Status> {
        vcpu_control(self, vcpu::Op::Configure, space.slot().into(), 0).map(|_| ())
    }
    #[inline(always)]
    fn run(self) -> Result<(), Status> {
        raw::status_of_one(Call::VcpuRun, self.slot().into())
    }
    fn poke(self) -> Result<(), Status> {
        vcpu_control(self, vcpu::Op::Poke, 0, 0).map(|_| ())
    }
    fn fetch(self, groups: u64) -> Result<(), Status> {
        vcpu_control(self, vcpu::Op::Fetch, groups, 0).map(|_| ())
    }
    fn get_extended(self, offset: u64, into: &mut [u8]) -> Result<u64, Status> {
        let size = vcpu_control(self, vcpu::Op::GetExtended, offset, 0)?;
        local::with_buffer(|buffer| {
            let left = size.saturating_sub(offset);
            let count = into
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX))
                .min(microvisor_abi::message::PAYLOAD_MAX);
            if let (Some(to), Some(from)) = (into.get_mut(..count), buffer.get(..count)) {
                to.copy_from_slice(from);
            }
        });
        Ok(size)
    }
    fn set_extended(self, offset: u64, bytes: &[u8]) -> Result<u64, Status> {
        local::with_buffer(|buffer| {
            let place = buffer
                .get_mut(..microvisor_abi::message::PAYLOAD_MAX)
                .and_then(|payload| payload.get_mut(..bytes.len()))
                .ok_or(Status::InvalidArgument)?;
            place.copy_from_slice(bytes);
            Ok(())
        })?;
        vcpu_control(self, vcpu::Op::SetExtended, offset, bytes.len() as u64)
    }
}
