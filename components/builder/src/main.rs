//! Builds one guest and is then destroyed: unpacks the kernel, places it with its initial RAM
//! disk, start info and ACPI tables in the guest's memory, and tells root where to start.
//!
//! It parses files from outside, so it holds nothing but this one guest's memory, those files
//! (read-only) and two wires.
#![no_std]
#![no_main]

use guest_loader::{Compression, Error, Guest, Input, Loaded, layout, load};
use idl::builder::{self, BuildError, BuilderClient, Built};
use sdk::prelude::*;
use sdk::startup::{File, GuestStart};

sdk::entry!(main);

fn main(env: Env) {
    let root = match BuilderClient::connect(env.transport("builder")) {
        Ok(root) => root,
        Err(error) => return log::error!("no connection to root: {error:?}"),
    };
    let Some(guest) = &env.guest else {
        env.missing("per-guest", "true")
    };
    let told = match build(guest) {
        Ok(loaded) => root.built(built(&loaded)),
        Err(error) => {
            log::error!("guest {} cannot be built: {error}", guest.name);
            root.failed(build_error(error))
        }
    };
    if let Err(error) = told {
        log::error!("root did not take the answer: {error:?}");
    }
}

fn build(guest: &GuestStart) -> Result<Loaded, Error> {
    let kernel = guest.kernel.as_ref().ok_or(Error::NotAKernel)?;
    let request = Guest {
        kernel: bytes(kernel),
        initrd: guest.initrd.as_ref().map(bytes),
        cmdline: guest.cmdline.as_bytes(),
        vcpus: guest.vcpus,
        ram: guest.memory_bytes,
    };
    let low = layout::low_end(guest.memory_bytes) as usize;
    // SAFETY: root mapped the guest's memory there, readable and writable, for this component
    // alone: the guest does not run yet. No other reference to it exists.
    let ram = unsafe { core::slice::from_raw_parts_mut(guest.memory_address as *mut u8, low) };
    load(&request, ram)
}

fn bytes(file: &File) -> &'static [u8] {
    // SAFETY: root mapped the file there, read-only, for as long as this component lives; nobody
    // writes to the boot archive.
    unsafe { core::slice::from_raw_parts(file.address as *const u8, file.bytes as usize) }
}

fn built(loaded: &Loaded) -> Built {
    Built {
        entry: loaded.entry.into(),
        start_info: loaded.start_info,
        rsdp: loaded.rsdp,
        end: loaded.kernel_end,
    }
}

fn build_error(error: Error) -> BuildError {
    let which = |input| match input {
        Input::Kernel => builder::Input::Kernel,
        Input::Initrd => builder::Input::Initrd,
        Input::Cmdline => builder::Input::Cmdline,
    };
    match error {
        Error::NotAKernel => BuildError::NotAKernel,
        Error::Truncated {
            input,
            offset,
            length,
        } => {
            let input = which(input);
            BuildError::Truncated {
                input,
                offset,
                length,
            }
        }
        Error::Malformed { input, offset } => BuildError::Malformed {
            input: which(input),
            offset,
        },
        Error::NoPvhEntry => BuildError::NoPvhEntry,
        Error::Machine(machine) => BuildError::Machine(machine),
        Error::Payload(how) => BuildError::Payload(match how {
            Compression::None => builder::Compression::None,
            Compression::Gzip => builder::Compression::Gzip,
            Compression::Xz => builder::Compression::Xz,
            Compression::Lz4 => builder::Compression::Lz4,
            Compression::Zstd => builder::Compression::Zstd,
            Compression::Unknown(magic) => builder::Compression::Unknown(magic),
        }),
        Error::NoMemory {
            input,
            needed,
            available,
        } => {
            let input = which(input);
            BuildError::NoMemory {
                input,
                needed,
                available,
            }
        }
        Error::OwnMemory => BuildError::OwnMemory,
    }
}
