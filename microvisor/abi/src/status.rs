//! What a system call answers in `rax`.

macro_rules! statuses {
    ($($(#[doc = $doc:literal])* $name:ident = $number:literal,)*) => {
        /// The outcome of a system call.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u64)]
        #[must_use]
        pub enum Status { $($(#[doc = $doc])* $name = $number,)* }

        impl Status {
            /// The status with this number; a number that the core never sends is `None`.
            #[inline]
            pub const fn from_raw(number: u64) -> Option<Status> {
                match number { $($number => Some(Status::$name),)* _ => None }
            }
        }

        /// Every status, for tests that measure coverage.
        pub const STATUSES: &[Status] = &[$(Status::$name),*];
    };
}

statuses! {
    /// Done.
    Ok = 0,
    /// No call has this number.
    InvalidCall = 1,
    /// The slot is out of range or empty, or what it named was destroyed.
    InvalidCap = 2,
    /// The capability names another kind of object.
    WrongKind = 3,
    /// The capability lacks a right that this call needs.
    NoRight = 4,
    /// An argument is out of range, misaligned, or makes no sense together with the others.
    InvalidArgument = 5,
    /// The destination slot holds a capability.
    SlotOccupied = 6,
    /// The `Memory` has not enough left, or the object's donated pool is empty.
    NoMemory = 7,
    /// A page table is missing; its level is in the first result word.
    NeedTable = 8,
    /// The capability is mapped already: copy it to map it twice.
    AlreadyMapped = 9,
    /// The capability is not mapped.
    NotMapped = 10,
    /// Something else is mapped at the address.
    Occupied = 11,
    /// The object is in use in a way that forbids this (a vCPU that runs, a thread not stopped,
    /// a binding that exists).
    Busy = 12,
    /// Bounded work was done and more is left: make the same call again.
    Again = 13,
    /// The deadline passed.
    Timeout = 14,
    /// The call was cancelled by `ThreadControl`.
    Cancelled = 15,
    /// The other side went away without answering.
    Aborted = 16,
    /// The server behind the endpoint was replaced after it took the message; whether it acted on
    /// it is not known. The next call reaches the new server.
    Restarted = 17,
    /// The derivation is as deep as it may be.
    TooDeep = 18,
    /// Something this call needs was never bound or configured.
    NotBound = 19,
    /// The receiver had no empty slot ready for each capability of the message; nothing was sent.
    CapsRefused = 20,
    /// This machine cannot do it.
    Unsupported = 21,
    /// A reply object holds no caller.
    NoCaller = 22,
}

impl Status {
    /// `Ok(())` for [`Status::Ok`], otherwise the status as the error.
    #[inline]
    pub const fn result(self) -> Result<(), Status> {
        match self {
            Status::Ok => Ok(()),
            other => Err(other),
        }
    }
}
