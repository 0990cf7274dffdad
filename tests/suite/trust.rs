//! TLS handshakes: client certificates and server names. Trust that depends on the environment of a
//! process is tested in `faults`.

use std::process::Command;

use tautline::testing::TestServer;
use tautline::{Builder, Client, ErrorKind};

use crate::openssl::{Server, certificate};
use crate::support::{MS, opened, skipped};

/// The settings of a client of `openssl s_server`, which answers no close frame.
fn builder(port: u16) -> Builder {
    Client::builder(format!("wss://localhost:{port}/"))
        .tls_root(TestServer::root_pem())
        .close_timeout(50 * MS)
}

/// Checks that a client with these settings opens a connection to the server.
fn assert_opens(builder: &Builder, server: &mut Server) {
    let client = builder.clone().start().expect("it starts");
    server.accept();
    opened(&mut client.events());
}

const CERTIFICATE: &str = include_str!("../../src/testing/certificates/stranger.pem");
const KEY: &str = include_str!("../../src/testing/certificates/stranger.key");

/// Returns certificate and key as a PKCS #12 archive. Each run of `openssl` makes different bytes,
/// so there is no file of it.
fn archive(password: &str) -> Vec<u8> {
    let mut command = Command::new("openssl");
    command.args([
        "pkcs12",
        "-export",
        "-in",
        &certificate("stranger.pem"),
        "-inkey",
        &certificate("stranger.key"),
    ]);
    let made = command
        .args(["-passout", &format!("pass:{password}")])
        .output()
        .expect("openssl has just been run");
    assert!(made.status.success(), "{made:?}");
    made.stdout
}

#[test]
fn the_client_certificate_is_presented_to_a_server_that_asks_for_it() {
    let show: [fn(Builder) -> Builder; 2] = [
        |builder| builder.tls_identity_pem(CERTIFICATE, KEY),
        |builder| builder.tls_identity_pkcs12(archive("hunter2"), "hunter2"),
    ];
    for show in show {
        // The server requires a client certificate, and accepts any.
        let Some((mut server, port)) = Server::start(&["-Verify", "1"]) else { return };
        assert_opens(&show(builder(port)), &mut server);
        let printed = String::from_utf8_lossy(&server.printed);
        assert!(printed.contains(&format!("Client certificate\n{CERTIFICATE}")), "{printed}");
    }
}

#[test]
fn the_tls_handshake_names_the_host() {
    // The server shows the certificate for localhost only if the handshake names that host, and
    // otherwise a certificate of another host.
    let stranger = [certificate("stranger.pem"), certificate("stranger.key")];
    let localhost = [certificate("localhost.pem"), certificate("localhost.key")];
    let others = ["-cert", &stranger[0], "-key", &stranger[1]];
    let named = ["-servername", "localhost", "-cert2", &localhost[0], "-key2", &localhost[1]];
    let Some((mut server, port)) = Server::start(&[&others[..], &named].concat()) else { return };
    assert_opens(&builder(port), &mut server);
}

/// Returns a key and a certificate for it, each as PEM.
fn made_pair(algorithm: &[&str]) -> Option<(String, String)> {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-nodes", "-subj", "/CN=made", "-keyout", "-", "-newkey"])
        .args(algorithm)
        .output();
    let Ok(made) = made else {
        skipped("there is no openssl command");
        return None;
    };
    assert!(made.status.success(), "{made:?}");
    let pem = String::from_utf8(made.stdout).expect("PEM is ASCII");
    let (key, certificate) = pem.split_once("-----BEGIN CERT").expect("the certificate follows");
    Some((key.to_owned(), format!("-----BEGIN CERT{certificate}")))
}

#[test]
#[cfg(not(any(target_os = "windows", target_vendor = "apple")))]
fn a_certificate_and_the_key_of_another_are_refused_at_the_start() {
    let Some(first) = made_pair(&["rsa:2048"]) else { return };
    let Some(second) = made_pair(&["rsa:2048"]) else { return };
    let start = |certificate: &str, key: &str| {
        let builder = Client::builder("wss://localhost:1/").tls_identity_pem(certificate, key);
        builder.start().map(drop)
    };
    for (certificate, key) in [
        (first.1.as_str(), second.0.as_str()),
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

#[test]
fn text_around_a_key_in_pem_is_skipped() {
    let start = |certificate: &str, key: &str| {
        Client::builder("wss://localhost:1/").tls_identity_pem(certificate, key).start().map(drop)
    };
    let bag = "Bag Attributes\n    localKeyID: 70 B1\nKey Attributes: <No Attributes>\n";
    start(CERTIFICATE, &format!("{bag}{KEY}")).expect("a text before the key is skipped");
    start(CERTIFICATE, &format!("\n{KEY}\n\n")).expect("empty lines are skipped");
    start(CERTIFICATE, &format!("\u{feff}{KEY}").replace('\n', "\r\n")).expect("as of Windows");
    // `openssl pkcs12 -nodes` writes both into one file.
    let both = format!("{bag}{CERTIFICATE}{bag}{KEY}");
    start(&both, &both).expect("one file holds both");
    let both = format!("{bag}{KEY}{bag}{CERTIFICATE}");
    start(&both, &both).expect("in either order");
    let error = start(CERTIFICATE, CERTIFICATE).expect_err("there is no key");
    assert_eq!(error.kind(), ErrorKind::Config);
}
