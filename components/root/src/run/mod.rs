//! Root on the machine: from the core's facts to the event loop.

mod admin;
mod bank;
mod content;
mod define;
mod domains;
mod exit;
mod guests;
mod hardware;
mod inbox;
mod instance;
mod maker;
mod operator;
mod peers;
mod report;
mod restart;
mod serial;
mod system;
mod wiring;

use alloc::string::String;
use idl::manifest::Manifest;
use sdk::abi::archive::Archive;
use sdk::abi::boot::Info;
use sdk::caps::ThreadCap;
use sdk::memory;
use sdk::prelude::*;

/// Root's own thread.
pub const THREAD: Cap<cap::Thread> = Cap::new(sdk::abi::boot::SLOT_THREAD);

/// Brings the system up and supervises it; returns only when there is nothing to supervise.
pub fn main(info: &'static Info) {
    serial::start();
    let booted = sdk::time::now().saturating_sub(info.boot_tsc) / info.tsc_khz.max(1);
    log::info!(
        "{} CPU(s), TSC {} kHz, root runs after {booted} ms",
        info.cpus,
        info.tsc_khz
    );
    match prepare(info) {
        Ok(mut system) => {
            system.start();
            let error = system.supervise();
            log::error!("cannot receive any more: {error:?}");
        }
        Err(error) => log::error!("{error}"),
    }
    loop {
        let _ = THREAD.suspend();
    }
}

fn prepare(info: &'static Info) -> Result<system::System, String> {
    let status =
        |what: &'static str| move |status: Status| alloc::format!("cannot {what}: {status:?}");
    let bytes = memory::map_read_only(
        Cap::new(info.archive_slot),
        info.archive_frames,
        info.archive_bytes,
    )
    .map_err(status("map the archive"))?;
    let archive = Archive::parse(bytes)
        .map_err(|error| alloc::format!("the boot archive is damaged: {error:?}"))?;
    let manifest =
        Manifest::decode(archive.manifest()).map_err(|error| alloc::format!("{error}"))?;
    let mistakes = root_plan::plan::check(&manifest, info.cpus);
    for mistake in &mistakes {
        log::error!("manifest: {mistake}");
    }
    if !mistakes.is_empty() {
        return Err("the manifest has mistakes, nothing is started".into());
    }
    system::System::new(info, archive, manifest).map_err(status("set up supervision"))
}
