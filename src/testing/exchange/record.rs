//! The record of a simulated exchange: its connections and their topics, its orders, and what
//! clients have violated.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::limits::Arrivals;
use super::misbehavior::{Command, Faults, Misbehavior};
use crate::sync::{self, Condvar, Mutex};
use crate::time::after;

/// The number of violations that are kept, of orders and of connections.
const KEPT_MAX: usize = 100_000;

/// A rule of the exchange that a client has violated.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Violation {
    /// The number of the connection. `None` if it was refused.
    pub connection: Option<usize>,
    /// The rule.
    pub kind: ViolationKind,
    /// The details, in words.
    pub detail: String,
    /// The time at which the exchange noticed it.
    pub at: Instant,
}

/// The rules that a client can violate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ViolationKind {
    /// More opening handshakes than the exchange allows: status 429.
    TooManyConnects,
    /// More messages than the exchange allows.
    TooManyMessages,
    /// More subscription requests than the exchange allows.
    TooManyRequests,
    /// More topics on one connection than the exchange allows.
    TooManyTopics,
    /// A message that is longer than the exchange allows.
    TooLarge,
    /// A message that the exchange does not understand.
    Malformed,
    /// Something that needs a login, before it.
    NotLoggedIn,
    /// A ping of the exchange's that was not answered in time.
    NoPong,
    /// A connection that was silent for too long.
    Silent,
    /// An order with a client order id that the exchange has had before.
    DuplicateOrder,
}

/// An order in the ledger of a simulated exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Order {
    /// The id that the exchange gave it.
    pub id: u64,
    /// The id that the client gave it.
    pub client_order_id: String,
    /// The symbol, as the client wrote it.
    pub symbol: String,
    /// The number of the connection that it came by.
    pub connection: usize,
    /// The number of times that it was placed. All but the first were refused.
    pub attempts: usize,
    /// Its state.
    pub status: OrderStatus,
}

/// The state of an order. A market order is filled at once, any other rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OrderStatus {
    /// It waits to be filled.
    Resting,
    /// It has been filled.
    Filled,
    /// It has been canceled.
    Canceled,
}

/// One connection of a simulated exchange, open or ended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectionRecord {
    /// Its number, in the order of the opening handshakes, from 0.
    pub number: usize,
    /// The path that it was opened with, without the query.
    pub path: String,
    /// It has not ended.
    pub is_open: bool,
    /// A login has succeeded on it.
    pub is_logged_in: bool,
    /// The number of messages that have come, pings and pongs included.
    pub messages: usize,
    /// Its topics, by name.
    pub topics: BTreeMap<String, TopicRecord>,
    /// The code and reason of the exchange's close frame, if it sent one.
    pub closed: Option<(u16, String)>,
    /// Its resting orders are canceled when it ends.
    pub(super) cancels_on_disconnect: bool,
    /// The number of commands that are not for it, because they are older.
    pub(super) commands_before: usize,
}

/// A topic of one connection.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct TopicRecord {
    /// The number of times that the client has asked for it.
    pub requests: usize,
    /// Its data is sent.
    pub is_active: bool,
    /// The number of data messages sent, which is the number of the last of them.
    pub sent: u64,
    is_muted: bool,
    /// No data has been sent since it was subscribed.
    is_new: bool,
}

impl ConnectionRecord {
    /// Returns the names of the active topics, in order.
    pub fn subscriptions(&self) -> Vec<String> {
        let active = self.topics.iter().filter(|(_, topic)| topic.is_active);
        active.map(|(name, _)| name.clone()).collect()
    }
}

/// The record, shared by the exchange and the threads of its connections.
#[derive(Default)]
pub(super) struct Record {
    state: Mutex<State>,
    /// Notified of every change of `state`.
    changed: Condvar,
}

/// Guarded by `Record::state`.
#[derive(Default)]
pub(super) struct State {
    pub(super) connections: Vec<ConnectionRecord>,
    pub(super) violations: Vec<Violation>,
    pub(super) orders: Vec<Order>,
    pub(super) connects: Arrivals,
    pub(super) faults: Faults,
    pub(super) commands: Vec<Command>,
    /// The time at which all resting orders are canceled.
    pub(super) cancel_at: Option<Instant>,
    maintenance_until: Option<Instant>,
    changes: u64,
}

impl Record {
    /// Changes the record. `change` is code of this module's neighbors, never of the program's.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        state.changes += 1;
        let result = change(&mut state);
        drop(state);
        self.changed.notify_all();
        result
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state.lock())
    }

    /// Cancels all resting orders if it is time.
    pub(super) fn cancel_due(&self) {
        self.state.lock().cancel_due();
    }

    /// Waits until `is_there`, which is asked without the lock after every change. Returns whether
    /// it was within `timeout`.
    pub(super) fn wait(&self, timeout: Duration, is_there: impl Fn() -> bool) -> bool {
        let deadline = after(sync::now(), timeout);
        loop {
            let seen = self.state.lock().changes;
            if is_there() {
                return true;
            }
            let mut state = self.state.lock();
            while state.changes == seen {
                let until = state.cancel_at.map_or(deadline, |at| at.min(deadline));
                if self.changed.wait_until(&mut state, until).timed_out() {
                    state.cancel_due();
                    if sync::now() >= deadline {
                        drop(state);
                        return is_there();
                    }
                }
            }
        }
    }
}

impl State {
    /// Adds a connection. Returns its number.
    pub(super) fn open(&mut self, path: &str) -> usize {
        let number = self.connections.len();
        assert!(number < KEPT_MAX, "an exchange has {KEPT_MAX} connections at most");
        self.connections.push(ConnectionRecord {
            number,
            path: path.to_owned(),
            is_open: true,
            is_logged_in: false,
            messages: 0,
            topics: BTreeMap::new(),
            closed: None,
            cancels_on_disconnect: false,
            commands_before: self.commands.len(),
        });
        number
    }

    /// Notes the end of a connection.
    pub(super) fn close(&mut self, number: usize) {
        let connection = &mut self.connections[number];
        connection.is_open = false;
        if connection.cancels_on_disconnect {
            self.cancel_all(|order| order.connection == number);
        }
    }

    pub(super) fn is_in_maintenance(&self) -> bool {
        self.maintenance_until.is_some_and(|until| sync::now() < until)
    }

    /// Cancels all resting orders if it is time. There may be no connection that would do it.
    pub(super) fn cancel_due(&mut self) {
        if self.cancel_at.take_if(|at| *at <= sync::now()).is_some() {
            self.changes += 1;
            self.cancel_all(|_| true);
        }
    }

    fn cancel_all(&mut self, is_meant: impl Fn(&Order) -> bool) {
        for order in self.orders.iter_mut().filter(|order| is_meant(order)) {
            if order.status == OrderStatus::Resting {
                order.status = OrderStatus::Canceled;
            }
        }
    }

    pub(super) fn violation(
        &mut self,
        connection: Option<usize>,
        kind: ViolationKind,
        detail: impl Into<String>,
    ) {
        if self.violations.len() < KEPT_MAX {
            let (detail, at) = (detail.into(), sync::now());
            self.violations.push(Violation { connection, kind, detail, at });
        }
    }

    /// Notes that a topic is asked for. Returns whether the exchange has it.
    pub(super) fn ask(&mut self, connection: usize, topic: &str) -> bool {
        let topics = &mut self.connections[connection].topics;
        topics.entry(topic.to_owned()).or_default().requests += 1;
        !self.faults.refused.contains(topic)
    }

    pub(super) fn subscribe(&mut self, connection: usize, topic: &str) {
        let topics = &mut self.connections[connection].topics;
        let topic = topics.entry(topic.to_owned()).or_default();
        topic.is_new |= !topic.is_active;
        (topic.is_active, topic.is_muted) = (true, false);
    }

    pub(super) fn unsubscribe(&mut self, connection: usize, topic: &str) {
        if let Some(topic) = self.connections[connection].topics.get_mut(topic) {
            topic.is_active = false;
        }
    }

    /// Notes a fault that is to come.
    pub(super) fn misbehave(&mut self, misbehavior: Misbehavior) {
        let faults = &mut self.faults;
        match misbehavior {
            // It is done at once, and nothing of it is to come.
            Misbehavior::Disconnect => {}
            Misbehavior::Close(code) => self.commands.push(Command::Close(code)),
            Misbehavior::FallSilent => self.commands.push(Command::FallSilent),
            Misbehavior::AnnounceShutdown => self.commands.push(Command::AnnounceShutdown),
            Misbehavior::LoseAcks(count) => faults.lost_acks = count,
            Misbehavior::DoubleAcks(count) => faults.doubled_acks = count,
            Misbehavior::DelayAcks(delay) => faults.ack_delay = delay,
            Misbehavior::LoseReplies(count) => faults.lost_replies = count,
            Misbehavior::DelayReplies(delay) => faults.reply_delay = delay,
            Misbehavior::RejectLogins(count) => faults.rejected_logins = count,
            Misbehavior::Refuse(topic) => drop(faults.refused.insert(topic)),
            Misbehavior::Mute(topic) => self.mute(&topic),
            Misbehavior::Maintenance(time) => {
                self.maintenance_until = Some(after(sync::now(), time));
            }
        }
    }

    /// Mutes a topic on the connections that are open.
    fn mute(&mut self, topic: &str) {
        let open = self.connections.iter_mut().filter(|connection| connection.is_open);
        for topic in open.filter_map(|connection| connection.topics.get_mut(topic)) {
            topic.is_muted = true;
        }
    }

    /// Returns one data message of each active topic. `make` gets the name, the number of the
    /// message, and whether it is the first since the topic was subscribed.
    pub(super) fn round(
        &mut self,
        connection: usize,
        make: impl Fn(&str, u64, bool) -> Option<String>,
    ) -> Vec<String> {
        let topics = self.connections[connection].topics.iter_mut();
        let active = topics.filter(|(_, topic)| topic.is_active && !topic.is_muted);
        active
            .filter_map(|(name, topic)| {
                let message = make(name, topic.sent + 1, topic.is_new)?;
                topic.sent += 1;
                topic.is_new = false;
                Some(message)
            })
            .collect()
    }

    /// Places an order. Returns it, and whether it is new.
    pub(super) fn place(
        &mut self,
        connection: usize,
        client_order_id: &str,
        symbol: &str,
        status: OrderStatus,
    ) -> (Order, bool) {
        if let Some(order) = self.order(client_order_id) {
            order.attempts += 1;
            let order = order.clone();
            let detail = format!("client order id {client_order_id}");
            self.violation(Some(connection), ViolationKind::DuplicateOrder, detail);
            return (order, false);
        }
        assert!(self.orders.len() < KEPT_MAX, "an exchange has {KEPT_MAX} orders at most");
        let order = Order {
            id: self.orders.len() as u64 + 1,
            client_order_id: client_order_id.to_owned(),
            symbol: symbol.to_owned(),
            connection,
            attempts: 1,
            status,
        };
        self.orders.push(order.clone());
        (order, true)
    }

    /// Returns the order with this client order id.
    pub(super) fn order(&mut self, client_order_id: &str) -> Option<&mut Order> {
        self.orders.iter_mut().find(|order| order.client_order_id == client_order_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_numbered_for_each_topic_and_goes_on_after_a_pause() {
        let mut state = State::default();
        let number = state.open("/");
        let round = |state: &mut State| {
            state.round(number, |name, sent, is_new| Some(format!("{name}{sent}{is_new}")))
        };
        assert!(round(&mut state).is_empty(), "nothing is subscribed");
        state.subscribe(number, "a");
        assert_eq!(round(&mut state), ["a1true"]);
        state.subscribe(number, "b");
        assert_eq!(round(&mut state), ["a2false", "b1true"]);
        state.unsubscribe(number, "a");
        state.mute("b");
        assert!(round(&mut state).is_empty());
        state.subscribe(number, "a");
        state.subscribe(number, "b");
        assert_eq!(round(&mut state), ["a3true", "b2false"]);
    }

    #[test]
    fn an_order_that_is_placed_twice_is_in_the_ledger_once() {
        let mut state = State::default();
        let number = state.open("/");
        assert!(state.place(number, "x", "BTC", OrderStatus::Filled).1);
        assert!(!state.place(number, "x", "BTC", OrderStatus::Filled).1);
        assert_eq!((state.orders.len(), state.orders[0].attempts), (1, 2));
        assert_eq!(state.violations[0].kind, ViolationKind::DuplicateOrder);
    }
}
