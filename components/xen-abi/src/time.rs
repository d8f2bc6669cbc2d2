//! System time: the TSC scaled as pvclock tells the guest to scale it, the time records in guest
//! memory, wallclock. One constant scale from one origin: the guest's TSC runs natively, at a rate
//! that never changes, so the records are written once per place and never refreshed.

use crate::call::Width;
use crate::config::{ConfigError, TscMode};
use crate::domain::Domain;
use crate::memory::{GuestMemory, Unbacked};
use crate::shared_info::{Layout, VCPU_TIME_OFFSET, update_versioned};

/// `XEN_PVCLOCK_TSC_STABLE_BIT`.
const TSC_STABLE: u8 = 1;

/// Ticks to ns: `((ticks << shift) * multiplier) >> 32` (`vcpu_time_info` in `public/xen.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TscScale {
    pub multiplier: u32,
    pub shift: i8,
    origin: u64,
    stable: bool,
}

impl TscScale {
    pub fn new(tsc: TscMode, origin: u64) -> Result<TscScale, ConfigError> {
        const NS_PER_S: u64 = 1_000_000_000;
        if tsc.khz == 0 {
            return Err(ConfigError::Tsc);
        }
        let mut rate = u64::from(tsc.khz) * 1000;
        let mut shift = 0;
        while rate > NS_PER_S * 2 {
            rate >>= 1;
            shift -= 1;
        }
        while rate <= NS_PER_S {
            rate <<= 1;
            shift += 1;
        }
        // The rate is above 1e9, so the quotient is below 2^32.
        Ok(TscScale {
            multiplier: ((NS_PER_S << 32) / rate) as u32,
            shift,
            origin,
            stable: tsc.stable,
        })
    }

    pub fn to_ns(self, tsc: u64) -> u64 {
        let delta = u128::from(tsc.saturating_sub(self.origin));
        let shifted = if self.shift < 0 {
            delta >> self.shift.unsigned_abs()
        } else {
            delta << self.shift.unsigned_abs()
        };
        // Below 2^64 ticks, a shift of at most 20 and a multiplier below 2^32 fit in 128 bits.
        u64::try_from((shifted * u128::from(self.multiplier)) >> 32).unwrap_or(u64::MAX)
    }

    /// The first TSC whose system time is at least `ns`.
    pub fn to_tsc(self, ns: u64) -> u64 {
        let shifted = (u128::from(ns) << 32).div_ceil(u128::from(self.multiplier));
        let delta = if self.shift < 0 {
            shifted << self.shift.unsigned_abs()
        } else {
            shifted.div_ceil(1 << self.shift.unsigned_abs())
        };
        u64::try_from(delta)
            .unwrap_or(u64::MAX)
            .saturating_add(self.origin)
    }

    /// A `vcpu_time_info` without its version and padding: from offset 8 to 32.
    fn record(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.origin.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.multiplier.to_le_bytes());
        bytes[20] = self.shift.to_le_bytes()[0];
        bytes[21] = if self.stable { TSC_STABLE } else { 0 };
        bytes
    }

    /// Writes a `vcpu_time_info` at an address.
    pub fn publish<M: GuestMemory>(self, memory: &M, at: u64) -> Result<(), Unbacked> {
        update_versioned(memory, at, |memory| memory.write(at + 8, &self.record()))
    }
}

impl Domain {
    /// System time, in ns, of a guest TSC.
    #[must_use]
    pub fn system_time(&self, tsc: u64) -> u64 {
        self.scale.to_ns(tsc)
    }

    /// The first guest TSC whose system time is at least `ns`.
    #[must_use]
    pub fn tsc_at(&self, ns: u64) -> u64 {
        self.scale.to_tsc(ns)
    }

    /// Writes the time records of a vCPU. A record whose place the guest made unusable is skipped,
    /// as Xen does.
    pub(crate) fn publish_time<M: GuestMemory>(&self, vcpu: u32, memory: &M) {
        let Some(state) = self.vcpus.get(vcpu as usize) else {
            return;
        };
        if let Some(info) = state.info {
            let _ = self.scale.publish(memory, info + VCPU_TIME_OFFSET);
        }
        if let Some(area) = state.time_area {
            let _ = self.scale.publish(memory, area);
        }
    }

    /// Writes the wallclock into shared info, in the layout latched.
    pub(crate) fn publish_wallclock<M: GuestMemory>(&self, memory: &M) -> Result<(), Unbacked> {
        const NS_PER_S: u64 = 1_000_000_000;
        let layout = Layout::of(self.width);
        let seconds = self.config.wallclock_at_start / NS_PER_S;
        let rest = (self.config.wallclock_at_start % NS_PER_S) as u32;
        update_versioned(memory, layout.wallclock, |memory| {
            memory.write_u32(layout.wallclock + 4, seconds as u32)?;
            memory.write_u32(layout.wallclock + 8, rest)?;
            memory.write_u32(layout.wallclock_high, (seconds >> 32) as u32)
        })
    }

    /// Latches the layout of shared info to the mode of the caller, as Xen does when the guest
    /// writes its hypercall page or sets its callback.
    pub(crate) fn latch_width<M: GuestMemory>(&mut self, width: Width, memory: &M) {
        self.width = width;
        let _ = self.publish_wallclock(memory);
    }
}
