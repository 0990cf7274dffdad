//! The rolling windows of one rate limit: what may leave now, and when the next may. The time is an
//! argument.
//!
//! One log of the times at which messages left serves windows of any length, at a constant cost for
//! each: of a window of `count` messages the next may leave when the one `count` places before it
//! is old enough. A message that was let through and has not left yet takes a place in front of the
//! log, so that nothing overtakes a send that is blocked.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::time::after;

/// At most `count` messages within any `per`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) count: u32,
    pub(super) per: Duration,
    /// The messages of `count` that are left to what is urgent.
    pub(super) keep: u32,
}

impl Window {
    /// Returns the number of messages that it lets through together.
    pub(super) fn room(self, is_urgent: bool) -> u32 {
        if is_urgent { self.count } else { self.count.saturating_sub(self.keep) }
    }
}

/// The windows of one limit, and what counts against them.
pub(super) struct Windows {
    windows: Vec<Window>,
    margin: Duration,
    /// The times at which messages left, the oldest first. Holds no more than any window asks for.
    left: VecDeque<Instant>,
    /// The number of messages that were let through and have not left yet.
    pending: u32,
}

impl Windows {
    pub(super) fn new(windows: Vec<Window>, margin: Duration) -> Self {
        Windows { windows, margin, left: VecDeque::new(), pending: 0 }
    }

    /// Returns the earliest time, `now` or later, at which `weight` messages may be let through
    /// behind `ahead` others that wait: by what is known now, and if nothing is given back.
    ///
    /// It is exact where it is `now`. `weight` is the [`room`](Window::room) of each at most.
    pub(super) fn earliest(
        &self,
        ahead: u64,
        weight: u32,
        is_urgent: bool,
        now: Instant,
    ) -> Instant {
        let times = self.windows.iter().map(|window| {
            let room = u64::from(window.room(is_urgent).max(1));
            self.earliest_in(*window, room, ahead.saturating_add(u64::from(weight)), now)
        });
        times.max().unwrap_or(now).max(now)
    }

    fn earliest_in(&self, window: Window, room: u64, ahead: u64, now: Instant) -> Instant {
        let span = self.span(window);
        // The place of the last of them among those that have not left, from 1. It may leave a span
        // after the one `room` places before it.
        let place = u64::from(self.pending).saturating_add(ahead);
        let before = match place.checked_sub(room).filter(|before| *before > 0) {
            Some(before) => Some(self.leaves_at(window, before, now)),
            None => self.nth_last(room - place),
        };
        before.map_or(now, |before| after(before, span))
    }

    /// Returns when the `place`-th of those that have not left does, at the earliest: what is
    /// pending now, what waits as soon as the one `count` places before it is old enough.
    fn leaves_at(&self, window: Window, place: u64, now: Instant) -> Instant {
        let (pending, count) = (u64::from(self.pending), u64::from(window.count.max(1)));
        let turns = place.saturating_sub(count.max(pending)).div_ceil(count);
        let first = place - turns * count;
        let span = self.span(window);
        let begin = match first > pending {
            true => self.nth_last(count - first).map_or(now, |left| after(left, span).max(now)),
            false => now,
        };
        after(begin, span.saturating_mul(u32::try_from(turns).unwrap_or(u32::MAX)))
    }

    /// Returns when the message left that has `between` others after it.
    fn nth_last(&self, between: u64) -> Option<Instant> {
        let between = usize::try_from(between).ok()?;
        let index = self.left.len().checked_sub(between)?.checked_sub(1)?;
        self.left.get(index).copied()
    }

    /// Lets `weight` messages through: they count until they are settled.
    pub(super) fn take(&mut self, weight: u32) {
        self.pending = self.pending.saturating_add(weight);
    }

    /// Settles `weight` messages that were let through, of which `sent` have left at `now`. The
    /// others are given back.
    pub(super) fn settle(&mut self, weight: u32, sent: u32, now: Instant) {
        self.pending = self.pending.saturating_sub(weight);
        self.note(sent, now);
    }

    /// Counts `sent` messages that have left at `now`, let through or not.
    pub(super) fn note(&mut self, sent: u32, now: Instant) {
        let longest = self.windows.iter().map(|window| self.span(*window)).max();
        let most = self.windows.iter().map(|window| window.count).max().unwrap_or(0);
        // Whoever settles first may have read the clock last.
        let now = self.left.back().map_or(now, |last| now.max(*last));
        while let (Some(first), Some(longest)) = (self.left.front(), longest) {
            if after(*first, longest) > now {
                break;
            }
            self.left.pop_front();
        }
        for _ in 0..sent.min(most) {
            if self.left.len() >= most as usize {
                self.left.pop_front();
            }
            self.left.push_back(now);
        }
    }

    /// Returns the time for which a message counts.
    fn span(&self, window: Window) -> Duration {
        window.per.saturating_add(self.margin)
    }
}

#[cfg(test)]
mod tests {
    use rand::RngExt;
    use rand::rngs::StdRng;

    use super::*;
    use crate::property::{self, vec};

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn window(count: u32, per: Duration) -> Window {
        Window { count, per, keep: 0 }
    }

    fn weight_max(windows: &Windows, is_urgent: bool) -> u32 {
        let rooms = windows.windows.iter().map(|window| window.room(is_urgent));
        rooms.min().expect("it has windows")
    }

    /// Lets one message through and sends it, if there is room now.
    fn send(windows: &mut Windows, now: Instant) -> bool {
        let has_room = windows.earliest(0, 1, true, now) <= now;
        if has_room {
            windows.take(1);
            windows.settle(1, 1, now);
        }
        has_room
    }

    /// The same limit by the book: the time of every message, and a look at all of them.
    #[derive(Clone)]
    struct Book {
        windows: Vec<Window>,
        margin: Duration,
        left: Vec<Instant>,
        pending: u32,
    }

    impl Book {
        fn counted(&self, window: Window, now: Instant) -> u64 {
            let span = window.per + self.margin;
            let young = self.left.iter().filter(|left| now < **left + span).count();
            young as u64 + u64::from(self.pending)
        }

        fn has_room(&self, weight: u32, is_urgent: bool, now: Instant) -> bool {
            self.windows.iter().all(|window| {
                let kept = if is_urgent { 0 } else { window.keep };
                self.counted(*window, now) + u64::from(weight) <= u64::from(window.count - kept)
            })
        }

        /// Returns when there is room for `weight` messages behind urgent ones, if all of them
        /// leave as soon as they may.
        fn earliest(&self, ahead: u64, weight: u32, is_urgent: bool, now: Instant) -> Instant {
            let mut book = self.clone();
            let pending = std::mem::take(&mut book.pending);
            book.left.extend((0..pending).map(|_| now));
            let mut now = now;
            let mut ahead = ahead;
            loop {
                while ahead > 0 && book.has_room(1, true, now) {
                    book.left.push(now);
                    ahead -= 1;
                }
                if ahead == 0 && book.has_room(weight, is_urgent, now) {
                    return now;
                }
                let ends = book.windows.iter().flat_map(|window| {
                    let span = window.per + book.margin;
                    book.left.iter().map(move |left| *left + span)
                });
                now = ends.filter(|end| *end > now).min().expect("something counts");
            }
        }

        /// The most messages that left within any `per` of a window, over its count.
        fn is_over(&self) -> bool {
            self.windows.iter().any(|window| {
                self.left.iter().any(|first| {
                    let within = self.left.iter().filter(|left| {
                        **left >= *first && **left - *first < window.per + self.margin
                    });
                    within.count() > window.count as usize
                })
            })
        }
    }

    enum Step {
        Pass(u64),
        Take { weight: u32, is_urgent: bool },
        Settle { place: usize, sent: u32 },
        Note,
        Ask { ahead: u64, weight: u32, is_urgent: bool },
    }

    fn step(rng: &mut StdRng) -> Step {
        match rng.random_range(0..7) {
            0 => Step::Pass(rng.random_range(0..2500)),
            1 => Step::Pass(1),
            2 => Step::Take { weight: rng.random_range(1..4), is_urgent: rng.random() },
            3 => Step::Settle { place: rng.random_range(0..4), sent: rng.random_range(0..4) },
            4 => Step::Settle { place: rng.random_range(0..4), sent: 3 },
            5 => Step::Note,
            _ => Step::Ask {
                ahead: rng.random_range(0..6),
                weight: rng.random_range(1..4),
                is_urgent: rng.random(),
            },
        }
    }

    fn random_window(rng: &mut StdRng) -> Window {
        Window {
            count: rng.random_range(3..8),
            per: Duration::from_nanos(rng.random_range(1..3000)),
            keep: rng.random_range(0..3),
        }
    }

    /// Against the book, with a clock of single nanoseconds: room exactly where it has room,
    /// and never a time that is too late.
    #[test]
    fn there_is_room_exactly_where_the_log_of_everything_says_so() {
        property::check(1000, |rng| {
            let windows = vec(rng, 1..4, random_window);
            let margin = Duration::from_nanos(rng.random_range(0..300));
            let steps = vec(rng, 1..120, step);
            let mut now = Instant::now();
            let mut book = Book { windows: windows.clone(), margin, left: Vec::new(), pending: 0 };
            let mut windows = Windows::new(windows, margin);
            let (mut taken, mut has_noted) = (Vec::new(), false);
            for step in steps {
                match step {
                    Step::Pass(nanos) => now += Duration::from_nanos(nanos),
                    Step::Take { weight, is_urgent } => {
                        if weight > weight_max(&windows, is_urgent) {
                            continue;
                        }
                        let has_room = windows.earliest(0, weight, is_urgent, now) <= now;
                        assert_eq!(has_room, book.has_room(weight, is_urgent, now));
                        if has_room {
                            windows.take(weight);
                            book.pending += weight;
                            taken.push(weight);
                        }
                    }
                    Step::Settle { place, sent } => {
                        if place < taken.len() {
                            let weight = taken.remove(place);
                            let sent = sent.min(weight);
                            windows.settle(weight, sent, now);
                            book.pending -= weight;
                            book.left.extend((0..sent).map(|_| now));
                        }
                    }
                    Step::Note => {
                        windows.note(1, now);
                        book.left.push(now);
                        has_noted = true;
                    }
                    Step::Ask { ahead, weight, is_urgent } => {
                        if weight > weight_max(&windows, is_urgent) {
                            continue;
                        }
                        let earliest = windows.earliest(ahead, weight, is_urgent, now);
                        let exact = book.earliest(ahead, weight, is_urgent, now);
                        // Several windows together may delay it further.
                        assert!(earliest <= exact);
                        if book.windows.len() == 1 {
                            assert_eq!(earliest, exact);
                        }
                        assert_eq!(earliest <= now, exact <= now);
                    }
                }
                let most = book.windows.iter().map(|window| window.count).max();
                assert!(windows.left.len() <= most.unwrap_or(0) as usize);
            }
            assert!(has_noted || !book.is_over());
        });
    }

    #[test]
    fn of_a_window_the_next_may_leave_when_the_first_is_old_enough() {
        let mut windows = Windows::new(vec![window(2, SECOND)], 100 * MS);
        let now = Instant::now();
        assert!(send(&mut windows, now) && send(&mut windows, now + 300 * MS));
        assert!(!send(&mut windows, now + 400 * MS));
        assert_eq!(windows.earliest(0, 1, true, now + 400 * MS), now + 1100 * MS);
        assert_eq!(windows.earliest(0, 2, true, now + 400 * MS), now + 1400 * MS);
        // Behind others: in pairs, a span after each other.
        assert_eq!(windows.earliest(1, 1, true, now + 400 * MS), now + 1400 * MS);
        assert_eq!(windows.earliest(2, 1, true, now + 400 * MS), now + 2200 * MS);
        assert!(!send(&mut windows, now + 1100 * MS - Duration::from_nanos(1)));
        assert!(send(&mut windows, now + 1100 * MS));
    }

    #[test]
    fn what_has_not_left_counts_until_it_has_and_from_then_on() {
        let mut windows = Windows::new(vec![window(1, SECOND)], Duration::ZERO);
        let now = Instant::now();
        windows.take(1);
        let much_later = now + 60 * SECOND;
        assert_eq!(windows.earliest(0, 1, true, much_later), much_later + SECOND);
        windows.settle(1, 1, much_later);
        assert!(!send(&mut windows, much_later + SECOND - MS));
        assert!(send(&mut windows, much_later + SECOND));
        // And what was given back does not count.
        windows.take(1);
        windows.settle(1, 0, much_later + SECOND);
        assert!(send(&mut windows, much_later + 2 * SECOND));
    }

    #[test]
    fn who_read_the_clock_first_and_settles_last_makes_no_room() {
        let mut windows = Windows::new(vec![window(2, SECOND)], Duration::ZERO);
        let now = Instant::now();
        windows.take(2);
        windows.settle(1, 1, now + 500 * MS);
        windows.settle(1, 1, now);
        assert_eq!(windows.earliest(0, 2, true, now + 500 * MS), now + 1500 * MS);
    }

    #[test]
    fn what_is_kept_is_left_to_what_is_urgent() {
        let mut windows =
            Windows::new(vec![Window { count: 5, per: SECOND, keep: 2 }], Duration::ZERO);
        let now = Instant::now();
        assert_eq!((weight_max(&windows, false), weight_max(&windows, true)), (3, 5));
        windows.take(3);
        assert!(windows.earliest(0, 1, false, now) > now);
        assert_eq!(windows.earliest(0, 2, true, now), now);
        // All that is pending may leave now, and the next that is not urgent a span later.
        windows.take(2);
        assert_eq!(windows.earliest(0, 1, false, now), now + SECOND);
    }

    #[test]
    fn windows_that_never_end_do_not_overflow() {
        let longest = window(u32::MAX, Duration::MAX);
        let mut windows = Windows::new(vec![longest, window(1, Duration::MAX)], Duration::MAX);
        let now = Instant::now();
        assert!(send(&mut windows, now));
        assert!(windows.earliest(u64::MAX, 1, true, now) > now + 365 * 24 * 3600 * SECOND);
        assert!(windows.earliest(0, 1, true, now) > now + 365 * 24 * 3600 * SECOND);
    }

    /// A day of sends at random times, against a server that closes at the sixth in any second: it
    /// counts arrivals, and the network delays each by up to the margin.
    #[test]
    fn a_day_of_random_sends_never_exceeds_what_the_server_counts() {
        let mut windows = Windows::new(
            vec![window(5, SECOND), window(1, 150 * MS), window(7200, 3600 * SECOND)],
            100 * MS,
        );
        let begin = Instant::now();
        let (mut now, mut random, mut sent, mut wished) = (begin, 1u64, 0u32, 0u32);
        let mut arrivals: VecDeque<Instant> = VecDeque::new();
        while now < begin + 24 * 3600 * SECOND {
            // xorshift64: the same day each time.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            now += Duration::from_micros(random % 600_000);
            wished += 1;
            let at = windows.earliest(0, 1, true, now);
            now = at;
            assert!(send(&mut windows, now));
            sent += 1;
            let delay = Duration::from_micros((random >> 32) % 100_000);
            // TCP keeps the order.
            let arrival = arrivals.back().map_or(now + delay, |last| (now + delay).max(*last));
            arrivals.push_back(arrival);
            if arrivals.len() > 6 {
                arrivals.pop_front();
            }
            if arrivals.len() == 6 {
                assert!(arrival - arrivals[0] >= SECOND, "the server would have closed");
            }
        }
        assert_eq!(sent, wished);
        assert!(windows.left.len() <= 7200);
    }

    #[test]
    fn nine_tenths_of_what_is_allowed_are_used() {
        for (count, per, margin) in
            [(5, SECOND, 100 * MS), (1, 250 * MS, 25 * MS), (300, 300 * SECOND, 100 * MS)]
        {
            let mut windows = Windows::new(vec![window(count, per)], margin);
            let begin = Instant::now();
            let (mut now, mut sent) = (begin, 0);
            while now < begin + 3600 * SECOND {
                now = windows.earliest(0, 1, true, now);
                assert!(send(&mut windows, now));
                sent += 1;
            }
            let allowed = 3600.0 / per.as_secs_f64() * f64::from(count);
            assert!(f64::from(sent) >= 0.9 * allowed, "{sent} of {allowed}");
        }
    }
}
