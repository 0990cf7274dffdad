//! The replies of exchanges: their JSON, and the fate of the calls that they answer. The protocols
//! beside this file need it: copy it with them.

use serde_json::Value;
use tautline::MessageRef;
use tautline::session::{CallError, Reply};

/// The fate of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The exchange has carried it out.
    Accepted,
    /// The exchange has refused it, for this reason.
    Refused(String),
    /// It did not leave.
    NotSent,
    /// The exchange may have carried it out.
    Unknown,
}

/// Returns what has become of a call. `read` says what its reply means.
pub(crate) fn fate_of(result: Result<Reply, CallError>, read: impl FnOnce(&Value) -> Fate) -> Fate {
    match result {
        Ok(reply) => read(&parsed(reply.message.as_ref())),
        Err(CallError::NotSent(_)) => Fate::NotSent,
        Err(_) => Fate::Unknown,
    }
}

/// `Null` if it is no JSON.
pub(crate) fn parsed(message: MessageRef<'_>) -> Value {
    serde_json::from_slice(message.bytes()).unwrap_or_default()
}
