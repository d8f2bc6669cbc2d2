//! Registers and tables of an IOMMU, as words at an address; and the ring in which it is told what to
//! do, which both vendors have in the same form.

use super::DEAD;
use crate::paging::DIRECT_MAP;
use crate::time;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst, fence};

/// Memory that an IOMMU shares with the core: its registers, or tables that it reads.
#[derive(Clone, Copy)]
pub struct Words(u64);

impl Words {
    /// Words from a virtual address on.
    ///
    /// # Safety
    /// The memory is mapped for ever, is no Rust object, and belongs to an IOMMU's driver from now on:
    /// registers as far as the vendor's specification lists them, or a table as large as its user
    /// says. Whoever holds a copy stays within it.
    pub const unsafe fn new(address: u64) -> Words {
        Words(address)
    }

    /// A zeroed table in memory that `take` gives; `bytes` is a multiple of 4096.
    pub fn take(take: &mut dyn FnMut(u64) -> u64, bytes: u64) -> Words {
        Words(DIRECT_MAP + take(bytes))
    }

    /// The same, `bytes` further on.
    pub const fn add(self, bytes: u64) -> Words {
        Words(self.0 + bytes)
    }

    /// The physical address of a table.
    pub const fn physical(self) -> u64 {
        self.0 - DIRECT_MAP
    }

    pub fn read32(self, at: u64) -> u32 {
        // SAFETY: inside the memory, by the contract of `new`; aligned by the callers' constants.
        unsafe { ((self.0 + at) as *const u32).read_volatile() }
    }

    pub fn write32(self, at: u64, value: u32) {
        // SAFETY: as `read32`; what the IOMMU does with the value is its driver's care.
        unsafe { ((self.0 + at) as *mut u32).write_volatile(value) }
    }

    pub fn read64(self, at: u64) -> u64 {
        // SAFETY: as `read32`.
        unsafe { ((self.0 + at) as *const u64).read_volatile() }
    }

    pub fn write64(self, at: u64, value: u64) {
        // SAFETY: as `write32`.
        unsafe { ((self.0 + at) as *mut u64).write_volatile(value) }
    }

    /// Writes the lines of `bytes` from `at` on back to memory, for an IOMMU that does not look into
    /// the caches of CPUs.
    pub fn write_back(self, at: u64, bytes: u64) {
        fence(SeqCst);
        for line in ((self.0 + at) & !63..self.0 + at + bytes).step_by(64) {
            // SAFETY: CLFLUSH of a mapped line changes no value; every 64-bit CPU has it.
            unsafe { core::arch::asm!("clflush [{}]", in(reg) line, options(nostack)) };
        }
        fence(SeqCst);
    }
}

/// Bytes of a ring: 256 entries of 16 bytes.
const RING: u64 = 4096;

/// A ring of commands, and the word in which the IOMMU says how far it is.
pub struct Queue {
    ring: Words,
    registers: Words,
    head: u64,
    tail_register: u64,
    tail: AtomicU64,
    coherent: bool,
}

impl Queue {
    /// A ring whose head and tail registers, byte offsets, are these.
    pub fn new(
        take: &mut dyn FnMut(u64) -> u64,
        registers: Words,
        (head, tail_register): (u64, u64),
        coherent: bool,
    ) -> Queue {
        Queue {
            ring: Words::take(take, 2 * RING),
            registers,
            head,
            tail_register,
            tail: AtomicU64::new(0),
            coherent,
        }
    }

    /// Physical address of the ring.
    pub fn ring(&self) -> u64 {
        self.ring.physical()
    }

    /// Physical address of the word that the IOMMU writes.
    pub fn status(&self) -> u64 {
        self.ring.physical() + RING
    }

    /// What it wrote last.
    pub fn done(&self) -> u32 {
        self.ring.read32(RING)
    }

    /// Adds a command. A ring that stays full is that of an IOMMU that does not work any more.
    pub fn push(&self, command: [u64; 2]) {
        let tail = self.tail.load(Relaxed);
        let next = (tail + 16) % RING;
        let limit = time::now() + time::tsc_khz() * 10;
        while next == self.registers.read64(self.head) & (RING - 1) & !15 {
            if DEAD.load(Relaxed) || time::now() > limit {
                return DEAD.store(true, Relaxed);
            }
            core::hint::spin_loop();
        }
        self.ring.write64(tail, command[0]);
        self.ring.write64(tail + 8, command[1]);
        if !self.coherent {
            self.ring.write_back(tail, 16);
        }
        self.tail.store(next, Relaxed);
    }

    /// Lets the IOMMU read what was added.
    pub fn publish(&self) {
        fence(SeqCst);
        self.registers
            .write64(self.tail_register, self.tail.load(Relaxed));
    }
}
