//! What every vendor's decoder makes of an exit that goes to the VMM.

use microvisor_abi::vcpu::Exit;

/// An exit that goes to the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// The reason.
    pub exit: Exit,
    /// Its details.
    pub info: [u64; 2],
    /// Bytes of the instruction, 0 if unknown.
    pub length: u64,
    /// True if the VMM gets the groups of `MODE` with it.
    pub mode: bool,
}

impl Report {
    /// An exit without details.
    pub const fn plain(exit: Exit) -> Report {
        Report {
            exit,
            info: [0, 0],
            length: 0,
            mode: false,
        }
    }
}
