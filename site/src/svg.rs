//! A small SVG writer: percentage coordinates, so that text keeps its size from a phone to a wall.
//!
//! The outer picture has no viewBox. Marks and text stand at percentages of nested pictures; only stretched paths
//! sit inside a viewBox of 100 by 100. Colours are classes, so dark mode and print need no second picture.

use std::fmt::{Display, Write};

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
pub fn coordinate(value: f64) -> String {
    let mut text = String::new();
    push_coordinate(&mut text, value);
    text
}

/// [`coordinate`] at the end of a text.
pub fn push_coordinate(text: &mut String, value: f64) {
    let tenths = (value * 10.0).round_ties_even() as i64;
    if tenths < 0 {
        text.push('-');
    }
    let size = tenths.unsigned_abs();
    let mut digits = [0u8; 20];
    let mut first = digits.len();
    let mut whole = size / 10;
    loop {
        first -= 1;
        digits[first] = b'0' + (whole % 10) as u8;
        whole /= 10;
        if whole == 0 {
            break;
        }
    }
    text.extend(digits[first..].iter().map(|digit| char::from(*digit)));
    if !size.is_multiple_of(10) {
        text.push('.');
        text.push(char::from(b'0' + (size % 10) as u8));
    }
}

/// A path through points given in percent of the plot.
pub fn polyline(points: &[(f64, f64)]) -> String {
    let mut path = String::with_capacity(points.len() * 10);
    for (index, (x, y)) in points.iter().enumerate() {
        path.push(if index == 0 { 'M' } else { 'L' });
        push_coordinate(&mut path, *x);
        path.push(' ');
        push_coordinate(&mut path, *y);
    }
    path
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
            coordinate(from.0),
            coordinate(from.1),
            coordinate(to.0),
            coordinate(to.1)
        );
    }

    /// Text at percentages, moved down by pixels; the anchor is `start`, `middle` or `end`.
    pub fn text(&mut self, class: &str, at: (f64, f64), dy: i32, anchor: &str, text: &str) {
        let _ = write!(
            self.body,
            "<text class=\"{class}\" x=\"{}%\" y=\"{}%\" dy=\"{dy}\" text-anchor=\"{anchor}\">{}</text>",
            coordinate(at.0),
            coordinate(at.1),
            escape(text)
        );
    }

    /// A shape drawn around its own origin, placed at percentages.
    pub fn shape(&mut self, at: (f64, f64), shape: &str) {
        let _ = write!(
            self.body,
            "<svg x=\"{}%\" y=\"{}%\" overflow=\"visible\">{shape}</svg>",
            coordinate(at.0),
            coordinate(at.1)
        );
    }

    /// Paths with their classes in a plane of `size`, stretched over the place; lines keep their width.
    pub fn stretched<C: Display>(
        &mut self,
        size: (f64, f64),
        paths: impl IntoIterator<Item = (C, String)>,
    ) {
        let _ = write!(
            self.body,
            "<svg viewBox=\"0 0 {} {}\" preserveAspectRatio=\"none\" width=\"100%\" height=\"100%\">",
            coordinate(size.0),
            coordinate(size.1)
        );
        for (class, path) in paths {
            let _ = write!(
                self.body,
                "<path class=\"{class}\" d=\"{path}\" vector-effect=\"non-scaling-stroke\"/>"
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
        let shown = [0.0, -0.04, 1.25, -1.26, 12.0, 99.96, -0.5].map(coordinate);
        assert_eq!(shown, ["0", "0", "1.2", "-1.3", "12", "100", "-0.5"]);
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
