//! Claims about the objects, checked by system calls against the real code.

mod world;

use microvisor_abi::cap::Map;
use microvisor_abi::{Call, FOREVER, Kind, MessageInfo, Rights, Status};
use microvisor_objects::Flush;
use world::World;

const RW: u64 = Map::READ | Map::WRITE;

#[test]
fn root_is_given_every_memory_and_its_information() {
    let w = World::new();
    assert_eq!(w.info.memory_count, 2);
    assert_eq!(w.info.memories[1].device, 1);
    assert_eq!(w.info.archive_frames, 1);
    assert_eq!(w.info.cpus, 2);
}

#[test]
fn retype_hands_out_disjoint_zeroed_frames_until_memory_ends() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Memory, 3, 500, 1);
    w.make(500, Kind::Frame, 12, 510, 3);
    let a = [500, Kind::Frame as u64 | 12 << 8, 0, 520 | 1 << 32];
    assert_eq!(w.call(Call::Retype, &a).0, Status::NoMemory);
    // What was made of it is gone: the memory is whole again.
    w.ok(Call::Revoke, &[0, 500]);
    w.make(500, Kind::Frame, 12, 510, 3);
}

#[test]
fn an_occupied_slot_is_refused() {
    let mut w = World::new();
    let ram = w.ram();
    let a = [ram, Kind::Frame as u64 | 12 << 8, 0, 1 | 1 << 32];
    assert_eq!(w.call(Call::Retype, &a).0, Status::SlotOccupied);
}

#[test]
fn copy_never_adds_a_right() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Frame, 12, 500, 1);
    w.ok(Call::Copy, &[500, 0, 501, Rights::READ.0 as u64, 0, 0]);
    w.ok(Call::Copy, &[501, 0, 502, Rights::ALL.0 as u64, 0, 0]);
    assert_eq!(
        w.call(Call::Map, &[502, 2, 0x4000_0000, RW]).0,
        Status::NoRight
    );
    assert_eq!(
        w.call(Call::Map, &[502, 2, 0x4000_0000, Map::READ]).0,
        Status::Ok
    );
}

#[test]
fn revoke_reaches_grandchildren_and_their_mappings() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Frame, 21, 500, 1);
    w.ok(Call::Copy, &[500, 0, 501, 0xff, 0, 0]);
    w.ok(Call::Copy, &[501, 0, 502, 0xff, 0x1000, 12]);
    w.ok(Call::Map, &[502, 2, 0x4000_0000, RW]);
    let root = w.kernel.space_root(w.root).expect("space");
    assert!(w.kernel.arena.translate(root, 0x4000_0000).is_some());
    w.ok(Call::Revoke, &[0, 500]);
    assert!(w.kernel.arena.translate(root, 0x4000_0000).is_none());
    assert_eq!(w.call(Call::Unmap, &[502]).0, Status::InvalidCap);
    let flushed = w.seen.flushes.borrow().contains(&Flush::HostPage {
        root,
        address: 0x4000_0000,
    });
    assert!(flushed);
    // The original is still there.
    w.ok(Call::Map, &[500, 2, 0x4000_0000, RW]);
}

#[test]
fn a_sub_frame_stays_inside_its_parent() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Frame, 21, 500, 1);
    for (offset, order) in [
        (2 << 20, 12),
        (0x800, 12),
        (0, 30),
        (0, 13),
        (u64::MAX - 0xfff, 12),
    ] {
        let status = w.call(Call::Copy, &[500, 0, 501, 0xff, offset, order]).0;
        assert_eq!(status, Status::InvalidArgument, "{offset:#x} {order}");
    }
    w.ok(Call::Copy, &[500, 0, 501, 0xff, (2 << 20) - 4096, 12]);
}

#[test]
fn a_map_without_tables_says_which_level_and_changes_nothing() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::AddressSpace, 1, 500, 1);
    w.make(ram, Kind::Frame, 12, 501, 1);
    for missing in [3u64, 3, 3] {
        let (status, r) = w.call(Call::Map, &[501, 500, 0x1000, RW]);
        assert_eq!((status, r[0]), (Status::NeedTable, missing));
    }
    w.make(ram, Kind::Tables, 2, 510, 1);
    w.ok(Call::Fill, &[500, 510]);
    assert_eq!(
        w.call(Call::Map, &[501, 500, 0x1000, RW]).0,
        Status::NeedTable
    );
    w.make(ram, Kind::Tables, 1, 511, 1);
    w.ok(Call::Fill, &[500, 511]);
    w.ok(Call::Map, &[501, 500, 0x1000, RW]);
    assert_eq!(
        w.call(Call::Map, &[501, 500, 0x3000, RW]).0,
        Status::AlreadyMapped
    );
}

#[test]
fn deleting_donated_tables_ends_the_space() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::AddressSpace, 1, 500, 1);
    w.make(ram, Kind::Tables, 8, 510, 1);
    w.ok(Call::Fill, &[500, 510]);
    assert_eq!(w.call(Call::Fill, &[500, 510]).0, Status::Busy);
    w.ok(Call::Delete, &[0, 510]);
    w.make(ram, Kind::Frame, 12, 501, 1);
    assert_eq!(
        w.call(Call::Map, &[501, 500, 0x1000, RW]).0,
        Status::InvalidCap
    );
}

#[test]
fn no_host_mapping_is_writable_and_executable() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Frame, 12, 500, 1);
    let status = w
        .call(Call::Map, &[500, 2, 0x4000_0000, RW | Map::EXECUTE])
        .0;
    assert_eq!(status, Status::InvalidArgument);
}

#[test]
fn device_memory_makes_only_frames() {
    let mut w = World::new();
    let device = w.info.memories[1].slot as u64;
    let a = [device, Kind::Thread as u64, 0, 500 | 1 << 32];
    assert_eq!(w.call(Call::Retype, &a).0, Status::InvalidArgument);
    w.make(device, Kind::Frame, 12, 500, 1);
}

#[test]
fn a_call_reaches_a_waiting_server_and_its_answer_returns() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Endpoint, 0, 500, 1);
    w.make(ram, Kind::Reply, 0, 501, 1);
    w.ok(Call::Copy, &[500, 0, 502, Rights::CALL.0 as u64, 77, 0]);
    let server = w.thread(510, 0, 20);
    assert_eq!(w.turn(), server);
    let _ = w.call(Call::Receive, &[500, 501, FOREVER]);
    assert_eq!(w.turn(), w.root);
    let info = MessageInfo::new(9, 0, 0).0;
    let _ = w.call(Call::Call, &[502, info, 1, 2, 3, 4]);
    assert_eq!(w.turn(), server);
    assert_eq!(w.results(server), (Status::Ok, [77, info, 1, 2, 3, 4]));
    let _ = w.call(Call::ReplyReceive, &[500 | 501 << 32, 0, 5, 6, 7, 8]);
    assert_eq!(w.turn(), w.root);
    assert_eq!(w.results(w.root), (Status::Ok, [0, 0, 5, 6, 7, 8]));
}

#[test]
fn a_reply_answers_once() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Endpoint, 0, 500, 1);
    w.make(ram, Kind::Reply, 0, 501, 1);
    let server = w.thread(510, 0, 20);
    w.turn();
    let _ = w.call(Call::Receive, &[500, 501, FOREVER]);
    w.turn();
    let _ = w.call(Call::Call, &[500, 0]);
    assert_eq!(w.turn(), server);
    assert_eq!(w.call(Call::Reply, &[501, 0]).0, Status::Ok);
    assert_eq!(w.call(Call::Reply, &[501, 0]).0, Status::NoCaller);
}

#[test]
fn destroying_a_reply_aborts_its_caller() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Endpoint, 0, 500, 1);
    w.make(ram, Kind::Reply, 0, 501, 1);
    let server = w.thread(510, 0, 20);
    w.turn();
    let _ = w.call(Call::Receive, &[500, 501, FOREVER]);
    w.turn();
    let _ = w.call(Call::Call, &[500, 0]);
    assert_eq!(w.turn(), server);
    w.ok(Call::Delete, &[0, 501]);
    assert_eq!(w.results(w.root).0, Status::Aborted);
}

#[test]
fn a_message_carries_a_capability_or_is_refused_whole() {
    use microvisor_abi::message::{RECEIVE_SLOTS, SEND_SLOTS};
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Endpoint, 0, 500, 1);
    w.make(ram, Kind::Reply, 0, 501, 1);
    w.make(ram, Kind::Frame, 12, 502, 1);
    let server = w.thread(510, 0, 20);
    w.turn();
    let into = server.buffer().add(RECEIVE_SLOTS as u64);
    w.kernel.arena.write(into, 500u32);
    let _ = w.call(Call::Receive, &[500, 501, FOREVER]);
    w.turn();
    w.kernel
        .arena
        .write(w.root.buffer().add(SEND_SLOTS as u64), 502u32);
    let info = MessageInfo::new(1, 0, 1).0;
    assert_eq!(w.call(Call::Call, &[500, info]).0, Status::CapsRefused);
    w.kernel.arena.write(into, 600u32);
    let _ = w.call(Call::Call, &[500, info]);
    assert_eq!(w.turn(), server);
    w.ok(Call::Map, &[600, 2, 0x4000_0000, RW]);
    // Without GRANT the same message is refused.
    w.ok(Call::Copy, &[500, 0, 503, Rights::CALL.0 as u64, 5, 0]);
    assert_eq!(w.call(Call::Call, &[503, info]).0, Status::NoRight);
}

#[test]
fn signalled_bits_are_kept_until_taken_and_taken_once() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Notification, 0, 500, 1);
    w.ok(Call::Copy, &[500, 0, 501, Rights::SIGNAL.0 as u64, 4, 0]);
    w.ok(Call::Signal, &[501, 99]);
    w.ok(Call::Signal, &[500, 1]);
    assert_eq!(w.ok(Call::Wait, &[500, 0])[0], 5);
    assert_eq!(w.call(Call::Wait, &[500, 0]).0, Status::Timeout);
    assert_eq!(w.call(Call::Wait, &[501, 0]).0, Status::NoRight);
}

#[test]
fn a_wait_ends_at_its_deadline() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Notification, 0, 500, 1);
    let _ = w.call(Call::Wait, &[500, 100]);
    assert!(w.turn().is_null());
    assert_eq!(w.kernel.deadline(0), 100);
    w.seen.now.set(99);
    w.kernel.timer(0);
    assert!(w.turn().is_null());
    w.seen.now.set(100);
    w.kernel.timer(0);
    assert_eq!(w.turn(), w.root);
    assert_eq!(w.results(w.root).0, Status::Timeout);
}

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
fn time_is_not_handed_out_beyond_the_right_to_it() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::SchedContext, 0, 500, 1);
    w.ok(Call::Copy, &[7, 0, 501, 0xff, 1 | 1 << 32, 10]);
    assert_eq!(
        w.call(Call::SchedSet, &[500, 501, 0, 5, 1, 1]).0,
        Status::NoRight
    );
    assert_eq!(
        w.call(Call::SchedSet, &[500, 501, 1, 11, 1, 1]).0,
        Status::NoRight
    );
    w.ok(Call::SchedSet, &[500, 501, 1, 10, 1, 1]);
    assert_eq!(
        w.call(Call::Copy, &[501, 0, 502, 0xff, 2u64 << 32, 10]).0,
        Status::InvalidArgument
    );
}

#[test]
fn destroying_a_space_of_capabilities_ends_what_it_held_and_frees_its_memory() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Memory, 64, 500, 1);
    w.make(500, Kind::CapSpace, 1, 501, 1);
    w.make(500, Kind::CapSpace, 1, 502, 1);
    w.make(ram, Kind::Endpoint, 0, 503, 1);
    // Each space holds the other's name, a copy of an endpoint, and derived copies outside.
    w.ok(Call::Copy, &[503, 501, 5, 0xff, 0, 0]);
    w.ok(Call::Copy, &[501, 0, 505, 0xff, 0, 0]);
    w.ok(Call::Copy, &[502, 0, 506, 0xff, 0, 0]);
    w.ok(Call::Move, &[0, 501, 506, 7]);
    w.ok(Call::Move, &[0, 502, 505, 8]);
    w.ok(Call::Revoke, &[0, 500]);
    assert_eq!(
        w.call(Call::Copy, &[503, 505, 6, 0xff, 0, 0]).0,
        Status::InvalidCap
    );
    // All of the memory is there again.
    w.make(500, Kind::Frame, 12, 600, 64);
    // And the endpoint's own name has nothing dangling below it.
    w.ok(Call::Delete, &[0, 503]);
}

#[test]
fn what_a_dead_space_gave_away_stays_with_its_parents() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::CapSpace, 1, 501, 1);
    w.make(ram, Kind::Notification, 0, 503, 1);
    w.ok(Call::Copy, &[503, 0, 600, 0xff, 0, 0]);
    w.ok(Call::Copy, &[600, 0, 601, 0xff, 2, 0]);
    w.ok(Call::Move, &[0, 600, 501, 5]);
    w.ok(Call::Delete, &[0, 501]);
    w.ok(Call::Signal, &[601, 0]);
    assert_eq!(w.ok(Call::Wait, &[503, 0])[0], 2);
    w.ok(Call::Revoke, &[0, 503]);
    assert_eq!(w.call(Call::Signal, &[601, 0]).0, Status::InvalidCap);
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

#[test]
fn what_one_call_works_through_is_bounded() {
    let mut w = World::new();
    let ram = w.ram();
    for (kind, most) in [(Kind::Tables, 512), (Kind::CapSpace, 4096)] {
        let a = [ram, kind as u64 | ((most + 1) << 8), 0, 500 | (1 << 32)];
        assert_eq!(w.call(Call::Retype, &a).0, Status::InvalidArgument);
        w.make(ram, kind, most, 500, 1);
        w.ok(Call::Revoke, &[0, ram]);
    }
}

#[test]
fn every_cpu_lets_go_of_a_space_before_its_memory_is_used_again() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::CapSpace, 1, 500, 1);
    w.seen.flushes.borrow_mut().clear();
    w.ok(Call::Delete, &[0, 500]);
    assert_eq!(w.seen.flushes.borrow().as_slice(), &[Flush::Quiesce]);
}

#[test]
fn a_revoke_of_many_mappings_makes_one_shootdown_a_call() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Frame, 21, 500, 1);
    for page in 0..32 {
        w.ok(Call::Copy, &[500, 0, 510 + page, 0xff, page << 12, 12]);
        w.ok(Call::Map, &[510 + page, 2, 0x4000_0000 + (page << 12), RW]);
    }
    w.seen.flushes.borrow_mut().clear();
    w.ok(Call::Revoke, &[0, 500]);
    assert_eq!(w.seen.flushes.borrow().as_slice(), &[Flush::Everything]);
    let root = w.kernel.space_root(w.root).expect("space");
    assert!((0..32).all(|page| {
        w.kernel
            .arena
            .translate(root, 0x4000_0000 + (page << 12))
            .is_none()
    }));
}

#[test]
fn a_guest_page_is_forgotten_by_the_cpus_that_ran_its_space() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::AddressSpace, 1, 500, 1);
    w.make(ram, Kind::Tables, 8, 501, 1);
    w.ok(Call::Fill, &[500, 501]);
    w.make(ram, Kind::Vcpu, 0, 502, 1);
    w.ok(Call::VcpuControl, &[502, 0, 500]);
    w.make(ram, Kind::Frame, 12, 503, 1);
    let unmap = |w: &mut World| {
        w.ok(Call::Map, &[503, 500, 0x1000, RW]);
        w.seen.flushes.borrow_mut().clear();
        w.ok(Call::Unmap, &[503]);
        match w.seen.flushes.borrow().as_slice() {
            &[Flush::GuestSpace { cpus, .. }] => cpus,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(unmap(&mut w), 0);
    let epoch = |w: &World| {
        let (_, run) = w.kernel.arena.vcpu_find(w.root, 502, 5).expect("vcpu");
        run.epoch()
    };
    let before = epoch(&w);
    assert_eq!(unmap(&mut w), 1 << 5);
    assert!(epoch(&w) > before, "and no vCPU enters without a flush");
}

#[test]
fn ports_of_a_vcpu_come_and_go_with_their_capability() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Vcpu, 0, 500, 1);
    w.ok(Call::Copy, &[5, 0, 501, 0xff, 0x3f8 | (8 << 32), 0]);
    w.ok(Call::PortsGrant, &[501, 500]);
    assert_eq!(
        w.call(Call::PortsGrant, &[501, 500]).0,
        Status::AlreadyMapped
    );
    w.ok(Call::Delete, &[0, 501]);
    assert_eq!(
        w.seen.ports.borrow().as_slice(),
        &[(0x3f8, 8, true), (0x3f8, 8, false)]
    );
    assert_eq!(w.seen.flushes.borrow().last(), Some(&Flush::Quiesce));
}

#[test]
fn a_large_capability_space_is_zeroed_in_steps_and_nothing_else_passes_for_zero() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Memory, 3500, 500, 1);
    let retype = |w: &mut World, kind: Kind, size: u64, slot: u64| {
        let a = [500, kind as u64 | (size << 8), 0, slot | (1 << 32)];
        w.call(Call::Retype, &a).0
    };
    // Not zero to begin with.
    w.make(500, Kind::Frame, 12, 600, 16);
    for page in 0..16 {
        w.ok(Call::Map, &[600 + page, 2, 0x4000_0000 + (page << 12), RW]);
    }
    let root = w.kernel.space_root(w.root).expect("space");
    for page in 0..16u64 {
        let at = w.kernel.arena.translate(root, 0x4000_0000 + (page << 12));
        w.kernel.arena.write(at.expect("mapped").0, u64::MAX);
    }
    w.ok(Call::Revoke, &[0, 500]);
    assert_eq!(retype(&mut w, Kind::CapSpace, 1200, 501), Status::Again);
    assert_eq!(retype(&mut w, Kind::CapSpace, 1200, 501), Status::Again);
    assert_eq!(retype(&mut w, Kind::CapSpace, 1200, 501), Status::Ok);
    w.ok(Call::Copy, &[500 + 1, 0, 502, 0xff, 0, 0]);
    w.ok(Call::Revoke, &[0, 500]);
    // Begun, and then something else is made, with another alignment.
    assert_eq!(retype(&mut w, Kind::CapSpace, 1200, 501), Status::Again);
    w.make(500, Kind::Frame, 21, 501, 1);
    w.ok(Call::Map, &[501, 2, 0x4000_0000, RW]);
    for word in (0..2u64 << 20).step_by(8) {
        let at = w.kernel.arena.translate(root, 0x4000_0000 + word);
        assert_eq!(w.kernel.arena.read::<u64>(at.expect("mapped").0), 0);
    }
}

#[test]
fn a_copy_of_all_cpus_has_no_higher_priority_than_it_says() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::SchedContext, 0, 500, 1);
    w.ok(Call::Copy, &[7, 0, 501, 0xff, 0, 10]);
    assert_eq!(
        w.call(Call::SchedSet, &[500, 501, 0, 11, 1, 1]).0,
        Status::NoRight
    );
    w.ok(Call::SchedSet, &[500, 501, 0, 10, 1, 1]);
    w.ok(Call::Copy, &[501, 0, 502, 0xff, 0, 31]);
    assert_eq!(
        w.call(Call::SchedSet, &[500, 502, 0, 11, 1, 1]).0,
        Status::NoRight
    );
}

#[test]
fn lines_that_do_not_exist_cannot_be_named() {
    let mut w = World::new();
    let beyond = [6, 0, 500, 0xff, 16 | (1 << 32), 0];
    assert_eq!(w.call(Call::Copy, &beyond).0, Status::InvalidArgument);
    let all = w.call(Call::InterruptControl, &[6, 16, 0]).0;
    assert_eq!(all, Status::InvalidArgument);
    w.ok(Call::Copy, &[6, 0, 500, 0xff, 15 | (1 << 32), 0]);
}

#[test]
fn a_frame_whose_generations_are_spent_carries_no_object() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Memory, 8, 500, 1);
    let used = |w: &mut World| {
        w.make(500, Kind::Notification, 0, 501, 1);
        let used = w.ok(Call::Inspect, &[0, 500])[2];
        w.ok(Call::Delete, &[0, 501]);
        used
    };
    assert_eq!(used(&mut w), 1);
    w.spend();
    assert_eq!(used(&mut w), 1, "the last object");
    assert_eq!(used(&mut w), 2, "passed over");
    assert_eq!(used(&mut w), 3);
    // They can still be ordinary memory.
    w.make(500, Kind::Frame, 12, 501, 8);
}

#[test]
fn a_vcpu_capability_that_goes_or_moves_is_forgotten_by_every_cpu() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Vcpu, 0, 500, 1);
    let quiesces = |w: &mut World, call, a: &[u64]| {
        w.seen.flushes.borrow_mut().clear();
        w.ok(call, a);
        !w.seen.flushes.borrow().is_empty()
    };
    assert!(!quiesces(&mut w, Call::Copy, &[500, 0, 501, 1, 0, 0]));
    assert!(quiesces(&mut w, Call::Move, &[0, 501, 0, 502]));
    assert!(quiesces(&mut w, Call::Delete, &[0, 502]));
}
