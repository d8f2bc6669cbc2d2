//! Group `bench`: what single operations cost. The component `bench` and the guest `bench-guest`
//! measure and print instructions, as counted by QEMU; this boots them and reads the lines. A
//! second boot records what one operation of each row executes ([`trace`], by [`debugger`]), and
//! the dear instructions in it are counted ([`dear`]). Each row is held to its limit, and to what
//! was committed ([`mod@baseline`]).
//!
//! The two boots check each other: what was recorded must have as many instructions as the row.

mod baseline;
mod dear;
mod debugger;
mod trace;
mod vmcs;

use std::fs;

use anyhow::{Context, Result, bail};
use image_builder::image::Image;
use image_builder::qemu::Machine;
use image_builder::workspace::CORE;

use self::dear::{Code, Counts};
use self::trace::{Operation, Producer, Recorded, Rounds};
pub use self::vmcs::Accesses;
use crate::bochs;
use crate::machines::Machines;
use crate::report::Report;

/// A row and the most instructions that it may take.
struct Row {
    name: &'static str,
    limit: u64,
    from: Producer,
    /// An exit to the guest's own VMM, and back into the guest.
    own_vmm: bool,
    /// The only components are VMMs: all are linked at the same addresses, so names are right for one only.
    vmm_alone: bool,
}

impl Row {
    /// By how many instructions what was recorded may differ from what was measured. Where threads wait for
    /// each other and time passes, it does, by little.
    fn slack(&self, instructions: u64) -> u64 {
        match (self.own_vmm, self.from) {
            (false, Producer::Guest) => instructions / 50,
            _ => 0,
        }
    }
}

const fn exit(name: &'static str, limit: u64, from: Producer) -> Row {
    Row {
        name,
        limit,
        from,
        own_vmm: true,
        vmm_alone: matches!(from, Producer::Guest),
    }
}

/// What involves others than the guest's own VMM.
const fn others(name: &'static str, limit: u64, vmm_alone: bool) -> Row {
    Row {
        name,
        limit,
        from: Producer::Guest,
        own_vmm: false,
        vmm_alone,
    }
}

const fn call(name: &'static str, limit: u64) -> Row {
    Row {
        name,
        limit,
        from: Producer::Component,
        own_vmm: false,
        vmm_alone: false,
    }
}

/// In the order in which they are shown. The limits are hard: whoever needs more finds first what
/// grew. `docs/performance.md` says what the rows consist of.
const ROWS: &[Row] = &[
    exit("vmm_exit_null", 350, Producer::Component),
    exit("cpuid", 700, Producer::Guest),
    exit("hypercall_xen_version", 700, Producer::Guest),
    exit("rdmsr_apic_base", 700, Producer::Guest),
    exit("port_out", 500, Producer::Guest),
    exit("lapic_read", 1400, Producer::Guest),
    exit("evtchn_send_ipi", 900, Producer::Guest),
    others("blkfront_read_4k", 16_000, false),
    others("blkfront_read_128k", 90_000, false),
    others("grant_map_unmap", 20_000, true),
    others("grant_copy_4k", 15_000, true),
    others("event_there_and_back", 14_000, true),
    call("ipc_same_as", 350),
    call("ipc_cross_as", 420),
    call("idl_call", 900),
];

/// What is shown beside the claims, and whether the baseline is written.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The rows are objects, one a line, on standard output.
    pub json: bool,
    /// The functions that each row spends its instructions in are shown.
    pub segments: bool,
    /// The counts become the baseline.
    pub record: bool,
}

/// Runs the group.
pub fn run(machines: &mut Machines, report: &mut Report, options: Options) {
    let measured = image(machines).and_then(|image| {
        let mut machine = Machine::of(&image);
        machine.smp = 1;
        machine.icount = true;
        let text = transcript(machines, &image, &machine)?;
        Ok((image, machine, text))
    });
    let (image, machine, text) = match measured {
        Ok(measured) => measured,
        Err(error) => return report.fail("every_row_is_measured", format!("{error:#}")),
    };
    let recorded = trace::record(machines, &image, &machine, Some("bench"), "bench-guest")
        .and_then(|recorded| Ok((code(&image)?, recorded)))
        .map_err(|error| format!("{error:#}"));
    let mut counted = Vec::new();
    let mut costs = baseline::Costs::new();
    for row in ROWS {
        let Row { name, limit, .. } = row;
        let claim = format!("{name}_takes_at_most_{limit}_instructions");
        let Some(count) = instructions(&text, name) else {
            report.fail(&claim, reason(&text, name));
            continue;
        };
        let dear = match &recorded {
            Ok((code, recorded)) => operation(recorded, &text, row, count)
                .and_then(|operation| Ok((code.count(operation)?, operation)))
                .map_err(|error| format!("{name}: {error:#}")),
            Err(why) => Err(why.clone()),
        };
        let counts = dear.as_ref().ok().map(|(counts, _)| *counts);
        if options.json {
            println!("{}", object(row, count, counts));
        } else {
            println!("     {name:<24}{count:>8} instructions, limit {limit}");
            if let Some(counts) = counts {
                println!("     {:<24}{}", "", sentence(counts));
            }
        }
        let mut cost = baseline::Cost {
            instructions: count,
            ..baseline::Cost::default()
        };
        if let (Ok((code, _)), Ok((_, operation))) = (&recorded, &dear) {
            for (place, count) in code.segments(operation, row.vmm_alone) {
                if options.segments {
                    report.line(format_args!("     {:<24}{count:>8} {place}", ""));
                }
                cost.segments.insert(place.to_owned(), count);
            }
        }
        costs.insert((*name).to_owned(), cost);
        if count <= *limit {
            report.pass(&claim);
        } else {
            report.fail(&claim, format!("it takes {count}"));
        }
        counted.push((row, dear.map(|(counts, _)| counts)));
    }
    let root = &machines.workspace.root;
    report.claim("no_row_takes_over_3_percent_more_than_committed", || {
        if options.record {
            baseline::store(root, &costs)?;
        }
        baseline::hold(&costs, &baseline::load(root)?)
    });
    report.claim("the_dear_instructions_of_every_row_are_counted", || {
        let failed = counted.iter().find_map(|(_, counts)| counts.as_ref().err());
        match failed {
            None if counted.len() == ROWS.len() => Ok(()),
            None => bail!("rows are missing"),
            Some(why) => bail!("{why}"),
        }
    });
    let counts: Vec<(&Row, Counts)> = counted
        .into_iter()
        .filter_map(|(row, counts)| Some((row, counts.ok()?)))
        .collect();
    report.claim("the_count_misses_nothing_that_must_be_there", || {
        must_be_there(&counts)
    });
    report.claim(
        "an_exit_to_its_own_vmm_and_back_has_no_cr3_write_and_no_xsave_of_ours",
        || own_vmm_is_cheap(&counts),
    );
}

/// A claim about nothing would hold as well: what cannot be done without these must show them.
fn must_be_there(counts: &[(&Row, Counts)]) -> Result<()> {
    for (row, counts) in counts {
        if row.own_vmm && counts.guest_state == 0 {
            bail!("{} enters a guest without VMLOAD", row.name);
        }
    }
    let across = counts.iter().find(|(row, _)| row.name == "ipc_cross_as");
    match across {
        Some((_, counts)) if counts.cr3_writes == 2 => Ok(()),
        Some((_, counts)) => bail!(
            "a call into another space and back has {} CR3 writes",
            counts.cr3_writes
        ),
        None => bail!("a call into another space is not counted"),
    }
}

/// Neither the page tables nor the extended state change between a guest and its VMM.
fn own_vmm_is_cheap(counts: &[(&Row, Counts)]) -> Result<()> {
    let mut exits = 0;
    for (row, counts) in counts.iter().filter(|(row, _)| row.own_vmm) {
        if counts.cr3_writes != 0 || counts.extended_state != 0 {
            bail!("{}: {}", row.name, sentence(*counts));
        }
        exits += 1;
    }
    if exits != ROWS.iter().filter(|row| row.own_vmm).count() {
        bail!("only {exits} of the exits are counted");
    }
    Ok(())
}

/// Every row as Bochs counts it, to be shown and not held to a limit, with VMREADs and VMWRITEs of those
/// that the guest measures. A row that is missing is an error.
pub fn in_bochs(machines: &mut Machines) -> Result<Vec<(&'static str, u64, Option<Accesses>)>> {
    let image = image(machines)?;
    let mut machine = Machine::of(&image);
    machine.smp = 1;
    let sites = trace::sites(trace::guest_file(&image, "bench-guest")?)?;
    let transcript = machines.folder().join("bench.log");
    let (mut session, printed) = bochs::debugged(&image, &machine, &transcript, vmcs::COMMANDS)?;
    let printed = std::thread::spawn(move || vmcs::rounds(printed, &sites));
    for producer in ["components", "guest"] {
        session
            .saw(&format!("BENCH done {producer}"), 300)
            .with_context(|| format!("rows of {producer}"))?;
    }
    let text = session.text();
    // Ends the machine, and with it what it prints.
    drop(session);
    let rounds = printed.join().ok().context("the counting stopped")??;
    let (empty, rounds) = rounds.split_first().context("nothing was printed")?;
    ROWS.iter()
        .map(|row| {
            let Some(count) = instructions(&text, row.name) else {
                bail!("{}: {}", row.name, reason(&text, row.name));
            };
            let place = order(&text, Producer::Guest).position(|name| name == row.name);
            let Some(place) = place else {
                return Ok((row.name, count, None));
            };
            let rounds = rounds.get(place).context("it was not printed")?;
            let accesses = vmcs::of_length(empty, rounds, count).context(row.name);
            match accesses {
                Ok(accesses) => Ok((row.name, count, Some(accesses))),
                Err(_) if row.slack(count) != 0 => Ok((row.name, count, None)),
                Err(error) => Err(error),
            }
        })
        .collect()
}

/// Instructions by function.
pub type Segments = Vec<(String, u64)>;

/// Where each row of an image's guest spends its instructions here, in the order in which the guest
/// measures: the shortest of the recorded rounds, which nothing came into.
pub fn guest_segments(
    machines: &Machines,
    image: &Image,
    machine: &Machine,
    guest: &str,
) -> Result<Vec<Segments>> {
    let code = code(image)?;
    let recorded = trace::record(machines, image, machine, None, guest)?;
    // The meter's empty pair is first.
    let rows = recorded.guest.iter().skip(1);
    rows.map(|rounds| {
        let shortest = rounds.iter().min_by_key(|round| round.len());
        let segments = code.segments(shortest.context("a row without rounds")?, true);
        Ok(segments
            .into_iter()
            .map(|(place, count)| (place.to_owned(), count))
            .collect())
    })
    .collect()
}

/// Bytes of the disk that the guest reads.
const DISK: u64 = 1 << 20;

/// The image, and before that the disk in it: each 8-byte word holds its number.
fn image(machines: &mut Machines) -> Result<Image> {
    let words = (0..DISK / 8).flat_map(u64::to_le_bytes);
    // Where the description has it.
    let folder = machines.workspace.root.join("build/suite");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("bench.img"), words.collect::<Vec<u8>>())?;
    machines.image("bench")
}

fn transcript(machines: &Machines, image: &Image, machine: &Machine) -> Result<String> {
    let mut session = machines.boot("bench", image, machine)?;
    for producer in ["components", "guest"] {
        session
            .saw(&format!("BENCH done {producer}"), 300)
            .with_context(|| format!("rows of {producer}"))?;
    }
    Ok(session.text())
}

fn code(image: &Image) -> Result<Code> {
    let core = trace::debug_file(image, CORE)?;
    let mut components = Vec::new();
    for path in image.debug.iter().filter(|path| *path != core) {
        components.push(fs::read(path)?);
    }
    let vmm = trace::debug_file(image, "vmm")?;
    Code::of(&fs::read(core)?, &components, &fs::read(vmm)?)
}

/// The recorded operation of a row that has as many instructions as were measured undisturbed,
/// beyond those of the meter's empty pair.
fn operation<'a>(
    recorded: &'a Recorded,
    text: &str,
    row: &Row,
    instructions: u64,
) -> Result<&'a Operation> {
    let rows = match row.from {
        Producer::Component => &recorded.component,
        Producer::Guest => &recorded.guest,
    };
    let (empty, rows) = rows.split_first().context("nothing was recorded")?;
    let place = order(text, row.from)
        .position(|name| name == row.name)
        .context("it was not measured")?;
    let rounds = rows.get(place).context("it was not recorded")?;
    of_length(empty, rounds, instructions, row.slack(instructions))
}

fn of_length<'a>(
    empty: &Rounds,
    rounds: &'a Rounds,
    instructions: u64,
    slack: u64,
) -> Result<&'a Operation> {
    let empty = empty.iter().map(Vec::len).min();
    let empty = empty.context("the empty pair was not recorded")?;
    let lengths = || rounds.iter().map(|round| round.len().saturating_sub(empty));
    let at = lengths().position(|length| instructions.abs_diff(length as u64) <= slack);
    at.and_then(|at| rounds.get(at)).with_context(|| {
        let lengths: Vec<usize> = lengths().collect();
        format!("{instructions} instructions were measured, those recorded have {lengths:?}")
    })
}

/// The names of a producer's rows in the order in which it measured them.
fn order(text: &str, producer: Producer) -> impl Iterator<Item = &str> {
    let names = text.split("BENCH name=").skip(1);
    names
        .filter_map(|rest| rest.split(' ').next())
        .filter(move |name| {
            let row = ROWS.iter().find(|row| row.name == *name);
            row.is_some_and(|row| row.from == producer)
        })
}

/// A row for programs.
fn object(row: &Row, instructions: u64, counts: Option<Counts>) -> serde_json::Value {
    let executes = counts.map(|counts| {
        let named = counts.named().into_iter();
        named
            .map(|(name, _, count)| (name.to_owned(), count.into()))
            .collect::<serde_json::Map<_, _>>()
    });
    serde_json::json!({
        "name": row.name,
        "instructions": instructions,
        "limit": row.limit,
        "executes": executes,
    })
}

/// Counts for people.
fn sentence(counts: Counts) -> String {
    let named = counts.named().into_iter();
    let parts: Vec<String> = named
        .map(|(_, name, count)| format!("{count} {name}"))
        .collect();
    parts.join(", ")
}

/// The row's number.
fn instructions(text: &str, row: &str) -> Option<u64> {
    let start = format!("BENCH name={row} instructions=");
    let rest = text.split(&start).nth(1)?;
    rest.split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

fn reason(text: &str, row: &str) -> String {
    let start = format!("BENCH-SKIP name={row} reason=");
    match text
        .split(&start)
        .nth(1)
        .and_then(|rest| rest.lines().next())
    {
        Some(reason) => format!("not measured: {}", reason.trim()),
        None => "there is no such row".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_from_lines_with_prefixes() {
        let text = "[bench] BENCH name=cpuid instructions=612\r\n[x] BENCH-SKIP name=port_out reason=no port\r\n";
        assert_eq!(instructions(text, "cpuid"), Some(612));
        assert_eq!(instructions(text, "port_out"), None);
        assert_eq!(reason(text, "port_out"), "not measured: no port");
    }

    #[test]
    fn rows_come_in_the_order_of_their_lines_and_each_from_its_producer() {
        let text = "[bench] BENCH name=idl_call instructions=1\nBENCH name=cpuid instructions=2\n\
                    BENCH-MIN name=cpuid instructions=2\n[bench] BENCH name=ipc_same_as instructions=3\n";
        let component: Vec<&str> = order(text, Producer::Component).collect();
        assert_eq!(component, ["idl_call", "ipc_same_as"]);
        assert_eq!(order(text, Producer::Guest).collect::<Vec<_>>(), ["cpuid"]);
    }

    #[test]
    fn only_an_operation_of_the_measured_length_counts() {
        let step = trace::Step {
            address: 0,
            ring: 0,
            guest: false,
        };
        let round = |length| vec![step; length];
        let empty = vec![round(7), round(9)];
        let rounds = vec![round(300), round(107)];
        assert_eq!(of_length(&empty, &rounds, 100, 0).unwrap().len(), 107);
        assert!(of_length(&empty, &rounds, 101, 0).is_err());
        assert_eq!(of_length(&empty, &rounds, 101, 1).unwrap().len(), 107);
        assert!(of_length(&Rounds::new(), &rounds, 100, 0).is_err());
    }

    /// Counts as they are when all is well.
    fn good() -> Vec<(&'static Row, Counts)> {
        let counts = |row: &Row| Counts {
            guest_state: if row.own_vmm { 3 } else { 0 },
            cr3_writes: if row.name == "ipc_cross_as" { 2 } else { 0 },
            ..Counts::default()
        };
        ROWS.iter().map(|row| (row, counts(row))).collect()
    }

    #[test]
    fn an_exit_that_loads_tables_or_switches_extended_state_fails_the_claim() {
        assert!(own_vmm_is_cheap(&good()).is_ok());
        for (index, row) in ROWS.iter().enumerate().filter(|(_, row)| row.own_vmm) {
            let mut counts = good();
            counts[index].1.cr3_writes = 1;
            assert!(own_vmm_is_cheap(&counts).is_err(), "{}", row.name);
            let mut counts = good();
            counts[index].1.extended_state = 1;
            assert!(own_vmm_is_cheap(&counts).is_err(), "{}", row.name);
        }
        assert!(own_vmm_is_cheap(&[]).is_err());
    }

    #[test]
    fn a_count_that_sees_nothing_fails_the_claim() {
        assert!(must_be_there(&good()).is_ok());
        let blind: Vec<_> = good()
            .into_iter()
            .map(|(row, _)| (row, Counts::default()))
            .collect();
        assert!(must_be_there(&blind).is_err());
    }
}
