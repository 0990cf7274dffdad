//! The platform's TLS engine, which reads from memory and writes to memory.

use std::io::{self, ErrorKind, Read, Write};

use native_tls::TlsStream;

use crate::connection::tls_buffers::{OuterTls, TlsBuffers};

/// An engine whose handshake is done.
pub(crate) struct TlsEngine {
    stream: TlsStream<TlsBuffers>,
}

impl TlsEngine {
    pub(crate) fn new(stream: TlsStream<TlsBuffers>) -> Self {
        TlsEngine { stream }
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

/// The number of bytes that are decrypted at once for the engine within: a record.
const RECORD_MAX: usize = 16 * 1024;

impl OuterTls for TlsEngine {
    fn decrypt(
        &mut self,
        cipher: &mut Vec<u8>,
        filled: usize,
        plain: &mut Vec<u8>,
        output: &mut Vec<u8>,
    ) -> io::Result<()> {
        self.get_mut().feed(cipher, filled);
        let stream = self.enter();
        let result = loop {
            let start = plain.len();
            plain.resize(start + RECORD_MAX, 0);
            let read = stream.read(&mut plain[start..]);
            plain.truncate(start + read.as_ref().map_or(0, |count| *count));
            match read {
                // The end of TLS is followed by that of TCP, which counts.
                Ok(0) => break Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        stream.get_mut().take_output(output);
        result
    }

    fn encrypt(&mut self, plain: &[u8], output: &mut Vec<u8>) -> io::Result<()> {
        let stream = self.enter();
        stream.write_all(plain).map_err(|error| match error.kind() {
            // The engine within cannot wait for the one around it.
            ErrorKind::WouldBlock => io::Error::other("the proxy renegotiates TLS"),
            _ => error,
        })?;
        stream.get_mut().take_output(output);
        Ok(())
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
