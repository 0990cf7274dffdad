//! The ways in which a client's events reach the program: a handler, or pulling in all its forms.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{select, tick};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tautline::{Builder, Client, EventRef, Events, Pull, Push, Sender, StopReport, WhenFull};

use crate::Check;

/// A client, and the thread that pulls its events if it has no handler.
pub(crate) struct Running {
    client: Either,
    consumer: Option<JoinHandle<()>>,
}

enum Either {
    Push(Client<Push>),
    Pull(Arc<Client<Pull>>),
}

impl Running {
    /// Starts a client with a handler, or with a consumer that is now and then too slow for its
    /// queue, whose bound and rule vary too.
    pub(crate) fn start(builder: Builder, check: Check, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        if rng.random_range(0..3) == 0 {
            let client = builder.wakeups().start_with(check).expect("the settings are good");
            return Running { client: Either::Push(client), consumer: None };
        }
        let rules =
            [WhenFull::Disconnect, WhenFull::DropOldest, WhenFull::DropNewest, WhenFull::Block];
        let builder = builder
            .queue_messages([16, 256, 65_536][rng.random_range(0..3)])
            .when_full(rules[rng.random_range(0..4)]);
        let client = Arc::new(builder.start().expect("the settings are good"));
        let pulled = Arc::clone(&client);
        let consumer = thread::spawn(move || consume(&pulled, check, rng));
        Running { client: Either::Pull(client), consumer: Some(consumer) }
    }

    pub(crate) fn sender(&self) -> Sender {
        match &self.client {
            Either::Push(client) => client.sender(),
            Either::Pull(client) => client.sender(),
        }
    }

    pub(crate) fn live_threads(&self) -> usize {
        match &self.client {
            Either::Push(client) => client.live_threads(),
            Either::Pull(client) => client.live_threads(),
        }
    }

    /// Stops the client, and waits until everything has been pulled.
    pub(crate) fn stop(&mut self, timeout: Duration) -> StopReport {
        let report = match &self.client {
            Either::Push(client) => client.stop(timeout),
            Either::Pull(client) => client.stop(timeout),
        };
        if let Some(consumer) = self.consumer.take() {
            consumer.join().expect("it does not panic");
        }
        report
    }
}

/// Pulls all events, each time in another way.
fn consume(client: &Client<Pull>, mut check: Check, mut rng: StdRng) {
    // A consumer that is watched for readiness takes one event at a time from then on.
    let ways = if rng.random() { 6 } else { 4 };
    let mut events = client.events();
    loop {
        if rng.random_range(0..500) == 0 {
            thread::park_timeout(Duration::from_millis(rng.random_range(0..20)));
        }
        let flow = match rng.random_range(0..ways) {
            0 => one(&mut check, events.next()),
            1 => match events.next_timeout(Duration::from_millis(1)) {
                Ok(event) => one(&mut check, Some(event)),
                Err(error) => unless_ended(error),
            },
            2 => match events.next_batch_timeout(Duration::from_millis(100)) {
                Ok(batch) => {
                    batch.iter().for_each(|event| check.event(event));
                    ControlFlow::Continue(())
                }
                Err(error) => unless_ended(error),
            },
            3 => {
                // What has been taken and not read is put back.
                drop(std::mem::replace(&mut events, client.events()));
                ControlFlow::Continue(())
            }
            4 => {
                let (ready, late) = (events.ready(), tick(Duration::from_millis(1)));
                select! {
                    recv(ready) -> _ => rest(&mut check, &mut events),
                    recv(late) -> _ => ControlFlow::Continue(()),
                }
            }
            _ => {
                await_readable(&events);
                rest(&mut check, &mut events)
            }
        };
        if flow.is_break() {
            return;
        }
    }
}

fn one(check: &mut Check, event: Option<tautline::Event>) -> ControlFlow<()> {
    match &event {
        Some(event) => {
            check.event(event.into());
            ControlFlow::Continue(())
        }
        None => ControlFlow::Break(()),
    }
}

/// Takes everything that is there.
fn rest(check: &mut Check, events: &mut Events) -> ControlFlow<()> {
    loop {
        match events.try_next() {
            Ok(event) => check.event(EventRef::from(&event)),
            Err(error) => return unless_ended(error),
        }
    }
}

fn unless_ended(error: tautline::TryNextError) -> ControlFlow<()> {
    match error {
        tautline::TryNextError::Disconnected => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    }
}

/// Waits a little until the descriptor is readable.
#[cfg(unix)]
fn await_readable(events: &Events) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    let Ok(fd) = events.as_fd() else { return };
    let timeout = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    // An interruption is no different from a timeout here.
    let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout));
}

#[cfg(not(unix))]
fn await_readable(_: &Events) {}
