//! The first instructions: Multiboot2 and PVH enter the same 32-bit code, which maps the first
//! 4 GiB three times (identity, direct map, image) and calls `kernel_start` in long mode.
//! Only loaders run this. The tables built here are writable and executable: they serve until
//! `paging` has built the final ones, and once more while other CPUs start (`smp`).

use core::arch::global_asm;

/// What a Multiboot2 loader leaves in `eax` (Multiboot2 specification 1.6, 3.3).
pub const MULTIBOOT2_MAGIC: u32 = 0x36d7_6289;

global_asm!(
    r#"
    .section .boot.header, "a"
    .balign 8
mb2_start:
    .long 0xe85250d6, 0, mb2_end - mb2_start
    .long -(0xe85250d6 + (mb2_end - mb2_start))
    /* module alignment */
    .short 6, 0
    .long 8
    /* end */
    .short 0, 0
    .long 8
mb2_end:

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18          /* XEN_ELFNOTE_PHYS32_ENTRY, Xen public/elfnote.h */
    .asciz "Xen"
    .quad boot_entry

    .section .boot.bss, "aw", @nobits
    .balign 4096
    .global boot_pml4
boot_pml4:      .skip 4096
boot_pdpt:      .skip 4096
boot_pdpt_high: .skip 4096
boot_pd:        .skip 4 * 4096
                .skip 64
boot_low_stack:

    .section .boot.data, "aw"
    .balign 8
boot_gdt:
    .quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff
boot_gdt_pointer:
    .short 23
    .long boot_gdt

    .section .boot.text, "ax"
    .code32
    .global boot_entry
boot_entry:
    cli
    cld
    mov esp, offset boot_low_stack
    mov edi, eax
    mov esi, ebx
    rdtsc
    mov ebp, edx
    mov ebx, eax            /* boot TSC in ebp:ebx */

    mov eax, offset boot_pml4
    mov dword ptr [eax], offset boot_pdpt + 3
    mov dword ptr [eax + 256 * 8], offset boot_pdpt + 3
    mov dword ptr [eax + 511 * 8], offset boot_pdpt_high + 3
    mov eax, offset boot_pdpt_high
    mov dword ptr [eax + 510 * 8], offset boot_pd + 3
    mov dword ptr [eax + 511 * 8], offset boot_pd + 0x1003
    mov eax, offset boot_pdpt
    mov dword ptr [eax], offset boot_pd + 3
    mov dword ptr [eax + 8], offset boot_pd + 0x1003
    mov dword ptr [eax + 16], offset boot_pd + 0x2003
    mov dword ptr [eax + 24], offset boot_pd + 0x3003
    mov ecx, offset boot_pd
    mov eax, 0x83           /* present, writable, 2 MiB */
2:  mov [ecx], eax
    mov dword ptr [ecx + 4], 0
    add ecx, 8
    add eax, 0x200000
    jnc 2b

    mov eax, cr4
    or eax, 0x20            /* PAE */
    mov cr4, eax
    mov eax, offset boot_pml4
    mov cr3, eax
    mov ecx, 0xc0000080     /* EFER: LME, NXE */
    rdmsr
    or eax, 0x900
    wrmsr
    mov eax, cr0
    or eax, 0x80010000      /* PG, WP */
    mov cr0, eax
    lgdt [boot_gdt_pointer]
    push 0x08
    mov eax, offset boot_long
    push eax
    retf                    /* to 64-bit code */

    .code64
boot_long:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    xor eax, eax
    mov fs, ax
    mov gs, ax
    movabs rax, offset boot_high
    jmp rax

    .section .text.boot_high, "ax"
boot_high:
    mov rsp, offset boot_stack_top
    mov edi, edi            /* loader's magic */
    mov esi, esi            /* loader's information */
    mov edx, ebp
    shl rdx, 32
    mov eax, ebx
    or rdx, rax             /* boot TSC */
    xor ebp, ebp
    call {start}
    ud2

    .section .bss.boot_stack, "aw", @nobits
    .balign 4096
    .global boot_stack_bottom
boot_stack_bottom:
    .skip 0x10000
    .global boot_stack_top
boot_stack_top:
    .text
    "#,
    start = sym crate::kernel_start,
);
