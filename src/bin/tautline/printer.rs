//! Writes to standard output, and knows when that is no use any more.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use serde_json::Value;
use tautline::{Message, Payload};

use crate::objects::Clock;
use crate::stderr;
use crate::visible::{Hexdump, Visible};

/// Bytes that wait for a flush. Beyond them they are written before one is asked for.
const BUFFER: usize = 64 << 10;

/// The form that messages are printed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Text on one line, binary as a hexdump; nothing that could steer a terminal.
    Visible { timestamps: bool },
    /// As it came, and a line feed.
    Raw,
    /// An object on a line.
    Json,
}

/// Prints messages to standard output, and what happens to the connection to standard error, or
/// both to standard output as JSON. Whole lines at a time, from any thread.
pub(crate) struct Printer {
    form: Form,
    clock: Clock,
    out: Mutex<Out>,
    /// Standard output is closed, or cannot be written.
    is_broken: AtomicBool,
    /// Standard output could not be written for another reason than that its reader has gone, or a
    /// line of standard input was not sent.
    has_failed: AtomicBool,
}

struct Out {
    /// Whole lines that are not written yet, at most [`BUFFER`] bytes and one line.
    waiting: Vec<u8>,
    /// Nothing is printed once this is true.
    is_done: bool,
}

impl Printer {
    pub(crate) fn new(form: Form) -> Self {
        let printer = Printer {
            form,
            clock: Clock::start(),
            out: Mutex::new(Out { waiting: Vec::new(), is_done: false }),
            is_broken: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
        };
        if form == Form::Json {
            printer.object(&printer.clock.started());
        }
        printer
    }

    /// Prints a message. It may wait for [`flush`](Self::flush).
    pub(crate) fn message(&self, message: &Message) {
        let mut out = self.out.lock();
        if out.is_done {
            return;
        }
        match self.form {
            Form::Json => self.clock.message(message.as_ref(), &mut out.waiting),
            Form::Raw => {
                out.waiting.extend_from_slice(message.bytes());
                out.waiting.push(b'\n');
            }
            Form::Visible { timestamps } => {
                let time = timestamps.then(|| Timestamp(message.received_wall()));
                out.line(&Lines { time, payload: message.payload() });
            }
        }
        if out.waiting.len() > BUFFER {
            self.write(&mut out);
        }
    }

    /// Prints what happened to the connection: an object, or a line on standard error.
    pub(crate) fn notice(
        &self,
        object: impl FnOnce(&Clock) -> Value,
        text: impl FnOnce() -> String,
    ) {
        match self.form {
            Form::Json => self.object(&object(&self.clock)),
            Form::Raw => self.complain_unless_done(&text(), false),
            Form::Visible { timestamps } => self.complain_unless_done(&text(), timestamps),
        }
    }

    fn object(&self, object: &Value) {
        let mut out = self.out.lock();
        if !out.is_done {
            out.line(object);
            out.waiting.push(b'\n');
            self.write(&mut out);
        }
    }

    fn complain_unless_done(&self, text: &str, timestamps: bool) {
        // What came before is to be seen before.
        self.flush();
        if !self.out.lock().is_done {
            let text = Visible(text);
            match timestamps.then(|| Timestamp(SystemTime::now())) {
                Some(time) => stderr::line(format_args!("{time}tautline: {text}")),
                None => stderr::line(format_args!("tautline: {text}")),
            }
        }
    }

    /// Prints the last line. Nothing is printed after it.
    pub(crate) fn last(&self, object: impl FnOnce(&Clock) -> Value, text: impl FnOnce() -> String) {
        self.notice(object, text);
        self.out.lock().is_done = true;
    }

    /// Writes what waits.
    pub(crate) fn flush(&self) {
        self.write(&mut self.out.lock());
    }

    fn write(&self, out: &mut Out) {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(&out.waiting).and_then(|()| stdout.flush());
        out.waiting.clear();
        // A long message took it.
        out.waiting.shrink_to(BUFFER);
        if let Err(error) = written {
            // Either way the program closes the connection and ends. With `| head` the reader is
            // gone, which is no failure; a full disk is one.
            self.is_broken.store(true, Ordering::Relaxed);
            if error.kind() != io::ErrorKind::BrokenPipe
                && !self.has_failed.swap(true, Ordering::Relaxed)
            {
                stderr::line(format_args!("tautline: cannot write to standard output: {error}"));
            }
        }
    }

    /// Notes that something of what was asked for could not be done.
    pub(crate) fn fail(&self) {
        self.has_failed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Relaxed)
    }
}

impl Out {
    fn line(&mut self, text: &impl std::fmt::Display) {
        write!(self.waiting, "{text}").expect("a Vec takes everything");
    }
}

/// A message for people, with the line feeds behind it.
struct Lines<'a> {
    time: Option<Timestamp>,
    payload: Payload<'a>,
}

impl std::fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(time) = &self.time {
            time.fmt(f)?;
        }
        match self.payload {
            Payload::Text(text) => writeln!(f, "{}", Visible(text)),
            Payload::Binary(bytes) => {
                if self.time.is_some() {
                    writeln!(f, "binary, {} bytes", bytes.len())?;
                }
                Hexdump(bytes).fmt(f)
            }
        }
    }
}

/// A wall clock time and a space.
struct Timestamp(SystemTime);

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ", humantime::format_rfc3339_micros(self.0))
    }
}

/// The fate of a text for standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Printed {
    Whole,
    /// The reader has gone: it has seen enough.
    ReaderGone,
    /// Standard output cannot be written. Standard error says why.
    Failed,
}

/// Prints a text to standard output.
pub(crate) fn print(text: &str) -> Printed {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Printed::Whole,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Printed::ReaderGone,
        Err(error) => {
            complain(&format!("cannot write to standard output: {error}"));
            Printed::Failed
        }
    }
}

/// Prints a line to standard error.
pub(crate) fn complain(text: &str) {
    stderr::line(format_args!("tautline: {}", Visible(text)));
}
