//! What the component `pci` decides, free of the machine: where configuration space is (ACPI MCFG),
//! which functions there are, what their registers ask for, and which registers are to be written
//! for a message interrupt. Called by the component's binary; host tests run it over made-up
//! configuration spaces. Everything read comes from devices and firmware, and is believed in
//! nothing but its width: no value leads to a panic or to a walk without end.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod acpi;
pub mod config;
pub mod enumerate;
pub mod function;
pub mod message;
#[cfg(test)]
mod tests;
