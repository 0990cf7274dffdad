//! Times and calls that wake the handler.

use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded, unbounded};
use tautline::testing::TestServer;
use tautline::{
    Builder, Client, Connection, Disconnect, Error, ErrorKind, Handler, MessageRef, Push, State,
    Stopped, WokenContext,
};

use crate::support::{MS, SOON, builder, draining, echo, plain_and_tls, stalling, until};

const HOUR: Duration = Duration::from_secs(3600);

/// A call of the handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Opened,
    Message,
    /// Says whether a connection is open.
    Woken(bool),
    Disconnected,
    Stopped,
}

/// A handler that tells of its calls, and does what a test wants.
struct Probe<O, W> {
    calls: Sender<(Call, Instant)>,
    opened: O,
    woken: W,
}

impl<O, W> Probe<O, W> {
    fn tell(&self, call: Call) {
        // A test that has seen enough is gone.
        self.calls.send((call, Instant::now())).ok();
    }
}

impl<O, W> Handler for Probe<O, W>
where
    O: FnMut(&mut Connection<'_>) + Send + 'static,
    W: FnMut(&mut WokenContext<'_>) + Send + 'static,
{
    fn opened(&mut self, connection: &mut Connection<'_>) {
        self.tell(Call::Opened);
        (self.opened)(connection);
    }

    fn message(&mut self, _: &mut Connection<'_>, _: MessageRef<'_>) {
        self.tell(Call::Message);
    }

    fn woken(&mut self, context: &mut WokenContext<'_>) {
        self.tell(Call::Woken(context.connection().is_some()));
        (self.woken)(context);
    }

    fn disconnected(&mut self, _: &Disconnect) {
        self.tell(Call::Disconnected);
    }

    fn stopped(&mut self, _: &Stopped) {
        self.tell(Call::Stopped);
    }
}

/// The calls that have been told, in order.
struct Calls(crossbeam_channel::Receiver<(Call, Instant)>);

impl Calls {
    fn next(&self) -> (Call, Instant) {
        self.0.recv_timeout(SOON).expect("the handler is called")
    }

    /// Skips calls until this one, and returns when it was made.
    fn until(&self, call: Call) -> Instant {
        loop {
            let (next, at) = self.next();
            if next == call {
                return at;
            }
        }
    }

    /// Returns the calls up to the end of the client, which has been stopped.
    fn rest(&self) -> Vec<Call> {
        let mut calls = Vec::new();
        while calls.last() != Some(&Call::Stopped) {
            calls.push(self.next().0);
        }
        calls
    }
}

fn start(
    builder: Builder,
    opened: impl FnMut(&mut Connection<'_>) + Send + 'static,
    woken: impl FnMut(&mut WokenContext<'_>) + Send + 'static,
) -> (Client<Push>, Calls) {
    let (calls, told) = unbounded();
    let client = builder.start_with(Probe { calls, opened, woken }).expect("it starts");
    (client, Calls(told))
}

/// A builder whose next dial is an hour away once a connection has ended.
fn backs_off(server: &TestServer) -> Builder {
    builder(server).retry_delay_min(HOUR).retry_delay_max(HOUR).retry_policy(|_, _| {
        // The usual delay is random, and may be short.
        tautline::RetryDecision::RetryAfter(HOUR)
    })
}

/// A server that ends each connection after its first message.
fn ending() -> TestServer {
    TestServer::start(|peer| {
        peer.upgrade()?;
        peer.receive_message().map(drop)
    })
}

#[test]
fn a_time_wakes_the_handler_when_it_has_come_and_not_before() {
    const ROUNDS: usize = 20;
    let spins: &[bool] = if cfg!(unix) { &[false, true] } else { &[false] };
    plain_and_tls(|server| {
        for (&spins, has_wakeups) in spins.iter().flat_map(|spins| [(spins, false), (spins, true)])
        {
            let server = echo(server());
            let builder = builder(&server);
            #[cfg(unix)]
            let builder = if spins { builder.busy_poll() } else { builder };
            let builder = if has_wakeups { builder.wakeups() } else { builder };
            let (tell, told) = bounded(ROUNDS);
            let (client, calls) = start(
                builder,
                |connection| connection.wake_at(Instant::now() + 5 * MS),
                move |context| {
                    let due = context.due().expect("nobody calls");
                    // Once the channel is full it is enough.
                    if tell.try_send(Instant::now().checked_duration_since(due)).is_ok() {
                        context.wake_at(Instant::now() + 5 * MS);
                    }
                },
            );
            let late: Vec<Option<Duration>> =
                (0..ROUNDS).map(|_| told.recv_timeout(SOON).expect("the time comes")).collect();
            // How late is the machine's affair: the model checks that it is not ours.
            assert!(late.iter().all(Option::is_some), "too early: {late:?}");
            // The reader that has been sleeping in `poll` still reads.
            client.send_text("hello").expect("the connection is open");
            calls.until(Call::Message);
            assert!(client.stop(SOON).is_clean(), "spins: {spins}");
        }
    });
}

#[test]
fn the_last_time_counts_and_can_be_taken_back() {
    let server = echo(TestServer::builder());
    let (client, calls) = start(
        builder(&server),
        |connection| {
            connection.wake_at(Instant::now() + HOUR);
            connection.wake_at(Instant::now());
            connection.wake_at(None);
        },
        |_| (),
    );
    client.wait_open(SOON).expect("it opens");
    client.send_text("hello").expect("it is open");
    calls.until(Call::Message);
    client.stop(SOON);
    assert_eq!(calls.rest(), [Call::Disconnected, Call::Stopped], "nothing is set");

    let (_client, calls) = start(
        builder(&server),
        |connection| {
            connection.wake_at(Instant::now());
            connection.wake_at(Instant::now() + HOUR);
            // Long past: due at once.
            connection.wake_at(Instant::now().checked_sub(HOUR).unwrap_or_else(Instant::now));
        },
        |_| (),
    );
    calls.until(Call::Woken(true));
}

#[test]
fn another_thread_wakes_the_handler_while_a_connection_is_open() {
    plain_and_tls(|server| {
        let server = echo(server());
        let (client, calls) = start(builder(&server).wakeups(), |_| (), |_| ());
        calls.until(Call::Opened);
        for round in 0..100 {
            thread::scope(|scope| {
                scope.spawn(|| client.sender().wake().expect("it may wake"));
            });
            assert_eq!(calls.next().0, Call::Woken(true), "{round}");
            // Between two messages, and between sleeps.
            if round % 2 == 0 {
                client.send_text("hello").expect("it is open");
                assert_eq!(calls.next().0, Call::Message, "{round}");
            }
        }
        // A time that comes earlier than the one that the reader sleeps for.
        client.sender().wake_at(Instant::now() + HOUR).expect("it may wake");
        let due = Instant::now() + 5 * MS;
        client.sender().wake_at(due).expect("it may wake");
        assert!(calls.until(Call::Woken(true)) >= due);
        assert!(client.stop(SOON).is_clean());
        let error = client.sender().wake().expect_err("the client has ended");
        assert_eq!(error.kind(), ErrorKind::Stopped);
    });
}

#[test]
fn calls_that_come_while_the_handler_is_busy_are_remembered_as_one() {
    let server = echo(TestServer::builder());
    let (release, held) = unbounded::<()>();
    let (client, calls) = start(
        builder(&server).wakeups(),
        |_| (),
        move |_| {
            // Ends when the test lets go.
            held.recv_timeout(SOON).ok();
        },
    );
    let sender = client.sender();
    calls.until(Call::Opened);
    sender.wake().expect("it may wake");
    assert_eq!(calls.next().0, Call::Woken(true));
    for _ in 0..10 {
        sender.wake().expect("it may wake");
    }
    release.send(()).expect("the handler waits");
    assert_eq!(calls.next().0, Call::Woken(true));
    release.send(()).expect("the handler waits");
    // A message behind them shows that there is no further call.
    client.send_text("hello").expect("it is open");
    assert_eq!(calls.next().0, Call::Message);
    sender.wake().expect("it may wake");
    assert_eq!(calls.next().0, Call::Woken(true));
    drop(release);
    assert!(client.stop(SOON).is_clean());
}

#[test]
fn the_handler_is_woken_during_backoff_and_told_that_no_connection_is_open() {
    let server = ending();
    // The time outlives the connection, without `wakeups` too.
    let (client, calls) = start(
        backs_off(&server),
        |connection| {
            connection.wake_at(Instant::now() + 50 * MS);
            connection.send_text("end").expect("it is open");
        },
        |context| {
            assert!(matches!(context.sender().state(), State::Backoff { .. }));
            if context.due().is_some() {
                // A thread of the client's own needs no `wakeups`.
                context.sender().wake().expect("the reader is awake");
            }
        },
    );
    calls.until(Call::Disconnected);
    assert_eq!(calls.next().0, Call::Woken(false));
    assert_eq!(calls.next().0, Call::Woken(false));
    assert!(client.stop(SOON).is_clean());
    assert_eq!(calls.rest(), [Call::Stopped]);

    // By calls of another thread, and by a time that replaces a later one.
    let (client, calls) = start(
        backs_off(&server).wakeups(),
        |connection| {
            connection.wake_at(Instant::now() + HOUR);
            connection.send_text("end").expect("it is open");
        },
        |_| (),
    );
    calls.until(Call::Disconnected);
    until("backoff", || matches!(client.state(), State::Backoff { .. }));
    for _ in 0..10 {
        client.sender().wake().expect("it may wake");
        assert_eq!(calls.next().0, Call::Woken(false));
        let due = Instant::now() + MS;
        client.sender().wake_at(due).expect("it may wake");
        assert!(calls.until(Call::Woken(false)) >= due);
    }
    assert!(client.stop(SOON).is_clean());
}

#[test]
fn the_handler_is_woken_during_a_closing_handshake() {
    plain_and_tls(|server| {
        // It never answers the close frame.
        let server = draining(server());
        let (client, calls) = start(
            builder(&server).wakeups().close_timeout(HOUR),
            |connection| connection.reconnect(),
            |context| assert_eq!(context.sender().state(), State::Closing),
        );
        for round in 0..3 {
            client.sender().wake().expect("it may wake");
            calls.until(Call::Woken(false));
            assert_eq!(client.state(), State::Closing, "{round}");
        }
        // A stop cuts the handshake short.
        assert!(client.stop(MS * 500).is_clean());
    });
}

#[test]
fn a_wakeup_during_a_dial_comes_after_the_dial() {
    let server = echo(TestServer::builder());
    let url = server.url();
    let (tell, dials) = unbounded();
    let (release, held) = unbounded();
    let builder = Client::builder_from_fn(move |_| {
        tell.send(()).expect("the test waits");
        // The first dial fails.
        let fails: bool = held.recv_timeout(SOON)?;
        if fails { Err("on purpose".into()) } else { Ok(url.as_str().into()) }
    });
    let (client, calls) =
        start(builder.wakeups().retry_delay_min(MS).retry_delay_max(MS), |_| (), |_| ());
    dials.recv_timeout(SOON).expect("it dials");
    client.sender().wake().expect("it may wake");
    release.send(true).expect("the dial waits");
    assert_eq!(calls.next().0, Call::Woken(false));
    dials.recv_timeout(SOON).expect("it dials again");
    client.sender().wake().expect("it may wake");
    release.send(false).expect("the dial waits");
    assert_eq!(calls.next().0, Call::Opened);
    assert_eq!(calls.next().0, Call::Woken(true));
    assert!(client.stop(SOON).is_clean());
}

#[test]
fn messages_and_wakeups_take_turns_under_a_flood_of_both() {
    plain_and_tls(|server| {
        let server = server().start(|peer| {
            peer.upgrade()?;
            peer.flood(200)
        });
        let spins: &[bool] = if cfg!(unix) { &[false, true] } else { &[false] };
        for &spins in spins {
            let builder = builder(&server).wakeups().close_timeout(10 * MS);
            #[cfg(unix)]
            let builder = if spins { builder.busy_poll() } else { builder };
            // Due again as soon as it has come.
            let (client, calls) = start(
                builder,
                |connection| connection.wake_at(Instant::now()),
                |context| context.wake_at(Instant::now()),
            );
            let (mut messages, mut wakeups) = (0, 0);
            while messages < 1000 || wakeups < 100 {
                match calls.next().0 {
                    Call::Message => messages += 1,
                    Call::Woken(_) => wakeups += 1,
                    _ => {}
                }
                if (messages + wakeups) % 10 == 0 {
                    client.sender().wake().expect("it may wake");
                }
            }
            assert!(client.stop(SOON).is_clean(), "spins: {spins}");
        }
    });
}

#[test]
fn a_dead_connection_is_noticed_though_its_handler_is_woken_all_the_time() {
    plain_and_tls(|server| {
        // The last handler is busy for all of the time.
        for (busy, pause) in [(Duration::ZERO, MS), (MS, MS), (2 * MS, Duration::ZERO)] {
            let server = stalling(server());
            let (client, calls) = start(
                builder(&server).max_attempts(1).ping_interval(20 * MS).pong_timeout(200 * MS),
                |connection| connection.wake_at(Instant::now() + MS),
                move |context| {
                    thread::sleep(busy);
                    context.wake_at(Instant::now() + pause);
                },
            );
            let reason = client.wait_closed(SOON).expect("the connection is dead");
            assert_eq!(reason.kind(), ErrorKind::PongTimeout);
            assert!(calls.0.iter().filter(|(call, _)| *call == Call::Woken(true)).count() > 10);
            drop(client);
        }
    });
}

#[test]
fn what_comes_while_the_handler_is_woken_is_read_before_the_connection_counts_as_idle() {
    plain_and_tls(|server| {
        let (ask, asked) = bounded::<()>(1);
        let (tell, told) = bounded(1);
        let server = server().start(move |peer| {
            peer.upgrade()?;
            asked.recv_timeout(SOON).map_err(std::io::Error::other)?;
            peer.send_text("data")?;
            tell.send(()).map_err(std::io::Error::other)?;
            peer.drain()
        });
        let (client, calls) = start(
            builder(&server).idle_timeout(200 * MS).max_attempts(1),
            |connection| connection.wake_at(Instant::now()),
            move |_| {
                ask.send(()).expect("the server waits");
                told.recv_timeout(SOON).expect("the server sends");
                thread::sleep(300 * MS);
            },
        );
        assert_eq!(client.wait_closed(SOON).map(|end| end.kind()), Some(ErrorKind::Idle));
        drop(client);
        let (woken, message) = (Call::Woken(true), Call::Message);
        assert_eq!(calls.rest()[..3], [Call::Opened, woken, message]);
    });
}

#[test]
fn a_stop_or_a_reconnect_in_woken_is_heeded_at_once() {
    let server = echo(TestServer::builder());
    let (client, calls) = start(
        builder(&server),
        |connection| connection.wake_at(Instant::now()),
        |context| {
            context.wake_at(Instant::now());
            context.stop();
        },
    );
    assert_eq!(client.wait_closed(SOON).map(|end| end.kind()), Some(ErrorKind::Stopped));
    // Woken once: not again after the stop.
    assert_eq!(calls.rest(), [Call::Opened, Call::Woken(true), Call::Disconnected, Call::Stopped]);
    assert!(client.stop(SOON).is_clean());

    let (client, calls) = start(
        builder(&server),
        |connection| {
            if connection.epoch() == 1 {
                connection.wake_at(Instant::now());
            }
        },
        |context| context.connection().expect("it is open").reconnect(),
    );
    until("it is open again", || client.epoch() == 2);
    client.stop(SOON);
    assert_eq!(
        calls.rest()[..4],
        [Call::Opened, Call::Woken(true), Call::Disconnected, Call::Opened]
    );

    // A full stop from inside it, in backoff: it does not wait for itself.
    let server = ending();
    let (client, calls) = start(
        backs_off(&server),
        |connection| {
            connection.wake_at(Instant::now() + 20 * MS);
            connection.send_text("end").expect("it is open");
        },
        |context| drop(context.sender().stopper().stop(HOUR)),
    );
    assert!(client.wait_closed(SOON).is_some());
    assert_eq!(*calls.rest().last().expect("it has ended"), Call::Stopped);
    assert!(client.stop(SOON).is_clean());
}

#[test]
fn a_panic_in_woken_ends_the_client_whether_a_connection_is_open_or_not() {
    for is_open in [true, false] {
        let server = if is_open { echo(TestServer::builder()) } else { ending() };
        let (client, calls) = start(
            backs_off(&server),
            move |connection| {
                let after = if is_open { Duration::ZERO } else { 20 * MS };
                connection.wake_at(Instant::now() + after);
                if !is_open {
                    connection.send_text("end").expect("it is open");
                }
            },
            |_| std::panic::resume_unwind(Box::new("on purpose")),
        );
        let reason = client.wait_closed(SOON).expect("the panic ends it");
        assert_eq!(reason.kind(), ErrorKind::HandlerPanicked);
        assert!(client.stop(SOON).is_clean());
        assert!(client.take_panic().is_some());
        // It is the last call.
        assert_eq!(calls.0.iter().last().map(|(call, _)| call), Some(Call::Woken(is_open)));
        drop(client);
    }
}

#[test]
fn without_the_setting_or_a_handler_another_thread_is_told_that_it_cannot_wake() {
    let refused = |result: Result<(), Error>| {
        assert_eq!(result.expect_err("nobody would hear").kind(), ErrorKind::Config);
    };
    let server = echo(TestServer::builder());
    let (client, calls) = start(builder(&server), |_| (), |_| ());
    calls.until(Call::Opened);
    refused(client.sender().wake());
    refused(client.sender().wake_at(Instant::now()));
    drop(client);
    let client = builder(&server).wakeups().connect().expect("it opens");
    refused(client.sender().wake());
}
