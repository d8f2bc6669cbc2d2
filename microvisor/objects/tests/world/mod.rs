//! A machine made of a `Vec`: the kernel of this crate with fake hardware, for tests that make
//! system calls as components would.
#![allow(dead_code)]

use microvisor_abi::archive::{self, Archive};
use microvisor_abi::boot::{Info, MemoryRange};
use microvisor_abi::{Call, Kind, Status};
use microvisor_objects::boot::Resources;
use microvisor_objects::{
    Answer, Arena, Ask, Config, DmaTables, Flush, GuestTables, Kernel, Machine, PhysAddr, Ref,
    Thread, VcpuArea,
};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Physical memory of the fake machine: 32 MiB.
pub const FRAMES: u64 = 8192;
const ARCHIVE: u64 = 2 << 20;
const LOG: u64 = 4 << 20;
const RAM: u64 = 6 << 20;

/// What the fake hardware saw.
#[derive(Default)]
pub struct Seen {
    pub now: Cell<u64>,
    pub cpu: Cell<usize>,
    pub kicks: RefCell<Vec<usize>>,
    /// The other CPU waits for the lock to make a call.
    pub waits: Cell<bool>,
    pub flushes: RefCell<Vec<Flush>>,
    pub lines: RefCell<Vec<(u32, bool)>>,
    /// Ports given to and taken from vCPUs.
    pub ports: RefCell<Vec<(u16, u32, bool)>>,
    /// What another CPU does while a call works on a vCPU.
    pub meanwhile: RefCell<Option<Box<dyn Fn()>>>,
    /// There is no IOMMU.
    pub without_iommu: Cell<bool>,
    /// What the IOMMU was asked, in order; a ticket is how many there were.
    pub asked: RefCell<Vec<Ask>>,
    /// How many of them it has done, and what it says of the others; otherwise it does all at once.
    pub done: Cell<u64>,
    pub mute: Cell<Option<Answer>>,
    /// Tables are as an Intel CPU or an AMD IOMMU wants them.
    pub ept: Cell<bool>,
    pub amd_iommu: Cell<bool>,
    /// Tables of *dma* spaces that were written to, and on the way to which address.
    pub wrote: RefCell<Vec<(PhysAddr, u64)>>,
    /// What the hardware was told of vCPUs.
    pub vcpus: RefCell<Vec<(VcpuArea, OfVcpu)>>,
    /// Size of a vCPU's extended state, of which each byte is 0xe5.
    pub extended: Cell<usize>,
    /// Who may send a message.
    pub senders: RefCell<std::collections::BTreeMap<u32, u16>>,
}

/// What the hardware is told of a vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OfVcpu {
    Init,
    Attach { root: PhysAddr },
    Fetch { groups: u64 },
    GetExtended { offset: usize, room: usize },
    SetExtended { offset: usize, from: Vec<u8> },
    Forget,
}

impl Seen {
    fn vcpu(&self, area: VcpuArea, what: OfVcpu) {
        self.vcpus.borrow_mut().push((area, what));
    }

    fn meanwhile(&self) {
        if let Some(other) = self.meanwhile.borrow().as_ref() {
            other();
        }
    }
}

#[derive(Clone, Default)]
pub struct Fake(pub Rc<Seen>);

impl Machine for Fake {
    fn now(&self) -> u64 {
        self.0.now.get()
    }
    fn cpu(&self) -> usize {
        self.0.cpu.get()
    }
    fn kick(&self, cpu: usize) {
        self.0.kicks.borrow_mut().push(cpu);
    }
    fn waits_to_call(&self, _: usize) -> bool {
        self.0.waits.get()
    }
    fn flush(&self, flush: Flush) {
        self.0.flushes.borrow_mut().push(flush);
    }
    fn guest_tables(&self) -> GuestTables {
        if self.0.ept.get() {
            GuestTables::Ept
        } else {
            GuestTables::Npt
        }
    }
    fn set_line(&self, line: u32, enabled: bool) {
        self.0.lines.borrow_mut().push((line, enabled));
    }
    fn virtualisation(&self) -> bool {
        true
    }
    fn vcpu_init(&self, area: VcpuArea) {
        self.0.vcpu(area, OfVcpu::Init);
    }
    fn vcpu_attach(&self, area: VcpuArea, root: PhysAddr) {
        self.0.vcpu(area, OfVcpu::Attach { root });
        self.0.meanwhile();
    }
    fn vcpu_fetch(&self, area: VcpuArea, groups: u64) {
        self.0.vcpu(area, OfVcpu::Fetch { groups });
        self.0.meanwhile();
    }
    fn vcpu_get_extended(&self, area: VcpuArea, offset: usize, to: &mut [u8]) -> usize {
        let (room, size) = (to.len(), self.0.extended.get());
        to[..size.min(room)].fill(0xe5);
        self.0.vcpu(area, OfVcpu::GetExtended { offset, room });
        self.0.meanwhile();
        size
    }
    fn vcpu_set_extended(
        &self,
        area: VcpuArea,
        offset: usize,
        from: &[u8],
    ) -> Result<usize, Status> {
        let from = from.to_vec();
        self.0.vcpu(area, OfVcpu::SetExtended { offset, from });
        self.0.meanwhile();
        Ok(self.0.extended.get())
    }
    fn vcpu_grant_ports(&self, _: VcpuArea, first: u16, count: u32, granted: bool) {
        self.0.ports.borrow_mut().push((first, count, granted));
    }
    fn vcpu_forget(&self, area: VcpuArea) {
        self.0.vcpu(area, OfVcpu::Forget);
    }
    fn dma_tables(&self) -> Option<DmaTables> {
        (!self.0.without_iommu.get()).then_some(DmaTables {
            amd: self.0.amd_iommu.get(),
            bits: 39,
            largest: 21,
        })
    }
    fn ask(&self, ask: Ask) {
        self.0.asked.borrow_mut().push(ask);
    }
    fn asked(&self) -> u64 {
        self.0.asked.borrow().len() as u64 + 1
    }
    fn answered(&self, ticket: u64) -> Answer {
        let mute = self.0.mute.get().filter(|_| ticket > self.0.done.get());
        mute.unwrap_or(Answer::Done)
    }
    fn wrote_table(&self, root: PhysAddr, address: u64) {
        self.0.wrote.borrow_mut().push((root, address));
    }
    fn message(&self, line: u32, function: Option<u16>) -> u64 {
        let mut senders = self.0.senders.borrow_mut();
        match function {
            Some(function) => senders.insert(line, function),
            None => senders.remove(&line),
        };
        0xfee0_0000 | u64::from(line) << 32
    }
}

/// A booted kernel with root current on CPU 0.
pub struct World {
    pub kernel: Kernel<Fake>,
    pub seen: Rc<Seen>,
    pub root: Ref<Thread>,
    pub info: Info,
    /// Messages take the fast path where it serves.
    pub fast: bool,
    /// Messages that took it.
    pub went_fast: usize,
    memory: Vec<u64>,
    table: Vec<u32>,
}

/// An archive whose root has one page of code.
pub fn archive() -> Vec<u8> {
    let mut bytes = vec![0u8; 8192];
    let header = [
        archive::MAGIC,
        8192,
        0x20_0000,
        1,
        0,
        0,
        0,
        0,
        0x20_0000,
        4096,
        100,
        5000,
        5,
    ];
    for (index, word) in header.iter().enumerate() {
        bytes[index * 8..index * 8 + 8].copy_from_slice(&u64::to_le_bytes(*word));
    }
    bytes
}

impl World {
    /// Boots with two CPUs.
    pub fn new() -> World {
        World::with(FRAMES)
    }

    /// As [`World::new`], with so many frames of physical memory.
    pub fn with(frames: u64) -> World {
        let mut memory = vec![0u64; (frames as usize + 1) * 512];
        let skipped = memory.as_ptr().cast::<u8>().align_offset(4096);
        // What is at address 0 belongs to nobody, and means nothing to whoever follows an empty link.
        memory[skipped / 8..][..512].fill(u64::MAX);
        let mut table = vec![0u32; frames as usize];
        let base = memory.as_mut_ptr().cast::<u8>().wrapping_add(skipped);
        // SAFETY: the vectors live as long as the world, which owns the kernel, and are touched
        // only through the arena.
        let arena = unsafe { Arena::new(base, table.as_mut_ptr(), frames) };
        let seen = Rc::new(Seen::default());
        let mut kernel = Kernel::empty(Fake(seen.clone()));
        kernel.init(
            arena,
            Config {
                cpus: 2,
                slice: 1000,
                core_root: PhysAddr(0x1000),
                vcpu_frames: 4,
            },
        );
        let image = archive();
        let mut memories = [
            MemoryRange {
                base: RAM,
                frames: frames - (RAM >> 12),
                slot: 0,
                device: 0,
            },
            MemoryRange {
                base: 0x8000_0000,
                frames: 16,
                slot: 0,
                device: 1,
            },
        ];
        // SAFETY: as in `boot`: an all-zero `Info` is a valid one.
        let info: Info = unsafe { std::mem::zeroed() };
        kernel
            .boot(Resources {
                memories: &mut memories,
                archive: Archive::parse(&image).expect("archive"),
                archive_base: PhysAddr(ARCHIVE),
                log_base: PhysAddr(LOG),
                info,
            })
            .expect("boot");
        let root = kernel.reschedule(0);
        let (at, _) = {
            let space = kernel.space_root(root).expect("root has a space");
            kernel
                .arena
                .translate(space, microvisor_abi::boot::INFO_ADDRESS)
                .expect("info")
        };
        let info = kernel.arena.read(at);
        World {
            kernel,
            seen,
            root,
            info,
            fast: true,
            went_fast: 0,
            memory,
            table,
        }
    }

    /// Leaves every frame without an object the generations of one more.
    pub fn spend(&mut self) {
        for tag in self.table.iter_mut().filter(|tag| **tag & 0xff == 0) {
            *tag = (0x00ff_ffff - 3) << 8;
        }
    }

    /// A call by the current thread of the current CPU; `None` if it blocked.
    pub fn call(&mut self, call: Call, a: &[u64]) -> (Status, [u64; 6]) {
        let cpu = self.seen.cpu.get();
        let me = self.kernel.current(cpu);
        self.set(me, call, a);
        if !(self.fast && self.goes_fast(call)) {
            self.kernel.syscall();
        }
        self.results(me)
    }

    /// As the core's entry: the fast path first. True if that was all.
    fn goes_fast(&mut self, call: Call) -> bool {
        let cpu = self.seen.cpu.get();
        let done = match call {
            Call::Call => self.kernel.fast_call(cpu),
            Call::ReplyReceive => self.kernel.fast_reply_receive(cpu),
            _ => None,
        };
        self.went_fast += usize::from(done.is_some());
        done.is_some()
    }

    /// Puts a call's number and arguments into a thread's registers.
    pub fn set(&mut self, thread: Ref<Thread>, call: Call, a: &[u64]) {
        let regs = &mut self.kernel.arena.get_mut(thread).expect("thread").regs;
        let mut words = [0; 6];
        words[..a.len()].copy_from_slice(a);
        regs.rax = call as u64;
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = words;
    }

    /// Status and result words in a thread's registers.
    pub fn results(&self, thread: Ref<Thread>) -> (Status, [u64; 6]) {
        // A thread may have deleted itself.
        let Some(t) = self.kernel.arena.get(thread) else {
            return (Status::Aborted, [0; 6]);
        };
        let r = &t.regs;
        let status = Status::from_raw(r.rax).unwrap_or(Status::InvalidCall);
        (status, [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9])
    }

    /// A call that must succeed, repeated while it answers `Again`.
    pub fn ok(&mut self, call: Call, a: &[u64]) -> [u64; 6] {
        for _ in 0..10_000 {
            let (status, results) = self.call(call, a);
            match status {
                Status::Again => continue,
                Status::Ok => return results,
                other => panic!("{call:?} {a:x?} answered {other:?}"),
            }
        }
        panic!("{call:?} never finished");
    }

    /// Slot of the RAM that root was given.
    pub fn ram(&self) -> u64 {
        self.info.memories[0].slot as u64
    }

    /// Makes objects in root's own space.
    pub fn make(&mut self, memory: u64, kind: Kind, size: u64, slot: u64, count: u64) {
        let mut made = 0;
        while made < count {
            let a = [
                memory,
                kind as u64 | size << 8,
                0,
                (slot + made) | ((count - made) << 32),
            ];
            made += self.ok(Call::Retype, &a)[0];
        }
    }

    /// Lets the current CPU choose, as the core does after each entry.
    pub fn turn(&mut self) -> Ref<Thread> {
        self.kernel.reschedule(self.seen.cpu.get())
    }

    /// A second thread in root's spaces, runnable at `priority` on `cpu`; it takes slots
    /// `slot` (thread) and `slot + 1` (time).
    pub fn thread(&mut self, slot: u64, cpu: u64, priority: u64) -> Ref<Thread> {
        let ram = self.ram();
        self.make(ram, Kind::Thread, 0, slot, 1);
        self.make(ram, Kind::SchedContext, 0, slot + 1, 1);
        self.ok(Call::SchedSet, &[slot + 1, 7, cpu, priority, 1, 1]);
        self.ok(Call::Bind, &[slot + 1, slot, 0]);
        self.ok(
            Call::ThreadConfigure,
            &[slot, 2, 1, 0x20_0000, 0x30_0000, 0],
        );
        self.ok(Call::ThreadControl, &[slot, 0]);
        self.kernel
            .thread_in(self.root, slot as u32)
            .expect("thread")
    }
}
