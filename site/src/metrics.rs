//! `metrics.jsonl`: one object of numbers per step, read into one series per metric.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use wmtp_records::jsonl;

use crate::Error;
use crate::series::Point;

/// Series by the name of their metric. Runs of a million points fit: a point is two numbers, a name is kept once.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics {
    series: BTreeMap<String, Vec<Point>>,
}

impl Metrics {
    /// Reads a file; one that is not there has no series.
    ///
    /// # Errors
    /// A line that is no object, with its number.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let mut metrics = Self::default();
        if !path.is_file() {
            return Ok(metrics);
        }
        for line in jsonl::lines(path)? {
            let (number, text) = line?;
            let row: Row = jsonl::parse(path, number, &text)?;
            metrics.add(row);
        }
        Ok(metrics)
    }

    fn add(&mut self, row: Row) {
        let Some(step) = row.step else {
            return;
        };
        for (name, value) in row.values {
            match self.series.get_mut(name.as_str()) {
                Some(points) => points.push((step, value)),
                None => {
                    self.series.insert(name, vec![(step, value)]);
                }
            }
        }
    }

    /// Points of a metric; none where it was never measured.
    pub fn points(&self, name: &str) -> &[Point] {
        self.series.get(name).map_or(&[], Vec::as_slice)
    }

    /// All series in the order of their names.
    pub fn series(&self) -> impl Iterator<Item = (&str, &[Point])> {
        self.series
            .iter()
            .map(|(name, points)| (name.as_str(), points.as_slice()))
    }

    /// The last step of any series.
    pub fn last_step(&self) -> Option<f64> {
        let ends = self.series.values().filter_map(|points| points.last());
        ends.map(|point| point.0).reduce(f64::max)
    }
}

/// The numbers of one line; anything else in it is passed over.
#[derive(Default)]
struct Row {
    step: Option<f64>,
    values: Vec<(String, f64)>,
}

/// A number, or something that is none.
#[derive(Deserialize)]
#[serde(untagged)]
enum Cell {
    Number(f64),
    Other(serde::de::IgnoredAny),
}

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Rows;
        impl<'de> Visitor<'de> for Rows {
            type Value = Row;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Row, A::Error> {
                let mut row = Row::default();
                while let Some(name) = map.next_key::<String>()? {
                    match map.next_value::<Cell>()? {
                        Cell::Number(step) if name == "step" => row.step = Some(step),
                        Cell::Number(value) => row.values.push((name, value)),
                        Cell::Other(_) => {}
                    }
                }
                Ok(row)
            }
        }
        deserializer.deserialize_map(Rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Metrics, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        std::fs::write(&path, text).unwrap();
        Metrics::load(&path)
    }

    #[test]
    fn a_line_becomes_a_point_of_each_of_its_numbers() {
        let metrics =
            read("{\"loss\":1.5,\"step\":1}\n{\"step\":2,\"loss\":1,\"note\":\"x\",\"lr\":null}\n")
                .unwrap();
        assert_eq!(metrics.points("loss"), [(1.0, 1.5), (2.0, 1.0)]);
        assert!(metrics.points("lr").is_empty());
        assert_eq!(metrics.last_step(), Some(2.0));
        assert_eq!(metrics.series().count(), 1);
    }

    #[test]
    fn a_line_that_is_no_object_is_named() {
        let error = read("{\"step\":1,\"loss\":1}\n[1]\n").unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
    }

    #[test]
    fn no_file_is_no_series() {
        let metrics = Metrics::load(Path::new("/no/such/file")).unwrap();
        assert_eq!(metrics, Metrics::default());
    }
}
