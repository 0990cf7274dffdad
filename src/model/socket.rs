//! Connected sockets in memory, with small buffers, in the place of `connection::socket`.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex as Plain, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::sync::now;
use super::wake_pair::SignalPair;
use super::world::{block, change, facts};

/// The number of bytes that a direction holds: so few that writers often find it full.
const CAPACITY: usize = 48;

/// One direction of a connection.
#[derive(Default)]
struct Direction {
    bytes: VecDeque<u8>,
    /// No byte follows the buffered ones.
    is_ended: bool,
    /// The reader has gone, so a write is answered by a reset.
    is_reset: bool,
}

/// One end of a connection.
pub(crate) struct StreamSocket {
    incoming: Arc<Plain<Direction>>,
    outgoing: Arc<Plain<Direction>>,
}

fn locked(direction: &Plain<Direction>) -> MutexGuard<'_, Direction> {
    direction.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes what is there; 0 at the end, and `None` when nothing is there.
fn take(direction: &mut Direction, room: &mut [u8]) -> Option<usize> {
    if direction.bytes.is_empty() {
        return direction.is_ended.then_some(0);
    }
    let count = direction.bytes.len().min(room.len());
    for (place, byte) in room.iter_mut().zip(direction.bytes.drain(..count)) {
        *place = byte;
    }
    Some(count)
}

impl StreamSocket {
    /// Returns both ends of a new connection.
    pub(crate) fn pair() -> (StreamSocket, StreamSocket) {
        let directions = [(); 2].map(|()| Arc::new(Plain::new(Direction::default())));
        let [one, other] = [directions.clone(), directions];
        let [incoming, outgoing] = one;
        let [outgoing_of_other, incoming_of_other] = other;
        (
            StreamSocket { incoming, outgoing },
            StreamSocket { incoming: incoming_of_other, outgoing: outgoing_of_other },
        )
    }

    pub(crate) fn receive(&self, room: &mut [u8]) -> io::Result<(usize, Option<SystemTime>)> {
        let count = block(None, |_| take(&mut locked(&self.incoming), room));
        Ok((count.unwrap_or_default(), None))
    }

    /// As [`receive`](StreamSocket::receive), and `WouldBlock` when nothing is there.
    pub(crate) fn receive_now(&self, room: &mut [u8]) -> io::Result<(usize, Option<SystemTime>)> {
        facts(|facts| facts.wakeable_reads += 1);
        change(|| take(&mut locked(&self.incoming), room))
            .map(|count| (count, None))
            .ok_or_else(|| ErrorKind::WouldBlock.into())
    }

    pub(crate) fn is_spinning(&self) -> bool {
        false
    }

    /// In the place of `poll` over a socket and a pair.
    pub(crate) fn await_bytes(
        &self,
        signals: Option<&SignalPair>,
        limit: Option<Duration>,
    ) -> io::Result<()> {
        block(limit.map(|limit| now() + limit), |_| {
            let direction = locked(&self.incoming);
            let is_signaled = signals.is_some_and(SignalPair::is_signaled);
            (is_signaled || direction.is_ended || !direction.bytes.is_empty()).then_some(())
        });
        // Another signal may come before this one is cleared, as in the kernel.
        if let Some(pair) = signals.filter(|pair| pair.is_signaled()) {
            pair.clear();
        }
        Ok(())
    }

    pub(crate) fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        change(|| {
            let mut direction = locked(&self.outgoing);
            if direction.is_ended {
                return Err(ErrorKind::BrokenPipe.into());
            }
            if direction.is_reset {
                return Err(ErrorKind::ConnectionReset.into());
            }
            match bytes.len().min(CAPACITY - direction.bytes.len()) {
                0 => Err(ErrorKind::WouldBlock.into()),
                count => {
                    direction.bytes.extend(&bytes[..count]);
                    Ok(count)
                }
            }
        })
    }

    pub(crate) fn has_room_within(&self, wait: Duration) -> io::Result<bool> {
        let ready = block(Some(now() + wait), |_| {
            let direction = locked(&self.outgoing);
            (direction.is_ended || direction.is_reset || direction.bytes.len() < CAPACITY)
                .then_some(true)
        });
        Ok(ready.unwrap_or(false))
    }

    /// Waits, for servers, until there is room or the other side ends the connection.
    pub(super) fn await_room(&self) {
        block(None, |_| {
            let direction = locked(&self.outgoing);
            (direction.is_ended || direction.is_reset || direction.bytes.len() < CAPACITY)
                .then_some(())
        });
    }

    /// Waits, for servers, until the other side has ended the connection, without reading.
    pub(super) fn await_end(&self) {
        block(None, |_| locked(&self.incoming).is_ended.then_some(()));
    }

    pub(crate) fn end_writing(&self) {
        change(|| locked(&self.outgoing).is_ended = true);
    }

    pub(crate) fn abort(&self) {
        change(|| {
            locked(&self.outgoing).is_ended = true;
            locked(&self.incoming).is_ended = true;
        });
    }
}

impl Drop for StreamSocket {
    fn drop(&mut self) {
        change(|| {
            locked(&self.outgoing).is_ended = true;
            locked(&self.incoming).is_reset = true;
        });
    }
}
