//! Why a call failed, and what to do about it.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};

/// Why a dial or a connection failed.
///
/// It says what was being done, keeps its cause in [`source`](StdError::source) and is cheap to
/// clone. It never shows a query string, a header value or a payload, neither by `Display` nor by
/// `Debug`: hosts and ports are as far as it goes. What a closure of the program's own has returned
/// (an endpoint closure, a resolver) may hold any of these, so it stands in `source` alone.
#[derive(Clone)]
pub struct Error(Arc<Repr>);

struct Repr {
    kind: ErrorKind,
    context: Cow<'static, str>,
    detail: Option<Detail>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

enum Detail {
    Budget(&'static str),
    Refusal(Refusal),
    Close(CloseReason),
    /// The program asked for a new connection, and said this to the peer.
    Left(CloseReason),
    /// Retrying has been tried and did not help.
    Final,
    /// The cause comes from a closure of the program's: it may say anything.
    ForeignCause,
}

/// What an [`Error`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting or a URL that can never work, or a close code or reason that may not be sent.
    Config,
    /// The endpoint closure failed to say where to dial.
    Endpoint,
    /// The host name could not be resolved.
    Resolve,
    /// No address accepted a TCP connection.
    Connect,
    /// The TLS handshake failed; see [`Error::is_verification_failure`].
    Tls,
    /// The server answered the upgrade with a status other than 101; see [`Error::refusal`].
    Http,
    /// The server's answer to the upgrade breaks RFC 6455 section 4.1.
    Upgrade,
    /// A budget ran out; see [`Error::budget`].
    Timeout,
    /// The server broke RFC 6455 or RFC 7692 on an open connection.
    Protocol,
    /// The server closed the connection, or it ended without a close frame (code 1006); see
    /// [`Error::close_reason`].
    Closed,
    /// A ping was not answered in time and nothing else came either.
    PongTimeout,
    /// No data message came within the idle limit.
    Idle,
    /// The events queue was full and its rule is to disconnect.
    Lagged,
    /// A message is longer than `max_message_size`.
    TooBig,
    /// The system refused: a read or write failed, or there were no descriptors, threads or memory.
    Io,
    /// The handler panicked.
    HandlerPanicked,
    /// The client was told to stop.
    Stopped,
}

impl ErrorKind {
    /// The kind in snake case, as `examples/tail` prints it and metrics want it.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorKind::Config => "config",
            ErrorKind::Endpoint => "endpoint",
            ErrorKind::Resolve => "resolve",
            ErrorKind::Connect => "connect",
            ErrorKind::Tls => "tls",
            ErrorKind::Http => "http",
            ErrorKind::Upgrade => "upgrade",
            ErrorKind::Timeout => "timeout",
            ErrorKind::Protocol => "protocol",
            ErrorKind::Closed => "closed",
            ErrorKind::PongTimeout => "pong_timeout",
            ErrorKind::Idle => "idle",
            ErrorKind::Lagged => "lagged",
            ErrorKind::TooBig => "too_big",
            ErrorKind::Io => "io",
            ErrorKind::HandlerPanicked => "handler_panicked",
            ErrorKind::Stopped => "stopped",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The close code and reason that ended a connection (RFC 6455 section 7.1.5), or that is to end
/// one.
#[derive(Clone, PartialEq, Eq)]
pub struct CloseReason {
    /// The status code. 1005 when the close frame had none, 1006 when there was no close frame.
    pub code: u16,
    /// What stands beside the code, at most 123 bytes. Where the peer chose it, treat it as
    /// payload.
    pub reason: String,
}

impl CloseReason {
    /// A code and a reason to send, for [`Client::stop_with`](crate::Client::stop_with) and
    /// [`Client::reconnect_with`](crate::Client::reconnect_with).
    ///
    /// Nothing is checked yet: those calls do that. A client may send the codes 1000, 1001, 1003,
    /// 1007 to 1014 and 3000 to 4999 (RFC 6455 section 7.4 and what IANA has registered since; 4000
    /// to 4999 are for private use), and a reason of at most 123 bytes of UTF-8 (section 5.5).
    ///
    /// ```
    /// let handover = tautline::CloseReason::new(1001, "another instance takes over");
    /// assert_eq!(handover.code, 1001);
    /// ```
    pub fn new(code: u16, reason: impl Into<String>) -> Self {
        CloseReason { code, reason: reason.into() }
    }

    /// RFC 6455 section 7.1.5: the connection ended without a close frame.
    pub(crate) fn abnormal() -> Self {
        CloseReason { code: 1006, reason: String::new() }
    }
}

impl fmt::Debug for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloseReason").field("code", &self.code).finish_non_exhaustive()
    }
}

/// A server's answer to the upgrade that was not 101.
#[derive(Clone)]
pub struct Refusal {
    /// The status.
    pub status: StatusCode,
    /// All headers of the answer.
    pub headers: HeaderMap,
    /// The start of the body, at most 4 KiB.
    pub body: Vec<u8>,
    /// What `Retry-After` asks for, in either of its forms (RFC 9110 section 10.2.3).
    pub retry_after: Option<Duration>,
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusal")
            .field("status", &self.status)
            .field("retry_after", &self.retry_after)
            .finish_non_exhaustive()
    }
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<Cow<'static, str>>) -> Self {
        Self::build(kind, context.into(), None, None)
    }

    /// An error that another one caused. `context` says what we were at, and leaves the cause to
    /// `source`.
    pub(crate) fn caused(
        kind: ErrorKind,
        context: impl Into<Cow<'static, str>>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self::build(kind, context.into(), None, Some(source.into()))
    }

    /// As [`caused`](Error::caused), by what a closure of the program's returned: it is kept, and
    /// shown to nobody who does not ask for it.
    pub(crate) fn caused_by_closure(
        kind: ErrorKind,
        context: impl Into<Cow<'static, str>>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self::build(kind, context.into(), Some(Detail::ForeignCause), Some(source.into()))
    }

    /// The same error, which a retry has been shown not to mend: a certificate refused twice in a
    /// row, for example.
    pub(crate) fn for_good(self) -> Self {
        let context = self.0.context.clone();
        // What it was is its own cause now; `Display` says it once.
        match Arc::try_unwrap(self.0) {
            Ok(repr) => Self::build(repr.kind, context, Some(Detail::Final), repr.source),
            Err(shared) => Self::build(shared.kind, context, Some(Detail::Final), None),
        }
    }

    pub(crate) fn config(what: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Config, what)
    }

    /// The budget called `name` (the setting's name) of length `budget` ran out while `context`.
    pub(crate) fn timeout(name: &'static str, budget: Duration, context: &str) -> Self {
        let context = format!("timed out after {budget:?} ({name}): {context}");
        Self::build(ErrorKind::Timeout, context.into(), Some(Detail::Budget(name)), None)
    }

    /// The same error, and what it came of.
    pub(crate) fn because(self, cause: Error) -> Self {
        let context = self.0.context.clone();
        let budget = self.budget().map(Detail::Budget);
        Self::build(self.kind(), context, budget, Some(cause.into()))
    }

    pub(crate) fn refused(host: &str, refusal: Refusal) -> Self {
        let context =
            format!("{host} answered the upgrade with status {}", refusal.status.as_u16());
        Self::build(ErrorKind::Http, context.into(), Some(Detail::Refusal(refusal)), None)
    }

    pub(crate) fn closed(close: CloseReason, context: impl Into<Cow<'static, str>>) -> Self {
        Self::build(ErrorKind::Closed, context.into(), Some(Detail::Close(close)), None)
    }

    /// The program asked for a new connection.
    pub(crate) fn reconnect_requested(close: CloseReason) -> Self {
        Self::build(
            ErrorKind::Closed,
            "the program asked to reconnect".into(),
            Some(Detail::Left(close)),
            None,
        )
    }

    /// Whether the connection ended because the program asked for a new one.
    pub(crate) fn is_reconnect_requested(&self) -> bool {
        matches!(self.0.detail, Some(Detail::Left(_)))
    }

    pub(crate) fn stopped() -> Self {
        Self::new(ErrorKind::Stopped, "the client was told to stop")
    }

    fn build(
        kind: ErrorKind,
        context: Cow<'static, str>,
        detail: Option<Detail>,
        source: Option<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Error(Arc::new(Repr { kind, context, detail, source }))
    }

    /// What the error is about.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The status of an answer that refused the upgrade.
    pub fn status(&self) -> Option<StatusCode> {
        self.refusal().map(|refusal| refusal.status)
    }

    /// The answer that refused the upgrade: status, headers and the start of its body.
    pub fn refusal(&self) -> Option<&Refusal> {
        match &self.0.detail {
            Some(Detail::Refusal(refusal)) => Some(refusal),
            _ => None,
        }
    }

    /// The close code and reason, for [`ErrorKind::Closed`].
    pub fn close_reason(&self) -> Option<&CloseReason> {
        match &self.0.detail {
            Some(Detail::Close(close) | Detail::Left(close)) => Some(close),
            _ => None,
        }
    }

    /// The name of the setting or call whose budget ran out, for [`ErrorKind::Timeout`]:
    /// `"connect_timeout"` or `"wait_open"`, for example.
    pub fn budget(&self) -> Option<&'static str> {
        match self.0.detail {
            Some(Detail::Budget(name)) => Some(name),
            _ => None,
        }
    }

    /// Whether dialing again may help. The client asks this same question before it retries, and a
    /// [`retry_policy`](crate::Builder::retry_policy) may overrule the answer.
    ///
    /// `false` for a setting or URL that cannot work, for 401, 403 and 404, for a certificate that
    /// is refused at two dials in a row, for a panic of the handler and for a stop. Every other
    /// status is retried, redirects included, which are not followed.
    pub fn is_retryable(&self) -> bool {
        if matches!(self.0.detail, Some(Detail::Final)) {
            return false;
        }
        match self.kind() {
            ErrorKind::Config | ErrorKind::HandlerPanicked | ErrorKind::Stopped => false,
            ErrorKind::Http => {
                !matches!(self.status().map(|status| status.as_u16()), Some(401 | 403 | 404))
            }
            _ => true,
        }
    }

    /// Whether the server's certificate was examined and refused, as opposed to a handshake that
    /// broke off.
    pub fn is_verification_failure(&self) -> bool {
        self.kind() == ErrorKind::Tls
            && self.0.source.as_deref().is_some_and(|source| says_verification_failed(source))
    }

    /// The error and its causes on one line: what a log wants. What a closure of the program's own
    /// returned is left out.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.shown_cause();
        while let Some(error) = cause {
            let next = error.to_string();
            // Errors of other crates often repeat their causes.
            if !text.contains(&next) {
                text.push_str(": ");
                text.push_str(&next);
            }
            cause = match error.downcast_ref::<Error>() {
                Some(ours) => ours.shown_cause(),
                None => error.source(),
            };
        }
        text
    }

    fn shown_cause(&self) -> Option<&(dyn StdError + 'static)> {
        self.source().filter(|_| !matches!(self.0.detail, Some(Detail::ForeignCause)))
    }
}

/// Whether an error of the platform's TLS says that the certificate was refused. native-tls has no
/// kind for it, so its text has to do.
fn says_verification_failed(source: &(dyn StdError + 'static)) -> bool {
    const WORDINGS: [&str; 8] = [
        // OpenSSL.
        "certificate verify failed",
        "Hostname mismatch",
        // Security.framework.
        "certificate was not trusted",
        "not trusted",
        "host name mismatch",
        // SChannel.
        "certificate chain",
        "CN name",
        "root certificate which is not trusted",
    ];
    let mut cause = Some(source);
    while let Some(error) = cause {
        let text = error.to_string();
        if WORDINGS.iter().any(|wording| text.contains(wording)) {
            return true;
        }
        cause = error.source();
    }
    false
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.context)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Error");
        shown.field("kind", &self.0.kind).field("context", &self.0.context);
        if let Some(source) = self.shown_cause() {
            shown.field("source", &source.to_string());
        }
        shown.finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|source| source.as_ref() as &(dyn StdError + 'static))
    }
}

/// What became of a message that was not sent whole.
///
/// The reason is an [`Error`] whose kind says why: `Timeout` (the budget `send_timeout` ran out),
/// `Stopped`, `Closed`, `Io`, `Connect` (no connection is open), `Config` (an empty batch,
/// fragments that are none or of both kinds, a close code that may not be sent).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SendError {
    /// No byte of the message was taken. It is safe to send it again.
    NotSent(Error),
    /// At least one byte was taken, and the connection has been aborted. The peer may or may not
    /// have the message: ask the venue.
    Unknown(Error),
}

impl SendError {
    /// Why.
    pub fn reason(&self) -> &Error {
        match self {
            SendError::NotSent(reason) | SendError::Unknown(reason) => reason,
        }
    }

    /// Whether no byte was taken, so that sending again cannot repeat the message.
    pub fn is_not_sent(&self) -> bool {
        matches!(self, SendError::NotSent(_))
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SendError::NotSent(_) => "the message was not sent",
            SendError::Unknown(_) => "part of the message was sent, its fate is unknown",
        })
    }
}

impl StdError for SendError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(self.reason())
    }
}

/// Why a [`send_batch`](crate::Sender::send_batch) ended early.
#[derive(Clone, Debug)]
pub struct BatchError {
    /// How many messages, from the first, the kernel took whole.
    pub sent: usize,
    /// What became of the next one. Those after it were not sent.
    pub next: SendError,
}

impl fmt::Display for BatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let messages = if self.sent == 1 { "message was" } else { "messages were" };
        write!(
            f,
            "{} {messages} sent whole; of the next, {}",
            self.sent,
            match self.next {
                SendError::NotSent(_) => "nothing was sent",
                SendError::Unknown(_) => "a part was sent, and its fate is unknown",
            }
        )
    }
}

impl StdError for BatchError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_names_its_budget_and_its_step() {
        let error = Error::timeout(
            "connect_timeout",
            Duration::from_secs(5),
            "TLS handshake with stream.example.com",
        );
        assert_eq!(
            error.to_string(),
            "timed out after 5s (connect_timeout): TLS handshake with stream.example.com"
        );
        assert_eq!(error.budget(), Some("connect_timeout"));
        assert!(error.is_retryable());
    }

    #[test]
    fn a_refusal_shows_its_status_and_hides_its_headers_and_body() {
        let mut headers = HeaderMap::new();
        headers.insert("set-cookie", "secret=1".parse().expect("a legal header"));
        let refusal = Refusal {
            status: StatusCode::UNAUTHORIZED,
            headers,
            body: b"secret".to_vec(),
            retry_after: None,
        };
        let error = Error::refused("example.com:443", refusal);
        assert!(!error.is_retryable());
        assert!(!format!("{error:?} {error} {:?}", error.refusal()).contains("secret"));
    }

    #[test]
    fn what_a_closure_returned_is_in_source_and_nowhere_else() {
        let error = Error::caused_by_closure(
            ErrorKind::Endpoint,
            "asking where to dial",
            "GET /token?key=hunter2 failed",
        );
        let late =
            Error::timeout("wait_open", Duration::from_secs(1), "waiting").because(error.clone());
        assert!(error.source().is_some_and(|source| source.to_string().contains("hunter2")));
        assert!(
            !format!("{error} {error:?} {} {late:?} {}", error.chain(), late.chain())
                .contains("hunter2")
        );
        assert!(late.chain().ends_with("asking where to dial"), "{}", late.chain());
    }

    #[test]
    fn the_cause_is_in_source_and_not_in_display() {
        let error =
            Error::caused(ErrorKind::Connect, "connecting to a:1", std::io::Error::other("boom"));
        assert_eq!(error.to_string(), "connecting to a:1");
        assert_eq!(error.chain(), "connecting to a:1: boom");
    }
}
