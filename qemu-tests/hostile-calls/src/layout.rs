//! Where the hostile guest keeps what. Guest-physical addresses, all of them in RAM of a guest of
//! 64 MiB and away from its program, which is at 2 MiB. They are mapped one to one.

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Bytes of RAM that the guest must have.
pub const RAM: u64 = 64 << 20;

/// Arguments of hypercalls and what they point at; calls may write anywhere in here.
pub const ARGUMENTS: u64 = 32 << 20;
/// Bytes of it.
pub const ARGUMENT_BYTES: u64 = 64 << 10;
/// Lists that arguments point at, inside it.
pub const LISTS: u64 = ARGUMENTS + (32 << 10);
/// Pages that Xen writes on its own after being told of them: a runstate area and a time area,
/// vCPU information, shared information, the first frame of the grant table.
pub const AREAS: u64 = 33 << 20;
/// vCPU 0's registered `vcpu_info`.
pub const VCPU_INFO: u64 = AREAS + PAGE;
/// Where shared information is mapped.
pub const SHARED_INFO: u64 = AREAS + 2 * PAGE;
/// Where the first frame of the grant table is mapped.
pub const GRANT_TABLE: u64 = AREAS + 3 * PAGE;
/// Structures of the calls that lead to the known state.
pub const SCRATCH: u64 = AREAS + 4 * PAGE;
/// Pages that calls may take away, replace and give back.
pub const PLAYGROUND: u64 = 34 << 20;
/// How many.
pub const PLAYGROUND_PAGES: u64 = 16;
/// Pages without RAM that calls may map something at.
pub const HOLE: u64 = 256 << 20;
/// How many.
pub const HOLE_PAGES: u64 = 8;
/// The log.
pub const LOG: u64 = 36 << 20;
/// First address past it.
pub const LOG_END: u64 = 60 << 20;
/// Where mappings begin that are not one to one (`places`).
pub const ODD: u64 = 1 << 39;
/// In them: a page that may only be read, as the first.
pub const READ_ONLY: u64 = ODD;
/// In them: a page that is not present, as the second.
pub const NOT_PRESENT: u64 = ODD + PAGE;
/// First address that nothing maps and that an address may have.
pub const UNMAPPED: u64 = 4 << 30;
/// In the kernel's half, unmapped.
pub const UPPER_HALF: u64 = 0xffff_8800_0000_0000;
/// Not an address that a pointer may hold. Without the bits that make it so it would be one of the
/// kernel's half, or, as the second, in the argument area: Xen's page walk ignores them.
pub const NON_CANONICAL: u64 = 0x0010_8800_0000_0000;
/// See [`NON_CANONICAL`].
pub const NON_CANONICAL_ARGUMENTS: u64 = 0x8000_0000_0000_0000 | ARGUMENTS;
/// The local APIC's page.
pub const LAPIC: u64 = 0xfee0_0000;
