//! Samples and the statistics that tables show.

use std::time::Duration;

/// Samples of one quantity.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    micros: Vec<f64>,
}

impl Samples {
    /// Takes samples in microseconds.
    pub(crate) fn of_micros(micros: Vec<f64>) -> Samples {
        Samples { micros }
    }

    /// Adds a sample.
    pub(crate) fn push(&mut self, sample: Duration) {
        self.micros.push(sample.as_secs_f64() * 1e6);
    }

    /// Returns the value below which `percent` percent of the samples lie, in milliseconds; 0 without
    /// samples.
    pub(crate) fn percentile_ms(&self, percent: usize) -> f64 {
        let mut sorted = self.micros.clone();
        sorted.sort_by(f64::total_cmp);
        let index = (sorted.len().saturating_sub(1) * percent).div_ceil(100);
        sorted.get(index).copied().unwrap_or(0.0) / 1e3
    }

    /// Returns the median, in milliseconds.
    pub(crate) fn median_ms(&self) -> f64 {
        self.percentile_ms(50)
    }
}

/// Returns the median; 0 without samples.
pub(super) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let mut samples = Samples::default();
        for micros in (1..=100).rev() {
            samples.push(Duration::from_micros(micros * 1000));
        }
        assert_eq!(samples.percentile_ms(0), 1.0);
        assert_eq!(samples.median_ms(), 51.0);
        assert_eq!(samples.percentile_ms(100), 100.0);
        assert_eq!(Samples::default().median_ms(), 0.0);
    }
}
