//! Which call may answer what: the whole table. A status that is not here is never answered by that
//! call; the refinement tests see every row of it happen. Why a call answers a status is said at the
//! call.

use microvisor_abi::Call;
use microvisor_abi::Status::{self, *};

/// What every call may answer: it was done, or the naming of a capability failed ([`crate::lookup`]).
const ALWAYS: [Status; 4] = [Ok, InvalidCap, WrongKind, NoRight];
/// How a call that blocks may end early.
const LATER: [Status; 2] = [Cancelled, Aborted];

/// What each call may answer besides, in order of number.
#[rustfmt::skip]
const BESIDES: &[(Call, &[Status])] = &[
    (Call::Retype, &[InvalidArgument, SlotOccupied, NoMemory, Again, TooDeep, Unsupported]),
    (Call::Copy, &[InvalidArgument, SlotOccupied, TooDeep]),
    (Call::Move, &[SlotOccupied]),
    (Call::Delete, &[Again, Timeout]),
    (Call::Revoke, &[Again, Timeout]),
    (Call::Map, &[InvalidArgument, AlreadyMapped, Occupied, NeedTable]),
    (Call::Unmap, &[NotMapped, Again, Timeout]),
    (Call::Fill, &[Busy]),
    (Call::ThreadConfigure, &[InvalidArgument, Busy]),
    (Call::ThreadControl, &[InvalidArgument, Busy, NotBound]),
    (Call::SchedSet, &[InvalidArgument]),
    (Call::Bind, &[InvalidArgument, Busy, NotBound, NoMemory, Again, Timeout]),
    (Call::Call, &[InvalidArgument, Restarted, TooDeep, CapsRefused]),
    (Call::Receive, &[Busy, Again, Timeout, NotBound]),
    (Call::Reply, &[InvalidArgument, TooDeep, CapsRefused, NoCaller]),
    (Call::ReplyReceive, &[Again]),
    (Call::Signal, &[]),
    (Call::Wait, &[Timeout]),
    (Call::VcpuRun, &[Busy, Aborted, NotBound]),
    (Call::VcpuControl, &[InvalidArgument, Busy]),
    (Call::InterruptControl, &[InvalidArgument, NotBound]),
    (Call::PortsGrant, &[InvalidArgument, NoMemory, AlreadyMapped]),
    (Call::Inspect, &[]),
];

/// Every call with every status that it may answer.
pub fn answers() -> impl Iterator<Item = (Call, Status)> {
    BESIDES.iter().flat_map(|(call, besides)| {
        let blocks = matches!(
            call,
            Call::Call | Call::Receive | Call::ReplyReceive | Call::Wait
        );
        // Unmapping needs no right: it gives something up.
        let named = ALWAYS
            .iter()
            .filter(|s| **s != NoRight || *call != Call::Unmap);
        let later = LATER.iter().filter(move |_| blocks);
        let all = named.chain(later).chain(*besides);
        all.map(|status| (*call, *status))
    })
}

/// True if the table lists this.
pub fn may_answer(call: Call, status: Status) -> bool {
    answers().any(|row| row == (call, status))
}
