//! Frame headers, read and written (RFC 6455 section 5.2).

use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::protocol::ProtocolError;
use crate::protocol::mask::put_masked;

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
/// that servers send.
#[derive(Clone, Copy)]
pub(crate) struct SimpleFrame<'a> {
    pub(crate) is_text: bool,
    pub(crate) payload: &'a [u8],
    /// The bytes behind the frame.
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
    /// Parses the head of a frame; `None` when more bytes are needed. An error is
    /// returned as soon as its byte is there.
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

/// Checks what frames with a short payload cannot get wrong, and control frames may not.
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

/// A frame to be written.
#[derive(Clone, Copy)]
pub(crate) struct Frame<'a> {
    pub(crate) opcode: OpCode,
    pub(crate) is_final: bool,
    /// RSV1, on the first frame of a compressed message (RFC 7692 section 6).
    pub(crate) is_compressed: bool,
    pub(crate) payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// A whole uncompressed message, or a control frame.
    #[inline]
    pub(crate) fn whole(opcode: OpCode, payload: &'a [u8]) -> Self {
        Frame { opcode, is_final: true, is_compressed: false, payload }
    }

    /// Appends the frame to `out`, masked with `key`.
    #[inline]
    pub(crate) fn put(&self, out: &mut Vec<u8>, key: [u8; 4]) {
        self.put_header(out, key);
        put_masked(out, self.payload, key);
    }

    /// Appends the header alone to `out`, `key` included.
    #[inline]
    pub(crate) fn put_header(&self, out: &mut Vec<u8>, key: [u8; 4]) {
        let fin = if self.is_final { FIN } else { 0 };
        let rsv1 = if self.is_compressed { RSV1 } else { 0 };
        let first = fin | rsv1 | u8::from(self.opcode);
        let [k0, k1, k2, k3] = key;
        // Each length by one copy of a size that the compiler knows.
        match self.payload.len() {
            len @ 0..=125 => out.extend_from_slice(&[first, MASKED | len as u8, k0, k1, k2, k3]),
            len @ 126..=0xffff => {
                let [high, low] = (len as u16).to_be_bytes();
                out.extend_from_slice(&[first, MASKED | 126, high, low, k0, k1, k2, k3]);
            }
            len => {
                out.extend_from_slice(&[first, MASKED | 127]);
                out.extend_from_slice(&(len as u64).to_be_bytes());
                out.extend_from_slice(&key);
            }
        }
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
            let frame = Frame::whole(OpCode::Data(Data::Text), &payload[..len]);
            frame.put_header(&mut bytes, [0; 4]);
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
    fn frames_are_written_with_the_shortest_length_and_their_key() {
        for (len, header_len) in [(0, 2), (125, 2), (126, 4), (65535, 4), (65536, 10)] {
            let mut out = Vec::new();
            Frame::whole(OpCode::Data(Data::Binary), &vec![7; len]).put(&mut out, [9; 4]);
            assert_eq!(out.len(), header_len + 4 + len);
            assert_eq!((out[0], out[1] & MASKED), (0x82, MASKED));
            assert_eq!(out[header_len..header_len + 4], [9; 4]);
        }
    }

    #[test]
    fn the_opcodes_of_the_rfc_are_parsed_and_all_others_are_refused() {
        for opcode in 0..16u8 {
            let expected = match opcode {
                0 => Ok(OpCode::Data(Data::Continue)),
                1 => Ok(OpCode::Data(Data::Text)),
                2 => Ok(OpCode::Data(Data::Binary)),
                8 => Ok(OpCode::Control(Control::Close)),
                9 => Ok(OpCode::Control(Control::Ping)),
                10 => Ok(OpCode::Control(Control::Pong)),
                _ => Err(1002),
            };
            let parsed = head(&[FIN | opcode, 125]).map(|head| head.expect("it is whole").opcode);
            assert_eq!(parsed, expected, "{opcode}");
        }
    }

    #[test]
    fn lengths_are_parsed_from_the_shortest_to_the_longest_of_each_form() {
        let len = |bytes: &[u8]| head(bytes).map(|head| head.expect("it is whole").payload_len);
        assert_eq!(len(&[0x82, 126, 0, 126]), Ok(126));
        assert_eq!(len(&[0x82, 126, 0xff, 0xff]), Ok(65_535));
        assert_eq!(len(&[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 1]), Ok(65_537));
        let longest = [0x82, 127, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(len(&longest), Ok(u64::MAX >> 1));
        // A control frame has the shortest form alone.
        assert_eq!(len(&[0x89, 126, 0, 126]), Err(1002));
        assert_eq!(len(&[0x89, 127, 0, 0, 0, 0, 0, 1, 0, 0]), Err(1002));
    }

    #[test]
    fn frames_that_are_written_are_parsed_as_they_were_meant() {
        let key = [1, 2, 3, 4];
        for opcode in [OpCode::Data(Data::Continue), OpCode::Data(Data::Text)] {
            for (is_final, is_compressed) in
                [(true, true), (true, false), (false, true), (false, false)]
            {
                for len in [0, 125, 126, 65_535, 65_536] {
                    let payload = vec![7; len];
                    let frame = Frame { opcode, is_final, is_compressed, payload: &payload };
                    let mut out = Vec::new();
                    frame.put(&mut out, key);
                    out[1] &= !MASKED;
                    let head = head(&out).expect("it breaks no rule").expect("it is whole");
                    assert_eq!(
                        (head.opcode, head.is_final, head.is_compressed, head.payload_len),
                        (opcode, is_final, is_compressed, len as u64)
                    );
                    let (sent_key, masked) = out[head.header_len..].split_at(4);
                    assert_eq!(sent_key, key);
                    assert!(masked.iter().zip(key.iter().cycle()).all(|(m, k)| m ^ k == 7));
                }
            }
        }
    }
}
