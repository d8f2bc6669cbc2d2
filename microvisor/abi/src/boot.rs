//! What the core tells the first component, `root`, and where it puts it.

/// Root's own capability space.
pub const SLOT_CAP_SPACE: u32 = 1;
/// Root's own address space.
pub const SLOT_ADDRESS_SPACE: u32 = 2;
/// Root's own thread.
pub const SLOT_THREAD: u32 = 3;
/// Root's own scheduling context.
pub const SLOT_SCHED: u32 = 4;
/// All I/O ports (but those the core keeps to itself).
pub const SLOT_IO_PORTS: u32 = 5;
/// All interrupts: ISA lines (0-15, as global system interrupts after MADT overrides) and messages.
pub const SLOT_INTERRUPTS: u32 = 6;
/// All CPUs, every priority.
pub const SLOT_CPUS: u32 = 7;
/// The frame of [`Info`], read-only.
pub const SLOT_INFO: u32 = 8;
/// The core's log and trace rings: 2 MiB, read-only. See `Info::log_bytes`.
pub const SLOT_LOG: u32 = 9;
/// All PCI functions of segment 0.
pub const SLOT_DEVICES: u32 = 10;
/// First slot of the listed memories and archive frames; see [`Info`].
pub const SLOT_FIRST: u32 = 16;

/// Where [`Info`] is mapped, read-only, in root; the first argument of root's entry point too.
pub const INFO_ADDRESS: u64 = 0x0000_7fff_0000_0000;
/// Where root's message buffer is mapped.
pub const BUFFER_ADDRESS: u64 = 0x0000_7fff_0010_0000;
/// One past the top of root's stack; [`STACK_BYTES`] below it are mapped.
pub const STACK_TOP: u64 = 0x0000_7fff_0100_0000;
/// Size of root's stack.
pub const STACK_BYTES: u64 = 256 * 1024;

/// Identifies [`Info`].
pub const MAGIC: u64 = 0x4f46_4e49_5f56_4d01;
/// Memories that [`Info`] can list.
pub const MEMORIES: usize = 32;

/// One `Memory` capability given to root.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct MemoryRange {
    /// Physical base address.
    pub base: u64,
    /// Length in frames of 4 KiB.
    pub frames: u64,
    /// Slot of the capability.
    pub slot: u32,
    /// 1 for device memory, 0 for RAM.
    pub device: u32,
}

/// Facts that root needs and cannot find out itself. Mapped read-only at [`INFO_ADDRESS`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Info {
    /// [`MAGIC`].
    pub magic: u64,
    /// TSC ticks per millisecond (kHz).
    pub tsc_khz: u64,
    /// CPUs that run, numbered from 0.
    pub cpus: u64,
    /// [`feature`] bits of this machine.
    pub features: u64,
    /// First slot of the `Frame` capabilities (2 MiB each, read-only, in order) of the archive.
    pub archive_slot: u32,
    /// How many there are.
    pub archive_frames: u32,
    /// Bytes of the archive, from the start of the first of them.
    pub archive_bytes: u64,
    /// First empty slot of root's capability space.
    pub free_slot: u32,
    /// Slots in root's capability space.
    pub slots: u32,
    /// Physical address of the ACPI RSDP, 0 if none was found.
    pub rsdp: u64,
    /// TSC when the core was entered, so that root can say how long the boot took.
    pub boot_tsc: u64,
    /// How many `memories` are listed.
    pub memory_count: u64,
    /// Frames of 4 KiB that one object of each `Kind` takes (index = kind), for those whose size
    /// depends on the machine; 0 elsewhere.
    pub object_frames: [u32; 16],
    /// Memory capabilities.
    pub memories: [MemoryRange; MEMORIES],
    /// Wall clock at boot from the CMOS clock: seconds since 1970-01-01, UTC; 0 if unreadable.
    pub wall_seconds: u64,
    /// TSC at which `wall_seconds` was read.
    pub wall_tsc: u64,
}
const _: () = assert!(core::mem::size_of::<Info>() <= 4096);

/// Bits of [`Info::features`].
pub mod feature {
    /// Guests can run (SVM with nested paging, or VMX with EPT).
    pub const VIRTUALISATION: u64 = 1 << 0;
    /// The vendor is AMD's SVM: hypercalls are VMMCALL. Otherwise Intel's VMX: VMCALL.
    pub const SVM: u64 = 1 << 1;
    /// The TSC is invariant.
    pub const INVARIANT_TSC: u64 = 1 << 2;
    /// There is an IOMMU: a device reaches only what it is attached to. Without it, it reaches all
    /// memory.
    pub const DMA_PROTECTION: u64 = 1 << 3;
    /// A device can send only the messages that it was given.
    pub const INTERRUPT_REMAPPING: u64 = 1 << 4;
    /// The IOMMU is AMD's, otherwise Intel's.
    pub const AMDVI: u64 = 1 << 5;
}
