//! `ipc_same_as`, `ipc_cross_as` and `idl_call`: a call and its answer, between two threads of
//! this component, to the component `bench-echo` in registers, and to its interface `bench` with
//! 32 bytes of postcard each way.

use idl::Bytes;
use idl::bench::BenchClient;
use measure::{Meter, Summary};
use sdk::prelude::*;

/// What is sent.
const WORDS: [u64; 4] = [1, 2, 3, 4];

/// Why a row could not be measured.
#[derive(Debug)]
pub enum Error {
    /// The core refused something.
    #[allow(dead_code, reason = "for the log")]
    Status(Status),
    /// Something else than what was sent came back, or nothing.
    Answer,
    /// The interface's other end is of another version or does not answer.
    Connect,
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Error::Status(status)
    }
}

/// To a second thread of this component.
pub fn same_space(env: &Env, meter: Meter) -> Result<Summary, Error> {
    let Some(&thread) = env.threads.first() else {
        env.missing("threads", "1")
    };
    let endpoint: Cap<cap::Endpoint> = env.memory().retype(0)?;
    let reply: Cap<cap::Reply> = env.memory().retype(0)?;
    sdk::thread::spawn(thread, move |_| {
        let status = bench_echo::echo(endpoint, reply);
        log::error!("the second thread receives no more: {status:?}");
    })?;
    registers(endpoint, meter)
}

/// To `bench-echo`.
pub fn cross_space(env: &Env, meter: Meter) -> Result<Summary, Error> {
    let Some(endpoint) = env.wire(bench_echo::REGISTERS) else {
        env.missing("needs", bench_echo::REGISTERS)
    };
    registers(endpoint, meter)
}

fn registers(endpoint: Cap<cap::Endpoint>, meter: Meter) -> Result<Summary, Error> {
    // Once unmeasured, so that the server waits when measuring begins.
    let mut last = bench_echo::call(endpoint, WORDS);
    let summary = meter.measure(|| (), |()| last = bench_echo::call(endpoint, WORDS));
    if last? == WORDS {
        Ok(summary)
    } else {
        Err(Error::Answer)
    }
}

/// To `bench-echo` by its interface, as components call each other.
pub fn interface(env: &Env, meter: Meter) -> Result<Summary, Error> {
    let client = BenchClient::connect(env.transport("bench")).map_err(|_| Error::Connect)?;
    // One byte of length and 31 of content.
    let sent = core::hint::black_box(Bytes([7; 31]));
    let mut good = true;
    let summary = meter.measure(|| (), |()| good &= client.echo(sent).is_ok());
    if good && client.echo(sent) == Ok(sent) {
        Ok(summary)
    } else {
        Err(Error::Answer)
    }
}
