//! Helpers that the tests share.

use std::io::Write;
use std::time::{Duration, Instant};

use tautline::testing::{TestServer, TestServerBuilder};
use tautline::{Builder, Client, Disconnect, Event, Events, Message, Opened};

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
pub(crate) fn next(events: &mut Events<'_>) -> Event {
    events.next_timeout(SOON).expect("an event comes")
}

/// Returns the next event, which has to be an opening.
pub(crate) fn opened(events: &mut Events<'_>) -> Opened {
    match next(events) {
        Event::Opened(opened) => opened,
        other => panic!("expected an opening, got {other:?}"),
    }
}

/// Returns the next event, which has to be a message.
pub(crate) fn message(events: &mut Events<'_>) -> Message {
    match next(events) {
        Event::Message(message) => message,
        other => panic!("expected a message, got {other:?}"),
    }
}

/// Returns the next event that is no message, which has to be the end of a connection.
pub(crate) fn disconnected(events: &mut Events<'_>) -> Disconnect {
    loop {
        match next(events) {
            Event::Disconnected(disconnect) => return disconnect,
            Event::Message(_) | Event::Lagged(_) => {}
            other => panic!("expected the end of a connection, got {other:?}"),
        }
    }
}

/// Runs a test twice: without TLS and with it.
pub(crate) fn plain_and_tls(test: impl Fn(fn() -> TestServerBuilder)) {
    test(TestServer::builder);
    test(|| TestServer::builder().tls());
}
