//! TLS handshakes: client certificates and server names. Trust that depends on the environment of a
//! process is tested in `faults`.

use std::process::Command;

use tautline::testing::TestServer;
use tautline::{Builder, Client};

use crate::openssl::{Server, certificate};
use crate::support::{MS, opened};

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
