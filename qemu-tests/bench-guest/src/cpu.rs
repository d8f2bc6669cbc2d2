//! The instructions that are measured or needed, one function each. They are always inlined, so
//! that a measurement holds the instruction and little else.

use core::arch::asm;

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
