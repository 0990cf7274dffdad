//! A message on its way to a handler or into a batch costs no allocation: plain, over TLS and
//! through a session. Events that nobody pulls take no more memory than their bounds allow, and
//! neither do topics and calls. rustls costs an allocation for each record.
//!
//! A program of its own, because it counts the allocations of the whole process.

mod queue;
mod session;

use std::alloc::System;
use std::io::Write;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use flate2::Compression;
use flate2::write::GzEncoder;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tautline::testing::TestServer;
use tautline::{
    Builder, Client, Connection, Decode, Error, EventRef, Events, Handler, MessageRef, Push, Stats,
    StopReport, WhenFull,
};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Buffers have grown by then.
const WARM_UP: u64 = 20_000;
const COUNTED: u64 = 200_000;

/// The messages that fill the queue.
const QUEUE: usize = 4096;

/// The allocations that pings, timers and the test itself may cost in that time.
const SLACK: usize = 200;

/// The most records that the counted messages come in: rustls allocates the plaintext of each.
const RECORDS: usize = 4_000;

const SOON: Duration = Duration::from_secs(60);

fn main() {
    for (name, settings) in [("plain", TestServer::builder()), ("TLS", TestServer::builder().tls())]
    {
        let server = settings.clone().discard_messages().start(|peer| {
            peer.upgrade()?;
            peer.flood(200)
        });
        let has_records = cfg!(rustls_by_default) && name == "TLS";
        let slack = if has_records { SLACK + RECORDS } else { SLACK };
        let report = |allocations: usize, what: &str| {
            println!("{name}: {allocations} allocations in {COUNTED} messages {what}");
            assert!(allocations <= slack);
        };
        let stop = |client: Client<Push>| client.stop(SOON);
        report(count(|handler| client(&server).start_with(handler), stop), "to a handler");
        report(count_in_client_batches(&server), "in batches");
        session::count_messages(&server, report);
        let server = settings.discard_messages().start(|peer| {
            peer.upgrade()?;
            let burst = gzip_frame().repeat(100);
            loop {
                peer.write(&burst)?;
            }
        });
        let builder = client(&server).decode(Decode::gzip().as_text());
        // Fewer, because decoding takes its time in a dev build.
        let counted = COUNTED / 10;
        let start = |handler| builder.start_with(handler);
        let allocations = count_of(WARM_UP / 10, counted, start, stop);
        println!("{name}: {allocations} allocations in {counted} messages that are decoded");
        assert!(allocations <= slack);
    }
    queue::run();
    session::run();
}

fn client(server: &TestServer) -> Builder {
    Client::builder(server.url())
        .name("allocations")
        .tls_root(TestServer::root_pem())
        .tls_only_given_roots()
        .close_timeout(Duration::from_millis(50))
}

/// Returns a frame with a binary message of 1 KiB, compressed by gzip.
fn gzip_frame() -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
    let content: String = (0..128).map(|number| format!("{:8}", number * number)).collect();
    let encoded = encoder.write_all(content.as_bytes()).and_then(|()| encoder.finish());
    let payload = encoded.expect("memory takes all of it");
    let len = u16::try_from(payload.len()).expect("it is short");
    assert!((126..1024).contains(&len));
    [&[0x82, 126], &len.to_be_bytes()[..], &payload].concat()
}

/// Returns the number of allocations while `COUNTED` messages came to the handler of what is
/// started.
fn count<C>(
    start: impl FnOnce(Count) -> Result<C, Error>,
    stop: impl FnOnce(C) -> StopReport,
) -> usize {
    count_of(WARM_UP, COUNTED, start, stop)
}

/// Returns the number of allocations while `counted` messages came, after as many as `warm_up`.
fn count_of<C>(
    warm_up: u64,
    counted: u64,
    start: impl FnOnce(Count) -> Result<C, Error>,
    stop: impl FnOnce(C) -> StopReport,
) -> usize {
    let (tell, told) = bounded(1);
    let handler = Count { warm_up, counted, messages: 0, before: 0, tell };
    let client = start(handler).expect("the settings are good");
    let allocations = told.recv_timeout(SOON).expect("the flood comes");
    assert!(stop(client).is_clean());
    allocations
}

fn count_in_client_batches(server: &TestServer) -> usize {
    let client = queued(client(server)).start().expect("the settings are good");
    let counted = count_in_batches(client.events(), || client.stats());
    assert!(client.stop(SOON).is_clean());
    counted
}

fn queued(builder: Builder) -> Builder {
    builder.queue_messages(QUEUE).when_full(WhenFull::Block)
}

/// Returns the number of allocations while `COUNTED` messages came in batches.
fn count_in_batches(mut events: Events, stats: impl Fn() -> Stats) -> usize {
    let (mut messages, mut before) = (0, None);
    while messages < WARM_UP + COUNTED {
        // While it warms up the queue is full each time, so that it has all its buffers.
        while messages < WARM_UP && stats().queue_depth < QUEUE {
            thread::yield_now();
        }
        let batch = events.next_batch_timeout(SOON).expect("the flood comes");
        messages +=
            batch.iter().filter(|event| matches!(event, EventRef::Message(_))).count() as u64;
        if messages >= WARM_UP {
            before.get_or_insert_with(allocations);
        }
    }
    allocations() - before.expect("it has warmed up")
}

struct Count {
    warm_up: u64,
    counted: u64,
    messages: u64,
    before: usize,
    tell: Sender<usize>,
}

impl Handler for Count {
    fn message(&mut self, connection: &mut Connection<'_>, _: MessageRef<'_>) {
        self.messages += 1;
        if self.messages == self.warm_up {
            self.before = allocations();
        }
        if self.messages == self.warm_up + self.counted {
            self.tell.send(allocations() - self.before).expect("the test waits");
            connection.stop();
        }
    }
}

fn allocations() -> usize {
    let stats = ALLOCATOR.stats();
    stats.allocations + stats.reallocations
}

/// Returns the bytes on the heap.
fn live_heap() -> isize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated as isize - stats.bytes_deallocated as isize
}
