//! Parts with nothing to wait for, to be timed and counted.

use std::hint::black_box;

use tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::config::settings::Settings;
use crate::event::{MessageRef, Payload};
use crate::handler::{Connection, EventSink, HandlerSink};
use crate::internals::reading::OpenReader;
use crate::protocol::assembler::{Assembler, Incoming, Limits};
use crate::protocol::decode::{Decoder, Format};
use crate::protocol::deflate::{Deflate, Deflater, Inflater};
use crate::protocol::frame::{Frame, FrameHeader};
use crate::protocol::mask::{MaskingKeys, mask};
use crate::protocol::read_buffer::ReadBuffer;
use crate::runtime::read_loop::ReadEnd;
use crate::session::{self, Class, Context, Outgoing, Protocol, SubscriptionRequest};

/// Returns what a market feed sends: text of `size` bytes, hardly the same twice.
pub fn text(size: usize, number: usize) -> String {
    let mut text = format!(
        "{{\"e\":\"bookTicker\",\"u\":{number},\"s\":\"BTCUSDT\",\"b\":\"64123.{:02}\",\"x\":\"",
        number % 100
    );
    while text.len() + 2 < size {
        text.push(char::from(b'a' + (text.len() * 7 + number) as u8 % 26));
    }
    text.push_str("\"}");
    text.truncate(size);
    text
}

/// Returns what a server sends: `count` text messages of `size` bytes.
pub fn stream(size: usize, count: usize, is_compressed: bool) -> Vec<u8> {
    let mut deflater = is_compressed.then(|| engines().1);
    let mut bytes = Vec::new();
    for number in 0..count {
        let text = text(size, number);
        let mut body = Vec::new();
        let is_shorter =
            deflater.as_mut().is_some_and(|deflater| deflater.compress(text.as_bytes(), &mut body));
        let body = if is_shorter { &body } else { text.as_bytes() };
        put_server_frame(&mut bytes, is_shorter, body);
    }
    bytes
}

/// The writer makes clients' frames: a key of zeros masks nothing, and the mask bit and the key are
/// taken out.
fn put_server_frame(bytes: &mut Vec<u8>, is_compressed: bool, body: &[u8]) {
    let start = bytes.len();
    let text = Frame::whole(OpCode::Data(Data::Text), body);
    Frame { is_compressed, ..text }.put_header(bytes, [0; 4]);
    bytes[start + 1] &= 0x7f;
    bytes.truncate(bytes.len() - 4);
    bytes.extend_from_slice(body);
}

fn engines() -> (Inflater, Deflater) {
    let answer = Deflate::new().accept(&["permessage-deflate".to_owned()]);
    answer.ok().flatten().expect("the plainest answer is acceptable").engines()
}

/// Parses the heads of all frames; how many there are.
pub fn heads(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    let mut count = 0;
    while let Ok(Some(head)) = FrameHeader::parse(rest) {
        let next = head.header_len + head.payload_len as usize;
        let Some(following) = rest.get(next..) else { break };
        rest = following;
        count += 1;
    }
    count
}

/// From bytes to messages, as the reader does it.
pub struct Reading {
    buffer: ReadBuffer,
    assembler: Assembler,
}

impl Reading {
    /// A connection that has received these bytes, and on which compression was agreed on, or not.
    pub fn new(received: &[u8], is_compressed: bool) -> Self {
        let inflater = is_compressed.then(|| engines().0);
        let limits = Limits { max_message_size: 16 << 20 };
        Reading {
            buffer: ReadBuffer::with_leftover(received),
            assembler: Assembler::new(limits, inflater),
        }
    }

    /// Reads all messages; how many payload bytes they have.
    pub fn read(&mut self) -> usize {
        let mut payload = 0;
        let mut unread = self.buffer.unread();
        loop {
            payload += match self.assembler.next_simple(&mut unread) {
                Some(message) => match message {
                    Payload::Text(text) => text.len(),
                    Payload::Binary(bytes) => bytes.len(),
                },
                None => match self.assembler.next(&mut unread) {
                    Ok(Some(Incoming::Text(text))) => text.len(),
                    Ok(Some(Incoming::Binary(bytes))) => bytes.len(),
                    Ok(Some(_)) => 0,
                    Ok(None) | Err(_) => break,
                },
            };
        }
        payload
    }
}

/// From messages that are compressed by gzip inside their frames to what the program gets.
pub struct Decoding {
    decoder: Decoder,
}

impl Decoding {
    /// Nothing decoded yet.
    #[allow(clippy::new_without_default, reason = "a default would promise something")]
    pub fn new() -> Self {
        Decoding { decoder: Decoder::new(Format::Gzip, false, 16 << 20) }
    }

    /// Decodes a message; how many bytes it has then.
    pub fn decode(&mut self, payload: &[u8]) -> usize {
        match self.decoder.decode(payload) {
            Ok(Payload::Text(text)) => text.len(),
            Ok(Payload::Binary(bytes)) => bytes.len(),
            Err(_) => 0,
        }
    }
}

/// From bytes to the handler, as the reader thread does it.
pub struct Delivering {
    open: OpenReader,
    run: Box<dyn FnMut(&mut OpenReader) -> ReadEnd>,
}

impl Delivering {
    /// A connection that has received these bytes and ends, and a handler that does nothing.
    pub fn to_handler(received: &[u8]) -> Self {
        Self::to(received, idle_handler())
    }

    /// The same through a session of which data is told by its first bytes.
    pub fn through_session(received: &[u8]) -> Self {
        Self::to(received, session::sink(Prefix, idle_handler()))
    }

    /// A connection on which each `recv` brings one of these frames, and a handler that does
    /// nothing.
    pub fn apart(frames: &[&[u8]]) -> Self {
        let mut sink = idle_handler();
        let open = OpenReader::with_pieces(frames, &Settings::default());
        let open = open.expect("the kernel has room for all of them");
        Delivering { open, run: Box::new(move |open| open.run(&mut sink)) }
    }

    fn to(received: &[u8], mut sink: impl EventSink) -> Self {
        let open = OpenReader::new(received, &Settings::default(), None);
        // Its end comes behind what has been received.
        let (open, _) = open.expect("the process has descriptors");
        Delivering { open, run: Box::new(move |open| open.run(&mut sink)) }
    }

    /// Delivers all messages; how many there are.
    pub fn deliver(&mut self) -> u64 {
        (self.run)(&mut self.open);
        self.open.connection.counters.snapshot().messages_received
    }
}

fn idle_handler() -> impl EventSink {
    HandlerSink(|_: &mut Connection<'_>, message: MessageRef<'_>| {
        black_box(message.bytes());
    })
}

/// The protocol of what [`text`] returns.
struct Prefix;

impl Protocol for Prefix {
    fn classify<'m>(&self, message: MessageRef<'m>, _: &Context) -> Class<'m> {
        if message.bytes().starts_with(br#"{"e":"#) { Class::Data } else { Class::Ignored }
    }

    fn subscription_request(&self, _: &SubscriptionRequest, _: &Context) -> Outgoing {
        Outgoing::nothing()
    }
}

/// From messages to frames, as a sender does it.
pub struct Writing {
    out: Vec<u8>,
    keys: MaskingKeys,
}

impl Writing {
    /// Nothing written yet.
    #[allow(clippy::new_without_default, reason = "a default would promise something")]
    pub fn new() -> Self {
        Writing { out: Vec::new(), keys: MaskingKeys::new() }
    }

    /// Frames and masks one message; how long its frame is.
    pub fn write(&mut self, payload: &[u8]) -> usize {
        self.out.clear();
        let key = self.keys.next();
        Frame::whole(OpCode::Data(Data::Text), payload).put(&mut self.out, key);
        self.out.len()
    }
}

/// Masks in place.
pub fn masked(bytes: &mut [u8]) {
    mask(bytes, [1, 2, 3, 4]);
}

/// Returns `true` if it is UTF-8, by the check that text goes through.
pub fn is_text(bytes: &[u8]) -> bool {
    simdutf8::basic::from_utf8(bytes).is_ok()
}
