//! Helpers that the tests share.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use tautline::testing::{TestServer, TestServerBuilder};
use tautline::{Builder, Client, DialFailure, Disconnect, Event, Events, Message, Opened, Stopped};

/// Long enough for any event on a busy machine. A test that passes never waits this long.
pub(crate) const SOON: Duration = Duration::from_secs(10);

pub(crate) const MS: Duration = Duration::from_millis(1);

/// The settings of a client of `server` that trusts its certificate and retries fast.
pub(crate) fn builder(server: &TestServer) -> Builder {
    Client::builder(server.url())
        .tls_root(TestServer::root_pem())
        .retry_delay_min(MS)
        .retry_delay_max(5 * MS)
}

/// Starts a server that sends every message back.
pub(crate) fn echo(builder: TestServerBuilder) -> TestServer {
    builder.start(|peer| {
        peer.upgrade()?;
        peer.echo()
    })
}

/// Starts a server that reads everything after the upgrade and answers nothing.
pub(crate) fn draining(builder: TestServerBuilder) -> TestServer {
    builder.start(|peer| {
        peer.upgrade()?;
        peer.drain()
    })
}

/// Starts a server that neither reads nor writes after the upgrade.
pub(crate) fn stalling(builder: TestServerBuilder) -> TestServer {
    builder.start(|peer| {
        peer.upgrade()?;
        peer.stall()
    })
}

/// Returns an address at which nobody listens.
pub(crate) fn refusing_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port")
}

/// Returns an address at which connection attempts get no answer, for as long as the other value
/// lives: the queue of its listener is full.
pub(crate) fn unanswering_address() -> (SocketAddr, impl Sized) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    socket2::SockRef::from(&listener).listen(0).expect("it listens");
    let address = listener.local_addr().expect("an address");
    let filler = TcpStream::connect(address).expect("the queue has room for one");
    (address, (listener, filler))
}

/// Waits for a condition that no event announces.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within {SOON:?}");
        std::thread::yield_now();
    }
}

/// Says on standard error that a test cannot be run here. The harness would hide the output of
/// `eprintln!`, because the test passes.
pub(crate) fn skipped(why: &str) {
    writeln!(std::io::stderr(), "SKIPPED: {why}").expect("there is a standard error");
}

/// Returns the next event.
pub(crate) fn next(events: &mut Events) -> Event {
    events.next_timeout(SOON).expect("an event comes")
}

/// Returns the next event, which has to be an opening.
pub(crate) fn opened(events: &mut Events) -> Opened {
    match next(events) {
        Event::Opened(opened) => opened,
        other => panic!("expected an opening, got {other:?}"),
    }
}

/// Returns the next event, which has to be a message.
pub(crate) fn message(events: &mut Events) -> Message {
    match next(events) {
        Event::Message(message) => message,
        other => panic!("expected a message, got {other:?}"),
    }
}

/// Returns the next event that is no message, which has to be the end of a connection.
pub(crate) fn disconnected(events: &mut Events) -> Disconnect {
    loop {
        match next(events) {
            Event::Disconnected(disconnect) => return disconnect,
            Event::Message(_) | Event::Lagged(_) => {}
            other => panic!("expected the end of a connection, got {other:?}"),
        }
    }
}

/// Returns the next event, which has to be a failed dial.
pub(crate) fn dial_failed(events: &mut Events) -> DialFailure {
    match next(events) {
        Event::DialFailed(failure) => failure,
        other => panic!("expected a failed dial, got {other:?}"),
    }
}

/// Returns the next event, which has to be the end of the client.
pub(crate) fn stopped(events: &mut Events) -> Stopped {
    match next(events) {
        Event::Stopped(stopped) => stopped,
        other => panic!("expected the end of the client, got {other:?}"),
    }
}

/// Runs a test twice: without TLS and with it.
pub(crate) fn plain_and_tls(test: impl Fn(fn() -> TestServerBuilder)) {
    test(TestServer::builder);
    test(|| TestServer::builder().tls());
}
