//! One connection of a simulated exchange: it enforces the rules that exchanges have in common,
//! misbehaves on request, and streams the data of active topics. The rest is its [`Dialect`].

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use super::limits::{Arrivals, Limit, Limits, Settings};
use super::misbehavior::{Command, Sending};
use super::record::{Order, OrderStatus, Record, State, TopicRecord, ViolationKind};
use crate::sync;
use crate::testing::peer::{Peer, Received};
use crate::time::after;

/// The longest wait for the client before the connection looks for faults and data to send.
const TURN: Duration = Duration::from_millis(5);

/// The time that a client has to answer a close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// An exchange: its paths and its limits, and how it speaks.
pub(super) struct Profile {
    /// The path of market data.
    pub(super) path: &'static str,
    /// The path of orders.
    pub(super) private_path: &'static str,
    /// The opening handshakes that it allows, of all clients.
    pub(super) connects: Limit,
    /// Returns how it speaks on a connection with this path. `None`: there is no such path.
    pub(super) dialect: fn(path: &str) -> Option<Box<dyn Dialect>>,
}

/// The way in which an exchange speaks on one connection.
pub(super) trait Dialect {
    /// Returns the limits of this connection.
    fn limits(&self) -> Limits {
        Limits::default()
    }

    /// The connection has been opened with this target, query included.
    fn opened(&mut self, _: &mut Connection<'_>, _target: &str) -> io::Result<()> {
        Ok(())
    }

    /// Called every few milliseconds, for what the exchange says by itself: heartbeats, pings of
    /// its own, and the end of whoever does not answer them.
    fn turn(&mut self, _: &mut Connection<'_>, _now: Instant) -> io::Result<()> {
        Ok(())
    }

    /// A text message has come.
    fn received(&mut self, connection: &mut Connection<'_>, text: &str) -> io::Result<()>;

    /// Returns the data message of a topic with this number. `is_first`: none has been sent since
    /// the topic was subscribed. `None` if the topic has no data of its own.
    fn data(&self, topic: &str, number: u64, is_first: bool) -> Option<String>;

    /// Returns the announcement of the end of the connection.
    fn shutdown_notice(&self) -> String;

    /// Connections open during maintenance, and are told of it. Otherwise the status is 503.
    fn opens_in_maintenance(&self) -> bool {
        false
    }
}

/// One connection, from the exchange's side.
pub(super) struct Connection<'a> {
    peer: &'a mut Peer,
    /// Puts a message into a frame. A text frame, unless the dialect replaces it.
    pub(super) write: fn(&mut Peer, &str) -> io::Result<()>,
    pub(super) settings: Settings,
    pub(super) record: &'a Record,
    number: usize,
    limits: Limits,
    arrivals: Arrivals,
    /// Messages that are sent later, and when.
    delayed: VecDeque<(Instant, String)>,
    next_round: Instant,
    next_ping: Instant,
    /// The payload of the ping that awaits its pong, and until when.
    pinged: Option<(String, Instant)>,
    /// The time of the last message in either direction.
    active_at: Instant,
    /// The time of the exchange's last message.
    pub(super) sent_at: Instant,
    /// The connection is closed then, because its end has been announced.
    ends_at: Option<Instant>,
    /// The number of commands that have been obeyed.
    obeyed: usize,
}

/// Plays the exchange's side of a connection.
pub(super) fn serve(
    peer: &mut Peer,
    profile: &Profile,
    settings: Settings,
    record: &Record,
) -> io::Result<()> {
    let request = peer.read_request()?;
    let limit = settings.connect_limit.unwrap_or_else(|| settings.scaled_limit(profile.connects));
    let is_allowed = record.change(|state| {
        let is_allowed = state.connects.add(limit, sync::now());
        if !is_allowed {
            let detail = format!("more than {} within {:?}", limit.count, limit.per);
            state.violation(None, ViolationKind::TooManyConnects, detail);
        }
        is_allowed
    });
    if !is_allowed {
        return refuse(peer, "429 Too Many Requests");
    }
    let path = request.path.split('?').next().unwrap_or_default();
    let Some(mut dialect) = (profile.dialect)(path) else {
        return refuse(peer, "404 Not Found");
    };
    if !dialect.opens_in_maintenance() && record.read(State::is_in_maintenance) {
        return refuse(peer, "503 Service Unavailable");
    }
    // Before the client knows that it is open: a test may look at once.
    let number = record.change(|state| state.open(path));
    let mut connection =
        Connection::new(peer, settings, record, number, dialect.limits().scaled(&settings));
    let result = connection
        .peer
        .write(request.acceptance("").as_bytes())
        .and_then(|()| dialect.opened(&mut connection, &request.path))
        .and_then(|()| connection.run(&mut *dialect));
    record.change(|state| state.close(number));
    result
}

/// Answers a request that has been read.
fn refuse(peer: &mut Peer, status: &str) -> io::Result<()> {
    peer.write(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes())?;
    peer.half_close()?;
    peer.drain()
}

impl<'a> Connection<'a> {
    fn new(
        peer: &'a mut Peer,
        settings: Settings,
        record: &'a Record,
        number: usize,
        limits: Limits,
    ) -> Self {
        let now = sync::now();
        let next_ping = after(now, limits.ping.map_or(Duration::ZERO, |(every, _)| every));
        Connection {
            peer,
            write: Peer::send_text,
            settings,
            record,
            number,
            limits,
            arrivals: Arrivals::default(),
            delayed: VecDeque::new(),
            next_round: after(now, settings.tick),
            next_ping,
            pinged: None,
            active_at: now,
            sent_at: now,
            ends_at: None,
            obeyed: record.read(|state| state.connections[number].commands_before),
        }
    }

    fn run(&mut self, dialect: &mut dyn Dialect) -> io::Result<()> {
        loop {
            let now = sync::now();
            self.obey(dialect, now)?;
            self.enforce_times(now)?;
            dialect.turn(self, now)?;
            self.send_due(dialect, now)?;
            match self.peer.receive_timeout(TURN.min(self.settings.tick))? {
                None => {}
                Some(Received::Close(code, _)) => return self.peer.close(code.unwrap_or(1000), ""),
                Some(Received::End) => return Ok(()),
                Some(received) => {
                    self.count_message()?;
                    self.handle(dialect, received)?;
                }
            }
        }
    }

    fn handle(&mut self, dialect: &mut dyn Dialect, received: Received) -> io::Result<()> {
        match received {
            Received::Text(text) if text.len() > self.limits.message_size => {
                let detail = format!("{} bytes", text.len());
                Err(self.expel(ViolationKind::TooLarge, 1009, &detail))
            }
            Received::Text(text) => dialect.received(self, &text),
            Received::Ping(payload) => self.peer.pong(&payload),
            Received::Pong(payload) => {
                self.pinged.take_if(|(sent, _)| sent.as_bytes() == payload);
                Ok(())
            }
            _ => Err(self.expel(ViolationKind::Malformed, 1003, "a binary message")),
        }
    }

    /// Does what the program has asked for since the last look.
    fn obey(&mut self, dialect: &dyn Dialect, now: Instant) -> io::Result<()> {
        let commands: Vec<Command> =
            self.record.read(|state| state.commands.iter().skip(self.obeyed).copied().collect());
        self.obeyed += commands.len();
        for command in commands {
            match command {
                Command::Close(code) => return Err(self.close(code, "")),
                Command::FallSilent => return self.peer.drain().and(Err(ended())),
                Command::AnnounceShutdown => {
                    self.send(&dialect.shutdown_notice())?;
                    self.ends_at = Some(after(now, self.limits.shutdown));
                }
            }
        }
        Ok(())
    }

    fn enforce_times(&mut self, now: Instant) -> io::Result<()> {
        if self.ends_at.is_some_and(|at| at <= now) {
            return Err(self.close(1001, "announced"));
        }
        let silence = self.limits.silence.filter(|(time, _)| after(self.active_at, *time) <= now);
        if let Some((time, code)) = silence {
            let detail = format!("no message in either direction for {time:?}");
            return Err(self.expel(ViolationKind::Silent, code, &detail));
        }
        if self.pinged.as_ref().is_some_and(|(_, until)| *until <= now) {
            return Err(self.expel(ViolationKind::NoPong, 1008, "a ping was not answered"));
        }
        if let Some((every, within)) = self.limits.ping.filter(|_| self.next_ping <= now) {
            self.next_ping = after(now, every);
            let payload = unix_millis().to_string();
            self.peer.ping(payload.as_bytes())?;
            self.pinged.get_or_insert((payload, after(now, within)));
        }
        Ok(())
    }

    /// Sends what has been delayed until now, and a round of data.
    fn send_due(&mut self, dialect: &dyn Dialect, now: Instant) -> io::Result<()> {
        while self.delayed.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, text)) = self.delayed.pop_front() {
                self.send(&text)?;
            }
        }
        if self.next_round <= now {
            self.next_round = after(now, self.settings.tick);
            let make = |topic: &str, number, is_first| dialect.data(topic, number, is_first);
            for text in self.change(|state, number| state.round(number, make)) {
                self.send(&text)?;
            }
        }
        Ok(())
    }

    /// Counts a message or control frame at its arrival.
    fn count_message(&mut self) -> io::Result<()> {
        let now = sync::now();
        self.active_at = now;
        self.change(|state, number| state.connections[number].messages += 1);
        match self.limits.messages {
            Some(limit) if !self.arrivals.add(limit, now) => {
                let detail = format!("more than {} within {:?}", limit.count, limit.per);
                Err(self.expel(ViolationKind::TooManyMessages, 1008, &detail))
            }
            _ => Ok(()),
        }
    }

    // ---- What dialects do ----

    /// Changes the record. The closure gets the number of this connection too.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State, usize) -> T) -> T {
        self.record.change(|state| change(state, self.number))
    }

    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// Returns a limit in the exchange's time.
    pub(super) fn scaled_limit(&self, limit: Limit) -> Limit {
        self.settings.scaled_limit(limit)
    }

    /// Sends a message now.
    pub(super) fn send(&mut self, text: &str) -> io::Result<()> {
        self.active_at = sync::now();
        self.sent_at = self.active_at;
        (self.write)(self.peer, text)
    }

    /// Answers a subscription request, or a part of it.
    pub(super) fn ack(&mut self, text: &str) -> io::Result<()> {
        let sending = self.change(|state, _| state.faults.next_ack());
        self.send_as(text, sending)
    }

    /// Answers a call.
    pub(super) fn reply(&mut self, text: &str) -> io::Result<()> {
        let sending = self.change(|state, _| state.faults.next_reply());
        self.send_as(text, sending)
    }

    fn send_as(&mut self, text: &str, sending: Sending) -> io::Result<()> {
        for _ in 0..sending.copies {
            if sending.delay.is_zero() {
                self.send(text)?;
            } else {
                self.delayed.push_back((after(sync::now(), sending.delay), text.to_owned()));
            }
        }
        Ok(())
    }

    /// Notes that a topic is asked for. Returns whether the exchange has it.
    pub(super) fn ask(&self, topic: &str) -> bool {
        self.change(|state, number| state.ask(number, topic))
    }

    /// Makes a topic active: its data is sent from the next round on.
    pub(super) fn subscribe(&self, topic: &str) {
        self.change(|state, number| state.subscribe(number, topic));
    }

    pub(super) fn unsubscribe(&self, topic: &str) {
        self.change(|state, number| state.unsubscribe(number, topic));
    }

    /// Returns the names of the active topics.
    pub(super) fn subscriptions(&self) -> Vec<String> {
        self.record.read(|state| state.connections[self.number].subscriptions())
    }

    pub(super) fn is_subscribed(&self, topic: &str) -> bool {
        self.topic(topic).is_some_and(|topic| topic.is_active)
    }

    /// Returns a topic, if it has been asked for.
    pub(super) fn topic(&self, name: &str) -> Option<TopicRecord> {
        self.record.read(|state| state.connections[self.number].topics.get(name).cloned())
    }

    /// Logs the client in. Returns `false` if the login is to be rejected.
    pub(super) fn log_in(&self) -> bool {
        self.change(|state, number| {
            let is_accepted = !state.faults.next_login();
            state.connections[number].is_logged_in |= is_accepted;
            is_accepted
        })
    }

    pub(super) fn is_logged_in(&self) -> bool {
        self.record.read(|state| state.connections[self.number].is_logged_in)
    }

    /// Places an order. Returns it, and whether it is new.
    pub(super) fn place(&self, id: &str, symbol: &str, status: OrderStatus) -> (Order, bool) {
        self.change(|state, number| state.place(number, id, symbol, status))
    }

    /// Returns the order with this client order id.
    pub(super) fn order(&self, id: &str) -> Option<Order> {
        self.change(|state, _| state.order(id).cloned())
    }

    /// Cancels an order that rests. Returns it, if there is one.
    pub(super) fn cancel(&self, id: &str) -> Option<Order> {
        self.change(|state, _| {
            let order = state.order(id).filter(|order| order.status == OrderStatus::Resting)?;
            order.status = OrderStatus::Canceled;
            Some(order.clone())
        })
    }

    /// Notes that the client has violated a rule. The connection goes on.
    pub(super) fn violation(&self, kind: ViolationKind, detail: &str) {
        self.change(|state, number| state.violation(Some(number), kind, detail));
    }

    /// Ends the connection because the client has violated a rule. Returns the error to end with.
    pub(super) fn expel(&mut self, kind: ViolationKind, code: u16, detail: &str) -> io::Error {
        self.violation(kind, detail);
        self.close(code, detail)
    }

    /// Closes the connection, and waits a while for the answer. Returns the error to end with.
    fn close(&mut self, code: u16, reason: &str) -> io::Error {
        let closed = Some((code, reason.to_owned()));
        self.change(|state, number| state.connections[number].closed = closed);
        let until = after(sync::now(), CLOSE_TIMEOUT);
        let mut result = self.peer.close(code, reason).map(|()| None);
        while sync::now() < until && !matches!(result, Err(_) | Ok(Some(Received::Close(..)))) {
            result = self.peer.receive_timeout(TURN);
        }
        ended()
    }
}

/// The error that ends a script.
fn ended() -> io::Error {
    ErrorKind::ConnectionAborted.into()
}

/// Returns the milliseconds since 1970.
pub(super) fn unix_millis() -> u128 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default().as_millis()
}
