//! Address spaces, and what can be mapped into them.

use idl::Cap;
use idl::cap::{AddressSpace, Frame, Tables, Thread, Vcpu};
use microvisor_abi::{Call, Status};

use crate::raw;

/// Why something could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// The table of this level is missing: `Fill` the space and try again.
    NeedTable(u64),
    /// Anything else.
    Status(Status),
}

/// What can be mapped: frames, message buffers of threads, state pages of vCPUs.
pub trait Mappable: Sized {
    /// Maps it at `address` of `space`; `flags` is a set of `abi::cap::Map`. For the own space
    /// use [`crate::memory`], which knows free addresses and brings page tables.
    fn map(self, space: Cap<AddressSpace>, address: u64, flags: u64) -> Result<(), MapError>;
    /// Undoes the mapping recorded in this capability.
    fn unmap(self) -> Result<(), Status>;
}

/// Kinds that [`Mappable`] holds for.
pub trait MapKind {}
impl MapKind for Frame {}
impl MapKind for Thread {}
impl MapKind for Vcpu {}

impl<K: MapKind> Mappable for Cap<K> {
    fn map(self, space: Cap<AddressSpace>, address: u64, flags: u64) -> Result<(), MapError> {
        loop {
            let (status, results) = raw::call(
                Call::Map,
                [
                    self.slot().into(),
                    space.slot().into(),
                    address,
                    flags,
                    0,
                    0,
                ],
            );
            return match status {
                Status::Ok => Ok(()),
                Status::Again => continue,
                Status::NeedTable => Err(MapError::NeedTable(results[0])),
                other => Err(MapError::Status(other)),
            };
        }
    }

    fn unmap(self) -> Result<(), Status> {
        raw::status_until_done(Call::Unmap, [self.slot().into(), 0, 0, 0, 0, 0])
    }
}

/// Address spaces.
pub trait AddressSpaceCap {
    /// Gives frames to the pool that page tables come from.
    fn fill(self, tables: Cap<Tables>) -> Result<(), Status>;
}

impl AddressSpaceCap for Cap<AddressSpace> {
    fn fill(self, tables: Cap<Tables>) -> Result<(), Status> {
        raw::status_until_done(
            Call::Fill,
            [self.slot().into(), tables.slot().into(), 0, 0, 0, 0],
        )
    }
}
