//! Bad components beside a neighbour and a guest: each is contained and reported. The components
//! (`components/hostile`) find out most of it themselves and say so in their logs; what root says
//! of those that die, and whether the guest goes on, is seen from here.

use anyhow::{Context, Result, ensure};
use image_builder::qemu::Machine;

use super::Verdict;
use crate::boot::{PROMPT, takes_a_command};
use crate::machines::Machines;
use crate::report::{Claim, Report};
use crate::session::Session;

/// Seconds until a component has judged, on a slow and shared machine.
const VERDICT: u64 = 300;
/// Seconds until the end of a line whose beginning is there.
const LINE: u64 = 30;

/// What components find out themselves, and which of them.
pub const JUDGED: &[(&str, &str)] = &[
    ("exceptions_stop_their_thread", "hostile-faults"),
    ("the_cores_memory_is_out_of_reach", "hostile-faults"),
    ("bad_addresses_stop_their_thread", "hostile-faults"),
    ("ports_without_a_right_fault", "hostile-faults"),
    ("privileged_instructions_fault", "hostile-faults"),
    ("segments_of_the_core_cannot_be_loaded", "hostile-faults"),
    ("flags_do_not_follow_into_the_core", "hostile-faults"),
    ("harmless_instructions_work", "hostile-faults"),
    ("every_software_interrupt_faults", "hostile-faults"),
    ("vector_registers_are_out_of_reach", "hostile-faults"),
    ("a_call_at_the_last_address_is_contained", "hostile-faults"),
    ("an_empty_slot_names_nothing", "hostile-caps"),
    ("an_unknown_call_is_refused", "hostile-caps"),
    ("a_right_that_was_not_given_cannot_be_used", "hostile-caps"),
    ("a_copy_has_no_more_rights", "hostile-caps"),
    ("a_capability_of_another_kind_is_refused", "hostile-caps"),
    ("memory_ends_where_it_ends", "hostile-caps"),
    ("a_revoked_capability_is_gone", "hostile-caps"),
    ("a_destroyed_object_stays_destroyed", "hostile-caps"),
    ("random_calls_touch_only_what_they_name", "hostile-storm"),
    ("memory_is_zero_when_it_changes_hands", "hostile-memory"),
    ("all_slots_can_be_used_up", "hostile-memory"),
    ("all_memory_can_be_used_up", "hostile-memory"),
    ("memory_taken_back_is_out_of_reach", "hostile-borrower"),
    (
        "a_component_cannot_take_the_operators_input",
        "hostile-postcard",
    ),
    ("root_survives_malformed_messages", "hostile-postcard"),
    (
        "root_survives_malformed_reports_of_builders",
        "hostile-postcard",
    ),
    (
        "the_console_survives_malformed_messages",
        "hostile-postcard",
    ),
    (
        "a_component_survives_malformed_messages",
        "hostile-postcard",
    ),
    (
        "a_client_cannot_take_all_places_at_the_console",
        "hostile-postcard",
    ),
    ("damaged_rings_damage_nobody_else", "hostile-postcard"),
    ("a_guest_keeps_its_registers", "secret"),
    (
        "extended_registers_hold_nobody_elses_values",
        "hostile-registers",
    ),
    (
        "the_cpus_registers_hold_nobody_elses_values",
        "hostile-registers",
    ),
    (
        "general_registers_hold_nobody_elses_values",
        "hostile-registers",
    ),
    ("a_loop_starves_nobody_of_its_priority", "hostile-loop"),
    ("a_client_gives_up_on_a_mute_server", "hostile-mute"),
];

/// Waits for what a component says of a claim: `claim holds: NAME (what)`, or
/// `claim fails: NAME (why)`.
pub fn judged(session: &mut Session, name: &str, seconds: u64) -> Result<Verdict> {
    let [holds, fails] = ["holds", "fails"].map(|word| format!("claim {word}: {name} ("));
    match session.saw_one_of(&[&holds, &fails], seconds)? {
        0 => Ok(Verdict::Holds),
        _ => {
            let why = session.saw_line(&fails, LINE)?;
            Ok(Verdict::Fails(why.trim_end_matches(')').to_owned()))
        }
    }
}

fn verdict(session: &mut Session, name: &str, seconds: u64) -> Result<()> {
    judged(session, name, seconds)?.holds()
}

/// What root says of a component that died: all of these, in its report.
struct Death {
    claim: &'static str,
    says: &'static [&'static str],
}

const DEATHS: &[Death] = &[
    Death {
        claim: "a_read_of_the_core_is_reported",
        says: &[
            "component hostile-core-read: fault: page fault (vector 14, code 0x5, address 0xffff800000100000)",
            "rip ",
            "r15 ",
            "#0 ",
            "hostile::deaths::read_core+",
            "hostile::main+",
        ],
    },
    Death {
        claim: "a_wild_jump_is_reported",
        says: &[
            "component hostile-wild-jump: fault: page fault (vector 14, code 0x14, address 0x666000000000)",
            "#0 0x666000000000",
            "hostile::main+",
        ],
    },
    Death {
        claim: "a_stack_overflow_is_reported",
        says: &[
            "component hostile-recursion: fault: page fault (vector 14, code 0x6, address 0x7fff00f",
            "hostile::deaths::recursion+",
        ],
    },
    Death {
        claim: "exhausted_memory_is_reported",
        says: &[
            "component hostile-heap: panic: ",
            "memory allocation of 100000 bytes failed",
            "hostile::deaths::eat_the_heap+",
        ],
    },
    Death {
        claim: "a_message_that_lies_is_shown_as_text",
        says: &[
            "component hostile-liar: panic: ",
            "[root] guest grub: poweroff",
            "hostile::deaths::liar+",
        ],
    },
];

/// All of `says` follow each other.
fn reported(session: &mut Session, death: &Death) -> Result<()> {
    for says in death.says {
        session.saw(says, VERDICT)?;
    }
    let text = session.text();
    let mut rest = text.as_str();
    for says in death.says {
        rest = rest
            .split_once(says)
            .with_context(|| format!("{says:?} does not come after what should be before it"))?
            .1;
    }
    Ok(())
}

/// What holds of the system after all that.
const AFTERWARDS: &[Claim<Session>] = &[
    ("nobody_forged_a_line_of_roots", |session| {
        let text = session.text();
        ensure!(
            !text
                .lines()
                .any(|line| line.starts_with("[root] guest grub: poweroff")),
            "a component's message became a line of its own"
        );
        let at = text.find("hostile-liar").unwrap_or(0);
        ensure!(
            !text[at..].contains("\x1b[2J"),
            "a component cleared the operator's screen"
        );
        Ok(())
    }),
    ("the_neighbour_goes_on", |session| {
        // Twice: the first may have been written before.
        session.expect("[neighbour] beat ", 60)?;
        session.expect("[neighbour] beat ", 60)?;
        ensure!(
            !session.text().contains("the_neighbours_memory_is_its_own"),
            "somebody wrote into its memory"
        );
        Ok(())
    }),
    ("the_guest_takes_a_command", |session| {
        session.saw("grub>", PROMPT)?;
        takes_a_command(session)
    }),
    ("nothing_else_died", |session| {
        let text = session.text();
        let died: Vec<_> = text
            .lines()
            .filter(|line| line.contains("[root] ERROR: component "))
            .filter(|line| line.contains(": fault: ") || line.contains(": panic: "))
            .filter(|line| !DEATHS.iter().any(|death| line.contains(death.says[0])))
            .collect();
        ensure!(died.is_empty(), "{}", died.join("\n"));
        Ok(())
    }),
];

const FLOOD: &[Claim<Session>] = &[
    ("a_flood_of_signals_begins", |session| {
        session
            .expect("[hostile-flood] begins to signal", 90)
            .map(|_| ())
    }),
    ("the_guest_starts_in_a_flood", |session| {
        session.saw("grub>", PROMPT)
    }),
    ("the_neighbour_goes_on_in_a_flood", |session| {
        verdict(session, "a_loop_starves_nobody_of_its_priority", VERDICT)
    }),
    ("the_guest_takes_a_command_in_a_flood", takes_a_command),
    ("the_flood_goes_on", |session| {
        session.expect(" signals", 60).map(|_| ())
    }),
];

/// Runs the claims.
pub fn run(machines: &mut Machines, report: &mut Report) {
    if machines.wants("hostile-components") {
        let session = boot(machines, "hostile-components");
        let judged: Vec<_> = JUDGED.iter().map(|(name, _)| *name).collect();
        match session {
            Ok(mut session) => {
                for name in judged {
                    report.claim(name, || verdict(&mut session, name, VERDICT));
                }
                for death in DEATHS {
                    report.claim(death.claim, || reported(&mut session, death));
                }
                report.claims(Ok(session), AFTERWARDS);
            }
            Err(error) => report.fail("hostile_components_boot", format!("{error:#}")),
        }
    }
    if machines.wants("hostile-flood") {
        let session = boot(machines, "hostile-flood");
        report.claims(session, FLOOD);
    }
}

fn boot(machines: &mut Machines, name: &str) -> Result<Session> {
    let image = machines.image(name)?;
    machines.boot(name, &image, &Machine::of(&image))
}
