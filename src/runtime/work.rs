//! The work of a layer above for the heartbeat thread, on an open connection.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use crate::connection::OpenConnection;
use crate::metrics::TopicCounts;

/// Work for the heartbeat thread.
///
/// The thread asks for it at every wake-up while a connection is open or closing, after pongs and
/// pings. It must not block: writes do not wait for room.
pub(crate) trait HeartbeatWork: Send {
    /// Does what is due on the connection, and returns when to look again; `None` if only another
    /// wake-up can bring work. Where `may_write` is false, pongs or pings still wait for room, or
    /// the connection is closing: the thread asks again. Also returns an error if the socket
    /// failed.
    fn run(
        &mut self,
        connection: &Arc<OpenConnection>,
        may_write: bool,
        now: Instant,
    ) -> (Option<Instant>, io::Result<()>);

    /// Returns the number of topics in each state, for metrics.
    fn topics(&self) -> TopicCounts;
}
