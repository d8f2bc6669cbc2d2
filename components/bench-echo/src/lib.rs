//! Messages of four words in registers, by system call and nothing else: what `bench` measures
//! the core's message path with, so that no cost of a library is in the figure. Both ends are
//! here. Ordinary components use `sdk::ipc` instead.
#![no_std]

use idl::Cap;
use idl::cap::{Endpoint, Reply};
use sdk::abi::{Call, FOREVER, MessageInfo, Status};

/// Name of the endpoint that answers such messages, as the system's description wires it.
pub const REGISTERS: &str = "bench-registers";

/// Label of the messages, in words: no payload, no capability.
const INFO: u64 = MessageInfo::new(1, 0, 0).0;

/// One system call; registers as in `sdk::abi`.
#[inline(always)]
fn system_call(call: Call, arguments: [u64; 6]) -> (Result<(), Status>, [u64; 6]) {
    // SAFETY: only `Call`, `Receive` and `ReplyReceive` come here, with messages that carry
    // neither payload nor capability: the core writes no memory.
    let (rax, results) = unsafe { sdk::raw::system_call(call as u64, arguments) };
    let result = if rax == Status::Ok as u64 {
        Ok(())
    } else {
        Err(Status::from_raw(rax).unwrap_or(Status::InvalidCall))
    };
    (result, results)
}

/// Calls with four words and answers the four words that came back.
#[inline(always)]
pub fn call(endpoint: Cap<Endpoint>, words: [u64; 4]) -> Result<[u64; 4], Status> {
    let [w0, w1, w2, w3] = words;
    let slot = u64::from(endpoint.slot());
    let (result, [_, _, w0, w1, w2, w3]) = system_call(Call::Call, [slot, INFO, w0, w1, w2, w3]);
    result.map(|()| [w0, w1, w2, w3])
}

/// Answers every message with its own words; returns when the core refuses to receive.
pub fn echo(endpoint: Cap<Endpoint>, reply: Cap<Reply>) -> Status {
    let (endpoint, reply) = (u64::from(endpoint.slot()), u64::from(reply.slot()));
    let both = endpoint | reply << 32;
    let receive = || system_call(Call::Receive, [endpoint, reply, FOREVER, 0, 0, 0]);
    let (mut result, mut message) = receive();
    loop {
        (result, message) = match result {
            Ok(()) => {
                let [_, _, w0, w1, w2, w3] = message;
                system_call(Call::ReplyReceive, [both, INFO, w0, w1, w2, w3])
            }
            Err(Status::Again | Status::CapsRefused) => receive(),
            Err(status) => return status,
        }
    }
}
