//! Where a component's thread meets the simulated core: takes its turn, carries a system call out,
//! waits for the next turn. Also the beginning and end of such a thread.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::{Arc, Once};

use microvisor_abi::Status;
use sdk::host::{self, Core, Page};

use crate::calls::Flow;
use crate::graph::State as ObjectState;
use crate::judge::Death;
use crate::log;
use crate::state::{Run, Shared, State};

/// What a thread that dies unwinds with.
pub(crate) struct Killed;

/// One component's access to the core.
pub(crate) struct Seat {
    pub shared: Arc<Shared>,
    pub component: usize,
}

impl Core for Seat {
    fn call(&self, thread: &host::Thread, number: u64, arguments: [u64; 6]) -> (u64, [u64; 6]) {
        let me = thread.number;
        let mut state = self.shared.lock();
        if state.over || state.threads[me].run == Run::Ended || std::thread::panicking() {
            return (Status::InvalidCall as u64, [0; 6]);
        }
        thread.with_buffer(|buffer| *state.threads[me].buffer = *buffer);
        state.threads[me].regs = arguments;
        state.threads[me].faults.clear();
        state.fuel = state.fuel.saturating_sub(1);
        let flow = match state.fuel {
            0 => Flow::Die(Death::Endless),
            _ => state.execute(me, number),
        };
        match flow {
            Flow::Return(status, results) => {
                state.threads[me].answer = Some((status, results));
                if state.prefer == Some(me) {
                    state.prefer = None;
                }
                let whim = state.random.as_mut().is_some_and(|r| r.next() % 4 == 0);
                if whim && !state.ready.is_empty() {
                    state.ready.push_back(me);
                    state.switch(&self.shared);
                    state = self.turn(state, me);
                }
            }
            Flow::Block => {
                state.switch(&self.shared);
                state = self.turn(state, me);
            }
            Flow::Die(death) => {
                state.threads[me].doomed = Some(death);
            }
        }
        if let Some(text) = state.stuck.take() {
            // Only the test's own thread is woken for this.
            state.threads[me].doomed = None;
            state.threads[me].run = Run::Ready;
            drop(state);
            panic!("everybody waits for ever:{text}");
        }
        if state.threads[me].doomed.is_some() {
            drop(state);
            resume_unwind(Box::new(Killed));
        }
        let answer = state.threads[me].answer.take();
        thread.with_buffer(|buffer| *buffer = *state.threads[me].buffer);
        let (status, results) = answer.unwrap_or((Status::InvalidCall, [0; 6]));
        (status as u64, results)
    }

    fn page(&self, address: u64) -> Option<&'static Page> {
        let state = self.shared.lock();
        let object = *state.members[self.component].mapped.get(&address)?;
        match state.graph.object(object).state {
            ObjectState::Frame { page } if state.graph.is_alive(object) => Some(page),
            _ => None,
        }
    }

    fn now(&self) -> u64 {
        self.shared.lock().clock
    }

    fn read_port(&self, port: u16) -> u8 {
        match self.device(port) {
            Some((device, offset)) => crate::system::locked(&device).read(offset),
            None => 0xff,
        }
    }

    fn write_port(&self, port: u16, value: u8) {
        if let Some((device, offset)) = self.device(port) {
            crate::system::locked(&device).write(offset, value);
        }
    }
}

impl Seat {
    fn turn<'a>(
        &'a self,
        mut state: std::sync::MutexGuard<'a, State>,
        me: usize,
    ) -> std::sync::MutexGuard<'a, State> {
        let turn = Arc::clone(&state.threads[me].turn);
        while state.current != Some(me) && !state.over {
            state = turn
                .wait(state)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        if state.over {
            state.threads[me].doomed = Some(Death::Killed);
        }
        state
    }

    /// The device behind a port; the component faults if the port was not granted.
    fn device(&self, port: u16) -> Option<(crate::component::SharedDevice, u16)> {
        let state = self.shared.lock();
        let member = &state.members[self.component];
        let inside = |first: u16, count: u16| port >= first && port - first < count;
        let granted = member.ports.iter().any(|&(f, c)| inside(f, c));
        let found = member.spec.ports.iter().find(|p| inside(p.first, p.count));
        let found = found.map(|p| (Arc::clone(&p.device), port - p.first));
        drop(state);
        if !granted {
            panic!("general protection fault: port {port:#x} was not granted");
        }
        found
    }
}

/// Makes panics of components reports, not output of their own.
pub(crate) fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !log::in_component() {
                others(info);
            }
        }));
    });
}

/// Starts the OS thread of a component's new instance.
pub(crate) fn spawn(
    shared: &Arc<Shared>,
    number: usize,
    component: &Arc<host::Component>,
    work: impl FnOnce() + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let (shared, component) = (Arc::clone(shared), Arc::clone(component));
    std::thread::Builder::new().spawn(move || {
        let place = {
            let mut state = shared.lock();
            let turn = Arc::clone(&state.threads[number].turn);
            while state.current != Some(number) && !state.over {
                state = turn
                    .wait(state)
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
            }
            if state.over || state.threads[number].doomed.is_some() {
                None
            } else {
                Some(state.threads[number].component)
            }
        };
        let outcome = match place {
            None => Err(Box::new(Killed) as Box<dyn Any + Send>),
            Some(place) => {
                log::enter(&shared, place);
                let thread = Rc::new(host::Thread::new(component, number));
                let outcome = catch_unwind(AssertUnwindSafe(|| thread.enter(work)));
                log::leave();
                outcome
            }
        };
        ended(&shared, number, outcome);
    })
}

/// A component's thread came to its end, one way or another.
fn ended(shared: &Arc<Shared>, number: usize, outcome: Result<(), Box<dyn Any + Send>>) {
    let mut state = shared.lock();
    if state.over {
        return;
    }
    let component = state.threads[number].component;
    match outcome {
        // As on the machine: the thread stops, the component stays.
        Ok(()) => {
            state.threads[number].run = Run::Ended;
            state.members[component].returned();
        }
        Err(payload) => {
            let death = state.threads[number].doomed.take();
            let death = death.unwrap_or_else(|| Death::Panic(text(&*payload)));
            if state.members[component].thread == Some(number) {
                state.died(component, death);
            }
        }
    }
    crate::system::start_waiting(shared, &mut state);
    if state.current == Some(number) {
        state.switch(shared);
    }
}

/// The message of a panic.
pub(crate) fn text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).into()))
        .unwrap_or_else(|| "a panic without a message".into())
}
