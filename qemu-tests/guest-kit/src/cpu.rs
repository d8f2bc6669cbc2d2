//! The instructions that are measured or needed, one function each. They are always inlined, so
//! that a measurement holds the instruction and little else.

use core::arch::asm;

use crate::trap::{Exception, GUARD};

/// What CPUID answers.
#[derive(Clone, Copy, Debug)]
pub struct Cpuid {
    /// `eax`.
    pub eax: u32,
    /// `ebx`.
    pub ebx: u32,
    /// `ecx`.
    pub ecx: u32,
    /// `edx`.
    pub edx: u32,
}

/// CPUID of `leaf`, subleaf 0.
#[inline(always)]
pub fn cpuid(leaf: u32) -> Cpuid {
    let (eax, ebx, ecx, edx): (u32, u64, u32, u32);
    // SAFETY: CPUID changes only these registers; `rbx`, which the compiler keeps for itself, is
    // put back.
    unsafe {
        asm!(
            "xchg {rbx}, rbx",
            "cpuid",
            "xchg {rbx}, rbx",
            rbx = inout(reg) 0u64 => ebx,
            inout("eax") leaf => eax,
            inout("ecx") 0 => ecx,
            out("edx") edx,
            options(nostack),
        );
    }
    Cpuid {
        eax,
        ebx: ebx as u32,
        ecx,
        edx,
    }
}

/// RDMSR. An MSR that is not there ends the program with a report (`trap`).
#[inline(always)]
pub fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading an MSR changes nothing; a #GP is reported and ends the program.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nostack)) };
    u64::from(low) | u64::from(high) << 32
}

/// WRMSR.
///
/// # Safety
/// The value must not change what memory or code the program relies on.
#[inline(always)]
pub unsafe fn wrmsr(msr: u32, value: u64) {
    // SAFETY: promised by the caller.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack));
    }
}

/// OUT of a byte.
///
/// # Safety
/// The device behind the port must not write this program's memory in answer.
#[inline(always)]
pub unsafe fn out_byte(port: u16, value: u8) {
    // SAFETY: promised by the caller.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack)) };
}

/// IN of a byte.
///
/// # Safety
/// As for [`out_byte`].
#[inline(always)]
pub unsafe fn in_byte(port: u16) -> u8 {
    let value;
    // SAFETY: promised by the caller.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack)) };
    value
}

/// Waits for ever: interrupts are never on.
pub fn halt() -> ! {
    loop {
        // SAFETY: waiting changes nothing.
        unsafe { asm!("hlt", options(nomem, nostack)) };
    }
}

/// Runs a piece of assembly under a guard: an exception in it ends it, and is the result. What comes
/// after `finally` is run either way.
macro_rules! guarded {
    ($code:literal, finally $after:literal, $($operands:tt)*) => {{
        let vector: u64;
        let error: u64;
        // SAFETY: the guard takes an exception to the label 2; r8 to r11 are the guard's. What the
        // code itself does is the calling function's promise.
        unsafe {
            asm!(
                "lea r9, [rip + 2f]",
                "mov r10, -1",
                "mov [rip + {guard}], r9",
                $code,
                "mov qword ptr [rip + {guard}], 0",
                "2:",
                $after,
                guard = sym GUARD,
                out("r9") _,
                out("r10") vector,
                out("r11") error,
                $($operands)*
            );
        }
        match u8::try_from(vector) {
            Ok(vector) => Err(Exception { vector, error }),
            Err(_) => Ok(()),
        }
    }};
    ($code:literal, $($operands:tt)*) => {
        guarded!($code, finally "", $($operands)*)
    };
}

/// RDMSR, or the exception that it raised.
pub fn try_rdmsr(msr: u32) -> Result<u64, Exception> {
    let (low, high): (u32, u32);
    guarded!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high)?;
    Ok(u64::from(low) | u64::from(high) << 32)
}

/// WRMSR, or the exception that it raised.
///
/// # Safety
/// As for [`wrmsr`].
pub unsafe fn try_wrmsr(msr: u32, value: u64) -> Result<(), Exception> {
    guarded!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32)
}

/// IN of 1, 2 or 4 bytes.
///
/// # Safety
/// As for [`out_byte`].
pub unsafe fn try_in(port: u16, bytes: u8) -> Result<u32, Exception> {
    let value: u32;
    match bytes {
        1 => guarded!("in al, dx", in("dx") port, inout("eax") 0u32 => value),
        2 => guarded!("in ax, dx", in("dx") port, inout("eax") 0u32 => value),
        _ => guarded!("in eax, dx", in("dx") port, inout("eax") 0u32 => value),
    }?;
    Ok(value)
}

/// OUT of 1, 2 or 4 bytes.
///
/// # Safety
/// As for [`out_byte`].
pub unsafe fn try_out(port: u16, bytes: u8, value: u32) -> Result<(), Exception> {
    match bytes {
        1 => guarded!("out dx, al", in("dx") port, in("eax") value),
        2 => guarded!("out dx, ax", in("dx") port, in("eax") value),
        _ => guarded!("out dx, eax", in("dx") port, in("eax") value),
    }
}

/// Loads 4 bytes from an address of any kind.
pub fn try_load(address: u64) -> Result<u32, Exception> {
    let value: u32;
    guarded!("mov {value:e}, [{address}]", address = in(reg) address, value = out(reg) value)?;
    Ok(value)
}

/// Stores 4 bytes to an address of any kind.
///
/// # Safety
/// If memory is there, the program must not need what it holds.
pub unsafe fn try_store(address: u64, value: u32) -> Result<(), Exception> {
    guarded!("mov [{address}], {value:e}", address = in(reg) address, value = in(reg) value)
}

/// Calls an address, which returns at once or raises an exception.
///
/// # Safety
/// If instructions are there, they must be a plain return.
pub unsafe fn try_call(address: u64) -> Result<(), Exception> {
    // The stack pointer is put back: the exception may come after the call pushed.
    guarded!(
        "mov {kept}, rsp; call {address}",
        finally "mov rsp, {kept}",
        address = in(reg) address,
        kept = out(reg) _
    )
}
