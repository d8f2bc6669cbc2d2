//! Making the first component, `root`, out of the archive, and giving it everything.

use crate::cap_space::SLOTS_PER_FRAME;
use crate::id::{PhysAddr, Ref};
use crate::interrupt::LINES;
use crate::kernel::Kernel;
use crate::machine::Machine;
use crate::sched::SchedContext;
use crate::slot::{Slot, SlotRef, flag};
use crate::thread::{State, THREAD_FRAMES, Thread};
use crate::translate::{AddressSpace, Format, Leaf, SPACE_FRAMES};
use microvisor_abi::archive::Archive;
use microvisor_abi::boot::{self, Info, MEMORIES, MemoryRange};
use microvisor_abi::cap::{FUNCTIONS, Map, PRIORITY_MAX};
use microvisor_abi::{FRAME, Kind, Rights, SpaceKind};

/// What the core hands to root, besides memory.
#[derive(Debug)]
pub struct Resources<'a> {
    /// Memory not in use: RAM first, then device memory. `slot` is filled in here. The first RAM
    /// range that is large enough gives the frames for root itself.
    pub memories: &'a mut [MemoryRange],
    /// The archive, whose bytes the arena covers.
    pub archive: Archive<'a>,
    /// Physical address of the archive, 2 MiB aligned, in whole frames of 2 MiB of its own.
    pub archive_base: PhysAddr,
    /// Physical address of the log region, 2 MiB aligned, one frame of 2 MiB.
    pub log_base: PhysAddr,
    /// Facts to pass on; slots, counts and memories are filled in here.
    pub info: Info,
}

/// Why root could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// No range of RAM is large enough for root: this many frames are needed.
    NoMemory(u64),
    /// Root's segments overlap or are misplaced.
    Segments,
    /// More memories than root's information can list.
    TooManyMemories,
}

/// Takes frames from the front of a range.
struct Frames {
    next: PhysAddr,
    left: u64,
    needed: u64,
}

impl Frames {
    fn take(&mut self, frames: u64) -> Result<PhysAddr, Error> {
        if frames > self.left {
            return Err(Error::NoMemory(self.needed));
        }
        let at = self.next;
        self.next = at.add(frames * FRAME);
        self.left -= frames;
        Ok(at)
    }
}

/// Slots of root's capability space: a generous fixed number, 16 Ki.
const CAP_SPACE_FRAMES: u64 = 256;
/// Page tables for root's pool at the start; it adds more from its own memory.
const TABLES: u64 = 64;

impl<M: Machine> Kernel<M> {
    /// Builds root and makes it ready on CPU 0.
    pub fn boot(&mut self, resources: Resources<'_>) -> Result<(), Error> {
        let Resources {
            memories,
            archive,
            archive_base,
            log_base,
            mut info,
        } = resources;
        if memories.len() > MEMORIES {
            return Err(Error::TooManyMemories);
        }
        let image: u64 = archive
            .segments()
            .map(|s| s.memory_bytes.div_ceil(FRAME))
            .sum();
        let stack = boot::STACK_BYTES / FRAME;
        let needed = CAP_SPACE_FRAMES + SPACE_FRAMES + TABLES + THREAD_FRAMES + 2 + image + stack;
        let source = memories
            .iter_mut()
            .find(|m| m.device == 0 && m.frames > needed)
            .ok_or(Error::NoMemory(needed))?;
        let mut frames = Frames {
            next: PhysAddr(source.base),
            left: needed,
            needed,
        };
        source.base += needed * FRAME;
        source.frames -= needed;

        let caps = frames.take(CAP_SPACE_FRAMES)?;
        self.arena.zero(caps, CAP_SPACE_FRAMES * FRAME);
        let caps = self.arena.create_cap_space(caps, CAP_SPACE_FRAMES);
        let space =
            self.arena
                .create_space(frames.take(SPACE_FRAMES)?, SpaceKind::Host, self.core_root);
        self.arena.fill_space(space, frames.take(TABLES)?, TABLES);
        let at = frames.take(THREAD_FRAMES)?;
        self.arena.zero(at, THREAD_FRAMES * FRAME);
        let thread = self.arena.create::<Thread>(at);
        let sched = self.arena.create::<SchedContext>(frames.take(1)?);
        let info_frame = frames.take(1)?;

        self.load_image(&archive, space, &mut frames)?;
        for page in 0..stack {
            let at = frames.take(1)?;
            self.arena.zero(at, FRAME);
            let address = boot::STACK_TOP - boot::STACK_BYTES + page * FRAME;
            self.enter(space, address, at, Map::READ | Map::WRITE)?;
        }
        self.enter(
            space,
            boot::BUFFER_ADDRESS,
            thread.buffer(),
            Map::READ | Map::WRITE,
        )?;
        self.enter(space, boot::INFO_ADDRESS, info_frame, Map::READ)?;

        let mut place = Placer {
            caps: SlotRef((caps.addr().0 >> 6) as u32 + 1),
            next: boot::SLOT_FIRST,
        };
        self.give(
            place.at(boot::SLOT_CAP_SPACE),
            Slot {
                extra: CAP_SPACE_FRAMES,
                ..Slot::original(Kind::CapSpace, caps.raw())
            },
        );
        self.give(
            place.at(boot::SLOT_ADDRESS_SPACE),
            Slot::original(Kind::AddressSpace, space.raw()),
        );
        self.give(
            place.at(boot::SLOT_THREAD),
            Slot::original(Kind::Thread, thread.raw()),
        );
        self.give(
            place.at(boot::SLOT_SCHED),
            Slot::original(Kind::SchedContext, sched.raw()),
        );
        self.give(
            place.at(boot::SLOT_IO_PORTS),
            Slot::original(Kind::IoPorts, 0x1_0000 << 32),
        );
        self.give(
            place.at(boot::SLOT_INTERRUPTS),
            Slot::original(Kind::Interrupt, (LINES as u64) << 32),
        );
        self.give(
            place.at(boot::SLOT_DEVICES),
            Slot::original(Kind::Device, FUNCTIONS << 32),
        );
        let cpus = Slot::original(Kind::Cpu, (self.cpu_count as u64) << 32);
        self.give(
            place.at(boot::SLOT_CPUS),
            Slot {
                extra: PRIORITY_MAX,
                ..cpus
            },
        );
        self.give(place.at(boot::SLOT_INFO), frame(info_frame, 12));
        self.give(place.at(boot::SLOT_LOG), frame(log_base, 21));

        info.archive_slot = place.next;
        info.archive_bytes = archive.total_bytes() as u64;
        info.archive_frames = info.archive_bytes.div_ceil(2 << 20) as u32;
        for index in 0..info.archive_frames as u64 {
            let slot = place.take();
            self.give(slot, frame(archive_base.add(index * (2 << 20)), 21));
        }
        info.memory_count = memories.len() as u64;
        for (range, listed) in memories.iter_mut().zip(info.memories.iter_mut()) {
            range.slot = place.next;
            let slot = place.take();
            let mut cap = Slot::original(Kind::Memory, range.base);
            cap.extra = range.frames;
            cap.flags |= if range.device != 0 { flag::DEVICE } else { 0 };
            self.give(slot, cap);
            *listed = *range;
        }
        info.magic = boot::MAGIC;
        info.cpus = self.cpu_count as u64;
        info.free_slot = place.next;
        info.slots = (CAP_SPACE_FRAMES * SLOTS_PER_FRAME - 1) as u32;
        info.object_frames = [0; 16];
        for (kind, frames) in [
            (Kind::Thread, THREAD_FRAMES),
            (Kind::AddressSpace, SPACE_FRAMES),
            (Kind::Vcpu, 2 + self.vcpu_frames),
        ] {
            info.object_frames[kind as usize] = frames as u32;
        }
        self.arena.write(info_frame, info);

        let _ = self.sched_set(sched, 0, PRIORITY_MAX / 2, 1, 1);
        if let Some(t) = self.arena.get_mut(thread) {
            t.space = space;
            t.caps = caps;
            t.regs.rip = archive.entry();
            t.regs.rsp = boot::STACK_TOP;
            t.regs.rdi = boot::INFO_ADDRESS;
            t.regs.rflags = 0x202;
            t.state = State::Stopped;
        }
        let _ = self.bind_time(sched, thread);
        self.make_ready(thread);
        Ok(())
    }

    fn load_image(
        &mut self,
        archive: &Archive<'_>,
        space: Ref<AddressSpace>,
        frames: &mut Frames,
    ) -> Result<(), Error> {
        for segment in archive.segments() {
            let bytes = archive.segment_bytes(&segment);
            for page in 0..segment.memory_bytes.div_ceil(FRAME) {
                let at = frames.take(1)?;
                let content = self.arena.bytes_mut(at, FRAME as usize);
                content.fill(0);
                let from = bytes.get((page * FRAME) as usize..).unwrap_or(&[]);
                let length = from.len().min(FRAME as usize);
                if let (Some(to), Some(from)) = (content.get_mut(..length), from.get(..length)) {
                    to.copy_from_slice(from);
                }
                self.enter(space, segment.address + page * FRAME, at, segment.flags)?;
            }
        }
        Ok(())
    }

    /// Maps a page of root's that no capability names: it lives as long as root.
    fn enter(
        &mut self,
        space: Ref<AddressSpace>,
        address: u64,
        base: PhysAddr,
        flags: u64,
    ) -> Result<(), Error> {
        let leaf = Leaf {
            base,
            order: 12,
            flags,
            device: false,
        };
        self.arena
            .map_leaf(space, Format::Host, address, leaf)
            .map(|_| ())
            .map_err(|_| Error::Segments)
    }

    fn give(&mut self, slot: SlotRef, cap: Slot) {
        // Deriving from nothing cannot be too deep.
        let _ = self.arena.insert(SlotRef::NONE, slot, cap);
    }
}

/// A read-only frame.
fn frame(base: PhysAddr, order: u8) -> Slot {
    let mut cap = Slot::original(Kind::Frame, base.0);
    cap.rights = Rights::READ;
    cap.order = order;
    cap
}

struct Placer {
    caps: SlotRef,
    next: u32,
}

impl Placer {
    fn at(&self, slot: u32) -> SlotRef {
        SlotRef(self.caps.0 + slot)
    }

    fn take(&mut self) -> SlotRef {
        let slot = self.at(self.next);
        self.next += 1;
        slot
    }
}
