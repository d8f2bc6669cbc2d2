//! Group `guests`, the part with several guests: fair shares of the CPUs, pause, destroy and create
//! by the operator's command line, and what a guest costs in memory.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use image_builder::qemu::Machine;

use crate::boot::{PROMPT, takes_a_command};
use crate::guests::to_the_shell;
use crate::machines::Machines;
use crate::report::{Claim, Report};
use crate::session::Session;

/// Of what a guest does alone, what is left at least beside one that spins in every vCPU: a half,
/// less what switching costs.
const SHARE: f64 = 0.4;
/// Rounds of measuring. What a second of the emulator's processor time is worth was seen to change
/// by a third from one measurement to the next while the host was busy: guests' clocks go with the
/// host's, so less is done from tick to tick.
const ROUNDS: u32 = 6;
/// How long one measurement takes at least, in seconds of the emulator's own processor time: what
/// the guest takes for a second is short or long as the host is busy.
const PERIOD: f64 = 3.0;
/// A counter on each vCPU, which never rests and writes its count into a file when it is told to.
const COUNTERS: &str = "p=; for c in 1 2; do taskset $c sh -c 'n=0; trap \"echo \\$n > /n'$c'\" USR1; while :; do n=$((n+1)); done' & p=\"$p $!\"; done";
/// In how many rounds a guest that was paused has to be quiet at last.
const QUIET_ROUNDS: usize = 5;
/// How often a guest is created and destroyed.
const LIVES: u32 = 50;
/// Seconds until a guest is built, or gone, on a slow and shared machine.
const BUILT: u64 = 240;
/// Guests of `systems/ten.toml`.
const TEN: u64 = 10;

/// Runs them.
pub fn run(machines: &mut Machines, report: &mut Report) {
    if machines.wants("guests-shares") {
        let session = machines
            .image("shares")
            .and_then(|image| machines.boot("guests-shares", &image, &Machine::of(&image)));
        report.claims(session, SHARES);
    }
    if machines.wants("guests-ten") {
        let session = machines
            .image("ten")
            .and_then(|image| machines.boot("guests-ten", &image, &Machine::of(&image)));
        ten(session, report);
    }
}

/// Waits until somebody reads what is typed.
fn console_listens(session: &mut Session) -> Result<()> {
    session
        .expect("[console] guest console: ", BUILT)
        .map(|_| ())
}

/// Types an operator's command; what it answers.
pub fn ask(session: &mut Session, command: &str) -> Result<String> {
    session.send(&format!("\x1d0{command}\r"))?;
    session.expect(&format!("{command}\r\n"), 120)?;
    session.expect("operator> ", 120)
}

/// An order, and what root says when it is carried out.
fn order(session: &mut Session, order: &str, done: &str) -> Result<()> {
    let answer = ask(session, order)?;
    if !answer.contains(done) {
        session
            .expect(done, BUILT)
            .with_context(|| format!("{order}: {answer:?}"))?;
    }
    Ok(())
}

/// The state that the operator's list shows of a guest.
fn state(session: &mut Session, guest: &str) -> Result<String> {
    let list = ask(session, "list")?;
    list.lines()
        .filter_map(|line| line.split_once(guest))
        .find_map(|(before, rest)| {
            before
                .trim()
                .is_empty()
                .then(|| rest.split_whitespace().next())?
        })
        .map(str::to_owned)
        .with_context(|| format!("{guest} is not in the list:\n{list}"))
}

/// Waits until a guest is in a state. Root says whenever one changes.
fn becomes(session: &mut Session, guest: &str, wanted: &str) -> Result<()> {
    loop {
        let asked = session.end();
        let now = state(session, guest)?;
        if now == wanted {
            return Ok(());
        }
        session
            .saw_after(asked, &format!("[root] guest {guest}: "), BUILT)
            .with_context(|| format!("{guest} stays {now}"))?;
    }
}

/// Shows a guest's console.
fn focus(session: &mut Session, guest: &str) -> Result<()> {
    session.send(&format!("\x1d0console {guest}\r"))?;
    session
        .expect(&format!("[console] guest console: {guest}\r\n"), 120)
        .map(|_| ())
}

/// KiB in all, guests', components' and free, and root's empty slots.
pub fn info(session: &mut Session) -> Result<[u64; 5]> {
    let text = ask(session, "info")?;
    let numbers = |after: &str| -> Vec<u64> {
        let rest = text.split(after).nth(1).unwrap_or_default();
        let line = rest.lines().next().unwrap_or_default();
        line.split(|c: char| !c.is_ascii_digit())
            .filter_map(|word| word.parse().ok())
            .collect()
    };
    match (&numbers("memory in KiB:")[..], &numbers("root has")[..]) {
        ([all, guests, components, free], [slots]) => {
            Ok([*all, *guests, *components, *free, *slots])
        }
        _ => bail!("the operator is told {text:?}"),
    }
}

/// What a guest's counters have counted, and when.
#[derive(Clone, Copy)]
struct Count {
    loops: u64,
    /// Seconds of the guest's clock, which goes on for all guests alike.
    uptime: f64,
    /// Seconds of the emulator's processor time.
    processor: f64,
}

impl Count {
    fn of(session: &mut Session, guest: &str) -> Result<Count> {
        focus(session, guest)?;
        let text = session.shell(
            "rm -f /n1 /n2; kill -USR1 $p; until [ -s /n1 -a -s /n2 ]; do usleep 20000; done; cat /n1 /n2 /proc/uptime",
            120,
        )?;
        let words: Vec<&str> = text.split_whitespace().collect();
        let [one, two, uptime, ..] = words[..] else {
            bail!("the counters say {text:?}");
        };
        Ok(Count {
            loops: one.parse::<u64>()? + two.parse::<u64>()?,
            uptime: uptime.parse()?,
            processor: session.processor_seconds()?,
        })
    }

    /// Loops since `before`: in a second of the guest's clock, and of the emulator's.
    fn rates(&self, before: &Count) -> Result<(f64, f64)> {
        let loops = self.loops.saturating_sub(before.loops) as f64;
        ensure!(loops > 0.0, "nothing was counted");
        Ok((
            loops / (self.uptime - before.uptime).max(0.01),
            loops / (self.processor - before.processor).max(0.01),
        ))
    }
}

/// Waits until the machine has done something for a while. The worker's shell waits; counters do
/// not.
fn period(session: &mut Session) -> Result<()> {
    focus(session, "worker")?;
    let end = session.processor_seconds()? + PERIOD;
    let patience = Instant::now() + Duration::from_secs(120);
    while session.processor_seconds()? < end && Instant::now() < patience {
        session.shell("sleep 1", 60)?;
    }
    Ok(())
}

/// What the worker does alone, in a second of the emulator's processor time.
fn alone(session: &mut Session) -> Result<f64> {
    let before = Count::of(session, "worker")?;
    period(session)?;
    Ok(Count::of(session, "worker")?.rates(&before)?.1)
}

fn both_in_their_shells(session: &mut Session) -> Result<()> {
    console_listens(session)?;
    becomes(session, "worker", "running")?;
    becomes(session, "spinner", "running")?;
    // GRUB never sleeps: it would have its share of all that is measured.
    becomes(session, "short", "running")?;
    order(session, "pause short", "[root] guest short: paused")?;
    // The other one would take half of the time that this one needs.
    order(session, "pause spinner", "[root] guest spinner: paused")?;
    focus(session, "worker")?;
    to_the_shell(session)?;
    order(session, "pause worker", "[root] guest worker: paused")?;
    order(session, "unpause spinner", "[root] guest spinner: goes on")?;
    focus(session, "spinner")?;
    to_the_shell(session)?;
    order(session, "unpause worker", "[root] guest worker: goes on")
}

const SHARES: &[Claim<Session>] = &[
    (
        "two_guests_of_two_vcpus_reach_their_shells",
        both_in_their_shells,
    ),
    ("wrong_commands_are_named_and_change_nothing", |session| {
        for (command, says) in [
            ("pause nobody", "there is no guest nobody"),
            ("frobnicate worker", "frobnicate: no such command"),
            ("pause", "pause: which guest?"),
            ("unpause worker", "guest worker is running: refused"),
            ("create worker", "guest worker is running: refused"),
        ] {
            let answer = ask(session, command)?;
            ensure!(answer.contains(says), "{command:?} answers {answer:?}");
        }
        ensure!(state(session, "worker")? == "running");
        Ok(())
    }),
    ("pause_stops_a_guest_that_spins", |session| {
        focus(session, "spinner")?;
        session.send("while :; do echo ti''ck; done\n")?;
        session.expect("tick", 60)?;
        order(session, "pause spinner", "[root] guest spinner: paused")?;
        // A round shows what the guest said in the round before. What it said before it was paused
        // may still be on its way through its VMM and the console, so the first may show some of
        // it. A guest that runs never has a round in which it says nothing.
        let mut round = || -> Result<usize> {
            let before = session.text().matches("tick").count();
            focus(session, "spinner")?;
            focus(session, "worker")?;
            session.shell("sleep 3", 60)?;
            Ok(session.text().matches("tick").count() - before)
        };
        round()?;
        let mut said = Vec::new();
        while said.len() < QUIET_ROUNDS {
            let lines = round()?;
            // The end of its last line is shown again.
            if lines <= 1 {
                return Ok(());
            }
            said.push(lines);
        }
        bail!("a paused guest said {said:?} lines in rounds of 3 s")
    }),
    ("unpause_lets_it_go_on_where_it_was", |session| {
        order(session, "unpause spinner", "[root] guest spinner: goes on")?;
        focus(session, "spinner")?;
        for _ in 0..50 {
            session.expect("tick", 60)?;
        }
        session.send("\x03")?;
        session.shell("true", 60).map(|_| ())
    }),
    ("a_paused_guests_clock_goes_on", |session| {
        let uptime = |session: &mut Session| -> Result<f64> {
            focus(session, "spinner")?;
            let text = session.shell("cat /proc/uptime", 60)?;
            let word = text.split_whitespace().next().context("no uptime")?;
            Ok(word.parse()?)
        };
        let before = uptime(session)?;
        order(session, "pause spinner", "[root] guest spinner: paused")?;
        focus(session, "worker")?;
        session.shell("sleep 6", 60)?;
        order(session, "unpause spinner", "[root] guest spinner: goes on")?;
        let gone = uptime(session)? - before;
        ensure!(
            gone >= 6.0,
            "its clock went on by {gone} s while 6 s passed"
        );
        Ok(())
    }),
    ("a_spinning_guest_leaves_another_its_share", |session| {
        for guest in ["spinner", "worker"] {
            focus(session, guest)?;
            session.shell(COUNTERS, 60)?;
        }
        let paused = "[root] guest spinner: paused";
        let goes_on = "[root] guest spinner: goes on";
        let mut best = (0.0f64, 0.0f64);
        order(session, "pause spinner", paused)?;
        let mut before = alone(session)?;
        for round in 1..=ROUNDS {
            order(session, "unpause spinner", goes_on)?;
            let guests = ["worker", "spinner"];
            let [worker, spinner] = guests.map(|guest| Count::of(session, guest));
            let (worker, spinner) = (worker?, spinner?);
            period(session)?;
            let (own, beside) = Count::of(session, "worker")?.rates(&worker)?;
            let (other, _) = Count::of(session, "spinner")?.rates(&spinner)?;
            order(session, "pause spinner", paused)?;
            let after = alone(session)?;
            // Of what it did just before and just after: how busy the host is changes, and with
            // it what a second of processor time is worth.
            let share = 2.0 * beside / (before + after);
            // Of all loops in the same time, which no host changes: each is left its share.
            let part = own / (own + other);
            println!(
                "     round {round}, loops in a second of both CPUs: {before:.0} and {after:.0} alone, {beside:.0} beside a guest that spins; {:.0} % of both guests' loops",
                100.0 * part
            );
            if share >= SHARE && (SHARE..=1.0 - SHARE).contains(&part) {
                return order(session, "unpause spinner", goes_on);
            }
            best = (best.0.max(share), best.1.max(part));
            before = after;
        }
        bail!(
            "beside a guest that spins it does {:.2} of what it does alone, and {:.2} of what both do, at best",
            best.0,
            best.1
        )
    }),
    (
        "console_and_operator_answer_while_every_cpu_spins",
        |session| {
            focus(session, "worker")?;
            session.shell("echo here", 60)?;
            ensure!(state(session, "spinner")? == "running");
            Ok(())
        },
    ),
    (
        "a_spinning_guest_is_destroyed_and_its_memory_is_free",
        |session| {
            let before = info(session)?;
            order(
                session,
                "destroy spinner",
                "[root] guest spinner: destroyed",
            )?;
            let after = info(session)?;
            let freed = after[3] - before[3];
            ensure!(
                before[1] - after[1] == 256 * 1024 && freed >= 256 * 1024,
                "before {before:?}, after {after:?}"
            );
            focus(session, "worker")?;
            session.shell("true", 60).map(|_| ())
        },
    ),
    ("a_guest_that_is_reset_starts_again", |session| {
        order(session, "reset short", "[root] guest short: building")?;
        becomes(session, "short", "running")?;
        focus(session, "short")?;
        session.expect("grub>", PROMPT)?;
        takes_a_command(session)
    }),
    (
        "fifty_lives_of_a_guest_leave_no_memory_and_no_slot_behind",
        |session| {
            order(session, "destroy short", "[root] guest short: destroyed")?;
            let before = info(session)?;
            for _ in 0..LIVES {
                order(session, "create short", "[root] guest short: building")?;
                becomes(session, "short", "running")?;
                order(session, "destroy short", "[root] guest short: destroyed")?;
            }
            let after = info(session)?;
            ensure!(after == before, "before {before:?}, after {after:?}");
            Ok(())
        },
    ),
    ("the_machine_is_whole_when_all_guests_are_gone", |session| {
        order(session, "destroy worker", "[root] guest worker: destroyed")?;
        let [_, guests, ..] = info(session)?;
        ensure!(guests == 0, "{guests} KiB are still guests'");
        order(session, "create worker", "[root] guest worker: building")?;
        becomes(session, "worker", "running")?;
        focus(session, "worker")?;
        to_the_shell(session)
    }),
];

/// Ten guests at once, and what they and the system take.
fn ten(session: Result<Session>, report: &mut Report) {
    let mut session = match session {
        Ok(session) => session,
        Err(error) => return report.fail("ten_guests_take_commands", format!("{error:#}")),
    };
    let session = &mut session;
    report.claim("ten_guests_take_commands", || {
        console_listens(session)?;
        for guest in 0..TEN {
            let guest = format!("g{guest}");
            becomes(session, &guest, "running")?;
            focus(session, &guest)?;
            // A prompt that was shown before is shown again.
            session.expect("grub>", PROMPT)?;
            takes_a_command(session).context(guest)?;
        }
        Ok(())
    });
    let mut measured = None;
    report.claim("nine_of_ten_are_destroyed", || {
        let many = info(session)?;
        for guest in 1..TEN {
            order(
                session,
                &format!("destroy g{guest}"),
                &format!("[root] guest g{guest}: destroyed"),
            )?;
        }
        let one = info(session)?;
        measured = Some((one, many));
        focus(session, "g0")?;
        takes_a_command(session)
    });
    if let Some((one, many)) = measured {
        // Of 1 GiB: what the core keeps is not in root's hands.
        let system = |info: [u64; 5]| (1 << 20) - info[1] - info[3];
        let further = (system(many) - system(one)) / (TEN - 1);
        println!(
            "     the system itself: {} KiB with 1 guest, {} KiB with 10, {further} KiB each further one",
            system(one),
            system(many)
        );
    }
}
