//! The bounds of the event queue, and the rule for a full one.

/// The rule for a message that finds the event queue full.
///
/// It concerns messages alone. Openings, ends, failed dials and the events of a session have room
/// of their own: for 1,024 of them together, and for as many bytes as
/// [`queue_bytes`](crate::Builder::queue_bytes) says. When that is full, the oldest of them make
/// room, and a [`Lagged`](crate::Lagged) tells how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WhenFull {
    /// The connection ends with the kind `Lagged`, and the client dials again. The queue's content
    /// can still be read. This is the default, because a gap that nobody notices costs more than a
    /// new connection and a new snapshot.
    #[default]
    Disconnect,
    /// The oldest messages make room, and `Lagged` tells how many were lost.
    DropOldest,
    /// The new message is dropped, and `Lagged` tells how many were lost.
    DropNewest,
    /// The reader waits for room. It reads nothing meanwhile, so pings go unanswered and the server
    /// may close the connection. At a stop, what has been read and has no room is lost, and
    /// `Lagged` tells how much.
    Block,
}

/// The bounds of the event queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
    pub(crate) when_full: WhenFull,
}
