//! Dialing: from a URL to an open connection, and everything that can go wrong in between.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded};
use tautline::testing::{Peer, Request, TestServer};
use tautline::{
    AppPing, Builder, Client, Decode, Deflate, Endpoint, Error, ErrorKind, Event, Timeout,
};

use crate::support::{
    MS, SOON, builder, dial_failed, disconnected, echo, message, next, opened, plain_and_tls,
    refusing_address, skipped, unanswering_address,
};

/// Dials a server that refuses the connection, and returns the error.
fn refused(server: &TestServer) -> Error {
    builder(server).connect_timeout(SOON).connect().expect_err("it is refused")
}

/// Checks that a dial times out in `step`. The timeout grows until the error names that step: on a
/// busy machine a short one may run out in an earlier step.
fn assert_times_out_in(step: &str, dial: impl Fn(Duration) -> Error) {
    let mut timeout = 80 * MS;
    loop {
        let began = Instant::now();
        let error = dial(timeout);
        let took = began.elapsed();
        assert_eq!(
            (error.kind(), error.timeout()),
            (ErrorKind::Timeout, Some(Timeout::Connect)),
            "{error}"
        );
        assert!(took >= timeout && took < timeout + SOON, "{took:?} of {timeout:?}: {error}");
        if error.to_string().contains(step) {
            return;
        }
        timeout *= 2;
        assert!(timeout <= SOON, "it never gets to {step}: {error}");
    }
}

#[test]
fn a_dial_that_stalls_at_any_step_ends_at_its_deadline_and_names_the_step() {
    let url = |url: String| {
        move |timeout| {
            Client::builder(&url).connect_timeout(timeout).connect().expect_err("it stalls")
        }
    };
    let to = |server: TestServer| {
        move |timeout| builder(&server).connect_timeout(timeout).connect().expect_err("it stalls")
    };
    // TCP: the queue of the listener is full.
    let (address, _guard) = unanswering_address();
    assert_times_out_in("connecting to", url(format!("ws://{address}/")));
    // TLS and upgrade: the server answers nothing, too little, or too slowly.
    let silent = TestServer::start(|peer| peer.stall());
    assert_times_out_in("upgrade with", url(silent.url()));
    assert_times_out_in("TLS handshake with", url(silent.url().replace("ws://", "wss://")));
    for bytes in [1, 100, 700] {
        let server = TestServer::builder().tls().stall_writes_after(bytes);
        assert_times_out_in(
            "TLS handshake with",
            to(server.start(|peer| peer.upgrade().map(drop))),
        );
    }
    let server = TestServer::builder().tls().trickle_writes(10 * MS);
    assert_times_out_in("TLS handshake with", to(server.start(|peer| peer.upgrade().map(drop))));
    plain_and_tls(|server_builder| {
        let server = server_builder().start(|peer| {
            peer.read_request()?;
            peer.trickle(&b"HTTP/1.1 101 Switching Protocols\r\nX-Endless: ".repeat(100), 5 * MS)
        });
        assert_times_out_in("upgrade with", to(server));
    });
    // Resolving: the lookup hangs.
    let (release, held) = bounded::<()>(0);
    assert_times_out_in("resolving server.example", move |timeout| {
        let held = held.clone();
        let resolver = move |_: &str, _: u16| {
            assert!(held.recv().is_err());
            Err(io::Error::other("too late"))
        };
        let builder = Client::builder("ws://server.example/").resolver(resolver);
        builder.connect_timeout(timeout).connect().expect_err("it hangs")
    });
    drop(release);
}

#[test]
fn the_next_dial_waits_for_a_hung_lookup_instead_of_starting_another() {
    let server = echo(TestServer::builder());
    let address = server.address();
    let (release, held) = bounded::<()>(0);
    let lookups = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&lookups);
    let resolver = move |host: &str, port: u16| {
        assert_eq!((host, port), ("server.example", 80));
        counted.fetch_add(1, Ordering::SeqCst);
        assert!(held.recv().is_err());
        Ok(vec![address])
    };
    let client = Client::builder("ws://server.example/")
        .resolver(resolver)
        .connect_timeout(20 * MS)
        .retry_delay_min(MS)
        .retry_delay_max(5 * MS)
        .start()
        .expect("it starts");
    let mut events = client.events();
    for _ in 0..3 {
        dial_failed(&mut events);
        assert!(client.live_threads() <= 3);
    }
    assert_eq!(lookups.load(Ordering::SeqCst), 1);
    drop(release);
    loop {
        match next(&mut events) {
            Event::Opened(_) => break,
            Event::DialFailed(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_refused_address_starts_the_next_at_once() {
    let server = echo(TestServer::builder());
    let alive = server.address();
    let dead: Vec<SocketAddr> = (0..5).map(|_| refusing_address()).collect();
    let resolver = move |_: &str, _: u16| Ok(dead.iter().copied().chain([alive]).collect());
    let client = Client::builder("ws://server.example/")
        .resolver(resolver)
        .connect()
        .expect("the last address answers");
    let mut events = client.events();
    let opened = opened(&mut events);
    assert_eq!(opened.peer, alive);
    assert!(
        opened.took < Duration::from_secs(1),
        "five staggers of 250 ms would take longer: {:?}",
        opened.took
    );
}

#[test]
fn the_next_address_is_tried_while_one_does_not_answer() {
    let server = echo(TestServer::builder());
    let alive = server.address();
    let (dead, _guard) = unanswering_address();
    let resolver = move |_: &str, _: u16| Ok(vec![dead, alive]);
    let began = Instant::now();
    let client = Client::builder("ws://server.example/")
        .resolver(resolver)
        .connect()
        .expect("the second address answers");
    // The second attempt starts 250 ms after the first.
    assert!(began.elapsed() >= 200 * MS);
    assert_eq!(opened(&mut client.events()).peer, alive);
}

#[test]
fn a_reset_in_the_middle_of_a_dial_is_told_as_such() {
    plain_and_tls(|server_builder| {
        let server = server_builder().start(|peer| {
            peer.read_request()?;
            peer.reset()
        });
        let error = builder(&server).connect().expect_err("it is reset");
        assert_eq!(error.kind(), ErrorKind::Io, "{error:?}");
        assert!(error.chain().to_lowercase().contains("reset"), "{}", error.chain());
        assert!(error.is_retryable());
    });
}

#[test]
fn a_port_that_nobody_listens_on_is_a_retryable_connect_error() {
    let address = refusing_address();
    let error = Client::builder(format!("ws://{address}/")).connect().expect_err("nobody listens");
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert!(error.is_retryable() && error.chain().contains("refused"), "{}", error.chain());
}

#[test]
fn a_name_that_does_not_resolve_is_a_resolve_error() {
    let empty = |_: &str, _: u16| Ok(Vec::new());
    let failing = |_: &str, _: u16| Err(io::Error::other("no such host"));
    let panicking = |_: &str, _: u16| -> io::Result<Vec<SocketAddr>> { panic!("on purpose") };
    let dial = |builder: Builder| builder.connect().expect_err("it does not resolve").kind();
    let start = || Client::builder("ws://server.example/");
    assert_eq!(dial(start().resolver(empty)), ErrorKind::Resolve);
    assert_eq!(dial(start().resolver(failing)), ErrorKind::Resolve);
    assert_eq!(dial(start().resolver(panicking)), ErrorKind::Resolve);
}

#[test]
fn invalid_upgrade_responses_are_refused_before_opened() {
    plain_and_tls(|server_builder| {
        for header in [
            "Sec-WebSocket-Extensions: permessage-deflate\r\n",
            "Sec-WebSocket-Protocol: not-offered\r\n",
        ] {
            let server = server_builder().start(move |peer| {
                peer.upgrade_with(header)?;
                peer.echo()
            });
            assert_eq!(refused(&server).kind(), ErrorKind::Upgrade);
        }
        let server = server_builder().start(|peer| {
            let request = peer.read_request()?;
            peer.write(
                request
                    .acceptance("")
                    .replace("Sec-WebSocket-Accept: ", "Sec-WebSocket-Accept: x")
                    .as_bytes(),
            )?;
            peer.echo()
        });
        assert_eq!(refused(&server).kind(), ErrorKind::Upgrade);
        let server = server_builder().start(|peer| {
            peer.read_request()?;
            peer.write(b"SSH-2.0-OpenSSH_9.2\r\n")?;
            peer.drain()
        });
        assert_eq!(refused(&server).kind(), ErrorKind::Upgrade);
        let server = server_builder().start(|_| Ok(()));
        assert!(matches!(refused(&server).kind(), ErrorKind::Upgrade | ErrorKind::Io));
    });
}

#[test]
fn an_endless_response_head_is_refused() {
    let server = TestServer::start(|peer| {
        peer.read_request()?;
        peer.write(b"HTTP/1.1 101 Switching Protocols\r\nX: ")?;
        loop {
            peer.write(&[b'x'; 4096])?;
        }
    });
    let error = refused(&server);
    assert_eq!(error.kind(), ErrorKind::Upgrade);
    assert!(error.to_string().contains("64 KiB"), "{error}");
}

#[test]
fn subprotocols_headers_and_interim_responses_are_handled() {
    let server = TestServer::start(|peer| {
        let request = peer.read_request()?;
        peer.write(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")?;
        peer.write(
            request.acceptance("Sec-WebSocket-Protocol: v2\r\nX-Region: tokyo\r\n").as_bytes(),
        )?;
        let seen: Vec<&str> = ["Sec-WebSocket-Protocol", "X-Key", "Host", "User-Agent"]
            .iter()
            .map(|name| request.header(name).unwrap_or("none"))
            .collect();
        peer.send_text(&format!("{} {}", request.path, seen.join("|")))?;
        peer.echo()
    });
    let url = format!("{}stream?x=1", server.url());
    let client = Client::builder(url)
        .header("X-Key", "k")
        .header("User-Agent", "bot")
        .subprotocol("v1")
        .subprotocol("v2")
        .connect()
        .expect("it opens");
    let mut events = client.events();
    let opened = opened(&mut events);
    assert_eq!(opened.subprotocol.as_deref(), Some("v2"));
    assert_eq!(opened.headers.get("x-region").and_then(|value| value.to_str().ok()), Some("tokyo"));
    assert_eq!(
        message(&mut events).into_text().ok(),
        Some(format!("/stream?x=1 v1, v2|k|{}|bot", server.address()))
    );
}

#[test]
fn a_certificate_of_an_unknown_root_ends_the_client_at_the_second_dial() {
    let server = TestServer::builder().tls().start(|peer| peer.upgrade().map(drop));
    let client = Client::builder(server.url()).retry_delay_min(MS).start().expect("it starts");
    let events: Vec<_> = client.events().collect();
    assert_eq!(events.len(), 3, "{events:?}");
    let reason = client.stop_reason().expect("it has ended");
    assert!(
        reason.kind() == ErrorKind::Tls
            && reason.is_verification_failure()
            && !reason.is_retryable(),
        "{reason:?}"
    );
    assert_eq!(server.connections(), 2);
}

#[test]
fn a_certificate_that_is_refused_only_sometimes_does_not_end_the_client() {
    let stranger = echo(TestServer::builder().tls_wrong_host());
    let good = TestServer::builder().tls().start(|peer| peer.upgrade().map(drop));
    let client = builder(&stranger).add_endpoint(good.url()).start().expect("it starts");
    assert!(good.wait_for_openings(3, SOON), "{:?}", client.stop_reason());
    assert!(stranger.connections() >= 2);
    assert!(client.stop(SOON).is_clean());
}

#[test]
fn certificates_refused_with_another_failure_in_between_do_not_end_the_client() {
    let stranger = echo(TestServer::builder().tls_wrong_host());
    let urls = [stranger.url(), "ws://127.0.0.1:1/".to_owned()];
    let dials = AtomicUsize::new(0);
    let client = Client::builder_from_fn(move |_| {
        Ok(urls[dials.fetch_add(1, Ordering::Relaxed) % 2].as_str().into())
    })
    .tls_root(TestServer::root_pem())
    .retry_delay_min(MS)
    .retry_delay_max(5 * MS)
    .start()
    .expect("it starts");
    assert!(stranger.wait_for_connections(4, SOON), "{:?}", client.stop_reason());
    assert!(client.stop(SOON).is_clean());
}

#[test]
fn connect_does_not_wait_for_an_endpoint_closure_that_hangs() {
    let (release, held) = bounded::<()>(0);
    let connect_timeout = 50 * MS;
    let began = Instant::now();
    let error = Client::builder_from_fn(move |context| {
        assert!(context.remaining() <= connect_timeout);
        assert!(held.recv().is_err());
        assert_eq!(context.remaining(), Duration::ZERO);
        Err("too late".into())
    })
    .connect_timeout(connect_timeout)
    .drop_timeout(360 * SOON)
    .connect()
    .expect_err("the closure hangs");
    assert!(began.elapsed() < SOON, "it was waited for");
    assert_eq!((error.kind(), error.timeout()), (ErrorKind::Timeout, Some(Timeout::Connect)));
    drop(release);
}

#[test]
fn a_certificate_for_another_host_is_refused_unless_configured_otherwise() {
    let server = echo(TestServer::builder().tls_wrong_host());
    let error = refused(&server);
    assert!(error.is_verification_failure(), "{}", error.chain());
    assert!(builder(&server).danger_accept_invalid_hostnames().connect().is_ok());
    assert!(
        Client::builder(server.url())
            .danger_accept_invalid_certificates()
            .danger_accept_invalid_hostnames()
            .connect()
            .is_ok()
    );
}

#[test]
fn settings_that_can_never_work_are_refused_before_anything_starts() {
    let good = || Client::builder("ws://127.0.0.1:1/");
    let bad = [
        Client::builder("http://127.0.0.1/"),
        Client::builder("ws://user:hunter2@127.0.0.1/"),
        good().header("Host", "x"),
        good().header("X", "a\r\nb"),
        good().subprotocol("a b"),
        good().connect_timeout(Duration::ZERO),
        good().ping_interval(Duration::ZERO),
        good().app_ping(AppPing::text("ping", SOON)).app_ping(AppPing::text("x", Duration::ZERO)),
        Client::builder(Endpoint::new("ws://127.0.0.1:1/").app_ping_interval(Duration::ZERO)),
        good().max_attempts(0),
        good().max_message_size(0),
        good().max_outgoing_message_size(0),
        good().max_outgoing_frame_size(0),
        good().queue_messages(0),
        good().tcp_keepalive(999 * MS),
        good().tcp_keepalive(Duration::from_secs(40_000)),
        good().tcp_receive_buffer(0),
        good().tcp_send_buffer(0),
        good().thread_stack_size(96 * 1024 - 1),
        good().thread_stack_size(160 * 1024 - 1).compress(Deflate::new()),
        good().thread_stack_size(160 * 1024 - 1).decode(Decode::gzip()),
        good().tls_root("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n"),
        good().tls_root("neither PEM nor DER"),
        good().tls_identity_pem("nonsense", "nonsense"),
        good().add_endpoint("nonsense"),
        Client::builder_from_fn(|_| Err("never called".into())).header("Upgrade", "x"),
    ];
    for builder in bad {
        let error = builder.clone().connect().expect_err("it can never work");
        assert_eq!(error.kind(), ErrorKind::Config, "{builder:?}: {error}");
        assert!(!error.chain().contains("hunter2"));
    }
}

#[test]
fn ipv6_loopback_is_dialed_by_its_bracketed_address() {
    let address: SocketAddr = "[::1]:0".parse().expect("an address");
    if TcpListener::bind(address).is_err() {
        skipped("this machine has no IPv6 loopback");
        return;
    }
    let server = echo(TestServer::builder().address(address));
    assert!(server.url().starts_with("ws://[::1]:"));
    let client = builder(&server).connect().expect("it opens");
    assert_eq!(opened(&mut client.events()).peer, server.address());
}

#[test]
fn a_response_body_that_stalls_does_not_use_up_connect_timeout() {
    let server = TestServer::start(|peer| {
        peer.read_request()?;
        peer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 4000\r\n\r\nsorry")?;
        peer.stall()
    });
    let began = Instant::now();
    let error = builder(&server)
        .connect_timeout(Duration::from_secs(60))
        .connect()
        .expect_err("it is refused");
    assert_eq!(error.response().map(|response| response.body().clone()), Some(b"sorry".to_vec()));
    assert!(began.elapsed() < SOON);
}

#[test]
fn socket_options_and_a_client_certificate_are_used() {
    let server = TestServer::builder().tls().start(|peer| {
        peer.upgrade()?;
        peer.send_text(&peer.address()?.ip().to_string())?;
        peer.echo()
    });
    let certificate = include_bytes!("../../src/testing/certificates/localhost.pem");
    let key = include_bytes!("../../src/testing/certificates/localhost.key");
    let client = builder(&server)
        .bind_address("127.0.0.2".parse().expect("an address"))
        .tcp_keepalive(SOON)
        .tcp_receive_buffer(64 * 1024)
        .tcp_send_buffer(64 * 1024)
        .tls_identity_pem(certificate, key)
        .connect()
        .expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    assert_eq!(message(&mut events).text(), Some("127.0.0.2"));
}

#[test]
fn addresses_of_another_family_than_bind_address_are_not_tried() {
    let builder =
        Client::builder("ws://[::1]:1/").bind_address("127.0.0.1".parse().expect("an address"));
    let error = builder.connect().expect_err("there is nothing to try");
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert!(error.chain().contains("bind_address"), "{}", error.chain());
}

#[test]
fn a_server_that_sends_byte_by_byte_works_like_any_other() {
    plain_and_tls(|server_builder| {
        let server = echo(server_builder().trickle_writes(Duration::from_micros(5)));
        let client = builder(&server).connect_timeout(SOON).connect().expect("it opens");
        let mut events = client.events();
        opened(&mut events);
        let text = "x".repeat(200);
        for _ in 0..3 {
            client.send_text(&text).expect("the connection is open");
            assert_eq!(message(&mut events).text(), Some(text.as_str()));
        }
        assert_eq!(client.epoch(), 1);
    });
}

#[test]
fn endless_interim_responses_end_the_dial() {
    let server = TestServer::start(|peer| {
        peer.read_request()?;
        let flood = "HTTP/1.1 100 Continue\r\n\r\n".repeat(4000);
        loop {
            peer.write(flood.as_bytes())?;
        }
    });
    let error = builder(&server).connect().expect_err("nobody has answered");
    assert_eq!(error.kind(), ErrorKind::Upgrade, "{error}");
    let client = builder(&server).start().expect("it starts");
    assert!(server.wait_for_connections(2, SOON));
    assert!(client.stop(SOON).is_clean());
}

#[test]
fn an_opening_is_reported_however_short_it_is() {
    for _ in 0..20 {
        let server = TestServer::start(|peer| {
            if peer.number() > 0 {
                return peer.stall();
            }
            let request = peer.read_request()?;
            let mut bytes = request.acceptance("").into_bytes();
            bytes.extend_from_slice(&[0x88, 2, 0x03, 0xe8]);
            peer.write(&bytes)
        });
        let client = builder(&server).max_attempts(1).connect().expect("it has opened");
        let mut events = client.events();
        opened(&mut events);
        disconnected(&mut events);
    }
}

#[test]
fn a_refusal_in_http_1_0_is_reported_as_a_refusal() {
    let server = TestServer::start(|peer| {
        peer.read_request()?;
        peer.write(b"HTTP/1.0 401 Unauthorized\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\nno")?;
        peer.drain()
    });
    let error = builder(&server).connect().expect_err("it is refused");
    assert_eq!(error.kind(), ErrorKind::Http);
    assert!(!error.is_retryable());
}

/// An overflow would abort the process, and with it every test.
#[test]
fn the_smallest_stack_that_is_accepted_is_enough_to_open_and_to_talk() {
    const HELLO: [u8; 7] = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
    plain_and_tls(|server| {
        for is_compressed in [false, true] {
            let server = server().start(move |peer| {
                if is_compressed {
                    peer.upgrade_with("Sec-WebSocket-Extensions: permessage-deflate\r\n")?;
                    peer.send_frame(0xc1, &HELLO)?;
                } else {
                    peer.upgrade()?;
                    peer.send_text("Hello")?;
                }
                peer.receive_message()?;
                peer.close(1000, "")
            });
            let (stack, mut builder) = (if is_compressed { 160 } else { 96 }, builder(&server));
            if is_compressed {
                builder = builder.compress(Deflate::new());
            }
            let client = builder.thread_stack_size(stack * 1024).start().expect("it starts");
            let mut events = client.events();
            assert_eq!(opened(&mut events).is_compressed, is_compressed);
            assert_eq!(message(&mut events).text(), Some("Hello"));
            client.send_text(&"compressible ".repeat(1000)).expect("the connection is open");
            disconnected(&mut events);
            assert!(client.stop(SOON).is_clean());
        }
    });
}

#[test]
fn a_chunked_refusal_is_put_together_and_not_waited_for() {
    plain_and_tls(|server_builder| {
        let server = server_builder().start(|peer| {
            peer.read_request()?;
            let chunked = if peer.number() % 2 == 0 { "chunked" } else { "Chunked" };
            peer.write(
                format!(
                    "HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: {chunked}\r\n\
                     Content-Length: 5\r\n\r\n8\r\n{{\"code\":\r\n6\r\n-2015}}\r\n0\r\n\r\n"
                )
                .as_bytes(),
            )?;
            // The connection stays open.
            peer.drain()
        });
        for _ in 0..2 {
            let began = Instant::now();
            let error = refused(&server);
            let response = error.response().expect("it is a refusal");
            assert_eq!(response.body(), b"{\"code\":-2015}");
            assert!(began.elapsed() < Duration::from_secs(1), "it waited for more");
        }
    });
}

#[test]
fn the_first_dial_decides_for_a_client_with_a_handler_too() {
    struct Tells(crossbeam_channel::Sender<&'static str>);
    impl tautline::Handler for Tells {
        fn opened(&mut self, _: &mut tautline::Connection<'_>) {
            self.0.send("opened").expect("the test listens");
        }
        fn message(&mut self, _: &mut tautline::Connection<'_>, _: tautline::MessageRef<'_>) {}
        fn dial_failed(&mut self, failure: &tautline::DialFailure) {
            assert_eq!(failure.retry_in, None);
            self.0.send("dial failed").expect("the test listens");
        }
        fn stopped(&mut self, _: &tautline::Stopped) {
            self.0.send("stopped").expect("the test listens");
        }
    }
    let (tell, told) = crossbeam_channel::unbounded();
    let dead = Client::builder(format!("ws://{}/", refusing_address()));
    let error = dead.connect_with(Tells(tell.clone())).expect_err("nobody listens");
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert_eq!(told.try_iter().collect::<Vec<_>>(), ["dial failed", "stopped"]);

    let server = echo(TestServer::builder());
    let client = builder(&server).connect_with(Tells(tell)).expect("it opens");
    assert_eq!(client.epoch(), 1);
    assert!(client.stop(SOON).is_clean());
    assert_eq!(told.try_iter().collect::<Vec<_>>(), ["opened", "stopped"]);
}

#[test]
fn a_refusal_with_a_header_that_is_slightly_wrong_keeps_its_status_and_retry_after() {
    let server = TestServer::start(|peer| {
        peer.read_request()?;
        peer.write(
            b"HTTP/1.1 429 Too Many Requests\r\nX-Y : v\r\nX Z: v\r\nRetry-After: 60\r\n\
              Content-Length: 4\r\n\r\nbusy",
        )?;
        peer.drain()
    });
    let error = refused(&server);
    assert_eq!(error.status().map(|status| status.as_u16()), Some(429));
    assert_eq!(error.retry_after(), Some(Duration::from_secs(60)));
    assert_eq!(error.response().map(|response| &response.body()[..]), Some(&b"busy"[..]));
    let unauthorized = TestServer::start(|peer| {
        peer.read_request()?;
        peer.write(b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate : Basic\r\n\r\n")
    });
    let error = refused(&unauthorized);
    assert_eq!(error.status().map(|status| status.as_u16()), Some(401));
    assert!(!error.is_retryable());
}

const BAD_REQUEST: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";

/// Answers 400 to an offer with a window, as some servers do whatever follows it. Returns the offer
/// and a request without one, which is still to be answered.
fn bare_request(peer: &mut Peer) -> io::Result<(String, Option<Request>)> {
    let request = peer.read_request()?;
    let offer = request.header("sec-websocket-extensions").unwrap_or_default().to_owned();
    if offer.contains("server_max_window_bits") {
        peer.write(BAD_REQUEST)?;
        return Ok((offer, None));
    }
    Ok((offer, Some(request)))
}

#[test]
fn a_server_that_refuses_a_window_is_dialed_again_without_it_from_then_on() {
    let (tell, told) = bounded(10);
    let server = TestServer::start(move |peer| {
        let (offer, request) = bare_request(peer)?;
        tell.send((peer.number(), offer)).map_err(io::Error::other)?;
        let Some(request) = request else { return Ok(()) };
        let extension = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
        peer.write(request.acceptance(extension).as_bytes())?;
        peer.close(1001, "")?;
        peer.drain()
    });
    let deflate = Deflate::new().server_max_window_bits(10);
    // The first dial decides here, and is not retried.
    let client = builder(&server).compress(deflate).connect().expect("it opens");
    let mut events = client.events();
    assert!(opened(&mut events).is_compressed);
    disconnected(&mut events);
    assert!(opened(&mut events).is_compressed);
    let bare = "permessage-deflate";
    let full = "permessage-deflate; server_max_window_bits=10; client_max_window_bits, \
                permessage-deflate";
    // The script of a refused connection may tell of it after that of the next one.
    let mut offers: Vec<_> = (0..3).map(|_| told.recv_timeout(SOON).expect("an offer")).collect();
    offers.sort();
    assert_eq!(offers, [(0, full.to_owned()), (1, bare.to_owned()), (2, bare.to_owned())]);
    assert_eq!(client.stats().failed_dials, 0);
}

#[test]
fn a_status_of_400_is_final_where_no_window_was_asked_for_or_the_bare_offer_meets_it_too() {
    let server = TestServer::start(|peer| {
        peer.read_request()?;
        peer.write(BAD_REQUEST)
    });
    let asks_for_less = Deflate::new().server_no_context_takeover();
    let window = Deflate::new().server_max_window_bits(10);
    for (deflate, dials) in [(None, 1), (Some(asks_for_less), 1), (Some(window), 2)] {
        let before = server.connections();
        let mut builder = builder(&server);
        if let Some(deflate) = deflate {
            builder = builder.compress(deflate);
        }
        let client = builder.start().expect("it starts");
        let failure = dial_failed(&mut client.events());
        assert_eq!(failure.error.status().map(|status| status.as_u16()), Some(400));
        assert_eq!((failure.attempt, failure.retry_in), (1, None));
        assert_eq!(client.stats().failed_dials, 1);
        assert_eq!(server.connections() - before, dials);
    }
}

#[test]
fn the_dial_with_the_bare_offer_goes_to_the_same_address() {
    let (tell, told) = unbounded();
    let script = move |name: &'static str| {
        let tell = tell.clone();
        TestServer::start(move |peer| {
            let request = peer.read_request()?;
            let offer = request.header("Sec-WebSocket-Extensions").unwrap_or_default();
            let is_full = offer.contains("server_max_window_bits");
            tell.send((name, is_full)).map_err(std::io::Error::other)?;
            if is_full {
                return peer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
            }
            peer.write(request.acceptance("").as_bytes())
        })
    };
    let (near, far) = (script("near"), script("far"));
    let addresses = vec![near.address(), far.address()];
    let client = Client::builder("ws://server.example/")
        .resolver(move |_: &str, _: u16| Ok(addresses.clone()))
        .compress(Deflate::new().server_max_window_bits(10))
        .retry_delay_min(MS)
        .retry_delay_max(5 * MS)
        .start()
        .expect("it starts");
    let dials: Vec<_> =
        (0..4).map(|_| told.recv_timeout(SOON).expect("it dials again and again")).collect();
    assert_eq!(dials, [("near", true), ("near", false), ("near", false), ("near", false)]);
    drop(client);
}

#[test]
fn the_dial_with_the_bare_offer_ends_at_the_deadline_of_its_attempt() {
    const TIMEOUT: Duration = Duration::from_secs(1);
    let server = TestServer::start(move |peer| {
        peer.wait(TIMEOUT * 3 / 4)?;
        bare_request(peer)?;
        peer.stall()
    });
    let deflate = Deflate::new().server_max_window_bits(10);
    let began = Instant::now();
    let client = builder(&server).compress(deflate).connect_timeout(TIMEOUT).start();
    let client = client.expect("it starts");
    let failure = dial_failed(&mut client.events());
    let took = began.elapsed();
    assert_eq!((failure.attempt, failure.error.timeout()), (1, Some(Timeout::Connect)));
    assert!(took < TIMEOUT * 3 / 2, "it took {took:?}");
    assert!(client.stop(SOON).is_clean());
}

#[test]
fn the_dial_with_the_bare_offer_ends_with_a_stop() {
    let (tell, told) = bounded(1);
    let server = TestServer::start(move |peer| {
        if bare_request(peer)?.1.is_some() {
            tell.send(()).map_err(io::Error::other)?;
            peer.stall()?;
        }
        Ok(())
    });
    let deflate = Deflate::new().server_max_window_bits(10);
    let client = builder(&server).compress(deflate).connect_timeout(SOON).start();
    let client = client.expect("it starts");
    told.recv_timeout(SOON).expect("the bare offer comes");
    let began = Instant::now();
    assert!(client.stop(SOON).is_clean());
    assert!(began.elapsed() < SOON / 5, "it took {:?}", began.elapsed());
    assert_eq!(client.stats().failed_dials, 0);
}
