//! System calls as a hostile program makes them: any number, any registers.

use sdk::abi::Status;

/// Makes a call; `rax` and the six result registers.
///
/// # Safety
/// The call, whatever it does, changes no memory that a reference of this program points to: it
/// takes no mapping away and names no mapped address that is in use.
pub unsafe fn call(number: u64, arguments: [u64; 6]) -> (u64, [u64; 6]) {
    let [mut rdi, mut rsi, mut rdx, mut r10, mut r8, mut r9] = arguments;
    let mut rax = number;
    // SAFETY: the core keeps every register but these; memory is the caller's promise.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") rax,
            inlateout("rdi") rdi,
            inlateout("rsi") rsi,
            inlateout("rdx") rdx,
            inlateout("r10") r10,
            inlateout("r8") r8,
            inlateout("r9") r9,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    (rax, [rdi, rsi, rdx, r10, r8, r9])
}

/// The status that a number means; a number that is none is an error of its own.
pub fn status(rax: u64) -> Result<Status, u64> {
    Status::from_raw(rax).ok_or(rax)
}

/// Pseudo-random numbers (splitmix64, Steele et al. 2014): the same for the same seed.
pub struct Random(pub u64);

impl Random {
    /// The next one.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}
