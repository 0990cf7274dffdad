//! Frames in a read buffer, frames in a write buffer (RFC 6455 section 5.2).

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, make_rng};
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

/// The read buffer of a quiet connection.
const SIZE_MIN: usize = 16 * 1024;

/// How far bursts make it grow. Only a frame that is longer, and whose bytes really come, makes it
/// grow further.
const SIZE_BURST: usize = 256 * 1024;

/// After this long without a burst or a long frame the buffer shrinks.
const QUIET: Duration = Duration::from_secs(10);

/// Bytes that have been received and not yet been understood.
///
/// The vector is initialised once, when it grows, and never cleared again: clearing 64 KiB before
/// every `recv` costs more than parsing.
pub(crate) struct ReadBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// How long the frame at the front says it is, as far as that is known.
    announced: usize,
    /// When the size was last needed.
    needed_at: Option<Instant>,
    was_needed: bool,
}

impl ReadBuffer {
    /// A buffer that holds `leftover` already.
    pub(crate) fn with_leftover(leftover: &[u8]) -> Self {
        let mut bytes = vec![0; SIZE_MIN.max(leftover.len())];
        bytes[..leftover.len()].copy_from_slice(leftover);
        ReadBuffer {
            bytes,
            start: 0,
            end: leftover.len(),
            announced: 0,
            needed_at: None,
            was_needed: false,
        }
    }

    /// Where the next bytes go. Never empty.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        if self.end == self.bytes.len() {
            self.make_room();
        }
        &mut self.bytes[self.end..]
    }

    /// The whole rest of the buffer was filled, or holds one frame that is longer: moves what is
    /// unread to the front, and grows.
    #[cold]
    fn make_room(&mut self) {
        let unread = self.end - self.start;
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, unread);
        }
        // Half of it free is enough to go on with; less, and a long frame would be moved again and
        // again.
        if unread > self.bytes.len() / 2 {
            // Doubling follows the bytes that have really come, and ends where the frame does.
            let doubled = self.bytes.len() * 2;
            let enough = self.announced.max(SIZE_BURST);
            let size =
                if enough > unread { doubled.min(enough).max(self.bytes.len()) } else { doubled };
            self.bytes.resize(size, 0);
            self.was_needed = true;
        }
    }

    /// `count` bytes have been put into the room.
    pub(crate) fn filled(&mut self, count: usize) {
        let was_filled_up = count > 0 && self.end + count == self.bytes.len();
        self.end += count;
        if was_filled_up {
            self.was_needed = true;
            if self.bytes.len() < SIZE_BURST {
                // A `recv` that fills the room leaves more in the kernel: fewer, larger reads.
                self.bytes.resize(self.bytes.len() * 2, 0);
            }
        }
    }

    /// What has not been understood yet, to be taken off the front.
    #[inline]
    pub(crate) fn unread(&mut self) -> Unread<'_> {
        Unread {
            rest: &self.bytes[self.start..self.end],
            start: &mut self.start,
            end: &mut self.end,
            announced: &mut self.announced,
        }
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Keeps when the size was needed. To be told soon after it was.
    #[inline]
    pub(crate) fn note_need(&mut self, now: Instant) {
        if std::mem::take(&mut self.was_needed) {
            self.needed_at = Some(now);
        }
    }

    /// Shrinks a buffer whose size was not needed for a while; whether it did.
    pub(crate) fn settle(&mut self, now: Instant) -> bool {
        let is_quiet = self.needed_at.is_none_or(|at| now.saturating_duration_since(at) >= QUIET);
        let unread = self.end - self.start;
        if !is_quiet || self.bytes.len() == SIZE_MIN || unread > SIZE_MIN / 2 {
            return false;
        }
        let mut smaller = vec![0; SIZE_MIN];
        smaller[..unread].copy_from_slice(&self.bytes[self.start..self.end]);
        *self = ReadBuffer {
            bytes: smaller,
            start: 0,
            end: unread,
            announced: self.announced,
            needed_at: None,
            was_needed: false,
        };
        true
    }

    #[cfg(any(test, all(feature = "internals", unix)))]
    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }
}

/// The unread bytes of a [`ReadBuffer`]. What was taken off them is gone from the buffer when this
/// is dropped, in a panic too.
pub(crate) struct Unread<'a> {
    rest: &'a [u8],
    start: &'a mut usize,
    end: &'a mut usize,
    announced: &'a mut usize,
}

impl<'a> Unread<'a> {
    #[inline]
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.rest
    }

    /// Takes `count` bytes off the front.
    #[inline]
    pub(crate) fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(count);
        self.rest = rest;
        taken
    }

    /// The frame at the front is `len` bytes long, and more of it is to come.
    pub(crate) fn announce(&mut self, len: usize) {
        *self.announced = len;
    }

    /// Takes everything off the front but `rest`, the end of [`bytes`](Unread::bytes).
    #[inline]
    pub(crate) fn take_up_to(&mut self, rest: &'a [u8]) {
        debug_assert!(self.rest.ends_with(rest));
        self.rest = rest;
    }
}

impl Drop for Unread<'_> {
    #[inline]
    fn drop(&mut self) {
        *self.start = *self.end - self.rest.len();
        if self.rest.is_empty() {
            // Everything has been understood: the next bytes go to the front again, without a copy.
            (*self.start, *self.end) = (0, 0);
        }
    }
}

/// What the peer did wrong, and the close code that says so (RFC 6455 section 7.4.1).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ProtocolError {
    pub(crate) code: CloseCode,
    pub(crate) what: &'static str,
}

impl ProtocolError {
    pub(crate) fn protocol(what: &'static str) -> Self {
        ProtocolError { code: CloseCode::Protocol, what }
    }

    pub(crate) fn invalid_text() -> Self {
        ProtocolError { code: CloseCode::Invalid, what: "text that is not UTF-8" }
    }

    pub(crate) fn too_long() -> Self {
        ProtocolError {
            code: CloseCode::Size,
            what: "a message is longer than max_message_size allows",
        }
    }
}

/// The head of a frame from the server, checked as far as one frame can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) opcode: OpCode,
    pub(crate) is_final: bool,
    /// RSV1: the first frame of a compressed message (RFC 7692 section 6).
    pub(crate) is_compressed: bool,
    /// Of the head itself: 2, 4 or 10.
    pub(crate) header_len: usize,
    pub(crate) payload_len: u64,
}

/// A data message that is whole in one uncompressed frame of less than 64 KiB: nearly everything
/// that venues send.
#[derive(Clone, Copy)]
pub(crate) struct SimpleFrame<'a> {
    pub(crate) is_text: bool,
    pub(crate) payload: &'a [u8],
    /// What follows the frame.
    pub(crate) rest: &'a [u8],
}

impl<'a> SimpleFrame<'a> {
    /// The frame at the front of `bytes`. `None` when it is another kind of frame, a wrong one, or
    /// not all there, and when fewer than four bytes are: [`FrameHeader::parse`] says which.
    #[inline]
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let &[first @ (TEXT | BINARY), second, high, low, ..] = bytes else { return None };
        let (header_len, len) = match second {
            len @ ..=125 => (2, usize::from(len)),
            126 => (4, usize::from(u16::from_be_bytes([high, low]))),
            _ => return None,
        };
        // RFC 6455 section 5.2: a length that fits into one byte stands in one.
        if header_len == 4 && len < 126 {
            return None;
        }
        let (payload, rest) = bytes[header_len..].split_at_checked(len)?;
        Some(SimpleFrame { is_text: first == TEXT, payload, rest })
    }
}

const TEXT: u8 = FIN | 1;
const BINARY: u8 = FIN | 2;

const FIN: u8 = 0x80;
const RSV1: u8 = 0x40;
const RSV2_RSV3: u8 = 0x30;
const MASKED: u8 = 0x80;

impl FrameHeader {
    /// Parses the head of a frame; `None` when more bytes are needed. What is wrong is told as
    /// early as its byte is there.
    #[inline]
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<FrameHeader>, ProtocolError> {
        let &[first, second, ref rest @ ..] = bytes else {
            return match bytes {
                [first] => check_first(*first).map(|_| None),
                _ => Ok(None),
            };
        };
        let opcode = check_first(first)?;
        if second & MASKED != 0 {
            return Err(ProtocolError::protocol("a masked frame"));
        }
        let (header_len, payload_len) = match second {
            len @ ..=125 => (2, u64::from(len)),
            126 => match rest {
                &[high, low, ..] => (4, u64::from(u16::from_be_bytes([high, low]))),
                _ => return check_long(opcode).map(|()| None),
            },
            _ => match rest.first_chunk::<8>() {
                Some(&bytes) => (10, u64::from_be_bytes(bytes)),
                None => return check_long(opcode).map(|()| None),
            },
        };
        let is_final = first & FIN != 0;
        if header_len > 2 || matches!(opcode, OpCode::Control(_)) {
            check_rare(opcode, is_final, header_len, payload_len)?;
        }
        Ok(Some(FrameHeader {
            opcode,
            is_final,
            is_compressed: first & RSV1 != 0,
            header_len,
            payload_len,
        }))
    }
}

/// The first byte: reserved bits and opcodes. RSV1 is the assembler's to judge, who knows what was
/// agreed on.
#[inline]
fn check_first(first: u8) -> Result<OpCode, ProtocolError> {
    if first & RSV2_RSV3 != 0 {
        return Err(ProtocolError::protocol("a reserved bit is set"));
    }
    Ok(match first & 0x0f {
        0 => OpCode::Data(Data::Continue),
        1 => OpCode::Data(Data::Text),
        2 => OpCode::Data(Data::Binary),
        8 => OpCode::Control(Control::Close),
        9 => OpCode::Control(Control::Ping),
        10 => OpCode::Control(Control::Pong),
        _ => return Err(ProtocolError::protocol("a reserved opcode")),
    })
}

fn check_long(opcode: OpCode) -> Result<(), ProtocolError> {
    match opcode {
        OpCode::Control(_) => {
            Err(ProtocolError::protocol("a control frame of more than 125 bytes"))
        }
        OpCode::Data(_) => Ok(()),
    }
}

/// What frames with a short payload cannot get wrong, and control frames may not.
#[cold]
fn check_rare(
    opcode: OpCode,
    is_final: bool,
    header_len: usize,
    payload_len: u64,
) -> Result<(), ProtocolError> {
    if let OpCode::Control(_) = opcode {
        if header_len > 2 {
            return Err(ProtocolError::protocol("a control frame of more than 125 bytes"));
        }
        if !is_final {
            return Err(ProtocolError::protocol("a fragmented control frame"));
        }
    }
    // RFC 6455 section 5.2: "the minimal number of bytes MUST be used to encode the length".
    match header_len {
        4 if payload_len < 126 => {
            Err(ProtocolError::protocol("a length in more bytes than it needs"))
        }
        10 if payload_len <= u64::from(u16::MAX) => {
            Err(ProtocolError::protocol("a length in more bytes than it needs"))
        }
        10 if payload_len >> 63 != 0 => {
            Err(ProtocolError::protocol("a length with its highest bit set"))
        }
        _ => Ok(()),
    }
}

/// Masking keys that a server cannot predict (RFC 6455 section 10.3): a ChaCha generator seeded by
/// the system, drawn a block at a time.
pub(crate) struct MaskingKeys {
    generator: StdRng,
}

impl MaskingKeys {
    pub(crate) fn new() -> Self {
        MaskingKeys { generator: make_rng() }
    }

    pub(crate) fn next(&mut self) -> [u8; 4] {
        self.generator.next_u32().to_ne_bytes()
    }
}

/// Appends a whole masked frame to `out`.
pub(crate) fn put_frame(
    out: &mut Vec<u8>,
    opcode: OpCode,
    is_final: bool,
    is_compressed: bool,
    payload: &[u8],
    key: [u8; 4],
) {
    put_header(out, opcode, is_final, is_compressed, payload.len(), key);
    put_masked(out, payload, key);
}

/// Appends the head of a masked frame to `out`.
pub(crate) fn put_header(
    out: &mut Vec<u8>,
    opcode: OpCode,
    is_final: bool,
    is_compressed: bool,
    payload_len: usize,
    key: [u8; 4],
) {
    let fin = if is_final { FIN } else { 0 };
    let rsv1 = if is_compressed { RSV1 } else { 0 };
    out.push(fin | rsv1 | u8::from(opcode));
    match payload_len {
        len @ 0..=125 => out.push(MASKED | len as u8),
        len @ 126..=0xffff => {
            out.push(MASKED | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(MASKED | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&key);
}

/// Appends `payload`, masked from the first byte of `key` on, to `out`.
pub(crate) fn put_masked(out: &mut Vec<u8>, payload: &[u8], key: [u8; 4]) {
    let start = out.len();
    out.extend_from_slice(payload);
    mask(&mut out[start..], key);
}

/// Masks in place (RFC 6455 section 5.3); the same again unmasks.
pub(crate) fn mask(bytes: &mut [u8], key: [u8; 4]) {
    // Words first: the compiler makes vector instructions of this loop.
    let word = u64::from_ne_bytes([key[0], key[1], key[2], key[3], key[0], key[1], key[2], key[3]]);
    let mut words = bytes.chunks_exact_mut(8);
    for chunk in &mut words {
        let masked =
            u64::from_ne_bytes(chunk.try_into().expect("chunks_exact gives chunks of 8")) ^ word;
        chunk.copy_from_slice(&masked.to_ne_bytes());
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(bytes: &[u8]) -> Result<Option<FrameHeader>, u16> {
        FrameHeader::parse(bytes).map_err(|violation| violation.code.into())
    }

    #[test]
    fn heads_of_all_three_lengths_are_parsed() {
        let text = |header_len, payload_len| FrameHeader {
            opcode: OpCode::Data(Data::Text),
            is_final: true,
            is_compressed: false,
            header_len,
            payload_len,
        };
        assert_eq!(head(&[0x81, 5]), Ok(Some(text(2, 5))));
        assert_eq!(head(&[0x81, 126, 1, 0]), Ok(Some(text(4, 256))));
        assert_eq!(head(&[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]), Ok(Some(text(10, 65536))));
        for bytes in
            [&[][..], &[0x81], &[0x81, 126], &[0x81, 126, 1], &[0x81, 127, 0, 0, 0, 0, 0, 1, 0]]
        {
            assert_eq!(head(bytes), Ok(None), "{bytes:?}");
        }
    }

    #[test]
    fn simple_frames_are_what_the_parser_of_heads_says_they_are() {
        let payload = [7; 70_000];
        for first in 0..=255u8 {
            for second in 0..=255u8 {
                for len in [0usize, 5, 125, 126, 300, 65_535] {
                    let mut bytes = vec![first, second];
                    bytes.extend((len as u16).to_be_bytes());
                    bytes.extend_from_slice(&payload[..len]);
                    let Some(simple) = SimpleFrame::parse(&bytes) else { continue };
                    let head = FrameHeader::parse(&bytes)
                        .expect("it breaks no rule")
                        .expect("it is all there");
                    let data = if simple.is_text { Data::Text } else { Data::Binary };
                    let expected = (OpCode::Data(data), true, false, simple.payload.len() as u64);
                    assert_eq!(
                        (head.opcode, head.is_final, head.is_compressed, head.payload_len),
                        expected
                    );
                    let whole = head.header_len + simple.payload.len();
                    assert_eq!(
                        (simple.payload, simple.rest),
                        (&bytes[head.header_len..whole], &bytes[whole..])
                    );
                }
            }
        }
        for (len, is_simple) in
            [(1, false), (2, true), (125, true), (126, true), (65_535, true), (65_536, false)]
        {
            let mut bytes = Vec::new();
            put_header(&mut bytes, OpCode::Data(Data::Text), true, false, len, [0; 4]);
            bytes.truncate(bytes.len() - 4);
            bytes[1] &= !MASKED;
            bytes.extend_from_slice(&payload[..len]);
            assert_eq!(SimpleFrame::parse(&bytes).is_some(), is_simple, "{len}");
            assert!(SimpleFrame::parse(&bytes[..bytes.len() - 1]).is_none());
        }
    }

    #[test]
    fn what_breaks_the_protocol_is_seen_at_its_first_byte() {
        let wrong: [&[u8]; 12] = [
            &[0x83],
            &[0x8b],
            &[0x91],
            &[0xa1],
            &[0x81, 0x85],
            &[0x09, 0],
            &[0x89, 126],
            &[0x88, 127],
            &[0x81, 126, 0, 125],
            &[0x81, 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff],
            &[0x81, 127, 0x80, 0, 0, 0, 0, 0, 0, 0],
            &[0x08, 2],
        ];
        for bytes in wrong {
            assert_eq!(head(bytes), Err(1002), "{bytes:?}");
        }
    }

    #[test]
    fn masking_twice_gives_the_original_at_every_length() {
        let original: Vec<u8> = (0..100).collect();
        for len in 0..original.len() {
            let mut bytes = original[..len].to_vec();
            mask(&mut bytes, [1, 2, 3, 4]);
            for (index, byte) in bytes.iter().enumerate() {
                assert_eq!(*byte, original[index] ^ [1, 2, 3, 4][index % 4]);
            }
            mask(&mut bytes, [1, 2, 3, 4]);
            assert_eq!(bytes, original[..len]);
        }
    }

    #[test]
    fn frames_are_written_with_the_shortest_length_and_their_key() {
        for (len, header_len) in [(0, 2), (125, 2), (126, 4), (65535, 4), (65536, 10)] {
            let mut out = Vec::new();
            put_frame(&mut out, OpCode::Data(Data::Binary), true, false, &vec![7; len], [9; 4]);
            assert_eq!(out.len(), header_len + 4 + len);
            assert_eq!((out[0], out[1] & MASKED), (0x82, MASKED));
            assert_eq!(out[header_len..header_len + 4], [9; 4]);
        }
    }

    #[test]
    fn masking_keys_do_not_repeat() {
        let mut keys = MaskingKeys::new();
        let distinct: std::collections::HashSet<_> = (0..1000).map(|_| keys.next()).collect();
        assert!(distinct.len() > 990);
    }

    #[test]
    fn the_buffer_grows_with_bursts_and_shrinks_after_a_quiet_while() {
        let mut buffer = ReadBuffer::with_leftover(b"x");
        assert_eq!(buffer.size(), SIZE_MIN);
        for _ in 0..20 {
            let room = buffer.room().len();
            buffer.filled(room);
            buffer.clear();
        }
        assert_eq!(buffer.size(), SIZE_BURST);
        let now = Instant::now();
        buffer.note_need(now);
        assert!(!buffer.settle(now));
        assert!(!buffer.settle(now + QUIET / 2));
        assert!(buffer.settle(now + QUIET));
        assert_eq!(buffer.size(), SIZE_MIN);
        assert!(!buffer.settle(now + 3 * QUIET));
    }

    #[test]
    fn the_buffer_grows_no_further_than_the_frame_that_comes() {
        let len = 16 * 1024 * 1024 + 10;
        let mut buffer = ReadBuffer::with_leftover(&[0; 100]);
        let mut received = 100;
        while received < len {
            buffer.unread().announce(len);
            let room = buffer.room().len().min(len - received).min(100_000);
            buffer.filled(room);
            received += room;
        }
        assert_eq!(buffer.unread().bytes().len(), len);
        assert_eq!(buffer.size(), len);
        // The next frame begins in the middle of it, and announces less than there is.
        buffer.unread().take(len - 1000);
        buffer.unread().announce(2000);
        assert!(!buffer.room().is_empty());
        assert_eq!(buffer.size(), len);
    }

    #[test]
    fn the_buffer_keeps_what_is_unread_when_it_makes_room() {
        let mut buffer = ReadBuffer::with_leftover(&[]);
        let mut written = 0u32;
        let mut read = 0u32;
        for step in 0..5000usize {
            let room = buffer.room();
            let count = room.len().min(1 + step % 97) / 4 * 4;
            for chunk in room[..count].chunks_exact_mut(4) {
                chunk.copy_from_slice(&written.to_ne_bytes());
                written += 1;
            }
            buffer.filled(count);
            if step % 3 == 0 {
                let mut unread = buffer.unread();
                let mut take = |read: u32| {
                    let there = unread.bytes().len() >= 4;
                    if there {
                        let bytes = unread.take(4).try_into().expect("four were asked for");
                        assert_eq!(u32::from_ne_bytes(bytes), read);
                    }
                    there
                };
                while read % 50 != 49 && take(read) {
                    read += 1;
                }
                read += u32::from(read % 50 == 49 && take(read));
            }
        }
        assert!(read > 1000);
    }
}
