//! Mutation tests of the checks: the model must find every fault that is injected.
//!
//! Each scenario also runs without its fault. It has to hold then, or something else was found.

use std::sync::Arc;
use std::time::Duration;

use super::dialer::{Dial, TEXT, server};
use super::explorer::fails_within;
use super::world::{Fault, elapsed, inject};
use crate::sync::Mutex;
use crate::sync::channel::{Sender, bounded};
use crate::{Client, Connection, Handler, MessageRef, WokenContext};

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

/// Runs a scenario without and with a fault, which it injects by calling its argument.
fn is_found(
    schedules: usize,
    fault: Fault,
    scenario: impl Fn(&dyn Fn()) + Send + Sync + Clone + 'static,
) {
    let sound = scenario.clone();
    assert!(!fails_within(schedules, move || sound(&|| ())), "it fails without {fault:?} too");
    assert!(fails_within(schedules, move || scenario(&|| inject(fault))), "{fault:?} is missed");
}

fn echoes() -> Dial {
    Dial::Opens(Box::new(|peer| peer.serve(|peer, text| peer.send(TEXT, text))))
}

#[test]
fn a_lost_shutdown_is_found() {
    is_found(100, Fault::LostDisconnects, |inject| {
        server(|_| Dial::Fails);
        let client = builder("ws").start().expect("it starts");
        inject();
        stop_at_once(&client);
    });
}

#[test]
fn a_lost_wakeup_is_found() {
    is_found(100, Fault::LostWakeups, |inject| {
        server(|_| echoes());
        let client = builder("ws").connect().expect("it opens");
        // The peer's close frame has to wake the heartbeat, which otherwise waits for the end of
        // `close_timeout`.
        inject();
        stop_at_once(&client);
    });
}

#[test]
fn a_lost_notification_is_found() {
    is_found(100, Fault::LostNotifications, |inject| {
        inject();
        server(|_| echoes());
        let client = builder("ws").start().expect("it starts");
        assert!(client.wait_open(SECOND).is_ok());
        stop_at_once(&client);
    });
}

#[test]
fn a_lost_signal_is_found() {
    is_found(100, Fault::LostSignals, |inject| {
        struct Tells(Sender<()>);
        impl Handler for Tells {
            fn message(&mut self, _: &mut Connection<'_>, _: MessageRef<'_>) {}
            fn woken(&mut self, _: &mut WokenContext<'_>) {
                self.0.try_send(()).expect("it is woken once");
            }
        }
        server(|_| echoes());
        let (tell, told) = bounded(1);
        let client = builder("ws").wakeups().connect_with(Tells(tell)).expect("it opens");
        inject();
        client.sender().wake().expect("nobody stops it");
        told.recv().expect("the handler is there");
        assert_eq!(elapsed(), Duration::ZERO);
        stop_at_once(&client);
    });
}

#[test]
fn locks_taken_in_the_wrong_order_are_found() {
    let scenario = |is_wrong: bool| {
        let locks = Arc::new([Mutex::new(()), Mutex::new(())]);
        let other = Arc::clone(&locks);
        let other = shuttle::thread::spawn(move || {
            let [first, second] = if is_wrong { [1, 0] } else { [0, 1] };
            let _first = other[first].lock();
            let _second = other[second].lock();
        });
        {
            let _first = locks[0].lock();
            let _second = locks[1].lock();
        }
        other.join().expect("it does not panic");
    };
    assert!(!fails_within(100, move || scenario(false)));
    assert!(fails_within(100, move || scenario(true)));
}

#[test]
fn a_thread_that_joins_itself_is_found() {
    is_found(100, Fault::WrongThreadId, |inject| {
        inject();
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
fn a_client_that_is_left_running_is_found() {
    assert!(fails_within(10, || {
        server(|_| echoes());
        std::mem::forget(builder("ws").connect().expect("it opens"));
    }));
}
