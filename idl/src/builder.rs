//! `builder`: what the builder of one guest tells root, which serves this interface: trust points
//! from the builder to root, so the builder calls. Its orders (guest memory, kernel, initial RAM
//! disk and command line, all mapped) are in its start-up page. After either call it is destroyed.

use crate::{interface, message};

/// A guest that is ready to run.
#[message]
#[derive(Copy)]
pub struct Built {
    /// Guest-physical address of the first instruction (the PVH entry note).
    pub entry: u64,
    /// Guest-physical address of `hvm_start_info` (Xen public/arch-x86/hvm/start_info.h).
    pub start_info: u64,
    /// Guest-physical address of the ACPI RSDP, 0 if there is none.
    pub rsdp: u64,
    /// End of what the builder placed in low memory, for reports.
    pub end: u64,
}

/// A payload's compression.
#[message]
#[derive(Copy)]
pub enum Compression {
    /// Not compressed.
    None,
    /// gzip.
    Gzip,
    /// xz.
    Xz,
    /// LZ4, legacy frames.
    Lz4,
    /// Zstandard.
    Zstd,
    /// Anything else: the first four bytes, little-endian.
    Unknown(u32),
}

/// Which of the files.
#[message]
#[derive(Copy)]
pub enum Input {
    /// The kernel.
    Kernel,
    /// The initial RAM disk.
    Initrd,
    /// The command line.
    Cmdline,
}

/// Why a guest cannot be built.
#[message]
#[derive(Copy)]
pub enum BuildError {
    /// The kernel is neither an ELF file nor a bzImage.
    NotAKernel,
    /// The file ends before something that it refers to.
    Truncated {
        /// Which file.
        input: Input,
        /// Offset of what is missing.
        offset: u64,
        /// Bytes of the file.
        length: u64,
    },
    /// The file contradicts itself or the format.
    Malformed {
        /// Which file.
        input: Input,
        /// Offset of what is wrong, 0 if unknown.
        offset: u64,
    },
    /// The kernel has no PVH entry note (XEN_ELFNOTE_PHYS32_ENTRY).
    NoPvhEntry,
    /// The kernel is for another kind of machine: `e_machine` of its ELF header.
    Machine(u16),
    /// The payload's compression is not supported or its stream is damaged.
    Payload(Compression),
    /// Something does not fit into the guest's memory.
    NoMemory {
        /// What was being placed.
        input: Input,
        /// Bytes needed.
        needed: u64,
        /// Bytes there are.
        available: u64,
    },
    /// The builder's own memory is too small.
    OwnMemory,
    /// Anything else, with a number that the builder's documentation explains.
    Other(u32),
}

/// Served by root.
#[interface]
pub trait Builder {
    /// The guest is built; the caller has finished.
    fn built(&self, result: Built);
    /// The guest cannot be built; the caller has finished.
    fn failed(&self, error: BuildError);
}
