//! Group `operator`: guests that are in no description, made of xl.cfg files by the operator's commands:
//! created, asked to go, taken down, and what is left of them.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use image_builder::qemu::Machine;

use crate::guests::to_the_shell;
use crate::machines::Machines;
use crate::report::{Claim, Report};
use crate::session::Session;
use crate::shares::{ask, info};

/// Seconds for what takes a moment.
const SOON: u64 = 120;
/// Seconds until a guest is built or gone, on a slow and shared machine.
const BUILT: u64 = 300;
/// Bytes of the volume, and what it begins with.
const VOLUME: usize = 1 << 20;
const MARK: &str = "a volume for guests of files";
/// How often a guest comes and goes.
const LIVES: u32 = 10;

/// Runs it.
pub fn run(machines: &mut Machines, report: &mut Report) {
    if machines.wants("operator") {
        let session = volume(machines).and_then(|()| {
            let image = machines.image("operator")?;
            machines.boot("operator", &image, &Machine::of(&image))
        });
        report.claims(session, CLAIMS);
    }
}

/// Makes the image that a guest's disk is of; the system's description names it.
fn volume(machines: &Machines) -> Result<()> {
    let folder = machines.workspace.root.join("build/suite");
    fs::create_dir_all(&folder)?;
    let mut image = MARK.as_bytes().to_vec();
    image.resize(VOLUME, 0);
    Ok(fs::write(folder.join("operator.img"), image)?)
}

/// Types a command; its answer has to say this.
fn says(session: &mut Session, command: &str, expected: &str) -> Result<()> {
    let answer = ask(session, command)?;
    ensure!(answer.contains(expected), "{command} answers {answer:?}");
    Ok(())
}

/// Types a command, and waits until root says this.
fn leads_to(session: &mut Session, command: &str, root: &str) -> Result<String> {
    let before = session.end();
    let answer = ask(session, command)?;
    session
        .saw_after(before, &format!("[root] {root}"), BUILT)
        .with_context(|| format!("{command} answered {answer:?}"))?;
    Ok(answer)
}

/// The elements of a JSON array of flat objects, one a line: names and values as they are written.
fn objects(text: &str) -> Result<Vec<Vec<(String, String)>>> {
    // What components log meanwhile stands on lines of its own.
    let log = |line: &&str| {
        let name = line.trim_start_matches("\r\x1b[K").strip_prefix('[');
        name.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()))
    };
    let text: String = text.lines().filter(|line| !log(line)).collect();
    let start = text.find('[').context("no array")?;
    let end = text.rfind(']').context("an array without its end")?;
    let body = text.get(start + 1..end).context("no array")?.trim();
    if body.is_empty() {
        return Ok(Vec::new());
    }
    let mut objects = Vec::new();
    for object in body.split("},") {
        let object = object.trim().trim_end_matches('}');
        let fields = object.strip_prefix('{').context("no object")?;
        let mut read = Vec::new();
        for field in fields.split(',') {
            let (name, value) = field.split_once(':').context("no field")?;
            let name = name
                .trim()
                .strip_prefix('"')
                .and_then(|n| n.strip_suffix('"'));
            let good = value.parse::<u64>().is_ok()
                || ["true", "false"].contains(&value)
                || value.len() >= 2 && value.starts_with('"') && value.ends_with('"');
            ensure!(good, "{value:?} is no value");
            read.push((name.context("no name")?.to_owned(), value.to_owned()));
        }
        objects.push(read);
    }
    Ok(objects)
}

/// What `list --json` says of a guest.
fn listed(session: &mut Session, guest: &str) -> Result<Option<Vec<(String, String)>>> {
    let answer = ask(session, "list --json")?;
    let objects = objects(&answer).with_context(|| format!("{answer:?}"))?;
    let name = ("name".to_owned(), format!("{guest:?}"));
    Ok(objects.into_iter().find(|object| object.contains(&name)))
}

fn field(object: &[(String, String)], name: &str) -> Result<String> {
    let found = object.iter().find(|(field, _)| field == name);
    Ok(found.with_context(|| format!("no {name}"))?.1.clone())
}

/// Waits until a guest is listed in a state.
fn becomes(session: &mut Session, guest: &str, state: &str) -> Result<()> {
    loop {
        let asked = session.end();
        match listed(session, guest)? {
            Some(object) if field(&object, "state")? == format!("{state:?}") => return Ok(()),
            Some(_) => {}
            None => bail!("guest {guest} is not listed"),
        }
        session.saw_after(asked, &format!("[root] guest {guest}: "), BUILT)?;
    }
}

fn console(session: &mut Session, guest: &str) -> Result<()> {
    session.send(&format!("\x1d0console {guest}\r"))?;
    let shown = format!("[console] guest console: {guest}\r\n");
    session.expect(&shown, SOON).map(|_| ())
}

const CLAIMS: &[Claim<Session>] = &[
    ("a_system_without_guests_takes_commands", |s| {
        // What is typed before the console listens is lost.
        s.expect("[toolstack] commands: ", SOON)?;
        let guests = objects(&ask(s, "list --json")?)?;
        ensure!(guests.is_empty(), "{guests:?}");
        says(s, "files", "boot/linux.cfg")?;
        says(s, "help", "shutdown")?;
        let files = objects(&ask(s, "files --json")?)?;
        ensure!(files.len() == 8, "{files:?}");
        Ok(())
    }),
    ("a_wrong_file_is_told_with_line_and_column", |s| {
        says(
            s,
            "create wrong.cfg",
            "wrong.cfg: line 2, column 8: '1' where = should be",
        )?;
        says(
            s,
            "create refused.cfg",
            "refused.cfg: line 5, column 1: vif is not supported",
        )?;
        says(
            s,
            "create lacking.cfg",
            "guest lacking: the boot archive has no such kernel",
        )?;
        says(
            s,
            "create nothing.cfg",
            "there is no guest nothing.cfg, and no file",
        )?;
        let guests = objects(&ask(s, "list --json")?)?;
        ensure!(guests.is_empty(), "{guests:?}");
        Ok(())
    }),
    ("a_guest_of_a_file_comes_to_its_prompt", |s| {
        says(s, "create -n linux.cfg", "guest linux could be created")?;
        let answer = ask(s, "create -c /boot/linux.cfg")?;
        ensure!(
            answer.contains("line 9, column 1: vnc is not supported and ignored")
                && answer.contains("guest linux: building, domain 1"),
            "{answer:?}"
        );
        s.expect("[console] guest console: linux", BUILT)?;
        to_the_shell(s)?;
        let said = s.shell("nproc", SOON)?;
        ensure!(said.ends_with('2'), "it has {said:?} vCPUs");
        Ok(())
    }),
    ("it_is_listed_and_said_to_run", |s| {
        let guest = listed(s, "linux")?.context("it is not listed")?;
        for (name, value) in [
            ("domain", "1"),
            ("state", "\"running\""),
            ("vcpus", "2"),
            ("memory_mib", "192"),
            ("described", "false"),
        ] {
            ensure!(
                field(&guest, name)? == value,
                "{name} is not {value}: {guest:?}"
            );
        }
        says(s, "dmesg", "[root] guest linux: runs")?;
        says(s, "create linux.cfg", "there is a guest of this name")
    }),
    ("it_is_paused_and_goes_on_by_its_domain_id", |s| {
        leads_to(s, "pause 1", "guest linux: paused")?;
        says(s, "shutdown linux", "guest linux is paused: refused")?;
        leads_to(s, "unpause 1", "guest linux: goes on")?;
        console(s, "linux")?;
        s.shell("true", SOON).map(|_| ())
    }),
    ("a_second_one_runs_beside_it", |s| {
        leads_to(s, "create second.cfg", "guest second: runs")?;
        console(s, "second")?;
        to_the_shell(s)?;
        console(s, "linux")?;
        s.shell("true", SOON).map(|_| ())
    }),
    ("its_disk_is_the_volume_that_its_file_names", |s| {
        console(s, "second")?;
        let there = "insmod /lib/modules/xen-blkfront.ko; until [ -b /dev/xvda ]; do :; done";
        s.shell(there, SOON)?;
        let mark = format!("head -c {} /dev/xvda; echo", MARK.len());
        let said = s.shell(&mark, SOON)?;
        ensure!(said == MARK, "it reads {said:?}");
        let size = s.shell("cat /sys/block/xvda/size", SOON)?;
        ensure!(size == (VOLUME / 512).to_string(), "{size:?} sectors");
        let write = "echo written | dd of=/dev/xvda conv=sync,fsync 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches; head -n 1 /dev/xvda";
        let said = s.shell(write, SOON)?;
        ensure!(said == "written", "it reads {said:?}");
        Ok(())
    }),
    ("a_reboot_that_is_asked_for_is_done", |s| {
        let answer = leads_to(s, "reboot linux", "guest linux: reboot")?;
        ensure!(!answer.contains("does not say"), "{answer:?}");
        becomes(s, "linux", "running")?;
        let guest = listed(s, "linux")?.context("it is not listed")?;
        ensure!(field(&guest, "starts")? == "2" && field(&guest, "domain")? == "1");
        console(s, "linux")?;
        to_the_shell(s)
    }),
    ("on_reboot_destroy_ends_a_guest_that_reboots", |s| {
        console(s, "second")?;
        let before = s.end();
        s.send("reboot -f\n")?;
        s.saw_after(before, "[root] guest second: off", BUILT)?;
        ensure!(listed(s, "second")?.is_none(), "it is still listed");
        Ok(())
    }),
    ("shutdown_ends_a_guest", |s| {
        let answer = leads_to(s, "shutdown -w linux", "guest linux: off")?;
        ensure!(
            answer.contains("guest linux: asked for poweroff")
                && answer.contains("guest linux: poweroff is done"),
            "{answer:?}"
        );
        ensure!(listed(s, "linux")?.is_none(), "it is still listed");
        Ok(())
    }),
    ("guests_come_and_go_and_leave_nothing_behind", |s| {
        leads_to(s, "create second.cfg", "guest second: runs")?;
        leads_to(s, "destroy second", "guest second: destroyed")?;
        let before = info(s)?;
        let [_, guests, ..] = before;
        ensure!(guests == 0, "{guests} KiB are still guests'");
        for _ in 0..LIVES {
            leads_to(s, "create second.cfg", "guest second: runs")?;
            ensure!(info(s)?[1] == 192 * 1024);
            leads_to(s, "destroy second", "guest second: destroyed")?;
        }
        let after = info(s)?;
        ensure!(after == before, "before {before:?}, after {after:?}");
        Ok(())
    }),
    ("domain_ids_are_not_used_again", |s| {
        let answer = ask(s, "create linux.cfg")?;
        let expected = format!("domain {}", 3 + 1 + LIVES);
        ensure!(answer.contains(&expected), "{answer:?}, not {expected}");
        Ok(())
    }),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_json_is_seen() {
        let good =
            "x\r\n\r\x1b[K[root] guest [x\r\n[\r\n{\"a\":1,\"b\":\"c\"},\r\n{\"a\":true}\r\n]\r\n";
        let read = objects(good).unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!(field(&read[0], "b").unwrap(), "\"c\"");
        assert!(objects("[\r\n]").unwrap().is_empty());
        for bad in ["", "[", "[1]", "[{a:1}]", "[{\"a\":x}]", "[{\"a\"}]"] {
            assert!(objects(bad).is_err(), "{bad}");
        }
    }
}
