//! Carries out the operator's commands, on a thread of its own: root may be busy with a guest for a
//! long time, and the consoles must not wait for it. The server's thread hands commands in and
//! takes answers out; neither waits for the other.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Debug;

use console_mux::operator::{self, Command};
use idl::CallError;
use idl::operator::OperatorClient;
use sdk::prelude::*;
use sdk::sync::Mutex;

/// What goes between the threads.
struct Exchange {
    commands: VecDeque<Command>,
    answers: VecDeque<Vec<String>>,
}

static EXCHANGE: Mutex<Exchange> = Mutex::new(Exchange {
    commands: VecDeque::new(),
    answers: VecDeque::new(),
});

/// The server's side.
pub struct Orders {
    /// Signalled when there are commands; without the thread, why there is none.
    thread: Result<Cap<cap::Notification>, &'static str>,
}

impl Orders {
    /// Starts the thread. `done` is signalled when there are answers.
    pub fn start(env: &Env, done: Cap<cap::Notification>) -> Result<Orders, Status> {
        let (Some(wire), Some(&right)) = (env.wire("operator"), env.threads.first()) else {
            return Ok(Orders {
                thread: Err("this console may not: it needs \"operator\" and a thread of its own"),
            });
        };
        let commands: Cap<cap::Notification> = sdk::memory::own().retype(0)?;
        sdk::thread::spawn(right, move |_| work(wire, commands, done))?;
        Ok(Orders {
            thread: Ok(commands),
        })
    }

    /// Hands a command to the thread; answers at once if there is none.
    pub fn hand_in(&self, command: Command) {
        let mut exchange = EXCHANGE.lock();
        match self.thread {
            Ok(thread) => {
                exchange.commands.push_back(command);
                drop(exchange);
                // Fails only if the notification is gone, which nobody takes away.
                let _ = thread.signal(1);
            }
            Err(why) => exchange.answers.push_back([why.into()].into()),
        }
    }

    /// The next answer.
    pub fn take_answer(&self) -> Option<Vec<String>> {
        EXCHANGE.lock().answers.pop_front()
    }
}

fn work(wire: Cap<cap::Endpoint>, commands: Cap<cap::Notification>, done: Cap<cap::Notification>) {
    loop {
        // Whatever ends the wait: what there is to do is in the exchange.
        let _ = commands.wait(FOREVER);
        loop {
            let Some(command) = EXCHANGE.lock().commands.pop_front() else {
                break;
            };
            let answer = carry_out(wire, &command);
            EXCHANGE.lock().answers.push_back(answer);
            let _ = done.signal(1);
        }
    }
}

/// The lines that a command leads to.
fn carry_out(wire: Cap<cap::Endpoint>, command: &Command) -> Vec<String> {
    let failed = |failure: &dyn Debug| Vec::from([format!("root did not answer: {failure:?}")]);
    let root = match OperatorClient::connect(EndpointTransport(wire)) {
        Ok(root) => root,
        Err(error) => return [format!("root does not listen: {error:?}")].into(),
    };
    match command {
        Command::List => {
            let mut lines = Vec::from([operator::heading()]);
            for index in 0.. {
                match root.guest(index) {
                    Ok(Some(guest)) => lines.push(operator::guest(&guest)),
                    Ok(None) => break,
                    Err(failure) => return failed(&failure),
                }
            }
            lines
        }
        Command::Info => match root.machine() {
            Ok(info) => operator::machine(&info).into(),
            Err(failure) => failed(&failure),
        },
        Command::Order(order, guest) => match root.order(guest.clone(), *order) {
            Ok(state) => [format!("guest {guest}: {}", operator::state(state))].into(),
            Err(CallError::Answer(error)) => [operator::refused(guest, error)].into(),
            Err(CallError::Failure(failure)) => failed(&failure),
        },
        // The multiplexer answers these itself.
        Command::Help | Command::Console(_) => Vec::new(),
    }
}
