//! Pings that await their pongs: what was sent before them, and how long they took.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The number of pings that are remembered: enough for a program that pings behind each of its
/// messages, a thousand a second over a round trip of a quarter of a second.
const REMEMBERED: usize = 256;

/// The pings of one connection.
#[derive(Default, Debug)]
pub(crate) struct PendingPings {
    pings: VecDeque<Ping>,
    /// The oldest unanswered ping's write, kept when the ping itself is forgotten.
    oldest_unanswered: Option<Instant>,
    confirmed: u64,
}

#[derive(Debug)]
struct Ping {
    nonce: [u8; 8],
    written: Instant,
    /// The highest sequence that had been sent before it.
    covers: u64,
}

impl PendingPings {
    /// Notes a ping that went out at `written`, behind all messages up to `covers`.
    pub(crate) fn wrote(&mut self, nonce: [u8; 8], written: Instant, covers: u64) {
        if self.pings.len() == REMEMBERED {
            self.pings.pop_front();
        }
        self.pings.push_back(Ping { nonce, written, covers });
        self.oldest_unanswered.get_or_insert(written);
    }

    /// Forgets the last ping, for which there was no room. The wait for room goes on counting as a
    /// wait for a pong.
    pub(crate) fn withdraw(&mut self) {
        self.pings.pop_back();
    }

    /// Notes a pong, which answers its ping and all earlier ones (RFC 6455 section 5.5.3). Returns
    /// the round-trip time if it answers any.
    pub(crate) fn answered(&mut self, payload: &[u8], now: Instant) -> Option<Duration> {
        let place = self.pings.iter().position(|ping| ping.nonce == payload)?;
        let ping = self.pings.drain(..=place).next_back()?;
        self.oldest_unanswered = self.pings.front().map(|ping| ping.written);
        self.confirmed = self.confirmed.max(ping.covers);
        Some(now.saturating_duration_since(ping.written))
    }

    pub(crate) fn oldest_unanswered(&self) -> Option<Instant> {
        self.oldest_unanswered
    }

    /// The highest sequence that a pong covers.
    pub(crate) fn confirmed(&self) -> u64 {
        self.confirmed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_pong_answers_its_ping_and_all_earlier_ones() {
        let start = Instant::now();
        let mut book = PendingPings::default();
        for number in 1..=4u8 {
            book.wrote([number; 8], start + u32::from(number) * MS, u64::from(number) * 10);
        }
        assert_eq!(book.oldest_unanswered(), Some(start + MS));
        assert_eq!(book.answered(&[3; 8], start + 10 * MS), Some(7 * MS));
        assert_eq!(book.confirmed(), 30);
        assert_eq!(book.oldest_unanswered(), Some(start + 4 * MS));
        // Late and repeated pongs are harmless.
        assert_eq!(book.answered(&[2; 8], start + 11 * MS), None);
        assert_eq!(book.answered(&[3; 8], start + 11 * MS), None);
        assert_eq!(book.answered(&[4; 8], start + 12 * MS), Some(8 * MS));
        assert_eq!(book.oldest_unanswered(), None);
    }

    #[test]
    fn unasked_pongs_change_nothing() {
        let mut book = PendingPings::default();
        assert_eq!(book.answered(b"", Instant::now()), None);
        book.wrote([1; 8], Instant::now(), 5);
        assert_eq!(book.answered(b"unasked", Instant::now()), None);
        assert_eq!(book.confirmed(), 0);
        assert!(book.oldest_unanswered().is_some());
    }

    #[test]
    fn a_ping_that_found_no_room_counts_until_something_is_answered() {
        let start = Instant::now();
        let mut book = PendingPings::default();
        for number in 1..=3u8 {
            book.wrote([number; 8], start + u32::from(number) * MS, 0);
            book.withdraw();
        }
        assert_eq!(book.oldest_unanswered(), Some(start + MS));
        assert_eq!(book.answered(&[1; 8], start + 4 * MS), None);
        book.wrote([4; 8], start + 4 * MS, 0);
        assert_eq!(book.answered(&[4; 8], start + 5 * MS), Some(MS));
        assert_eq!(book.oldest_unanswered(), None);
    }

    #[test]
    fn a_forgotten_ping_still_counts_as_unanswered() {
        let start = Instant::now();
        let mut book = PendingPings::default();
        let many = REMEMBERED as u32 + 12;
        for number in 0..many {
            book.wrote(nonce(number), start + number * MS, 0);
        }
        assert_eq!(book.oldest_unanswered(), Some(start));
        assert_eq!(book.answered(&nonce(0), start + many * MS), None);
        assert_eq!(book.answered(&nonce(12), start + many * MS), Some((many - 12) * MS));
        assert_eq!(book.oldest_unanswered(), Some(start + 13 * MS));
    }

    #[test]
    fn a_pong_confirms_however_many_pings_are_under_way() {
        let start = Instant::now();
        let mut book = PendingPings::default();
        // A ping behind each of a hundred orders a second, and a round trip of 100 ms: ten are
        // under way all the time.
        for number in 0..100 {
            book.wrote(nonce(number), start + number * 10 * MS, number.into());
            if let Some(back) = number.checked_sub(10) {
                assert_eq!(book.answered(&nonce(back), start + number * 10 * MS), Some(100 * MS));
            }
        }
        assert_eq!(book.confirmed(), 89);
    }

    fn nonce(number: u32) -> [u8; 8] {
        u64::from(number).to_ne_bytes()
    }
}
