//! The kernel's state, guarded by one lock, and the dispatch of system calls.

use crate::arena::Arena;
use crate::cap_space::CapSpace;
use crate::device::{ATTACHED_MAX, Attachment, Source};
use crate::endpoint::{Endpoint, Reply};
use crate::id::{PhysAddr, Ref};
use crate::interrupt::{LINES, Line};
use crate::machine::{Flush, Machine};
use crate::notification::Notification;
use crate::sched::{CPUS_MAX, Cpu, SchedContext};
use crate::thread::{State, Thread};
use crate::translate::AddressSpace;
use crate::vcpu::Vcpu;
use microvisor_abi::cap::{InterruptOp, Role};
use microvisor_abi::thread::{Op, Report};
use microvisor_abi::{Call, FOREVER, Kind, MessageInfo, Rights, Status};

/// Everything that the kernel lock guards.
#[derive(Debug)]
pub struct Kernel<M> {
    /// Physical memory and the objects in it.
    pub arena: Arena,
    /// The hardware.
    pub machine: M,
    pub(crate) cpus: [Cpu; CPUS_MAX],
    pub(crate) lines: [Line; LINES],
    pub(crate) sources: [Source; LINES],
    pub(crate) attached: [Attachment; ATTACHED_MAX],
    pub(crate) cpu_count: usize,
    /// Ticks that a thread runs before its equals get their turn.
    pub(crate) slice: u64,
    /// Root table of the core's own tables; component spaces share its upper half.
    pub(crate) core_root: PhysAddr,
    /// Frames of a vCPU's hardware area.
    pub(crate) vcpu_frames: u64,
    /// A flush that the deletion under way has to make before it ends.
    pub(crate) owed: Option<Flush>,
    /// Something happened that may change what a CPU should run or when it should wake.
    pub(crate) stirred: bool,
}

/// What the kernel must know about the machine, once.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// CPUs that run.
    pub cpus: usize,
    /// Ticks that a thread runs before its equals get their turn.
    pub slice: u64,
    /// Root table of the core's own tables.
    pub core_root: PhysAddr,
    /// Frames of a vCPU's hardware area.
    pub vcpu_frames: u64,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// With this status, to be written to `rax`.
    Status(Status),
    /// All result registers were written.
    Written,
    /// The thread blocks; whoever wakes it writes its results.
    Blocked,
}

impl<M: Machine> Kernel<M> {
    /// A kernel over no memory, to be replaced at boot.
    pub const fn empty(machine: M) -> Self {
        Kernel {
            arena: Arena::empty(),
            machine,
            cpus: [const { Cpu::IDLE }; CPUS_MAX],
            lines: [Line::FREE; LINES],
            sources: [Source::FREE; LINES],
            attached: [Attachment::FREE; ATTACHED_MAX],
            cpu_count: 0,
            slice: u64::MAX,
            core_root: PhysAddr(0),
            vcpu_frames: 0,
            owed: None,
            stirred: false,
        }
    }

    /// Gives the kernel its memory and facts about the machine.
    pub fn init(&mut self, arena: Arena, config: Config) {
        self.arena = arena;
        self.cpu_count = config.cpus.min(CPUS_MAX);
        self.slice = match cfg!(control = "preempt") {
            true => u64::MAX,
            false => config.slice,
        };
        self.core_root = config.core_root;
        self.vcpu_frames = config.vcpu_frames;
    }

    /// Carries out the system call that the current thread's registers describe. False if it left
    /// everything that scheduling depends on as it was: the same thread goes on at once.
    pub fn syscall(&mut self) -> bool {
        let thread = self.cpus[self.machine.cpu()].current;
        let Some(t) = self.arena.get(thread) else {
            return true;
        };
        let r = &t.regs;
        let (number, a) = (r.rax, [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9]);
        self.stirred = false;
        let done = match Call::from_raw(number) {
            Some(call) => self.dispatch(thread, call, a),
            None => Err(Status::InvalidCall),
        };
        let status = match done {
            Ok(Done::Blocked) => return true,
            Ok(Done::Written) => return self.stirred,
            Ok(Done::Status(status)) => status,
            Err(status) => {
                self.note_refusal(thread, number, a, status);
                status
            }
        };
        match self.arena.get_mut(thread) {
            Some(t) => t.regs.rax = status as u64,
            // It deleted itself.
            None => return true,
        }
        self.stirred
    }

    fn dispatch(&mut self, me: Ref<Thread>, call: Call, a: [u64; 6]) -> Result<Done, Status> {
        let ok = Ok(Done::Status(Status::Ok));
        match call {
            Call::Call => self.do_call(me, a),
            Call::ReplyReceive => self.do_reply_receive(me, a),
            Call::Receive => {
                let endpoint = self.object(me, a[0], Kind::Endpoint, Rights::RECEIVE)?;
                let reply = self.optional(me, a[1], Kind::Reply)?;
                self.receive(me, endpoint, reply, a[2])
            }
            Call::Reply => {
                let reply = self.object(me, a[0], Kind::Reply, Rights::USE)?;
                let caller = self.answer(me, reply, MessageInfo(a[1]), [a[2], a[3], a[4], a[5]])?;
                self.make_ready(caller);
                ok
            }
            Call::Signal => {
                let slot = self.cap_of(me, a[0], Kind::Notification, Rights::SIGNAL)?;
                let (object, badge) = (self.arena.slot(slot).object(), self.arena.slot(slot).extra);
                if !self.arena.alive(object) {
                    return Err(Status::InvalidCap);
                }
                self.signal(object, if badge != 0 { badge } else { a[1] });
                ok
            }
            Call::Wait => {
                let notification = self.object(me, a[0], Kind::Notification, Rights::WAIT)?;
                self.wait(me, notification, a[1])
            }
            // The core enters the guest before it takes the lock; arriving here means that this
            // machine has no guests.
            Call::VcpuRun => Err(Status::Unsupported),
            Call::VcpuControl => {
                let vcpu = self.object(me, a[0], Kind::Vcpu, Rights::USE)?;
                let result = self.vcpu_control(me, vcpu, a[1], a[2], a[3])?;
                self.result(me, result);
                ok
            }
            Call::Retype => {
                let memory = self.cap_of(me, a[0], Kind::Memory, Rights::USE)?;
                let kind = Kind::from_raw(a[1] as u8).ok_or(Status::InvalidArgument)?;
                let (slot, count) = (a[3] & 0xffff_ffff, a[3] >> 32);
                let made = self.retype(me, memory, (kind, a[1] >> 8), (a[2], slot), count)?;
                self.result(me, made);
                ok
            }
            Call::Copy => {
                let source = self.cap(me, a[0])?;
                let to = self.empty_place(me, a[1], a[2])?;
                self.copy(source, to, Rights(a[3] as u8), a[4], a[5])?;
                ok
            }
            Call::Move => {
                let source = self.place(me, a[0], a[1])?;
                if self.arena.slot(source).is_empty() {
                    return Err(Status::InvalidCap);
                }
                let to = self.empty_place(me, a[2], a[3])?;
                self.arena.relocate(source, to);
                self.rename_owner(source, to);
                if self.arena.slot(to).kind() == Kind::Vcpu {
                    self.owe(Flush::Quiesce);
                    self.pay();
                }
                ok
            }
            Call::Delete | Call::Revoke => {
                let slot = self.place(me, a[0], a[1])?;
                self.delete(slot, call == Call::Delete)?;
                ok
            }
            Call::Map => {
                let cap = self.cap(me, a[0])?;
                let space = self.object(me, a[1], Kind::AddressSpace, Rights::USE)?;
                match self.map(cap, space, a[2], a[3]) {
                    Ok(()) => ok,
                    Err((status, level)) => {
                        self.result(me, level);
                        Err(status)
                    }
                }
            }
            Call::Unmap => {
                let cap = self.cap(me, a[0])?;
                self.unmap(cap)?;
                ok
            }
            Call::Fill => {
                let space = self.object(me, a[0], Kind::AddressSpace, Rights::USE)?;
                let tables = self.cap_of(me, a[1], Kind::Tables, Rights::USE)?;
                self.fill(space, tables)?;
                ok
            }
            Call::ThreadConfigure => {
                self.thread_configure(me, a)?;
                ok
            }
            Call::ThreadControl => {
                let thread = self.object(me, a[0], Kind::Thread, Rights::USE)?;
                self.thread_control(
                    me,
                    thread,
                    Op::from_raw(a[1]).ok_or(Status::InvalidArgument)?,
                )
            }
            Call::SchedSet => {
                let sched: Ref<SchedContext> =
                    self.object(me, a[0], Kind::SchedContext, Rights::USE)?;
                let cpus = self.cap_of(me, a[1], Kind::Cpu, Rights::USE)?;
                let (first, count) = self.arena.slot(cpus).range();
                let highest = self.arena.slot(cpus).extra;
                if a[2] < first || a[2] >= first + count || a[3] > highest {
                    return Err(Status::NoRight);
                }
                self.sched_set(sched, a[2], a[3], a[4], a[5])?;
                ok
            }
            Call::Bind => {
                self.bind(
                    me,
                    a[0],
                    a[1],
                    Role::from_raw(a[2]).ok_or(Status::InvalidArgument)?,
                )?;
                ok
            }
            Call::InterruptControl => {
                let interrupt = self.cap_of(me, a[0], Kind::Interrupt, Rights::USE)?;
                match InterruptOp::from_raw(a[2]) {
                    Some(InterruptOp::Acknowledge) => self.acknowledge(interrupt, a[1])?,
                    None => return Err(Status::InvalidArgument),
                }
                ok
            }
            Call::PortsGrant => {
                let ports = self.cap_of(me, a[0], Kind::IoPorts, Rights::USE)?;
                let to = self.cap(me, a[1])?;
                match self.arena.slot(to).kind() {
                    Kind::Thread => {
                        let to = self.object(me, a[1], Kind::Thread, Rights::USE)?;
                        self.grant_ports(ports, to)?
                    }
                    Kind::Vcpu => {
                        let to = self.object(me, a[1], Kind::Vcpu, Rights::USE)?;
                        self.grant_ports_to_vcpu(ports, to)?
                    }
                    _ => return Err(Status::WrongKind),
                }
                ok
            }
            Call::Inspect => {
                let slot = self.place(me, a[0], a[1])?;
                let words = self.inspect(slot).words();
                if let Some(t) = self.arena.get_mut(me) {
                    [t.regs.rdi, t.regs.rsi, t.regs.rdx] = words;
                }
                ok
            }
        }
    }

    /// Keeps which capability a thread was last refused, for whoever reports its death.
    #[cold]
    fn note_refusal(&mut self, thread: Ref<Thread>, number: u64, a: [u64; 6], status: Status) {
        if matches!(
            status,
            Status::InvalidCap | Status::WrongKind | Status::NoRight
        ) && let Some(t) = self.arena.get_mut(thread)
        {
            t.refused = [number | (status as u64) << 32, a[0], a[1]];
        }
    }

    fn result(&mut self, thread: Ref<Thread>, word: u64) {
        if let Some(t) = self.arena.get_mut(thread) {
            t.regs.rdi = word;
        }
    }

    /// An object named by a word that may be 0.
    fn optional<T: crate::arena::Object>(
        &self,
        me: Ref<Thread>,
        word: u64,
        kind: Kind,
    ) -> Result<Ref<T>, Status> {
        if word == 0 {
            Ok(Ref::NULL)
        } else {
            self.object(me, word, kind, Rights::USE)
        }
    }

    fn do_call(&mut self, me: Ref<Thread>, a: [u64; 6]) -> Result<Done, Status> {
        let slot = self.cap_of(me, a[0], Kind::Endpoint, Rights::CALL)?;
        let cap = self.arena.slot(slot);
        let (endpoint, badge, rights) = (cap.object::<Endpoint>(), cap.extra, cap.rights);
        self.remember_call(me, a[0], endpoint, slot);
        self.call(me, endpoint, badge, rights, MessageInfo(a[1]))
    }

    fn do_reply_receive(&mut self, me: Ref<Thread>, a: [u64; 6]) -> Result<Done, Status> {
        let endpoint: Ref<Endpoint> =
            self.object(me, a[0] & 0xffff_ffff, Kind::Endpoint, Rights::RECEIVE)?;
        let reply: Ref<Reply> = self.object(me, a[0] >> 32, Kind::Reply, Rights::USE)?;
        self.remember_receive(me, a[0], (endpoint, reply));
        let answered = self.answer(me, reply, MessageInfo(a[1]), [a[2], a[3], a[4], a[5]]);
        let caller = match answered {
            Ok(caller) => caller,
            Err(_) => {
                // The answer cannot be delivered; its caller must not wait for ever.
                self.abort_reply(reply, Status::Aborted);
                Ref::NULL
            }
        };
        let received = self.receive(me, endpoint, reply, FOREVER);
        if !caller.is_null() {
            self.switch_to(caller);
        }
        received
    }

    fn thread_configure(&mut self, me: Ref<Thread>, a: [u64; 6]) -> Result<(), Status> {
        let thread: Ref<Thread> = self.object(me, a[0], Kind::Thread, Rights::USE)?;
        let space: Ref<AddressSpace> = self.object(me, a[1], Kind::AddressSpace, Rights::USE)?;
        let caps: Ref<CapSpace> = self.object(me, a[2], Kind::CapSpace, Rights::USE)?;
        let s = self.arena.get(space).ok_or(Status::InvalidCap)?;
        if s.kind() != microvisor_abi::SpaceKind::Host {
            return Err(Status::WrongKind);
        }
        if a[3] >= microvisor_abi::USER_END || a[4] >= microvisor_abi::USER_END {
            return Err(Status::InvalidArgument);
        }
        let t = self.arena.get_mut(thread).ok_or(Status::InvalidCap)?;
        if !matches!(t.state, State::Stopped | State::Faulted) {
            return Err(Status::Busy);
        }
        let vcpu = t.vcpu;
        t.vcpu = Ref::NULL;
        t.state = State::Stopped;
        t.space = space;
        t.caps = caps;
        t.refused = [0; 3];
        t.regs = Default::default();
        t.regs.rip = a[3];
        t.regs.rsp = a[4];
        t.regs.rdi = a[5];
        t.regs.rflags = 0x202;
        self.arena.vcpu_end(vcpu);
        self.arena.revise();
        self.owe(Flush::Quiesce);
        self.pay();
        Ok(())
    }

    fn thread_control(
        &mut self,
        me: Ref<Thread>,
        thread: Ref<Thread>,
        op: Op,
    ) -> Result<Done, Status> {
        match op {
            Op::Resume => {
                let t = self.arena.get(thread).ok_or(Status::InvalidCap)?;
                if !matches!(t.state, State::Stopped | State::Faulted) {
                    return Err(Status::Busy);
                }
                if !self.arena.alive(t.space) {
                    return Err(Status::NotBound);
                }
                self.make_ready(thread);
            }
            Op::Suspend => {
                let t = self.arena.get(thread).ok_or(Status::InvalidCap)?;
                let blocked = is_blocked(t.state);
                if t.state == State::Faulted {
                    return Ok(Done::Status(Status::Ok));
                }
                // Written first: a thread that suspends itself finds it when it is resumed.
                if thread == me {
                    self.result_status(thread, Status::Ok);
                }
                self.detach(thread);
                if blocked {
                    self.result_status(thread, Status::Aborted);
                }
                if thread == me {
                    return Ok(Done::Blocked);
                }
            }
            Op::Cancel => {
                let t = self.arena.get(thread).ok_or(Status::InvalidCap)?;
                let vcpu = t.vcpu;
                if cfg!(not(control = "cancel")) {
                    self.unblock(thread, Status::Cancelled);
                }
                if self.arena.alive(vcpu) {
                    self.vcpu_control(me, vcpu, microvisor_abi::vcpu::Op::Poke as u64, 0, 0)?;
                }
            }
            Op::Inspect => {
                let t = self.arena.get(thread).ok_or(Status::InvalidCap)?;
                let report = Report {
                    state: match t.state {
                        State::Stopped => microvisor_abi::thread::State::Stopped,
                        State::Faulted => microvisor_abi::thread::State::Faulted,
                        State::Ready | State::Running | State::Throttled => {
                            microvisor_abi::thread::State::Ready
                        }
                        _ => microvisor_abi::thread::State::Blocked,
                    } as u64,
                    vector: t.fault_vector as u64,
                    error_code: t.fault_code,
                    address: t.fault_address,
                    registers: t.regs,
                    refused: t.refused,
                };
                let buffer = me.buffer();
                for (index, word) in report.words().into_iter().enumerate() {
                    self.arena.write(buffer.add(index as u64 * 8), word);
                }
            }
        }
        Ok(Done::Status(Status::Ok))
    }

    fn result_status(&mut self, thread: Ref<Thread>, status: Status) {
        if let Some(t) = self.arena.get_mut(thread) {
            t.regs.rax = status as u64;
        }
    }

    fn bind(&mut self, me: Ref<Thread>, what: u64, to: u64, role: Role) -> Result<(), Status> {
        match role {
            Role::Time => {
                let sched = self.object(me, what, Kind::SchedContext, Rights::USE)?;
                let thread = self.optional(me, to, Kind::Thread)?;
                self.bind_time(sched, thread)
            }
            Role::Messages => {
                let note: Ref<Notification> =
                    self.object(me, what, Kind::Notification, Rights::WAIT)?;
                let thread: Ref<Thread> = self.optional(me, to, Kind::Thread)?;
                let old = self.arena.get(note).ok_or(Status::InvalidCap)?.thread;
                if !thread.is_null() {
                    let bound = self.arena.get(thread).ok_or(Status::InvalidCap)?.bound;
                    if self.arena.alive(old) || self.arena.alive(bound) {
                        return Err(Status::Busy);
                    }
                }
                if let Some(t) = self.arena.get_mut(old) {
                    t.bound = Ref::NULL;
                }
                if let Some(t) = self.arena.get_mut(thread) {
                    t.bound = note;
                }
                if let Some(n) = self.arena.get_mut(note) {
                    n.thread = thread;
                }
                self.tell_pending(note);
                Ok(())
            }
            Role::Faults => {
                let note = self.object(me, what, Kind::Notification, Rights::SIGNAL)?;
                let bits = self.arena.slot(self.cap(me, what)?).extra;
                let thread: Ref<Thread> = self.object(me, to, Kind::Thread, Rights::USE)?;
                let t = self.arena.get_mut(thread).ok_or(Status::InvalidCap)?;
                t.fault_note = note;
                t.fault_bits = if bits != 0 { bits } else { 1 };
                Ok(())
            }
            Role::Run => {
                let note: Ref<Notification> =
                    self.object(me, what, Kind::Notification, Rights::WAIT)?;
                let vcpu: Ref<Vcpu> = self.optional(me, to, Kind::Vcpu)?;
                let old = self.arena.get(note).ok_or(Status::InvalidCap)?.vcpu;
                if !vcpu.is_null() && self.arena.alive(old) {
                    return Err(Status::Busy);
                }
                if let Some(v) = self.arena.get(vcpu)
                    && self.arena.alive(v.notification.get())
                {
                    return Err(Status::Busy);
                }
                if let Some(v) = self.arena.get(old) {
                    v.notification.set(Ref::NULL);
                }
                if let Some(v) = self.arena.get(vcpu) {
                    v.notification.set(note);
                }
                if let Some(n) = self.arena.get_mut(note) {
                    n.vcpu = vcpu;
                }
                self.tell_pending(note);
                Ok(())
            }
            Role::Line => {
                let owner = self.cap_of(me, what, Kind::Interrupt, Rights::USE)?;
                if to == 0 {
                    return self.bind_line(owner, Ref::NULL, 0);
                }
                let note = self.object(me, to, Kind::Notification, Rights::SIGNAL)?;
                let bits = self.arena.slot(self.cap(me, to)?).extra;
                self.bind_line(owner, note, if bits != 0 { bits } else { 1 })
            }
            Role::Dma => {
                let device = self.cap_of(me, what, Kind::Device, Rights::USE)?;
                let space = self.optional(me, to, Kind::AddressSpace)?;
                self.attach(device, space)
            }
            Role::Source => {
                let interrupt = self.cap_of(me, what, Kind::Interrupt, Rights::USE)?;
                let device = match to {
                    0 => None,
                    to => Some(self.cap_of(me, to, Kind::Device, Rights::USE)?),
                };
                self.bind_source(interrupt, device)
            }
            Role::Stops => {
                let note = self.object(me, what, Kind::Notification, Rights::SIGNAL)?;
                let bits = self.arena.slot(self.cap(me, what)?).extra;
                let device = self.cap_of(me, to, Kind::Device, Rights::USE)?;
                self.bind_stops(device, note, if bits != 0 { bits } else { 1 })
            }
            Role::Server => {
                if to != 0 {
                    return Err(Status::InvalidArgument);
                }
                let endpoint = self.object(me, what, Kind::Endpoint, Rights::MANAGE)?;
                self.replace_server(endpoint)
            }
        }
    }

    /// The current thread of a CPU faulted in user mode.
    pub fn fault(&mut self, vector: u8, code: u64, address: u64) {
        let cpu = self.machine.cpu();
        let thread = self.cpus[cpu].current;
        self.stop_with_fault(thread, vector, code, address);
    }

    /// Stops a thread as faulted and tells its supervisor.
    pub(crate) fn stop_with_fault(
        &mut self,
        thread: Ref<Thread>,
        vector: u8,
        code: u64,
        address: u64,
    ) {
        let Some(t) = self.arena.get_mut(thread) else {
            return;
        };
        t.state = State::Faulted;
        t.fault_vector = vector;
        t.fault_code = code;
        t.fault_address = if vector == 14 { address } else { 0 };
        let (note, bits) = (t.fault_note, t.fault_bits);
        self.signal(note, bits);
    }
}

fn is_blocked(state: State) -> bool {
    matches!(
        state,
        State::Sending | State::Receiving | State::Waiting | State::AwaitingReply
    )
}
