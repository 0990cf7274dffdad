//! Messages before their delivery, where a setting asks to see them: decoding, answers, replies.

use std::time::Instant;

use crate::config::app_ping::ReplyMatcher;
use crate::config::settings::{AutoRespond, Settings};
use crate::connection::OpenConnection;
use crate::event::{MessageRef, Payload};
use crate::protocol::decode::{DecodeError, Decoder};
use crate::sender::Sender;
use crate::sync::panic;

/// The settings that see each message, and what they found. Used by the reader thread alone.
pub(crate) struct Inspection {
    decoder: Option<Decoder>,
    auto_respond: Option<AutoRespond>,
    /// The number of each application ping that has replies, and their matcher.
    matchers: Vec<(usize, ReplyMatcher)>,
    /// The last message is a reply to an application ping.
    pub(crate) is_reply: bool,
    findings: Findings,
}

/// The messages of a batch that are no data.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Findings {
    /// Replies to application pings, which are delivered.
    pub(crate) replies: u64,
    /// Messages that were answered, which are not.
    pub(crate) answered: u64,
    pub(crate) answered_bytes: u64,
}

impl Inspection {
    /// Returns `None` where no setting sees messages.
    pub(crate) fn new(settings: &Settings) -> Option<Self> {
        let decoder = settings
            .decode
            .map(|decode| Decoder::new(decode.format, decode.is_text, settings.max_message_size));
        let auto_respond = settings.auto_respond.clone();
        let pings = settings.app_pings.iter().enumerate();
        let matchers: Vec<_> =
            pings.filter_map(|(index, ping)| Some((index, ping.is_reply.clone()?))).collect();
        let sees = decoder.is_some() || auto_respond.is_some() || !matchers.is_empty();
        let findings = Findings::default();
        let is_reply = false;
        sees.then(|| Inspection { decoder, auto_respond, matchers, is_reply, findings })
    }

    /// Returns the payload to be delivered. `None`: the message has been answered.
    ///
    /// # Errors
    /// If the message does not decode.
    pub(crate) fn inspect<'m>(
        &'m mut self,
        mut message: MessageRef<'m>,
        connection: &OpenConnection,
        sender: &Sender,
    ) -> Result<Option<Payload<'m>>, DecodeError> {
        if let (Some(decoder), Payload::Binary(bytes)) = (&mut self.decoder, message.payload()) {
            let decoded = decoder.decode(bytes)?;
            message = MessageRef::new(decoded, message.epoch(), message.arrival());
        }
        if let Some(auto_respond) = &self.auto_respond {
            match panic::catch(|| auto_respond(message).map(|text| text.into_owned())) {
                Ok(Some(text)) => {
                    connection.queue_response(text);
                    self.findings.answered += 1;
                    self.findings.answered_bytes += message.bytes().len() as u64;
                    return Ok(None);
                }
                Ok(None) => {}
                Err(panic) => {
                    let context = "the closure of `auto_respond` panicked";
                    sender.abort_for_panic(connection, panic, context);
                    return Ok(Some(message.payload()));
                }
            }
        }
        self.is_reply = false;
        for (index, is_reply) in &self.matchers {
            match panic::catch(|| is_reply(message)) {
                Ok(true) => {
                    connection.activity.note_app_reply(*index);
                    self.is_reply = true;
                }
                Ok(false) => {}
                Err(panic) => {
                    let context = "the matcher of replies to application pings panicked";
                    sender.abort_for_panic(connection, panic, context);
                    break;
                }
            }
        }
        self.findings.replies += u64::from(self.is_reply);
        Ok(Some(message.payload()))
    }

    /// Shrinks a buffer whose size was not needed for a while.
    pub(crate) fn settle(&mut self, now: Instant) {
        if let Some(decoder) = &mut self.decoder {
            decoder.settle(now);
        }
    }

    /// Returns what was found since the last call.
    pub(crate) fn take_findings(&mut self) -> Findings {
        std::mem::take(&mut self.findings)
    }
}
