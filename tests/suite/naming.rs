//! Names of clients: two clients of one server can be told apart in whatever is printed.

use std::error::Error as StdError;
use std::fmt::{Debug, Display};
use std::sync::atomic::{AtomicU32, Ordering};

use tautline::testing::{Peer, TestServer};
use tautline::{
    Builder, Client, CloseReason, Connection, Error, ErrorKind, Event, Handler, MessageRef, Opened,
    Payload, RetryDecision, SendError, WhenFull,
};

use crate::support::{
    MS, SOON, builder, dial_failed, disconnected, draining, echo, opened, refusing_address,
    stopped, until,
};

const NAMES: [&str; 2] = ["one", "two"];

/// Checks the texts that one client prints while the other is there too.
struct Printed {
    name: &'static str,
    other: &'static str,
}

impl Printed {
    fn display(&self, text: &dyn Display) {
        let text = text.to_string();
        assert!(text.starts_with(&format!("{}: ", self.name)), "{}: {text}", self.name);
        assert_eq!(text.matches(&format!("{}:", self.name)).count(), 1, "{text}");
        assert!(!text.contains(&format!("{}:", self.other)), "{}: {text}", self.name);
    }

    fn debug(&self, value: &dyn Debug) {
        let text = format!("{value:?}");
        assert!(text.contains(&format!("{:?}", self.name)), "{}: {text}", self.name);
        assert!(!text.contains(&format!("{:?}", self.other)), "{}: {text}", self.name);
    }

    fn both(&self, value: &(impl Display + Debug)) {
        self.display(value);
        self.debug(value);
    }

    fn error(&self, error: &Error) {
        self.both(error);
        self.display(&error.chain());
        assert_eq!(error.client(), Some(self.name));
    }

    fn send_error(&self, error: &SendError) {
        self.both(error);
        self.error(error.reason());
    }

    /// Checks all that an event prints.
    fn event(&self, event: &Event) {
        match event {
            Event::Opened(opened) => self.debug(opened),
            Event::Disconnected(disconnect) => {
                self.both(disconnect);
                self.error(&disconnect.error);
            }
            Event::DialFailed(failure) => {
                self.both(failure);
                self.error(&failure.error);
            }
            Event::Stopped(stopped) => {
                self.both(stopped);
                self.error(&stopped.reason);
            }
            _ => {}
        }
    }
}

/// Runs a test with the clients "one" and "two" of one server, both alive at the same time.
fn two_clients(settings: impl Fn() -> Builder, test: impl Fn(&Client, &Printed)) {
    let clients = NAMES.map(|name| {
        settings().name(name).header("X-Client", name).start().expect("its settings are valid")
    });
    for (client, index) in clients.iter().zip([0, 1]) {
        let printed = Printed { name: NAMES[index], other: NAMES[1 - index] };
        assert_eq!(client.name(), printed.name);
        test(client, &printed);
        printed.both(client);
        printed.debug(&client.events());
        printed.debug(&client.sender());
        printed.debug(&client.stopper());
        let report = client.stop(SOON);
        printed.display(&report);
        printed.debug(&report);
        assert_eq!(report.client(), printed.name);
        printed.both(client);
        printed.error(&client.stop_reason().expect("it has ended"));
        printed.error(&client.wait_closed(SOON).expect("it has ended"));
        printed.error(&client.wait_open(SOON).expect_err("it has ended"));
        printed.send_error(&client.send_text("late").expect_err("it has ended"));
        let batch = client.send_batch(&[Payload::Text("late")]).expect_err("it has ended");
        printed.both(&batch);
        client.events().for_each(|event| printed.event(&event));
    }
}

#[test]
fn dials_that_fail_name_their_client() {
    let refusing = refusing_address();
    let refused = move || Client::builder(format!("ws://{refusing}/")).retry_delay_min(60 * SOON);
    two_clients(refused, |client, printed| {
        let mut events = client.events();
        let failure = dial_failed(&mut events);
        printed.event(&Event::DialFailed(failure));
        printed.both(client);
        // Its cause is the failed dial of the same client.
        let late = client.wait_open(MS).expect_err("it is refused");
        printed.error(&late);
        assert!(late.chain().contains("connecting to"), "{}", late.chain());
        let unsent = client.send_text("text").expect_err("no connection is open");
        printed.send_error(&unsent);
        assert_eq!(unsent.reason().kind(), ErrorKind::Connect);
        printed.send_error(&client.ping().expect_err("no connection is open"));
        printed.send_error(&client.reconnect().expect_err("no connection is open"));
    });
}

#[test]
fn a_refusal_names_the_client_that_the_retry_policy_and_connect_tell_of() {
    let server = TestServer::start(|peer: &mut Peer| peer.refuse(404, "", ""));
    for index in [0, 1] {
        let (tell, told) = crossbeam_channel::unbounded();
        let policy = move |error: &Error, _| {
            tell.send(error.clone()).expect("the test waits");
            RetryDecision::GiveUp
        };
        let printed = Printed { name: NAMES[index], other: NAMES[1 - index] };
        let settings = builder(&server).name(printed.name).retry_policy(policy);
        printed.debug(&settings);
        let error = settings.connect().expect_err("it is refused");
        assert_eq!(error.kind(), ErrorKind::Http);
        printed.error(&error);
        printed.error(&told.recv().expect("the policy is asked"));
    }
}

#[test]
fn ends_name_their_client() {
    let connections = [AtomicU32::new(0), AtomicU32::new(0)];
    let server = TestServer::start(move |peer| {
        let client = peer.upgrade()?.header("X-Client") == Some("two");
        match connections[usize::from(client)].fetch_add(1, Ordering::SeqCst) {
            0 => peer.close(1000, "")?,
            1 => return peer.reset(),
            2 => peer.send_text("one too many, and then another")?,
            // Answers no ping.
            _ => {}
        }
        peer.stall()
    });
    let settings = || {
        builder(&server)
            .ping_interval(20 * MS)
            .pong_timeout(200 * MS)
            .max_message_size(16)
            .close_timeout(10 * MS)
    };
    two_clients(settings, |client, printed| {
        let mut events = client.events();
        for kind in [ErrorKind::Closed, ErrorKind::Io, ErrorKind::TooBig, ErrorKind::PongTimeout] {
            printed.event(&Event::Opened(opened(&mut events)));
            let disconnect = disconnected(&mut events);
            assert_eq!(disconnect.error.kind(), kind, "{disconnect}");
            printed.event(&Event::Disconnected(disconnect));
        }
    });
}

#[test]
fn what_the_program_may_not_do_names_the_client() {
    let server = echo(TestServer::builder());
    let forbidden = CloseReason::new(1005, "");
    two_clients(
        || builder(&server).send_timeout(SOON),
        |client, printed| {
            let epoch = client.wait_open(SOON).expect("it opens");
            printed.both(client);
            let sender = client.sender();
            printed.both(&client.send_batch(&[]).expect_err("it is empty"));
            printed.error(&sender.wake().expect_err("it has no handler"));
            printed
                .error(&sender.wake_at(std::time::Instant::now()).expect_err("it has no handler"));
            printed.send_error(&sender.send_fragmented([]).expect_err("it is empty"));
            let past = sender.pinned_to(epoch + 1).send_text("text");
            printed.send_error(&past.expect_err("that is another epoch"));
            printed.send_error(&client.reconnect_with(&forbidden).expect_err("a forbidden code"));
            printed.error(&client.stop_with(&forbidden, SOON).expect_err("a forbidden code"));
            let stopper = client.stopper();
            printed.error(&stopper.stop_with(&forbidden, SOON).expect_err("a forbidden code"));
        },
    );
    for name in NAMES {
        let error = builder(&server).name(name).max_attempts(0).start().expect_err("a bad setting");
        assert!(error.to_string().starts_with(&format!("{name}: max_attempts")), "{error}");
        let error = Client::builder("http://a/").name(name).start().expect_err("a bad URL");
        assert!(error.to_string().starts_with(&format!("{name}: the URL")), "{error}");
    }
}

/// Prints itself and what it is told, and asks its own client for what it must not.
struct Prints {
    printed: Printed,
    done: crossbeam_channel::Sender<()>,
}

impl Handler for Prints {
    fn opened(&mut self, connection: &mut Connection<'_>) {
        self.printed.debug(connection);
        self.printed.debug(connection.opening());
        let itself = connection.sender().wait_open(SOON);
        assert!(itself.is_ok(), "{itself:?}");
        let forbidden = CloseReason::new(1005, "");
        let refused = connection.reconnect_with(&forbidden).expect_err("a forbidden code");
        self.printed.send_error(&refused);
        connection.reconnect();
        self.printed.send_error(&connection.send_text("late").expect_err("it is closing"));
        self.printed.send_error(&connection.ping().expect_err("it is closing"));
    }

    fn message(&mut self, _: &mut Connection<'_>, _: MessageRef<'_>) {}

    fn disconnected(&mut self, disconnect: &tautline::Disconnect) {
        self.printed.event(&Event::Disconnected(disconnect.clone()));
        let _ = self.done.try_send(());
        // The test looks at the payload of the panic.
        std::panic::resume_unwind(Box::new(self.printed.name));
    }
}

#[test]
fn a_handler_and_its_panic_name_their_client() {
    let server = draining(TestServer::builder());
    for index in [0, 1] {
        let printed = || Printed { name: NAMES[index], other: NAMES[1 - index] };
        let (done, told) = crossbeam_channel::bounded(1);
        let handler = Prints { printed: printed(), done };
        let client = builder(&server).name(NAMES[index]).start_with(handler).expect("it starts");
        told.recv_timeout(SOON).expect("the connection ends");
        let reason = client.wait_closed(SOON).expect("it has panicked");
        assert_eq!(reason.kind(), ErrorKind::HandlerPanicked);
        printed().error(&reason);
        let panic = client.take_panic().expect("it has panicked");
        assert_eq!(panic.downcast_ref::<&str>(), Some(&NAMES[index]));
    }
}

#[test]
fn an_error_of_another_client_keeps_the_name_of_that_one() {
    let refusing = refusing_address();
    let other = Client::builder(format!("ws://{refusing}/")).name("one").max_attempts(1);
    let other = other.start().expect("it starts");
    let gave_up = other.wait_closed(SOON).expect("it gives up");
    let closure = move |_: &tautline::DialContext| Err(gave_up.clone().into());
    let client = Client::builder_from_fn(closure).name("two").max_attempts(1);
    let failure = dial_failed(&mut client.start().expect("it starts").events());
    let chain = failure.error.chain();
    assert!(chain.starts_with("two: calling the endpoint closure: one: connecting"), "{chain}");
    let source = failure.error.source().expect("the closure returned an error");
    assert!(source.to_string().starts_with("one: "), "{source}");
}

#[test]
fn without_a_name_a_client_has_that_of_its_host() {
    let server = echo(TestServer::builder());
    let client = builder(&server).connect().expect("it opens");
    assert_eq!(client.name(), "127.0.0.1");
    assert_eq!(client.to_string(), "127.0.0.1: open, epoch 1");
    let mut events = client.events();
    let Opened { epoch, .. } = opened(&mut events);
    assert_eq!(epoch, 1);
    server.abort_all();
    let disconnect = disconnected(&mut events);
    assert!(disconnect.to_string().starts_with("127.0.0.1: the connection of epoch 1 ended"));
    assert!(!disconnect.error.to_string().starts_with("127.0.0.1: "), "{disconnect}");
    assert_eq!(disconnect.error.client(), Some("127.0.0.1"));
    assert!(client.stop(SOON).to_string().starts_with("127.0.0.1: clean, "));
    assert!(client.to_string().starts_with("127.0.0.1: closed"), "{client}");

    let unnamed = Client::builder("wss://a.example.:9/").add_endpoint("ws://a.example");
    assert_eq!(unnamed.clone().start().expect("it starts").name(), "a.example");
    let of_two_hosts = unnamed.add_endpoint("ws://b.example");
    assert_eq!(of_two_hosts.start().expect("it starts").name(), "client");
    let from_fn = Client::builder_from_fn(|_| Err("no".into())).max_attempts(1);
    let client = from_fn.start().expect("it starts");
    assert_eq!(client.name(), "client");
    let mut events = client.events();
    assert!(dial_failed(&mut events).to_string().starts_with("client: dial attempt 1 failed"));
    assert!(stopped(&mut events).to_string().starts_with("client: the client has ended"));
}

#[test]
fn names_that_cannot_be_printed_are_refused() {
    let server = echo(TestServer::builder());
    for name in ["", "a\nb", "a\0", &"x".repeat(65)] {
        let error = builder(&server).name(name).connect().expect_err("it is refused");
        assert_eq!((error.kind(), error.client()), (ErrorKind::Config, None), "{error}");
    }
    assert!(builder(&server).name("x".repeat(64)).connect().is_ok());
}

#[test]
fn a_full_queue_and_a_stop_name_their_client() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        for _ in 0..10 {
            peer.send_text("text")?;
        }
        peer.drain()
    });
    let settings = || builder(&server).queue_messages(2).when_full(WhenFull::Disconnect);
    two_clients(settings, |client, printed| {
        until("the queue is full", || client.stats().drops.contains_key("lagged"));
        let mut events = client.events();
        printed.event(&Event::Opened(opened(&mut events)));
        let disconnect = disconnected(&mut events);
        assert_eq!(disconnect.error.kind(), ErrorKind::Lagged);
        printed.event(&Event::Disconnected(disconnect));
    });
}

/// The names of the threads of the system, which only some systems tell.
#[cfg(target_os = "linux")]
#[test]
fn threads_have_the_name_of_their_client_in_15_bytes() {
    use std::net::SocketAddr;

    let server = echo(TestServer::builder());
    let (release, held) = crossbeam_channel::bounded::<()>(0);
    let address: SocketAddr = server.address();
    // The lookup goes on while the test looks.
    let resolver = move |_: &str, _: u16| {
        let _ = held.recv();
        Ok(vec![address])
    };
    let (tell, told) = crossbeam_channel::unbounded();
    let client = Client::builder(format!("ws://localhost:{}/", address.port()))
        .name("naming-of-threads")
        .resolver(resolver)
        .on_thread_start(move |name| {
            let own = std::thread::current().name().map(str::to_owned);
            tell.send((name.to_owned(), own)).expect("the test waits");
        })
        .start()
        .expect("it starts");
    let mut started: Vec<_> =
        (0..3).map(|_| told.recv_timeout(SOON).expect("three threads start")).collect();
    started.sort();
    let names = ["naming-of-th-hb", "naming-of-th-rd", "naming-of-t-dns"];
    let expected = ["taut-heartbeat", "taut-reader", "taut-resolver"]
        .iter()
        .zip(names)
        .map(|(documented, name)| ((*documented).to_owned(), Some(name.to_owned())));
    assert_eq!(started, expected.collect::<Vec<_>>());
    let all = tautline::testing::ResourceSnapshot::take().threads;
    let ours: Vec<_> = all.values().filter(|name| name.starts_with("naming-of-t")).collect();
    assert_eq!(ours.len(), 3, "{all:?}");
    for name in names {
        assert!(name.len() <= 15 && ours.iter().any(|own| *own == name), "{ours:?}");
    }
    drop(release);
    client.wait_open(SOON).expect("it opens");
    let report = client.stop(SOON);
    assert!(report.is_clean(), "{report}");
    // Programs find the threads by the same names, whatever the client is called.
    let mut reported: Vec<_> = report.threads().iter().map(|thread| thread.name).collect();
    reported.sort();
    assert!(reported.starts_with(&["taut-heartbeat", "taut-reader"]), "{reported:?}");
}
