//! Non-interference: what a component observes is the same whatever a neighbour does that it has no
//! wire to, time aside. Called by group `selftest`, whose second half it is.
//!
//! One CPU, and a clock that counts instructions. The systems that are compared differ in one file of
//! five bytes, which says whether the neighbour sleeps or does all that it can
//! (`components/observer`). The control is the same pair with a wire between the two: there the traces
//! must differ, or the observer would not see what it should.

use anyhow::{Context, Result, bail, ensure};
use image_builder::image::Image;
use image_builder::qemu::Machine;

use crate::machines::Machines;
use crate::report::Report;

/// What the neighbour's file says.
const BEHAVIOURS: [&str; 2] = ["quiet", BUSY];
/// The one that makes it do something.
const BUSY: &str = "storm";

/// Instructions that the observer, which is more urgent, may be woken later because of the neighbour:
/// no longer than the core works on one call, and the way to the observer.
const LATER: u64 = 10_000;

/// What the observer said: its trace, and how much too late it was woken at most.
struct Seen {
    trace: Vec<String>,
    late: u64,
}

/// Runs the claims.
pub fn run(machines: &mut Machines, report: &mut Report) {
    if !machines.wants("interference") {
        return;
    }
    report.claim("what_an_unconnected_neighbour_does_is_not_observed", || {
        let [quiet, storm] = both(machines, "interference")?;
        if let Some(difference) = difference(&quiet, &storm) {
            bail!("{difference}");
        }
        println!(
            "     {} rounds; woken up to {} instructions late beside a neighbour that sleeps, {} beside a busy one",
            quiet.trace.len(),
            quiet.late,
            storm.late
        );
        let later = storm.late.saturating_sub(quiet.late);
        ensure!(
            later <= LATER,
            "the neighbour delays the observer by {later} instructions"
        );
        Ok(())
    });
    report.claim(
        "control_what_a_connected_neighbour_does_is_observed",
        || {
            let [quiet, storm] = both(machines, "interference-wired")?;
            let difference = difference(&quiet, &storm).context("nothing was observed")?;
            println!("     seen: {}", difference.lines().last().unwrap_or(""));
            Ok(())
        },
    );
}

/// What the observer sees in a system with either behaviour.
fn both(machines: &mut Machines, name: &str) -> Result<[Seen; 2]> {
    let image = machines.image(name)?;
    let [quiet, storm] = BEHAVIOURS.map(|behaviour| boot(machines, name, &image, behaviour));
    Ok([quiet?, storm?])
}

/// Boots a system whose neighbour behaves like this.
fn boot(machines: &Machines, name: &str, image: &Image, behaviour: &str) -> Result<Seen> {
    let mut image = image.clone();
    let mut files = image.contents.files.iter_mut();
    let (_, file) = files
        .find(|(_, bytes)| bytes == BEHAVIOURS[0].as_bytes())
        .context("the neighbour has no file")?;
    ensure!(file.len() == behaviour.len(), "the systems differ in more");
    *file = behaviour.as_bytes().to_vec();
    let title = format!("{name}-{behaviour}");
    let archive = machines.folder().join(format!("{title}.archive"));
    image.write_archive(&archive)?;
    let mut machine = Machine::of(&image);
    machine.icount = true;
    machine.archive = Some(archive);
    let mut session = machines.boot(&title, &image, &machine)?;
    session.saw("[observer] role done", 300)?;
    let text = session.text();
    // The trace is told when all of it is there, so what stands before it happened meanwhile.
    let before = text.split("[observer] trace ").next().unwrap_or("");
    let busy = before.contains("[neighbour] busy");
    ensure!(
        busy == (behaviour == BUSY),
        "the neighbour is not {behaviour}"
    );
    seen(&text)
}

/// Reads the observer's lines.
fn seen(text: &str) -> Result<Seen> {
    let lines = |mark: &'static str| {
        let all = text.lines().map(str::trim);
        all.filter_map(move |line| line.split_once(mark))
    };
    let trace: Vec<String> = lines("[observer] trace ")
        .map(|(_, line)| line.to_owned())
        .collect();
    ensure!(trace.len() >= 2, "there is no trace");
    let late = lines("[observer] time: woken up to ")
        .filter_map(|(_, rest)| rest.split(' ').next()?.parse().ok())
        .next();
    Ok(Seen {
        trace,
        late: late.context("it says nothing of time")?,
    })
}

/// The first line that differs.
fn difference(one: &Seen, other: &Seen) -> Option<String> {
    let longest = one.trace.len().max(other.trace.len());
    (0..longest).find_map(|index| {
        let (one, other) = (one.trace.get(index), other.trace.get(index));
        (one != other).then(|| {
            let line = |line: Option<&String>| line.map_or("no such round", |l| l).to_owned();
            format!("{}\n{}", line(one), line(other))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_are_read_and_compared() {
        let text = |bits| {
            format!(
                "[observer] trace 0: bits 0\r\n[root] x\r\n[observer] trace 1: bits {bits}\r\n\
                 [observer] time: woken up to 17 late, a round up to 5\r\n"
            )
        };
        let (one, other) = (
            seen(&text(0)).expect("a trace"),
            seen(&text(4)).expect("too"),
        );
        assert_eq!((one.trace.len(), one.late), (2, 17));
        assert_eq!(difference(&one, &one), None);
        let difference = difference(&one, &other).expect("one bit");
        assert_eq!(difference, "1: bits 0\n1: bits 4");
        assert!(seen("[observer] role done").is_err());
    }
}
