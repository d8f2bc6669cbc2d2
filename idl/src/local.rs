//! A transport inside one program, for tests: the same bytes as over an endpoint, no core.
//! Capabilities pass as the slot numbers they are.

use core::cell::RefCell;
use core::marker::PhantomData;

use crate::wire::{CAPS_MAX, Error, Reader, Writer};
use crate::{Answer, Dispatch, Failure, PAYLOAD_MAX, Refusal, Transport};

/// Calls the server that it holds.
#[derive(Debug)]
pub struct Local<I, S> {
    server: RefCell<S>,
    client: u64,
    interface: PhantomData<fn() -> I>,
}

impl<I: Dispatch<S>, S> Local<I, S> {
    /// A transport to `server`, as client 0.
    pub fn new(server: S) -> Self {
        Self::with_badge(server, 0)
    }

    /// A transport to `server`, whose calls carry this badge.
    pub fn with_badge(server: S, client: u64) -> Self {
        Local {
            server: RefCell::new(server),
            client,
            interface: PhantomData,
        }
    }

    /// Looks at the server between calls.
    pub fn server(&self) -> core::cell::RefMut<'_, S> {
        self.server.borrow_mut()
    }
}

/// The server called itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reentered;

/// Writes an answer into bytes.
pub struct Into<'a>(pub &'a mut [u8]);

impl Answer for Into<'_> {
    type Sent = Result<(usize, [u32; CAPS_MAX], usize), Error>;
    fn send(self, encode: impl FnOnce(&mut Writer<'_>) -> Result<(), Error>) -> Self::Sent {
        let mut writer = Writer::new(self.0);
        encode(&mut writer)?;
        Ok(writer.finish())
    }
}

impl<I: Dispatch<S>, S> Transport for Local<I, S> {
    type Error = Reentered;

    fn call<R>(
        &self,
        method: u32,
        reply_caps: usize,
        encode: impl FnOnce(&mut Writer<'_>) -> Result<(), Error>,
        decode: impl FnOnce(Reader<'_>) -> Result<R, Refusal>,
    ) -> Result<R, Failure<Reentered>> {
        let mut server = self
            .server
            .try_borrow_mut()
            .map_err(|_| Failure::Transport(Reentered))?;
        let mut request = [0; PAYLOAD_MAX];
        let mut writer = Writer::new(&mut request);
        encode(&mut writer).map_err(|Error| Failure::TooLong)?;
        let (length, caps, cap_count) = writer.finish();
        let mut answer = [0; PAYLOAD_MAX];
        let sent = I::dispatch(
            &mut server,
            self.client,
            method,
            request.get(..length).unwrap_or(&[]),
            caps.get(..cap_count).unwrap_or(&[]),
            Into(&mut answer),
        );
        let (length, caps, cap_count) = sent
            .and_then(|sent| sent.map_err(|Error| Refusal::Answer))
            .map_err(Failure::Refused)?;
        if cap_count > reply_caps {
            return Err(Failure::Malformed);
        }
        decode(Reader::new(
            answer.get(..length).unwrap_or(&[]),
            caps.get(..cap_count).unwrap_or(&[]),
        ))
        .map_err(|_| Failure::Malformed)
    }
}
