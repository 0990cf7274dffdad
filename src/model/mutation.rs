//! Faults put in on purpose: the model has to find every one of them. Without the fault the same
//! scenario has to hold, or what was found was something else.

use std::time::Duration;

use super::dialer::{Dial, TEXT, server};
use super::explorer::fails_within;
use super::{Sabotage, elapsed, sabotage};
use crate::{Client, Connection, MessageRef};

const SECOND: Duration = Duration::from_secs(1);

fn builder(scheme: &str) -> crate::Builder {
    Client::builder(format!("{scheme}://127.0.0.1:1/")).ping_interval(3600 * SECOND)
}

fn stop_at_once<D>(client: &Client<D>) {
    let began = elapsed();
    let report = client.stop(60 * SECOND);
    assert!(report.is_clean(), "{report}");
    assert_eq!(elapsed(), began);
}

/// Runs a scenario without its fault, and then with it: `break_it` says when it is to break.
fn is_found(
    schedules: usize,
    by: Sabotage,
    scenario: impl Fn(&dyn Fn()) + Send + Sync + Clone + 'static,
) {
    let whole = scenario.clone();
    assert!(!fails_within(schedules, move || whole(&|| ())), "it fails without {by:?} too");
    assert!(fails_within(schedules, move || scenario(&|| sabotage(by))), "{by:?} is not found");
}

fn echoes() -> Dial {
    Dial::Opens(Box::new(|peer| peer.serve(|peer, text| peer.send(TEXT, text))))
}

#[test]
fn a_lost_shutdown_is_found() {
    is_found(100, Sabotage::LoseShutdown, |break_it| {
        server(|_| Dial::Fails);
        let client = builder("ws").start().expect("it starts");
        break_it();
        stop_at_once(&client);
    });
}

#[test]
fn a_lost_ring_is_found() {
    is_found(100, Sabotage::LoseWakeups, |break_it| {
        server(|_| echoes());
        let client = builder("ws").connect().expect("it opens");
        // The peer's close frame has to wake the heart, which otherwise waits until the time of the
        // polite end is over.
        break_it();
        stop_at_once(&client);
    });
}

#[test]
fn a_lost_notification_is_found() {
    is_found(100, Sabotage::LoseNotifications, |break_it| {
        break_it();
        server(|_| echoes());
        let client = builder("ws").start().expect("it starts");
        assert!(client.wait_open(SECOND).is_ok());
        stop_at_once(&client);
    });
}

#[test]
fn locks_taken_in_the_wrong_order_are_found() {
    let scenario = |is_wrong: bool| {
        server(|_| echoes());
        let client = builder("wss").send_timeout(3600 * SECOND).connect().expect("it opens");
        let connection = client.open_connection_for_checks();
        let other = shuttle::thread::spawn(move || {
            if is_wrong {
                connection.lock_in_the_wrong_order();
            }
        });
        assert!(client.send_text("as ever").is_ok());
        other.join().expect("it does not panic");
        stop_at_once(&client);
    };
    assert!(!fails_within(300, move || scenario(false)));
    assert!(fails_within(1000, move || scenario(true)));
}

#[test]
fn a_thread_that_joins_itself_is_found() {
    is_found(100, Sabotage::JoinItself, |break_it| {
        break_it();
        server(|_| {
            Dial::Opens(Box::new(|peer| {
                peer.send(TEXT, b"stop");
                peer.serve(|_, _| ());
            }))
        });
        let handler = |connection: &mut Connection<'_>, _: MessageRef<'_>| {
            connection.stopper().stop(SECOND);
        };
        let client = builder("ws").start_with(handler).expect("it starts");
        assert!(client.wait_closed(3600 * SECOND).is_some());
        assert_eq!(elapsed(), Duration::ZERO);
    });
}

#[test]
fn a_client_that_is_left_behind_is_found() {
    assert!(fails_within(10, || {
        server(|_| echoes());
        std::mem::forget(builder("ws").connect().expect("it opens"));
    }));
}
