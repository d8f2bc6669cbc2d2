//! Whether a component that died is started again. The policy is the manifest's; here it is only
//! counted. Called by root whenever an instance is of no use any more.

use idl::manifest::Restart;

/// The deaths of one component.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Restarts ever.
    pub restarts: u64,
    /// When the present row of restarts began, in seconds.
    since: u64,
    /// Restarts in it.
    row: u32,
}

impl History {
    /// It died at `now`, in seconds since any moment: true if it is to be started again, which is
    /// counted then.
    pub fn died(&mut self, policy: Restart, now: u64) -> bool {
        let again = match policy {
            Restart::Never => false,
            Restart::Always => true,
            Restart::Limited { times, seconds } => {
                // Time that runs backwards would be a clock's fault; it ends no row.
                if now.saturating_sub(self.since) > u64::from(seconds) {
                    self.since = now;
                    self.row = 0;
                }
                let again = self.row < times;
                self.row += u32::from(again);
                again
            }
        };
        self.restarts += u64::from(again);
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITED: Restart = Restart::Limited {
        times: 2,
        seconds: 60,
    };

    #[test]
    fn never_is_never_and_always_is_always() {
        let mut history = History::default();
        assert!(!history.died(Restart::Never, 5));
        assert_eq!(history.restarts, 0);
        assert!((0..10_000).all(|now| history.died(Restart::Always, now / 1000)));
        assert_eq!(history.restarts, 10_000);
    }

    #[test]
    fn what_dies_too_often_stays_down_until_its_row_is_over() {
        let mut history = History::default();
        let deaths = [100, 101, 102, 160, 161, 162, 163];
        let again = deaths.map(|now| history.died(LIMITED, now));
        assert_eq!(again, [true, true, false, false, true, true, false]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn no_window_has_more_than_twice_its_restarts(
            steps in proptest::collection::vec(0u64..50, 1..60),
            times in 1u32..5,
            seconds in 1u32..100,
        ) {
            let policy = Restart::Limited { times, seconds };
            let mut history = History::default();
            let mut now = 1000;
            let mut restarts = alloc::vec::Vec::new();
            for step in steps {
                now += step;
                if history.died(policy, now) {
                    restarts.push(now);
                }
            }
            for &start in &restarts {
                let end = start + u64::from(seconds);
                let inside = restarts.iter().filter(|at| (start..=end).contains(at)).count();
                prop_assert!(inside <= 2 * times as usize);
            }
        }
    }
}
