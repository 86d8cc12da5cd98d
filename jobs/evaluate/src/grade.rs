//! `evaluate grade`: files of samples against files of problems; no store, no recipe.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use serde_json::{Map, Value, json};
use wmtp_execution::SandboxConsent;
use wmtp_grading::files::{FileSummary, Files, RuleCounts, Shard, TaskCount, TestChoice};
use wmtp_grading::{GraderConfig, Limits, SandboxReport};
use wmtp_job_kit::{JobError, Tool, ToolCx};
use wmtp_stats::mean_pass_at_k;

/// Values of k that are printed where every problem has as many samples.
const KS: [u64; 6] = [1, 5, 10, 20, 50, 100];

/// Grades samples in the formats of OpenAI's human-eval, of MBPP, of EvalPlus and of CodeContests.
#[derive(Debug, clap::Args)]
pub struct Grade {
    /// Problems, JSON lines, plain or .gz: human-eval (task_id, prompt, entry_point, test), MBPP (task_id, test_list),
    /// EvalPlus's HumanEval+ and MBPP+ (base_input, plus_input, canonical_solution) or CodeContests (name, public_tests,
    /// private_tests, generated_tests)
    #[arg(long, value_name = "FILE")]
    problems: PathBuf,
    /// Samples, JSON lines, plain or .gz: task_id, and completion or, for a whole program, solution
    #[arg(long, value_name = "FILE")]
    samples: PathBuf,
    /// Where the sample rows go, with `passed`, `result` and `class` added. They grow in FILE.part; started again, the same
    /// command goes on behind them
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Grade a part: 3/8 is every eighth sample from the third on
    #[arg(long, value_name = "I/N", default_value_t = Shard::ALL)]
    shard: Shard,
    /// Grade nothing; put the results of all shards, in their order, together as one run writes them
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "shard")]
    merge: Vec<PathBuf>,
    /// Of EvalPlus's sets, run the original set's tests alone
    #[arg(long)]
    base_tests: bool,
    /// Run MBPP's challenge tests too
    #[arg(long)]
    challenge_tests: bool,
    /// Strict audit: run each program that passes once more, its tests in a process of their own, and add what comes of it as
    /// `audit`. What passes by forging its verdict is refuted
    #[arg(long)]
    audit: bool,
    /// Programs executed at the same time [default: one a core]
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroUsize>,
    /// CPU seconds a program may use
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    cpu_secs: u64,
    /// Wall-clock seconds a program may take
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wall_secs: u64,
    /// Address space of a program in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory_mib: u64,
    /// Interpreter [default: the first python3.11 or python3 found]
    #[arg(long, value_name = "PROGRAM")]
    python: Option<PathBuf>,
    #[command(flatten)]
    consent: SandboxConsent,
}

impl Tool for Grade {
    const ABOUT: &'static str = "Grades samples against problems in the sandbox and prints pass@k.";
    const EXAMPLES: &'static str = "\
  evaluate grade --problems HumanEval.jsonl --samples samples.jsonl --out results.jsonl
  evaluate grade --problems mbpp.jsonl --samples samples.jsonl.gz --out results.jsonl --workers 4 --json
  evaluate grade --problems HumanEvalPlus.jsonl.gz --samples samples.jsonl --out results.jsonl
  evaluate grade --problems code_contests.jsonl --samples samples.jsonl --out results.jsonl --cpu-secs 10
  evaluate grade --problems HumanEval.jsonl --samples samples.jsonl --out results.jsonl --audit
  evaluate grade --problems mbpp.jsonl --samples samples.jsonl.gz --out r3.jsonl --shard 3/8
  evaluate grade --problems mbpp.jsonl --samples samples.jsonl.gz --out results.jsonl --merge r?.jsonl";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let files = Files {
            problems: &self.problems,
            tests: TestChoice {
                base_only: self.base_tests,
                challenge: self.challenge_tests,
            },
            samples: &self.samples,
            out: &self.out,
        };
        if !self.merge.is_empty() {
            return self.merge(&files, cx);
        }
        let grader = wmtp_execution::start(self.config())?;
        if cx.is_dry_run() {
            cx.print(format!(
                "would grade {} into {}",
                self.samples.display(),
                self.out.display()
            ));
            return Ok(());
        }
        let (mut progress, stop) = (None, cx.stop_flag());
        let summary = files
            .grade(&grader, self.shard, |done, total| {
                // The first that is heard of comes behind all that an earlier run has done.
                if progress.is_none() && done > 1 {
                    let (found, out) = (done - 1, self.out.display());
                    cx.log(format!(
                        "{out}.part holds {found} of {total} results already; going on behind them"
                    ));
                }
                progress
                    .get_or_insert_with(|| cx.progress("grade", "programs", total as u64))
                    .set(done as u64);
                if stop.load(Ordering::Relaxed) {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })
            .map_err(wmtp_execution::job_error)?;
        drop(progress);
        self.tell(&summary, Some(grader.sandbox()), cx);
        Ok(())
    }
}

impl Grade {
    fn config(&self) -> GraderConfig {
        let defaults = GraderConfig::default();
        GraderConfig {
            workers: self.workers.unwrap_or(defaults.workers),
            limits: Limits::of(self.cpu_secs as f64, self.wall_secs as f64, self.memory_mib),
            accept_degraded: self.consent.accept_degraded_sandbox,
            audit: self.audit,
            python: self.python.clone(),
        }
    }

    fn merge(&self, files: &Files<'_>, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        if cx.is_dry_run() {
            let (number, out) = (self.merge.len(), self.out.display());
            cx.print(format!("would put {number} shards together into {out}"));
            return Ok(());
        }
        let summary = files
            .merge(&self.merge)
            .map_err(wmtp_execution::job_error)?;
        self.tell(&summary, None, cx);
        Ok(())
    }

    fn tell(&self, summary: &FileSummary, sandbox: Option<&SandboxReport>, cx: &mut ToolCx<'_>) {
        let num_samples: u64 = summary.classes.values().sum();
        let num_passed: u64 = summary.tasks.iter().map(|task| task.num_passed).sum();
        let plain = pass_at(summary, |task| task.num_passed);
        let strict = if summary.audits.is_empty() {
            Vec::new()
        } else {
            pass_at(summary, |task| task.num_confirmed)
        };
        cx.print(format!(
            "{num_passed} of {num_samples} samples passed, {} problems",
            summary.tasks.len()
        ));
        for (k, value) in &plain {
            cx.print(format!("pass@{k}  {value:.4}"));
        }
        for (k, value) in &strict {
            cx.print(format!("strict pass@{k}  {value:.4}"));
        }
        for (outcome, count) in &summary.audits {
            cx.print(format!("audit {:<14}{count}", outcome.as_str()));
        }
        let rules = summary.rules.iter().flat_map(rules_of);
        for (rule, samples, tests) in rules.clone() {
            cx.print(format!("{rule:<10}{samples:>8} samples{tests:>10} tests"));
        }
        for (class, count) in &summary.classes {
            cx.print(format!("{:<16}{count}", class.as_str()));
        }
        if summary.num_ungraded() > 0 {
            cx.warning(format!(
                "{} samples could not be graded and count for nothing",
                summary.num_ungraded()
            ));
        }
        let named = |values: Vec<(u64, f64)>| -> Map<String, Value> {
            let names = values.into_iter();
            names
                .map(|(k, value)| (format!("pass_at_{k}"), json!(value)))
                .collect()
        };
        cx.json_result(json!({
            "problems": summary.tasks.len(),
            "samples": num_samples,
            "passed": num_passed,
            "pass_at": named(plain),
            "strict_pass_at": named(strict),
            "audits": summary.audits,
            "classes": summary.classes,
            "rules": rules
                .map(|(rule, samples, tests)| (rule.to_owned(), json!({"samples": samples, "tests": tests})))
                .collect::<Map<_, _>>(),
            "sandbox": sandbox.map(SandboxReport::to_map),
            "out": self.out.display().to_string(),
        }));
    }
}

/// How many samples and tests pass by each rule of comparing outputs; all of them first.
fn rules_of(counts: &RuleCounts) -> [(&'static str, u32, u32); 6] {
    let RuleCounts { samples, tests } = counts;
    [
        ("all", samples.total, tests.total),
        ("deepmind", samples.deepmind, tests.deepmind),
        ("tokens", samples.tokens, tests.tokens),
        ("lines", samples.lines, tests.lines),
        ("trimmed", samples.trimmed, tests.trimmed),
        ("exact", samples.exact, tests.exact),
    ]
}

fn pass_at(summary: &FileSummary, passed: impl Fn(&TaskCount) -> u64) -> Vec<(u64, f64)> {
    let counts: Vec<(u64, u64)> = summary
        .tasks
        .iter()
        .map(|task| (task.num_samples, passed(task)))
        .collect();
    KS.iter()
        .filter_map(|&k| Some((k, mean_pass_at_k(&counts, k)?)))
        .collect()
}
