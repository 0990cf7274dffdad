//! The choice between the libraries that do TLS.

#[cfg(not(any(feature = "native-tls", feature = "rustls")))]
compile_error!("TLS needs the feature `native-tls`, which is on by default, or `rustls`");

/// The library that does TLS; see [`Builder::tls_engine`](crate::Builder::tls_engine).
///
/// Defaults to [`NativeTls`](Self::NativeTls) where the feature `native-tls` is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsEngine {
    /// The platform's own TLS: OpenSSL, SChannel or Security.framework. With the feature
    /// `native-tls`, which is on by default.
    #[cfg(feature = "native-tls")]
    NativeTls,
    /// rustls, with the cryptography of ring: TLS 1.2 and 1.3. With the feature `rustls`.
    #[cfg(feature = "rustls")]
    Rustls,
}

impl Default for TlsEngine {
    fn default() -> Self {
        // The gate runs the tests with the other engine too, by `--cfg rustls_by_default`.
        #[cfg(all(feature = "native-tls", not(rustls_by_default)))]
        return TlsEngine::NativeTls;
        #[cfg(any(not(feature = "native-tls"), rustls_by_default))]
        return TlsEngine::Rustls;
    }
}
