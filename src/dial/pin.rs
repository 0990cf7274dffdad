//! Pins of public keys: the SHA-256 of a certificate's SubjectPublicKeyInfo (RFC 7469 section 2.4).

use std::fmt;

use data_encoding::BASE64;
use der::asn1::SequenceRef;
use der::{Decode, Reader, SliceReader, Tag};
use sha2::{Digest, Sha256};

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
        let key = subject_public_key_info(certificate).ok()?;
        Some(Pin(Sha256::digest(key).into()))
    }
}

/// Returns the field of this name as it stands in a certificate (RFC 5280 section 4.1).
fn subject_public_key_info(certificate: &[u8]) -> der::Result<&[u8]> {
    let mut certificate = SliceReader::new(<&SequenceRef>::from_der(certificate)?.as_bytes())?;
    let tbs_certificate = <&SequenceRef>::decode(&mut certificate)?;
    let mut fields = SliceReader::new(tbs_certificate.as_bytes())?;
    // The version, which version 1 leaves out.
    if Tag::peek(&fields)?.is_context_specific() {
        fields.tlv_bytes()?;
    }
    // The serial number, the signature, the issuer, the validity and the subject.
    for _ in 0..5 {
        fields.tlv_bytes()?;
    }
    fields.tlv_bytes()
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
        assert!((0..der.len()).all(|len| Pin::of(&der[..len]).is_none()));
        assert_eq!(Pin::of(&[&der[..], &[0]].concat()), None);
        assert_eq!(Pin::of(&[0x30, 2, 0x30, 0]), None);
    }

    /// Version 1 says no version, and has no extensions behind its key.
    #[cfg(not(any(target_os = "windows", target_vendor = "apple")))]
    #[test]
    fn a_certificate_of_each_version_has_the_pin_of_its_key() {
        use openssl::{hash::MessageDigest, pkey::PKey, rsa::Rsa, x509::X509};

        let rsa = Rsa::generate(2048).and_then(PKey::from_rsa).expect("it makes keys");
        let ed25519 = PKey::generate_ed25519().expect("it makes keys");
        for (key, digest) in [(rsa, MessageDigest::sha256()), (ed25519, MessageDigest::null())] {
            for version in 0..3 {
                let mut certificate = X509::builder().expect("there is memory");
                certificate.set_version(version).expect("it is one");
                certificate.set_pubkey(&key).expect("it is one");
                certificate.sign(&key, digest).expect("it is its key");
                let der = certificate.build().to_der().expect("it has a form in DER");
                let key = key.public_key_to_der().expect("it has one, too");
                assert_eq!(Pin::of(&der), Some(Pin(Sha256::digest(key).into())), "{version}");
            }
        }
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
