//! The endpoints to dial: a list, or a closure that returns one for each dial.

use std::error::Error as StdError;
use std::sync::Arc;

use crate::config::dial_context::DialContext;
use crate::config::endpoint::{Endpoint, Target};
use crate::config::proxy::Proxies;
use crate::config::settings::Settings;
use crate::error::{Error, ErrorKind};
use crate::name::ClientName;

/// The validated settings of a client.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) source: Targets,
    pub(crate) settings: Settings,
    pub(crate) proxies: Option<Arc<Proxies>>,
    pub(crate) client: ClientName,
}

/// The validated endpoints, or the closure that returns them.
#[derive(Clone)]
pub(crate) enum Targets {
    List(Vec<Target>),
    FromFn { endpoint_fn: EndpointFn, headers: Vec<(String, String)>, subprotocols: Vec<String> },
}

impl Targets {
    /// The number of targets that take turns.
    pub(crate) fn count(&self) -> usize {
        match self {
            Targets::List(targets) => targets.len(),
            Targets::FromFn { .. } => 1,
        }
    }

    /// Returns the targets that are known before a dial.
    pub(crate) fn known(&self) -> &[Target] {
        match self {
            Targets::List(targets) => targets,
            Targets::FromFn { .. } => &[],
        }
    }

    /// Returns the name of a client that was given none: the host of its targets, if it is known
    /// and the same for all.
    pub(crate) fn default_name(&self) -> ClientName {
        let host = match self {
            Targets::List(targets) => targets
                .first()
                .map(|target| target.server_name())
                .filter(|host| targets.iter().all(|target| target.server_name() == *host)),
            Targets::FromFn { .. } => None,
        };
        host.map_or_else(ClientName::default, ClientName::by_default)
    }

    /// Returns the target number `turn`, which is less than [`count`](Targets::count).
    pub(crate) fn target(&self, turn: usize, context: &DialContext) -> Result<Target, Error> {
        match self {
            Targets::List(targets) => Ok(targets[turn].clone()),
            Targets::FromFn { endpoint_fn, headers, subprotocols } => {
                let endpoint = endpoint_fn(context).map_err(as_endpoint_error)?;
                with_common(endpoint, headers, subprotocols).target()
            }
        }
    }
}

/// The endpoints as the builder collects them.
#[derive(Clone)]
pub(crate) enum Source {
    /// Dialed in turn.
    List(Vec<Endpoint>),
    /// Called before each dial.
    FromFn(EndpointFn),
}

pub(crate) type EndpointFn =
    Arc<dyn Fn(&DialContext) -> Result<Endpoint, Box<dyn StdError + Send + Sync>> + Send + Sync>;

/// The error of a dial whose endpoint closure failed.
///
/// An error of this crate decides only if the dial is retried. It may come from another client,
/// whose stop or reconnect is not ours.
fn as_endpoint_error(error: Box<dyn StdError + Send + Sync>) -> Error {
    const CONTEXT: &str = "calling the endpoint closure";
    match error.downcast::<Error>() {
        Ok(error) if error.is_retryable() => Error::caused(ErrorKind::Endpoint, CONTEXT, error),
        Ok(error) => Error::caused(ErrorKind::Endpoint, CONTEXT, error).permanent(),
        Err(error) => Error::caused_by_closure(ErrorKind::Endpoint, CONTEXT, error),
    }
}

pub(crate) fn with_common(
    endpoint: Endpoint,
    headers: &[(String, String)],
    subprotocols: &[String],
) -> Endpoint {
    let endpoint =
        headers.iter().fold(endpoint, |endpoint, (name, value)| endpoint.header(name, value));
    subprotocols.iter().fold(endpoint, |endpoint, name| endpoint.subprotocol(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::CloseReason;

    #[test]
    fn an_error_of_another_client_says_nothing_about_this_one_but_whether_to_retry() {
        let stopped = as_endpoint_error(Error::stopped().into());
        assert_eq!((stopped.kind(), stopped.is_retryable()), (ErrorKind::Endpoint, false));
        assert_eq!(stopped.chain(), "calling the endpoint closure: the client was told to stop");

        let close = CloseReason::new(1000, "");
        let reconnect = as_endpoint_error(Error::reconnect_requested(close).into());
        assert!(reconnect.is_retryable() && !reconnect.is_reconnect_requested());
    }
}
