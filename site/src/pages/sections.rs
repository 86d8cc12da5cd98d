//! The parts of a version's page.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use minijinja::context;
use minijinja::value::Value;
use serde_json::Value as Json;
use wmtp_records::{ErrorClass, GradedSample, HeadLoss};
use wmtp_stats::wording::{count, percent, signed};

use super::markup;
use crate::charts::{Curve, histogram, number, strip, value_range};
use crate::input::{Histogram, SiteInput, TokenWeightRow, VersionInput};
use crate::series::Point;
use crate::{diff, marks, text};

/// Shown samples: failing ones of as many kinds as there are, then passing ones.
const FAILING_SHOWN: usize = 6;
const PASSING_SHOWN: usize = 3;
/// Training programs shown with their weights.
const WEIGHTED_PROGRAMS_SHOWN: usize = 4;
/// Bounds of the five classes of token weights.
const WEIGHT_CLASSES: [f64; 4] = [0.5, 0.8, 1.25, 2.0];

/// Pass rate of every task, easy ones first, one strip per version.
pub(super) fn strips<'a>(
    input: &SiteInput,
    versions: impl Iterator<Item = &'a VersionInput>,
) -> Vec<Value> {
    let order = tasks_from_easy_to_hard(input);
    versions
        .map(|version| {
            let rates = task_rates(version);
            let cells: Vec<f64> = order
                .iter()
                .map(|task| rates.get(task).copied().unwrap_or(0.0))
                .collect();
            let id = &version.row.version_id;
            let title = format!("Tasks of {id}, from easy to hard");
            context! {
                id => id.as_str(),
                mark => markup(marks::of(&version.row.algo).inline()),
                strip => markup(strip(&title, &cells)),
            }
        })
        .collect()
}

/// Task ids by mean pass rate over all versions, highest first.
fn tasks_from_easy_to_hard(input: &SiteInput) -> Vec<String> {
    let mut totals: BTreeMap<String, f64> = BTreeMap::new();
    for version in &input.versions {
        for (task, rate) in task_rates(version) {
            *totals.entry(task).or_insert(0.0) += rate;
        }
    }
    let mut order: Vec<(String, f64)> = totals.into_iter().collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    order.into_iter().map(|(task, _)| task).collect()
}

/// Mean pass rate per task over seeds.
fn task_rates(version: &VersionInput) -> BTreeMap<String, f64> {
    let mut rates = BTreeMap::new();
    let seeds = version.runs.len().max(1) as f64;
    for task in version.runs.iter().flat_map(|run| &run.problems) {
        let rate = f64::from(task.num_passed) / f64::from(task.num_samples.max(1));
        *rates.entry(task.problem_id.clone()).or_insert(0.0) += rate / seeds;
    }
    rates
}

/// Settings that differ from the parent's; `None` unless both recipes are known.
pub(super) fn recipe_diff(version: &VersionInput, parent: Option<&VersionInput>) -> Option<Value> {
    let recipe = |version: &VersionInput| version.runs.first()?.training.recipe.clone();
    let (mine, theirs) = (leaves(&recipe(version)?), leaves(&recipe(parent?)?));
    let keys: BTreeSet<&String> = mine.keys().chain(theirs.keys()).collect();
    let changed: Vec<Value> = keys
        .iter()
        .filter(|key| mine.get(**key) != theirs.get(**key))
        .map(|key| {
            let shown = |map: &BTreeMap<String, String>| {
                map.get(*key)
                    .cloned()
                    .unwrap_or_else(|| "\u{2013}".to_owned())
            };
            context! { key => key.as_str(), before => shown(&theirs), now => shown(&mine) }
        })
        .collect();
    Some(context! { total => keys.len(), num_changed => changed.len(), changed => changed })
}

/// Dotted keys of a recipe, without what names the version itself or the seed.
fn leaves(recipe: &Json) -> BTreeMap<String, String> {
    fn walk(prefix: &str, value: &Json, found: &mut BTreeMap<String, String>) {
        match value {
            Json::Object(fields) => {
                for (key, value) in fields {
                    let path = if prefix.is_empty() {
                        key.clone()
                    } else {
                        format!("{prefix}.{key}")
                    };
                    walk(&path, value, found);
                }
            }
            Json::String(text) => {
                found.insert(prefix.to_owned(), text.clone());
            }
            other => {
                found.insert(prefix.to_owned(), other.to_string());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk("", recipe, &mut found);
    found.retain(|key, _| key != "seed" && !key.starts_with("version"));
    found
}

/// Programs of the lowest seed, failing ones first and each kind of failure before any comes twice.
pub(super) fn samples(input: &SiteInput, version: &VersionInput) -> Vec<Value> {
    let Some(run) = version.runs.first() else {
        return Vec::new();
    };
    let mut failing: Vec<&GradedSample> = run
        .samples
        .iter()
        .filter(|sample| !sample.verdict.passed)
        .collect();
    let mut seen: BTreeMap<ErrorClass, usize> = BTreeMap::new();
    let mut shown_tasks = BTreeSet::new();
    failing.retain(|sample| {
        shown_tasks.insert((sample.completion.problem_id.as_str(), sample.verdict.class))
    });
    let mut turns: Vec<(usize, &GradedSample)> = failing
        .into_iter()
        .map(|sample| {
            let turn = seen.entry(sample.verdict.class).or_insert(0);
            *turn += 1;
            (*turn, sample)
        })
        .collect();
    turns.sort_by_key(|(turn, sample)| (*turn, sample.verdict.class));
    let mut passing_tasks = BTreeSet::new();
    let passing = run
        .samples
        .iter()
        .filter(|sample| {
            sample.verdict.passed && passing_tasks.insert(sample.completion.problem_id.as_str())
        })
        .take(PASSING_SHOWN);
    turns
        .into_iter()
        .take(FAILING_SHOWN)
        .map(|(_, sample)| sample)
        .chain(passing)
        .map(|sample| sample_view(input, sample))
        .collect()
}

fn sample_view(input: &SiteInput, sample: &GradedSample) -> Value {
    let problem = input.problems.get(&sample.completion.problem_id);
    let reference = problem.and_then(|problem| problem.reference.as_deref());
    let program = &sample.completion.program;
    let (left, right) = match reference {
        Some(reference) => {
            let sides = diff::sides(reference, program);
            (Some(markup(sides.left)), sides.right)
        }
        None => (None, diff::plain(program)),
    };
    let which = match sample.completion.sample {
        Some(number) => format!("sample {}", number + 1),
        None => "greedy".to_owned(),
    };
    let stderr = sample.verdict.stderr.trim();
    context! {
        task => text::visible(&sample.completion.problem_id),
        family => problem.map(|problem| text::visible(&problem.family)).unwrap_or_default(),
        statement => problem.map(|problem| text::visible(problem.instruction.trim())),
        examples => problem.map(|problem| text::visible(problem.input.trim())).filter(|input| !input.is_empty()),
        which => which,
        passed => sample.verdict.passed,
        class => sample.verdict.class.as_str().replace('_', " "),
        message => text::visible(sample.verdict.message.trim()),
        stderr => (!stderr.is_empty() && stderr != sample.verdict.message.trim()).then(|| text::visible(stderr)),
        reference => left,
        program => markup(right),
        identical => reference.is_some_and(|reference| reference.trim() == program.trim()),
    }
}

/// Histogram, weight statistics and highlighted programs; `None` for a version without weights.
pub(super) fn weights(version: &VersionInput) -> Option<Value> {
    let pooled = pooled_histogram(version)?;
    let total = pooled.counts.iter().sum::<u64>();
    let class = marks::of(&version.row.algo).class;
    let description = format!(
        "{total} token weights of {}.",
        count(version.runs.len(), "training run")
    );
    let uniform = version.row.algo == "baseline";
    let rows: Vec<Value> = version
        .runs
        .first()
        .map(|run| &run.training.token_weights[..])
        .unwrap_or_default()
        .iter()
        .filter(|_| !uniform)
        .take(WEIGHTED_PROGRAMS_SHOWN)
        .map(token_view)
        .collect();
    Some(context! {
        uniform => uniform,
        total => total,
        chart => (!uniform).then(|| markup(histogram(&pooled, class, &description))),
        stats => weight_statistics(version),
        programs => rows,
        bounds => WEIGHT_CLASSES.map(|bound| format!("{bound}")).to_vec(),
    })
}

fn pooled_histogram(version: &VersionInput) -> Option<Histogram> {
    let mut histograms = version
        .runs
        .iter()
        .filter_map(|run| run.training.histogram.clone());
    let mut pooled = histograms.next()?;
    for other in histograms {
        if other.counts.len() == pooled.counts.len() {
            for (sum, count) in pooled.counts.iter_mut().zip(other.counts) {
                *sum += count;
            }
        }
    }
    Some(pooled)
}

/// Means over all steps and seeds of what the weights looked like.
fn weight_statistics(version: &VersionInput) -> Vec<Value> {
    type Format = fn(f64) -> String;
    let mean = |key: &str| {
        let values: Vec<f64> = version
            .runs
            .iter()
            .flat_map(|run| &run.training.weight_stats)
            .filter_map(|row| row.get(key)?.as_f64())
            .collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    let shown: [(&str, &str, Format); 5] = [
        ("mean", "mean weight", number),
        ("std", "spread (standard deviation)", number),
        ("entropy", "entropy, 1 is uniform", number),
        ("clip_low", "at the lower bound", percent),
        ("clip_high", "at the upper bound", percent),
    ];
    shown
        .iter()
        .filter_map(|(key, name, format)| {
            Some(context! { name => *name, value => format(mean(key)?) })
        })
        .collect()
}

fn token_view(row: &TokenWeightRow) -> Value {
    let table: Vec<Value> = row
        .tokens
        .iter()
        .zip(&row.weights)
        .map(|(token, weight)| context! { token => format!("{:?}", text::visible(token)), weight => format!("{weight:.2}") })
        .collect();
    context! { task => text::visible(&row.task_id), html => markup(highlighted(row)), table => table }
}

/// A program with a bar under every token; leading blanks of a token are not painted.
fn highlighted(row: &TokenWeightRow) -> String {
    let mut html = String::new();
    for (token, weight) in row.tokens.iter().zip(&row.weights) {
        let token = text::visible(token);
        let body = token.trim_start();
        html.push_str(&text::escape(&token[..token.len() - body.len()]));
        let (body, tail) = body.split_at(body.trim_end().len());
        let class = WEIGHT_CLASSES
            .iter()
            .filter(|bound| *weight >= **bound)
            .count();
        if !body.is_empty() {
            let _ = write!(
                html,
                "<span class=\"w{class}\">{}</span>",
                text::escape(body)
            );
        }
        html.push_str(&text::escape(tail));
    }
    html
}

/// Loss and accuracy per head, and the curves of the losses on one scale.
pub(super) fn heads(version: &VersionInput, parent: Option<&VersionInput>) -> Option<Value> {
    let heads = &version.row.heads;
    if heads.is_empty() {
        return None;
    }
    let before = |horizon: u32| -> Option<&HeadLoss> {
        parent?
            .row
            .heads
            .iter()
            .find(|head| head.horizon == horizon)
    };
    let rows: Vec<Value> = heads
        .iter()
        .map(|head| {
            let earlier = before(head.horizon);
            context! {
                horizon => head.horizon,
                target => target(head.horizon),
                ce => format!("{:.3}", head.ce_nats),
                accuracy => percent(head.accuracy),
                ce_delta => earlier.map(|b| format!("{:+.3}", head.ce_nats - b.ce_nats).replace('-', "\u{2212}")),
                accuracy_delta => earlier.map(|b| signed(head.accuracy - b.accuracy)),
            }
        })
        .collect();
    Some(context! { rows => rows, has_parent => parent.is_some(), curves => head_curves(version) })
}

fn target(horizon: u32) -> String {
    match horizon {
        1 => "next token".to_owned(),
        other => format!("{other} tokens ahead"),
    }
}

fn head_curves(version: &VersionInput) -> Vec<Value> {
    let horizons: Vec<u32> = version.row.heads.iter().map(|head| head.horizon).collect();
    let series: Vec<(u32, Vec<Vec<Point>>)> = horizons
        .into_iter()
        .map(|horizon| {
            (
                horizon,
                metric_series(version, &format!("ce_head_{horizon}")),
            )
        })
        .filter(|(_, seeds)| seeds.iter().any(|seed| !seed.is_empty()))
        .collect();
    let range = value_range(series.iter().flat_map(|(_, seeds)| seeds));
    let class = marks::of(&version.row.algo).class;
    series
        .iter()
        .map(|(horizon, seeds)| {
            let title = format!("Head {horizon}: {}", target(*horizon));
            let curve = Curve {
                title: &title,
                description: "Unweighted cross-entropy during training, same scale for every head.",
                class,
                seeds,
                range,
                height: 110,
            };
            context! { title => title.as_str(), chart => markup(curve.draw()) }
        })
        .collect()
}

/// Points of a metric, one series per seed.
fn metric_series(version: &VersionInput, key: &str) -> Vec<Vec<Point>> {
    let series = version.runs.iter().map(|run| {
        let points = run.training.metrics.iter().filter_map(|row| {
            let point = (row.get("step")?.as_f64()?, row.get(key)?.as_f64()?);
            Some(point)
        });
        points.collect()
    });
    series.collect()
}

/// Training curves in the order in which a reader asks for them.
pub(super) fn curves(version: &VersionInput) -> Vec<Value> {
    const WANTED: [(&str, &str, &str); 4] = [
        (
            "train_loss_unweighted",
            "Training loss",
            "unweighted, mean over heads, so that versions compare",
        ),
        (
            "validation_loss",
            "Validation loss",
            "next token, on held-out problems",
        ),
        ("grad_norm", "Gradient norm", "before clipping"),
        ("lr", "Learning rate", "warm-up, then cosine"),
    ];
    let class = marks::of(&version.row.algo).class;
    WANTED
        .iter()
        .filter_map(|(key, title, caption)| {
            let seeds = metric_series(version, key);
            let curve = Curve {
                title,
                description: caption,
                class,
                seeds: &seeds,
                range: None,
                height: 130,
            };
            let chart = curve.draw();
            (!chart.is_empty())
                .then(|| context! { title => *title, caption => *caption, chart => markup(chart) })
        })
        .collect()
}

/// What it took, from what the artifacts record.
pub(super) fn facts(version: &VersionInput) -> Vec<Value> {
    let row = &version.row;
    let mut facts: Vec<(&str, String)> = Vec::new();
    if !row.seeds.is_empty() {
        let seeds: Vec<String> = row.seeds.iter().map(u64::to_string).collect();
        facts.push(("seeds", seeds.join(", ")));
    }
    let steps = version
        .runs
        .iter()
        .filter_map(|run| run.training.metrics.last()?.get("step")?.as_u64())
        .max();
    if let Some(steps) = steps {
        facts.push(("optimizer steps per seed", steps.to_string()));
    }
    let samples = || version.runs.iter().flat_map(|run| &run.samples);
    let tokens: u64 = samples()
        .map(|sample| u64::from(sample.completion.num_tokens))
        .sum();
    let cpu: f64 = samples().map(|sample| sample.verdict.cpu_secs).sum();
    facts.push(("programs run", row.num_samples.to_string()));
    facts.push(("tokens generated", tokens.to_string()));
    facts.push((
        "time per generated sample",
        format!("{:.1} ms", row.latency_ms),
    ));
    facts.push(("CPU time of running the programs", format!("{cpu:.0} s")));
    let named = facts
        .into_iter()
        .map(|(name, value)| context! { name => name, value => value });
    let metrics = row.metrics.iter().map(|metric| {
        let arrow = if metric.higher_is_better { "\u{2191}" } else { "\u{2193}" };
        context! { name => format!("{} {arrow}", text::visible(&metric.name)), value => number(metric.value) }
    });
    named.chain(metrics).collect()
}

/// Artifacts behind the page.
pub(super) fn sources(input: &SiteInput, version: &VersionInput) -> Vec<Value> {
    let mut sources = vec![
        ("leaderboard".to_owned(), input.leaderboard_id.clone()),
        ("data set".to_owned(), input.board.data.clone()),
    ];
    for run in &version.row.runs {
        let of = run
            .seed
            .map(|seed| format!(", seed {seed}"))
            .unwrap_or_default();
        sources.push((format!("scores{of}"), run.scores.clone()));
        sources.push((format!("model{of}"), run.checkpoint.clone()));
    }
    sources
        .into_iter()
        .map(|(role, id)| context! { role => role, id => text::visible(&id) })
        .collect()
}
