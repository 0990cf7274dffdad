//! Reconnecting: which failures are retried, after which delays, and on which endpoint.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tautline::testing::{Received, TestServer};
use tautline::{
    AppPing, Builder, Client, Connection, DialContext, Disconnect, Endpoint, Error, ErrorKind,
    Event, Handler, MessageRef, Payload, RetryDecision, SendError, State, ThreadOutcome,
};

use crate::support::{
    MS, SOON, builder, dial_failed, disconnected, echo, message, next, opened, plain_and_tls,
    stopped, until,
};

#[test]
fn after_a_drop_the_connection_comes_back_with_a_new_epoch() {
    plain_and_tls(|server_builder| {
        let server = server_builder().start(|peer| {
            peer.upgrade()?;
            peer.send_text(&peer.number().to_string())?;
            if peer.number() < 3 { peer.reset() } else { peer.echo() }
        });
        let client = builder(&server).connect().expect("it opens");
        let mut events = client.events();
        for epoch in 1..=3u64 {
            assert_eq!(opened(&mut events).epoch, epoch);
            // The reset may overtake the message.
            let disconnect = disconnected(&mut events);
            assert_eq!(disconnect.epoch, epoch);
            assert!(matches!(disconnect.error.kind(), ErrorKind::Io | ErrorKind::Closed));
            assert!(disconnect.retry_in.is_some());
        }
        assert_eq!(opened(&mut events).epoch, 4);
        let last = message(&mut events);
        assert_eq!((last.text(), last.epoch()), (Some("3"), 4));
        assert_eq!((client.epoch(), client.state()), (4, State::Open { epoch: 4 }));
    });
}

#[test]
fn permanent_errors_end_the_client() {
    for status in [401, 403, 404] {
        let server =
            TestServer::start(move |peer| peer.refuse(status, "X-Secret: secret\r\n", "go away"));
        let client = builder(&server).start().expect("it starts");
        let mut events = client.events();
        let failure = dial_failed(&mut events);
        assert_eq!((failure.attempt, failure.retry_in), (1, None));
        let stopped = stopped(&mut events);
        assert_eq!(stopped.reason.status().map(|status| status.as_u16()), Some(status));
        let response = stopped.reason.response().expect("it is a refusal");
        assert_eq!(response.body(), b"go away");
        assert!(!format!("{:?} {}", stopped.reason, stopped.reason.chain()).contains("secret"));
        assert!(events.next().is_none());
        assert_eq!(client.state(), State::Closed);
        assert_eq!(server.connections(), 1);
        assert!(client.stop(SOON).is_clean());
    }
}

#[test]
fn other_statuses_are_retried_and_retry_after_is_the_minimum_delay() {
    let server = TestServer::start(|peer| match peer.number() {
        0 => peer.refuse(429, "Retry-After: 1\r\n", ""),
        1 => peer.refuse(503, "", "busy"),
        2 => peer.refuse(302, "Location: ws://elsewhere/\r\n", ""),
        _ => {
            peer.upgrade()?;
            peer.echo()
        }
    });
    let began = Instant::now();
    let client = builder(&server).start().expect("it starts");
    let mut events = client.events();
    for (attempt, status) in [(1, 429), (2, 503), (3, 302)] {
        let failure = dial_failed(&mut events);
        assert_eq!(failure.attempt, attempt);
        assert_eq!(failure.error.status().map(|status| status.as_u16()), Some(status));
        assert_eq!(
            failure.retry_in.is_some_and(|wait| wait >= Duration::from_secs(1)),
            status == 429
        );
    }
    assert_eq!(opened(&mut events).epoch, 1);
    assert!(began.elapsed() >= Duration::from_secs(1));
}

#[test]
fn retry_after_is_capped_in_both_its_forms() {
    let cap = 50 * MS;
    let server = TestServer::start(|peer| match peer.number() {
        0 => peer.refuse(418, "Retry-After: 86400\r\n", ""),
        1 => peer.refuse(503, "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT\r\n", ""),
        _ => {
            peer.upgrade()?;
            peer.echo()
        }
    });
    let client = builder(&server).retry_after_max(cap).start().expect("it starts");
    let mut events = client.events();
    for _ in 0..2 {
        let failure = dial_failed(&mut events);
        // The delay is capped, and the jitter of the backoff is added to it.
        assert!(failure.retry_in.is_some_and(|wait| wait >= cap && wait < 2 * cap), "{failure:?}");
    }
    opened(&mut events);
}

#[test]
fn a_connection_that_has_ended_is_let_go_before_the_next_dial() {
    plain_and_tls(|server_builder| {
        let server = server_builder().start(|peer| {
            peer.upgrade()?;
            peer.close(1001, "")?;
            peer.drain()
        });
        let client = builder(&server)
            .retry_policy(|_, _| RetryDecision::RetryAfter(60 * SOON))
            .connect()
            .expect("it opens");
        let mut events = client.events();
        opened(&mut events);
        disconnected(&mut events);
        until("the client waits", || matches!(client.state(), State::Backoff { .. }));
        until("nothing is there to send on", || {
            let error = client.send_text("x").expect_err("it has ended");
            assert!(error.is_not_sent());
            error.reason().kind() == ErrorKind::Connect
        });
        assert_eq!(client.stats().last_byte_age, None);
        assert!(server.wait_until_all_closed(SOON));
    });
}

#[test]
fn half_a_message_does_not_outlive_its_connection_in_either_direction() {
    plain_and_tls(|server_builder| {
        let server = server_builder().start(|peer| {
            peer.upgrade()?;
            if peer.number() == 0 {
                // The first fragment of two.
                peer.send_frame(0x01, b"old ")?;
                return peer.half_close();
            }
            peer.send_text("new")?;
            peer.echo()
        });
        let client = builder(&server).connect().expect("it opens");
        let mut events = client.events();
        opened(&mut events);
        disconnected(&mut events);
        opened(&mut events);
        let first = message(&mut events);
        assert_eq!((first.text(), first.epoch()), (Some("new"), 2));
        // The connection ends between two fragments, and another opens meanwhile.
        let fragments = ["one ", "two ", "three"].into_iter().map(|text| {
            // Each fragment is requested before the previous one is sent: only "one " is out by
            // now.
            if text == "three" {
                server.abort_all();
                disconnected(&mut events);
                assert_eq!(opened(&mut events).epoch, 3);
            }
            Payload::Text(text)
        });
        let error =
            client.sender().send_fragmented(fragments).expect_err("its connection has ended");
        assert!(matches!(error, SendError::Unknown(_)), "{error:?}");
        client.send_text("whole").expect("the new connection is open");
        assert!(server.wait_for_messages(1, SOON));
        assert_eq!(server.messages(), [b"whole".to_vec()]);
    });
}

#[test]
fn max_attempts_counts_dials_in_a_row_and_the_last_error_is_reported() {
    let server = TestServer::start(|peer| peer.refuse(503, "", ""));
    let client = builder(&server).max_attempts(3).start().expect("it starts");
    let events: Vec<Event> = client.events().collect();
    assert_eq!(events.len(), 4, "{events:?}");
    let Some(Event::Stopped(stopped)) = events.last() else { panic!("it ends") };
    assert_eq!(stopped.reason.status().map(|status| status.as_u16()), Some(503));
    assert_eq!(server.connections(), 3);
}

#[test]
fn a_server_that_accepts_and_drops_uses_up_the_attempts() {
    let server = TestServer::start(|peer| peer.upgrade().map(drop));
    let client = builder(&server).max_attempts(4).start().expect("it starts");
    assert!(matches!(client.events().last(), Some(Event::Stopped(_))));
    assert_eq!(server.openings(), 4);
}

#[test]
fn a_stable_connection_resets_the_attempts() {
    let server = TestServer::start(|peer| peer.upgrade().map(drop));
    // Every connection counts as stable at once, so the attempts never add up.
    let client =
        builder(&server).max_attempts(2).stable_after(Duration::ZERO).start().expect("it starts");
    assert!(server.wait_for_openings(10, SOON));
    assert!(client.stop(SOON).is_clean());
    assert_eq!(client.stop_reason().map(|end| end.kind()), Some(ErrorKind::Stopped));
}

#[test]
fn a_single_attempt_is_never_retried() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.close(1012, "restart")
    });
    let client =
        builder(&server).max_attempts(1).stable_after(Duration::ZERO).start().expect("it starts");
    let Some(Event::Stopped(stopped)) = client.events().last() else { panic!("it ends") };
    assert_eq!(stopped.reason.close_reason().map(|close| close.code), Some(1012));
    assert_eq!(server.connections(), 1);
}

#[test]
fn connect_makes_one_dial_and_leaves_nothing_running() {
    let server = TestServer::start(|peer| peer.refuse(503, "", "busy"));
    let error = builder(&server).connect().expect_err("it is refused");
    assert_eq!(error.status().map(|status| status.as_u16()), Some(503));
    assert!(server.wait_until_all_closed(SOON));
    assert_eq!(server.connections(), 1);
}

#[test]
fn a_retry_policy_can_decide_by_close_code_and_status() {
    let server = TestServer::start(|peer| match peer.number() {
        0 => peer.refuse(404, "", ""),
        1 => {
            peer.upgrade()?;
            peer.close(4001, "")
        }
        _ => {
            peer.upgrade()?;
            peer.close(4002, "")
        }
    });
    let client = builder(&server)
        .retry_policy(|error, default| match error.close_reason().map(|close| close.code) {
            Some(4002) => RetryDecision::GiveUp,
            Some(4001) => RetryDecision::RetryAfter(20 * MS),
            _ if error.status().is_some() => RetryDecision::Retry,
            _ => default,
        })
        .start()
        .expect("it starts");
    let Some(Event::Stopped(stopped)) = client.events().last() else { panic!("it ends") };
    assert_eq!(stopped.reason.close_reason().map(|close| close.code), Some(4002));
    assert_eq!(server.connections(), 3);
}

#[test]
fn an_endpoint_closure_is_called_before_each_dial() {
    let server = TestServer::start(|peer| {
        let request = peer.upgrade()?;
        peer.send_text(&format!(
            "{} {}",
            request.path,
            request.header("X-Token").unwrap_or("none")
        ))?;
        peer.receive_message()?;
        peer.close(1000, "")
    });
    let asked = AtomicUsize::new(0);
    let url = server.url();
    let client = Client::builder_from_fn(move |context| {
        assert!(context.remaining() > Duration::ZERO && !context.is_stopping());
        match asked.fetch_add(1, Ordering::SeqCst) {
            1 => Err("the token service is down".into()),
            number => {
                Ok(Endpoint::new(format!("{url}?n={number}")).header("X-Token", number.to_string()))
            }
        }
    })
    .retry_delay_min(MS)
    .start()
    .expect("it starts");
    let mut events = client.events();
    opened(&mut events);
    assert_eq!(message(&mut events).text(), Some("/?n=0 0"));
    client.send_text("on").expect("the connection is open");
    disconnected(&mut events);
    assert_eq!(dial_failed(&mut events).error.kind(), ErrorKind::Endpoint);
    opened(&mut events);
    assert_eq!(message(&mut events).text(), Some("/?n=2 2"));
}

#[test]
fn each_connection_has_the_values_and_the_ping_interval_that_its_endpoint_carries() {
    const SECRET: &str = "hunter2";
    // The second endpoint names no interval, and the pings then have their own, which is long.
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        if peer.number() != 1 {
            assert_eq!(peer.receive_message()?, Received::Text("often".to_owned()));
            assert_eq!(peer.receive_message()?, Received::Text("seldom".to_owned()));
            assert_eq!(peer.receive_message()?, Received::Text("often".to_owned()));
            return peer.close(1000, "");
        }
        assert_eq!(peer.receive_timeout(200 * MS)?, None);
        peer.close(1000, "")
    });
    let url = server.url();
    let dials = AtomicUsize::new(0);
    let builder = Client::builder_from_fn(move |_| {
        let number = dials.fetch_add(1, Ordering::SeqCst);
        let endpoint = Endpoint::new(&url)
            .carry("token", "an earlier one")
            .carry("token", format!("{SECRET} {number}"));
        Ok(match number {
            1 => endpoint,
            _ => endpoint.carry("number", number.to_string()).app_ping_interval(50 * MS),
        })
    })
    .retry_delay_min(MS)
    .retry_delay_max(MS)
    .app_ping(AppPing::text("often", 60 * SOON))
    .app_ping(AppPing::text("seldom", 360 * SOON));

    let client = builder.clone().start().expect("it starts");
    let mut events = client.events();
    for number in 0..3 {
        let opened = opened(&mut events);
        assert_eq!(opened.carried("token"), Some(format!("{SECRET} {number}").as_str()));
        let expected = (number != 1).then(|| number.to_string());
        assert_eq!(opened.carried("number"), expected.as_deref());
        assert_eq!(opened.carried("key"), None);
        assert!(!format!("{opened:?} {:?}", Event::Opened(opened.clone())).contains(SECRET));
        let disconnect = disconnected(&mut events);
        assert_eq!(disconnect.error.close_reason().map(|close| close.code), Some(1000));
    }
    assert!(client.stop(SOON).is_clean());

    struct Told(crossbeam_channel::Sender<Option<String>>);
    impl Handler for Told {
        fn opened(&mut self, connection: &mut Connection<'_>) {
            self.0.send(connection.opening().carried("token").map(str::to_owned)).ok();
        }
        fn message(&mut self, _: &mut Connection<'_>, _: MessageRef<'_>) {}
    }
    let (tell, told) = crossbeam_channel::unbounded();
    let client = builder.start_with(Told(tell)).expect("it starts");
    // The closure goes on counting.
    let token = told.recv_timeout(SOON).expect("it opens").expect("it is carried");
    assert!(token.starts_with(SECRET), "{token}");
    assert!(client.stop(SOON).is_clean());
}

#[test]
fn an_endpoint_closure_that_names_an_interval_of_zero_ends_the_client() {
    let closure = |_: &DialContext| {
        Ok(Endpoint::new("ws://127.0.0.1:1/hunter2").app_ping_interval(Duration::ZERO))
    };
    let client = Client::builder_from_fn(closure).start().expect("it starts");
    let end = client.wait_closed(SOON).expect("no other dial could mend it");
    assert_eq!(end.kind(), ErrorKind::Config);
    assert!(!end.chain().contains("hunter2"), "{}", end.chain());
}

#[test]
fn several_endpoints_are_dialed_in_turn() {
    let servers: Vec<TestServer> =
        (0..3).map(|_| TestServer::start(|peer| peer.upgrade().map(drop))).collect();
    let mut settings = builder(&servers[0]);
    for server in &servers[1..] {
        settings = settings.add_endpoint(server.url());
    }
    let client = settings.start().expect("it starts");
    for server in &servers {
        assert!(server.wait_for_openings(3, SOON));
    }
    assert!(client.stop(SOON).is_clean());
}

#[test]
fn another_endpoint_is_dialed_after_a_permanent_refusal_by_one() {
    let [gone, good] = [404, 0].map(|status| {
        TestServer::start(move |peer| match status {
            0 => peer.upgrade().map(drop),
            _ => peer.refuse(status, "", ""),
        })
    });
    let client = builder(&gone).add_endpoint(good.url()).start().expect("it starts");
    assert!(good.wait_for_openings(3, SOON), "{:?}", client.stop_reason());
    assert!(client.stop(SOON).is_clean());

    let also_gone = TestServer::start(|peer| peer.refuse(401, "", ""));
    let client = builder(&gone).add_endpoint(also_gone.url()).start().expect("it starts");
    let end = client.wait_closed(SOON).expect("both have refused");
    assert_eq!(end.status().map(|status| status.as_u16()), Some(401));
}

#[test]
fn retry_after_of_one_endpoint_does_not_delay_the_dial_to_another() {
    let busy = TestServer::start(|peer| peer.refuse(503, "Retry-After: 3600\r\n", ""));
    let good = echo(TestServer::builder());
    let client = builder(&busy)
        .add_endpoint(good.url())
        .retry_after_max(360 * SOON)
        .start()
        .expect("it starts");
    assert!(client.wait_open(SOON).is_ok());
    // It is the turn of the first endpoint again, which asks for a delay of an hour.
    client.reconnect().expect("the connection is open");
    let mut events = client.events();
    let failure = dial_failed(&mut events);
    assert!(failure.retry_in.is_some_and(|wait| wait < SOON), "{failure:?}");
    opened(&mut events);
    let wait = disconnected(&mut events).retry_in.expect("it dials again");
    assert!(wait > 300 * SOON, "{wait:?}");
}

#[test]
fn a_wait_open_that_times_out_reports_why_the_last_dial_failed() {
    let server = TestServer::start(|peer| peer.refuse(503, "Retry-After: 3600\r\n", ""));
    let client = builder(&server).retry_after_max(360 * SOON).start().expect("it starts");
    dial_failed(&mut client.events());
    let error = client.wait_open(MS).expect_err("it is refused");
    assert_eq!(
        (error.kind(), error.timeout()),
        (ErrorKind::Timeout, Some(tautline::Timeout::WaitOpen))
    );
    assert!(error.chain().contains("status 503"), "{}", error.chain());
}

#[test]
fn all_retry_delays_are_jittered_over_the_whole_range() {
    let server = TestServer::start(|peer| peer.refuse(503, "", ""));
    let first_delays: Vec<Duration> = (0..40)
        .map(|_| {
            let client = Client::builder(server.url())
                .retry_delay_min(SOON)
                .retry_delay_max(SOON)
                .start()
                .expect("it starts");
            dial_failed(&mut client.events()).retry_in.expect("it retries")
        })
        .collect();
    // The delays are distributed uniformly. All forty miss one of the quarters of the range about
    // once in 25,000 runs.
    let has_some = |from: u32, to: u32| {
        first_delays.iter().any(|delay| (SOON * from / 4..SOON * to / 4).contains(delay))
    };
    assert!((0..4).all(|quarter| has_some(quarter, quarter + 1)), "{first_delays:?}");
}

#[test]
fn a_retry_policy_cannot_refuse_a_reconnect_that_the_program_asked_for() {
    let server = echo(TestServer::builder());
    let gives_up_after_1000 =
        |error: &Error, default| match error.close_reason().map(|close| close.code) {
            Some(1000) => RetryDecision::GiveUp,
            _ => default,
        };
    let client = builder(&server).retry_policy(gives_up_after_1000).connect().expect("it opens");
    client.reconnect().expect("the connection is open");
    assert!(server.wait_for_openings(2, SOON), "{:?}", client.stop_reason());
}

#[test]
fn a_handler_can_ask_for_a_new_connection() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.send_text("gap")?;
        peer.echo()
    });
    let openings = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&openings);
    let handler = move |connection: &mut Connection<'_>, _: MessageRef<'_>| {
        if counted.fetch_add(1, Ordering::SeqCst) < 3 {
            connection.reconnect();
            assert!(
                connection.ping().is_err_and(|error| error.is_not_sent()),
                "no ping leaves on a connection that is ending"
            );
        }
    };
    let client = builder(&server).start_with(handler).expect("it starts");
    assert!(server.wait_for_openings(4, SOON));
    assert!(client.stop(SOON).is_clean());
    assert_eq!(
        server.closes()[..3],
        [Some(1000); 3],
        "each connection was closed with a close frame"
    );
}

#[test]
fn a_program_that_pulls_can_ask_for_a_new_connection() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        if peer.number() == 0 { peer.drain() } else { peer.echo() }
    });
    // The first peer never answers the close frame, so the connection is aborted at the deadline.
    let client = builder(&server).close_timeout(30 * MS).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    for epoch in 2..=3 {
        client.reconnect().expect("a connection is open");
        let disconnect = disconnected(&mut events);
        assert_eq!(disconnect.error.close_reason().map(|close| close.code), Some(1000));
        assert_eq!(
            disconnect.is_clean(),
            epoch == 3,
            "the first peer never answers, the second does"
        );
        assert!(disconnect.retry_in.is_some());
        assert_eq!(opened(&mut events).epoch, epoch);
    }
    assert_eq!(server.closes(), [Some(1000); 2]);
}

#[test]
fn a_bad_request_is_dialed_once_and_too_many_requests_again() {
    for (status, is_permanent) in [(400, true), (408, false), (418, false), (429, false)] {
        let server = TestServer::start(move |peer| peer.refuse(status, "", ""));
        let client = builder(&server).start().expect("it starts");
        let mut events = client.events();
        let Event::DialFailed(failure) = next(&mut events) else { panic!("the dial fails") };
        assert_eq!(failure.error.status().map(|status| status.as_u16()), Some(status));
        assert_eq!(failure.retry_in.is_none(), is_permanent, "{failure}");
    }
}

/// Dials a server on which every connection ends as `end` has it, and returns the attempt numbers
/// of the dials.
fn attempts(
    count: usize,
    max_attempts: u32,
    end: impl Fn(&mut Connection<'_>) + Send + 'static,
) -> Vec<u32> {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.send_text("message")?;
        peer.receive_timeout(100 * MS).map(drop)
    });
    let (tell, told) = crossbeam_channel::unbounded();
    let url = server.url();
    let client = Client::builder_from_fn(move |context| {
        tell.send(context.attempt()).ok();
        Ok(Endpoint::new(url.clone()))
    })
    .retry_delay_min(MS)
    .retry_delay_max(5 * MS)
    .max_attempts(max_attempts)
    .start_with(move |connection: &mut Connection<'_>, _: MessageRef<'_>| end(connection))
    .expect("it starts");
    let attempts = (0..count).map(|_| told.recv_timeout(SOON).expect("it dials again")).collect();
    assert!(client.stop(SOON).is_clean());
    attempts
}

#[test]
fn reconnects_of_the_programs_count_as_no_attempt() {
    // More of them in a row than attempts are allowed.
    assert_eq!(attempts(6, 1, |connection| connection.reconnect()), [1; 6]);
    assert_eq!(attempts(6, 3, |connection| connection.reconnect()), [1; 6]);
}

#[test]
fn a_connection_that_is_marked_stable_resets_the_attempts_when_it_ends() {
    assert_eq!(attempts(4, 9, |_| {}), [1, 2, 3, 4]);
    assert_eq!(attempts(4, 9, |connection| connection.mark_stable()), [1; 4]);
}

/// Starts a server that closes its first connections with the code 1012, and keeps the later ones.
fn closing(first: usize) -> TestServer {
    TestServer::start(move |peer| {
        peer.upgrade()?;
        if peer.number() < first { peer.close(1012, "restart") } else { peer.echo() }
    })
}

#[test]
fn nothing_is_dialed_while_before_reconnect_runs() {
    fn check<D>(server: &TestServer, start: impl FnOnce(Builder) -> Client<D>) {
        let (tell, told) = crossbeam_channel::bounded(0);
        let (release, held) = crossbeam_channel::bounded(0);
        let builder = builder(server).before_reconnect(move |ended, context| {
            assert!(context.remaining() > Duration::ZERO && !context.is_stopping());
            let close = (ended.close.code, ended.close.reason.clone());
            tell.send((ended.epoch, close, context.attempt())).ok();
            held.recv().expect("the test releases it");
            RetryDecision::Retry
        });
        let client = start(builder);
        let told = told.recv_timeout(SOON).expect("the connection ends");
        assert_eq!(told, (1, (1012, "restart".to_owned()), 2));
        assert!(server.wait_until_all_closed(SOON), "the old connection is closed");
        assert!(matches!(client.state(), State::Backoff { attempt: 2, .. }));
        assert_eq!(client.stats().drops["closed"], 1);
        // Much longer than the wait before a dial. Passing time is what is tested.
        std::thread::sleep(50 * MS);
        assert_eq!(server.connections(), 1);
        release.send(()).expect("the closure waits");
        assert!(server.wait_for_openings(2, SOON));
        assert!(client.stop(SOON).is_clean());
    }

    check(&closing(1), |builder| {
        let client = builder.start().expect("it starts");
        let mut events = client.events();
        opened(&mut events);
        assert!(disconnected(&mut events).retry_in.is_some(), "it is told before the closure ends");
        client
    });

    struct Told(crossbeam_channel::Sender<u64>);
    impl Handler for Told {
        fn message(&mut self, _: &mut Connection<'_>, _: MessageRef<'_>) {}
        fn disconnected(&mut self, disconnect: &Disconnect) {
            self.0.send(disconnect.epoch).ok();
        }
    }
    check(&closing(1), |builder| {
        let (tell, told) = crossbeam_channel::unbounded();
        let client = builder.start_with(Told(tell)).expect("it starts");
        assert_eq!(told.recv_timeout(SOON), Ok(1), "it is told before the closure ends");
        client
    });
}

#[test]
fn before_reconnect_is_called_once_for_each_end_and_neither_for_failed_dials_nor_for_a_stop() {
    let server = TestServer::start(|peer| match peer.number() {
        0 => {
            peer.upgrade()?;
            peer.close(1012, "")
        }
        1 | 2 => peer.refuse(503, "", ""),
        3 => {
            peer.upgrade()?;
            peer.reset()
        }
        _ => {
            peer.upgrade()?;
            peer.echo()
        }
    });
    let (tell, told) = crossbeam_channel::unbounded();
    let client = builder(&server)
        .before_reconnect(move |ended, context| {
            tell.send((ended.epoch, ended.error.is_retryable(), context.attempt())).ok();
            RetryDecision::Retry
        })
        .start()
        .expect("it starts");
    until("the third connection is open", || client.state() == State::Open { epoch: 3 });
    client.reconnect().expect("it is open");
    until("the fourth connection is open", || client.state() == State::Open { epoch: 4 });
    assert!(client.stop(SOON).is_clean());
    // The program's own reconnect counts as no attempt.
    assert_eq!(told.iter().collect::<Vec<_>>(), [(1, true, 2), (2, true, 5), (3, true, 5)]);
}

#[test]
fn before_reconnect_can_bring_the_dial_forward_or_put_it_off() {
    let hour = Duration::from_secs(3600);
    let server = closing(1);
    let client = builder(&server)
        .retry_policy(move |_, _| RetryDecision::RetryAfter(hour))
        .before_reconnect(|_, _| RetryDecision::RetryWithin(MS))
        .start()
        .expect("it starts");
    let mut events = client.events();
    opened(&mut events);
    assert_eq!(disconnected(&mut events).retry_in, Some(hour));
    assert_eq!(opened(&mut events).epoch, 2);
    assert!(client.stop(SOON).is_clean());

    let server = closing(1);
    let client = builder(&server)
        .before_reconnect(move |_, _| RetryDecision::RetryAfter(hour))
        .start()
        .expect("it starts");
    let mut events = client.events();
    opened(&mut events);
    assert!(disconnected(&mut events).retry_in.is_some_and(|wait| wait < SOON));
    until("the state says when the dial is", || match client.state() {
        State::Backoff { until, .. } => until > Instant::now() + hour / 2,
        _ => false,
    });
    assert!(client.stop(SOON).is_clean());
    assert_eq!(server.connections(), 1);
}

#[test]
fn a_client_that_before_reconnect_gives_up_ends_with_the_error_of_the_connection() {
    let server = closing(1);
    let client =
        builder(&server).before_reconnect(|_, _| RetryDecision::GiveUp).start().expect("it starts");
    let mut events = client.events();
    opened(&mut events);
    assert!(disconnected(&mut events).retry_in.is_some(), "that was decided later");
    let reason = stopped(&mut events).reason;
    assert_eq!(reason.close_reason().map(|close| close.code), Some(1012));
    assert!(events.next().is_none());
    assert_eq!((client.state(), server.connections()), (State::Closed, 1));
    assert!(client.stop(SOON).is_clean());
}

#[test]
fn a_stop_while_before_reconnect_runs_ends_the_client_when_it_returns() {
    let server = closing(1);
    let (tell, told) = crossbeam_channel::bounded(1);
    let client = builder(&server)
        .before_reconnect(move |_, context| {
            tell.send(()).ok();
            while !context.is_stopping() {
                std::thread::yield_now();
            }
            RetryDecision::RetryWithin(Duration::ZERO)
        })
        .start()
        .expect("it starts");
    told.recv_timeout(SOON).expect("the connection ends");
    let report = client.stop(SOON);
    assert!(report.is_clean(), "{report}");
    assert_eq!(client.stop_reason().map(|end| end.kind()), Some(ErrorKind::Stopped));
    assert_eq!(server.connections(), 1);

    // One that does not ask makes the reader thread late, and does nothing else.
    let server = closing(1);
    let (tell, told) = crossbeam_channel::bounded(1);
    let (release, held) = crossbeam_channel::bounded::<()>(0);
    let client = builder(&server)
        .before_reconnect(move |_, _| {
            tell.send(()).ok();
            assert!(held.recv().is_err());
            RetryDecision::GiveUp
        })
        .start()
        .expect("it starts");
    told.recv_timeout(SOON).expect("the connection ends");
    let report = client.stop(50 * MS);
    let late: Vec<_> =
        report.threads().iter().filter(|thread| thread.outcome != ThreadOutcome::Joined).collect();
    assert!(late.len() == 1 && late[0].name == "taut-reader", "{report}");
    drop(release);
    assert!(client.stop(SOON).is_clean());
    assert_eq!(client.stop_reason().map(|end| end.kind()), Some(ErrorKind::Stopped));
    assert_eq!(server.connections(), 1);
}

#[test]
fn a_panic_in_before_reconnect_ends_the_client() {
    let server = closing(1);
    let client = builder(&server)
        .before_reconnect(|_, _| std::panic::resume_unwind(Box::new("on purpose")))
        .start()
        .expect("it starts");
    let mut events = client.events();
    opened(&mut events);
    disconnected(&mut events);
    assert_eq!(stopped(&mut events).reason.kind(), ErrorKind::HandlerPanicked);
    assert!(client.take_panic().is_some());
    assert!(client.stop(SOON).is_clean());
    assert_eq!(server.connections(), 1);
}
