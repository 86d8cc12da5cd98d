//! Score against cost: who gives more for less.

use wmtp_stats::Estimate;
use wmtp_stats::wording::percent;

use super::{LABEL_ROOM, number, rate_grid};
use crate::marks::Mark;
use crate::svg::{Path, Scale, Svg, ticks};
use crate::words::Words;

/// One version on the picture.
#[derive(Debug, Clone)]
pub struct Dot<'a> {
    /// Its name.
    pub id: &'a str,
    /// Its algorithm.
    pub mark: Mark,
    /// What it cost.
    pub cost: f64,
    /// What it scored.
    pub estimate: Estimate,
}

/// Labels that fit without lying on each other.
const LABELLED: usize = 14;

/// Draws the dots, and the line that no version lies above and left of.
pub fn pareto(dots: &[Dot<'_>], top: f64, unit: &str, description: &str, words: &Words) -> String {
    let most = dots.iter().map(|dot| dot.cost).fold(0.0, f64::max);
    if most <= 0.0 {
        return String::new();
    }
    let y = Scale {
        from: 0.0,
        to: top,
        start: 100.0,
        end: 0.0,
    };
    let x = Scale {
        from: 0.0,
        to: most * 1.08,
        start: LABEL_ROOM,
        end: 100.0,
    };
    let title = words.say("Tasks solved against cost", &[]);
    let mut svg = Svg::new(330, &title, description);
    svg.open(18, 270);
    rate_grid(&mut svg, y, top, words);
    svg.stretched(
        (100.0, 100.0),
        [("best", Path::through(frontier(dots, x, y)))],
    );
    for dot in dots {
        let at = (x.at(dot.cost), y.at(dot.estimate.mean));
        let (low, high) = (
            y.at(dot.estimate.interval.low),
            y.at(dot.estimate.interval.high),
        );
        svg.line(
            &format!("bar thin {}", dot.mark.class),
            (at.0, low),
            (at.0, high),
        );
        svg.shape(at, &dot.mark.shape());
    }
    if dots.len() <= LABELLED {
        for (dot, at) in labels(dots, x, y) {
            let side = if at.0 > 84.0 { "end" } else { "start" };
            let beside = if at.0 > 84.0 { at.0 - 1.2 } else { at.0 + 1.2 };
            let label = format!("{} {}", dot.id, percent(dot.estimate.mean));
            svg.text("label halo", (beside, at.1), 4, side, &label);
        }
    }
    svg.close();
    svg.open(290, 34);
    for tick in ticks(0.0, most, 5) {
        let at = x.at(tick);
        svg.text("tick", (at, 0.0), 14, anchor(at), tick_label(&number(tick)));
    }
    svg.text("tick", (100.0, 0.0), 30, "end", unit);
    svg.close();
    svg.finish()
}

/// `0.200` as `0.2`.
fn tick_label(number: &str) -> &str {
    if number.contains('.') && !number.contains('e') {
        number.trim_end_matches('0').trim_end_matches('.')
    } else {
        number
    }
}

fn anchor(at: f64) -> &'static str {
    if at > 92.0 {
        "end"
    } else if at < 8.0 {
        "start"
    } else {
        "middle"
    }
}

/// Where labels stand: beside their marks, and pushed down where they would lie on the one above.
fn labels<'d, 'a>(dots: &'d [Dot<'a>], x: Scale, y: Scale) -> Vec<(&'d Dot<'a>, (f64, f64))> {
    /// Height of a label and width of a longer one, in percent of the plot.
    const ROOM: (f64, f64) = (16.0, 5.6);
    let mut placed: Vec<(&Dot<'a>, (f64, f64))> = Vec::new();
    let mut order: Vec<&Dot<'a>> = dots.iter().collect();
    order.sort_by(|a, b| {
        b.estimate
            .mean
            .total_cmp(&a.estimate.mean)
            .then(a.id.cmp(b.id))
    });
    for dot in order {
        let (at, mut down) = (x.at(dot.cost), y.at(dot.estimate.mean));
        for (_, other) in &placed {
            if (other.0 - at).abs() < ROOM.0 && (other.1 - down).abs() < ROOM.1 {
                down = other.1 + ROOM.1;
            }
        }
        placed.push((dot, (at, down)));
    }
    placed
}

/// Steps through the versions that no cheaper one reaches.
fn frontier(dots: &[Dot<'_>], x: Scale, y: Scale) -> Vec<(f64, f64)> {
    let mut order: Vec<&Dot<'_>> = dots.iter().collect();
    order.sort_by(|a, b| {
        a.cost
            .total_cmp(&b.cost)
            .then(b.estimate.mean.total_cmp(&a.estimate.mean))
    });
    let mut points: Vec<(f64, f64)> = Vec::new();
    let mut best = f64::NEG_INFINITY;
    for dot in order {
        if dot.estimate.mean > best {
            best = dot.estimate.mean;
            if let Some(&(_, level)) = points.last() {
                points.push((x.at(dot.cost), level));
            }
            points.push((x.at(dot.cost), y.at(best)));
        }
    }
    if let Some(&(_, level)) = points.last() {
        points.push((100.0, level));
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::marks;
    use crate::words::Language;
    use wmtp_stats::Interval;

    fn dot(id: &'static str, cost: f64, mean: f64) -> Dot<'static> {
        let interval = Interval {
            low: mean - 0.05,
            high: mean + 0.05,
        };
        Dot {
            id,
            mark: marks::of("baseline"),
            cost,
            estimate: Estimate { mean, interval },
        }
    }

    #[test]
    fn the_frontier_leaves_out_what_costs_more_and_solves_less() {
        let unit = Scale {
            from: 0.0,
            to: 1.0,
            start: 0.0,
            end: 100.0,
        };
        let down = Scale {
            from: 0.0,
            to: 1.0,
            start: 100.0,
            end: 0.0,
        };
        let dots = [dot("a", 0.1, 0.2), dot("b", 0.5, 0.1), dot("c", 0.6, 0.7)];
        let steps = [(10.0, 80.0), (60.0, 80.0), (60.0, 30.0), (100.0, 30.0)];
        let drawn = frontier(&dots, unit, down);
        assert_eq!(drawn.len(), steps.len(), "{drawn:?}");
        for (found, step) in drawn.iter().zip(steps) {
            let off = (found.0 - step.0).abs() + (found.1 - step.1).abs();
            assert!(off < 1e-9, "{drawn:?}");
        }
    }

    #[test]
    fn labels_of_one_cost_do_not_lie_on_each_other() {
        let scale = Scale {
            from: 0.0,
            to: 1.0,
            start: 100.0,
            end: 0.0,
        };
        let dots = [
            dot("a", 0.5, 0.40),
            dot("b", 0.5, 0.41),
            dot("c", 0.5, 0.42),
        ];
        let mut down: Vec<f64> = labels(&dots, scale, scale)
            .iter()
            .map(|(_, at)| at.1)
            .collect();
        down.sort_by(f64::total_cmp);
        assert!(
            down.windows(2).all(|pair| pair[1] - pair[0] > 5.5),
            "{down:?}"
        );
    }

    #[test]
    fn without_a_cost_there_is_no_picture() {
        let words = Words::of(Language::English);
        assert_eq!(pareto(&[dot("a", 0.0, 0.2)], 0.5, "hours", "d", &words), "");
        let drawn = pareto(
            &[dot("a", 0.4, 0.2), dot("b", 0.5, 0.3)],
            0.5,
            "hours",
            "d",
            &words,
        );
        assert!(
            drawn.contains("a 20.0%") && drawn.contains("b 30.0%"),
            "{drawn}"
        );
    }
}
