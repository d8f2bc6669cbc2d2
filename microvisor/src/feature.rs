//! CPU features that protect the core, turned on for each CPU that starts.

use raw_cpuid::CpuId;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags, Efer, EferFlags};
use x86_64::registers::model_specific::Msr;

/// True if the CPU has 1 GiB pages.
pub fn gigabyte_pages() -> bool {
    CpuId::new()
        .get_extended_processor_and_feature_identifiers()
        .is_some_and(|info| info.has_1gib_pages())
}

/// What the core cannot do without, if this CPU lacks it.
pub fn missing() -> Option<&'static str> {
    let cpuid = CpuId::new();
    let extended = cpuid.get_extended_processor_and_feature_identifiers();
    let basic = cpuid.get_feature_info();
    if !extended.is_some_and(|info| info.has_execute_disable()) {
        return Some("no-execute pages");
    }
    if !basic
        .as_ref()
        .is_some_and(|info| info.has_tsc() && info.has_apic() && info.has_pge())
    {
        return Some("TSC, local APIC or global pages");
    }
    None
}

/// Sets control registers: write protection, no-execute, global pages, and SMEP, SMAP, UMIP where
/// present. The core keeps no floating-point state: CR0.TS makes every use of it in user mode
/// fault, and XSAVE is on for guests' sake.
pub fn activate() {
    let cpuid = CpuId::new();
    let extended = cpuid.get_extended_feature_info();
    let has = |test: fn(&raw_cpuid::ExtendedFeatures) -> bool| extended.as_ref().is_some_and(test);
    let xsave = cpuid
        .get_feature_info()
        .is_some_and(|info| info.has_xsave());
    let mut cr4 = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION
        | Cr4Flags::PAGE_GLOBAL
        | Cr4Flags::OSFXSR
        | Cr4Flags::OSXMMEXCPT_ENABLE;
    for (present, flag) in [
        (
            has(raw_cpuid::ExtendedFeatures::has_smep),
            Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION,
        ),
        (
            has(raw_cpuid::ExtendedFeatures::has_smap),
            Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION,
        ),
        (
            has(raw_cpuid::ExtendedFeatures::has_umip),
            Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION,
        ),
        (xsave, Cr4Flags::OSXSAVE),
    ] {
        if present {
            cr4 |= flag;
        }
    }
    // SAFETY: the core uses none of what these bits forbid, and every bit was checked for.
    unsafe {
        Efer::update(|efer| efer.insert(EferFlags::NO_EXECUTE_ENABLE));
        Cr4::write(cr4);
        Cr0::write(
            Cr0Flags::PROTECTED_MODE_ENABLE
                | Cr0Flags::MONITOR_COPROCESSOR
                | Cr0Flags::TASK_SWITCHED
                | Cr0Flags::EXTENSION_TYPE
                | Cr0Flags::NUMERIC_ERROR
                | Cr0Flags::WRITE_PROTECT
                | Cr0Flags::PAGING,
        );
        // PAT entries as after reset (Intel SDM vol. 3, 12.12.4): firmware may have changed them.
        Msr::new(0x277).write(0x0007_0406_0007_0406);
    }
}
