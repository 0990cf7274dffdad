//! Rate limits of sends and dials, against servers that count what arrives.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::unbounded;
use tautline::testing::{Peer, Received, TestServer};
use tautline::{
    Client, Connection, ErrorKind, Event, Handler, MessageRef, Payload, RateLimit, SendError,
    SendKind, State, WokenContext,
};

use crate::support::{MS, SOON, builder, disconnected, draining, message, opened, until};

const HOUR: Duration = Duration::from_secs(3600);

/// The servers accept so many frames within any such time.
const COUNT: u32 = 5;
const PER: Duration = Duration::from_millis(200);

/// For machines on which a thread of a server may come late.
const MARGIN: Duration = Duration::from_millis(300);

/// The arrivals that a server remembers.
type Arrivals = Arc<Mutex<VecDeque<Instant>>>;

/// Counts what arrives, pings and pongs too, and closes with 1008 when it is too much. Tells of the
/// third pong.
fn enforce(peer: &mut Peer, arrivals: &Mutex<VecDeque<Instant>>) -> std::io::Result<()> {
    let mut pongs = 0;
    loop {
        let received = peer.receive()?;
        match received {
            Received::Close(..) | Received::End => return Ok(()),
            Received::Pong(_) => pongs += 1,
            _ => {}
        }
        let now = Instant::now();
        let is_over = {
            let mut arrivals = arrivals.lock().expect("no script panics");
            arrivals.push_back(now);
            arrivals.retain(|arrival| now - *arrival < PER);
            arrivals.len() > COUNT as usize
        };
        if is_over {
            peer.close(1008, "too many")?;
            return peer.drain();
        }
        if matches!(received, Received::Pong(_)) && pongs == 3 {
            peer.send_text("three pongs")?;
        }
    }
}

fn strict() -> TestServer {
    let arrivals = Arrivals::default();
    TestServer::start(move |peer| {
        peer.upgrade()?;
        enforce(peer, &arrivals)
    })
}

fn allowed(limit: RateLimit) -> RateLimit {
    limit.window(COUNT, PER).margin(MARGIN)
}

fn refused(result: Result<impl Sized, SendError>) -> SendError {
    match result {
        Err(error) if error.is_not_sent() => error,
        Err(error) => panic!("it has to be not sent, not {error:?}"),
        Ok(_) => panic!("it has to be refused"),
    }
}

/// Sends by as many threads as there are clients' entries, four messages each.
fn send_all(clients: &[&Client<tautline::Pull>]) {
    thread::scope(|scope| {
        for client in clients {
            scope.spawn(|| {
                for _ in 0..4 {
                    client.send_text("order").expect("it waits for room");
                }
            });
        }
    });
}

#[test]
fn many_senders_never_exceed_what_a_server_counts() {
    let server = strict();
    let client = builder(&server)
        .send_limit(allowed(RateLimit::per_connection()))
        .send_timeout(6 * SOON)
        .connect()
        .expect("it opens");
    let began = Instant::now();
    send_all(&[&client; 5]);
    // In four rounds of five.
    assert!(began.elapsed() >= 3 * (PER + MARGIN));
    assert!(server.wait_for_messages(20, SOON));
    assert_eq!((client.epoch(), client.state()), (1, State::Open { epoch: 1 }));
}

#[test]
fn two_clients_share_one_limit() {
    // Counts both connections together.
    let server = strict();
    let limit = allowed(RateLimit::shared());
    let client = || {
        let builder = builder(&server).send_limit(limit.clone()).send_timeout(6 * SOON);
        builder.connect().expect("it opens")
    };
    let (one, other) = (client(), client());
    send_all(&[&one, &other, &one, &other]);
    assert!(server.wait_for_messages(16, SOON));
    assert_eq!((one.epoch(), other.epoch()), (1, 1));
    assert_eq!((one.state(), other.state()), (State::Open { epoch: 1 }, State::Open { epoch: 1 }));
}

#[test]
fn pongs_count_where_the_limit_says_so() {
    let arrivals = Arrivals::default();
    let server = TestServer::start(move |peer| {
        peer.upgrade()?;
        for payload in [b"1", b"2", b"3"] {
            peer.ping(payload)?;
        }
        enforce(peer, &arrivals)
    });
    let client = builder(&server)
        .send_limit(allowed(RateLimit::per_connection()).counting_pings())
        .connect()
        .expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    assert_eq!(message(&mut events).text(), Some("three pongs"));
    for _ in 0..COUNT {
        client.send_text("order").expect("it waits for room");
    }
    assert!(server.wait_for_messages(COUNT as usize, SOON));
    assert_eq!(client.state(), State::Open { epoch: 1 });
}

#[test]
fn a_batch_leaves_together_if_a_window_holds_it_and_otherwise_in_parts() {
    let server = strict();
    let limit = allowed(RateLimit::per_connection());
    let client = builder(&server).send_limit(limit).connect().expect("it opens");
    let batch = [Payload::Text("order"); 12];
    let began = Instant::now();
    assert_eq!(client.send_batch(&batch).map(|receipt| receipt.sequence).ok(), Some(12));
    assert!(began.elapsed() >= 2 * (PER + MARGIN));
    assert!(server.wait_for_messages(12, SOON));
    assert_eq!(client.state(), State::Open { epoch: 1 });

    // The second part would be late.
    let limit = RateLimit::per_connection().window(COUNT, HOUR);
    let client = builder(&server).send_limit(limit).connect().expect("it opens");
    let failed = client.send_batch(&batch).expect_err("it would take hours");
    assert_eq!((failed.sent, failed.next.reason().kind()), (5, ErrorKind::Limited));
    assert!(failed.next.is_not_sent());
}

#[test]
fn a_message_that_was_blocked_counts_from_the_moment_at_which_it_has_left() {
    let per = Duration::from_millis(500);
    let (tell, told) = unbounded();
    let server = TestServer::start(move |peer| {
        peer.upgrade()?;
        peer.wait(per)?;
        tell.send(Instant::now()).ok();
        peer.drain()
    });
    let limit = RateLimit::per_connection().window(1, per).margin(Duration::ZERO);
    let client = builder(&server).send_limit(limit).send_timeout(6 * SOON);
    let client = client.connect().expect("it opens");
    // More than the buffers of both sides hold: it has not left before the server reads.
    client.send_binary(&vec![0; 16 << 20]).expect("the server reads after a while");
    client.send_text("next").expect("it waits for room");
    let reads = told.recv_timeout(SOON).expect("the server has told");
    assert!(reads.elapsed() >= per, "{:?}", reads.elapsed());
}

#[test]
fn a_send_that_would_be_late_is_refused_at_once_and_says_when_there_is_room() {
    let server = draining(TestServer::builder());
    let limit = RateLimit::per_connection().window(1, HOUR);
    let client = builder(&server).send_limit(limit).connect().expect("it opens");
    client.send_text("first").expect("there is room");
    let began = Instant::now();
    let error = refused(client.send_text("second"));
    assert!(began.elapsed() < Duration::from_secs(5), "it waited for send_timeout");
    assert_eq!(error.reason().kind(), ErrorKind::Limited);
    let retry_in = error.reason().retry_in().expect("the kind has it");
    assert!(retry_in > HOUR - SOON && retry_in <= HOUR + 100 * MS, "{retry_in:?}");

    // The next connection begins with nothing.
    client.reconnect().expect("it is open");
    until("the second opening", || client.epoch() == 2);
    until("the second opening", || client.send_text("third").is_ok());
    assert!(refused(client.send_text("fourth")).reason().retry_in().is_some());
}

#[test]
fn a_limit_leaves_alone_what_it_is_not_for() {
    let server = draining(TestServer::builder());
    let limit = RateLimit::per_connection().window(1, HOUR).only(&[SendKind::Calls]);
    let client = builder(&server).send_limit(limit).connect().expect("it opens");
    for _ in 0..10 {
        client.send_text("order").expect("it is not limited");
    }
}

#[test]
fn a_stop_and_the_end_of_the_connection_end_a_wait_at_once() {
    type End = fn(&TestServer, &Client<tautline::Pull>);
    // A send that begins only after the stop is told of that.
    let ends: [(End, &[ErrorKind]); 3] = [
        (
            |_, client| assert!(client.stop(SOON).is_clean()),
            &[ErrorKind::Closed, ErrorKind::Stopped],
        ),
        (|server, _| server.abort_all(), &[ErrorKind::Closed]),
        (|_, client| client.reconnect().expect("it is open"), &[ErrorKind::Closed]),
    ];
    for (end, kinds) in ends {
        let server = draining(TestServer::builder());
        let limit = RateLimit::per_connection().window(1, HOUR);
        let client = builder(&server)
            .send_limit(limit)
            .send_timeout(2 * HOUR)
            .close_timeout(MS)
            .connect()
            .expect("it opens");
        client.send_text("first").expect("there is room");
        thread::scope(|scope| {
            let sender = client.sender().pinned_to(1);
            let waits = scope.spawn(move || sender.send_text("second"));
            // It waits, or is about to: both have to end.
            thread::sleep(20 * MS);
            assert!(!waits.is_finished());
            let began = Instant::now();
            end(&server, &client);
            let error = refused(waits.join().expect("no panic"));
            assert!(kinds.contains(&error.reason().kind()), "{error}");
            assert!(began.elapsed() < SOON);
        });
    }
}

/// A handler that sends when it is told something, and when it is woken.
struct Sends(crossbeam_channel::Sender<Result<(), SendError>>);

impl Handler for Sends {
    fn message(&mut self, connection: &mut Connection<'_>, _: MessageRef<'_>) {
        for _ in 0..2 {
            self.0.send(connection.send_text("order").map(drop)).ok();
        }
    }
}

#[test]
fn nothing_waits_inside_the_handler() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.send_text("go")?;
        peer.drain()
    });
    let (tell, told) = unbounded();
    let limit = RateLimit::per_connection().window(1, 100 * MS);
    let client = builder(&server).send_limit(limit).start_with(Sends(tell)).expect("it starts");
    assert!(told.recv_timeout(SOON).expect("it is called").is_ok());
    // There would be room in time.
    let error = refused(told.recv_timeout(SOON).expect("it is called"));
    assert_eq!(error.reason().kind(), ErrorKind::Limited);
    drop(client);
}

// ---- Dials ----

/// Starts a server that ends each connection at once, and tells when it came.
fn dropping() -> (TestServer, crossbeam_channel::Receiver<Instant>) {
    let (tell, told) = unbounded();
    let server = TestServer::start(move |peer| {
        tell.send(Instant::now()).ok();
        peer.upgrade().map(drop)
    });
    (server, told)
}

#[test]
fn redials_stay_within_their_limit() {
    let (server, dials) = dropping();
    let limit = RateLimit::shared().window(2, PER).margin(MARGIN);
    let clients: Vec<_> = (0..2)
        .map(|_| builder(&server).connect_limit(limit.clone()).start().expect("it starts"))
        .collect();
    let times: Vec<Instant> =
        (0..8).map(|_| dials.recv_timeout(SOON).expect("they dial again")).collect();
    for three in times.windows(3) {
        assert!(three[2] - three[0] >= PER, "{:?}", three[2] - three[0]);
    }
    let waits = |client: &Client<_>| match client.state() {
        State::Backoff { until, .. } => until > Instant::now() + 50 * MS,
        _ => false,
    };
    until("a dial that waits", || clients.iter().any(waits));
}

#[test]
fn a_dial_that_waits_for_its_limit_is_shown_and_ends_with_a_stop() {
    struct Tells(crossbeam_channel::Sender<bool>);
    impl Handler for Tells {
        fn message(&mut self, _: &mut Connection<'_>, _: MessageRef<'_>) {}
        fn woken(&mut self, context: &mut WokenContext<'_>) {
            self.0.send(context.connection().is_some()).ok();
        }
    }
    let (server, _dials) = dropping();
    let (tell, told) = unbounded();
    let client = builder(&server)
        .connect_limit(RateLimit::per_connection().window(1, HOUR))
        .wakeups()
        .start_with(Tells(tell))
        .expect("it starts");
    until("a dial that waits", || match client.state() {
        State::Backoff { attempt, until } => attempt == 2 && until > Instant::now() + HOUR - SOON,
        _ => false,
    });
    // The handler is served meanwhile.
    client.sender().wake().expect("it has wakeups");
    assert_eq!(told.recv_timeout(SOON), Ok(false));
    let began = Instant::now();
    assert!(client.stop(SOON).is_clean());
    assert!(began.elapsed() < SOON);
    assert_eq!(server.connections(), 1);
}

#[test]
fn connect_waits_for_its_limit_before_connect_timeout_begins() {
    let server = draining(TestServer::builder());
    let wait = Duration::from_millis(1500);
    let limit = RateLimit::shared().window(1, wait).margin(Duration::ZERO);
    let connect = || {
        let builder = builder(&server).connect_limit(limit.clone());
        builder.connect_timeout(Duration::from_millis(900)).connect()
    };
    let began = Instant::now();
    let first = connect().expect("there is room");
    let second = connect().expect("it waits");
    assert!(began.elapsed() >= wait);
    let mut events = second.events();
    opened(&mut events);
    drop(first);
}

#[test]
fn limits_that_cannot_work_are_refused_at_the_start() {
    let server = draining(TestServer::builder());
    for builder in [
        builder(&server).send_limit(RateLimit::shared()),
        builder(&server).connect_limit(RateLimit::shared().window(0, HOUR)),
    ] {
        assert_eq!(builder.start().err().map(|error| error.kind()), Some(ErrorKind::Config));
    }
    assert_eq!(server.connections(), 0);
}

#[test]
fn a_strict_server_closes_what_is_not_limited() {
    let server = strict();
    let client = builder(&server).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    for _ in 0..=COUNT {
        client.send_text("order").ok();
    }
    let disconnect = disconnected(&mut events);
    assert_eq!(disconnect.close.code, 1008, "{disconnect:?}");
    assert!(!matches!(events.next_timeout(MS), Ok(Event::Message(_))));
}
