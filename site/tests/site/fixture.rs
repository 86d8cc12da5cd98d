//! A small realistic world on disk: six versions, three seeds, sixty tasks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use build_site::SiteInput;
use build_site::input::{Attempt, Event, LogLine, Note, RunInfo, RunLife};
use serde_json::{Value, json};
use wmtp_records::{
    Completion, ErrorClass, GradedSample, HeadLoss, Metric, Problem, ProblemCount, Split, Tests,
    Usage, Verdict, data_files, jsonl, score_files,
};
use wmtp_stats::leaderboard::{
    Comparison, FamilyScore, Leaderboard, LeaderboardRow, RunSource, Verdict as Claim, files,
};
use wmtp_stats::{DRAWS, bootstrap_mean, mean_pass_at_k, paired_bootstrap, resolution};

/// Samples per task.
const SAMPLES: u32 = 20;
const TASKS: usize = 60;
const FAMILIES: [&str; 6] = [
    "sum_list",
    "reverse_words",
    "count_vowels",
    "clamp",
    "merge_counts",
    "nth_even",
];

/// One version of the world.
pub(crate) struct Version {
    pub(crate) id: &'static str,
    pub(crate) algo: &'static str,
    pub(crate) parent: Option<&'static str>,
    pub(crate) change: Option<String>,
    /// Mean share of passing samples.
    pub(crate) level: f64,
    pub(crate) claim: (Claim, &'static str),
}

/// What the fixture writes.
pub(crate) struct World {
    pub(crate) versions: Vec<Version>,
    pub(crate) seeds: Vec<u64>,
    /// Replaces problem statements, messages, errors and programs.
    pub(crate) hostile: Option<&'static str>,
    /// Whether analyses are one sentence without headings.
    pub(crate) bare_analysis: bool,
}

impl World {
    /// A typical outcome: weighting does not help detectably.
    pub(crate) fn typical() -> Self {
        let none = (Claim::NoDifference, "the interval includes 0");
        let version = |id, algo, parent, change: Option<&str>, level, claim| Version {
            id,
            algo,
            parent,
            change: change.map(str::to_owned),
            level,
            claim,
        };
        Self {
            versions: vec![
                version(
                    "base",
                    "base",
                    None,
                    None,
                    0.0,
                    (Claim::Worse, "the interval excludes 0"),
                ),
                version("v001", "baseline", None, None, 0.50, none),
                version(
                    "v002",
                    "verifiable",
                    Some("v001"),
                    Some("weight tokens by the advantage of the value model"),
                    0.53,
                    none,
                ),
                version(
                    "v003",
                    "rho1",
                    Some("v001"),
                    Some("weight tokens by their excess loss over the tuned reference"),
                    0.51,
                    none,
                ),
                version(
                    "v004",
                    "random_matched",
                    Some("v002"),
                    Some("draw the same weights for random tokens"),
                    0.49,
                    none,
                ),
                version(
                    "v005",
                    "shuffled",
                    Some("v002"),
                    Some("shuffle the weights within each program"),
                    0.52,
                    none,
                ),
            ],
            seeds: vec![42, 43, 44],
            hostile: None,
            bare_analysis: false,
        }
    }

    /// Writes every artifact below `root` and loads what a site needs.
    pub(crate) fn input(&self, root: &Path) -> SiteInput {
        self.write(root);
        let folder = |id: &str| -> Result<PathBuf, build_site::Error> { Ok(root.join(id)) };
        let mut input = SiteInput::load("leaderboard-1", folder).unwrap();
        input.runs = Some(runs());
        input
    }

    fn write(&self, root: &Path) {
        self.write_data(&root.join("processed-data-1"));
        for version in &self.versions {
            for seed in self.seeds_of(version) {
                self.write_scores(version, seed, &root.join(scores_id(version, seed)));
                if !matches!(version.algo, "base" | "external") {
                    write_checkpoint(
                        version,
                        seed.unwrap_or(0),
                        &root.join(checkpoint_id(version, seed)),
                    );
                }
            }
        }
        let board = self.board();
        let dir = root.join("leaderboard-1");
        jsonl::write_json(&dir.join(files::JSON), &board).unwrap();
        std::fs::write(dir.join(files::CSV), "version_id,dataset_id\n").unwrap();
        std::fs::write(dir.join(files::PARQUET), b"PAR1PAR1").unwrap();
        for row in &board.rows {
            let path = dir.join(files::analysis(&row.version_id));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let extra = self.hostile.unwrap_or("");
            let text = format!(
                "# {0}\n\n## Summary\n\n{0} solves what it solves. {extra}\n\n## Metric deltas\n\n| metric | {0} |\n|---|---:|\n| pass\\_at\\_1 | {1:.4} |\n",
                row.version_id,
                row.metric("pass_at_1").unwrap()
            );
            let text = if self.bare_analysis {
                "Nothing but a sentence.\n".to_owned()
            } else {
                text
            };
            std::fs::write(path, text).unwrap();
        }
        let write = |path: &str, text: &str| std::fs::write(dir.join(path), text).unwrap();
        write(
            "versions/v001/action-extract.md",
            &action("v001", "v002", "to learn which tokens matter"),
        );
        write(
            "final-analysis.md",
            "# Final analysis\n\n## Warnings\n\nNone.\n\n## Top three\n\n### v002\n\nIt leads.\n",
        );
        write("model-card.md", "# v002\n\n## Model\n\nA small one.\n");
        write(
            "baseline_patch_report.md",
            "# Audit\n\n## Checked\n\nPaths.\n",
        );
        let held_out = json!({"version_id": "v002", "dataset_id": "micropy-held-out", "split": "test", "num_tasks": 40,
            "seeds": [42], "primary_metric": "pass_at_1", "estimate": {"mean": 0.5, "interval": {"low": 0.4, "high": 0.6}}});
        jsonl::write_json(&dir.join("held-out.json"), &held_out).unwrap();
    }

    fn seeds_of(&self, version: &Version) -> Vec<Option<u64>> {
        if matches!(version.algo, "base" | "external") {
            vec![None]
        } else {
            self.seeds.iter().map(|seed| Some(*seed)).collect()
        }
    }

    fn write_data(&self, dir: &Path) {
        let problems: Vec<Problem> = (0..TASKS)
            .map(|task| Problem {
                problem_id: problem_id(task),
                instruction: self.hostile.map_or_else(|| statement(task), str::to_owned),
                input: "f([1, 2, 3]) == 6".to_owned(),
                prompt: String::new(),
                tests: Tests::Asserts { setup: String::new(), asserts: vec!["assert f([1]) == 1".to_owned()] },
                reference: Some("def f(items):\n    total = 0\n    for item in items:\n        total += item\n    return total\n".to_owned()),
                family: FAMILIES[task % FAMILIES.len()].to_owned(),
                difficulty: 1,
            })
            .collect();
        jsonl::write(&dir.join(data_files::problems(Split::Test)), &problems).unwrap();
    }

    fn write_scores(&self, version: &Version, seed: Option<u64>, dir: &Path) {
        jsonl::write(&dir.join(score_files::PROBLEMS), &counts(version, seed)).unwrap();
        let samples: Vec<GradedSample> = (0..12).map(|index| self.sample(version, index)).collect();
        jsonl::write(&dir.join(score_files::SAMPLES), &samples).unwrap();
    }

    fn sample(&self, version: &Version, index: usize) -> GradedSample {
        let (class, message, program) = match index % 4 {
            _ if version.algo == "base" => (
                ErrorClass::Syntax,
                "SyntaxError: invalid syntax (line 1)",
                "def f( items total )::\n  + + return",
            ),
            0 => (
                ErrorClass::WrongAnswer,
                "AssertionError: assert f([1, 2, 3]) == 6",
                "def f(items):\n    total = 1\n    for item in items:\n        total += item\n    return total\n",
            ),
            1 => (
                ErrorClass::Runtime,
                "NameError: name 'totl' is not defined",
                "def f(items):\n    total = 0\n    for item in items:\n        totl += item\n    return total\n",
            ),
            2 => (
                ErrorClass::Passed,
                "",
                "def f(items):\n    return sum(items)\n",
            ),
            _ => (
                ErrorClass::CpuTimeout,
                "CPU time used up (3 s)",
                "def f(items):\n    total = 0\n    while items:\n        total += items[0]\n    return total\n",
            ),
        };
        let stderr = "Traceback (most recent call last):\n  File \"program.py\", line 7, in <module>\nAssertionError\n";
        GradedSample {
            completion: Completion {
                problem_id: problem_id(index * 5),
                sample: Some(0),
                raw: program.to_owned(),
                program: self.hostile.unwrap_or(program).to_owned(),
                num_tokens: (version.algo != "external").then_some(40),
                finished: (version.algo != "external").then_some(true),
            },
            verdict: Verdict {
                passed: class == ErrorClass::Passed,
                class,
                message: self.hostile.unwrap_or(message).to_owned(),
                stderr: self
                    .hostile
                    .map_or_else(|| stderr.to_owned(), |text| format!("{text} (stderr)")),
                cpu_secs: 0.02,
                wall_secs: 0.03,
                cases: None,
                audit: None,
            },
            contamination: None,
        }
    }

    fn board(&self) -> Leaderboard {
        let scores: BTreeMap<&str, Vec<f64>> = self
            .versions
            .iter()
            .map(|version| (version.id, self.task_scores(version)))
            .collect();
        let mut order: Vec<&Version> = self.versions.iter().collect();
        order.sort_by(|a, b| b.level.total_cmp(&a.level));
        let leader = order[0];
        let rows = order
            .iter()
            .map(|version| self.row(version, leader, &scores))
            .collect();
        let squares = scores["v002"]
            .iter()
            .zip(&scores["v001"])
            .map(|(a, b)| (a - b) * (a - b));
        Leaderboard {
            dataset_id: "micropy-test".to_owned(),
            split: Split::Test,
            primary_metric: "pass_at_1".to_owned(),
            higher_is_better: true,
            created_at: "2026-11-21T12:05:31Z".to_owned(),
            data: "processed-data-1".to_owned(),
            num_tasks: TASKS,
            protocol: [
                ("temperature", "0.2"),
                ("top_p", "0.95"),
                ("num_samples", "20"),
                ("max_new_tokens", "96"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
            sandbox: [
                ("landlock", "enforced"),
                ("seccomp", "enforced"),
                ("network", "none"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
            resolution: resolution(squares.sum::<f64>() / TASKS as f64, TASKS),
            rows,
            algorithm_bests: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn task_scores(&self, version: &Version) -> Vec<f64> {
        let seeds = self.seeds_of(version);
        let mut scores = vec![0.0; TASKS];
        for seed in &seeds {
            for (score, task) in scores.iter_mut().zip(counts(version, *seed)) {
                *score += f64::from(task.num_passed) / f64::from(SAMPLES) / seeds.len() as f64;
            }
        }
        scores
    }

    fn row(
        &self,
        version: &Version,
        leader: &Version,
        scores: &BTreeMap<&str, Vec<f64>>,
    ) -> LeaderboardRow {
        let mine = &scores[version.id];
        let against = |other: &str| Comparison {
            other: other.to_owned(),
            difference: paired_bootstrap(mine, &scores[other], DRAWS, 42).unwrap(),
            p_holm: None,
            greedy: None,
            verdict: version.claim.0,
            reason: version.claim.1.to_owned(),
        };
        let controls = ["v004", "v005"].into_iter().filter(|id| *id != version.id);
        let weighted = matches!(version.algo, "verifiable" | "rho1");
        let pairs: Vec<(u64, u64)> = self
            .seeds_of(version)
            .iter()
            .flat_map(|seed| counts(version, *seed))
            .map(|task| (u64::from(SAMPLES), u64::from(task.num_passed)))
            .collect();
        let metric = |k| Metric {
            name: format!("pass_at_{k}"),
            value: mean_pass_at_k(&pairs, k).unwrap(),
            higher_is_better: true,
        };
        LeaderboardRow {
            version_id: version.id.to_owned(),
            dataset_id: "micropy-test".to_owned(),
            created_at: "2026-11-21T12:05:31Z".to_owned(),
            latency_ms: (version.algo != "external").then_some(12.5),
            artifact_relpath: files::version_dir(version.id),
            metrics: vec![metric(1), metric(5), metric(10)],
            rank: Some(if version.algo == "base" {
                self.versions.len() as u32
            } else {
                1
            }),
            algo: version.algo.to_owned(),
            parent: version.parent.map(str::to_owned),
            change: version.change.clone(),
            seeds: self.seeds_of(version).into_iter().flatten().collect(),
            num_samples: u64::from(SAMPLES) * pairs.len() as u64,
            estimate: bootstrap_mean(mine, DRAWS, 42),
            greedy_passed: None,
            greedy_interval: None,
            against_leader: (version.id != leader.id).then(|| against(leader.id)),
            against_parent: version.parent.map(against),
            against_baseline: weighted.then(|| against("v001")),
            against_controls: if matches!(version.algo, "base" | "external") {
                Vec::new()
            } else {
                controls.map(against).collect()
            },
            heads: (1..=if version.algo == "external" { 0 } else { 4 })
                .map(|horizon| HeadLoss {
                    horizon,
                    ce_nats: 0.4 * f64::from(horizon) - version.level * 0.2 + 0.3,
                    accuracy: 0.95 - 0.1 * f64::from(horizon),
                    num_targets: 4000,
                })
                .collect(),
            error_shares: [
                (ErrorClass::Passed, version.level),
                (ErrorClass::WrongAnswer, 1.0 - version.level),
            ]
            .into(),
            families: vec![FamilyScore {
                family: "sum_list".to_owned(),
                num_tasks: TASKS,
                mean: version.level,
            }],
            runs: self
                .seeds_of(version)
                .into_iter()
                .map(|seed| RunSource {
                    seed,
                    scores: scores_id(version, seed),
                    checkpoint: (version.algo != "external").then(|| checkpoint_id(version, seed)),
                })
                .collect(),
        }
    }
}

/// An action note with one text in every part; `next` is `none` at the end of a loop.
pub(crate) fn action(from: &str, next: &str, text: &str) -> String {
    if next == "none" {
        return format!(
            "# Action after {from}\n\nFrom: {from}\nNext: none\n\n## Selected Action\n\nNothing is left to try.\n"
        );
    }
    let mut parts = String::new();
    for name in [
        "Goal",
        "Change",
        "Where",
        "Expected impact",
        "Risk",
        "Verification",
    ] {
        parts.extend(["- **", name, "**: ", text, " `", name, "`\n"]);
    }
    format!(
        "# Action after {from}\n\nFrom: {from}\nNext: {next}\nEntry: by hand\n\n## Selected Action\n\n{parts}\n## Deferred\n\nNone.\n"
    )
}

/// One run of every life, and one of a version's trainings with two attempts on a GPU.
fn runs() -> Vec<RunInfo> {
    let attempt = |number, end: Option<&str>, message: Option<&str>| Attempt {
        number,
        began: "2026-11-21T10:00:00Z".to_owned(),
        ended: "2026-11-21T10:30:00Z".to_owned(),
        secs: 1800.0,
        end: end.map(str::to_owned),
        message: message.map(str::to_owned),
        ranks: 4,
        usage: Some(Usage {
            cost: Some(wmtp_records::Cost {
                amount: 2.25,
                currency: "USD".to_owned(),
                source: "a provider's list".to_owned(),
            }),
            ..Usage::default()
        })
        .filter(|_| end == Some("completed")),
    };
    let run = |id: &str, life, attempts: Vec<Attempt>| RunInfo {
        id: id.to_owned(),
        job: "train-stage2".to_owned(),
        name: Some(format!("micropy-{id}")),
        life,
        started: "2026-11-21T10:00:00Z".to_owned(),
        last: "2026-11-21T10:30:00Z".to_owned(),
        phase: "training".to_owned(),
        progress: Some((40, Some(100), "step".to_owned())),
        eta_secs: Some(90.0),
        device: Some("cuda:0".to_owned()),
        host: "box".to_owned(),
        outputs: BTreeMap::new(),
        events: vec![Event {
            at: "2026-11-21T10:00:01Z".to_owned(),
            attempt: 1,
            kind: "started".to_owned(),
            text: String::new(),
        }],
        metrics: [(
            "train_loss".to_owned(),
            (0..60)
                .map(|i| (f64::from(i), 3.0 - f64::from(i) * 0.03))
                .collect(),
        )]
        .into(),
        logs: ["info", "warning", "error"]
            .iter()
            .map(|level| LogLine {
                at: "2026-11-21T10:00:02Z".to_owned(),
                level: (*level).to_owned(),
                message: format!("a message of level {level}"),
            })
            .collect(),
        tags: Vec::new(),
        notes: Vec::new(),
        num_bad_lines: 0,
        attempts,
    };
    let completed = |id: &str, artifact: &str| RunInfo {
        outputs: [("checkpoint".to_owned(), artifact.to_owned())].into(),
        ..run(
            id,
            RunLife::Completed,
            vec![
                attempt(1, Some("preempted"), Some("stopped by a signal")),
                attempt(2, Some("completed"), None),
            ],
        )
    };
    let mut waiting = run("train-waiting", RunLife::Waiting, Vec::new());
    waiting.progress = None;
    waiting.logs.clear();
    vec![
        run(
            "train-running",
            RunLife::Running,
            vec![attempt(1, None, None)],
        ),
        run("train-lost", RunLife::Lost, vec![attempt(1, None, None)]),
        RunInfo {
            tags: vec!["ablation".to_owned(), "node-7".to_owned()],
            notes: vec![Note {
                at: "2026-11-21T11:00:00Z".to_owned(),
                author: "ada".to_owned(),
                text: "The card of node 7 has half the memory of the others.".to_owned(),
            }],
            ..run(
                "train-failed",
                RunLife::Failed,
                vec![attempt(1, Some("failed"), Some("out of memory"))],
            )
        },
        run(
            "train-preempted",
            RunLife::Preempted,
            vec![attempt(1, Some("preempted"), None)],
        ),
        waiting,
        completed("train-v001", "checkpoint-v001-42"),
        completed("train-v002", "checkpoint-v002-42"),
        completed("train-v003", "checkpoint-v003-42"),
    ]
}

fn problem_id(task: usize) -> String {
    format!("micropy/{}/{task:04}", FAMILIES[task % FAMILIES.len()])
}

fn statement(task: usize) -> String {
    format!("Write a function f(items) that adds up a list of numbers, variant {task}.")
}

fn scores_id(version: &Version, seed: Option<u64>) -> String {
    format!("scores-{}-{}", version.id, seed.unwrap_or(0))
}

fn checkpoint_id(version: &Version, seed: Option<u64>) -> String {
    format!("checkpoint-{}-{}", version.id, seed.unwrap_or(0))
}

/// A number in 0..1 from a few integers, the same on every machine.
fn noise(a: usize, b: usize, c: usize) -> f64 {
    let mixed = (a * 7919 + b * 104_729 + c * 1_299_709 + 17) % 10_007;
    (mixed * mixed % 10_007) as f64 / 10_007.0
}

/// Passes per task: tasks differ in difficulty, seeds wobble.
fn counts(version: &Version, seed: Option<u64>) -> Vec<ProblemCount> {
    let kind = version.id.len() + version.level.to_bits() as usize % 97;
    (0..TASKS)
        .map(|task| {
            let ease = 1.0 - task as f64 / TASKS as f64 + 0.25 * (noise(task, 1, 1) - 0.5);
            let wobble = 0.24 * (noise(task, kind, seed.unwrap_or(0) as usize) - 0.5);
            // What one version is better at than another, with all seeds: so much that their levels tell little. What
            // a task gains its neighbour loses.
            let taste = 0.9 * (noise(task / 2, kind, 7) - 0.5);
            let taste = if task % 2 == 0 { taste } else { -taste };
            let share =
                ((ease + version.level - 0.75) * 2.2 + 0.3 + taste + wobble).clamp(0.0, 1.0);
            let share = if version.level <= 0.0 { 0.0 } else { share };
            ProblemCount {
                problem_id: problem_id(task),
                family: FAMILIES[task % FAMILIES.len()].to_owned(),
                num_samples: SAMPLES,
                num_passed: (share * f64::from(SAMPLES)).round() as u32,
                greedy_passed: Some(share > 0.5),
                contamination: None,
            }
        })
        .collect()
}

fn write_checkpoint(version: &Version, seed: u64, dir: &Path) {
    let recipe = json!({
        "version": {"id": version.id, "parent": version.parent, "change": version.change},
        "experiment": {"algo": version.algo, "dataset": "micropy"},
        "seed": seed,
        "optim": {"lr": 0.003, "epochs": 3, "batch_sequences": 32},
        "weights": {"temperature": 1.0, "eps": 0.1, "w_max": 3.0},
        "model": {"dtype": "bf16", "horizon": 4},
    });
    jsonl::write_json(&dir.join("recipe.json"), &recipe).unwrap();
    let params = json!({"vocab_size": 4096, "n_future_tokens": 4});
    jsonl::write_json(&dir.join("params.json"), &params).unwrap();
    let summary = json!({"train_targets": 90_000, "n_params": 1_500_000, "steps": 160, "best_step": 150, "last_step": 160});
    jsonl::write_json(&dir.join("summary.json"), &summary).unwrap();
    let steps = 160usize;
    let metrics: Vec<Value> = (1..=steps)
        .map(|step| {
            let progress = step as f64 / steps as f64;
            let ce = |head: f64| 0.35 * head + 3.2 * (-4.0 * progress).exp() + 0.12 * (noise(step, seed as usize, head as usize) - 0.5);
            let mut row = json!({
                "step": step, "train_loss": ce(1.4), "train_loss_unweighted": ce(1.5),
                "ce_head_1": ce(1.0), "ce_head_2": ce(2.0), "ce_head_3": ce(3.0), "ce_head_4": ce(4.0),
                "lr": 0.003 * (0.5 + 0.5 * (std::f64::consts::PI * progress).cos()) * (progress * 20.0).min(1.0),
                "grad_norm": 0.6 + 2.0 * (-5.0 * progress).exp() + 0.4 * noise(step, seed as usize, 9),
            });
            if step.is_multiple_of(20) {
                row["validation_loss"] = json!(ce(1.1));
            }
            row
        })
        .collect();
    jsonl::write(&dir.join("metrics.jsonl"), &metrics).unwrap();
    let uniform = version.algo == "baseline";
    let stats = json!({"step": 1, "count": 900, "mean": 1.0, "std": if uniform { 0.0 } else { 0.62 }, "min": 0.1, "max": 3.0,
        "entropy": 0.94, "clip_low": 0.02, "clip_high": 0.05, "projection_c": 1.0, "temperature": 1.0});
    jsonl::write(&dir.join("weights.jsonl"), &[stats]).unwrap();
    let counts: Vec<u64> = (0..60)
        .map(|bin| {
            let weight = (f64::from(bin) + 0.5) * 0.05;
            let spread = (-(weight - 0.8).powi(2) / 0.25).exp() * 900.0
                + if bin == 59 { 260.0 } else { 0.0 };
            if uniform {
                u64::from(bin == 20) * 9000
            } else {
                spread as u64
            }
        })
        .collect();
    jsonl::write_json(
        &dir.join("weight_histogram.json"),
        &json!({"low": 0.0, "high": 3.0, "counts": counts}),
    )
    .unwrap();
    let tokens = [
        "def", " f", "(", "items", "):", "\n", "    ", "total", " =", " 0", "\n", "    ", "for",
        " item", " in", " items", ":", "\n", "        ", "total", " +=", " item", "\n", "    ",
        "return", " total", "\n",
    ];
    let weights: Vec<f64> = (0..tokens.len())
        .map(|i| 0.1 + 2.9 * noise(i, seed as usize, 5).powi(2))
        .collect();
    let rows: Vec<Value> = (0..3)
        .map(|n| json!({"task_id": format!("micropy/sum_list/{n:04}_correct_0"), "problem_id": "p", "tokens": tokens, "weights": weights}))
        .collect();
    jsonl::write(&dir.join("token_weights.jsonl"), &rows).unwrap();
}
