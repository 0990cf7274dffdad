//! Pins of public keys: the SHA-256 of a certificate's SubjectPublicKeyInfo (RFC 7469 section 2.4).

use std::fmt;

use data_encoding::BASE64;
use sha2::{Digest, Sha256};
use x509_cert::Certificate;
use x509_cert::der::{Decode, Encode};

use crate::error::Error;

/// Displayed as it is given: `sha256/` and 44 characters of Base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pin([u8; 32]);

const PREFIX: &str = "sha256/";

impl Pin {
    /// # Errors
    /// `Config`.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let hash = text.strip_prefix(PREFIX);
        let hash = hash.and_then(|hash| BASE64.decode(hash.as_bytes()).ok());
        hash.and_then(|hash| hash.try_into().ok()).map(Pin).ok_or_else(|| {
            Error::config(
                "a tls_pin is not sha256/ and the Base64 of 32 bytes: dial with \
                 sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= and the error has the pin",
            )
        })
    }

    /// Returns the pin of a certificate in DER, or `None` if it cannot be parsed.
    pub(super) fn of(certificate: &[u8]) -> Option<Self> {
        let certificate = Certificate::from_der(certificate).ok()?;
        let key = certificate.tbs_certificate().subject_public_key_info().to_der().ok()?;
        Some(Pin(Sha256::digest(key).into()))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", BASE64.encode(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed by `openssl x509 -pubkey -noout | openssl pkey -pubin -outform der |
    /// openssl dgst -sha256 -binary | base64`.
    const LOCALHOST: &str = "sha256//lywGlX0tIcEA21V3ySyv8kTjjkegsnwjDK+ydH4i/w=";

    #[test]
    fn the_pin_of_a_certificate_is_what_openssl_computes() {
        let pem = include_bytes!("../testing/certificates/localhost.pem");
        let certificate = native_tls::Certificate::from_pem(pem).expect("it is PEM");
        let der = certificate.to_der().expect("it has a form in DER");
        let pin = Pin::of(&der).expect("it is a certificate");
        assert_eq!(pin.to_string(), LOCALHOST);
        assert_eq!(Pin::parse(LOCALHOST).ok(), Some(pin));
        assert_eq!(Pin::of(&der[..100]), None);
    }

    #[test]
    fn pins_of_another_form_are_refused() {
        let hash = &LOCALHOST[PREFIX.len()..];
        for text in ["", "sha256/", "sha1/AAAA", "sha256/AAAA", hash, &format!("sha256/{hash} ")] {
            assert!(Pin::parse(text).is_err(), "{text}");
        }
        assert!(Pin::parse(&format!("SHA256/{hash}")).is_err());
    }
}
