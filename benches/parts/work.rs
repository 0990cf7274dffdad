//! The work that is timed and counted.

use std::hint::black_box;

use tautline::internals::parts::{Reading, Writing, heads, is_text, stream, text};

/// The number of messages in a piece of work: a thousand, or as many as fit in a few MiB.
pub fn count(size: usize) -> usize {
    (4 << 20).min(1000 * size) / size
}

/// The sizes of messages.
pub const SIZES: [usize; 3] = [200, 2048, 65_536];

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
