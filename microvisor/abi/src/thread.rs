//! Operations on threads and what is reported of one that stopped.

numbered! {
/// Operations of [`crate::Call::ThreadControl`].
#[repr(u64)]
pub enum Op from u64 {
    /// Lets a configured or stopped thread run.
    Resume = 0,
    /// Stops it wherever it is; a blocking call is aborted.
    Suspend = 1,
    /// Ends the blocking call it is in, if any, with `Cancelled`; also ends a vCPU run.
    Cancel = 2,
    /// Writes a [`Report`] into the caller's message buffer.
    Inspect = 3,
}
}

macro_rules! registers {
    ($($name:ident)*) => {
        /// General registers of a thread, in the order that the core keeps them.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(C)]
        pub struct Registers { $(#[doc = concat!("`", stringify!($name), "`.")] pub $name: u64,)* }

        impl Registers {
            /// Their names, in order.
            pub const NAMES: [&str; 18] = [$(stringify!($name)),*];

            /// From words in order.
            pub const fn from_words([$($name),*]: [u64; 18]) -> Registers {
                Registers { $($name),* }
            }

            /// As words in order.
            pub const fn words(&self) -> [u64; 18] {
                [$(self.$name),*]
            }
        }
    };
}
registers!(rax rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rsp rflags);

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
        let [registers @ .., a, b, c] = rest;
        Some(Report {
            state,
            vector,
            error_code,
            address,
            registers: Registers::from_words(registers),
            refused: [a, b, c],
        })
    }

    /// The report as the words that the core writes.
    pub fn words(&self) -> [u64; Self::WORDS] {
        let mut words = [0; Self::WORDS];
        let fault = [self.state, self.vector, self.error_code, self.address];
        let parts = [&fault[..], &self.registers.words(), &self.refused];
        for (word, value) in words.iter_mut().zip(parts.into_iter().flatten()) {
            *word = *value;
        }
        words
    }
}
