//! TLS: its settings, the connectors that are made of them, and its handshake, over buffers in
//! memory so that it never blocks.

mod connectors;
mod handshake;

use std::fmt;

use native_tls::{Certificate, Identity, Protocol, TlsConnector};

use crate::dial::pin::Pin;
use crate::error::{Error, ErrorKind};

pub(super) use connectors::Connectors;
pub(super) use handshake::unread_alert;

/// The TLS settings of a client: the roots that it trusts and the certificate that it presents.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct TlsOptions {
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
        self.roots()?;
        self.identity()?;
        self.pins()?;
        Ok(())
    }

    fn pins(&self) -> Result<Vec<Pin>, Error> {
        self.pins.iter().map(|pin| Pin::parse(pin)).collect()
    }

    /// The settings for an HTTPS proxy: the same roots, and nothing that is meant for the server.
    pub(crate) fn for_proxy(&self) -> Self {
        TlsOptions {
            extra_roots: self.extra_roots.clone(),
            only_extra_roots: self.only_extra_roots,
            ..TlsOptions::default()
        }
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

/// Returns the text from its first PKCS#8 key on. native-tls accepts nothing before the key, but
/// `openssl pkcs12 -nodes` writes "Bag Attributes" there, and text outside of the PEM blocks has no
/// meaning (RFC 7468 section 2).
fn without_preamble(key: &[u8]) -> &[u8] {
    const BEGIN: &[u8] = b"-----BEGIN PRIVATE KEY-----";
    let start = key.windows(BEGIN.len()).position(|window| window == BEGIN);
    &key[start.unwrap_or_default()..]
}

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
        Ok(false) => Err(Error::config(
            "the client certificate and its key do not belong together: \
             the first certificate has to be that of the key",
        )),
        Err(error) => Err(Error::caused(ErrorKind::Config, BAD_IDENTITY, error)),
    }
}

/// The other platforms have no call that compares the two.
#[cfg(any(target_os = "windows", target_vendor = "apple"))]
fn check_pair(_certificate: &[u8], _key: &[u8]) -> Result<(), Error> {
    Ok(())
}

fn is_pem(bytes: &[u8]) -> bool {
    bytes.windows(11).any(|window| window == b"-----BEGIN ")
}
