//! From the PVH entry point to Rust: 32-bit protected mode without paging (Xen
//! docs/misc/pvh.pandoc: flat segments, EBX = start info) to 64-bit mode. Nothing here is called
//! by anything but the loader.
//!
//! Control registers are written, never read: QEMU's SVM mixes up which one a read is of, and
//! hypervisors that intercept such reads then answer wrongly.

use core::arch::global_asm;

/// Address of the page of local APIC registers after a reset (Intel SDM vol. 3, 10.4.1).
pub const LAPIC_ADDRESS: u64 = 0xfee0_0000;
/// Entries of the highest table, of which the code below fills the first.
pub const ENTRIES: usize = 512;
/// First address that the tables below do not map.
pub const MAPPED_END: u64 = 1 << 32;

// CR4.PAE; EFER.LME; CR0.PG, NE, ET and PE (Intel SDM vol. 3, 2.5 and 9.8.5).
//
// The tables map the first 4 GiB one to one, by 2 MiB pages. Only the 2 MiB around the local APIC
// are split, so that its page alone is uncached (PCD and PWT): Xen's special pages lie in the
// same 2 MiB.
global_asm!(
    r#"
    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 8, 18          // "Xen", 8 bytes, XEN_ELFNOTE_PHYS32_ENTRY (public/elfnote.h)
    .asciz "Xen"
    .quad pvh_entry

    .section .boot.text, "ax", @progbits
    .code32
    .global pvh_entry
pvh_entry:
    cli
    cld
    movl $0x20, %eax
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    movl $0x100, %eax
    xorl %edx, %edx
    wrmsr
    movl $0x80000031, %eax
    movl %eax, %cr0
    lgdt boot_gdt_pointer
    ljmp $8, $boot_long
    .code64
boot_long:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl $boot_stack_end, %esp
    xorl %ebp, %ebp
    movl %ebx, %edi             // the start info; ebx is untouched since the entry
    call guest_main
    ud2

    .section .rodata.boot, "a", @progbits
    .balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff    // 64-bit code
    .quad 0x00cf93000000ffff    // data
boot_gdt_pointer:
    .word . - boot_gdt - 1
    .quad boot_gdt

    .section .data.boot, "aw", @progbits
    .balign 4096
    .global boot_pml4
boot_pml4:
    .quad boot_pdpt + 0x3
    .skip 4088
boot_pdpt:
    .quad boot_pd + 0x3, boot_pd + 0x1003, boot_pd + 0x2003, boot_pd + 0x3003
    .skip 4064
boot_pd:
    .set frame, 0
    .rept 0x7f7
    .quad frame + 0x83
    .set frame, frame + 0x200000
    .endr
    .quad boot_pt + 0x3
    .set frame, frame + 0x200000
    .rept 8
    .quad frame + 0x83
    .set frame, frame + 0x200000
    .endr
boot_pt:
    .quad {lapic} + 0x1b
    .set frame, {lapic} + 0x1000
    .rept 511
    .quad frame + 0x3
    .set frame, frame + 0x1000
    .endr

    .section .bss.boot, "aw", @nobits
    .balign 16
    .skip 65536
boot_stack_end:
    .text
    "#,
    lapic = const LAPIC_ADDRESS,
    options(att_syntax),
);

unsafe extern "C" {
    /// The highest table, [`ENTRIES`] entries.
    static boot_pml4: core::sync::atomic::AtomicU64;
}

/// Sets an entry of the highest table, so that a guest can have mappings of its own.
///
/// # Safety
/// The entry must be one that nothing uses: 1 and up, and its tables must stay.
pub unsafe fn set_top_entry(index: usize, value: u64) {
    // SAFETY: the table has `ENTRIES` entries, and the caller promised the rest.
    let entry = unsafe { &*(&raw const boot_pml4).add(index % ENTRIES) };
    entry.store(value, core::sync::atomic::Ordering::SeqCst);
}
