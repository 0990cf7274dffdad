//! Pings of the application's own.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::event::MessageRef;

/// A ping of the application's own: a message that the venue counts as a sign of life, and perhaps
/// answers.
///
/// ```
/// use std::time::Duration;
/// use tautline::AppPing;
/// // OKX: a text after 25 s of silence, answered by a text.
/// let okx = AppPing::text("ping", Duration::from_secs(25)).only_when_quiet().answered_by(|message| message.text() == Some("pong"));
/// ```
#[derive(Clone)]
pub struct AppPing {
    pub(crate) make: Arc<dyn Fn() -> String + Send + Sync>,
    pub(crate) every: Duration,
    pub(crate) only_when_quiet: bool,
    pub(crate) is_reply: Option<ReplyMatcher>,
}

/// Tells which messages answer an application ping.
pub(crate) type ReplyMatcher = Arc<dyn Fn(MessageRef<'_>) -> bool + Send + Sync>;

impl AppPing {
    /// Sends `text` every so often.
    pub fn text(text: impl Into<String>, every: Duration) -> Self {
        let text = text.into();
        Self::made_by(move || text.clone(), every)
    }

    /// Sends what `make` returns at the time: for ids, timestamps, signatures. It runs on the
    /// thread `taut-heartbeat`, which writes pongs too, so it has to be quick.
    pub fn made_by(make: impl Fn() -> String + Send + Sync + 'static, every: Duration) -> Self {
        AppPing { make: Arc::new(make), every, only_when_quiet: false, is_reply: None }
    }

    /// Sends only after no data has come for the interval. Without this it is periodic: some venues
    /// want pings even while data flows.
    pub fn only_when_quiet(mut self) -> Self {
        self.only_when_quiet = true;
        self
    }

    /// Tells which messages are replies. An unanswered ping then counts like an unanswered ping
    /// frame, against `pong_timeout`. Replies are delivered like any other message. The matcher
    /// runs for every message while a reply is awaited.
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
