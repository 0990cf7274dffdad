//! Errors: the reason of a failure, and what can be done about it.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{Response, StatusCode};

use crate::name::ClientName;

/// The reason why a dial, a connection or a call failed.
///
/// An error says what was being done and keeps its cause in [`source`](StdError::source). It is
/// cheap to clone. `Display` and `Debug` never show a path, a query string, a header value or a
/// payload: hosts and ports are the most they say. An error that came from a closure or a reader of
/// the program may contain any of these, so it is available from `source` and shown nowhere else.
///
/// `Display` begins with the [`name`](crate::Builder::name) of the client, if it was given one.
#[derive(Clone)]
pub struct Error {
    repr: Arc<Repr>,
    /// The client that it is about. Set where the error leaves the client, because what comes
    /// before that may be shared with others.
    client: Option<ClientName>,
    /// Retrying has been shown not to help. It stands here because `repr` may be shared.
    is_permanent: bool,
}

struct Repr {
    kind: ErrorKind,
    context: Cow<'static, str>,
    detail: Option<Detail>,
    cause: Option<Cause>,
}

/// The details of some kinds of error.
#[derive(Clone)]
enum Detail {
    Timeout(Timeout),
    Response {
        response: Response<Vec<u8>>,
        retry_after: Option<Duration>,
    },
    Close(CloseReason),
    /// A step of the opening script failed.
    Step {
        name: &'static str,
        retry_after: Option<Duration>,
    },
    /// The program asked for a new connection, with this close reason.
    ReconnectRequested(CloseReason),
    Limited {
        retry_in: Duration,
    },
    /// The server's public key is none of those that are pinned.
    PinMismatch,
}

/// The error below an [`Error`], by its origin. A type could not tell: a reader of the program's
/// that fails with `ConnectionReset` says nothing about our socket.
enum Cause {
    /// The system, a library or this crate. Logs show it.
    System(BoxError),
    /// A closure or a reader of the program's. It may say anything, so only `source` shows it.
    Program(BoxError),
}

type BoxError = Box<dyn StdError + Send + Sync>;

impl Cause {
    fn error(&self) -> &(dyn StdError + 'static) {
        match self {
            Cause::System(error) | Cause::Program(error) => error.as_ref(),
        }
    }
}

/// The kind of an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting or URL cannot work, or a close code or reason may not be sent.
    Config,
    /// The endpoint closure returned an error instead of an endpoint.
    Endpoint,
    /// The host name could not be resolved.
    Resolve,
    /// No address accepted a TCP connection, or no connection is open to send on.
    Connect,
    /// The TLS handshake failed; see [`Error::is_verification_failure`].
    Tls,
    /// The proxy refused to connect to the server, or its answer violates RFC 9110 or RFC 1928; see
    /// [`Error::response`].
    Proxy,
    /// The server answered the opening handshake with a status other than 101; see
    /// [`Error::response`].
    Http,
    /// The server's answer to the opening handshake violates RFC 6455 section 4.1.
    Upgrade,
    /// A timeout expired; see [`Error::timeout`].
    Timeout,
    /// The server violated RFC 6455 or RFC 7692 on an open connection.
    Protocol,
    /// The server closed the connection, or it ended without a close frame (code 1006); see
    /// [`Error::close_reason`]. A [`reconnect`](crate::Sender::reconnect) has this kind too.
    Closed,
    /// A ping went unanswered for `pong_timeout`, during which not a single byte arrived.
    PongTimeout,
    /// No data message arrived for `idle_timeout`.
    Idle,
    /// The event queue was full and [`WhenFull::Disconnect`](crate::WhenFull::Disconnect) applies.
    Lagged,
    /// A received message is longer than `max_message_size`, or one to be sent is longer than
    /// `max_outgoing_message_size`.
    TooBig,
    /// A rate limit leaves no room for a message in time; see [`Error::retry_in`].
    Limited,
    /// A binary message does not [`decode`](crate::Builder::decode): it is compressed in another
    /// way, corrupt or cut, something follows its end, or its text is not UTF-8.
    Undecodable,
    /// A step of a session's opening script was rejected or took too long; see [`Error::step`].
    Opening,
    /// A session cannot send now: it has not been started, no connection is open, its opening
    /// script is not done, the server has announced the end of the connection, or the connection of
    /// [`Request::on_epoch`](crate::session::Request::on_epoch) is over.
    NotReady,
    /// A read or write failed, or the system had no descriptors, threads or memory to give.
    Io,
    /// The handler panicked.
    HandlerPanicked,
    /// The client was told to stop.
    Stopped,
}

impl ErrorKind {
    /// Returns the kind in snake case, as a label for metrics: `"pong_timeout"`, for example.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorKind::Config => "config",
            ErrorKind::Endpoint => "endpoint",
            ErrorKind::Resolve => "resolve",
            ErrorKind::Connect => "connect",
            ErrorKind::Tls => "tls",
            ErrorKind::Proxy => "proxy",
            ErrorKind::Http => "http",
            ErrorKind::Upgrade => "upgrade",
            ErrorKind::Timeout => "timeout",
            ErrorKind::Protocol => "protocol",
            ErrorKind::Closed => "closed",
            ErrorKind::PongTimeout => "pong_timeout",
            ErrorKind::Idle => "idle",
            ErrorKind::Lagged => "lagged",
            ErrorKind::TooBig => "too_big",
            ErrorKind::Limited => "limited",
            ErrorKind::Undecodable => "undecodable",
            ErrorKind::Opening => "opening",
            ErrorKind::NotReady => "not_ready",
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

/// The timeout that expired, for an [`Error`] of kind [`ErrorKind::Timeout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Timeout {
    /// [`connect_timeout`](crate::Builder::connect_timeout), which bounds one dial.
    Connect,
    /// [`send_timeout`](crate::Builder::send_timeout), which bounds one send.
    Send,
    /// [`close_timeout`](crate::Builder::close_timeout), which bounds the closing handshake.
    Close,
    /// The argument of [`Client::wait_open`](crate::Client::wait_open).
    WaitOpen,
    /// The argument of [`SessionHandle::wait_ready`](crate::session::SessionHandle::wait_ready).
    WaitReady,
    /// The argument of
    /// [`SessionHandle::wait_subscribed`](crate::session::SessionHandle::wait_subscribed).
    WaitSubscribed,
    /// [`Request::within`](crate::session::Request::within), which bounds one call.
    Call,
}

impl Timeout {
    /// Returns the name of the setting or call: `"connect_timeout"`, for example.
    pub fn as_str(self) -> &'static str {
        match self {
            Timeout::Connect => "connect_timeout",
            Timeout::Send => "send_timeout",
            Timeout::Close => "close_timeout",
            Timeout::WaitOpen => "wait_open",
            Timeout::WaitReady => "wait_ready",
            Timeout::WaitSubscribed => "wait_subscribed",
            Timeout::Call => "within",
        }
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A close code and reason: those that ended a connection, or those to end one with (RFC 6455
/// sections 7.1.5 and 7.1.6).
#[derive(Clone, PartialEq, Eq)]
pub struct CloseReason {
    /// The status code: 1005 if the close frame had none, 1006 if there was no close frame.
    pub code: u16,
    /// The text beside the code, at most 123 bytes. `Debug` hides it, because a reason that the
    /// server chose may say anything.
    pub reason: String,
}

impl CloseReason {
    /// Creates a close reason to send, for [`Client::stop_with`](crate::Client::stop_with) and
    /// [`Client::reconnect_with`](crate::Client::reconnect_with).
    ///
    /// Those calls check it. A client may send the codes 1000, 1001, 1003, 1007 to 1014 and 3000 to
    /// 4999, of which 4000 to 4999 are for private use, with at most 123 bytes of UTF-8. See
    /// RFC 6455 sections 5.5 and 7.4, and the codes that IANA has registered since.
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

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<Cow<'static, str>>) -> Self {
        Self::build(kind, context.into(), None, None)
    }

    /// An error of which the system, a library or this crate is the cause. `context` says what was
    /// being done and does not repeat the cause.
    pub(crate) fn caused(
        kind: ErrorKind,
        context: impl Into<Cow<'static, str>>,
        cause: impl Into<BoxError>,
    ) -> Self {
        Self::build(kind, context.into(), None, Some(Cause::System(cause.into())))
    }

    /// An error of which the program is the cause: `cause` is what one of its closures or readers
    /// returned.
    ///
    /// Only `source` shows `cause`; `Display`, `Debug`, `chain` and so the logs do not.
    pub(crate) fn caused_by_closure(
        kind: ErrorKind,
        context: impl Into<Cow<'static, str>>,
        cause: impl Into<BoxError>,
    ) -> Self {
        Self::build(kind, context.into(), None, Some(Cause::Program(cause.into())))
    }

    /// The same error, of which retrying has been shown not to help: a certificate that was refused
    /// twice in a row, for example.
    pub(crate) fn permanent(self) -> Self {
        Error { is_permanent: true, ..self }
    }

    /// The same error without its cause, which may hold a value of the program's.
    pub(crate) fn without_cause(&self) -> Self {
        let Repr { kind, context, detail, .. } = &*self.repr;
        let repr = Arc::new(Repr {
            kind: *kind,
            context: context.clone(),
            detail: detail.clone(),
            cause: None,
        });
        Error { repr, client: self.client.clone(), is_permanent: self.is_permanent }
    }

    pub(crate) fn config(what: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Config, what)
    }

    /// `timeout`, which was `budget` long, expired while `context`.
    pub(crate) fn timed_out(timeout: Timeout, budget: Duration, context: &str) -> Self {
        let context = format!("timed out after {budget:?} ({timeout}): {context}");
        Self::build(ErrorKind::Timeout, context.into(), Some(Detail::Timeout(timeout)), None)
    }

    /// The rate limits of a connection have room for a message after `retry_in`, which is too late.
    pub(crate) fn limited(retry_in: Duration) -> Self {
        let context = match retry_in {
            Duration::MAX => "more at once than the rate limit ever allows".into(),
            _ => format!("the rate limit leaves no room for another {retry_in:.1?}").into(),
        };
        Self::build(ErrorKind::Limited, context, Some(Detail::Limited { retry_in }), None)
    }

    /// The same error, of the client of this name.
    pub(crate) fn of_client(self, name: &ClientName) -> Self {
        Error { client: Some(name.clone()), ..self }
    }

    /// The same error with `cause`, of the same client, as its cause.
    pub(crate) fn because(self, cause: Error) -> Self {
        let Repr { kind, context, detail, .. } = &*self.repr;
        // Once is enough.
        let cause = Error { client: None, ..cause };
        Error {
            is_permanent: self.is_permanent,
            client: self.client,
            ..Self::build(*kind, context.clone(), detail.clone(), Some(Cause::System(cause.into())))
        }
    }

    /// `host` answered the opening handshake with `response`, whose status is not 101.
    pub(crate) fn refused(
        host: &str,
        response: Response<Vec<u8>>,
        retry_after: Option<Duration>,
    ) -> Self {
        let context = format!("{host} answered the upgrade with status");
        Self::refused_with(ErrorKind::Http, context, response, retry_after)
    }

    /// `proxy` answered `CONNECT` with `response`, whose status is no success.
    pub(crate) fn refused_by_proxy(
        proxy: &str,
        response: Response<Vec<u8>>,
        retry_after: Option<Duration>,
    ) -> Self {
        let context = format!("the proxy {proxy} answered CONNECT with status");
        Self::refused_with(ErrorKind::Proxy, context, response, retry_after)
    }

    fn refused_with(
        kind: ErrorKind,
        context: String,
        mut response: Response<Vec<u8>>,
        retry_after: Option<Duration>,
    ) -> Self {
        // Cookies, for example: `Debug` of the headers then leaves their values out.
        response.headers_mut().values_mut().for_each(|value| value.set_sensitive(true));
        let context = format!("{context} {}", response.status().as_u16());
        let detail = Detail::Response { response, retry_after };
        Self::build(kind, context.into(), Some(detail), None)
    }

    pub(crate) fn pin_mismatch(context: String) -> Self {
        Self::build(ErrorKind::Tls, context.into(), Some(Detail::PinMismatch), None).permanent()
    }

    pub(crate) fn closed(close: CloseReason, context: impl Into<Cow<'static, str>>) -> Self {
        Self::build(ErrorKind::Closed, context.into(), Some(Detail::Close(close)), None)
    }

    /// The program asked for a new connection, and `close` was sent on the old one.
    pub(crate) fn reconnect_requested(close: CloseReason) -> Self {
        Self::build(
            ErrorKind::Closed,
            "the program asked for a new connection".into(),
            Some(Detail::ReconnectRequested(close)),
            None,
        )
    }

    /// The step `name` of the opening script failed, as `what` says.
    pub(crate) fn opening_step(
        name: &'static str,
        what: impl fmt::Display,
        retry_after: Option<Duration>,
    ) -> Self {
        let context = format!("step {name} of the opening script: {what}");
        let detail = Detail::Step { name, retry_after };
        Self::build(ErrorKind::Opening, context.into(), Some(detail), None)
    }

    /// The same error with a cause that is the program's or the server's text: `source` alone shows
    /// it.
    pub(crate) fn because_of_text(self, text: impl Into<String>) -> Self {
        let Repr { kind, context, detail, .. } = &*self.repr;
        let cause = Some(Cause::Program(text.into().into()));
        Error {
            is_permanent: self.is_permanent,
            client: self.client,
            ..Self::build(*kind, context.clone(), detail.clone(), cause)
        }
    }

    /// Tells whether the connection ended because the program asked for a new one.
    pub(crate) fn is_reconnect_requested(&self) -> bool {
        matches!(self.repr.detail, Some(Detail::ReconnectRequested(_)))
    }

    pub(crate) fn stopped() -> Self {
        Self::new(ErrorKind::Stopped, "the client was told to stop")
    }

    fn build(
        kind: ErrorKind,
        context: Cow<'static, str>,
        detail: Option<Detail>,
        cause: Option<Cause>,
    ) -> Self {
        let repr = Arc::new(Repr { kind, context, detail, cause });
        Error { repr, client: None, is_permanent: false }
    }

    /// Returns the kind of the error.
    pub fn kind(&self) -> ErrorKind {
        self.repr.kind
    }

    /// Returns the [`name`](crate::Client::name) of the client that the error is about. `None` for
    /// an error that no client had, such as that of a URL from which none could be built.
    pub fn client(&self) -> Option<&str> {
        self.client.as_ref().map(ClientName::as_str)
    }

    fn given_name(&self) -> Option<&str> {
        self.client.as_ref().and_then(ClientName::if_given)
    }

    /// Tells whether the server answered the opening handshake with this status.
    pub(crate) fn is_refused_with(&self, status: StatusCode) -> bool {
        self.kind() == ErrorKind::Http && self.status() == Some(status)
    }

    /// Returns the status of a response that refused the opening handshake, for
    /// [`ErrorKind::Http`], or the tunnel, for [`ErrorKind::Proxy`]. A SOCKS proxy has none.
    pub fn status(&self) -> Option<StatusCode> {
        self.response().map(Response::status)
    }

    /// Returns the response that refused the opening handshake, for [`ErrorKind::Http`], or the
    /// tunnel, for [`ErrorKind::Proxy`]: its status, all of its headers and the first 4 KiB of its
    /// body.
    ///
    /// Unlike the error itself, its `Debug` shows the body.
    pub fn response(&self) -> Option<&Response<Vec<u8>>> {
        match &self.repr.detail {
            Some(Detail::Response { response, .. }) => Some(response),
            _ => None,
        }
    }

    /// Returns the delay that the header `Retry-After` of the [`response`](Error::response) asked
    /// for, counted from the arrival of the response, in either form of the header (RFC 9110
    /// section 10.2.3); for [`ErrorKind::Opening`], the delay of the venue's
    /// [`Rejection::transient`](crate::session::Rejection::transient).
    pub fn retry_after(&self) -> Option<Duration> {
        match self.repr.detail {
            Some(Detail::Response { retry_after, .. } | Detail::Step { retry_after, .. }) => {
                retry_after
            }
            _ => None,
        }
    }

    /// Returns the name of the step of the opening script that failed, for
    /// [`ErrorKind::Opening`].
    pub fn step(&self) -> Option<&'static str> {
        match self.repr.detail {
            Some(Detail::Step { name, .. }) => Some(name),
            _ => None,
        }
    }

    /// Returns the close code and reason, for [`ErrorKind::Closed`].
    pub fn close_reason(&self) -> Option<&CloseReason> {
        match &self.repr.detail {
            Some(Detail::Close(close) | Detail::ReconnectRequested(close)) => Some(close),
            _ => None,
        }
    }

    /// Returns after how long the rate limits will have room for the message, by what is known now,
    /// for [`ErrorKind::Limited`]. [`Duration::MAX`] is never: it is more than a window holds.
    pub fn retry_in(&self) -> Option<Duration> {
        match self.repr.detail {
            Some(Detail::Limited { retry_in }) => Some(retry_in),
            _ => None,
        }
    }

    /// Returns the timeout that expired, for [`ErrorKind::Timeout`].
    pub fn timeout(&self) -> Option<Timeout> {
        match self.repr.detail {
            Some(Detail::Timeout(timeout)) => Some(timeout),
            _ => None,
        }
    }

    /// Returns `true` if dialing again may help. The client decides by this before it retries; a
    /// [`retry_policy`](crate::Builder::retry_policy) may decide otherwise.
    ///
    /// Permanent errors, for which this is `false`:
    /// - a setting or URL that cannot work
    /// - a status from 400 to 499 in answer to the opening handshake, except 408, 418, 425 and 429
    /// - a proxy's status 401 or 407, and its refusal of a SOCKS login or of a client without one
    /// - a certificate that was refused at two dials in a row, unless it has expired or is not yet
    ///   valid
    /// - a public key that is not [pinned](crate::Builder::tls_pin)
    /// - a panic of the handler
    /// - a stop
    /// - an error for which this is `false`, if the endpoint closure returned it
    /// - a permanent rejection of a step of a session's opening script
    ///
    /// Every other status is retried, those of redirects included: they are not followed.
    pub fn is_retryable(&self) -> bool {
        if self.is_permanent {
            return false;
        }
        match self.kind() {
            ErrorKind::Config | ErrorKind::HandlerPanicked | ErrorKind::Stopped => false,
            // Request timeout, teapot (Binance bans with it), too early, too many requests.
            ErrorKind::Http => self.status().map(|status| status.as_u16()).is_none_or(|status| {
                !(400..500).contains(&status) || matches!(status, 408 | 418 | 425 | 429)
            }),
            _ => true,
        }
    }

    /// Returns `true` if the server's certificate was examined and refused, or its key is not
    /// [pinned](crate::Builder::tls_pin), and `false` if the TLS handshake failed otherwise.
    pub fn is_verification_failure(&self) -> bool {
        let is_pin = matches!(self.repr.detail, Some(Detail::PinMismatch));
        let is_refused = || self.source().is_some_and(says_verification_failed);
        self.kind() == ErrorKind::Tls && (is_pin || is_refused())
    }

    /// Returns the error and its causes on one line, for a log. An error that a closure or a reader
    /// of the program returned is left out.
    pub fn chain(&self) -> String {
        match self.given_name() {
            Some(name) => format!("{name}: {}", self.chain_without_name()),
            None => self.chain_without_name(),
        }
    }

    /// Returns the [`chain`](Error::chain) for a text that begins with the name of the client.
    pub(crate) fn chain_without_name(&self) -> String {
        let mut text = self.repr.context.clone().into_owned();
        let mut cause = self.system_cause();
        while let Some(error) = cause {
            let next = error.to_string();
            // Errors of other crates often repeat their causes.
            if !text.contains(&next) {
                text.push_str(": ");
                text.push_str(&next);
            }
            cause = match error.downcast_ref::<Error>() {
                Some(ours) => ours.system_cause(),
                None => error.source(),
            };
        }
        text
    }

    fn system_cause(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.repr.cause {
            Some(cause @ Cause::System(_)) => Some(cause.error()),
            _ => None,
        }
    }
}

/// Returns `true` if an error of the platform's TLS says that the certificate was refused.
/// native-tls has no kind for this, so the text decides.
fn says_verification_failed(source: &(dyn StdError + 'static)) -> bool {
    const WORDINGS: [&str; 9] = [
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
        // rustls.
        "invalid peer certificate",
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
        write_name(self, f)?;
        f.write_str(&self.repr.context)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Error");
        if let Some(client) = &self.client {
            shown.field("client", client);
        }
        shown.field("kind", &self.repr.kind).field("context", &self.repr.context);
        if let Some(source) = self.system_cause() {
            shown.field("source", &source.to_string());
        }
        shown.finish()
    }
}

/// Writes what stands before a text about an error: the name of its client, if it was given one.
pub(crate) fn write_name(error: &Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match error.given_name() {
        Some(name) => write!(f, "{name}: "),
        None => Ok(()),
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.repr.cause.as_ref().map(Cause::error)
    }
}

/// The fate of a message that was not sent whole.
///
/// Its reason is an [`Error`] whose kind is `Timeout` ([`Timeout::Send`]), `Stopped`, `Closed`,
/// `Io`, `Connect` (no connection is open), `Limited` (see
/// [`send_limit`](crate::Builder::send_limit)), `TooBig` (longer than `max_outgoing_message_size`),
/// or `Config` (an empty batch; fragments that are none, or both text and binary; a close code that
/// may not be sent).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SendError {
    /// The kernel took no byte of the message. Sending it again is safe.
    NotSent(Error),
    /// The kernel took at least one byte, and the connection has been aborted. The server may or
    /// may not have the whole message; only asking it can tell.
    Unknown(Error),
}

impl SendError {
    /// Returns the reason why the message was not sent whole.
    pub fn reason(&self) -> &Error {
        match self {
            SendError::NotSent(reason) | SendError::Unknown(reason) => reason,
        }
    }

    /// The same error, of the client of this name.
    #[cold]
    pub(crate) fn of_client(self, name: &ClientName) -> Self {
        match self {
            SendError::NotSent(reason) => SendError::NotSent(reason.of_client(name)),
            SendError::Unknown(reason) => SendError::Unknown(reason.of_client(name)),
        }
    }

    /// Returns `true` for [`NotSent`](SendError::NotSent): sending again cannot duplicate the
    /// message.
    pub fn is_not_sent(&self) -> bool {
        matches!(self, SendError::NotSent(_))
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_name(self.reason(), f)?;
        f.write_str(match self {
            SendError::NotSent(_) => "the message was not sent",
            SendError::Unknown(_) => "part of the message was sent, so its fate is unknown",
        })
    }
}

impl StdError for SendError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(self.reason())
    }
}

/// The error of a [`send_batch`](crate::Sender::send_batch) that did not send every message.
#[derive(Clone, Debug)]
pub struct BatchError {
    /// The number of messages, from the first, that the kernel took whole.
    pub sent: usize,
    /// The fate of the next message. Those after it were not sent.
    pub next: SendError,
}

impl fmt::Display for BatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_name(self.next.reason(), f)?;
        let messages = if self.sent == 1 { "message was" } else { "messages were" };
        write!(
            f,
            "{} {messages} sent whole; {}",
            self.sent,
            match self.next {
                SendError::NotSent(_) => "the next one was not sent",
                SendError::Unknown(_) => "part of the next was sent, so its fate is unknown",
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
    use std::io;

    use super::*;

    fn refused(status: u16) -> Error {
        let response = Response::builder().status(status).body(Vec::new()).expect("a response");
        Error::refused("a:1", response, None)
    }

    #[test]
    fn a_timeout_names_its_setting_and_its_step() {
        let error = Error::timed_out(
            Timeout::Connect,
            Duration::from_secs(5),
            "TLS handshake with stream.example.com",
        );
        assert_eq!(
            error.to_string(),
            "timed out after 5s (connect_timeout): TLS handshake with stream.example.com"
        );
        assert_eq!(error.timeout(), Some(Timeout::Connect));
        assert!(error.is_retryable());
    }

    #[test]
    fn a_refusal_shows_its_status_and_hides_its_headers_and_body() {
        let response = Response::builder()
            .status(401)
            .header("set-cookie", "secret=1")
            .body(b"secret".to_vec())
            .expect("a response");
        let error = Error::refused("example.com:443", response, Some(Duration::from_secs(7)));
        let response = error.response().expect("the response");
        assert_eq!((response.status().as_u16(), response.body().as_slice()), (401, &b"secret"[..]));
        assert_eq!(response.headers()["set-cookie"], "secret=1");
        assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
        assert!(!format!("{error:?} {error} {:?}", response.headers()).contains("secret"));
    }

    #[test]
    fn four_hundreds_are_permanent_save_those_that_pass() {
        let retried: Vec<u16> =
            (200..600).filter(|status| refused(*status).is_retryable()).collect();
        let expected: Vec<u16> = (200..400).chain([408, 418, 425, 429]).chain(500..600).collect();
        assert_eq!(retried, expected);
    }

    #[test]
    fn what_a_closure_returned_is_in_source_and_nowhere_else() {
        let error = Error::caused_by_closure(
            ErrorKind::Endpoint,
            "calling the endpoint closure",
            "GET /token?key=hunter2 failed",
        );
        let late = Error::timed_out(Timeout::WaitOpen, Duration::from_secs(1), "waiting")
            .because(error.clone());
        assert!(error.source().is_some_and(|source| source.to_string().contains("hunter2")));
        assert!(
            !format!("{error} {error:?} {} {late:?} {}", error.chain(), late.chain())
                .contains("hunter2")
        );
        assert!(late.chain().ends_with("calling the endpoint closure"), "{}", late.chain());
        assert_eq!(late.timeout(), Some(Timeout::WaitOpen));
    }

    #[test]
    fn an_error_made_permanent_keeps_its_cause_while_it_is_shared() {
        let error = Error::caused(ErrorKind::Tls, "TLS handshake with a:1", "expired");
        let shared = error.clone();
        let permanent = error.permanent();
        assert!(shared.is_retryable() && !permanent.is_retryable());
        assert_eq!(permanent.chain(), "TLS handshake with a:1: expired");
    }

    #[test]
    fn a_send_that_failed_says_its_fate_and_its_reason() {
        let reason = || Error::new(ErrorKind::Io, "writing to a:1");
        let (not_sent, unknown) = (SendError::NotSent(reason()), SendError::Unknown(reason()));
        assert_eq!(not_sent.to_string(), "the message was not sent");
        assert_eq!(unknown.to_string(), "part of the message was sent, so its fate is unknown");
        assert_eq!((not_sent.is_not_sent(), unknown.is_not_sent()), (true, false));
        for error in [&not_sent, &unknown] {
            assert_eq!(error.reason().kind(), ErrorKind::Io);
            let source = error.source().expect("the reason");
            assert_eq!(source.to_string(), "writing to a:1");
        }
        let batch = BatchError { sent: 1, next: not_sent };
        assert!(batch.to_string().starts_with("1 message was "), "{batch}");
        assert_eq!(
            batch.source().map(ToString::to_string).as_deref(),
            Some("the message was not sent")
        );
    }

    #[test]
    fn debug_shows_kind_context_and_the_cause_of_the_system() {
        let error =
            Error::caused(ErrorKind::Connect, "connecting to a:1", io::Error::other("boom"));
        let shown = format!("{error:?}");
        assert_eq!(
            shown,
            r#"Error { kind: Connect, context: "connecting to a:1", source: "boom" }"#
        );
    }

    #[test]
    fn a_given_name_stands_once_in_front_and_a_default_one_does_not() {
        let failure =
            Error::caused(ErrorKind::Connect, "connecting to a:1", io::Error::other("boom"));
        let named = |name: &ClientName| {
            let late = Error::timed_out(Timeout::WaitOpen, Duration::from_secs(1), "waiting");
            late.of_client(name).because(failure.clone().of_client(name))
        };
        let one = named(&ClientName::given("one"));
        assert_eq!(one.to_string(), "one: timed out after 1s (wait_open): waiting");
        assert_eq!(one.chain(), format!("{one}: connecting to a:1: boom"));
        assert_eq!(one.client(), Some("one"));
        assert!(format!("{one:?}").contains("\"one\""), "{one:?}");
        let not_sent = SendError::NotSent(one.clone());
        let batch = BatchError { sent: 1, next: not_sent.clone() };
        assert!(
            not_sent.to_string().starts_with("one: the message")
                && batch.to_string().starts_with("one: 1 message")
        );

        let unnamed = named(&ClientName::by_default("a"));
        assert!(unnamed.chain().starts_with("timed out"), "{}", unnamed.chain());
        assert_eq!(unnamed.client(), Some("a"));

        // An error of another client that an endpoint closure returned keeps its name.
        let two = Error::stopped().of_client(&ClientName::given("two"));
        let nested = Error::caused(ErrorKind::Endpoint, "calling the endpoint closure", two);
        assert_eq!(
            nested.of_client(&ClientName::given("one")).chain(),
            "one: calling the endpoint closure: two: the client was told to stop"
        );
    }

    #[test]
    fn the_cause_is_in_source_and_not_in_display() {
        let error =
            Error::caused(ErrorKind::Connect, "connecting to a:1", io::Error::other("boom"));
        assert_eq!(error.to_string(), "connecting to a:1");
        assert_eq!(error.chain(), "connecting to a:1: boom");
    }
}
