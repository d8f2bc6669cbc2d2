//! The `syscall` instruction: the one place where a component enters the core. Components use the
//! safe wrappers in [`crate::caps`] and [`crate::ipc`]; [`system_call`] is for those that have to
//! say what the wrappers cannot: a benchmark of the core alone, and programs that test it.

use microvisor_abi::{Call, Status};

/// Status and the six result registers.
pub(crate) type Answer = (Status, [u64; 6]);

/// Makes the call of any number with any registers, those of `microvisor_abi`'s top comment;
/// answers `rax` (a status, see [`Status::from_raw`]) and the six result registers.
///
/// # Safety
/// The call, whatever it does, changes no memory that a reference of this program points to, but
/// the calling thread's message buffer: it takes no mapping away that is in use and maps nothing
/// where something is.
#[cfg(target_os = "none")]
#[inline(always)]
pub unsafe fn system_call(number: u64, arguments: [u64; 6]) -> (u64, [u64; 6]) {
    let [mut rdi, mut rsi, mut rdx, mut r10, mut r8, mut r9] = arguments;
    let mut rax = number;
    // SAFETY: the core preserves every register but those declared here, and writes only memory
    // of this component that is the calling thread's message buffer or a ring or state page that
    // is accessed by volatile or atomic operations; anything beyond is excluded by the caller's
    // promise. The default memory clobber stands.
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

/// On a host: what [`crate::host`] makes of it.
///
/// # Safety
/// None is needed here; the signature is that of the machine.
#[cfg(not(target_os = "none"))]
pub unsafe fn system_call(number: u64, arguments: [u64; 6]) -> (u64, [u64; 6]) {
    crate::host::call(number, arguments)
}

/// Makes a call.
///
/// This is safe to offer inside the crate because of what the wrappers promise: memory is only
/// mapped where nothing was ([`crate::memory`] never hands out an address twice), so no call
/// changes what a live reference points to.
#[inline(always)]
pub(crate) fn call(number: Call, arguments: [u64; 6]) -> Answer {
    // SAFETY: the promise of the wrappers, above.
    let (rax, results) = unsafe { system_call(number as u64, arguments) };
    // A number that no core sends would be a core of another version.
    let status = Status::from_raw(rax).unwrap_or(Status::InvalidCall);
    (status, results)
}

/// A call of which only the status matters.
#[inline(always)]
pub(crate) fn status(number: Call, arguments: [u64; 6]) -> Result<(), Status> {
    call(number, arguments).0.result()
}

/// A call with one argument, of which only the status matters. The other argument registers hold
/// whatever they held: a call does not look at those that it has no argument in.
#[cfg(target_os = "none")]
#[inline(always)]
pub(crate) fn status_of_one(number: Call, argument: u64) -> Result<(), Status> {
    let mut rax = number as u64;
    // SAFETY: as in `system_call`, with the promise of `call`.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") rax,
            inlateout("rdi") argument => _,
            lateout("rsi") _,
            lateout("rdx") _,
            lateout("r10") _,
            lateout("r8") _,
            lateout("r9") _,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    if rax == Status::Ok as u64 {
        return Ok(());
    }
    refused(rax)
}

#[cfg(target_os = "none")]
#[cold]
fn refused(rax: u64) -> Result<(), Status> {
    Err(Status::from_raw(rax).unwrap_or(Status::InvalidCall))
}

/// On a host a call like any other.
#[cfg(not(target_os = "none"))]
pub(crate) fn status_of_one(number: Call, argument: u64) -> Result<(), Status> {
    status(number, [argument, 0, 0, 0, 0, 0])
}

/// A call that is repeated while the core says that it made progress.
pub(crate) fn status_until_done(number: Call, arguments: [u64; 6]) -> Result<(), Status> {
    loop {
        match call(number, arguments).0 {
            Status::Again => {}
            other => return other.result(),
        }
    }
}
