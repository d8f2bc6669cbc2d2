//! Measures the core from ring 3 and logs the lines of [`measure`], `BENCH done components` last:
//! a vCPU's exit and the next run (`exit`), calls by message (`messages`). It runs on one CPU with
//! its servers; what it counts is their path through the core and back.
#![no_std]
#![no_main]

mod exit;
mod messages;

use core::fmt::Debug;

use measure::{Line, Meter, Summary};
use sdk::prelude::*;

sdk::entry!(main);

fn main(env: Env) {
    let meter = Meter::new();
    report("vmm_exit_null", exit::null(&env, meter));
    report("ipc_same_as", messages::same_space(&env, meter));
    report("ipc_cross_as", messages::cross_space(&env, meter));
    report("idl_call", messages::interface(&env, meter));
    log::info!("{}", Line::Done("components"));
}

/// Logs a row, or why there is none.
fn report<E: Debug>(name: &str, outcome: Result<Summary, E>) {
    match outcome {
        Ok(summary) => log::info!("{}", Line::Row(name, summary)),
        Err(error) => log::info!("BENCH-SKIP name={name} reason={error:?}"),
    }
}
