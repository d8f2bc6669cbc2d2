//! Threads: whose turn it is, what stops them, who is woken.

use microvisor_abi::{Call, FOREVER, Kind, NOW, Status};

use crate::world::World;

#[test]
fn equals_share_a_cpu_by_slices() {
    let mut w = World::new();
    let other = w.thread(510, 0, 15);
    assert_eq!(w.turn(), w.root);
    w.seen.now.set(1001);
    assert_eq!(w.turn(), other);
    w.seen.now.set(2002);
    assert_eq!(w.turn(), w.root);
}

#[test]
fn a_wait_for_what_has_passed_gives_way_to_equals() {
    let mut w = World::new();
    let ram = w.ram();
    w.ok(
        Call::Retype,
        &[ram, Kind::Notification as u64, 0, 600 | 1 << 32],
    );
    w.seen.now.set(10);
    // Alone it goes on.
    assert_eq!(w.call(Call::Wait, &[600, 1]).0, Status::Timeout);
    assert_eq!(w.turn(), w.root);
    let other = w.thread(510, 0, 15);
    assert_eq!(w.turn(), w.root);
    // A look at what there is costs no turn.
    assert_eq!(w.call(Call::Wait, &[600, NOW]).0, Status::Timeout);
    assert_eq!(w.turn(), w.root);
    assert_eq!(w.call(Call::Wait, &[600, 1]).0, Status::Timeout);
    assert_eq!(w.turn(), other);
}

#[test]
fn a_turn_that_something_urgent_interrupts_does_not_begin_anew() {
    let mut w = World::new();
    let urgent = w.thread(520, 0, 20);
    w.ok(Call::ThreadControl, &[520, 1]);
    let other = w.thread(510, 0, 15);
    assert_eq!(w.turn(), w.root);
    for now in [300, 600, 900] {
        w.seen.now.set(now);
        w.ok(Call::ThreadControl, &[520, 0]);
        assert_eq!(w.turn(), urgent);
        w.ok(Call::ThreadControl, &[520, 1]);
        assert_eq!(w.turn(), w.root);
    }
    w.seen.now.set(1001);
    assert_eq!(w.turn(), other);
    w.seen.now.set(2002);
    assert_eq!(w.turn(), w.root);
}

#[test]
fn a_spent_budget_parks_a_thread_until_its_period_ends() {
    let mut w = World::new();
    let ram = w.ram();
    let other = w.thread(510, 0, 20);
    w.ok(Call::ThreadControl, &[510, 1]);
    w.ok(Call::SchedSet, &[511, 7, 0, 20, 100, 1000]);
    w.ok(Call::ThreadControl, &[510, 0]);
    assert_eq!(w.turn(), other);
    w.seen.now.set(100);
    assert_eq!(w.turn(), w.root);
    w.seen.now.set(900);
    w.kernel.timer(0);
    assert_eq!(w.turn(), w.root);
    w.seen.now.set(1000);
    w.kernel.timer(0);
    assert_eq!(w.turn(), other);
    let _ = ram;
}

#[test]
fn a_fault_stops_the_thread_and_tells_its_supervisor() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Notification, 0, 500, 1);
    let other = w.thread(510, 0, 20);
    w.ok(Call::Bind, &[500, 510, 2]);
    assert_eq!(w.turn(), other);
    w.kernel.fault(14, 6, 0xdead);
    assert_eq!(w.turn(), w.root);
    assert_eq!(w.ok(Call::Wait, &[500, 0])[0], 1);
    w.ok(Call::ThreadControl, &[510, 3]);
    let words: [u64; 4] =
        core::array::from_fn(|i| w.kernel.arena.read(w.root.buffer().add(i as u64 * 8)));
    assert_eq!(words, [3, 14, 6, 0xdead]);
}

#[test]
fn a_thread_whose_space_is_gone_does_not_run() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::AddressSpace, 0, 500, 1);
    let other = w.thread(510, 0, 20);
    w.ok(Call::ThreadControl, &[510, 1]);
    w.ok(Call::ThreadConfigure, &[510, 500, 1, 0x1000, 0x2000, 0]);
    w.ok(Call::ThreadControl, &[510, 0]);
    w.ok(Call::Delete, &[0, 500]);
    assert_eq!(w.turn(), other, "picked once");
    assert_eq!(w.turn(), w.root);
}

#[test]
fn a_wake_on_another_cpu_kicks_it() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Notification, 0, 500, 1);
    let other = w.thread(510, 1, 20);
    assert_eq!(w.seen.kicks.borrow().as_slice(), &[1]);
    w.seen.cpu.set(1);
    assert_eq!(w.turn(), other);
    let _ = w.call(Call::Wait, &[500, FOREVER]);
    assert!(w.turn().is_null());
    w.seen.cpu.set(0);
    w.ok(Call::Signal, &[500, 8]);
    assert_eq!(w.seen.kicks.borrow().as_slice(), &[1, 1]);
    w.seen.cpu.set(1);
    assert_eq!(w.turn(), other);
    assert_eq!(
        w.results(other),
        (Status::Ok, [8, 0, 0, 0, 0, 0]).into_with(w.results(other).1)
    );
}

trait IntoWith {
    fn into_with(self, seen: [u64; 6]) -> (Status, [u64; 6]);
}
impl IntoWith for (Status, [u64; 6]) {
    /// Compares only the first result word.
    fn into_with(self, seen: [u64; 6]) -> (Status, [u64; 6]) {
        (
            self.0,
            [self.1[0], seen[1], seen[2], seen[3], seen[4], seen[5]],
        )
    }
}
