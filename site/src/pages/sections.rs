//! Parts that several pages show.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use minijinja::context;
use minijinja::value::Value;
use wmtp_records::{ErrorClass, GradedSample, HeadLoss};
use wmtp_stats::leaderboard::{Comparison, LeaderboardRow};
use wmtp_stats::wording::{percent, signed};

use super::index::{arrow, verdict_class, verdict_sign};
use super::{Book, markup};
use crate::charts::{Curve, histogram, number, strip, value_range};
use crate::cost::{bytes, duration, grouped};
use crate::input::{Histogram, TokenWeightRow, VersionInput};
use crate::series::Point;
use crate::table::{Cell, Table};
use crate::{diff, headline, marks, recipe, text};

/// Training programs shown with their weights.
const WEIGHTED_PROGRAMS_SHOWN: usize = 4;
/// Bounds of the five classes of token weights.
const WEIGHT_CLASSES: [f64; 4] = [0.5, 0.8, 1.25, 2.0];

/// Pass rate of every task, easy ones first, one strip per version.
pub(super) fn strips<'a>(
    book: &Book<'_>,
    versions: impl Iterator<Item = &'a VersionInput>,
    depth: usize,
) -> Vec<Value> {
    versions
        .map(|version| {
            let id = &version.row.version_id;
            let title = book.say("Tasks of {version}, from easy to hard", &[("version", id)]);
            context! {
                id => id.as_str(),
                href => markup(super::version_link(depth, id)),
                mark => markup(marks::of(&version.row.algo).inline()),
                strip => markup(strip(&title, &book.facts.rates(version), &book.words)),
            }
        })
        .collect()
}

/// Settings that differ from the parent's; `None` unless both recipes are known.
pub(super) fn recipe_diff(book: &Book<'_>, version: &str, other: &str) -> Option<Value> {
    let (now, before) = (
        book.facts.settings.get(version)?,
        book.facts.settings.get(other)?,
    );
    let changed = recipe::changed(before, now);
    let total = before
        .keys()
        .chain(now.keys())
        .collect::<BTreeSet<_>>()
        .len();
    let proper = recipe::proper(&changed).len();
    let sentence = if proper == changed.len() {
        "{changed} of {total} settings differ from {other}."
    } else {
        "{changed} of {total} settings differ from {other}; {more} come or go with the algorithm."
    };
    let caption = book.say(
        sentence,
        &[
            ("changed", &proper.to_string()),
            ("total", &total.to_string()),
            ("more", &(changed.len() - proper).to_string()),
            ("other", other),
        ],
    );
    let mut table = Table::new(&[&book.say("setting", &[]), other, version]).caption(&caption);
    for (key, before, now) in &changed {
        let shown = |value: Option<&str>| value.map_or_else(|| Cell::text("\u{2013}"), Cell::code);
        table.row(vec![Cell::code(*key), shown(*before), shown(*now)]);
    }
    let none = book.say(
        "No setting of {total} differs from {other}.",
        &[("total", &total.to_string()), ("other", other)],
    );
    Some(context! { table => table.finish(), none => none })
}

/// A comparison as a line of text.
pub(super) fn compared(
    book: &Book<'_>,
    this: &LeaderboardRow,
    comparison: &Comparison,
    against: &str,
    depth: usize,
) -> Value {
    let words = &book.words;
    let pair = book.facts.pair(&this.version_id, &comparison.other);
    let greedy = comparison.greedy.map(|greedy| {
        book.say(
            "greedy: {here} tasks only here, {there} only there, {p}",
            &[
                ("here", &greedy.only_this.to_string()),
                ("there", &greedy.only_other.to_string()),
                ("p", &p_value(greedy.p_value)),
            ],
        )
    });
    context! {
        other => comparison.other.as_str(),
        href => pair.map(|pair| markup(format!("{}{}", "../".repeat(depth), pair.path))),
        against => against,
        points => headline::points(comparison, words),
        range => headline::range(comparison, words),
        verdict => book.say(comparison.words(), &[]),
        class => verdict_class(comparison.verdict),
        sign => verdict_sign(comparison.verdict),
        reason => headline::reason(comparison, words),
        greedy => greedy,
    }
}

/// No probability is 0, so a small one is not shown as such.
pub(super) fn p_value(p: f64) -> String {
    if p < 0.001 {
        "p < 0.001".to_owned()
    } else {
        format!("p = {p:.3}")
    }
}

/// Failing programs first, each kind of failure before any comes twice.
pub(super) fn in_order(
    samples: &[GradedSample],
    failing: usize,
    passing: usize,
) -> Vec<&GradedSample> {
    let mut seen: BTreeMap<ErrorClass, usize> = BTreeMap::new();
    let mut turns: Vec<(usize, &GradedSample)> = samples
        .iter()
        .filter(|sample| !sample.verdict.passed)
        .map(|sample| {
            let turn = seen.entry(sample.verdict.class).or_insert(0);
            *turn += 1;
            (*turn, sample)
        })
        .collect();
    turns.sort_by_key(|(turn, sample)| (*turn, sample.verdict.class));
    let mut tasks = BTreeSet::new();
    let passed = samples.iter().filter(|sample| {
        sample.verdict.passed && tasks.insert(sample.completion.problem_id.as_str())
    });
    turns
        .into_iter()
        .take(failing)
        .map(|(_, sample)| sample)
        .chain(passed.take(passing))
        .collect()
}

/// A program beside a solution that passes, with what it was told.
pub(super) fn sample(book: &Book<'_>, sample: &GradedSample, depth: usize) -> Value {
    let id = &sample.completion.problem_id;
    let problem = book.input.problems.get(id);
    // A reference of blanks is as good as none.
    let reference = problem
        .and_then(|problem| problem.reference.as_deref())
        .filter(|reference| !reference.trim().is_empty());
    let program = &sample.completion.program;
    let (left, right) = match reference {
        Some(reference) => {
            let sides = diff::sides(reference, program);
            (Some(markup(sides.left)), sides.right)
        }
        None => (None, diff::plain(program)),
    };
    let stderr = sample.verdict.stderr.trim();
    context! {
        task => text::visible(id),
        href => book.facts.task(id).map(|task| markup(format!("{}{}", "../".repeat(depth), task.path))),
        family => problem.map(|problem| text::visible(&problem.family)).unwrap_or_default(),
        statement => problem.map(|problem| text::visible(problem.instruction.trim())),
        examples => problem.map(|problem| text::visible(problem.input.trim())).filter(|input| !input.is_empty()),
        which => which(book, sample.completion.sample),
        passed => sample.verdict.passed,
        class => class_name(book, sample.verdict.class),
        message => text::visible(sample.verdict.message.trim()),
        stderr => (!stderr.is_empty() && stderr != sample.verdict.message.trim()).then(|| text::visible(stderr)),
        reference => left,
        program => (!program.trim().is_empty()).then(|| markup(right)),
        identical => reference.is_some_and(|reference| reference.trim() == program.trim()),
    }
}

/// Which of the tries of a task.
pub(super) fn which(book: &Book<'_>, sample: Option<u32>) -> String {
    match sample {
        Some(number) => book.say("try {n}", &[("n", &(number + 1).to_string())]),
        None => book.say("greedy", &[]),
    }
}

/// What a program did wrong, in words.
pub(super) fn class_name(book: &Book<'_>, class: ErrorClass) -> String {
    book.say(&class.as_str().replace('_', " "), &[])
}

/// Histogram, weight statistics and highlighted programs; `None` for a version without weights.
pub(super) fn weights(book: &Book<'_>, version: &VersionInput) -> Option<Value> {
    let pooled = pooled_histogram(version)?;
    let total = pooled.counts.iter().sum::<u64>();
    let class = marks::of(&version.row.algo).class;
    let seeds = book
        .words
        .count(version.runs.len(), "{n} training run", "{n} training runs");
    let description = book.say(
        "{n} token weights of {runs}.",
        &[("n", &grouped(total)), ("runs", &seeds)],
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
        .map(|row| token_view(book, row))
        .collect();
    Some(context! {
        uniform => uniform,
        total => grouped(total),
        chart => (!uniform).then(|| markup(histogram(&pooled, class, &description, &book.words))),
        facts => weight_statistics(book, version),
        programs => rows,
        bounds => WEIGHT_CLASSES.map(|bound| format!("{bound}")).to_vec(),
        class => class,
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

/// Mean over all steps and seeds of one statistic of the weights.
pub(super) fn weight_mean(version: &VersionInput, key: &str) -> Option<f64> {
    let values: Vec<f64> = version
        .runs
        .iter()
        .flat_map(|run| &run.training.weight_stats)
        .filter_map(|row| row.get(key)?.as_f64())
        .collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn weight_statistics(book: &Book<'_>, version: &VersionInput) -> Vec<Value> {
    type Format = fn(f64) -> String;
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
            let value = format(weight_mean(version, key)?);
            Some(context! { name => book.say(name, &[]), value => value })
        })
        .collect()
}

fn token_view(book: &Book<'_>, row: &TokenWeightRow) -> Value {
    let names = [book.say("token", &[]), book.say("weight", &[])];
    let mut table = Table::new(&[&names[0], &names[1]]).class("narrow");
    for (token, weight) in row.tokens.iter().zip(&row.weights) {
        table.row(vec![
            Cell::code(format!("{:?}", text::visible(token))),
            Cell::number(format!("{weight:.2}")),
        ]);
    }
    context! { task => text::visible(&row.task_id), html => markup(highlighted(row)), table => table.finish() }
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
pub(super) fn heads(
    book: &Book<'_>,
    version: &VersionInput,
    parent: Option<&VersionInput>,
) -> Option<Value> {
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
    let say = |sentence: &str| book.say(sentence, &[]);
    let against =
        parent.map(|parent| book.say("against {other}", &[("other", &parent.row.version_id)]));
    let mut names = vec![say("head"), say("predicts"), say("cross-entropy, nats")];
    names.extend(against.clone());
    names.push(say("top choice right"));
    names.extend(against);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut table = Table::new(&names).caption(&say(
        "Heads on the reference solutions of the evaluation set.",
    ));
    for head in heads {
        let earlier = before(head.horizon);
        let mut cells = vec![
            Cell::text(head.horizon.to_string()),
            Cell::text(target(book, head.horizon)).class("whole"),
            Cell::number(format!("{:.3}", head.ce_nats)),
        ];
        if parent.is_some() {
            let delta = earlier
                .map(|b| format!("{:+.3}", head.ce_nats - b.ce_nats).replace('-', "\u{2212}"));
            cells.push(Cell::maybe(delta));
        }
        cells.push(Cell::number(percent(head.accuracy)));
        if parent.is_some() {
            cells.push(Cell::maybe(
                earlier.map(|b| signed(head.accuracy - b.accuracy)),
            ));
        }
        table.row(cells);
    }
    Some(context! { table => table.finish(), curves => head_curves(book, version) })
}

fn target(book: &Book<'_>, horizon: u32) -> String {
    match horizon {
        1 => book.say("next token", &[]),
        other => book.say("{n} tokens ahead", &[("n", &other.to_string())]),
    }
}

fn head_curves(book: &Book<'_>, version: &VersionInput) -> Vec<Value> {
    let class = marks::of(&version.row.algo).class;
    let series: Vec<(u32, Vec<Line<'_>>)> = version
        .row
        .heads
        .iter()
        .map(|head| {
            (
                head.horizon,
                lines(class, version, &format!("ce_head_{}", head.horizon)),
            )
        })
        .filter(|(_, lines)| lines.iter().any(|line| !line.1.is_empty()))
        .collect();
    let range = value_range(
        series
            .iter()
            .flat_map(|(_, lines)| lines)
            .map(|line| line.1),
    );
    series
        .iter()
        .map(|(horizon, lines)| {
            let values = [
                ("n", horizon.to_string()),
                ("target", target(book, *horizon)),
            ];
            let values = values.each_ref().map(|(key, value)| (*key, value.as_str()));
            let title = book.say("Head {n}: {target}", &values);
            let plot =
                book.shared
                    .plot(&version.row.version_id, &format!("head {horizon}"), || {
                        Curve {
                            lines,
                            range,
                            height: 110,
                        }
                        .plot()
                    });
            let description = book.say(
                "Unweighted cross-entropy during training, same scale for every head.",
                &[],
            );
            let chart = plot.map(|plot| plot.named(&title, &description, &book.words));
            context! { title => title.as_str(), chart => markup(chart.unwrap_or_default()) }
        })
        .collect()
}

/// The class of a line's colour and its points.
type Line<'a> = (&'a str, &'a [Point]);

/// Points of a metric, one line per seed.
fn lines<'a>(class: &'a str, version: &'a VersionInput, key: &str) -> Vec<Line<'a>> {
    let points = version
        .runs
        .iter()
        .map(|run| (class, run.training.metrics.points(key)));
    points.collect()
}

/// Training curves in the order in which a reader asks for them, of one version or of several on one scale.
pub(super) fn curves(book: &Book<'_>, versions: &[&VersionInput]) -> Vec<Value> {
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
    let same = |a: &VersionInput, b: &VersionInput| {
        marks::of(&a.row.algo).class == marks::of(&b.row.algo).class
    };
    let owner: Vec<&str> = versions
        .iter()
        .map(|version| version.row.version_id.as_str())
        .collect();
    let owner = owner.join(" ");
    WANTED
        .iter()
        .filter_map(|(key, title, caption)| {
            let plot = book.shared.plot(&owner, key, || {
                let mut all = Vec::new();
                for (index, version) in versions.iter().enumerate() {
                    // Two versions of one algorithm would share a colour; the second then is drawn in ink.
                    let class = match versions.first() {
                        Some(first) if index > 0 && same(first, version) => "a-second",
                        _ => marks::of(&version.row.algo).class,
                    };
                    all.extend(lines(class, version, key));
                }
                Curve {
                    lines: &all,
                    range: None,
                    height: 130,
                }
                .plot()
            })?;
            let (title, caption) = (book.say(title, &[]), book.say(caption, &[]));
            let chart = markup(plot.named(&title, &caption, &book.words));
            Some(context! { title => title, caption => caption, chart => chart })
        })
        .collect()
}

/// What the model can do.
fn abilities(book: &Book<'_>, version: &VersionInput) -> Vec<(&'static str, String)> {
    let found = version.runs.iter();
    let mut found = found.filter_map(|run| run.training.capabilities.as_ref());
    let Some(model) = found.next() else {
        return Vec::new();
    };
    let speculates = if model.speculative_decoding {
        "yes"
    } else {
        "no"
    };
    let mut abilities = vec![
        ("prediction heads", model.heads.to_string()),
        ("vocabulary of the model", grouped(model.vocab as u64)),
        ("speculative decoding", book.say(speculates, &[])),
    ];
    if let Some(dtype) = &model.dtype {
        abilities.push(("numbers that weights are stored as", dtype.clone()));
    }
    abilities
}

/// What it took, from what artifacts and runs record.
pub(super) fn facts(book: &Book<'_>, version: &VersionInput) -> Vec<Value> {
    let row = &version.row;
    let cost = book.cost(&row.version_id);
    let mut facts: Vec<(&str, String)> = Vec::new();
    if !row.seeds.is_empty() {
        let seeds: Vec<String> = row.seeds.iter().map(u64::to_string).collect();
        facts.push(("seeds", seeds.join(", ")));
    }
    if let Some(steps) = version
        .runs
        .iter()
        .filter_map(|run| run.training.metrics.last_step())
        .reduce(f64::max)
    {
        facts.push(("optimizer steps per seed", number(steps)));
    }
    facts.extend(abilities(book, version));
    if let Some(secs) = cost.train_secs {
        if cost.is_on_gpu() {
            facts.push(("training, GPU time", duration(cost.train_gpu_secs / 3600.0)));
        } else {
            facts.push(("training, machine time", duration(secs / 3600.0)));
        }
    }
    if let Some(secs) = cost.evaluate_secs {
        facts.push(("evaluation, machine time", duration(secs / 3600.0)));
    }
    if let Some(money) = cost.money.words() {
        facts.push(("price stated", money));
    }
    if cost.lost_attempts > 0 {
        facts.push((
            "attempts that ended without a result",
            cost.lost_attempts.to_string(),
        ));
    }
    if let Some(tokens) = cost.trained_tokens {
        facts.push(("target tokens trained on", grouped(tokens)));
    }
    if let Some(size) = cost.stored_bytes {
        facts.push(("stored", bytes(size)));
    }
    facts.push(("programs run", grouped(row.num_samples)));
    if let Some(tokens) = cost.generated() {
        facts.push(("tokens generated", tokens));
    }
    if let Some(millis) = row.latency_ms {
        facts.push(("time per generated sample", format!("{millis:.1} ms")));
    }
    facts.push((
        "CPU time of running the programs",
        format!("{:.0} s", cost.program_secs),
    ));
    let named = facts
        .into_iter()
        .map(|(name, value)| context! { name => book.say(name, &[]), value => value });
    let metrics = row.metrics.iter().map(|metric| {
        let name = format!(
            "{} {}",
            text::visible(&metric.name),
            arrow(metric.higher_is_better)
        );
        context! { name => name, value => number(metric.value) }
    });
    named.chain(metrics).collect()
}

/// Artifacts behind the page.
pub(super) fn sources(book: &Book<'_>, version: &VersionInput) -> Value {
    let say = |sentence: &str| book.say(sentence, &[]);
    let mut table = Table::new(&[]).class("ids").caption(&say(
        "Artifacts behind this page; an id is the digest of its content.",
    ));
    let mut add = |role: String, id: &str| table.row(vec![Cell::text(role), Cell::code(id)]);
    add(say("leaderboard"), &book.input.leaderboard_id);
    add(say("data set"), &book.input.board.data);
    for run in &version.row.runs {
        let seed = run.seed.map(|seed| seed.to_string());
        let role = |plain: &str, seeded: &str| match &seed {
            Some(seed) => book.say(seeded, &[("seed", seed)]),
            None => say(plain),
        };
        add(role("scores", "scores, seed {seed}"), &run.scores);
        if let Some(checkpoint) = &run.checkpoint {
            add(role("model", "model, seed {seed}"), checkpoint);
        }
    }
    let folder = say("folder beside the table, copied for the best version only");
    add(folder, &version.row.artifact_relpath);
    table.finish()
}
