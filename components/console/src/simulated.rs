//! The console's own server in a simulated system: clients that attach, flood and die, a serial port
//! that stalls, and every fault at every call.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use idl::console::ClientKind;
use idl::ring::RingPage;
use microvisor_testkit::{Component, Device, Plan, Restart, System, sweep};
use sdk::console::Attached;
use sdk::prelude::*;

/// COM1: what was sent, what is typed.
#[derive(Default)]
struct Serial {
    sent: Vec<u8>,
    typed: VecDeque<u8>,
    /// The transmitter takes nothing.
    stalled: bool,
    divisor: bool,
}

impl Device for Serial {
    fn read(&mut self, offset: u16) -> u8 {
        match offset {
            0 => self.typed.pop_front().unwrap_or(0),
            2 => u8::from(self.typed.is_empty()),
            5 => u8::from(!self.typed.is_empty()) | u8::from(!self.stalled) << 5,
            _ => 0,
        }
    }
    fn write(&mut self, offset: u16, value: u8) {
        match offset {
            0 if !self.divisor => self.sent.push(value),
            3 => self.divisor = value & 0x80 != 0,
            _ => {}
        }
    }
}

#[derive(Clone, Default)]
struct Line(Arc<Mutex<Serial>>);

impl Line {
    fn port(&self) -> MutexGuard<'_, Serial> {
        self.0.lock().unwrap()
    }
    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.port().sent).into_owned()
    }
}

fn system(plan: Plan, line: &Line) -> System {
    let console = Component::new("console", crate::server::main)
        .serves("console")
        .needs("supervisor")
        .ports(0x3f8, 8, line.0.clone())
        .line(4)
        .ring_pages()
        .restart(Restart::Always);
    let client = |name| Component::driven(name).needs("console").needs("supervisor");
    System::start(
        plan,
        vec![console, client("talker").guest("linux"), client("other")],
    )
}

fn attach(env: &Env, kind: ClientKind) -> Option<Attached> {
    let wake = env.notification().mint(Rights::SIGNAL, 2).ok()?;
    let attached = sdk::console::attach(env.transport("console"), &env.name, kind, wake);
    if let Err(error) = &attached {
        log::warn!("not attached: {error:?}");
        wake.delete().unwrap();
    }
    attached.ok()
}

fn write(page: &RingPage, text: &str) -> usize {
    page.output.writer().write(text.as_bytes())
}

/// Writes a line and tells the console, as the log does.
fn say(attached: &mut Attached, text: &str) -> bool {
    write(attached.page, text);
    attached.signal().is_ok()
}

#[test]
fn a_log_is_shown_under_its_components_name() {
    let line = Line::default();
    let system = system(Plan::new(), &line);
    let mut attached = system
        .drive("talker", |env| attach(env, ClientKind::Log))
        .unwrap();
    assert!(system.drive("talker", |_| say(&mut attached, "hello\n")));
    system.run();
    assert_eq!(line.shown(), "[talker] hello\r\n");
    assert_eq!(attached.page.output.writer().space(), idl::ring::OUT_BYTES);
}

#[test]
fn clients_attach_again_to_each_new_console_and_nobody_keeps_more() {
    let line = Line::default();
    let system = system(Plan::new(), &line);
    let mut attached = system
        .drive("talker", |env| attach(env, ClientKind::Log))
        .unwrap();
    system.mark();
    for round in 0..20 {
        system.kill("console");
        assert!(system.drive("talker", |_| say(
            &mut attached,
            &format!("round {round}\n")
        )));
        system.run();
        assert!(
            line.shown()
                .contains(&format!("[talker] round {round}\r\n"))
        );
        assert_eq!(system.leaks(), []);
    }
    assert_eq!(system.restarts("console"), 20);
}

#[test]
fn what_a_dead_console_had_not_sent_the_next_one_shows() {
    let line = Line::default();
    let system = system(Plan::new(), &line);
    let mut attached = system
        .drive("talker", |env| attach(env, ClientKind::Log))
        .unwrap();
    line.port().stalled = true;
    assert!(system.drive("talker", |_| say(&mut attached, "kept\n")));
    system.run();
    assert_eq!(line.shown(), "");
    line.port().stalled = false;
    system.kill("console");
    // Found in the ring: its writer has said nothing since.
    assert_eq!(line.shown(), "[talker] kept\r\n");
}

#[test]
fn a_flood_loses_nothing_and_holds_up_nobody() {
    let line = Line::default();
    let system = system(Plan::new(), &line);
    let mut talker = system
        .drive("talker", |env| attach(env, ClientKind::Log))
        .unwrap();
    let mut other = system
        .drive("other", |env| attach(env, ClientKind::Log))
        .unwrap();
    let flood = "0123456789abcde\n".repeat(4096);
    let mut left = flood.as_str();
    while !left.is_empty() {
        let written = system.drive("talker", |_| {
            let written = write(talker.page, left);
            talker.signal().unwrap();
            written
        });
        assert_ne!(written, 0, "the console took nothing");
        left = &left[written..];
        if written < idl::ring::OUT_BYTES {
            continue;
        }
        // The ring is full; somebody else says something in between.
        let before = line.shown().matches("[other] me\r\n").count();
        assert!(system.drive("other", |_| say(&mut other, "me\n")));
        system.run();
        assert_eq!(line.shown().matches("[other] me\r\n").count(), before + 1);
    }
    system.run();
    assert_eq!(
        line.shown().matches("[talker] 0123456789abcde\r\n").count(),
        4096
    );
}

#[test]
fn a_counter_that_lies_harms_its_own_ring_only() {
    let line = Line::default();
    let system = system(Plan::new(), &line);
    let mut talker = system
        .drive("talker", |env| attach(env, ClientKind::Log))
        .unwrap();
    let mut other = system
        .drive("other", |env| attach(env, ClientKind::Log))
        .unwrap();
    // More than the ring holds, without waiting for room: a writer that starts from nowhere.
    for _ in 0..3 {
        let mut wild = talker.page.output.writer();
        while wild.space() != 0 {
            wild.write(b"wild\n");
        }
        talker.page.output.reader().read(&mut [0; 2048]).unwrap();
    }
    assert!(system.drive("talker", |_| say(&mut talker, "x\n")));
    assert!(system.drive("other", |_| say(&mut other, "fine\n")));
    system.run();
    assert!(line.shown().contains("[other] fine\r\n"));
    assert_eq!(system.deaths("console"), []);
}

#[test]
fn what_is_typed_reaches_the_guest_and_wakes_it() {
    let line = Line::default();
    let system = system(Plan::new(), &line);
    let guest = system.drive("talker", |env| attach(env, ClientKind::Guest));
    let guest =
        guest.unwrap_or_else(|| panic!("{:?}", (system.log("talker"), system.deaths("console"))));
    let _ = system.drive("talker", |env| env.notification().poll());
    line.port().typed.extend(b"root\r");
    system.interrupt("console", 4);
    let mut bytes = [0; 16];
    assert_eq!(guest.page.input.reader().read(&mut bytes), Ok(5));
    assert_eq!(&bytes[..5], b"root\r");
    assert_eq!(
        system.drive("talker", |env| env.notification().poll()),
        Ok(2)
    );
}

#[test]
fn only_who_speaks_for_a_guest_is_its_console() {
    let line = Line::default();
    let system = system(Plan::new(), &line);
    let held = system.held("console").len();
    assert!(
        system
            .drive("other", |env| attach(env, ClientKind::Guest))
            .is_none()
    );
    assert_eq!(system.held("console").len(), held);
}

#[test]
fn only_who_has_the_operators_power_is_handed_commands() {
    let line = Line::default();
    let console = Component::new("console", crate::server::main)
        .serves("console")
        .needs("supervisor")
        .ports(0x3f8, 8, line.0.clone())
        .line(4)
        .ring_pages();
    let root = Component::driven("root-part").serves("operator");
    let toolstack = Component::driven("toolstack")
        .needs("console")
        .needs("operator");
    let other = Component::driven("other").needs("console");
    let system = System::start(Plan::new(), vec![console, root, toolstack, other]);
    let attaches = |name: &str| system.drive(name, |env| attach(env, ClientKind::Operator));
    assert!(attaches("other").is_none());
    let mut operator = attaches("toolstack").unwrap();
    line.port().typed.extend(b"list --json\r");
    system.interrupt("console", 4);
    let mut bytes = [0; 32];
    assert_eq!(operator.page.input.reader().read(&mut bytes), Ok(12));
    assert_eq!(&bytes[..12], b"list --json\n");
    assert!(system.drive("toolstack", |_| say(&mut operator, "[]\n\x04\n")));
    system.run();
    assert!(
        line.shown().ends_with("[]\r\noperator> "),
        "{}",
        line.shown()
    );
}

#[test]
fn a_client_that_takes_its_notification_away_costs_no_slot() {
    let line = Line::default();
    let system = system(Plan::new(), &line);
    let wake = system.drive("talker", |env| {
        let wake = env.notification().mint(Rights::SIGNAL, 2).unwrap();
        sdk::console::attach(env.transport("console"), "", ClientKind::Guest, wake).unwrap();
        wake
    });
    system.mark();
    system.drive("talker", |_| wake.delete().unwrap());
    // Something to tell it.
    line.port().typed.extend(b"x");
    system.interrupt("console", 4);
    assert_eq!(system.leaks(), []);
}

/// Attaching and speaking under each fault: in the end the line is shown, and neither side keeps
/// anything that it should not.
#[test]
fn a_console_survives_every_fault_at_every_place() {
    let swept = sweep(|plan| {
        let line = Line::default();
        let system = system(plan, &line);
        system.mark();
        let attached = system.drive("talker", |env| {
            (0..3).find_map(|_| attach(env, ClientKind::Log))
        });
        let mut attached = attached.expect("it attaches in the end");
        for text in ["one\n", "two\n"] {
            // May be the one that the fault hits; the next one gets through.
            let _ = system.drive("talker", |_| say(&mut attached, text));
            system.run();
        }
        assert!(system.drive("talker", |_| say(&mut attached, "three\n")));
        system.run();
        assert!(
            line.shown().contains("[talker] three\r\n"),
            "{}",
            line.shown()
        );
        // A console that died since took its notification along; the client finds out now.
        let mut restarts = None;
        while restarts != Some(system.restarts("console")) {
            restarts = Some(system.restarts("console"));
            let told = system.drive("talker", |_| attached.signal());
            assert_eq!(told, Ok(()));
            system.run();
        }
        // What a place at the console is: a frame, the console's notification and one's own; and
        // the console has the client's.
        let place = |leak: &microvisor_testkit::Leak| match leak.component.as_str() {
            "talker" => leak.more == 1 && !leak.what.contains("nothing in it"),
            _ => leak.more == 1 && leak.what.contains("own Notification"),
        };
        let others: Vec<_> = system
            .leaks()
            .into_iter()
            .filter(|leak| !place(leak))
            .collect();
        assert_eq!(others, []);
        system.mark();
        system
    });
    assert!(swept.happened > 0, "{swept:?}");
}
