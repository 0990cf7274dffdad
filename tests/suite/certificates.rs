//! Certificates and keys that the `openssl` command makes for a test: what a client trusts, what it
//! refuses, and what its errors say.

// They need the library, too.
#![cfg(not(any(target_os = "windows", target_vendor = "apple")))]

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509Extension, X509Name};
use tautline::{Builder, Client, ErrorKind};

use crate::openssl::Server;
use crate::support::{MS, dial_failed, opened, skipped};

const CERTIFICATE: &str = include_str!("../../src/testing/certificates/stranger.pem");
const KEY: &str = include_str!("../../src/testing/certificates/stranger.key");

/// A folder with files that `openssl` has made. Dropping it removes them.
struct Made {
    folder: PathBuf,
}

impl Made {
    /// Runs commands of `openssl`, whose words have no blanks. Returns `None`, and reports the test
    /// as skipped, if there is no `openssl`.
    fn by(commands: &[&str]) -> Option<Self> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("tautline-certificates-{}-{number}", std::process::id());
        let made = Made { folder: std::env::temp_dir().join(name) };
        std::fs::create_dir(&made.folder).expect("it is not there yet");
        for command in commands {
            let ran = Command::new("openssl")
                .args(command.split(' '))
                .current_dir(&made.folder)
                .stdin(Stdio::null())
                .output();
            let Ok(ran) = ran else {
                skipped("there is no openssl command");
                return None;
            };
            assert!(ran.status.success(), "{ran:?}");
        }
        Some(made)
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().expect("a path in UTF-8").to_owned()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.folder.join(name)).expect("it has been made")
    }

    /// Starts a server that shows `NAME.pem`.
    fn shown(&self, name: &str) -> Option<(Server, u16)> {
        let (certificate, key) = (format!("{name}.pem"), format!("{name}.key"));
        Server::start(&["-cert", &self.path(&certificate), "-key", &self.path(&key)])
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).expect("it is there");
    }
}

/// The command that people copy. It marks the certificate as that of an authority.
const REQ: &str = "req -x509 -nodes -newkey rsa:2048 -subj /CN=localhost";

fn own(name: &str, more: &str) -> String {
    format!("{REQ} -out {name}.pem -keyout {name}.key{more}")
}

const NAMED: &str = " -addext subjectAltName=DNS:localhost";

fn client(port: u16) -> Builder {
    let url = format!("wss://localhost:{port}/");
    Client::builder(url).close_timeout(50 * MS).max_attempts(1)
}

fn assert_opens(builder: Builder, server: &mut Server) {
    let client = builder.start().expect("it starts");
    server.accept();
    opened(&mut client.events());
}

/// Checks that the client refuses the server's certificate, and returns its words.
fn refusal(builder: Builder) -> String {
    let error = builder.connect().map(drop).expect_err("it is not to be trusted");
    assert!(error.is_verification_failure(), "{}", error.chain());
    error.chain().to_string()
}

#[test]
fn a_root_may_be_the_certificate_of_the_server_itself() {
    let commands = [own("own", NAMED), own("other", NAMED)];
    let Some(made) = Made::by(&[&commands[0], &commands[1]]) else { return };
    let Some((mut server, port)) = made.shown("own") else { return };
    assert_opens(client(port).tls_root(made.read("own.pem")), &mut server);
    // It has no other name.
    let Some((_server, port)) = made.shown("own") else { return };
    let other_name = Client::builder(format!("wss://127.0.0.1:{port}/")).max_attempts(1);
    refusal(other_name.tls_root(made.read("own.pem")));
    // Another of the same name is another.
    let Some((_server, port)) = made.shown("own") else { return };
    refusal(client(port).tls_root(made.read("other.pem")));
}

#[test]
fn a_certificate_of_no_authority_vouches_for_no_other() {
    let leaf =
        " -addext basicConstraints=critical,CA:FALSE -addext keyUsage=critical,digitalSignature";
    let signed = "-subj /CN=localhost -nodes -newkey rsa:2048 -keyout signed.key -out signed.pem";
    let signed = format!("req -x509 {signed} -CA leaf.pem -CAkey leaf.key{NAMED}");
    let Some(made) = Made::by(&[&own("leaf", leaf), &signed]) else { return };
    let Some((_server, port)) = made.shown("signed") else { return };
    refusal(client(port).tls_root(made.read("leaf.pem")));
}

/// Returns a certificate with an extension, valid from `days.0` days ahead until `days.1` days
/// ahead, which the issuer signs, or itself if there is none.
fn signed(
    name: &str,
    days: (i64, i64),
    extension: X509Extension,
    issuer: Option<(&X509, &PKey<Private>)>,
) -> Result<(X509, PKey<Private>), ErrorStack> {
    let key =
        PKey::from_ec_key(EcKey::generate(&*EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?)?)?;
    let mut subject = X509Name::builder()?;
    subject.append_entry_by_text("CN", name)?;
    let subject = subject.build();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later").as_secs();
    let day = |days: i64| Asn1Time::from_unix(now as i64 + days * 24 * 60 * 60);
    let mut certificate = X509::builder()?;
    certificate.set_version(2)?;
    certificate.set_serial_number(&*BigNum::from_u32(1)?.to_asn1_integer()?)?;
    certificate.set_subject_name(&subject)?;
    certificate.set_issuer_name(issuer.map_or(&*subject, |(issuer, _)| issuer.subject_name()))?;
    certificate.set_pubkey(&key)?;
    certificate.set_not_before(&*day(days.0)?)?;
    certificate.set_not_after(&*day(days.1)?)?;
    certificate.append_extension(extension)?;
    certificate.sign(issuer.map_or(&key, |(_, key)| key), MessageDigest::sha256())?;
    Ok((certificate.build(), key))
}

/// Returns the extension that names localhost.
fn localhost() -> Result<X509Extension, ErrorStack> {
    let builder = X509::builder()?;
    SubjectAlternativeName::new().dns("localhost").build(&builder.x509v3_context(None, None))
}

/// Returns a certificate for localhost that vouches for itself between these days, and its key,
/// each as PEM.
fn of_itself(days: (i64, i64)) -> (Vec<u8>, Vec<u8>) {
    let make = || {
        // One name for each: OpenSSL looks for a root by its name.
        let name = format!("from {} until {}", days.0, days.1);
        let (certificate, key) = signed(&name, days, localhost()?, None)?;
        Ok((certificate.to_pem()?, key.private_key_to_pem_pkcs8()?))
    };
    let made: Result<_, ErrorStack> = make();
    made.expect("OpenSSL makes certificates")
}

/// Has a server show a certificate of a root with these dates.
fn shown_by_root(days: (i64, i64)) -> (Vec<u8>, Option<(Made, Server, u16)>) {
    let make = || {
        let authority = BasicConstraints::new().critical().ca().build()?;
        let (root, key) = signed("a root", days, authority, None)?;
        let (leaf, leaf_key) = signed("a leaf", (-1, 10), localhost()?, Some((&root, &key)))?;
        Ok((root.to_pem()?, leaf.to_pem()?, leaf_key.private_key_to_pem_pkcs8()?))
    };
    let made: Result<_, ErrorStack> = make();
    let (root, leaf, key) = made.expect("OpenSSL makes certificates");
    let server = || {
        let made = Made::by(&[])?;
        std::fs::write(made.path("leaf.pem"), leaf).expect("the folder is there");
        std::fs::write(made.path("leaf.key"), key).expect("the folder is there");
        let (server, port) = made.shown("leaf")?;
        Some((made, server, port))
    };
    (root, server())
}

#[test]
fn a_root_counts_between_its_dates_alone() {
    let (root, server) = shown_by_root((-20, 20));
    let Some((_made, mut server, port)) = server else { return };
    assert_opens(client(port).tls_root(root), &mut server);
    for (days, words) in [
        ((-20, -10), ["expired"; 2]),
        // The words of OpenSSL and rustls.
        ((10, 20), ["not yet valid", "not valid yet"]),
    ] {
        let (root, server) = shown_by_root(days);
        let Some((_made, _server, port)) = server else { return };
        let told = refusal(client(port).tls_root(root));
        assert!(words.iter().any(|words| told.contains(words)), "{told}");
    }
}

#[test]
fn a_certificate_that_has_expired_or_is_not_yet_valid_is_retried_until_it_is_renewed() {
    let expired = of_itself((-20, -10));
    let early = of_itself((10, 20));
    let renewed = of_itself((-1, 20));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let builder = Client::builder(format!("wss://localhost:{port}/")).close_timeout(50 * MS);
    let builder = [&expired, &early, &renewed]
        .iter()
        .fold(builder, |builder, (certificate, _)| builder.tls_root(certificate.clone()));
    thread::spawn(move || {
        let mut sockets = Vec::new();
        for (certificate, key) in [&expired, &expired, &expired, &early, &early, &renewed] {
            let identity = native_tls::Identity::from_pkcs8(certificate, key).expect("a pair");
            let acceptor = native_tls::TlsAcceptor::new(identity).expect("an identity is enough");
            let (socket, _) = listener.accept().expect("it dials");
            if let Ok(stream) = acceptor.accept(socket) {
                sockets.push(tungstenite::accept(stream).expect("it upgrades"));
            }
        }
        // Until the test ends.
        thread::park();
    });
    let client = builder.retry_delay_min(MS).retry_delay_max(5 * MS).start().expect("it starts");
    let mut events = client.events();
    // The words of OpenSSL and rustls.
    let (expired, early) = (["expired"; 2], ["not yet valid", "not valid yet"]);
    for words in [expired, expired, expired, early, early] {
        let failure = dial_failed(&mut events);
        assert!(failure.error.is_verification_failure(), "{}", failure.error.chain());
        let chain = failure.error.chain();
        assert!(words.iter().any(|words| chain.contains(words)), "{chain}");
        assert!(failure.error.is_retryable() && failure.retry_in.is_some());
    }
    opened(&mut events);
}

#[test]
fn danger_accept_invalid_certificates_takes_certificates_of_version_1() {
    let Some(made) = Made::by(&[
        "req -nodes -newkey rsa:2048 -subj /CN=localhost -keyout old.key -out old.csr",
        "x509 -req -in old.csr -signkey old.key -out old.pem",
    ]) else {
        return;
    };
    let Some((mut server, port)) = made.shown("old") else { return };
    assert_opens(client(port).danger_accept_invalid_certificates(), &mut server);
}

#[test]
fn a_certificate_and_the_key_of_another_are_refused_at_the_start() {
    let Some(made) = Made::by(&[&own("first", ""), &own("second", "")]) else { return };
    let text = |name: &str| String::from_utf8(made.read(name)).expect("PEM is ASCII");
    let first = (text("first.key"), text("first.pem"));
    let second_key = text("second.key");
    let start = |certificate: &str, key: &str| {
        let builder = Client::builder("wss://localhost:1/").tls_identity_pem(certificate, key);
        builder.start().map(drop)
    };
    for (certificate, key) in [
        (first.1.as_str(), second_key.as_str()),
        (first.1.as_str(), KEY),
        (CERTIFICATE, first.0.as_str()),
        // The certificate of the key has to come first.
        (&format!("{CERTIFICATE}{}", first.1), first.0.as_str()),
    ] {
        let error = start(certificate, key).expect_err("they do not belong together");
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("do not belong together"), "{error}");
    }
    start(&first.1, &first.0).expect("they belong together");
    start(&format!("{}{CERTIFICATE}", first.1), &first.0).expect("others may follow");
}

/// Starts a client with this key, which it refuses, and returns everything that the error says.
fn told_of_key(key: &str) -> String {
    let builder = Client::builder("wss://localhost:1/").tls_identity_pem(CERTIFICATE, key);
    let error = builder.start().map(drop).expect_err("it is no key");
    assert_eq!(error.kind(), ErrorKind::Config);
    format!("{} {error:?}", error.chain())
}

#[test]
fn a_key_that_has_lost_its_newlines_appears_in_no_error() {
    let secret = KEY.lines().nth(1).expect("the second line is of the key");
    let bytes = format!("{:?}", secret.as_bytes());
    for break_ in ["\\n", " ", ""] {
        let told = told_of_key(&KEY.replace('\n', break_));
        assert!(!told.contains(secret), "{told}");
        assert!(!told.contains(bytes.trim_matches(['[', ']'])), "{told}");
    }
    // Nor where it is given as a certificate.
    let broken = KEY.replace('\n', " ");
    let builder = Client::builder("wss://localhost:1/").tls_root(broken);
    let error = builder.start().map(drop).expect_err("it is no certificate");
    let told = format!("{} {error:?}", error.chain());
    assert!(!told.contains(secret) && !told.contains(bytes.trim_matches(['[', ']'])), "{told}");
}

#[test]
fn an_encrypted_key_is_refused_and_its_password_asked_of_nobody() {
    let Some(made) = Made::by(&[
        "genrsa -out plain.key 2048",
        "pkcs8 -topk8 -in plain.key -passout pass:hunter2 -out new.key",
        "rsa -aes128 -in plain.key -passout pass:hunter2 -traditional -out old.key",
    ]) else {
        return;
    };
    for name in ["new.key", "old.key"] {
        let key = String::from_utf8(made.read(name)).expect("PEM is ASCII");
        let told = told_of_key(&key);
        assert!(told.contains("the key of the client certificate is encrypted"), "{told}");
    }
}

#[test]
#[cfg(feature = "rustls")]
fn rustls_refuses_a_certificate_that_names_its_host_in_the_common_name_alone() {
    let Some(made) = Made::by(&[&own("common", "")]) else { return };
    let Some((_server, port)) = made.shown("common") else { return };
    let builder = client(port).tls_root(made.read("common.pem"));
    refusal(builder.tls_engine(tautline::TlsEngine::Rustls));
}
