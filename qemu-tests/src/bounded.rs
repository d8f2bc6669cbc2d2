//! Programs that are given so long and no longer: tests of faulty code may never end. Called by group
//! `spec`, and must leave nothing running.

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

/// Runs a program and those that it starts. `None`: they did not end within `limit` and were killed.
pub fn output(command: &mut Command, limit: Duration) -> Result<Option<Output>> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let (sender, ended) = mpsc::channel();
    let readers = [
        read(child.stdout.take(), sender.clone()),
        read(child.stderr.take(), sender),
    ];
    // Both pipes are closed once nobody is left to write into them.
    let late = ended.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
    if late {
        // The group, which is named by its first process and of which that is still a child of this.
        let group = format!("-{}", child.id());
        Command::new("kill").args(["-9", "--", &group]).status()?;
    }
    let [stdout, stderr] = readers.map(|reader| reader.join().unwrap_or_default());
    let status = child.wait()?;
    // Ended at its limit, or by the kill a moment after: what it said is whole or is not asked for.
    let killed = late && status.signal().is_some();
    Ok((!killed).then_some(Output {
        status,
        stdout,
        stderr,
    }))
}

/// Reads all that comes; the sender is dropped at its end, unused.
fn read(
    from: Option<impl Read + Send + 'static>,
    at_end: mpsc::Sender<()>,
) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            // What was read before an error is what there is.
            let _ = from.read_to_end(&mut bytes);
        }
        drop(at_end);
        bytes
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Option<Output> {
        let mut command = Command::new("sh");
        output(command.args(["-c", script]), limit).expect("a shell")
    }

    #[test]
    fn what_ends_says_all_of_it() {
        let all = shell("echo one; echo two >&2; exit 3", Duration::from_secs(60));
        let all = all.expect("it ends");
        assert_eq!(
            (&all.stdout[..], &all.stderr[..]),
            (&b"one\n"[..], &b"two\n"[..])
        );
        assert_eq!(all.status.code(), Some(3));
    }

    #[test]
    fn what_does_not_end_is_killed_with_what_it_started() {
        // Both pipes stay open for as long as one of the two shells lives.
        let script = "sh -c 'while :; do :; done' & while :; do :; done";
        assert!(shell(script, Duration::from_millis(50)).is_none());
    }
}
