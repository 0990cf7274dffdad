//! Settings: their defaults in one place, validated once.

pub(crate) mod endpoint;

use std::error::Error as StdError;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::endpoint::{Endpoint, Target};
use crate::dial::{Resolver, TcpOptions, TlsOptions};
use crate::error::{Error, ErrorKind};
use crate::event::MessageRef;
use crate::events::{Bounds, WhenFull};
use crate::protocol::deflate::Deflate;
use crate::runtime::reconnect::{ReconnectPolicy, RetryDecision};
use crate::runtime::shared::SendTimeouts;
use crate::sync;
use crate::sync::threads::ThreadOptions;
use crate::time::Backoff;

/// Everything there is to set. Start with [`Client::builder`](crate::Client::builder), end with
/// [`connect`](Builder::connect) or [`start`](Builder::start), which check all of it. Cloning one
/// makes another client of the same kind.
///
/// Durations of zero where a wait must last, and bounds of zero, are refused.
#[derive(Clone)]
#[must_use = "a builder does nothing until `connect` or `start`"]
pub struct Builder {
    pub(crate) source: Source,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) subprotocols: Vec<String>,
    pub(crate) settings: Settings,
}

/// The settings proper: what is left once the endpoints are known.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) resolver: Option<Arc<dyn Resolver>>,
    pub(crate) tcp: TcpOptions,
    pub(crate) tls: TlsOptions,
    pub(crate) deflate: Option<Deflate>,
    pub(crate) connect_timeout: Duration,
    pub(crate) send_timeout: Duration,
    pub(crate) close_timeout: Duration,
    pub(crate) drop_timeout: Duration,
    pub(crate) ping_interval: Option<Duration>,
    pub(crate) pong_timeout: Duration,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) app_ping: Option<AppPing>,
    pub(crate) retry_delay_min: Duration,
    pub(crate) retry_delay_max: Duration,
    pub(crate) retry_after_max: Duration,
    pub(crate) stable_after: Duration,
    pub(crate) max_attempts: Option<u32>,
    pub(crate) retry_policy: Option<RetryPolicy>,
    pub(crate) max_message_size: usize,
    pub(crate) max_outgoing_frame_size: Option<usize>,
    pub(crate) queue: Bounds,
    pub(crate) threads: ThreadOptions,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            resolver: None,
            tcp: TcpOptions::default(),
            tls: TlsOptions::default(),
            deflate: None,
            connect_timeout: Duration::from_secs(10),
            send_timeout: Duration::from_secs(5),
            close_timeout: Duration::from_secs(1),
            drop_timeout: Duration::from_secs(5),
            ping_interval: Some(Duration::from_secs(15)),
            pong_timeout: Duration::from_secs(10),
            idle_timeout: None,
            app_ping: None,
            retry_delay_min: Duration::from_millis(250),
            retry_delay_max: Duration::from_secs(30),
            retry_after_max: Duration::from_secs(300),
            stable_after: Duration::from_secs(30),
            max_attempts: None,
            retry_policy: None,
            max_message_size: 16 << 20,
            max_outgoing_frame_size: None,
            queue: Bounds { messages: 65_536, bytes: 64 << 20, when_full: WhenFull::default() },
            threads: ThreadOptions::default(),
        }
    }
}

/// On less than this a thread runs over the end of its stack, which takes the whole process with
/// it.
const STACK_MIN: usize = 64 * 1024;

/// Decides what follows a failure; gets the error and what the client would do by itself.
pub(crate) type RetryPolicy = Arc<dyn Fn(&Error, RetryDecision) -> RetryDecision + Send + Sync>;

/// Where to dial.
#[derive(Clone)]
pub(crate) enum Source {
    /// Taken in turn.
    List(Vec<Endpoint>),
    /// Asked anew before each dial.
    Ask(EndpointFn),
}

pub(crate) type EndpointFn =
    Arc<dyn Fn(&DialContext) -> Result<Endpoint, Box<dyn StdError + Send + Sync>> + Send + Sync>;

/// What an endpoint closure gets to know.
#[derive(Clone, Debug)]
pub struct DialContext {
    attempt: u32,
    deadline: Instant,
    is_stopping: StopLook,
}

#[derive(Clone)]
struct StopLook(Arc<dyn Fn() -> bool + Send + Sync>);

impl fmt::Debug for StopLook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", (self.0)())
    }
}

impl DialContext {
    pub(crate) fn new(
        attempt: u32,
        deadline: Instant,
        is_stopping: Arc<dyn Fn() -> bool + Send + Sync>,
    ) -> Self {
        DialContext { attempt, deadline, is_stopping: StopLook(is_stopping) }
    }

    /// The number of this dial in a row without a stable connection this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// What is left of `connect_timeout` for the closure and the dial together.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(sync::now())
    }

    /// Whether the client has been told to stop: a closure that makes calls of its own should look
    /// now and then, for nothing can interrupt it.
    pub fn is_stopping(&self) -> bool {
        (self.is_stopping.0)()
    }
}

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

/// What dialing and reading need to know, checked.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) source: Targets,
    pub(crate) settings: Settings,
}

#[derive(Clone)]
pub(crate) enum Targets {
    List(Vec<Target>),
    Ask { endpoint_fn: EndpointFn, headers: Vec<(String, String)>, subprotocols: Vec<String> },
}

impl Targets {
    /// How many take turns.
    pub(crate) fn count(&self) -> usize {
        match self {
            Targets::List(targets) => targets.len(),
            Targets::Ask { .. } => 1,
        }
    }

    /// The target whose turn it is, below [`count`](Targets::count).
    pub(crate) fn target(&self, turn: usize, context: &DialContext) -> Result<Target, Error> {
        match self {
            Targets::List(targets) => Ok(targets[turn].clone()),
            Targets::Ask { endpoint_fn, headers, subprotocols } => {
                let endpoint = endpoint_fn(context).map_err(as_endpoint_error)?;
                with_common(endpoint, headers, subprotocols).target()
            }
        }
    }
}

/// An error of ours that an endpoint closure returns stays what it is, so that its kind decides
/// about retrying.
fn as_endpoint_error(error: Box<dyn StdError + Send + Sync>) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => *error,
        Err(error) => Error::caused_by_closure(ErrorKind::Endpoint, "asking where to dial", error),
    }
}

fn with_common(
    endpoint: Endpoint,
    headers: &[(String, String)],
    subprotocols: &[String],
) -> Endpoint {
    let endpoint =
        headers.iter().fold(endpoint, |endpoint, (name, value)| endpoint.header(name, value));
    subprotocols.iter().fold(endpoint, |endpoint, name| endpoint.subprotocol(name))
}

impl Builder {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Builder {
            source: Source::List(vec![endpoint]),
            headers: Vec::new(),
            subprotocols: Vec::new(),
            settings: Settings::default(),
        }
    }

    pub(crate) fn asking(endpoint_fn: EndpointFn) -> Self {
        Builder {
            source: Source::Ask(endpoint_fn),
            headers: Vec::new(),
            subprotocols: Vec::new(),
            settings: Settings::default(),
        }
    }

    /// Adds an endpoint: several are dialed in turn, the next after each dial, whether it failed or
    /// its connection ended. What no retry mends at one of them (401, 403, 404, a refused
    /// certificate) ends the client when all have answered so in a row; a `Retry-After` holds for
    /// the endpoint that sent it. [`connect`](Builder::connect), which makes one dial, makes it to
    /// the first. Without effect on a builder that asks a closure.
    pub fn add_endpoint(mut self, endpoint: impl Into<Endpoint>) -> Self {
        if let Source::List(list) = &mut self.source {
            list.push(endpoint.into());
        }
        self
    }

    /// Adds a header to every opening handshake. Headers of the handshake itself are refused.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Offers a subprotocol (RFC 6455 section 1.9); may be called several times, the first is
    /// preferred.
    pub fn subprotocol(mut self, name: impl Into<String>) -> Self {
        self.subprotocols.push(name.into());
        self
    }

    /// The budget of one dial: asking the endpoint closure, resolving, connecting, TLS and the
    /// upgrade together. Defaults to 10 s.
    pub fn connect_timeout(mut self, budget: Duration) -> Self {
        self.settings.connect_timeout = budget;
        self
    }

    /// The budget of one send. Defaults to 5 s. A budget that ends inside a frame aborts the
    /// connection. The time that it takes to compress a message counts, and is not cut short.
    pub fn send_timeout(mut self, budget: Duration) -> Self {
        self.settings.send_timeout = budget;
        self
    }

    /// The budget of a polite end: getting the close frame out and waiting for the peer's. Defaults
    /// to 1 s.
    pub fn close_timeout(mut self, budget: Duration) -> Self {
        self.settings.close_timeout = budget;
        self
    }

    /// How long `Drop` waits for the threads. Defaults to 5 s.
    pub fn drop_timeout(mut self, budget: Duration) -> Self {
        self.settings.drop_timeout = budget;
        self
    }

    /// How often a ping frame is sent. Defaults to 15 s. Costs a frame of 14 bytes each way, and
    /// counts as a message at some venues.
    pub fn ping_interval(mut self, interval: Duration) -> Self {
        self.settings.ping_interval = Some(interval);
        self
    }

    /// Sends no ping frames; a dead connection is then noticed by the idle limit, an application
    /// ping or a failing send, or not at all.
    pub fn without_pings(mut self) -> Self {
        self.settings.ping_interval = None;
        self
    }

    /// How long an unanswered ping is borne while not a single byte arrives. Defaults to 10 s.
    pub fn pong_timeout(mut self, limit: Duration) -> Self {
        self.settings.pong_timeout = limit;
        self
    }

    /// Ends a connection on which no data message came for this long, pongs or not. Defaults to no
    /// limit.
    pub fn idle_timeout(mut self, limit: Duration) -> Self {
        self.settings.idle_timeout = Some(limit);
        self
    }

    /// Sends a ping of the application's own. Defaults to none.
    pub fn app_ping(mut self, ping: AppPing) -> Self {
        self.settings.app_ping = Some(ping);
        self
    }

    /// The ceiling of the first retry's delay, which doubles from there. Defaults to 250 ms.
    pub fn retry_delay_min(mut self, delay: Duration) -> Self {
        self.settings.retry_delay_min = delay;
        self
    }

    /// The ceiling of every retry's delay, of the first one's too. Defaults to 30 s.
    pub fn retry_delay_max(mut self, delay: Duration) -> Self {
        self.settings.retry_delay_max = delay;
        self
    }

    /// The longest `Retry-After` that is obeyed; a longer one counts as this long. Defaults to 5
    /// min.
    pub fn retry_after_max(mut self, delay: Duration) -> Self {
        self.settings.retry_after_max = delay;
        self
    }

    /// How long a connection has to stay open before the count of attempts starts anew. Defaults to
    /// 30 s.
    pub fn stable_after(mut self, time: Duration) -> Self {
        self.settings.stable_after = time;
        self
    }

    /// Gives up after this many dials in a row without a stable connection. 1 means a single dial
    /// and no retry, ever. Defaults to no limit.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.settings.max_attempts = Some(attempts);
        self
    }

    /// Decides what follows a failed dial or an ended connection: gets the error, and what the
    /// client would do by itself. It runs on the reader thread. It is not asked after a stop, a
    /// panic, or [`reconnect`](crate::Client::reconnect).
    ///
    /// ```
    /// # use std::time::Duration;
    /// use tautline::{Client, RetryDecision};
    /// let builder = Client::builder("wss://stream.example.com/ws").retry_policy(|error, default| {
    ///     match error.close_reason().map(|close| close.code) {
    ///         Some(1008) => RetryDecision::RetryAfter(Duration::from_secs(30)),
    ///         _ if error.status().is_some_and(|status| status == 451) => RetryDecision::GiveUp,
    ///         _ => default,
    ///     }
    /// });
    /// ```
    pub fn retry_policy(
        mut self,
        policy: impl Fn(&Error, RetryDecision) -> RetryDecision + Send + Sync + 'static,
    ) -> Self {
        self.settings.retry_policy = Some(Arc::new(policy));
        self
    }

    /// The longest message that is taken, after inflating. Defaults to 16 MiB. A longer one ends
    /// the connection with 1009, before memory is taken.
    pub fn max_message_size(mut self, bytes: usize) -> Self {
        self.settings.max_message_size = bytes;
        self
    }

    /// Splits what is sent into frames of at most this payload. Defaults to one frame per message.
    pub fn max_outgoing_frame_size(mut self, bytes: usize) -> Self {
        self.settings.max_outgoing_frame_size = Some(bytes);
        self
    }

    /// Offers permessage-deflate (RFC 7692). Defaults to off: it costs memory and time on both
    /// sides, see [`Deflate`].
    pub fn compress(mut self, deflate: Deflate) -> Self {
        self.settings.deflate = Some(deflate);
        self
    }

    /// How many messages the events queue holds. Defaults to 65,536.
    pub fn queue_messages(mut self, messages: usize) -> Self {
        self.settings.queue.messages = messages;
        self
    }

    /// How many payload bytes the events queue holds. Defaults to 64 MiB.
    pub fn queue_bytes(mut self, bytes: usize) -> Self {
        self.settings.queue.bytes = bytes;
        self
    }

    /// What happens when the events queue is full. Defaults to [`WhenFull::Disconnect`].
    pub fn when_full(mut self, rule: WhenFull) -> Self {
        self.settings.queue.when_full = rule;
        self
    }

    /// Resolves host names by other means than the system's. Runs on a thread of its own.
    pub fn resolver(mut self, resolver: impl Resolver + 'static) -> Self {
        self.settings.resolver = Some(Arc::new(resolver));
        self
    }

    /// TCP keepalive after this idle time, from a second to nine hours. Defaults to off: pings do
    /// more.
    pub fn tcp_keepalive(mut self, idle: Duration) -> Self {
        self.settings.tcp.keepalive = Some(idle);
        self
    }

    /// The kernel's receive buffer (`SO_RCVBUF`). Defaults to the system's own choice, which grows
    /// by itself: measured on a flooded connection, more gains nothing, and less than 64 KiB costs
    /// most of the messages.
    pub fn tcp_receive_buffer(mut self, bytes: usize) -> Self {
        self.settings.tcp.receive_buffer = Some(bytes);
        self
    }

    /// The kernel's send buffer (`SO_SNDBUF`). Defaults to the system's own choice, which grows by
    /// itself.
    pub fn tcp_send_buffer(mut self, bytes: usize) -> Self {
        self.settings.tcp.send_buffer = Some(bytes);
        self
    }

    /// The local address to dial from. Defaults to the system's choice.
    pub fn bind_address(mut self, address: IpAddr) -> Self {
        self.settings.tcp.bind = Some(address);
        self
    }

    /// Trusts a further root certificate, PEM (one or several) or DER.
    pub fn tls_root(mut self, certificate: impl Into<Vec<u8>>) -> Self {
        self.settings.tls.extra_roots.push(certificate.into());
        self
    }

    /// Trusts none but the roots given by [`tls_root`](Builder::tls_root).
    pub fn tls_only_given_roots(mut self) -> Self {
        self.settings.tls.only_extra_roots = true;
        self
    }

    /// Shows a client certificate: a certificate chain and its PKCS#8 key, both PEM.
    pub fn tls_identity_pem(
        mut self,
        certificate: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Self {
        self.settings.tls.set_identity_pem(certificate.into(), key.into());
        self
    }

    /// Shows a client certificate out of a PKCS#12 archive.
    pub fn tls_identity_pkcs12(
        mut self,
        archive: impl Into<Vec<u8>>,
        password: impl Into<String>,
    ) -> Self {
        self.settings.tls.set_identity_pkcs12(archive.into(), password.into());
        self
    }

    /// Accepts TLS 1.0 and 1.1, both broken. Defaults to TLS 1.2 and later.
    pub fn danger_allow_old_tls(mut self) -> Self {
        self.settings.tls.danger_allow_old_tls = true;
        self
    }

    /// Accepts any certificate: whoever sits in between can read and change everything.
    pub fn danger_accept_invalid_certificates(mut self) -> Self {
        self.settings.tls.danger_accept_invalid_certificates = true;
        self
    }

    /// Accepts a certificate for another host.
    pub fn danger_accept_invalid_hostnames(mut self) -> Self {
        self.settings.tls.danger_accept_invalid_hostnames = true;
        self
    }

    /// The stack of each thread, 64 KiB at least. Defaults to Rust's own, 2 MiB of address space;
    /// for programs with many connections, 128 KiB will do unless the handler needs more.
    pub fn thread_stack_size(mut self, bytes: usize) -> Self {
        self.settings.threads.stack_size = Some(bytes);
        self
    }

    /// Called by each thread of the client, with its name, before it does anything else: to pin it
    /// to a core, raise its priority or register it. The name is `taut-reader`, `taut-heartbeat` or
    /// `taut-resolver`. A panic in it is logged, and the thread goes on. Defaults to nothing.
    pub fn on_thread_start(mut self, hook: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.settings.threads.on_start = Some(Arc::new(hook));
        self
    }

    /// The reader asks the kernel again and again instead of sleeping until something comes. A
    /// message then waits for no wake-up, which is most of the way from the wire to a handler on a
    /// quiet connection; it costs a core for as long as the connection is open. Pin the reader to
    /// one of its own ([`on_thread_start`](Builder::on_thread_start)). Defaults to off.
    #[cfg(unix)]
    pub fn busy_poll(mut self) -> Self {
        self.settings.tcp.receiving.is_spinning = true;
        self
    }

    /// Asks the kernel to note when it gets what comes, for
    /// [`kernel_received`](crate::MessageRef::kernel_received). Costs about half a microsecond for
    /// each `recv`. Defaults to off.
    #[cfg(target_os = "linux")]
    pub fn kernel_timestamps(mut self) -> Self {
        self.settings.tcp.receiving.is_stamped = true;
        self
    }

    /// Checks everything.
    pub(crate) fn check(self) -> Result<Config, Error> {
        self.settings.check()?;
        let Builder { source, headers, subprotocols, settings } = self;
        let source = match source {
            Source::List(endpoints) => {
                let targets = endpoints
                    .into_iter()
                    .map(|endpoint| with_common(endpoint, &headers, &subprotocols).target())
                    .collect::<Result<_, _>>()?;
                Targets::List(targets)
            }
            Source::Ask(endpoint_fn) => {
                // What is common to all of its answers can be checked now, against any URL.
                with_common(Endpoint::new("ws://localhost/"), &headers, &subprotocols).target()?;
                Targets::Ask { endpoint_fn, headers, subprotocols }
            }
        };
        Ok(Config { source, settings })
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Builder");
        match &self.source {
            Source::List(endpoints) => shown.field("endpoints", endpoints),
            Source::Ask(_) => shown.field("endpoints", &"asked"),
        };
        shown.finish_non_exhaustive()
    }
}

impl Settings {
    pub(crate) fn send_timeouts(&self) -> SendTimeouts {
        SendTimeouts { send_timeout: self.send_timeout, close_timeout: self.close_timeout }
    }

    pub(crate) fn policy(&self) -> ReconnectPolicy {
        ReconnectPolicy {
            backoff: Backoff { min: self.retry_delay_min, max: self.retry_delay_max },
            stable_after: self.stable_after,
            max_attempts: self.max_attempts,
            close_timeout: self.close_timeout,
        }
    }

    /// What follows `error`: what the client would do by itself, unless a policy knows better.
    pub(crate) fn decision(&self, error: &Error, default: RetryDecision) -> RetryDecision {
        // A panic of the handler, a stop and a wish for a new connection are not for a policy to
        // overrule.
        let is_settled = matches!(error.kind(), ErrorKind::HandlerPanicked | ErrorKind::Stopped)
            || error.is_reconnect_requested();
        match &self.retry_policy {
            Some(policy) if !is_settled => policy(error, default),
            _ => default,
        }
    }

    fn check(&self) -> Result<(), Error> {
        let waits = [
            ("connect_timeout", Some(self.connect_timeout)),
            ("send_timeout", Some(self.send_timeout)),
            ("ping_interval", self.ping_interval),
            ("pong_timeout", Some(self.pong_timeout)),
            ("idle_timeout", self.idle_timeout),
            ("the interval of app_ping", self.app_ping.as_ref().map(|ping| ping.every)),
            ("retry_delay_min", Some(self.retry_delay_min)),
            ("retry_delay_max", Some(self.retry_delay_max)),
        ];
        if let Some((name, _)) =
            waits.iter().find(|(_, wait)| wait.is_some_and(|wait| wait.is_zero()))
        {
            return Err(Error::config(format!("{name} is zero: give it a while")));
        }
        let bounds = [
            ("max_message_size", Some(self.max_message_size)),
            ("max_outgoing_frame_size", self.max_outgoing_frame_size),
            ("queue_messages", Some(self.queue.messages)),
            ("queue_bytes", Some(self.queue.bytes)),
            ("tcp_receive_buffer", self.tcp.receive_buffer),
            ("tcp_send_buffer", self.tcp.send_buffer),
        ];
        if let Some((name, _)) = bounds.iter().find(|(_, bound)| *bound == Some(0)) {
            return Err(Error::config(format!("{name} is zero: nothing could pass")));
        }
        if self.max_attempts == Some(0) {
            return Err(Error::config("max_attempts is zero: 1 means a single dial and no retry"));
        }
        // Systems count it in whole seconds; Linux takes no more than these.
        let keepalives = Duration::from_secs(1)..=Duration::from_secs(32_767);
        if self.tcp.keepalive.is_some_and(|idle| !keepalives.contains(&idle)) {
            return Err(Error::config("tcp_keepalive has to be from a second to nine hours"));
        }
        if self.threads.stack_size.is_some_and(|bytes| bytes < STACK_MIN) {
            return Err(Error::config(format!(
                "thread_stack_size is below {STACK_MIN} bytes: a thread could not run on it"
            )));
        }
        self.tls.validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the front page promises.
    #[test]
    fn the_defaults_are_those_of_the_front_page() {
        let seconds = Duration::from_secs;
        let settings = Settings::default();
        assert_eq!(settings.connect_timeout, seconds(10));
        assert_eq!(settings.send_timeout, seconds(5));
        assert_eq!(settings.close_timeout, seconds(1));
        assert_eq!(settings.drop_timeout, seconds(5));
        assert_eq!(
            (settings.ping_interval, settings.pong_timeout),
            (Some(seconds(15)), seconds(10))
        );
        assert_eq!(
            (settings.retry_delay_min, settings.retry_delay_max),
            (Duration::from_millis(250), seconds(30))
        );
        assert_eq!((settings.retry_after_max, settings.stable_after), (seconds(300), seconds(30)));
        assert_eq!((settings.max_attempts, settings.idle_timeout), (None, None));
        assert_eq!(
            (settings.max_message_size, settings.max_outgoing_frame_size),
            (16 * 1024 * 1024, None)
        );
        let bounds =
            Bounds { messages: 65_536, bytes: 64 * 1024 * 1024, when_full: WhenFull::Disconnect };
        assert_eq!(settings.queue, bounds);
        assert!(settings.deflate.is_none() && settings.app_ping.is_none());
        assert!(settings.check().is_ok());
    }
}
