//! Fragments to messages: limits, UTF-8, control frames (RFC 6455 sections 5.4 to 5.6).

use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

use crate::event::Payload;
use crate::protocol::ProtocolError;
use crate::protocol::deflate::{InflateError, Inflater};
use crate::protocol::frame::{FrameHeader, SimpleFrame};
use crate::protocol::read_buffer::Unread;

/// The capacity that the assembler keeps after a large message.
const KEEP: usize = 64 * 1024;

/// A whole message or control frame, borrowed from wherever it lies.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
    Ping(&'a [u8]),
    Pong(&'a [u8]),
    /// `None`: a close frame without a code.
    Close(Option<(u16, &'a str)>),
}

/// The limits of what is received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Payload bytes of one message, after inflating.
    pub(crate) max_message_size: usize,
}

/// Makes messages of frames. A message in one uncompressed frame is lent straight from the read
/// buffer; any other is gathered here, as its bytes come.
pub(crate) struct Assembler {
    limits: Limits,
    inflater: Option<Inflater>,
    gathering: Gathering,
    gathered: Vec<u8>,
    /// `gathered[..valid_to]` is UTF-8.
    valid_to: usize,
    /// The number of bytes of an incomplete text frame that were found to be UTF-8.
    checked: usize,
}

/// The state of the assembler between two calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gathering {
    /// Between two messages.
    Nothing,
    /// Between two fragments of a message.
    Fragments(Kind),
    /// Inside a frame of a message that is gathered.
    Frame { kind: Kind, remaining: u64, is_final: bool },
    /// A gathered message has been lent, and is dropped by the next call.
    Lent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    is_text: bool,
    is_compressed: bool,
}

impl Assembler {
    pub(crate) fn new(limits: Limits, inflater: Option<Inflater>) -> Self {
        Assembler {
            limits,
            inflater,
            gathering: Gathering::Nothing,
            gathered: Vec::new(),
            valid_to: 0,
            checked: 0,
        }
    }

    pub(crate) fn max_message_size(&self) -> usize {
        self.limits.max_message_size
    }

    /// The memory that it holds for a message under construction.
    #[cfg(any(test, all(feature = "_internals", unix)))]
    pub(crate) fn held(&self) -> usize {
        self.gathered.capacity()
    }

    /// The next message, if it is one of those that matter for speed. `None` takes nothing and says
    /// nothing: ask [`next`](Assembler::next).
    #[inline]
    pub(crate) fn next_simple<'b>(&mut self, unread: &mut Unread<'b>) -> Option<Payload<'b>> {
        if self.gathering != Gathering::Nothing {
            return None;
        }
        let frame = SimpleFrame::parse(unread.bytes())?;
        if frame.payload.len() > self.limits.max_message_size {
            return None;
        }
        let payload = match frame.is_text {
            true => Payload::Text(simdutf8::basic::from_utf8(frame.payload).ok()?),
            false => Payload::Binary(frame.payload),
        };
        unread.take_up_to(frame.rest);
        self.checked = 0;
        Some(payload)
    }

    /// The next message or control frame; `None` when that needs bytes that have not come yet.
    ///
    /// After a close frame or a violation the caller drops whatever follows.
    pub(crate) fn next<'a, 'b: 'a>(
        &'a mut self,
        unread: &mut Unread<'b>,
    ) -> Result<Option<Incoming<'a>>, ProtocolError> {
        if self.gathering == Gathering::Nothing {
            let Some(head) = FrameHeader::parse(unread.bytes())? else { return Ok(None) };
            if let (OpCode::Data(data @ (Data::Text | Data::Binary)), true, false) =
                (head.opcode, head.is_final, head.is_compressed)
            {
                if head.payload_len > self.limits.max_message_size as u64 {
                    return Err(ProtocolError::too_long());
                }
                // It fits into memory, so it fits into usize.
                let whole = head.header_len + head.payload_len as usize;
                if unread.bytes().len() < whole {
                    self.check_early(&unread.bytes()[head.header_len..], data)?;
                    unread.announce(whole);
                    return Ok(None);
                }
                self.checked = 0;
                return whole_message(data == Data::Text, &unread.take(whole)[head.header_len..])
                    .map(Some);
            }
        }
        self.next_gathered(unread)
    }

    /// The start of a text frame that is still coming: what can never become UTF-8 is told at once
    /// (RFC 6455 section 8.1).
    #[cold]
    fn check_early(&mut self, so_far: &[u8], data: Data) -> Result<(), ProtocolError> {
        if data == Data::Text {
            self.checked += valid_prefix(&so_far[self.checked..])?;
        }
        Ok(())
    }

    /// Control frames, fragments and compressed messages.
    #[cold]
    fn next_gathered<'a, 'b: 'a>(
        &'a mut self,
        unread: &mut Unread<'b>,
    ) -> Result<Option<Incoming<'a>>, ProtocolError> {
        if self.gathering == Gathering::Lent {
            self.gathering = Gathering::Nothing;
            self.gathered.clear();
            self.gathered.shrink_to(KEEP);
            self.valid_to = 0;
            return self.next(unread);
        }
        loop {
            if let Gathering::Frame { kind, remaining, is_final } = self.gathering {
                let available =
                    unread.bytes().len().min(usize::try_from(remaining).unwrap_or(usize::MAX));
                let is_last = is_final && available as u64 == remaining;
                self.gather(unread.take(available), kind, is_last)?;
                let remaining = remaining - available as u64;
                if remaining > 0 {
                    self.gathering = Gathering::Frame { kind, remaining, is_final };
                    return Ok(None);
                }
                if is_final {
                    return self.finish(kind).map(Some);
                }
                self.gathering = Gathering::Fragments(kind);
            }
            let Some(head) = FrameHeader::parse(unread.bytes())? else { return Ok(None) };
            match head.opcode {
                OpCode::Control(control) => {
                    if head.is_compressed {
                        return Err(ProtocolError::protocol(
                            "a reserved bit is set on a control frame",
                        ));
                    }
                    let whole = head.header_len + head.payload_len as usize;
                    if unread.bytes().len() < whole {
                        return Ok(None);
                    }
                    return control_frame(control, &unread.take(whole)[head.header_len..])
                        .map(Some);
                }
                OpCode::Data(data) => {
                    let kind = self.kind_of(data, head)?;
                    unread.take(head.header_len);
                    self.gathering = Gathering::Frame {
                        kind,
                        remaining: head.payload_len,
                        is_final: head.is_final,
                    };
                }
            }
        }
    }

    /// Finds the message that a data frame belongs to, and checks the frame and its length before
    /// memory is taken.
    fn kind_of(&self, data: Data, head: FrameHeader) -> Result<Kind, ProtocolError> {
        let kind = match (self.gathering, data) {
            (Gathering::Fragments(kind), Data::Continue) if !head.is_compressed => kind,
            (Gathering::Fragments(_), Data::Continue) => {
                return Err(ProtocolError::protocol(
                    "a reserved bit is set on a continuation frame",
                ));
            }
            (Gathering::Fragments(_), _) => {
                return Err(ProtocolError::protocol(
                    "a new message before the end of a fragmented one",
                ));
            }
            (_, Data::Text | Data::Binary) => {
                Kind { is_text: data == Data::Text, is_compressed: head.is_compressed }
            }
            _ => return Err(ProtocolError::protocol("a continuation frame without a message")),
        };
        if kind.is_compressed && self.inflater.is_none() {
            return Err(ProtocolError::protocol(
                "a compressed message, and compression was not agreed on",
            ));
        }
        let room = self.limits.max_message_size - self.gathered.len();
        if !kind.is_compressed && head.payload_len > room as u64 {
            return Err(ProtocolError::too_long());
        }
        Ok(kind)
    }

    /// Takes a piece of a message.
    fn gather(&mut self, piece: &[u8], kind: Kind, is_last: bool) -> Result<(), ProtocolError> {
        match &mut self.inflater {
            Some(inflater) if kind.is_compressed => {
                inflater
                    .inflate(piece, &mut self.gathered, self.limits.max_message_size)
                    .map_err(violation_of)?;
            }
            _ => {
                grow(&mut self.gathered, piece.len(), self.limits.max_message_size);
                self.gathered.extend_from_slice(piece);
            }
        }
        // `finish` checks all of it.
        if kind.is_text && !is_last {
            self.valid_to += valid_prefix(&self.gathered[self.valid_to..])?;
        }
        Ok(())
    }

    /// All of a message is here.
    fn finish(&mut self, kind: Kind) -> Result<Incoming<'_>, ProtocolError> {
        if let (true, Some(inflater)) = (kind.is_compressed, &mut self.inflater) {
            inflater.finish().map_err(violation_of)?;
        }
        self.gathering = Gathering::Lent;
        whole_message(kind.is_text, &self.gathered)
    }
}

fn whole_message(is_text: bool, payload: &[u8]) -> Result<Incoming<'_>, ProtocolError> {
    if !is_text {
        return Ok(Incoming::Binary(payload));
    }
    simdutf8::basic::from_utf8(payload)
        .map(Incoming::Text)
        .map_err(|_| ProtocolError::invalid_text())
}

/// Makes room for `count` more bytes by doubling, and never beyond `limit`.
fn grow(gathered: &mut Vec<u8>, count: usize, limit: usize) {
    let needed = gathered.len() + count;
    if needed > gathered.capacity() {
        let size = needed.max(2 * gathered.capacity()).min(limit.max(needed));
        gathered.reserve_exact(size - gathered.len());
    }
}

fn violation_of(error: InflateError) -> ProtocolError {
    match error {
        InflateError::TooLong => ProtocolError::too_long(),
        InflateError::Corrupt => {
            ProtocolError::invalid("a compressed message that does not inflate")
        }
    }
}

/// Returns how many of `bytes` are UTF-8 for certain: all, but for a code point at their end that
/// is not complete yet.
fn valid_prefix(bytes: &[u8]) -> Result<usize, ProtocolError> {
    match simdutf8::compat::from_utf8(bytes) {
        Ok(_) => Ok(bytes.len()),
        Err(error) if error.error_len().is_none() => Ok(error.valid_up_to()),
        Err(_) => Err(ProtocolError::invalid_text()),
    }
}

fn control_frame(control: Control, payload: &[u8]) -> Result<Incoming<'_>, ProtocolError> {
    match control {
        Control::Ping => Ok(Incoming::Ping(payload)),
        Control::Pong => Ok(Incoming::Pong(payload)),
        Control::Close => close_frame(payload),
        Control::Reserved(_) => Err(ProtocolError::protocol("a reserved opcode")),
    }
}

/// The close code of a gateway that got an invalid answer from the server behind it.
const BAD_GATEWAY: u16 = 1014;

fn close_frame(payload: &[u8]) -> Result<Incoming<'_>, ProtocolError> {
    match payload {
        [] => Ok(Incoming::Close(None)),
        [_] => Err(ProtocolError::protocol("a close frame with half a code")),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            // 1014 was registered at IANA after the list that tungstenite knows.
            if code != BAD_GATEWAY && !CloseCode::from(code).is_allowed() {
                let violation = ProtocolError::protocol("a close frame with an illegal code");
                return Err(violation.in_close_frame(code));
            }
            let reason = simdutf8::basic::from_utf8(reason).map_err(|_| {
                ProtocolError::invalid("a close reason that is not UTF-8").in_close_frame(code)
            })?;
            Ok(Incoming::Close(Some((code, reason))))
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::RngExt;
    use rand::rngs::StdRng;

    use super::*;
    use crate::property::{self, vec};
    use crate::protocol::deflate::{Deflate, Deflater};
    use crate::protocol::read_buffer::ReadBuffer;

    /// The next one, as the reader asks for it.
    fn next<'a, 'b: 'a>(
        assembler: &'a mut Assembler,
        unread: &mut Unread<'b>,
    ) -> Result<Option<Incoming<'a>>, ProtocolError> {
        match assembler.next_simple(unread) {
            Some(Payload::Text(text)) => Ok(Some(Incoming::Text(text))),
            Some(Payload::Binary(bytes)) => Ok(Some(Incoming::Binary(bytes))),
            None => assembler.next(unread),
        }
    }

    /// An unmasked frame, as a server sends it.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first];
        match payload.len() {
            len @ 0..=125 => bytes.push(len as u8),
            len @ 126..=0xffff => {
                bytes.push(126);
                bytes.extend_from_slice(&(len as u16).to_be_bytes());
            }
            len => {
                bytes.push(127);
                bytes.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        bytes.extend_from_slice(payload);
        bytes
    }

    /// Everything that comes out of `bytes`, fed `step` at a time, in short; the code of a
    /// violation is the last.
    fn assemble(bytes: &[u8], step: usize) -> Vec<String> {
        let mut assembler = Assembler::new(Limits { max_message_size: 100_000 }, None);
        let mut buffer = ReadBuffer::with_leftover(&[]);
        let mut seen = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = buffer.room();
            let count = rest.len().min(step).min(room.len());
            room[..count].copy_from_slice(&rest[..count]);
            rest = &rest[count..];
            buffer.filled(count);
            let mut unread = buffer.unread();
            loop {
                match next(&mut assembler, &mut unread) {
                    Ok(Some(Incoming::Text(text))) => seen.push(format!("t:{text}")),
                    Ok(Some(Incoming::Binary(bytes))) => seen.push(format!("b:{}", bytes.len())),
                    Ok(Some(Incoming::Ping(bytes))) => seen.push(format!("ping:{}", bytes.len())),
                    Ok(Some(Incoming::Pong(bytes))) => seen.push(format!("pong:{}", bytes.len())),
                    Ok(Some(Incoming::Close(close))) => seen.push(format!("close:{close:?}")),
                    Ok(None) => break,
                    Err(violation) => {
                        seen.push(format!("{}", u16::from(violation.code)));
                        return seen;
                    }
                }
            }
        }
        seen
    }

    fn at_every_step(bytes: &[u8], expected: &[&str]) {
        for step in [1, 2, 3, 7, 1000, 16 * 1024] {
            assert_eq!(assemble(bytes, step), expected, "in steps of {step}");
        }
    }

    #[test]
    fn messages_and_control_frames_come_out_in_order_however_they_are_cut() {
        let bytes = [
            frame(0x81, "grüße".as_bytes()),
            frame(0x82, &[0; 300]),
            frame(0x89, b"hi"),
            frame(0x01, "a€".as_bytes().split_at(2).0),
            frame(0x8a, b"between"),
            frame(0x80, "a€".as_bytes().split_at(2).1),
            frame(0x82, &[1; 70_000]),
            frame(0x81, b""),
            frame(0x88, &[0x03, 0xe8, b'o', b'k']),
        ]
        .concat();
        let expected = [
            "t:grüße",
            "b:300",
            "ping:2",
            "pong:7",
            "t:a€",
            "b:70000",
            "t:",
            "close:Some((1000, \"ok\"))",
        ];
        at_every_step(&bytes, &expected);
    }

    #[test]
    fn fragments_in_any_number_make_one_message() {
        let mut bytes = frame(0x02, b"x");
        for _ in 0..20_000 {
            bytes.extend_from_slice(&frame(0x00, b"y"));
        }
        bytes.extend_from_slice(&frame(0x80, b""));
        at_every_step(&bytes, &["b:20001"]);
    }

    #[test]
    fn bad_text_is_told_as_soon_as_it_is_seen() {
        // Only the start of each is there: 0xff is never UTF-8, and neither is a surrogate.
        let unfinished =
            [&[0x81, 100, b'a', 0xff][..], &[0x01, 100, b'a', 0xff], &[0x81, 4, 0xed, 0xa0]];
        for bytes in unfinished {
            at_every_step(bytes, &["1007"]);
        }
        // A code point that is cut by a fragment may still become one; at the end it may not.
        let cut = [frame(0x01, &[0xe2, 0x82]), frame(0x80, &[0xac])].concat();
        at_every_step(&cut, &["t:€"]);
        let open = [frame(0x01, &[0xe2, 0x82]), frame(0x80, &[])].concat();
        at_every_step(&open, &["1007"]);
        at_every_step(&frame(0x81, &[0xe2, 0x82]), &["1007"]);
    }

    #[test]
    fn what_breaks_the_order_of_fragments_is_1002() {
        let wrong = [
            frame(0x80, b"stray"),
            frame(0x00, b"stray"),
            [frame(0x01, b"a"), frame(0x81, b"b")].concat(),
            [frame(0x01, b"a"), frame(0x02, b"b")].concat(),
            frame(0xc1, b"compressed"),
            frame(0xc9, b"compressed ping"),
            [frame(0x01, b"a"), frame(0xc0, b"b")].concat(),
            frame(0x88, &[3]),
            frame(0x88, &1005u16.to_be_bytes()),
            frame(0x88, &999u16.to_be_bytes()),
            frame(0x88, &2999u16.to_be_bytes()),
            frame(0x88, &5000u16.to_be_bytes()),
        ];
        for bytes in wrong {
            at_every_step(&bytes, &["1002"]);
        }
        at_every_step(&frame(0x88, &[0x03, 0xe8, 0xff]), &["1007"]);
        at_every_step(&frame(0x88, &[]), &["close:None"]);
    }

    #[test]
    fn close_codes_are_taken_that_may_be_sent_and_no_others() {
        let is_taken = |code: &u16| assemble(&frame(0x88, &code.to_be_bytes()), 1000) != ["1002"];
        let taken: Vec<u16> = (0..=u16::MAX).filter(is_taken).collect();
        let may_be_sent: Vec<u16> = (1000..=1003).chain(1007..=1014).chain(3000..=4999).collect();
        assert_eq!(taken, may_be_sent);
    }

    #[test]
    fn what_is_wrong_with_a_close_frame_is_told_with_its_code() {
        for (payload, expected) in [
            (&[0x03, 0xed][..], "a close frame with an illegal code (close code 1005)"),
            (&[0x0f, 0xa1, 0xff], "a close reason that is not UTF-8 (close code 4001)"),
            (&[0x03], "a close frame with half a code"),
        ] {
            let error = close_frame(payload).expect_err("it is wrong");
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn what_is_too_long_is_told_by_its_header() {
        at_every_step(&[0x82, 127, 0, 0, 0, 0, 0, 1, 0x86, 0xa1], &["1009"]);
        at_every_step(&[0x02, 127, 0, 0, 0, 0, 0, 1, 0x86, 0xa1], &["1009"]);
        let sum = [frame(0x02, &[0; 60_000]), frame(0x80, &[0; 40_001])].concat();
        at_every_step(&sum, &["1009"]);
        let fits = [frame(0x02, &[0; 60_000]), frame(0x80, &[0; 40_000])].concat();
        at_every_step(&fits, &["b:100000"]);
    }

    /// A message or control frame, and how it is to travel.
    #[derive(Debug)]
    enum Sent {
        Text { text: String, cuts: Vec<usize>, is_compressed: bool },
        Binary { bytes: Vec<u8>, cuts: Vec<usize>, is_compressed: bool },
        Ping(Vec<u8>),
        Pong(Vec<u8>),
    }

    fn sent(rng: &mut StdRng) -> Sent {
        let cuts = |rng: &mut StdRng| vec(rng, 0..5, |rng| rng.random_range(0..usize::MAX));
        match rng.random_range(0..4) {
            0 => Sent::Text {
                text: vec(rng, 0..201, character).into_iter().collect(),
                cuts: cuts(rng),
                is_compressed: rng.random(),
            },
            1 => Sent::Binary {
                bytes: property::bytes(rng, 0..70_000),
                cuts: cuts(rng),
                is_compressed: rng.random(),
            },
            2 => Sent::Ping(property::bytes(rng, 0..126)),
            _ => Sent::Pong(property::bytes(rng, 0..126)),
        }
    }

    /// A character of one to four bytes, each length as often as the others.
    fn character(rng: &mut StdRng) -> char {
        let of_one_length = match rng.random_range(0..4) {
            0 => '\0'..='\u{7f}',
            1 => '\u{80}'..='\u{7ff}',
            2 => '\u{800}'..='\u{ffff}',
            _ => '\u{10000}'..=char::MAX,
        };
        rng.random_range(of_one_length)
    }

    /// The frames of a message, with a ping between its fragments.
    fn fragments(
        opcode: u8,
        bytes: &[u8],
        cuts: &[usize],
        deflater: Option<&mut Deflater>,
    ) -> Vec<u8> {
        let mut compressed = Vec::new();
        let is_compressed =
            deflater.is_some_and(|deflater| deflater.compress(bytes, &mut compressed));
        let body = if is_compressed { &compressed[..] } else { bytes };
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (body.len() + 1)).collect();
        ends.push(body.len());
        ends.sort_unstable();
        let mut out = Vec::new();
        let mut start = 0;
        let last = ends.len() - 1;
        for (index, end) in ends.into_iter().enumerate() {
            let fin = if index == last { 0x80 } else { 0 };
            let rsv1 = if index == 0 && is_compressed { 0x40 } else { 0 };
            out.extend(frame(fin | rsv1 | if index == 0 { opcode } else { 0 }, &body[start..end]));
            if index != last {
                out.extend(frame(0x89, b"between"));
            }
            start = end;
        }
        out
    }

    #[test]
    fn whatever_is_sent_arrives_however_it_is_cut_fragmented_and_compressed() {
        property::check(64, |rng| {
            let messages = vec(rng, 1..12, sent);
            let steps = vec(rng, 1..20, |rng| rng.random_range(1..40_000));
            let takes_over: bool = rng.random();
            let answer = match takes_over {
                true => "permessage-deflate",
                false => {
                    "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
                }
            };
            let agreed = Deflate::new().threshold(0).accept(&[answer.to_owned()]);
            let agreed = agreed.expect("legal").expect("accepted");
            let (inflater, mut deflater) = agreed.engines();
            let mut bytes = Vec::new();
            for message in &messages {
                match message {
                    Sent::Text { text, cuts, is_compressed } => {
                        let deflater = is_compressed.then_some(&mut deflater);
                        bytes.extend(fragments(1, text.as_bytes(), cuts, deflater));
                    }
                    Sent::Binary { bytes: body, cuts, is_compressed } => {
                        let deflater = is_compressed.then_some(&mut deflater);
                        bytes.extend(fragments(2, body, cuts, deflater));
                    }
                    Sent::Ping(payload) => bytes.extend(frame(0x89, payload)),
                    Sent::Pong(payload) => bytes.extend(frame(0x8a, payload)),
                }
            }
            let limits = Limits { max_message_size: 100_000 };
            let mut assembler = Assembler::new(limits, Some(inflater));
            let mut buffer = ReadBuffer::with_leftover(&[]);
            let mut expected = messages.iter();
            let mut rest = &bytes[..];
            let mut steps = steps.iter().cycle();
            while !rest.is_empty() {
                let room = buffer.room();
                let count = rest.len().min(*steps.next().expect("it is a cycle")).min(room.len());
                room[..count].copy_from_slice(&rest[..count]);
                buffer.filled(count);
                rest = &rest[count..];
                let mut unread = buffer.unread();
                while let Some(incoming) =
                    next(&mut assembler, &mut unread).expect("nothing is wrong with it")
                {
                    if incoming == Incoming::Ping(b"between") {
                        continue;
                    }
                    match (incoming, expected.next().expect("no more than was sent")) {
                        (Incoming::Text(got), Sent::Text { text, .. }) => {
                            assert_eq!(got, text);
                        }
                        (Incoming::Binary(got), Sent::Binary { bytes, .. }) => {
                            assert!(got == bytes);
                        }
                        (Incoming::Ping(got), Sent::Ping(payload)) => assert_eq!(got, payload),
                        (Incoming::Pong(got), Sent::Pong(payload)) => assert_eq!(got, payload),
                        (got, sent) => panic!("{got:?} for {sent:?}"),
                    }
                }
            }
            assert!(expected.next().is_none());
        });
    }

    #[test]
    fn any_bytes_at_all_neither_panic_nor_take_more_than_the_limits() {
        // Of fragments, whole messages, compressed ones and control frames.
        const FIRST: [u8; 11] = [0x01, 0x02, 0x00, 0x00, 0x80, 0x81, 0x82, 0xc1, 0x42, 0x88, 0x89];
        property::check(1000, |rng| {
            let pieces = vec(rng, 0..20, |rng| match rng.random_range(0..4) {
                0 => property::bytes(rng, 0..100),
                _ => {
                    let first = FIRST[rng.random_range(0..FIRST.len())];
                    frame(first, &property::bytes(rng, 0..300))
                }
            });
            let bytes = pieces.concat();
            let step = rng.random_range(1..500);
            let compresses: bool = rng.random();
            let agreed = Deflate::new().accept(&["permessage-deflate".to_owned()]);
            let agreed = agreed.expect("legal").expect("accepted");
            let inflater = compresses.then(|| agreed.engines().0);
            let mut assembler = Assembler::new(Limits { max_message_size: 1000 }, inflater);
            let mut buffer = ReadBuffer::with_leftover(&[]);
            for piece in bytes.chunks(step) {
                let room = buffer.room();
                room[..piece.len()].copy_from_slice(piece);
                buffer.filled(piece.len());
                let mut unread = buffer.unread();
                loop {
                    match next(&mut assembler, &mut unread) {
                        Ok(Some(Incoming::Close(_))) | Err(_) => return,
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                    }
                }
                assert!(assembler.held() <= KEEP + 1000);
            }
        });
    }

    fn assembler(max_message_size: usize) -> Assembler {
        Assembler::new(Limits { max_message_size }, None)
    }

    #[test]
    fn a_simple_message_is_lent_up_to_the_limit_and_not_while_another_is_gathered() {
        let mut assembler = assembler(5);
        assert_eq!(assembler.max_message_size(), 5);
        for (payload, is_lent) in [(&b"1234"[..], true), (b"12345", true), (b"123456", false)] {
            let mut buffer = ReadBuffer::with_leftover(&frame(0x82, payload));
            let lent = assembler.next_simple(&mut buffer.unread());
            assert_eq!(lent, is_lent.then_some(Payload::Binary(payload)));
        }
        let mut buffer = ReadBuffer::with_leftover(&frame(0x01, b"a"));
        assert_eq!(assembler.next(&mut buffer.unread()).expect("it is legal"), None);
        let mut buffer = ReadBuffer::with_leftover(&frame(0x81, b"ab"));
        assert_eq!(assembler.next_simple(&mut buffer.unread()), None);
    }

    #[test]
    fn a_message_in_one_long_frame_may_have_the_largest_size() {
        at_every_step(&frame(0x82, &[0; 100_000]), &["b:100000"]);
    }

    #[test]
    fn no_byte_of_a_text_that_is_still_coming_is_checked_twice() {
        let mut assembler = assembler(1000);
        let bytes = frame(0x81, &[b'a'; 200]);
        for (len, checked) in [(10, 6), (50, 46), (150, 146)] {
            let mut buffer = ReadBuffer::with_leftover(&bytes[..len]);
            assert_eq!(assembler.next(&mut buffer.unread()).expect("it is legal"), None);
            assert_eq!(assembler.checked, checked);
        }
        let mut buffer = ReadBuffer::with_leftover(&bytes);
        let whole = assembler.next(&mut buffer.unread()).expect("it is legal");
        assert_eq!(whole, Some(Incoming::Text(&"a".repeat(200))));
        assert_eq!(assembler.checked, 0);
    }

    #[test]
    fn after_a_large_message_64_kib_are_kept() {
        let mut assembler = assembler(200_000);
        let fragments = [frame(0x02, &[0; 90_000]), frame(0x80, &[0; 90_000])].concat();
        let mut buffer = ReadBuffer::with_leftover(&fragments);
        let message = assembler.next(&mut buffer.unread()).expect("it is legal");
        assert!(matches!(message, Some(Incoming::Binary(bytes)) if bytes.len() == 180_000));
        assert!(assembler.held() >= 180_000);
        assert_eq!(assembler.next(&mut buffer.unread()).expect("it is legal"), None);
        assert_eq!(assembler.held(), 65_536);
    }

    #[test]
    fn a_compressed_continuation_is_told_apart_from_a_new_message() {
        for (second, expected) in [
            (0xc0, "a reserved bit is set on a continuation frame"),
            (0x81, "a new message before the end of a fragmented one"),
        ] {
            let bytes = [frame(0x01, b"a"), frame(second, b"b")].concat();
            let mut buffer = ReadBuffer::with_leftover(&bytes);
            let error = assembler(1000).next(&mut buffer.unread()).expect_err("it is wrong");
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn no_byte_of_a_fragmented_text_is_checked_twice() {
        let mut assembler = assembler(1000);
        for (first, payload, valid_to) in [(0x01, &b"ab"[..], 2), (0x00, b"c\xe2", 3)] {
            let mut buffer = ReadBuffer::with_leftover(&frame(first, payload));
            assert_eq!(assembler.next(&mut buffer.unread()).expect("it is legal"), None);
            assert_eq!(assembler.valid_to, valid_to);
        }
    }

    #[test]
    fn the_memory_of_a_message_doubles_up_to_the_limit() {
        let mut gathered = Vec::new();
        for (count, capacity) in [(10, 10), (1, 20), (9, 20), (11, 40), (20, 80), (30, 100)] {
            grow(&mut gathered, count, 100);
            assert_eq!(gathered.capacity(), capacity);
            gathered.resize(gathered.len() + count, 0);
        }
    }
}
