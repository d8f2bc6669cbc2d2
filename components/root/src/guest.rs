//! The life of a guest: what an event leads to.

use idl::builder::{BuildError, Built};
use idl::supervisor::StopReason;

/// Where a guest is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not started.
    Waiting,
    /// Its builder runs.
    Building,
    /// Its VMM runs.
    Running,
    /// It stopped, and how.
    Stopped(End),
}

/// How a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It switched itself off.
    Off,
    /// Anything else.
    Failed,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// All servers are there.
    Start,
    /// The builder finished.
    Built(Built),
    /// The builder could not.
    BuildFailed(BuildError),
    /// The VMM says that the guest stopped.
    Stopped(StopReason),
    /// The guest's builder or VMM faulted, said that it failed, or could not be started.
    ComponentDied,
}

/// What root has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing: the event does not belong to this phase.
    Ignore,
    /// Take down whatever runs, then start the builder on fresh memory.
    Build,
    /// Take the builder down and start the VMM.
    Run(Built),
    /// Take everything of this guest down.
    TearDown,
}

/// The next phase and what to do.
pub fn step(phase: Phase, event: Event) -> (Phase, Action) {
    use Phase::*;
    let failed = (Stopped(End::Failed), Action::TearDown);
    match (phase, event) {
        (Waiting, Event::Start) => (Building, Action::Build),
        (Building, Event::Built(built)) => (Running, Action::Run(built)),
        (Building, Event::BuildFailed(_)) => failed,
        (Running, Event::Stopped(StopReason::Reboot)) => (Building, Action::Build),
        (Running, Event::Stopped(StopReason::Poweroff)) => (Stopped(End::Off), Action::TearDown),
        (Running, Event::Stopped(_)) => failed,
        (Building | Running, Event::ComponentDied) => failed,
        // A late or invented message of a component that is not trusted.
        _ => (phase, Action::Ignore),
    }
}

/// The word that reports use for a reason; tests of whole systems look for it.
pub fn reason(reason: &StopReason) -> &'static str {
    match reason {
        StopReason::Poweroff => "poweroff",
        StopReason::Reboot => "reboot",
        StopReason::Crash => "crash",
        StopReason::Suspend => "suspend (not supported)",
        StopReason::Watchdog => "watchdog",
        StopReason::TripleFault { .. } => "triple fault",
        StopReason::Unsupported => "not supported",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILT: Built = Built {
        entry: 1,
        start_info: 2,
        rsdp: 0,
        end: 3,
    };

    #[test]
    fn a_guest_is_built_run_rebooted_and_switched_off() {
        let mut phase = Phase::Waiting;
        for (event, action) in [
            (Event::Start, Action::Build),
            (Event::Built(BUILT), Action::Run(BUILT)),
            (Event::Stopped(StopReason::Reboot), Action::Build),
            (Event::Built(BUILT), Action::Run(BUILT)),
            (Event::Stopped(StopReason::Poweroff), Action::TearDown),
            (Event::Stopped(StopReason::Poweroff), Action::Ignore),
            (Event::ComponentDied, Action::Ignore),
        ] {
            let (next, todo) = step(phase, event);
            assert_eq!(todo, action);
            phase = next;
        }
        assert_eq!(phase, Phase::Stopped(End::Off));
    }

    #[test]
    fn a_builder_cannot_answer_twice_and_a_vmm_cannot_build() {
        assert_eq!(
            step(Phase::Running, Event::Built(BUILT)),
            (Phase::Running, Action::Ignore)
        );
        assert_eq!(
            step(Phase::Building, Event::Stopped(StopReason::Reboot)),
            (Phase::Building, Action::Ignore)
        );
    }

    #[test]
    fn crashes_do_not_restart_for_ever() {
        for event in [
            Event::ComponentDied,
            Event::Stopped(StopReason::Crash),
            Event::Stopped(StopReason::TripleFault { vcpu: 0, rip: 0 }),
        ] {
            assert_eq!(
                step(Phase::Running, event),
                (Phase::Stopped(End::Failed), Action::TearDown)
            );
        }
    }
}
