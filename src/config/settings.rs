//! The settings of a client: their defaults and their validation.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use crate::config::app_ping::AppPing;
use crate::config::decode::Decode;
use crate::config::dial_context::DialContext;
use crate::config::proxy::Proxy;
use crate::config::queue_bounds::{Bounds, WhenFull};
use crate::connection::Timeouts;
use crate::connection::writer::OutgoingLimits;
use crate::dial::{Resolver, TcpOptions, TlsOptions};
use crate::error::{Error, ErrorKind};
use crate::event::{Disconnect, MessageRef};
use crate::name::ClientName;
use crate::protocol::deflate::Deflate;
use crate::rate_limit::RateLimit;
use crate::runtime::backoff::Backoff;
use crate::runtime::reconnect::{ReconnectPolicy, RetryDecision};
use crate::sync::threads::ThreadOptions;

/// The settings of a client, except its endpoints.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) name: Option<ClientName>,
    pub(crate) resolver: Option<Arc<dyn Resolver>>,
    pub(crate) proxy: Option<Proxy>,
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
    pub(crate) app_pings: Vec<AppPing>,
    pub(crate) auto_respond: Option<AutoRespond>,
    pub(crate) retry_delay_min: Duration,
    pub(crate) retry_delay_max: Duration,
    pub(crate) retry_after_max: Duration,
    pub(crate) stable_after: Duration,
    pub(crate) max_attempts: Option<u32>,
    pub(crate) retry_policy: Option<RetryPolicy>,
    pub(crate) before_reconnect: Option<BeforeReconnect>,
    pub(crate) max_message_size: usize,
    pub(crate) decode: Option<Decode>,
    pub(crate) max_outgoing_message_size: Option<usize>,
    pub(crate) max_outgoing_frame_size: Option<usize>,
    pub(crate) queue: Bounds,
    pub(crate) conflate: Option<Conflate>,
    pub(crate) send_limits: Vec<RateLimit>,
    pub(crate) connect_limit: Option<RateLimit>,
    pub(crate) threads: ThreadOptions,
    /// Any thread may wake the handler.
    pub(crate) has_wakeups: bool,
    /// A layer above the client wakes the reader.
    pub(crate) layer_wakes: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            name: None,
            resolver: None,
            proxy: None,
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
            app_pings: Vec::new(),
            auto_respond: None,
            retry_delay_min: Duration::from_millis(250),
            retry_delay_max: Duration::from_secs(30),
            retry_after_max: Duration::from_secs(300),
            stable_after: Duration::from_secs(30),
            max_attempts: None,
            retry_policy: None,
            before_reconnect: None,
            max_message_size: 16 << 20,
            decode: None,
            max_outgoing_message_size: None,
            max_outgoing_frame_size: None,
            queue: Bounds { messages: 65_536, bytes: 64 << 20, when_full: WhenFull::default() },
            conflate: None,
            send_limits: Vec::new(),
            connect_limit: None,
            threads: ThreadOptions::default(),
            has_wakeups: false,
            layer_wakes: false,
        }
    }
}

/// Decides what follows a failure, given the error and what the client would do by itself.
pub(crate) type RetryPolicy = Arc<dyn Fn(&Error, RetryDecision) -> RetryDecision + Send + Sync>;

/// Is called between the end of a connection and the next dial, and may change the time of that
/// dial.
pub(crate) type BeforeReconnect =
    Arc<dyn Fn(&Disconnect, &DialContext) -> RetryDecision + Send + Sync>;

/// Returns the answer to a message that asks for one.
pub(crate) type AutoRespond =
    Arc<dyn for<'a> Fn(MessageRef<'a>) -> Option<Cow<'a, str>> + Send + Sync>;

/// Returns the key of a message whose latest value alone matters.
pub(crate) type Conflate = Arc<dyn for<'a> Fn(MessageRef<'a>) -> Option<&'a [u8]> + Send + Sync>;

impl Settings {
    pub(crate) fn timeouts(&self) -> Timeouts {
        Timeouts { send: self.send_timeout, close: self.close_timeout }
    }

    pub(crate) fn outgoing_limits(&self) -> OutgoingLimits {
        OutgoingLimits {
            max_message_size: self.max_outgoing_message_size.unwrap_or(usize::MAX),
            max_frame_size: self.max_outgoing_frame_size.unwrap_or(usize::MAX),
        }
    }

    pub(crate) fn policy(&self) -> ReconnectPolicy {
        ReconnectPolicy {
            backoff: Backoff { min: self.retry_delay_min, max: self.retry_delay_max },
            stable_after: self.stable_after,
            max_attempts: self.max_attempts,
        }
    }

    /// Returns what follows `error`: `default`, unless the policy decides otherwise.
    pub(crate) fn decision(&self, error: &Error, default: RetryDecision) -> RetryDecision {
        // The program itself decided by a panic, a stop or a reconnect.
        let is_settled = matches!(error.kind(), ErrorKind::HandlerPanicked | ErrorKind::Stopped)
            || error.is_reconnect_requested();
        match &self.retry_policy {
            Some(policy) if !is_settled => policy(error, default),
            _ => default,
        }
    }

    /// Refuses settings that cannot work.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.check_name()?;
        self.check_rest().map_err(|error| match &self.name {
            Some(name) => error.of_client(name),
            None => error,
        })
    }

    fn check_name(&self) -> Result<(), Error> {
        let Some(name) = self.name.as_ref().map(ClientName::as_str) else { return Ok(()) };
        // The errors leave the name out, because they are printed too.
        if name.is_empty() {
            return Err(Error::config("the name of the client is empty: leave it out"));
        }
        let len = name.len();
        if len > NAME_MAX {
            let context = format!("the name of the client has {len} bytes, more than {NAME_MAX}");
            return Err(Error::config(context));
        }
        if name.chars().any(char::is_control) {
            return Err(Error::config("the name of the client has a control character"));
        }
        Ok(())
    }

    fn check_rest(&self) -> Result<(), Error> {
        let waits = [
            ("connect_timeout", Some(self.connect_timeout)),
            ("send_timeout", Some(self.send_timeout)),
            ("ping_interval", self.ping_interval),
            ("pong_timeout", Some(self.pong_timeout)),
            ("idle_timeout", self.idle_timeout),
            ("retry_delay_min", Some(self.retry_delay_min)),
            ("retry_delay_max", Some(self.retry_delay_max)),
        ];
        let app_pings =
            self.app_pings.iter().map(|ping| ("the interval of app_ping", Some(ping.every)));
        if let Some((name, _)) =
            waits.into_iter().chain(app_pings).find(|(_, wait)| *wait == Some(Duration::ZERO))
        {
            return Err(Error::config(format!("{name} is zero: it must be longer")));
        }
        let bounds = [
            ("max_message_size", Some(self.max_message_size)),
            ("max_outgoing_message_size", self.max_outgoing_message_size),
            ("max_outgoing_frame_size", self.max_outgoing_frame_size),
            ("queue_messages", Some(self.queue.messages)),
            ("queue_bytes", Some(self.queue.bytes)),
            ("tcp_receive_buffer", self.tcp.receive_buffer),
            ("tcp_send_buffer", self.tcp.send_buffer),
        ];
        if let Some((name, _)) = bounds.iter().find(|(_, bound)| *bound == Some(0)) {
            return Err(Error::config(format!("{name} is zero: it must be at least 1")));
        }
        if self.max_attempts == Some(0) {
            return Err(Error::config(
                "max_attempts is zero: it must be at least 1, a single dial without retry",
            ));
        }
        self.send_limits.iter().chain(&self.connect_limit).try_for_each(RateLimit::check)?;
        // Systems count whole seconds, and Linux accepts no more than these.
        let keepalives = Duration::from_secs(1)..=Duration::from_secs(32_767);
        if self.tcp.keepalive.is_some_and(|idle| !keepalives.contains(&idle)) {
            return Err(Error::config("tcp_keepalive must be from 1 s to 32,767 s"));
        }
        let compresses = self.deflate.is_some() || self.decode.is_some();
        let stack_min = if compresses { STACK_MIN_COMPRESSING } else { STACK_MIN };
        if let Some(bytes) = self.threads.stack_size.filter(|bytes| *bytes < stack_min) {
            return Err(Error::config(format!(
                "thread_stack_size is {bytes} bytes: with these settings it must be at least \
                 {stack_min}"
            )));
        }
        self.tls.validate()
    }
}

/// The number of bytes that a name may have.
const NAME_MAX: usize = 64;

/// The smallest stack that is accepted, because an overflow aborts the process.
///
/// The reader of a dev build was measured to need 66 KiB, plain or TLS, on 64-bit Linux. The rest
/// is for the handler and the other closures.
const STACK_MIN: usize = 96 * 1024;

/// The smallest stack that is accepted with compression or `decode`. A dev build was measured to
/// need 97 KiB with compression, whose engine for what is received is that of `decode`.
const STACK_MIN_COMPRESSING: usize = 160 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(settings.max_outgoing_message_size, None);
        let bounds =
            Bounds { messages: 65_536, bytes: 64 * 1024 * 1024, when_full: WhenFull::Disconnect };
        assert_eq!(settings.queue, bounds);
        assert!(settings.deflate.is_none() && settings.app_pings.is_empty());
        assert!(settings.send_limits.is_empty() && settings.connect_limit.is_none());
        assert!(settings.auto_respond.is_none() && settings.decode.is_none());
        assert!(!settings.has_wakeups);
        assert!(settings.check().is_ok());
        assert!(settings.name.is_none());
    }

    #[test]
    fn names_that_would_break_what_is_printed_are_refused_and_not_shown() {
        let check = |name: &str| {
            Settings { name: Some(ClientName::given(name)), ..Settings::default() }.check()
        };
        let longest = "x".repeat(NAME_MAX);
        for name in ["okx-public", "OKX public #1", "\u{e9}", &longest] {
            assert!(check(name).is_ok(), "{name:?}");
        }
        let long = "x".repeat(NAME_MAX + 1);
        for name in ["", "secret\n", "secret\0", "\u{1b}[31msecret", "secret\u{85}", &long] {
            let error = check(name).expect_err("it is refused");
            assert_eq!((error.kind(), error.client()), (ErrorKind::Config, None));
            let text = format!("{error} {error:?}");
            assert!(!text.contains("secret") && !text.contains("xx"), "{text}");
        }
    }
}
