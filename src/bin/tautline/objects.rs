//! The JSON objects of `--json` and of recordings, one on a line.
//!
//! The first is `started`, which has the wall clock time. Every other one has `ns`, the nanoseconds
//! from then on by a clock that never jumps: until a message arrived, and for all other events
//! until the program saw them.

use std::time::{Duration, Instant, SystemTime};

use data_encoding::BASE64;
use serde_json::{Value, json};
use tautline::{
    DialFailure, Disconnect, Error, Lagged, MessageRef, Opened, Payload, SendError, StopReport,
    ThreadOutcome,
};

/// The time that the objects count from.
pub(crate) struct Clock {
    began: Instant,
    wall: SystemTime,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Clock { began: Instant::now(), wall: SystemTime::now() }
    }

    /// Returns the nanoseconds from the start until `at`.
    pub(crate) fn ns(&self, at: Instant) -> u64 {
        nanos(at.saturating_duration_since(self.began))
    }

    /// Returns an object that tells of now.
    fn object(&self, event: &str) -> Value {
        json!({"event": event, "ns": self.ns(Instant::now())})
    }

    /// Returns the object that comes first.
    pub(crate) fn started(&self) -> Value {
        json!({"event": "started", "unix_ns": unix_ns(self.wall)})
    }

    /// Appends the object of a message, and a line feed.
    pub(crate) fn message(&self, message: MessageRef<'_>, line: &mut Vec<u8>) {
        let (epoch, ns) = (message.epoch(), self.ns(message.received_at()));
        line.extend_from_slice(
            format!("{{\"event\":\"message\",\"epoch\":{epoch},\"ns\":{ns}").as_bytes(),
        );
        if let Some(at) = message.kernel_received() {
            line.extend_from_slice(format!(",\"kernel_ns\":{}", unix_ns(at)).as_bytes());
        }
        payload(message.payload(), line);
    }

    /// Returns the object of a text that was sent just now.
    pub(crate) fn sent(&self, epoch: u64, text: &str) -> Value {
        let mut object = self.object("sent");
        object["epoch"] = epoch.into();
        object["text"] = text.into();
        object
    }

    pub(crate) fn opened(&self, opened: &Opened) -> Value {
        let mut object = self.object("opened");
        object["epoch"] = opened.epoch.into();
        object["ms"] = millis(opened.took).into();
        if let Some(subprotocol) = &opened.subprotocol {
            object["subprotocol"] = subprotocol.as_str().into();
        }
        if opened.is_compressed {
            object["compressed"] = true.into();
        }
        object
    }

    pub(crate) fn disconnected(&self, disconnect: &Disconnect) -> Value {
        let mut object = self.object("disconnected");
        object["epoch"] = disconnect.epoch.into();
        describe(&mut object, &disconnect.error);
        object["code"] = disconnect.close.code.into();
        object["reason"] = disconnect.close.reason.as_str().into();
        object["retry_in_ms"] = disconnect.retry_in.map(millis).into();
        object
    }

    pub(crate) fn dial_failed(&self, failure: &DialFailure) -> Value {
        let mut object = self.object("dial_failed");
        object["attempt"] = failure.attempt.into();
        describe(&mut object, &failure.error);
        object["retry_in_ms"] = failure.retry_in.map(millis).into();
        object
    }

    pub(crate) fn lag(&self, lagged: &Lagged) -> Value {
        let mut object = self.object("lag");
        object["lost"] = lagged.lost.into();
        object["lost_notices"] = lagged.lost_notices.into();
        object
    }

    pub(crate) fn gave_up(&self, reason: &Error) -> Value {
        let mut object = self.object("gave_up");
        describe(&mut object, reason);
        object
    }

    pub(crate) fn send_failed(&self, error: &NotSent) -> Value {
        let mut object = self.object("send_failed");
        object["outcome"] = if error.is_certain { "not_sent" } else { "unknown" }.into();
        object["detail"] = error.detail.as_str().into();
        object
    }

    pub(crate) fn stopped(&self, report: &StopReport) -> Value {
        let mut object = self.object("stopped");
        object["clean"] = report.is_clean().into();
        object["ms"] = millis(report.took()).into();
        object["threads"] = report
            .threads()
            .iter()
            .map(|thread| {
                let has_ended = thread.outcome == ThreadOutcome::Joined;
                json!({"name": thread.name, "ended": has_ended, "ms": millis(thread.took)})
            })
            .collect();
        object
    }
}

/// A message that was not sent, or perhaps sent.
pub(crate) struct NotSent {
    /// `true` if the kernel took no byte of it.
    pub(crate) is_certain: bool,
    pub(crate) detail: String,
}

impl From<SendError> for NotSent {
    fn from(error: SendError) -> Self {
        NotSent { is_certain: error.is_not_sent(), detail: error.reason().chain() }
    }
}

/// Appends the payload as the last field of an object, the object's end, and a line feed.
fn payload(payload: Payload<'_>, line: &mut Vec<u8>) {
    match payload {
        Payload::Text(text) => {
            line.extend_from_slice(b",\"text\":");
            serde_json::to_writer(&mut *line, text).expect("a Vec takes everything");
        }
        Payload::Binary(bytes) => {
            line.extend_from_slice(b",\"binary\":\"");
            line.extend_from_slice(BASE64.encode(bytes).as_bytes());
            line.push(b'"');
        }
    }
    line.extend_from_slice(b"}\n");
}

/// Adds what is known of an error.
fn describe(object: &mut Value, error: &Error) {
    object["kind"] = error.kind().as_str().into();
    if let Some(status) = error.status() {
        object["status"] = status.as_u16().into();
    }
    object["detail"] = error.chain().into();
    if let Some(body) = refusal_body(error) {
        object["body"] = body.into();
    }
}

/// Returns the body of the response that refused the dial, if it has one.
pub(crate) fn refusal_body(error: &Error) -> Option<String> {
    let body = error.response()?.body();
    (!body.is_empty()).then(|| String::from_utf8_lossy(body).into_owned())
}

fn unix_ns(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, nanos)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
