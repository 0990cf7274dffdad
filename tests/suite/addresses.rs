//! Hosts with several addresses, and their lookups.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use tautline::testing::{Peer, TestServer, TestServerBuilder};
use tautline::{Client, Connection, Deflate, ErrorKind, Event, Events, MessageRef, Opened};

use crate::support::{MS, SOON, dial_failed, echo, next, opened, plain_and_tls, skipped};

type Script = fn(&mut Peer) -> io::Result<()>;

/// Ways to fail a dial after TCP has connected.
const FAILURES: [(&str, Script); 5] = [
    ("closes", |_| Ok(())),
    ("answers 503", |peer| peer.refuse(503, "", "")),
    ("resets", |peer| peer.reset()),
    ("hangs", |peer| peer.stall()),
    ("chooses an extension wrongly", |peer| {
        peer.upgrade_with("Sec-WebSocket-Extensions: permessage-deflate; unknown\r\n").map(drop)
    }),
];

/// A server that opens each connection and ends it at once, so that the client dials again.
fn opening(builder: TestServerBuilder) -> TestServer {
    builder.start(|peer| peer.upgrade().map(drop))
}

/// The settings of a client whose every host has these addresses.
fn resolving_to(url: &str, addresses: Vec<SocketAddr>) -> tautline::Builder {
    Client::builder(url)
        .resolver(move |_: &str, _: u16| Ok(addresses.clone()))
        .tls_root(TestServer::root_pem())
        .compress(Deflate::new())
        .connect_timeout(Duration::from_secs(1))
        .retry_delay_min(MS)
        .retry_delay_max(5 * MS)
}

/// Skips events until a connection opens, which has to be one of the next few dials.
fn until_opened(events: &mut Events) -> Opened {
    for _ in 0..10 {
        match next(events) {
            Event::Opened(opened) => return opened,
            Event::DialFailed(_) | Event::Disconnected(_) => {}
            other => panic!("{other:?}"),
        }
    }
    panic!("no connection opens");
}

#[test]
fn an_address_that_fails_after_tcp_connected_is_tried_last_from_then_on() {
    plain_and_tls(|server_builder| {
        for (what, script) in FAILURES {
            let bad = server_builder().start(script);
            let good = opening(server_builder());
            let url = if bad.url().starts_with("wss") { "wss://localhost/" } else { "ws://a/" };
            let settings = resolving_to(url, vec![bad.address(), good.address()]);
            let client = settings.start().expect("it starts");
            assert!(good.wait_for_openings(5, SOON), "{what}: {:?}", client.stop_reason());
            assert_eq!(bad.connections(), 1, "{what}");
            assert!(client.stop(SOON).is_clean());
        }
    });
}

#[test]
fn every_address_gets_its_turn_while_others_fail() {
    for (what, script) in FAILURES {
        let bad = [(); 3].map(|()| TestServer::start(script));
        let good = echo(TestServer::builder());
        let addresses = bad.iter().chain([&good]).map(TestServer::address).collect();
        let client = resolving_to("ws://a/", addresses).start().expect("it starts");
        let mut events = client.events();
        assert_eq!(until_opened(&mut events).peer, good.address(), "{what}");
        assert_eq!(bad.each_ref().map(TestServer::connections), [1, 1, 1], "{what}");
    }
}

#[test]
fn an_address_that_fails_for_one_endpoint_keeps_its_place_for_another() {
    let server = TestServer::start(|peer| {
        let request = peer.read_request()?;
        match request.header("Host") {
            Some("bad.example") => peer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"),
            _ => peer.write(request.acceptance("").as_bytes()),
        }
    });
    let other = opening(TestServer::builder());
    let client = resolving_to("ws://bad.example/", vec![server.address(), other.address()])
        .add_endpoint("ws://good.example/")
        .start()
        .expect("it starts");
    let mut events = client.events();
    assert_eq!(dial_failed(&mut events).error.status().map(|status| status.as_u16()), Some(503));
    let peers = [(); 4].map(|()| until_opened(&mut events).peer);
    let (first, second) = (server.address(), other.address());
    assert_eq!(peers, [first, second, first, second]);
}

#[test]
fn with_the_systems_resolver_too_an_address_that_fails_is_tried_last() {
    let mut resolved: Vec<SocketAddr> =
        ("localhost", 0).to_socket_addrs().expect("localhost resolves").collect();
    resolved.dedup();
    let &[first, second, ..] = resolved.as_slice() else {
        return skipped("localhost has a single address");
    };
    let bad = TestServer::builder().address(first).start(|peer| peer.refuse(503, "", ""));
    let port = bad.address().port();
    let good = opening(TestServer::builder().address(SocketAddr::new(second.ip(), port)));
    let client = Client::builder(format!("ws://localhost:{port}/"))
        .retry_delay_min(MS)
        .retry_delay_max(5 * MS)
        .start()
        .expect("it starts");
    assert!(good.wait_for_openings(5, SOON), "{:?}", client.stop_reason());
    assert_eq!(bad.connections(), 1);
}

#[test]
fn a_resolver_that_returns_very_many_addresses_makes_no_stop_late() {
    let resolver = |_: &str, _: u16| {
        Ok((0..200_000_u32).map(|host| ((0x7f00_0001 + host).to_be_bytes(), 1).into()).collect())
    };
    let client = Client::builder("ws://server.example/")
        .resolver(resolver)
        .retry_delay_min(MS)
        .retry_delay_max(5 * MS)
        .start()
        .expect("it starts");
    let text = dial_failed(&mut client.events()).error.to_string();
    assert!(text.contains("16 addresses tried"), "{text}");
    let began = Instant::now();
    let report = client.stop(SOON);
    assert!(report.is_clean(), "{report}");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[test]
fn a_lookup_that_hangs_does_not_hold_up_the_next_endpoint() {
    let good = opening(TestServer::builder());
    let address = good.address();
    let (release, held) = bounded::<()>(0);
    let hung = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&hung);
    let resolver = move |host: &str, _: u16| {
        if host == "hangs.example" {
            counted.fetch_add(1, Ordering::SeqCst);
            assert!(held.recv().is_err());
        }
        Ok(vec![address])
    };
    let client = Client::builder("ws://hangs.example/")
        .add_endpoint("ws://works.example/")
        .resolver(resolver)
        .connect_timeout(500 * MS)
        .retry_delay_min(MS)
        .retry_delay_max(5 * MS)
        .start()
        .expect("it starts");
    let mut events = client.events();
    for _ in 0..3 {
        let failure = dial_failed(&mut events);
        assert_eq!(failure.error.kind(), ErrorKind::Timeout);
        let text = failure.error.to_string();
        assert!(text.ends_with("resolving hangs.example"), "{text}");
        opened(&mut events);
        assert!(matches!(next(&mut events), Event::Disconnected(_)));
    }
    assert_eq!(hung.load(Ordering::SeqCst), 1, "one lookup of a host at a time");
    assert!(client.live_threads() <= 4);
    // The answer of that lookup is taken, however late it is.
    drop(release);
    opened(&mut events);
}

#[test]
fn lookups_that_hang_are_bounded_when_each_dial_names_another_host() {
    let (release, held) = bounded::<()>(0);
    let resolver = move |_: &str, _: u16| {
        assert!(held.recv().is_err());
        Err(io::Error::other("too late"))
    };
    let dials = AtomicUsize::new(0);
    let client = Client::builder_from_fn(move |_| {
        let dial = dials.fetch_add(1, Ordering::SeqCst);
        Ok(format!("ws://host-{dial}.example/").into())
    })
    .resolver(resolver)
    .connect_timeout(5 * MS)
    .retry_delay_min(MS)
    .retry_delay_max(2 * MS)
    .start()
    .expect("it starts");
    let mut events = client.events();
    for dial in 0..12 {
        let error = dial_failed(&mut events).error;
        assert!(error.to_string().contains(&format!("resolving host-{dial}.example")), "{error}");
        let expected = if dial < 8 { ErrorKind::Timeout } else { ErrorKind::Resolve };
        assert_eq!(error.kind(), expected, "{error}");
        assert!(error.is_retryable() && client.live_threads() <= 2 + 8);
    }
    // Once they have ended, others can start.
    drop(release);
    while dial_failed(&mut events).error.chain().contains("lookups of other hosts") {}
}

#[test]
fn a_stop_during_an_ordinary_lookup_is_clean() {
    let lookup = || {
        let (tell, told) = bounded(1);
        let resolver = move |_: &str, _: u16| {
            let _ = tell.try_send(());
            thread::sleep(50 * MS);
            Err(io::Error::other("there is no such host"))
        };
        let client = Client::builder("ws://server.example/")
            .resolver(resolver)
            .drop_timeout(SOON)
            .start_with(|_: &mut Connection<'_>, _: MessageRef<'_>| {})
            .expect("it starts");
        told.recv_timeout(SOON).expect("it resolves");
        client
    };
    let client = lookup();
    let report = client.stop(SOON);
    assert!(report.is_clean(), "{report}");
    // A tenth of this budget is too short.
    assert!(!lookup().stop(100 * MS).is_clean());
    let client = lookup();
    let stopper = client.stopper();
    drop(client);
    let report = stopper.stop(Duration::ZERO);
    assert!(report.is_clean(), "{report}");
}

#[test]
fn a_root_dot_is_looked_up_and_sent_and_is_no_part_of_the_certificates_name() {
    let server = TestServer::builder().tls().start(|peer| {
        let request = peer.upgrade()?;
        peer.send_text(request.header("Host").unwrap_or("none"))?;
        peer.echo()
    });
    let address = server.address();
    let resolver = move |host: &str, _: u16| match host {
        "localhost." => Ok(vec![address]),
        _ => Err(io::Error::other("another name was looked up")),
    };
    let client = Client::builder("wss://localhost./")
        .resolver(resolver)
        .tls_root(TestServer::root_pem())
        .connect()
        .expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    let host = crate::support::message(&mut events).into_text().ok();
    assert_eq!(host.as_deref(), Some("localhost."));
}
