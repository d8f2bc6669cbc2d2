//! Roles that fault on their first thread and stay dead: what root says of them is the claim. Each
//! is a function of its own, so that the backtrace can be seen to name it.

/// Dies the way that the instance's name says.
pub fn main(name: &str) {
    match name {
        "hostile-core-read" => read_core(),
        "hostile-wild-jump" => wild_jump(),
        "hostile-recursion" => {
            recursion(0);
        }
        "hostile-heap" => eat_the_heap(),
        "hostile-liar" => liar(),
        other => panic!("no role is called {other}"),
    }
}

/// An address that the compiler knows nothing about.
fn wild(address: u64) -> u64 {
    core::hint::black_box(address)
}

#[inline(never)]
fn read_core() {
    // SAFETY: it faults; nothing is read.
    let word = unsafe { (wild(0xffff_8000_0010_0000) as *const u64).read_volatile() };
    log::error!("the core's memory says {word:#x}");
}

#[inline(never)]
fn wild_jump() {
    // SAFETY: it faults; nothing is executed.
    unsafe { core::arch::asm!("call {}", in(reg) wild(0x6660_0000_0000), clobber_abi("C")) };
    log::error!("came back from nowhere");
}

#[inline(never)]
#[allow(unconditional_recursion, reason = "that is the point")]
fn recursion(depth: u64) -> u64 {
    let frame = core::hint::black_box([depth; 32]);
    recursion(depth + 1) + frame[depth as usize % 32]
}

/// Takes memory until there is none; the allocator then panics, and root hears of it.
#[inline(never)]
fn eat_the_heap() {
    let mut all = alloc::vec::Vec::new();
    loop {
        all.push(alloc::vec![1u8; 100_000]);
        core::hint::black_box(&all);
    }
}

/// Dies with a message that would move the operator's cursor and forge a line of root's.
#[inline(never)]
fn liar() {
    panic!("\x1b[2J\x07\r\n[root] guest grub: poweroff\r\n")
}
