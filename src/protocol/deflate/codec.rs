//! The compressor and the decompressor (RFC 7692 section 7.2).

use flate2::{Compress, Compression, FlushCompress};
use zlib_rs::{Inflate, InflateFlush, Status};

use super::config::DeflateParams;

/// The end of every compressed message, which is left out on the wire (RFC 7692 section 7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// The number of bytes that are inflated at a time.
const INFLATE_STEP: usize = 8 * 1024;

/// The number of bytes by which the output of the compressor grows, at most.
const DEFLATE_STEP: usize = 16 * 1024;

/// Inflates the messages that the server has compressed.
pub(crate) struct Inflater {
    engine: Inflate,
    context_takeover: bool,
    /// The engine has begun a block, or is between two blocks of a DEFLATE stream, with bytes of
    /// the current message in it. False behind a final block.
    is_inside_stream: bool,
    /// Receives the output. The engine writes to initialized memory only, and clearing the spare
    /// capacity of every message would cost more than copying.
    output: Box<[u8; INFLATE_STEP]>,
}

/// The reason why a message could not be inflated.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum InflateError {
    TooLong,
    Corrupt,
}

/// The result of one call of the engine.
struct Step {
    consumed: usize,
    produced: usize,
    is_stream_end: bool,
}

impl Inflater {
    pub(super) fn new(params: &DeflateParams) -> Self {
        // A window of 9 bits inflates what was deflated with 8, which zlib cannot be asked for.
        let bits = params.server_max_window_bits.max(9);
        Inflater {
            engine: Inflate::new(false, bits),
            context_takeover: params.server_context_takeover,
            is_inside_stream: false,
            output: Box::new([0; INFLATE_STEP]),
        }
    }

    /// Inflates a piece of a message and appends the result to `out`. Takes no memory beyond
    /// `limit`, however much the piece expands to.
    pub(crate) fn inflate(
        &mut self,
        mut input: &[u8],
        out: &mut Vec<u8>,
        limit: usize,
    ) -> Result<(), InflateError> {
        if input.is_empty() {
            return Ok(());
        }
        loop {
            // One byte more than the limit shows that the message is too long.
            let room = INFLATE_STEP.min(limit.saturating_add(1) - out.len());
            let step = self.step(input, room, InflateFlush::SyncFlush)?;
            append(out, &self.output[..step.produced], limit);
            if out.len() > limit {
                return Err(InflateError::TooLong);
            }
            self.is_inside_stream = true;
            input = &input[step.consumed..];
            if step.is_stream_end {
                // RFC 7692 section 7.2.3.4: what follows a final block is a new stream.
                self.engine.reset(false);
                self.is_inside_stream = false;
                if input.is_empty() {
                    return Ok(());
                }
            } else if step.produced < room {
                // Room left over means that the engine has given all it has.
                if input.is_empty() {
                    return Ok(());
                }
                if step.consumed == 0 && step.produced == 0 {
                    return Err(InflateError::Corrupt);
                }
            }
        }
    }

    /// Ends a message. One that stops inside a block is corrupt.
    pub(crate) fn finish(&mut self) -> Result<(), InflateError> {
        // The tail belongs neither behind a final block nor behind an empty payload, which some
        // peers send for an empty message: there it would be taken for the start of a block.
        if !std::mem::take(&mut self.is_inside_stream) {
            return Ok(());
        }
        // In a whole message the tail completes an empty stored block: it has no output, and the
        // engine stops at the end of that block, in front of one byte more.
        let [first, second, third, fourth] = TAIL;
        let input = [first, second, third, fourth, 0];
        let step = self.step(&input, INFLATE_STEP, InflateFlush::Block)?;
        if step.consumed != TAIL.len() || step.produced > 0 || step.is_stream_end {
            return Err(InflateError::Corrupt);
        }
        if !self.context_takeover {
            self.engine.reset(false);
        }
        Ok(())
    }

    fn step(
        &mut self,
        input: &[u8],
        room: usize,
        flush: InflateFlush,
    ) -> Result<Step, InflateError> {
        let (total_in, total_out) = (self.engine.total_in(), self.engine.total_out());
        let status = self
            .engine
            .decompress(input, &mut self.output[..room], flush)
            .map_err(|_| InflateError::Corrupt)?;
        Ok(Step {
            consumed: (self.engine.total_in() - total_in) as usize,
            produced: (self.engine.total_out() - total_out) as usize,
            is_stream_end: status == Status::StreamEnd,
        })
    }
}

/// Appends `bytes` to `out`, whose capacity doubles but does not exceed `limit` by more than the
/// one byte that shows that a message is too long.
fn append(out: &mut Vec<u8>, bytes: &[u8], limit: usize) {
    let needed = out.len() + bytes.len();
    if needed > out.capacity() {
        let size = (2 * out.capacity()).clamp(needed, limit.saturating_add(1).max(needed));
        out.reserve_exact(size - out.len());
    }
    out.extend_from_slice(bytes);
}

/// Compresses the messages that we send.
pub(crate) struct Deflater {
    /// `None` where the server asked for a window of 8 bits, which zlib cannot make. RFC 7692
    /// section 6 allows uncompressed messages at any time.
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

    /// Returns whether a message is long enough to be compressed.
    pub(crate) fn compresses(&self, payload: &[u8]) -> bool {
        payload.len() >= self.threshold
    }

    /// Returns whether a message may refer to those before it.
    pub(crate) fn takes_over(&self) -> bool {
        self.takes_over && self.engine.is_some()
    }

    /// Compresses a message into the empty `out`. Returns `false` when the message is to be sent
    /// uncompressed.
    pub(crate) fn compress(&mut self, payload: &[u8], out: &mut Vec<u8>) -> bool {
        if !self.compresses(payload) {
            return false;
        }
        let Some(engine) = &mut self.engine else { return false };
        if payload.is_empty() {
            // RFC 7692 section 7.2.3.6: the header of an empty block. zlib flushes nothing when it
            // has no new input, and the tail that the peer appends would not be a block by itself.
            out.push(0);
            return true;
        }
        let mut input = payload;
        loop {
            if out.capacity() - out.len() < 64 {
                out.reserve(DEFLATE_STEP.min(payload.len() / 2 + 64));
            }
            let before = engine.total_in();
            let Ok(_) = engine.compress_vec(input, out, FlushCompress::Sync) else {
                // zlib refuses nothing but misuse, which leaves the window in an unknown state.
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
                    inflater.finish().expect("it is whole");
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
                        inflater.finish().expect("it inflates");
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
            inflater.finish().expect("it inflates");
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
        assert!(out.capacity() <= 100_001, "{}", out.capacity());
    }

    #[test]
    fn a_message_of_exactly_the_limit_is_taken() {
        for len in [INFLATE_STEP - 1, INFLATE_STEP, INFLATE_STEP + 1, 100_000] {
            let (mut inflater, mut deflater) = params(15, 15, false).engines();
            let mut compressed = Vec::new();
            assert!(deflater.compress(&vec![7; len], &mut compressed));
            let mut out = Vec::new();
            inflater.inflate(&compressed, &mut out, len).expect("it fits");
            inflater.finish().expect("it fits");
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

    /// Inflates the body of one message, fed `step` bytes at a time.
    fn inflated(inflater: &mut Inflater, body: &[u8], step: usize) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        for piece in body.chunks(step) {
            inflater.inflate(piece, &mut out, 100_000).ok()?;
        }
        inflater.finish().ok()?;
        Some(out)
    }

    #[test]
    fn messages_that_end_in_a_final_block_follow_one_another() {
        // Without the extra octet of RFC 7692 section 7.2.3.4, and with it.
        let without = [0x0b, 0x4f, 0xcd, 0x49, 0xce, 0xcf, 0x4d, 0x05, 0x00];
        let with = [&without[..], &[0x00]].concat();
        for takes_over in [true, false] {
            for step in [1, 2, 100] {
                let (mut inflater, mut deflater) = params(15, 15, takes_over).engines();
                for body in [&without[..], &without, &with, &without, &[], &with] {
                    let expected: &[u8] = if body.is_empty() { b"" } else { b"Welcome" };
                    assert_eq!(inflated(&mut inflater, body, step).as_deref(), Some(expected));
                }
                let mut ordinary = Vec::new();
                assert!(deflater.compress(b"ordinary", &mut ordinary));
                let out = inflated(&mut inflater, &ordinary, step);
                assert_eq!(out.as_deref(), Some(&b"ordinary"[..]));
            }
        }
    }

    #[test]
    fn a_message_that_is_cut_anywhere_is_corrupt() {
        let text: Vec<u8> =
            (0..3000u32).flat_map(|n| (n * n % 977).to_string().into_bytes()).collect();
        let random: Vec<u8> =
            (0..700u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        // Dynamic, fixed and stored blocks. The first byte of a stored block is an empty message by
        // itself (RFC 7692 section 7.2.3.6), so that cut cannot be seen.
        let cases = [
            (&text[..], 6, 1),
            (b"a fixed, short block, short", 6, 1),
            (&random, 6, 1),
            (&text[..300], 0, 2),
        ];
        for (message, level, shortest) in cases {
            for takes_over in [true, false] {
                let params = DeflateParams { level, ..params(15, 15, takes_over) };
                let (_, mut deflater) = params.engines();
                let (mut first, mut second) = (Vec::new(), Vec::new());
                assert!(deflater.compress(b"what went before it", &mut first));
                assert!(deflater.compress(message, &mut second));
                for len in shortest..second.len() {
                    let (mut inflater, _) = params.engines();
                    assert!(inflated(&mut inflater, &first, 100).is_some());
                    let cut = inflated(&mut inflater, &second[..len], 1000);
                    assert_eq!(cut, None, "{len} of {} bytes", second.len());
                }
            }
        }
    }

    #[test]
    fn the_memory_of_an_inflated_message_doubles_up_to_one_byte_more_than_the_limit() {
        let mut out = Vec::new();
        for (count, capacity) in [(10, 10), (1, 20), (9, 20), (11, 40), (20, 80), (30, 101)] {
            append(&mut out, &vec![7; count], 100);
            assert_eq!(out.capacity(), capacity);
        }
        assert_eq!(out, [7; 81]);
    }

    #[test]
    fn a_message_refers_to_others_only_with_takeover_and_an_engine() {
        for (bits, takes_over, expected) in
            [(15, true, true), (15, false, false), (8, true, false), (9, true, true)]
        {
            let (_, deflater) = params(bits, 15, takes_over).engines();
            assert_eq!(deflater.takes_over(), expected, "{bits} bits, {takes_over}");
        }
    }

    #[test]
    fn the_memory_of_a_compressed_message_grows_by_half_its_length_and_16_kib_at_most() {
        for (len, before, after) in [(1000, 0, 564), (1000, 64, 64), (100_000, 0, 16_384)] {
            let (_, mut deflater) = params(15, 15, true).engines();
            let mut out = Vec::with_capacity(before);
            assert!(deflater.compress(&vec![7; len], &mut out));
            assert!(out.len() < 200);
            assert_eq!(out.capacity(), after, "{len} bytes into {before}");
        }
    }
}
