//! A small SVG writer: percentage coordinates, so that text keeps its size from a phone to a wall.
//!
//! The outer picture has no viewBox. Marks and text stand at percentages of nested pictures; only stretched paths
//! sit inside a viewBox of 100 by 100. Colours are classes, so dark mode and print need no second picture.

use std::fmt::{self, Display, Write};

use crate::text::escape;

/// A picture under construction.
#[derive(Debug, Clone)]
pub struct Svg {
    height: u32,
    title: String,
    description: String,
    body: String,
}

/// A value range mapped to percentages of the plot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// Value at the start (left, or bottom).
    pub from: f64,
    /// Value at the end (right, or top).
    pub to: f64,
    /// Percentage at the start.
    pub start: f64,
    /// Percentage at the end.
    pub end: f64,
}

impl Scale {
    /// The percentage of a value; outside values stop at the ends.
    pub fn at(&self, value: f64) -> f64 {
        let span = self.to - self.from;
        let share = if span.abs() < f64::MIN_POSITIVE {
            0.5
        } else {
            (value - self.from) / span
        };
        self.start + (self.end - self.start) * share.clamp(0.0, 1.0)
    }
}

/// A coordinate with one decimal, and none where it is whole. Pictures are made of these, so they are put together from
/// whole tenths: printing a float exactly took a fifth of a large site's time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coordinate(pub f64);

impl Display for Coordinate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = tenths(self.0);
        if tenths < 0 {
            f.write_char('-')?;
        }
        let size = tenths.unsigned_abs();
        Display::fmt(&(size / 10), f)?;
        match size % 10 {
            0 => Ok(()),
            tenth => {
                f.write_char('.')?;
                Display::fmt(&tenth, f)
            }
        }
    }
}

fn tenths(value: f64) -> i64 {
    (value * 10.0).round_ties_even() as i64
}

/// A path in the plane of [`Svg::stretched`]. Every point is written in whole tenths and as its distance from the one
/// before: most of a large site are curves, and this halves them.
#[derive(Debug, Clone, Default)]
pub struct Path {
    text: String,
    at: (i64, i64),
}

impl Path {
    /// A path through points.
    pub fn through(points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let mut path = Self::default();
        for point in points {
            // What follows a move without a letter is a line.
            if path.text.is_empty() {
                path.text.push('m');
            }
            path.point(point);
        }
        path
    }

    /// A line from the last point to the first, so that the path can be filled.
    #[must_use]
    pub fn closed(mut self) -> Self {
        self.text.push('z');
        self
    }

    /// A dot: a line of no length.
    pub fn dot(&mut self, at: (f64, f64)) {
        self.text.push('m');
        self.point(at);
        self.text.push_str("h0");
    }

    /// A rectangle from a corner, with its signed width and height.
    pub fn rectangle(&mut self, corner: (f64, f64), size: (f64, f64)) {
        self.text.push('m');
        self.point(corner);
        // Closing it leads back to its corner.
        let (width, height) = (tenths(size.0), tenths(size.1));
        for (letter, length) in [('h', width), ('v', height), ('h', -width)] {
            self.text.push(letter);
            self.number(length);
        }
        self.text.push('z');
    }

    fn point(&mut self, point: (f64, f64)) {
        let (x, y) = (tenths(point.0), tenths(point.1));
        for distance in [x - self.at.0, y - self.at.1] {
            let after_number = self.text.ends_with(|last: char| last.is_ascii_digit());
            if distance >= 0 && after_number {
                self.text.push(' ');
            }
            self.number(distance);
        }
        self.at = (x, y);
    }

    fn number(&mut self, value: i64) {
        self.text.push_str(itoa::Buffer::new().format(value));
    }

    /// Whether nothing was drawn.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }
}

impl Svg {
    /// A picture of a height in pixels, as wide as its place; the description says the finding in words, and is left
    /// out where it is empty.
    pub fn new(height: u32, title: &str, description: &str) -> Self {
        Self {
            height,
            title: title.to_owned(),
            description: description.to_owned(),
            body: String::new(),
        }
    }

    /// Opens a nested picture `top` pixels down and `height` high, for percentages within it.
    pub fn open(&mut self, top: u32, height: u32) {
        let _ = write!(
            self.body,
            "<svg x=\"0\" y=\"{top}\" width=\"100%\" height=\"{height}\" overflow=\"visible\">"
        );
    }

    /// Closes the nested picture.
    pub fn close(&mut self) {
        self.body.push_str("</svg>");
    }

    /// A line between points in percent.
    pub fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let _ = write!(
            self.body,
            "<line class=\"{class}\" x1=\"{}%\" y1=\"{}%\" x2=\"{}%\" y2=\"{}%\"/>",
            Coordinate(from.0),
            Coordinate(from.1),
            Coordinate(to.0),
            Coordinate(to.1)
        );
    }

    /// Text at percentages, moved down by pixels; the anchor is `start`, `middle` or `end`.
    pub fn text(&mut self, class: &str, at: (f64, f64), dy: i32, anchor: &str, text: &str) {
        let _ = write!(
            self.body,
            "<text class=\"{class}\" x=\"{}%\" y=\"{}%\" dy=\"{dy}\" text-anchor=\"{anchor}\">{}</text>",
            Coordinate(at.0),
            Coordinate(at.1),
            escape(text)
        );
    }

    /// A shape drawn around its own origin, placed at percentages.
    pub fn shape(&mut self, at: (f64, f64), shape: &str) {
        let _ = write!(
            self.body,
            "<svg x=\"{}%\" y=\"{}%\" overflow=\"visible\">{shape}</svg>",
            Coordinate(at.0),
            Coordinate(at.1)
        );
    }

    /// Paths with their classes in a plane of `size`, stretched over the place; lines keep their width.
    pub fn stretched<C: Display>(
        &mut self,
        size: (f64, f64),
        paths: impl IntoIterator<Item = (C, Path)>,
    ) {
        let _ = write!(
            self.body,
            "<svg viewBox=\"0 0 {} {}\" preserveAspectRatio=\"none\" width=\"100%\" height=\"100%\">",
            tenths(size.0),
            tenths(size.1)
        );
        for (class, path) in paths {
            let _ = write!(
                self.body,
                "<path class=\"{class}\" d=\"{}\" vector-effect=\"non-scaling-stroke\"/>",
                path.text
            );
        }
        self.body.push_str("</svg>");
    }

    /// Marks that were drawn before.
    pub fn drawn(&mut self, marks: &str) {
        self.body.push_str(marks);
    }

    /// The marks alone, without the picture around them.
    pub fn into_body(self) -> String {
        self.body
    }

    /// The finished picture.
    pub fn finish(self) -> String {
        let description = if self.description.is_empty() {
            String::new()
        } else {
            format!("<desc>{}</desc>", escape(&self.description))
        };
        format!(
            "<svg class=\"chart\" width=\"100%\" height=\"{}\" role=\"img\"><title>{}</title>{description}{}</svg>",
            self.height,
            escape(&self.title),
            self.body
        )
    }
}

/// Round values that divide `0..=top` or a range into about `wanted` parts.
pub fn ticks(from: f64, to: f64, wanted: usize) -> Vec<f64> {
    let span = to - from;
    if !span.is_finite() || span <= 0.0 {
        return vec![from];
    }
    let rough = span / wanted.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(power * 10.0);
    let first = (from / step - 1e-9).ceil() as i64;
    let last = (to / step + 1e-9).floor() as i64;
    (first..=last).map(|index| index as f64 * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let fifths: Vec<f64> = (0..=5).map(|index| f64::from(index) * 0.2).collect();
        assert_eq!(ticks(0.0, 1.0, 5), fifths);
        assert_eq!(ticks(0.0, 0.5, 5).len(), 6);
        assert_eq!(ticks(3.0, 3.0, 5), vec![3.0]);
    }

    #[test]
    fn coordinates_have_one_decimal_at_most() {
        let shown =
            [0.0, -0.04, 1.25, -1.26, 12.0, 99.96, -0.5].map(|value| Coordinate(value).to_string());
        assert_eq!(shown, ["0", "0", "1.2", "-1.3", "12", "100", "-0.5"]);
    }

    #[test]
    fn paths_are_whole_tenths_from_point_to_point() {
        let line = Path::through([(10.0, 5.4), (10.9, 20.7), (11.8, 1.44), (11.8, 1.44)]);
        assert_eq!(line.clone().text, "m100 54 9 153 9-193 0 0");
        assert_eq!(line.closed().text, "m100 54 9 153 9-193 0 0z");
        let mut cells = Path::default();
        assert!(cells.is_empty());
        cells.rectangle((0.1, 1.0), (0.8, -0.5));
        cells.rectangle((2.1, 1.0), (0.8, -1.0));
        cells.dot((2.0, 0.0));
        assert_eq!(cells.text, "m1 10h8v-5h-8zm20 0h8v-10h-8zm-1-10h0");
    }

    #[test]
    fn text_in_a_picture_is_inert() {
        let mut svg = Svg::new(10, "<t>", "d & d");
        svg.text("label", (1.25, 50.0), 0, "start", "<script>");
        let drawn = svg.finish();
        assert!(
            drawn.contains("<title>&lt;t&gt;</title><desc>d &amp; d</desc>"),
            "{drawn}"
        );
        assert!(
            drawn.contains("x=\"1.2%\"") && drawn.contains("&lt;script&gt;"),
            "{drawn}"
        );
    }

    #[test]
    fn scales_clamp_and_survive_an_empty_range() {
        let scale = Scale {
            from: 0.0,
            to: 2.0,
            start: 10.0,
            end: 90.0,
        };
        assert!((scale.at(1.0) - 50.0).abs() < 1e-12);
        assert!((scale.at(9.0) - 90.0).abs() < 1e-12);
        let flat = Scale {
            from: 1.0,
            to: 1.0,
            start: 0.0,
            end: 100.0,
        };
        assert!((flat.at(1.0) - 50.0).abs() < 1e-12);
    }
}
