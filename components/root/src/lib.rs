//! Root's decisions, free of the machine: which component starts when, how large it is, what a
//! guest's events lead to, how a report reads. Called by root's binary; host tests call it as it
//! is. Never makes a system call.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod backtrace;
pub mod define;
pub mod guest;
pub mod image;
pub mod peers;
pub mod pieces;
pub mod plan;
pub mod pool;
pub mod restart;
