//! The events of a connection in words, for a person.

use tautline::{DialFailure, Disconnect, Error, Lagged, Opened};

use crate::objects::{NotSent, refusal_body};
use crate::visible::Quoted;

pub(crate) fn opened(opened: &Opened) -> String {
    let chosen = opened.subprotocol.as_ref().map(|name| format!(", subprotocol {name}"));
    let deflate = if opened.is_compressed { ", compressed" } else { "" };
    format!(
        "open, epoch {}, after {:.1?}{}{deflate}",
        opened.epoch,
        opened.took,
        chosen.unwrap_or_default()
    )
}

pub(crate) fn disconnected(disconnect: &Disconnect) -> String {
    format!("{disconnect}{}", Quoted(Some(&disconnect.close.reason)))
}

pub(crate) fn dial_failed(failure: &DialFailure) -> String {
    format!("{failure}{}", Quoted(refusal_body(&failure.error).as_deref()))
}

pub(crate) fn lagged(lagged: &Lagged) -> String {
    format!("{} messages lost: the queue was full", lagged.lost)
}

pub(crate) fn gave_up(reason: &Error) -> String {
    format!("gave up: {}{}", reason.chain(), Quoted(refusal_body(reason).as_deref()))
}

pub(crate) fn not_sent(error: &NotSent) -> String {
    let text = if error.is_certain { "not sent" } else { "perhaps sent" };
    format!("{text}: {}", error.detail)
}
