//! Roles that misuse messages: `hostile-postcard` sends what no client would send to every service
//! it can reach, `hostile-mute` answers nobody, `hostile-flood` signals without end.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use idl::console::{ClientKind, ConsoleClient, ConsoleError};
use sdk::abi::boot::BUFFER_ADDRESS;
use sdk::abi::message::{CAPS_MAX, PAYLOAD_MAX, RECEIVE_SLOTS, SEND_SLOTS};
use sdk::abi::{Call, MessageInfo};
use sdk::memory::READ_WRITE;
use sdk::prelude::*;

use crate::claim::{Outcome, claim};
use crate::raw::{self, Random};
use crate::wires::LenderClient;

/// Messages to each service.
const MESSAGES: u64 = 1500;
/// Methods that would end this component: `failed` and `exit` of root's supervisor interface.
const FINAL: [u32; 2] = [3, 4];

/// Plays `hostile-postcard`.
pub fn malformed(env: &Env) {
    claim(
        "a_component_cannot_take_the_operators_input",
        calls_itself_a_guest(env),
    );
    for (name, interface, service) in [
        (
            "root_survives_malformed_messages",
            "supervisor",
            Service::Root,
        ),
        (
            "root_survives_malformed_reports_of_builders",
            "builder",
            Service::Root,
        ),
        (
            "the_console_survives_malformed_messages",
            "console",
            Service::Console,
        ),
        (
            "a_component_survives_malformed_messages",
            "lender",
            Service::Lender,
        ),
    ] {
        let endpoint = env.transport(interface).0;
        claim(name, send_nonsense(env, endpoint, service));
    }
    claim(
        "a_client_cannot_take_all_places_at_the_console",
        places(env),
    );
    claim("damaged_rings_damage_nobody_else", rings(env));
    log::info!("role done");
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Service {
    Root,
    Console,
    Lender,
}

fn failed(what: &'static str) -> impl Fn(Status) -> String {
    move |status| format!("{what}: {status:?}")
}

/// Writes into this thread's message buffer.
fn put(offset: usize, bytes: impl Iterator<Item = u8>) {
    for (index, byte) in bytes.enumerate().take(4096 - offset) {
        // SAFETY: inside the first thread's message buffer, which is always mapped, and to which
        // the sdk keeps no reference between its calls.
        unsafe { ((BUFFER_ADDRESS as usize + offset + index) as *mut u8).write_volatile(byte) };
    }
}

/// Random methods, lengths and bytes, with capabilities of every sort and places for answers that
/// are taken, then an honest question.
fn send_nonsense(env: &Env, endpoint: Cap<cap::Endpoint>, service: Service) -> Outcome {
    let mut random = Random(service as u64 + 100);
    let mut answered = 0u64;
    let note: Cap<cap::Notification> = env.memory().retype(0).map_err(failed("make"))?;
    let frame: Cap<cap::Frame> = env.memory().retype(12).map_err(failed("make"))?;
    for _ in 0..MESSAGES {
        let method = match random.below(4) {
            0 => random.below(8),
            1 => random.below(1 << 16),
            _ => random.below(4),
        } as u32;
        let mut length = match random.below(4) {
            0 => 0,
            1 => random.below(40),
            2 => random.below(PAYLOAD_MAX as u64 + 1),
            _ => random.below(0x2000),
        } as usize;
        let inline = match random.below(3) {
            0 => 0,
            1 => random.below(33),
            _ => random.below(0x1_0000),
        } as u32;
        let mut dense = random.below(3) != 0;
        if service == Service::Root && FINAL.contains(&method) {
            if method == 4 {
                continue;
            }
            // A text that is longer than its bound, so that it is no report.
            (length, dense) = (300, true);
        }
        let seed = random.next();
        put(
            0,
            (0..length.min(PAYLOAD_MAX)).map(|index| match dense {
                true => Random(seed ^ index as u64).next() as u8 | 0x80,
                false => (Random(seed ^ index as u64).next() % 4) as u8,
            }),
        );
        // What is sent along: its own capabilities, empty slots, numbers that are no slots.
        let sent: [u32; CAPS_MAX] = [
            note.slot(),
            frame.slot(),
            random.below(80) as u32,
            random.next() as u32,
        ];
        put(SEND_SLOTS, sent.into_iter().flat_map(u32::to_le_bytes));
        put(RECEIVE_SLOTS, [random.below(40) as u8; 16].into_iter());
        let caps = [0, 0, 0, 1, 2, 3, 4, 7][random.below(8) as usize];
        let info = MessageInfo::new(method | inline << 16, length, caps).0
            | random.below(2) << (13 + random.below(2) * 30);
        let words = [(); 4].map(|()| random.next());
        // The slots sent may hold anything of this component's, but not its memory's frames.
        // SAFETY: a message changes no memory of this component but the buffer.
        let (rax, _) = unsafe {
            raw::call(
                Call::Call as u64,
                [
                    endpoint.slot().into(),
                    info,
                    words[0],
                    words[1],
                    words[2],
                    words[3],
                ],
            )
        };
        answered += u64::from(rax == 0);
    }
    put(SEND_SLOTS, [0; 32].into_iter());
    if answered < MESSAGES / 20 {
        return Err(format!("only {answered} messages were answered at all"));
    }
    let honest = match service {
        Service::Root => SupervisorClient::connect(env.transport("supervisor"))
            .err()
            .map(|e| format!("{e:?}")),
        Service::Console => ConsoleClient::connect(env.transport("console"))
            .err()
            .map(|e| format!("{e:?}")),
        Service::Lender => LenderClient::connect(env.transport("lender"))
            .err()
            .map(|e| format!("{e:?}")),
    };
    match honest {
        None => Ok(format!("{MESSAGES} messages, {answered} answered")),
        Some(why) => Err(format!("an honest question: {why}")),
    }
}

/// Attaches as a guest's console, under a guest's name: what the operator types goes there.
fn calls_itself_a_guest(env: &Env) -> Outcome {
    let wake: Cap<cap::Notification> = env.memory().retype(0).map_err(failed("make"))?;
    let console = ConsoleClient::connect(env.transport("console"))
        .map_err(|error| format!("no console: {error:?}"))?;
    match console.attach(idl::name("grub"), ClientKind::Guest, wake) {
        Err(idl::CallError::Answer(ConsoleError::NoGuest)) => Ok("it is refused".into()),
        Err(error) => Err(format!("{error:?}")),
        Ok(_) => Err("it is a guest's console".into()),
    }
}

/// The ring page and the notification of a place at the console.
type Place = (Cap<cap::Frame>, Cap<cap::Notification>);

fn place(env: &Env, name: &str, kind: ClientKind) -> Result<Option<Place>, String> {
    let wake: Cap<cap::Notification> = env.memory().retype(0).map_err(failed("make"))?;
    let console = ConsoleClient::connect(env.transport("console"))
        .map_err(|error| format!("no console: {error:?}"))?;
    match console.attach(idl::name(name), kind, wake) {
        Ok(place) => Ok(Some(place)),
        Err(idl::CallError::Answer(_)) => Ok(None),
        Err(error) => Err(format!("{error:?}")),
    }
}

/// Attaches under many names. Every component needs a place; one must not have them all.
fn places(env: &Env) -> Outcome {
    let mut pages = Vec::new();
    for number in 0..64 {
        let name = format!("\x1b[2Jgrub{number}");
        if let Some((frame, _)) = place(env, &name, ClientKind::Log)? {
            pages.push(frame);
        }
    }
    // Different pages differ in what is written into them.
    let mut different = 0u32;
    for frame in &pages {
        let address = sdk::memory::map(*frame, 4096, READ_WRITE).map_err(failed("map"))?;
        // The last word of the input ring, which this component does not read.
        let word = (address + 4088) as *mut u32;
        // SAFETY: the page was mapped just now; it consists of atomics that any value is valid for.
        unsafe {
            if word.read_volatile() != 0x2e2e_2e2e {
                word.write_volatile(0x2e2e_2e2e);
                different += 1;
            }
        }
    }
    match different {
        0..=2 => Ok(format!("{different} pages for {} names", pages.len())),
        _ => Err(format!("{different} pages for {} names", pages.len())),
    }
}

/// Writes random counters and bytes into a ring shared with the console, and signals.
fn rings(env: &Env) -> Outcome {
    // The same name and kind as its log has: the same ring again.
    let Some((frame, peer)) = place(env, &env.name, ClientKind::Log)? else {
        return Err("no place at the console".into());
    };
    let ring = sdk::memory::map_shared(frame).map_err(failed("map"))?;
    let page = core::ptr::from_ref(ring) as u64;
    let mut random = Random(7);
    for round in 0..3000 {
        // Offsets of the counters of both rings (`idl::ring`), and anywhere.
        let offset = match random.below(4) {
            0 => random.below(2) * 4,
            1 => 2056 + random.below(2) * 4,
            _ => random.below(1024) * 4,
        };
        // Bytes that a terminal shows as themselves, so that the transcript can be read.
        let word = match round % 2 {
            0 => random.next() as u32,
            _ => 0x2e2e_2e2e,
        };
        let counter = offset % 2056 < 8;
        // SAFETY: inside the page, which consists of atomics that any value is valid for.
        unsafe {
            ((page + offset) as *mut u32).write_volatile(if counter { word } else { 0x2e2e_2e2e })
        };
        peer.signal(1).map_err(failed("signal"))?;
    }
    // SAFETY: as above. Empty again, so that the next lines of the log are read.
    unsafe { core::ptr::write_bytes(page as *mut u8, 0, 4096) };
    sdk::logging::set_ring(ring, peer, 1);
    // What the console still gives back of the damaged ring may swallow the first line.
    log::info!("writes to its log again");
    match ConsoleClient::connect(env.transport("console")) {
        Ok(_) => Ok("3000 words".into()),
        Err(error) => Err(format!("{error:?}")),
    }
}

/// Plays `hostile-mute`: takes a call, keeps it, and takes no other.
pub fn mute(env: &Env) {
    let endpoint = env.endpoint("mute");
    if let Ok(root) = SupervisorClient::connect(env.transport("supervisor")) {
        let _ = root.ready();
    }
    let arguments = [
        endpoint.slot().into(),
        REPLY.slot().into(),
        FOREVER,
        0,
        0,
        0,
    ];
    // SAFETY: receives a message into the buffer and registers; no memory of references changes.
    let (rax, _) = unsafe { raw::call(Call::Receive as u64, arguments) };
    log::info!("keeps a call to itself ({rax})");
    loop {
        crate::claim::pause(1_000_000);
    }
}

/// Plays `hostile-flood`: signals the console, whose priority is higher than everybody's, from
/// another CPU, and fills its own log, both without end.
pub fn flood(env: &Env) {
    let peer = match place(env, &env.name, ClientKind::Log) {
        Ok(Some((_, peer))) => peer,
        other => panic!("no place at the console: {:?}", other.err()),
    };
    log::info!("begins to signal");
    sdk::logging::drain();
    let mut signals = 0u64;
    loop {
        let end = crate::claim::after(2000);
        while sdk::time::now() < end {
            signals += u64::from(peer.signal(1).is_ok());
        }
        log::info!("{signals} signals");
    }
}
