//! Deadlines of calls to whoever may never answer. The core's calls have none, but a thread that waits in one
//! can be cancelled by another: vCPUs' threads note here until when they are willing to wait, and the
//! service thread, which waits for nobody, looks.
//!
//! A thread must not be cancelled once its call is over, when it may wait for something else. So whoever
//! cancels holds the thread's note meanwhile, and the thread's [`Deadlines::end`] waits for that.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// No call is under way.
const NONE: u64 = 0;
/// The thread is just being cancelled.
const HELD: u64 = u64::MAX;

/// The notes of all threads. Times are TSC values, other than 0 and the largest.
#[derive(Debug)]
pub struct Deadlines {
    notes: Box<[AtomicU64]>,
    /// Somebody will look, by the earliest time that is noted.
    watched: AtomicBool,
}

impl Deadlines {
    /// For so many threads.
    pub fn new(threads: usize) -> Deadlines {
        Deadlines {
            notes: (0..threads).map(|_| AtomicU64::new(NONE)).collect(),
            watched: AtomicBool::new(false),
        }
    }

    /// Thread `index` begins a call. True: whoever looks has to be told that there is something to
    /// look at. That is rare: it goes on looking for a while when nothing is under way any more.
    #[must_use]
    pub fn begin(&self, index: usize, deadline: u64) -> bool {
        match self.notes.get(index) {
            Some(note) => {
                note.store(deadline.clamp(NONE + 1, HELD - 1), Ordering::SeqCst);
                !self.watched.swap(true, Ordering::SeqCst)
            }
            None => false,
        }
    }

    /// Its call is over: from here on it is not cancelled. `wait` lets the one run who is just doing that.
    pub fn end(&self, index: usize, mut wait: impl FnMut()) {
        let Some(note) = self.notes.get(index) else {
            return;
        };
        loop {
            let now = note.load(Ordering::SeqCst);
            let freed = now != HELD
                && note
                    .compare_exchange(now, NONE, Ordering::SeqCst, Ordering::SeqCst)
                    .is_ok();
            if freed {
                return;
            }
            wait();
        }
    }

    /// Cancels whose time is over by `now`, again at `again` if that has not ended the call: a thread may
    /// have been between two. Answers when to look next; never, if nothing is under way.
    pub fn look(&self, now: u64, again: u64, mut cancel: impl FnMut(usize)) -> Option<u64> {
        for (index, note) in self.notes.iter().enumerate() {
            let deadline = note.load(Ordering::SeqCst);
            let over = deadline != NONE && deadline <= now;
            let held = over
                && note
                    .compare_exchange(deadline, HELD, Ordering::SeqCst, Ordering::SeqCst)
                    .is_ok();
            if held {
                cancel(index);
                note.store(again.clamp(NONE + 1, HELD - 1), Ordering::SeqCst);
            }
        }
        let next = self.earliest();
        if next.is_none() {
            self.watched.store(false, Ordering::SeqCst);
            // A call that began before that was not told of.
            let next = self.earliest();
            self.watched.fetch_or(next.is_some(), Ordering::SeqCst);
            return next;
        }
        next
    }

    fn earliest(&self) -> Option<u64> {
        let notes = self.notes.iter().map(|note| note.load(Ordering::SeqCst));
        notes.filter(|deadline| *deadline != NONE).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::vec;
    use std::vec::Vec;

    fn cancelled(deadlines: &Deadlines, now: u64) -> (Vec<usize>, Option<u64>) {
        let mut who = Vec::new();
        let next = deadlines.look(now, now + 5, |index| who.push(index));
        (who, next)
    }

    #[test]
    fn only_calls_whose_time_is_over_are_cancelled_and_again_until_they_end() {
        let deadlines = Deadlines::new(3);
        assert!(deadlines.begin(0, 100));
        assert!(!deadlines.begin(2, 50), "somebody looks already");
        assert_eq!(cancelled(&deadlines, 10), (vec![], Some(50)));
        assert_eq!(cancelled(&deadlines, 60), (vec![2], Some(65)));
        assert_eq!(cancelled(&deadlines, 65), (vec![2], Some(70)));
        deadlines.end(2, || panic!("nobody holds it"));
        assert_eq!(cancelled(&deadlines, 99), (vec![], Some(100)));
    }

    #[test]
    fn nobody_looks_when_nothing_is_under_way_and_the_next_call_says_so() {
        let deadlines = Deadlines::new(1);
        assert!(deadlines.begin(0, 100));
        deadlines.end(0, || {});
        assert!(!deadlines.begin(0, 200), "still looked after");
        deadlines.end(0, || {});
        assert_eq!(cancelled(&deadlines, 150), (vec![], None));
        assert!(deadlines.begin(0, 300));
        assert!(!deadlines.begin(7, 1), "there is no such thread");
    }

    /// A thread that makes calls without end is cancelled in calls only.
    #[test]
    fn no_thread_is_cancelled_after_its_call() {
        let deadlines = Arc::new(Deadlines::new(1));
        let calling = Arc::new(AtomicBool::new(false));
        let (shared, flag) = (Arc::clone(&deadlines), Arc::clone(&calling));
        let caller = std::thread::spawn(move || {
            for _ in 0..2_000 {
                flag.store(true, Ordering::SeqCst);
                let _ = shared.begin(0, 1);
                std::thread::yield_now();
                shared.end(0, std::thread::yield_now);
                flag.store(false, Ordering::SeqCst);
            }
        });
        while !caller.is_finished() {
            deadlines.look(2, 2, |_| assert!(calling.load(Ordering::SeqCst)));
        }
        caller.join().unwrap();
    }
}
