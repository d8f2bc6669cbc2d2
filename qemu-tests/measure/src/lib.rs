//! Counts what an operation costs, and writes the lines that say so.
//!
//! Shared by the component `bench` (ring 3 of the host) and the guest `bench-guest`; both run
//! under QEMU's `-icount shift=0`, where a TSC tick is an instruction, so a count is exact and
//! repeats. Elsewhere the unit is TSC ticks. RDTSC must not exit where this runs.
//!
//! # Lines
//! `BENCH name=<row> instructions=<median>`, `BENCH-MIN name=<row> instructions=<minimum>`,
//! `BENCH-SKIP name=<row> reason=<text>`, and last `BENCH done <producer>`. The suite reads them
//! from the serial port, where other text may stand before them on the line.
#![no_std]

use core::fmt;

/// Samples of each row. Odd, so that the median is one of them.
pub const SAMPLES: usize = 201;

/// The time stamp counter, in ticks.
///
/// LFENCE keeps real processors from counting before the operation is over (Intel SDM vol. 2,
/// RDTSC); in the emulator it is one more instruction, which the empty pair takes off. The halves
/// are joined inside the block: the compiler cannot move that in or out of the measured part.
#[inline(always)]
pub fn ticks() -> u64 {
    let count: u64;
    // SAFETY: LFENCE and RDTSC change nothing but the registers named here. A system that forbids
    // RDTSC (CR4.TSD) stops the program, which is no unsoundness. Without `nomem` this is a
    // compiler barrier too, which is wanted.
    unsafe {
        core::arch::asm!(
            "lfence",
            "rdtsc",
            "shl rdx, 32",
            "or rax, rdx",
            out("rax") count,
            out("rdx") _,
            options(nostack),
        );
    }
    count
}

/// What the samples of a row come to, in ticks, the measurement's own cost taken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The middle one of the sorted samples.
    pub median: u64,
    /// The smallest one.
    pub minimum: u64,
}

impl Summary {
    /// Sorts `samples` and takes `empty`, the cost of measuring nothing, off.
    fn of(samples: &mut [u64; SAMPLES], empty: u64) -> Summary {
        samples.sort_unstable();
        Summary {
            median: samples[SAMPLES / 2].saturating_sub(empty),
            minimum: samples[0].saturating_sub(empty),
        }
    }
}

/// Measures operations; knows what measuring itself costs.
#[derive(Clone, Copy, Debug)]
pub struct Meter {
    empty: u64,
}

impl Default for Meter {
    fn default() -> Self {
        Meter::new()
    }
}

impl Meter {
    /// Measures an empty pair of [`ticks`].
    pub fn new() -> Meter {
        let meter = Meter { empty: 0 };
        Meter {
            empty: meter.measure(|| (), |()| ()).minimum,
        }
    }

    /// Does `operation` [`SAMPLES`] times. `prepare` runs before each, unmeasured, and what it
    /// returns goes to the operation.
    #[inline(always)]
    pub fn measure<P, R>(
        self,
        mut prepare: impl FnMut() -> P,
        mut operation: impl FnMut(P) -> R,
    ) -> Summary {
        let mut samples = [0; SAMPLES];
        for sample in &mut samples {
            let prepared = prepare();
            let start = ticks();
            let result = operation(prepared);
            let end = ticks();
            core::hint::black_box(result);
            *sample = end.wrapping_sub(start);
        }
        Summary::of(&mut samples, self.empty)
    }
}

/// A line or two about one row, without the last line's end.
#[derive(Clone, Copy, Debug)]
pub enum Line<'a> {
    /// It was measured.
    Row(&'a str, Summary),
    /// It was not, and why.
    Skip(&'a str, &'a str),
    /// This producer has no more rows.
    Done(&'a str),
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Row(name, summary) => write!(
                f,
                "BENCH name={name} instructions={}\nBENCH-MIN name={name} instructions={}",
                summary.median, summary.minimum
            ),
            Line::Skip(name, reason) => write!(f, "BENCH-SKIP name={name} reason={reason}"),
            Line::Done(producer) => write!(f, "BENCH done {producer}"),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn median_is_the_middle_of_sorted_samples_without_the_empty_pair() {
        let mut samples = [0; SAMPLES];
        for (index, sample) in samples.iter_mut().enumerate() {
            *sample = 1000 + (SAMPLES - index) as u64;
        }
        let summary = Summary::of(&mut samples, 1000);
        assert_eq!(
            summary,
            Summary {
                median: 101,
                minimum: 1
            }
        );
    }

    #[test]
    fn outliers_on_either_side_do_not_move_the_median() {
        let mut samples = [500; SAMPLES];
        samples[..100].fill(1_000_000);
        assert_eq!(Summary::of(&mut samples, 0).median, 500);
        samples[..100].fill(1);
        assert_eq!(Summary::of(&mut samples, 0).median, 500);
    }

    #[test]
    fn a_sample_below_the_empty_pair_counts_as_nothing() {
        assert_eq!(Summary::of(&mut [7; SAMPLES], 9).median, 0);
    }

    #[test]
    fn every_sample_prepares_and_operates_once() {
        let (mut prepared, mut operated) = (0, 0);
        Meter::new().measure(|| prepared += 1, |()| operated += 1);
        assert_eq!((prepared, operated), (SAMPLES, SAMPLES));
    }

    #[test]
    fn lines_are_what_the_suite_parses() {
        let summary = Summary {
            median: 12,
            minimum: 11,
        };
        assert_eq!(
            Line::Row("cpuid", summary).to_string(),
            "BENCH name=cpuid instructions=12\nBENCH-MIN name=cpuid instructions=11"
        );
        assert_eq!(
            Line::Skip("cpuid", "no Xen").to_string(),
            "BENCH-SKIP name=cpuid reason=no Xen"
        );
        assert_eq!(Line::Done("guest").to_string(), "BENCH done guest");
    }
}
