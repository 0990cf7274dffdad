//! permessage-deflate (RFC 7692): what is offered, what was agreed on, and the two engines.

use std::fmt::Write as _;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// The end of every compressed message, which is left out on the wire (RFC 7692 section 7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// How much is inflated or deflated at a time.
const STEP: usize = 16 * 1024;

/// Settings of permessage-deflate (RFC 7692), for [`Builder::compress`](crate::Builder::compress).
///
/// Compression saves bandwidth and costs time and memory. Measured for each connection, and for as
/// long as it is open: the inflating engine takes 47 KiB whatever its window, the deflating one 371
/// KiB with a window of 15 bits, 259 KiB with 12 and 245 KiB with 9. That is the same with context
/// takeover (the window lives on from message to message) and without (the engines start anew, and
/// keep their memory): going without it makes compression worse, and saves memory only at the
/// server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deflate {
    client_no_context_takeover: bool,
    server_no_context_takeover: bool,
    client_max_window_bits: u8,
    server_max_window_bits: Option<u8>,
    threshold: usize,
    level: u32,
}

impl Default for Deflate {
    fn default() -> Self {
        Deflate {
            client_no_context_takeover: false,
            server_no_context_takeover: false,
            client_max_window_bits: 15,
            server_max_window_bits: None,
            threshold: 128,
            level: 6,
        }
    }
}

impl Deflate {
    /// Context takeover both ways, 15-bit windows, messages of 128 bytes and more compressed at
    /// level 6.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts each message that we send with an empty window: worse compression. Defaults to off.
    pub fn client_no_context_takeover(mut self) -> Self {
        self.client_no_context_takeover = true;
        self
    }

    /// Asks the server to start each of its messages with an empty window. Defaults to off.
    pub fn server_no_context_takeover(mut self) -> Self {
        self.server_no_context_takeover = true;
        self
    }

    /// The largest window of our engine, in bits, 9 to 15. Defaults to 15. The server may ask for
    /// less.
    ///
    /// # Panics
    /// If `bits` is outside 9 to 15.
    pub fn client_max_window_bits(mut self, bits: u8) -> Self {
        assert!((9..=15).contains(&bits), "a window of {bits} bits: 9 to 15 are possible");
        self.client_max_window_bits = bits;
        self
    }

    /// Asks the server for a window of at most so many bits, 8 to 15. Defaults to not asking, which
    /// means 15.
    ///
    /// # Panics
    /// If `bits` is outside 8 to 15.
    pub fn server_max_window_bits(mut self, bits: u8) -> Self {
        assert!((8..=15).contains(&bits), "a window of {bits} bits: 8 to 15 are possible");
        self.server_max_window_bits = Some(bits);
        self
    }

    /// Messages shorter than this go uncompressed. Defaults to 128 bytes.
    pub fn threshold(mut self, bytes: usize) -> Self {
        self.threshold = bytes;
        self
    }

    /// How hard to compress: 0 (not at all) and 1 (fast) to 9. Defaults to 6.
    ///
    /// # Panics
    /// If `level` is above 9.
    pub fn level(mut self, level: u32) -> Self {
        assert!(level <= 9, "a level of {level}: 0 to 9 are possible");
        self.level = level;
        self
    }

    /// The value of `Sec-WebSocket-Extensions` in the request.
    pub(crate) fn offer(&self) -> String {
        let mut offer = "permessage-deflate".to_owned();
        if self.client_no_context_takeover {
            offer.push_str("; client_no_context_takeover");
        }
        if self.server_no_context_takeover {
            offer.push_str("; server_no_context_takeover");
        }
        if let Some(bits) = self.server_max_window_bits {
            // Writing to a String cannot fail.
            let _ = write!(offer, "; server_max_window_bits={bits}");
        }
        // Without this the server may not ask for a smaller window of ours (RFC 7692 section
        // 7.1.2.2).
        match self.client_max_window_bits {
            15 => offer.push_str("; client_max_window_bits"),
            bits => drop(write!(offer, "; client_max_window_bits={bits}")),
        }
        offer
    }

    /// Judges the server's answer (RFC 7692 section 7.1). `Ok(None)`: it declined.
    pub(crate) fn accept(&self, answers: &[String]) -> Result<Option<Agreed>, String> {
        let joined = answers.join(",");
        let mut extensions =
            split_outside_quotes(&joined, ',').filter(|extension| !extension.is_empty());
        let Some(extension) = extensions.next() else { return Ok(None) };
        if extensions.next().is_some() {
            return Err("more than one extension, and one was offered".to_owned());
        }
        let mut parts = split_outside_quotes(extension, ';');
        let name = parts.next().unwrap_or_default();
        if !name.eq_ignore_ascii_case("permessage-deflate") {
            return Err("an extension that was not offered".to_owned());
        }
        let mut answer = DeflateResponse::default();
        for part in parts {
            answer.take(part)?;
        }
        self.agree(&answer).map(Some)
    }

    fn agree(&self, answer: &DeflateResponse) -> Result<Agreed, String> {
        // Section 7.1.1.1: a server that accepts the offer has to accept this part of it.
        if self.server_no_context_takeover && !answer.server_no_context_takeover {
            return Err("server_no_context_takeover was asked for and is missing".to_owned());
        }
        let server_bits = match (self.server_max_window_bits, answer.server_max_window_bits) {
            (Some(asked), None) => {
                return Err(format!("server_max_window_bits={asked} was asked for and is missing"));
            }
            (Some(asked), Some(given)) if given > asked => {
                return Err(format!(
                    "server_max_window_bits={given}, and at most {asked} was asked for"
                ));
            }
            (_, given) => given.unwrap_or(15),
        };
        let client_bits = match answer.client_max_window_bits {
            Some(given) => given.min(self.client_max_window_bits),
            None => self.client_max_window_bits,
        };
        Ok(Agreed {
            client_takes_over: !(answer.client_no_context_takeover
                || self.client_no_context_takeover),
            server_takes_over: !answer.server_no_context_takeover,
            client_bits,
            server_bits,
            threshold: self.threshold,
            level: self.level,
        })
    }
}

/// The parameters of an answer, each at most once.
#[derive(Default)]
struct DeflateResponse {
    client_no_context_takeover: bool,
    server_no_context_takeover: bool,
    client_max_window_bits: Option<u8>,
    server_max_window_bits: Option<u8>,
}

impl DeflateResponse {
    fn take(&mut self, part: &str) -> Result<(), String> {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name.trim(), Some(unquoted(value.trim()))),
            None => (part.trim(), None),
        };
        let flag = |flag: &mut bool| match value {
            Some(_) => Err(format!("{name} with a value")),
            None if std::mem::replace(flag, true) => Err(format!("{name} twice")),
            None => Ok(()),
        };
        let window = |bits: &mut Option<u8>| {
            let given = value
                .and_then(window_bits)
                .ok_or_else(|| format!("{name} without a window of 8 to 15 bits"))?;
            if bits.replace(given).is_some() { Err(format!("{name} twice")) } else { Ok(()) }
        };
        match name.to_ascii_lowercase().as_str() {
            "client_no_context_takeover" => flag(&mut self.client_no_context_takeover),
            "server_no_context_takeover" => flag(&mut self.server_no_context_takeover),
            "client_max_window_bits" => window(&mut self.client_max_window_bits),
            "server_max_window_bits" => window(&mut self.server_max_window_bits),
            // What the server made up is not repeated: it is its own text.
            _ => Err("a parameter that does not exist".to_owned()),
        }
    }
}

/// RFC 7692 section 7.1.2: a decimal integer without leading zeros, from 8 to 15.
fn window_bits(value: &str) -> Option<u8> {
    match value {
        "8" | "9" | "10" | "11" | "12" | "13" | "14" | "15" => value.parse().ok(),
        _ => None,
    }
}

/// A value may be a token or a quoted string that would be a token without its quotes (RFC 6455
/// section 9.1).
fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value)
}

fn split_outside_quotes(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    text.split(move |letter: char| {
        if letter == '"' {
            is_quoted = !is_quoted;
        }
        letter == separator && !is_quoted
    })
    .map(str::trim)
}

/// What client and server agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreed {
    client_takes_over: bool,
    server_takes_over: bool,
    client_bits: u8,
    server_bits: u8,
    threshold: usize,
    level: u32,
}

impl Agreed {
    /// The engines for what comes and what goes.
    pub(crate) fn engines(&self) -> (Inflater, Deflater) {
        (Inflater::new(self), Deflater::new(self))
    }
}

/// Inflates what the server has compressed.
pub(crate) struct Inflater {
    engine: Decompress,
    takes_over: bool,
    /// Something of the message at hand has come.
    has_begun: bool,
}

/// Why a message could not be inflated.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum InflateError {
    TooLong,
    Corrupt,
}

impl Inflater {
    fn new(agreed: &Agreed) -> Self {
        // A window of 9 bits inflates what was deflated with 8, which zlib cannot be asked for.
        let bits = agreed.server_bits.max(9);
        Inflater {
            engine: Decompress::new_with_window_bits(false, bits),
            takes_over: agreed.server_takes_over,
            has_begun: false,
        }
    }

    /// Inflates a piece of a message behind what `out` holds of it. Takes no memory beyond `limit`,
    /// whatever the piece claims to be.
    pub(crate) fn inflate(
        &mut self,
        mut input: &[u8],
        out: &mut Vec<u8>,
        limit: usize,
    ) -> Result<(), InflateError> {
        self.has_begun |= !input.is_empty();
        loop {
            // One byte more than the limit: that it is written to is the proof that the message is
            // too long.
            let room = STEP.min(limit.saturating_add(1) - out.len());
            if out.capacity() - out.len() < room {
                let size = (2 * out.capacity())
                    .clamp(out.len() + room, limit.saturating_add(1).max(out.len() + room));
                out.reserve_exact(size - out.len());
            }
            let (before_in, before_out) = (self.engine.total_in(), out.len());
            let status = self
                .engine
                .decompress_vec(input, out, FlushDecompress::Sync)
                .map_err(|_| InflateError::Corrupt)?;
            if out.len() > limit {
                return Err(InflateError::TooLong);
            }
            let consumed = (self.engine.total_in() - before_in) as usize;
            input = &input[consumed..];
            match status {
                // RFC 7692 section 7.2.3.4: a final block ends the stream, and what follows is a
                // new one.
                Status::StreamEnd => {
                    self.engine.reset(false);
                    if input.is_empty() {
                        return Ok(());
                    }
                }
                Status::Ok | Status::BufError => {
                    let is_stuck = consumed == 0 && out.len() == before_out;
                    // Room left over means that the engine has given all it has.
                    if input.is_empty() && (is_stuck || out.len() < out.capacity()) {
                        return Ok(());
                    }
                    if is_stuck && out.len() < out.capacity() {
                        return Err(InflateError::Corrupt);
                    }
                }
            }
        }
    }

    /// The end of a message.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>, limit: usize) -> Result<(), InflateError> {
        // A peer that sends nothing for an empty message is understood: the tail behind nothing
        // would be taken for the head of a long block.
        if !std::mem::take(&mut self.has_begun) {
            return Ok(());
        }
        self.inflate(&TAIL, out, limit)?;
        self.has_begun = false;
        if !self.takes_over {
            self.engine.reset(false);
        }
        Ok(())
    }
}

/// Compresses what we send.
pub(crate) struct Deflater {
    /// `None` where the server asked for a window of 8 bits, which zlib cannot make: RFC 7692 lets
    /// us send uncompressed.
    engine: Option<Compress>,
    takes_over: bool,
    threshold: usize,
}

impl Deflater {
    fn new(agreed: &Agreed) -> Self {
        let level = Compression::new(agreed.level);
        let engine = (agreed.client_bits >= 9)
            .then(|| Compress::new_with_window_bits(level, false, agreed.client_bits));
        Deflater { engine, takes_over: agreed.client_takes_over, threshold: agreed.threshold }
    }

    /// Whether a message is long enough to be compressed.
    pub(crate) fn compresses(&self, payload: &[u8]) -> bool {
        payload.len() >= self.threshold
    }

    /// Whether a message may refer to those before it.
    pub(crate) fn takes_over(&self) -> bool {
        self.takes_over && self.engine.is_some()
    }

    /// Compresses a message into the empty `out`; `false` when it is to go as it is.
    pub(crate) fn compress(&mut self, payload: &[u8], out: &mut Vec<u8>) -> bool {
        if !self.compresses(payload) {
            return false;
        }
        let Some(engine) = &mut self.engine else { return false };
        if payload.is_empty() {
            // RFC 7692 section 7.2.3.6: the head of an empty block. zlib flushes nothing at all
            // when it has nothing new, and the tail that the peer puts behind nothing is no block.
            out.push(0);
            return true;
        }
        let mut input = payload;
        loop {
            if out.capacity() - out.len() < 64 {
                out.reserve(STEP.min(payload.len() / 2 + 64));
            }
            let before = engine.total_in();
            let Ok(_) = engine.compress_vec(input, out, FlushCompress::Sync) else {
                // zlib refuses nothing but misuse. The window is in an unknown state then.
                engine.reset();
                out.clear();
                return false;
            };
            input = &input[(engine.total_in() - before) as usize..];
            if input.is_empty() && out.len() < out.capacity() {
                break;
            }
        }
        // RFC 7692 section 7.2.1: the sync flush ends in the tail, which is left out.
        if out.ends_with(&TAIL) {
            out.truncate(out.len() - TAIL.len());
        }
        if !self.takes_over {
            engine.reset();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agreed(client_bits: u8, server_bits: u8, takes_over: bool) -> Agreed {
        Agreed {
            client_takes_over: takes_over,
            server_takes_over: takes_over,
            client_bits,
            server_bits,
            threshold: 0,
            level: 6,
        }
    }

    fn accept(deflate: &Deflate, answer: &str) -> Result<Option<Agreed>, String> {
        deflate.accept(&[answer.to_owned()])
    }

    #[test]
    fn empty_messages_may_stand_anywhere() {
        for takes_over in [true, false] {
            let (mut inflater, mut deflater) = agreed(15, 15, takes_over).engines();
            for text in ["", "", "first", "", "", "second", "first", "", ""] {
                let mut compressed = Vec::new();
                assert!(deflater.compress(text.as_bytes(), &mut compressed));
                assert!(!compressed.is_empty(), "RFC 7692 section 7.2.3.6");
                // Peers that leave out even that.
                let bodies = [&compressed[..], &[]];
                for body in &bodies[..1 + usize::from(text.is_empty())] {
                    let mut out = Vec::new();
                    inflater.inflate(body, &mut out, 100).expect("it is whole");
                    inflater.finish(&mut out, 100).expect("it is whole");
                    assert_eq!(out, text.as_bytes());
                }
            }
        }
    }

    #[test]
    fn offers_name_what_was_set() {
        assert_eq!(Deflate::default().offer(), "permessage-deflate; client_max_window_bits");
        let all = Deflate::new()
            .client_no_context_takeover()
            .server_no_context_takeover()
            .server_max_window_bits(10)
            .client_max_window_bits(12);
        assert_eq!(
            all.offer(),
            "permessage-deflate; client_no_context_takeover; server_no_context_takeover; server_max_window_bits=10; \
             client_max_window_bits=12"
        );
    }

    #[test]
    fn answers_within_the_offer_are_accepted() {
        let deflate = Deflate::default();
        assert_eq!(deflate.accept(&[]), Ok(None));
        let plain = accept(&deflate, "permessage-deflate").expect("legal").expect("accepted");
        assert_eq!((plain.client_bits, plain.server_bits, plain.client_takes_over), (15, 15, true));
        let full = accept(
            &deflate,
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover ; client_max_window_bits=\"9\"; \
             server_max_window_bits = 8",
        )
        .expect("legal")
        .expect("accepted");
        assert_eq!((full.client_bits, full.server_bits), (9, 8));
        assert!(!full.client_takes_over && !full.server_takes_over);
    }

    #[test]
    fn answers_beyond_the_offer_are_refused() {
        let deflate = Deflate::new().server_max_window_bits(10).server_no_context_takeover();
        let good = "permessage-deflate; server_no_context_takeover; server_max_window_bits=10";
        assert!(accept(&deflate, good).is_ok_and(|agreed| agreed.is_some()));
        for bad in [
            "permessage-deflate; server_no_context_takeover",
            "permessage-deflate; server_max_window_bits=10",
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=11",
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=7",
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=010",
            "permessage-deflate; server_no_context_takeover; server_max_window_bits",
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=10; server_max_window_bits=10",
            "permessage-deflate; server_no_context_takeover=1; server_max_window_bits=10",
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=10; client_max_window_bits",
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=10; x",
            "x-webkit-deflate-frame",
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=10, permessage-deflate",
        ] {
            assert!(accept(&deflate, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_deflated_inflates_with_every_window_and_takeover() {
        let messages: Vec<Vec<u8>> = [0usize, 1, 100, 5000, 100_000, 100_000]
            .iter()
            .map(|&len| (0..len).map(|index| ((index * index / 7) % 251) as u8).collect())
            .collect();
        for bits in 9..=15 {
            for takes_over in [true, false] {
                let (mut inflater, mut deflater) = agreed(bits, bits, takes_over).engines();
                for message in &messages {
                    let mut compressed = Vec::new();
                    assert!(deflater.compress(message, &mut compressed));
                    for step in [1, 1000, usize::MAX] {
                        if step != usize::MAX && takes_over {
                            continue;
                        }
                        let mut out = Vec::new();
                        for piece in compressed.chunks(step) {
                            inflater.inflate(piece, &mut out, 1 << 20).expect("it inflates");
                        }
                        inflater.finish(&mut out, 1 << 20).expect("it inflates");
                        assert!(out == *message, "{bits} bits, {} bytes", message.len());
                    }
                }
            }
        }
    }

    #[test]
    fn the_examples_of_the_rfc_inflate() {
        // RFC 7692 section 7.2.3: plain, by a shared window, without compression, with a final
        // block, in two blocks.
        let hello: &[&[u8]] = &[
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00],
            &[0xf2, 0x00, 0x11, 0x00, 0x00],
            &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
            &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00],
        ];
        let (mut inflater, _) = agreed(15, 15, true).engines();
        for compressed in hello {
            let mut out = Vec::new();
            inflater.inflate(compressed, &mut out, 100).expect("it inflates");
            inflater.finish(&mut out, 100).expect("it inflates");
            assert_eq!(out, b"Hello");
        }
    }

    #[test]
    fn a_bomb_costs_no_more_than_the_limit() {
        let (mut inflater, mut deflater) = agreed(15, 15, true).engines();
        let mut bomb = Vec::new();
        assert!(deflater.compress(&vec![0; 10 << 20], &mut bomb));
        let mut out = Vec::new();
        assert_eq!(inflater.inflate(&bomb, &mut out, 100_000), Err(InflateError::TooLong));
        assert!(out.capacity() <= 100_001 + STEP, "{}", out.capacity());
    }

    #[test]
    fn a_message_of_exactly_the_limit_is_taken() {
        for len in [STEP - 1, STEP, STEP + 1, 100_000] {
            let (mut inflater, mut deflater) = agreed(15, 15, false).engines();
            let mut compressed = Vec::new();
            assert!(deflater.compress(&vec![7; len], &mut compressed));
            let mut out = Vec::new();
            inflater.inflate(&compressed, &mut out, len).expect("it fits");
            inflater.finish(&mut out, len).expect("it fits");
            assert_eq!(out.len(), len);
        }
    }

    #[test]
    fn garbage_is_refused() {
        let (mut inflater, _) = agreed(15, 15, true).engines();
        assert_eq!(
            inflater.inflate(&[0xff; 100], &mut Vec::new(), 1000),
            Err(InflateError::Corrupt)
        );
    }

    #[test]
    fn short_messages_go_as_they_are() {
        let (_, mut deflater) = Agreed { threshold: 10, ..agreed(15, 15, true) }.engines();
        assert!(!deflater.compress(b"123456789", &mut Vec::new()));
        assert!(deflater.compress(b"1234567890", &mut Vec::new()));
        let (_, mut none) = agreed(8, 15, true).engines();
        assert!(!none.compress(&[0; 1000], &mut Vec::new()));
    }
}
