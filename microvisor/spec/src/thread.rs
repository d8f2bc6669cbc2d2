//! Threads: configuring and controlling them, and what binds objects to one another.

use crate::lookup::{Checked, require};
use crate::state::*;
use microvisor_abi::cap::Role;
use microvisor_abi::thread::{self, Op, Registers, Report};
use microvisor_abi::{Kind, Rights, SpaceKind, Status, USER_END};

/// Interrupts enabled, and the bit that is always one.
const RFLAGS: u64 = 0x202;

impl Thread {
    /// As `Retype` makes it.
    pub const NEW: Thread = Thread {
        doing: Doing::Stopped,
        rax: 0,
        words: [0; 6],
        control: [0; 3],
        buffer: Vec::new(),
        space: None,
        caps: None,
        sched: None,
        cpu: 0,
        turn_left: 0,
        deadline: None,
        bound: None,
        heard: false,
        supervisor: None,
        fault: [0; 3],
        ports: Vec::new(),
        refused: [0; 3],
        run: Run::No,
    };

    fn is_stopped(&self) -> bool {
        matches!(self.doing, Doing::Stopped | Doing::Faulted)
    }

    fn report(&self) -> Report {
        let [rdi, rsi, rdx, r10, r8, r9] = self.words;
        let [rip, rsp, rflags] = self.control;
        let [vector, error_code, address] = self.fault;
        let state = match self.doing {
            Doing::Stopped => thread::State::Stopped,
            Doing::Faulted => thread::State::Faulted,
            Doing::Ready | Doing::Running | Doing::Throttled => thread::State::Ready,
            _ => thread::State::Blocked,
        };
        Report {
            state: state as u64,
            vector,
            error_code,
            address,
            registers: Registers {
                rax: self.rax,
                rdi,
                rsi,
                rdx,
                r10,
                r8,
                r9,
                rip,
                rsp,
                rflags,
                ..Default::default()
            },
            refused: self.refused,
        }
    }
}

impl State {
    /// `ThreadConfigure(thread, address_space, cap_space, entry, stack, argument)`: a stopped or
    /// faulted thread begins anew.
    /// - `WrongKind`: the address space is not a host space.
    /// - `InvalidArgument`: entry or stack are not addresses of a component.
    /// - `Busy`: the thread is not stopped.
    pub(crate) fn thread_configure(&mut self, me: Frame, a: [u64; 6]) -> Checked<()> {
        let thread = self.object(me, a[0], Kind::Thread, Rights::USE)?;
        let space = self.object(me, a[1], Kind::AddressSpace, Rights::USE)?;
        let caps = self.object(me, a[2], Kind::CapSpace, Rights::USE)?;
        let host = self.spaces[&space].kind == SpaceKind::Host;
        require(host, Status::WrongKind)?;
        let inside = a[3] < USER_END && a[4] < USER_END;
        require(inside, Status::InvalidArgument)?;
        require(self.thread(thread).is_stopped(), Status::Busy)?;
        self.end_run(thread);
        let t = self.thread_mut(thread);
        t.doing = Doing::Stopped;
        (t.space, t.caps) = (Some(space), Some(caps));
        (t.rax, t.refused) = (0, [0; 3]);
        t.words = [a[5], 0, 0, 0, 0, 0];
        t.control = [a[3], a[4], RFLAGS];
        Ok(())
    }

    /// `ThreadControl(thread, op)`. `InvalidArgument`: no such operation.
    /// - `Resume`: a stopped or faulted thread wants to run. `Busy`: it is neither; `NotBound`: it
    ///   has no address space.
    /// - `Suspend`: stops it wherever it is; a blocking call ends with `Aborted`. A faulted thread
    ///   stays faulted.
    /// - `Cancel`: a blocking call ends with `Cancelled`, a run of a vCPU as by a poke.
    /// - `Inspect`: a `Report` goes to the caller's message buffer.
    pub(crate) fn thread_control(&mut self, me: Frame, a: [u64; 6]) -> Checked<()> {
        let thread = self.object(me, a[0], Kind::Thread, Rights::USE)?;
        let op = Op::from_raw(a[1]).ok_or(Status::InvalidArgument)?;
        match op {
            Op::Resume => {
                require(self.thread(thread).is_stopped(), Status::Busy)?;
                require(self.thread(thread).space.is_some(), Status::NotBound)?;
                self.make_ready(thread, false);
            }
            Op::Suspend if self.thread(thread).doing == Doing::Faulted => {}
            Op::Suspend => {
                let blocked = self.thread(thread).is_blocked();
                self.detach(thread);
                if blocked {
                    self.thread_mut(thread).rax = Status::Aborted as u64;
                }
            }
            Op::Cancel => {
                self.unblock(thread, Status::Cancelled);
                if let Run::In(vcpu) = self.thread(thread).run
                    && let Some(vcpu) = self.vcpus.get_mut(&vcpu)
                {
                    vcpu.poked = true;
                }
            }
            Op::Inspect => {
                let report = self.thread(thread).report();
                let words = report.words().map(u64::to_le_bytes);
                self.thread_mut(me).write_buffer(0, words.as_flattened());
            }
        }
        Ok(())
    }

    pub(crate) fn destroy_thread(&mut self, thread: Frame) {
        self.detach(thread);
        self.unbind_time(thread);
        self.end_run(thread);
        for cpu in &mut self.cpus {
            if cpu.current == Some(thread) {
                cpu.current = None;
            }
        }
        self.threads.remove(&thread);
    }

    /// A thread faults: it is stopped, and its supervisor told.
    pub(crate) fn stop_with_fault(&mut self, thread: Frame, [vector, code, address]: [u64; 3]) {
        let address = if vector == 14 { address } else { 0 };
        let t = self.thread_mut(thread);
        t.doing = Doing::Faulted;
        t.fault = [vector, code, address];
        if let Some((notification, bits)) = t.supervisor {
            self.signal(notification, bits);
        }
    }

    /// `Bind(what, to, role)`; `to` 0 unties. `InvalidArgument`: no such role.
    /// - `Time`: [`State::bind_time`].
    /// - `Messages`: bits of the notification (`WAIT`), those that are set already included, arrive
    ///   where the thread receives. `Busy`: one of the two is bound so.
    /// - `Faults`: the notification (`SIGNAL`) gets its badge, or 1, when the thread faults. Replaces
    ///   what was there; cannot be untied.
    /// - `Run`: bits of the notification (`WAIT`) end runs of the vCPU. `Busy` as above.
    /// - `Line`: [`State::bind_line`].
    /// - `Dma`, `Source`, `Stops`: [`State::attach`], [`State::bind_source`], [`State::bind_stops`].
    ///   `Again`, `Timeout`: the IOMMU has still to answer what it was asked before, or never will.
    /// - `Server`: the endpoint's (`MANAGE`) server is replaced. `InvalidArgument`: `to` is not 0.
    pub(crate) fn bind(&mut self, me: Frame, a: [u64; 6]) -> Checked<()> {
        let [what, to, role, ..] = a;
        match Role::from_raw(role).ok_or(Status::InvalidArgument)? {
            Role::Time => {
                let sched = self.object(me, what, Kind::SchedContext, Rights::USE)?;
                let thread = self.optional(me, to, Kind::Thread)?;
                self.bind_time(sched, thread)
            }
            Role::Messages => {
                let note = self.object(me, what, Kind::Notification, Rights::WAIT)?;
                let thread = self.optional(me, to, Kind::Thread)?;
                let old = self.notifications[&note].thread;
                if let Some(thread) = thread {
                    let free = old.is_none() && self.thread(thread).bound.is_none();
                    require(free, Status::Busy)?;
                    self.thread_mut(thread).bound = Some(note);
                }
                if let Some(old) = old {
                    self.thread_mut(old).bound = None;
                }
                if let Some(note) = self.notifications.get_mut(&note) {
                    note.thread = thread;
                }
                self.signal(note, self.notifications[&note].bits);
                Ok(())
            }
            Role::Faults => {
                let (note, bits) = self.signalled(me, what)?;
                let thread = self.object(me, to, Kind::Thread, Rights::USE)?;
                self.thread_mut(thread).supervisor = Some((note, bits));
                Ok(())
            }
            Role::Run => {
                let note = self.object(me, what, Kind::Notification, Rights::WAIT)?;
                let vcpu = self.optional(me, to, Kind::Vcpu)?;
                let old = self.notifications[&note].vcpu;
                if let Some(vcpu) = vcpu {
                    let free = old.is_none() && self.vcpus[&vcpu].notification.is_none();
                    require(free, Status::Busy)?;
                    self.vcpu_mut(vcpu).notification = Some(note);
                }
                if let Some(old) = old {
                    self.vcpu_mut(old).notification = None;
                }
                if let Some(note) = self.notifications.get_mut(&note) {
                    note.vcpu = vcpu;
                }
                Ok(())
            }
            Role::Line => {
                let owner = self.cap_of(me, what, Kind::Interrupt, Rights::USE)?;
                let to = match to {
                    0 => None,
                    to => Some(self.signalled(me, to)?),
                };
                self.bind_line(owner, to)
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
                let tell = self.signalled(me, what)?;
                let device = self.cap_of(me, to, Kind::Device, Rights::USE)?;
                self.bind_stops(device, tell)
            }
            Role::Server => {
                require(to == 0, Status::InvalidArgument)?;
                let endpoint = self.object(me, what, Kind::Endpoint, Rights::MANAGE)?;
                if let Some(endpoint) = self.endpoints.get_mut(&endpoint) {
                    endpoint.epoch = endpoint.epoch.wrapping_add(1);
                }
                Ok(())
            }
        }
    }

    /// A notification to signal, and the bits: the badge, or 1.
    fn signalled(&self, me: Frame, word: u64) -> Checked<(Frame, u64)> {
        let note = self.object(me, word, Kind::Notification, Rights::SIGNAL)?;
        let place = self.cap(me, word)?;
        Ok((note, self.at(place).badge().max(1)))
    }
}
