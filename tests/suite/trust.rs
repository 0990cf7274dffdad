//! TLS: client certificates, server names, broken records and errors of others. Trust that depends
//! on the environment of a process is tested in `faults`.

// Most of these tests need what Linux alone has.
#![cfg_attr(not(target_os = "linux"), allow(dead_code, unused_imports))]

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crossbeam_channel::unbounded;
use tautline::testing::TestServer;
use tautline::{
    Builder, Client, Connection, DialContext, Endpoint, ErrorKind, MessageRef, ThreadOutcome,
    Timeout,
};

use crate::openssl::{Server, certificate};
use crate::support::{MS, SOON, dial_failed, disconnected, echo, message, opened};

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
    assert_presents(|builder| builder.tls_identity_pem(CERTIFICATE, KEY));
}

#[test]
#[cfg_attr(rustls_by_default, ignore = "rustls reads no PKCS#12")]
fn the_client_certificate_may_come_from_an_archive() {
    assert_presents(|builder| builder.tls_identity_pkcs12(archive("hunter2"), "hunter2"));
}

/// Checks that the client certificate is presented with these settings.
fn assert_presents(settings: fn(Builder) -> Builder) {
    // The server requires a client certificate, and accepts any.
    let Some((mut server, port)) = Server::start(&["-Verify", "1"]) else { return };
    assert_opens(&settings(builder(port)), &mut server);
    let printed = String::from_utf8_lossy(&server.printed);
    assert!(printed.contains(&format!("Client certificate\n{CERTIFICATE}")), "{printed}");
}

#[test]
#[cfg(feature = "rustls")]
fn what_rustls_lacks_is_refused_at_the_start() {
    use tautline::TlsEngine;
    let builder = || Client::builder("wss://localhost:1/").tls_engine(TlsEngine::Rustls);
    for (builder, words) in [
        (builder().tls_identity_pkcs12(*b"archive", "hunter2"), "PKCS#12"),
        (builder().danger_allow_old_tls(), "TLS 1.0"),
        (builder().tls_root("no certificate"), "root certificate"),
    ] {
        let error = builder.start().map(drop).expect_err("rustls has none of it");
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
#[cfg(feature = "rustls")]
fn the_engine_is_chosen_at_run_time() {
    use tautline::TlsEngine;
    // OpenSSL offers these groups for the key exchange, and rustls some of them only.
    let groups = |engine: TlsEngine| {
        let (mut server, port) = Server::start(&["-trace"])?;
        assert_opens(&builder(port).tls_engine(engine), &mut server);
        Some(std::mem::take(&mut server.printed))
    };
    for (engine, has_ffdhe) in [(TlsEngine::NativeTls, true), (TlsEngine::Rustls, false)] {
        let Some(printed) = groups(engine) else { return };
        let printed = String::from_utf8_lossy(&printed);
        assert_eq!(printed.contains("ffdhe2048"), has_ffdhe, "{engine:?}: {printed}");
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

#[test]
#[cfg(feature = "rustls")]
fn rustls_resumes_the_session_of_an_earlier_connection() {
    assert_second_is_resumed(true, |builder| builder);
}

#[test]
#[cfg(feature = "rustls")]
fn with_a_pin_rustls_resumes_no_session() {
    // The certificate of a resumed session is an earlier one.
    assert_second_is_resumed(false, |builder| {
        builder.tls_pin("sha256//lywGlX0tIcEA21V3ySyv8kTjjkegsnwjDK+ydH4i/w=")
    });
}

/// Checks whether the second connection of a client with these settings resumes the session.
#[cfg(feature = "rustls")]
fn assert_second_is_resumed(expected: bool, settings: fn(Builder) -> Builder) {
    let Some((mut server, port)) = Server::start(&["-naccept", "2"]) else { return };
    let builder = settings(builder(port).tls_engine(tautline::TlsEngine::Rustls));
    for is_resumed in [false, expected] {
        let client = builder.clone().start().expect("it starts");
        server.accept();
        let mut events = client.events();
        opened(&mut events);
        server.say(b"\x81\x04down");
        assert_eq!(message(&mut events).text(), Some("down"));
        assert!(client.stop(SOON).is_clean());
        let printed = String::from_utf8_lossy(&server.printed);
        assert_eq!(printed.contains("Reused session-id"), is_resumed, "{printed}");
    }
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

/// Relays one connection to the server, and returns its own port. Once `breaks` is set, everything
/// that the server sends gets a broken record behind it, in the same segment.
fn breaking_relay(server: u16, breaks: &Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let breaks = Arc::clone(breaks);
    thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("it dials");
        let mut server = TcpStream::connect(("127.0.0.1", server)).expect("it is there");
        let (mut from, mut to) =
            (client.try_clone().expect("it is open"), server.try_clone().expect("it is open"));
        thread::spawn(move || io::copy(&mut from, &mut to));
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = server.read(&mut bytes) {
            bytes.truncate(count);
            if breaks.load(Ordering::SeqCst) {
                // Application data that does not decrypt (RFC 8446 section 5.2).
                bytes.extend_from_slice(b"\x17\x03\x03\x00\x20");
                bytes.extend_from_slice(&[0x5a; 32]);
            }
            if client.write_all(&bytes).is_err() {
                return;
            }
            bytes.resize(64 * 1024, 0);
        }
    });
    port
}

#[test]
fn a_broken_record_behind_a_message_is_no_orderly_end() {
    for version in ["-tls1_2", "-tls1_3"] {
        let Some((mut server, port)) = Server::start(&[version]) else { return };
        let breaks = Arc::new(AtomicBool::new(false));
        let port = breaking_relay(port, &breaks);
        let client = builder(port).start().expect("it starts");
        server.accept();
        let mut events = client.events();
        opened(&mut events);
        breaks.store(true, Ordering::SeqCst);
        server.say(b"\x81\x04good");
        assert_eq!(message(&mut events).text(), Some("good"));
        let error = disconnected(&mut events).error;
        assert_eq!(error.kind(), ErrorKind::Io, "{}", error.chain());
    }
}

/// Leaves an error in OpenSSL's queue of this thread, as a program can that calls OpenSSL itself.
#[cfg(not(any(target_os = "windows", target_vendor = "apple")))]
fn leave_an_error() {
    let errors = openssl::x509::X509::from_pem(b"bad").expect_err("it is no certificate");
    // The call above has taken the errors out of the queue.
    errors.put();
}

#[test]
#[cfg_attr(rustls_by_default, ignore = "of OpenSSL alone")]
#[cfg(not(any(target_os = "windows", target_vendor = "apple")))]
fn errors_that_others_leave_in_the_queue_of_openssl_harm_no_connection() {
    let server = echo(TestServer::builder().tls());
    let url = server.url();
    let endpoint = move |_: &DialContext| {
        leave_an_error();
        Ok(Endpoint::from(&url))
    };
    let (tell, told) = unbounded();
    let handler = move |connection: &mut Connection<'_>, message: MessageRef<'_>| {
        leave_an_error();
        tell.send((connection.epoch(), message.text().map(str::to_owned))).expect("it waits");
    };
    let client = Client::builder_from_fn(endpoint)
        .tls_root(TestServer::root_pem())
        .start_with(handler)
        .expect("it starts");
    client.wait_open(SOON).expect("it opens");
    for round in 0..5 {
        leave_an_error();
        client.send_text(&format!("{round}")).expect("it is open");
        let echoed = told.recv_timeout(SOON).expect("it is echoed");
        assert_eq!(echoed, (1, Some(format!("{round}"))));
    }
    assert!(client.stop(SOON).is_clean());
    assert!(openssl::error::ErrorStack::get().errors().is_empty());
}

/// Runs a test in a process of its own, in which `SSL_CERT_FILE` names this file, and which runs no
/// other test: what it trusts and what it has read belong to the whole process.
#[cfg(unix)]
fn in_a_process_of_its_own(test: &str, roots: &Path, body: impl FnOnce(&Path)) {
    const ROLE: &str = "TAUTLINE_SUITE_ROOTS";
    if let Some(roots) = std::env::var_os(ROLE) {
        return body(Path::new(&roots));
    }
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args(["--exact", &format!("trust::{test}"), "--nocapture"]);
    let output = command.env("SSL_CERT_FILE", roots).env(ROLE, roots).output();
    let output = output.expect("this program can be run");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("1 passed"), "{output:?}");
}

/// Counts the threads that read roots.
fn counting_loads(builder: Builder, loads: &Arc<AtomicUsize>) -> Builder {
    let loads = Arc::clone(loads);
    builder.on_thread_start(move |name| {
        loads.fetch_add(usize::from(name == "taut-roots"), Ordering::SeqCst);
    })
}

#[test]
#[cfg(target_os = "linux")]
fn the_roots_of_the_system_are_read_once_for_clients_that_come_one_after_the_other() {
    let name = "the_roots_of_the_system_are_read_once_for_clients_that_come_one_after_the_other";
    in_a_process_of_its_own(name, Path::new(&certificate("root.pem")), |_| {
        let server = echo(TestServer::builder().tls());
        let loads = Arc::default();
        for _ in 0..3 {
            let builder = counting_loads(Client::builder(server.url()), &loads);
            let client = builder.connect().expect("the server's root is one of the system's");
            assert!(client.stop(SOON).is_clean());
        }
        let clients: Vec<_> =
            (0..3).map(|_| counting_loads(Client::builder(server.url()), &loads).start()).collect();
        for client in clients {
            client.expect("it starts").wait_open(SOON).expect("it opens");
        }
        assert_eq!(loads.load(Ordering::SeqCst), 1);
    });
}

#[test]
#[cfg(target_os = "linux")]
fn a_roots_file_that_hangs_is_a_timeout_that_blocks_neither_other_clients_nor_a_stop() {
    let name = "a_roots_file_that_hangs_is_a_timeout_that_blocks_neither_other_clients_nor_a_stop";
    let fifo = std::env::temp_dir().join(format!("tautline-roots-{}", std::process::id()));
    if std::env::var_os("TAUTLINE_SUITE_ROOTS").is_none() {
        assert!(Command::new("mkfifo").arg(&fifo).status().is_ok_and(|status| status.success()));
    }
    in_a_process_of_its_own(name, &fifo, |fifo| {
        let server = echo(TestServer::builder().tls());
        let plain = echo(TestServer::builder());
        let loads = Arc::default();
        let builder = counting_loads(Client::builder(server.url()), &loads);
        let builder = builder.retry_delay_min(MS).retry_delay_max(5 * MS);
        let late = builder.clone().connect_timeout(100 * MS).start().expect("it starts");
        let mut events = late.events();
        for _ in 0..2 {
            let error = dial_failed(&mut events).error;
            assert_eq!(error.timeout(), Some(Timeout::Connect));
            let words = "(connect_timeout): reading the root certificates of the system";
            assert!(error.to_string().ends_with(words), "{error}");
        }
        Client::builder(plain.url()).connect().expect("it needs no roots");
        let report = late.stop(SOON);
        let timed_out: Vec<_> = report
            .threads()
            .iter()
            .filter(|thread| thread.outcome == ThreadOutcome::TimedOut)
            .map(|thread| thread.name)
            .collect();
        assert_eq!(timed_out, ["taut-roots"], "{report}");
        // The next client waits for the load that the first has left behind.
        let waiting = builder.connect_timeout(SOON).start().expect("it starts");
        // The first reading goes on, and whatever is read later is a file.
        let mut first = File::options().write(true).open(fifo).expect("it is being read");
        std::fs::remove_file(fifo).expect("it is there");
        std::fs::write(fifo, TestServer::root_pem()).expect("there is room");
        first.write_all(TestServer::root_pem()).expect("it is being read");
        drop(first);
        waiting.wait_open(SOON).expect("it opens");
        assert_eq!(loads.load(Ordering::SeqCst), 1);
    });
    if std::env::var_os("TAUTLINE_SUITE_ROOTS").is_none() {
        std::fs::remove_file(&fifo).expect("it has been made");
    }
}

#[test]
fn the_pinned_public_key_is_compared_before_the_request_is_sent() {
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    let server = TestServer::builder().tls().start(move |peer| {
        peer.upgrade()?;
        counted.fetch_add(1, Ordering::SeqCst);
        peer.echo()
    });
    let wrong = format!("sha256/{}=", "A".repeat(43));
    let builder = crate::support::builder(&server);
    let client = builder.clone().tls_pin(&wrong).start().expect("it is a pin");
    let mut events = client.events();
    let error = dial_failed(&mut events).error;
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Tls, false));
    assert!(error.is_verification_failure());
    assert_eq!(crate::support::stopped(&mut events).reason.kind(), ErrorKind::Tls);
    let text = error.to_string();
    let (_, seen) = text.rsplit_once(' ').expect("it has words");
    assert_eq!(requests.load(Ordering::SeqCst), 0);
    // One of several is enough.
    let client = builder.clone().tls_pin(&wrong).tls_pin(seen).connect().expect("it matches");
    assert_eq!(client.stats().epochs, 1);
    // A pin takes the place of no verification.
    let distrusting = Client::builder(server.url()).tls_pin(seen).max_attempts(1);
    let error = distrusting.connect().map(drop).expect_err("the root is unknown");
    assert!(error.is_verification_failure() && !error.to_string().contains("tls_pin"), "{error}");
    for no_pin in ["sha256/AAAA", "sha1/AAAA", ""] {
        let error = builder.clone().tls_pin(no_pin).start().map(drop).expect_err("it is no pin");
        assert_eq!(error.kind(), ErrorKind::Config);
    }
}
