//! Settings: their defaults in one place, validated once.

pub(crate) mod app_ping;
pub(crate) mod decode;
pub(crate) mod dial_context;
mod direct_hosts;
pub(crate) mod endpoint;
pub(crate) mod proxy;
pub(crate) mod queue_bounds;
pub(crate) mod settings;
pub(crate) mod targets;
pub(crate) mod tls_engine;
