//! Parts that eat any bytes at all, and check themselves.

use std::io::{Read as _, Write as _};

use crate::config::settings::Settings;
use crate::event::{DialFailure, Disconnect, MessageRef, Payload, Stopped};
use crate::handler::{Connection, EventSink, Full};
use crate::internals::oracle::{self, End, Kind, Reading};
use crate::internals::reading::OpenReader;
use crate::protocol::assembler::{Assembler, Incoming, Limits};
use crate::protocol::decode::{Decoder, Format};
use crate::protocol::deflate::{Deflate, Deflater, Inflater};
use crate::protocol::frame::FrameHeader;
use crate::protocol::read_buffer::ReadBuffer;
use crate::runtime::read_loop::{Drained, ReadEnd};

/// The longest message that a fuzzed connection takes.
const MAX_MESSAGE: usize = 64 * 1024;

/// The number of bytes that the assembler may hold beyond `max_message_size`, in its buffers.
const SLACK: usize = 64 * 1024;

/// Parses frame heads wherever they are found.
pub fn frames(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some(head)) = FrameHeader::parse(rest) {
        assert!(head.header_len <= rest.len());
        let payload = usize::try_from(head.payload_len).unwrap_or(usize::MAX);
        let Some(next) = rest.get(head.header_len.saturating_add(payload)..) else { break };
        rest = next;
    }
}

/// The engines that the low bits of the first byte ask for: with compression or not, and with which
/// context takeover.
fn engines(shape: u8) -> Option<(Inflater, Deflater)> {
    let mut answer = "permessage-deflate".to_owned();
    for (bit, parameter) in
        [(2, "; server_no_context_takeover"), (4, "; client_no_context_takeover")]
    {
        if shape & bit != 0 {
            answer.push_str(parameter);
        }
    }
    let params = Deflate::new().accept(&[answer]).expect("any server may answer that");
    params.filter(|_| shape & 1 != 0).map(|params| params.engines())
}

/// Assembles messages of frames that come in pieces: the first byte says in which, and what was
/// agreed on about compression. Without compression, tungstenite has to read the same.
pub fn messages(bytes: &[u8]) {
    let Some((&shape, bytes)) = bytes.split_first() else { return };
    let inflater = engines(shape).map(|(inflater, _)| inflater);
    let is_plain = inflater.is_none();
    let reading = assemble(shape, bytes, inflater);
    if is_plain {
        oracle::compare(bytes, &reading, MAX_MESSAGE);
    }
}

fn assemble(shape: u8, bytes: &[u8], inflater: Option<Inflater>) -> Reading {
    let mut reading = Reading::default();
    // Five bits, squared: byte by byte, and up to several frames at once.
    let piece = usize::from(shape >> 3).pow(2) + 1;
    let mut assembler = Assembler::new(Limits { max_message_size: MAX_MESSAGE }, inflater);
    let mut buffer = ReadBuffer::with_leftover(&[]);
    let mut rest = bytes;
    while !rest.is_empty() {
        let room = buffer.room();
        let count = rest.len().min(piece).min(room.len());
        room[..count].copy_from_slice(&rest[..count]);
        buffer.filled(count);
        rest = &rest[count..];
        let mut unread = buffer.unread();
        loop {
            // As the reader asks for it.
            match assembler.next_simple(&mut unread) {
                Some(Payload::Text(text)) => {
                    assert!(text.len() <= MAX_MESSAGE);
                    reading.push(Kind::Text, text.as_bytes());
                    continue;
                }
                Some(Payload::Binary(bytes)) => {
                    assert!(bytes.len() <= MAX_MESSAGE);
                    reading.push(Kind::Binary, bytes);
                    continue;
                }
                None => {}
            }
            match assembler.next(&mut unread) {
                Ok(Some(Incoming::Text(text))) => {
                    assert!(text.len() <= MAX_MESSAGE);
                    reading.push(Kind::Text, text.as_bytes());
                }
                Ok(Some(Incoming::Binary(bytes))) => {
                    assert!(bytes.len() <= MAX_MESSAGE);
                    reading.push(Kind::Binary, bytes);
                }
                Ok(Some(Incoming::Ping(payload))) => {
                    assert!(payload.len() <= 125);
                    reading.push(Kind::Ping, payload);
                }
                Ok(Some(Incoming::Pong(payload))) => {
                    assert!(payload.len() <= 125);
                    reading.push(Kind::Pong, payload);
                }
                Ok(Some(Incoming::Close(close))) => {
                    reading.end = End::Close(close.map(|(code, _)| code));
                    return reading;
                }
                Err(violation) => {
                    reading.end = End::Violation(violation.to_string());
                    return reading;
                }
                Ok(None) => break,
            }
        }
        drop(unread);
        assert!(assembler.held() <= MAX_MESSAGE + SLACK);
        assert!(buffer.size() <= (MAX_MESSAGE + 16).max(256 * 1024));
    }
    reading
}

/// Orders the addresses of hosts whose dials fail and succeed.
pub fn addresses(bytes: &[u8]) {
    crate::dial::fuzz_addresses(bytes);
}

/// Decodes the chunked body of a refusal.
pub fn refusals(bytes: &[u8]) {
    crate::dial::fuzz_body(bytes);
}

/// Inflates messages beside a reference: whole streams by another interface of the engine.
pub fn inflate(bytes: &[u8]) {
    let Some((&[shape, step], content)) = bytes.split_first_chunk::<2>() else { return };
    // Both directions with context takeover, or neither: what one engine makes the other reads.
    let shape = if shape & 2 != 0 { 7 } else { 1 };
    let Some((mut whole, mut deflater)) = engines(shape) else { return };
    let Some((mut pieces, _)) = engines(shape) else { return };
    let run = |inflater: &mut Inflater, message: &[u8], step: usize| {
        let mut out = Vec::new();
        for piece in message.chunks(step.max(1)) {
            inflater.inflate(piece, &mut out, MAX_MESSAGE).ok()?;
        }
        inflater.finish().ok()?;
        Some(out)
    };
    let step = usize::from(step) + 1;

    // What the compressor made comes back, in pieces of any size, message after message.
    for text in content.chunks(1000).take(8) {
        let mut message = Vec::new();
        if deflater.compress(text, &mut message) {
            assert_eq!(run(&mut whole, &message, message.len()).as_deref(), Some(text));
            assert_eq!(run(&mut pieces, &message, step).as_deref(), Some(text));
        }
    }

    // Of any bytes, what is taken for a message is what the reference makes of them.
    let Some((mut whole, _)) = engines(shape) else { return };
    let Some((mut pieces, _)) = engines(shape) else { return };
    let told = run(&mut whole, content, content.len());
    assert_eq!(told, run(&mut pieces, content, step));
    if let Some(told) = told {
        assert_eq!(Some(told), reference(content));
    }
}

/// Inflates a message of one or several DEFLATE streams at once.
fn reference(content: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(MAX_MESSAGE + 1);
    let stream = [content, &[0x00, 0x00, 0xff, 0xff]].concat();
    let mut rest = &stream[..];
    // The tail alone, behind a final block or an empty payload, has no output.
    while rest.len() > 4 {
        let mut engine = flate2::Decompress::new(false);
        let sync = flate2::FlushDecompress::Sync;
        let status = engine.decompress_vec(rest, &mut out, sync).ok()?;
        rest = &rest[engine.total_in() as usize..];
        if status != flate2::Status::StreamEnd {
            return rest.is_empty().then_some(out);
        }
    }
    Some(out)
}

/// Decodes messages beside flate2's own decoders. The first byte says in which format, and if text
/// is expected.
pub fn decode(bytes: &[u8]) {
    let Some((&shape, content)) = bytes.split_first() else { return };
    let format = match shape % 3 {
        0 => Format::Gzip,
        1 => Format::Zlib,
        _ => Format::Deflate,
    };
    let is_text = shape & 0x80 != 0;
    let mut decoder = Decoder::new(format, is_text, MAX_MESSAGE);
    let expected = decode_reference(format, content);
    // The second time behind a message that may have failed.
    for _ in 0..2 {
        let decoded = decoder.decode(content);
        match &expected {
            Some(expected) if expected.len() > MAX_MESSAGE => assert!(decoded.is_err()),
            Some(expected) if is_text => match std::str::from_utf8(expected) {
                Ok(text) => assert_eq!(decoded, Ok(Payload::Text(text))),
                Err(_) => assert!(decoded.is_err()),
            },
            Some(expected) => assert_eq!(decoded, Ok(Payload::Binary(expected))),
            None => assert!(decoded.is_err()),
        }
        assert!(decoder.held() <= MAX_MESSAGE + 1);
    }
}

/// Decodes a message; one byte more than `MAX_MESSAGE` of one that is longer.
fn decode_reference(format: Format, content: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let has_header = match format {
        Format::Gzip => {
            let decoder = flate2::bufread::MultiGzDecoder::new(content);
            decoder.take(MAX_MESSAGE as u64 + 1).read_to_end(&mut out).ok()?;
            return Some(out);
        }
        Format::Zlib => true,
        Format::Deflate => false,
    };
    // Its readers of these take a message that is cut for a whole one.
    out.reserve_exact(MAX_MESSAGE + 1);
    let mut engine = flate2::Decompress::new(has_header);
    let status = engine.decompress_vec(content, &mut out, flate2::FlushDecompress::Finish).ok()?;
    let is_whole = status == flate2::Status::StreamEnd && engine.total_in() == content.len() as u64;
    (is_whole || out.len() > MAX_MESSAGE).then_some(out)
}

/// Parses the head of an answer to the opening handshake.
pub fn head(bytes: &[u8]) {
    crate::dial::fuzz_head(bytes);
}

/// Reads a whole connection whose server sends `bytes` and ends: from the socket to the handler.
pub fn connection(bytes: &[u8]) {
    let Some((&shape, bytes)) = bytes.split_first() else { return };
    let settings = Settings { max_message_size: MAX_MESSAGE, ..Settings::default() };
    let Some((mut open, mut theirs)) = OpenReader::new(&[], &settings, engines(shape)) else {
        return;
    };
    let bytes = &bytes[..bytes.len().min(32 * 1024)];
    // It fits into the kernel's buffer, so nobody has to read meanwhile.
    if theirs.write_all(bytes).is_err() || theirs.shutdown(std::net::Shutdown::Write).is_err() {
        return;
    }
    // Nobody stops it, so it has to end by itself, with an error and not with a panic.
    match open.run(&mut Sink) {
        ReadEnd::Close(_, frame) => open.connection.close_within_timeout(frame),
        ReadEnd::Aborted(_) | ReadEnd::Closing(_) => {}
        ReadEnd::Stopped | ReadEnd::Panicked(_) => panic!("nobody stops it, and nothing panics"),
    }
    assert_eq!(open.reader.drain(&open.shared.wakeups), Drained::Over);
    let flushed = open.connection.flush_pending(std::time::Instant::now());
    assert!(flushed.is_ok() || open.connection.is_aborted());
}

/// A handler that checks what it gets.
struct Sink;

impl EventSink for Sink {
    fn opened(&mut self, _: &mut Connection<'_>) {}

    fn message(&mut self, _: &mut Connection<'_>, message: MessageRef<'_>) {
        assert!(message.bytes().len() <= MAX_MESSAGE);
    }

    fn end_recv(&mut self) -> Result<(), Full> {
        Ok(())
    }

    fn disconnected(&mut self, _: &mut Disconnect) {}

    fn dial_failed(&mut self, _: &DialFailure) {}

    fn stopped(&mut self, _: &Stopped) {}
}
