//! The read buffer: bytes that have been received and not yet parsed.

use std::time::{Duration, Instant};

/// The read buffer of a quiet connection.
const SIZE_MIN: usize = 16 * 1024;

/// The size to which bursts make it grow. Only a frame that is longer, and whose bytes really come,
/// makes it grow further.
const SIZE_BURST: usize = 256 * 1024;

/// After this long without a burst or a long frame the buffer shrinks.
pub(super) const QUIET: Duration = Duration::from_secs(10);

/// Bytes that have been received and not yet been understood.
///
/// The vector is initialised once, when it grows, and never cleared again: clearing 64 KiB before
/// every `recv` costs more than parsing.
pub(crate) struct ReadBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// The length of the frame at the front, as far as it is known.
    announced: usize,
    /// The time at which the size was last needed.
    needed_at: Option<Instant>,
    was_needed: bool,
}

impl ReadBuffer {
    /// A buffer that holds `leftover` already.
    pub(crate) fn with_leftover(leftover: &[u8]) -> Self {
        let mut bytes = vec![0; SIZE_MIN.max(leftover.len())];
        bytes[..leftover.len()].copy_from_slice(leftover);
        ReadBuffer {
            bytes,
            start: 0,
            end: leftover.len(),
            announced: 0,
            needed_at: None,
            was_needed: false,
        }
    }

    /// Returns the room for the next bytes. Never empty.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        if self.end == self.bytes.len() {
            self.make_room();
        }
        &mut self.bytes[self.end..]
    }

    /// The whole rest of the buffer was filled, or holds one frame that is longer: moves what is
    /// unread to the front, and grows.
    #[cold]
    fn make_room(&mut self) {
        let unread = self.end - self.start;
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, unread);
        }
        // Half of it free is enough to go on with; less, and a long frame would be moved again and
        // again.
        if unread > self.bytes.len() / 2 {
            // Doubling follows the bytes that have really come, and ends where the frame does.
            let doubled = self.bytes.len() * 2;
            let enough = self.announced.max(SIZE_BURST);
            let size =
                if enough > unread { doubled.min(enough).max(self.bytes.len()) } else { doubled };
            self.bytes.resize(size, 0);
            self.was_needed = true;
        }
    }

    /// `count` bytes have been put into the room.
    pub(crate) fn filled(&mut self, count: usize) {
        let was_filled_up = count > 0 && self.end + count == self.bytes.len();
        self.end += count;
        if was_filled_up {
            self.was_needed = true;
            if self.bytes.len() < SIZE_BURST {
                // A `recv` that fills the room leaves more in the kernel: fewer, larger reads.
                self.bytes.resize(self.bytes.len() * 2, 0);
            }
        }
    }

    /// Returns the unparsed bytes, to be taken off the front.
    #[inline]
    pub(crate) fn unread(&mut self) -> Unread<'_> {
        Unread {
            rest: &self.bytes[self.start..self.end],
            start: &mut self.start,
            end: &mut self.end,
            announced: &mut self.announced,
        }
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Keeps when the size was needed. To be told soon after it was.
    #[inline]
    pub(crate) fn note_need(&mut self, now: Instant) {
        if std::mem::take(&mut self.was_needed) {
            self.needed_at = Some(now);
        }
    }

    /// Shrinks a buffer whose size was not needed for a while; whether it did.
    pub(crate) fn settle(&mut self, now: Instant) -> bool {
        let is_quiet = self.needed_at.is_none_or(|at| now.saturating_duration_since(at) >= QUIET);
        let unread = self.end - self.start;
        if !is_quiet || self.bytes.len() == SIZE_MIN || unread > SIZE_MIN / 2 {
            return false;
        }
        let mut smaller = vec![0; SIZE_MIN];
        smaller[..unread].copy_from_slice(&self.bytes[self.start..self.end]);
        *self = ReadBuffer {
            bytes: smaller,
            start: 0,
            end: unread,
            announced: self.announced,
            needed_at: None,
            was_needed: false,
        };
        true
    }

    #[cfg(any(test, all(feature = "_internals", unix)))]
    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }
}

/// The unread bytes of a [`ReadBuffer`]. Dropping this removes from the buffer what was
/// taken off them, in a panic too.
pub(crate) struct Unread<'a> {
    rest: &'a [u8],
    start: &'a mut usize,
    end: &'a mut usize,
    announced: &'a mut usize,
}

impl<'a> Unread<'a> {
    #[inline]
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.rest
    }

    /// Takes `count` bytes off the front.
    #[inline]
    pub(crate) fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(count);
        self.rest = rest;
        taken
    }

    /// The frame at the front is `len` bytes long, and more of it is to come.
    pub(crate) fn announce(&mut self, len: usize) {
        *self.announced = len;
    }

    /// Takes everything off the front but `rest`, the end of [`bytes`](Unread::bytes).
    #[inline]
    pub(crate) fn take_up_to(&mut self, rest: &'a [u8]) {
        debug_assert!(self.rest.ends_with(rest));
        self.rest = rest;
    }
}

impl Drop for Unread<'_> {
    #[inline]
    fn drop(&mut self) {
        *self.start = *self.end - self.rest.len();
        if self.rest.is_empty() {
            // Everything has been understood: the next bytes go to the front again, without a copy.
            (*self.start, *self.end) = (0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffer_grows_with_bursts_and_shrinks_after_a_quiet_while() {
        let mut buffer = ReadBuffer::with_leftover(b"x");
        assert_eq!(buffer.size(), SIZE_MIN);
        for _ in 0..20 {
            let room = buffer.room().len();
            buffer.filled(room);
            buffer.clear();
        }
        assert_eq!(buffer.size(), SIZE_BURST);
        let now = Instant::now();
        buffer.note_need(now);
        assert!(!buffer.settle(now));
        assert!(!buffer.settle(now + QUIET / 2));
        assert!(buffer.settle(now + QUIET));
        assert_eq!(buffer.size(), SIZE_MIN);
        assert!(!buffer.settle(now + 3 * QUIET));
    }

    #[test]
    fn the_buffer_grows_no_further_than_the_frame_that_comes() {
        let len = 16 * 1024 * 1024 + 10;
        let mut buffer = ReadBuffer::with_leftover(&[0; 100]);
        let mut received = 100;
        while received < len {
            buffer.unread().announce(len);
            let room = buffer.room().len().min(len - received).min(100_000);
            buffer.filled(room);
            received += room;
        }
        assert_eq!(buffer.unread().bytes().len(), len);
        assert_eq!(buffer.size(), len);
        // The next frame begins in the middle of it, and announces less than there is.
        buffer.unread().take(len - 1000);
        buffer.unread().announce(2000);
        assert!(!buffer.room().is_empty());
        assert_eq!(buffer.size(), len);
    }

    #[test]
    fn the_buffer_keeps_what_is_unread_when_it_makes_room() {
        let mut buffer = ReadBuffer::with_leftover(&[]);
        let mut written = 0u32;
        let mut read = 0u32;
        for step in 0..5000usize {
            let room = buffer.room();
            let count = room.len().min(1 + step % 97) / 4 * 4;
            for chunk in room[..count].chunks_exact_mut(4) {
                chunk.copy_from_slice(&written.to_ne_bytes());
                written += 1;
            }
            buffer.filled(count);
            if step % 3 == 0 {
                let mut unread = buffer.unread();
                let mut take = |read: u32| {
                    let there = unread.bytes().len() >= 4;
                    if there {
                        let bytes = unread.take(4).try_into().expect("four were asked for");
                        assert_eq!(u32::from_ne_bytes(bytes), read);
                    }
                    there
                };
                while read % 50 != 49 && take(read) {
                    read += 1;
                }
                read += u32::from(read % 50 == 49 && take(read));
            }
        }
        assert!(read > 1000);
    }

    #[test]
    fn a_full_buffer_grows_only_if_more_than_half_of_it_is_unread() {
        for (taken, size) in [(0, 32_768), (8191, 32_768), (8192, 16_384), (16_384, 16_384)] {
            let mut buffer = ReadBuffer::with_leftover(&[7; 16_384]);
            buffer.unread().take(taken);
            let room = buffer.room().len();
            assert_eq!((room, buffer.size()), (size - (16_384 - taken), size), "{taken}");
            assert_eq!(buffer.unread().bytes(), vec![7; 16_384 - taken]);
        }
    }

    #[test]
    fn a_buffer_that_holds_exactly_a_burst_still_has_room() {
        let mut buffer = ReadBuffer::with_leftover(&[0; SIZE_BURST]);
        assert_eq!(buffer.room().len(), SIZE_BURST);
        assert_eq!(buffer.size(), 2 * SIZE_BURST);
    }

    #[test]
    fn a_read_that_fills_the_room_doubles_the_buffer_and_no_other_does() {
        let mut buffer = ReadBuffer::with_leftover(&[0; 100]);
        buffer.filled(16_283);
        assert_eq!(buffer.size(), 16_384);
        buffer.filled(1);
        assert_eq!(buffer.size(), 32_768);
        let mut full = ReadBuffer::with_leftover(&[0; 16_384]);
        full.filled(0);
        assert_eq!(full.size(), 16_384);
    }

    #[test]
    fn a_buffer_shrinks_with_its_content_if_that_fills_no_more_than_half_of_it() {
        let content: Vec<u8> = (0..20_000u32).map(|number| number as u8).collect();
        for (unread, shrinks) in [(8193, false), (8192, true), (1, true)] {
            let mut buffer = ReadBuffer::with_leftover(&content);
            buffer.unread().take(content.len() - unread);
            assert_eq!(buffer.settle(Instant::now()), shrinks, "{unread}");
            assert_eq!(buffer.size(), if shrinks { SIZE_MIN } else { content.len() });
            assert_eq!(buffer.unread().bytes(), &content[content.len() - unread..]);
        }
    }

    #[test]
    fn what_is_taken_is_gone_and_what_is_cleared_too() {
        let mut buffer = ReadBuffer::with_leftover(b"abcdef");
        assert_eq!(buffer.unread().take(2), b"ab");
        let mut unread = buffer.unread();
        let rest = &unread.bytes()[3..];
        unread.take_up_to(rest);
        drop(unread);
        assert_eq!(buffer.unread().bytes(), b"f");
        // Once everything is taken, the next bytes go to the front.
        buffer.unread().take(1);
        assert_eq!(buffer.room().len(), SIZE_MIN);
        buffer.filled(10);
        buffer.clear();
        assert!(buffer.unread().bytes().is_empty());
        assert_eq!(buffer.room().len(), SIZE_MIN);
    }
}
