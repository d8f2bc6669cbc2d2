//! Two cells: data written once at boot, and the lock around the object graph.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};

/// Data that the boot CPU sets before other CPUs run, and that is only read afterwards.
pub struct Once<T>(UnsafeCell<T>);

// SAFETY: written only while one CPU runs (`set`'s condition), then shared read-only.
unsafe impl<T: Sync> Sync for Once<T> {}

impl<T> Once<T> {
    /// A cell with a value to start from.
    pub const fn new(value: T) -> Self {
        Once(UnsafeCell::new(value))
    }

    /// Replaces the value.
    ///
    /// # Safety
    /// No other CPU runs, and no reference from `get` is alive.
    pub unsafe fn set(&self, value: T) {
        // SAFETY: see above.
        unsafe { *self.0.get() = value }
    }

    /// The value.
    #[inline]
    pub fn get(&self) -> &T {
        // SAFETY: `set` is not called any more once this is shared.
        unsafe { &*self.0.get() }
    }
}

/// A ticket lock. A CPU that waits for it answers flush requests meanwhile, because the holder may
/// be waiting for exactly that.
pub struct KernelLock<T> {
    next: AtomicU32,
    serving: AtomicU32,
    data: UnsafeCell<T>,
}

// SAFETY: access to `data` is exclusive, by the ticket.
unsafe impl<T: Send> Sync for KernelLock<T> {}

/// Exclusive access.
pub struct Guard<'a, T>(&'a KernelLock<T>);

impl<T> KernelLock<T> {
    /// An open lock.
    pub const fn new(data: T) -> Self {
        KernelLock {
            next: AtomicU32::new(0),
            serving: AtomicU32::new(0),
            data: UnsafeCell::new(data),
        }
    }

    /// Waits for its turn. Must not be called by the holder.
    #[inline(always)]
    pub fn lock(&self) -> Guard<'_, T> {
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        while self.serving.load(Ordering::Acquire) != ticket {
            crate::hardware::answer();
            core::hint::spin_loop();
        }
        Guard(self)
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: the guard is the ticket being served.
        unsafe { &*self.0.data.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { &mut *self.0.data.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        let now = self.0.serving.load(Ordering::Relaxed);
        self.0.serving.store(now.wrapping_add(1), Ordering::Release);
    }
}
