//! The memory of events that nobody pulls stays within the bounds of the queue, as live heap bytes
//! of the whole process: after a flood of empty frames, and through refusals with long headers,
//! long bodies and many headers.

use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::Duration;

use crossbeam_channel::bounded;
use tautline::testing::{Received, TestServer};
use tautline::{ErrorKind, Event, WhenFull};

use crate::{SOON, client, live_heap};

/// The bytes that a flood may leave: a read buffer of 256 KiB, and room in the queue for 1,000
/// messages, and as much for those that the reader gathers.
const FLOOD_BOUND: isize = 1 << 20;

/// A `recv` brings more than 100,000 empty frames, if the client does not keep up.
const FRAMES: usize = 1_000_000;

const QUEUE_BYTES: usize = 100_000;

/// The bytes that a client may take besides what its queue counts, with everything that a dial
/// under way holds, and 64 KiB for each connection that the server has not put away yet.
const CLIENT_BOUND: isize = 1 << 20;

/// The bytes that a queue may take besides what it counts, once the client's threads have ended:
/// the events themselves, and what is constant of an error.
const EVENTS_BOUND: isize = 32 * 1024;

/// With long headers they are 15 MB.
const REFUSALS: u32 = 250;

/// The length of a refusal's header or body. A head may be 64 KiB long.
const LONG: usize = 60 * 1024;

pub(crate) fn run() {
    a_flood_of_empty_frames_leaves_little_behind();
    let long = "x".repeat(LONG);
    refusals_stay_within_the_bytes_of_the_queue("headers", &format!("X-Long: {long}\r\n"), "");
    refusals_stay_within_the_bytes_of_the_queue("bodies", "", &long);
    let many: String = (0..50).map(|number| format!("X-{number}: x\r\n")).collect();
    refusals_stay_within_the_bytes_of_the_queue("lists of headers", &many, "");
}

fn a_flood_of_empty_frames_leaves_little_behind() {
    let (tell, told) = bounded(1);
    let (begin, begun) = bounded(1);
    let server = TestServer::start(move |peer| {
        peer.upgrade()?;
        begun.recv_timeout(SOON).map_err(std::io::Error::other)?;
        peer.write(&[0x82, 0].repeat(FRAMES))?;
        peer.send_text("last")?;
        // The client reads the ping behind everything else.
        peer.ping(b"last")?;
        while peer.receive()? != Received::Pong(b"last".to_vec()) {}
        tell.send(()).map_err(std::io::Error::other)?;
        peer.drain()
    });
    let client = client(&server)
        .queue_messages(1000)
        .when_full(WhenFull::DropOldest)
        .connect()
        .expect("it opens");
    let before = live_heap();
    begin.send(()).expect("the server waits");
    told.recv_timeout(SOON).expect("the flood ends");
    let is_last =
        |event: Event| matches!(event, Event::Message(message) if message.text() == Some("last"));
    assert!(client.events().any(is_last));
    let left = live_heap() - before;
    let stats = client.stats();
    assert_eq!((stats.messages_received, stats.epochs), (1 + FRAMES as u64, 1));
    println!("a flood of {FRAMES} empty frames leaves {left} bytes");
    assert!(left <= FLOOD_BOUND);
}

fn refusals_stay_within_the_bytes_of_the_queue(what: &str, headers: &str, body: &str) {
    let refusal =
        format!("HTTP/1.1 503 Refused\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len());
    let server = TestServer::start(move |peer| {
        peer.read_request()?;
        peer.write(refusal.as_bytes())?;
        peer.drain()
    });
    let before = live_heap();
    let most = Arc::new(AtomicIsize::new(0));
    let seen = Arc::clone(&most);
    let client = client(&server)
        .queue_bytes(QUEUE_BYTES)
        .retry_delay_min(Duration::from_nanos(1))
        .retry_delay_max(Duration::from_nanos(1))
        .max_attempts(REFUSALS)
        .retry_policy(move |_, decision| {
            seen.fetch_max(live_heap() - before, Ordering::Relaxed);
            decision
        })
        .start()
        .expect("the settings are good");
    let reason = client.wait_closed(SOON).expect("it gives up");
    assert_eq!(reason.kind(), ErrorKind::Http);
    assert_eq!(client.stats().failed_dials, u64::from(REFUSALS));
    drop(reason);
    assert!(client.stop(SOON).is_clean());
    assert!(server.wait_until_all_closed(SOON));
    let (most, left) = (most.load(Ordering::Relaxed), live_heap() - before);
    println!("{REFUSALS} refusals with long {what}: {most} bytes at most, {left} at the end");
    assert!(most <= QUEUE_BYTES as isize + CLIENT_BOUND);
    assert!(left <= QUEUE_BYTES as isize + EVENTS_BOUND);

    let (mut told, mut lost) = (0, 0);
    for event in client.events() {
        match event {
            Event::DialFailed(_) => told += 1,
            Event::Lagged(lag) => lost += lag.lost_notices,
            _ => {}
        }
    }
    assert_eq!(told + lost, u64::from(REFUSALS));
}
