//! Ending the emulator when the manifest says so, after everything that was said has been sent.

use sdk::port::Ports;

use super::serial;

/// QEMU's isa-debug-exit device, at the address its documentation suggests.
const DEBUG_EXIT: u16 = 0xf4;
/// How long the line must have been idle before it counts as drained, and the longest wait.
const QUIET_MICROSECONDS: u64 = 20_000;
const LONGEST_MICROSECONDS: u64 = 3_000_000;

/// Writes `value` to the exit device: QEMU ends with status `2 * value + 1`.
pub fn exit(value: u8) {
    drain();
    let granted = serial::ports(DEBUG_EXIT, 1)
        .and_then(|ports| Ports::grant(ports, super::THREAD, DEBUG_EXIT, 1));
    match granted {
        Ok(ports) => {
            ports.write(0, value);
            // The emulator ends a moment later.
            let moment = sdk::time::microseconds(LONGEST_MICROSECONDS);
            let _ = sdk::time::sleep_until(sdk::time::now().saturating_add(moment));
        }
        Err(status) => log::error!("cannot reach the exit device: {status:?}"),
    }
    log::warn!("there is no exit device here; the system stays up");
}

/// Waits until root's ring is empty and the serial line has been quiet for a while.
fn drain() {
    let start = sdk::time::now();
    let end = start.saturating_add(sdk::time::microseconds(LONGEST_MICROSECONDS));
    let mut busy = start;
    loop {
        let now = sdk::time::now();
        sdk::logging::flush();
        if !sdk::logging::drained() || !serial::idle() {
            busy = now;
        }
        let quiet = now.saturating_sub(busy) > sdk::time::microseconds(QUIET_MICROSECONDS);
        if quiet || now > end {
            return;
        }
        let _ = sdk::time::sleep_until(now.saturating_add(sdk::time::microseconds(500)));
    }
}
