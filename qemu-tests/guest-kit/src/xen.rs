//! The guest's side of Xen's ABI: finding it, and the hypercalls that measuring guests make. Numbers and
//! structures are those of Xen's public headers, named beside each.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::{cpu, pages};

/// Hypercall numbers (public/xen.h).
pub(crate) mod number {
    pub const MEMORY_OP: u64 = 12;
    pub const XEN_VERSION: u64 = 17;
    pub const CONSOLE_IO: u64 = 18;
    pub const GRANT_TABLE_OP: u64 = 20;
    pub const VCPU_OP: u64 = 24;
    pub const SCHED_OP: u64 = 29;
    pub const EVENT_CHANNEL_OP: u64 = 32;
    pub const HVM_OP: u64 = 34;
    /// Between those of the architecture (48 up) and the end of the page: nobody's.
    pub const NOBODYS: u64 = 60;
}

/// `DOMID_SELF` (public/xen.h).
const DOMID_SELF: u16 = 0x7ff0;
/// `VIRQ_TIMER` (public/xen.h).
const VIRQ_TIMER: u32 = 0;
/// `XENMEM_add_to_physmap` (public/memory.h).
const ADD_TO_PHYSMAP: u64 = 7;
/// `XENMAPSPACE_shared_info`, `_grant_table` (public/memory.h).
const SPACE_SHARED_INFO: u32 = 0;
const SPACE_GRANT_TABLE: u32 = 1;
/// `SCHEDOP_yield`, `_shutdown`, `_poll` (public/sched.h).
const YIELD: u64 = 0;
const SHUTDOWN: u64 = 2;
const POLL: u64 = 3;
/// `EVTCHNOP_bind_interdomain`, `_bind_virq`, `_send`, `_alloc_unbound`, `_bind_ipi`
/// (public/event_channel.h).
const BIND_INTERDOMAIN: u64 = 0;
const BIND_VIRQ: u64 = 1;
const SEND: u64 = 4;
const ALLOC_UNBOUND: u64 = 6;
const BIND_IPI: u64 = 7;
/// `VCPUOP_stop_periodic_timer`, `_set_singleshot_timer` (public/vcpu.h).
const STOP_PERIODIC: u64 = 7;
const SET_SINGLESHOT: u64 = 8;
/// `CONSOLEIO_write` (public/xen.h).
const CONSOLE_WRITE: u64 = 0;
/// `HVMOP_set_param`, `_get_param` (public/hvm/hvm_op.h).
const SET_PARAM: u64 = 0;
const GET_PARAM: u64 = 1;
/// `HVM_PARAM_CALLBACK_IRQ` and its type "vector" (public/hvm/params.h).
const CALLBACK_IRQ: u32 = 0;
const CALLBACK_VECTOR: u64 = 2 << 56;
/// `HVM_PARAM_CONSOLE_PFN` (public/hvm/params.h).
pub const PARAM_CONSOLE_PFN: u32 = 17;
/// `HVM_PARAM_CONSOLE_EVTCHN` (public/hvm/params.h).
pub const PARAM_CONSOLE_EVTCHN: u32 = 18;
/// `GNTTABOP_map_grant_ref`, `_unmap_grant_ref`, `_copy` (public/grant_table.h).
const MAP: u64 = 0;
const UNMAP: u64 = 1;
const COPY: u64 = 5;
const SET_GRANT_VERSION: u64 = 8;
/// `XENMAPIDX_grant_table_status` (public/memory.h).
const STATUS_FRAME: u64 = 1 << 31;
/// `GNTMAP_host_map` (public/grant_table.h).
const HOST_MAP: u32 = 2;
/// `GNTCOPY_source_gref` (public/grant_table.h).
const SOURCE_IS_GRANT: u16 = 1;

/// A page of its own.
#[repr(C, align(4096))]
pub struct Page(UnsafeCell<[u8; 4096]>);

// SAFETY: the hypercall page is written by the hypervisor once and only called; of the shared info
// page and the pages to copy only atomics and the hypervisor make use.
unsafe impl Sync for Page {}

impl Page {
    fn frame(&self) -> u64 {
        self.0.get() as u64 >> 12
    }
}

static HYPERCALL_PAGE: Page = Page(UnsafeCell::new([0; 4096]));
/// Where the shared info is mapped, once [`Xen::shared_info`] was called.
pub static SHARED_INFO: Page = Page(UnsafeCell::new([0; 4096]));
static PAGE_IS_SET: AtomicBool = AtomicBool::new(false);
static FROM: Page = Page(UnsafeCell::new([0; 4096]));
static TO: Page = Page(UnsafeCell::new([0; 4096]));

/// An error number that Xen answered (public/errno.h), positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i64);

/// The right to make hypercalls: we run on Xen, and its hypercall page is in place.
#[derive(Clone, Copy, Debug)]
pub struct Xen {
    /// The first of its CPUID leaves.
    pub leaves: u32,
}

impl Xen {
    /// Finds Xen by its CPUID leaves and has the hypercall page filled, the first time.
    pub fn find() -> Option<Xen> {
        let leaves = crate::xen_leaves()?;
        if !PAGE_IS_SET.swap(true, Ordering::Relaxed) {
            // SAFETY: has the hypervisor write the page that is kept for it.
            unsafe { cpu::wrmsr(leaves.page_msr, HYPERCALL_PAGE.0.get() as u64) };
        }
        Some(Xen {
            leaves: leaves.base,
        })
    }

    /// The hypercall `number`, as public/arch-x86/xen-x86_64.h lays it down.
    ///
    /// # Safety
    /// What the arguments point at must be what the hypercall expects, for as long as it uses it.
    #[inline(always)]
    pub(crate) unsafe fn call(self, number: u64, a: u64, b: u64, c: u64) -> Result<u64, Errno> {
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

    /// A hypercall that nobody has.
    #[inline(always)]
    pub fn unknown(self) -> Result<u64, Errno> {
        // SAFETY: no pointer.
        unsafe { self.call(number::NOBODYS, 0, 0, 0) }
    }

    /// Lets others run.
    #[inline(always)]
    pub fn yield_now(self) -> Result<u64, Errno> {
        // SAFETY: no pointer.
        unsafe { self.call(number::SCHED_OP, YIELD, 0, 0) }
    }

    /// Powers this domain off; returns only if that is refused.
    pub fn power_off(self) {
        // `SHUTDOWN_poweroff` (public/sched.h).
        let reason = 0u32;
        // SAFETY: `sched_shutdown` of public/sched.h is one number, only read.
        let _ = unsafe { self.call(number::SCHED_OP, SHUTDOWN, &raw const reason as u64, 0) };
    }

    /// Blocks until an event comes; none does.
    pub fn wait_for_ever(self) -> ! {
        // `sched_poll` (public/sched.h): no port, without an end.
        let poll = [0u64; 3];
        loop {
            // SAFETY: alive during the call, only read.
            let _ = unsafe { self.call(number::SCHED_OP, POLL, &raw const poll as u64, 0) };
        }
    }

    /// A port whose event comes back to this vCPU, number 0.
    pub fn bind_ipi(self) -> Result<u32, Errno> {
        // `evtchn_bind_ipi` (public/event_channel.h): vCPU, port.
        let mut bind = [0u32; 2];
        // SAFETY: alive during the call.
        unsafe { self.call(number::EVENT_CHANNEL_OP, BIND_IPI, &raw mut bind as u64, 0)? };
        Ok(bind[1])
    }

    /// A port for this vCPU's timer.
    pub fn bind_timer(self) -> Result<u32, Errno> {
        // `evtchn_bind_virq` (public/event_channel.h): VIRQ, vCPU, port.
        let mut bind = [VIRQ_TIMER, 0, 0];
        // SAFETY: alive during the call.
        unsafe { self.call(number::EVENT_CHANNEL_OP, BIND_VIRQ, &raw mut bind as u64, 0)? };
        Ok(bind[2])
    }

    /// Sends an event.
    #[inline(always)]
    pub fn send(self, port: &u32) -> Result<u64, Errno> {
        let address = &raw const *port as u64;
        // SAFETY: `evtchn_send` of public/event_channel.h is one port number, only read.
        unsafe { self.call(number::EVENT_CHANNEL_OP, SEND, address, 0) }
    }

    /// Stops the timer that ticks unless it is stopped (a PV kernel's habit).
    pub fn stop_periodic_timer(self) -> Result<u64, Errno> {
        // SAFETY: no pointer.
        unsafe { self.call(number::VCPU_OP, STOP_PERIODIC, 0, 0) }
    }

    /// Sets the timer to a system time in nanoseconds.
    #[inline(always)]
    pub fn set_timer(self, at: &Deadline) -> Result<u64, Errno> {
        let address = &raw const *at as u64;
        // SAFETY: `vcpu_set_singleshot_timer` (public/vcpu.h), only read.
        unsafe { self.call(number::VCPU_OP, SET_SINGLESHOT, 0, address) }
    }

    /// An HVM parameter of this domain.
    pub fn param(self, index: u32) -> Result<u64, Errno> {
        // `xen_hvm_param` (public/hvm/hvm_op.h): domain, pad, index, value.
        let mut param = [u64::from(DOMID_SELF) | u64::from(index) << 32, 0];
        // SAFETY: alive during the call.
        unsafe { self.call(number::HVM_OP, GET_PARAM, &raw mut param as u64, 0)? };
        Ok(param[1])
    }

    /// Writes to Xen's own console.
    pub fn console_write(self, bytes: &[u8]) -> Result<u64, Errno> {
        let (length, address) = (bytes.len() as u64, bytes.as_ptr() as u64);
        // SAFETY: Xen reads `length` bytes, which are alive during the call.
        unsafe { self.call(number::CONSOLE_IO, CONSOLE_WRITE, length, address) }
    }

    /// Has events interrupt by this vector, without an interrupt controller.
    pub fn upcall_by(self, vector: u8) -> Result<u64, Errno> {
        // `xen_hvm_param` (public/hvm/hvm_op.h): domain, pad, index, value.
        let param = [
            u64::from(DOMID_SELF) | u64::from(CALLBACK_IRQ) << 32,
            CALLBACK_VECTOR | u64::from(vector),
        ];
        // SAFETY: alive during the call, only read.
        unsafe { self.call(number::HVM_OP, SET_PARAM, &raw const param as u64, 0) }
    }

    /// Maps the shared info page.
    pub fn shared_info(self) -> Result<SharedInfo, Errno> {
        // SAFETY: a page that is kept for this.
        unsafe { self.add_to_physmap(SPACE_SHARED_INFO, 0, SHARED_INFO.frame())? };
        Ok(SharedInfo(SHARED_INFO.0.get() as u64))
    }

    /// Maps the first page of the grant table in place of one of the program's own.
    pub(crate) fn map_grant_table(self, page: pages::Page) -> Result<(), Errno> {
        // SAFETY: such pages are used through atomics only, whatever they hold.
        unsafe { self.add_to_physmap(SPACE_GRANT_TABLE, 0, page.frame().into()) }
    }

    /// Maps the first page of its status words, which version 2 has, likewise.
    pub(crate) fn map_grant_status(self, page: pages::Page) -> Result<(), Errno> {
        // SAFETY: as above.
        unsafe { self.add_to_physmap(SPACE_GRANT_TABLE, STATUS_FRAME, page.frame().into()) }
    }

    /// Goes over to another version of the grant table.
    pub fn set_grant_version(self, version: u32) -> Result<(), Errno> {
        let mut version = version;
        // SAFETY: `gnttab_set_version` (public/grant_table.h) is one number, alive during the call.
        unsafe {
            let at = &raw mut version as u64;
            self.call(number::GRANT_TABLE_OP, SET_GRANT_VERSION, at, 1)?
        };
        Ok(())
    }

    /// Maps a page of a space of Xen's in place of a frame.
    ///
    /// # Safety
    /// The frame must be one whose content the program does not need.
    unsafe fn add_to_physmap(self, space: u32, index: u64, frame: u64) -> Result<(), Errno> {
        // `xen_add_to_physmap` (public/memory.h): domain and size, space, index, frame.
        let add = [u64::from(DOMID_SELF) | u64::from(space) << 32, index, frame];
        // SAFETY: alive during the call, only read; the rest is promised by the caller.
        unsafe { self.call(number::MEMORY_OP, ADD_TO_PHYSMAP, &raw const add as u64, 0)? };
        Ok(())
    }

    /// A port that a domain may bind.
    pub fn offer(self, domain: u16) -> Result<u32, Errno> {
        // `evtchn_alloc_unbound` (public/event_channel.h): domain, remote domain, port.
        let mut words = [u32::from(DOMID_SELF) | u32::from(domain) << 16, 0];
        let at = &raw mut words as u64;
        // SAFETY: alive during the call.
        unsafe { self.call(number::EVENT_CHANNEL_OP, ALLOC_UNBOUND, at, 0)? };
        Ok(words[1])
    }

    /// An own port, bound to the one that a domain offers.
    pub fn bind(self, domain: u16, remote: u32) -> Result<u32, Errno> {
        // `evtchn_bind_interdomain` (public/event_channel.h): domain, its port, own port.
        let mut words = [u32::from(domain), remote, 0];
        let at = &raw mut words as u64;
        // SAFETY: alive during the call.
        unsafe { self.call(number::EVENT_CHANNEL_OP, BIND_INTERDOMAIN, at, 0)? };
        Ok(words[2])
    }

    /// Maps a page that a domain granted, to read and write; the status is in the structure.
    ///
    /// # Safety
    /// The program must not need what it has at that address, and use what it then has through atomics.
    #[inline(always)]
    pub unsafe fn map_grant(self, map: &mut MapGrant) -> Result<(), Errno> {
        let at = &raw mut *map as u64;
        // SAFETY: one `gnttab_map_grant_ref`, alive during the call; the rest is promised by the caller.
        unsafe { self.call(number::GRANT_TABLE_OP, MAP, at, 1)? };
        Ok(())
    }

    /// Ends a mapping; the status is in the structure.
    ///
    /// # Safety
    /// The program must not use the mapping any more.
    #[inline(always)]
    pub unsafe fn unmap_grant(self, unmap: &mut UnmapGrant) -> Result<(), Errno> {
        let at = &raw mut *unmap as u64;
        // SAFETY: one `gnttab_unmap_grant_ref`, alive during the call; the rest is promised by the caller.
        unsafe { self.call(number::GRANT_TABLE_OP, UNMAP, at, 1)? };
        Ok(())
    }

    /// Copies bytes of a page; what the entry answered.
    #[inline(always)]
    pub fn copy(self, copy: &mut Copy) -> Result<i16, Errno> {
        let address = &raw mut *copy as u64;
        // SAFETY: one `gnttab_copy` (public/grant_table.h), which names pages kept for this.
        unsafe { self.call(number::GRANT_TABLE_OP, COPY, address, 1)? };
        Ok(copy.status)
    }
}

/// `vcpu_set_singleshot_timer` (public/vcpu.h).
#[repr(C)]
#[derive(Debug)]
pub struct Deadline {
    /// System time in nanoseconds.
    pub at: u64,
    /// No `VCPU_SSHOTTMR_future`: a time in the past fires at once.
    pub flags: u64,
}

/// `gnttab_map_grant_ref` (public/grant_table.h).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MapGrant {
    at: u64,
    flags: u32,
    reference: u32,
    domain: u16,
    /// `GNTST_*`.
    pub status: i16,
    handle: u32,
    bus: u64,
}

impl MapGrant {
    /// Of a domain's grant, at a guest-physical address.
    pub fn of(domain: u16, reference: u32, at: u64) -> MapGrant {
        MapGrant {
            at,
            flags: HOST_MAP,
            reference,
            domain,
            status: 1,
            handle: 0,
            bus: 0,
        }
    }

    /// What ends it, once it is mapped.
    #[inline(always)]
    pub fn end(&self) -> UnmapGrant {
        UnmapGrant {
            at: self.at,
            bus: 0,
            handle: self.handle,
            status: 1,
        }
    }
}

/// `gnttab_unmap_grant_ref` (public/grant_table.h).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UnmapGrant {
    at: u64,
    bus: u64,
    handle: u32,
    /// `GNTST_*`.
    pub status: i16,
}

/// `gnttab_copy` (public/grant_table.h) to [`TO`], by frame.
#[repr(C)]
#[derive(Debug)]
pub struct Copy {
    from: u64,
    from_domain: u16,
    from_offset: u16,
    pad: u32,
    to: u64,
    to_domain: u16,
    to_offset: u16,
    pad2: u32,
    bytes: u16,
    flags: u16,
    status: i16,
}

impl Copy {
    /// Of the first `bytes` of a page.
    pub fn of(bytes: u16) -> Copy {
        Copy {
            from: FROM.frame(),
            from_domain: DOMID_SELF,
            from_offset: 0,
            pad: 0,
            to: TO.frame(),
            to_domain: DOMID_SELF,
            to_offset: 0,
            pad2: 0,
            bytes,
            flags: 0,
            status: 1,
        }
    }

    /// Of the first `bytes` of a page that a domain granted.
    pub fn granted(domain: u16, reference: u32, bytes: u16) -> Copy {
        Copy {
            from: u64::from(reference),
            from_domain: domain,
            flags: SOURCE_IS_GRANT,
            ..Copy::of(bytes)
        }
    }

    /// Of `bytes` from `offset` of a page that a domain granted, to the beginning of a page.
    pub fn part(domain: u16, reference: u32, offset: u16, bytes: u16, to: pages::Page) -> Copy {
        Copy {
            from_offset: offset,
            to: to.frame().into(),
            ..Copy::granted(domain, reference, bytes)
        }
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
    /// `vcpu_time_info` in it: version, TSC, system time, multiplier, shift.
    const VERSION: u64 = 32;
    const TSC: u64 = 40;
    const SYSTEM_TIME: u64 = 48;
    const MULTIPLIER: u64 = 56;
    const SHIFT: u64 = 60;
    /// Offset of `evtchn_pending`: after 32 `vcpu_info` of 64 bytes.
    const PENDING: u64 = 32 * 64;
    /// Words in `evtchn_pending`.
    const WORDS: u64 = 64;

    fn byte(self, offset: u64) -> &'static AtomicU8 {
        // SAFETY: inside the page, which is always mapped; Xen writes it too, hence atomic.
        unsafe { &*((self.0 + offset) as *const AtomicU8) }
    }

    fn half(self, offset: u64) -> &'static AtomicU32 {
        // SAFETY: as in `byte`; offsets are multiples of 4.
        unsafe { &*((self.0 + offset) as *const AtomicU32) }
    }

    fn word(self, offset: u64) -> &'static AtomicU64 {
        // SAFETY: as in `byte`; offsets are multiples of 8.
        unsafe { &*((self.0 + offset) as *const AtomicU64) }
    }

    fn pending(self, port: u32) -> &'static AtomicU64 {
        self.word(Self::PENDING + u64::from(port) / 64 % Self::WORDS * 8)
    }

    /// Sets `evtchn_upcall_mask`.
    pub fn mask_upcalls(self) {
        self.byte(Self::UPCALL_MASK).store(1, Ordering::SeqCst);
    }

    /// Takes a pending event back, so that the next one is new on every level.
    pub fn clear(self, port: u32) {
        self.byte(Self::UPCALL_PENDING).store(0, Ordering::SeqCst);
        self.word(Self::PENDING_SELECTOR).store(0, Ordering::SeqCst);
        self.pending(port)
            .fetch_and(!(1 << (port % 64)), Ordering::SeqCst);
    }

    /// Takes the second level back, so that the next event of any port is an upcall.
    #[inline(always)]
    pub fn forget_selector(self) {
        self.word(Self::PENDING_SELECTOR).store(0, Ordering::SeqCst);
    }

    /// Marks an event as pending.
    pub fn mark(self, port: u32) {
        self.pending(port)
            .fetch_or(1 << (port % 64), Ordering::SeqCst);
    }

    /// True if the event is pending.
    pub fn is_pending(self, port: u32) -> bool {
        self.pending(port).load(Ordering::SeqCst) >> (port % 64) & 1 == 1
    }

    /// The system time, in nanoseconds, at a value of the TSC.
    pub fn system_time(self, tsc: u64) -> u64 {
        loop {
            let version = self.half(Self::VERSION).load(Ordering::SeqCst);
            let since = tsc.wrapping_sub(self.word(Self::TSC).load(Ordering::SeqCst));
            let shift = self.byte(Self::SHIFT).load(Ordering::SeqCst) as i8;
            let shifted = match shift {
                0.. => since << (shift & 63),
                _ => since >> (-shift & 63),
            };
            let multiplier = self.half(Self::MULTIPLIER).load(Ordering::SeqCst);
            let elapsed = ((u128::from(shifted) * u128::from(multiplier)) >> 32) as u64;
            let at = self
                .word(Self::SYSTEM_TIME)
                .load(Ordering::SeqCst)
                .wrapping_add(elapsed);
            if version & 1 == 0 && version == self.half(Self::VERSION).load(Ordering::SeqCst) {
                return at;
            }
        }
    }
}
