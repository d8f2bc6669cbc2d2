//! The paths that take no lock, as models that `loom` runs in every order that the memory model
//! allows. Each model is the protocol of one place in the core, named at it, in the same atomic
//! operations with the same orderings; change one and change the other.
//!
//! Every model has a control: the same with one step left out or moved, which loom must find wrong.

use loom::sync::Arc;
use loom::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use loom::sync::atomic::{AtomicBool, AtomicU64};
use loom::thread;

/// Runs a model in every order; true if all of them end well.
fn holds(model: impl Fn() + Sync + Send + 'static) -> bool {
    // What loom finds is a panic of the model; it is told here once, as the test's outcome.
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| loom::model(model)));
    found.is_ok()
}

/// A sequentially consistent load. Loom takes a plain one for an acquire load only, and would let it
/// read what another CPU had long replaced; a read-modify-write that changes nothing reads the last.
fn load(word: &AtomicU64) -> u64 {
    word.fetch_or(0, SeqCst)
}

/// An interrupt to the other CPU: it stays pending until taken, also across an entry into a guest.
#[derive(Default)]
struct Line(AtomicBool);

impl Line {
    fn send(&self) {
        self.0.store(true, SeqCst);
    }
    fn pending(&self) -> bool {
        self.0.load(SeqCst)
    }
}

/// `Notification::bits` and `Vcpu::{running, poked}` (`objects/src/{notification,vcpu}.rs`): a signal
/// or poke while a CPU is on its way into the guest. Entering checks `vcpu_wanted` after `running` was
/// claimed; the signaller sets the word and then looks who runs. If neither saw the other, the guest
/// would run on with the bit unseen.
fn entering_sees_or_is_interrupted(claim_first: bool, look_after: bool) -> bool {
    holds(move || {
        let word = Arc::new(AtomicU64::new(0));
        let running = Arc::new(AtomicU64::new(0));
        let kick = Arc::new(Line::default());
        let signaller = {
            let (word, running, kick) = (word.clone(), running.clone(), kick.clone());
            thread::spawn(move || {
                let before = load(&running);
                word.fetch_or(1, SeqCst);
                let runs = if look_after { load(&running) } else { before };
                if runs != 0 {
                    kick.send();
                }
            })
        };
        let claim = || running.compare_exchange(0, 1, SeqCst, Relaxed).is_ok();
        if claim_first {
            assert!(claim());
        }
        let wanted = load(&word) != 0;
        if !claim_first {
            assert!(claim());
        }
        signaller.join().expect("signaller");
        // In the guest now, unless it was wanted: something must bring it out.
        assert!(
            wanted || kick.pending(),
            "a bit was set and nobody will look"
        );
    })
}

#[test]
fn a_bit_or_poke_before_entry_is_seen_or_interrupts() {
    assert!(entering_sees_or_is_interrupted(true, true));
}

#[test]
fn control_a_claim_after_the_check_loses_the_poke() {
    assert!(!entering_sees_or_is_interrupted(false, true));
}

#[test]
fn control_a_signaller_that_looks_too_early_loses_the_bit() {
    assert!(!entering_sees_or_is_interrupted(true, false));
}

/// `fetch_or` by signallers, `swap(0)` by whoever takes (`notification.rs`): every bit is taken once.
fn bits_are_taken_once(atomically: bool) -> bool {
    holds(move || {
        let word = Arc::new(AtomicU64::new(0));
        let set = |bit: u64| {
            let word = word.clone();
            thread::spawn(move || {
                if atomically {
                    word.fetch_or(bit, SeqCst);
                } else {
                    let old = word.load(SeqCst);
                    word.store(old | bit, SeqCst);
                }
            })
        };
        let (a, b) = (set(1), set(2));
        let first = word.swap(0, SeqCst);
        a.join().expect("one");
        b.join().expect("two");
        let rest = word.swap(0, SeqCst);
        assert_eq!((first | rest, first & rest), (3, 0));
    })
}

#[test]
fn no_notification_bit_is_lost_or_taken_twice() {
    assert!(bits_are_taken_once(true));
}

#[test]
fn control_a_bit_that_is_written_over_is_missed() {
    assert!(!bits_are_taken_once(false));
}

/// `AddressSpace::epoch` (`memory.rs`, `virt/`): a translation goes while a CPU enters a guest. The
/// unmapper clears the entry, advances the epoch, and interrupts who runs (`cpus`); the entering CPU
/// notes that it runs there before it reads the epoch. Either it sees the new epoch and flushes, or
/// the interrupt brings it out before the unmapper goes on to reuse the memory.
fn nobody_keeps_the_old_translation(note_first: bool) -> bool {
    holds(move || {
        let entry = Arc::new(AtomicU64::new(1));
        let epoch = Arc::new(AtomicU64::new(0));
        let cpus = Arc::new(AtomicU64::new(0));
        let unmapper = {
            let (entry, epoch, cpus) = (entry.clone(), epoch.clone(), cpus.clone());
            thread::spawn(move || {
                entry.store(0, Relaxed);
                epoch.fetch_add(1, SeqCst);
                // True: that CPU is interrupted and waited for.
                load(&cpus) != 0
            })
        };
        let note = || cpus.fetch_or(1, SeqCst);
        if note_first {
            note();
        }
        let seen = load(&epoch);
        if !note_first {
            note();
        }
        // Entered under epoch `seen`: cached is what was there before it.
        let stale = seen == 0;
        let interrupted = unmapper.join().expect("unmapper");
        assert!(!stale || interrupted, "an old translation stays in use");
    })
}

#[test]
fn an_entry_during_a_shootdown_flushes_or_is_waited_for() {
    assert!(nobody_keeps_the_old_translation(true));
}

#[test]
fn control_a_cpu_that_notes_itself_too_late_keeps_the_old_translation() {
    assert!(!nobody_keeps_the_old_translation(false));
}

/// `Hardware::flush` (`microvisor/src/hardware.rs`): the request is written before its number is
/// published (release), read after that was seen (acquire), and done before it is acknowledged; the
/// memory is reused only after the acknowledgement. `virt::release` in the model is a plain word.
fn memory_is_reused_only_after_the_answer(acquire: bool, answer_last: bool) -> bool {
    holds(move || {
        let words = Arc::new(AtomicU64::new(0));
        let asked = Arc::new(AtomicU64::new(0));
        let flushed = Arc::new(AtomicU64::new(0));
        let memory = Arc::new(loom::cell::UnsafeCell::new(0u64));
        let other = {
            let (words, asked) = (words.clone(), asked.clone());
            let (flushed, memory) = (flushed.clone(), memory.clone());
            thread::spawn(move || {
                let order = if acquire { Acquire } else { Relaxed };
                let request = asked.load(order);
                if request == 0 {
                    // Not asked yet: it still uses the memory, and answers another time.
                    return false;
                }
                assert_eq!(words.load(Relaxed), 7, "it flushed something else");
                if !answer_last {
                    flushed.store(request, Release);
                }
                // The last use: saving a vCPU's registers into its area.
                memory.with(|place| assert_ne!(place as usize, 0));
                if answer_last {
                    flushed.store(request, Release);
                }
                true
            })
        };
        words.store(7, Relaxed);
        asked.store(1, Release);
        if flushed.load(Acquire) == 1 {
            memory.with_mut(|place| assert_ne!(place as usize, 0));
        }
        other.join().expect("other");
    })
}

#[test]
fn what_a_flush_waits_for_has_let_go() {
    assert!(memory_is_reused_only_after_the_answer(true, true));
}

#[test]
fn control_an_answer_before_the_last_use_is_a_race() {
    assert!(!memory_is_reused_only_after_the_answer(true, false));
}

#[test]
fn control_a_request_read_without_acquire_is_another_one() {
    assert!(!memory_is_reused_only_after_the_answer(false, true));
}

/// `KernelLock` (`microvisor/src/lock.rs`) and a wake-up across CPUs: readying a thread happens under
/// the lock, the interrupt after; the idle CPU checks its queue under the lock and then halts with
/// interrupts enabled atomically, so that an interrupt sent in between ends the halt.
fn a_wake_up_reaches_an_idle_cpu(kick: bool) -> bool {
    holds(move || {
        let lock = Arc::new(loom::sync::Mutex::new(false));
        let line = Arc::new(Line::default());
        let waker = {
            let (lock, line) = (lock.clone(), line.clone());
            thread::spawn(move || {
                *lock.lock().expect("lock") = true;
                if kick {
                    line.send();
                }
            })
        };
        let ready = *lock.lock().expect("lock");
        waker.join().expect("waker");
        assert!(ready || line.pending(), "it sleeps, and a thread is ready");
    })
}

#[test]
fn a_thread_made_ready_elsewhere_wakes_its_cpu() {
    assert!(a_wake_up_reaches_an_idle_cpu(true));
}

#[test]
fn control_without_the_interrupt_the_cpu_sleeps_on() {
    assert!(!a_wake_up_reaches_an_idle_cpu(false));
}

/// `Vcpu::{space, running}` (`objects/src/vcpu.rs`): a vCPU gets new guest tables while another CPU runs
/// it. The one changes its space and its control block, a plain word here; the other looks the space up,
/// claims the vCPU and enters with whatever the control block says.
fn a_run_has_the_tables_of_its_space(hold: bool) -> bool {
    holds(move || {
        let space = Arc::new(AtomicU64::new(0));
        let running = Arc::new(AtomicU64::new(0));
        let tables = Arc::new(loom::cell::UnsafeCell::new(0u64));
        let runner = {
            let (space, running, tables) = (space.clone(), running.clone(), tables.clone());
            thread::spawn(move || {
                let named = space.load(Acquire);
                if named == 0 || running.compare_exchange(0, 2, SeqCst, Relaxed).is_err() {
                    return;
                }
                // SAFETY: loom checks that nobody writes meanwhile; that is what is tested.
                let entered = tables.with(|tables| unsafe { *tables });
                assert_eq!(entered, named, "a guest runs on tables of another space");
                running.store(0, SeqCst);
            })
        };
        if !hold
            || running
                .compare_exchange(0, u64::MAX, SeqCst, Relaxed)
                .is_ok()
        {
            space.store(1, Release);
            // SAFETY: as above.
            tables.with_mut(|tables| unsafe { *tables = 1 });
            if hold {
                running.store(0, SeqCst);
            }
        }
        runner.join().expect("runner");
    })
}

#[test]
fn a_vcpu_is_not_run_while_its_tables_change() {
    assert!(a_run_has_the_tables_of_its_space(true));
}

#[test]
fn control_a_vcpu_that_nobody_holds_runs_on_old_tables() {
    assert!(!a_run_has_the_tables_of_its_space(false));
}
