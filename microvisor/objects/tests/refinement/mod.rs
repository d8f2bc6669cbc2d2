//! Refinement: the real object code does what the specification says.
//!
//! The objects as they are built for the host run beside `microvisor-spec`. Both make the same calls,
//! by several threads of several domains on two CPUs; after every step the whole real state,
//! abstracted, must equal the specification's, and every invariant must hold there. A failure is
//! shortened to a story.
//!
//! `PROPTEST_CASES` sets how many stories are told. Nothing here is linked into the core.

mod abstraction;
mod driver;
mod story;
#[path = "../world/mod.rs"]
pub mod world;

use driver::{Checked, Pair};
use proptest::prelude::*;
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
