//! `tautline record`: records what a server sends.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use crossbeam_channel::{Receiver, select, tick};
use serde_json::Value;
use tautline::{Client, ErrorKind, EventRef, Lagged, Opened, TryNextError, WhenFull};

use crate::objects::{Clock, NotSent};
use crate::printer::{Form, Printer};
use crate::recording::{Existing, Recording, Rotation, prepare};
use crate::visible::Visible;
use crate::{Done, connection, help, notices, signals, stderr};

/// The room for messages while a disk is slow. Beyond it they are lost, and `lag` says how many:
/// the connection stays up.
const QUEUE_MESSAGES: usize = 1 << 18;
const QUEUE_BYTES: usize = 256 << 20;

/// Records what a server sends, and stays connected
#[derive(Args)]
#[command(override_usage = "tautline record [OPTIONS] <URL> <FILE>")]
#[command(help_template = help::TEMPLATE, after_help = help::connects!("  \
tautline record wss://stream.binance.com/ws/btcusdt@trade btc.jsonl.zst
  tautline record --rotate-every 1h --for 24h wss://ws.kraken.com/v2 x.jsonl

A kill costs the file its last line at most. Headers and queries are not kept."))]
pub(crate) struct Options {
    /// The server: ws:// or wss://
    #[arg(hide = true)]
    url: String,
    /// A file of JSON lines, compressed if its name ends in .zst
    #[arg(hide = true, value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    /// Send TEXT whenever a connection opens [repeatable]
    #[arg(short = 'x', long, value_name = "TEXT")]
    send: Vec<String>,
    /// Record what -x sends, too: it may be a secret
    #[arg(long, requires = "send")]
    with_sent: bool,
    /// Add to a recording that exists
    #[arg(long, conflicts_with = "overwrite")]
    append: bool,
    /// Replace a file that exists
    #[arg(long)]
    overwrite: bool,
    /// Begin another file (x.000001.jsonl) at 500K or 2G
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    #[arg(conflicts_with_all = ["append", "overwrite"])]
    rotate_size: Option<u64>,
    /// Begin another file (x.000001.jsonl) after 1h
    #[arg(long, value_name = "TIME", value_parser = parse_positive_duration)]
    #[arg(conflicts_with_all = ["append", "overwrite"])]
    rotate_every: Option<Duration>,
    /// Stop after N messages
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Stop after this long
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    for_duration: Option<Duration>,
    /// Show no count while it records
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    connection: connection::Options,
}

fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.to_ascii_uppercase().chars().last() {
        Some('K') => (&text[..text.len() - 1], 1 << 10),
        Some('M') => (&text[..text.len() - 1], 1 << 20),
        Some('G') => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    let size = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    size.filter(|&size| size > 0).ok_or_else(|| "write it as 1000000, 500K, 100M or 2G".to_owned())
}

fn parse_positive_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration.is_zero() => Err("it must not be zero".to_owned()),
        parsed => parsed.map_err(|error| error.to_string()),
    }
}

/// Returns true after a stop that was asked for, and false if the client gave up or the recording
/// could not be written. An error is wrong usage.
pub(crate) fn run(options: &Options) -> Result<Done, String> {
    // Swapped by mistake, the URL would be shown.
    if options.file.to_string_lossy().contains("://") {
        return Err("the URL comes first, then the file".to_owned());
    }
    if options.file.as_os_str() == "-" {
        return Err(
            "a recording is a file; `tautline tail --json` writes to standard output".to_owned()
        );
    }
    let signaled = signals::watch(options.connection.stop_timeout())?;
    let builder = options
        .connection
        .builder(&options.url)?
        .queue_messages(QUEUE_MESSAGES)
        .queue_bytes(QUEUE_BYTES)
        .when_full(WhenFull::DropNewest);
    let existing = match (options.append, options.overwrite) {
        (true, _) => Existing::Append,
        (_, true) => Existing::Overwrite,
        _ => Existing::Refuse,
    };
    let rotation = Rotation { size: options.rotate_size, every: options.rotate_every };
    let prepared = prepare(&options.file, existing, rotation)?;
    let client = match options.connection.start(builder) {
        Ok(client) => client,
        Err(usage) => {
            prepared.discard();
            return Err(usage);
        }
    };
    signals::stops(client.stopper());
    let printer = Printer::new(Form::Visible { timestamps: false });
    let mut record = Record {
        options,
        client: &client,
        printer: &printer,
        recording: None,
        written: Written::default(),
        messages: 0,
        lost: 0,
        told_lost: 0,
        has_failed: false,
        gave_up: false,
        hidden: path_and_query(&options.url),
    };
    match prepared.start(&host_and_port(&options.url)) {
        Ok(recording) => record.recording = Some(recording),
        Err(error) => record.fail(&error),
    }
    record.follow(&signaled);
    let report = client.stop(options.connection.stop_timeout());
    record.drain();
    record.write_object(|clock| clock.stopped(&report));
    record.finish();
    record.tell_loss();
    stderr::line(format_args!("tautline: {}", record.summary()));
    printer.last(|clock| clock.stopped(&report), || format!("stopped {report}"));
    Ok(!record.gave_up && !record.has_failed)
}

/// Returns the part of a URL that names the server. The rest may hold secrets.
fn host_and_port(url: &str) -> String {
    let authority = url.parse::<http::Uri>().ok().and_then(|uri| uri.into_parts().authority);
    authority.map_or_else(String::new, |authority| match authority.port() {
        Some(port) => format!("{}:{port}", authority.host()),
        None => authority.host().to_owned(),
    })
}

/// Returns the parts of a URL that may be secrets.
fn path_and_query(url: &str) -> Vec<String> {
    let Ok(uri) = url.parse::<http::Uri>() else { return Vec::new() };
    let path = (uri.path().len() > 1).then(|| uri.path().to_owned());
    let query = uri.query().filter(|query| !query.is_empty()).map(str::to_owned);
    path.into_iter().chain(query).collect()
}

struct Record<'a> {
    options: &'a Options,
    client: &'a Client,
    printer: &'a Printer,
    /// `None` once it could not be written. The feed goes on being counted.
    recording: Option<Recording>,
    written: Written,
    /// Messages received, whether or not they are recorded.
    messages: u64,
    /// Messages for which the queue had no room.
    lost: u64,
    /// Those of them that standard error has been told of.
    told_lost: u64,
    has_failed: bool,
    gave_up: bool,
    /// The path and the query of the URL, which a server may repeat in a close reason.
    hidden: Vec<String>,
}

/// The size of the recording, for people.
#[derive(Default)]
struct Written {
    messages: u64,
    files: u64,
    bytes: u64,
}

impl Record<'_> {
    /// Records events until there is a reason to stop.
    fn follow(&mut self, signaled: &Receiver<()>) {
        let mut events = self.client.events();
        let ready = events.ready();
        let end = signals::over(self.options.for_duration);
        let counting = tick(Duration::from_secs(1));
        loop {
            select! {
                recv(signaled) -> _ => return,
                recv(end) -> _ => return,
                recv(counting) -> _ => {
                    // A quiet feed gets its next file in time, too.
                    self.flush();
                    self.tell_loss();
                    if !self.options.quiet {
                        stderr::live(&self.count());
                    }
                }
                recv(ready) -> _ => {}
            }
            // A signal takes precedence over events that are already queued, which are recorded
            // after the stop.
            while signaled.is_empty() && end.is_empty() && counting.is_empty() {
                match events.next_batch_timeout(Duration::ZERO) {
                    Ok(batch) => batch.iter().for_each(|event| self.take(event)),
                    Err(TryNextError::Disconnected) => return,
                    Err(_) => break,
                }
                self.flush();
                if self.has_enough() {
                    return;
                }
            }
        }
    }

    /// Records what is left after the stop.
    fn drain(&mut self) {
        let mut events = self.client.events();
        // After a complete stop every event is queued. The wait serves a stop that ran out of time.
        while let Ok(batch) = events.next_batch_timeout(Duration::from_millis(100)) {
            batch.iter().for_each(|event| self.take(event));
            self.flush();
        }
    }

    fn has_enough(&self) -> bool {
        self.options.count.is_some_and(|count| self.messages >= count)
    }

    fn take(&mut self, event: EventRef<'_>) {
        match event {
            EventRef::Message(_) if self.has_enough() => {}
            EventRef::Message(message) => {
                self.messages += 1;
                self.write(|recording| recording.message(message));
            }
            EventRef::Opened(opened) => {
                self.tell(|clock| clock.opened(opened), notices::opened(opened));
                self.send_greetings(opened);
            }
            EventRef::Disconnected(disconnect) => {
                self.tell(
                    |clock| clock.disconnected(disconnect),
                    notices::disconnected(disconnect),
                );
            }
            // The last failed dial is reported as `gave_up` only.
            EventRef::DialFailed(failure) if failure.retry_in.is_none() => {}
            EventRef::DialFailed(failure) => {
                self.tell(|clock| clock.dial_failed(failure), notices::dial_failed(failure));
            }
            EventRef::Lagged(lagged) => {
                self.lost += lagged.lost;
                self.write_object(|clock| clock.lag(&lagged));
            }
            EventRef::Stopped(stopped) if stopped.reason.kind() == ErrorKind::Stopped => {}
            EventRef::Stopped(stopped) => {
                self.gave_up = true;
                let reason = &stopped.reason;
                self.tell(|clock| clock.gave_up(reason), notices::gave_up(reason));
            }
            // A client without a session has no other.
            _ => {}
        }
    }

    fn send_greetings(&mut self, opened: &Opened) {
        // The texts go out on this connection only. Later connections send them again.
        let sender = self.client.sender().pinned_to(opened.epoch);
        for text in &self.options.send {
            match sender.send_text(text) {
                Ok(_) if self.options.with_sent => {
                    self.write_object(|clock| clock.sent(opened.epoch, text));
                }
                Ok(_) => {}
                Err(error) => {
                    let error = NotSent::from(error);
                    self.tell(|clock| clock.send_failed(&error), notices::not_sent(&error));
                }
            }
        }
    }

    /// Records what happened to the connection, and says it on standard error.
    fn tell(&mut self, object: impl Fn(&Clock) -> Value, text: String) {
        self.write_object(&object);
        self.printer.notice(object, || text);
    }

    /// Says how many messages were lost. While too much comes, there is a gap in every batch.
    fn tell_loss(&mut self) {
        let lost = self.lost - std::mem::replace(&mut self.told_lost, self.lost);
        if lost > 0 {
            let lagged = Lagged { lost, lost_notices: 0 };
            self.printer.notice(|clock| clock.lag(&lagged), || notices::lagged(&lagged));
        }
    }

    fn write_object(&mut self, object: impl FnOnce(&Clock) -> Value) {
        let hidden = std::mem::take(&mut self.hidden);
        self.write(|recording| {
            let mut object = object(&recording.clock);
            if let Some(fields) = object.as_object_mut() {
                // These are a header, and a text that often repeats the path and the query.
                fields.shift_remove("subprotocol");
                fields.shift_remove("body");
                let reason = fields.get("reason").and_then(Value::as_str);
                if reason.is_some_and(|reason| hidden.iter().any(|part| reason.contains(part))) {
                    fields.shift_remove("reason");
                }
            }
            recording.object(&object)
        });
        self.hidden = hidden;
    }

    fn flush(&mut self) {
        self.write(Recording::flush);
        self.take_stock();
    }

    fn finish(&mut self) {
        self.write(Recording::finish);
        self.take_stock();
    }

    /// Everything that came has been handed to the kernel, unless that failed.
    fn take_stock(&mut self) {
        if let Some(recording) = &self.recording {
            let (files, bytes) = (recording.files(), recording.bytes());
            self.written = Written { messages: self.messages, files, bytes };
        }
    }

    fn write(&mut self, write: impl FnOnce(&mut Recording) -> Result<(), String>) {
        if let Some(Err(error)) = self.recording.as_mut().map(write) {
            self.fail(&error);
        }
    }

    /// Gives the recording up.
    fn fail(&mut self, error: &str) {
        // The messages of the last flush, at least, and all bytes that the kernel took.
        if let Some(recording) = self.recording.take() {
            (self.written.files, self.written.bytes) = (recording.files(), recording.bytes());
        }
        self.has_failed = true;
        let text = format!("{error}; nothing more is recorded, the messages are counted");
        stderr::line(format_args!("tautline: {}", Visible(&text)));
    }

    fn count(&self) -> String {
        let (messages, epochs) = (self.messages, self.client.stats().epochs);
        let stopped = if self.has_failed { ", no longer recorded" } else { "" };
        format!("{messages} messages, epoch {epochs}, {}{stopped}", self.size())
    }

    fn summary(&self) -> String {
        let (written, messages) = (self.written.messages, self.messages);
        let least = if self.has_failed { "at least " } else { "" };
        format!("recorded {least}{written} of {messages} messages, {}", self.size())
    }

    fn size(&self) -> String {
        let Written { files, bytes, .. } = self.written;
        let plural = if files == 1 { "" } else { "s" };
        format!("{bytes} bytes in {files} file{plural}, {} lost", self.lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_or_have_a_binary_unit() {
        for (text, size) in [
            ("1", Some(1)),
            ("500K", Some(500 << 10)),
            ("100m", Some(100 << 20)),
            ("2G", Some(2 << 30)),
            ("0", None),
            ("0M", None),
            ("", None),
            ("M", None),
            ("-1", None),
            ("1.5G", None),
            ("1é", None),
            ("18446744073709551615K", None),
        ] {
            assert_eq!(parse_size(text).ok(), size, "{text}");
        }
    }

    #[test]
    fn a_server_is_named_without_what_could_be_secret() {
        for (url, server) in [
            ("ws://127.0.0.1:9000/path?query", "127.0.0.1:9000"),
            ("wss://stream.example.com/ws/listen-key", "stream.example.com"),
            ("wss://user:password@stream.example.com:9443?token=1", "stream.example.com:9443"),
            ("ws://[::1]:80/", "[::1]:80"),
            ("no URL", ""),
        ] {
            assert_eq!(host_and_port(url), server, "{url}");
        }
    }
}
