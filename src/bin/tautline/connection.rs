//! The options of everything that connects, and the client that they make.
//!
//! They are hidden in the help of a command, which would not fit on a screen otherwise:
//! `tautline help connection` and `tautline help timing` show them.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum, ValueHint};
use tautline::{AppPing, Builder, Client, Decode, Deflate, Proxy, Pull};

#[derive(Args)]
#[group(skip)]
pub(crate) struct Options {
    #[command(flatten)]
    handshake: Handshake,
    #[command(flatten)]
    timing: Timing,
}

/// The agreement with the server, and the proof that it is the right one.
#[derive(Args)]
pub(crate) struct Handshake {
    /// Add a header, 'NAME: VALUE' [repeatable]
    // Parsed later: an error of the command line would show a secret.
    #[arg(short = 'H', long, value_name = "HEADER", hide = true)]
    header: Vec<String>,
    /// Offer a subprotocol [repeatable]
    #[arg(short, long, value_name = "NAME", hide = true)]
    subprotocol: Vec<String>,
    /// Trust the root certificates in this file
    #[arg(long, value_name = "PEM", value_hint = ValueHint::FilePath, hide = true)]
    ca: Option<PathBuf>,
    /// Accept only this public key [repeatable]
    #[arg(long, value_name = "PIN", hide = true)]
    pin: Vec<String>,
    /// Accept any certificate, even an attacker's
    #[arg(short = 'k', long, hide = true)]
    insecure: bool,
    /// Dial through a proxy, or as `env` says
    #[arg(long, value_name = "URL", hide = true)]
    proxy: Option<String>,
    /// Offer permessage-deflate (RFC 7692)
    #[arg(long, hide = true)]
    compress: bool,
    /// Decode binary as text: gzip, zlib, deflate
    #[arg(long, value_name = "FORMAT", hide = true, hide_possible_values = true)]
    decode: Option<Format>,
    /// Send a ping of the application's own
    #[arg(long, value_name = "TEXT", hide = true)]
    app_ping: Option<String>,
    /// Send it this often
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, hide = true)]
    #[arg(default_value = "15s", requires = "app_ping")]
    app_ping_interval: Duration,
    /// Limit incoming messages [default: 16777216]
    #[arg(long, value_name = "BYTES", hide = true)]
    max_message_size: Option<usize>,
    /// Add the kernel's times of arrival to --json
    #[arg(long, hide = true)]
    kernel_timestamps: bool,
}

/// The limits of waits, and of tries.
#[derive(Args)]
pub(crate) struct Timing {
    /// Send a ping frame this often [default: 15s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, hide = true)]
    ping_interval: Option<Duration>,
    /// Send no ping frames
    #[arg(long, conflicts_with = "ping_interval", hide = true)]
    no_ping: bool,
    /// Limit the wait for its pong [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, hide = true)]
    pong_timeout: Option<Duration>,
    /// Limit the wait for a message [default: none]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, hide = true)]
    idle_timeout: Option<Duration>,
    /// Limit one dial, upgrade too [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, hide = true)]
    connect_timeout: Option<Duration>,
    /// Limit a send [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, hide = true)]
    send_timeout: Option<Duration>,
    /// Limit the closing handshake [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, hide = true)]
    close_timeout: Option<Duration>,
    /// Limit the stop of the client
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, hide = true)]
    #[arg(default_value = "5s")]
    stop_timeout: Duration,
    /// Limit the first retry's delay [default: 250ms]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, hide = true)]
    retry_delay_min: Option<Duration>,
    /// Limit any retry's delay [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, hide = true)]
    retry_delay_max: Option<Duration>,
    /// Forget failures after this long [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, hide = true)]
    stable_after: Option<Duration>,
    /// Give up after N dials [default: never]
    #[arg(long, value_name = "N", hide = true)]
    max_attempts: Option<u32>,
}

/// The compression of binary messages inside their frames.
#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Gzip,
    Zlib,
    Deflate,
}

impl Options {
    /// Returns the builder of a client for `url`. An error is wrong usage.
    pub(crate) fn builder(&self, url: &str) -> Result<Builder, String> {
        Ok(self.timing.apply(self.handshake.apply(Client::builder(url))?))
    }

    /// Starts a client whose events are pulled.
    pub(crate) fn start(&self, builder: Builder) -> Result<Client<Pull>, String> {
        builder.start().map_err(|error| self.unusable(&error))
    }

    /// Says why no client could be started: in the words of the options, where one is at fault.
    pub(crate) fn unusable(&self, error: &tautline::Error) -> String {
        match &self.handshake.ca {
            Some(path) if error.to_string().contains("root certificate") => {
                format!("--ca {}: {error}", path.display())
            }
            _ => error.chain(),
        }
    }

    /// Returns an error if an option decides on ping frames: for a command that does so itself.
    pub(crate) fn leaves_pings(&self) -> Result<(), String> {
        match self.timing.no_ping || self.timing.ping_interval.is_some() {
            true => Err("--interval says when pings are sent".to_owned()),
            false => Ok(()),
        }
    }

    /// Returns the limit for stopping the client.
    pub(crate) fn stop_timeout(&self) -> Duration {
        self.timing.stop_timeout
    }
}

impl Handshake {
    fn apply(&self, mut builder: Builder) -> Result<Builder, String> {
        for header in &self.header {
            let (name, value) =
                header.split_once(':').ok_or("write a --header as 'NAME: VALUE'")?;
            builder = builder.header(name.trim(), value.trim());
        }
        for name in &self.subprotocol {
            builder = builder.subprotocol(name);
        }
        if let Some(path) = &self.ca {
            let pem = std::fs::read(path)
                .map_err(|error| format!("cannot read --ca {}: {error}", path.display()))?;
            builder = builder.tls_root(pem);
        }
        for pin in &self.pin {
            builder = builder.tls_pin(pin);
        }
        if self.insecure {
            builder =
                builder.danger_accept_invalid_certificates().danger_accept_invalid_hostnames();
        }
        if let Some(url) = &self.proxy {
            let from_url = || Proxy::from_url(url).map_err(|error| format!("--proxy: {error}"));
            builder = builder.proxy(if url == "env" { Proxy::from_env() } else { from_url()? });
        }
        if self.compress {
            builder = builder.compress(Deflate::new());
        }
        if let Some(format) = self.decode {
            let decode = match format {
                Format::Gzip => Decode::gzip(),
                Format::Zlib => Decode::zlib(),
                Format::Deflate => Decode::deflate(),
            };
            builder = builder.decode(decode.as_text());
        }
        if let Some(text) = &self.app_ping {
            builder = builder.app_ping(AppPing::text(text, self.app_ping_interval));
        }
        if self.kernel_timestamps {
            builder = builder.kernel_timestamps();
        }
        Ok(with(builder, self.max_message_size, Builder::max_message_size))
    }
}

impl Timing {
    fn apply(&self, mut builder: Builder) -> Builder {
        if self.no_ping {
            builder = builder.ping_interval(None);
        }
        builder = with(builder, self.ping_interval, Builder::ping_interval);
        builder = with(builder, self.pong_timeout, Builder::pong_timeout);
        builder = with(builder, self.idle_timeout, Builder::idle_timeout);
        builder = with(builder, self.connect_timeout, Builder::connect_timeout);
        builder = with(builder, self.send_timeout, Builder::send_timeout);
        builder = with(builder, self.close_timeout, Builder::close_timeout);
        builder = with(builder, self.retry_delay_min, Builder::retry_delay_min);
        builder = with(builder, self.retry_delay_max, Builder::retry_delay_max);
        builder = with(builder, self.stable_after, Builder::stable_after);
        with(builder, self.max_attempts, Builder::max_attempts)
    }
}

/// Applies an option, if it was given. The library's defaults apply otherwise.
fn with<T>(builder: Builder, value: Option<T>, set: impl FnOnce(Builder, T) -> Builder) -> Builder {
    match value {
        Some(value) => set(builder, value),
        None => builder,
    }
}
