//! The platform's TLS engine, which reads from memory and writes to memory.

use native_tls::TlsStream;

use crate::connection::tls_buffers::TlsBuffers;

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

    pub(crate) fn get_mut(&mut self) -> &mut TlsBuffers {
        self.stream.get_mut()
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
