//! The events of a session: its readiness, and the state of its subscriptions.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The name of a subscription, as the program gave it. Cheap to clone.
///
/// It derefs to `str`. `Debug` shows its length alone, because a topic may hold a key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(Arc<str>);

impl Topic {
    pub(crate) fn new(name: &str) -> Self {
        Topic(name.into())
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for Topic {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Topic {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for Topic {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Topic({} bytes)", self.0.len())
    }
}

/// A venue's refusal of a login or a subscription, and whether asking again may help.
///
/// The reason is the venue's text: neither `Debug` nor any log shows it. Cheap to clone.
#[derive(Clone)]
pub struct Rejection(Arc<Reason>);

struct Reason {
    reason: Box<str>,
    /// `None`: asking again does not help.
    retry_after: Option<Duration>,
}

impl Rejection {
    /// A refusal that stays: a wrong key, an unknown symbol.
    ///
    /// One of a step of the [`OpeningScript`](crate::session::OpeningScript) ends the client. One
    /// of a subscription stays until the program subscribes to the topic anew.
    pub fn permanent(reason: impl Into<String>) -> Self {
        Rejection(Arc::new(Reason { reason: reason.into().into(), retry_after: None }))
    }

    /// A refusal that passes: maintenance, too many requests.
    ///
    /// For a subscription the session asks again after `retry_after`, 1 s at least. For a step of
    /// the [`OpeningScript`](crate::session::OpeningScript) the client dials that endpoint again no
    /// sooner than after `retry_after`, or after
    /// [`retry_after_max`](crate::Builder::retry_after_max) if that is shorter.
    pub fn transient(reason: impl Into<String>, retry_after: Duration) -> Self {
        let retry_after = Some(retry_after);
        Rejection(Arc::new(Reason { reason: reason.into().into(), retry_after }))
    }

    /// Returns the reason.
    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    /// Returns `true` if asking again does not help.
    pub fn is_permanent(&self) -> bool {
        self.0.retry_after.is_none()
    }

    /// Returns the time after which asking again may help.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }
}

impl fmt::Debug for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rejection")
            .field("retry_after", &self.0.retry_after)
            .finish_non_exhaustive()
    }
}

impl PartialEq for Rejection {
    fn eq(&self, other: &Rejection) -> bool {
        (self.reason(), self.retry_after()) == (other.reason(), other.retry_after())
    }
}

/// The state of a subscription.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum SubscriptionState {
    /// It is wanted, and no request for it is under way. It may have been asked for before, on this
    /// connection too.
    Pending,
    /// The venue has been asked and has not answered. Data may come already.
    Requested,
    /// The venue has confirmed it on the connection of this epoch.
    Active {
        /// The epoch of the connection.
        epoch: u64,
    },
    /// The venue has refused it, or the session has: see [`SessionEvent`]. After a transient
    /// rejection it is asked for again by itself.
    Rejected(Rejection),
    /// It is to be ended, and the venue has not confirmed that. Data may still come.
    Unsubscribing,
}

/// The number of subscriptions when the venue had answered all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Subscribed {
    /// The epoch of the connection.
    pub epoch: u64,
    /// The number that is active.
    pub active: usize,
    /// The number that the venue has refused.
    pub rejected: usize,
}

/// An event of a session: an [`Event::Session`](crate::Event::Session) of a session that is pulled,
/// and the argument of [`on_event`](crate::session::SessionBuilder::on_event).
///
/// The end of a connection ends all of its subscriptions, of which no event tells one by one. There
/// is one exception. A topic that seems to end connections, because the server has closed two in a
/// row within a second of a request for it that was not answered, is rejected for 60 s, then for
/// twice as long and so on, up to 5 min; where a request had several topics, halves of them are
/// asked for alone, to find it. A topic whose request is longer than
/// [`max_outgoing_message_size`](crate::Builder::max_outgoing_message_size) is rejected for good.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SessionEvent {
    /// The opening script is done.
    Ready {
        /// The epoch of the connection.
        epoch: u64,
        /// The time from the opening to this.
        took: Duration,
    },
    /// The state of a subscription has changed: it is active, rejected, or pending again.
    Subscription {
        /// The epoch of the connection.
        epoch: u64,
        /// The topic.
        topic: Topic,
        /// Its new state.
        state: SubscriptionState,
    },
    /// Everything that was asked has been answered.
    Subscribed(Subscribed),
    /// A watched topic is active and has been silent for too long.
    Silent {
        /// The epoch of the connection.
        epoch: u64,
        /// The topic.
        topic: Topic,
        /// The time of its last message, or of its confirmation if none has come.
        since: Instant,
    },
    /// The venue has announced the end of this connection.
    GoingAway {
        /// The epoch of the connection.
        epoch: u64,
        /// The time until then, if the venue says so.
        within: Option<Duration>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_neither_topics_nor_reasons() {
        let events = [
            SessionEvent::Subscription {
                epoch: 1,
                topic: Topic::new("secret"),
                state: SubscriptionState::Rejected(Rejection::permanent("secret")),
            },
            SessionEvent::Silent { epoch: 1, topic: Topic::new("secret"), since: Instant::now() },
        ];
        let shown = format!("{events:?} {:?}", Rejection::transient("secret", Duration::ZERO));
        assert!(!shown.contains("secret"), "{shown}");
        assert!(shown.contains("Topic(6 bytes)"), "{shown}");
    }
}
