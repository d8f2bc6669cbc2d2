//! Two cells: data written once at boot, and the lock around the object graph.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, Ordering};

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

/// A spin lock. A CPU that waits for it answers flush requests meanwhile, because the holder may
/// be waiting for exactly that.
///
/// It is not fair, on purpose: under an emulator or another hypervisor a CPU may be stopped for
/// milliseconds at any instruction. A queue would hand the lock to a stopped CPU and make all
/// others wait for it, again and again; here only a stopped *holder* is waited for, and the
/// sections are short.
pub struct KernelLock<T> {
    held: AtomicBool,
    data: UnsafeCell<T>,
}

// SAFETY: access to `data` is exclusive, by `held`.
unsafe impl<T: Send> Sync for KernelLock<T> {}

/// Exclusive access.
pub struct Guard<'a, T>(&'a KernelLock<T>);

impl<T> KernelLock<T> {
    /// An open lock.
    pub const fn new(data: T) -> Self {
        KernelLock {
            held: AtomicBool::new(false),
            data: UnsafeCell::new(data),
        }
    }

    /// Waits until nobody else holds it. Must not be called by the holder.
    #[inline(always)]
    pub fn lock(&self) -> Guard<'_, T> {
        while self.held.swap(true, Ordering::Acquire) {
            self.wait();
        }
        Guard(self)
    }

    /// Takes the lock if nobody has it. Answers no flush.
    #[inline(always)]
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        // A guard is made only if the lock was taken: dropping one gives it back.
        (!self.held.swap(true, Ordering::Acquire)).then(|| Guard(self))
    }

    #[cold]
    #[inline(never)]
    fn wait(&self) {
        while self.held.load(Ordering::Relaxed) {
            crate::hardware::answer();
            core::hint::spin_loop();
        }
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: the guard is the holder's.
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
        self.0.held.store(false, Ordering::Release);
    }
}
