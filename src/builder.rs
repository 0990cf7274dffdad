//! The builder: one setter for each setting.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::config::app_ping::AppPing;
use crate::config::decode::Decode;
use crate::config::dial_context::DialContext;
use crate::config::endpoint::Endpoint;
use crate::config::proxy::Proxy;
use crate::config::queue_bounds::WhenFull;
use crate::config::settings::Settings;
use crate::config::targets::{Config, EndpointFn, Source, Targets, with_common};
use crate::config::tls_engine::TlsEngine;
use crate::dial::Resolver;
use crate::error::Error;
use crate::event::{Disconnect, MessageRef};
use crate::name::ClientName;
use crate::protocol::deflate::Deflate;
use crate::rate_limit::RateLimit;
use crate::runtime::reconnect::RetryDecision;

/// Builds a client: [`Client::builder`](crate::Client::builder) creates one.
///
/// [`connect`](Builder::connect), [`start`](Builder::start) or [`start_with`](Builder::start_with)
/// checks all settings and starts the client. A clone starts another client with the same settings.
///
/// Timeouts and intervals of zero and limits of zero are refused, save `close_timeout`,
/// `drop_timeout`, `stable_after` and `retry_after_max`. A timeout may be [`Duration::MAX`], which
/// never expires.
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

    pub(crate) fn from_fn(endpoint_fn: EndpointFn) -> Self {
        Builder {
            source: Source::FromFn(endpoint_fn),
            headers: Vec::new(),
            subprotocols: Vec::new(),
            settings: Settings::default(),
        }
    }

    /// Names the client, to tell it from others in everything that is printed.
    ///
    /// The name stands in front of every log record of the client and in front of `Display` of its
    /// [`Error`]s, [`Disconnect`]s, [`DialFailure`](crate::DialFailure)s and
    /// [`StopReport`](crate::StopReport)s. `Debug` of these and of the handles shows it too. The
    /// system's names of its threads begin with it, as far as 15 bytes hold it and a suffix:
    /// `okx-public-rd` reads, `okx-public-hb` is the heartbeat, `okx-public-dns` resolves, and
    /// `okx-public-tls` reads the roots of the system. With the feature `metrics` the name is the
    /// label `client` of its metrics.
    ///
    /// `Config` at the start if it is empty, longer than 64 bytes or has a control character. Two
    /// clients may have the same name. It may be printed anywhere, so keep secrets out of it.
    ///
    /// Defaults to the host, and to `client` for endpoints of several hosts and for a builder of
    /// [`builder_from_fn`](crate::Client::builder_from_fn), whose host is not known at the start.
    ///
    /// By default log records about a dial or connection begin with its host and port, errors
    /// begin with no name, and the threads have the names of
    /// [`on_thread_start`](Builder::on_thread_start).
    ///
    /// # Examples
    /// ```no_run
    /// use std::time::Duration;
    /// use tautline::Client;
    ///
    /// # fn main() -> Result<(), tautline::Error> {
    /// let url = "wss://ws.okx.com:8443/ws/v5/public";
    /// let trades = Client::builder(url).name("okx-trades").start()?;
    /// let books = Client::builder(url).name("okx-books").start()?;
    /// // The log: okx-trades (ws.okx.com:8443): open, epoch 1, after 81.5ms
    /// // Prints: okx-books: timed out after 1ms (wait_open): waiting for the connection to open
    /// if let Err(error) = books.wait_open(Duration::from_millis(1)) {
    ///     println!("{error}");
    /// }
    /// // Prints: okx-trades: clean, 84.0ms; taut-heartbeat ended after 83.9ms; [...]
    /// println!("{}", trades.stop(Duration::from_secs(5)));
    /// # Ok(()) }
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = Some(ClientName::given(name));
        self
    }

    /// Adds an endpoint. Several are dialed in turn: each dial goes to the next one, no matter if
    /// the one before failed or its connection ended.
    ///
    /// A permanent status or a refused certificate ([`Error::is_retryable`]) ends the client only
    /// if all endpoints have answered so in a row. A `Retry-After` applies to the endpoint that
    /// sent it. The one dial of [`connect`](Builder::connect) goes to the first endpoint. Without
    /// effect on a builder of [`builder_from_fn`](crate::Client::builder_from_fn).
    pub fn add_endpoint(mut self, endpoint: impl Into<Endpoint>) -> Self {
        if let Source::List(list) = &mut self.source {
            list.push(endpoint.into());
        }
        self
    }

    /// Adds a header to every opening handshake. May be called several times.
    ///
    /// `Config` at the start if it is not a valid header, or one of the handshake itself (`Host`,
    /// `Upgrade`, `Sec-WebSocket-Key` and so on). Its value is in no log.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Offers a subprotocol (RFC 6455 section 1.9). May be called several times; the first is
    /// preferred. [`Opened::subprotocol`](crate::Opened::subprotocol) is the server's choice.
    pub fn subprotocol(mut self, name: impl Into<String>) -> Self {
        self.subprotocols.push(name.into());
        self
    }

    /// Sets the timeout of one dial: the endpoint closure, resolving, TCP, the tunnel through a
    /// proxy, TLS and the opening handshake together.
    ///
    /// Defaults to 10 s.
    pub fn connect_timeout(mut self, budget: Duration) -> Self {
        self.settings.connect_timeout = budget;
        self
    }

    /// Sets the timeout of one send: waiting for the rate limits, for other senders, and for room
    /// in the kernel's buffer. A call of a session waits for the rate limits within
    /// [`Request::within`](crate::session::Request::within) instead.
    ///
    /// A send that times out before its first byte was taken is
    /// [`NotSent`](crate::SendError::NotSent) and leaves the connection alone. One that times out
    /// inside a frame is [`Unknown`](crate::SendError::Unknown) and aborts the connection.
    /// Compressing a message counts and is not interrupted. Defaults to 5 s.
    pub fn send_timeout(mut self, budget: Duration) -> Self {
        self.settings.send_timeout = budget;
        self
    }

    /// Limits the rate of outgoing messages. May be called several times: all limits apply.
    ///
    /// A send waits for room within [`send_timeout`](Builder::send_timeout), in the order in which
    /// the sends came. One that cannot have room by then is refused at once:
    /// [`NotSent`](crate::SendError::NotSent) of the kind [`Limited`](crate::ErrorKind::Limited),
    /// and [`Error::retry_in`] says when to try again. On a thread of the client's own, in its
    /// handler for example, no send waits: it has room now or is refused.
    ///
    /// A message counts once, in however many frames it leaves, and a message that was not sent
    /// does not count. A batch counts each of its messages. It leaves together if the windows hold
    /// as many, and otherwise in parts as there is room.
    ///
    /// Defaults to none. `Config` at the start for a limit without a window, or one that can never
    /// have room.
    pub fn send_limit(mut self, limit: RateLimit) -> Self {
        self.settings.send_limits.push(limit);
        self
    }

    /// Limits the rate of dials. A [`shared`](RateLimit::shared) limit counts the dials of all
    /// clients that have it.
    ///
    /// A dial waits for room before it begins, and before its
    /// [`connect_timeout`](Builder::connect_timeout) does, in the state
    /// [`Backoff`](crate::State::Backoff), after the backoff if there was one. The first dial waits
    /// too, and [`connect`](Builder::connect) with it. A dial counts when it begins, whether it
    /// succeeds or not; the second one that a refused offer of compression brings about (see
    /// [`compress`](Builder::compress)) does not. Defaults to none. The last call applies. `Config`
    /// as for [`send_limit`](Builder::send_limit).
    pub fn connect_limit(mut self, limit: RateLimit) -> Self {
        self.settings.connect_limit = Some(limit);
        self
    }

    /// Sets the timeout of the closing handshake (RFC 6455 section 7.1.2): getting our close frame
    /// out, the server's close frame, and the end of the TCP connection. The connection is aborted
    /// when it expires.
    ///
    /// Defaults to 1 s.
    pub fn close_timeout(mut self, budget: Duration) -> Self {
        self.settings.close_timeout = budget;
        self
    }

    /// Sets the time for which dropping the client waits for its threads.
    ///
    /// Defaults to 5 s. A thread that is later is logged as an error and left to end by itself.
    pub fn drop_timeout(mut self, budget: Duration) -> Self {
        self.settings.drop_timeout = budget;
        self
    }

    /// Sets the interval between ping frames (RFC 6455 section 5.5.2). `None` sends none.
    ///
    /// Defaults to 15 s. A ping costs 14 bytes and its pong 10; some venues count it as a message.
    /// An unanswered ping ends the connection after [`pong_timeout`](Builder::pong_timeout).
    ///
    /// Without pings, nothing but [`idle_timeout`](Builder::idle_timeout), an
    /// [`app_ping`](Builder::app_ping) with a reply or a failing send notices a dead connection,
    /// and [`Disconnect::confirmed`](crate::Disconnect::confirmed) stays 0.
    pub fn ping_interval(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.settings.ping_interval = interval.into();
        self
    }

    /// Sets the time after which an unanswered ping ends the connection, with the kind
    /// [`PongTimeout`](crate::ErrorKind::PongTimeout).
    ///
    /// Any byte that arrives restarts it, because a busy feed may delay a pong. It is not judged
    /// while the handler runs, and what has come meanwhile is read first, so a slow handler is not
    /// mistaken for a dead peer. Defaults to 10 s.
    pub fn pong_timeout(mut self, limit: Duration) -> Self {
        self.settings.pong_timeout = limit;
        self
    }

    /// Sets the time without a data message after which the connection ends, with the kind
    /// [`Idle`](crate::ErrorKind::Idle).
    ///
    /// Pings and pongs are no data messages, nor are replies to an [`app_ping`](Builder::app_ping),
    /// nor messages that [`auto_respond`](Builder::auto_respond) answers, nor those that the
    /// protocol of a session calls [`Ignored`](crate::session::Class::Ignored). Defaults to none.
    pub fn idle_timeout(mut self, limit: Duration) -> Self {
        self.settings.idle_timeout = Some(limit);
        self
    }

    /// Sends a ping of the application's own, besides ping frames. May be called several times:
    /// each ping has its own interval and its own replies.
    ///
    /// An endpoint can replace the intervals for its connection:
    /// [`Endpoint::app_ping_interval`]. Defaults to none.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tautline::{AppPing, Client};
    /// // Kraken: a ping, and a dead man's switch that cancels all orders a minute after the last.
    /// let ping = AppPing::text(r#"{"method":"ping"}"#, Duration::from_secs(30))
    ///     .answered_by(|message| message.text().is_some_and(|text| text.contains("pong")));
    /// let switch = r#"{"method":"cancel_all_orders_after","params":{"timeout":60}}"#;
    /// let builder = Client::builder("wss://ws.kraken.com/v2")
    ///     .app_ping(ping)
    ///     .app_ping(AppPing::text(switch, Duration::from_secs(15)));
    /// ```
    pub fn app_ping(mut self, ping: AppPing) -> Self {
        self.settings.app_pings.push(ping);
        self
    }

    /// Answers messages that the server wants answered, such as pings of its application: `respond`
    /// returns the text that is sent, or `None` for any other message.
    ///
    /// An answered message is delivered to nobody and is no data for
    /// [`idle_timeout`](Builder::idle_timeout), but counts in [`Stats`](crate::Stats). `respond` is
    /// called on the reader thread, for every message, so it must not block: look at the first
    /// bytes before anything else. A panic in it ends the client with the kind `HandlerPanicked`.
    ///
    /// The heartbeat thread writes the responses in their order, after pongs and before pings that
    /// are due, uncompressed. Each is a message like those that the program sends: it has a
    /// sequence number, and stands between no fragments of another. At most 16 wait for room in the
    /// socket, and the oldest makes room. They end with their connection. One that is longer than
    /// [`max_outgoing_message_size`](Builder::max_outgoing_message_size) is left out, as an
    /// application ping is. Defaults to none.
    ///
    /// # Examples
    /// ```
    /// # use tautline::Client;
    /// // HTX sends {"ping":1492420473027}, and wants {"pong":1492420473027}.
    /// let htx = Client::builder("wss://stream.example.com/ws").auto_respond(|message| {
    ///     let rest = message.text()?.strip_prefix(r#"{"ping":"#)?;
    ///     Some(format!(r#"{{"pong":{rest}"#).into())
    /// });
    /// // Deribit closes the connection if its test_request stays unanswered.
    /// let deribit = Client::builder("wss://stream.example.com/ws").auto_respond(|message| {
    ///     let text = message.text().filter(|text| text.len() < 200)?;
    ///     text.contains(r#""type":"test_request""#)
    ///         .then_some(r#"{"jsonrpc":"2.0","id":0,"method":"public/test","params":{}}"#.into())
    /// });
    /// ```
    pub fn auto_respond(
        mut self,
        respond: impl for<'a> Fn(MessageRef<'a>) -> Option<Cow<'a, str>> + Send + Sync + 'static,
    ) -> Self {
        self.settings.auto_respond = Some(Arc::new(respond));
        self
    }

    /// Sets the upper bound of the first retry's delay. It doubles with each further attempt.
    ///
    /// The delay is random between zero and the bound ("full jitter"), so that a thousand clients
    /// of one server do not return at the same moment. Defaults to 250 ms: the bounds are 250 ms,
    /// 500 ms, 1 s, 2 s and so on up to [`retry_delay_max`](Builder::retry_delay_max).
    pub fn retry_delay_min(mut self, delay: Duration) -> Self {
        self.settings.retry_delay_min = delay;
        self
    }

    /// Sets the upper bound of every retry's delay, the first one's included.
    ///
    /// Defaults to 30 s, which suits a market data feed. An order desk that would rather dial a
    /// busy server often than be absent sets a second or so; see also
    /// [`stable_after`](Builder::stable_after).
    pub fn retry_delay_max(mut self, delay: Duration) -> Self {
        self.settings.retry_delay_max = delay;
        self
    }

    /// Sets the longest `Retry-After` (RFC 9110 section 10.2.3) that is obeyed. A longer one counts
    /// as this long.
    ///
    /// Defaults to 5 min.
    pub fn retry_after_max(mut self, delay: Duration) -> Self {
        self.settings.retry_after_max = delay;
        self
    }

    /// Sets the time that a connection must stay open to reset the attempt count, and with it the
    /// backoff. The connection of a session resets it no sooner than its opening script is done.
    ///
    /// A server that accepts and drops connections is thus backed off from like one that refuses
    /// them. The reverse: several good connections in a row that are all shorter than this back off
    /// as far as `retry_delay_max`, up to 30 s by default. An order desk whose connections are
    /// short but good, because its venue ends each session after some seconds, sets this to a
    /// little more than the log-on takes, or calls `mark_stable` on its
    /// [`Connection`](crate::Connection) once it has logged on. Connections that the program itself
    /// ended ([`reconnect`](crate::Client::reconnect)) do not count as attempts.
    ///
    /// Defaults to 30 s.
    pub fn stable_after(mut self, time: Duration) -> Self {
        self.settings.stable_after = time;
        self
    }

    /// Sets the number of consecutive attempts without a stable connection after which the client
    /// gives up.
    ///
    /// 1 means a single dial and no retry, ever. Defaults to no limit.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.settings.max_attempts = Some(attempts);
        self
    }

    /// Sets a policy that decides what follows a failed dial or an ended connection. It receives
    /// the error and the decision that the client would make by itself.
    ///
    /// By itself the client:
    /// - retries a status from 200 to 399 and from 500 to 599 in answer to the opening handshake,
    ///   and 408, 418, 425 and 429. Redirects are not followed.
    /// - gives up after any other status from 400 to 499, which says that the same request will
    ///   fail again
    /// - gives up after the other permanent errors listed at [`Error::is_retryable`]
    /// - retries everything else
    /// - obeys `Retry-After`: the decision is then [`RetryDecision::RetryAfter`]
    ///
    /// With several endpoints a status or a refused certificate is final only when all of them have
    /// answered so in a row. `RetryDecision::RetryWithin` is a ceiling: it dials after the usual
    /// backoff, or after that time if it is shorter.
    ///
    /// The policy runs on the reader thread, so it must not block. A panic in it ends the client.
    /// It is not asked after a stop, a panic, or a [`reconnect`](crate::Client::reconnect), which
    /// dials again at once. Defaults to none.
    ///
    /// ```
    /// # use std::time::Duration;
    /// use tautline::{Client, RetryDecision};
    /// let builder = Client::builder("wss://stream.example.com/ws").retry_policy(|error, default| {
    ///     match error.close_reason().map(|close| close.code) {
    ///         Some(1008) => RetryDecision::RetryAfter(Duration::from_secs(30)),
    ///         // A gateway that answers 404 while it is being deployed.
    ///         _ if error.status().is_some_and(|status| status == 404) => RetryDecision::Retry,
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

    /// Sets a closure that is called between the end of a connection and the dial that follows it:
    /// to cancel orders by REST, for example, before new ones can be sent.
    ///
    /// It is called once for each connection that has ended and is dialed again, a
    /// [`reconnect`](crate::Client::reconnect) of the program's included. By then the end has been
    /// told to the handler or queued for [`Events`](crate::Events), and the old connection is
    /// closed. The dial begins after the closure has returned. It is not called for failed dials,
    /// nor if the client ends instead or is told to stop.
    ///
    /// Its decision changes the one that was made and told:
    /// - [`RetryDecision::Retry`] leaves it as it is
    /// - [`RetryAfter`](RetryDecision::RetryAfter) and [`RetryWithin`](RetryDecision::RetryWithin)
    ///   set a floor and a ceiling for the wait, which counts from the end of the connection: the
    ///   time that the closure takes is part of it
    /// - [`GiveUp`](RetryDecision::GiveUp) ends the client with the error that ended the connection
    ///
    /// The closure runs on the reader thread and may block. The state is
    /// [`Backoff`](crate::State::Backoff) meanwhile, and the handler is not woken. Nothing can
    /// interrupt it: a stop is noticed once it has returned, so give the calls that it makes a
    /// timeout of their own, of [`DialContext::remaining`], and ask
    /// [`DialContext::is_stopping`] between them. A panic in it ends the client with the kind
    /// `HandlerPanicked`.
    ///
    /// Defaults to none.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tautline::{Client, RetryDecision};
    /// # fn cancel_all_orders(_: Duration) -> Result<(), std::io::Error> { Ok(()) }
    /// let builder = Client::builder("wss://stream.example.com/ws").before_reconnect(
    ///     |ended, context| match cancel_all_orders(context.remaining()) {
    ///         Ok(()) => RetryDecision::Retry,
    ///         Err(error) => {
    ///             eprintln!("orders may be open since epoch {}: {error}", ended.epoch);
    ///             RetryDecision::RetryAfter(Duration::from_secs(5))
    ///         }
    ///     },
    /// );
    /// ```
    pub fn before_reconnect(
        mut self,
        closure: impl Fn(&Disconnect, &DialContext) -> RetryDecision + Send + Sync + 'static,
    ) -> Self {
        self.settings.before_reconnect = Some(Arc::new(closure));
        self
    }

    /// Sets the length of the longest message that is accepted, in bytes after decompression and
    /// [`decode`](Builder::decode).
    ///
    /// A longer one ends the connection with the code 1009 and the kind
    /// [`TooBig`](crate::ErrorKind::TooBig), before memory is allocated for it. Defaults to 16 MiB.
    pub fn max_message_size(mut self, bytes: usize) -> Self {
        self.settings.max_message_size = bytes;
        self
    }

    /// Decodes binary messages whose payload the server's application has compressed. Text messages
    /// are delivered as they are.
    ///
    /// The handler, the events and the closures of this builder see what was decoded, binary or as
    /// [text](Decode::as_text), and [`Stats::bytes_received`](crate::Stats::bytes_received) counts
    /// that. A message that decodes to more than [`max_message_size`](Builder::max_message_size)
    /// ends the connection as a longer one does. One that does not decode, or has further bytes
    /// behind its end, ends it with the code 1007 and the kind
    /// [`Undecodable`](crate::ErrorKind::Undecodable).
    ///
    /// Takes about 120 KiB for each open connection. Defaults to none.
    ///
    /// # Examples
    /// ```
    /// # use tautline::{Client, Decode};
    /// let htx = Client::builder("wss://stream.example.com/ws").decode(Decode::gzip().as_text());
    /// ```
    pub fn decode(mut self, decode: Decode) -> Self {
        self.settings.decode = Some(decode);
        self
    }

    /// Sets the length of the longest message that is sent, in bytes before compression: for
    /// servers that end the connection at a longer one.
    ///
    /// A longer message is refused before a byte of it is sent, with
    /// [`NotSent`](crate::SendError::NotSent) and the kind [`TooBig`](crate::ErrorKind::TooBig),
    /// and the connection goes on. Of a batch the messages before it are sent. A message in
    /// fragments that turns out to be longer once its first fragment has gone cannot be taken back:
    /// it is [`Unknown`](crate::SendError::Unknown), and the connection is aborted. An
    /// [`app_ping`](Builder::app_ping) or a response of [`auto_respond`](Builder::auto_respond)
    /// that is longer is left out, with a warning in the log at the first of a connection. Defaults
    /// to none.
    pub fn max_outgoing_message_size(mut self, bytes: usize) -> Self {
        self.settings.max_outgoing_message_size = Some(bytes);
        self
    }

    /// Sets the largest payload of an outgoing frame, in bytes. Longer messages are sent in
    /// fragments (RFC 6455 section 5.4).
    ///
    /// Defaults to none: one frame per message.
    pub fn max_outgoing_frame_size(mut self, bytes: usize) -> Self {
        self.settings.max_outgoing_frame_size = Some(bytes);
        self
    }

    /// Offers permessage-deflate (RFC 7692).
    ///
    /// Defaults to off: compression costs memory and time on both sides, see [`Deflate`].
    pub fn compress(mut self, deflate: Deflate) -> Self {
        self.settings.deflate = Some(deflate);
        self
    }

    /// Sets the number of messages that the event queue holds.
    ///
    /// Defaults to 65,536. Without effect on a client with a handler, which has no
    /// queue.
    pub fn queue_messages(mut self, messages: usize) -> Self {
        self.settings.queue.messages = messages;
        self
    }

    /// Sets the number of payload bytes that the event queue holds. Openings, ends, failed dials
    /// and the events of a session have as many of their own; see [`WhenFull`].
    ///
    /// Defaults to 64 MiB. Without effect on a client with a handler, which has no
    /// queue.
    pub fn queue_bytes(mut self, bytes: usize) -> Self {
        self.settings.queue.bytes = bytes;
        self
    }

    /// Sets what happens to a message that finds the event queue full.
    ///
    /// Defaults to [`WhenFull::Disconnect`].
    pub fn when_full(mut self, rule: WhenFull) -> Self {
        self.settings.queue.when_full = rule;
        self
    }

    /// Keeps the latest value alone of messages with the same key: a message takes the place of an
    /// unread one with its key, unless another event stands between them: an opening, an end, a
    /// failed dial or an event of a session.
    ///
    /// This is for messages that make earlier ones obsolete, such as quotes. It loses information
    /// where a message is a change to be applied to what came before, as most order book updates
    /// are. [`Stats::messages_conflated`](crate::Stats::messages_conflated) counts the messages
    /// that were replaced; [`Lagged`](crate::Lagged) does not tell of them. A message without a key
    /// is queued like any other. A message that [`next_batch`](crate::Events::next_batch) has taken
    /// is replaced no more.
    ///
    /// `key` is called on the reader thread, once for each message. A panic in it ends the client
    /// with the kind `HandlerPanicked`. The bytes of the keys count against
    /// [`queue_bytes`](Builder::queue_bytes).
    ///
    /// Defaults to off. Without effect on a client with a handler, which has no queue.
    ///
    /// # Examples
    /// ```
    /// # use tautline::Client;
    /// // Each message begins with six letters that name the instrument.
    /// let builder = Client::builder("wss://stream.example.com/ws")
    ///     .conflate(|message| message.bytes().get(..6));
    /// ```
    pub fn conflate(
        mut self,
        key: impl for<'a> Fn(MessageRef<'a>) -> Option<&'a [u8]> + Send + Sync + 'static,
    ) -> Self {
        self.settings.conflate = Some(Arc::new(key));
        self
    }

    /// Replaces the system's resolver. It runs on the thread `taut-resolver` and is not asked for
    /// IP addresses.
    ///
    /// It can also redirect the connection, for example into a tunnel or to a sidecar: the address
    /// that it returns is dialed as it is, port included, while the `Host` header, SNI and the
    /// verification of the certificate keep the host of the URL.
    ///
    /// ```
    /// use std::net::SocketAddr;
    /// use tautline::Client;
    /// // `ssh -L 9443:stream.example.com:443 gateway` forwards the port.
    /// let builder = Client::builder("wss://stream.example.com/ws")
    ///     .resolver(|_host: &str, _port: u16| Ok(vec![SocketAddr::from(([127, 0, 0, 1], 9443))]));
    /// ```
    pub fn resolver(mut self, resolver: impl Resolver + 'static) -> Self {
        self.settings.resolver = Some(Arc::new(resolver));
        self
    }

    /// Dials every endpoint through a proxy. Defaults to none: no variable of the environment is
    /// read but by [`Proxy::from_env`].
    ///
    /// The tunnel is a step of the dial, within `connect_timeout`. Several addresses of the proxy
    /// are tried like those of a server, the [`resolver`](Builder::resolver) is asked for its name,
    /// and [`Opened::peer`](crate::Opened::peer) is its address. Its refusal is an error of kind
    /// [`Proxy`](crate::ErrorKind::Proxy).
    ///
    /// ```
    /// use tautline::{Client, Proxy};
    /// let builder = Client::builder("wss://stream.example.com/ws").proxy(Proxy::from_env());
    /// ```
    pub fn proxy(mut self, proxy: Proxy) -> Self {
        self.settings.proxy = Some(proxy);
        self
    }

    /// Turns on TCP keepalive after `idle`, which must be from 1 s to 32,767 s. Whole seconds
    /// count.
    ///
    /// Defaults to off, because pings test more than the kernel at the other end.
    pub fn tcp_keepalive(mut self, idle: Duration) -> Self {
        self.settings.tcp.keepalive = Some(idle);
        self
    }

    /// Sets the size of the kernel's receive buffer (`SO_RCVBUF`), in bytes.
    ///
    /// Defaults to the system's choice, which grows by itself. On a flooded connection a larger one
    /// gained nothing, and one of less than 64 KiB cost most of the throughput.
    pub fn tcp_receive_buffer(mut self, bytes: usize) -> Self {
        self.settings.tcp.receive_buffer = Some(bytes);
        self
    }

    /// Sets the size of the kernel's send buffer (`SO_SNDBUF`), in bytes.
    ///
    /// Defaults to the system's choice, which grows by itself.
    pub fn tcp_send_buffer(mut self, bytes: usize) -> Self {
        self.settings.tcp.send_buffer = Some(bytes);
        self
    }

    /// Sets the local address to dial from. Only server addresses of its family are then dialed.
    ///
    /// Defaults to the system's choice.
    pub fn bind_address(mut self, address: IpAddr) -> Self {
        self.settings.tcp.bind = Some(address);
        self
    }

    /// Sets the library that does TLS, with the server and with an HTTPS proxy.
    ///
    /// rustls needs no OpenSSL, and half of its CPU where TLS 1.3 and AES are agreed.
    ///
    /// A client that dials a server again resumes its TLS session (RFC 8446 section 2.2). In such a
    /// handshake the server shows no certificate, and none is verified. With a
    /// [`tls_pin`](Self::tls_pin) no session is resumed.
    ///
    /// rustls has no TLS 1.0 and 1.1, and reads no PKCS#12: with
    /// [`danger_allow_old_tls`](Self::danger_allow_old_tls) or
    /// [`tls_identity_pkcs12`](Self::tls_identity_pkcs12) a client is refused at the start, with
    /// the kind `Config`. Of TLS 1.2 it has ECDHE with AES-GCM or ChaCha20-Poly1305; a server that
    /// renegotiates ends the connection. Certificates are of X.509 version 3, with a key of RSA
    /// (2,048 bits or more), P-256, P-384 or Ed25519, and name their host in the subject
    /// alternative name, not in the common name alone (RFC 9525 section 2).
    ///
    /// Defaults to [`TlsEngine::NativeTls`] where the feature `native-tls` is on.
    pub fn tls_engine(mut self, engine: TlsEngine) -> Self {
        self.settings.tls.engine = engine;
        self
    }

    /// Trusts a further root certificate: PEM (one or several) or DER. May be called several times.
    ///
    /// `Config` at the start if it is neither.
    pub fn tls_root(mut self, certificate: impl Into<Vec<u8>>) -> Self {
        self.settings.tls.extra_roots.push(certificate.into());
        self
    }

    /// Trusts only the roots given by [`tls_root`](Builder::tls_root). The system's are not read.
    pub fn tls_only_given_roots(mut self) -> Self {
        self.settings.tls.only_extra_roots = true;
        self
    }

    /// Presents a client certificate: a certificate chain and its PKCS#8 private key, both PEM.
    /// rustls also takes keys of PKCS#1 and SEC 1.
    ///
    /// `Config` at the start if they are invalid or do not belong together, or if the key is
    /// encrypted.
    pub fn tls_identity_pem(
        mut self,
        certificate: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Self {
        self.settings.tls.set_identity_pem(certificate.into(), key.into());
        self
    }

    /// Presents a client certificate from a PKCS#12 archive.
    ///
    /// `Config` at the start if the archive is invalid or the password is wrong.
    pub fn tls_identity_pkcs12(
        mut self,
        archive: impl Into<Vec<u8>>,
        password: impl Into<String>,
    ) -> Self {
        self.settings.tls.set_identity_pkcs12(archive.into(), password.into());
        self
    }

    /// Accepts TLS 1.0 and 1.1, both of which are broken. Defaults to TLS 1.2 and later.
    pub fn danger_allow_old_tls(mut self) -> Self {
        self.settings.tls.danger_allow_old_tls = true;
        self
    }

    /// Accepts only servers with this public key, whatever authority has signed its certificate.
    /// May be called several times: one of the pins has to match, so that the next key can be
    /// pinned before it is in use.
    ///
    /// A pin is `sha256/` and the Base64 of the SHA-256 of the certificate's SubjectPublicKeyInfo
    /// (RFC 7469 section 2.4). It is compared after the certificate has been verified, and before
    /// the opening handshake is sent. Another key is a permanent error of kind
    /// [`Tls`](crate::ErrorKind::Tls), whose text has the pin that was seen: to learn a pin, dial
    /// with a wrong one. A proxy's key is not compared, and neither is anything over `ws://`.
    ///
    /// `Config` at the start if it is no pin. Defaults to none: any key will do.
    pub fn tls_pin(mut self, pin: impl Into<String>) -> Self {
        self.settings.tls.pins.push(pin.into());
        self
    }

    /// Accepts any certificate. Whoever is between the client and the server can then read and
    /// change everything. Defaults to off.
    pub fn danger_accept_invalid_certificates(mut self) -> Self {
        self.settings.tls.danger_accept_invalid_certificates = true;
        self
    }

    /// Accepts a certificate of another host. Whoever has any valid certificate and is between the
    /// client and the server can then read and change everything. Defaults to off.
    pub fn danger_accept_invalid_hostnames(mut self) -> Self {
        self.settings.tls.danger_accept_invalid_hostnames = true;
        self
    }

    /// Sets the size of each thread's stack, in bytes.
    ///
    /// At least 96 KiB, or 160 KiB with [`compress`](Builder::compress) or
    /// [`decode`](Builder::decode): a dev build needs 66 and 97 KiB of that, and the handler and
    /// the other closures need the rest. `Config` at the start
    /// if it is less, since a thread that overflows its stack aborts the process. Defaults to
    /// Rust's own size, 2 MiB of address space, of which only the pages in use take memory.
    pub fn thread_stack_size(mut self, bytes: usize) -> Self {
        self.settings.threads.stack_size = Some(bytes);
        self
    }

    /// Sets a hook that each thread of the client calls with its name before it does anything else:
    /// to pin it to a core, raise its priority or register it somewhere.
    ///
    /// The names are `taut-reader`, `taut-heartbeat`, `taut-resolver` and `taut-roots`, whatever
    /// the [`name`](Builder::name) of the client: a hook knows its threads by them. The system's
    /// name, which may say the client, is that of [`std::thread::current`]. A panic in the hook is
    /// logged, and the thread continues. Defaults to none.
    pub fn on_thread_start(mut self, hook: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.settings.threads.on_start = Some(Arc::new(hook));
        self
    }

    /// Lets any thread wake the handler, by [`Sender::wake`](crate::Sender::wake) and
    /// [`Sender::wake_at`](crate::Sender::wake_at). A handler that only sets times of its own, by
    /// [`Connection::wake_at`](crate::Connection::wake_at) or inside its calls, needs no such
    /// setting.
    ///
    /// It costs two descriptors, until the last handle of the client is dropped. The reader no
    /// longer sleeps in `recv`, but asks whether something is there, and sleeps in `poll` if not:
    /// two system calls more for what arrives on a quiet connection, and none more on one that is
    /// never quiet. A time that is set costs the same for
    /// as long as it is set. A reader that spins ([`busy_poll`](Builder::busy_poll)) looks at the
    /// clock between two questions. Defaults to off. Without effect on clients whose events are
    /// pulled.
    pub fn wakeups(mut self) -> Self {
        self.settings.has_wakeups = true;
        self
    }

    /// Makes the reader ask the kernel again and again instead of sleeping until something arrives.
    ///
    /// A message then waits for no wake-up, which is most of its way from the wire to a handler on
    /// a quiet connection. It occupies a core for as long as a connection is open: pin the reader
    /// to one of its own with [`on_thread_start`](Builder::on_thread_start). This is not
    /// `SO_BUSY_POLL`, which makes the kernel poll the network card. Defaults to off. Unix only.
    #[cfg(unix)]
    pub fn busy_poll(mut self) -> Self {
        self.settings.tcp.receiving.is_spinning = true;
        self
    }

    /// Asks the kernel to record when it receives data, for
    /// [`kernel_received`](crate::MessageRef::kernel_received).
    ///
    /// Costs about half a microsecond per `recv`. Defaults to off. Linux only.
    #[cfg(target_os = "linux")]
    pub fn kernel_timestamps(mut self) -> Self {
        self.settings.tcp.receiving.is_stamped = true;
        self
    }

    /// Validates the settings and the endpoints.
    pub(crate) fn check(self) -> Result<Config, Error> {
        self.settings.check()?;
        let name = self.settings.name.clone();
        self.check_endpoints().map_err(|error| match &name {
            Some(name) => error.of_client(name),
            None => error,
        })
    }

    fn check_endpoints(self) -> Result<Config, Error> {
        let Builder { source, headers, subprotocols, settings } = self;
        let source = match source {
            Source::List(endpoints) => {
                let targets = endpoints
                    .into_iter()
                    .map(|endpoint| with_common(endpoint, &headers, &subprotocols).target())
                    .collect::<Result<_, _>>()?;
                Targets::List(targets)
            }
            Source::FromFn(endpoint_fn) => {
                // What all of its endpoints share can be checked now, with any URL.
                with_common(Endpoint::new("ws://localhost/"), &headers, &subprotocols).target()?;
                Targets::FromFn { endpoint_fn, headers, subprotocols }
            }
        };
        let client = settings.name.clone().unwrap_or_else(|| source.default_name());
        let proxies = settings.proxy.as_ref().map(Proxy::check).map(Arc::new);
        if let Some(proxies) = &proxies {
            proxies.check(source.known())?;
        }
        Ok(Config { source, settings, proxies, client })
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Builder");
        if let Some(name) = &self.settings.name {
            shown.field("name", name);
        }
        match &self.source {
            Source::List(endpoints) => shown.field("endpoints", endpoints),
            Source::FromFn(_) => shown.field("endpoints", &"from a closure"),
        };
        shown.finish_non_exhaustive()
    }
}
