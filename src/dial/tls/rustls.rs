//! TLS 1.2 and 1.3 by rustls, with the cryptography of ring.

use std::io::{self, ErrorKind as IoErrorKind, Read, Write};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore,
    SignatureScheme,
};
use x509_cert::der::Decode;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage};
use x509_cert::time::Time;
use x509_cert::{Certificate, Version};

use crate::connection::tls_connection::{TlsBuffers, TlsConnection, TlsStream};
use crate::dial::tls::{
    BEGIN, BoxError, Connector, Handshake, IdentitySource, Progress, TlsOptions, is_pem,
    not_a_pair, starting_with,
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
    Ok(Box::new(Arc::new(client_config(options, provider())?)))
}

fn client_config(
    options: &TlsOptions,
    provider: Arc<CryptoProvider>,
) -> Result<ClientConfig, Error> {
    let verifier = Verifier::new(options)?;
    let failed = |error: rustls::Error| Error::caused(ErrorKind::Tls, "preparing TLS", error);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match identity(options)? {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(failed)?,
    };
    if !options.pins.is_empty() {
        // A server that resumes a session shows no certificate, and may have another by now.
        config.resumption = Resumption::disabled();
    }
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn given_roots(options: &TlsOptions) -> Result<Vec<GivenRoot>, Error> {
    let mut roots = Vec::new();
    for bytes in &options.extra_roots {
        let certificates = match is_pem(bytes) {
            true => certificates(bytes).map_err(bad_root)?,
            false => vec![CertificateDer::from(bytes.clone())],
        };
        for certificate in certificates {
            roots.push(GivenRoot::new(certificate).ok_or_else(|| bad_root(UNREADABLE))?);
        }
    }
    Ok(roots)
}

/// Returns the certificates in a PEM text, of which there is at least one.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    let all = CertificateDer::pem_slice_iter(first_block(pem)).collect::<Result<Vec<_>, _>>();
    match all.map_err(|error| reason(&error))? {
        all if all.is_empty() => Err("there is no certificate in it"),
        all => Ok(all),
    }
}

/// Returns the reason why a text cannot be read. The error itself shows parts of the text, which
/// may be a key.
fn reason(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a block of the PEM has no end",
        pem::Error::IllegalSectionStart { .. } => {
            "a line of the PEM goes on behind BEGIN: its line breaks may have been lost"
        }
        pem::Error::Base64Decode(_) => "a block of the PEM is not Base64",
        pem::Error::NoItemsFound => "the block that has to be there is not in the PEM",
        _ => "it is not PEM",
    }
}

const UNREADABLE: &str = "it is no certificate of X.509";

fn bad_root(why: &str) -> Error {
    Error::config(format!("a root certificate, which has to be PEM or DER: {why}"))
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
    let bad = |what: &str, why: &str| Error::config(format!("{what}, which has to be PEM: {why}"));
    let chain = certificates(certificate).map_err(|why| bad("the client certificate", why))?;
    let key = PrivateKeyDer::from_pem_slice(first_block(key))
        .map_err(|error| bad("the key of the client certificate", reason(&error)))?;
    match CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider()) {
        Ok(_) => Ok(Some((chain, key))),
        Err(rustls::Error::InconsistentKeys(_)) => Err(not_a_pair()),
        Err(rustls::Error::InvalidCertificate(_)) => Err(Error::config(
            "the client certificate: rustls takes X.509 version 3 alone, with a key of RSA, P-256, \
             P-384 or Ed25519",
        )),
        Err(_) => Err(Error::config(
            "the key of the client certificate: rustls takes RSA from 2,048 bits on, P-256, P-384 \
             and Ed25519",
        )),
    }
}

/// Returns the text from its first PEM block on: a byte order mark may come before it.
fn first_block(pem: &[u8]) -> &[u8] {
    starting_with(pem, BEGIN)
}

/// A certificate that the program trusts.
#[derive(Debug)]
struct GivenRoot {
    certificate: CertificateDer<'static>,
    not_before: UnixTime,
    not_after: UnixTime,
    /// It may vouch for others. WebPKI asks that of no root (RFC 5280 section 4.2.1.9).
    is_authority: bool,
}

impl GivenRoot {
    /// Returns `None` if the certificate cannot be parsed.
    fn new(certificate: CertificateDer<'static>) -> Option<Self> {
        let parsed = Certificate::from_der(&certificate).ok()?;
        let parsed = parsed.tbs_certificate();
        let constraints = parsed.get_extension::<BasicConstraints>().ok()?;
        let usage = parsed.get_extension::<KeyUsage>().ok()?;
        // Version 1 has no extensions; OpenSSL takes such a root for an authority too.
        let is_authority = match constraints {
            Some((_, constraints)) => constraints.ca,
            None => parsed.version() == Version::V1,
        };
        let may_sign = usage.is_none_or(|(_, usage)| usage.key_cert_sign());
        let seconds = |time: Time| UnixTime::since_unix_epoch(time.to_unix_duration());
        Some(GivenRoot {
            not_before: seconds(parsed.validity().not_before),
            not_after: seconds(parsed.validity().not_after),
            is_authority: is_authority && may_sign,
            certificate,
        })
    }

    fn check_dates(&self, time: UnixTime) -> Result<(), rustls::Error> {
        use CertificateError::{ExpiredContext, NotValidYetContext};
        let (not_before, not_after) = (self.not_before, self.not_after);
        if time < not_before {
            return Err(NotValidYetContext { time, not_before }.into());
        }
        if time > not_after {
            return Err(ExpiredContext { time, not_after }.into());
        }
        Ok(())
    }
}

/// Verifies as WebPKI asks for (RFC 5280), but for what the `danger_` settings leave out.
#[derive(Debug)]
struct Verifier {
    /// A server may present one of these itself, as it may with OpenSSL. WebPKI accepts none that
    /// is marked as that of an authority, and `openssl req -x509` marks what it makes.
    given: Vec<GivenRoot>,
    /// Roots of the system.
    system: Vec<TrustAnchor<'static>>,
    /// Verifies with all roots. `None`: there is none.
    inner: Option<Arc<WebPkiServerVerifier>>,
    accepts_any: bool,
    accepts_any_name: bool,
    has_pins: bool,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(options: &TlsOptions) -> Result<Self, Error> {
        let mut system = RootCertStore::empty();
        let mut unread = None;
        if !options.only_extra_roots {
            let loaded = rustls_native_certs::load_native_certs();
            system.add_parsable_certificates(loaded.certs);
            unread = loaded.errors.into_iter().next();
        }
        let mut verifier = Verifier {
            given: given_roots(options)?,
            system: system.roots,
            inner: None,
            accepts_any: options.danger_accept_invalid_certificates,
            accepts_any_name: options.danger_accept_invalid_hostnames,
            has_pins: !options.pins.is_empty(),
            provider: provider(),
        };
        if let (true, true, Some(error)) =
            (verifier.system.is_empty(), verifier.given.is_empty(), unread)
        {
            let context = "reading the root certificates of the system";
            return Err(Error::caused(ErrorKind::Tls, context, error));
        }
        verifier.inner = verifier.by_roots(verifier.authorities());
        Ok(verifier)
    }

    /// Returns those of the given certificates that may vouch for others.
    fn authorities(&self) -> impl Iterator<Item = &GivenRoot> {
        self.given.iter().filter(|root| root.is_authority)
    }

    /// Returns a verifier with the roots of the system and these.
    fn by_roots<'r>(
        &self,
        given: impl Iterator<Item = &'r GivenRoot>,
    ) -> Option<Arc<WebPkiServerVerifier>> {
        let mut roots = RootCertStore { roots: self.system.clone() };
        roots.add_parsable_certificates(given.map(|root| root.certificate.clone()));
        let provider = Arc::clone(&self.provider);
        // An error says that there is no root.
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().ok()
    }

    /// Verifies a certificate by the roots. Those that are out of their dates count for nothing,
    /// and are named as the reason where they would have been enough.
    fn verify_by_roots(
        &self,
        verify: impl Fn(&WebPkiServerVerifier) -> Result<ServerCertVerified, rustls::Error>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = || Err(CertificateError::UnknownIssuer.into());
        let verified = self.inner.as_deref().map_or_else(unknown, &verify)?;
        let out_of_dates = self.authorities().find_map(|root| root.check_dates(now).err());
        let Some(out_of_dates) = out_of_dates else { return Ok(verified) };
        let others = self.by_roots(self.authorities().filter(|root| root.check_dates(now).is_ok()));
        others.as_deref().map_or_else(unknown, verify).map_err(|_| out_of_dates)
    }

    fn algorithms(&self) -> &WebPkiSupportedAlgorithms {
        &self.provider.signature_verification_algorithms
    }

    /// Leaves out what cannot be verified of a certificate that is not verified either. With pins
    /// it has to be: the signature proves that the server has the key.
    fn unless_any(
        &self,
        verified: Result<HandshakeSignatureValid, rustls::Error>,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match verified {
            Err(_) if self.accepts_any && !self.has_pins => {
                Ok(HandshakeSignatureValid::assertion())
            }
            verified => verified,
        }
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
        use CertificateError::{NotValidForName, NotValidForNameContext};
        if self.accepts_any {
            return Ok(ServerCertVerified::assertion());
        }
        let given = self.given.iter().find(|root| root.certificate == *end_entity);
        let verified = match given {
            Some(root) => root.check_dates(now).and_then(|()| {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }),
            None => self.verify_by_roots(
                |inner| {
                    inner.verify_server_cert(
                        end_entity,
                        intermediates,
                        server_name,
                        ocsp_response,
                        now,
                    )
                },
                now,
            ),
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
        self.unless_any(verify_tls12_signature(message, certificate, signature, self.algorithms()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.unless_any(verify_tls13_signature(message, certificate, signature, self.algorithms()))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms().supported_schemes()
    }
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

/// The type of a record that carries data (RFC 8446 section 5.1).
const APPLICATION_DATA: u8 = 23;

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
        let start = self.buffers.outbox_len();
        let count = self.connection.writer().write(bytes)?;
        self.flush()?;
        // Under TLS 1.2 rustls makes so many records with one key and then ends TLS, but says
        // that it has taken the bytes (RFC 9325 section 4.4). Alerts are records of another type.
        match self.buffers.outbox_byte(start) {
            Some(APPLICATION_DATA) => Ok(count),
            _ => Err(io::Error::other("the keys of TLS 1.2 have been used for their last record")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut self.buffers)?;
        }
        Ok(())
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use rustls::crypto::ring::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256;
    use rustls::{
        CipherSuiteCommon, ServerConfig, ServerConnection, SupportedCipherSuite, Tls12CipherSuite,
    };

    use super::*;

    /// The records that a key of the test's suite makes, the finished message among them.
    const RECORDS: u64 = 5;

    /// A suite whose keys are used up after a few records. Those of AES-GCM make 2^24 (RFC 9325
    /// section 4.4).
    fn suite() -> SupportedCipherSuite {
        let SupportedCipherSuite::Tls12(suite) = TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 else {
            panic!("it is a suite of TLS 1.2");
        };
        let common = CipherSuiteCommon { confidentiality_limit: RECORDS, ..suite.common };
        SupportedCipherSuite::Tls12(Box::leak(Box::new(Tls12CipherSuite {
            common,
            prf_provider: suite.prf_provider,
            kx: suite.kx,
            sign: suite.sign,
            aead_alg: suite.aead_alg,
        })))
    }

    #[test]
    fn a_send_fails_when_the_keys_of_tls_1_2_are_used_up() {
        let pem = include_bytes!("../../testing/certificates/localhost.pem");
        let key = include_bytes!("../../testing/certificates/localhost.key");
        let server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the versions are known")
            .with_no_client_auth()
            .with_single_cert(
                certificates(pem).expect("it is PEM"),
                PrivateKeyDer::from_pem_slice(key).expect("it is PEM"),
            );
        let mut server = ServerConnection::new(Arc::new(server.expect("they belong together")))
            .expect("the settings are good");
        let mut options = TlsOptions { only_extra_roots: true, ..TlsOptions::default() };
        options.extra_roots.push(include_bytes!("../../testing/certificates/root.pem").to_vec());
        let provider = CryptoProvider { cipher_suites: vec![suite()], ..ring::default_provider() };
        let client = client_config(&options, Arc::new(provider)).expect("the settings are good");
        let mut progress = Arc::new(client).begin("localhost", TlsBuffers::default());
        let mut connection = loop {
            let waiting = match progress.expect("both shake hands") {
                Progress::Done(connection) => break connection,
                Progress::Waiting(waiting) => waiting,
            };
            progress = exchange(waiting, &mut server).advance();
        };
        let sent = (0..10).map_while(|_| connection.enter().write_all(b"ping").ok()).count();
        assert_eq!(sent as u64, RECORDS - 1, "the finished message is the first record");
        assert!(connection.enter().write_all(b"ping").is_err());
    }

    /// Hands what the client has written to the server, and the answer to the client.
    fn exchange(
        mut client: Box<dyn Handshake>,
        server: &mut ServerConnection,
    ) -> Box<dyn Handshake> {
        let mut bytes = Vec::new();
        client.buffers().take_output(&mut bytes).expect("there is no outer TLS");
        server.read_tls(&mut bytes.as_slice()).expect("it takes what it is given");
        server.process_new_packets().expect("it is a handshake");
        let mut answer = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut answer).expect("a vector takes everything");
        }
        let filled = answer.len();
        client.buffers().feed(&mut answer, filled);
        client
    }
}
