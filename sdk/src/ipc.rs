//! Calls and servers over endpoints: the transport of `idl`'s generated clients, and the loop that
//! feeds generated dispatchers.
//!
//! A payload of at most [`INLINE`] bytes travels in the four register words and never touches the
//! message buffer; a longer one goes through it. The label is method (or refusal) in bits 0-15 and
//! the inline length in bits 16-31.

use idl::cap::{Endpoint, Reply};
use idl::wire::{Error, Reader, Writer};
use idl::{Answer, Cap, Dispatch, Failure, Refusal, Transport};
use microvisor_abi::message::{CAPS_MAX, PAYLOAD_MAX, RECEIVE_SLOTS, SEND_SLOTS};
use microvisor_abi::{Call, FOREVER, MessageInfo, Status};

use crate::caps::AnyCap;
use crate::local::{self, BUFFER_BYTES};
use crate::{raw, slots};

/// Bytes that travel in registers.
pub const INLINE: usize = 32;

/// What a message looks like in registers.
#[derive(Clone, Copy)]
struct Packed {
    info: MessageInfo,
    words: [u64; 4],
}

impl Packed {
    /// Encodes into the message buffer; short payloads are then lifted into the words.
    #[inline(always)]
    fn encode(
        code: u32,
        encode: impl FnOnce(&mut Writer<'_>) -> Result<(), Error>,
    ) -> Result<Packed, Error> {
        local::with_buffer(|buffer| {
            let (payload, rest) = buffer.split_at_mut(SEND_SLOTS);
            let mut writer = Writer::new(payload);
            encode(&mut writer)?;
            let (bytes, caps, cap_count) = writer.finish();
            if cap_count != 0 {
                for (place, slot) in rest.chunks_exact_mut(4).zip(&caps) {
                    place.copy_from_slice(&slot.to_le_bytes());
                }
            }
            if bytes > INLINE {
                return Ok(Packed {
                    info: MessageInfo::new(code & 0xffff, bytes, cap_count),
                    words: [0; 4],
                });
            }
            let mut words = [0; 4];
            for (word, chunk) in words.iter_mut().zip(payload.chunks_exact(8)) {
                *word = chunk.try_into().map_or(0, u64::from_le_bytes);
            }
            Ok(Packed {
                info: MessageInfo::new(code & 0xffff | (bytes as u32) << 16, 0, cap_count),
                words,
            })
        })
    }

    #[inline(always)]
    fn code(self) -> u32 {
        self.info.label() & 0xffff
    }

    /// A refusal, as an answer.
    fn refusal(refusal: Refusal) -> Packed {
        Packed {
            info: MessageInfo::new(refusal.label(), 0, 0),
            words: [0; 4],
        }
    }

    /// Reads an answer.
    #[inline(always)]
    fn decode<R>(
        self,
        caps: &[u32],
        decode: impl FnOnce(Reader<'_>) -> Result<R, Refusal>,
    ) -> Result<R, Failure<Status>> {
        Refusal::from_label(self.code()).map_err(Failure::Refused)?;
        self.payload(|bytes| decode(Reader::new(bytes, caps)))
            .map_err(|_| Failure::Malformed)
    }

    /// Hands a payload that travelled in the words to `read`.
    #[inline(always)]
    fn inline_payload<R>(self, read: impl FnOnce(&[u8]) -> R) -> R {
        let mut bytes = [0; INLINE];
        for (place, word) in bytes.chunks_exact_mut(8).zip(self.words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        // A peer may claim more than fits: then it sent nothing.
        read(
            bytes
                .get(..(self.info.label() >> 16) as usize)
                .unwrap_or(&[]),
        )
    }

    /// Hands the payload to `read`. `read` copies what it needs and makes no system call.
    #[inline(always)]
    fn payload<R>(self, read: impl FnOnce(&[u8]) -> R) -> R {
        if self.info.bytes() == 0 {
            self.inline_payload(read)
        } else {
            local::with_buffer(|buffer| {
                read(
                    buffer
                        .get(..self.info.bytes().min(PAYLOAD_MAX))
                        .unwrap_or(&[]),
                )
            })
        }
    }
}

/// Packs a dispatcher's answer.
struct Pack;

impl Answer for Pack {
    type Sent = Packed;
    #[inline(always)]
    fn send(self, encode: impl FnOnce(&mut Writer<'_>) -> Result<(), Error>) -> Packed {
        Packed::encode(0, encode).unwrap_or_else(|Error| Packed::refusal(Refusal::Answer))
    }
}

fn set_receive_slots(buffer: &mut [u8; BUFFER_BYTES], receive: &[u32; CAPS_MAX]) {
    if let Some(places) = buffer.get_mut(RECEIVE_SLOTS..) {
        for (place, slot) in places.chunks_exact_mut(4).zip(receive) {
            place.copy_from_slice(&slot.to_le_bytes());
        }
    }
}

/// Empty slots for `count` capabilities; 0 elsewhere.
fn take_slots(count: usize) -> Option<[u32; CAPS_MAX]> {
    let mut taken = [0; CAPS_MAX];
    for index in 0..count.min(CAPS_MAX) {
        match slots::take() {
            Some(slot) => taken[index] = slot,
            None => {
                taken.into_iter().for_each(slots::give_back);
                return None;
            }
        }
    }
    Some(taken)
}

/// Calls the server behind an endpoint. `ConsoleClient::connect(EndpointTransport(cap))`.
#[derive(Clone, Copy, Debug)]
pub struct EndpointTransport(pub Cap<Endpoint>);

impl Transport for EndpointTransport {
    type Error = Status;

    #[inline(always)]
    fn call<R>(
        &self,
        method: u32,
        reply_caps: usize,
        encode: impl FnOnce(&mut Writer<'_>) -> Result<(), Error>,
        decode: impl FnOnce(Reader<'_>) -> Result<R, Refusal>,
    ) -> Result<R, Failure<Status>> {
        let request = Packed::encode(method, encode).map_err(|Error| Failure::TooLong)?;
        // The places for received capabilities are 0 outside of the calls that set them.
        let mut receive = [0; CAPS_MAX];
        if reply_caps != 0 {
            receive = take_slots(reply_caps).ok_or(Failure::Transport(Status::SlotOccupied))?;
            local::with_buffer(|buffer| set_receive_slots(buffer, &receive));
        }
        let [w0, w1, w2, w3] = request.words;
        let (status, [_, info, w0, w1, w2, w3]) = raw::call(
            Call::Call,
            [self.0.slot().into(), request.info.0, w0, w1, w2, w3],
        );
        if reply_caps != 0 {
            local::with_buffer(|buffer| set_receive_slots(buffer, &[0; CAPS_MAX]));
        }
        let reply = Packed {
            info: MessageInfo(info),
            words: [w0, w1, w2, w3],
        };
        let (answer, caps) = match status {
            Status::Ok => {
                let caps = reply.info.caps().min(reply_caps);
                (
                    reply.decode(receive.get(..caps).unwrap_or(&[]), decode),
                    caps,
                )
            }
            status => (Err(Failure::Transport(status)), 0),
        };
        if reply_caps != 0 {
            receive.into_iter().skip(caps).for_each(slots::give_back);
            if answer.is_err() {
                delete_all(receive.get(..caps).unwrap_or(&[]));
            }
        }
        answer
    }
}

/// Deletes capabilities that came with a message nobody could read.
#[cold]
#[inline(never)]
fn delete_all(received: &[u32]) {
    for &slot in received {
        // A slot that cannot be emptied stays taken.
        let _ = AnyCap::delete(Cap::<()>::new(slot));
    }
}

/// What a receiver got.
#[derive(Clone, Copy)]
pub enum Received {
    /// A request; answer it with [`Receiver::answer`] or drop it.
    Message(Message),
    /// Bits of the notification bound to this thread.
    Notification(u64),
}

/// A request, not yet decoded. Its payload may be in the message buffer: dispatch it before any
/// other call.
#[derive(Clone, Copy)]
pub struct Message {
    /// Badge of the capability that the caller used.
    pub badge: u64,
    packed: Packed,
}

/// The receiving side of an endpoint: one thread, one reply object.
pub struct Receiver {
    endpoint: Cap<Endpoint>,
    reply: Cap<Reply>,
    receive: [u32; CAPS_MAX],
    caps: usize,
}

impl Receiver {
    /// Receives from `endpoint` and answers through `reply`; messages carry at most `caps`
    /// capabilities (`Interface::REQUEST_CAPS`).
    pub fn new(endpoint: Cap<Endpoint>, reply: Cap<Reply>, caps: usize) -> Result<Self, Status> {
        let caps = caps.min(CAPS_MAX);
        let receive = take_slots(caps).ok_or(Status::SlotOccupied)?;
        Ok(Receiver {
            endpoint,
            reply,
            receive,
            caps,
        })
    }

    /// Says where capabilities go, for the time of a system call.
    #[inline(always)]
    fn with_slots<R>(&self, call: impl FnOnce() -> R) -> R {
        if self.caps == 0 {
            return call();
        }
        local::with_buffer(|buffer| set_receive_slots(buffer, &self.receive));
        let result = call();
        local::with_buffer(|buffer| set_receive_slots(buffer, &[0; CAPS_MAX]));
        result
    }

    #[inline(always)]
    fn received(results: [u64; 6]) -> Received {
        let [badge, info, w0, w1, w2, w3] = results;
        let info = MessageInfo(info);
        if info == MessageInfo::NOTIFICATION {
            return Received::Notification(w0);
        }
        Received::Message(Message {
            badge,
            packed: Packed {
                info,
                words: [w0, w1, w2, w3],
            },
        })
    }

    /// Waits for a message or bits until the absolute TSC `deadline`.
    pub fn receive(&mut self, deadline: u64) -> Result<Received, Status> {
        loop {
            let endpoint = self.endpoint.slot().into();
            let reply = self.reply.slot().into();
            let (status, results) =
                self.with_slots(|| raw::call(Call::Receive, [endpoint, reply, deadline, 0, 0, 0]));
            match status {
                Status::Again => {}
                other => return other.result().map(|()| Self::received(results)),
            }
        }
    }

    /// Decodes `message`, lets `server` act, and encodes its answer.
    #[inline(always)]
    fn dispatch<I: Dispatch<S>, S>(&mut self, message: Message, server: &mut S) -> Packed {
        let packed = message.packed;
        if packed.info.bytes() != 0 || packed.info.caps() != 0 {
            return self.dispatch_any::<I, S>(message, server);
        }
        packed
            .inline_payload(|bytes| {
                I::dispatch(server, message.badge, packed.code(), bytes, &[], Pack)
            })
            .unwrap_or_else(Packed::refusal)
    }

    /// The same for messages with capabilities or a long payload.
    #[cold]
    #[inline(never)]
    fn dispatch_any<I: Dispatch<S>, S>(&mut self, message: Message, server: &mut S) -> Packed {
        let packed = message.packed;
        let received = self.receive;
        let count = packed.info.caps().min(self.caps);
        self.renew(count);
        let caps = received.get(..count).unwrap_or(&[]);
        // What the server does may use the message buffer, so the payload is copied out first.
        let mut copy = [0; PAYLOAD_MAX];
        let length = packed.payload(|bytes| {
            if let Some(place) = copy.get_mut(..bytes.len()) {
                place.copy_from_slice(bytes);
            }
            bytes.len()
        });
        let bytes = copy.get(..length).unwrap_or(&[]);
        let outcome = I::dispatch(server, message.badge, packed.code(), bytes, caps, Pack);
        if outcome.is_err() {
            delete_all(caps);
        }
        outcome.unwrap_or_else(Packed::refusal)
    }

    /// The server keeps the first `count` slots; take fresh ones for the next message. Without
    /// any, the next message with capabilities is refused by the core.
    fn renew(&mut self, count: usize) {
        for place in self.receive.iter_mut().take(count) {
            *place = slots::take().unwrap_or(0);
        }
    }

    /// Dispatches and answers now.
    pub fn answer<I: Dispatch<S>, S>(
        &mut self,
        message: Message,
        server: &mut S,
    ) -> Result<(), Status> {
        let answer = self.dispatch::<I, S>(message, server);
        let [w0, w1, w2, w3] = answer.words;
        raw::status(
            Call::Reply,
            [self.reply.slot().into(), answer.info.0, w0, w1, w2, w3],
        )
    }

    /// Dispatches and answers messages for as long as another one follows at once; answers what
    /// came instead.
    #[inline(always)]
    fn answer_while_messages<I: Dispatch<S>, S>(
        &mut self,
        mut message: Message,
        server: &mut S,
    ) -> Result<Received, Status> {
        let both = u64::from(self.endpoint.slot()) | u64::from(self.reply.slot()) << 32;
        loop {
            let answer = self.dispatch::<I, S>(message, server);
            let [w0, w1, w2, w3] = answer.words;
            let (status, results) = self.with_slots(|| {
                raw::call(Call::ReplyReceive, [both, answer.info.0, w0, w1, w2, w3])
            });
            match (status, Self::received(results)) {
                (Status::Ok, Received::Message(next)) => message = next,
                (Status::Ok, notification) => return Ok(notification),
                (Status::Again, _) => return self.receive(FOREVER),
                (status, _) => return Err(status),
            }
        }
    }
}

/// A server that also hears the notification bound to its thread.
pub trait Notified {
    /// These bits were set.
    fn notified(&mut self, bits: u64);
}

/// Serves interface `I` for ever; returns only when the core refuses to receive.
pub fn serve<I: Dispatch<S>, S: Notified>(receiver: &mut Receiver, server: &mut S) -> Status {
    let mut next = receiver.receive(FOREVER);
    loop {
        next = match next {
            Ok(Received::Message(message)) => {
                receiver.answer_while_messages::<I, S>(message, server)
            }
            Ok(Received::Notification(bits)) => {
                server.notified(bits);
                receiver.receive(FOREVER)
            }
            // A caller whose capabilities did not fit, or one that vanished: not our trouble.
            Err(Status::CapsRefused | Status::Aborted | Status::Cancelled | Status::Restarted) => {
                receiver.receive(FOREVER)
            }
            Err(status) => return status,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(label: u32, bytes: usize, words: [u64; 4]) -> Packed {
        Packed {
            info: MessageInfo::new(label, bytes, 0),
            words,
        }
    }

    #[test]
    fn short_payloads_travel_in_words() {
        let message = packed(7 | 10 << 16, 0, [0x0807_0605_0403_0201, 0x0a09, 0, 0]);
        assert_eq!(message.code(), 7);
        message.payload(|bytes| assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]));
    }

    #[test]
    fn a_peer_that_claims_more_than_fits_sent_nothing() {
        packed(7 | 33 << 16, 0, [1; 4]).payload(|bytes| assert!(bytes.is_empty()));
        packed(7 | 0xffff << 16, 0, [1; 4]).payload(|bytes| assert!(bytes.is_empty()));
        packed(7, 0x1fff, [1; 4]).payload(|bytes| assert_eq!(bytes.len(), PAYLOAD_MAX));
    }

    #[test]
    fn encoding_chooses_the_shorter_way() {
        let short = Packed::encode(3, |out| out.put(&idl::Bytes([9; 31])))
            .ok()
            .unwrap();
        assert_eq!((short.info.bytes(), short.info.label()), (0, 3 | 32 << 16));
        assert_eq!(short.words[0], 0x0909_0909_0909_091f);
        let long = Packed::encode(3, |out| out.put(&idl::Bytes([9; 32])))
            .ok()
            .unwrap();
        assert_eq!((long.info.bytes(), long.info.label()), (33, 3));
    }
}
