//! The wait before dialing again.

use std::time::Duration;

/// The range of the waits before dialing again: capped exponential growth with full jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backoff {
    pub(crate) min: Duration,
    pub(crate) max: Duration,
}

impl Backoff {
    /// The wait before the `retry`-th retry in a row (from 1): uniform in `[0, min(max, min *
    /// 2^(retry-1))]`, with `jitter` in [0, 1).
    ///
    /// With 250 ms and 30 s the ceilings are 250 ms, 500 ms, 1 s, 2 s, 4 s, 8 s, 16 s, 30 s, 30 s,
    /// ...
    pub(crate) fn delay(&self, retry: u32, jitter: f64) -> Duration {
        self.ceiling(retry).mul_f64(jitter.clamp(0.0, 1.0))
    }

    fn ceiling(&self, retry: u32) -> Duration {
        let doublings = retry.saturating_sub(1).min(31);
        self.min.saturating_mul(1 << doublings).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn backoff_doubles_to_its_cap_and_jitters_over_the_whole_range() {
        let backoff = Backoff { min: 250 * MS, max: 30_000 * MS };
        for retry in 1..=100u32 {
            let ceiling = (250u64 << (retry - 1).min(20)).min(30_000);
            assert_eq!(backoff.delay(retry, 0.0), Duration::ZERO);
            assert_eq!(backoff.delay(retry, 0.5), Duration::from_millis(ceiling) / 2);
            assert_eq!(backoff.delay(retry, 1.0), Duration::from_millis(ceiling));
        }
        let huge = Backoff { min: Duration::MAX, max: Duration::MAX };
        assert_eq!(huge.delay(u32::MAX, 0.0), Duration::ZERO);
    }
}
