//! What the claims share: worker threads on chosen CPUs, waiting for conditions, a board of words
//! that workers write results on.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use sdk::abi::boot::SLOT_CPUS;
use sdk::abi::{Call, FRAME};
use sdk::local;
use sdk::memory::{self, READ_WRITE};
use sdk::prelude::*;
use sdk::startup::THREAD_STACK_BYTES;
use sdk::time;

/// A claim: its name and what must hold.
pub type Claim = (&'static str, fn(&mut Lab) -> Result<(), Failure>);

/// Why a claim does not hold.
#[derive(Debug)]
#[allow(dead_code, reason = "for the report")]
pub enum Failure {
    /// The core refused something.
    Status(Status),
    /// This did not happen in time.
    Late(&'static str),
    /// Seen and expected.
    Wrong(&'static str, u64, u64),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Failure::Status(status)
    }
}

/// `seen` is `wanted`.
pub fn same(what: &'static str, seen: u64, wanted: u64) -> Result<(), Failure> {
    if seen == wanted {
        Ok(())
    } else {
        Err(Failure::Wrong(what, seen, wanted))
    }
}

/// Milliseconds that a condition may take; generous, for a slow and shared machine.
const PATIENCE: u64 = 30_000;

/// Waits until `holds`.
pub fn until(what: &'static str, mut holds: impl FnMut() -> bool) -> Result<(), Failure> {
    let end = time::now() + PATIENCE * time::tsc_khz();
    while !holds() {
        if time::now() > end {
            return Err(Failure::Late(what));
        }
        core::hint::spin_loop();
    }
    Ok(())
}

/// A word that workers and claims share.
pub struct Word(AtomicU64);

impl Word {
    pub const fn new() -> Word {
        Word(AtomicU64::new(0))
    }
    pub fn get(&self) -> u64 {
        self.0.load(SeqCst)
    }
    pub fn set(&self, value: u64) {
        self.0.store(value, SeqCst);
    }
    pub fn count(&self) {
        self.0.fetch_add(1, SeqCst);
    }
    /// Waits until it has this value.
    pub fn reaches(&self, what: &'static str, value: u64) -> Result<(), Failure> {
        match until(what, || self.get() == value) {
            Ok(()) => Ok(()),
            Err(_) => Err(Failure::Wrong(what, self.get(), value)),
        }
    }
    /// Waits until it has grown by `steps`.
    pub fn grows(&self, what: &'static str, steps: u64) -> Result<(), Failure> {
        let from = self.get();
        until(what, || self.get() >= from + steps)
    }
}

/// The CPU that a worker was last seen on, plus one.
pub static SEEN: Word = Word::new();
/// Rounds of a worker's loop.
pub static ROUNDS: Word = Word::new();
/// What a worker found wrong.
pub static WRONG: Word = Word::new();
/// A worker's result: a status, or another word plus [`RESULT`].
pub static OUTCOME: Word = Word::new();
/// Tells a result from "nothing yet".
pub const RESULT: u64 = 1 << 40;

/// Notes where this runs.
pub fn here() {
    // The initial APIC id; QEMU numbers CPUs by it (Intel SDM vol. 2, CPUID).
    let id = core::arch::x86_64::__cpuid(1).ebx >> 24;
    SEEN.set(u64::from(id) + 1);
}

/// Writes how something ended.
pub fn outcome<T>(result: Result<T, Status>) {
    OUTCOME.set(RESULT + result.map_or_else(|status| status as u64, |_| 0));
}

/// Words to start from.
fn wipe() {
    for word in [&SEEN, &ROUNDS, &WRONG, &OUTCOME] {
        word.set(0);
    }
}

/// A thread that works for a claim.
#[derive(Clone, Copy)]
pub struct Worker {
    pub thread: Cap<cap::Thread>,
    pub sched: Cap<cap::SchedContext>,
}

impl Worker {
    /// Moves it to another CPU.
    pub fn move_to(self, cpu: u32) -> Result<(), Status> {
        self.sched.set(CPUS, cpu, PRIORITY, 1, 1)
    }

    /// Waits until it is blocked in a call.
    pub fn blocks(self) -> Result<(), Failure> {
        use sdk::abi::thread::State;
        until("it blocks", || {
            self.thread
                .inspect()
                .is_ok_and(|report| report.state == State::Blocked as u64)
        })
    }

    /// Takes it down.
    pub fn end(self) -> Result<(), Failure> {
        self.thread.delete()?;
        self.sched.delete()?;
        Ok(())
    }
}

/// The right to all CPUs.
pub const CPUS: Cap<cap::Cpu> = Cap::new(SLOT_CPUS);
/// Priority of workers; less than that of the claims' own thread.
pub const PRIORITY: u8 = 10;

/// Makes workers.
pub struct Lab {
    block: u32,
}

impl Lab {
    pub const fn new() -> Lab {
        Lab { block: 1 }
    }

    /// An object of own memory.
    pub fn make<K: KindOf>(&self) -> Result<Cap<K>, Status> {
        memory::own().retype(0)
    }

    /// Starts `work` on `cpu`; the board is wiped.
    pub fn worker(
        &mut self,
        cpu: u32,
        work: impl FnOnce(Worker) + Send + 'static,
    ) -> Result<Worker, Status> {
        wipe();
        self.another(cpu, PRIORITY, (1, 1), work)
    }

    /// Starts `work` on `cpu`, with a budget per period.
    pub fn another(
        &mut self,
        cpu: u32,
        priority: u8,
        (budget, period): (u64, u64),
        work: impl FnOnce(Worker) + Send + 'static,
    ) -> Result<Worker, Status> {
        let worker = Worker {
            thread: self.make()?,
            sched: self.make()?,
        };
        worker.sched.set(CPUS, cpu, priority, budget, period)?;
        worker.sched.bind(worker.thread)?;
        let own = memory::own();
        let base = local::block(self.block);
        let pages = (THREAD_STACK_BYTES / FRAME) as u32;
        let stack = own.retype_many(memory::ORDER_4K, pages)?;
        let low = base + local::STACK_END - THREAD_STACK_BYTES;
        memory::map_run(
            own,
            memory::OWN_SPACE,
            stack,
            pages,
            memory::ORDER_4K,
            low,
            READ_WRITE,
        )?;
        let buffer = base + local::BUFFER_OFFSET;
        memory::map_into(own, memory::OWN_SPACE, worker.thread, buffer, READ_WRITE)?;
        let right = ThreadRight {
            thread: worker.thread.slot(),
            sched: worker.sched.slot(),
            cpu,
            block: self.block,
        };
        self.block += 1;
        sdk::thread::spawn(right, move |_| work(worker))?;
        Ok(worker)
    }
}

/// A system call without payload or capabilities in messages; it writes no memory.
pub fn call(call: Call, [a, b, c, d]: [u64; 4]) -> (Status, [u64; 3]) {
    let (mut rax, mut rdi, mut rsi, mut rdx) = (call as u64, a, b, c);
    // SAFETY: see above; the core keeps every other register.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") rax,
            inlateout("rdi") rdi,
            inlateout("rsi") rsi,
            inlateout("rdx") rdx,
            inlateout("r10") d => _,
            inlateout("r8") 0u64 => _,
            inlateout("r9") 0u64 => _,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    let status = Status::from_raw(rax).unwrap_or(Status::InvalidCall);
    (status, [rdi, rsi, rdx])
}
