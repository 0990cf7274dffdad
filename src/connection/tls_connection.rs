//! The platform's TLS engine, which reads from memory and writes to memory.

use std::io::{self, ErrorKind, Read, Write};

use native_tls::TlsStream;

use crate::connection::tls_buffers::{OuterTls, TlsBuffers};

/// An engine whose handshake is done.
pub(crate) struct TlsConnection {
    stream: TlsStream<TlsBuffers>,
}

impl TlsConnection {
    pub(crate) fn new(stream: TlsStream<TlsBuffers>) -> Self {
        TlsConnection { stream }
    }

    /// Returns the stream to call, after [`clear_error_queue`]. It must not be kept while code of
    /// the program's may run on this thread.
    pub(crate) fn enter(&mut self) -> &mut TlsStream<TlsBuffers> {
        clear_error_queue();
        &mut self.stream
    }

    /// Returns the certificate of the peer, in DER.
    pub(crate) fn peer_certificate(&self) -> Option<Vec<u8>> {
        self.stream.peer_certificate().ok()??.to_der().ok()
    }

    pub(crate) fn get_mut(&mut self) -> &mut TlsBuffers {
        self.stream.get_mut()
    }
}

/// The most plaintext of a record, for which there is always room.
const RECORD_MAX: usize = 16 * 1024;

impl OuterTls for TlsConnection {
    fn decrypt(
        &mut self,
        cipher: &mut Vec<u8>,
        filled: usize,
        plain: &mut Vec<u8>,
    ) -> io::Result<bool> {
        self.get_mut().feed(cipher, filled);
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

    fn encrypt(&mut self, plain: &[u8]) -> io::Result<()> {
        self.enter().write_all(plain).map_err(|error| match error.kind() {
            // The engine within cannot wait for the one around it.
            ErrorKind::WouldBlock => io::Error::other("the proxy renegotiates TLS"),
            _ => error,
        })
    }

    fn close(&mut self) {
        // The answer is of no interest, as that of the engine within.
        let _ = self.enter().shutdown();
    }

    fn buffers(&mut self) -> &mut TlsBuffers {
        self.get_mut()
    }
}

/// Empties OpenSSL's error queue of this thread, which takes 24 ns.
///
/// OpenSSL judges each call that has no result by this queue. An error that other code has left
/// there, such as a handler that parsed a bad certificate, would end the connection.
pub(crate) fn clear_error_queue() {
    #[cfg(not(any(target_os = "windows", target_vendor = "apple")))]
    drop(openssl::error::ErrorStack::get());
}
