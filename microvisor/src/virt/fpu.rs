//! Registers that a vCPU leaves in the CPU when it exits: extended state (x87, SSE, AVX, PKRU),
//! XCR0, TSC_AUX, DR0-DR3. They stay there while only the thread that runs the vCPU runs, and are
//! switched eagerly before any other does, so that nothing stale is there to be read, not even
//! speculatively. Host code never uses them: CR0.TS is always set outside this file, so a thread
//! that tries faults. (In guest mode the guest's own CR0 counts; VMRUN and exits switch CR0.)
//!
//! Invariant: with no vCPU resident XCR0 holds everything that is switched and the state is
//! initial. A vCPU is resident in at most one CPU: `Header::live_on` and `PerCpu::resident` agree
//! whenever the owner CPU is not inside this file.

use super::area::Area;
use super::{FORGOTTEN, PerCpu, Virt, features, is_vmx, svm, vmx};
use core::arch::asm;
use core::sync::atomic::Ordering;
use microvisor_vcpu_state::xsave;
use x86_64::registers::model_specific::Msr;

const TSC_AUX: u32 = 0xc000_0103;
const XSS: u32 = 0xda0;

/// The state after reset, as XRSTOR and FXRSTOR take it.
#[repr(C, align(64))]
struct Image([u8; xsave::MINIMUM]);

static INITIAL: Image = {
    let mut image = Image([0; xsave::MINIMUM]);
    // FCW and MXCSR after reset (`xsave::reset`, which is not const).
    image.0[0] = 0x7f;
    image.0[1] = 0x03;
    image.0[24] = 0x80;
    image.0[25] = 0x1f;
    image
};

/// True if the vCPU's registers are in this CPU, and it is one with SVM: the entry asks this first.
#[inline(always)]
pub fn is_resident(cpu: &PerCpu, area: &Area) -> bool {
    cpu.resident.load(Ordering::Relaxed) == area.physical()
}

/// The same on a CPU of any vendor.
pub fn is_marked_resident(cpu: &PerCpu, area: &Area) -> bool {
    cpu.resident.load(Ordering::Relaxed) == area.physical() | cpu.mark
}

/// Puts a vCPU's registers into this CPU. `Err`: they are in that other CPU.
#[cold]
pub fn make_resident(cpu: &PerCpu, area: Area) -> Result<(), usize> {
    let header = area.header();
    if let Some(other) = header.live_on() {
        return Err(other);
    }
    release(cpu);
    crate::speculation::switch_vcpu();
    header.set_live_on(Some(cpu.index));
    cpu.resident
        .store(area.physical() | cpu.mark, Ordering::Relaxed);
    vendor!(arrive(cpu, area));
    with_fpu(|| {
        // SAFETY: the image is 64-byte aligned, whole, and only ever written by `save`, `reset` and
        // `sanitise`, so XRSTOR accepts it.
        unsafe { load(area.image()) };
    });
    let xcr0 = header.xcr0.get();
    if xcr0 != features().limits.xcr0 {
        set_xcr0(xcr0);
    }
    set_tsc_aux(header.tsc_aux.get());
    if vendor!(breakpoints_enabled(area)) {
        vendor!(own_debug_registers(area));
    }
    Ok(())
}

/// Saves the resident vCPU's registers, if there is one, and leaves initial values.
#[inline]
pub fn release(cpu: &PerCpu) {
    if cpu.resident.load(Ordering::Relaxed) != 0 {
        release_resident(cpu);
    }
}

#[cold]
fn release_resident(cpu: &PerCpu) {
    // Taken before it is used: `forget` either finds it here and the area is not touched, or its
    // flush waits until this function has returned.
    let resident = cpu.resident.swap(0, Ordering::AcqRel);
    if resident == 0 {
        return;
    }
    let all = features().limits.xcr0;
    if resident == FORGOTTEN {
        set_xcr0(all);
        vendor!(leave(cpu, None));
    } else {
        let area = Area::of_resident(resident & !cpu.mark);
        let header = area.header();
        if header.xcr0.get() != all {
            set_xcr0(all);
        }
        with_fpu(|| {
            // SAFETY: `area_frames` has room for the image, 64-byte aligned; it is this CPU's to
            // write while `live_on` names it.
            unsafe { save(area.image()) };
        });
        if header.debug_live.get() {
            header.dr.set(read_debug_registers());
            header.debug_live.set(false);
            vendor!(guard_debug_registers(area));
        }
        vendor!(leave(cpu, Some(area)));
        header.set_live_on(None);
    }
    with_fpu(|| {
        // SAFETY: `INITIAL` is a valid image.
        unsafe { load((&raw const INITIAL).cast_mut().cast()) };
    });
    set_tsc_aux(0);
}

/// If the vCPU's registers are in that CPU, they will never be saved.
pub fn forget(cpu: &PerCpu, area: u64) {
    let _ = cpu.resident.compare_exchange(
        area | cpu.mark,
        FORGOTTEN,
        Ordering::AcqRel,
        Ordering::Relaxed,
    );
}

/// The guest changed XCR0: the vCPU is resident in this CPU.
pub fn change_xcr0(area: Area, xcr0: u64) {
    if area.header().xcr0.replace(xcr0) != xcr0 {
        set_xcr0(xcr0);
    }
}

/// The guest changed TSC_AUX: the vCPU is resident in this CPU.
pub fn change_tsc_aux(area: Area, value: u64) {
    area.header().tsc_aux.set(value);
    set_tsc_aux(value);
}

/// Switches the FPU to reset state on a CPU that begins. IA32_XSS stays 0 for ever: no supervisor
/// component is offered to guests.
pub fn initialise() {
    if features().supervisor_states {
        // SAFETY: the register exists; the core does not use XSAVES.
        unsafe { Msr::new(XSS).write(0) };
    }
    set_xcr0(features().limits.xcr0);
    with_fpu(|| {
        // SAFETY: `INITIAL` is a valid image.
        unsafe { load((&raw const INITIAL).cast_mut().cast()) };
    });
    set_tsc_aux(0);
}

/// Runs `work` with the FPU usable.
fn with_fpu(work: impl FnOnce()) {
    // SAFETY: CR0.TS only decides whether FPU instructions fault; it is set again afterwards.
    unsafe { asm!("clts", options(nomem, nostack, preserves_flags)) };
    work();
    #[cfg(not(control = "task-switched"))]
    // SAFETY: as above: the same CR0 with TS (bit 3).
    unsafe {
        asm!("mov {0}, cr0", "or {0}, 8", "mov cr0, {0}", out(reg) _, options(nomem, nostack));
    }
}

fn set_xcr0(value: u64) {
    if features().limits.xcr0 == 0 {
        return;
    }
    // SAFETY: CR4.OSXSAVE is set (`feature::activate`), and the value passed `sanitise::xcr0` or is
    // the set of components that this CPU has.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32,
             options(nomem, nostack, preserves_flags));
    }
}

/// Saves everything that XCR0 covers.
///
/// # Safety
/// `image` is 64-byte aligned and has room for the image.
unsafe fn save(image: *mut u8) {
    // SAFETY: see above.
    unsafe {
        if features().limits.xcr0 != 0 {
            asm!("xsave64 [{}]", in(reg) image, in("eax") u32::MAX, in("edx") u32::MAX,
                 options(nostack, preserves_flags));
        } else {
            asm!("fxsave64 [{}]", in(reg) image, options(nostack, preserves_flags));
        }
    }
}

/// Loads everything that XCR0 covers.
///
/// # Safety
/// `image` is 64-byte aligned and an image that XRSTOR accepts.
unsafe fn load(image: *mut u8) {
    if cfg!(control = "registers") {
        return;
    }
    static ZERO: u64 = 0;
    // SAFETY: see above. EMMS and FILD give FIP and FDP values of ours on CPUs that load them only
    // with a pending error (AMD APM vol. 2, 11.4.4): the former owner's must not survive.
    unsafe {
        if features().x87_pointers_leak {
            asm!("fnclex", "emms", "fild qword ptr [{}]", in(reg) &raw const ZERO,
                 options(nostack, preserves_flags));
        }
        if features().limits.xcr0 != 0 {
            asm!("xrstor64 [{}]", in(reg) image, in("eax") u32::MAX, in("edx") u32::MAX,
                 options(nostack, preserves_flags));
        } else {
            asm!("fxrstor64 [{}]", in(reg) image, options(nostack, preserves_flags));
        }
    }
}

fn set_tsc_aux(value: u64) {
    if features().tsc_aux {
        // SAFETY: the register exists; the host has no use for it.
        unsafe { Msr::new(TSC_AUX).write(value & 0xffff_ffff) };
    }
}

/// Puts DR0-DR3 into the CPU, where the guest may use them.
pub fn load_debug_registers(area: Area) {
    let [a, b, c, d] = area.header().dr.get();
    area.header().debug_live.set(true);
    // SAFETY: they have no effect outside guest mode: an exit leaves DR7 with nothing enabled
    // (AMD APM vol. 2, 15.6; Intel SDM vol. 3, 28.5.1).
    unsafe {
        asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}",
             in(reg) a, in(reg) b, in(reg) c, in(reg) d, options(nomem, nostack, preserves_flags));
    }
}

/// Puts a guest's CR2 into the CPU, where it stays with the rest if exits do not switch it.
pub fn set_cr2(value: u64) {
    // SAFETY: only page faults' handlers look at it, after a fault has set it anew.
    unsafe { asm!("mov cr2, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}

/// DR0-DR3 as they are in the CPU.
pub fn read_debug_registers() -> [u64; 4] {
    let (a, b, c, d): (u64, u64, u64, u64);
    // SAFETY: reads have no side effect.
    unsafe {
        asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3",
             out(reg) a, out(reg) b, out(reg) c, out(reg) d, options(nomem, nostack, preserves_flags));
    }
    [a, b, c, d]
}
