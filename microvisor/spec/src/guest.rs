//! Guests and devices, as far as the objects know them: vCPUs, interrupt lines, ports.

use crate::ipc::Over;
use crate::lookup::{Checked, require};
use crate::state::*;
use microvisor_abi::message::PAYLOAD_MAX;
use microvisor_abi::vcpu::{Op, group};
use microvisor_abi::{Kind, Rights, SpaceKind, Status};

/// Port ranges that one thread may have.
const PORT_RANGES: usize = 4;
/// Ports that one grant covers at most.
const PORTS_MAX: u64 = 4096;

impl State {
    pub(crate) fn vcpu_mut(&mut self, vcpu: Frame) -> &mut Vcpu {
        self.vcpus.get_mut(&vcpu).expect("the vCPU exists")
    }

    /// `VcpuRun(vcpu)`: the calling thread runs it until it exits. A poke, or bits pending at its
    /// notification, end the run before the guest is entered.
    /// - `NotBound`: it was given no guest address space, or that is gone.
    /// - `Busy`: another thread runs it.
    /// - later: `Aborted` (it was destroyed).
    pub(crate) fn vcpu_run(&mut self, cpu: usize, me: Frame, a: [u64; 6]) -> Checked<Over> {
        let vcpu = self.object(me, a[0], Kind::Vcpu, Rights::USE)?;
        require(self.vcpus[&vcpu].space.is_some(), Status::NotBound)?;
        require(self.vcpus[&vcpu].running.is_none(), Status::Busy)?;
        self.thread_mut(me).run = Run::In(vcpu);
        Ok(if self.enter_guest(cpu) {
            Over::Done
        } else {
            Over::Blocked
        })
    }

    /// A CPU whose current thread is in a run goes on with it. True if the run ended.
    pub(crate) fn enter_guest(&mut self, cpu: usize) -> bool {
        let Some(thread) = self.cpus[cpu].current else {
            return false;
        };
        let vcpu = match self.thread(thread).run {
            Run::No => return false,
            Run::Lost => {
                self.end_run(thread);
                self.thread_mut(thread).rax = Status::Aborted as u64;
                return true;
            }
            Run::In(vcpu) => vcpu,
        };
        let (space, notification) = (self.vcpus[&vcpu].space, self.vcpus[&vcpu].notification);
        let bits = notification.is_some_and(|n| self.notifications[&n].bits != 0);
        let v = self.vcpu_mut(vcpu);
        v.running = Some(cpu);
        let wanted = space.is_none() || v.poked || bits;
        if space.is_some() {
            v.poked = false;
        }
        if wanted {
            self.exit_guest(cpu);
        }
        wanted
    }

    /// The guest of a CPU's current thread exits: the thread's call is over.
    pub(crate) fn exit_guest(&mut self, cpu: usize) {
        if let Some(thread) = self.cpus[cpu].current {
            self.end_run(thread);
            self.thread_mut(thread).rax = Status::Ok as u64;
        }
    }

    pub(crate) fn end_run(&mut self, thread: Frame) {
        if let Run::In(vcpu) = self.thread(thread).run {
            self.vcpu_mut(vcpu).running = None;
        }
        self.thread_mut(thread).run = Run::No;
    }

    /// `VcpuControl(vcpu, op, a, b, c)`. `InvalidArgument`: no such operation.
    /// - `Poke`: the current or the next run ends.
    /// - all others: `Busy` while it runs.
    /// - `Configure`: gives it its guest address space `a`, once (`Busy`). `WrongKind`: not a guest
    ///   space.
    /// - `Fetch`: brings groups `a` of the state page up to date. `InvalidArgument`: no such group.
    /// - `GetExtended`, `SetExtended`: part of the extended state, from offset `a`; answers its size.
    ///   `InvalidArgument`: `b` bytes do not fit a message buffer.
    pub(crate) fn vcpu_control(&mut self, me: Frame, args: [u64; 6]) -> Checked<()> {
        let [cap, op, a, b, ..] = args;
        let vcpu = self.object(me, cap, Kind::Vcpu, Rights::USE)?;
        let op = Op::from_raw(op).ok_or(Status::InvalidArgument)?;
        let idle = self.vcpus[&vcpu].running.is_none();
        require(idle || op == Op::Poke, Status::Busy)?;
        match op {
            Op::Poke => self.vcpu_mut(vcpu).poked = true,
            Op::Configure => {
                require(self.vcpus[&vcpu].space.is_none(), Status::Busy)?;
                let space = self.object(me, a, Kind::AddressSpace, Rights::USE)?;
                let guest = self.spaces[&space].kind == SpaceKind::Guest;
                require(guest, Status::WrongKind)?;
                self.vcpu_mut(vcpu).space = Some(space);
            }
            Op::Fetch => require(a & !group::ALL == 0, Status::InvalidArgument)?,
            Op::GetExtended => {}
            Op::SetExtended => require(b <= PAYLOAD_MAX as u64, Status::InvalidArgument)?,
        }
        // What is in the state page and the extended state is the machine's business.
        self.thread_mut(me).words[0] = 0;
        Ok(())
    }

    /// `Bind` with `Role::Line`: the only line of an `Interrupt` capability signals a notification;
    /// 0 unties it, if it was bound through this capability.
    /// - `InvalidArgument`: more lines than one, or no such line.
    /// - `Busy`: bound to a notification that exists.
    pub(crate) fn bind_line(&mut self, owner: Place, to: Option<(Frame, u64)>) -> Checked<()> {
        let What::Range { first, count, .. } = self.at(owner).what else {
            return Err(Status::WrongKind);
        };
        let one = count == 1 && first < self.machine.lines;
        require(one, Status::InvalidArgument)?;
        let Some(to) = to else {
            self.unbind_lines(owner);
            return Ok(());
        };
        let free = self.lines.get(&first).is_none_or(|line| line.to.is_none());
        require(free, Status::Busy)?;
        let to = Some(to);
        self.lines.insert(first, Line { owner, to });
        self.enabled.insert(first);
        Ok(())
    }

    pub(crate) fn unbind_lines(&mut self, owner: Place) {
        let lines = self.lines.iter().filter(|(_, line)| line.owner == owner);
        for number in lines.map(|(number, _)| *number).collect::<Vec<_>>() {
            self.lines.remove(&number);
            self.enabled.remove(&number);
        }
    }

    /// An interrupt arrives: the line keeps quiet until it is acknowledged.
    pub(crate) fn interrupt(&mut self, line: u64) {
        self.enabled.remove(&line);
        if let Some((notification, bits)) = self.lines.get(&line).and_then(|line| line.to) {
            self.signal(notification, bits);
        }
    }

    /// `InterruptControl(interrupt, line, op)` with `Acknowledge`: the line may interrupt again.
    /// - `InvalidArgument`: no such operation, or not a line of this capability.
    /// - `NotBound`: it signals nobody.
    pub(crate) fn interrupt_control(&mut self, me: Frame, a: [u64; 6]) -> Checked<()> {
        let place = self.cap_of(me, a[0], Kind::Interrupt, Rights::USE)?;
        let What::Range { first, count, .. } = self.at(place).what else {
            return Err(Status::WrongKind);
        };
        let line = a[1];
        let covered = line >= first && line < first + count && line < self.machine.lines;
        require(a[2] == 0 && covered, Status::InvalidArgument)?;
        let bound = self.lines.get(&line).is_some_and(|line| line.to.is_some());
        require(bound, Status::NotBound)?;
        self.enabled.insert(line);
        Ok(())
    }

    /// `PortsGrant(ports, to)`: user code of the thread, or the guest of the vCPU, may use the ports.
    /// One grant a capability; it ends with the capability. Of two grants to one vCPU that overlap,
    /// the end of either closes what both have.
    /// - `WrongKind`: `to` is neither thread nor vCPU.
    /// - `AlreadyMapped`: this capability was granted to something that exists.
    /// - `InvalidArgument`: too many ports for one grant to a thread.
    /// - `NoMemory`: the thread has as many ranges as it may have.
    pub(crate) fn ports_grant(&mut self, me: Frame, a: [u64; 6]) -> Checked<()> {
        let place = self.cap_of(me, a[0], Kind::IoPorts, Rights::USE)?;
        let to = self.cap(me, a[1])?;
        let kind = self.at(to).kind();
        let able = matches!(kind, Kind::Thread | Kind::Vcpu);
        require(able, Status::WrongKind)?;
        let to = self.object(me, a[1], kind, Rights::USE)?;
        let What::Range { first, count, .. } = self.at(place).what else {
            return Err(Status::WrongKind);
        };
        require(self.at(place).mapped.is_none(), Status::AlreadyMapped)?;
        if kind == Kind::Thread {
            require(count <= PORTS_MAX, Status::InvalidArgument)?;
            let ports = &mut self.thread_mut(to).ports;
            require(ports.len() < PORT_RANGES, Status::NoMemory)?;
            ports.push((first, count));
            ports.sort_unstable();
        }
        self.at_mut(place).mapped = Some((to, 0));
        Ok(())
    }

    pub(crate) fn take_ports(&mut self, thread: Frame, range: (u64, u64)) {
        if let Some(thread) = self.threads.get_mut(&thread)
            && let Some(at) = thread.ports.iter().position(|r| *r == range)
        {
            thread.ports.remove(at);
        }
    }
}
