//! Figures for people: durations, counts and their distribution.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest duration that is told apart from longer ones.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The rows of a histogram, and the columns of its longest bar.
const ROWS: u64 = 10;
const BAR: u64 = 40;

/// Durations, with three digits of precision, in bounded memory.
pub(crate) struct Durations {
    nanos: Histogram<u64>,
    /// The mean of the histogram would be that of its steps.
    total: Duration,
}

impl Durations {
    pub(crate) fn new() -> Self {
        let longest = LONGEST.as_nanos() as u64;
        let nanos = Histogram::new_with_max(longest, 3).expect("the bounds are in order");
        Durations { nanos, total: Duration::ZERO }
    }

    pub(crate) fn record(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.saturating_record(nanos);
        self.total = self.total.saturating_add(duration);
    }

    pub(crate) fn count(&self) -> u64 {
        self.nanos.len()
    }

    pub(crate) fn longest(&self) -> Duration {
        Duration::from_nanos(self.nanos.max())
    }

    fn at(&self, percent: f64) -> Duration {
        Duration::from_nanos(self.nanos.value_at_percentile(percent))
    }

    fn mean(&self) -> Duration {
        let nanos = self.total.as_nanos() / u128::from(self.count().max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Displays the extremes, the mean and the percentiles. Some must have been recorded.
    pub(crate) fn percentiles(&self) -> impl fmt::Display {
        format!(
            "min {}, mean {}, p50 {}, p90 {}, p99 {}, p99.9 {}, max {}",
            Short(Duration::from_nanos(self.nanos.min())),
            Short(self.mean()),
            Short(self.at(50.0)),
            Short(self.at(90.0)),
            Short(self.at(99.0)),
            Short(self.at(99.9)),
            Short(self.longest()),
        )
    }

    /// Displays a histogram whose steps are round numbers, up to the 99th percentile; its last row
    /// is the rest. Some must have been recorded.
    pub(crate) fn histogram(&self) -> impl fmt::Display {
        let nanos = &self.nanos;
        let (least, most) = (nanos.median_equivalent(nanos.min()), nanos.value_at_percentile(99.0));
        let step = round_up((most - least) / ROWS + 1);
        let start = least / step * step;
        let last = (most - start) / step;
        let mut rows: Vec<(Option<u64>, u64, u64)> =
            (0..=last).map(|row| (Some(start + (row + 1) * step), start + row * step, 0)).collect();
        let mut rest = 0;
        for recorded in nanos.iter_recorded() {
            let value = nanos.median_equivalent(recorded.value_iterated_to());
            let count = recorded.count_at_value();
            match rows.get_mut(((value - start) / step) as usize) {
                Some((_, _, in_row)) => *in_row += count,
                None => rest += count,
            }
        }
        if rest > 0 {
            rows.push((None, start + (last + 1) * step, rest));
        }
        let highest = rows.iter().map(|&(_, _, count)| count).max().unwrap_or(1);
        let mut text = String::new();
        for (to, from, count) in rows {
            let to = to.map_or("more".to_owned(), |to| Short(Duration::from_nanos(to)).to_string());
            let from = Short(Duration::from_nanos(from)).to_string();
            // One count is a bar too.
            let bar = "#".repeat((count * BAR).div_ceil(highest) as usize);
            let row = format!("{from:>9} - {to:<9} {count:>9}  {bar}");
            text.push_str(row.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Returns the next of 1, 2, 5, 10, 20, 50 and so on.
fn round_up(value: u64) -> u64 {
    let mut power = 1u64;
    loop {
        for factor in [1, 2, 5] {
            if power.saturating_mul(factor) >= value {
                return power.saturating_mul(factor);
            }
        }
        power = power.saturating_mul(10);
    }
}

/// Displays a duration with three digits: `1.23ms`.
pub(crate) struct Short(pub(crate) Duration);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos() as f64;
        let (value, unit) = match nanos {
            nanos if nanos < 1e3 => return f.pad(&format!("{nanos}ns")),
            nanos if nanos < 999.5e3 => (nanos / 1e3, "µs"),
            nanos if nanos < 999.5e6 => (nanos / 1e6, "ms"),
            _ => (nanos / 1e9, "s"),
        };
        let decimals = if value < 9.995 {
            2
        } else if value < 99.95 {
            1
        } else {
            0
        };
        f.pad(&format!("{value:.decimals$}{unit}"))
    }
}

/// Displays a count with commas: `1,234,567`.
pub(crate) struct Grouped(pub(crate) u64);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let mut text = String::new();
        for (place, digit) in digits.chars().enumerate() {
            if place > 0 && (digits.len() - place) % 3 == 0 {
                text.push(',');
            }
            text.push(digit);
        }
        f.pad(&text)
    }
}

/// Displays a number of bytes with three digits: `1.23 MB`. A MB is a million bytes.
pub(crate) struct Bytes(pub(crate) f64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0;
        let mut units = ["B", "kB", "MB", "GB", "TB"].into_iter();
        let mut unit = units.next().expect("the first");
        for next in units {
            if value < 999.5 {
                break;
            }
            (value, unit) = (value / 1e3, next);
        }
        let decimals = if unit == "B" || value >= 99.95 {
            0
        } else if value < 9.995 {
            2
        } else {
            1
        };
        f.pad(&format!("{value:.decimals$} {unit}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits() {
        for (nanos, text) in [
            (0, "0ns"),
            (999, "999ns"),
            (1000, "1.00µs"),
            (12_345, "12.3µs"),
            (999_400, "999µs"),
            (999_500, "1.00ms"),
            (99_960_000, "100ms"),
            (1_500_000_000, "1.50s"),
            (4_000_000_000_000, "4000s"),
        ] {
            assert_eq!(Short(Duration::from_nanos(nanos)).to_string(), text);
        }
        for (bytes, text) in [
            (0.0, "0 B"),
            (999.0, "999 B"),
            (1234.0, "1.23 kB"),
            (12.3e6, "12.3 MB"),
            (1e15, "1000 TB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
        for (count, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(Grouped(count).to_string(), text);
        }
    }

    #[test]
    fn a_histogram_counts_everything_once() {
        let mut durations = Durations::new();
        for millis in 1..=200 {
            durations.record(Duration::from_micros(millis % 20 * 1000 + 10_500));
        }
        durations.record(Duration::from_secs(3));
        let text = durations.histogram().to_string();
        let counts = |row: &str| row.split_whitespace().nth(3)?.parse::<u64>().ok();
        assert_eq!(text.lines().filter_map(counts).sum::<u64>(), 201, "{text}");
        assert!(text.lines().count() <= ROWS as usize + 2, "{text}");
        assert!(text.starts_with("   10.0ms - 12.0ms"), "{text}");
        assert!(text.ends_with(" - more              1  ##\n"), "{text}");
        let percentiles = durations.percentiles().to_string();
        assert!(percentiles.starts_with("min 10.5ms, mean 34.8ms, p50 20.5ms"), "{percentiles}");
    }

    #[test]
    fn a_single_duration_is_a_histogram_of_one_row() {
        let mut durations = Durations::new();
        durations.record(Duration::ZERO);
        assert_eq!(durations.histogram().to_string().lines().count(), 1);
    }
}
