//! Differences with their intervals around a zero line, one below the other on one scale.

use wmtp_stats::leaderboard::Comparison;
use wmtp_stats::wording::signed;

use crate::headline;
use crate::marks::Mark;
use crate::svg::{Scale, Svg, ticks};
use crate::words::Words;

/// Scale on which all of these differences fit, symmetric around 0.
pub fn reach<'a>(comparisons: impl IntoIterator<Item = &'a Comparison>) -> f64 {
    let widest = comparisons
        .into_iter()
        .map(|c| c.difference.interval)
        .flat_map(|interval| [interval.low.abs(), interval.high.abs()])
        .fold(0.01, f64::max);
    [0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8]
        .into_iter()
        .find(|reach| widest <= reach * 0.96)
        .unwrap_or(1.0)
}

fn scale(reach: f64) -> Scale {
    Scale {
        from: -reach,
        to: reach,
        start: 4.0,
        end: 96.0,
    }
}

/// One difference.
pub fn row(comparison: &Comparison, mark: &Mark, reach: f64, words: &Words) -> String {
    let x = scale(reach);
    let difference = &comparison.difference;
    let title = words.say(
        "{points} against {other} ({range})",
        &[
            ("points", &headline::points(comparison, words)),
            ("other", &comparison.other),
            ("range", &headline::range(comparison, words)),
        ],
    );
    let mut svg = Svg::new(26, &title, &words.say(comparison.words(), &[]));
    svg.line("axis", (x.at(0.0), 0.0), (x.at(0.0), 100.0));
    let (low, high) = (
        x.at(difference.interval.low),
        x.at(difference.interval.high),
    );
    svg.line(&format!("bar {}", mark.class), (low, 50.0), (high, 50.0));
    svg.shape((x.at(difference.difference), 50.0), &mark.shape());
    svg.finish()
}

/// The axis over the rows.
pub fn axis(reach: f64, words: &Words) -> String {
    let x = scale(reach);
    let title = words.say("Scale of the differences in points", &[]);
    let mut svg = Svg::new(16, &title, &words.say("Right of the line is better.", &[]));
    for tick in ticks(-reach, reach, 4) {
        svg.text(
            "tick",
            (x.at(tick), 100.0),
            -3,
            "middle",
            signed(tick).trim_end_matches(".0"),
        );
    }
    svg.finish()
}
