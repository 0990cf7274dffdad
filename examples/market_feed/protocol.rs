//! The protocol of the venue: logon, subscriptions and orders on one connection, in Binance's
//! format.

use std::time::Duration;

use serde_json::{Value, json};
use tautline::MessageRef;
use tautline::session::{
    Acceptance, Class, Context, OpeningScript, Outgoing, Protocol, Rejection, StepOutcome,
    SubscriptionRequest,
};

/// The protocol, with the key to log on with if the venue wants one.
pub(crate) struct Spot {
    pub(crate) key: Option<String>,
}

pub(crate) fn parse(message: MessageRef<'_>) -> Value {
    serde_json::from_slice(message.bytes()).unwrap_or_default()
}

impl Protocol for Spot {
    fn opening(&self) -> OpeningScript {
        let Some(key) = self.key.clone() else { return OpeningScript::new() };
        let logon = move |context: &Context| {
            // A real venue wants a signature here, of this moment's time.
            let params = json!({"apiKey": key, "timestamp": context.unix_millis()});
            json!({"id": "logon", "method": "session.logon", "params": params}).to_string().into()
        };
        OpeningScript::new().request("logon", Duration::from_secs(2), logon, |message, _| {
            let reply = parse(message);
            match (reply["id"].as_str(), reply["status"].as_u64()) {
                (Some("logon"), Some(200)) => StepOutcome::Accepted,
                (Some("logon"), _) => {
                    StepOutcome::Rejected(Rejection::permanent(reply["msg"].to_string()))
                }
                _ => StepOutcome::Unrelated,
            }
        })
    }

    fn classify<'m>(&self, message: MessageRef<'m>, _: &Context) -> Class<'m> {
        // Quotes are nearly everything that comes, and are told by their first bytes.
        if message.bytes().starts_with(br#"{"u":"#) {
            return Class::Data;
        }
        let control = parse(message);
        match control["id"].as_u64() {
            Some(id) => Class::Reply(id),
            None if control["e"] == "serverShutdown" => Class::GoingAway(None),
            None => Class::Data,
        }
    }

    fn subscription_request(&self, request: &SubscriptionRequest, _: &Context) -> Outgoing {
        let method = request.either("SUBSCRIBE", "UNSUBSCRIBE");
        let topics: Vec<&str> = request.topics().collect();
        json!({"method": method, "params": topics, "id": request.id()}).to_string().into()
    }

    fn subscription_reply(
        &self,
        _: &SubscriptionRequest,
        reply: MessageRef<'_>,
        _: &Context,
    ) -> Acceptance {
        match parse(reply) {
            reply if reply["code"].is_null() => Acceptance::All,
            reply => Acceptance::Nothing(Rejection::permanent(reply["msg"].to_string())),
        }
    }
}
