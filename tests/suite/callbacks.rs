//! Values of the program's that the client keeps and drops: their `Drop` may call the client.

use std::fmt;
use std::io::{self, Read};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tautline::testing::TestServer;
use tautline::{AppPing, Client, Connection, Handler, MessageRef, RetryDecision, Sender};

use crate::support::{MS, SOON, builder, echo, refusing_address, until};

/// A value whose `Drop` calls the client. It would wait for ever under a lock of the client's.
#[derive(Clone)]
struct Calls(Arc<Shared>);

#[derive(Default)]
struct Shared {
    sender: OnceLock<Sender>,
    made: AtomicUsize,
    drops: AtomicUsize,
}

impl Calls {
    fn new() -> Self {
        Calls(Arc::default())
    }

    fn drops(&self) -> usize {
        self.0.drops.load(Ordering::SeqCst)
    }

    /// Ends with a panic whose payload calls the client when it is dropped.
    fn panic(&self) -> ! {
        resume_unwind(Box::new(self.value()))
    }

    fn value(&self) -> Value {
        self.0.made.fetch_add(1, Ordering::SeqCst);
        Value(self.clone())
    }

    /// Each value holds a handle of the client: what the client keeps of them would live for ever.
    fn assert_none_is_left(&self) {
        assert_eq!(self.drops(), self.0.made.load(Ordering::SeqCst));
    }

    fn known_by(&self, sender: Sender) {
        assert!(self.0.sender.set(sender).is_ok(), "one client only");
    }
}

struct Value(Calls);

impl Drop for Value {
    fn drop(&mut self) {
        if let Some(sender) = self.0.0.sender.get() {
            let _ = sender.state();
            let _ = sender.send_text("dropped");
            let _ = sender.reconnect();
            let _ = sender.stopper().is_stopping();
        }
        self.0.0.drops.fetch_add(1, Ordering::SeqCst);
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Value")
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
}

impl std::error::Error for Value {}

#[test]
fn errors_of_the_endpoint_closure_and_of_the_resolver_are_dropped_without_a_lock() {
    let calls = Calls::new();
    let given = calls.clone();
    let client = Client::builder_from_fn(move |_| Err(Box::new(given.value()) as _))
        .retry_delay_min(MS)
        .retry_delay_max(MS)
        .start()
        .expect("it starts");
    calls.known_by(client.sender());
    until("errors of the closure are dropped", || {
        while client.events().try_next().is_ok() {}
        calls.drops() >= 5
    });
    assert!(client.stop(SOON).is_clean());
    drop(client);
    calls.assert_none_is_left();

    let calls = Calls::new();
    let given = calls.clone();
    let client = Client::builder("ws://server.example/")
        .resolver(move |_: &str, _: u16| Err(io::Error::other(given.value())))
        .retry_delay_min(MS)
        .retry_delay_max(MS)
        .start()
        .expect("it starts");
    calls.known_by(client.sender());
    until("errors of the resolver are dropped", || {
        while client.events().try_next().is_ok() {}
        calls.drops() >= 5
    });
    assert!(client.stop(SOON).is_clean());
    drop(client);
    calls.assert_none_is_left();
}

#[test]
fn payloads_of_panics_are_dropped_without_a_lock() {
    struct Panics(Calls, #[expect(dead_code, reason = "it is there to be dropped")] Value);
    impl Handler for Panics {
        fn opened(&mut self, connection: &mut Connection<'_>) {
            self.0.known_by(connection.sender());
        }
        fn message(&mut self, _: &mut Connection<'_>, _: MessageRef<'_>) {
            self.0.panic();
        }
    }
    let server = echo(TestServer::builder());
    let calls = Calls::new();
    let client =
        builder(&server).start_with(Panics(calls.clone(), calls.value())).expect("it starts");
    client.wait_open(SOON).expect("it opens");
    client.send_text("panic").expect("it is open");
    client.wait_closed(SOON).expect("the panic ends it");
    assert!(client.stop(SOON).is_clean());
    // The handler's own value is gone with the handler, and the payload is kept for the program.
    assert_eq!(calls.drops(), 1);
    drop(client.take_panic().expect("the payload is kept"));
    assert_eq!(calls.drops(), 2);

    let calls = Calls::new();
    let client =
        builder(&server).start_with(Panics(calls.clone(), calls.value())).expect("it starts");
    client.wait_open(SOON).expect("it opens");
    client.send_text("panic").expect("it is open");
    client.wait_closed(SOON).expect("the panic ends it");
    // Nobody takes the payload.
    drop(client);
    calls.assert_none_is_left();

    // Of two panics the first is kept, and the other dropped.
    let calls = Calls::new();
    let (ping, matcher) = (calls.clone(), calls.clone());
    let ping = AppPing::made_by(move || ping.panic(), MS).answered_by(move |_| matcher.panic());
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        while peer.send_text("message").is_ok() {}
        Ok(())
    });
    let client = builder(&server).app_ping(ping).start().expect("it starts");
    calls.known_by(client.sender());
    client.wait_closed(SOON).expect("a panic ends it");
    assert!(client.stop(SOON).is_clean());
    let dropped = calls.drops();
    drop(client.take_panic().expect("the payload is kept"));
    assert_eq!(calls.drops(), dropped + 1);

    let calls = Calls::new();
    let given = calls.clone();
    let client = Client::builder(format!("ws://{}/", refusing_address()))
        .retry_policy(move |_, _| -> RetryDecision { given.panic() })
        .start()
        .expect("it starts");
    client.wait_closed(SOON).expect("the panic ends it");
    assert!(client.stop(SOON).is_clean());
    drop(client);
    assert_eq!(calls.drops(), 1);
}

#[test]
fn the_error_of_a_reader_that_is_sent_from_is_dropped_without_a_lock() {
    struct Fails(Calls, usize);
    impl Read for Fails {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 += 1;
            match self.1 {
                1 | 2 => {
                    buffer.fill(b'x');
                    Ok(buffer.len())
                }
                _ => Err(io::Error::new(io::ErrorKind::ConnectionReset, self.0.value())),
            }
        }
    }
    let server = echo(TestServer::builder());
    let calls = Calls::new();
    let client = builder(&server).connect().expect("it opens");
    calls.known_by(client.sender());
    let error =
        client.sender().send_reader(Fails(calls.clone(), 0), 8).expect_err("the reader fails");
    assert!(!error.is_not_sent());
    // The text of the program's error is shown nowhere but in `source`.
    assert!(!format!("{error} {error:?} {}", error.reason().chain()).contains("a value"));
    // The connection does not live on half-dead: its end is told, and it comes back.
    client.wait_open(SOON).expect("it is open, or opens again");
    until("the connection comes back", || client.epoch() >= 2);
    drop(error);
    drop(client);
    assert_eq!(calls.drops(), 1);
}
