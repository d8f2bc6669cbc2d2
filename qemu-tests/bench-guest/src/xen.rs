//! The guest's side of Xen's ABI: finding it, and the hypercalls that rows and output need.
//! Numbers and structures are those of Xen's public headers (named beside each).

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use guest_kit::cpu;

/// Hypercall numbers (public/xen.h).
mod number {
    pub const MEMORY_OP: u64 = 12;
    pub const XEN_VERSION: u64 = 17;
    pub const CONSOLE_IO: u64 = 18;
    pub const SCHED_OP: u64 = 29;
    pub const EVENT_CHANNEL_OP: u64 = 32;
    pub const HVM_OP: u64 = 34;
}

/// `DOMID_SELF` (public/xen.h).
const DOMID_SELF: u16 = 0x7ff0;
/// `XENMEM_add_to_physmap` (public/memory.h).
const ADD_TO_PHYSMAP: u64 = 7;
/// `XENMAPSPACE_shared_info` (public/memory.h).
const SPACE_SHARED_INFO: u32 = 0;
/// `SCHEDOP_yield` and `SCHEDOP_shutdown` (public/sched.h).
const YIELD: u64 = 0;
const SHUTDOWN: u64 = 2;
/// `EVTCHNOP_send` and `EVTCHNOP_bind_ipi` (public/event_channel.h).
const SEND: u64 = 4;
const BIND_IPI: u64 = 7;
/// `HVMOP_get_param` (public/hvm/hvm_op.h).
const GET_PARAM: u64 = 1;
/// `CONSOLEIO_write` (public/xen.h).
const CONSOLE_WRITE: u64 = 0;

/// `HVM_PARAM_CONSOLE_PFN` (public/hvm/params.h).
pub const PARAM_CONSOLE_PFN: u32 = 17;
/// `HVM_PARAM_CONSOLE_EVTCHN` (public/hvm/params.h).
pub const PARAM_CONSOLE_EVTCHN: u32 = 18;

/// A page of its own.
#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; 4096]>);

// SAFETY: the hypercall page is written by the hypervisor once and only called; the shared info
// page is only accessed by atomics.
unsafe impl Sync for Page {}

static HYPERCALL_PAGE: Page = Page(UnsafeCell::new([0; 4096]));
static SHARED_INFO: Page = Page(UnsafeCell::new([0; 4096]));
static PAGE_IS_SET: AtomicBool = AtomicBool::new(false);

/// An error number that Xen answered (public/errno.h), positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i64);

/// The right to make hypercalls: we run on Xen, and its hypercall page is in place.
#[derive(Clone, Copy, Debug)]
pub struct Xen(());

impl Xen {
    /// Finds Xen by its CPUID leaves and has the hypercall page filled, the first time.
    pub fn find() -> Option<Xen> {
        let leaves = guest_kit::xen_leaves()?;
        if !PAGE_IS_SET.swap(true, Ordering::Relaxed) {
            // SAFETY: has the hypervisor write the page that is kept for it.
            unsafe { cpu::wrmsr(leaves.page_msr, HYPERCALL_PAGE.0.get() as u64) };
        }
        Some(Xen(()))
    }

    /// The hypercall `number`, as public/arch-x86/xen-x86_64.h lays it down.
    ///
    /// # Safety
    /// What the arguments point at must be what the hypercall expects, for as long as it uses it.
    #[inline(always)]
    unsafe fn call(self, number: u64, a: u64, b: u64, c: u64) -> Result<u64, Errno> {
        let entry = HYPERCALL_PAGE.0.get() as u64 + number * 32;
        let answer: i64;
        // SAFETY: the hypervisor filled the page before a `Xen` existed. It may change the
        // argument registers and memory as the caller promised.
        unsafe {
            asm!(
                "call {}",
                in(reg) entry,
                inlateout("rdi") a => _,
                inlateout("rsi") b => _,
                inlateout("rdx") c => _,
                out("rax") answer,
                out("rcx") _,
                out("r8") _,
                out("r9") _,
                out("r10") _,
                out("r11") _,
            );
        }
        if answer < 0 {
            Err(Errno(-answer))
        } else {
            Ok(answer as u64)
        }
    }

    /// `XENVER_version` (public/version.h): major in bits 16 up, minor below.
    #[inline(always)]
    pub fn version(self) -> Result<u64, Errno> {
        // SAFETY: no pointer.
        unsafe { self.call(number::XEN_VERSION, 0, 0, 0) }
    }

    /// An HVM parameter of this domain.
    pub fn param(self, index: u32) -> Result<u64, Errno> {
        #[repr(C)]
        struct Param {
            domain: u16,
            pad: u16,
            index: u32,
            value: u64,
        }
        let mut param = Param {
            domain: DOMID_SELF,
            pad: 0,
            index,
            value: 0,
        };
        // SAFETY: `xen_hvm_param` of public/hvm/hvm_op.h, alive during the call.
        unsafe { self.call(number::HVM_OP, GET_PARAM, &raw mut param as u64, 0)? };
        Ok(param.value)
    }

    /// Writes to Xen's own console.
    pub fn console_write(self, bytes: &[u8]) -> Result<u64, Errno> {
        let (length, address) = (bytes.len() as u64, bytes.as_ptr() as u64);
        // SAFETY: Xen reads `length` bytes, which are alive during the call.
        unsafe { self.call(number::CONSOLE_IO, CONSOLE_WRITE, length, address) }
    }

    /// A port whose event comes back to this vCPU, number 0.
    pub fn bind_ipi(self) -> Result<u32, Errno> {
        #[repr(C)]
        struct BindIpi {
            vcpu: u32,
            port: u32,
        }
        let mut bind = BindIpi { vcpu: 0, port: 0 };
        let address = &raw mut bind as u64;
        // SAFETY: `evtchn_bind_ipi` of public/event_channel.h, alive during the call.
        unsafe { self.call(number::EVENT_CHANNEL_OP, BIND_IPI, address, 0)? };
        Ok(bind.port)
    }

    /// Sends an event.
    #[inline(always)]
    pub fn send(self, port: &u32) -> Result<u64, Errno> {
        let address = &raw const *port as u64;
        // SAFETY: `evtchn_send` of public/event_channel.h is one port number, only read.
        unsafe { self.call(number::EVENT_CHANNEL_OP, SEND, address, 0) }
    }

    /// Lets others run.
    pub fn yield_now(self) {
        // SAFETY: no pointer.
        let _ = unsafe { self.call(number::SCHED_OP, YIELD, 0, 0) };
    }

    /// Powers this domain off; returns only if that is refused.
    pub fn power_off(self) {
        // `SHUTDOWN_poweroff` (public/sched.h).
        let reason = 0u32;
        // SAFETY: `sched_shutdown` of public/sched.h is one number, only read.
        let _ = unsafe { self.call(number::SCHED_OP, SHUTDOWN, &raw const reason as u64, 0) };
    }

    /// Maps the shared info page.
    pub fn shared_info(self) -> Result<SharedInfo, Errno> {
        #[repr(C)]
        struct AddToPhysmap {
            domain: u16,
            size: u16,
            space: u32,
            index: u64,
            frame: u64,
        }
        let page = SHARED_INFO.0.get() as u64;
        let add = AddToPhysmap {
            domain: DOMID_SELF,
            size: 0,
            space: SPACE_SHARED_INFO,
            index: 0,
            frame: page >> 12,
        };
        // SAFETY: `xen_add_to_physmap` of public/memory.h, only read. The frame is a page that is
        // kept for this, so what is replaced holds nothing.
        unsafe { self.call(number::MEMORY_OP, ADD_TO_PHYSMAP, &raw const add as u64, 0)? };
        Ok(SharedInfo(page))
    }
}

/// `shared_info` (public/xen.h), with 2-level event channels, of vCPU 0.
#[derive(Clone, Copy, Debug)]
pub struct SharedInfo(u64);

impl SharedInfo {
    /// Offsets in `vcpu_info` of vCPU 0, which is at the page's start.
    const UPCALL_PENDING: u64 = 0;
    const UPCALL_MASK: u64 = 1;
    const PENDING_SELECTOR: u64 = 8;
    /// Offset of `evtchn_pending`: after 32 `vcpu_info` of 64 bytes.
    const PENDING: u64 = 32 * 64;
    /// Words in `evtchn_pending`.
    const WORDS: u64 = 64;

    fn byte(self, offset: u64) -> &'static AtomicU8 {
        // SAFETY: inside the page, which is always mapped; Xen writes it too, hence atomic.
        unsafe { &*((self.0 + offset) as *const AtomicU8) }
    }

    fn word(self, offset: u64) -> &'static AtomicU64 {
        // SAFETY: as in `byte`; offsets are multiples of 8.
        unsafe { &*((self.0 + offset) as *const AtomicU64) }
    }

    /// Sets `evtchn_upcall_mask`.
    pub fn mask_upcalls(self) {
        self.byte(Self::UPCALL_MASK).store(1, Ordering::SeqCst);
    }

    fn pending(self, port: u32) -> &'static AtomicU64 {
        self.word(Self::PENDING + u64::from(port) / 64 % Self::WORDS * 8)
    }

    /// True if the event is pending.
    pub fn is_pending(self, port: u32) -> bool {
        self.pending(port).load(Ordering::SeqCst) >> (port % 64) & 1 == 1
    }

    /// Takes a pending event back, so that the next one is new on every level.
    pub fn clear(self, port: u32) {
        self.byte(Self::UPCALL_PENDING).store(0, Ordering::SeqCst);
        self.word(Self::PENDING_SELECTOR).store(0, Ordering::SeqCst);
        self.pending(port)
            .fetch_and(!(1 << (port % 64)), Ordering::SeqCst);
    }
}
