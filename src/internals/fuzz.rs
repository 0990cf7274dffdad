//! Parts that eat any bytes at all, and check themselves.

use std::io::Write as _;
use std::sync::Arc;

use crossbeam_channel::bounded;
use socket2::{Domain, Socket, Type};

use crate::config::Settings;
use crate::connection::OpenLine;
use crate::connection::Receiving;
use crate::connection::socket::LineSocket;
use crate::connection::writer::Outlet;
use crate::event::{DialFailure, Disconnect, MessageRef, Opened, Payload, Stopped};
use crate::handler::{Delivery, Full, Line};
use crate::protocol::assembler::{Assembler, Incoming, Limits};
use crate::protocol::deflate::{Agreed, Deflate};
use crate::protocol::frame::{Head, ReadBuffer};
use crate::runtime::read_loop::Talk;
use crate::runtime::shared::Board;
use crate::sender::Sender;
use crate::stats::Counters;
use crate::sync::threads::{Lifecycle, ThreadOptions};

/// What a fuzzed line takes.
const MAX_MESSAGE: usize = 64 * 1024;

/// What the assembler may hold beyond `max_message`, in its buffers.
const SLACK: usize = 64 * 1024;

/// Parses frame heads wherever they are found.
pub fn frames(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some(head)) = Head::parse(rest) {
        assert!(head.head_len <= rest.len());
        let payload = usize::try_from(head.payload_len).unwrap_or(usize::MAX);
        let Some(next) = rest.get(head.head_len.saturating_add(payload)..) else { break };
        rest = next;
    }
}

/// What was agreed on about compression, by the low bits of the first byte: whether at all, and who starts each message anew.
fn agreed(shape: u8) -> Option<Agreed> {
    let mut answer = "permessage-deflate".to_owned();
    for (bit, parameter) in [(2, "; server_no_context_takeover"), (4, "; client_no_context_takeover")] {
        if shape & bit != 0 {
            answer.push_str(parameter);
        }
    }
    let agreed = Deflate::new().accept(&[answer]).expect("any server may answer that");
    agreed.filter(|_| shape & 1 != 0)
}

/// Assembles messages of frames that come in pieces: the first byte says in which, and what was agreed on about compression.
pub fn messages(bytes: &[u8]) {
    let Some((&shape, bytes)) = bytes.split_first() else { return };
    let inflater = agreed(shape).map(|agreed| agreed.engines().0);
    // Five bits, squared: byte by byte, and up to several frames at once.
    let piece = usize::from(shape >> 3).pow(2) + 1;
    let mut assembler = Assembler::new(Limits { max_message: MAX_MESSAGE }, inflater);
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
                    continue;
                }
                Some(Payload::Binary(bytes)) => {
                    assert!(bytes.len() <= MAX_MESSAGE);
                    continue;
                }
                None => {}
            }
            match assembler.next(&mut unread) {
                Ok(Some(Incoming::Text(text))) => assert!(text.len() <= MAX_MESSAGE),
                Ok(Some(Incoming::Binary(bytes))) => assert!(bytes.len() <= MAX_MESSAGE),
                Ok(Some(Incoming::Ping(payload) | Incoming::Pong(payload))) => assert!(payload.len() <= 125),
                Ok(Some(Incoming::Close(_))) | Err(_) => return,
                Ok(None) => break,
            }
        }
        drop(unread);
        assert!(assembler.held() <= MAX_MESSAGE + SLACK);
        assert!(buffer.size() <= (MAX_MESSAGE + 16).max(256 * 1024));
    }
}

/// Parses the head of an answer to the opening handshake.
pub fn head(bytes: &[u8]) {
    crate::dial::fuzz_head(bytes);
}

/// Reads a whole line whose server sends `bytes` and ends: from the socket to the handler.
pub fn line(bytes: &[u8]) {
    let Some((&shape, bytes)) = bytes.split_first() else { return };
    let Ok((ours, mut theirs)) = Socket::pair(Domain::UNIX, Type::STREAM, None) else { return };
    let bytes = &bytes[..bytes.len().min(32 * 1024)];
    // It fits into the kernel's buffer, so nobody has to read meanwhile.
    if theirs.write_all(bytes).is_err() || theirs.shutdown(std::net::Shutdown::Write).is_err() {
        return;
    }
    let settings = Settings { max_message: MAX_MESSAGE, ..Settings::default() };
    let (board, _bell) = Board::new(Lifecycle::new(ThreadOptions::default()), settings.budgets());
    let (bell, _heart) = bounded(1);
    let (inflater, deflater) = agreed(shape).map(|agreed| agreed.engines()).unzip();
    let outlet = Outlet::new(deflater, None);
    let line = Arc::new(OpenLine::new(
        1,
        "fuzz:1".to_owned(),
        LineSocket::new(ours, Receiving::default()),
        None,
        outlet,
        bell,
        Arc::new(Counters::default()),
    ));
    let opened = Opened {
        epoch: 1,
        took: std::time::Duration::ZERO,
        peer: ([127, 0, 0, 1], 1).into(),
        subprotocol: None,
        headers: http::HeaderMap::new(),
        is_compressed: inflater.is_some(),
    };
    let mut talk = Talk::new(Arc::clone(&line), opened, Vec::new(), &settings, inflater);
    let sender = Sender::new(Arc::clone(&board));
    let over = talk.run(&mut Sink, &sender, &board.shutdown);
    // Nobody stops it, so it has to end by itself, with an error and not with a panic.
    assert!(over.is_some_and(|over| over.error.is_ok()));
    talk.drain();
    assert!(line.work_off(std::time::Instant::now()).is_ok() || line.is_severed());
}

/// A handler that checks what it gets.
struct Sink;

impl Delivery for Sink {
    fn opened(&mut self, _: &mut Line<'_>) {}

    fn message(&mut self, _: &mut Line<'_>, message: MessageRef<'_>) {
        assert!(message.bytes().len() <= MAX_MESSAGE);
    }

    fn batch_over(&mut self) -> Result<(), Full> {
        Ok(())
    }

    fn disconnected(&mut self, _: &Disconnect) {}

    fn dial_failed(&mut self, _: &DialFailure) {}

    fn stopped(&mut self, _: &Stopped) {}
}
