//! Pings of the application's own.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::event::MessageRef;

/// A ping of the application's own: a message that the server takes as a sign of life and perhaps
/// answers.
///
/// ```
/// use std::time::Duration;
/// use tautline::AppPing;
/// // OKX: a text after 25 s of silence, answered by a text.
/// let okx = AppPing::text("ping", Duration::from_secs(25))
///     .only_when_quiet()
///     .answered_by(|message| message.text() == Some("pong"));
/// ```
#[derive(Clone)]
pub struct AppPing {
    pub(crate) make: Arc<dyn Fn() -> String + Send + Sync>,
    pub(crate) every: Duration,
    pub(crate) only_when_quiet: bool,
    pub(crate) is_reply: Option<ReplyMatcher>,
}

/// Returns `true` for the messages that answer an application ping.
pub(crate) type ReplyMatcher = Arc<dyn Fn(MessageRef<'_>) -> bool + Send + Sync>;

impl AppPing {
    /// Creates a ping that sends `text` at the interval `every`.
    pub fn text(text: impl Into<String>, every: Duration) -> Self {
        let text = text.into();
        Self::made_by(move || text.clone(), every)
    }

    /// Creates a ping that sends what `make` returns at the time: for ids, timestamps, signatures.
    ///
    /// `make` runs on the thread `taut-heartbeat`, which also writes pongs and the other pings, so
    /// it must not block. Its text is kept until there is room for it in the socket.
    pub fn made_by(make: impl Fn() -> String + Send + Sync + 'static, every: Duration) -> Self {
        AppPing { make: Arc::new(make), every, only_when_quiet: false, is_reply: None }
    }

    /// Sends a ping only when no data message has arrived for the interval.
    ///
    /// Defaults to a ping at every interval, which some venues want even while data flows.
    pub fn only_when_quiet(mut self) -> Self {
        self.only_when_quiet = true;
        self
    }

    /// Sets the matcher that returns `true` for replies.
    ///
    /// An unanswered ping then ends the connection after
    /// [`pong_timeout`](crate::Builder::pong_timeout), like an unanswered ping frame. Replies are
    /// delivered like other messages, but do not count as data for
    /// [`idle_timeout`](crate::Builder::idle_timeout). The matcher runs on the reader thread, for
    /// every message. With several pings each matcher is asked, and a message may answer more than
    /// one. Defaults to none: no reply is expected.
    pub fn answered_by(
        mut self,
        is_reply: impl Fn(MessageRef<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.is_reply = Some(Arc::new(is_reply));
        self
    }
}

impl fmt::Debug for AppPing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppPing")
            .field("every", &self.every)
            .field("only_when_quiet", &self.only_when_quiet)
            .field("has_reply", &self.is_reply.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_the_settings_and_not_the_text() {
        let ping = AppPing::text("secret", Duration::from_secs(25)).only_when_quiet();
        let shown = "AppPing { every: 25s, only_when_quiet: true, has_reply: false }";
        assert_eq!(format!("{ping:?}"), shown);
        let shown = "AppPing { every: 25s, only_when_quiet: true, has_reply: true }";
        assert_eq!(format!("{:?}", ping.answered_by(|_| true)), shown);
    }
}
