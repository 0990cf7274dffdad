//! The record of a server: its connections, and what has come on them.

use std::collections::HashMap;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::sync::{self, Condvar, Mutex};
use crate::time::after;

/// The number of messages that are kept, and of close codes.
const KEPT_MAX: usize = 100_000;

/// Shared by the server, its threads and its peers.
pub(super) struct Recorder {
    /// Keeps neither messages nor close codes.
    discards_messages: bool,
    seen: Mutex<Seen>,
    /// Notified of every change of `seen`.
    changed: Condvar,
}

/// The record. Guarded by `Recorder::seen`.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) connections: usize,
    pub(super) openings: usize,
    pub(super) open_now: usize,
    pub(super) pings: usize,
    pub(super) closes: Vec<Option<u16>>,
    pub(super) messages: Vec<Vec<u8>>,
    /// The sockets of all connections, by number, to be shut down from outside.
    sockets: HashMap<usize, TcpStream>,
    is_stopped: bool,
}

impl Recorder {
    pub(super) fn new(discards_messages: bool) -> Self {
        Recorder { discards_messages, seen: Mutex::default(), changed: Condvar::new() }
    }

    /// Registers a connection. Returns whether it can be served.
    pub(super) fn add(&self, number: usize, socket: &TcpStream) -> bool {
        let Ok(handle) = socket.try_clone() else { return false };
        self.record(|seen| {
            seen.connections += 1;
            seen.open_now += 1;
            if seen.is_stopped {
                let _ = handle.shutdown(Shutdown::Both);
            }
            seen.sockets.insert(number, handle);
        });
        true
    }

    /// Removes a connection that has ended.
    pub(super) fn remove(&self, number: usize) {
        self.record(|seen| {
            seen.open_now -= 1;
            seen.sockets.remove(&number);
        });
    }

    /// Closes the server's own handle of a connection, so that the drop of the peer's handle closes
    /// the socket.
    pub(super) fn release(&self, number: usize) {
        self.record(|seen| drop(seen.sockets.remove(&number)));
    }

    pub(super) fn opening(&self) {
        self.record(|seen| seen.openings += 1);
    }

    pub(super) fn ping(&self) {
        self.record(|seen| seen.pings += 1);
    }

    pub(super) fn close(&self, code: Option<u16>) {
        self.record(|seen| {
            if !self.discards_messages && seen.closes.len() < KEPT_MAX {
                seen.closes.push(code);
            }
        });
    }

    pub(super) fn message(&self, message: &[u8]) {
        if self.discards_messages {
            return;
        }
        self.record(|seen| {
            if seen.messages.len() < KEPT_MAX {
                seen.messages.push(message.to_vec());
            }
        });
    }

    /// Drops the recorded messages and close codes.
    pub(super) fn clear(&self) {
        self.record(|seen| {
            seen.messages = Vec::new();
            seen.closes = Vec::new();
        });
    }

    fn record(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.lock());
        self.changed.notify_all();
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&Seen) -> T) -> T {
        read(&self.seen.lock())
    }

    /// Waits until the record satisfies `is_there`. Returns whether it did so within `timeout`.
    pub(super) fn wait(&self, timeout: Duration, is_there: impl Fn(&Seen) -> bool) -> bool {
        let deadline = after(sync::now(), timeout);
        let mut seen = self.seen.lock();
        while !is_there(&seen) {
            if self.changed.wait_until(&mut seen, deadline).timed_out() {
                return is_there(&seen);
            }
        }
        true
    }

    /// Tells everybody who waits that the server has stopped, and ends all connections.
    pub(super) fn stop(&self) {
        self.record(|seen| seen.is_stopped = true);
        self.abort_all();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.seen.lock().is_stopped
    }

    /// Waits until the server stops, `until` at most. Returns whether it has stopped.
    pub(super) fn wait_for_stop(&self, until: Option<Instant>) -> bool {
        let mut seen = self.seen.lock();
        while !seen.is_stopped {
            match until {
                None => self.changed.wait(&mut seen),
                Some(until) if self.changed.wait_until(&mut seen, until).timed_out() => {
                    return seen.is_stopped;
                }
                Some(_) => {}
            }
        }
        true
    }

    pub(super) fn abort_all(&self) {
        for socket in self.seen.lock().sockets.values() {
            // The connection may have ended by itself.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}
