//! Group `restart`: what happens when a component dies. One boot of `systems/restart.toml`, in which
//! `components/restart-probe` kills and calls; what it and root log is judged here, by functions of
//! the text that have tests of their own, so that it is known what they refuse.

use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use idl::manifest::{Component, Manifest};
use image_builder::qemu::Machine;

use crate::boot::{PROMPT, takes_a_command};
use crate::machines::Machines;
use crate::report::Report;
use crate::session::Session;

/// Seconds for a thousand restarts, their reports on the serial line included.
const SCRIPT: u64 = 900;
/// What the probe does (`components/restart-probe/src/caller.rs`).
const RESTARTS: usize = 1000;
const CONSOLE_RESTARTS: usize = 50;

/// The machine when the script has ended, and what it was made of.
struct Subject {
    session: Session,
    manifest: Manifest,
}

/// Runs the group.
pub fn run(machines: &mut Machines, report: &mut Report) {
    if !machines.wants("restart") {
        return;
    }
    report.claims(
        subject(machines),
        &[
            ("killed_server_answers_restarted", |s| {
                heard_restarted(&s.session.text())
            }),
            ("next_call_works", |s| next_call(&s.session.text())),
            ("same_wiring_as_the_manifest", |s| {
                wiring(&s.session.text(), &s.manifest)
            }),
            ("peers_are_told", |s| peers(&s.session.text())),
            ("crash_report_names_the_function_and_the_address", |s| {
                crash_report(&s.session.text())
            }),
            ("crash_report_names_the_refused_capability", |s| {
                refusal_report(&s.session.text())
            }),
            ("restart_policy_never_is_kept", |s| {
                policy_never(&s.session.text())
            }),
            ("restart_policy_limit_is_kept", |s| {
                policy_limit(&s.session.text())
            }),
            (
                "thousand_restarts_leave_no_memory_and_no_slot_missing",
                |s| thousand(&s.session.text()),
            ),
            (
                "console_restarts_leave_no_memory_and_no_slot_missing",
                |s| root_has_the_same(&s.session.text(), "after 50 restarts of the console"),
            ),
            ("console_restart_loses_no_line", |s| {
                console_lines(&s.session.text())
            }),
            ("console_restart_keeps_a_guests_console", |s| {
                guests_console(&mut s.session)
            }),
        ],
    );
}

fn subject(machines: &mut Machines) -> Result<Subject> {
    let image = machines.image("restart")?;
    let mut session = machines.boot("restart", &image, &Machine::of(&image))?;
    session.saw("[caller] the console's turn", SCRIPT)?;
    session.saw("grub>", PROMPT)?;
    session.send("\x1d0pause grub\r")?;
    session.saw("[caller] paused", 60)?;
    session.send("unpause grub\r")?;
    session.saw("[caller] script ", SCRIPT)?;
    session.saw("[caller] script ends", 1)?;
    Ok(Subject {
        session,
        manifest: image.manifest,
    })
}

/// What `who` said after `what` on one line.
fn said<'a>(text: &'a str, who: &str, what: &str) -> Result<&'a str> {
    let start = format!("[{who}] {what}");
    let line = text.lines().find_map(|line| line.strip_prefix(&start));
    line.with_context(|| format!("nobody said {start:?}"))
}

fn is(said: &str, expected: &str) -> Result<()> {
    ensure!(said == expected, "{said:?}, not {expected:?}");
    Ok(())
}

fn heard_restarted(text: &str) -> Result<()> {
    is(
        said(text, "caller", "caller of the killed server: ")?,
        "Err(Restarted)",
    )
}

fn next_call(text: &str) -> Result<()> {
    // The byte that it was asked to echo.
    is(said(text, "caller", "next call: ")?, "Ok(101)")
}

/// What a component finds in its space, as it logged it: slot, kind, rights, number.
fn listings<'a>(text: &'a str, who: &str) -> Vec<Vec<&'a str>> {
    let start = format!("[{who}] holds ");
    let mut lists = vec![Vec::new()];
    for line in text.lines().filter_map(|line| line.strip_prefix(&start)) {
        match lists.last_mut() {
            Some(list) if line != "no more" => list.push(line),
            _ => lists.push(Vec::new()),
        }
    }
    // What follows the last end is nobody's list.
    lists.pop();
    lists
}

/// What the manifest gives to a component, in the order of the start contract
/// (`sdk/src/startup.rs`): what every component has, then its wires.
fn wired(manifest: &Manifest, name: &str, own: &str) -> Result<Vec<String>> {
    let place = manifest.components.iter().position(|c| c.name == name);
    let place = place.with_context(|| format!("no component {name}"))?;
    let component: &Component = &manifest.components[place];
    // A component's badge is its place, counted from 1; root knows interfaces by number too.
    let badge = place + 1;
    let (call, grant, receive) = (1, 4, 2);
    let mut wires: Vec<String> = Vec::new();
    let mut give = |kind: &str, rights: u32, number: u64| {
        let slot = 16 + wires.len();
        wires.push(format!("{slot} {kind} {rights:#x} {number:#x}"));
    };
    for need in &component.needs {
        match (need.server.as_str(), need.interface.as_str()) {
            ("root", "supervisor") => give("Endpoint", call, (badge as u64) << 8 | 1),
            ("root", other) => bail!("{other} of root is not expected here"),
            _ => give("Endpoint", call | grant, badge as u64),
        }
    }
    for _ in &component.serves {
        give("Endpoint", receive | grant, 0);
    }
    for ports in &component.ports {
        let range = u64::from(ports.first) | u64::from(ports.count) << 32;
        give("IoPorts", 0xff, range);
    }
    for line in &component.interrupts {
        give("Interrupt", 0xff, u64::from(*line) | 1 << 32);
    }
    for _ in 0..component.threads {
        give("Thread", 0xff, 0);
        give("SchedContext", 0xff, 0);
    }
    let memory = component.memory_bytes / 4096;
    let mut all: Vec<String> = [
        // Its size is root's choice: it has to be the same each time.
        own.to_owned(),
        "2 AddressSpace 0xff 0x0".into(),
        "3 Thread 0xff 0x0".into(),
        "4 SchedContext 0xff 0x0".into(),
        format!("5 Memory 0xff {memory:#x}"),
        "6 Reply 0xff 0x0".into(),
        "7 Notification 0xff 0x0".into(),
    ]
    .into();
    all.extend(wires);
    Ok(all)
}

fn wiring(text: &str, manifest: &Manifest) -> Result<()> {
    let lists = listings(text, "victim");
    let [first, second] = lists.as_slice() else {
        bail!("{} instances listed what they hold, not 2", lists.len());
    };
    ensure!(
        first == second,
        "the first instance held\n{first:#?}\nthe second one\n{second:#?}"
    );
    let own = first
        .first()
        .filter(|line| line.starts_with("1 CapSpace 0xff 0x"))
        .context("no capability space")?;
    let expected = wired(manifest, "victim", own)?;
    ensure!(
        *first == expected,
        "it holds\n{first:#?}\nthe manifest gives it\n{expected:#?}"
    );
    Ok(())
}

fn peers(text: &str) -> Result<()> {
    is(said(text, "caller", "told: ")?, "Ok(true)")?;
    // Its server and its client, and nobody who has no wire to it.
    is(
        said(text, "root", "component victim: told ")?,
        "console, caller",
    )
}

/// The lines of root's report that begins with `start`.
fn report_of<'a>(text: &'a str, start: &str) -> Result<Vec<&'a str>> {
    // What others say may come in between.
    let mut lines = text
        .lines()
        .skip_while(|line| !line.starts_with(start))
        .filter(|line| line.starts_with("[root] "))
        .take_while(|line| line.starts_with("[root] ERROR: "));
    let first = lines
        .next()
        .with_context(|| format!("root said nothing that begins with {start:?}"))?;
    Ok(std::iter::once(first).chain(lines).collect())
}

fn crash_report(text: &str) -> Result<()> {
    let report = report_of(text, "[root] ERROR: component victim: fault: page fault")?;
    let all = report.join("\n");
    for part in [
        "address 0x7000deadb000",
        "code 0x6",
        "write_to_forbidden_ground",
        "rip 0",
        "r15 0",
        "#0 ",
        "BenchServer>::echo",
        "restart_probe::component",
    ] {
        ensure!(all.contains(part), "no {part:?} in\n{all}");
    }
    Ok(())
}

fn refusal_report(text: &str) -> Result<()> {
    let report = report_of(text, "[root] ERROR: component victim: panic: ")?.join("\n");
    for part in [
        "an endpoint is no notification",
        "misuse_a_capability",
        "last refused: Signal(0x10, 0x1): WrongKind",
        "slot 0x10 is the right to call supervisor of root",
    ] {
        ensure!(report.contains(part), "no {part:?} in\n{report}");
    }
    Ok(())
}

/// How often root restarted a component, by its own count: where the serial line is slower than a
/// thousand restarts, some of its lines are lost.
fn restarts(text: &str, name: &str) -> usize {
    let line = format!("[root] component {name}: restarted (");
    let said = text.split(&line).skip(1);
    let numbers = said.filter_map(|rest| rest.split_once(')')?.0.parse().ok());
    numbers.max().unwrap_or(0)
}

fn policy_never(text: &str) -> Result<()> {
    is(
        said(text, "caller", "restart never: ")?,
        "Err(Aborted), then Err(InvalidCap)",
    )?;
    said(text, "root", "ERROR: component mortal: stays down")?;
    let count = restarts(text, "mortal");
    ensure!(count == 0, "it was restarted {count} times");
    Ok(())
}

fn policy_limit(text: &str) -> Result<()> {
    is(
        said(text, "caller", "restart twice: ")?,
        "[Err(Restarted), Err(Restarted), Err(Aborted)], then Err(InvalidCap)",
    )?;
    said(
        text,
        "root",
        "ERROR: component fragile: stays down after 2 restarts in 3600 s",
    )?;
    let count = restarts(text, "fragile");
    ensure!(count == 2, "it was restarted {count} times");
    Ok(())
}

/// The numbers of root's possessions before and after, which were the same.
fn root_has_the_same(text: &str, when: &str) -> Result<()> {
    let end = format!("[caller] {when}: root has ");
    let (before, after) = text
        .split_once(&end)
        .with_context(|| format!("nobody said {end:?}"))?;
    ensure!(after.starts_with("the same"), "root has something else");
    let counted = |what: &str| {
        let start = format!("[caller] {what}: Inventory {{ ");
        let line = before.lines().rev().find_map(|l| l.strip_prefix(&start));
        line.with_context(|| format!("no numbers {what}"))
    };
    let (before, after) = (counted("before")?, counted("after")?);
    ensure!(before == after, "before: {before}\nafter: {after}");
    for field in [
        "used_frames",
        "free_kib",
        "free_slots",
        "held_slots",
        "heap_bytes",
    ] {
        let number = before.split(&format!("{field}: ")).nth(1);
        let number = number.and_then(|rest| rest.split([',', ' ']).next());
        let number: Option<u64> = number.and_then(|number| number.parse().ok());
        ensure!(
            number.is_some_and(|n| n > 0),
            "{field} was not counted: {before}"
        );
    }
    Ok(())
}

fn thousand(text: &str) -> Result<()> {
    let heard = said(text, "caller", "of 1000 callers ")?;
    is(heard, "1000 heard Restarted")?;
    is(said(text, "caller", "last instance: ")?, "Ok(101)")?;
    root_has_the_same(text, "after 1000 restarts")?;
    // A thousand callers heard of a restart each. On a slow line root's last counts are lost, which it says.
    let count = restarts(text, "victim");
    let lost = text.contains(" lines lost)");
    ensure!(count >= RESTARTS || lost, "only {count} restarts");
    Ok(())
}

/// Where a line is, end included.
fn place(text: &str, line: &str) -> Result<Range<usize>> {
    let start = text
        .find(line)
        .with_context(|| format!("the line {line:?} is lost"))?;
    Ok(start..start + line.len())
}

fn console_lines(text: &str) -> Result<()> {
    let mut rest = &text[place(text, "[caller] paused\r\n")?.end..];
    for number in 1..=CONSOLE_RESTARTS {
        for when in ["before", "after"] {
            let line = format!("[caller] line {when} console restart {number}\r\n");
            rest = &rest[place(rest, &line)?.end..];
        }
    }
    let count = restarts(text, "console");
    ensure!(count >= CONSOLE_RESTARTS, "only {count} restarts");
    Ok(())
}

fn guests_console(session: &mut Session) -> Result<()> {
    // `subject` saw its prompt before. What was printed up to here is not an answer.
    session.expect("[caller] script ends", 10)?;
    takes_a_command(session)
}

#[cfg(test)]
mod tests {
    use super::*;
    use idl::manifest::{Need, Ports};

    const GOOD: &str = "\
[caller] caller of the killed server: Err(Restarted)\r
[root] ERROR: component victim: fault: page fault (vector 14, code 0x6, address 0x7000deadb000) in thread 0 at 0x2058ae restart_probe::server::write_to_forbidden_ground+0xe\r
[root] ERROR:   rip 00000000002058ae\r
[root] ERROR:   r15 0000000000000000\r
[root] ERROR:   #0 0x2058ae restart_probe::server::write_to_forbidden_ground+0xe\r
[root] ERROR:   #1 0x2062f1 <restart_probe::server::Server as idl::bench::BenchServer>::echo+0x371\r
[root] ERROR:   #4 0x207640 restart_probe::component+0x40\r
[root] component victim: restarted (1)\r
[root] component victim: told console, caller\r
[caller] next call: Ok(101)\r
[caller] told: Ok(true)\r
[caller] restart never: Err(Aborted), then Err(InvalidCap)\r
[root] ERROR: component mortal: stays down\r
[caller] before: Inventory { used_frames: 1, free_kib: 2, free_slots: 3, held_slots: 4, heap_bytes: 5, running: 6 }\r
[caller] after: Inventory { used_frames: 1, free_kib: 2, free_slots: 3, held_slots: 4, heap_bytes: 5, running: 6 }\r
[caller] after 1000 restarts: root has the same\r
";

    fn without(part: &str, instead: &str) -> String {
        assert!(GOOD.contains(part), "{part}");
        GOOD.replace(part, instead)
    }

    type Judge = fn(&str) -> Result<()>;

    #[test]
    fn what_is_not_said_or_said_otherwise_is_refused() {
        let judges: [(Judge, &str, &str); 8] = [
            (heard_restarted, "Err(Restarted)", "Err(Aborted)"),
            (next_call, "next call: Ok(101)", "next call: Err(Aborted)"),
            (peers, "told: Ok(true)", "told: Ok(false)"),
            (peers, "told console, caller", "told console"),
            (crash_report, "0x7000deadb000", "0x0"),
            (crash_report, "write_to_forbidden_ground", "?"),
            (policy_never, "mortal: stays down", "mortal: restarted (1)"),
            (policy_never, "Err(InvalidCap)", "Ok(101)"),
        ];
        for (judge, part, instead) in judges {
            judge(GOOD).unwrap();
            assert!(judge(&without(part, instead)).is_err(), "{part}");
        }
    }

    #[test]
    fn a_missing_frame_or_slot_is_seen() {
        let when = "after 1000 restarts";
        root_has_the_same(GOOD, when).unwrap();
        for (part, instead) in [
            (
                "after: Inventory { used_frames: 1",
                "after: Inventory { used_frames: 2",
            ),
            ("root has the same", "root has different"),
            ("heap_bytes: 5", "heap_bytes: 0"),
            ("held_slots: 4", ""),
        ] {
            let changed = without(part, instead);
            assert!(root_has_the_same(&changed, when).is_err(), "{part}");
        }
        assert!(thousand(GOOD).is_err(), "one restart is not a thousand");
    }

    fn component() -> Component {
        Component {
            name: "victim".into(),
            memory_bytes: 1 << 18,
            serves: vec!["bench".into()],
            needs: vec![Need {
                interface: "supervisor".into(),
                server: "root".into(),
            }],
            ports: vec![Ports {
                first: 0x80,
                count: 1,
            }],
            ..Component::default()
        }
    }

    #[test]
    fn a_right_more_or_less_than_the_manifest_gives_is_seen() {
        let mut manifest = Manifest {
            components: vec![component()],
            ..Manifest::default()
        };
        let own = "1 CapSpace 0xff 0x7";
        let list = wired(&manifest, "victim", own).unwrap();
        let listing = |list: &[String]| {
            let lines = list.iter().map(|line| format!("[victim] holds {line}\r\n"));
            format!("{}[victim] holds no more\r\n", lines.collect::<String>())
        };
        let good = listing(&list);
        wiring(&good.repeat(2), &manifest).unwrap();
        assert!(wiring(&good, &manifest).is_err(), "one instance");
        let mut more = list.clone();
        more.push("19 Endpoint 0x1 0x1".into());
        let more = listing(&more);
        assert!(wiring(&format!("{good}{more}"), &manifest).is_err());
        assert!(wiring(&more.repeat(2), &manifest).is_err());
        let amplified = good.replace("16 Endpoint 0x1", "16 Endpoint 0xf");
        assert!(wiring(&amplified.repeat(2), &manifest).is_err());
        manifest.components[0].interrupts.push(3);
        assert!(wiring(&good.repeat(2), &manifest).is_err());
    }

    #[test]
    fn a_lost_line_is_seen() {
        let mut text = String::from("[caller] paused\r\n");
        for number in 1..=CONSOLE_RESTARTS {
            text += &format!("[caller] line before console restart {number}\r\n");
            text += &format!("[root] component console: restarted ({number})\r\n");
            text += &format!("[caller] line after console restart {number}\r\n");
        }
        console_lines(&text).unwrap();
        let lost = text.replace("[caller] line after console restart 7\r\n", "");
        assert!(console_lines(&lost).is_err());
        let last = format!("[root] component console: restarted ({CONSOLE_RESTARTS})");
        let fewer = text.replace(&last, "");
        assert!(console_lines(&fewer).is_err());
    }
}
