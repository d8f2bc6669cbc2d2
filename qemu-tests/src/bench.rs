//! Group `bench`: instructions of single operations, counted by QEMU. The component `bench` and
//! the guest `bench-guest` measure and print; this boots them and reads the lines.

use anyhow::{Context, Result};
use image_builder::qemu::Machine;

use crate::machines::Machines;
use crate::report::Report;

/// A row and the most instructions that it may take.
struct Row {
    name: &'static str,
    limit: u64,
}

const fn row(name: &'static str, limit: u64) -> Row {
    Row { name, limit }
}

/// In the order in which they are shown. The limits are hard: whoever needs more finds first what
/// grew. `docs/performance.md` says what the rows consist of.
const ROWS: &[Row] = &[
    row("vmm_exit_null", 350),
    row("cpuid", 700),
    row("hypercall_xen_version", 700),
    row("rdmsr_apic_base", 700),
    row("port_out", 500),
    row("lapic_read", 1400),
    row("evtchn_send_ipi", 900),
    row("ipc_same_as", 350),
    row("ipc_cross_as", 420),
    row("idl_call", 900),
];

/// Runs the group; with `json`, the rows are objects, one a line, on standard output.
pub fn run(machines: &mut Machines, report: &mut Report, json: bool) {
    let text = transcript(machines);
    let text = match text {
        Ok(text) => text,
        Err(error) => return report.fail("every_row_is_measured", format!("{error:#}")),
    };
    for Row { name, limit } in ROWS {
        let claim = format!("{name}_takes_at_most_{limit}_instructions");
        let Some(count) = instructions(&text, name) else {
            report.fail(&claim, reason(&text, name));
            continue;
        };
        if json {
            let row = serde_json::json!({ "name": name, "instructions": count, "limit": limit });
            println!("{row}");
        } else {
            println!("     {name:<24}{count:>8} instructions, limit {limit}");
        }
        if count <= *limit {
            report.pass(&claim);
        } else {
            report.fail(&claim, format!("it takes {count}"));
        }
    }
}

fn transcript(machines: &mut Machines) -> Result<String> {
    let image = machines.image("bench")?;
    let mut machine = Machine::of(&image);
    machine.smp = 1;
    machine.icount = true;
    let mut session = machines.boot("bench", &image, &machine)?;
    for producer in ["components", "guest"] {
        session
            .saw(&format!("BENCH done {producer}"), 300)
            .with_context(|| format!("rows of {producer}"))?;
    }
    Ok(session.text())
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
}
