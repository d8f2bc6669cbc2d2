//! Time: the TSC is the only clock. Deadlines of system calls are absolute TSC values.

use core::sync::atomic::{AtomicU64, Ordering};

use idl::Cap;
use idl::cap::Notification;
use microvisor_abi::Status;

use crate::caps::{MemoryCap, NotificationCap};
use crate::{local, memory};

static TSC_KHZ: AtomicU64 = AtomicU64::new(1_000_000);

pub(crate) fn set_tsc_khz(khz: u64) {
    TSC_KHZ.store(khz.max(1), Ordering::Relaxed);
}

/// TSC ticks per millisecond.
pub fn tsc_khz() -> u64 {
    TSC_KHZ.load(Ordering::Relaxed)
}

/// The TSC now. Not ordered with memory accesses. Under the test kit, the test's clock.
#[inline(always)]
pub fn now() -> u64 {
    #[cfg(not(target_os = "none"))]
    if let Some(now) = crate::host::now() {
        return now;
    }
    // SAFETY: RDTSC only reads the counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// TSC ticks in so many microseconds.
pub fn microseconds(count: u64) -> u64 {
    (u128::from(count) * u128::from(tsc_khz()) / 1000)
        .try_into()
        .unwrap_or(u64::MAX)
}

/// Sleeps until the absolute TSC `deadline`.
pub fn sleep_until(deadline: u64) -> Result<(), Status> {
    if local::sleep_slot() == 0 {
        let notification: Cap<Notification> = memory::own().retype(0)?;
        local::set_sleep_slot(notification.slot());
    }
    loop {
        match Cap::<Notification>::new(local::sleep_slot()).wait(deadline) {
            Err(Status::Timeout) => return Ok(()),
            Ok(_) => {}
            Err(status) => return Err(status),
        }
    }
}

/// Lets others of the same priority on this CPU run first, if there are any.
pub fn give_way() -> Result<(), Status> {
    // The core's rule for a deadline that has passed; the first tick of a machine has.
    sleep_until(1)
}

/// Gives the running thread its sleep notification early, so that it can block on a lock.
pub(crate) fn prepare() {
    if local::sleep_slot() == 0
        && let Ok(notification) = memory::own().retype::<Notification>(0)
    {
        local::set_sleep_slot(notification.slot());
    }
}
