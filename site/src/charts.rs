//! The pictures of the site.

mod forest;
mod pareto;

use std::sync::Arc;

use wmtp_stats::Estimate;
use wmtp_stats::leaderboard::{Leaderboard, LeaderboardRow};
use wmtp_stats::wording::percent;

use crate::facts;
use crate::headline::levels;
use crate::input::Histogram;
use crate::marks;
use crate::series::{Point, columns, ema, thinned};
use crate::svg::{Coordinate, Path, Scale, Svg, ticks};
use crate::words::Words;

pub use forest::{axis as difference_axis, reach, row as difference};
pub use pareto::{Dot, pareto};

/// Share of the width that y labels keep free of marks, in percent.
const LABEL_ROOM: f64 = 9.0;
/// Pixel columns of a curve.
const COLUMNS: usize = 300;
/// Points of the raw values that one column of their band spans at least: a column of one has no height, and its spike
/// would not be seen.
const POINTS_OF_A_COLUMN: usize = 4;
/// Curves with fewer points are drawn as they are.
const SMOOTHED_FROM: usize = 30;
/// Classes of a task strip, from never to always solved.
const CELL_CLASSES: [&str; 5] = ["cell t0", "cell t1", "cell t2", "cell t3", "cell t4"];
/// A smoothed curve averages over so large a part of its points: over more, it would lag behind what its band shows.
const AVERAGED_PART: f64 = 1.0 / 40.0;
/// Share of the past that it keeps at most.
const MOST_DECAY: f64 = 0.9;
/// Versions that are drawn one by one; more become a band with dots.
const DRAWN_ONE_BY_ONE: usize = 40;

/// The common scale of all pass rates: from 0 to a round value above every interval.
pub fn rate_top(board: &Leaderboard) -> f64 {
    let highest = board
        .rows
        .iter()
        .filter_map(|row| row.estimate)
        .map(|estimate| estimate.interval.high)
        .fold(0.0, f64::max);
    [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8]
        .into_iter()
        .find(|top| highest <= top * 0.98)
        .unwrap_or(1.0)
}

/// Pass rate of every version with its interval, and the best so far.
pub fn progress(board: &Leaderboard, description: &str, words: &Words) -> String {
    let mut rows: Vec<(&LeaderboardRow, Estimate)> = board
        .rows
        .iter()
        .filter_map(|row| Some((row, row.estimate?)))
        .collect();
    rows.sort_by(|a, b| facts::order(a.0).cmp(&facts::order(b.0)));
    let top = rate_top(board);
    let y = Scale {
        from: 0.0,
        to: top,
        start: 100.0,
        end: 0.0,
    };
    let x = |index: usize| {
        LABEL_ROOM + (100.0 - LABEL_ROOM) * (index as f64 + 0.5) / rows.len().max(1) as f64
    };
    let title = words.say("Tasks solved with one try, version by version", &[]);
    let mut svg = Svg::new(296, &title, description);
    svg.open(18, 236);
    rate_grid(&mut svg, y, top, words);
    if rows.len() > DRAWN_ONE_BY_ONE {
        svg.stretched((100.0, 100.0), crowd(&rows, &x, y));
    } else {
        svg.stretched((100.0, 100.0), [("best", best_so_far(&rows, &x, y))]);
        for (index, (row, estimate)) in rows.iter().enumerate() {
            one(&mut svg, row, *estimate, x(index), y, rows.len() <= 12);
        }
    }
    svg.close();
    svg.open(262, 30);
    let stride = rows.len().div_ceil(12).max(1);
    for (index, (row, _)) in rows.iter().enumerate().step_by(stride) {
        svg.text("label", (x(index), 0.0), 14, "middle", &row.version_id);
    }
    svg.close();
    svg.finish()
}

/// One version: its interval, its mark and, where there is room, its rate.
fn one(svg: &mut Svg, row: &LeaderboardRow, estimate: Estimate, x: f64, y: Scale, labelled: bool) {
    let mark = marks::of(&row.algo);
    let (low, high) = (y.at(estimate.interval.low), y.at(estimate.interval.high));
    svg.line(&format!("bar {}", mark.class), (x, low), (x, high));
    svg.shape((x, y.at(estimate.mean)), &mark.shape());
    if labelled {
        svg.text("value", (x, high), -7, "middle", &percent(estimate.mean));
    }
}

/// Many versions: the band of their intervals, the best so far, and a dot each.
fn crowd(
    rows: &[(&LeaderboardRow, Estimate)],
    x: &dyn Fn(usize) -> f64,
    y: Scale,
) -> Vec<(String, Path)> {
    let highs = rows
        .iter()
        .enumerate()
        .map(|(index, (_, e))| (x(index), y.at(e.interval.high)));
    let lows = rows
        .iter()
        .enumerate()
        .rev()
        .map(|(index, (_, e))| (x(index), y.at(e.interval.low)));
    let outline = Path::through(highs.chain(lows)).closed();
    let mut paths = vec![
        ("band a-baseline".to_owned(), outline),
        ("best".to_owned(), best_so_far(rows, x, y)),
    ];
    for (key, mark) in marks::all() {
        let mut dots = Path::default();
        let of_algo = rows
            .iter()
            .enumerate()
            .filter(|(_, (row, _))| row.algo == *key);
        for (index, (_, estimate)) in of_algo {
            dots.dot((x(index), y.at(estimate.mean)));
        }
        if !dots.is_empty() {
            paths.push((format!("dots {}", mark.class), dots));
        }
    }
    paths
}

fn rate_grid(svg: &mut Svg, y: Scale, top: f64, words: &Words) {
    for tick in ticks(0.0, top, 4) {
        let at = y.at(tick);
        svg.line(
            if tick == 0.0 { "axis" } else { "grid" },
            (0.0, at),
            (100.0, at),
        );
        let last = tick + top / 8.0 > top;
        let value = Coordinate(tick * 100.0).to_string();
        let label = if last {
            words.say("{n}% solved", &[("n", &value)])
        } else {
            value
        };
        svg.text("tick", (0.0, at), -4, "start", &label);
    }
}

fn best_so_far(rows: &[(&LeaderboardRow, Estimate)], x: &dyn Fn(usize) -> f64, y: Scale) -> Path {
    let mut points: Vec<(f64, f64)> = Vec::new();
    let mut best = 0.0f64;
    // What comes from outside is no step of this line.
    let ours = rows.iter().enumerate();
    for (index, (_, estimate)) in ours.filter(|(_, (row, _))| !row.is_external()) {
        if estimate.mean > best || points.is_empty() {
            if let Some(&(_, level)) = points.last() {
                points.push((x(index), level));
            }
            best = best.max(estimate.mean);
            points.push((x(index), y.at(best)));
        }
    }
    if let Some(&(_, level)) = points.last() {
        points.push((100.0, level));
    }
    Path::through(points)
}

/// The interval of one row on the common scale.
pub fn interval(row: &LeaderboardRow, top: f64, words: &Words) -> String {
    let Some(estimate) = row.estimate else {
        return String::new();
    };
    let mark = marks::of(&row.algo);
    let x = interval_scale(top);
    let title = format!(
        "{}: {} ({})",
        row.version_id,
        percent(estimate.mean),
        levels(&estimate.interval, words)
    );
    let mut svg = Svg::new(24, &title, "");
    for tick in ticks(0.0, top, 4) {
        svg.line("grid", (x.at(tick), 0.0), (x.at(tick), 100.0));
    }
    let (low, high) = (x.at(estimate.interval.low), x.at(estimate.interval.high));
    svg.line(&format!("bar {}", mark.class), (low, 50.0), (high, 50.0));
    svg.shape((x.at(estimate.mean), 50.0), &mark.shape());
    svg.finish()
}

/// The axis over the intervals.
pub fn interval_axis(top: f64, words: &Words) -> String {
    let x = interval_scale(top);
    let title = words.say("Scale of the intervals", &[]);
    let mut svg = Svg::new(
        16,
        &title,
        &words.say("Per cent of tasks solved with one try.", &[]),
    );
    for tick in ticks(0.0, top, 4) {
        svg.text(
            "tick",
            (x.at(tick), 100.0),
            -3,
            "middle",
            &format!("{}%", Coordinate(tick * 100.0)),
        );
    }
    svg.finish()
}

fn interval_scale(top: f64) -> Scale {
    Scale {
        from: 0.0,
        to: top,
        start: 4.0,
        end: 95.0,
    }
}

/// One cell per task, pale for unsolved, darker with the pass rate; tasks in the order given.
pub fn strip(title: &str, rates: &[f64], words: &Words) -> String {
    let solved = rates.iter().filter(|rate| **rate > 0.0).count();
    let always = rates.iter().filter(|rate| **rate >= 1.0).count();
    let description = words.say(
        "{solved} of {n} tasks solved at least once, {always} every time.",
        &[
            ("solved", &solved.to_string()),
            ("n", &rates.len().to_string()),
            ("always", &always.to_string()),
        ],
    );
    let mut paths = vec![Path::default(); 5];
    for (index, rate) in rates.iter().enumerate() {
        let level = match *rate {
            rate if rate <= 0.0 => 0,
            rate if rate < 0.25 => 1,
            rate if rate < 0.75 => 2,
            rate if rate < 1.0 => 3,
            _ => 4,
        };
        paths[level].rectangle((index as f64 + 0.1, 0.0), (0.8, 1.0));
    }
    let cells = CELL_CLASSES
        .into_iter()
        .zip(paths)
        .filter(|(_, path)| !path.is_empty());
    let mut svg = Svg::new(26, title, &description);
    svg.stretched((rates.len().max(1) as f64, 1.0), cells);
    svg.finish()
}

/// Weights of a run as shares of all tokens per bin.
pub fn histogram(histogram: &Histogram, class: &str, description: &str, words: &Words) -> String {
    let total = histogram.counts.iter().sum::<u64>().max(1) as f64;
    let shares: Vec<f64> = histogram
        .counts
        .iter()
        .map(|count| *count as f64 / total)
        .collect();
    let highest = shares
        .iter()
        .copied()
        .fold(0.0, f64::max)
        .max(f64::MIN_POSITIVE);
    let bins = shares.len().max(1) as f64;
    let mut bars = Path::default();
    for (index, share) in shares.iter().enumerate().filter(|(_, share)| **share > 0.0) {
        let left = index as f64 / bins * 100.0;
        let height = (share / highest * 100.0).max(0.6);
        bars.rectangle((left, 100.0), (100.0 / bins * 0.86, -height));
    }
    let x = Scale {
        from: histogram.low,
        to: histogram.high,
        start: 0.0,
        end: 100.0,
    };
    let mut svg = Svg::new(
        196,
        &words.say("How the weights are spread", &[]),
        description,
    );
    svg.open(22, 144);
    svg.line("grid", (0.0, 0.0), (100.0, 0.0));
    svg.text(
        "tick",
        (100.0, 0.0),
        -5,
        "end",
        &words.say(
            "{share} of tokens in one bin",
            &[("share", &percent(highest))],
        ),
    );
    svg.line("one", (x.at(1.0), 0.0), (x.at(1.0), 100.0));
    svg.text(
        "tick",
        (x.at(1.0), 0.0),
        -5,
        "middle",
        &words.say("weight 1", &[]),
    );
    svg.stretched((100.0, 100.0), [(format!("fill {class}"), bars)]);
    svg.line("axis", (0.0, 100.0), (100.0, 100.0));
    svg.close();
    svg.open(166, 28);
    for tick in ticks(histogram.low, histogram.high, 6) {
        let at = x.at(tick);
        let anchor = if at < 1.0 {
            "start"
        } else if at > 99.0 {
            "end"
        } else {
            "middle"
        };
        svg.text("tick", (at, 0.0), 16, anchor, &Coordinate(tick).to_string());
    }
    svg.close();
    svg.finish()
}

/// Curves over training steps with the band of raw values.
#[derive(Debug, Clone)]
pub struct Curve<'a> {
    /// One series per seed and version, with the class of its colour.
    pub lines: &'a [(&'a str, &'a [Point])],
    /// Smallest and largest value of the axis; the data's own when `None`.
    pub range: Option<(f64, f64)>,
    /// Height of the plot in pixels.
    pub height: u32,
}

/// Smallest and largest value of several series; `None` without points.
pub fn value_range<'a>(series: impl IntoIterator<Item = &'a [Point]>) -> Option<(f64, f64)> {
    series
        .into_iter()
        .flatten()
        .map(|point| point.1)
        .fold(None, |range, value| match range {
            None => Some((value, value)),
            Some((low, high)) => Some((f64::min(low, value), f64::max(high, value))),
        })
}

/// A drawn curve without its words, which is the same in every language.
#[derive(Debug, Clone)]
pub struct Plot {
    /// Grid, lines and the numbers of the y axis.
    drawn: Arc<str>,
    /// Last step.
    last: f64,
    /// Height in pixels.
    height: u32,
}

impl Plot {
    /// The picture with its words: a title, and what it shows.
    pub fn named(&self, title: &str, description: &str, words: &Words) -> String {
        let mut svg = Svg::new(self.height + 40, title, description);
        svg.open(16, self.height);
        svg.drawn(&self.drawn);
        svg.close();
        svg.open(16 + self.height, 24);
        svg.line("axis", (0.0, 0.0), (100.0, 0.0));
        let zero = words.say("step 0", &[]);
        svg.text("tick", (LABEL_ROOM, 0.0), 16, "middle", &zero);
        svg.text("tick", (100.0, 0.0), 16, "end", &number(self.last));
        svg.close();
        svg.finish()
    }
}

impl Curve<'_> {
    /// Draws the curves; nothing without points.
    pub fn plot(&self) -> Option<Plot> {
        let series = self.lines.iter().map(|line| line.1);
        let (low, high) = self.range.or_else(|| value_range(series.clone()))?;
        let pad = ((high - low) * 0.06).max(high.abs() * 1e-3).max(1e-9);
        let y = Scale {
            from: low - pad,
            to: high + pad,
            start: 100.0,
            end: 0.0,
        };
        let last = series
            .flatten()
            .map(|point| point.0)
            .fold(0.0, f64::max)
            .max(1.0);
        let x = Scale {
            from: 0.0,
            to: last,
            start: LABEL_ROOM,
            end: 100.0,
        };
        let mut svg = Svg::new(self.height, "", "");
        for tick in ticks(y.from, y.to, 3) {
            svg.line("grid", (0.0, y.at(tick)), (100.0, y.at(tick)));
        }
        svg.stretched((100.0, 100.0), self.paths(x, y, last));
        for tick in ticks(y.from, y.to, 3) {
            svg.text("tick halo", (0.0, y.at(tick)), -4, "start", &number(tick));
        }
        Some(Plot {
            drawn: svg.into_body().into(),
            last,
            height: self.height,
        })
    }

    fn paths(&self, x: Scale, y: Scale, last: f64) -> Vec<(String, Path)> {
        let smoothed = self
            .lines
            .iter()
            .any(|(_, points)| points.len() >= SMOOTHED_FROM);
        let mut paths = Vec::new();
        let classes: std::collections::BTreeSet<&str> =
            self.lines.iter().map(|line| line.0).collect();
        for class in classes.into_iter().filter(|_| smoothed) {
            let of_class = self.lines.iter().filter(|line| line.0 == class);
            let all: Vec<Point> = of_class.flat_map(|line| line.1).copied().collect();
            let wide = (all.len() / POINTS_OF_A_COLUMN).clamp(1, COLUMNS);
            let band = columns(&all, (0.0, last), wide);
            let upper = band.iter().map(|c| (x.at(c.step), y.at(c.high)));
            let lower = band.iter().rev().map(|c| (x.at(c.step), y.at(c.low)));
            if !band.is_empty() {
                let outline = Path::through(upper.chain(lower)).closed();
                paths.push((format!("band {class}"), outline));
            }
        }
        for (class, points) in self.lines.iter().filter(|(_, points)| !points.is_empty()) {
            let line = if smoothed {
                ema(points, decay(points.len()))
            } else {
                points.to_vec()
            };
            let points = thinned(&line, COLUMNS);
            let points = points.iter().map(|p| (x.at(p.0), y.at(p.1)));
            paths.push((format!("curve {class}"), Path::through(points)));
        }
        paths
    }
}

/// Share of the past that a smoothed curve of so many points keeps.
fn decay(num_points: usize) -> f64 {
    let averaged = num_points as f64 * AVERAGED_PART;
    (1.0 - 1.0 / averaged.max(1.0)).min(MOST_DECAY)
}

/// A number with as many digits as a reader needs.
pub fn number(value: f64) -> String {
    let magnitude = value.abs();
    let whole = magnitude.fract() == 0.0 && magnitude < 1e7;
    let text = if whole || magnitude >= 100.0 {
        format!("{value:.0}")
    } else if magnitude >= 1.0 {
        format!("{value:.2}")
    } else if magnitude >= 0.01 {
        format!("{value:.3}")
    } else {
        format!("{value:.1e}")
    };
    text.replace('-', "\u{2212}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::Language;

    fn english() -> Words {
        Words::of(Language::English)
    }

    #[test]
    fn a_short_curve_is_averaged_over_few_points() {
        assert_eq!((decay(0), decay(40), decay(80)), (0.0, 0.0, 0.5));
        assert_eq!((decay(400), decay(1_000_000)), (MOST_DECAY, MOST_DECAY));
    }

    #[test]
    fn a_strip_draws_every_task_once() {
        let drawn = strip("tasks", &[0.0, 0.1, 0.5, 0.9, 1.0, 1.0], &english());
        assert_eq!(drawn.matches("h8v10h-8z").count(), 6);
        assert!(
            drawn.contains("5 of 6 tasks solved at least once, 2 every time."),
            "{drawn}"
        );
    }

    #[test]
    fn numbers_are_short() {
        let shown: Vec<String> = [0.0, 1200.0, 3.456, 0.1234, 0.0003, -2.5]
            .map(number)
            .to_vec();
        assert_eq!(
            shown,
            [
                "0",
                "1200",
                "3.46",
                "0.123",
                "3.0e\u{2212}4",
                "\u{2212}2.50"
            ]
        );
    }

    #[test]
    fn a_curve_without_points_is_no_picture() {
        let curve = Curve {
            lines: &[("a-rho1", &[])],
            range: None,
            height: 90,
        };
        assert!(curve.plot().is_none());
    }

    #[test]
    fn a_long_curve_is_reduced_to_a_band_and_a_line() {
        let points: Vec<Point> = (0..10_000)
            .map(|i| (f64::from(i), f64::from(i % 7)))
            .collect();
        let curve = Curve {
            lines: &[("a-rho1", &points)],
            range: None,
            height: 90,
        };
        let drawn = curve.plot().unwrap().named("t", "d", &english());
        assert_eq!(drawn.matches("<path").count(), 2);
        assert!(drawn.len() < 16_000, "{}", drawn.len());
    }

    #[test]
    fn a_histogram_is_one_path() {
        let weights = Histogram {
            low: 0.0,
            high: 3.0,
            counts: vec![0, 4, 10, 1, 0, 5],
        };
        let drawn = histogram(
            &weights,
            "a-verifiable",
            "Most weights lie near 1.",
            &english(),
        );
        assert_eq!(drawn.matches("<path").count(), 1, "{drawn}");
        // Six bins of a sixth each; the highest of the shares 0.2, 0.5, 0.05 and 0.25 fills the plot.
        let bars = "m167 1000h143v-400h-143zm166 0h143v-1000h-143zm167 0h143v-100h-143zm333 0h143v-500h-143z";
        assert!(
            drawn.contains(&format!("class=\"fill a-verifiable\" d=\"{bars}\"")),
            "{drawn}"
        );
        assert!(drawn.contains("50.0% of tokens in one bin"), "{drawn}");
    }
}
