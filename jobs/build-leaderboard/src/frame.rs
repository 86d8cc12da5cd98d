//! The leaderboard as polars tables.

use std::collections::BTreeSet;

use polars::prelude::{
    Column, CsvWriter, DataFrame, NamedFrom, ParquetCompression, ParquetWriter, PolarsResult,
    SerWriter, Series,
};
use wmtp_stats::leaderboard::{Comparison, Leaderboard, LeaderboardRow};

/// `leaderboard.csv`: exactly the founding columns, metrics in the order in which rows bring them, a missing
/// value as an empty cell. `metrics` names those that are wanted; none means all.
pub fn csv(board: &Leaderboard, metrics: &[String]) -> PolarsResult<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut columns = founding_columns(board);
    columns.retain(|column| {
        let metric = column.name().strip_prefix("metric__");
        metric.is_none_or(|name| metrics.is_empty() || metrics.iter().any(|known| known == name))
    });
    let mut frame = DataFrame::new(board.rows.len(), columns)?;
    CsvWriter::new(&mut bytes).finish(&mut frame)?;
    Ok(bytes)
}

/// `leaderboard.parquet`: the founding columns, then rank, lineage, intervals and paired differences.
pub fn parquet(board: &Leaderboard) -> PolarsResult<Vec<u8>> {
    let mut columns = founding_columns(board);
    columns.extend(evidence_columns(board));
    let mut bytes = Vec::new();
    let mut frame = DataFrame::new(board.rows.len(), columns)?;
    ParquetWriter::new(&mut bytes)
        .with_compression(ParquetCompression::Uncompressed)
        .finish(&mut frame)?;
    Ok(bytes)
}

fn founding_columns(board: &Leaderboard) -> Vec<Column> {
    let mut columns = vec![
        texts(board, "version_id", |row| Some(row.version_id.clone())),
        texts(board, "dataset_id", |row| Some(row.dataset_id.clone())),
        texts(board, "created_at", |row| Some(row.created_at.clone())),
        numbers(board, "latency_ms", |row| row.latency_ms),
        texts(board, "artifact_relpath", |row| {
            Some(row.artifact_relpath.clone())
        }),
    ];
    for name in metric_names(board) {
        columns.push(numbers(board, &format!("metric__{name}"), |row| {
            row.metric(&name)
        }));
    }
    columns
}

fn evidence_columns(board: &Leaderboard) -> Vec<Column> {
    let parent = |row: &LeaderboardRow, value: fn(&Comparison) -> f64| {
        row.against_parent.as_ref().map(value)
    };
    vec![
        numbers(board, "rank", |row| row.rank.map(f64::from)),
        texts(board, "algo", |row| Some(row.algo.clone())),
        texts(board, "parent", |row| row.parent.clone()),
        texts(board, "change", |row| row.change.clone()),
        numbers(board, "num_seeds", |row| Some(row.seeds.len() as f64)),
        numbers(board, "interval_low", |row| {
            row.estimate.map(|e| e.interval.low)
        }),
        numbers(board, "interval_high", |row| {
            row.estimate.map(|e| e.interval.high)
        }),
        numbers(board, "delta_parent", |row| {
            parent(row, |c| c.difference.difference)
        }),
        numbers(board, "delta_parent_low", |row| {
            parent(row, |c| c.difference.interval.low)
        }),
        numbers(board, "delta_parent_high", |row| {
            parent(row, |c| c.difference.interval.high)
        }),
        numbers(board, "delta_parent_p", |row| {
            parent(row, |c| c.difference.p_value)
        }),
        texts(board, "verdict_parent", |row| {
            row.against_parent
                .as_ref()
                .map(|c| c.verdict.words().to_owned())
        }),
        numbers(board, "p_holm_leader", |row| {
            row.against_leader.as_ref().and_then(|c| c.p_holm)
        }),
    ]
}

fn metric_names(board: &Leaderboard) -> Vec<String> {
    let mut seen = BTreeSet::new();
    board
        .rows
        .iter()
        .flat_map(|row| &row.metrics)
        .filter(|metric| seen.insert(metric.name.clone()))
        .map(|metric| metric.name.clone())
        .collect()
}

fn texts(
    board: &Leaderboard,
    name: &str,
    value: impl Fn(&LeaderboardRow) -> Option<String>,
) -> Column {
    let values: Vec<Option<String>> = board.rows.iter().map(value).collect();
    Series::new(name.into(), values).into()
}

fn numbers(
    board: &Leaderboard,
    name: &str,
    value: impl Fn(&LeaderboardRow) -> Option<f64>,
) -> Column {
    let values: Vec<Option<f64>> = board.rows.iter().map(value).collect();
    Series::new(name.into(), values).into()
}
