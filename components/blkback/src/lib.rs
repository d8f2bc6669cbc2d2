//! What the back end of guests' disks decides, free of the machine.
#![no_std]
#![forbid(unsafe_code)]
