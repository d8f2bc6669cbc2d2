//! Seeded random hypercalls (`hostile_calls::domain`).

use guest_kit::cpu;
use hostile_calls::domain::{Domain, Machine};

use crate::log::{self, Log};
use crate::xen::Xen;
use guest_kit::say;

/// What is read where no memory is.
const NOTHING: u32 = u32::MAX;

impl Machine for &Xen {
    fn call(&mut self, number: u64, arguments: &[u64; 5]) -> i64 {
        // SAFETY: what calls are given to write to is kept for them, see
        // `hostile_calls::operations` and `layout`.
        unsafe { Xen::call(self, number, arguments) }
    }

    fn load(&self, address: u64) -> u32 {
        cpu::try_load(address).unwrap_or(NOTHING)
    }

    fn store(&mut self, address: u64, value: u32) {
        // SAFETY: pages of `hostile_calls::layout`, which have no other use.
        let _ = unsafe { cpu::try_store(address, value) };
    }

    fn write(&mut self, address: u64, bytes: &[u8]) {
        // SAFETY: in the argument area, which is RAM and has no other use.
        unsafe {
            core::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len());
        }
    }
}

/// Makes the calls of `count` seeds; the pages logged.
pub fn run(xen: &Xen, first: u64, count: u64) -> u64 {
    let mut domain = Domain::new(xen, xen.domid);
    for number in first..first + count {
        let mut log = Log::new(number as u32);
        domain.seed(number, |record| log.append(record));
        log.finish();
        say!("hostile: seed {number} logged");
    }
    domain.reset();
    log::pages()
}
