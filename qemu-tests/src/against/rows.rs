//! The rows of the comparison and what each is held to. `compare-guest` measures them, under the
//! same names.

use super::measured::Measured;

/// What a row is held to.
///
/// Xen decodes the instruction that exits if the CPU does not save the next RIP; the emulated CPU does
/// not, real ones have long done. [`PLAIN_EXIT`] is free of it, since such exits say the next RIP in any
/// case, so what an exit costs without decoding is known, and what decoding costs: [`decoding`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// At most half of Xen's count.
    Half,
    /// At most half of Xen's [`PLAIN_EXIT`]: beyond the exit and the decoding there is next to
    /// nothing.
    HalfOfPlainExit,
    /// At most half of what is left of Xen's count without decoding, so many times.
    HalfWithoutDecoding(u64),
    /// The same count: neither system may exit here.
    Equal,
}

/// The row whose count on Xen is an exit without decoding.
pub const PLAIN_EXIT: &str = "port_out";
/// The row that on Xen is a plain exit, decoding, and hardly anything else.
const DECODED_EXIT: &str = "rdmsr";

/// What decoding costs Xen, at most: what little RDMSR does besides is in it.
pub fn decoding(xen: &Measured) -> Option<u64> {
    xen.count(DECODED_EXIT)?.checked_sub(xen.count(PLAIN_EXIT)?)
}

/// A row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// As the guest calls it.
    pub name: &'static str,
    /// What it is held to.
    pub goal: Goal,
    /// What it is, for people.
    pub what: &'static str,
}

const fn row(name: &'static str, goal: Goal, what: &'static str) -> Row {
    Row { name, goal, what }
}

/// In the order in which they are shown.
pub const ROWS: &[Row] = &[
    row("cpuid", Goal::HalfOfPlainExit, "CPUID, leaf 0"),
    row(
        "cpuid_xen_leaf",
        Goal::HalfOfPlainExit,
        "CPUID, a leaf of Xen's",
    ),
    row("rdmsr", Goal::HalfOfPlainExit, "RDMSR of APIC_BASE"),
    row(
        "wrmsr",
        Goal::HalfOfPlainExit,
        "WRMSR of APIC_BASE, same value",
    ),
    row("port_out", Goal::Half, "OUT to a port that nobody has"),
    row("port_in", Goal::Half, "IN from it"),
    row("lapic_read", Goal::Half, "load from the local APIC's page"),
    row("lapic_write", Goal::Half, "store to it: end of interrupt"),
    row("read_of_nothing", Goal::Half, "load from where nothing is"),
    row(
        "xen_version",
        Goal::HalfOfPlainExit,
        "hypercall xen_version",
    ),
    row(
        "unknown_hypercall",
        Goal::HalfOfPlainExit,
        "hypercall that does not exist",
    ),
    row(
        "sched_yield",
        Goal::HalfWithoutDecoding(1),
        "SCHEDOP_yield, nobody else there",
    ),
    row(
        "grant_copy_64",
        Goal::HalfWithoutDecoding(1),
        "GNTTABOP_copy of 64 bytes",
    ),
    row(
        "evtchn_send_new",
        Goal::HalfWithoutDecoding(1),
        "EVTCHNOP_send to itself, upcall held back",
    ),
    row(
        "evtchn_send_pending",
        Goal::HalfWithoutDecoding(1),
        "the same, event already pending",
    ),
    row(
        "evtchn_send_to_upcall",
        Goal::HalfWithoutDecoding(1),
        "EVTCHNOP_send until its upcall runs",
    ),
    row(
        "hlt_with_event",
        Goal::HalfWithoutDecoding(1),
        "HLT with an event there, until its upcall",
    ),
    row(
        "timer_set",
        Goal::HalfWithoutDecoding(1),
        "VCPUOP_set_singleshot_timer",
    ),
    row(
        "timer_to_upcall",
        Goal::Half,
        "a timer's deadline until its upcall, CPU busy",
    ),
    row("hlt_to_timer_upcall", Goal::Half, "the same, CPU halted"),
    row(
        "grant_map_unmap",
        Goal::HalfWithoutDecoding(2),
        "another guest's page mapped and unmapped",
    ),
    row(
        "grant_copy_4k",
        Goal::HalfWithoutDecoding(1),
        "GNTTABOP_copy of 4 KiB from another guest",
    ),
    // Each guest sends and halts.
    row(
        "event_there_and_back",
        Goal::HalfWithoutDecoding(4),
        "EVTCHNOP_send to another guest until its answer's upcall",
    ),
    row("first_touch", Goal::Equal, "first load from a large page"),
    row("cr3_write", Goal::Equal, "MOV to CR3"),
    row("invlpg", Goal::Equal, "INVLPG"),
    row("page_fault", Goal::Equal, "page fault and return"),
];

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As wanted.
    Met,
    /// Ours is larger than this.
    Missed(u64),
    /// A side has no number.
    Unknown,
}

impl Row {
    /// The most that ours may be, given what Xen needs. `None` without Xen's number.
    pub fn bound(&self, xen: &Measured) -> Option<u64> {
        match self.goal {
            Goal::Half => Some(xen.count(self.name)? / 2),
            Goal::HalfOfPlainExit => Some(xen.count(PLAIN_EXIT)? / 2),
            Goal::HalfWithoutDecoding(times) => {
                let decoding = decoding(xen)?.checked_mul(times)?;
                Some(xen.count(self.name)?.saturating_sub(decoding) / 2)
            }
            Goal::Equal => xen.count(self.name),
        }
    }

    /// Holds ours against Xen's.
    pub fn verdict(&self, ours: &Measured, xen: &Measured) -> Verdict {
        match (ours.count(self.name), self.bound(xen)) {
            (Some(count), Some(bound)) if self.goal == Goal::Equal => {
                if count == bound {
                    Verdict::Met
                } else {
                    Verdict::Missed(bound)
                }
            }
            (Some(count), Some(bound)) if count <= bound => Verdict::Met,
            (Some(_), Some(bound)) => Verdict::Missed(bound),
            _ => Verdict::Unknown,
        }
    }

    /// The name of the claim that the goal is met.
    pub fn claim(&self) -> String {
        let goal = match self.goal {
            Goal::Half => "takes_at_most_half_of_what_xen_needs",
            Goal::HalfOfPlainExit => "takes_at_most_half_of_an_exit_of_xens_without_decoding",
            Goal::HalfWithoutDecoding(_) => "takes_at_most_half_of_what_xen_needs_beside_decoding",
            Goal::Equal => "takes_what_it_takes_on_xen",
        };
        format!("{}_{goal}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(rows: &[(&str, u64)]) -> Measured {
        let mut text = String::new();
        for (name, count) in rows {
            text += &format!("compare: row {name} median {count} minimum {count}\n");
        }
        Measured::read(&text)
    }

    fn find(name: &str) -> &'static Row {
        ROWS.iter().find(|row| row.name == name).unwrap()
    }

    #[test]
    fn hot_rows_are_held_to_half() {
        let xen = measured(&[("port_out", 1001)]);
        let verdict = |ours| find("port_out").verdict(&measured(&[("port_out", ours)]), &xen);
        assert_eq!(verdict(500), Verdict::Met);
        assert_eq!(verdict(501), Verdict::Missed(500));
    }

    #[test]
    fn what_xen_mostly_decodes_is_held_to_half_of_its_plain_exit() {
        let xen = measured(&[("port_out", 1000), ("cpuid", 2500)]);
        let verdict = |ours| find("cpuid").verdict(&measured(&[("cpuid", ours)]), &xen);
        assert_eq!(verdict(500), Verdict::Met);
        assert_eq!(verdict(700), Verdict::Missed(500));
    }

    #[test]
    fn decoding_does_not_count_where_xen_does_more() {
        let counts = [("port_out", 1000), ("rdmsr", 5000), ("sched_yield", 7000)];
        let xen = measured(&counts);
        let verdict = |ours| find("sched_yield").verdict(&measured(&[("sched_yield", ours)]), &xen);
        assert_eq!(verdict(1500), Verdict::Met);
        assert_eq!(verdict(1501), Verdict::Missed(1500));
        assert_eq!(decoding(&measured(&[])), None);
        let counts = [
            ("port_out", 1000),
            ("rdmsr", 5000),
            ("grant_map_unmap", 9000),
        ];
        let bound = find("grant_map_unmap").bound(&measured(&counts));
        assert_eq!(bound, Some(500));
    }

    #[test]
    fn what_must_not_exit_is_held_to_the_same_count() {
        let xen = measured(&[("invlpg", 1)]);
        let verdict = |ours| find("invlpg").verdict(&measured(&[("invlpg", ours)]), &xen);
        assert_eq!(verdict(1), Verdict::Met);
        assert_eq!(verdict(0), Verdict::Missed(1));
        assert_eq!(verdict(2), Verdict::Missed(1));
    }

    #[test]
    fn a_row_without_a_number_is_not_met() {
        let nothing = measured(&[]);
        let some = measured(&[("cpuid", 1), ("port_out", 1)]);
        assert_eq!(find("cpuid").verdict(&nothing, &some), Verdict::Unknown);
        assert_eq!(find("cpuid").verdict(&some, &nothing), Verdict::Unknown);
    }

    #[test]
    fn names_are_unique() {
        for row in ROWS {
            assert_eq!(
                ROWS.iter().filter(|other| other.name == row.name).count(),
                1
            );
        }
    }
}
