//! Starts the other CPUs: INIT, SIPI, SIPI (Intel SDM vol. 3, 9.4.4), one at a time, through a
//! page below 1 MiB that brings them from real mode to the core's tables.

use crate::cpu::{self, Cpu};
use crate::paging::{self, DIRECT_MAP, IMAGE};
use crate::{apic, feature, speculation, time, trap, virt};
use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Where the trampoline is copied. Memory below 1 MiB is never given away.
const TRAMPOLINE: u64 = 0x8000;

global_asm!(
    r#"
    .section .rodata.trampoline, "a"
    .global trampoline_start, trampoline_end, trampoline_words
    .code16
    .set BASE, {base}
trampoline_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl BASE + (4f - trampoline_start)
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x08, $(BASE + (2f - trampoline_start))
    .code32
2:  movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %ss
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl BASE + (trampoline_words - trampoline_start), %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x900, %eax
    wrmsr
    movl %cr0, %eax
    andl $0x9fffffff, %eax
    orl $0x80010001, %eax
    movl %eax, %cr0
    ljmpl $0x18, $(BASE + (3f - trampoline_start))
    .code64
3:  movq BASE + (trampoline_words - trampoline_start) + 8, %rsp
    movq BASE + (trampoline_words - trampoline_start) + 16, %rdi
    movq BASE + (trampoline_words - trampoline_start) + 24, %rax
    xorl %ebp, %ebp
    call *%rax
    ud2
    .balign 8
5:  .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff, 0x00af9a000000ffff
4:  .short 31
    .long BASE + (5b - trampoline_start)
    .balign 8
trampoline_words:
    .quad 0, 0, 0, 0
trampoline_end:
    .text
    "#,
    base = const TRAMPOLINE,
    options(att_syntax),
);

/// The CPU being started that has come up, as its number.
static ARRIVED: AtomicUsize = AtomicUsize::new(0);
static GO: AtomicBool = AtomicBool::new(false);

/// Bounds of the trampoline in the image, and its words.
fn trampoline() -> [u64; 3] {
    unsafe extern "C" {
        static trampoline_start: u8;
        static trampoline_words: u8;
        static trampoline_end: u8;
    }
    [
        &raw const trampoline_start,
        &raw const trampoline_words,
        &raw const trampoline_end,
    ]
    .map(|symbol| symbol as u64)
}

/// Physical address of the boot tables; too far from the image for a relative address.
fn boot_tables() -> u64 {
    let address: u64;
    // SAFETY: loads a constant.
    unsafe {
        core::arch::asm!("mov {:e}, offset boot_pml4", out(reg) address, options(nomem, nostack, pure));
    }
    address
}

/// Starts every CPU but this one. A CPU that does not come is logged and left alone.
pub fn start() {
    let [start, words, end] = trampoline();
    let tables = boot_tables();
    let target = DIRECT_MAP + TRAMPOLINE;
    // SAFETY: the page at TRAMPOLINE is the core's; the boot tables, written through the direct
    // map, get the final top half, so that stacks and areas are there when a CPU arrives.
    unsafe {
        core::ptr::copy_nonoverlapping(
            start as *const u8,
            target as *mut u8,
            (end - start) as usize,
        );
        core::ptr::copy_nonoverlapping(
            (DIRECT_MAP + cpu::core_root() + 256 * 8) as *const u64,
            (DIRECT_MAP + tables + 256 * 8) as *mut u64,
            256,
        );
    }
    for index in 1..cpu::count() {
        let area = cpu::area(index);
        let Some(other) = cpu::other(index) else {
            continue;
        };
        let values = [
            tables,
            other.stack_top,
            area as u64,
            arrive as *const () as u64,
        ];
        // SAFETY: the copied trampoline's four words.
        unsafe { ((target + words - start) as *mut [u64; 4]).write_volatile(values) };
        apic::send_init(other.apic_id);
        time::delay_microseconds(10_000);
        for _ in 0..2 {
            apic::send_startup(other.apic_id, (TRAMPOLINE >> 12) as u8);
            let end = time::now() + time::tsc_khz() * 100;
            while ARRIVED.load(Ordering::Acquire) != index && time::now() < end {
                core::hint::spin_loop();
            }
            if ARRIVED.load(Ordering::Acquire) == index {
                break;
            }
        }
        if ARRIVED.load(Ordering::Acquire) != index {
            log::error!(
                "CPU {index} (APIC {}) did not start; going on without it",
                other.apic_id
            );
            apic::send_init(other.apic_id);
            cpu::limit(index);
            break;
        }
        let back = time::compare_tsc(0);
        if back > 0 {
            log::error!("CPU {index}: TSC is off by {back} ticks; its deadlines are, too");
        }
    }
    log::info!("{} CPUs run", cpu::count());
}

/// Lets the started CPUs begin to schedule.
pub fn release() {
    GO.store(true, Ordering::Release);
}

/// A started CPU's first Rust code, on its own stack, with the boot tables loaded.
extern "C" fn arrive(area: *mut Cpu) -> ! {
    feature::activate();
    // SAFETY: the final tables map everything in use; the area is this CPU's own.
    unsafe {
        paging::load(cpu::core_root());
        Cpu::activate(area);
    }
    trap::activate();
    apic::activate();
    speculation::activate();
    virt::enable();
    log::info!("CPU {} is up, APIC {}", cpu::index(), apic::id());
    ARRIVED.store(cpu::index(), Ordering::Release);
    time::compare_tsc(1);
    while !GO.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
    crate::glue::start_cpu()
}

const _: () = assert!(IMAGE > DIRECT_MAP);
