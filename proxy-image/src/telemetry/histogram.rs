//! Histograms that cost two additions for each value, and no lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// The upper bounds of a histogram.
#[derive(Debug)]
pub(super) struct Bounds {
    bounds: &'static [u64],
    /// So many of the values' unit are one of the page's.
    scale: f64,
}

/// Milliseconds, of values in microseconds.
pub(super) const DURATIONS: Bounds = Bounds {
    bounds: &[
        500, 1_000, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
        5_000_000, 10_000_000, 30_000_000, 60_000_000,
    ],
    scale: 1000.0,
};

/// Bytes.
pub(super) const SIZES: Bounds = Bounds {
    bounds: &[100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000],
    scale: 1.0,
};

/// Counts values below bounds.
#[derive(Debug)]
pub(super) struct Histogram {
    of: &'static Bounds,
    /// One for each bound, and one for what is above them all.
    buckets: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Histogram {
    pub(super) fn new(of: &'static Bounds) -> Histogram {
        let buckets = (0..=of.bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram { of, buckets, sum: AtomicU64::new(0) }
    }

    /// Counts `value`.
    pub(super) fn observe(&self, value: u64) {
        let place = self.of.bounds.partition_point(|bound| *bound < value);
        if let Some(bucket) = self.buckets.get(place) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// Sum, number of values, and how many lie between each bound and the one before it; in the page's unit.
    pub(super) fn read(&self) -> (f64, u64, Vec<(f64, u64)>) {
        let counts = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed));
        let scaled = self.of.bounds.iter().map(|bound| *bound as f64 / self.of.scale);
        let buckets: Vec<_> = scaled.chain([f64::INFINITY]).zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        (self.sum.load(Ordering::Relaxed) as f64 / self.of.scale, count, buckets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_up_to_and_including_their_bound() {
        let histogram = Histogram::new(&DURATIONS);
        for value in [0, 500, 501, 1_000, 60_000_001] {
            histogram.observe(value);
        }
        let (sum, count, buckets) = histogram.read();
        assert_eq!((sum, count), (60_002.002, 5));
        assert_eq!(buckets[..3], [(0.5, 2), (1.0, 2), (5.0, 0)]);
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, 1)));
    }
}
