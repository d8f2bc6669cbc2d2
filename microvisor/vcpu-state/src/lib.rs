//! What the core decides about the state of a vCPU: which values from a state page may reach the
//! CPU, what an exit means, which bits of a permission bitmap stand for which register, which
//! address-space identifier a vCPU runs under.
//!
//! Called by the core's `virt` module, which does the reading and writing. Everything here is a
//! function from values to values: it never touches hardware or memory it was not handed, never
//! panics on a value a VMM or guest can choose, and is tested on the host.
#![no_std]
#![forbid(unsafe_code)]

pub mod asid;
pub mod exit;
pub mod limits;
pub mod reset;
pub mod sanitise;
pub mod speculation;
pub mod svm_bitmaps;
pub mod svm_exit;
pub mod vmx_bitmap;
pub mod vmx_controls;
pub mod vmx_entry;
pub mod vmx_exit;
pub mod vmx_state;
pub mod xsave;

pub use limits::Limits;
pub use sanitise::Reject;
