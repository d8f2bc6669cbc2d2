//! The APIC timer as deadlines in ticks of the guest's TSC: one-shot, periodic, TSC-deadline.

/// Frequency of the bus clock that the timer divides: 100 MHz, Xen's `APIC_BUS_CYCLE_NS` of 10.
const BUS_KHZ: u64 = 100_000;
/// Shortest period of a periodic timer, in microseconds: keeps a guest from making its VMM do
/// nothing but tick.
const PERIOD_MIN_US: u64 = 20;

const MODE_PERIODIC: u32 = 1;
const MODE_TSC_DEADLINE: u32 = 2;

fn mode(lvt: u32) -> u32 {
    lvt >> 17 & 3
}

/// Converts between TSC ticks and timer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    tsc_khz: u64,
}

impl Clock {
    /// A clock for a TSC of this many ticks per millisecond; 0 is taken for 1.
    pub const fn new(tsc_khz: u64) -> Clock {
        Clock {
            tsc_khz: if tsc_khz == 0 { 1 } else { tsc_khz },
        }
    }

    /// TSC ticks that `counts` bus cycles take. `counts` is below 2^39 (32 bits, divided by 128).
    fn ticks(self, counts: u64) -> u64 {
        let wide = u128::from(counts) * u128::from(self.tsc_khz) / u128::from(BUS_KHZ);
        u64::try_from(wide).unwrap_or(u64::MAX)
    }

    /// Bus cycles in `ticks`, rounded down.
    fn counts(self, ticks: u64) -> u64 {
        let wide = u128::from(ticks) * u128::from(BUS_KHZ) / u128::from(self.tsc_khz);
        u64::try_from(wide).unwrap_or(u64::MAX)
    }
}

/// The timer's state beside its LVT entry, which the APIC keeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timer {
    clock: Clock,
    initial: u32,
    divide: u32,
    /// Guest TSC of the next expiry, 0 when stopped.
    deadline: u64,
}

impl Timer {
    pub fn new(clock: Clock) -> Timer {
        Timer {
            clock,
            initial: 0,
            divide: 0,
            deadline: 0,
        }
    }

    pub fn clock(&self) -> Clock {
        self.clock
    }

    pub fn initial(&self) -> u32 {
        self.initial
    }

    pub fn divide_register(&self) -> u32 {
        self.divide
    }

    /// Log2 of the divisor (SDM vol. 3, figure 11-10).
    fn shift(&self) -> u32 {
        (((self.divide & 8) >> 1 | self.divide & 3) + 1) & 7
    }

    #[inline]
    pub fn expired(&self, now: u64) -> bool {
        self.deadline != 0 && now >= self.deadline
    }

    #[inline]
    pub fn deadline(&self) -> Option<u64> {
        (self.deadline != 0).then_some(self.deadline)
    }

    fn period(&self) -> u64 {
        let ticks = self.clock.ticks(u64::from(self.initial) << self.shift());
        ticks.max(self.clock.tsc_khz * PERIOD_MIN_US / 1000).max(1)
    }

    /// After an expiry: the next deadline, or none.
    pub fn restart(&mut self, now: u64, lvt: u32) {
        if mode(lvt) != MODE_PERIODIC || self.initial == 0 {
            self.deadline = 0;
            return;
        }
        let period = self.period();
        let missed = now.saturating_sub(self.deadline) / period;
        self.deadline = self
            .deadline
            .saturating_add(period.saturating_mul(missed + 1));
    }

    /// A write of the initial count.
    pub fn start(&mut self, initial: u32, now: u64, lvt: u32) {
        if mode(lvt) == MODE_TSC_DEADLINE {
            return;
        }
        self.initial = initial;
        self.deadline = if initial == 0 {
            0
        } else if mode(lvt) == MODE_PERIODIC {
            now.saturating_add(self.period())
        } else {
            let ticks = self.clock.ticks(u64::from(initial) << self.shift());
            now.saturating_add(ticks.max(1))
        };
    }

    /// The current count.
    pub fn current(&self, now: u64, lvt: u32) -> u32 {
        if self.deadline == 0 || mode(lvt) == MODE_TSC_DEADLINE {
            return 0;
        }
        let left = self.clock.counts(self.deadline.saturating_sub(now)) >> self.shift();
        u32::try_from(left).unwrap_or(u32::MAX).min(self.initial)
    }

    /// A write of the divide configuration: the remaining count goes on at the new rate.
    pub fn set_divide(&mut self, value: u32, now: u64, lvt: u32) {
        let left = self.current(now, lvt);
        self.divide = value;
        if self.deadline != 0 && mode(lvt) != MODE_TSC_DEADLINE {
            let ticks = self.clock.ticks(u64::from(left) << self.shift());
            self.deadline = now.saturating_add(ticks.max(1));
        }
    }

    /// Changing to or from TSC-deadline mode disarms (SDM vol. 3, 11.5.4.1).
    pub fn mode_changed(&mut self, old: u32, new: u32) {
        if (mode(old) == MODE_TSC_DEADLINE) != (mode(new) == MODE_TSC_DEADLINE) {
            self.deadline = 0;
            self.initial = 0;
        }
    }

    pub fn tsc_deadline(&self, lvt: u32) -> u64 {
        if mode(lvt) == MODE_TSC_DEADLINE {
            self.deadline
        } else {
            0
        }
    }

    pub fn set_tsc_deadline(&mut self, value: u64, lvt: u32) {
        if mode(lvt) == MODE_TSC_DEADLINE {
            self.deadline = value;
        }
    }

    pub fn tsc_moved(&mut self, delta: u64, lvt: u32) {
        if self.deadline != 0 && mode(lvt) != MODE_TSC_DEADLINE {
            self.deadline = self.deadline.wrapping_add(delta).max(1);
        }
    }
}
