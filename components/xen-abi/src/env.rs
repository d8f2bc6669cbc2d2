//! What a domain may cause outside itself: implemented by the VMM, by a recorder in host tests.
//! Nothing here may call back into the [`crate::Domain`].

use core::task::Poll;

use crate::errno::Errno;
use crate::memory::SpecialFrame;

/// What a translation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A read.
    Read,
    /// A write.
    Write,
}

/// Why a domain shut down: `SHUTDOWN_*` of `public/sched.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownReason {
    /// 0: it wants to be switched off.
    PowerOff,
    /// 1: it wants to be started anew.
    Reboot,
    /// 2: it is ready to be saved.
    Suspend,
    /// 3: it reports its own crash.
    Crash,
    /// 4: its watchdog expired.
    Watchdog,
    /// 5: it wants a new kernel over the same memory.
    SoftReset,
    /// A code that Xen 4.17 does not define.
    Unknown(u8),
}

impl ShutdownReason {
    /// The reason that a code stands for.
    #[must_use]
    pub const fn from_code(code: u8) -> ShutdownReason {
        match code {
            0 => ShutdownReason::PowerOff,
            1 => ShutdownReason::Reboot,
            2 => ShutdownReason::Suspend,
            3 => ShutdownReason::Crash,
            4 => ShutdownReason::Watchdog,
            5 => ShutdownReason::SoftReset,
            other => ShutdownReason::Unknown(other),
        }
    }
}

/// Names one service of the VMM's side (xenstore, console) to which event channels lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceId(pub u32);

/// Names one connection of the VMM's side, to a backend or to another domain's VMM: whoever is at the
/// other end of its grants and event channels. The VMM numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId(pub u16);

/// Names a grant of another domain that the VMM has in use for this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GrantToken(pub u64);

/// One side of a copy between two pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopySide {
    /// The domain's own memory, at this address of [`crate::GuestMemory`].
    Own(u64),
    /// A page that another domain granted.
    Granted {
        /// Which domain.
        domid: u16,
        /// `grant_ref_t`.
        reference: u32,
        /// Bytes from the page's start.
        offset: u16,
    },
}

/// A copy of which another domain granted one side or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantCopy {
    /// What is read.
    pub from: CopySide,
    /// What is written.
    pub to: CopySide,
    /// Bytes, at most a page. With none it is only said whether the grants can be used.
    pub length: u16,
}

/// A level-triggered line that `HVM_PARAM_CALLBACK_IRQ` may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LegacyLine {
    /// A global system interrupt (types 0).
    Gsi(u32),
    /// INTx pin 0..=3 of a device on bus 0 (type 1).
    PciIntx {
        /// Device number, 0..=31.
        device: u8,
        /// Pin, 0 is INTA.
        pin: u8,
    },
}

/// How a vCPU that got an event learns of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upcall {
    /// No way is configured: only wake it if it is halted or blocked.
    WakeOnly,
    /// Ask [`crate::Domain::pending_upcall`] before each entry and inject the vector it answers,
    /// past the local APIC, when the vCPU accepts interrupts.
    Vector(u8),
    /// Set the vector in the local APIC as an edge, once.
    Lapic(u8),
    /// Drive this line to the level that [`crate::Domain::callback_line`] answers.
    Line(LegacyLine),
}

/// Start state of a vCPU, as `VCPUOP_initialise` gives it (`public/hvm/hvm_vcpu.h`).
/// Segment attributes are in VMCB format (12 bits: access byte, then AVL, L, D/B, G).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VcpuStart {
    /// 32-bit or real mode.
    Mode32(VcpuStart32),
    /// 64-bit flat mode; segments are those of a 64-bit kernel with null bases.
    Mode64(VcpuStart64),
}

/// The registers of `struct vcpu_hvm_x86_32`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VcpuStart32 {
    /// EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI in this order.
    pub registers: [u32; 8],
    /// Instruction pointer.
    pub eip: u32,
    /// Flags.
    pub eflags: u32,
    /// CR0.
    pub cr0: u32,
    /// CR3.
    pub cr3: u32,
    /// CR4.
    pub cr4: u32,
    /// EFER.
    pub efer: u64,
    /// CS, DS, SS, ES, TR.
    pub segments: [StartSegment; 5],
}

/// One segment of [`VcpuStart32`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartSegment {
    /// Base address.
    pub base: u32,
    /// Limit in bytes.
    pub limit: u32,
    /// Attributes.
    pub attributes: u16,
}

/// The registers of `struct vcpu_hvm_x86_64`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VcpuStart64 {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI in this order.
    pub registers: [u64; 8],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
}

/// Why the guest's physical map could not be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// The guest frame number is outside what the VMM can map.
    OutOfRange,
    /// No memory for page tables, or no page to give.
    NoMemory,
}

/// Effects and questions of one hypercall or event, answered at once, without blocking.
pub trait Env {
    /// The guest's TSC, now.
    fn tsc(&mut self) -> u64;

    /// Walks the calling vCPU's page tables: the guest-physical address of `linear`, if that is
    /// mapped for a supervisor's access. Called once per page touched.
    fn translate(&mut self, linear: u64, access: Access) -> Option<u64>;

    /// The vCPU has a new event: make it notice, also if it halts, blocks or runs elsewhere.
    fn upcall(&mut self, vcpu: u32, how: Upcall);

    /// Wake a vCPU out of [`crate::Next::Block`] (a polled port, or `VCPUOP_up`) or let its
    /// thread look at its deadline anew.
    fn wake(&mut self, vcpu: u32);

    /// The domain's port that leads to this service was sent to.
    fn service_event(&mut self, service: ServiceId);

    /// The domain's port that is this channel of a connection was sent to.
    fn channel_event(&mut self, link: LinkId, channel: u16);

    /// Whether the domain may use another one's grants and ports, being its driver domain. What
    /// follows is asked only of those. The defaults are of a domain that is nobody's.
    ///
    /// The other domain answers when it likes. While it has not, this and the other questions to it are
    /// pending: the call has then done nothing, ends with [`crate::Next::Restart`], and whoever made it asks
    /// the other domain before it makes it again.
    fn reaches(&mut self, _domid: u16) -> Poll<bool> {
        Poll::Ready(false)
    }

    /// Begins to use a grant of another domain; its status (`GNTST_*`) if it is refused. Each answer is
    /// given once.
    fn grant_open(
        &mut self,
        _domid: u16,
        _reference: u32,
        _write: bool,
    ) -> Poll<Result<GrantToken, i16>> {
        Poll::Ready(Err(crate::grant::status::BAD_DOMAIN))
    }

    /// A grant will be asked for later in the same list, so that all are asked for at once.
    fn grant_soon(&mut self, _domid: u16, _reference: u32, _write: bool) {}

    /// Puts a grant's page at guest frame `gfn`, in place of what is there.
    fn grant_place(&mut self, _token: GrantToken, _gfn: u64) -> bool {
        false
    }

    /// Copies; the status (`GNTST_*`) of the first grant that is refused, the one that is read before the
    /// other. Each answer is given once.
    fn grant_copy(&mut self, _copy: GrantCopy) -> Poll<Result<(), i16>> {
        Poll::Ready(Err(crate::grant::status::BAD_DOMAIN))
    }

    /// Ends the use; the page is nowhere in the guest's map any more.
    fn grant_close(&mut self, _token: GrantToken) {}

    /// Binds another domain's port, which waits for this domain, to the own port `local`.
    fn bind_remote(
        &mut self,
        _domid: u16,
        _port: u32,
        _local: u32,
    ) -> Poll<Result<(LinkId, u16), Errno>> {
        Poll::Ready(Err(Errno::Srch))
    }

    /// The guest closed its port of a channel.
    fn channel_closed(&mut self, _link: LinkId, _channel: u16) {}

    /// The domain shut down. Every vCPU must stop before its next instruction.
    fn shutdown(&mut self, reason: ShutdownReason);

    /// Printable ASCII, tabs and newlines for the hypervisor's console, at most 128 at a time.
    fn console_write(&mut self, bytes: &[u8]);

    /// Maps a special frame at guest frame `gfn`, in place of what is there (RAM there is given
    /// back). The frame leaves the place it was mapped before.
    fn map_special(&mut self, frame: SpecialFrame, gfn: u64) -> Result<(), MapError>;

    /// Takes what is mapped at `gfn`, RAM or a special frame, out of the guest's physical map.
    /// Answers whether there was anything.
    fn remove_page(&mut self, gfn: u64) -> bool;

    /// Gives the guest a zeroed RAM page at `gfn`. Answers `false`, and keeps what is there, if
    /// something is mapped there already.
    fn populate_page(&mut self, gfn: u64) -> Result<bool, MapError>;

    /// Whether RAM is mapped at `gfn`.
    fn is_ram(&mut self, gfn: u64) -> bool;

    /// `VCPUOP_initialise` gave an offline vCPU its registers.
    fn initialise_vcpu(&mut self, vcpu: u32, state: VcpuStart);

    /// `VCPUOP_up`: run the vCPU.
    fn vcpu_up(&mut self, vcpu: u32);

    /// `VCPUOP_down`: stop the vCPU.
    fn vcpu_down(&mut self, vcpu: u32);

    /// `VCPUOP_send_nmi`: deliver an NMI.
    fn nmi(&mut self, vcpu: u32);

    /// Drop the TLB entries of the vCPUs set in `vcpus`.
    fn flush_tlb(&mut self, vcpus: u128);
}
