//! `blkback`: serves guests' disks by Xen's block protocol.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
sdk::entry!(main);

/// Serves nobody yet: it says so.
#[cfg(target_os = "none")]
fn main(_: sdk::prelude::Env) {
    panic!("this back end cannot serve disks yet");
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("blkback runs on the microvisor only");
}
