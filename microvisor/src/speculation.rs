//! Mitigations of speculative execution: what `microvisor_vcpu_state::speculation` chooses is applied
//! here. None of it has run on a CPU that needs it (`docs/speculation.md`).
//!
//! The places where the core is entered and left are *sites*: one instruction of five bytes each. On a
//! CPU that needs something there, the boot CPU puts a call in its place, before anything untrusted has
//! run; the function called does what is needed and then what the instruction did. So a CPU that needs
//! nothing executes what it would without this file, and no conditional branch decides at a site, which
//! a guest could have mistrained. Those inside the functions end in LFENCE on the way in.

use crate::descriptor::KERNEL_DATA;
use crate::lock::Once;
use crate::paging::{DIRECT_MAP, IMAGE};
use crate::registers::registers_asm;
use core::arch::naked_asm;
use core::sync::atomic::{AtomicU32, Ordering};
use microvisor_vcpu_state::speculation::{Cpu, Mitigations, Vendor, Words, edge, exposed};
use raw_cpuid::cpuid;
use x86_64::registers::model_specific::Msr;

const ARCH_CAPABILITIES: u32 = 0x10a;
const PRED_CMD: u32 = 0x49;

/// For the functions below: bits of `edge` for components and for guests; SPEC_CTRL inside and outside.
static CHOSEN: [AtomicU32; 4] = [const { AtomicU32::new(0) }; 4];
/// What each CPU does when it starts.
static MITIGATIONS: Once<Mitigations> = Once::new(Mitigations::NONE);
/// VERW's operand has to be a selector in memory.
static SELECTOR: u16 = KERNEL_DATA;

/// An instruction that is to be five bytes long, and the function that may be called in its place.
macro_rules! site {
    ($instruction:literal, $function:ident) => {
        concat!(
            "661: ",
            $instruction,
            "\n662: .pushsection .sites, \"a\"\n.quad 661b, 662b, {",
            stringify!($function),
            "}\n.popsection"
        )
    };
}
pub(crate) use site;

/// A function for sites on the way in, where whoever ran before has all its registers saved but RAX,
/// which is kept; RCX, RDX and R8 are lost.
macro_rules! way_in {
    ($name:ident, $chosen:literal, $instruction:literal) => {
        /// # Safety
        /// Called by a site, on the stack of the core, of which it uses 264 bytes.
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            naked_asm!(
                "mov r8, rax",
                concat!("test dword ptr [rip + {chosen} + ", $chosen, "], {IBPB}"), "jz 2f",
                "mov eax, 1", "xor edx, edx", "mov ecx, {PRED_CMD}", "wrmsr",
                "2:",
                concat!("test dword ptr [rip + {chosen} + ", $chosen, "], {FILL}"), "jz 6f",
                // 32 entries, each of them a place where speculation stops (Intel, "Retpoline").
                "mov eax, 16",
                "3: call 4f", "7: pause", "lfence", "jmp 7b",
                "4: call 5f", "8: pause", "lfence", "jmp 8b",
                "5: dec eax", "jnz 3b", "add rsp, 256",
                "6:",
                concat!("test dword ptr [rip + {chosen} + ", $chosen, "], {IBRS}"), "jz 2f",
                "mov eax, [rip + {chosen} + 8]", "xor edx, edx", "mov ecx, 0x48", "wrmsr",
                "2:",
                concat!("test dword ptr [rip + {chosen} + ", $chosen, "], {HISTORY}"), "jz 9f",
                // Five times a call and five pairs of taken branches (Intel, "Branch History
                // Injection", the software sequence).
                "mov ecx, 5", "call 3f", "jmp 9f",
                "3: call 4f", "ret",
                "4: mov eax, 5",
                "5: jmp 6f", "nop",
                "6: dec eax", "jnz 5b", "dec ecx", "jnz 3b", "ret",
                "9: lfence",
                "mov rax, r8",
                $instruction,
                "ret",
                chosen = sym CHOSEN,
                PRED_CMD = const PRED_CMD,
                IBPB = const edge::IBPB, FILL = const edge::FILL,
                IBRS = const edge::IBRS, HISTORY = const edge::HISTORY,
            )
        }
    };
}
way_in!(enter_from_user, "0", "xor ebp, ebp");
way_in!(enter_from_guest, "4", "xor ecx, ecx");

/// A function for sites on the way out, with RDI pointing to `Registers`. RAX, RCX, RDX and flags are
/// lost; they and RDI are loaded after it, which are the next one's own values.
macro_rules! way_out {
    ($name:ident, $chosen:literal) => {
        /// # Safety
        /// Called by a site, on the stack of the core.
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            registers_asm!(
                concat!("test dword ptr [rip + {chosen} + ", $chosen, "], {IBRS}"), "jz 2f",
                "mov eax, [rip + {chosen} + 12]", "xor edx, edx", "mov ecx, 0x48", "wrmsr",
                "2:",
                concat!("test dword ptr [rip + {chosen} + ", $chosen, "], {L1D}"), "jz 3f",
                "mov eax, 1", "xor edx, edx", "mov ecx, 0x10b", "wrmsr",
                "3:",
                "mov r15, [rdi + {r15}]",
                concat!("test dword ptr [rip + {chosen} + ", $chosen, "], {VERW}"), "jz 4f",
                "verw word ptr [rip + {selector}]",
                "4: ret",
                chosen = sym CHOSEN, selector = sym SELECTOR,
                IBRS = const edge::IBRS, L1D = const edge::L1D, VERW = const edge::VERW,
            )
        }
    };
}
way_out!(leave_to_user, "0");
way_out!(leave_to_guest, "4");

/// For the sites that load CR3 from RDI. Every register is kept, and so are flags.
///
/// # Safety
/// Called by a site, on the stack of the core, with a root in RDI that may be loaded.
#[unsafe(naked)]
pub unsafe extern "C" fn switch_space() {
    naked_asm!(
        "mov cr3, rdi", "push rax", "push rcx", "push rdx",
        "mov eax, 1", "mov edx, 0", "mov ecx, {PRED_CMD}", "wrmsr",
        "pop rdx", "pop rcx", "pop rax", "ret",
        PRED_CMD = const PRED_CMD,
    )
}

/// Another vCPU than before has this CPU.
pub fn switch_vcpu() {
    if CHOSEN[0].load(Ordering::Relaxed) & edge::SWITCH != 0 {
        // SAFETY: the register exists; it holds commands, and this one forgets predictions.
        unsafe { Msr::new(PRED_CMD).write(1) };
    }
}

/// Chooses, says so in the log, and prepares the sites. Boot CPU, once, with the final tables loaded and
/// before other CPUs or anything untrusted ran.
pub fn setup() {
    unsafe extern "C" {
        static sites_start: [u64; 3];
        static sites_end: [u64; 3];
    }
    let found = look().mitigations();
    for (word, value) in CHOSEN
        .iter()
        .zip([found.user, found.guest, found.inside, found.outside])
    {
        word.store(value, Ordering::Relaxed);
    }
    let functions = [
        (enter_from_user as *const () as u64, found.user & edge::IN),
        (enter_from_guest as *const () as u64, found.guest & edge::IN),
        (leave_to_user as *const () as u64, found.user & edge::OUT),
        (leave_to_guest as *const () as u64, found.guest & edge::OUT),
        (switch_space as *const () as u64, found.user & edge::SWITCH),
    ];
    let (mut site, end) = (&raw const sites_start, &raw const sites_end);
    while site < end {
        // SAFETY: the linker put the table of all sites between the two symbols. Their code is in the
        // image, which the direct map shows writable; nobody executes it meanwhile, and all get there
        // by way of serialising instructions.
        unsafe {
            let [start, after, function] = *site;
            assert!(after - start == 5, "site at {start:#x}");
            if !functions.contains(&(function, 0)) {
                let distance = (function.wrapping_sub(after) as u32).to_le_bytes();
                let call = (DIRECT_MAP + start - IMAGE) as *mut u8;
                call.write(0xe8);
                call.add(1).cast::<[u8; 4]>().write_unaligned(distance);
            }
            site = site.add(1);
        }
    }
    let words = [found.guest, found.user].map(|word| Words(word, edge::NAMES));
    log::info!("speculation, guests: {}", words[0]);
    log::info!(
        "speculation, components: {}, SPEC_CTRL {:#x}",
        words[1],
        found.inside
    );
    if found.exposed != 0 {
        let open = Words(found.exposed, exposed::NAMES);
        log::warn!("speculation, nothing is done about: {open}");
    }
    // SAFETY: other CPUs have not started.
    unsafe { MITIGATIONS.set(found) };
    activate();
}

/// Sets the registers that are set once, on the CPU that runs this.
pub fn activate() {
    for (number, clear, set) in MITIGATIONS.get().registers {
        if number != 0 {
            let mut register = Msr::new(number);
            // SAFETY: the CPU said that it has the register and the bits; they make it speculate less.
            unsafe {
                let value = register.read();
                if value & !clear | set != value {
                    register.write(value & !clear | set);
                }
            }
        }
    }
}

/// What this CPU says of itself.
fn look() -> Cpu {
    let (zero, highest) = (cpuid!(0), cpuid!(0x8000_0000).eax);
    let mut cpu = Cpu {
        vendor: match [zero.ebx, zero.edx, zero.ecx]
            .map(u32::to_le_bytes)
            .as_flattened()
        {
            b"GenuineIntel" => Vendor::Intel,
            b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
            _ => Vendor::Other,
        },
        signature: cpuid!(1).eax,
        ..Cpu::default()
    };
    if zero.eax >= 7 {
        let seven = cpuid!(7, 0);
        cpu.leaf7 = [seven.ebx, seven.edx];
        if seven.eax >= 2 {
            cpu.leaf7_2 = cpuid!(7, 2).edx;
        }
        if seven.edx >> 29 & 1 != 0 {
            // SAFETY: the register exists.
            cpu.capabilities = unsafe { Msr::new(ARCH_CAPABILITIES).read() };
        }
    }
    if highest >= 0x8000_0008 {
        cpu.ext8 = cpuid!(0x8000_0008).ebx;
    }
    if highest >= 0x8000_0021 {
        cpu.ext21 = cpuid!(0x8000_0021).eax;
    }
    cpu
}
