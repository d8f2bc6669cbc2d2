//! The operator's commands, as far as they are text: a line to a command, what root knows to lines and
//! to JSON, a guest's file to a definition. Pure; the component's `server` makes the calls. What is
//! typed and what files say is untrusted: any text may come.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod command;
pub mod definition;
pub mod text;
