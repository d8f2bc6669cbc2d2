//! The state page that a vCPU shares with its VMM, exits, and operations on vCPUs.
//!
//! Layout and meaning are the same for SVM and VMX. The page belongs to the vCPU; the VMM maps it
//! through its `Vcpu` capability. Neither side trusts the other to hold still: the core reads each
//! word once and sanitises it, and the VMM must read words with volatile loads.

use crate::thread::Registers;

numbered! {
/// Operations of [`crate::Call::VcpuControl`]; `a`, `b`, `c` are its further arguments.
#[repr(u64)]
pub enum Op from u64 {
    /// `a`: guest `AddressSpace` that this vCPU runs in. Once, before the first run.
    Configure = 0,
    /// Makes the current or the next run return with [`Exit::Interrupted`]. Sticky.
    Poke = 1,
    /// `a`: [`group`] set to bring up to date in the state page. Not while it runs.
    Fetch = 2,
    /// Copies the XSAVE image (standard format, Intel SDM vol. 1, 13.4) from byte offset `a`,
    /// at most `PAYLOAD_MAX` bytes, into the message buffer; answers the image's whole size.
    GetExtended = 3,
    /// Replaces `b` bytes at offset `a` of the XSAVE image from the message buffer; its header
    /// and MXCSR are sanitised. Answers the image's whole size.
    SetExtended = 4,
}
}

/// Groups of state in the page. `State::valid` says which ones an exit brought up to date;
/// `State::modified` says which ones the VMM changed and the core must load.
pub mod group {
    /// General registers, `rip`, `rsp`, `rflags`. Always valid after an exit.
    pub const GENERAL: u64 = 1 << 0;
    /// `cr0`, `cr3`, `cr4`, `efer`; and `cs` and `ss` (selector, base, limit, attributes).
    /// Valid after `NestedFault`, `Io` with `string`, `Hypercall`, and every exit for an
    /// instruction whose length the CPU does not tell.
    pub const MODE: u64 = 1 << 1;
    /// The other segments, `gdtr`, `idtr`, `ldtr`, `tr`.
    pub const SEGMENTS: u64 = 1 << 2;
    /// `star`, `lstar`, `cstar`, `sfmask`, `kernel_gs_base`, `sysenter_*`.
    pub const SYSCALL: u64 = 1 << 3;
    /// `dr6`, `dr7`, `dr0` to `dr3`.
    pub const DEBUG: u64 = 1 << 4;
    /// `cr2`, `cr8`, `pat`, `xcr0`, `xss`, `tsc_offset`, `tsc_aux`.
    pub const MISC: u64 = 1 << 5;
    /// `inject`, `window`, `interruptibility`. Always valid after an exit.
    pub const EVENTS: u64 = 1 << 6;
    /// Every group.
    pub const ALL: u64 = 0x7f;
}

numbered! {
/// Why a run returned.
#[repr(u64)]
pub enum Exit from u64 {
    /// Poked, cancelled, or a bound notification has bits; `info[0]`: 1 if it never entered.
    Interrupted = 1,
    /// `State::deadline` passed.
    Deadline = 2,
    /// CPUID; leaf in `rax`, subleaf in `rcx`.
    Cpuid = 3,
    /// VMMCALL or VMCALL.
    Hypercall = 4,
    /// Port access; `info[0]`: port | bytes << 16 | [`io`] flags.
    Io = 5,
    /// RDMSR of `ecx`.
    MsrRead = 6,
    /// WRMSR of `edx:eax` to `ecx`.
    MsrWrite = 7,
    /// Access without a translation: `info[0]` guest-physical address, `info[1]` [`fault`] flags.
    NestedFault = 8,
    /// HLT.
    Hlt = 9,
    /// The guest can take an external interrupt now (asked for with `State::window`).
    InterruptWindow = 10,
    /// Triple fault.
    Shutdown = 11,
    /// MOV to or from a control register, CLTS, LMSW, SMSW: decode it.
    ControlRegister = 12,
    /// An exception that the core intercepts: `info[0]` vector, `info[1]` error code.
    Exception = 13,
    /// XSETBV of `edx:eax` to `ecx`.
    Xsetbv = 14,
    /// The state does not let the CPU enter; `info[0]`, `info[1]` are the vendor's words for it.
    Invalid = 15,
    /// MONITOR or MWAIT.
    Mwait = 16,
    /// RDPMC.
    Rdpmc = 17,
    /// INVD or WBINVD.
    CacheFlush = 18,
    /// PAUSE in a loop.
    Pause = 19,
    /// The guest can take an NMI now.
    NmiWindow = 20,
    /// Task switch.
    TaskSwitch = 21,
    /// An instruction that this virtual CPU does not have (VMRUN, VMXON, SKINIT, ...): #UD.
    Undefined = 22,
    /// INIT signal.
    Init = 23,
}
}

/// Flags in `info[0]` of [`Exit::Io`].
pub mod io {
    /// IN or INS.
    pub const IN: u64 = 1 << 24;
    /// INS or OUTS.
    pub const STRING: u64 = 1 << 25;
    /// With a REP prefix.
    pub const REP: u64 = 1 << 26;
}

/// Flags in `info[1]` of [`Exit::NestedFault`].
pub mod fault {
    /// The access was a read.
    pub const READ: u64 = 1;
    /// The access was a write.
    pub const WRITE: u64 = 2;
    /// The access was an instruction fetch.
    pub const FETCH: u64 = 4;
    /// A translation exists; it does not permit the access.
    pub const PRESENT: u64 = 8;
    /// The access was the CPU's own, to the guest's page tables.
    pub const WALK: u64 = 16;
}

/// The format of `State::inject` and `State::delivering`: bits 0-7 vector, 8-10 a type, bit 11 an
/// error code is pushed, bit 31 valid, 32-63 the error code.
pub mod event {
    /// Type: external interrupt.
    pub const INTERRUPT: u64 = 0 << 8;
    /// Type: NMI.
    pub const NMI: u64 = 2 << 8;
    /// Type: exception.
    pub const EXCEPTION: u64 = 3 << 8;
    /// Type: software interrupt (`INT n`, `INT3`, `INTO`).
    pub const SOFTWARE: u64 = 4 << 8;
    /// An error code is pushed.
    pub const ERROR_CODE: u64 = 1 << 11;
    /// The word means something.
    pub const VALID: u64 = 1 << 31;
}

/// Bits of `State::interruptibility`.
pub mod blocked {
    /// The instruction after STI, MOV SS or POP SS.
    pub const SHADOW: u64 = 1;
    /// An NMI is being handled.
    pub const NMI: u64 = 2;
}

/// Bits of `State::window`.
pub mod window {
    /// Exit as soon as the guest can take an external interrupt.
    pub const INTERRUPT: u64 = 1;
    /// Exit as soon as the guest can take an NMI.
    pub const NMI: u64 = 2;
}

/// A segment register. `attributes`: bits 0-7 the access byte, 8-11 AVL, L, D/B, G of the
/// descriptor (the packed form of AMD APM vol. 2, 15.5.1). Not present means unusable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// `selector | attributes << 16 | limit << 32`.
    pub packed: u64,
    /// Base address.
    pub base: u64,
}

impl Segment {
    /// A segment from its parts; `limit` in bytes as in the hidden register.
    pub const fn new(selector: u16, attributes: u16, limit: u32, base: u64) -> Segment {
        Segment {
            packed: selector as u64 | (attributes as u64) << 16 | (limit as u64) << 32,
            base,
        }
    }
    /// Selector.
    pub const fn selector(self) -> u16 {
        self.packed as u16
    }
    /// Packed attributes.
    pub const fn attributes(self) -> u16 {
        (self.packed >> 16) as u16
    }
    /// Limit in bytes.
    pub const fn limit(self) -> u32 {
        (self.packed >> 32) as u32
    }
}

/// The state page. Every field is a little-endian `u64` or built of them.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct State {
    /// General registers. In [`group::GENERAL`].
    pub regs: Registers,

    /// An [`Exit`].
    pub exit: u64,
    /// Its details.
    pub info: [u64; 4],
    /// Bytes of the instruction that exited, or 0 when the CPU does not tell: decode it.
    pub instruction_length: u64,
    /// How many of `instruction_bytes` the CPU delivered; 0 when it does not.
    pub instruction_count: u64,
    /// The first bytes of the instruction.
    pub instruction_bytes: [u64; 2],
    /// Guest-virtual address of a nested fault, if `gva_valid`.
    pub gva: u64,
    /// 1 if `gva` means something.
    pub gva_valid: u64,

    /// Groups that are current. Written by the core.
    pub valid: u64,
    /// Groups that the VMM changed. Written by the VMM, cleared by the core when it took them.
    pub modified: u64,
    /// Absolute TSC at which a run returns with [`Exit::Deadline`]. Read at each run.
    pub deadline: u64,
    /// Groups that come along with exits whose instruction the VMM may have to decode, so that it
    /// need not fetch them: any of [`group::MODE`]. Every exit brings [`group::GENERAL`] and
    /// [`group::EVENTS`]. Written by the VMM.
    pub wanted: u64,

    /// Event to inject at the next entry. In [`group::EVENTS`]; cleared when injected.
    pub inject: u64,
    /// Event whose delivery the exit interrupted: inject it again. Written by the core.
    pub delivering: u64,
    /// Windows asked for, [`window`]. In [`group::EVENTS`].
    pub window: u64,
    /// What holds events back, [`blocked`]. In [`group::EVENTS`].
    pub interruptibility: u64,

    /// CR0. [`group::MODE`].
    pub cr0: u64,
    /// CR3. [`group::MODE`].
    pub cr3: u64,
    /// CR4. [`group::MODE`].
    pub cr4: u64,
    /// EFER, as the guest sees it. [`group::MODE`].
    pub efer: u64,
    /// CS. [`group::MODE`].
    pub cs: Segment,
    /// SS; CPL is its DPL. [`group::MODE`].
    pub ss: Segment,

    /// DS. [`group::SEGMENTS`].
    pub ds: Segment,
    /// ES. [`group::SEGMENTS`].
    pub es: Segment,
    /// FS. [`group::SEGMENTS`].
    pub fs: Segment,
    /// GS. [`group::SEGMENTS`].
    pub gs: Segment,
    /// LDTR. [`group::SEGMENTS`].
    pub ldtr: Segment,
    /// TR. [`group::SEGMENTS`].
    pub tr: Segment,
    /// GDTR: limit and base. [`group::SEGMENTS`].
    pub gdtr: Segment,
    /// IDTR: limit and base. [`group::SEGMENTS`].
    pub idtr: Segment,

    /// MSR C000_0081. [`group::SYSCALL`].
    pub star: u64,
    /// MSR C000_0082. [`group::SYSCALL`].
    pub lstar: u64,
    /// MSR C000_0083. [`group::SYSCALL`].
    pub cstar: u64,
    /// MSR C000_0084. [`group::SYSCALL`].
    pub sfmask: u64,
    /// MSR C000_0102. [`group::SYSCALL`].
    pub kernel_gs_base: u64,
    /// MSR 174. [`group::SYSCALL`].
    pub sysenter_cs: u64,
    /// MSR 175. [`group::SYSCALL`].
    pub sysenter_esp: u64,
    /// MSR 176. [`group::SYSCALL`].
    pub sysenter_eip: u64,

    /// DR6. [`group::DEBUG`].
    pub dr6: u64,
    /// DR7. [`group::DEBUG`].
    pub dr7: u64,
    /// DR0 to DR3. [`group::DEBUG`].
    pub dr: [u64; 4],

    /// CR2. [`group::MISC`].
    pub cr2: u64,
    /// MSR 277. [`group::MISC`].
    pub pat: u64,
    /// XCR0. [`group::MISC`].
    pub xcr0: u64,
    /// MSR DA0. [`group::MISC`].
    pub xss: u64,
    /// Added to the TSC that the guest reads. [`group::MISC`].
    pub tsc_offset: u64,
    /// MSR C000_0103. [`group::MISC`].
    pub tsc_aux: u64,
    /// CR8, the task priority: the guest moves it without exits, and it holds back nothing that the
    /// VMM injects. [`group::MISC`].
    pub cr8: u64,
}
const _: () = assert!(core::mem::size_of::<State>() <= 4096);
