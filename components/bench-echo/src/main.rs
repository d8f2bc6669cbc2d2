//! Answers what `bench` calls, from a protection domain of its own: the interface `bench` on the
//! first thread, messages in registers (`bench_echo::REGISTERS`) on a second one. Holds nothing
//! but its two endpoints.
#![no_std]
#![no_main]

use idl::Bytes;
use idl::bench::{Bench, BenchServer};
use sdk::prelude::*;

sdk::entry!(main);

struct Echo;

impl BenchServer for Echo {
    #[inline(always)]
    fn echo(&mut self, _client: u64, bytes: Bytes<31>) -> Bytes<31> {
        bytes
    }
}

impl Notified for Echo {
    fn notified(&mut self, _bits: u64) {}
}

fn main(env: Env) {
    if let Err(status) = serve_both(&env) {
        log::error!("bench-echo cannot serve: {status:?}");
    }
}

/// Returns only when the core refuses.
fn serve_both(env: &Env) -> Result<(), Status> {
    let Some(&thread) = env.threads.first() else {
        env.missing("threads", "1")
    };
    let registers = env.endpoint(bench_echo::REGISTERS);
    let reply: Cap<cap::Reply> = env.memory().retype(0)?;
    sdk::thread::spawn(thread, move |_| {
        let status = bench_echo::echo(registers, reply);
        log::error!("bench-echo receives no more: {status:?}");
    })?;
    let mut receiver = Receiver::new(env.endpoint("bench"), REPLY, 0)?;
    match SupervisorClient::connect(env.transport("supervisor")).map(|root| root.ready()) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => log::error!("root does not hear that bench-echo serves: {error:?}"),
        Err(error) => log::error!("bench-echo cannot reach root: {error:?}"),
    }
    Err(serve::<Bench, _>(&mut receiver, &mut Echo))
}
