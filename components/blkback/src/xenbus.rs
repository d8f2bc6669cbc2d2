//! The states by which front and back end of a device come together and part (Xen, public/io/xenbus.h),
//! from the back end's side, as a function: what the store says of both, and whether this instance serves
//! the device, lead to what to do next.

/// `enum xenbus_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No state, or one that there is not.
    Unknown = 0,
    /// Not ready.
    Initialising = 1,
    /// The back end has said what it can.
    InitWait = 2,
    /// The front end has said where its rings are.
    Initialised = 3,
    /// In use.
    Connected = 4,
    /// About to part.
    Closing = 5,
    /// Parted.
    Closed = 6,
}

impl State {
    /// From a node's value.
    pub fn of_node(value: Option<&[u8]>) -> State {
        match value {
            Some(b"1") => State::Initialising,
            Some(b"2") => State::InitWait,
            Some(b"3") => State::Initialised,
            Some(b"4") => State::Connected,
            Some(b"5") => State::Closing,
            Some(b"6") => State::Closed,
            _ => State::Unknown,
        }
    }

    /// As a node's value.
    pub const fn node(self) -> &'static str {
        match self {
            State::Unknown => "0",
            State::Initialising => "1",
            State::InitWait => "2",
            State::Initialised => "3",
            State::Connected => "4",
            State::Closing => "5",
            State::Closed => "6",
        }
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Stay,
    /// Say what the back end can, then be `InitWait`.
    Offer,
    /// Map the rings, then be `Connected`. If the store has us there already, an earlier instance of this
    /// component was: its rings are gone on with.
    Connect,
    /// Let go of the rings, then be this.
    Part(State),
}

/// The next step. `back` and `front` are what the store says; `serving`: this instance has the rings;
/// `failed`: it let go of them because the front end broke them, and wants it to begin anew.
pub fn step(back: State, front: State, serving: bool, failed: bool) -> Step {
    match front {
        // The front end begins, or begins anew without having parted.
        State::Initialising | State::InitWait => match back {
            _ if serving => Step::Part(State::Closed),
            State::InitWait => Step::Stay,
            // It is told that nothing comes of this, and has to part.
            State::Closing if failed => Step::Stay,
            _ => Step::Offer,
        },
        State::Initialised | State::Connected => match back {
            _ if serving || failed => Step::Stay,
            State::Initialising => Step::Offer,
            State::InitWait | State::Initialised | State::Connected => Step::Connect,
            // It has to part first.
            State::Closing | State::Closed | State::Unknown => Step::Stay,
        },
        State::Closing if serving || back != State::Closing => match back {
            State::Closed if !serving => Step::Stay,
            _ => Step::Part(State::Closing),
        },
        State::Closing => Step::Stay,
        State::Closed | State::Unknown => match back {
            State::Closed if !serving => Step::Stay,
            _ => Step::Part(State::Closed),
        },
    }
}
