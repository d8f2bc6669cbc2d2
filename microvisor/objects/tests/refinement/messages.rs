//! Messages that carry several capabilities, receivers with deadlines and bits, and endpoints that go
//! with many waiting, by short stories of their own. Called by `directed::stories`.

use super::directed::{Story, Told};
use super::driver::{Checked, Pair};
use microvisor_abi::cap::Role;
use microvisor_abi::message::{MessageInfo, PAYLOAD_MAX, RECEIVE_SLOTS, SEND_SLOTS};
use microvisor_abi::thread::Op;
use microvisor_abi::{Call, FOREVER, Kind, NOW, Status};
use microvisor_spec::Event;
use std::vec;

const ENDPOINT: u64 = 500;
const REPLY: u64 = 501;
const NOTE: u64 = 502;
/// The thread that receives, on CPU 1.
const SERVER: u64 = 510;

fn with_server() -> Checked<Story> {
    let mut s = Story::begin(2560)?;
    s.make(Kind::Endpoint, 0, ENDPOINT)?;
    s.make(Kind::Reply, 0, REPLY)?;
    s.make(Kind::Notification, 0, NOTE)?;
    s.thread(SERVER, 15)?;
    s.look(1)?;
    Ok(s)
}

/// All of a message's capabilities arrive, or none and its sender hears why.
fn several_capabilities_at_once() -> Checked<Pair> {
    let mut s = with_server()?;
    let (root, server) = (s.me(0)?, s.me(1)?);
    let of = |count: usize| MessageInfo::new(1, 16, count).0;
    // 519 is memory, 3 is occupied, 599 and 600 are empty, 70,000 is beyond the space.
    s.make(Kind::Memory, 1, 519)?;
    let sent: [([u32; 4], [u32; 4], Status); 11] = [
        ([500, 501, 502, 510], [600, 601, 602, 603], Status::Ok),
        (
            [500, 501, 502, 510],
            [610, 611, 610, 613],
            Status::CapsRefused,
        ),
        (
            [500, 501, 502, 510],
            [610, 611, 612, 610],
            Status::CapsRefused,
        ),
        (
            [500, 501, 502, 510],
            [610, 611, 3, 613],
            Status::CapsRefused,
        ),
        (
            [500, 501, 502, 510],
            [610, 611, 612, 70_000],
            Status::CapsRefused,
        ),
        (
            [500, 501, 502, 599],
            [610, 611, 612, 613],
            Status::InvalidCap,
        ),
        (
            [500, 70_000, 502, 510],
            [610, 611, 612, 613],
            Status::InvalidCap,
        ),
        (
            [500, 501, 519, 510],
            [610, 611, 612, 613],
            Status::WrongKind,
        ),
        // Both did something wrong: the sender's comes first.
        ([500, 501, 519, 510], [610, 611, 3, 613], Status::WrongKind),
        ([500, 500, 500, 500], [613, 612, 611, 610], Status::Ok),
        ([600, 601, 602, 603], [0, 0, 0, 0], Status::CapsRefused),
    ];
    for (what, to, want) in sent {
        s.pair.write_buffer(root, SEND_SLOTS, &what);
        s.pair.write_buffer(server, RECEIVE_SLOTS, &to);
        s.blocks(1, Call::Receive, &[ENDPOINT, REPLY, FOREVER])?;
        if want == Status::Ok {
            s.blocks(0, Call::Call, &[ENDPOINT, of(4)])?;
            s.gets(1, Call::Reply, &[REPLY, 0], Status::Ok)?;
            s.look(0)?;
        } else {
            s.gets(0, Call::Call, &[ENDPOINT, of(4)], want)?;
            s.ok(Call::ThreadControl, &[SERVER, Op::Cancel as u64])?;
        }
        // The same for a sender who was there first.
        let again = to.map(|slot| {
            if (600..700).contains(&slot) {
                slot + 20
            } else {
                slot
            }
        });
        s.pair.write_buffer(server, RECEIVE_SLOTS, &again);
        s.blocks(0, Call::Call, &[ENDPOINT, of(4)])?;
        if want == Status::Ok {
            s.gets(1, Call::Receive, &[ENDPOINT, REPLY, FOREVER], Status::Ok)?;
            s.gets(1, Call::Reply, &[REPLY, of(0)], Status::Ok)?;
        } else {
            s.blocks(1, Call::Receive, &[ENDPOINT, REPLY, FOREVER])?;
            s.ok(Call::ThreadControl, &[SERVER, Op::Cancel as u64])?;
        }
        s.look(0)?;
    }
    Ok(s.pair)
}

/// Whose answer cannot be given hears so at once, and the server goes on.
fn an_answer_that_cannot_be_given() -> Checked<Pair> {
    let mut s = with_server()?;
    let (root, server) = (s.me(0)?, s.me(1)?);
    s.pair.write_buffer(server, SEND_SLOTS, &[599]);
    s.pair.write_buffer(root, RECEIVE_SLOTS, &[600]);
    s.blocks(1, Call::Receive, &[ENDPOINT, REPLY, FOREVER])?;
    for info in [u64::MAX, MessageInfo::new(1, 0, 1).0, 0] {
        s.blocks(0, Call::Call, &[ENDPOINT, 0])?;
        s.look(1)?;
        s.blocks(1, Call::ReplyReceive, &[ENDPOINT | REPLY << 32, info])?;
        s.look(0)?;
    }
    Ok(s.pair)
}

/// As much as a message says arrives of what is in its sender's buffer, and of no other; so does the
/// answer, whoever came first.
fn as_many_bytes_as_it_says() -> Checked<Pair> {
    let mut s = with_server()?;
    let (root, server) = (s.me(0)?, s.me(1)?);
    for (round, bytes) in [0, 1, 7, 8, 9, 16, PAYLOAD_MAX - 1, PAYLOAD_MAX]
        .into_iter()
        .enumerate()
    {
        for (thread, of) in [(root, 0x1111), (server, 0x2222)] {
            let words = vec![of * (round as u32 + 1); PAYLOAD_MAX / 4];
            s.pair.write_buffer(thread, 0, &words);
        }
        let info = MessageInfo::new(1, bytes, 0).0;
        let first = round % 2 == 0;
        if first {
            s.blocks(1, Call::Receive, &[ENDPOINT, REPLY, FOREVER])?;
        }
        s.blocks(0, Call::Call, &[ENDPOINT, info])?;
        s.look(1)?;
        if !first {
            s.gets(1, Call::Receive, &[ENDPOINT, REPLY, FOREVER], Status::Ok)?;
        }
        let answer = MessageInfo::new(1, PAYLOAD_MAX - bytes, 0).0;
        s.pair
            .write_buffer(server, 0, &vec![0x3333; PAYLOAD_MAX / 4]);
        s.gets(1, Call::Reply, &[REPLY, answer], Status::Ok)?;
        s.look(0)?;
    }
    Ok(s.pair)
}

/// A client and its server, one after the other: from the second time on by the short path.
fn a_call_and_its_answer() -> Checked<Pair> {
    let mut s = with_server()?;
    s.thread(520, 10)?;
    s.thread(522, 5)?;
    s.look(1)?;
    s.blocks(1, Call::Receive, &[ENDPOINT, REPLY, FOREVER])?;
    for word in 0..3 {
        s.blocks(1, Call::Call, &[ENDPOINT, 0, word])?;
        s.blocks(1, Call::ReplyReceive, &[ENDPOINT | REPLY << 32, 0, word])?;
    }
    // Whoever called before the server was back is answered, and nobody calls then.
    s.blocks(1, Call::Call, &[ENDPOINT, 0])?;
    s.gets(1, Call::Reply, &[REPLY, 0], Status::Ok)?;
    s.blocks(1, Call::Wait, &[NOTE, FOREVER])?;
    s.blocks(1, Call::Call, &[ENDPOINT, 0])?;
    s.ok(Call::Signal, &[NOTE, 1])?;
    s.look(1)?;
    let again = [ENDPOINT | REPLY << 32, 0];
    s.gets(1, Call::ReplyReceive, &again, Status::Ok)?;
    s.blocks(1, Call::ReplyReceive, &again)?;
    // One more caller while the server is busy: its turn comes next.
    s.blocks(1, Call::Call, &[ENDPOINT, 0])?;
    s.blocks(0, Call::Call, &[ENDPOINT, 7])?;
    s.gets(
        1,
        Call::ReplyReceive,
        &[ENDPOINT | REPLY << 32, 0],
        Status::Ok,
    )?;
    s.look(1)?;
    Ok(s.pair)
}

/// Whoever has both bits and callers hears of them in turn; without a reply object, of bits only.
fn bits_and_callers_in_turn() -> Checked<Pair> {
    let mut s = with_server()?;
    s.gets(1, Call::Receive, &[ENDPOINT, 0, FOREVER], Status::NotBound)?;
    s.ok(Call::Bind, &[NOTE, SERVER, Role::Messages as u64])?;
    s.blocks(1, Call::Receive, &[ENDPOINT, 0, FOREVER])?;
    s.ok(Call::Signal, &[NOTE, 1])?;
    s.look(1)?;
    // Three callers, each with time enough to call once.
    for client in [520, 522, 524] {
        s.thread(client, 20)?;
        s.look(1)?;
        s.blocks(1, Call::Call, &[ENDPOINT, 0, client])?;
        s.ok(Call::SchedSet, &[client + 1, 7, 1, 10, 1, 1])?;
    }
    for bit in 1..8 {
        s.ok(Call::Signal, &[NOTE, 1 << bit])?;
        s.gets(1, Call::Receive, &[ENDPOINT, REPLY, FOREVER], Status::Ok)?;
        s.on(1, Call::Reply, &[REPLY, 0])?;
    }
    Ok(s.pair)
}

/// A receiver's deadline ends with the message that comes before it, and not a tick too early.
fn receivers_with_deadlines() -> Checked<Pair> {
    let mut s = with_server()?;
    s.ok(Call::Bind, &[NOTE, SERVER, Role::Messages as u64])?;
    s.pair.event(Event::Time { now: 1000 })?;
    let receive = |deadline: u64| [ENDPOINT, REPLY, deadline];
    for past in [NOW, 999, 1000] {
        s.gets(1, Call::Receive, &receive(past), Status::Timeout)?;
        s.gets(1, Call::Receive, &[ENDPOINT, 0, past], Status::Timeout)?;
        s.gets(1, Call::Wait, &[NOTE, past], Status::Timeout)?;
    }
    // A message, bits, a deadline, one more message; each by itself.
    s.blocks(1, Call::Receive, &receive(1001))?;
    s.blocks(0, Call::Call, &[ENDPOINT, 0])?;
    s.look(1)?;
    s.gets(1, Call::Reply, &[REPLY, 0], Status::Ok)?;
    s.look(0)?;
    s.blocks(1, Call::Receive, &receive(1001))?;
    s.ok(Call::Signal, &[NOTE, 1])?;
    s.blocks(1, Call::Receive, &[ENDPOINT, 0, 1001])?;
    s.ok(Call::Signal, &[NOTE, 1])?;
    s.blocks(1, Call::Wait, &[NOTE, 1001])?;
    s.ok(Call::Signal, &[NOTE, 1])?;
    for args in [receive(1001), [ENDPOINT, 0, 1002]] {
        s.blocks(1, Call::Receive, &args)?;
        s.pair.event(Event::Timer { cpu: 1 })?;
        s.pair.event(Event::Time { now: args[2] })?;
        s.pair.event(Event::Timer { cpu: 1 })?;
        s.me(1)?;
    }
    s.blocks(1, Call::Wait, &[NOTE, 1003])?;
    s.pair.event(Event::Timer { cpu: 1 })?;
    s.pair.event(Event::Time { now: 1003 })?;
    s.pair.event(Event::Timer { cpu: 1 })?;
    s.me(1)?;
    Ok(s.pair)
}

/// What more wait for than one step wakes goes: all hear of it, in more than one step.
fn many_wait_for_what_goes() -> Checked<Pair> {
    let calls: [(Call, [u64; 2]); 2] = [(Call::Call, [ENDPOINT, 0]), (Call::Wait, [NOTE, FOREVER])];
    let mut s = with_server()?;
    s.ok(Call::ThreadControl, &[SERVER, Op::Suspend as u64])?;
    s.pair.blind = true;
    for thread in 0..34 {
        s.thread(600 + 2 * thread, 15)?;
    }
    s.pair.open_eyes()?;
    s.look(1)?;
    for (call, args) in calls {
        for _ in 0..34 {
            s.blocks(1, call, &args)?;
        }
        s.gets(0, Call::Delete, &[0, args[0]], Status::Again)?;
        s.ok(Call::Delete, &[0, args[0]])?;
        s.look(1)?;
    }
    Ok(s.pair)
}

/// These, by name.
pub const STORIES: &[(&str, Told)] = &[
    ("several_capabilities_at_once", several_capabilities_at_once),
    (
        "an_answer_that_cannot_be_given",
        an_answer_that_cannot_be_given,
    ),
    ("as_many_bytes_as_it_says", as_many_bytes_as_it_says),
    ("a_call_and_its_answer", a_call_and_its_answer),
    ("bits_and_callers_in_turn", bits_and_callers_in_turn),
    ("receivers_with_deadlines", receivers_with_deadlines),
    ("many_wait_for_what_goes", many_wait_for_what_goes),
];
