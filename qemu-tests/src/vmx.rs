//! Group `vmx`: guests on Intel's VMX, in Bochs ([`crate::bochs`]). The images are those that run on
//! SVM in QEMU: only the medium differs. One short boot always; with `--full` the tests of the groups
//! guests, selftest, hostile and restart over again, CPUs that lack something, and firmware that left
//! VMX unlocked. Bochs does about 90 million instructions a second, so that takes a long while.

use anyhow::{Context, Result, anyhow, ensure};
use image_builder::packages;
use image_builder::qemu::{Machine, Medium};

use crate::bochs;
use crate::boot::{PROMPT, takes_a_command};
use crate::guests::to_the_shell;
use crate::hostile::components;
use crate::machines::Machines;
use crate::report::{Claim, Report};
use crate::session::Session;
use crate::{bench, restart, selftest};

/// Kernel of the Linux guests: the smallest of Debian's.
const KERNEL: &str = "6.1-cloud";
/// Seconds until the core runs, from the firmware on.
const LOADER: u64 = 240;
/// Seconds until a role of the hostile guest is done.
const ROLE: u64 = 1500;

const GRUB: &[Claim<Session>] = &[
    ("the_core_chooses_vmx", |session| {
        session.saw("core: VMX: EPT, unrestricted guests", LOADER)
    }),
    ("two_cpus_run", |session| session.saw("2 CPUs run", 60)),
    ("a_guest_reaches_its_prompt", |session| {
        session.saw("grub>", PROMPT)
    }),
    ("the_guest_takes_a_command", takes_a_command),
];

const LINUX: &[Claim<Session>] = &[
    ("linux_boots_to_a_shell", to_the_shell),
    ("linux_has_two_vcpus", |session| is(session, "nproc", "2")),
    ("linux_is_a_pvh_guest", |session| {
        is(session, "cat /sys/hypervisor/guest_type", "PVH")
    }),
    ("both_vcpus_do_work", |session| {
        for cpu in [1, 2] {
            is(session, &format!("taskset {cpu} expr 6 \\* 7"), "42")?;
        }
        Ok(())
    }),
];

const NEIGHBOURS: &[Claim<Session>] = &[
    ("two_guests_reach_their_prompts", |session| {
        session.expect("grub>", PROMPT)?;
        takes_a_command(session)?;
        session.send("\x1d0console broken\r")?;
        session.expect("guest console: broken", 60)?;
        takes_a_command(session)
    }),
    ("the_first_goes_on_beside_the_second", |session| {
        session.send("\x1d0console grub\r")?;
        session.expect("guest console: grub", 60)?;
        takes_a_command(session)
    }),
];

const HOSTILE_GUESTS: &[Claim<Session>] = &[
    ("a_guest_that_reaches_out_is_contained", |session| {
        session.saw("guest: hostile: reach done", ROLE)
    }),
    ("a_guest_that_uses_every_register_is_contained", |session| {
        session.saw("guest: hostile: registers done", ROLE)
    }),
    ("a_triple_fault_ends_its_guest_alone", |session| {
        session.saw("[root] guest triple: vCPU 0 at", ROLE)
    }),
    ("a_guest_that_makes_every_call_is_contained", |session| {
        session.saw("guest: hostile: calls done", ROLE)
    }),
    ("their_neighbour_takes_a_command", |session| {
        session.saw("grub>", PROMPT)?;
        takes_a_command(session)
    }),
];

/// A CPU that cannot run guests, and what the boot log says of it.
const LACKING: &[(&str, &str, &str)] = &[
    (
        "a_cpu_without_ept_is_told_so",
        "core2_penryn_t9600",
        "no guests can run: this CPU's VMX has no EPT",
    ),
    (
        "a_cpu_without_unrestricted_guests_is_told_so",
        "corei5_lynnfield_750",
        "no guests can run: this CPU's VMX has no unrestricted guests",
    ),
];

fn is(session: &mut Session, command: &str, expected: &str) -> Result<()> {
    let printed = session.shell(command, 120)?;
    ensure!(printed == expected, "{command} says {printed:?}");
    Ok(())
}

/// Runs the group.
pub fn run(machines: &Machines, report: &mut Report, full: bool) {
    if let Err(error) = packages::ensure(bochs::TOOLS) {
        return report.skip("everything", format!("Bochs cannot be had: {error:#}"));
    }
    let machines = &mut machines.in_bochs();
    boot(machines, report, "grub", None, GRUB);
    if !full {
        for name in [
            "linux",
            "neighbours",
            "bench",
            "selftest",
            "hostile_components",
            "hostile_guests",
            "restart",
            "cpus_that_lack_something",
            "firmware_that_left_vmx_unlocked",
        ] {
            report.leave_out(name);
        }
        return;
    }
    boot(machines, report, "linux", Some(KERNEL), LINUX);
    boot(machines, report, "neighbours", None, NEIGHBOURS);
    boot(machines, report, "hostile-guests", None, HOSTILE_GUESTS);
    if machines.wants("bench") {
        // With one CPU, Bochs's TSC counts instructions.
        let rows = bench::in_bochs(machines);
        report.claim("every_row_of_bench_is_measured", || {
            for (row, count, accesses) in rows.as_ref().map_err(|why| anyhow!("{why:#}"))? {
                let accesses = accesses.map_or(String::new(), |found| {
                    format!(", {} VMREAD, {} VMWRITE", found.reads, found.writes)
                });
                println!("     {row:<24}{count:>8} instructions{accesses}");
            }
            Ok(())
        });
        report.claim("a_cpuid_exit_takes_at_most_8_vmreads", || {
            let rows = rows.as_ref().map_err(|why| anyhow!("{why:#}"))?;
            let row = rows.iter().find(|(name, ..)| *name == "cpuid");
            let (_, _, accesses) = row.context("no such row")?;
            let reads = accesses.context("not counted")?.reads;
            // None at all would mean that nothing was seen: the exit's reason has to be read.
            ensure!((1..=8).contains(&reads), "it takes {reads}");
            Ok(())
        });
    }
    selftest::run(machines, report);
    components::run(machines, report);
    restart::run(machines, report);
    for (claim, cpu, says) in LACKING {
        if machines.wants(claim) {
            report.claim(claim, || {
                let (image, mut machine) = grub(machines)?;
                machine.cpu = (*cpu).into();
                let mut session = machines.boot(claim, &image, &machine)?;
                session.saw(says, LOADER)
            });
        }
    }
    // SeaBIOS does not touch IA32_FEATURE_CONTROL.
    let claim = "an_unlocked_feature_control_is_set_by_the_core";
    if machines.wants(claim) {
        report.claim(claim, || {
            let (image, machine) = grub(machines)?;
            let transcript = machines.folder().join(format!("{claim}.log"));
            let mut session = bochs::start(&image, &machine, bochs::SEABIOS, &transcript)?;
            session.saw("core: VMX: EPT, unrestricted guests", LOADER)?;
            session.saw("grub>", PROMPT)
        });
    }
}

fn grub(machines: &mut Machines) -> Result<(image_builder::image::Image, Machine)> {
    let image = machines.image("grub")?;
    let machine = Machine::of(&image);
    Ok((image, machine))
}

fn boot(
    machines: &mut Machines,
    report: &mut Report,
    system: &str,
    kernel: Option<&str>,
    claims: &[Claim<Session>],
) {
    let title = format!("vmx-{system}");
    if !machines.wants(&title) {
        return;
    }
    let session = machines
        .image_on(system, kernel, Medium::Iso)
        .and_then(|image| machines.boot(&title, &image, &Machine::of(&image)));
    report.claims(session, claims);
}
