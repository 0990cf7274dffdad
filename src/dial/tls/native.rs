//! The platform's own TLS: OpenSSL, SChannel or Security.framework, by native-tls.

use std::io;

use native_tls::{Certificate, HandshakeError, Identity, MidHandshakeTlsStream, Protocol};
use native_tls::{TlsConnector, TlsStream};

use crate::connection::tls_connection::{self, TlsBuffers, TlsConnection};
use crate::dial::tls::{
    BoxError, Connector, Handshake, IdentitySource, Progress, TlsOptions, is_pem, starting_with,
};
use crate::error::{Error, ErrorKind};

/// Checks the certificates and the key.
///
/// # Errors
/// `Config`.
pub(super) fn validate(options: &TlsOptions) -> Result<(), Error> {
    roots(options)?;
    identity(options)?;
    Ok(())
}

/// Makes a connector, which reads the roots of the system.
pub(super) fn connector(options: &TlsOptions) -> Result<Box<dyn Connector>, Error> {
    let mut builder = TlsConnector::builder();
    let oldest = if options.danger_allow_old_tls { Protocol::Tlsv10 } else { Protocol::Tlsv12 };
    builder.min_protocol_version(Some(oldest));
    for root in roots(options)? {
        builder.add_root_certificate(root);
    }
    if let Some(identity) = identity(options)? {
        builder.identity(identity);
    }
    builder
        .disable_built_in_roots(options.only_extra_roots)
        .danger_accept_invalid_certs(options.danger_accept_invalid_certificates)
        .danger_accept_invalid_hostnames(options.danger_accept_invalid_hostnames)
        .build()
        .map(|connector| Box::new(connector) as Box<dyn Connector>)
        .map_err(|error| Error::caused(ErrorKind::Tls, "preparing TLS", error))
}

fn roots(options: &TlsOptions) -> Result<Vec<Certificate>, Error> {
    let mut roots = Vec::new();
    for bytes in &options.extra_roots {
        let parsed = match is_pem(bytes) {
            true => Certificate::stack_from_pem(bytes),
            false => Certificate::from_der(bytes).map(|certificate| vec![certificate]),
        };
        let parsed = parsed.map_err(|error| {
            Error::caused(
                ErrorKind::Config,
                "a root certificate that is neither PEM nor DER",
                error,
            )
        })?;
        if parsed.is_empty() {
            return Err(Error::config("a root certificate file without a certificate in it"));
        }
        roots.extend(parsed);
    }
    Ok(roots)
}

fn identity(options: &TlsOptions) -> Result<Option<Identity>, Error> {
    let parsed = match &options.identity {
        None => return Ok(None),
        Some(IdentitySource::Pem { certificate, key }) => {
            // native-tls accepts nothing before the key, but `openssl pkcs12 -nodes` writes "Bag
            // Attributes" there, and text outside of the PEM blocks has no meaning (RFC 7468
            // section 2).
            let key = starting_with(key, b"-----BEGIN PRIVATE KEY-----");
            check_pair(certificate, key)?;
            Identity::from_pkcs8(certificate, key)
        }
        Some(IdentitySource::Pkcs12 { archive, password }) => {
            Identity::from_pkcs12(archive, password)
        }
    };
    parsed.map(Some).map_err(|error| Error::caused(ErrorKind::Config, BAD_IDENTITY, error))
}

const BAD_IDENTITY: &str =
    "the client certificate: it has to be PEM with a PKCS#8 key, or PKCS#12 with its password";

/// Checks that the key belongs to the first certificate.
///
/// OpenSSL itself refuses a wrong key of the same algorithm only when a connector is made. If the
/// algorithms differ, it presents no certificate and reports no error.
#[cfg(not(any(target_os = "windows", target_vendor = "apple")))]
fn check_pair(certificate: &[u8], key: &[u8]) -> Result<(), Error> {
    use openssl::error::ErrorStack;
    use openssl::pkey::PKey;
    use openssl::x509::X509;

    let is_pair = || -> Result<bool, ErrorStack> {
        let key = PKey::private_key_from_pem(key)?;
        let Some(first) = X509::stack_from_pem(certificate)?.into_iter().next() else {
            // native-tls reports that there is no certificate.
            return Ok(true);
        };
        Ok(first.public_key()?.public_eq(&key))
    };
    match is_pair() {
        Ok(true) => Ok(()),
        Ok(false) => Err(super::not_a_pair()),
        Err(error) => Err(Error::caused(ErrorKind::Config, BAD_IDENTITY, error)),
    }
}

/// The other platforms have no call that compares the two.
#[cfg(any(target_os = "windows", target_vendor = "apple"))]
fn check_pair(_certificate: &[u8], _key: &[u8]) -> Result<(), Error> {
    Ok(())
}

impl Connector for TlsConnector {
    fn begin(&self, host: &str, buffers: TlsBuffers) -> Result<Progress, BoxError> {
        clear_error_queue();
        progress(self.connect(host, buffers))
    }
}

impl Handshake for MidHandshakeTlsStream<TlsBuffers> {
    fn buffers(&mut self) -> &mut TlsBuffers {
        self.get_mut()
    }

    fn advance(self: Box<Self>) -> Result<Progress, BoxError> {
        clear_error_queue();
        progress((*self).handshake())
    }
}

fn progress(
    result: Result<TlsStream<TlsBuffers>, HandshakeError<TlsBuffers>>,
) -> Result<Progress, BoxError> {
    match result {
        Ok(stream) => Ok(Progress::Done(TlsConnection::new(stream))),
        Err(HandshakeError::WouldBlock(waiting)) => Ok(Progress::Waiting(Box::new(waiting))),
        Err(HandshakeError::Failure(error)) => Err(error.into()),
    }
}

impl tls_connection::TlsStream for TlsStream<TlsBuffers> {
    fn enter(&mut self) {
        clear_error_queue();
    }

    fn buffers(&mut self) -> &mut TlsBuffers {
        self.get_mut()
    }

    fn shutdown(&mut self) -> io::Result<()> {
        self.shutdown()
    }

    fn peer_certificate(&self) -> Option<Vec<u8>> {
        self.peer_certificate().ok()??.to_der().ok()
    }
}

/// Empties OpenSSL's error queue of this thread, which takes 24 ns.
///
/// OpenSSL judges each call that has no result by this queue. An error that other code has left
/// there, such as a handler that parsed a bad certificate, would end the connection.
fn clear_error_queue() {
    #[cfg(not(any(target_os = "windows", target_vendor = "apple")))]
    drop(openssl::error::ErrorStack::get());
}
