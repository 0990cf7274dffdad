//! The work that is timed and counted.

use std::hint::black_box;
use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use tautline::internals::parts::{
    Decoding, Delivering, Reading, Writing, heads, is_text, stream, text,
};
use zlib_rs::{Inflate, InflateFlush, Status};

/// The number of messages in a piece of work: a thousand, or as many as fit in a few MiB.
pub fn count(size: usize) -> usize {
    (4 << 20).min(1000 * size) / size
}

/// The sizes of messages.
pub const SIZES: [usize; 3] = [200, 2048, 65_536];

/// Returns a connection that has received the messages of a piece of work, and delivers them to a
/// handler, or to it through a session.
pub fn delivering(size: usize, has_session: bool) -> Delivering {
    let frames = stream(size, count(size), false);
    match has_session {
        true => Delivering::through_session(&frames),
        false => Delivering::to_handler(&frames),
    }
}

/// The number of messages that come apart: as many as the kernel has room for.
const APART: usize = 100;

/// Returns a connection on which each message comes by a `recv` of its own.
pub fn delivering_apart(size: usize) -> Delivering {
    let frames: Vec<Vec<u8>> = (0..APART).map(|_| stream(size, 1, false)).collect();
    let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
    Delivering::apart(&frames)
}

/// Everything that one piece needs, made before it is measured.
pub struct Work {
    frames: Vec<u8>,
    reading: Reading,
    writing: Writing,
    texts: Vec<String>,
}

impl Work {
    /// Messages of `size` bytes.
    pub fn new(size: usize, is_compressed: bool) -> Self {
        let frames = stream(size, count(size), is_compressed);
        let reading = Reading::new(&frames, is_compressed);
        let texts = (0..count(size)).map(|number| text(size, number)).collect();
        Work { frames, reading, writing: Writing::new(), texts }
    }

    /// Parses the heads of frames.
    pub fn heads(&self) -> usize {
        heads(black_box(&self.frames))
    }

    /// From bytes that have been received to messages, the check of the text included. Once.
    pub fn read(&mut self) -> usize {
        black_box(self.reading.read())
    }

    /// From messages to masked frames.
    pub fn write(&mut self) -> usize {
        self.texts.iter().map(|text| self.writing.write(black_box(text.as_bytes()))).sum()
    }

    /// The check of the text alone.
    pub fn check_text(&self) -> usize {
        self.texts.iter().filter(|text| is_text(black_box(text.as_bytes()))).count()
    }
}

/// A thousand messages of 1 KiB that are compressed by gzip inside their frames.
pub struct DecodeWork {
    payloads: Vec<Vec<u8>>,
    decoding: Decoding,
    engine: Inflate,
    output: Vec<u8>,
}

/// The size of the buffer for what is inflated.
const OUTPUT: usize = 64 * 1024;

/// The header and the trailer of the members, which have no optional fields.
const GZIP_HEADER: usize = 10;
const GZIP_TRAILER: usize = 8;

impl DecodeWork {
    /// The messages, compressed at level 6.
    #[allow(clippy::new_without_default, reason = "it is work")]
    pub fn new() -> Self {
        let payloads = (0..1000).map(|number| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
            let encoded = encoder.write_all(book(number).as_bytes());
            encoded.and_then(|()| encoder.finish()).expect("memory takes all of it")
        });
        DecodeWork {
            payloads: payloads.collect(),
            decoding: Decoding::new(),
            engine: Inflate::new(false, 15),
            output: vec![0; OUTPUT],
        }
    }

    /// As the client decodes them.
    pub fn decode(&mut self) -> usize {
        self.payloads.iter().map(|payload| self.decoding.decode(black_box(payload))).sum()
    }

    /// Nothing but the engine, with one buffer for all: no look at the header, no checksum.
    pub fn inflate(&mut self) -> usize {
        let mut total = 0;
        for payload in &self.payloads {
            let body = &payload[GZIP_HEADER..payload.len() - GZIP_TRAILER];
            self.engine.reset(false);
            let status =
                self.engine.decompress(black_box(body), &mut self.output, InflateFlush::NoFlush);
            assert_eq!(status, Ok(Status::StreamEnd));
            total += self.engine.total_out() as usize;
        }
        total
    }

    /// With a decoder of flate2's and a vector for each message, as most programs do it.
    pub fn decoder_each(&mut self) -> usize {
        self.payloads.iter().map(|payload| gunzip(&mut Vec::new(), payload)).sum()
    }

    /// With a decoder of flate2's for each message, and one vector for all.
    pub fn decoder_each_into_one_vector(&mut self) -> usize {
        let mut total = 0;
        for payload in &self.payloads {
            self.output.clear();
            total += gunzip(&mut self.output, payload);
        }
        // As long as it was, for the others.
        self.output.resize(OUTPUT, 0);
        total
    }
}

fn gunzip(output: &mut Vec<u8>, payload: &[u8]) -> usize {
    let mut decoder = GzDecoder::new(black_box(payload));
    decoder.read_to_end(black_box(output)).expect("it is whole")
}

/// Returns an update of a book: the first 1 KiB of JSON of which little repeats but the names.
fn book(number: usize) -> String {
    let mut state = number as u64 + 1;
    let mut random = move |below: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut text = format!(
        "{{\"ch\":\"market.btcusdt.mbp.20\",\"ts\":{},\"tick\":{{\"bids\":[",
        1_732_000_000_000 + random(1_000_000)
    );
    while text.len() < 1024 {
        let (price, size) = (6_012_345 + random(5000), random(100_000_000));
        let level = format!("[{}.{:02},0.{size:08}],", price / 100, price % 100);
        text.push_str(&level);
    }
    text.truncate(1024);
    text
}
