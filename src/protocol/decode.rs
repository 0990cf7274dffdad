//! Messages that the application has compressed inside their frames: gzip (RFC 1952), zlib (RFC
//! 1950) and DEFLATE (RFC 1951).

use std::fmt;
use std::time::Instant;

use flate2::Crc;
use zlib_rs::{Inflate, InflateFlush, Status};

use crate::event::Payload;
use crate::protocol::read_buffer::QUIET;

/// The size of the buffer until a message needs more, and after none has for a while.
const KEEP: usize = 64 * 1024;

/// The first bytes of a gzip member (RFC 1952 section 2.3.1).
const GZIP_ID: [u8; 2] = [0x1f, 0x8b];

/// The one compression method of gzip.
const GZIP_DEFLATE: u8 = 8;

/// The flags of a gzip header: of its optional fields in their order, and reserved ones.
const HEADER_CRC: u8 = 1 << 1;
const EXTRA: u8 = 1 << 2;
const NAME: u8 = 1 << 3;
const COMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0b1110_0000;

/// The way in which a payload is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Gzip,
    Zlib,
    /// DEFLATE without header and checksum.
    Deflate,
}

/// The reason why a payload could not be decoded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum DecodeError {
    TooLong,
    Undecodable(Fault),
}

/// The fault of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    NotGzip,
    BadHeader,
    Corrupt,
    Incomplete,
    BadChecksum,
    Trailing,
    InvalidText,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::NotGzip => "it does not begin as gzip does",
            Fault::BadHeader => "its gzip header is wrong",
            Fault::Corrupt => "its compressed data is corrupt",
            Fault::Incomplete => "its end is missing",
            Fault::BadChecksum => "its checksum or length does not match",
            Fault::Trailing => "something follows its end",
            Fault::InvalidText => "its text is not UTF-8",
        })
    }
}

/// Decodes the binary messages of one connection, one after the other, into one buffer.
pub(crate) struct Decoder {
    format: Format,
    is_text: bool,
    max_message_size: usize,
    engine: Inflate,
    /// Receives what is inflated. Initialized once, when it grows: the engine writes to initialized
    /// memory only.
    output: Vec<u8>,
    /// The time at which a message last needed more than `KEEP`.
    needed_at: Option<Instant>,
    was_needed: bool,
}

impl Decoder {
    pub(crate) fn new(format: Format, is_text: bool, max_message_size: usize) -> Self {
        Decoder {
            format,
            is_text,
            max_message_size,
            engine: Inflate::new(format == Format::Zlib, 15),
            output: vec![0; KEEP.min(size_max(max_message_size))],
            needed_at: None,
            was_needed: false,
        }
    }

    /// Returns what a payload decodes to. Takes no memory beyond `max_message_size`, however much
    /// it expands to.
    pub(crate) fn decode(&mut self, payload: &[u8]) -> Result<Payload<'_>, DecodeError> {
        let len = match self.format {
            Format::Gzip => self.gunzip(payload)?,
            Format::Zlib | Format::Deflate => {
                let (len, rest) = self.inflate(payload, 0)?;
                if !rest.is_empty() {
                    return Err(DecodeError::Undecodable(Fault::Trailing));
                }
                len
            }
        };
        self.was_needed |= len > KEEP;
        let decoded = &self.output[..len];
        if !self.is_text {
            return Ok(Payload::Binary(decoded));
        }
        let text = simdutf8::basic::from_utf8(decoded);
        text.map(Payload::Text).map_err(|_| DecodeError::Undecodable(Fault::InvalidText))
    }

    /// Inflates the members of a gzip file (RFC 1952 section 2.2) one behind the other. Returns the
    /// length of all.
    fn gunzip(&mut self, payload: &[u8]) -> Result<usize, DecodeError> {
        let (mut start, mut member) = (0, payload);
        loop {
            let body = gzip_body(member).map_err(DecodeError::Undecodable)?;
            let (end, rest) = self.inflate(body, start)?;
            let mut crc = Crc::new();
            crc.update(&self.output[start..end]);
            let (trailer, rest) =
                rest.split_first_chunk::<8>().ok_or(DecodeError::Undecodable(Fault::Incomplete))?;
            if trailer[..4] != crc.sum().to_le_bytes() || trailer[4..] != crc.amount().to_le_bytes()
            {
                return Err(DecodeError::Undecodable(Fault::BadChecksum));
            }
            if rest.is_empty() {
                return Ok(end);
            }
            if !rest.starts_with(&GZIP_ID) {
                return Err(DecodeError::Undecodable(Fault::Trailing));
            }
            (start, member) = (end, rest);
        }
    }

    /// Inflates one stream to `output[start..]`. Returns where it ends there, and what follows it
    /// in `input`.
    fn inflate<'i>(
        &mut self,
        input: &'i [u8],
        start: usize,
    ) -> Result<(usize, &'i [u8]), DecodeError> {
        self.engine.reset(self.format == Format::Zlib);
        let (mut rest, mut end) = (input, start);
        loop {
            if end == self.output.len() {
                self.grow();
            }
            let status = self
                .engine
                .decompress(rest, &mut self.output[end..], InflateFlush::NoFlush)
                .map_err(|_| DecodeError::Undecodable(Fault::Corrupt))?;
            rest = &input[self.engine.total_in() as usize..];
            end = start + self.engine.total_out() as usize;
            if end > self.max_message_size {
                return Err(DecodeError::TooLong);
            }
            if status == Status::StreamEnd {
                return Ok((end, rest));
            }
            if end < self.output.len() {
                // Room left over means that the engine has given all it has.
                return Err(DecodeError::Undecodable(Fault::Incomplete));
            }
        }
    }

    fn grow(&mut self) {
        let len = self.output.len();
        let size = len.saturating_mul(2).min(size_max(self.max_message_size));
        self.output.reserve_exact(size - len);
        self.output.resize(size, 0);
    }

    /// Shrinks a buffer whose size was not needed for a while.
    pub(crate) fn settle(&mut self, now: Instant) {
        if std::mem::take(&mut self.was_needed) {
            self.needed_at = Some(now);
        }
        let is_quiet = self.needed_at.is_none_or(|at| now.saturating_duration_since(at) >= QUIET);
        if is_quiet && self.output.len() > KEEP {
            self.output.truncate(KEEP);
            self.output.shrink_to_fit();
        }
    }

    /// The memory that its buffer takes.
    #[cfg(any(test, all(feature = "_internals", unix)))]
    pub(crate) fn held(&self) -> usize {
        self.output.capacity()
    }
}

/// The size of the largest buffer: one byte more than the limit shows that a message is too long.
fn size_max(max_message_size: usize) -> usize {
    max_message_size.saturating_add(1)
}

/// Returns what follows the header of a gzip member (RFC 1952 section 2.3).
fn gzip_body(member: &[u8]) -> Result<&[u8], Fault> {
    if !member.starts_with(&GZIP_ID) {
        return Err(if GZIP_ID.starts_with(member) { Fault::Incomplete } else { Fault::NotGzip });
    }
    let (header, mut rest) = member.split_first_chunk::<10>().ok_or(Fault::Incomplete)?;
    let (method, flags) = (header[2], header[3]);
    if method != GZIP_DEFLATE || flags & RESERVED != 0 {
        return Err(Fault::BadHeader);
    }
    if flags & EXTRA != 0 {
        let (len, extra) = rest.split_first_chunk::<2>().ok_or(Fault::Incomplete)?;
        rest = extra.get(usize::from(u16::from_le_bytes(*len))..).ok_or(Fault::Incomplete)?;
    }
    for field in [NAME, COMMENT] {
        if flags & field != 0 {
            let end = rest.iter().position(|byte| *byte == 0).ok_or(Fault::Incomplete)?;
            rest = &rest[end + 1..];
        }
    }
    if flags & HEADER_CRC != 0 {
        let (expected, body) = rest.split_first_chunk::<2>().ok_or(Fault::Incomplete)?;
        let mut crc = Crc::new();
        crc.update(&member[..member.len() - rest.len()]);
        if u16::from_le_bytes(*expected) != crc.sum() as u16 {
            return Err(Fault::BadHeader);
        }
        rest = body;
    }
    Ok(rest)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use flate2::{Compression, GzBuilder};
    use rand::RngExt;

    use super::*;
    use crate::property;

    const FORMATS: [Format; 3] = [Format::Gzip, Format::Zlib, Format::Deflate];

    fn encoded(format: Format, content: &[u8]) -> Vec<u8> {
        let (out, level) = (Vec::new(), Compression::new(6));
        let encoded = match format {
            Format::Gzip => {
                let mut encoder = GzEncoder::new(out, level);
                encoder.write_all(content).and_then(|()| encoder.finish())
            }
            Format::Zlib => {
                let mut encoder = ZlibEncoder::new(out, level);
                encoder.write_all(content).and_then(|()| encoder.finish())
            }
            Format::Deflate => {
                let mut encoder = DeflateEncoder::new(out, level);
                encoder.write_all(content).and_then(|()| encoder.finish())
            }
        };
        encoded.expect("memory takes all of it")
    }

    fn decoder(format: Format) -> Decoder {
        Decoder::new(format, false, 100_000)
    }

    fn fault(decoder: &mut Decoder, payload: &[u8]) -> Option<Fault> {
        match decoder.decode(payload) {
            Err(DecodeError::Undecodable(fault)) => Some(fault),
            _ => None,
        }
    }

    #[test]
    fn what_was_encoded_is_decoded_message_after_message() {
        let contents = ["", "a", r#"{"ping":1492420473027}"#, &"long ".repeat(19_999), "grüße €"];
        for format in FORMATS {
            let (mut binary, mut text) = (decoder(format), Decoder::new(format, true, usize::MAX));
            for content in contents.iter().cycle().take(3 * contents.len()) {
                let payload = encoded(format, content.as_bytes());
                assert_eq!(binary.decode(&payload), Ok(Payload::Binary(content.as_bytes())));
                assert_eq!(text.decode(&payload), Ok(Payload::Text(content)));
            }
        }
    }

    #[test]
    fn a_payload_that_is_cut_anywhere_is_refused_and_the_next_is_decoded() {
        let content: Vec<u8> =
            (0..700u32).flat_map(|number| (number * number).to_string().into_bytes()).collect();
        for format in FORMATS {
            let mut decoder = decoder(format);
            let whole = encoded(format, &content);
            for len in 0..whole.len() {
                assert_eq!(
                    fault(&mut decoder, &whole[..len]),
                    Some(Fault::Incomplete),
                    "{format:?} {len}"
                );
            }
            assert_eq!(decoder.decode(&whole), Ok(Payload::Binary(&content)));
        }
    }

    #[test]
    fn what_follows_the_end_is_refused() {
        for format in FORMATS {
            let mut decoder = decoder(format);
            for trailing in [&[0][..], &[0; 8], &[0x8b], b"anything at all"] {
                let payload = [&encoded(format, b"content")[..], trailing].concat();
                assert_eq!(fault(&mut decoder, &payload), Some(Fault::Trailing), "{format:?}");
            }
        }
    }

    #[test]
    fn several_members_are_one_message_as_far_as_they_are_whole() {
        let parts = ["one ", "", "two ", "three"];
        let members = parts.map(|part| encoded(Format::Gzip, part.as_bytes()));
        let payload = members.concat();
        let mut decoder = decoder(Format::Gzip);
        assert_eq!(decoder.decode(&payload), Ok(Payload::Binary(b"one two three")));
        let mut ends: Vec<usize> = Vec::new();
        for member in &members {
            ends.push(ends.last().unwrap_or(&0) + member.len());
        }
        for len in 0..payload.len() {
            // One byte behind a member may be the first of the next, or anything else.
            let is_trailing = len > 0 && ends.contains(&(len - 1));
            let expected = match ends.contains(&len) {
                true => None,
                false if is_trailing => Some(Fault::Trailing),
                false => Some(Fault::Incomplete),
            };
            assert_eq!(fault(&mut decoder, &payload[..len]), expected, "{len}");
        }
    }

    #[test]
    fn a_bomb_costs_no_more_than_the_limit() {
        for format in FORMATS {
            let bomb = encoded(format, &vec![0; 10 << 20]);
            for limit in [1, KEEP - 1, KEEP, KEEP + 1, 100_000] {
                let mut decoder = Decoder::new(format, false, limit);
                assert_eq!(decoder.decode(&bomb), Err(DecodeError::TooLong));
                assert!(decoder.held() <= limit + 1, "{} of {limit}", decoder.held());
            }
        }
        // Each member fits.
        let half = encoded(Format::Gzip, &[0; 50_001]);
        let bomb = half.repeat(2);
        assert_eq!(decoder(Format::Gzip).decode(&bomb), Err(DecodeError::TooLong));
    }

    #[test]
    fn a_message_of_exactly_the_limit_is_decoded() {
        for format in FORMATS {
            for len in [1, KEEP - 1, KEEP, KEEP + 1, 2 * KEEP, 200_000] {
                let content = vec![7; len];
                let payload = encoded(format, &content);
                let mut decoder = Decoder::new(format, false, len);
                assert_eq!(decoder.decode(&payload), Ok(Payload::Binary(&content)));
                let mut decoder = Decoder::new(format, false, len - 1);
                assert_eq!(decoder.decode(&payload), Err(DecodeError::TooLong));
            }
        }
    }

    #[test]
    fn the_optional_fields_of_a_gzip_header_are_skipped() {
        let encode = |builder: GzBuilder| {
            let mut encoder = builder.write(Vec::new(), Compression::fast());
            encoder.write_all(b"content").and_then(|()| encoder.finish()).expect("memory takes it")
        };
        let builder = || GzBuilder::new().mtime(7).operating_system(3);
        let mut decoder = decoder(Format::Gzip);
        for payload in [
            encode(builder().extra(*b"extra")),
            encode(builder().filename(*b"name")),
            encode(builder().comment(*b"comment")),
            encode(builder().extra(*b"\0\0").filename(*b"name").comment(*b"comment")),
        ] {
            assert_eq!(decoder.decode(&payload), Ok(Payload::Binary(b"content")));
            for len in 0..payload.len() {
                assert_eq!(fault(&mut decoder, &payload[..len]), Some(Fault::Incomplete));
            }
        }
    }

    #[test]
    fn the_checksum_of_a_gzip_header_is_checked_where_it_has_one() {
        let plain = encoded(Format::Gzip, b"content");
        let (header, body) = plain.split_at(10);
        let mut header = header.to_vec();
        header[3] |= HEADER_CRC;
        let mut crc = Crc::new();
        crc.update(&header);
        let with = |sum: u16| [&header[..], &sum.to_le_bytes(), body].concat();
        let mut decoder = decoder(Format::Gzip);
        let sum = crc.sum() as u16;
        assert_eq!(decoder.decode(&with(sum)), Ok(Payload::Binary(b"content")));
        assert_eq!(fault(&mut decoder, &with(sum ^ 1)), Some(Fault::BadHeader));
        assert_eq!(fault(&mut decoder, &with(sum)[..11]), Some(Fault::Incomplete));
    }

    #[test]
    fn what_is_no_gzip_or_has_a_wrong_header_or_checksum_is_refused() {
        let good = encoded(Format::Gzip, b"content");
        let with = |index: usize, byte: u8| {
            let mut payload = good.clone();
            payload[index] = byte;
            payload
        };
        let mut decoder = decoder(Format::Gzip);
        let last = good.len() - 1;
        for (payload, expected) in [
            (with(0, b'{'), Fault::NotGzip),
            (with(1, b'{'), Fault::NotGzip),
            (br#"{"ping":1}"#.to_vec(), Fault::NotGzip),
            (with(2, 7), Fault::BadHeader),
            (with(3, 1 << 5), Fault::BadHeader),
            (with(3, 1 << 6), Fault::BadHeader),
            (with(3, 1 << 7), Fault::BadHeader),
            (with(last, 1), Fault::BadChecksum),
            (with(last - 4, !good[last - 4]), Fault::BadChecksum),
        ] {
            assert_eq!(fault(&mut decoder, &payload), Some(expected));
        }
        // It says that it is text, which changes nothing.
        assert_eq!(decoder.decode(&with(3, 1)), Ok(Payload::Binary(b"content")));
    }

    #[test]
    fn a_byte_that_was_changed_on_the_way_is_noticed() {
        let content = br#"{"ch":"market.btcusdt.bbo","tick":{"ask":64123.5,"bid":64123.4}}"#;
        for format in [Format::Gzip, Format::Zlib] {
            let mut decoder = decoder(format);
            let payload = encoded(format, content);
            for index in 0..payload.len() {
                for bit in 0..8 {
                    let mut changed = payload.clone();
                    changed[index] ^= 1 << bit;
                    let decoded = decoder.decode(&changed);
                    // The time, the system and the level are told to nobody.
                    let is_same = decoded == Ok(Payload::Binary(content));
                    assert!(is_same || decoded.is_err(), "{format:?}, bit {bit} of byte {index}");
                }
            }
        }
    }

    #[test]
    fn text_has_to_be_utf8_and_binary_does_not() {
        for format in FORMATS {
            let payload = encoded(format, b"\xff");
            assert_eq!(decoder(format).decode(&payload), Ok(Payload::Binary(b"\xff")));
            let mut text = Decoder::new(format, true, 100);
            assert_eq!(fault(&mut text, &payload), Some(Fault::InvalidText));
        }
    }

    #[test]
    fn zlib_that_asks_for_a_dictionary_is_refused() {
        // FDICT is set, and the dictionary's checksum follows (RFC 1950 section 2.2).
        let payload = [0x78, 0xbb, 0, 0, 0, 1, 3, 0, 0, 0, 0, 1];
        assert_eq!(fault(&mut decoder(Format::Zlib), &payload), Some(Fault::Corrupt));
    }

    #[test]
    fn the_buffer_stays_while_it_is_needed_and_shrinks_after_a_quiet_while() {
        let now = Instant::now();
        let after = |quiet: Duration| now + Duration::from_secs(1) + quiet;
        let (short, long) = ([0; 100], [0; 90_000]);
        let mut decoder = decoder(Format::Gzip);
        assert!(decoder.decode(&encoded(Format::Gzip, &long)).is_ok());
        let held = decoder.held();
        assert!((90_000..=100_001).contains(&held));
        decoder.settle(now);
        assert!(decoder.decode(&encoded(Format::Gzip, &long)).is_ok());
        decoder.settle(after(Duration::ZERO));
        assert!(decoder.decode(&encoded(Format::Gzip, &short)).is_ok());
        decoder.settle(after(QUIET - Duration::from_millis(1)));
        assert_eq!(decoder.held(), held);
        decoder.settle(after(QUIET));
        assert_eq!(decoder.held(), KEEP);
        assert!(decoder.decode(&encoded(Format::Gzip, &long)).is_ok());
    }

    #[test]
    fn any_bytes_at_all_cause_an_error_at_most() {
        property::check(1000, |rng| {
            let format = FORMATS[rng.random_range(0..3)];
            let mut bytes = property::bytes(rng, 0..300);
            let as_header: bool = rng.random();
            if as_header && bytes.len() > 10 {
                bytes[..4].copy_from_slice(match format {
                    Format::Gzip => &[0x1f, 0x8b, 8, 0],
                    Format::Zlib => &[0x78, 0x9c, 0x4b, 0x04],
                    Format::Deflate => &[0x4b, 0x4c, 0x4a, 0x06],
                });
            }
            let mut decoder = Decoder::new(format, true, 1000);
            let _ = decoder.decode(&bytes);
            assert!(decoder.held() <= 1001);
            let payload = encoded(format, b"good");
            assert_eq!(decoder.decode(&payload), Ok(Payload::Text("good")));
        });
    }
}
