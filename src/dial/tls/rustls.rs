//! TLS 1.2 and 1.3 by rustls, with the cryptography of ring.

use std::io::{self, ErrorKind as IoErrorKind, Read, Write};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore,
    SignatureScheme,
};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::time::Time;

use crate::connection::tls_connection::{TlsBuffers, TlsConnection, TlsStream};
use crate::dial::tls::{
    BEGIN, BoxError, Connector, Handshake, IdentitySource, Progress, TlsOptions, is_pem,
};
use crate::error::{Error, ErrorKind};

/// Checks the certificates and the key, and that rustls has what is asked for.
///
/// # Errors
/// `Config`.
pub(super) fn validate(options: &TlsOptions) -> Result<(), Error> {
    if options.danger_allow_old_tls {
        return Err(Error::config(
            "rustls has no TLS 1.0 and 1.1: call no danger_allow_old_tls, or choose the engine \
             NativeTls",
        ));
    }
    given_roots(options)?;
    identity(options)?;
    Ok(())
}

/// Makes a connector, which reads the roots of the system unless the given ones are all.
pub(super) fn connector(options: &TlsOptions) -> Result<Box<dyn Connector>, Error> {
    let given = given_roots(options)?;
    let mut roots = RootCertStore::empty();
    for certificate in &given {
        roots.add(certificate.clone()).map_err(bad_root)?;
    }
    if !options.only_extra_roots {
        let loaded = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(loaded.certs);
        if let (true, Some(error)) = (roots.is_empty(), loaded.errors.into_iter().next()) {
            let context = "reading the root certificates of the system";
            return Err(Error::caused(ErrorKind::Tls, context, error));
        }
    }
    let failed = |error: rustls::Error| Error::caused(ErrorKind::Tls, "preparing TLS", error);
    let verifier = Verifier::new(given, roots, options)?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match identity(options)? {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(failed)?,
    };
    Ok(Box::new(Arc::new(config)))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn given_roots(options: &TlsOptions) -> Result<Vec<CertificateDer<'static>>, Error> {
    let mut roots = Vec::new();
    for bytes in &options.extra_roots {
        let certificates: Vec<_> = match is_pem(bytes) {
            true => CertificateDer::pem_slice_iter(first_block(bytes))
                .collect::<Result<_, _>>()
                .map_err(bad_root)?,
            false => vec![CertificateDer::from(bytes.clone())],
        };
        if certificates.is_empty() {
            return Err(Error::config("a root certificate file without a certificate in it"));
        }
        for certificate in &certificates {
            RootCertStore::empty().add(certificate.clone()).map_err(bad_root)?;
        }
        roots.extend(certificates);
    }
    Ok(roots)
}

fn bad_root(error: impl Into<BoxError>) -> Error {
    let context = "a root certificate that is neither PEM nor DER";
    Error::caused(ErrorKind::Config, context, error)
}

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn identity(options: &TlsOptions) -> Result<Option<Pair>, Error> {
    let (certificate, key) = match &options.identity {
        None => return Ok(None),
        Some(IdentitySource::Pem { certificate, key }) => (certificate, key),
        Some(IdentitySource::Pkcs12 { .. }) => {
            return Err(Error::config(
                "rustls reads no PKCS#12: use tls_identity_pem, or choose the engine NativeTls",
            ));
        }
    };
    let bad = |error: BoxError| {
        let context = "the client certificate: it has to be PEM, with a key in PEM";
        Error::caused(ErrorKind::Config, context, error)
    };
    let chain =
        CertificateDer::pem_slice_iter(first_block(certificate)).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| bad(error.into()))?;
    if chain.is_empty() {
        return Err(Error::config("the client certificate: there is none in the PEM"));
    }
    let key = PrivateKeyDer::from_pem_slice(first_block(key)).map_err(|error| bad(error.into()))?;
    match CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider()) {
        Ok(_) => Ok(Some((chain, key))),
        Err(rustls::Error::InconsistentKeys(_)) => Err(Error::config(
            "the client certificate and its key do not belong together: \
             the first certificate has to be that of the key",
        )),
        Err(error) => Err(bad(error.into())),
    }
}

/// Returns the text from its first PEM block on: a byte order mark may come before it.
fn first_block(pem: &[u8]) -> &[u8] {
    let start = pem.windows(BEGIN.len()).position(|window| window == BEGIN);
    &pem[start.unwrap_or_default()..]
}

/// Verifies as WebPKI asks for (RFC 5280), but for what the `danger_` settings leave out.
#[derive(Debug)]
struct Verifier {
    /// A server may present one of these itself, as it may with OpenSSL. WebPKI accepts none that
    /// is marked as that of an authority, and `openssl req -x509` marks what it makes.
    given: Vec<CertificateDer<'static>>,
    /// `None`: without any root nothing can be verified.
    inner: Option<Arc<WebPkiServerVerifier>>,
    accepts_any: bool,
    accepts_any_name: bool,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(
        given: Vec<CertificateDer<'static>>,
        roots: RootCertStore,
        options: &TlsOptions,
    ) -> Result<Self, Error> {
        let provider = provider();
        let inner = match roots.is_empty() {
            true => None,
            false => {
                let roots = Arc::new(roots);
                let built =
                    WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
                        .build();
                Some(built.map_err(|error| Error::caused(ErrorKind::Tls, "preparing TLS", error))?)
            }
        };
        Ok(Verifier {
            given,
            inner,
            accepts_any: options.danger_accept_invalid_certificates,
            accepts_any_name: options.danger_accept_invalid_hostnames,
            provider,
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use CertificateError::{NotValidForName, NotValidForNameContext, UnknownIssuer};
        if self.accepts_any {
            return Ok(ServerCertVerified::assertion());
        }
        let verified = match &self.inner {
            _ if self.given.contains(end_entity) => verify_given(end_entity, server_name, now),
            Some(inner) => {
                inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
            None => Err(UnknownIssuer.into()),
        };
        match verified {
            Err(rustls::Error::InvalidCertificate(
                NotValidForName | NotValidForNameContext { .. },
            )) if self.accepts_any_name => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Verifies the dates and the name of a certificate that is itself trusted.
fn verify_given(
    certificate: &CertificateDer<'_>,
    server_name: &ServerName<'_>,
    now: UnixTime,
) -> Result<ServerCertVerified, rustls::Error> {
    let parsed = Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let validity = parsed.tbs_certificate().validity();
    let seconds = |time: Time| UnixTime::since_unix_epoch(time.to_unix_duration());
    let (not_before, not_after) = (seconds(validity.not_before), seconds(validity.not_after));
    if now < not_before {
        return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
    }
    if now > not_after {
        return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
    }
    verify_server_name(&ParsedCertificate::try_from(certificate)?, server_name)?;
    Ok(ServerCertVerified::assertion())
}

impl Connector for Arc<ClientConfig> {
    fn begin(&self, host: &str, buffers: TlsBuffers) -> Result<Progress, BoxError> {
        let name = ServerName::try_from(host.to_owned())?;
        let mut connection = ClientConnection::new(Arc::clone(self), name)?;
        // What is encrypted is taken at once, so nothing piles up.
        connection.set_buffer_limit(None);
        Box::new(Stream { connection, buffers, failure: None }).advance()
    }
}

/// A connection over buffers in memory, in its handshake or behind it.
struct Stream {
    connection: ClientConnection,
    buffers: TlsBuffers,
    /// The connection has failed behind plaintext that has not been read.
    failure: Option<rustls::Error>,
}

impl Stream {
    /// Takes what has come into the connection, and what that has it answer out of it. Returns
    /// `false` at the end of the buffers, and `WouldBlock` if nothing has come.
    fn receive(&mut self) -> io::Result<bool> {
        if let Some(failure) = &self.failure {
            return Err(io::Error::new(IoErrorKind::InvalidData, failure.clone()));
        }
        let count = self.connection.read_tls(&mut self.buffers)?;
        // What came before the failure is read first.
        self.failure = self.connection.process_new_packets().err();
        self.flush()?;
        Ok(count > 0 || self.failure.is_some())
    }
}

impl Handshake for Stream {
    fn buffers(&mut self) -> &mut TlsBuffers {
        &mut self.buffers
    }

    fn advance(mut self: Box<Self>) -> Result<Progress, BoxError> {
        self.flush()?;
        while self.connection.is_handshaking() {
            match self.receive() {
                Ok(true) => {}
                Ok(false) => return Err(io::Error::from(IoErrorKind::UnexpectedEof).into()),
                Err(error) if error.kind() == IoErrorKind::WouldBlock => {
                    return Ok(Progress::Waiting(self));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Progress::Done(TlsConnection::new(*self)))
    }
}

impl TlsStream for Stream {
    fn buffers(&mut self) -> &mut TlsBuffers {
        &mut self.buffers
    }

    fn shutdown(&mut self) -> io::Result<()> {
        self.connection.send_close_notify();
        self.flush()
    }

    fn peer_certificate(&self) -> Option<Vec<u8>> {
        self.connection.peer_certificates()?.first().map(|certificate| certificate.to_vec())
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.connection.reader().read(into) {
                Err(error) if error.kind() == IoErrorKind::WouldBlock => {
                    self.receive()?;
                }
                // Without a close_notify. `TlsBuffers` end where TLS around this connection has
                // ended; TCP alone does not tell it.
                Err(error) if error.kind() == IoErrorKind::UnexpectedEof => return Ok(0),
                result => return result,
            }
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.connection.writer().write(bytes)?;
        self.flush()?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut self.buffers)?;
        }
        Ok(())
    }
}
