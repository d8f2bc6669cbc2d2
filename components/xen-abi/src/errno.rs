//! Xen's error numbers (`public/errno.h`), as far as this library answers with them. Hypercalls
//! return them negated.

/// An error that a hypercall returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Errno {
    /// Operation not permitted.
    Perm = 1,
    /// No such object.
    NoEnt = 2,
    /// No such domain or vCPU.
    Srch = 3,
    /// I/O error.
    Io = 5,
    /// No such device or address.
    NxIo = 6,
    /// List too long.
    TooBig = 7,
    /// Try again.
    Again = 11,
    /// No memory.
    NoMem = 12,
    /// Access denied.
    Acces = 13,
    /// Bad guest address.
    Fault = 14,
    /// Busy.
    Busy = 16,
    /// Already there.
    Exist = 17,
    /// No such device.
    NoDev = 19,
    /// Invalid argument.
    Inval = 22,
    /// No space left, here: no free port.
    NoSpc = 28,
    /// Argument outside the function's domain.
    Dom = 33,
    /// Outside the allowed range.
    Range = 34,
    /// Not implemented.
    NoSys = 38,
    /// No data available.
    NoData = 61,
    /// Value too large.
    Overflow = 75,
    /// Illegal sequence: a continuation past its list.
    IlSeq = 84,
    /// Not supported.
    OpNotSupp = 95,
}

impl Errno {
    /// The value as a hypercall returns it: negative.
    #[must_use]
    pub const fn as_return(self) -> i64 {
        -(self as i32 as i64)
    }
}
