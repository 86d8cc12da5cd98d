//! Files for scripts and notebooks.

use std::collections::BTreeMap;
use std::iter::repeat_n;

use polars::prelude::{
    Column, DataFrame, NamedFrom, ParquetCompression, ParquetWriter, PolarsError, Series,
};
use serde_json::json;

use crate::Error;
use crate::facts::Facts;
use crate::input::{RunInput, SiteInput};
use crate::output::Tray;
use crate::series::Point;
use crate::text::visible;

/// Adds the data files but the manifest.
pub(crate) fn add(tray: &mut dyn Tray, input: &SiteInput, facts: &Facts<'_>) -> Result<(), Error> {
    for (name, bytes) in &input.downloads {
        tray.add(&format!("data/{name}"), bytes)?;
    }
    tray.add("data/weights.json", weights(facts).as_bytes())?;
    tray.add("data/tasks.parquet", &tasks(facts)?)?;
    tray.add("data/history.parquet", &history(facts)?)
}

/// Every seed of every version with the name of its version.
fn runs<'a>(facts: &'a Facts<'_>) -> impl Iterator<Item = (&'a str, &'a RunInput)> + Clone {
    facts.lineage.iter().flat_map(|version| {
        version
            .runs
            .iter()
            .map(|run| (version.row.version_id.as_str(), run))
    })
}

/// Histograms per version and seed, and how many weights were held at their bounds.
fn weights(facts: &Facts<'_>) -> String {
    let mut versions: BTreeMap<&str, Vec<serde_json::Value>> = BTreeMap::new();
    for (version, run) in runs(facts) {
        if let Some(histogram) = &run.training.histogram {
            versions.entry(version).or_default().push(json!({
                "seed": run.seed,
                "low": histogram.low,
                "high": histogram.high,
                "counts": histogram.counts,
            }));
        }
    }
    let mut text = serde_json::to_string(&versions).unwrap_or_default();
    text.push('\n');
    text
}

fn column<T, Phantom: ?Sized>(name: &str, values: T) -> Column
where
    Series: NamedFrom<T, Phantom>,
{
    Series::new(name.into(), values).into()
}

/// One row per version, seed, task and try.
fn tasks(facts: &Facts<'_>) -> Result<Vec<u8>, PolarsError> {
    let rows = || {
        runs(facts)
            .flat_map(|(version, run)| run.outcomes.iter().map(move |one| (version, run.seed, one)))
    };
    let columns = vec![
        column("version", rows().map(|row| row.0).collect::<Vec<&str>>()),
        column(
            "seed",
            rows().map(|row| row.1).collect::<Vec<Option<u64>>>(),
        ),
        column(
            "task",
            rows()
                .map(|row| visible(&row.2.problem_id))
                .collect::<Vec<String>>(),
        ),
        column(
            "sample",
            rows().map(|row| row.2.sample).collect::<Vec<Option<u32>>>(),
        ),
        column(
            "passed",
            rows().map(|row| row.2.passed).collect::<Vec<bool>>(),
        ),
        column(
            "tests",
            rows().map(|row| row.2.tests).collect::<Vec<Option<u32>>>(),
        ),
        column(
            "error_class",
            rows()
                .map(|row| row.2.class.as_str())
                .collect::<Vec<&str>>(),
        ),
        column(
            "cpu_secs",
            rows().map(|row| row.2.cpu_secs).collect::<Vec<f64>>(),
        ),
    ];
    parquet(columns)
}

/// One row per version, seed, metric and step. The head of a metric of one head stands in a column of its own.
fn history(facts: &Facts<'_>) -> Result<Vec<u8>, PolarsError> {
    let series: Vec<Measured<'_>> = runs(facts)
        .flat_map(|(version, run)| measured(version, run))
        .collect();
    let points = || series.iter().flat_map(|one| one.points);
    // One column after the other, each in the memory that the one before gave back: there may be millions of rows.
    parquet(vec![
        column("version", spread(&series, |one| one.version)),
        column("seed", spread(&series, |one| one.seed)),
        column("head", spread(&series, |one| one.head)),
        column("metric", spread(&series, |one| one.metric)),
        column(
            "step",
            points().map(|point| point.0 as u64).collect::<Vec<u64>>(),
        ),
        column("value", points().map(|point| point.1).collect::<Vec<f64>>()),
    ])
}

/// Points of one metric of one run.
struct Measured<'a> {
    version: &'a str,
    seed: Option<u64>,
    metric: &'a str,
    head: Option<u32>,
    points: &'a [Point],
}

fn measured<'a>(version: &'a str, run: &'a RunInput) -> impl Iterator<Item = Measured<'a>> {
    run.training.metrics.series().map(move |(name, points)| {
        let (metric, head) = split_head(name);
        Measured {
            version,
            seed: run.seed,
            metric,
            head,
            points,
        }
    })
}

/// What is the same for all points of a metric, once for each of them.
fn spread<'a, T: Clone>(series: &[Measured<'a>], value: impl Fn(&Measured<'a>) -> T) -> Vec<T> {
    let mut column = Vec::with_capacity(series.iter().map(|one| one.points.len()).sum());
    for one in series {
        column.extend(repeat_n(value(one), one.points.len()));
    }
    column
}

/// `ce_head_2` as `ce` of head 2.
fn split_head(name: &str) -> (&str, Option<u32>) {
    let split = name
        .rsplit_once("_head_")
        .and_then(|(metric, head)| Some((metric, head.parse().ok()?)));
    split.map_or((name, None), |(metric, head)| (metric, Some(head)))
}

fn parquet(columns: Vec<Column>) -> Result<Vec<u8>, PolarsError> {
    let mut bytes = Vec::new();
    let height = columns.first().map_or(0, Column::len);
    let mut frame = DataFrame::new(height, columns)?;
    ParquetWriter::new(&mut bytes)
        .with_compression(ParquetCompression::Uncompressed)
        .finish(&mut frame)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_a_metric_is_split_off() {
        assert_eq!(split_head("ce_head_2"), ("ce", Some(2)));
        assert_eq!(split_head("train_loss"), ("train_loss", None));
        assert_eq!(split_head("x_head_y"), ("x_head_y", None));
    }
}
