//! The builder: every setting has its setter here.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::config::app_ping::AppPing;
use crate::config::endpoint::Endpoint;
use crate::config::settings::Settings;
use crate::config::targets::{Config, EndpointFn, Source, Targets, with_common};
use crate::dial::Resolver;
use crate::error::Error;
use crate::events::WhenFull;
use crate::protocol::deflate::Deflate;
use crate::runtime::reconnect::RetryDecision;

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
