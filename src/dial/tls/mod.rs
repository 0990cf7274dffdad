//! TLS: its settings, the connectors that are made of them, and its handshake, over buffers in
//! memory so that it never blocks.

mod connectors;
mod handshake;
#[cfg(feature = "native-tls")]
mod native;
#[cfg(feature = "rustls")]
mod rustls;

use std::fmt;

use crate::config::tls_engine::TlsEngine;
use crate::connection::tls_connection::{TlsBuffers, TlsConnection};
use crate::dial::pin::Pin;
use crate::error::Error;

pub(super) use connectors::Connectors;
pub(super) use handshake::unread_alert;

/// The TLS settings of a client: the roots that it trusts and the certificate that it presents.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct TlsOptions {
    pub(crate) engine: TlsEngine,
    pub(crate) extra_roots: Vec<Vec<u8>>,
    pub(crate) only_extra_roots: bool,
    identity: Option<IdentitySource>,
    /// As the program gave them.
    pub(crate) pins: Vec<String>,
    pub(crate) danger_allow_old_tls: bool,
    pub(crate) danger_accept_invalid_certificates: bool,
    pub(crate) danger_accept_invalid_hostnames: bool,
}

/// A client certificate and its key, as the program gave them.
#[derive(Clone, PartialEq, Eq)]
enum IdentitySource {
    Pem { certificate: Vec<u8>, key: Vec<u8> },
    Pkcs12 { archive: Vec<u8>, password: String },
}

impl fmt::Debug for TlsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsOptions")
            .field("extra_roots", &self.extra_roots.len())
            .finish_non_exhaustive()
    }
}

impl TlsOptions {
    pub(crate) fn set_identity_pem(&mut self, certificate: Vec<u8>, key: Vec<u8>) {
        self.identity = Some(IdentitySource::Pem { certificate, key });
    }

    pub(crate) fn set_identity_pkcs12(&mut self, archive: Vec<u8>, password: String) {
        self.identity = Some(IdentitySource::Pkcs12 { archive, password });
    }

    /// Checks the certificates, the key and the pins. It reads none of the system's roots.
    ///
    /// # Errors
    /// `Config`.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        self.pins()?;
        if let Some(IdentitySource::Pem { key, .. }) = &self.identity {
            // OpenSSL would ask for the password on the terminal.
            if contains(key, b"BEGIN ENCRYPTED ") || contains(key, b"Proc-Type: 4,ENCRYPTED") {
                return Err(Error::config(
                    "the key of the client certificate is encrypted: give it decrypted",
                ));
            }
        }
        match self.engine {
            #[cfg(feature = "native-tls")]
            TlsEngine::NativeTls => native::validate(self),
            #[cfg(feature = "rustls")]
            TlsEngine::Rustls => rustls::validate(self),
        }
    }

    fn pins(&self) -> Result<Vec<Pin>, Error> {
        self.pins.iter().map(|pin| Pin::parse(pin)).collect()
    }

    /// The settings for an HTTPS proxy: the same roots, and nothing that is meant for the server.
    pub(crate) fn for_proxy(&self) -> Self {
        TlsOptions {
            engine: self.engine,
            extra_roots: self.extra_roots.clone(),
            only_extra_roots: self.only_extra_roots,
            ..TlsOptions::default()
        }
    }

    fn connector(&self) -> Result<Box<dyn Connector>, Error> {
        match self.engine {
            #[cfg(feature = "native-tls")]
            TlsEngine::NativeTls => native::connector(self),
            #[cfg(feature = "rustls")]
            TlsEngine::Rustls => rustls::connector(self),
        }
    }
}

/// Begins handshakes, with the roots and the client certificate that it was made with.
trait Connector: Send + Sync {
    /// Begins a handshake with `host`, whose certificate is checked for that name.
    fn begin(&self, host: &str, buffers: TlsBuffers) -> Result<Progress, BoxError>;
}

/// A handshake that is under way.
trait Handshake {
    fn buffers(&mut self) -> &mut TlsBuffers;

    /// Goes on with what the buffers have.
    fn advance(self: Box<Self>) -> Result<Progress, BoxError>;
}

/// The progress of a handshake. There may be output to send.
enum Progress {
    Done(TlsConnection),
    /// More has to come.
    Waiting(Box<dyn Handshake>),
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The beginning of a PEM block (RFC 7468 section 2).
const BEGIN: &[u8] = b"-----BEGIN ";

fn is_pem(bytes: &[u8]) -> bool {
    contains(bytes, BEGIN)
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    position(bytes, what).is_some()
}

/// Returns the bytes from the first `what` on, or all of them if there is none.
fn starting_with<'b>(bytes: &'b [u8], what: &[u8]) -> &'b [u8] {
    &bytes[position(bytes, what).unwrap_or_default()..]
}

fn position(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

// Of the engines on these platforms only rustls compares the two.
#[cfg(any(feature = "rustls", not(any(target_os = "windows", target_vendor = "apple"))))]
fn not_a_pair() -> Error {
    Error::config(
        "the client certificate and its key do not belong together: \
         the first certificate has to be that of the key",
    )
}
