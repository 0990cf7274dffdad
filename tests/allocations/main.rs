//! A message on its way to a handler costs no allocation, plain and over TLS.
//!
//! A program of its own, because it counts the allocations of the whole process.

use std::alloc::System;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tautline::testing::Venue;
use tautline::{Builder, Client, Handler, Line, MessageRef};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Buffers have grown by then.
const WARM_UP: u64 = 20_000;
const COUNTED: u64 = 200_000;

/// What pings, timers and the test itself may cost in that time, all messages together.
const SLACK: usize = 200;

const SOON: Duration = Duration::from_secs(60);

fn main() {
    for (name, settings) in [("plain", Venue::builder()), ("TLS", Venue::builder().tls())] {
        let venue = settings.forgetful().start(|peer| {
            peer.upgrade()?;
            peer.flood(200)
        });
        let allocations = count(&venue);
        println!("{name}: {allocations} allocations in {COUNTED} messages to a handler");
        assert!(allocations <= SLACK);
    }
}

fn client(venue: &Venue) -> Builder {
    Client::builder(venue.url())
        .tls_root(Venue::root_pem())
        .tls_only_given_roots()
        .close_within(Duration::from_millis(50))
}

/// How often memory was asked for while `COUNTED` messages came.
fn count(venue: &Venue) -> usize {
    let (tell, told) = bounded(1);
    let client = client(venue).start(Count { messages: 0, before: 0, tell }).expect("the settings are good");
    let allocations = told.recv_timeout(SOON).expect("the flood comes");
    assert!(client.stop(SOON).is_clean());
    allocations
}

struct Count {
    messages: u64,
    before: usize,
    tell: Sender<usize>,
}

impl Handler for Count {
    fn message(&mut self, line: &mut Line<'_>, _: MessageRef<'_>) {
        self.messages += 1;
        if self.messages == WARM_UP {
            self.before = allocations();
        }
        if self.messages == WARM_UP + COUNTED {
            self.tell.send(allocations() - self.before).expect("the test waits");
            line.stop();
        }
    }
}

fn allocations() -> usize {
    let stats = ALLOCATOR.stats();
    stats.allocations + stats.reallocations
}
