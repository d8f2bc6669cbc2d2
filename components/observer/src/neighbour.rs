//! Role `neighbour`: sleeps, or does everything that it can with what it has, as its file says. It has
//! no wire to the observer, but in the control.

use core::hint::black_box;

use idl::Bytes;
use idl::bench::BenchClient;
use sdk::abi::FRAME;
use sdk::memory::{self, ORDER_4K, READ_WRITE};
use sdk::prelude::*;

/// What its file says if it is to do something. Otherwise it sleeps.
const BUSY: &[u8] = b"storm";
/// Numbers of calls that are tried: all, and some beyond.
const NUMBERS: u64 = 28;

/// After so many rounds it says that it is busy.
const ROUNDS: u64 = 100;

/// Plays the role.
pub fn main(env: &Env) {
    super::ready(env);
    let said = env.files.first().map_or(&[][..], memory::file_bytes);
    if said != BUSY {
        let own: Cap<cap::Notification> = Cap::new(sdk::startup::SLOT_NOTIFICATION);
        loop {
            // Bits of root's, which are none of this role's business.
            if own.wait(FOREVER).is_err() {
                return;
            }
        }
    }
    let observer = env
        .wire("bench")
        .and_then(|endpoint| BenchClient::connect(EndpointTransport(endpoint)).ok());
    let Ok(address) = memory::reserve(FRAME) else {
        return;
    };
    let mut number = 0u64;
    loop {
        number = number.wrapping_add(1);
        if number == ROUNDS {
            log::info!("busy");
        }
        // Nothing is made of what a call says: one that is refused is a behaviour as well.
        let _ = things(number, address);
        nonsense(env, number);
        (0..number % 5_000).for_each(|step| {
            black_box(step);
        });
        if let Some(observer) = &observer {
            let _ = observer.echo(Bytes([0; 31]));
        }
    }
}

/// Makes, fills and ends what its memory allows, in amounts that vary.
fn things(number: u64, address: u64) -> Result<(), Status> {
    let own = memory::own();
    let frame: Cap<cap::Frame> = own.retype(ORDER_4K)?;
    let mapped = memory::map_into(own, memory::OWN_SPACE, frame, address, READ_WRITE);
    if mapped.is_ok() {
        // SAFETY: mapped a line above, and for this function alone.
        unsafe { (address as *mut u64).write_volatile(number) };
    }
    frame.delete()?;
    let note: Cap<cap::Notification> = own.retype(0)?;
    note.signal(number)?;
    note.poll()?;
    note.delete()?;
    let space: Cap<cap::CapSpace> = own.retype(1 + number % 16)?;
    space.delete()?;
    let tables = own.address_space(SpaceKind::Host)?;
    tables.delete()?;
    let count = 1 + (number % 32) as u32;
    let many: Cap<cap::Endpoint> = own.retype_many(0, count)?;
    (0..count).try_for_each(|index| Cap::<cap::Endpoint>::new(many.slot() + index).delete())
}

/// Calls that can only fail.
fn nonsense(env: &Env, number: u64) {
    let slot = u64::from(env.slots) - 1 - number % 64;
    let arguments = [slot, slot, 0, slot, number, slot];
    // SAFETY: nothing is in these slots, so the call works on nothing.
    unsafe { sdk::raw::system_call(1 + number % NUMBERS, arguments) };
}
