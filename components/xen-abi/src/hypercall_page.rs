//! The hypercall page and the MSR by which the guest asks for it.

use crate::PAGE_SIZE;
use crate::call::{Mode, Width};
use crate::domain::Domain;
use crate::env::Env;
use crate::memory::GuestMemory;

/// Which instruction enters the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// SVM: VMMCALL.
    Amd,
    /// VMX: VMCALL.
    Intel,
}

/// The MSR whose index CPUID leaf 0x40000002 gives.
pub const HYPERCALL_PAGE_MSR: u32 = 0x4000_0000;

/// An MSR access that takes #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

/// Bytes of one entry.
const ENTRY: usize = 32;
/// `__HYPERVISOR_iret`, which HVM guests have not.
const IRET: usize = 23;

/// The page: entry `n` at `n * 32` is `mov $n, %eax; vmmcall (or vmcall); ret`.
#[must_use]
pub fn hypercall_page(vendor: Vendor) -> [u8; PAGE_SIZE as usize] {
    let mut page = [0; PAGE_SIZE as usize];
    let last = match vendor {
        Vendor::Amd => 0xd9,
        Vendor::Intel => 0xc1,
    };
    for (number, entry) in page.chunks_exact_mut(ENTRY).enumerate() {
        // ud2, or the sequence.
        let code: &[u8] = if number == IRET {
            &[0x0f, 0x0b]
        } else {
            &[0xb8, number as u8, 0, 0, 0, 0x0f, 0x01, last, 0xc3]
        };
        for (place, byte) in entry.iter_mut().zip(code) {
            *place = *byte;
        }
    }
    page
}

impl Domain {
    /// WRMSR of [`HYPERCALL_PAGE_MSR`]: writes the page and latches the layout of shared info.
    pub fn write_hypercall_page<M: GuestMemory, E: Env>(
        &mut self,
        value: u64,
        mode: Mode,
        vendor: Vendor,
        memory: &M,
        env: &mut E,
    ) -> Result<(), GeneralProtection> {
        let gfn = value / PAGE_SIZE;
        if !value.is_multiple_of(PAGE_SIZE) || !env.is_ram(gfn) {
            return Err(GeneralProtection);
        }
        memory
            .write(value, &hypercall_page(vendor))
            .map_err(|_| GeneralProtection)?;
        let width = match mode {
            Mode::Bits64 => Width::Bits64,
            Mode::Real | Mode::Vm86 | Mode::Bits32 => Width::Bits32,
        };
        self.latch_width(width, memory);
        Ok(())
    }
}
