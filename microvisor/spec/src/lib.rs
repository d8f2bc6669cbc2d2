//! The core's system calls as an executable specification: [`step`] takes the state of everything
//! and a call, and answers the state after it and the call's status. It is the reference of the
//! interface, to be read: what a call requires, what it does, every status and when. The real code
//! (`microvisor-objects`) is held to it by the tests in `microvisor/objects/tests`.
//!
//! | module | calls |
//! |---|---|
//! | [`state`] | what there is |
//! | [`lookup`] | how a word names a capability: the checks that every call begins with |
//! | [`mod@derive`] | `Copy`, `Move`, `Delete`, `Revoke`, `Inspect` |
//! | [`memory`] | `Retype`, `Map`, `Unmap`, `Fill`; what the end of a capability does |
//! | [`time`] | `SchedSet`; who runs when |
//! | [`ipc`] | `Call`, `Receive`, `Reply`, `ReplyReceive`, `Signal`, `Wait` |
//! | [`thread`] | `ThreadConfigure`, `ThreadControl`, `Bind` |
//! | [`device`] | `Bind` of devices and their messages |
//! | [`guest`] | `VcpuRun`, `VcpuControl`, `InterruptControl`, `PortsGrant` |
//! | [`statuses`] | which call may answer what |
//! | [`invariants`] | what always holds |
//!
//! No part of the system runs this code, and it shares none with the core but the numbers in
//! `microvisor-abi`. It must never learn how the core does something, only what.
#![forbid(unsafe_code)]

pub mod derive;
pub mod device;
pub mod guest;
pub mod invariants;
pub mod ipc;
pub mod lookup;
pub mod memory;
pub mod state;
pub mod statuses;
pub mod thread;
pub mod time;

pub use state::{Frame, State};

use ipc::Over;
use lookup::Checked;
use microvisor_abi::{Call, Status};

/// A system call by the current thread of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// The CPU.
    pub cpu: usize,
    /// `rax`: which call.
    pub number: u64,
    /// `rdi rsi rdx r10 r8 r9`.
    pub args: [u64; 6],
    /// The one choice that the core has: how many objects a `Retype` makes at most.
    pub most: u64,
}

/// What happens without a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Time passes.
    Time {
        /// What it is now.
        now: u64,
    },
    /// A timer interrupt.
    Timer {
        /// Of this CPU.
        cpu: usize,
    },
    /// A CPU decides what it runs. After every call that may have changed that, and when another CPU
    /// asked it to.
    Reschedule {
        /// The CPU.
        cpu: usize,
    },
    /// An interrupt line fires.
    Interrupt {
        /// The line.
        line: u64,
    },
    /// The IOMMU blocks an access of a function.
    DeviceFault {
        /// Which.
        function: u64,
        /// A `cap::Stopped` word.
        why: u64,
    },
    /// The current thread faults.
    Fault {
        /// Of this CPU.
        cpu: usize,
        /// Vector, error code, address.
        fault: [u64; 3],
    },
    /// A CPU whose current thread is in a guest goes on with it.
    Enter {
        /// The CPU.
        cpu: usize,
    },
    /// The guest exits for a reason of its own.
    Exit {
        /// Of this CPU.
        cpu: usize,
    },
}

/// A system call: the state after it, and its status unless it blocks. Results are in the registers
/// of the thread that called. A CPU without a current thread makes no calls.
pub fn step(before: &State, call: Request) -> (State, Option<Status>) {
    let mut state = before.clone();
    let Some(me) = state.cpus[call.cpu].current else {
        return (state, None);
    };
    let t = state.thread_mut(me);
    (t.rax, t.words) = (call.number, call.args);
    let status = match state.dispatch(me, call) {
        Ok(Over::Blocked) => return (state, None),
        Ok(Over::Done) => Status::Ok,
        Err(status) => status,
    };
    // Unless it deleted itself.
    if let Some(t) = state.threads.get_mut(&me) {
        t.rax = status as u64;
        let refused = matches!(
            status,
            Status::InvalidCap | Status::WrongKind | Status::NoRight
        );
        // A supervisor can read which capability a thread was refused last. Runs of vCPUs do not
        // count.
        if refused && call.number != Call::VcpuRun as u64 {
            t.refused = [
                call.number | (status as u64) << 32,
                call.args[0],
                call.args[1],
            ];
        }
    }
    (state, Some(status))
}

/// Something else happens.
pub fn event(before: &State, event: Event) -> State {
    let mut state = before.clone();
    match event {
        Event::Time { now } => state.now = now,
        Event::Timer { cpu } => state.timer(cpu),
        Event::Reschedule { cpu } => state.reschedule(cpu),
        Event::Interrupt { line } => state.interrupt(line),
        Event::DeviceFault { function, why } => state.device_fault(function, why),
        Event::Fault { cpu, fault } => {
            if let Some(thread) = state.cpus[cpu].current {
                state.stop_with_fault(thread, fault);
            }
        }
        Event::Enter { cpu } => {
            state.enter_guest(cpu);
        }
        Event::Exit { cpu } => state.exit_guest(cpu),
    }
    state
}

impl State {
    /// Every call. `InvalidCall`: no call has this number.
    fn dispatch(&mut self, me: Frame, call: Request) -> Checked<Over> {
        let (cpu, a) = (call.cpu, call.args);
        let number = Call::from_raw(call.number).ok_or(Status::InvalidCall)?;
        match number {
            Call::Retype => self.retype(me, a, call.most),
            Call::Copy => self.copy(me, a),
            Call::Move => self.move_cap(me, a),
            Call::Delete => self.delete(me, a, true),
            Call::Revoke => self.delete(me, a, false),
            Call::Map => self.map(me, a),
            Call::Unmap => self.unmap(me, a),
            Call::Fill => self.fill(me, a),
            Call::ThreadConfigure => self.thread_configure(me, a),
            Call::ThreadControl => self.thread_control(me, a),
            Call::SchedSet => self.sched_set(me, a),
            Call::Bind => self.bind(me, a),
            Call::Call => return self.call(cpu, me, a),
            Call::Receive => return self.receive(me, a),
            Call::Reply => self.reply(me, a),
            Call::ReplyReceive => return self.reply_receive(cpu, me, a),
            Call::Signal => self.do_signal(me, a),
            Call::Wait => return self.wait(me, a),
            Call::VcpuRun => return self.vcpu_run(cpu, me, a),
            Call::VcpuControl => self.vcpu_control(me, a),
            Call::InterruptControl => self.interrupt_control(me, a),
            Call::PortsGrant => self.ports_grant(me, a),
            Call::Inspect => self.inspect(me, a),
        }?;
        Ok(Over::Done)
    }
}
