//! Refinement: the real object code does what the specification says.
//!
//! The objects as they are built for the host run beside `microvisor-spec`. Both make the same calls,
//! by several threads of several domains on two CPUs; after every step the whole real state,
//! abstracted, must equal the specification's, and every invariant must hold there. A failure is
//! shortened to a story.
//!
//! `PROPTEST_CASES` sets how many stories are told. Nothing here is linked into the core.

mod abstraction;
mod bindings;
mod details;
mod directed;
mod driver;
mod ended;
mod links;
mod messages;
mod model;
mod reused;
mod story;
mod threads;
pub(crate) mod walker;
#[path = "../world/mod.rs"]
pub mod world;

use driver::{Checked, Pair};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestCaseError;
use story::Deed;

fn cases(default: u32) -> u32 {
    let cases = std::env::var("PROPTEST_CASES").ok();
    cases.and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// Tells a story; what went wrong comes with what happened before.
fn tell(pair: &mut Pair, deeds: &[Deed]) -> Checked {
    for deed in deeds {
        match pair.deed(deed) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(why) => {
                let story = pair.story.join("\n  ");
                return Err(format!("\n  {story}\nand then:\n{why}"));
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(64),
        failure_persistence: None,
        max_shrink_iters: 800,
        ..ProptestConfig::default()
    })]
    #[test]
    fn the_real_code_does_what_the_specification_says(deeds in story::story(120)) {
        let mut pair = story::world(true).map_err(TestCaseError::fail)?;
        tell(&mut pair, &deeds).map_err(TestCaseError::fail)?;
    }
}

#[test]
fn making_a_world_is_specified_step_by_step() {
    story::world(false).map(|_| ()).expect("refinement");
}

/// Random stories that are the same at every run, for what has to be measured.
fn fixed_stories(count: usize, mut each: impl FnMut(&Pair)) {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..count {
        let tree = story::story(250).new_tree(&mut runner).expect("a story");
        let mut pair = story::world(true).expect("a world");
        tell(&mut pair, &tree.current()).expect("refinement");
        each(&pair);
    }
}

#[test]
fn directed_stories_are_specified_step_by_step() {
    for (name, story) in directed::stories() {
        if let Err(why) = story() {
            panic!("{name}: {why}");
        }
    }
}

#[test]
fn every_call_is_seen_to_answer_every_status_it_may() {
    let mut seen = std::collections::BTreeSet::<(u64, u64)>::new();
    for (name, story) in directed::stories() {
        let pair = story().unwrap_or_else(|why| panic!("{name}: {why}"));
        seen.extend(&pair.coverage.seen);
    }
    fixed_stories(64, |pair| seen.extend(&pair.coverage.seen));
    let rows: Vec<_> = microvisor_spec::statuses::answers().collect();
    let unseen = rows
        .iter()
        .filter(|(call, status)| !seen.contains(&(*call as u64, *status as u64)));
    let missing: Vec<_> = unseen.collect();
    println!(
        "measured: {} pairs of call and status, all seen",
        rows.len()
    );
    assert!(missing.is_empty(), "never seen: {missing:#?}");
}

#[test]
fn small_worlds_hold_every_invariant_to_the_fixed_point() {
    for world in model::WORLDS {
        let found = world.explore(cases(64) as usize / 2);
        let found = found.unwrap_or_else(|why| panic!("{}: {why}", world.name));
        println!(
            "measured: {}: {} states, {} moves, {} paths replayed on the real code",
            world.name, found.states, found.moves, found.replayed
        );
    }
}
