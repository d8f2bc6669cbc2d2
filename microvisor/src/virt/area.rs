//! The frames of a vCPU as the core sees them: state page, header, vendor's frames, extended state
//! image. Vendor-neutral; reached through the direct map.

use super::page::Page;
use crate::paging::DIRECT_MAP;
use core::cell::Cell;
use core::sync::atomic::{AtomicUsize, Ordering};
use microvisor_abi::FRAME;
use microvisor_objects::id::VcpuArea;
use microvisor_vcpu_state::asid::Held;

/// Number of the frame that begins the vendor's four: control block, then 12 KiB of bitmaps.
const VENDOR_FRAME: u64 = 1;
/// Number of the frame that begins the extended state image.
pub const IMAGE_FRAME: usize = 5;

/// Where NMI handling in the guest stands, as far as the hardware does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Nmi {
    /// An NMI can be taken.
    Open = 0,
    /// One is being handled: IRET is intercepted.
    Blocked = 1,
    /// The IRET that ends the handling is being stepped over.
    SteppingIret = 2,
    /// The instruction after STI or MOV SS is being stepped over.
    SteppingShadow = 3,
}

/// The first frame of an area. All zero is a valid header. Only the CPU that works on the vCPU
/// touches it, but for `live_on`.
pub struct Header {
    /// 1 + the CPU whose registers hold this vCPU's extended state, 0 if none does. Set by that
    /// CPU; cleared by it with Release once everything is saved, so that another CPU's Acquire
    /// sees the saved values.
    live_on: AtomicUsize,
    /// Guest's XCR0.
    pub xcr0: Cell<u64>,
    /// Guest's TSC_AUX.
    pub tsc_aux: Cell<u64>,
    /// Guest's DR0-DR3, unless `debug_live`.
    pub dr: Cell<[u64; 4]>,
    /// DR0-DR3 are in the CPU, and the guest uses them without exits.
    pub debug_live: Cell<bool>,
    /// The identifier it last ran under.
    pub held: Cell<Held>,
    /// NMI state.
    pub nmi: Cell<Nmi>,
    /// An NMI window was asked for.
    pub nmi_window: Cell<bool>,
    /// DR6 and RFLAGS.TF from before a step.
    pub before_step: Cell<(u64, bool)>,
    /// What VMX needs besides.
    pub vmx: super::vmx::Soft,
}
const _: () = assert!(size_of::<Header>() <= FRAME as usize);

impl Header {
    /// The CPU whose registers hold this vCPU's extended state.
    #[inline]
    pub fn live_on(&self) -> Option<usize> {
        self.live_on.load(Ordering::Acquire).checked_sub(1)
    }

    /// Nothing that is cached under the vCPU's identifier holds for it any longer: it gets another
    /// at its next entry.
    pub fn forget_identifier(&self) {
        let mut held = self.held.get();
        held.forget();
        self.held.set(held);
    }

    /// Notes which CPU's registers hold it; `None` once all is saved.
    #[inline]
    pub fn set_live_on(&self, cpu: Option<usize>) {
        self.live_on
            .store(cpu.map_or(0, |cpu| cpu + 1), Ordering::Release);
    }
}

/// A vCPU's frames. A plain name: copying it copies nothing.
#[derive(Clone, Copy)]
pub struct Area {
    state: u64,
    area: u64,
}

impl Area {
    /// Names the frames of a live vCPU; only the module's entry points, whose callers vouch for
    /// it, make one.
    #[inline(always)]
    pub fn new(vcpu: VcpuArea) -> Area {
        Area {
            state: vcpu.state.0,
            area: vcpu.area.0,
        }
    }

    /// From the physical address of the area alone, which must be the one in a CPU's `resident`;
    /// the state page must not be used through it.
    #[inline(always)]
    pub fn of_resident(area: u64) -> Area {
        Area { state: 0, area }
    }

    /// Physical address; names the vCPU.
    #[inline(always)]
    pub fn physical(self) -> u64 {
        self.area
    }

    /// Physical address of the vendor's frames.
    #[inline(always)]
    pub fn vendor(self) -> u64 {
        self.area + VENDOR_FRAME * FRAME
    }

    /// The I/O permission map, in all three of the vendor's last frames or the first two.
    pub fn io_map(self) -> *mut u8 {
        (DIRECT_MAP + self.vendor() + FRAME) as *mut u8
    }

    /// The state page.
    #[inline(always)]
    pub fn page(self) -> Page {
        Page::new(microvisor_objects::id::PhysAddr(self.state))
    }

    /// The header.
    #[inline(always)]
    pub fn header(self) -> &'static Header {
        // SAFETY: the frame belongs to a live vCPU (`new`), was zero at first, and holds nothing
        // else. Shared references only; one CPU at a time uses the cells.
        unsafe { &*((DIRECT_MAP + self.area) as *const Header) }
    }

    /// Address of the extended state image.
    #[inline(always)]
    pub fn image(self) -> *mut u8 {
        (DIRECT_MAP + self.area + IMAGE_FRAME as u64 * FRAME) as *mut u8
    }

    /// Works on the image as bytes. Its registers must not be in a CPU.
    pub fn image_with<T>(self, work: impl FnOnce(&mut [u8]) -> T) -> T {
        let bytes = super::features().image;
        // SAFETY: `area_frames` has room for that many bytes; only the CPU that works on the vCPU
        // reaches them, and the reference ends with `work`, which has no way to make another.
        work(unsafe { core::slice::from_raw_parts_mut(self.image(), bytes) })
    }
}
