//! How numbers are put into words, so that analyses and pages say the same.

use crate::Interval;

/// A share as a percentage with one decimal: `41.8%`.
pub fn percent(share: f64) -> String {
    format!("{}%", in_percent(share))
}

/// A difference of shares with its sign: `+2.4 points`.
pub fn points(difference: f64) -> String {
    format!("{} points", signed(difference))
}

/// A difference of shares in points, true minus sign, no sign on zero: `−0.5`.
pub fn signed(difference: f64) -> String {
    let text = in_percent(difference.abs());
    match text.as_str() {
        "0.0" => text,
        _ if difference < 0.0 => format!("\u{2212}{text}"),
        _ => format!("+{text}"),
    }
}

/// An interval of shares in per cent: `37.6 to 46.2`.
pub fn level_range(interval: &Interval) -> String {
    format!(
        "{} to {}",
        in_percent(interval.low),
        in_percent(interval.high)
    )
}

/// An interval of a difference in points: `−0.5 to +5.3`.
pub fn signed_range(interval: &Interval) -> String {
    format!("{} to {}", signed(interval.low), signed(interval.high))
}

/// A number with its noun: `1 seed`, `3 seeds`.
pub fn count(number: usize, noun: &str) -> String {
    if number == 1 {
        format!("1 {noun}")
    } else {
        format!("{number} {noun}s")
    }
}

/// A share in per cent, without the sign: `43.0`.
pub fn in_percent(share: f64) -> String {
    format!("{:.1}", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_are_true_and_zero_has_none() {
        assert_eq!(points(0.024), "+2.4 points");
        assert_eq!(signed(-0.005), "\u{2212}0.5");
        assert_eq!(signed(-0.0001), "0.0");
        let interval = Interval {
            low: -0.005,
            high: 0.053,
        };
        assert_eq!(signed_range(&interval), "\u{2212}0.5 to +5.3");
        assert_eq!(level_range(&interval), "-0.5 to 5.3");
        assert_eq!(percent(0.418), "41.8%");
        assert_eq!(count(1, "seed"), "1 seed");
        assert_eq!(count(0, "seed"), "0 seeds");
    }
}
