//! One connection of the view: its client, and what has become of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender as ChannelSender, bounded};
use http::Uri;
use parking_lot::Mutex;
use tautline::{
    Client, DialFailure, Disconnect, ErrorKind, EventRef, Events, Opened, Sender, StopReport,
    Stopper, TryNextError,
};

use super::history::History;
use super::view::{Row, bytes, describe_drops, si};
use crate::connection;
use crate::objects::{NotSent, refusal_body};
use crate::visible::{Quoted, Visible};

/// Batches that are taken at a time, about 64 KiB of messages each: the others have their turn
/// within a millisecond or so.
const BATCHES: usize = 16;

/// The openings that wait for their texts to be sent. A send ends with its connection, so a second
/// one hardly ever waits.
const OPENINGS: usize = 16;

pub(crate) struct Feed {
    name: String,
    client: Client,
    events: Events,
    ready: Receiver<()>,
    has_ended: bool,
    opening_sends: Option<OpeningSends>,
    history: History,
    notes: Notes,
}

/// The latest of what has happened, in words that may be a server's.
#[derive(Default)]
pub(crate) struct Notes {
    pub(crate) opened: Option<String>,
    pub(crate) ended: Option<Note>,
    pub(crate) dial_failed: Option<Note>,
    /// The reason why the client ended by itself.
    pub(crate) gave_up: Option<String>,
    pub(crate) not_sent: Option<String>,
}

pub(crate) struct Note {
    pub(crate) at: Instant,
    pub(crate) text: String,
}

impl Feed {
    /// Starts a client whose texts are sent on each connection that opens.
    pub(crate) fn start(
        options: &connection::Options,
        url: &str,
        name: Name,
        texts: &Arc<[String]>,
    ) -> Result<Self, String> {
        let mut builder = options.builder(url)?;
        if let Some(given) = &name.given {
            builder = builder.name(given);
        }
        let client = options.start(builder)?;
        let events = client.events();
        Ok(Feed {
            name: name.shown,
            opening_sends: (!texts.is_empty()).then(|| OpeningSends::start(client.sender(), texts)),
            ready: events.ready(),
            events,
            client,
            has_ended: false,
            history: History::new(Instant::now()),
            notes: Notes::default(),
        })
    }

    /// Returns the receiver that is ready while events wait. `None` once there will be none.
    pub(crate) fn ready(&self) -> Option<&Receiver<()>> {
        (!self.has_ended).then_some(&self.ready)
    }

    /// Takes events that wait, up to a limit. Returns whether one of them is news to the view,
    /// which learns of messages by the counters.
    pub(crate) fn pull(&mut self) -> bool {
        let mut has_news = false;
        for _ in 0..BATCHES {
            let batch = match self.events.next_batch_timeout(Duration::ZERO) {
                Ok(batch) => batch,
                Err(TryNextError::Disconnected) => {
                    self.has_ended = true;
                    return true;
                }
                Err(_) => break,
            };
            for event in batch {
                match event {
                    EventRef::Message(_) => continue,
                    EventRef::Opened(opened) => {
                        self.notes.opened(opened);
                        if let Some(sends) = &self.opening_sends {
                            sends.opened(opened.epoch);
                        }
                    }
                    EventRef::Disconnected(disconnect) => self.notes.disconnected(disconnect),
                    EventRef::DialFailed(failure) => self.notes.dial_failed(failure),
                    EventRef::Stopped(stopped) => self.notes.stopped(&stopped.reason),
                    // Lost messages are counted. A client without a session has no other events.
                    _ => {}
                }
                has_news = true;
            }
        }
        has_news
    }

    /// Notes how much has come, and returns all that is to be shown.
    pub(crate) fn row(&mut self, now: Instant) -> Row<'_> {
        let stats = self.client.stats();
        self.history.sample(now, &stats);
        if let Some(failure) = self.opening_sends.as_ref().and_then(OpeningSends::take_failure) {
            self.notes.not_sent = Some(failure);
        }
        Row {
            name: &self.name,
            state: self.client.state(),
            stats,
            history: &self.history,
            notes: &self.notes,
        }
    }

    /// Dials anew, if a connection is open.
    pub(crate) fn reconnect(&self) {
        // Without an open connection there is nothing to end, and a dial is on its way.
        let _ = self.client.reconnect();
    }

    pub(crate) fn stopper(&self) -> Stopper {
        self.client.stopper()
    }

    pub(crate) fn has_given_up(&self) -> bool {
        self.client.stop_reason().is_some_and(|reason| reason.kind() != ErrorKind::Stopped)
    }

    /// Returns what has become of the client, after its stop, as text of one line.
    pub(crate) fn summary(mut self, report: &StopReport) -> String {
        if let Some(sends) = self.opening_sends.take() {
            sends.join();
        }
        // The event that says so may lie behind messages that nobody has taken.
        if let Some(reason) = self.client.stop_reason() {
            self.notes.stopped(&reason);
        }
        let stats = self.client.stats();
        let messages = si(stats.messages_received as f64);
        let bytes = bytes(stats.bytes_received as f64);
        let mut text = format!(
            "{}: epoch {}, {messages} messages, {bytes}, drops: {}",
            self.name,
            stats.epochs,
            describe_drops(&stats)
        );
        if stats.messages_lost > 0 {
            text += &format!(", {} messages lost", stats.messages_lost);
        }
        match &self.notes.gave_up {
            Some(reason) => text += &format!("; gave up: {reason}"),
            None if report.is_clean() => text += &format!("; stopped in {:.1?}", report.took()),
            None => text += &format!("; stopped {report}"),
        }
        Visible(&text).to_string()
    }
}

impl Notes {
    fn opened(&mut self, opened: &Opened) {
        let chosen = opened.subprotocol.as_ref().map(|name| format!(", subprotocol {name}"));
        self.opened = Some(format!(
            "{}, opened in {:.1?}{}{}",
            opened.peer,
            opened.took,
            chosen.unwrap_or_default(),
            if opened.is_compressed { ", compressed" } else { "" }
        ));
        self.not_sent = None;
        self.dial_failed = None;
    }

    fn disconnected(&mut self, disconnect: &Disconnect) {
        let text = format!(
            "epoch {} after {:.1?}, code {}: {}{}",
            disconnect.epoch,
            disconnect.lasted,
            disconnect.close.code,
            without_name(&disconnect.error),
            Quoted(Some(&disconnect.close.reason))
        );
        self.ended = Some(Note { at: Instant::now(), text });
    }

    fn dial_failed(&mut self, failure: &DialFailure) {
        let body = refusal_body(&failure.error);
        let text = format!("{}{}", without_name(&failure.error), Quoted(body.as_deref()));
        self.dial_failed = Some(Note { at: Instant::now(), text });
    }

    fn stopped(&mut self, reason: &tautline::Error) {
        if reason.kind() != ErrorKind::Stopped {
            let body = refusal_body(reason);
            self.gave_up = Some(format!("{}{}", without_name(reason), Quoted(body.as_deref())));
        }
    }
}

/// Returns the error in words. The name of the client stands beside it already.
fn without_name(error: &tautline::Error) -> String {
    let text = error.chain();
    let name = error.client().and_then(|name| text.strip_prefix(name)?.strip_prefix(": "));
    name.map_or_else(|| text.clone(), str::to_owned)
}

/// Sends texts on each connection that opens, on a thread of its own: a send waits for a server
/// that does not read, and neither keys nor other connections are to wait with it.
///
/// The thread ends when this is dropped and its client has been stopped, which ends a send.
struct OpeningSends {
    epochs: ChannelSender<u64>,
    /// The latest failure. Guarded by its lock.
    failure: Arc<Mutex<Option<String>>>,
    thread: JoinHandle<()>,
}

impl OpeningSends {
    fn start(sender: Sender, texts: &Arc<[String]>) -> Self {
        let (epochs, opened) = bounded(OPENINGS);
        let failure = Arc::new(Mutex::new(None));
        let (texts, told) = (Arc::clone(texts), Arc::clone(&failure));
        let thread = thread::spawn(move || {
            for epoch in opened {
                // The texts go out on this connection only. Later connections send them again.
                let sender = sender.pinned_to(epoch);
                for text in texts.iter() {
                    if let Err(error) = sender.send_text(text) {
                        let error = NotSent::from(error);
                        let outcome = if error.is_certain { "not sent" } else { "perhaps sent" };
                        *told.lock() = Some(format!("{outcome}: {}", error.detail));
                    }
                }
            }
        });
        OpeningSends { epochs, failure, thread }
    }

    fn opened(&self, epoch: u64) {
        if self.epochs.try_send(epoch).is_err() {
            *self.failure.lock() = Some("not sent: earlier sends still wait".to_owned());
        }
    }

    fn take_failure(&self) -> Option<String> {
        self.failure.lock().take()
    }

    /// Waits for the thread. The client must have been stopped.
    fn join(self) {
        drop(self.epochs);
        // A panic has been printed by its hook.
        let _ = self.thread.join();
    }
}

/// The name of a connection: never more of its URL than host and port.
#[derive(Debug, PartialEq)]
pub(crate) struct Name {
    pub(crate) shown: String,
    /// The name to give to the client, where the host alone would not tell it from others.
    pub(crate) given: Option<String>,
}

/// The bytes that the name of a client has at most.
const NAME_MAX: usize = 64;

/// Returns the names of the connections to these URLs: the host, behind it the port where several
/// have the same host, and a number where that is the same too.
pub(crate) fn names(urls: &[String]) -> Vec<Name> {
    // A URL that is none is refused by the client that it is for.
    let uris: Vec<Option<Uri>> = urls.iter().map(|url| url.parse().ok()).collect();
    let of_uri = |uri: &Option<Uri>, with_port: bool| {
        let uri = uri.as_ref()?;
        let host = uri.host()?;
        Some(match uri.port_u16().filter(|_| with_port) {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        })
    };
    let mut of_hosts: HashMap<Option<String>, usize> = HashMap::new();
    for uri in &uris {
        *of_hosts.entry(of_uri(uri, false)).or_default() += 1;
    }
    let mut taken: HashMap<String, usize> = HashMap::new();
    uris.iter()
        .map(|uri| {
            let host = of_uri(uri, false);
            let is_shared = of_hosts.get(&host).is_some_and(|&count| count > 1);
            let mut shown = of_uri(uri, is_shared).unwrap_or_default();
            let number = taken.entry(shown.clone()).or_default();
            *number += 1;
            if *number > 1 {
                shown = format!("{shown}#{number}");
            }
            let given = (is_shared && (1..=NAME_MAX).contains(&shown.len())).then(|| shown.clone());
            Name { shown, given }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_hosts_and_tell_connections_apart() {
        let named = |urls: &[&str]| {
            let urls: Vec<String> = urls.iter().map(|&url| url.to_owned()).collect();
            names(&urls).into_iter().map(|name| name.shown).collect::<Vec<_>>()
        };
        assert_eq!(named(&["wss://a.example/p?key=secret"]), ["a.example"]);
        assert_eq!(named(&["wss://a.example:9443/p"]), ["a.example"]);
        assert_eq!(
            named(&["ws://a:1/", "ws://a:2/x", "ws://a:1/y", "ws://b:1/", "ws://a:1/y"]),
            ["a:1", "a:2", "a:1#2", "b", "a:1#3"]
        );
        assert_eq!(named(&["ws://a/x", "ws://a/y", "nothing at all"]), ["a", "a#2", ""]);
        assert_eq!(named(&["ws://user:password@a/x", "ws://[::1]:1/"]), ["a", "[::1]"]);
        let given = |urls: &[&str]| {
            let urls: Vec<String> = urls.iter().map(|&url| url.to_owned()).collect();
            names(&urls).into_iter().map(|name| name.given).collect::<Vec<_>>()
        };
        assert_eq!(given(&["ws://a/", "ws://b/"]), [None, None]);
        assert_eq!(given(&["ws://a/", "ws://a/"]), [Some("a".to_owned()), Some("a#2".to_owned())]);
    }
}
