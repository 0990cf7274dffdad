//! A socket in memory: what the TLS engine reads from and writes to instead of the real one.

use std::io::{self, ErrorKind, Read, Write};

/// Two byte buffers. An empty inbox answers `WouldBlock` and never the end, so that the engine
/// never waits; the outbox takes everything.
#[derive(Default)]
pub(crate) struct TlsBuffers {
    /// Ciphertext from the peer: `inbox[start..end]` has not been read by the engine.
    inbox: Vec<u8>,
    start: usize,
    end: usize,
    /// Ciphertext for the peer. Whoever makes the engine produce it takes it, or rings the heart.
    outbox: Vec<u8>,
}

impl TlsBuffers {
    /// Gives the engine the first `filled` bytes of `cipher`. Swaps buffers where it can: then
    /// nothing is copied, and the caller's buffer comes back as another one, perhaps of another
    /// length but never empty.
    pub(crate) fn feed(&mut self, cipher: &mut Vec<u8>, filled: usize) {
        if self.start == self.end {
            std::mem::swap(&mut self.inbox, cipher);
            if cipher.is_empty() {
                cipher.resize(self.inbox.len(), 0);
            }
            (self.start, self.end) = (0, filled);
        } else {
            // The engine stopped in the middle of what it had: rare, so a copy will do.
            self.inbox.truncate(self.end);
            self.inbox.drain(..self.start);
            self.inbox.extend_from_slice(&cipher[..filled]);
            (self.start, self.end) = (0, self.inbox.len());
        }
    }

    /// Gives back what a burst has made of an inbox that is empty now.
    pub(crate) fn shrink(&mut self, size: usize) {
        if self.start == self.end && self.inbox.len() > size {
            self.inbox = vec![0; size];
            (self.start, self.end) = (0, 0);
        }
    }

    /// How much output waits to be taken.
    pub(crate) fn output_len(&self) -> usize {
        self.outbox.len()
    }

    /// Moves all output behind what `into` holds.
    pub(crate) fn take_output(&mut self, into: &mut Vec<u8>) {
        if into.is_empty() {
            std::mem::swap(&mut self.outbox, into);
        } else {
            into.append(&mut self.outbox);
        }
    }
}

impl Read for TlsBuffers {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end {
            return Err(ErrorKind::WouldBlock.into());
        }
        let count = into.len().min(self.end - self.start);
        into[..count].copy_from_slice(&self.inbox[self.start..self.start + count]);
        self.start += count;
        Ok(count)
    }
}

impl Write for TlsBuffers {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.outbox.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pipe: &mut TlsBuffers, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let count = pipe.read(&mut bytes).expect("there is something");
        bytes.truncate(count);
        bytes
    }

    #[test]
    fn what_is_fed_is_read_in_order_and_emptiness_would_block() {
        let mut pipe = TlsBuffers::default();
        let mut buffer = b"abcdef".to_vec();
        pipe.feed(&mut buffer, 4);
        assert!(!buffer.is_empty());
        assert_eq!(read(&mut pipe, 3), b"abc");
        buffer[..2].copy_from_slice(b"xy");
        pipe.feed(&mut buffer, 2);
        assert_eq!(read(&mut pipe, 9), b"dxy");
        let end = pipe.read(&mut [0; 1]).expect_err("nothing is left");
        assert_eq!(end.kind(), ErrorKind::WouldBlock);
    }

    #[test]
    fn a_burst_leaves_nothing_behind() {
        let mut pipe = TlsBuffers::default();
        pipe.feed(&mut vec![7; 1000], 100);
        pipe.shrink(10);
        assert_eq!(read(&mut pipe, 100), [7; 100]);
        pipe.shrink(10);
        assert_eq!(pipe.inbox.len(), 10);
        assert_eq!(
            pipe.read(&mut [0; 1]).expect_err("nothing is left").kind(),
            ErrorKind::WouldBlock
        );
    }

    #[test]
    fn output_is_taken_whole_and_in_order() {
        let mut pipe = TlsBuffers::default();
        pipe.write_all(b"one").expect("it takes everything");
        let mut taken = b"zero".to_vec();
        pipe.take_output(&mut taken);
        assert_eq!(taken, b"zeroone");
        assert_eq!(pipe.output_len(), 0);
    }
}
