//! `tail -f` for a WebSocket: prints what a server sends and what happens to the connection, and
//! closes it cleanly on SIGINT and SIGTERM.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use crossbeam_channel::{Receiver, at, never, select, tick};
use data_encoding::BASE64;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tautline::{
    Builder, Client, Disconnect, Error, ErrorKind, Event, Message, Opened, Proxy, Sender, State,
    StopReport, ThreadOutcome, TryNextError,
};

/// Prints the messages of a WebSocket server, like `tail -f`, and keeps the connection up.
///
/// Messages go to standard output; what happens to the connection goes to standard error. With
/// --json both go to standard output, as one JSON object per line. RUST_LOG=tautline=debug adds the
/// library's log, on standard error.
///
/// SIGINT and SIGTERM close the connection and end the program; a second signal ends it at once.
/// The exit status is 0 after a stop that was asked for, 1 if the client gave up or standard output
/// could not be written, and 2 for wrong usage.
#[derive(Parser)]
#[command(name = "tail", version, verbatim_doc_comment)]
struct Options {
    /// The server's URL: ws:// or wss://
    url: String,
    /// Send TEXT whenever a connection opens; may be given several times
    #[arg(long, value_name = "TEXT")]
    send: Vec<String>,
    /// Send each line of standard input as a text message; its end does not end the program
    #[arg(long)]
    stdin: bool,
    /// Add a header to the opening handshake; may be given several times
    #[arg(long, value_name = "NAME: VALUE", value_parser = parse_header)]
    header: Vec<(String, String)>,
    /// Offer a subprotocol; may be given several times
    #[arg(long, value_name = "NAME")]
    subprotocol: Vec<String>,
    /// Trust the root certificates in this file
    #[arg(long, value_name = "PEM")]
    ca: Option<PathBuf>,
    /// Accept only a server with this public key; may be given several times. A wrong one, such as
    /// sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=, has the right one printed
    #[arg(long, value_name = "PIN")]
    pin: Vec<String>,
    /// Accept any certificate: anyone between you and the server can read and change everything
    #[arg(long)]
    insecure: bool,
    /// Dial through a proxy: http://, https://, socks5h:// or socks5://, perhaps user:password@,
    /// then host:port; or `env` for what the environment says (https_proxy and others)
    #[arg(long, value_name = "URL")]
    proxy: Option<String>,
    /// Send a ping this often [default: 15s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    ping_interval: Option<Duration>,
    /// Drop a connection on which nothing has arrived for this long after a ping [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pong_timeout: Option<Duration>,
    /// Drop a connection on which no message has arrived for this long [default: never]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    idle_timeout: Option<Duration>,
    /// The limit for one dial: lookup, TCP, TLS and upgrade together [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    connect_timeout: Option<Duration>,
    /// The limit for one send [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    send_timeout: Option<Duration>,
    /// The limit for the closing handshake [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    close_timeout: Option<Duration>,
    /// The limit for stopping the client [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    #[arg(default_value = "5s", hide_default_value = true)]
    stop_timeout: Duration,
    /// The largest delay before the first retry [default: 250ms]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    retry_delay_min: Option<Duration>,
    /// The largest delay before any retry [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    retry_delay_max: Option<Duration>,
    /// Reset the count of attempts once a connection has been open for this long [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    stable_after: Option<Duration>,
    /// Give up after N dials in a row without a stable connection; 1 means no retry [default: no
    /// limit]
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,
    /// The size limit for incoming messages [default: 16777216]
    #[arg(long, value_name = "BYTES")]
    max_message_size: Option<usize>,
    /// Stop after N messages, at least 1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Stop after this long
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    for_duration: Option<Duration>,
    /// Show a count of the messages instead of the messages
    #[arg(long)]
    quiet: bool,
    /// Print everything as JSON, one object per line
    #[arg(long)]
    json: bool,
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write it as 'NAME: VALUE'")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn main() -> ExitCode {
    env_logger::init();
    let options = Options::parse();
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(usage) => {
            // Standard error may be closed.
            let _ = writeln!(io::stderr(), "tail: {usage}");
            ExitCode::from(2)
        }
    }
}

/// Returns true after a stop that was asked for, and false if the client gave up or standard output
/// could not be written. An error is wrong usage.
fn run(options: &Options) -> Result<bool, String> {
    // Done before the first connection, so that no signal meets the default handler.
    let signaled = watch_signals().map_err(|error| format!("cannot watch for signals: {error}"))?;
    let client = builder(options)?.start().map_err(|error| match &options.ca {
        Some(path) if error.to_string().contains("root certificate") => {
            format!("--ca {}: {error}", path.display())
        }
        _ => error.chain(),
    })?;
    let printer = Arc::new(Printer::new(options.json));
    if options.stdin {
        let (sender, printer) = (client.sender(), Arc::clone(&printer));
        // A read of standard input cannot be interrupted, so this thread is not joined. It prints
        // nothing once the printer is done.
        thread::spawn(move || send_lines(&sender, &printer));
    }
    let mut tail =
        Tail { options, client: &client, printer: &printer, messages: 0, gave_up: false };
    tail.follow(&signaled);
    let report = client.stop(options.stop_timeout);
    tail.drain();
    if options.quiet {
        tail.show_count();
    }
    let gave_up = tail.gave_up;
    printer.last(&stopped(&report));
    Ok(!gave_up && !printer.has_failed())
}

fn builder(options: &Options) -> Result<Builder, String> {
    let mut builder = Client::builder(options.url.as_str());
    for (name, value) in &options.header {
        builder = builder.header(name, value);
    }
    for name in &options.subprotocol {
        builder = builder.subprotocol(name);
    }
    if let Some(path) = &options.ca {
        let pem = std::fs::read(path)
            .map_err(|error| format!("cannot read --ca {}: {error}", path.display()))?;
        builder = builder.tls_root(pem);
    }
    for pin in &options.pin {
        builder = builder.tls_pin(pin);
    }
    if options.insecure {
        builder = builder.danger_accept_invalid_certificates().danger_accept_invalid_hostnames();
    }
    if let Some(url) = &options.proxy {
        let from_url = || Proxy::from_url(url).map_err(|error| format!("--proxy: {error}"));
        builder = builder.proxy(if url == "env" { Proxy::from_env() } else { from_url()? });
    }
    builder = with(builder, options.ping_interval, Builder::ping_interval);
    builder = with(builder, options.pong_timeout, Builder::pong_timeout);
    builder = with(builder, options.idle_timeout, Builder::idle_timeout);
    builder = with(builder, options.connect_timeout, Builder::connect_timeout);
    builder = with(builder, options.send_timeout, Builder::send_timeout);
    builder = with(builder, options.close_timeout, Builder::close_timeout);
    builder = with(builder, options.retry_delay_min, Builder::retry_delay_min);
    builder = with(builder, options.retry_delay_max, Builder::retry_delay_max);
    builder = with(builder, options.stable_after, Builder::stable_after);
    builder = with(builder, options.max_attempts, Builder::max_attempts);
    Ok(with(builder, options.max_message_size, Builder::max_message_size))
}

/// Applies an option, if it was given. The library's defaults apply otherwise.
fn with<T>(builder: Builder, value: Option<T>, set: impl FnOnce(Builder, T) -> Builder) -> Builder {
    match value {
        Some(value) => set(builder, value),
        None => builder,
    }
}

/// Returns a channel that receives a token at SIGINT and SIGTERM. A second signal ends the program
/// at once.
#[cfg(unix)]
fn watch_signals() -> io::Result<Receiver<()>> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;

    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let (tell, told) = crossbeam_channel::bounded(1);
    thread::spawn(move || {
        for (count, signal) in signals.forever().enumerate() {
            if count > 0 {
                std::process::exit(128 + signal);
            }
            // A full channel holds a token already.
            let _ = tell.try_send(());
        }
    });
    Ok(told)
}

/// Signals are watched on Unix only. Elsewhere Ctrl-C ends the program at once.
#[cfg(not(unix))]
fn watch_signals() -> io::Result<Receiver<()>> {
    Ok(never())
}

struct Tail<'a> {
    options: &'a Options,
    client: &'a Client,
    printer: &'a Printer,
    messages: u64,
    gave_up: bool,
}

impl Tail<'_> {
    /// Prints events until there is a reason to stop.
    fn follow(&mut self, signaled: &Receiver<()>) {
        let mut events = self.client.events();
        let ready = events.ready();
        // A duration beyond what the clock can represent counts as no limit.
        let end = self
            .options
            .for_duration
            .and_then(|wait| Instant::now().checked_add(wait))
            .map_or_else(never, at);
        let counting = if self.options.quiet { tick(Duration::from_secs(1)) } else { never() };
        loop {
            select! {
                recv(signaled) -> _ => return,
                recv(end) -> _ => return,
                recv(counting) -> _ => self.show_count(),
                recv(ready) -> _ => {}
            }
            loop {
                // A signal takes precedence over events that are already queued.
                if !signaled.is_empty() || !end.is_empty() {
                    return;
                }
                match events.try_next() {
                    Ok(event) => {
                        self.print(event);
                        if self.options.count.is_some_and(|count| self.messages >= count)
                            || self.printer.is_broken()
                        {
                            return;
                        }
                    }
                    Err(TryNextError::Disconnected) => return,
                    Err(_) => break,
                }
            }
        }
    }

    /// Prints what is left after the stop: openings and ends of connections, so that each opening
    /// has its end, and why the client ended.
    fn drain(&mut self) {
        let mut events = self.client.events();
        // After a complete stop every event is queued. The wait serves a stop that ran out of time.
        while let Ok(event) = events.next_timeout(Duration::from_millis(100)) {
            match event {
                Event::Opened(opened) => self.print_opened(&opened),
                Event::Disconnected(_) | Event::Stopped(_) => self.print(event),
                _ => {}
            }
        }
    }

    fn print(&mut self, event: Event) {
        match event {
            Event::Opened(opened) => {
                self.print_opened(&opened);
                self.send_greetings(opened.epoch);
            }
            Event::Message(message) => {
                self.messages += 1;
                if !self.options.quiet {
                    self.printer.message(&message);
                }
            }
            Event::Disconnected(disconnect) => {
                self.printer
                    .notice(&disconnected_json(&disconnect), || disconnected_text(&disconnect));
            }
            // The last failed dial is reported as `gave_up` only.
            Event::DialFailed(failure) => {
                if let Some(retry_in) = failure.retry_in {
                    let mut json = json!({
                        "event": "dial_failed", "attempt": failure.attempt,
                        "kind": failure.error.kind().as_str(), "detail": failure.error.chain(),
                        "retry_in_ms": millis(retry_in),
                    });
                    let body = refusal_body(&failure.error);
                    if let Some(body) = &body {
                        json["body"] = body.as_str().into();
                    }
                    self.printer.notice(&json, || {
                        format!(
                            "dial attempt {} failed: {}{}; dialing again in {retry_in:.1?}",
                            failure.attempt,
                            failure.error.chain(),
                            Quoted(body.as_deref())
                        )
                    });
                }
            }
            Event::Lagged(lag) => {
                let json =
                    json!({"event": "lag", "lost": lag.lost, "lost_notices": lag.lost_notices});
                self.printer
                    .notice(&json, || format!("{} messages lost: the queue was full", lag.lost));
            }
            Event::Stopped(stopped) => self.print_reason(&stopped.reason),
            other => self.printer.notice(&json!({"event": "other"}), || format!("{other:?}")),
        }
    }

    fn print_reason(&mut self, reason: &Error) {
        if reason.kind() == ErrorKind::Stopped {
            return;
        }
        self.gave_up = true;
        let mut json = json!({"event": "gave_up", "kind": reason.kind().as_str()});
        if let Some(status) = reason.status() {
            json["status"] = status.as_u16().into();
        }
        json["detail"] = reason.chain().into();
        let body = refusal_body(reason);
        if let Some(body) = &body {
            json["body"] = body.as_str().into();
        }
        self.printer
            .notice(&json, || format!("gave up: {}{}", reason.chain(), Quoted(body.as_deref())));
    }

    fn print_opened(&self, opened: &Opened) {
        self.printer.notice(&opened_json(opened), || {
            let chosen = opened
                .subprotocol
                .as_ref()
                .map(|name| format!(", subprotocol {name}"))
                .unwrap_or_default();
            format!("open, epoch {}, after {:.1?}{chosen}", opened.epoch, opened.took)
        });
    }

    fn send_greetings(&self, epoch: u64) {
        // The texts go out on this connection only. Later connections send them again.
        let sender = self.client.sender().pinned_to(epoch);
        for text in &self.options.send {
            if let Err(error) = sender.send_text(text) {
                self.printer.send_failed(error.is_not_sent(), &error.reason().chain());
            }
        }
    }

    fn show_count(&self) {
        let stats = self.client.stats();
        let trip = match stats.round_trip.count {
            0 => "not measured".to_owned(),
            _ => format!("{:.1?}", stats.round_trip.last),
        };
        let line = format!("{} messages, epoch {}, round trip {trip}", self.messages, stats.epochs);
        match io::stderr().is_terminal() {
            true => self.printer.complain(format_args!("\r\x1b[K{line}")),
            false => self.printer.complain(format_args!("{line}\n")),
        }
    }
}

/// Sends each line of standard input. A line that could not be sent is reported and not repeated.
fn send_lines(sender: &Sender, printer: &Printer) {
    // `echo hello | tail --stdin` has to work, so the first dial ends before the first line is
    // read.
    while matches!(sender.state(), State::Connecting { attempt: 1 })
        && !sender.stopper().is_stopping()
    {
        if sender.wait_open(Duration::from_millis(50)).is_ok() {
            break;
        }
    }
    for line in io::stdin().lock().split(b'\n') {
        let line = match line {
            Ok(line) => line,
            Err(error) => return printer.complain(format_args!("tail: standard input: {error}\n")),
        };
        let sent = match std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(&line)) {
            Ok(text) => sender
                .send_text(text)
                .map_err(|error| (error.is_not_sent(), error.reason().chain())),
            Err(_) => {
                Err((true, "the line is not UTF-8, which a text message has to be".to_owned()))
            }
        };
        match sent {
            Ok(_) => {}
            // Nothing can be sent any more, and the stop is reported elsewhere.
            Err(_) if sender.stopper().is_stopping() => return,
            Err((is_not_sent, detail)) => printer.send_failed(is_not_sent, &detail),
        }
    }
}

/// Prints to standard output, one whole line at a time, and flushes it.
struct Printer {
    json: bool,
    /// Nothing is printed once this is true. The lock also keeps lines whole.
    is_done: Mutex<bool>,
    /// An output is closed, or cannot be written.
    is_broken: AtomicBool,
    /// Standard output could not be written for another reason than that its reader has gone.
    has_failed: AtomicBool,
}

impl Printer {
    fn new(json: bool) -> Self {
        Printer {
            json,
            is_done: Mutex::new(false),
            is_broken: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
        }
    }

    fn message(&self, message: &Message) {
        if self.json {
            let mut json = json!({"event": "message", "epoch": message.epoch()});
            match message.text() {
                Some(text) => json["text"] = text.into(),
                None => json["binary"] = BASE64.encode(message.bytes()).into(),
            }
            self.write(format!("{json}\n").as_bytes(), false);
        } else {
            let mut line = match message.text() {
                Some(text) => text.as_bytes().to_vec(),
                None => BASE64.encode(message.bytes()).into_bytes(),
            };
            line.push(b'\n');
            self.write(&line, false);
        }
    }

    /// Prints what happened to the connection: an object with --json, and otherwise a line on
    /// standard error.
    fn notice(&self, json: &Value, text: impl FnOnce() -> String) {
        if self.json {
            self.write(format!("{json}\n").as_bytes(), false);
        } else if !*self.is_done.lock() {
            self.complain(format_args!("tail: {}\n", text()));
        }
    }

    fn send_failed(&self, is_not_sent: bool, detail: &str) {
        let outcome = if is_not_sent { "not_sent" } else { "unknown" };
        let json = json!({"event": "send_failed", "outcome": outcome, "detail": detail});
        let text = if is_not_sent { "not sent" } else { "perhaps sent" };
        self.notice(&json, || format!("{text}: {detail}"));
    }

    /// Writes to standard error. If that fails, the program ends.
    fn complain(&self, text: std::fmt::Arguments<'_>) {
        if io::stderr().write_fmt(text).is_err() {
            self.is_broken.store(true, Ordering::Relaxed);
        }
    }

    /// Prints the last line. Nothing is printed after it.
    fn last(&self, stopped: &Stopped) {
        if self.json {
            self.write(format!("{}\n", stopped.json).as_bytes(), true);
        } else {
            *self.is_done.lock() = true;
            self.complain(format_args!("tail: stopped {}\n", stopped.text));
        }
    }

    fn write(&self, line: &[u8], is_last: bool) {
        let mut is_done = self.is_done.lock();
        if *is_done {
            return;
        }
        *is_done = is_last;
        let mut out = io::stdout().lock();
        if let Err(error) = out.write_all(line).and_then(|()| out.flush()) {
            // Either way the program closes the connection and ends. In `tail | head` the reader is
            // gone, which is no failure; a full disk is one.
            self.is_broken.store(true, Ordering::Relaxed);
            if error.kind() != io::ErrorKind::BrokenPipe
                && !self.has_failed.swap(true, Ordering::Relaxed)
            {
                self.complain(format_args!("tail: cannot write to standard output: {error}\n"));
            }
        }
    }

    fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Relaxed)
    }
}

fn opened_json(opened: &Opened) -> Value {
    let mut json = json!({"event": "opened", "epoch": opened.epoch, "ms": millis(opened.took)});
    if let Some(subprotocol) = &opened.subprotocol {
        json["subprotocol"] = subprotocol.as_str().into();
    }
    json
}

/// Returns the body of the response that refused the dial, if it has one.
fn refusal_body(error: &Error) -> Option<String> {
    let body = error.response()?.body();
    (!body.is_empty()).then(|| String::from_utf8_lossy(body).into_owned())
}

/// Displays a server's text after a colon: quoted, on one line and of limited length.
struct Quoted<'a>(Option<&'a str>);

impl std::fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.map(|text| text.chars().take(200).collect::<String>()) {
            Some(text) if !text.is_empty() => write!(f, ": {text:?}"),
            _ => Ok(()),
        }
    }
}

fn disconnected_text(disconnect: &Disconnect) -> String {
    let follows = match disconnect.retry_in {
        Some(wait) => format!("dialing again in {wait:.1?}"),
        None => "not dialing again".to_owned(),
    };
    format!(
        "the connection of epoch {} ended after {:.1?}: {}{}; {follows}",
        disconnect.epoch,
        disconnect.lasted,
        disconnect.error.chain(),
        Quoted(Some(&disconnect.close.reason))
    )
}

fn disconnected_json(disconnect: &Disconnect) -> Value {
    json!({
        "event": "disconnected", "epoch": disconnect.epoch,
        "kind": disconnect.error.kind().as_str(), "detail": disconnect.error.chain(),
        "code": disconnect.close.code, "reason": disconnect.close.reason,
        "retry_in_ms": disconnect.retry_in.map(millis),
    })
}

struct Stopped {
    json: Value,
    text: String,
}

fn stopped(report: &StopReport) -> Stopped {
    let threads: Vec<Value> = report
        .threads()
        .iter()
        .map(|thread| {
            let has_ended = thread.outcome == ThreadOutcome::Joined;
            json!({"name": thread.name, "ended": has_ended, "ms": millis(thread.took)})
        })
        .collect();
    let json = json!({
        "event": "stopped", "clean": report.is_clean(), "ms": millis(report.took()),
        "threads": threads,
    });
    Stopped { json, text: report.to_string() }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
