//! Attaching to the console component: for the log (done by the entry code) and for a guest's
//! console (done by its VMM).

use idl::Cap;
use idl::cap::Notification;
use idl::console::{ClientKind, ConsoleClient, ConsoleError};
use idl::ring::RingPage;
use idl::{CallError, ConnectError, Failure};
use microvisor_abi::Status;

use crate::ipc::EndpointTransport;
use crate::memory;

/// A place at the console.
pub struct Attached {
    /// The rings: write to `output`, read from `input`.
    pub page: &'static RingPage,
    /// To be signalled after writing or reading.
    pub peer: Cap<Notification>,
}

/// Why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachError {
    /// The console said so.
    Console(ConsoleError),
    /// The console was built from another version of the interface.
    Schema,
    /// The call failed.
    Call(Failure<Status>),
    /// The core refused.
    Core(Status),
}

/// Attaches under `name`. The console signals `wake` (mint it with a badge of your own).
pub fn attach(
    transport: EndpointTransport,
    name: &str,
    kind: ClientKind,
    wake: Cap<Notification>,
) -> Result<Attached, AttachError> {
    let console = ConsoleClient::connect(transport).map_err(|error| match error {
        ConnectError::Schema { .. } => AttachError::Schema,
        ConnectError::Failure(failure) => AttachError::Call(failure),
    })?;
    let (frame, peer) =
        console
            .attach(idl::name(name), kind, wake)
            .map_err(|error| match error {
                CallError::Answer(error) => AttachError::Console(error),
                CallError::Failure(failure) => AttachError::Call(failure),
            })?;
    let page = memory::map_shared(frame).map_err(AttachError::Core)?;
    Ok(Attached { page, peer })
}
