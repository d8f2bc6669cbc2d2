//! Attaching to the console component: for the log (done by the entry code) and for a guest's
//! console (done by its VMM). A place outlives the console that gave it: the ring page is neither
//! side's memory, so what was written waits there, and when the console is started again the client
//! attaches again and goes on with the same page.

use idl::cap::{Frame, Notification};
use idl::console::{ClientKind, ConsoleClient, ConsoleError};
use idl::ring::RingPage;
use idl::{CallError, Cap, ConnectError, Failure, Name};
use microvisor_abi::Status;

use crate::caps::{AnyCap, NotificationCap};
use crate::ipc::EndpointTransport;
use crate::memory;

/// A place at the console.
pub struct Attached {
    /// The rings: write to `output`, read from `input`.
    pub page: &'static RingPage,
    /// Of the console that runs, or ran.
    peer: Cap<Notification>,
    request: Request,
}

/// What is said when attaching, every time.
#[derive(Clone)]
struct Request {
    transport: EndpointTransport,
    name: Name,
    kind: ClientKind,
    wake: Cap<Notification>,
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

impl Request {
    fn once(&self) -> Result<(Cap<Frame>, Cap<Notification>), AttachError> {
        let console = ConsoleClient::connect(self.transport).map_err(|error| match error {
            ConnectError::Schema { .. } => AttachError::Schema,
            ConnectError::Failure(failure) => AttachError::Call(failure),
        })?;
        console
            .attach(self.name.clone(), self.kind, self.wake)
            .map_err(|error| match error {
                CallError::Answer(error) => AttachError::Console(error),
                CallError::Failure(failure) => AttachError::Call(failure),
            })
    }

    /// Asks as often as the console dies over it, which root does not let it do for ever.
    fn send(&self) -> Result<(Cap<Frame>, Cap<Notification>), AttachError> {
        loop {
            match self.once() {
                Err(AttachError::Call(Failure::Transport(Status::Restarted))) => {}
                other => return other,
            }
        }
    }
}

impl Attached {
    /// Tells the console that something was written or read. A console that was started again
    /// since does not know this client: then attaches again, which waits until it serves, and
    /// tells it as well. To be called when bit [`crate::startup::PEERS`] comes, too: a client that
    /// has nothing to say must still be found by what is typed.
    pub fn signal(&mut self) -> Result<(), AttachError> {
        if self.peer.signal(1).is_ok() {
            return Ok(());
        }
        let (frame, peer) = self.request.send()?;
        // The same page as before, which is still mapped here.
        let _ = frame.delete();
        // Its capability went with the console that made it; this empties the slot for others.
        let _ = core::mem::replace(&mut self.peer, peer).delete();
        Ok(())
    }
}

/// Attaches under `name`. The console signals `wake` (mint it with a badge of your own).
pub fn attach(
    transport: EndpointTransport,
    name: &str,
    kind: ClientKind,
    wake: Cap<Notification>,
) -> Result<Attached, AttachError> {
    let request = Request {
        transport,
        name: idl::name(name),
        kind,
        wake,
    };
    let (frame, peer) = request.send()?;
    let page = memory::map_shared(frame).map_err(|status| {
        // Nobody would find them again.
        let _ = (frame.delete(), peer.delete());
        AttachError::Core(status)
    })?;
    Ok(Attached {
        page,
        peer,
        request,
    })
}
