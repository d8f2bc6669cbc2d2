//! Group `selftest`: the component of that name in root's place on four CPUs, and on two for claims
//! that need a clock that counts instructions. Every claim is its own; here is the list of what it must
//! say, so that a claim that is left out is noticed.

use anyhow::{Context, Result, bail};
use image_builder::controls::Control;
use image_builder::image::Image;
use image_builder::qemu::Machine;

use crate::hostile::{Verdict, says_so};
use crate::machines::Machines;
use crate::report::Report;

/// Its claims, in its order.
const CLAIMS: &[&str] = &[
    "a_running_thread_moves",
    "a_ready_thread_moves",
    "a_blocked_thread_moves",
    "a_deadline_moves_with_its_thread",
    "a_thread_moves_itself",
    "no_call_is_lost_or_made_twice_by_moves",
    "suspend_and_resume_reach_a_thread_anywhere",
    "cancel_ends_each_blocking_call",
    "a_bound_notification_reaches_a_receiver",
    "a_spent_budget_leaves_the_cpu_to_others",
    "no_wake_up_is_lost_on_the_way_to_sleep",
    "no_read_succeeds_after_a_revoke",
    "a_revoke_of_many_pages_reaches_every_one",
    "a_page_unmapped_here_is_gone_at_once",
    "an_instruction_that_exits_is_reported",
    "a_poke_is_sticky_and_a_deadline_ends_a_run",
    "a_vcpu_runs_once_at_a_time",
    "a_poke_ends_a_run_elsewhere",
    "a_cancel_ends_a_run",
    "a_bound_notification_ends_a_run",
    "a_running_vcpu_moves_with_its_thread",
    "a_vcpus_fpu_follows_it",
    "a_vcpu_is_destroyed_while_it_runs",
    "a_suspended_run_goes_on_elsewhere",
    "a_guest_page_that_is_unmapped_is_gone_at_once",
    "an_interrupt_waits_for_its_window",
    "an_nmi_waits_for_the_end_of_the_last",
    "extended_state_is_set_and_got",
    "debug_registers_are_the_guests_own",
    "a_breakpoint_reaches_the_guest",
    "ports_are_given_and_taken_back",
    "task_priority_is_in_the_state",
];

/// Those that it makes on two CPUs, where instructions are counted.
const COUNTED: &[&str] = &["no_deadline_is_lost_on_the_way_to_sleep"];

/// Runs the group.
pub fn run(machines: &mut Machines, report: &mut Report) {
    for (title, claims) in [("selftest", CLAIMS), ("selftest-counted", COUNTED)] {
        if machines.wants(title) {
            boots(machines, report, title, claims);
        }
    }
}

/// Boots the component and reads what it says of its claims.
fn boots(machines: &mut Machines, report: &mut Report, title: &str, claims: &[&str]) {
    let text = match transcript(machines, title, claims == COUNTED) {
        Ok(text) => text,
        Err(error) => return report.fail(&format!("{title}_runs"), format!("{error:#}")),
    };
    for &name in claims {
        report.claim(name, || holds(&text, name));
    }
    report.claim(&format!("every_claim_of_{title}_is_listed"), || {
        let said = |line: &&str| line.starts_with("selftest: ") && !line.ends_with("CPUs");
        // All but the last line, which is no claim.
        let all = text.lines().map(str::trim).filter(said).count() - 1;
        let listed = claims.len();
        match all == listed {
            true => Ok(()),
            false => bail!("it made {all} claims, {listed} are listed"),
        }
    });
}

/// What it wrote until it was done.
fn transcript(machines: &mut Machines, title: &str, counted: bool) -> Result<String> {
    let image = machines.image("selftest")?;
    let mut session = machines.boot(title, &image, &machine(&image, counted))?;
    // A claim may wait half a minute for a condition.
    let all = session.saw("selftest: done", 300);
    all.context("its last line")?;
    Ok(session.text())
}

/// What it boots on.
fn machine(image: &Image, counted: bool) -> Machine {
    let mut machine = Machine::of(image);
    if counted {
        machine.smp = 2;
        machine.icount = true;
    }
    machine
}

/// What the component finds of one claim with a check of the core off.
pub fn judged(machines: &mut Machines, control: &Control, claim: &str) -> Result<Verdict> {
    let image = machines.image("selftest")?;
    let machine = machine(&image, COUNTED.contains(&claim));
    let mut session = machines.boot("selftest", &image, &machine)?;
    says_so(&mut session, control)?;
    let [holds, fails] = ["ok", "FAILED: "].map(|word| format!("selftest: {claim} {word}"));
    match session.saw_one_of(&[&holds, &fails], 300)? {
        0 => Ok(Verdict::Holds),
        _ => Ok(Verdict::Fails(session.saw_line(&fails, 30)?)),
    }
}

/// The claim's line says that it holds.
fn holds(text: &str, name: &str) -> Result<()> {
    let start = format!("selftest: {name} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&start));
    match line.map(str::trim) {
        Some("ok") => Ok(()),
        Some(other) => bail!("{other}"),
        None => bail!("it says nothing of it"),
    }
}
