//! Claims about supervision: replacing the server behind an endpoint, what its callers hear and who
//! may do it; looking at what a space holds; what is known of a dead thread.

mod world;

use microvisor_abi::cap::{Role, Slot};
use microvisor_abi::{Call, FOREVER, Kind, Rights, Status};
use microvisor_objects::{Ref, Thread};
use world::World;

/// Slots of root: the endpoint, the memory of one server, and what is made of it.
const ENDPOINT: u64 = 500;
const MEMORY: u64 = 501;
const REPLY: u64 = 502;
const SERVER: u64 = 510;
const CLIENT: u64 = 520;
const SECOND: u64 = 530;

const WORDS: [u64; 6] = [ENDPOINT, 0, 7, 8, 9, 10];

fn replaced(w: &mut World) -> Status {
    w.call(Call::Bind, &[ENDPOINT, 0, Role::Server as u64]).0
}

/// An endpoint, and a reply object of a server's own memory.
fn wired() -> World {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Endpoint, 0, ENDPOINT, 1);
    w.make(ram, Kind::Memory, 8, MEMORY, 1);
    w.make(MEMORY, Kind::Reply, 0, REPLY, 1);
    w
}

/// Lets `thread` make a call in its turn; it outranks root, and root is current again afterwards.
fn blocks(w: &mut World, thread: Ref<Thread>, call: Call, a: &[u64]) {
    assert_eq!(w.turn(), thread);
    let _ = w.call(call, a);
    w.turn();
}

/// The server took a client's message and has not answered.
fn serving(w: &mut World) -> (Ref<Thread>, Ref<Thread>) {
    let server = w.thread(SERVER, 0, 20);
    blocks(w, server, Call::Receive, &[ENDPOINT, REPLY, FOREVER]);
    let client = w.thread(CLIENT, 0, 21);
    assert_eq!(w.turn(), client);
    let _ = w.call(Call::Call, &WORDS);
    assert_eq!(w.turn(), server);
    w.ok(Call::ThreadControl, &[SERVER, 1]);
    assert_eq!(w.turn(), w.root);
    (server, client)
}

#[test]
fn a_caller_of_a_replaced_server_hears_restarted_and_its_next_call_is_served() {
    let mut w = wired();
    let (_, client) = serving(&mut w);
    assert_eq!(replaced(&mut w), Status::Ok);
    w.ok(Call::Revoke, &[0, MEMORY]);
    assert_eq!(w.results(client).0, Status::Restarted);
    // The new server is another thread with another reply object, behind the same endpoint.
    w.make(MEMORY, Kind::Reply, 0, REPLY, 1);
    blocks(&mut w, client, Call::Call, &WORDS);
    let server = w.thread(SECOND, 0, 20);
    assert_eq!(w.turn(), server);
    let (status, seen) = w.call(Call::Receive, &[ENDPOINT, REPLY, FOREVER]);
    assert_eq!((status, &seen[2..]), (Status::Ok, &WORDS[2..]));
    assert_eq!(w.call(Call::Reply, &[REPLY, 0, 1, 2, 3, 4]).0, Status::Ok);
    assert_eq!(w.turn(), client);
    assert_eq!(w.results(client).0, Status::Ok);
}

#[test]
fn a_server_that_only_drops_its_caller_was_not_replaced() {
    let mut w = wired();
    let (_, client) = serving(&mut w);
    w.ok(Call::Delete, &[0, REPLY]);
    assert_eq!(w.results(client).0, Status::Aborted);
}

#[test]
fn an_earlier_replacement_is_not_this_callers_business() {
    let mut w = wired();
    assert_eq!(replaced(&mut w), Status::Ok);
    let (_, client) = serving(&mut w);
    w.ok(Call::Delete, &[0, REPLY]);
    assert_eq!(w.results(client).0, Status::Aborted);
}

#[test]
fn a_caller_whose_endpoint_is_gone_too_cannot_try_again() {
    let mut w = wired();
    let (_, client) = serving(&mut w);
    assert_eq!(replaced(&mut w), Status::Ok);
    w.ok(Call::Delete, &[0, ENDPOINT]);
    w.ok(Call::Revoke, &[0, MEMORY]);
    assert_eq!(w.results(client).0, Status::Aborted);
}

#[test]
fn a_queued_caller_is_served_by_the_new_server() {
    let mut w = wired();
    let client = w.thread(CLIENT, 0, 21);
    blocks(&mut w, client, Call::Call, &WORDS);
    assert_eq!(replaced(&mut w), Status::Ok);
    w.ok(Call::Revoke, &[0, MEMORY]);
    w.make(MEMORY, Kind::Reply, 0, REPLY, 1);
    let (status, seen) = w.call(Call::Receive, &[ENDPOINT, REPLY, FOREVER]);
    assert_eq!((status, &seen[2..]), (Status::Ok, &WORDS[2..]));
    // Taken after the replacement: this caller belongs to the new server.
    w.ok(Call::Delete, &[0, REPLY]);
    assert_eq!(w.results(client).0, Status::Aborted);
}

#[test]
fn a_queued_caller_that_was_taken_before_the_replacement_hears_it() {
    let mut w = wired();
    let client = w.thread(CLIENT, 0, 21);
    blocks(&mut w, client, Call::Call, &WORDS);
    w.ok(Call::Receive, &[ENDPOINT, REPLY, FOREVER]);
    assert_eq!(replaced(&mut w), Status::Ok);
    w.ok(Call::Delete, &[0, REPLY]);
    assert_eq!(w.results(client).0, Status::Restarted);
}

#[test]
fn a_server_killed_while_it_receives_leaves_the_endpoint_usable() {
    let mut w = wired();
    let server = w.thread(SERVER, 0, 20);
    blocks(&mut w, server, Call::Receive, &[ENDPOINT, REPLY, FOREVER]);
    assert_eq!(replaced(&mut w), Status::Ok);
    // The reply object first, as the revocation of its memory does it: the receiver leaves.
    w.ok(Call::Revoke, &[0, MEMORY]);
    w.ok(Call::ThreadControl, &[SERVER, 1]);
    let client = w.thread(CLIENT, 0, 21);
    blocks(&mut w, client, Call::Call, &WORDS);
    w.make(MEMORY, Kind::Reply, 0, REPLY, 1);
    assert_eq!(
        w.call(Call::Receive, &[ENDPOINT, REPLY, FOREVER]).0,
        Status::Ok
    );
}

#[test]
fn only_a_right_to_manage_replaces_a_server_and_nothing_takes_its_place() {
    let mut w = wired();
    let all = Rights::CALL.or(Rights::RECEIVE).or(Rights::GRANT);
    w.ok(Call::Copy, &[ENDPOINT, 0, 600, all.0.into(), 0, 0]);
    let role = Role::Server as u64;
    assert_eq!(w.call(Call::Bind, &[600, 0, role]).0, Status::NoRight);
    assert_eq!(
        w.call(Call::Bind, &[ENDPOINT, REPLY, role]).0,
        Status::InvalidArgument
    );
    assert_eq!(w.call(Call::Bind, &[REPLY, 0, role]).0, Status::WrongKind);
}

fn inspect(w: &mut World, space: u64, slot: u64) -> Slot {
    let [what, number, more, ..] = w.ok(Call::Inspect, &[space, slot]);
    Slot::from_words(what, number, more).expect("a kind")
}

#[test]
fn inspect_tells_kind_rights_and_badge_of_a_space_that_one_holds() {
    let mut w = wired();
    let ram = w.ram();
    w.make(ram, Kind::CapSpace, 1, 600, 1);
    w.ok(
        Call::Copy,
        &[ENDPOINT, 600, 20, Rights::CALL.0.into(), 77, 0],
    );
    let seen = inspect(&mut w, 600, 20);
    assert_eq!(
        (seen.kind, seen.rights, seen.number),
        (Kind::Endpoint, Rights::CALL, 77)
    );
    assert_eq!(inspect(&mut w, 600, 21).kind, Kind::Null);
    // A space of one frame has 63 slots, number 0 included.
    assert_eq!(w.call(Call::Inspect, &[600, 63]).0, Status::InvalidCap);
    assert_eq!(w.call(Call::Inspect, &[0, 0]).0, Status::InvalidCap);
    assert_eq!(w.call(Call::Inspect, &[ENDPOINT, 1]).0, Status::WrongKind);
    w.ok(Call::Copy, &[600, 0, 601, 0, 0, 0]);
    assert_eq!(w.call(Call::Inspect, &[601, 20]).0, Status::NoRight);
}

#[test]
fn inspect_counts_what_a_memory_handed_out_and_got_back() {
    let mut w = wired();
    assert_eq!(inspect(&mut w, 0, MEMORY).more, 1);
    w.make(MEMORY, Kind::Frame, 12, 600, 4);
    let seen = inspect(&mut w, 0, MEMORY);
    assert_eq!((seen.number, seen.more), (8, 5));
    w.ok(Call::Revoke, &[0, MEMORY]);
    assert_eq!(inspect(&mut w, 0, MEMORY).more, 0);
}

#[test]
fn a_report_names_the_capability_that_was_refused_last() {
    use microvisor_abi::thread::Report;
    let mut w = wired();
    let thread = w.thread(CLIENT, 0, 21);
    assert_eq!(w.turn(), thread);
    assert_eq!(w.call(Call::Signal, &[REPLY, 5]).0, Status::WrongKind);
    // Not a matter of capabilities.
    assert_eq!(
        w.call(Call::Bind, &[ENDPOINT, 1, Role::Server as u64]).0,
        Status::InvalidArgument
    );
    w.kernel.fault(14, 6, 0xdead_b000);
    assert_eq!(w.turn(), w.root);
    w.ok(Call::ThreadControl, &[CLIENT, 3]);
    let bytes: Vec<u8> = (0..Report::SIZE as u64 / 8)
        .flat_map(|index| {
            let word: u64 = w.kernel.arena.read(w.root.buffer().add(index * 8));
            word.to_le_bytes()
        })
        .collect();
    let report = Report::from_bytes(&bytes).expect("a report");
    assert_eq!((report.vector, report.address), (14, 0xdead_b000));
    let refused = Call::Signal as u64 | (Status::WrongKind as u64) << 32;
    assert_eq!(report.refused, [refused, REPLY, 5]);
}
