//! Connected sockets in memory, with small buffers, as [`crate::connection::socket`] offers them.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex as Plain, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::sync::now;
use super::{block, change};

/// What each direction holds: so little that writers often find it full.
const CAPACITY: usize = 48;

/// One direction of a connection.
#[derive(Default)]
struct Way {
    bytes: VecDeque<u8>,
    /// No byte follows those that are here.
    is_ended: bool,
    /// Whoever read it has gone: a write is answered by a reset.
    is_deserted: bool,
}

/// One end of a connection.
pub(crate) struct StreamSocket {
    incoming: Arc<Plain<Way>>,
    outgoing: Arc<Plain<Way>>,
}

fn plain(way: &Plain<Way>) -> MutexGuard<'_, Way> {
    way.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StreamSocket {
    /// Both ends of a new connection.
    pub(crate) fn pair() -> (StreamSocket, StreamSocket) {
        let ways = [(); 2].map(|()| Arc::new(Plain::new(Way::default())));
        let [one, other] = [ways.clone(), ways];
        let [incoming, outgoing] = one;
        let [outgoing_of_other, incoming_of_other] = other;
        (
            StreamSocket { incoming, outgoing },
            StreamSocket { incoming: incoming_of_other, outgoing: outgoing_of_other },
        )
    }

    pub(crate) fn receive(&self, room: &mut [u8]) -> io::Result<(usize, Option<SystemTime>)> {
        let count = block(None, |_| {
            let mut way = plain(&self.incoming);
            if way.bytes.is_empty() {
                return way.is_ended.then_some(0);
            }
            let count = way.bytes.len().min(room.len());
            for (place, byte) in room.iter_mut().zip(way.bytes.drain(..count)) {
                *place = byte;
            }
            Some(count)
        });
        Ok((count.unwrap_or_default(), None))
    }

    pub(crate) fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        change(|| {
            let mut way = plain(&self.outgoing);
            if way.is_ended {
                return Err(ErrorKind::BrokenPipe.into());
            }
            if way.is_deserted {
                return Err(ErrorKind::ConnectionReset.into());
            }
            match bytes.len().min(CAPACITY - way.bytes.len()) {
                0 => Err(ErrorKind::WouldBlock.into()),
                count => {
                    way.bytes.extend(&bytes[..count]);
                    Ok(count)
                }
            }
        })
    }

    pub(crate) fn has_room_within(&self, wait: Duration) -> io::Result<bool> {
        let ready = block(Some(now() + wait), |_| {
            let way = plain(&self.outgoing);
            (way.is_ended || way.is_deserted || way.bytes.len() < CAPACITY).then_some(true)
        });
        Ok(ready.unwrap_or(false))
    }

    /// For servers: waits for room, or for the other side to end the connection.
    pub(super) fn await_room(&self) {
        block(None, |_| {
            let way = plain(&self.outgoing);
            (way.is_ended || way.is_deserted || way.bytes.len() < CAPACITY).then_some(())
        });
    }

    /// For servers: waits until the other side has ended the connection, without reading.
    pub(super) fn await_end(&self) {
        block(None, |_| plain(&self.incoming).is_ended.then_some(()));
    }

    pub(crate) fn end_writing(&self) {
        change(|| plain(&self.outgoing).is_ended = true);
    }

    pub(crate) fn abort(&self) {
        change(|| {
            plain(&self.outgoing).is_ended = true;
            plain(&self.incoming).is_ended = true;
        });
    }
}

impl Drop for StreamSocket {
    fn drop(&mut self) {
        change(|| {
            plain(&self.outgoing).is_ended = true;
            plain(&self.incoming).is_deserted = true;
        });
    }
}
