//! Interfaces between components, and the system manifest.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod manifest;
