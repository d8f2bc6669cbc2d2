//! Role `hostile-loop`: never gives the CPU back, at the priority and on the CPU of the neighbour.

use sdk::prelude::*;

/// Milliseconds after which it pauses once, so that a system in which it starves everybody can
/// still say so: longer than what the neighbour takes for starving, and no more than that, since
/// everything that the neighbour waits for on its way to judging costs it a turn.
const LOOP: u64 = 15_000;

/// Plays the role.
pub fn spin(_env: &Env) {
    log::info!("begins to loop");
    sdk::logging::drain();
    loop {
        let end = crate::claim::after(LOOP);
        while sdk::time::now() < end {
            core::hint::spin_loop();
        }
        crate::claim::pause(1000);
    }
}
