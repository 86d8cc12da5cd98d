//! Curves: smoothing over all points, then reduction to pixel columns that keeps spikes.

/// A point of a curve: step and value.
pub type Point = (f64, f64);

/// Exponential moving average with bias correction; `decay` is the share kept of the past.
pub fn ema(points: &[Point], decay: f64) -> Vec<Point> {
    let mut average = 0.0;
    let mut weight = 0.0;
    points
        .iter()
        .map(|&(step, value)| {
            average = decay * average + (1.0 - decay) * value;
            weight = decay * weight + (1.0 - decay);
            (step, average / weight)
        })
        .collect()
}

/// Smallest and largest value of one pixel column.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Column {
    /// Middle of the column, in steps.
    pub step: f64,
    /// Smallest value.
    pub low: f64,
    /// Largest value.
    pub high: f64,
}

/// Reduces points to at most `columns` columns over a range of steps; empty columns are left out.
pub fn columns(points: &[Point], range: (f64, f64), columns: usize) -> Vec<Column> {
    let width = ((range.1 - range.0) / columns as f64).max(f64::MIN_POSITIVE);
    let mut reduced: Vec<Option<Column>> = vec![None; columns];
    for &(step, value) in points {
        let index = (((step - range.0) / width) as usize).min(columns.saturating_sub(1));
        let middle = range.0 + (index as f64 + 0.5) * width;
        let column = reduced[index].get_or_insert(Column {
            step: middle,
            low: value,
            high: value,
        });
        column.low = column.low.min(value);
        column.high = column.high.max(value);
    }
    reduced.into_iter().flatten().collect()
}

/// Keeps the last point of each of at most `columns` columns.
pub fn thinned(points: &[Point], columns: usize) -> Vec<Point> {
    let stride = points.len().div_ceil(columns.max(1)).max(1);
    let mut thin: Vec<Point> = points.iter().copied().step_by(stride).collect();
    if let (Some(last), Some(kept)) = (points.last(), thin.last())
        && last != kept
    {
        thin.push(*last);
    }
    thin
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_starts_at_the_first_value_and_keeps_a_constant() {
        let points: Vec<Point> = (0..50).map(|i| (f64::from(i), 2.0)).collect();
        assert!(ema(&points, 0.9).iter().all(|p| (p.1 - 2.0).abs() < 1e-12));
        let smoothed = ema(&[(0.0, 1.0), (1.0, 3.0)], 0.5);
        // (0.25 * 1 + 0.5 * 3) / 0.75
        assert!((smoothed[1].1 - 7.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn a_spike_survives_reduction() {
        let mut points: Vec<Point> = (0..10_000).map(|i| (f64::from(i), 1.0)).collect();
        points[5_003].1 = 9.0;
        let reduced = columns(&points, (0.0, 10_000.0), 300);
        assert_eq!(reduced.len(), 300);
        assert!(reduced.iter().any(|c| (c.high - 9.0).abs() < 1e-12));
    }

    #[test]
    fn thinning_keeps_the_ends() {
        let points: Vec<Point> = (0..1001).map(|i| (f64::from(i), 0.0)).collect();
        let thin = thinned(&points, 100);
        assert!(thin.len() <= 102);
        assert_eq!((thin[0].0, thin[thin.len() - 1].0), (0.0, 1000.0));
        assert!(thinned(&[], 100).is_empty());
    }
}
