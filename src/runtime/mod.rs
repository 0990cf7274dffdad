//! The threads of a client, what they share, and what decides about reconnecting.

pub(crate) mod backoff;
pub(crate) mod endpoint_pool;
pub(crate) mod heartbeat;
pub(crate) mod inspection;
pub(crate) mod liveness;
pub(crate) mod read_loop;
pub(crate) mod reader_thread;
pub(crate) mod reconnect;
pub(crate) mod shared;
pub(crate) mod work;
