//! `multicall`: several hypercalls in one, preemptible between them (`public/xen.h`,
//! `struct multicall_entry`).

use crate::access::{Caller, Fields, Reply};
use crate::call::{Next, Width};
use crate::domain::{Domain, number, to_register};
use crate::env::Env;
use crate::errno::Errno;
use crate::memory::GuestMemory;

/// Calls done before the guest is re-entered: a list may have 2^32 entries.
const BATCH: u32 = 32;

impl Domain {
    #[inline(never)]
    pub(crate) fn multicall<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        list: u64,
        count: u64,
    ) -> Reply {
        // A uint32_t in Xen's prototype.
        let count = count as u32;
        let size = caller.word() * 8;
        let mut after = Next::Continue;
        for index in 0..count {
            let entry = list.wrapping_add(u64::from(index) * size);
            if index == BATCH {
                self.restart(caller, rest(list, index, count, size));
                after = caller.next;
                break;
            }
            let call = read_entry(caller, entry)?;
            caller.next = Next::Continue;
            // Nesting is refused, as Xen does.
            let reply = if call.number == number::MULTICALL {
                Err(Errno::Inval)
            } else {
                self.dispatch_entry(caller, call.number, call.arguments)
            };
            if caller.next == Next::Restart {
                // The entry keeps what is left of its call, and this entry comes next.
                for (index, argument) in (2..).zip(self.left) {
                    caller.store_word(entry, index, argument)?;
                }
                self.restart(caller, rest(list, index, count, size));
                after = caller.next;
                break;
            }
            caller.store_word(entry, 1, to_register(reply, caller.width))?;
            if caller.next != Next::Continue {
                // A call that stops or blocks the vCPU does so when the list is done, as in Xen.
                after = caller.next;
            }
        }
        caller.next = after;
        Ok(0)
    }
}

/// The arguments of a multicall for what is left of its list.
fn rest(list: u64, done: u32, count: u32, size: u64) -> [u64; 6] {
    let mut arguments = [0; 6];
    arguments[0] = list.wrapping_add(u64::from(done) * size);
    arguments[1] = u64::from(count - done);
    arguments
}

struct Entry {
    number: u64,
    arguments: [u64; 6],
}

fn read_entry<M: GuestMemory, E: Env>(caller: &mut Caller<M, E>, at: u64) -> Result<Entry, Errno> {
    let mut entry = Entry {
        number: 0,
        arguments: [0; 6],
    };
    match caller.width {
        Width::Bits64 => {
            let bytes: [u8; 64] = caller.fetch(at)?;
            entry.number = bytes.u64_at(0);
            for (index, argument) in entry.arguments.iter_mut().enumerate() {
                *argument = bytes.u64_at(16 + index * 8);
            }
        }
        Width::Bits32 => {
            let bytes: [u8; 32] = caller.fetch(at)?;
            entry.number = u64::from(bytes.u32_at(0));
            for (index, argument) in entry.arguments.iter_mut().enumerate() {
                *argument = u64::from(bytes.u32_at(8 + index * 4));
            }
        }
    }
    Ok(entry)
}
