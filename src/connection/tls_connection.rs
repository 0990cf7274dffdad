//! A TLS connection behind its handshake, which reads from memory and writes to memory.

use std::io::{self, ErrorKind, Read, Write};

use crate::connection::tls_buffers::TlsBuffers;

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

/// The most plaintext of a record, for which there is always room.
const RECORD_MAX: usize = 16 * 1024;

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
