//! Writes the input of `make bench-site`: a mirror with a leaderboard of many versions.
//!
//!     site_input FOLDER VERSIONS METRICS POINTS
//!
//! VERSIONS rows with METRICS metrics each; POINTS points of training metrics over all versions. Prints the id of the
//! leaderboard. Beside the mirror lie `table.csv`, the bare table for other programs, and `pages/`, one Markdown page per
//! version with what its analysis says.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use serde_json::json;
use wmtp_records::{Metric, Problem, ProblemCount, Split, Tests, data_files, jsonl, score_files};
use wmtp_stats::leaderboard::{Comparison, Leaderboard, LeaderboardRow, RunSource, Verdict, files};
use wmtp_stats::{Difference, Estimate, Interval};

const TASKS: usize = 50;
/// Training metrics of a step.
const SERIES: usize = 10;

fn id(kind: &str, number: usize) -> String {
    format!("{kind}-{number:040x}")
}

fn version(number: usize) -> String {
    format!("v{number:04}")
}

/// A number in 0..1, the same everywhere.
fn noise(a: usize, b: usize) -> f64 {
    let mixed = (a * 7919 + b * 104_729 + 17) % 10_007;
    (mixed * mixed % 10_007) as f64 / 10_007.0
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, versions, metrics, points] = &arguments[..] else {
        return Err("usage: site_input FOLDER VERSIONS METRICS POINTS".into());
    };
    let (folder, versions, metrics, points) = (
        Path::new(folder),
        versions.parse()?,
        metrics.parse()?,
        points.parse::<usize>()?,
    );
    let mirror = folder.join("mirror");
    problems(&mirror.join(id("processed-data", 1)))?;
    let rows: Vec<LeaderboardRow> = (0..versions).map(|number| row(number, metrics)).collect();
    for number in 0..versions {
        scores(&mirror.join(id("scores", number)), number)?;
        checkpoint(
            &mirror.join(id("checkpoint", number)),
            number,
            points / versions / SERIES,
        )?;
    }
    let board = board(rows);
    let leaderboard = mirror.join(id("leaderboard", 1));
    std::fs::create_dir_all(&leaderboard)?;
    jsonl::write_json(&leaderboard.join(files::JSON), &board)?;
    std::fs::write(leaderboard.join(files::PARQUET), b"PAR1PAR1")?;
    let table = table(&board, metrics);
    std::fs::write(leaderboard.join(files::CSV), &table)?;
    std::fs::write(folder.join("table.csv"), &table)?;
    std::fs::create_dir_all(folder.join("pages"))?;
    for row in &board.rows {
        let text = analysis(row);
        std::fs::create_dir_all(leaderboard.join(files::version_dir(&row.version_id)))?;
        std::fs::write(leaderboard.join(files::analysis(&row.version_id)), &text)?;
        std::fs::write(
            folder.join("pages").join(format!("{}.md", row.version_id)),
            &text,
        )?;
    }
    writeln!(std::io::stdout(), "{}", id("leaderboard", 1))?;
    Ok(())
}

fn problems(dir: &Path) -> Result<(), jsonl::Error> {
    let problems: Vec<Problem> = (0..TASKS)
        .map(|task| Problem {
            problem_id: format!("bench/{task:04}"),
            instruction: format!("Add up the numbers, variant {task}."),
            input: String::new(),
            prompt: String::new(),
            tests: Tests::Asserts {
                setup: String::new(),
                asserts: vec!["assert f([1]) == 1".to_owned()],
            },
            reference: Some("def f(items):\n    return sum(items)\n".to_owned()),
            family: String::new(),
            difficulty: 0,
        })
        .collect();
    jsonl::write(
        &dir.join(data_files::problems(Split::Validation)),
        &problems,
    )
}

fn rate(number: usize) -> f64 {
    0.3 + 0.3 * noise(number, 1)
}

fn scores(dir: &Path, number: usize) -> Result<(), jsonl::Error> {
    let passed = |task: usize| noise(number, task + 7) < rate(number);
    let counts: Vec<ProblemCount> = (0..TASKS)
        .map(|task| ProblemCount {
            problem_id: format!("bench/{task:04}"),
            family: String::new(),
            num_samples: 1,
            num_passed: u32::from(passed(task)),
            greedy_passed: Some(passed(task)),
            contamination: None,
        })
        .collect();
    jsonl::write(&dir.join(score_files::PROBLEMS), &counts)?;
    let samples: Vec<serde_json::Value> = (0..10)
        .map(|task| {
            let class = if passed(task) { "passed" } else { "wrong_answer" };
            json!({"problem_id": format!("bench/{task:04}"), "sample": null, "raw": "", "num_tokens": 20, "finished": true,
                "program": format!("def f(items):\n    total = {number}\n    return total + sum(items)\n"),
                "verdict": {"passed": passed(task), "class": class, "message": "AssertionError: assert f([1]) == 1",
                    "stderr": "Traceback (most recent call last):\nAssertionError\n", "cpu_secs": 0.02, "wall_secs": 0.03}})
        })
        .collect();
    jsonl::write(&dir.join(score_files::SAMPLES), &samples)
}

fn checkpoint(dir: &Path, number: usize, steps: usize) -> Result<(), Box<dyn Error>> {
    let recipe = json!({"experiment": {"algo": "baseline"}, "seed": 42, "optim": {"lr": 1e-3 * noise(number, 3), "epochs": 1}});
    jsonl::write_json(&dir.join("recipe.json"), &recipe)?;
    let mut lines = String::new();
    for step in 1..=steps {
        let loss = 3.0 * (-3.0 * step as f64 / steps as f64).exp() + noise(number, step);
        let _ = write!(
            lines,
            "{{\"step\":{step},\"train_loss_unweighted\":{loss:.5},\"validation_loss\":{loss:.5},\"grad_norm\":{loss:.4},\"lr\":0.001"
        );
        for extra in 4..SERIES {
            let _ = write!(lines, ",\"extra_{extra}\":{:.4}", loss * extra as f64);
        }
        lines.push_str("}\n");
    }
    std::fs::write(dir.join("metrics.jsonl"), lines)?;
    Ok(())
}

fn interval(mean: f64) -> Interval {
    Interval {
        low: mean - 0.04,
        high: mean + 0.04,
    }
}

fn row(number: usize, metrics: usize) -> LeaderboardRow {
    let mean = rate(number);
    let against = |other: usize| Comparison {
        other: version(other),
        difference: Difference {
            difference: mean - rate(other),
            interval: interval(mean - rate(other)),
            p_value: 0.2,
        },
        p_holm: Some(0.4),
        greedy: None,
        verdict: Verdict::NoDifference,
        reason: "the interval includes 0".to_owned(),
    };
    let parent = number.checked_sub(1);
    let primary = Metric {
        name: "pass_at_1".to_owned(),
        value: mean,
        higher_is_better: true,
    };
    let others = (1..metrics).map(|metric| Metric {
        name: format!("metric_{metric}"),
        value: noise(number, metric),
        higher_is_better: metric % 2 == 0,
    });
    LeaderboardRow {
        version_id: version(number),
        dataset_id: "bench-validation".to_owned(),
        created_at: "2026-11-21T12:05:31Z".to_owned(),
        latency_ms: Some(12.5),
        artifact_relpath: files::version_dir(&version(number)),
        metrics: std::iter::once(primary).chain(others).collect(),
        rank: Some(1),
        algo: ["baseline", "verifiable", "rho1"][number % 3].to_owned(),
        parent: parent.map(version),
        change: parent.map(|_| format!("learning rate changed for the time number {number}")),
        seeds: vec![42],
        num_samples: TASKS as u64,
        estimate: Some(Estimate {
            mean,
            interval: interval(mean),
        }),
        greedy_passed: None,
        greedy_interval: None,
        against_leader: None,
        against_parent: parent.map(against),
        against_baseline: None,
        against_controls: Vec::new(),
        heads: Vec::new(),
        error_shares: BTreeMap::new(),
        families: Vec::new(),
        runs: vec![RunSource {
            seed: Some(42),
            scores: id("scores", number),
            checkpoint: Some(id("checkpoint", number)),
        }],
    }
}

fn board(mut rows: Vec<LeaderboardRow>) -> Leaderboard {
    let level = |row: &LeaderboardRow| row.estimate.map_or(0.0, |estimate| estimate.mean);
    rows.sort_by(|a, b| level(b).total_cmp(&level(a)));
    let leader = rows[0].version_id.clone();
    for row in rows.iter_mut().skip(1) {
        row.against_leader = row.against_parent.clone().map(|comparison| Comparison {
            other: leader.clone(),
            ..comparison
        });
    }
    Leaderboard {
        dataset_id: "bench-validation".to_owned(),
        split: Split::Validation,
        primary_metric: "pass_at_1".to_owned(),
        higher_is_better: true,
        created_at: "2026-11-21T12:05:31Z".to_owned(),
        data: id("processed-data", 1),
        num_tasks: TASKS,
        protocol: BTreeMap::new(),
        sandbox: BTreeMap::new(),
        resolution: None,
        rows,
        algorithm_bests: Vec::new(),
        warnings: Vec::new(),
    }
}

fn analysis(row: &LeaderboardRow) -> String {
    let mut text = format!(
        "# {}\n\n{}\n\n## Metric deltas\n\n| metric | value |\n|---|---:|\n",
        row.version_id,
        "One sentence of what was found here. ".repeat(20)
    );
    for metric in row.metrics.iter().take(12) {
        let _ = writeln!(text, "| {} | {:.4} |", metric.name, metric.value);
    }
    for heading in [
        "Where the difference sits",
        "Evidence",
        "Hypotheses",
        "Candidates for next",
    ] {
        let _ = write!(
            text,
            "\n## {heading}\n\n{}\n",
            "A sentence that rests on a figure of this version. ".repeat(16)
        );
    }
    text.push_str("\n```python\ndef f(items):\n    return sum(items)\n```\n");
    text
}

fn table(board: &Leaderboard, metrics: usize) -> String {
    let names: Vec<String> = board
        .rows
        .first()
        .map(|row| {
            row.metrics
                .iter()
                .map(|metric| format!("metric__{}", metric.name))
                .collect()
        })
        .unwrap_or_default();
    let mut text = format!(
        "version_id,dataset_id,created_at,latency_ms,artifact_relpath,{}\n",
        names.join(",")
    );
    for row in &board.rows {
        let values: Vec<String> = row
            .metrics
            .iter()
            .take(metrics)
            .map(|metric| metric.value.to_string())
            .collect();
        let _ = writeln!(
            text,
            "{},{},{},{},{},{}",
            row.version_id,
            row.dataset_id,
            row.created_at,
            row.latency_ms.unwrap_or_default(),
            row.artifact_relpath,
            values.join(",")
        );
    }
    text
}
