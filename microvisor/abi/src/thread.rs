//! Operations on threads and what is reported of one that stopped.

/// Operations of [`crate::Call::ThreadControl`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Op {
    /// Lets a configured or stopped thread run.
    Resume = 0,
    /// Stops it wherever it is; a blocking call is aborted.
    Suspend = 1,
    /// Ends the blocking call it is in, if any, with `Cancelled`; also ends a vCPU run.
    Cancel = 2,
    /// Writes a [`Report`] into the caller's message buffer.
    Inspect = 3,
}

impl Op {
    /// The operation with this number.
    pub const fn from_raw(raw: u64) -> Option<Op> {
        match raw {
            0 => Some(Op::Resume),
            1 => Some(Op::Suspend),
            2 => Some(Op::Cancel),
            3 => Some(Op::Inspect),
            _ => None,
        }
    }
}

/// General registers of a thread, in the order that the core keeps them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    /// `rax`.
    pub rax: u64,
    /// `rbx`.
    pub rbx: u64,
    /// `rcx`.
    pub rcx: u64,
    /// `rdx`.
    pub rdx: u64,
    /// `rsi`.
    pub rsi: u64,
    /// `rdi`.
    pub rdi: u64,
    /// `rbp`.
    pub rbp: u64,
    /// `r8`.
    pub r8: u64,
    /// `r9`.
    pub r9: u64,
    /// `r10`.
    pub r10: u64,
    /// `r11`.
    pub r11: u64,
    /// `r12`.
    pub r12: u64,
    /// `r13`.
    pub r13: u64,
    /// `r14`.
    pub r14: u64,
    /// `r15`.
    pub r15: u64,
    /// `rip`.
    pub rip: u64,
    /// `rsp`.
    pub rsp: u64,
    /// `rflags`.
    pub rflags: u64,
}

/// Why a thread is not running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum State {
    /// Never resumed, or suspended.
    Stopped = 0,
    /// On a run queue or running.
    Ready = 1,
    /// In a blocking call.
    Blocked = 2,
    /// Stopped by a fault; [`Report::vector`] and [`Report::error_code`] tell which.
    Faulted = 3,
}

/// What [`Op::Inspect`] writes: little-endian `u64`s in this order, at the start of the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Report {
    /// A [`State`].
    pub state: u64,
    /// Exception vector of the fault (Intel SDM vol. 3, 6.3.1).
    pub vector: u64,
    /// Its error code, or 0.
    pub error_code: u64,
    /// Faulting address (`CR2`) when the vector is 14, otherwise 0.
    pub address: u64,
    /// Registers.
    pub registers: Registers,
    /// The last call that was refused for its capability (`InvalidCap`, `WrongKind`, `NoRight`):
    /// call number and status (`<< 32`), then its first two arguments. Zeros: none was.
    pub refused: [u64; 3],
}

impl Report {
    /// Words that the core writes.
    const WORDS: usize = 25;
    /// Size in bytes.
    pub const SIZE: usize = Self::WORDS * 8;

    /// Reads a report from a message buffer; `None` if it is shorter than [`Report::SIZE`].
    pub fn from_bytes(bytes: &[u8]) -> Option<Report> {
        let mut words = [0u64; Self::WORDS];
        for (word, chunk) in words
            .iter_mut()
            .zip(bytes.get(..Self::SIZE)?.chunks_exact(8))
        {
            *word = u64::from_le_bytes(chunk.try_into().ok()?);
        }
        let [state, vector, error_code, address, rest @ ..] = words;
        let [
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rbp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip,
            rsp,
            rflags,
            refused @ ..,
        ] = rest;
        let registers = Registers {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rbp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip,
            rsp,
            rflags,
        };
        Some(Report {
            state,
            vector,
            error_code,
            address,
            registers,
            refused,
        })
    }

    /// The report as the words that the core writes.
    pub fn words(&self) -> [u64; Self::WORDS] {
        let r = &self.registers;
        [
            self.state,
            self.vector,
            self.error_code,
            self.address,
            r.rax,
            r.rbx,
            r.rcx,
            r.rdx,
            r.rsi,
            r.rdi,
            r.rbp,
            r.r8,
            r.r9,
            r.r10,
            r.r11,
            r.r12,
            r.r13,
            r.r14,
            r.r15,
            r.rip,
            r.rsp,
            r.rflags,
            self.refused[0],
            self.refused[1],
            self.refused[2],
        ]
    }
}
