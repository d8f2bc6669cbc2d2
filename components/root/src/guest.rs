//! The life of a guest: what an event leads to.

use idl::builder::{BuildError, Built};
use idl::operator::{Ends, GuestOrder, GuestState};
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
    /// Its VMM is there, its vCPUs' threads are suspended.
    Paused,
    /// It stopped, and how.
    Stopped(End),
}

/// How a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It switched itself off.
    Off,
    /// The operator took it down.
    Destroyed,
    /// Anything else.
    Failed,
}

impl Phase {
    /// The phase in the operator's words.
    pub fn state(self) -> GuestState {
        match self {
            Phase::Waiting => GuestState::Waiting,
            Phase::Building => GuestState::Building,
            Phase::Running => GuestState::Running,
            Phase::Paused => GuestState::Paused,
            Phase::Stopped(End::Off) => GuestState::Off,
            Phase::Stopped(End::Destroyed) => GuestState::Destroyed,
            Phase::Stopped(End::Failed) => GuestState::Failed,
        }
    }
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
    /// The operator wants something.
    Order(GuestOrder),
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
    /// Suspend the vCPUs' threads.
    Pause,
    /// Let them go on.
    Unpause,
    /// Take everything of this guest down and its memory back.
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
        // What a paused guest reports it did before it was paused.
        (Running | Paused, Event::Stopped(StopReason::Reboot)) => (Building, Action::Build),
        (Running | Paused, Event::Stopped(StopReason::Poweroff)) => {
            (Stopped(End::Off), Action::TearDown)
        }
        (Running | Paused, Event::Stopped(_)) => failed,
        (Building | Running | Paused, Event::ComponentDied) => failed,
        (_, Event::Order(order)) => ordered(phase, order).unwrap_or((phase, Action::Ignore)),
        // A late or invented message of a component that is not trusted.
        _ => (phase, Action::Ignore),
    }
}

/// What an order of the operator leads to; nothing if it means nothing in this phase.
pub fn ordered(phase: Phase, order: GuestOrder) -> Option<(Phase, Action)> {
    use Phase::*;
    match (phase, order) {
        (Stopped(_), GuestOrder::Create) => Some((Building, Action::Build)),
        (Building | Running | Paused, GuestOrder::Destroy) => {
            Some((Stopped(End::Destroyed), Action::TearDown))
        }
        (Running | Paused, GuestOrder::Reset) => Some((Building, Action::Build)),
        (Running, GuestOrder::Pause) => Some((Paused, Action::Pause)),
        (Paused, GuestOrder::Unpause) => Some((Running, Action::Unpause)),
        _ => None,
    }
}

/// How guests of the system's description end.
pub const DESCRIBED: Ends = Ends {
    poweroff: false,
    reboot: true,
    crash: false,
};
/// A guest that crashes sooner after its start than this is not started again: it would do it again.
pub const SHORT_LIVED_MS: u64 = 10_000;

/// What a VMM's report comes to for a guest that ran so long and is to end so.
pub fn ended(reason: StopReason, ends: Ends, lived_ms: u64) -> Event {
    let (again, otherwise) = match reason {
        StopReason::Poweroff => (ends.poweroff, reason),
        StopReason::Reboot => (ends.reboot, StopReason::Poweroff),
        // Nothing here can resume it.
        StopReason::Suspend => (false, reason),
        _ => (ends.crash && lived_ms >= SHORT_LIVED_MS, reason),
    };
    Event::Stopped(if again { StopReason::Reboot } else { otherwise })
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
    fn the_operator_pauses_resets_destroys_and_creates() {
        let mut phase = Phase::Running;
        for (order, action) in [
            (GuestOrder::Unpause, Action::Ignore),
            (GuestOrder::Create, Action::Ignore),
            (GuestOrder::Pause, Action::Pause),
            (GuestOrder::Pause, Action::Ignore),
            (GuestOrder::Unpause, Action::Unpause),
            (GuestOrder::Pause, Action::Pause),
            (GuestOrder::Reset, Action::Build),
            (GuestOrder::Pause, Action::Ignore),
            (GuestOrder::Destroy, Action::TearDown),
            (GuestOrder::Destroy, Action::Ignore),
            (GuestOrder::Reset, Action::Ignore),
            (GuestOrder::Create, Action::Build),
        ] {
            let (next, todo) = step(phase, Event::Order(order));
            assert_eq!(todo, action, "{order:?} in {phase:?}");
            assert_eq!(
                ordered(phase, order).is_some(),
                todo != Action::Ignore,
                "what is allowed is what is done"
            );
            phase = next;
        }
        assert_eq!(phase.state(), GuestState::Building);
    }

    #[test]
    fn a_guest_ends_or_comes_back_as_it_is_to() {
        let both = [true, false].map(|again| Ends {
            poweroff: again,
            reboot: again,
            crash: again,
        });
        let phase = |reason, ends, lived| step(Phase::Running, ended(reason, ends, lived)).0;
        for ends in both {
            let again = |end| match ends.crash {
                true => Phase::Building,
                false => Phase::Stopped(end),
            };
            let long = SHORT_LIVED_MS;
            assert_eq!(phase(StopReason::Poweroff, ends, 0), again(End::Off));
            assert_eq!(phase(StopReason::Reboot, ends, 0), again(End::Off));
            assert_eq!(phase(StopReason::Crash, ends, long), again(End::Failed));
            assert_eq!(phase(StopReason::Watchdog, ends, long), again(End::Failed));
            let failed = Phase::Stopped(End::Failed);
            assert_eq!(phase(StopReason::Crash, ends, long - 1), failed);
            assert_eq!(phase(StopReason::Suspend, ends, long), failed);
        }
        assert_eq!(
            phase(StopReason::Reboot, DESCRIBED, 0),
            Phase::Building,
            "as a machine does"
        );
    }

    #[test]
    fn a_paused_guest_still_ends() {
        assert_eq!(
            step(Phase::Paused, Event::ComponentDied).0,
            Phase::Stopped(End::Failed)
        );
        assert_eq!(
            step(Phase::Paused, Event::Stopped(StopReason::Poweroff)).0,
            Phase::Stopped(End::Off)
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
