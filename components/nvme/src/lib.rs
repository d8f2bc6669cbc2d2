//! What the driver `nvme` decides, free of the machine: how a controller is brought up ([`controller`]),
//! what it says of itself ([`layout`]), its queues ([`pair`]) and how it is told of memory ([`prp`]).
//! Called by the component's binary; host tests run it over a simulated controller that behaves, and
//! over ones that do not. What is read from the controller is believed in nothing but its width.
//! (NVM Express base specification 2.0 and NVM command set specification 1.0; section numbers are of
//! the former unless it says otherwise.)
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod controller;
pub mod layout;
pub mod pair;
pub mod prp;
#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;
