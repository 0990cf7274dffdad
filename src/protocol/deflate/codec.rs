//! The compressor and the decompressor (RFC 7692 section 7.2).

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::negotiate::DeflateParams;

/// The end of every compressed message, which is left out on the wire (RFC 7692 section 7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// How much is inflated or deflated at a time.
const STEP: usize = 16 * 1024;

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
    pub(super) fn new(params: &DeflateParams) -> Self {
        // A window of 9 bits inflates what was deflated with 8, which zlib cannot be asked for.
        let bits = params.server_max_window_bits.max(9);
        Inflater {
            engine: Decompress::new_with_window_bits(false, bits),
            takes_over: params.server_context_takeover,
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
    pub(super) fn new(params: &DeflateParams) -> Self {
        let level = Compression::new(params.level);
        let engine = (params.client_max_window_bits >= 9)
            .then(|| Compress::new_with_window_bits(level, false, params.client_max_window_bits));
        Deflater { engine, takes_over: params.client_context_takeover, threshold: params.threshold }
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

    fn params(
        client_max_window_bits: u8,
        server_max_window_bits: u8,
        takes_over: bool,
    ) -> DeflateParams {
        DeflateParams {
            client_context_takeover: takes_over,
            server_context_takeover: takes_over,
            client_max_window_bits,
            server_max_window_bits,
            threshold: 0,
            level: 6,
        }
    }

    #[test]
    fn empty_messages_may_stand_anywhere() {
        for takes_over in [true, false] {
            let (mut inflater, mut deflater) = params(15, 15, takes_over).engines();
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
    fn what_is_deflated_inflates_with_every_window_and_takeover() {
        let messages: Vec<Vec<u8>> = [0usize, 1, 100, 5000, 100_000, 100_000]
            .iter()
            .map(|&len| (0..len).map(|index| ((index * index / 7) % 251) as u8).collect())
            .collect();
        for bits in 9..=15 {
            for takes_over in [true, false] {
                let (mut inflater, mut deflater) = params(bits, bits, takes_over).engines();
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
        let (mut inflater, _) = params(15, 15, true).engines();
        for compressed in hello {
            let mut out = Vec::new();
            inflater.inflate(compressed, &mut out, 100).expect("it inflates");
            inflater.finish(&mut out, 100).expect("it inflates");
            assert_eq!(out, b"Hello");
        }
    }

    #[test]
    fn a_bomb_costs_no_more_than_the_limit() {
        let (mut inflater, mut deflater) = params(15, 15, true).engines();
        let mut bomb = Vec::new();
        assert!(deflater.compress(&vec![0; 10 << 20], &mut bomb));
        let mut out = Vec::new();
        assert_eq!(inflater.inflate(&bomb, &mut out, 100_000), Err(InflateError::TooLong));
        assert!(out.capacity() <= 100_001 + STEP, "{}", out.capacity());
    }

    #[test]
    fn a_message_of_exactly_the_limit_is_taken() {
        for len in [STEP - 1, STEP, STEP + 1, 100_000] {
            let (mut inflater, mut deflater) = params(15, 15, false).engines();
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
        let (mut inflater, _) = params(15, 15, true).engines();
        assert_eq!(
            inflater.inflate(&[0xff; 100], &mut Vec::new(), 1000),
            Err(InflateError::Corrupt)
        );
    }

    #[test]
    fn short_messages_go_as_they_are() {
        let (_, mut deflater) = DeflateParams { threshold: 10, ..params(15, 15, true) }.engines();
        assert!(!deflater.compress(b"123456789", &mut Vec::new()));
        assert!(deflater.compress(b"1234567890", &mut Vec::new()));
        let (_, mut none) = params(8, 15, true).engines();
        assert!(!none.compress(&[0; 1000], &mut Vec::new()));
    }
}
