//! The rows about each system as a whole, and what they are held to.

use anyhow::{Context, Result, ensure};

use super::boots::Run;

/// What a row is held to.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// At most Xen's divided by this.
    Fraction(u64),
    /// At most this, whatever Xen needs.
    AtMost(u64),
    /// Shown only.
    None,
}

/// A row.
pub struct Whole {
    /// Its name.
    pub name: &'static str,
    /// What is counted.
    pub unit: &'static str,
    /// What it is held to.
    pub goal: Goal,
    /// The number, of either system.
    pub of: fn(&Run) -> Option<u64>,
}

/// In the order in which they are shown.
pub const WHOLE: &[Whole] = &[
    Whole {
        name: "power_on_to_guest_entry",
        unit: "instructions",
        goal: Goal::Fraction(5),
        of: |run| run.entry,
    },
    Whole {
        name: "create_to_linux_shell",
        unit: "instructions",
        goal: Goal::Fraction(2),
        of: |run| run.create,
    },
    Whole {
        name: "memory_with_one_guest",
        unit: "KiB besides the guest's",
        goal: Goal::AtMost(64 << 10),
        of: |run| run.memory_one,
    },
    Whole {
        name: "memory_per_further_guest",
        unit: "KiB besides the guest's",
        goal: Goal::AtMost(5 << 10),
        of: Run::memory_each,
    },
    Whole {
        name: "idle_second_with_linux",
        unit: "instructions",
        goal: Goal::None,
        of: |run| run.idle,
    },
    Whole {
        name: "idle_second_without_guest",
        unit: "instructions",
        goal: Goal::None,
        of: |run| run.idle_alone,
    },
    Whole {
        name: "hypervisor_in_memory",
        unit: "bytes of code and data, as loaded",
        goal: Goal::None,
        of: |run| run.privileged,
    },
];

impl Whole {
    /// The most that ours may be; `None` if it is held to nothing.
    pub fn bound(&self, xen: &Run) -> Result<Option<u64>> {
        match self.goal {
            Goal::Fraction(part) => {
                let xen = (self.of)(xen).context("no number under Xen")?;
                Ok(Some(xen / part))
            }
            Goal::AtMost(most) => Ok(Some(most)),
            Goal::None => Ok(None),
        }
    }

    /// Holds ours to its goal.
    pub fn judge(&self, ours: &Run, xen: &Run) -> Result<()> {
        let Some(bound) = self.bound(xen)? else {
            return Ok(());
        };
        let ours = (self.of)(ours).context("no number here")?;
        ensure!(ours <= bound, "{ours} {}, not {bound}", self.unit);
        Ok(())
    }

    /// The claim that the goal is met; `None` if there is no goal.
    pub fn claim(&self) -> Option<String> {
        match self.goal {
            Goal::Fraction(part) => Some(format!("{}_is_at_most_xens_over_{part}", self.name)),
            Goal::AtMost(most) => Some(format!("{}_is_at_most_{most}", self.name)),
            Goal::None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_and_limits_are_held() {
        let run = |entry, one| Run {
            entry,
            memory_one: one,
            ..Run::default()
        };
        let find = |name| WHOLE.iter().find(|row| row.name == name).unwrap();
        let entry = find("power_on_to_guest_entry");
        let xen = run(Some(1000), None);
        assert!(entry.judge(&run(Some(200), None), &xen).is_ok());
        assert!(entry.judge(&run(Some(201), None), &xen).is_err());
        assert!(entry.judge(&run(None, None), &xen).is_err());
        assert!(entry.judge(&run(Some(1), None), &run(None, None)).is_err());
        let memory = find("memory_with_one_guest");
        assert!(memory.judge(&run(None, Some(65536)), &xen).is_ok());
        assert!(memory.judge(&run(None, Some(65537)), &xen).is_err());
        assert!(memory.judge(&run(None, None), &xen).is_err());
    }
}
