//! A mutex shared by the threads of one component. A thread that does not get it blocks, so that
//! the holder can run even on the same CPU and with a lower priority.
//!
//! A waiter writes the slot of its own notification (the one it sleeps on) into the mutex, tries
//! again, and waits; whoever unlocks signals one waiter. Notifications are sticky, and both sides
//! write before they look, so no wake-up is lost. A waiter may be woken without need and then looks
//! again.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use idl::Cap;
use idl::cap::Notification;
use microvisor_abi::FOREVER;

use crate::caps::NotificationCap;
use crate::local;

/// Tries before a thread blocks: about as long as a short section takes on another CPU.
const SPINS: u32 = 100;
/// Threads that can block on one mutex at a time; more of them spin.
const WAITERS: usize = 8;

/// Mutual exclusion; not reentrant.
pub struct Mutex<T> {
    locked: AtomicBool,
    /// Slots in `waiters` that are in use, at most: lets the unlocker look at none.
    waiting: AtomicU32,
    /// Slots of the notifications of threads that wait; 0 is free.
    waiters: [AtomicU32; WAITERS],
    value: UnsafeCell<T>,
}

// SAFETY: the value is only reached through a guard, of which there is one at a time.
unsafe impl<T: Send> Sync for Mutex<T> {}

impl<T> Mutex<T> {
    /// An unlocked mutex.
    pub const fn new(value: T) -> Self {
        Mutex {
            locked: AtomicBool::new(false),
            waiting: AtomicU32::new(0),
            waiters: [const { AtomicU32::new(0) }; WAITERS],
            value: UnsafeCell::new(value),
        }
    }

    /// Waits until the value is free.
    #[inline]
    pub fn lock(&self) -> Guard<'_, T> {
        match self.try_lock() {
            Some(guard) => guard,
            None => self.lock_contended(),
        }
    }

    #[cold]
    fn lock_contended(&self) -> Guard<'_, T> {
        for _ in 0..SPINS {
            core::hint::spin_loop();
            if let Some(guard) = self.try_lock() {
                return guard;
            }
        }
        // A thread that has never slept has no notification; making one here could need this very
        // lock. Threads get theirs when they start.
        let own = local::sleep_slot();
        loop {
            let place = self.enqueue(own);
            if let Some(guard) = self.try_lock() {
                if let Some(place) = place {
                    self.dequeue(place, own);
                }
                return guard;
            }
            match place {
                Some(_) => {
                    let _ = Cap::<Notification>::new(own).wait(FOREVER);
                }
                None => core::hint::spin_loop(),
            }
            if let Some(place) = place {
                // Woken by another bit than the unlocker's: no longer waiting there.
                self.dequeue(place, own);
            }
        }
    }

    fn enqueue(&self, own: u32) -> Option<usize> {
        if own == 0 {
            return None;
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let free = |waiter: &AtomicU32| {
            waiter
                .compare_exchange(0, own, Ordering::SeqCst, Ordering::Relaxed)
                .is_ok()
        };
        let place = self.waiters.iter().position(free);
        if place.is_none() {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        place
    }

    /// Takes the own entry back, unless an unlocker took it to signal.
    fn dequeue(&self, place: usize, own: u32) {
        if let Some(waiter) = self.waiters.get(place)
            && waiter
                .compare_exchange(own, 0, Ordering::SeqCst, Ordering::Relaxed)
                .is_ok()
        {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[cold]
    fn wake_one(&self) {
        for waiter in &self.waiters {
            let slot = waiter.swap(0, Ordering::SeqCst);
            if slot != 0 {
                self.waiting.fetch_sub(1, Ordering::SeqCst);
                let _ = Cap::<Notification>::new(slot).signal(1);
                return;
            }
        }
    }

    /// The value, if it is free right now.
    #[inline]
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        self.locked
            .compare_exchange(false, true, Ordering::SeqCst, Ordering::Relaxed)
            .ok()
            .map(|_| Guard { mutex: self })
    }
}

/// The locked value.
pub struct Guard<'a, T> {
    mutex: &'a Mutex<T>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this guard is the only one.
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this guard is the only one, and it is borrowed mutably.
        unsafe { &mut *self.mutex.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.mutex.locked.store(false, Ordering::SeqCst);
        if self.mutex.waiting.load(Ordering::SeqCst) != 0 {
            self.mutex.wake_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Mutex;

    #[test]
    fn a_locked_value_is_not_had_twice() {
        let mutex = Mutex::new(1);
        let guard = mutex.try_lock();
        assert!(guard.is_some() && mutex.try_lock().is_none());
        drop(guard);
        *mutex.lock() += 1;
        assert_eq!(*mutex.lock(), 2);
    }

    #[test]
    fn an_entry_taken_back_is_not_signalled() {
        let mutex = Mutex::new(());
        let place = mutex.enqueue(7);
        assert_eq!(place, Some(0));
        assert_eq!(mutex.enqueue(8), Some(1));
        mutex.dequeue(0, 7);
        assert_eq!(mutex.waiting.load(super::Ordering::SeqCst), 1);
        mutex.dequeue(0, 7);
        mutex.wake_one();
        assert_eq!(mutex.waiting.load(super::Ordering::SeqCst), 0);
    }
}
