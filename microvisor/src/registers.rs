//! Entry stubs save and load whole register files. These macros write their instructions, so that a
//! stub shows what is particular about it: `trap`, the world switches in `virt`.

use core::mem::offset_of;
use microvisor_abi::thread::Registers;

/// Offsets in `Registers`.
pub struct Offset;

macro_rules! offsets {
    ($($register:ident)*) => {
        #[allow(non_upper_case_globals)]
        impl Offset { $(pub const $register: usize = offset_of!(Registers, $register);)* }
    };
}
offsets!(rax rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rsp rflags);

/// `naked_asm!` in which the name of a register stands for its offset in `Registers`. The last
/// operand ends with a comma.
macro_rules! registers_asm {
    ($($body:tt)*) => {
        crate::registers::with_offsets!(
            [$($body)*] rax rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rsp rflags
        )
    };
}
/// The comment uses every name, as `naked_asm!` demands.
macro_rules! with_offsets {
    ([$($body:tt)*] $($register:ident)*) => {
        core::arch::naked_asm!(
            concat!("#", $("{", stringify!($register), "}"),*),
            $($body)*
            $($register = const crate::registers::Offset::$register),*
        )
    };
}
/// One instruction for each register.
macro_rules! each {
    ($operation:ident $($register:ident)*) => {
        concat!($(stringify!($operation), " ", stringify!($register), "\n"),*)
    };
}
/// Clears registers.
macro_rules! clear {
    ($($register:ident)*) => {
        concat!($("xor ", stringify!($register), ", ", stringify!($register), "\n"),*)
    };
}
/// Stores registers in the `Registers` that `base` points to.
macro_rules! store {
    ($base:ident: $($register:ident)*) => {
        concat!($("mov [", stringify!($base), " + {", stringify!($register), "}], ",
                  stringify!($register), "\n"),*)
    };
}
/// Loads registers from there.
macro_rules! load {
    ($base:ident: $($register:ident)*) => {
        concat!($("mov ", stringify!($register), ", [", stringify!($base), " + {",
                  stringify!($register), "}]\n"),*)
    };
}
pub(crate) use {clear, each, load, registers_asm, store, with_offsets};
