//! Which call may answer what: the whole table. A status that is not here is never answered by that
//! call; the refinement tests see every row of it happen. Why a call answers a status is said at the
//! call; the first four mean the same everywhere ([`crate::lookup`]).

use microvisor_abi::Call;
use microvisor_abi::Status::{self, *};

/// What each call may answer, in order of number.
pub const ANSWERS: &[(Call, &[Status])] = &[
    (
        Call::Retype,
        &[
            Ok,
            InvalidCap,
            WrongKind,
            NoRight,
            InvalidArgument,
            SlotOccupied,
            NoMemory,
            Again,
            TooDeep,
            Unsupported,
        ],
    ),
    (
        Call::Copy,
        &[
            Ok,
            InvalidCap,
            WrongKind,
            NoRight,
            InvalidArgument,
            SlotOccupied,
            TooDeep,
        ],
    ),
    (
        Call::Move,
        &[Ok, InvalidCap, WrongKind, NoRight, SlotOccupied],
    ),
    (Call::Delete, &[Ok, InvalidCap, WrongKind, NoRight, Again]),
    (Call::Revoke, &[Ok, InvalidCap, WrongKind, NoRight, Again]),
    (
        Call::Map,
        &[
            Ok,
            InvalidCap,
            WrongKind,
            NoRight,
            InvalidArgument,
            AlreadyMapped,
            Occupied,
            NeedTable,
        ],
    ),
    (Call::Unmap, &[Ok, InvalidCap, WrongKind, NotMapped]),
    (Call::Fill, &[Ok, InvalidCap, WrongKind, NoRight, Busy]),
    (
        Call::ThreadConfigure,
        &[Ok, InvalidCap, WrongKind, NoRight, InvalidArgument, Busy],
    ),
    (
        Call::ThreadControl,
        &[
            Ok,
            InvalidCap,
            WrongKind,
            NoRight,
            InvalidArgument,
            Busy,
            NotBound,
        ],
    ),
    (
        Call::SchedSet,
        &[Ok, InvalidCap, WrongKind, NoRight, InvalidArgument],
    ),
    (
        Call::Bind,
        &[
            Ok,
            InvalidCap,
            WrongKind,
            NoRight,
            InvalidArgument,
            Busy,
            NotBound,
        ],
    ),
    (
        Call::Call,
        &[
            Ok,
            InvalidCap,
            WrongKind,
            NoRight,
            InvalidArgument,
            Cancelled,
            Aborted,
            Restarted,
            TooDeep,
            CapsRefused,
        ],
    ),
    (
        Call::Receive,
        &[
            Ok, InvalidCap, WrongKind, NoRight, Busy, Again, Timeout, Cancelled, Aborted, NotBound,
        ],
    ),
    (
        Call::Reply,
        &[
            Ok,
            InvalidCap,
            WrongKind,
            NoRight,
            InvalidArgument,
            TooDeep,
            CapsRefused,
            NoCaller,
        ],
    ),
    (
        Call::ReplyReceive,
        &[
            Ok, InvalidCap, WrongKind, NoRight, Again, Cancelled, Aborted,
        ],
    ),
    (Call::Signal, &[Ok, InvalidCap, WrongKind, NoRight]),
    (
        Call::Wait,
        &[
            Ok, InvalidCap, WrongKind, NoRight, Timeout, Cancelled, Aborted,
        ],
    ),
    (
        Call::VcpuRun,
        &[Ok, InvalidCap, WrongKind, NoRight, Busy, Aborted, NotBound],
    ),
    (
        Call::VcpuControl,
        &[Ok, InvalidCap, WrongKind, NoRight, InvalidArgument, Busy],
    ),
    (
        Call::InterruptControl,
        &[
            Ok,
            InvalidCap,
            WrongKind,
            NoRight,
            InvalidArgument,
            NotBound,
        ],
    ),
    (
        Call::PortsGrant,
        &[
            Ok,
            InvalidCap,
            WrongKind,
            NoRight,
            InvalidArgument,
            NoMemory,
            AlreadyMapped,
        ],
    ),
    (Call::Inspect, &[Ok, InvalidCap, WrongKind, NoRight]),
];

/// True if the table lists this.
pub fn may_answer(call: Call, status: Status) -> bool {
    ANSWERS
        .iter()
        .any(|(c, list)| *c == call && list.contains(&status))
}
