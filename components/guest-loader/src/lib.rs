//! Loads a kernel for a PVH start: where things go in guest memory, and the bytes that go there.
//!
//! Used by the `builder` component on the guest's mapped memory, by `image-builder` to unpack
//! kernels while building an image, and by `vmm` for the memory layout. Pure: bytes in, bytes and
//! addresses out. Kernels and initial RAM disks are files that anybody may have written: every
//! mistake in them is an [`Error`], and memory is never taken on a file's word beyond the caller's
//! limit.
//!
//! - [`layout`]: the guest-physical memory map and the special pages;
//! - [`bzimage`], [`payload`]: finding and unpacking the payload of a Linux boot image;
//! - [`kernel`]: ELF segments and notes;
//! - [`acpi`], [`start_info`]: the tables that a PVH guest finds;
//! - [`mod@load`]: all of it together.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod acpi;
pub mod bzimage;
pub mod error;
pub mod kernel;
pub mod layout;
pub mod load;
pub mod payload;
pub mod start_info;

pub use error::{Compression, Error, Input};
pub use load::{Guest, Loaded, load};

/// A little-endian `u16` of a file.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(
        bytes.get(at..at.checked_add(2)?)?.try_into().ok()?,
    ))
}

/// A little-endian `u32` of a file.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}
