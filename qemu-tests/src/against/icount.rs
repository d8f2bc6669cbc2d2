//! How many instructions a machine under -icount has executed, asked by QMP while it runs. Unlike the
//! TSC this leaves out the time in which every CPU was idle, which QEMU's clock skips.
//!
//! QEMU answers at some moment after the question, so this is for what takes very many instructions.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// For the socket to be there, and for each answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Lines that are not answers (QMP's events) that are passed over for one.
const EVENTS: usize = 1000;

/// A path for the socket; it has a hundred bytes at most, which the workspace's may have used up.
pub fn socket(title: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{title}-{}.qmp", std::process::id()))
}

/// Has QEMU listen there.
pub fn listen(command: &mut Command, socket: &Path) {
    let address = format!("unix:{},server=on,wait=off", socket.display());
    command.arg("-qmp").arg(address);
}

/// A connection to one machine.
pub struct Counter {
    answers: BufReader<UnixStream>,
    questions: UnixStream,
}

impl Counter {
    /// Connects, as soon as QEMU listens; nobody else will, so the socket is removed.
    pub fn connect(socket: &Path) -> Result<Counter> {
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => {
                    return Err(error).context("QEMU does not listen");
                }
                Err(_) => std::thread::yield_now(),
            }
        };
        let _ = std::fs::remove_file(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut counter = Counter {
            questions: stream.try_clone()?,
            answers: BufReader::new(stream),
        };
        counter.ask("qmp_capabilities")?;
        Ok(counter)
    }

    /// Instructions executed so far.
    pub fn executed(&mut self) -> Result<u64> {
        let answer = self.ask("query-replay")?;
        let count = answer.get("icount").and_then(Value::as_u64);
        count.with_context(|| format!("no count in {answer}"))
    }

    fn ask(&mut self, question: &str) -> Result<Value> {
        let text = serde_json::json!({ "execute": question }).to_string();
        self.questions.write_all((text + "\n").as_bytes())?;
        for _ in 0..EVENTS {
            let mut line = String::new();
            if self.answers.read_line(&mut line)? == 0 {
                bail!("QEMU ended");
            }
            if let Some(answer) = answer(&line) {
                return answer;
            }
        }
        bail!("QEMU does not answer {question:?}")
    }
}

/// The answer in a line, if it is one: greetings and events are not.
fn answer(line: &str) -> Option<Result<Value>> {
    let value: Value = serde_json::from_str(line).ok()?;
    if let Some(error) = value.get("error") {
        return Some(Err(anyhow::anyhow!("QEMU refuses: {error}")));
    }
    value.get("return").cloned().map(Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn answers_are_told_from_greetings_and_events() {
        assert!(answer("{\"QMP\": {}}\n").is_none());
        assert!(answer("{\"event\": \"RESUME\"}\n").is_none());
        let counted = answer("{\"return\": {\"icount\": 17, \"mode\": \"none\"}}\n");
        assert_eq!(counted.unwrap().unwrap()["icount"], 17);
        assert!(
            answer("{\"error\": {\"class\": \"x\"}}\n")
                .unwrap()
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn any_line_is_read_without_panic(line: String) {
            let _ = answer(&line);
        }
    }
}
