//! No vCPU ever sees a stale translation: the allocator against a model of tagged TLBs.
//!
//! The emulators flush at every entry, so a forgotten flush would show nowhere else.

use microvisor_vcpu_state::asid::{Asids, Entry, Held};
use proptest::prelude::*;
use std::collections::HashMap;

const CPUS: usize = 2;
const VCPUS: usize = 6;
const SPACES: usize = 2;

/// What one step of a run may be.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// `vcpu` runs on `cpu` and touches a page, which gets cached.
    Run { vcpu: usize, cpu: usize },
    /// The page of `space` is unmapped: its translation changes, and its epoch moves on.
    Unmap { space: usize },
    /// `vcpu` is destroyed and another made in its place.
    Replace { vcpu: usize },
    /// The space of `vcpu` is destroyed, and it is given a new one, in which nothing was unmapped.
    Attach { vcpu: usize },
}

/// Caches by identifier: whose translation, and of which epoch.
#[derive(Default)]
struct Tlb(HashMap<u32, (usize, u64)>);

struct System {
    asids: [Asids; CPUS],
    tlbs: [Tlb; CPUS],
    held: [Held; VCPUS],
    /// Which space each vCPU runs in.
    space: [usize; VCPUS],
    /// Of every space there ever was.
    epochs: Vec<u64>,
    /// Attaching forgets the identifier.
    forgets: bool,
}

impl System {
    fn new(count: u32) -> System {
        System {
            asids: [Asids::new(0, count), Asids::new(1, count)],
            // Before the first use an identifier may have anything cached.
            tlbs: std::array::from_fn(|_| Tlb((0..count).map(|id| (id, (99, 99))).collect())),
            held: [Held::default(); VCPUS],
            space: std::array::from_fn(|vcpu| vcpu % SPACES),
            epochs: vec![0; SPACES],
            forgets: true,
        }
    }

    /// Carries out a step with the given allocator; false if a guest used a stale translation.
    fn step(
        &mut self,
        step: Step,
        enter: impl Fn(&mut Asids, &mut Held, u64) -> Entry,
    ) -> Result<bool, TestCaseError> {
        match step {
            Step::Run { vcpu, cpu } => {
                let space = self.space[vcpu];
                let epoch = self.epochs[space];
                let held = &mut self.held[vcpu];
                let entry = enter(&mut self.asids[cpu], held, epoch);
                let tlb = &mut self.tlbs[cpu].0;
                if entry == Entry::FreshAfterFlush {
                    tlb.clear();
                }
                prop_assert_ne!(held.asid, 0, "0 is the host's");
                let now = (space, epoch);
                return Ok(*tlb.entry(held.asid).or_insert(now) == now);
            }
            Step::Unmap { space } => self.epochs[space] += 1,
            Step::Replace { vcpu } => self.held[vcpu] = Held::default(),
            Step::Attach { vcpu } => {
                self.space[vcpu] = self.epochs.len();
                self.epochs.push(0);
                if self.forgets {
                    self.held[vcpu].forget();
                }
            }
        }
        Ok(true)
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let one = prop_oneof![
        8 => (0..VCPUS, 0..CPUS).prop_map(|(vcpu, cpu)| Step::Run { vcpu, cpu }),
        2 => (0..SPACES).prop_map(|space| Step::Unmap { space }),
        1 => (0..VCPUS).prop_map(|vcpu| Step::Replace { vcpu }),
        1 => (0..VCPUS).prop_map(|vcpu| Step::Attach { vcpu }),
    ];
    prop::collection::vec(one, 1..200)
}

proptest! {
    #[test]
    fn no_stale_translation_is_ever_used(steps in steps(), count in 2u32..10) {
        let mut system = System::new(count);
        for step in steps {
            prop_assert!(system.step(step, Asids::enter)?, "{:?}", step);
        }
    }

    #[test]
    fn two_spaces_never_share_an_identifier(steps in steps(), count in 3u32..6) {
        let mut system = System::new(count);
        let mut users: [HashMap<u32, (u64, usize)>; CPUS] = Default::default();
        for step in steps {
            system.step(step, Asids::enter)?;
            if let Step::Run { vcpu, cpu } = step {
                let held = system.held[vcpu];
                let user = (held.stamp, system.space[vcpu]);
                let known = *users[cpu].entry(held.asid).or_insert(user);
                prop_assert!(known == user || known.0 != user.0);
                users[cpu].insert(held.asid, user);
            }
        }
    }
}

/// The control: each check that the allocator makes is needed, as the model sees.
#[test]
fn the_model_notices_each_forgotten_check() {
    let run = |vcpu, cpu| Step::Run { vcpu, cpu };
    let caught = |steps: &[Step], enter: fn(&mut Asids, &mut Held, u64) -> Entry| {
        let mut system = System::new(3);
        !steps
            .iter()
            .all(|&step| system.step(step, enter).expect("no host identifier"))
    };
    let forgets_epoch: fn(&mut Asids, &mut Held, u64) -> Entry = |asids, held, epoch| {
        held.epoch = epoch;
        asids.enter(held, epoch)
    };
    let unmapped = [run(0, 0), Step::Unmap { space: 0 }, run(0, 0)];
    assert!(caught(&unmapped, forgets_epoch));
    assert!(!caught(&unmapped, Asids::enter));

    let forgets_flush: fn(&mut Asids, &mut Held, u64) -> Entry =
        |asids, held, epoch| match asids.enter(held, epoch) {
            Entry::FreshAfterFlush => Entry::Fresh,
            entry => entry,
        };
    let many = [run(0, 0), run(1, 0), run(2, 0), run(3, 0)];
    assert!(caught(&many, forgets_flush));
    assert!(!caught(&many, Asids::enter));

    let attached = [run(0, 0), Step::Attach { vcpu: 0 }, run(0, 0)];
    let mut careless = System::new(3);
    careless.forgets = false;
    let fine = attached.map(|step| careless.step(step, Asids::enter).expect("an identifier"));
    assert!(fine.contains(&false));
    assert!(!caught(&attached, Asids::enter));

    let forgets_cpu: fn(&mut Asids, &mut Held, u64) -> Entry = |asids, held, epoch| {
        if held.asid != 0 && held.epoch == epoch {
            return Entry::Keep;
        }
        asids.enter(held, epoch)
    };
    let moved = [run(0, 0), run(1, 1), run(0, 1)];
    assert!(caught(&moved, forgets_cpu));
    assert!(!caught(&moved, Asids::enter));
}
