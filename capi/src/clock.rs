//! Times as a C program tells them: nanoseconds of `CLOCK_MONOTONIC`.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Returns the nanoseconds of `CLOCK_MONOTONIC`.
pub(crate) fn now() -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a value of the type that is asked for.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) } != 0 {
        return 0;
    }
    #[allow(clippy::unnecessary_cast, reason = "both are shorter on 32-bit systems")]
    (time.tv_sec as i64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as i64)
}

/// One moment by both clocks. `Instant` does not show its number, but differences do: it is the
/// same clock on Linux.
#[derive(Clone, Copy)]
struct Anchor {
    instant: Instant,
    nanos: i64,
}

fn anchor() -> Anchor {
    static ANCHOR: OnceLock<Anchor> = OnceLock::new();
    *ANCHOR.get_or_init(|| {
        // The closest of some pairs, in case that the thread was preempted between two readings.
        let pairs = (0..8).map(|_| {
            let before = now();
            let instant = Instant::now();
            let after = now();
            (after - before, Anchor { instant, nanos: before + (after - before) / 2 })
        });
        pairs.min_by_key(|(apart, _)| *apart).expect("there are eight").1
    })
}

/// Returns the nanoseconds of `CLOCK_MONOTONIC` at `instant`.
pub(crate) fn nanos_at(instant: Instant) -> i64 {
    let Anchor { instant: anchored, nanos } = anchor();
    match instant.checked_duration_since(anchored) {
        Some(later) => nanos.saturating_add(nanos_of(later)),
        None => nanos.saturating_sub(nanos_of(anchored.duration_since(instant))),
    }
}

/// Returns the moment of a time of `CLOCK_MONOTONIC`, or the latest one that can be told.
pub(crate) fn instant_at(nanos: i64) -> Instant {
    let anchor = anchor();
    let apart = Duration::from_nanos(nanos.abs_diff(anchor.nanos));
    let moment = match nanos >= anchor.nanos {
        true => anchor.instant.checked_add(apart),
        false => anchor.instant.checked_sub(apart),
    };
    moment.unwrap_or(anchor.instant)
}

/// Returns the nanoseconds of a duration; the longest ones count as 292 years.
pub(crate) fn nanos_of(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// Returns the nanoseconds of a duration, and -1 if there is none.
pub(crate) fn nanos_or_never(duration: Option<Duration>) -> i64 {
    match duration {
        Some(Duration::MAX) | None => -1,
        Some(duration) => nanos_of(duration),
    }
}

/// The timeout that never expires.
const FOREVER: i64 = i64::MAX;

/// Returns the duration of a timeout. A negative one is past already.
pub(crate) fn timeout(nanos: i64) -> Duration {
    match nanos {
        FOREVER => Duration::MAX,
        nanos => u64::try_from(nanos).map_or(Duration::ZERO, Duration::from_nanos),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_tell_the_same_time() {
        for offset in [Duration::ZERO, Duration::from_millis(1), Duration::from_secs(3600)] {
            let instant = Instant::now() + offset;
            let nanos = nanos_at(instant);
            assert!(nanos.abs_diff(now() + nanos_of(offset)) < 1_000_000_000, "within a second");
            let back = instant_at(nanos);
            let apart = back.max(instant) - back.min(instant);
            assert_eq!(apart, Duration::ZERO);
        }
        let before = Instant::now().checked_sub(Duration::from_millis(50)).expect("it has run");
        assert_eq!(instant_at(nanos_at(before)), before);
    }

    #[test]
    fn a_negative_timeout_is_past_and_the_largest_never_expires() {
        assert_eq!(timeout(-1), Duration::ZERO);
        assert_eq!(timeout(i64::MIN), Duration::ZERO);
        assert_eq!(timeout(i64::MAX), Duration::MAX);
        assert_eq!(timeout(i64::MAX - 1), Duration::from_nanos(u64::MAX / 2 - 1));
        assert_eq!(timeout(0), Duration::ZERO);
        assert_eq!(timeout(5_000_000), Duration::from_millis(5));
        assert_eq!(nanos_or_never(None), -1);
        assert_eq!(nanos_or_never(Some(Duration::from_secs(1))), 1_000_000_000);
        assert_eq!(nanos_of(Duration::MAX), i64::MAX);
    }
}
