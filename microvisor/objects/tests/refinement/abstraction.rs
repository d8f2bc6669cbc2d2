//! The real state of the objects as the specification sees it: every capability, object, queue,
//! mapping and table, read out of the arena.
//!
//! What the specification does not know (generations, links, marks of zeroing, which frame is which
//! table) disappears here; everything else is compared after every step.

use crate::arena::{Arena, Object};
use crate::cap_space::CapSpace;
use crate::id::{FrameKind, PhysAddr, Ref};
use crate::kernel::Kernel;
use crate::refinement::world::Fake;
use crate::slot::{Slot, SlotRef, flag};
use crate::thread::{State as Doing, Thread};
use crate::translate::AddressSpace;
use microvisor_abi::{Kind, SpaceKind};
use microvisor_spec::state as spec;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::{format, vec};

type Frame = u64;

/// Bits of a translation entry that hold an address (Intel SDM vol. 3, 4.5).
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Everything, abstracted. `enabled` are the interrupt lines that the machine lets through.
pub fn abstraction(
    kernel: &Kernel<Fake>,
    now: u64,
    enabled: BTreeSet<u64>,
) -> Result<spec::State, String> {
    let reader = Reader {
        kernel,
        arena: &kernel.arena,
    };
    let mut state = spec::State {
        machine: spec::Machine {
            slice: kernel.slice,
            virtualisation: crate::machine::Machine::virtualisation(&kernel.machine),
            vcpu_frames: 2 + kernel.vcpu_frames,
            lines: crate::interrupt::LINES as u64,
            dma: crate::machine::Machine::dma_tables(&kernel.machine).map(|dma| dma.bits),
            message: 0xfee0_0000,
        },
        now,
        caps: BTreeMap::new(),
        cap_spaces: BTreeMap::new(),
        spaces: BTreeMap::new(),
        threads: BTreeMap::new(),
        scheds: BTreeMap::new(),
        endpoints: BTreeMap::new(),
        replies: BTreeMap::new(),
        notifications: BTreeMap::new(),
        vcpus: BTreeMap::new(),
        lines: BTreeMap::new(),
        enabled,
        devices: BTreeMap::new(),
        sources: BTreeMap::new(),
        cpus: vec![],
    };
    for frame in 0..kernel.arena.frames() {
        reader.object(frame, &mut state)?;
    }
    reader.capabilities(&mut state)?;
    reader.lines(&mut state)?;
    reader.devices(&mut state)?;
    for index in 0..kernel.cpu_count {
        let cpu = reader.cpu(index)?;
        state.cpus.push(cpu);
    }
    super::links::check(kernel, &state)?;
    Ok(state)
}

struct Reader<'a> {
    kernel: &'a Kernel<Fake>,
    arena: &'a Arena,
}

impl Reader<'_> {
    /// A reference, as a name: nothing if its object is gone.
    fn name<T>(&self, object: Ref<T>) -> Option<Frame> {
        self.arena.alive(object).then_some(object.addr().frame())
    }

    fn at<T: Object>(&self, frame: Frame) -> Result<&T, String> {
        let object = Ref::new(frame as u32, self.arena.tag_of(frame));
        self.arena
            .get::<T>(object)
            .ok_or_else(|| format!("frame {frame:#x} holds no object"))
    }

    fn object(&self, frame: Frame, state: &mut spec::State) -> Result<(), String> {
        let kind = self.arena.tag_of(frame) as u8;
        let is = |k: FrameKind| kind == k as u8;
        if is(FrameKind::CapSpace) {
            let slots = self.at::<CapSpace>(frame)?.slots;
            let dead = true;
            state
                .cap_spaces
                .insert(frame, spec::CapSpace { slots, dead });
        } else if is(FrameKind::AddressSpace) {
            state.spaces.insert(frame, self.space(frame)?);
        } else if is(FrameKind::Thread) {
            state.threads.insert(frame, self.thread(frame)?);
        } else if is(FrameKind::SchedContext) {
            let s = self.at::<crate::sched::SchedContext>(frame)?;
            let limited = s.budget < s.period;
            let context = spec::SchedContext {
                thread: self.name(s.thread),
                set: s.set.then_some([s.cpu, s.priority, s.budget, s.period]),
                remaining: if limited { s.remaining } else { 0 },
                refill: if limited { s.refill } else { 0 },
            };
            state.scheds.insert(frame, context);
        } else if is(FrameKind::Endpoint) {
            let e = self.at::<crate::endpoint::Endpoint>(frame)?;
            let queue = self.queue(e.head)?;
            let endpoint = spec::Endpoint {
                receivers: e.receivers && !queue.is_empty(),
                queue,
                epoch: e.epoch,
            };
            state.endpoints.insert(frame, endpoint);
        } else if is(FrameKind::Reply) {
            let r = self.at::<crate::endpoint::Reply>(frame)?;
            let reply = spec::Reply {
                caller: self.name(r.caller),
                receiver: self.name(r.receiver),
            };
            state.replies.insert(frame, reply);
        } else if is(FrameKind::Notification) {
            let n = self.at::<crate::notification::Notification>(frame)?;
            let notification = spec::Notification {
                bits: n.bits.load(Ordering::SeqCst),
                queue: self.queue(n.head)?,
                thread: self.name(n.thread),
                vcpu: self.name(n.vcpu),
            };
            state.notifications.insert(frame, notification);
        } else if is(FrameKind::Vcpu) {
            let v = self.at::<crate::vcpu::Vcpu>(frame)?;
            let running = v.running.load(Ordering::SeqCst) as usize;
            let vcpu = spec::Vcpu {
                space: self.name(v.space.get()),
                notification: self.name(v.notification.get()),
                running: running.checked_sub(1),
                poked: v.poked.load(Ordering::SeqCst) != 0,
            };
            state.vcpus.insert(frame, vcpu);
        }
        Ok(())
    }

    /// A queue of threads, from its head on.
    fn queue(&self, head: Ref<Thread>) -> Result<Vec<Frame>, String> {
        let mut queue = vec![];
        let mut at = head;
        while !at.is_null() {
            let t = self.arena.get(at).ok_or("a dead thread is queued")?;
            queue.push(at.addr().frame());
            if queue.len() > 10_000 {
                return Err("a queue has no end".into());
            }
            at = t.queue_next;
        }
        Ok(queue)
    }

    fn thread(&self, frame: Frame) -> Result<spec::Thread, String> {
        let t = self.at::<Thread>(frame)?;
        let r = &t.regs;
        let sched = self.name(t.sched);
        let endpoint = self.name(t.endpoint);
        let reply = self.name(t.reply);
        let doing = match t.state {
            Doing::Stopped => spec::Doing::Stopped,
            Doing::Faulted => spec::Doing::Faulted,
            Doing::Ready => spec::Doing::Ready,
            Doing::Running => spec::Doing::Running,
            Doing::Throttled => spec::Doing::Throttled,
            Doing::Sending => spec::Doing::Sending {
                endpoint: endpoint.ok_or("sends to nothing")?,
                badge: t.badge,
                grant: t.called_by.has(microvisor_abi::Rights::GRANT),
            },
            Doing::AwaitingReply => spec::Doing::Awaiting {
                endpoint,
                epoch: t.epoch,
                reply: reply.ok_or("awaits an answer from nothing")?,
                grant: t.called_by.has(microvisor_abi::Rights::GRANT),
            },
            Doing::Receiving => spec::Doing::Receiving {
                at: if t.bound_only {
                    None
                } else {
                    Some((
                        endpoint.ok_or("receives from nothing")?,
                        reply.ok_or("receives without a reply object")?,
                    ))
                },
            },
            Doing::Waiting => spec::Doing::Waiting {
                notification: self.name(t.notification).ok_or("waits for nothing")?,
            },
        };
        let mut buffer = vec![0u8; 4096];
        for (index, chunk) in buffer.chunks_exact_mut(8).enumerate() {
            let at = PhysAddr((frame + 1) << 12).add(index as u64 * 8);
            chunk.copy_from_slice(&self.arena.read::<u64>(at).to_le_bytes());
        }
        let used = buffer.iter().rposition(|b| *b != 0).map_or(0, |n| n + 1);
        buffer.truncate(used);
        let mut ports: Vec<(u64, u64)> = t
            .ports
            .iter()
            .filter(|p| p.count != 0)
            .map(|p| (p.first.into(), p.count.into()))
            .collect();
        ports.sort_unstable();
        let deadline = t.timed.then_some(t.deadline);
        Ok(spec::Thread {
            doing,
            rax: r.rax,
            words: [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9],
            control: [r.rip, r.rsp, r.rflags],
            buffer,
            space: self.name(t.space),
            caps: self.name(t.caps),
            sched,
            cpu: t.cpu.into(),
            turn_left: t.turn_left,
            deadline,
            bound: self.name(t.bound),
            heard: t.heard,
            supervisor: self.name(t.fault_note).map(|n| (n, t.fault_bits)),
            fault: [t.fault_vector.into(), t.fault_code, t.fault_address],
            ports,
            refused: t.refused,
            run: if t.vcpu.is_null() {
                spec::Run::No
            } else {
                self.name(t.vcpu).map_or(spec::Run::Lost, spec::Run::In)
            },
        })
    }

    fn space(&self, frame: Frame) -> Result<spec::AddressSpace, String> {
        let s = self.at::<AddressSpace>(frame)?;
        let mut space = spec::AddressSpace {
            kind: s.kind(),
            root: s.root.frame(),
            leaves: BTreeMap::new(),
            tables: BTreeSet::new(),
            frames: BTreeSet::new(),
        };
        self.table(&mut space, s.root, 4, 0)?;
        let mut free = s.pool;
        while free.0 != 0 {
            if !space.frames.insert(free.frame()) {
                return Err(format!("table {:#x} is in use and free", free.frame()));
            }
            free = PhysAddr(self.arena.read(free));
        }
        Ok(space)
    }

    fn table(
        &self,
        space: &mut spec::AddressSpace,
        table: PhysAddr,
        level: u64,
        base: u64,
    ) -> Result<(), String> {
        // The upper half of host spaces is the core's own.
        let host = space.kind == SpaceKind::Host;
        let end = if level == 4 && host { 256 } else { 512 };
        for index in 0..end {
            let entry: u64 = self.arena.read(table.add(index * 8));
            if entry & 1 == 0 {
                if entry != 0 {
                    return Err(format!("an entry that is not present says {entry:#x}"));
                }
                continue;
            }
            let address = base + (index << (12 + 9 * (level - 1)));
            let to = PhysAddr(entry & ADDRESS);
            if level > 1 && entry & 1 << 7 == 0 {
                if !space.frames.insert(to.frame()) {
                    return Err(format!("table {:#x} hangs twice", to.frame()));
                }
                if self.arena.tag_of(to.frame()) as u8 != FrameKind::PageTable as u8 {
                    return Err(format!("frame {:#x} is no table", to.frame()));
                }
                space.tables.insert((level - 1, address));
                self.table(space, to, level - 1, address)?;
                continue;
            }
            // Read, write, not NX; uncached is PCD and PWT; user always.
            let write = if entry & 2 != 0 { 2 } else { 0 };
            // Second-level tables of VT-d have none of the others.
            let dma = space.kind == SpaceKind::Dma;
            let execute = if entry >> 63 == 0 && !dma { 4 } else { 0 };
            if (entry & 4 == 0) != dma {
                return Err(format!("{address:#x} is not for users"));
            }
            let leaf = spec::Leaf {
                base: to.frame(),
                order: (12 + 9 * (level - 1)) as u8,
                access: 1 | write | execute,
                device: entry & 0x18 == 0x18 && !dma,
            };
            space.leaves.insert(address, leaf);
        }
        Ok(())
    }

    /// Where a slot is.
    fn place(&self, state: &spec::State, slot: SlotRef) -> Result<spec::Place, String> {
        let frame = slot.addr().frame();
        let space = state.cap_spaces.range(..=frame).next_back();
        let (space, table) = space.ok_or("a slot outside every space")?;
        let first = SlotRef(((space << 12) >> 6) as u32 + 1);
        let number = slot.0.wrapping_sub(first.0);
        if u64::from(number) >= table.slots {
            return Err(format!("slot {:#x} is outside every space", slot.addr().0));
        }
        let space = *space;
        Ok(spec::Place {
            space,
            slot: number,
        })
    }

    fn capabilities(&self, state: &mut spec::State) -> Result<(), String> {
        let spaces: Vec<(Frame, u64)> = state
            .cap_spaces
            .iter()
            .map(|(frame, space)| (*frame, space.slots))
            .collect();
        let mut heads = vec![];
        let mut count = 0;
        for (space, slots) in spaces {
            for number in 0..slots {
                let at = SlotRef(((space << 12) >> 6) as u32 + 1 + number as u32);
                let slot = self.arena.slot(at);
                if slot.is_empty() {
                    if slot.prev.is_some() || slot.next.is_some() {
                        return Err("an empty slot has links".into());
                    }
                    continue;
                }
                count += 1;
                if !slot.prev.is_some() {
                    heads.push(at);
                }
            }
        }
        for head in heads {
            self.tree(head, state)?;
        }
        if state.caps.len() != count {
            return Err("capabilities that no list holds".into());
        }
        Ok(())
    }

    /// One list in pre-order: from depths to parents and children. A capability whose children are
    /// being handed up counts as past all of them.
    fn tree(&self, head: SlotRef, state: &mut spec::State) -> Result<(), String> {
        let mut above: Vec<(u16, spec::Place)> = vec![];
        let (mut at, mut before) = (head, SlotRef::NONE);
        let mut leaving: Option<(SlotRef, Slot)> = None;
        while at.is_some() {
            let slot = *self.arena.slot(at);
            if slot.prev != before {
                return Err("links of slots do not agree".into());
            }
            if slot.is_empty() {
                return Err("a list goes through an empty slot".into());
            }
            if leaving.is_some_and(|(_, l)| slot.depth <= l.depth) {
                let (at, slot) = leaving.take().ok_or("nobody leaves")?;
                self.entry(at, &slot, slot.depth, &mut above, state)?;
            }
            if self.arena.is_leaving(at) {
                leaving = Some((at, slot));
            } else {
                let depth = slot.depth - u16::from(leaving.is_some());
                self.entry(at, &slot, depth, &mut above, state)?;
            }
            (before, at) = (at, slot.next);
        }
        if let Some((at, slot)) = leaving {
            self.entry(at, &slot, slot.depth, &mut above, state)?;
        }
        // What a memory has handed out means nothing while nothing is made of it.
        for cap in state.caps.values_mut() {
            if let spec::What::Untyped { used, .. } = &mut cap.what
                && cap.children.is_empty()
            {
                *used = 0;
            }
        }
        Ok(())
    }

    /// One entry of a list; `above` are those it may have been derived from.
    fn entry(
        &self,
        at: SlotRef,
        slot: &Slot,
        depth: u16,
        above: &mut Vec<(u16, spec::Place)>,
        state: &mut spec::State,
    ) -> Result<(), String> {
        let place = self.place(state, at)?;
        above.truncate(above.partition_point(|(d, _)| *d < depth));
        let parent = above.last().map(|(_, place)| *place);
        above.push((depth, place));
        let mut cap = self.cap(slot)?;
        cap.parent = parent;
        if let Some(parent) = parent.and_then(|p| state.caps.get_mut(&p)) {
            parent.children.push(place);
        }
        if state.caps.insert(place, cap).is_some() {
            return Err("a slot is in two lists".into());
        }
        if slot.kind() == Kind::CapSpace
            && slot.has_flag(flag::ORIGINAL)
            && !slot.has_flag(flag::DYING)
            && let Some(space) = self.name(slot.object::<CapSpace>())
            && let Some(space) = state.cap_spaces.get_mut(&space)
        {
            space.dead = false;
        }
        Ok(())
    }

    fn cap(&self, slot: &Slot) -> Result<spec::Cap, String> {
        let kind = slot.kind();
        let device = slot.has_flag(flag::DEVICE);
        let (first, count) = slot.range();
        let what = match kind {
            Kind::Null => return Err("an empty capability".into()),
            Kind::Memory => spec::What::Untyped {
                base: slot.object >> 12,
                frames: slot.extra,
                device,
                used: slot.mark & 0xffff_ffff,
            },
            Kind::Frame => spec::What::Page {
                base: slot.object >> 12,
                order: slot.order,
                device,
            },
            Kind::Tables => spec::What::Tables {
                base: slot.object >> 12,
                frames: slot.extra,
                donated: slot.has_flag(flag::DONATED),
                to: self.name(Ref::<AddressSpace>::from_raw(slot.space)),
            },
            Kind::Interrupt | Kind::IoPorts | Kind::Device | Kind::Cpu => spec::What::Range {
                kind,
                first,
                count,
                highest: if kind == Kind::Cpu { slot.extra } else { 0 },
            },
            _ => spec::What::Object {
                kind,
                at: self.name(slot.object::<Thread>()),
                number: slot.extra,
            },
        };
        let settling = slot.has_flag(flag::SETTLING) && kind == Kind::Frame;
        let mapped = (slot.has_flag(flag::MAPPED) && !settling)
            .then(|| self.name(Ref::<AddressSpace>::from_raw(slot.space)))
            .flatten();
        let address = if kind == Kind::IoPorts {
            0
        } else {
            slot.address
        };
        Ok(spec::Cap {
            what,
            rights: slot.rights.0,
            original: slot.has_flag(flag::ORIGINAL),
            mapped: mapped.map(|space| (space, address)),
            settling,
            parent: None,
            children: vec![],
        })
    }

    fn lines(&self, state: &mut spec::State) -> Result<(), String> {
        for (number, line) in self.kernel.lines.iter().enumerate() {
            if !line.owner.is_some() {
                continue;
            }
            let owner = self.place(state, line.owner)?;
            let to = self.name(line.notification).map(|n| (n, line.bits));
            state.lines.insert(number as u64, spec::Line { owner, to });
        }
        Ok(())
    }

    fn devices(&self, state: &mut spec::State) -> Result<(), String> {
        for a in self.kernel.attached.iter().filter(|a| a.owner.is_some()) {
            let device = spec::Device {
                owner: self.place(state, a.owner)?,
                space: self
                    .name(a.space)
                    .ok_or("attached to a space that is gone")?,
                tell: self.name(a.note).map(|n| (n, a.bits)),
                stopped: a.stopped,
            };
            if state.devices.insert(a.function.into(), device).is_some() {
                return Err("a function is attached twice".into());
            }
        }
        let senders = self.kernel.machine.0.senders.borrow();
        for (line, source) in self.kernel.sources.iter().enumerate() {
            let sender = senders.get(&(line as u32));
            match (source.interrupt.is_some(), sender) {
                (false, None) => {}
                (true, Some(function)) => {
                    let source = spec::Source {
                        interrupt: self.place(state, source.interrupt)?,
                        device: self.place(state, source.device)?,
                        function: (*function).into(),
                    };
                    state.sources.insert(line as u64, source);
                }
                _ => return Err(format!("message {line}: the machine was not told")),
            }
        }
        Ok(())
    }

    fn cpu(&self, index: usize) -> Result<spec::Cpu, String> {
        let cpu = &self.kernel.cpus[index];
        let mut ready = BTreeMap::new();
        for (priority, queue) in cpu.queues.iter().enumerate() {
            let queue = self.queue(queue.head)?;
            if !queue.is_empty() {
                ready.insert(priority as u64, queue);
            }
        }
        let current = self.name(cpu.current);
        let limited = self
            .arena
            .get(cpu.current)
            .and_then(|t| self.arena.get(t.sched))
            .is_some_and(|s| s.budget < s.period);
        Ok(spec::Cpu {
            current,
            ready,
            slice_end: cpu.slice_end,
            charged: if limited { cpu.charged } else { 0 },
        })
    }
}
