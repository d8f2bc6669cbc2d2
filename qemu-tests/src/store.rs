//! Group `store`: the shared store, as Debian's own tools see it. One boot of `systems/store.toml`: two
//! Linux guests with `xenstore-*` on `/dev/xen/xenbus`, and `components/store-probe`, which is a client
//! too and has the store killed when guest `one` asks for it.

use anyhow::{Result, ensure};
use image_builder::qemu::{Machine, POWERED_OFF};

use crate::guests::to_the_shell;
use crate::machines::Machines;
use crate::report::{Claim, Report};
use crate::session::Session;

/// Seconds for a command, and for what it leads to elsewhere.
const SOON: u64 = 120;
/// Shows the console of guest `one`, of guest `two`.
const ONE: &str = "\x1d1";
const TWO: &str = "\x1d2";
/// A node of guest `one`.
const SHARED: &str = "/local/domain/1/data/shared";

/// Runs the group.
pub fn run(machines: &mut Machines, report: &mut Report) {
    if !machines.wants("store") {
        return;
    }
    let session = machines
        .image("store")
        .and_then(|image| machines.boot("store", &image, &Machine::of(&image)));
    report.claims(session, CLAIMS);
}

/// What a command prints, without the lines that components log meanwhile.
pub fn printed(session: &mut Session, command: &str) -> Result<String> {
    let text = session.shell(command, SOON)?;
    let lines: Vec<&str> = text.lines().filter(|line| !is_log(line)).collect();
    Ok(lines.join("\n").trim().to_owned())
}

/// `[component] words`.
pub fn is_log(line: &str) -> bool {
    let name = line
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "));
    name.is_some_and(|(name, _)| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'))
}

fn says(session: &mut Session, command: &str, expected: &str) -> Result<()> {
    let said = printed(session, command)?;
    ensure!(said == expected, "{command}: {said:?}, not {expected:?}");
    Ok(())
}

fn fails(session: &mut Session, command: &str) -> Result<()> {
    let said = printed(session, &format!("{command} 2>/dev/null; echo status $?"))?;
    let refused = said.ends_with("status 1");
    ensure!(refused, "{command} is not refused: {said:?}");
    Ok(())
}

/// Has a watch print its events into a file, and waits until the watch is set: then it has fired once.
fn watch(session: &mut Session, path: &str) -> Result<()> {
    session.shell(
        &format!(
            "xenstore-watch {path} >/tmp/fired 2>&1 & until [ -s /tmp/fired ]; do sleep 1; done"
        ),
        SOON,
    )?;
    Ok(())
}

/// Waits until the watch has printed so many lines.
fn fired(session: &mut Session, lines: u32, path: &str) -> Result<()> {
    let waits = format!(
        "until [ $(wc -l </tmp/fired) -ge {lines} ]; do sleep 1; done; tail -n 1 /tmp/fired"
    );
    says(session, &waits, path)
}

const CLAIMS: &[Claim<Session>] = &[
    ("linux_with_a_shared_store_boots_to_a_shell", to_the_shell),
    ("a_component_reads_writes_and_lists", |s| {
        s.saw(
            "[store-probe] read 3000 bytes; children [\"long\"]; Err(Refused(\"ENOENT\"))",
            SOON,
        )
    }),
    ("tools_read_what_the_toolstack_wrote", |s| {
        says(s, "xenstore-read name domid", "one\n1")?;
        says(s, "xenstore-read console/type", "xenconsoled")?;
        says(s, "xenstore-read memory/target", "196608")?;
        says(s, "xenstore-list cpu/0", "availability")
    }),
    ("tools_write_list_and_remove", |s| {
        says(s, "xenstore-write data/a/b hello data/a/c 2", "")?;
        says(s, "xenstore-read data/a/b", "hello")?;
        says(s, "xenstore-list data/a", "b\nc")?;
        says(s, "xenstore-ls data/a", "b = \"hello\"\nc = \"2\"")?;
        says(s, "xenstore-exists data/a/c; echo $?", "0")?;
        says(s, "xenstore-rm data/a/c", "")?;
        says(s, "xenstore-exists data/a/c; echo $?", "1")
    }),
    ("a_guest_cannot_write_what_is_not_its_own", |s| {
        fails(s, "xenstore-write name evil")?;
        fails(s, "xenstore-write /local/domain/2/data/x evil")?;
        fails(s, "xenstore-read /local/domain/2/name")?;
        fails(s, "xenstore-list /")
    }),
    ("tools_set_permissions", |s| {
        says(s, "xenstore-write data/shared 1", "")?;
        says(s, "xenstore-ls -p data/a", "b = \"hello\"   (n1)")?;
        says(s, "xenstore-chmod data/shared n1 r2", "")?;
        let listed = printed(s, "xenstore-ls -p data")?;
        ensure!(listed.contains("shared = \"1\"   (n1,r2)"), "{listed:?}");
        Ok(())
    }),
    ("a_watch_fires_in_the_same_guest", |s| {
        watch(s, "data/w")?;
        says(s, "xenstore-write data/w 1", "")?;
        fired(s, 2, "data/w")?;
        says(s, "xenstore-write data/w/below 1", "")?;
        fired(s, 3, "data/w/below")
    }),
    ("a_component_hears_of_a_guests_write_and_answers", |s| {
        says(s, "xenstore-write data/order hello", "")?;
        s.saw("[store-probe] order: hello", SOON)?;
        says(
            s,
            "until xenstore-exists data/answer; do sleep 1; done; xenstore-read data/answer",
            "hello, too",
        )
    }),
    ("another_guest_reads_what_it_may", |s| {
        s.send(TWO)?;
        // It has been in its shell for long, or comes to it now.
        s.shell("true", 300)?;
        says(s, "xenstore-read name domid", "two\n2")?;
        says(s, &format!("xenstore-read {SHARED}"), "1")?;
        fails(s, &format!("xenstore-write {SHARED} evil"))?;
        fails(s, "xenstore-read /local/domain/1/data/w")?;
        fails(s, "xenstore-read /local/domain/1/name")
    }),
    ("a_watch_fires_over_what_another_guest_wrote", |s| {
        watch(s, SHARED)?;
        s.send(ONE)?;
        says(s, "xenstore-write data/shared 2", "")?;
        s.send(TWO)?;
        fired(s, 2, SHARED)?;
        says(s, &format!("xenstore-read {SHARED}"), "2")
    }),
    ("the_store_is_killed_and_guests_go_on", |s| {
        s.send(ONE)?;
        says(s, "xenstore-write data/order kill", "")?;
        s.saw("[root] component xenstore: restarted (1)", SOON)?;
        s.saw("[xenstore] goes on after ", SOON)?;
        says(s, "xenstore-read data/shared data/a/b", "2\nhello")?;
        says(
            s,
            "xenstore-write data/after 1; xenstore-read data/after",
            "1",
        )
    }),
    ("watches_outlive_the_store", |s| {
        // Each fires once, as one may have been missed.
        fired(s, 4, "data/w")?;
        says(s, "xenstore-write data/w/again 1", "")?;
        fired(s, 5, "data/w/again")?;
        says(s, "xenstore-write data/shared 3", "")?;
        s.send(TWO)?;
        fired(s, 4, SHARED)?;
        says(s, &format!("xenstore-read {SHARED}"), "3")
    }),
    ("killed_again_and_again_it_forgets_nothing", |s| {
        s.send(ONE)?;
        for round in 2..=6 {
            // While requests come without a pause: none of them fails, and none is lost.
            s.shell(
                "rm -f /tmp/stop /tmp/count; (n=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); \
                 xenstore-write data/n $n || echo failed; \
                 [ \"$(xenstore-read data/n)\" = $n ] || echo lost; done >/tmp/lost 2>&1; \
                 echo $n >/tmp/count) & true",
                SOON,
            )?;
            says(s, "xenstore-write data/order kill", "")?;
            s.saw(
                &format!("[root] component xenstore: restarted ({round})"),
                SOON,
            )?;
            let ends = "xenstore-read data/shared; touch /tmp/stop; \
                        until [ -e /tmp/count ]; do sleep 1; done; cat /tmp/lost";
            says(s, ends, "3")?;
        }
        says(s, "xenstore-read data/a/b data/shared", "hello\n3")
    }),
    ("a_guest_that_went_leaves_nothing_in_the_store", |s| {
        s.send(TWO)?;
        s.send("poweroff -f\n")?;
        s.saw("[root] guest two: off", SOON)?;
        s.saw("[store-probe] fired: @releaseDomain special", SOON)?;
        s.send(ONE)?;
        let listed = printed(s, "xenstore-ls -p data")?;
        ensure!(listed.contains("shared = \"3\"   (n1)"), "{listed:?}");
        Ok(())
    }),
    ("the_last_guest_goes", |s| {
        s.send("poweroff -f\n")?;
        let status = s.wait(SOON)?;
        ensure!(status == POWERED_OFF, "QEMU's status is {status}");
        Ok(())
    }),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_components_log_is_not_what_a_guest_says() {
        assert!(is_log("[store-probe] fired: x"));
        assert!(!is_log("[1]+  Done"));
        assert!(!is_log("hello"));
        assert!(!is_log("[    1.2] kernel"));
    }
}
