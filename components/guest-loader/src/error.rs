//! Why a guest cannot be loaded.

use core::fmt;

/// One of the files that a guest is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The kernel.
    Kernel,
    /// The initial RAM disk.
    Initrd,
    /// The command line.
    Cmdline,
}

/// How a payload is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip (RFC 1952).
    Gzip,
    /// xz.
    Xz,
    /// LZ4 in the legacy frame format.
    Lz4,
    /// Zstandard (RFC 8878).
    Zstd,
    /// Something else, which begins with these bytes.
    Unknown(u32),
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The kernel is neither ELF nor a Linux boot image.
    NotAKernel,
    /// The file ends before something it refers to.
    Truncated {
        /// Which file.
        input: Input,
        /// Where the missing part would be.
        offset: u64,
        /// Length of the file.
        length: u64,
    },
    /// The file contradicts itself.
    Malformed {
        /// Which file.
        input: Input,
        /// Where, as far as known.
        offset: u64,
    },
    /// There is no PVH entry note (XEN_ELFNOTE_PHYS32_ENTRY).
    NoPvhEntry,
    /// The ELF file is for this machine (`e_machine`).
    Machine(u16),
    /// The payload's compression is not known, or its data are damaged.
    Payload(Compression),
    /// It does not fit into the guest.
    NoMemory {
        /// What does not fit.
        input: Input,
        /// Bytes it needs.
        needed: u64,
        /// Bytes there are for it.
        available: u64,
    },
    /// The loader itself cannot get the memory to work in.
    OwnMemory,
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Input::Kernel => "kernel",
            Input::Initrd => "initial RAM disk",
            Input::Cmdline => "command line",
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotAKernel => write!(f, "the kernel is neither an ELF file nor a Linux bzImage"),
            Error::Truncated {
                input,
                offset,
                length,
            } => {
                write!(
                    f,
                    "the {input} ends at {length} bytes, but refers to byte {offset}"
                )
            }
            Error::Malformed { input, offset } => {
                write!(f, "the {input} is malformed at byte {offset}")
            }
            Error::NoPvhEntry => write!(
                f,
                "the kernel has no PVH entry point (ELF note XEN_ELFNOTE_PHYS32_ENTRY); \
                 Linux needs CONFIG_PVH"
            ),
            Error::Machine(machine) => {
                write!(f, "the kernel is for ELF machine {machine}, not x86")
            }
            Error::Payload(Compression::Unknown(magic)) => {
                write!(
                    f,
                    "the kernel's payload is compressed in a way not known here ({magic:#010x})"
                )
            }
            Error::Payload(how) => write!(f, "the kernel's {how:?} payload is damaged"),
            Error::NoMemory {
                input,
                needed,
                available,
            } => write!(
                f,
                "the {input} needs {needed} bytes of guest memory where {available} are left; \
                 give the guest more memory"
            ),
            Error::OwnMemory => write!(f, "the builder has too little memory to unpack the kernel"),
        }
    }
}
