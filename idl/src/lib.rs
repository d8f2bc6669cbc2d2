//! Interfaces between components: what may be asked, what is answered, and how both are written
//! down in a message. Clients and servers are generated from one Rust trait per interface.
//!
//! ```
//! # extern crate idl;
//! # use idl::{interface, local::Local};
//! /// Adds numbers.
//! #[interface]
//! pub trait Sum {
//!     /// `a + b`, or nothing when it does not fit.
//!     fn add(&self, a: u32, b: u32) -> Result<u32, ()>;
//! }
//!
//! struct Adder;
//! impl SumServer for Adder {
//!     fn add(&mut self, _client: u64, a: u32, b: u32) -> Result<u32, ()> {
//!         a.checked_add(b).ok_or(())
//!     }
//! }
//!
//! let sum = SumClient::connect(Local::<Sum, _>::new(Adder)).unwrap();
//! assert_eq!(sum.add(2, 3).unwrap(), 5);
//! ```
//!
//! # What `#[interface] pub trait Name` makes
//! - `Name`: a tag that carries the schema ([`Interface`]) and the dispatcher ([`Dispatch`]);
//! - `NameRequest`, `NameReply`: enums of what travels;
//! - `NameServer`: the trait a server implements, with the caller's badge as first argument;
//! - `NameClient<T>`: a client over any [`Transport`]; `connect` compares schema hashes.
//!
//! # On the wire
//! The method's number is the message's label; 0 is the schema check, the others count from 1 in
//! the order of the trait. Arguments follow each other in postcard; capabilities (`Cap<Kind>`, at
//! most four) travel beside the bytes, in order. An answer's label is 0, or a [`Refusal`].
//! Messages own what they carry and are bounded by [`PAYLOAD_MAX`] bytes. Decoding accepts any
//! bytes, never panics, and allocates nothing.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
extern crate self as idl;
#[cfg(test)]
extern crate std;

pub mod admin;
pub mod bench;
pub mod block;
pub mod builder;
mod bytes;
pub mod cap;
pub mod console;
pub mod domains;
pub mod hardware;
pub mod local;
pub mod manifest;
pub mod operator;
pub mod pci;
pub mod peer;
pub mod peers;
pub mod requests;
pub mod ring;
pub mod schema;
pub mod store;
pub mod supervisor;
pub mod volume;
pub mod wire;
pub mod xs_wire;

pub use bytes::{Bytes, Piece};
pub use cap::Cap;
pub use heapless;
pub use idl_macros::{interface, message};
pub use serde;

/// Bytes of one message at most; the core's limit.
pub const PAYLOAD_MAX: usize = 4032;
/// The method that every interface has: answers the schema hash.
pub const HELLO: u32 = 0;

/// A name of a component, guest or client.
pub type Name = heapless::String<32>;

/// A name, cut at a character's border if it is longer than names may be.
pub fn name(text: &str) -> Name {
    let mut out = Name::new();
    for letter in text.chars() {
        if out.push(letter).is_err() {
            break;
        }
    }
    out
}

/// Facts about an interface, generated.
pub trait Interface {
    /// Name as manifests write it.
    const NAME: &'static str;
    /// Hash of the methods and of every type they mention.
    const HASH: u64;
    /// Capabilities that a request carries at most.
    const REQUEST_CAPS: usize;
    /// Capabilities that an answer carries at most.
    const REPLY_CAPS: usize;
    /// The methods, in order.
    const METHODS: &'static [schema::Method];
    /// Calls `into` with name and definition of each message type; one may come twice.
    fn types(into: &mut dyn FnMut(&'static str, &'static str));
}

/// Decodes a request and calls the method of `S` that it names; generated.
pub trait Dispatch<S>: Interface {
    /// Never panics, whatever `method`, `bytes` and `caps` are, unless the server itself does.
    /// The answer goes to `answer`; a request that was refused uses none.
    fn dispatch<A: Answer>(
        server: &mut S,
        client: u64,
        method: u32,
        bytes: &[u8],
        caps: &[u32],
        answer: A,
    ) -> Result<A::Sent, Refusal>;
}

/// Where a dispatcher's answer goes.
pub trait Answer {
    /// What becomes of it.
    type Sent;
    /// Takes what `encode` writes.
    fn send(
        self,
        encode: impl FnOnce(&mut wire::Writer<'_>) -> Result<(), wire::Error>,
    ) -> Self::Sent;
}

/// Why a request did not reach the server's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The arguments do not decode, or the number of capabilities is wrong.
    Malformed,
    /// There is no such method.
    Method,
    /// The answer did not fit into a message: a defect of the server.
    Answer,
}

impl Refusal {
    /// The label of the answer that tells it.
    pub const fn label(self) -> u32 {
        match self {
            Refusal::Malformed => 1,
            Refusal::Method => 2,
            Refusal::Answer => 3,
        }
    }

    /// What an answer's label says: `Ok` for an ordinary answer.
    #[inline(always)]
    pub const fn from_label(label: u32) -> Result<(), Refusal> {
        match label {
            0 => Ok(()),
            2 => Err(Refusal::Method),
            3 => Err(Refusal::Answer),
            _ => Err(Refusal::Malformed),
        }
    }
}

/// Carries requests to a server and answers back: an endpoint, or [`local::Local`] in tests.
pub trait Transport {
    /// Why nothing came back.
    type Error;

    /// Sends what `encode` writes, waits, and hands the answer to `decode`. `reply_caps` is how
    /// many capabilities the answer may carry.
    fn call<R>(
        &self,
        method: u32,
        reply_caps: usize,
        encode: impl FnOnce(&mut wire::Writer<'_>) -> Result<(), wire::Error>,
        decode: impl FnOnce(wire::Reader<'_>) -> Result<R, Refusal>,
    ) -> Result<R, Failure<Self::Error>>;
}

/// Why a call has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure<E> {
    /// The arguments do not fit into a message.
    TooLong,
    /// The transport failed.
    Transport(E),
    /// The server did not accept the message.
    Refused(Refusal),
    /// The answer does not decode.
    Malformed,
}

/// Why a method failed: the server said so, or the call went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallError<A, E> {
    /// The interface's own error.
    Answer(A),
    /// No answer.
    Failure(Failure<E>),
}

/// Why a client could not connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectError<E> {
    /// The server was built from another version of the interface.
    Schema {
        /// Our hash.
        ours: u64,
        /// The server's.
        theirs: u64,
    },
    /// No answer.
    Failure(Failure<E>),
}

/// The schema check behind the generated `connect`.
pub fn hello<T: Transport>(transport: &T, ours: u64) -> Result<(), ConnectError<T::Error>> {
    let theirs = transport
        .call(
            HELLO,
            0,
            |_| Ok(()),
            |mut from| {
                let hash = from.get()?;
                from.end()?;
                Ok(hash)
            },
        )
        .map_err(ConnectError::Failure)?;
    if ours == theirs {
        Ok(())
    } else {
        Err(ConnectError::Schema { ours, theirs })
    }
}

/// Joins the two ways a call can fail; used by generated code.
#[inline(always)]
pub fn flatten<R, A, E>(outcome: Result<Result<R, A>, Failure<E>>) -> Result<R, CallError<A, E>> {
    match outcome {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(CallError::Answer(error)),
        Err(failure) => Err(CallError::Failure(failure)),
    }
}

/// Every interface's name and schema as JSON.
pub fn exports() -> [(&'static str, alloc::string::String); 13] {
    [
        (admin::Admin::NAME, schema::export::<admin::Admin>()),
        (bench::Bench::NAME, schema::export::<bench::Bench>()),
        (block::Block::NAME, schema::export::<block::Block>()),
        (builder::Builder::NAME, schema::export::<builder::Builder>()),
        (console::Console::NAME, schema::export::<console::Console>()),
        (domains::Domains::NAME, schema::export::<domains::Domains>()),
        (
            hardware::Hardware::NAME,
            schema::export::<hardware::Hardware>(),
        ),
        (
            operator::Operator::NAME,
            schema::export::<operator::Operator>(),
        ),
        (pci::Pci::NAME, schema::export::<pci::Pci>()),
        (peer::Peer::NAME, schema::export::<peer::Peer>()),
        (peers::Peers::NAME, schema::export::<peers::Peers>()),
        (store::Store::NAME, schema::export::<store::Store>()),
        (
            supervisor::Supervisor::NAME,
            schema::export::<supervisor::Supervisor>(),
        ),
    ]
}

#[cfg(test)]
mod tests;
