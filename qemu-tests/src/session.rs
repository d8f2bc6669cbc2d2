//! A machine under test: QEMU with its serial port on pipes, what it printed and when, and
//! waiting for that. Every wait has a deadline; QEMU never outlives its session; the transcript
//! is kept in a file from the first byte on.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Lines of the transcript that a failure shows.
const TAIL_LINES: usize = 25;

/// What came out so far.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    /// When the bytes up to an offset had arrived.
    arrived: Vec<(usize, Instant)>,
    closed: bool,
}

impl Output {
    /// End of the first `pattern` at or after `from`, and when it had arrived.
    fn find(&self, pattern: &[u8], from: usize) -> Option<(usize, Instant)> {
        let rest = self.bytes.get(from..)?;
        let at = rest
            .windows(pattern.len())
            .position(|window| window == pattern)?;
        let end = from + at + pattern.len();
        let when = self.arrived.iter().find(|(upto, _)| *upto >= end)?.1;
        Some((end, when))
    }
}

type Shared = Arc<(Mutex<Output>, Condvar)>;

fn create(transcript: &Path) -> Result<File> {
    if let Some(folder) = transcript.parent() {
        fs::create_dir_all(folder)?;
    }
    File::create(transcript).with_context(|| format!("cannot write {}", transcript.display()))
}

fn lock(shared: &Shared) -> MutexGuard<'_, Output> {
    // A reader that panicked leaves plain bytes, which are as good as before.
    shared
        .0
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A running machine.
pub struct Session {
    child: Child,
    input: Option<Box<dyn Write + Send>>,
    /// Waits take so many times as long as they say.
    patience: u32,
    output: Shared,
    reader: Option<JoinHandle<()>>,
    transcript: PathBuf,
    /// Everything before is consumed.
    at: usize,
    commands: u32,
    /// Something did not come in time: what follows is not worth the same patience.
    late: bool,
}

/// Patience with a machine that was late once.
const LATE: Duration = Duration::from_secs(15);

impl Session {
    /// Starts `command`, whose standard output is the serial port.
    pub fn start(mut command: Command, transcript: &Path) -> Result<Session> {
        let mut file = create(transcript)?;
        writeln!(file, "{command:?}")?;
        let errors = file.try_clone()?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot start {:?}", command.get_program()))?;
        let stdout = child.stdout.take().context("no pipe")?;
        let stdin = child.stdin.take().context("no pipe")?;
        Self::with(child, stdout, Box::new(stdin), file, transcript)
    }

    /// A machine that `child` emulates, whose serial port is `from` and `to`.
    pub fn over(
        child: Child,
        from: impl Read + Send + 'static,
        to: Box<dyn Write + Send>,
        transcript: &Path,
    ) -> Result<Session> {
        Self::with(child, from, to, create(transcript)?, transcript)
    }

    fn with(
        child: Child,
        mut from: impl Read + Send + 'static,
        to: Box<dyn Write + Send>,
        mut file: File,
        transcript: &Path,
    ) -> Result<Session> {
        let output = Shared::default();
        let shared = Arc::clone(&output);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let count = match from.read(&mut buffer) {
                    Ok(0) | Err(_) => break,
                    Ok(count) => count,
                };
                let now = Instant::now();
                let bytes = &buffer[..count];
                let _ = file.write_all(bytes);
                let mut output = lock(&shared);
                output.bytes.extend_from_slice(bytes);
                let end = output.bytes.len();
                output.arrived.push((end, now));
                shared.1.notify_all();
            }
            lock(&shared).closed = true;
            shared.1.notify_all();
        });
        Ok(Session {
            child,
            input: Some(to),
            patience: 1,
            output,
            reader: Some(reader),
            transcript: transcript.to_owned(),
            at: 0,
            commands: 0,
            late: false,
        })
    }

    /// Every wait takes `times` as long from here on: the machine is slow.
    pub fn be_patient(&mut self, times: u32) {
        self.patience = times;
    }

    /// How long a wait of `within` takes on this machine, as it is now.
    fn patiently(&self, within: Duration) -> Duration {
        let within = if self.late { within.min(LATE) } else { within };
        within * self.patience
    }

    /// Waits for `pattern` in what was not consumed yet; consumes up to its end. Returns the text
    /// before it, and when it came.
    pub fn expect_at(&mut self, pattern: &str, within: Duration) -> Result<(String, Instant)> {
        let within = self.patiently(within);
        let deadline = Instant::now() + within;
        let mut output = lock(&self.output);
        loop {
            if let Some((end, when)) = output.find(pattern.as_bytes(), self.at) {
                let before = output
                    .bytes
                    .get(self.at..end - pattern.len())
                    .unwrap_or(&[]);
                let before = String::from_utf8_lossy(before).into_owned();
                self.at = end;
                return Ok((before, when));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if output.closed || left.is_zero() {
                let closed = output.closed;
                drop(output);
                self.late = true;
                let why = if closed {
                    "the machine ended"
                } else {
                    "it did not come in time"
                };
                bail!(
                    "waited {} s for {pattern:?}: {why}\n{}",
                    within.as_secs(),
                    self.tail()
                );
            }
            output = match self.output.1.wait_timeout(output, left) {
                Ok((guard, _)) => guard,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// [`Session::expect_at`] without the time.
    pub fn expect(&mut self, pattern: &str, seconds: u64) -> Result<String> {
        Ok(self.expect_at(pattern, Duration::from_secs(seconds))?.0)
    }

    /// Waits for `pattern` anywhere in the transcript; consumes nothing.
    pub fn saw(&mut self, pattern: &str, seconds: u64) -> Result<()> {
        self.saw_after(0, pattern, seconds)
    }

    /// Where the transcript ends now.
    pub fn end(&self) -> usize {
        lock(&self.output).bytes.len()
    }

    /// Waits for `pattern` after that place in the transcript; consumes nothing.
    pub fn saw_after(&mut self, place: usize, pattern: &str, seconds: u64) -> Result<()> {
        let at = std::mem::replace(&mut self.at, place);
        let found = self.expect(pattern, seconds);
        self.at = at;
        found.map(|_| ())
    }

    /// Waits for `pattern` anywhere in the transcript, and for the end of its line; consumes
    /// nothing. What the first such line says after it.
    pub fn saw_line(&mut self, pattern: &str, seconds: u64) -> Result<String> {
        let at = std::mem::replace(&mut self.at, 0);
        let found = self
            .expect(pattern, seconds)
            .and_then(|_| self.expect("\n", seconds));
        self.at = at;
        Ok(found?.trim_end().to_owned())
    }

    /// Waits for the first of `patterns` that comes anywhere in the transcript; consumes nothing.
    /// Its place in the list; of several that are there, the first one listed.
    pub fn saw_one_of(&mut self, patterns: &[&str], seconds: u64) -> Result<usize> {
        let within = self.patiently(Duration::from_secs(seconds));
        let deadline = Instant::now() + within;
        let mut output = lock(&self.output);
        loop {
            let there = |pattern: &&str| output.find(pattern.as_bytes(), 0).is_some();
            if let Some(which) = patterns.iter().position(there) {
                return Ok(which);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if output.closed || left.is_zero() {
                let why = match output.closed {
                    true => "the machine ended",
                    false => "none came in time",
                };
                drop(output);
                self.late = true;
                bail!(
                    "waited {} s for one of {patterns:?}: {why}\n{}",
                    within.as_secs(),
                    self.tail()
                );
            }
            output = match self.output.1.wait_timeout(output, left) {
                Ok((guard, _)) => guard,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Everything printed so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&lock(&self.output).bytes).into_owned()
    }

    /// Types `text` as it is.
    pub fn send(&mut self, text: &str) -> Result<()> {
        let input = self
            .input
            .as_mut()
            .context("the machine's input is closed")?;
        input
            .write_all(text.as_bytes())
            .and_then(|()| input.flush())
            .context("the machine takes no input")
    }

    /// Runs a command in the guest's shell and returns what it printed; an error if it failed.
    pub fn shell(&mut self, command: &str, seconds: u64) -> Result<String> {
        self.commands += 1;
        let number = self.commands;
        // The quotes keep the markers out of the echo, which line editing may repeat and break.
        self.send(&format!(
            "echo beg''in-{number}; {command}; echo en''d-{number}-$?-\n"
        ))?;
        self.expect(&format!("begin-{number}"), seconds)?;
        let printed = self
            .expect(&format!("end-{number}-"), seconds)?
            .replace('\r', "");
        let status = self.expect("-", 10)?;
        if status != "0" {
            bail!("{command:?} ended with {status}: {}", printed.trim());
        }
        Ok(printed.trim().to_owned())
    }

    /// Processor time that the emulator has had, in seconds: how far its machine can have come,
    /// whatever else the host does.
    pub fn processor_seconds(&self) -> Result<f64> {
        // proc(5): utime and stime are fields 14 and 15, in ticks of 1/100 s (USER_HZ); the
        // command's name before them ends with the last parenthesis.
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields = stat.rsplit_once(')').context("no stat")?.1;
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: Vec<f64> = ticks.filter_map(|field| field.parse().ok()).collect();
        Ok(ticks.iter().sum::<f64>() / 100.0)
    }

    /// Waits for QEMU to end; its exit status.
    pub fn wait(&mut self, seconds: u64) -> Result<i32> {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        // The end of its output comes with its own end.
        let mut output = lock(&self.output);
        while !output.closed {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(output);
                bail!("QEMU still runs after {seconds} s\n{}", self.tail());
            }
            output = match self.output.1.wait_timeout(output, left) {
                Ok((guard, _)) => guard,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        drop(output);
        let status = self.child.wait()?;
        status
            .code()
            .with_context(|| format!("QEMU ended with {status}"))
    }

    /// The end of the transcript, for a failure's message.
    pub fn tail(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines
            .get(lines.len().saturating_sub(TAIL_LINES)..)
            .unwrap_or(&[]);
        let shown: Vec<String> = tail
            .iter()
            .map(|line| format!("| {}", plain(line)))
            .collect();
        format!(
            "{}\nthe whole transcript: {}",
            shown.join("\n"),
            self.transcript.display()
        )
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// A line without control characters and escape sequences.
fn plain(line: &str) -> String {
    let mut out = String::new();
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\x1b' => {
                // CSI: parameters, then one final letter.
                for next in letters.by_ref() {
                    if next.is_ascii_alphabetic() || next == '~' {
                        break;
                    }
                }
            }
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, name: &str) -> Session {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let path =
            std::env::temp_dir().join(format!("suite-session-{}-{name}.log", std::process::id()));
        Session::start(command, &path).unwrap()
    }

    #[test]
    fn patterns_are_consumed_in_order() {
        let mut session = shell("echo one two; echo three", "order");
        assert_eq!(session.expect("two", 10).unwrap(), "one ");
        assert!(
            session
                .expect("one", 10)
                .unwrap_err()
                .to_string()
                .contains("the machine ended")
        );
        session.saw("one", 1).unwrap();
        session.expect("three", 10).unwrap();
        assert_eq!(session.wait(10).unwrap(), 0);
    }

    #[test]
    fn the_first_of_several_patterns_is_told() {
        let mut session = shell("echo one; echo two", "several");
        assert_eq!(session.saw_one_of(&["never", "two"], 10).unwrap(), 1);
        assert_eq!(session.saw_one_of(&["two", "one"], 10).unwrap(), 0);
        assert!(session.saw_one_of(&["never"], 10).is_err());
        assert_eq!(session.saw_line("t", 10).unwrap(), "wo");
        let end = session.end();
        assert!(session.saw_after(end, "two", 1).is_err());
        // Nothing was consumed.
        session.expect("one", 10).unwrap();
    }

    #[test]
    fn a_shell_command_gives_its_output_and_its_failure() {
        // Echoes what is typed, as a terminal does, then runs it.
        let mut session = shell(
            "while IFS= read -r line; do echo \"$line\"; eval \"$line\"; done",
            "shell",
        );
        assert_eq!(session.shell("echo hello", 10).unwrap(), "hello");
        assert!(session.shell("false", 10).is_err());
    }

    #[test]
    fn a_wait_ends_at_its_deadline() {
        let mut session = shell("exec sleep 60", "deadline");
        let start = Instant::now();
        assert!(session.expect("never", 1).is_err());
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn escape_sequences_are_not_shown() {
        assert_eq!(plain("\x1b[1;31mred\x1b[0m\r"), "red");
    }
}
