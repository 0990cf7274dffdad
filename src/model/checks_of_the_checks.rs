//! Faults put in on purpose: the model has to find every one of them.

use std::time::Duration;

use super::explorer::fails_within;
use super::venue::{Dial, TEXT, venue};
use super::{Sabotage, elapsed, sabotage};
use crate::{Client, Line, MessageRef};

const SECOND: Duration = Duration::from_secs(1);

fn builder(scheme: &str) -> crate::Builder {
    Client::builder(format!("{scheme}://127.0.0.1:1/")).ping_every(3600 * SECOND)
}

fn stop_at_once<D>(client: &Client<D>) {
    let began = elapsed();
    let report = client.stop(60 * SECOND);
    assert!(report.is_clean(), "{report}");
    assert_eq!(elapsed(), began);
}

#[test]
fn a_lost_shutdown_is_found() {
    assert!(fails_within(100, || {
        venue(|_| Dial::Fails);
        let client = builder("ws").start_pulled().expect("it starts");
        sabotage(Sabotage::LoseShutdown);
        stop_at_once(&client);
    }));
}

#[test]
fn a_lost_ring_is_found() {
    assert!(fails_within(100, || {
        venue(|_| Dial::Opens(Box::new(|peer| peer.serve(|peer, text| peer.send(TEXT, text)))));
        let client = builder("ws").connect().expect("it opens");
        // The peer's close frame has to wake the heart, which otherwise waits until the time of the polite end is over.
        sabotage(Sabotage::LoseRings);
        stop_at_once(&client);
    }));
}

#[test]
fn a_lost_notification_is_found() {
    assert!(fails_within(100, || {
        sabotage(Sabotage::LoseNotifications);
        venue(|_| Dial::Opens(Box::new(|peer| peer.serve(|peer, text| peer.send(TEXT, text)))));
        let client = builder("ws").start_pulled().expect("it starts");
        assert!(client.wait_open(SECOND).is_ok());
        stop_at_once(&client);
    }));
}

#[test]
fn locks_taken_in_the_wrong_order_are_found() {
    assert!(fails_within(1000, || {
        venue(|_| Dial::Opens(Box::new(|peer| peer.serve(|peer, text| peer.send(TEXT, text)))));
        let client = builder("wss").send_within(3600 * SECOND).connect().expect("it opens");
        let line = client.open_line_for_checks();
        let other = shuttle::thread::spawn(move || line.lock_in_the_wrong_order());
        assert!(client.send_text("as ever").is_ok());
        other.join().expect("it does not panic");
        stop_at_once(&client);
    }));
}

#[test]
fn a_thread_that_joins_itself_is_found() {
    assert!(fails_within(100, || {
        sabotage(Sabotage::JoinItself);
        venue(|_| {
            Dial::Opens(Box::new(|peer| {
                peer.send(TEXT, b"stop");
                peer.serve(|_, _| ());
            }))
        });
        let handler = |line: &mut Line<'_>, _: MessageRef<'_>| {
            line.stopper().stop(SECOND);
        };
        let client = builder("ws").start(handler).expect("it starts");
        assert!(client.wait_closed(3600 * SECOND).is_some());
        assert_eq!(elapsed(), Duration::ZERO);
    }));
}
