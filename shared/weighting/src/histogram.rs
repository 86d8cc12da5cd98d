//! Counts of weights in equal bins, for the report.

use serde::{Deserialize, Serialize};

/// Equal bins over a range; values outside fall into the end bins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Lower edge of the first bin.
    pub low: f64,
    /// Upper edge of the last bin.
    pub high: f64,
    /// Number of values per bin.
    pub counts: Vec<u64>,
}

impl Histogram {
    /// An empty histogram; a bin count of 0 counts as 1.
    pub fn new(low: f64, high: f64, bins: usize) -> Self {
        Self {
            low,
            high,
            counts: vec![0; bins.max(1)],
        }
    }

    /// Counts values; NaN is not counted.
    pub fn add(&mut self, values: &[f64]) {
        let bins = self.counts.len();
        let width = (self.high - self.low) / bins as f64;
        for value in values.iter().filter(|value| !value.is_nan()) {
            let bin = ((value - self.low) / width).clamp(0.0, (bins - 1) as f64);
            self.counts[bin as usize] += 1;
        }
    }

    /// Number of values counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fall_into_their_bins_and_outliers_into_the_ends() {
        let mut histogram = Histogram::new(0.0, 3.0, 3);
        histogram.add(&[-1.0, 0.5, 1.0, 2.999, 3.0, 9.0, f64::NAN]);
        assert_eq!(histogram.counts, [2, 1, 3]);
        assert_eq!(histogram.total(), 6);
    }
}
