//! Numbers of the messages of one connection.

use crate::error::{Error, ErrorKind};
use crate::sync::atomic::{AtomicU64, Ordering};

/// Set once no message begins any more. The lower bits count.
const FINISHED: u64 = 1 << 63;

/// Counts messages before their first byte leaves, so that whoever reports the end of the
/// connection misses none.
///
/// Counting and finishing are one atomic step each: a message is either counted before the end, or
/// refused. Only the holder of the writer's lock counts.
#[derive(Default)]
pub(crate) struct Sequence(AtomicU64);

impl Sequence {
    /// Counts `messages` as begun, and returns the number of the last.
    ///
    /// # Errors
    /// `Closed` once the sequence is finished.
    pub(crate) fn begin(&self, messages: u64) -> Result<u64, Error> {
        let counted = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| {
            (count & FINISHED == 0).then_some(count + messages)
        });
        counted.map(|before| before + messages).map_err(|_| closing())
    }

    /// Takes back messages of which no byte has left.
    pub(crate) fn take_back(&self, messages: u64) {
        self.0.fetch_sub(messages, Ordering::SeqCst);
    }

    /// Lets no message begin any more.
    pub(crate) fn finish(&self) {
        self.0.fetch_or(FINISHED, Ordering::SeqCst);
    }

    /// # Errors
    /// `Closed` once the sequence is finished.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.0.load(Ordering::SeqCst) & FINISHED != 0 { Err(closing()) } else { Ok(()) }
    }

    /// The number of the last message that was sent or begun.
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst) & !FINISHED
    }
}

#[cold]
fn closing() -> Error {
    Error::new(ErrorKind::Closed, "the connection is closing")
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_back_is_not_counted_and_nothing_begins_after_the_end() {
        let sequence = Sequence::default();
        assert_eq!(sequence.begin(3).ok(), Some(3));
        assert_eq!(sequence.begin(2).ok(), Some(5));
        sequence.take_back(1);
        assert_eq!(sequence.count(), 4);
        assert!(sequence.check().is_ok());
        sequence.finish();
        sequence.finish();
        assert_eq!(sequence.begin(1).expect_err("it is over").kind(), ErrorKind::Closed);
        assert_eq!(sequence.check().expect_err("it is over").kind(), ErrorKind::Closed);
        // A send that was under way when the end came, and of which nothing has left.
        sequence.take_back(1);
        assert_eq!(sequence.count(), 3);
        assert!(sequence.check().is_err());
    }
}
