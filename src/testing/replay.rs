//! Replays a recording to a client.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use super::peer::{Peer, append_frame};
use super::recording::{RecordedPayload, Recording};
use super::server::TestServer;
use crate::sync;
use crate::time::after;

/// Frames that are due together are written together, up to about this many bytes. Between two
/// writes the server looks at what the client has sent.
const WRITE_SIZE: usize = 64 * 1024;

/// The pace at which a recording is replayed.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Pace {
    /// As it was recorded: each message comes as long after the first one as it did then.
    Recorded,
    /// So many times as fast. `Times(0.5)` takes twice as long.
    Times(f64),
    /// As fast as the client reads, without looking at the times.
    Unpaced,
}

impl Pace {
    /// Checks that messages can come at this pace.
    fn check(self) -> io::Result<()> {
        match self {
            Pace::Times(speed) if !(speed.is_finite() && speed > 0.0) => Err(io::Error::new(
                ErrorKind::InvalidInput,
                "the speed of a replay must be a positive number",
            )),
            _ => Ok(()),
        }
    }

    /// Returns the time from the first message until the one that was recorded `at_ns` after it.
    fn delay(self, at_ns: u64) -> Duration {
        let recorded = Duration::from_nanos(at_ns);
        match self {
            Pace::Recorded => recorded,
            Pace::Times(speed) => {
                let scaled = Duration::try_from_secs_f64(recorded.as_secs_f64() / speed);
                scaled.unwrap_or(Duration::MAX)
            }
            Pace::Unpaced => Duration::ZERO,
        }
    }
}

/// Checks that a file can be read and that its first line is that of a recording, without looking
/// at the rest.
///
/// # Errors
/// As [`TestServer::replay`].
pub fn check_recording(path: impl AsRef<Path>) -> io::Result<()> {
    Recording::open(path.as_ref()).map(|_| ())
}

impl TestServer {
    /// Starts a server that replays a recording of `tautline record` or of `tautline tail --json`
    /// to every connection, from its start.
    ///
    /// The client gets the messages of the recording, as text or as binary, in their order: with
    /// [`Pace::Unpaced`] a handler sees the same messages in the same order each time, as fast as
    /// it takes them. After the last one, the server sends a close frame with code 1000; a client
    /// that dials again gets the recording once more. Pings and close frames of the client are
    /// answered, its messages are recorded, as by any [`TestServer`], and not answered. The first
    /// subprotocol that the client offers is accepted.
    ///
    /// The file is read as it is sent, not into memory. A file that ends in `.zst` is decompressed,
    /// which needs the feature `zstd`. The last line may be incomplete, because its recorder was
    /// killed: it is left out, and the log says so at level warn. Any other damaged line ends the
    /// connection with close code 1011, and the log names the file and the line at level error.
    ///
    /// Messages alone are replayed. Where the recording has several connections, their messages
    /// come on one, as a handler that keeps its state across a reconnect has seen them; a client
    /// that dials again gets the recording from its start.
    ///
    /// A script that first wants a login, or that goes on after the recording, calls
    /// [`Peer::replay`].
    ///
    /// # Errors
    /// If the file cannot be read, or its first line is not that of a recording; `InvalidInput` for
    /// a speed that is not a positive number, `Unsupported` without the feature that the file
    /// needs.
    ///
    /// # Panics
    /// As [`start`](TestServer::start).
    ///
    /// # Example: a handler is tested against a recording
    /// ```
    /// use std::time::Duration;
    /// use tautline::testing::{Pace, TestServer};
    /// use tautline::{Client, Connection, Disconnect, Handler, MessageRef, Stopper};
    ///
    /// /// The handler of a bot, which counts trades.
    /// #[derive(Default)]
    /// struct Trades(usize);
    /// impl Handler for Trades {
    ///     fn message(&mut self, _: &mut Connection<'_>, message: MessageRef<'_>) {
    ///         self.0 += usize::from(message.text().is_some_and(|text| text.starts_with("trade")));
    ///     }
    ///     fn disconnected(&mut self, _: &Disconnect) {
    ///         assert_eq!(self.0, 2, "at the end of the recording");
    ///     }
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let file = std::env::temp_dir().join("tautline-yesterday.jsonl");
    /// std::fs::write(&file, r#"{"event":"started","unix_ns":1754300000000000000}
    /// {"event":"message","epoch":1,"ns":1000,"text":"trade 1"}
    /// {"event":"message","epoch":1,"ns":2000,"text":"quote 1"}
    /// {"event":"message","epoch":1,"ns":9000,"text":"trade 2"}
    /// "#)?;
    /// let server = TestServer::replay(&file, Pace::Unpaced)?;
    /// // The client ends with the first connection.
    /// let client = Client::builder(server.url()).max_attempts(1).start_with(Trades::default())?;
    /// client.wait_closed(Duration::from_secs(5)).expect("the recording ends");
    /// assert!(client.take_panic().is_none(), "the handler has seen two trades");
    /// # std::fs::remove_file(&file)?;
    /// # Ok(()) }
    /// ```
    pub fn replay(path: impl AsRef<Path>, pace: Pace) -> io::Result<TestServer> {
        pace.check()?;
        check_recording(&path)?;
        let path = path.as_ref().to_owned();
        Ok(TestServer::start(move |peer| {
            peer.upgrade_with_first_subprotocol()?;
            if let Err(error) = peer.replay(&path, pace) {
                if !is_end(&error) {
                    log::error!("a recording could not be replayed: {error}");
                }
                return Err(error);
            }
            peer.close_and_wait(1000, "the recording is over")
        }))
    }
}

impl Peer {
    /// Sends the messages of a recording, and answers pings and the client's close frame meanwhile.
    /// Returns the number of messages; the connection is open then. [`TestServer::replay`]
    /// describes recordings.
    ///
    /// ```no_run
    /// use tautline::testing::{Pace, Received, TestServer};
    ///
    /// let server = TestServer::builder().tls().start(|peer| {
    ///     peer.upgrade()?;
    ///     assert_eq!(peer.receive_message()?, Received::Text("subscribe".into()));
    ///     peer.replay("tests/yesterday.jsonl", Pace::Times(10.0))?;
    ///     peer.reset()
    /// });
    /// ```
    ///
    /// # Errors
    /// As [`TestServer::replay`] for the file and the pace, `InvalidData` for a damaged line:
    /// the client gets close code 1011 then.
    /// `ConnectionAborted` after a close frame of the client, and others as
    /// [`receive`](Peer::receive).
    pub fn replay(&mut self, path: impl AsRef<Path>, pace: Pace) -> io::Result<u64> {
        let mut replay = Replay { peer: self, pace, frames: Vec::new(), count: 0 };
        match pace.check().and_then(|()| Recording::open(path.as_ref())) {
            Ok(recording) => replay.send(recording),
            Err(error) => Err(replay.fail(error)),
        }
    }
}

/// Returns whether an error is that of a client that has gone, or of a server that is dropped.
fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted
            | ErrorKind::UnexpectedEof
            | ErrorKind::BrokenPipe
            | ErrorKind::ConnectionReset
    )
}

struct Replay<'a> {
    peer: &'a mut Peer,
    pace: Pace,
    /// Frames that are due and not written.
    frames: Vec<u8>,
    count: u64,
}

impl Replay<'_> {
    fn send(mut self, mut recording: Recording) -> io::Result<u64> {
        // All times count from here, so that no delay adds up.
        let begin = sync::now();
        loop {
            let message = match recording.next_message() {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(error) => {
                    self.write()?;
                    return Err(self.fail(error));
                }
            };
            let due = after(begin, self.pace.delay(message.at_ns));
            if self.frames.len() >= WRITE_SIZE || self.pace != Pace::Unpaced && due > sync::now() {
                self.write()?;
                self.peer.answer_until(due)?;
            }
            let (first, payload) = match &message.payload {
                RecordedPayload::Text(text) => (0x81, text.as_bytes()),
                RecordedPayload::Binary(bytes) => (0x82, bytes.as_slice()),
            };
            append_frame(&mut self.frames, first, payload);
            self.count += 1;
        }
        self.write()?;
        self.peer.answer_until(sync::now())?;
        Ok(self.count)
    }

    fn write(&mut self) -> io::Result<()> {
        self.peer.write(&self.frames)?;
        self.frames.clear();
        // A long message took it.
        self.frames.shrink_to(2 * WRITE_SIZE);
        Ok(())
    }

    /// Tells the client that the recording cannot be replayed. Returns the error.
    fn fail(&mut self, error: io::Error) -> io::Error {
        // The client may have gone.
        let _ = self.peer.close_and_wait(1011, "the recording cannot be read");
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_scales_the_times_of_a_recording() {
        let hour = 3_600_000_000_000;
        for (pace, seconds) in [
            (Pace::Recorded, 3600.0),
            (Pace::Times(10.0), 360.0),
            (Pace::Times(0.5), 7200.0),
            (Pace::Unpaced, 0.0),
        ] {
            assert_eq!(pace.delay(hour), Duration::from_secs_f64(seconds), "{pace:?}");
        }
        // As slow as can be told counts as never.
        assert_eq!(Pace::Times(f64::MIN_POSITIVE).delay(u64::MAX), Duration::MAX);
        assert_eq!(Pace::Times(f64::MAX).delay(u64::MAX), Duration::ZERO);
    }

    #[test]
    fn a_speed_is_a_positive_number() {
        for speed in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = Pace::Times(speed).check().expect_err("it is refused");
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
        assert!(Pace::Times(0.1).check().is_ok());
    }
}
