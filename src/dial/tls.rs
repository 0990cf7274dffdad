//! The TLS handshake, over a pipe in memory so that it never blocks.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use native_tls::{
    Certificate, HandshakeError, Identity, MidHandshakeTlsStream, Protocol, TlsConnector,
};
use parking_lot::Mutex;
use socket2::Socket;

use crate::config::endpoint::Target;
use crate::connection::tls_buffers::TlsBuffers;
use crate::connection::tls_engine::{TlsEngine, clear_error_queue};
use crate::dial::io::DialIo;
use crate::error::{Error, ErrorKind};

/// What is trusted, and what is shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct TlsOptions {
    pub(crate) extra_roots: Vec<Vec<u8>>,
    pub(crate) only_extra_roots: bool,
    identity: Option<IdentitySource>,
    pub(crate) danger_allow_old_tls: bool,
    pub(crate) danger_accept_invalid_certificates: bool,
    pub(crate) danger_accept_invalid_hostnames: bool,
}

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

    /// Whether a connector can be made of this.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        // Nothing to get wrong, and making a connector reads all of the system's roots.
        if self.extra_roots.is_empty() && self.identity.is_none() {
            return Ok(());
        }
        self.roots()?;
        self.identity()?;
        Ok(())
    }

    fn roots(&self) -> Result<Vec<Certificate>, Error> {
        let mut roots = Vec::new();
        for bytes in &self.extra_roots {
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

    fn identity(&self) -> Result<Option<Identity>, Error> {
        let parsed = match &self.identity {
            None => return Ok(None),
            Some(IdentitySource::Pem { certificate, key }) => {
                let key = without_preamble(key);
                check_pair(certificate, key)?;
                Identity::from_pkcs8(certificate, key)
            }
            Some(IdentitySource::Pkcs12 { archive, password }) => {
                Identity::from_pkcs12(archive, password)
            }
        };
        parsed.map(Some).map_err(|error| Error::caused(ErrorKind::Config, BAD_IDENTITY, error))
    }

    fn connector(&self) -> Result<TlsConnector, Error> {
        let mut builder = TlsConnector::builder();
        let oldest = if self.danger_allow_old_tls { Protocol::Tlsv10 } else { Protocol::Tlsv12 };
        builder.min_protocol_version(Some(oldest));
        for root in self.roots()? {
            builder.add_root_certificate(root);
        }
        if let Some(identity) = self.identity()? {
            builder.identity(identity);
        }
        builder
            .disable_built_in_roots(self.only_extra_roots)
            .danger_accept_invalid_certs(self.danger_accept_invalid_certificates)
            .danger_accept_invalid_hostnames(self.danger_accept_invalid_hostnames)
            .build()
            .map_err(|error| Error::caused(ErrorKind::Tls, "preparing TLS", error))
    }
}

const BAD_IDENTITY: &str =
    "the client certificate: it has to be PEM with a PKCS#8 key, or PKCS#12 with its password";

/// Returns the PEM text from its PKCS#8 key on. native-tls wants the key at the very start, but
/// `openssl pkcs12 -nodes` writes "Bag Attributes" before it, and text outside of the blocks has no
/// meaning (RFC 7468 section 2).
fn without_preamble(key: &[u8]) -> &[u8] {
    const BEGIN: &[u8] = b"-----BEGIN PRIVATE KEY-----";
    let start = key.windows(BEGIN.len()).position(|window| window == BEGIN);
    &key[start.unwrap_or_default()..]
}

/// Checks that the first certificate is that of the key.
///
/// OpenSSL itself refuses another key of the same algorithm only when a connector is made, and
/// shows no certificate at all where the algorithms differ.
#[cfg(not(any(target_os = "windows", target_vendor = "apple")))]
fn check_pair(certificate: &[u8], key: &[u8]) -> Result<(), Error> {
    use openssl::pkey::PKey;
    use openssl::x509::X509;

    let is_pair = || {
        let key = PKey::private_key_from_pem(key)?;
        let Some(first) = X509::stack_from_pem(certificate)?.into_iter().next() else {
            // native-tls has an error for this.
            return Ok(true);
        };
        Ok(first.public_key()?.public_eq(&key))
    };
    match is_pair() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::config(
            "the client certificate and its key do not belong together: \
             the first certificate has to be that of the key",
        )),
        Err(error) => {
            let error: openssl::error::ErrorStack = error;
            Err(Error::caused(ErrorKind::Config, BAD_IDENTITY, error))
        }
    }
}

/// The other platforms' own import pairs a certificate with its key.
#[cfg(any(target_os = "windows", target_vendor = "apple"))]
fn check_pair(_certificate: &[u8], _key: &[u8]) -> Result<(), Error> {
    Ok(())
}

fn is_pem(bytes: &[u8]) -> bool {
    bytes.windows(11).any(|window| window == b"-----BEGIN ")
}

/// A connector and what it was made of.
struct Connector {
    options: TlsOptions,
    connector: TlsConnector,
}

/// The connectors that clients of this process hold at the moment. Making one reads all of the
/// system's roots, which takes some ten milliseconds and most of a mebibyte: a thousand connections
/// share one. Nothing is kept alive by this list.
static SHARED: Mutex<Vec<Weak<Connector>>> = Mutex::new(Vec::new());

/// How long a dial waits for the list before it looks whether it may go on.
const PATIENCE: Duration = Duration::from_millis(10);

/// The connector of a client, kept from dial to dial.
pub(crate) struct Connectors {
    options: TlsOptions,
    connector: Option<Arc<Connector>>,
    /// This dial has failed verification, and its connector was thrown away.
    has_failed: bool,
    /// The one before it has.
    had_failed: bool,
}

impl Connectors {
    pub(crate) fn new(options: TlsOptions) -> Self {
        Connectors { options, connector: None, has_failed: false, had_failed: false }
    }

    /// A dial begins, which may or may not come as far as TLS.
    pub(crate) fn begin_dial(&mut self) {
        self.had_failed = std::mem::take(&mut self.has_failed);
    }

    /// Shakes hands over a non-blocking socket.
    ///
    /// A certificate that fails verification throws the connector away. Only when the very next
    /// dial, with a connector made afresh while there were descriptors to spare, fails too is the
    /// error one that no retry mends: a connector made while the process had no descriptors has no
    /// roots, and would fail for ever.
    pub(crate) fn handshake(
        &mut self,
        target: &Target,
        socket: &Socket,
        io: &DialIo<'_>,
    ) -> Result<TlsEngine, Error> {
        let had_spare = self.had_failed && has_spare_descriptor();
        let connector = match self.connector.take() {
            Some(connector) => connector,
            None => self.find_or_make(io, &|| format!("TLS handshake with {target}"))?,
        };
        // Before and behind the reading of the roots: other threads take descriptors too.
        let had_spare = had_spare && has_spare_descriptor();
        match shake_hands(&connector.connector, target, socket, io) {
            Ok(stream) => {
                self.connector = Some(connector);
                Ok(stream)
            }
            Err(error) if error.is_verification_failure() => {
                self.has_failed = true;
                Err(if had_spare { error.permanent() } else { error })
            }
            Err(error) => {
                self.connector = Some(connector);
                Err(error)
            }
        }
    }

    /// A connector that another client has made of the same options, or a new one. After a failed
    /// verification always a new one.
    fn find_or_make(
        &self,
        io: &DialIo<'_>,
        context: &dyn Fn() -> String,
    ) -> Result<Arc<Connector>, Error> {
        let mut shared = loop {
            // Another client may be reading the roots.
            match SHARED.try_lock_for(PATIENCE) {
                Some(shared) => break shared,
                None => io.check(context)?,
            }
        };
        shared.retain(|connector| connector.strong_count() > 0);
        if !self.had_failed {
            let known =
                shared.iter().filter_map(Weak::upgrade).find(|known| known.options == self.options);
            if let Some(known) = known {
                return Ok(known);
            }
        }
        let connector =
            Connector { options: self.options.clone(), connector: self.options.connector()? };
        let connector = Arc::new(connector);
        // In front: whoever looks finds the newest first.
        shared.insert(0, Arc::downgrade(&connector));
        Ok(connector)
    }
}

fn has_spare_descriptor() -> bool {
    std::net::UdpSocket::bind(("127.0.0.1", 0)).is_ok()
}

fn shake_hands(
    connector: &TlsConnector,
    target: &Target,
    socket: &Socket,
    io: &DialIo<'_>,
) -> Result<TlsEngine, Error> {
    let context = || format!("TLS handshake with {target}");
    let mut cipher = vec![0; 16 * 1024];
    let mut output = Vec::new();
    clear_error_queue();
    let mut result = connector.connect(target.server_name(), TlsBuffers::default());
    loop {
        output.clear();
        let mut waiting: MidHandshakeTlsStream<TlsBuffers> = match result {
            Ok(mut stream) => {
                stream.get_mut().take_output(&mut output);
                io.send(socket, &output, &context)?;
                return Ok(TlsEngine::new(stream));
            }
            Err(HandshakeError::Failure(error)) => {
                return Err(Error::caused(ErrorKind::Tls, context(), error));
            }
            Err(HandshakeError::WouldBlock(waiting)) => waiting,
        };
        waiting.get_mut().take_output(&mut output);
        io.send(socket, &output, &context)?;
        let filled = io.recv(socket, &mut cipher, &context)?;
        if filled == 0 {
            let ended = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            return Err(Error::caused(ErrorKind::Tls, context(), ended));
        }
        waiting.get_mut().feed(&mut cipher, filled);
        clear_error_queue();
        result = waiting.handshake();
    }
}
