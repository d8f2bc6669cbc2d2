//! Threads, time and vCPUs that are deleted in the middle of what they do. Called by
//! `directed::stories`.

use super::directed::{Story, Told};
use super::driver::{Checked, Pair};
use microvisor_abi::{Call, FOREVER, Kind};

/// The thread that runs a vCPU is deleted: another can run it.
fn a_thread_in_its_guest() -> Checked<Pair> {
    let mut s = Story::begin(8192)?;
    s.make(Kind::Vcpu, 0, 500)?;
    s.make(Kind::AddressSpace, 1, 501)?;
    s.ok(Call::VcpuControl, &[500, 0, 501])?;
    for slot in [510, 520] {
        s.thread(slot, 15)?;
        s.look(1)?;
        s.blocks(1, Call::VcpuRun, &[500])?;
        s.ok(Call::Delete, &[0, slot])?;
        s.look(1)?;
    }
    Ok(s.pair)
}

/// Threads that wait, receive, call and run, and their time, are deleted.
fn threads_in_every_state() -> Checked<Pair> {
    let mut s = Story::begin(8192)?;
    s.make(Kind::Endpoint, 0, 500)?;
    s.make(Kind::Reply, 0, 501)?;
    s.make(Kind::Notification, 0, 502)?;
    for part in 0..2 {
        let doing = [
            (Call::Wait, [502, FOREVER, 0]),
            (Call::Receive, [500, 501, FOREVER]),
            (Call::Call, [500, 0, 0]),
            (Call::ThreadControl, [1, 9, 9]),
        ];
        for (slot, (call, args)) in (510..).step_by(10).zip(doing) {
            let slot = slot + 100 * part;
            s.thread(slot, 15)?;
            s.look(1)?;
            s.on(1, call, &args)?;
            // The thread, or its time.
            s.ok(Call::Delete, &[0, slot + part])?;
            s.look(1)?;
            s.on(0, Call::ThreadControl, &[slot, 2])?;
            s.look(1)?;
        }
    }
    Ok(s.pair)
}

pub const STORIES: &[(&str, Told)] = &[
    ("a_thread_in_its_guest", a_thread_in_its_guest),
    ("threads_in_every_state", threads_in_every_state),
];
