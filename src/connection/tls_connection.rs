//! A TLS connection behind its handshake, and the buffers in memory that it reads from and writes
//! to in place of a socket.

use std::io::{self, ErrorKind, Read, Write};
use std::ops::Range;

/// A TLS connection whose handshake is done.
pub(crate) struct TlsConnection {
    stream: Box<dyn TlsStream>,
}

/// The stream of a TLS library over [`TlsBuffers`]. Reading returns `WouldBlock` where the buffers
/// have too little.
pub(crate) trait TlsStream: Read + Write + Send {
    /// Is called before reading, writing and the shutdown, wherever code of the program's may have
    /// run on this thread since the last call.
    fn enter(&mut self) {}

    fn buffers(&mut self) -> &mut TlsBuffers;

    /// Writes a close_notify.
    fn shutdown(&mut self) -> io::Result<()>;

    /// Returns the certificate of the peer, in DER.
    fn peer_certificate(&self) -> Option<Vec<u8>>;
}

/// The most plaintext that fits in one TLS record (RFC 8446 section 5.1).
pub(super) const RECORD_MAX: usize = 16 * 1024;

impl TlsConnection {
    pub(crate) fn new(stream: impl TlsStream + 'static) -> Self {
        TlsConnection { stream: Box::new(stream) }
    }

    /// Returns the stream to call. It must not be kept while code of the program's may run on this
    /// thread.
    pub(crate) fn enter(&mut self) -> &mut dyn TlsStream {
        self.stream.enter();
        &mut *self.stream
    }

    pub(crate) fn buffers(&mut self) -> &mut TlsBuffers {
        self.stream.buffers()
    }

    pub(crate) fn peer_certificate(&self) -> Option<Vec<u8>> {
        self.stream.peer_certificate()
    }

    /// Decrypts the first `filled` bytes of `cipher` behind `plain`. Returns `true` at the end of
    /// TLS.
    pub(crate) fn decrypt(
        &mut self,
        cipher: &mut Vec<u8>,
        filled: usize,
        plain: &mut Vec<u8>,
    ) -> io::Result<bool> {
        self.buffers().feed(cipher, filled);
        let stream = self.enter();
        let mut end = plain.len();
        let result = loop {
            // There is always room for a record.
            if plain.len() - end < RECORD_MAX {
                plain.resize(end + filled + RECORD_MAX, 0);
            }
            match stream.read(&mut plain[end..]) {
                Ok(0) => break Ok(true),
                Ok(count) => end += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(false),
                Err(error) => break Err(error),
            }
        };
        plain.truncate(end);
        result
    }
}

/// Ciphertext in both directions. Reading from an empty inbox returns `WouldBlock`, and the end of
/// the stream only if the outer TLS has ended. The outbox accepts everything: the engine never
/// blocks.
#[derive(Default)]
pub(crate) struct TlsBuffers {
    /// The TLS connection that this one runs in: the one to an HTTPS proxy. It is not called from
    /// inside the library, because OpenSSL has one queue of errors for both.
    outer: Option<TlsConnection>,
    /// The outer TLS has ended, or failed. The engine is told once it has read what came before.
    outer_end: Option<io::Result<()>>,
    /// Ciphertext from the peer. The engine has not read `inbox[start..end]` yet.
    inbox: Vec<u8>,
    start: usize,
    end: usize,
    /// Ciphertext for the peer. Its size is limited by whoever calls the engine.
    outbox: Vec<u8>,
}

impl TlsBuffers {
    /// The buffers of an engine for a tunnel, whose peer has sent `received` already. They are
    /// plaintext of `outer` if there is one.
    pub(crate) fn in_tunnel(outer: Option<TlsConnection>, received: Vec<u8>) -> Self {
        let end = received.len();
        TlsBuffers { outer, inbox: received, end, ..TlsBuffers::default() }
    }

    /// Gives the engine the first `filled` bytes of `cipher`.
    ///
    /// If the inbox is empty, the two buffers are swapped and nothing is copied. The caller gets
    /// back a buffer whose length may differ, but which is never empty.
    pub(crate) fn feed(&mut self, cipher: &mut Vec<u8>, filled: usize) {
        if let Some(outer) = &mut self.outer {
            if self.outer_end.is_some() {
                return;
            }
            cut(&mut self.inbox, self.start..self.end);
            let decrypted = outer.decrypt(cipher, filled, &mut self.inbox);
            (self.start, self.end) = (0, self.inbox.len());
            self.outer_end = match decrypted {
                Ok(false) => None,
                Ok(true) => Some(Ok(())),
                Err(error) => Some(Err(error)),
            };
        } else if self.start == self.end {
            std::mem::swap(&mut self.inbox, cipher);
            if cipher.is_empty() {
                cipher.resize(self.inbox.len(), 0);
            }
            (self.start, self.end) = (0, filled);
        } else {
            // The engine rarely stops before it has read everything, so a copy is fine.
            cut(&mut self.inbox, self.start..self.end);
            self.inbox.extend_from_slice(&cipher[..filled]);
            (self.start, self.end) = (0, self.inbox.len());
        }
    }

    /// Reduces an empty inbox that a burst has grown to `size` bytes.
    pub(crate) fn shrink(&mut self, size: usize) {
        if self.start == self.end && self.inbox.capacity() > size {
            self.inbox = vec![0; size];
            (self.start, self.end) = (0, 0);
        }
        if let Some(outer) = &mut self.outer {
            outer.buffers().shrink(size);
        }
    }

    /// Returns the number of bytes that have been written and not taken.
    #[cfg(feature = "rustls")]
    pub(crate) fn outbox_len(&self) -> usize {
        self.outbox.len()
    }

    /// Returns a byte that has been written and not taken.
    #[cfg(feature = "rustls")]
    pub(crate) fn outbox_byte(&self, at: usize) -> Option<u8> {
        self.outbox.get(at).copied()
    }

    /// Returns the number of bytes of the output.
    ///
    /// # Errors
    /// The outer TLS has failed.
    pub(crate) fn output_len(&mut self) -> io::Result<usize> {
        match self.encrypted()? {
            None => Ok(self.outbox.len()),
            Some(outer) => outer.buffers().output_len(),
        }
    }

    /// Appends the whole output to `into`.
    ///
    /// # Errors
    /// The outer TLS has failed.
    pub(crate) fn take_output(&mut self, into: &mut Vec<u8>) -> io::Result<()> {
        if let Some(outer) = self.encrypted()? {
            return outer.buffers().take_output(into);
        }
        if into.is_empty() {
            std::mem::swap(&mut self.outbox, into);
        } else {
            into.append(&mut self.outbox);
        }
        Ok(())
    }

    /// Ends the outer TLS, if there is one, behind the output.
    ///
    /// # Errors
    /// The outer TLS has failed.
    pub(crate) fn close_outer(&mut self) -> io::Result<()> {
        if let Some(outer) = self.encrypted()? {
            // The answer is of no interest, as that of the connection within.
            let _ = outer.enter().shutdown();
        }
        Ok(())
    }

    /// Moves the outbox through the outer TLS, and returns that.
    fn encrypted(&mut self) -> io::Result<Option<&mut TlsConnection>> {
        let Some(outer) = &mut self.outer else { return Ok(None) };
        if !self.outbox.is_empty() {
            let written = outer.enter().write_all(&self.outbox);
            written.map_err(|error| match error.kind() {
                // The connection within cannot wait for the one around it.
                ErrorKind::WouldBlock => io::Error::other("the proxy renegotiates TLS"),
                _ => error,
            })?;
            self.outbox.clear();
        }
        Ok(Some(outer))
    }
}

/// Cuts a buffer to what is in a range of it.
fn cut(buffer: &mut Vec<u8>, range: Range<usize>) {
    buffer.truncate(range.end);
    buffer.drain(..range.start);
}

impl Read for TlsBuffers {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end {
            return match &mut self.outer_end {
                None => Err(ErrorKind::WouldBlock.into()),
                // It is told once: the end follows.
                Some(end) => std::mem::replace(end, Ok(())).map(|()| 0),
            };
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

    fn read(buffers: &mut TlsBuffers, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let count = buffers.read(&mut bytes).expect("there is something");
        bytes.truncate(count);
        bytes
    }

    #[test]
    fn bytes_are_read_in_order_and_an_empty_inbox_would_block() {
        let mut buffers = TlsBuffers::default();
        let mut buffer = b"abcdef".to_vec();
        buffers.feed(&mut buffer, 4);
        assert!(!buffer.is_empty());
        assert_eq!(read(&mut buffers, 3), b"abc");
        buffer[..2].copy_from_slice(b"xy");
        buffers.feed(&mut buffer, 2);
        assert_eq!(read(&mut buffers, 9), b"dxy");
        let end = buffers.read(&mut [0; 1]).expect_err("nothing is left");
        assert_eq!(end.kind(), ErrorKind::WouldBlock);
    }

    #[test]
    fn a_burst_leaves_nothing_behind() {
        let mut buffers = TlsBuffers::default();
        buffers.feed(&mut vec![7; 1000], 100);
        buffers.shrink(10);
        assert_eq!(read(&mut buffers, 100), [7; 100]);
        buffers.shrink(10);
        assert_eq!(buffers.inbox.len(), 10);
        assert_eq!(
            buffers.read(&mut [0; 1]).expect_err("nothing is left").kind(),
            ErrorKind::WouldBlock
        );
    }

    #[test]
    fn output_is_taken_whole_and_in_order() {
        let mut buffers = TlsBuffers::default();
        buffers.write_all(b"one").expect("it takes everything");
        let mut taken = b"zero".to_vec();
        buffers.take_output(&mut taken).expect("there is no outer TLS");
        assert_eq!(taken, b"zeroone");
        assert_eq!(buffers.output_len().ok(), Some(0));
    }
}
