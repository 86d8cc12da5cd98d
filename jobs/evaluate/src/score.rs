//! From verdicts to scores.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};
use wmtp_decoding::Tally;
use wmtp_records::{
    AuditOutcome, CaseCounts, Completion, Contamination, DoubtfulPass, ErrorClass, GradedSample,
    Metric, Problem, ProblemCount, ReferenceLoss, Spread, TestTouch,
};
use wmtp_stats::{DRAWS, bootstrap_mean, mean_pass_at_k};

use crate::contamination::Flags;
use crate::heads::HeadScore;
use crate::matches::Matches;

/// A report is the same whenever it is made.
const BOOTSTRAP_SEED: u64 = 42;

/// Counts per problem, in the order of `problems`. Samples that the grader could not run count for nothing.
pub(crate) fn count(
    problems: &[Problem],
    samples: &[GradedSample],
    flags: &Flags,
) -> Vec<ProblemCount> {
    let mut by_problem: BTreeMap<&str, Vec<&GradedSample>> = BTreeMap::new();
    for sample in samples {
        by_problem
            .entry(&sample.completion.problem_id)
            .or_default()
            .push(sample);
    }
    problems
        .iter()
        .map(|problem| {
            let own = by_problem
                .get(problem.problem_id.as_str())
                .map(Vec::as_slice)
                .unwrap_or_default();
            let drawn = || {
                own.iter()
                    .filter(|sample| sample.completion.sample.is_some() && is_graded(sample))
            };
            ProblemCount {
                problem_id: problem.problem_id.clone(),
                family: problem.family.clone(),
                num_samples: drawn().count() as u32,
                num_passed: drawn().filter(|sample| sample.verdict.passed).count() as u32,
                greedy_passed: own
                    .iter()
                    .find(|sample| sample.completion.sample.is_none())
                    .map(|sample| sample.verdict.passed),
                contamination: flags.get(&problem.problem_id).copied(),
            }
        })
        .collect()
}

fn is_graded(sample: &GradedSample) -> bool {
    sample.verdict.class != ErrorClass::Infrastructure
}

/// What beside the samples tells of a model.
#[derive(Debug, Default)]
pub(crate) struct Beside<'a> {
    pub(crate) heads: &'a [HeadScore],
    pub(crate) matches: Option<Matches>,
    /// Whether it is known what the model was trained on, so that a problem without a flag is a clean one.
    pub(crate) knows_training: bool,
    pub(crate) touch: Option<&'a TestTouch>,
}

/// Every metric of a run: pass@k by execution first, then what helps to read it.
pub(crate) fn metrics(
    counts: &[ProblemCount],
    samples: &[GradedSample],
    beside: &Beside<'_>,
    ks: &[u32],
) -> Vec<Metric> {
    let metric = |name: String, value, higher_is_better| Metric {
        name,
        value,
        higher_is_better,
    };
    let mut metrics = pass_at(counts.iter(), ks, "pass_at");
    if let Some(value) = mean_pass_at_k(&confirmed(counts, samples), 1) {
        metrics.push(metric("strict_pass_at_1".to_owned(), value, true));
    }
    if let Some(share) = share(counts.iter().filter_map(|count| count.greedy_passed)) {
        metrics.push(metric("greedy_pass_at_1".to_owned(), share, true));
    }
    for (rule, value) in by_stricter_rules(counts, samples) {
        metrics.push(metric(format!("pass_at_1_{rule}"), value, true));
    }
    if let Some(value) = tests_passed_share(counts, samples) {
        metrics.push(metric("tests_passed_share".to_owned(), value, true));
    }
    if let Some(Matches { exact, ast }) = beside.matches {
        metrics.push(metric("exact_match".to_owned(), exact, true));
        metrics.push(metric("ast_match".to_owned(), ast, true));
    }
    if beside.knows_training {
        let clean = || counts.iter().filter(|count| count.contamination.is_none());
        let flagged = counts.len() - clean().count();
        metrics.push(metric(
            "contaminated_problems".to_owned(),
            flagged as f64,
            false,
        ));
        if flagged > 0 {
            metrics.extend(pass_at(clean(), ks, "clean_pass_at"));
        }
    }
    if let Some(touch) = beside.touch {
        metrics.push(metric("test_touch".to_owned(), touch.number as f64, false));
    }
    metrics.extend(of_heads(beside.heads));
    if let Some(finished) = of_all(samples, |completion| completion.finished) {
        metrics.extend(
            share(finished.into_iter())
                .map(|value| metric("finished_share".to_owned(), value, true)),
        );
    }
    if let Some(tokens) = of_all(samples, |completion| completion.num_tokens) {
        let sum: u64 = tokens.into_iter().map(u64::from).sum();
        let mean = sum as f64 / samples.len() as f64;
        metrics.push(metric("mean_tokens".to_owned(), mean, false));
    }
    metrics
}

/// What is known of every sample; `None` where one of them does not say, or there is none.
fn of_all<T>(samples: &[GradedSample], value: impl Fn(&Completion) -> Option<T>) -> Option<Vec<T>> {
    let values: Vec<T> = samples
        .iter()
        .map(|sample| value(&sample.completion))
        .collect::<Option<_>>()?;
    (!values.is_empty()).then_some(values)
}

/// pass@k of some problems. A k above the samples of one of them does not exist; it is left out, not guessed.
fn pass_at<'a>(
    counts: impl Iterator<Item = &'a ProblemCount>,
    ks: &[u32],
    name: &str,
) -> Vec<Metric> {
    let n_and_c: Vec<(u64, u64)> = counts
        .map(|count| (count.num_samples.into(), count.num_passed.into()))
        .collect();
    let of_k = |&k: &u32| {
        Some(Metric {
            name: format!("{name}_{k}"),
            value: mean_pass_at_k(&n_and_c, k.into())?,
            higher_is_better: true,
        })
    };
    ks.iter().filter_map(of_k).collect()
}

/// Losses and calibration of each head, and how far its loss is above a reference's.
fn of_heads(heads: &[HeadScore]) -> Vec<Metric> {
    let less_is_better = |name: String, value| Metric {
        name,
        value,
        higher_is_better: false,
    };
    let mut metrics = Vec::new();
    for head in heads {
        let horizon = head.loss.horizon;
        metrics.push(less_is_better(
            format!("ce_head_{horizon}"),
            head.loss.ce_nats,
        ));
        metrics.push(less_is_better(
            format!("calibration_error_head_{horizon}"),
            head.calibration_error,
        ));
        if let Some(reference) = head.reference_nats {
            metrics.push(less_is_better(
                format!("excess_ce_head_{horizon}"),
                head.loss.ce_nats - reference,
            ));
        }
    }
    let reference = heads.first().and_then(|head| head.reference_nats);
    metrics.extend(reference.map(|nats| less_is_better("reference_ce".to_owned(), nats)));
    metrics
}

/// The heads beside a reference; `None` without one.
pub(crate) fn reference_loss(heads: &[HeadScore], reference: &str) -> Option<ReferenceLoss> {
    let excess = heads
        .iter()
        .map(|head| Some(head.loss.ce_nats - head.reference_nats?));
    Some(ReferenceLoss {
        reference: reference.to_owned(),
        ce_nats: heads.first()?.reference_nats?,
        excess_nats: excess.collect::<Option<_>>()?,
    })
}

/// Number of flagged problems by their flag.
pub(crate) fn contaminated(counts: &[ProblemCount]) -> BTreeMap<Contamination, usize> {
    let mut found = BTreeMap::new();
    for flag in counts.iter().filter_map(|count| count.contamination) {
        *found.entry(flag).or_default() += 1;
    }
    found
}

/// Graded samples of each problem, and those of them whose pass cannot be forged: an audit confirmed it, or the program was
/// judged from outside by what it prints.
fn confirmed(counts: &[ProblemCount], samples: &[GradedSample]) -> Vec<(u64, u64)> {
    let mut by_problem: BTreeMap<&str, u64> = BTreeMap::new();
    for sample in samples
        .iter()
        .filter(|sample| sample.completion.sample.is_some())
    {
        let verdict = &sample.verdict;
        let by_audit = verdict
            .audit
            .as_ref()
            .is_some_and(|audit| audit.outcome == AuditOutcome::Confirmed);
        if verdict.passed && (by_audit || verdict.cases.is_some()) {
            *by_problem.entry(&sample.completion.problem_id).or_default() += 1;
        }
    }
    counts
        .iter()
        .map(|count| {
            let confirmed = by_problem.get(count.problem_id.as_str());
            (count.num_samples.into(), confirmed.copied().unwrap_or(0))
        })
        .collect()
}

/// pass@1 by the rules of comparing outputs that are stricter than the one that judges, where programs print.
fn by_stricter_rules(
    counts: &[ProblemCount],
    samples: &[GradedSample],
) -> Vec<(&'static str, f64)> {
    type Right = fn(&CaseCounts) -> u32;
    let rules: [(&'static str, Right); 4] = [
        ("tokens", |cases| cases.tokens),
        ("lines", |cases| cases.lines),
        ("trimmed", |cases| cases.trimmed),
        ("exact", |cases| cases.exact),
    ];
    let of = |right: Right| {
        per_problem(counts, samples, |cases| {
            f64::from(u8::from(right(cases) == cases.total))
        })
    };
    rules
        .into_iter()
        .filter_map(|(rule, right)| Some((rule, of(right)?)))
        .collect()
}

/// Share of the tests whose output is right, mean over the samples of a problem and then over problems.
fn tests_passed_share(counts: &[ProblemCount], samples: &[GradedSample]) -> Option<f64> {
    per_problem(counts, samples, |cases| {
        f64::from(cases.deepmind) / f64::from(cases.total)
    })
}

/// Mean over the problems of the mean over their drawn samples; `None` where a problem has no graded sample, or is not judged
/// by what programs print.
fn per_problem(
    counts: &[ProblemCount],
    samples: &[GradedSample],
    value: impl Fn(&CaseCounts) -> f64,
) -> Option<f64> {
    let mut by_problem: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for sample in samples {
        if let (Some(_), Some(cases)) = (sample.completion.sample, &sample.verdict.cases) {
            let (sum, number) = by_problem.entry(&sample.completion.problem_id).or_default();
            *sum += value(cases);
            *number += 1.0;
        }
    }
    let means: Vec<f64> = counts
        .iter()
        .map(|count| by_problem.get(count.problem_id.as_str()))
        .map(|found| found.map(|(sum, number)| sum / number))
        .collect::<Option<_>>()?;
    (!means.is_empty()).then(|| means.iter().sum::<f64>() / means.len() as f64)
}

/// How sure pass@1 is, over problems; `None` where a problem has no graded sample.
pub(crate) fn spread(counts: &[ProblemCount]) -> Option<Spread> {
    if counts.iter().any(|count| count.num_samples == 0) {
        return None;
    }
    let scores: Vec<f64> = counts
        .iter()
        .map(|count| f64::from(count.num_passed) / f64::from(count.num_samples))
        .collect();
    let interval = bootstrap_mean(&scores, DRAWS, BOOTSTRAP_SEED)?.interval;
    let number = scores.len() as f64;
    let mean = scores.iter().sum::<f64>() / number;
    let squares: f64 = scores.iter().map(|score| (score - mean).powi(2)).sum();
    Some(Spread {
        // One problem tells nothing of the spread between problems.
        standard_error: (scores.len() > 1).then(|| (squares / (number - 1.0) / number).sqrt()),
        low: interval.low,
        high: interval.high,
    })
}

/// What the heads' proposals were worth, where any were verified. How many there are depends on which texts happen to be
/// open alone, so this is told about the run and is no score of the model.
pub(crate) fn proposals(tally: &Tally) -> Vec<(String, f64)> {
    let Some(speed) = tally.tokens_per_forward() else {
        return Vec::new();
    };
    let per_head = tally.proposed.iter().zip(&tally.accepted).enumerate();
    let shares = per_head.filter(|(_, (proposed, _))| **proposed > 0).map(
        |(index, (proposed, accepted))| {
            let share = *accepted as f64 / *proposed as f64;
            (format!("accepted_head_{}", index + 2), share)
        },
    );
    [("tokens_per_forward".to_owned(), speed)]
        .into_iter()
        .chain(shares)
        .collect()
}

fn share(flags: impl Iterator<Item = bool>) -> Option<f64> {
    let (mut yes, mut all) = (0_u64, 0_u64);
    for flag in flags {
        yes += u64::from(flag);
        all += 1;
    }
    (all > 0).then(|| yes as f64 / all as f64)
}

/// Share of the drawn samples per class.
pub(crate) fn error_shares(samples: &[GradedSample]) -> BTreeMap<ErrorClass, f64> {
    let drawn: Vec<_> = samples
        .iter()
        .filter(|sample| sample.completion.sample.is_some())
        .collect();
    let mut shares = BTreeMap::new();
    for sample in &drawn {
        *shares.entry(sample.verdict.class).or_insert(0.0) += 1.0 / drawn.len() as f64;
    }
    shares
}

/// Number of audited samples per outcome, the greedy ones too.
pub(crate) fn audits(samples: &[GradedSample]) -> BTreeMap<AuditOutcome, u64> {
    let mut counts = BTreeMap::new();
    for audit in samples
        .iter()
        .filter_map(|sample| sample.verdict.audit.as_ref())
    {
        *counts.entry(audit.outcome).or_default() += 1;
    }
    counts
}

/// Passing samples that their audit did not confirm.
pub(crate) fn doubtful(samples: &[GradedSample]) -> Vec<DoubtfulPass> {
    let audited = samples
        .iter()
        .filter_map(|sample| Some((&sample.completion, sample.verdict.audit.clone()?)));
    audited
        .filter(|(_, audit)| audit.outcome != AuditOutcome::Confirmed)
        .map(|(completion, audit)| DoubtfulPass {
            problem_id: completion.problem_id.clone(),
            sample: completion.sample,
            audit,
        })
        .collect()
}

/// Samples that the grader could not run.
pub(crate) fn num_ungraded(samples: &[GradedSample]) -> usize {
    samples.iter().filter(|sample| !is_graded(sample)).count()
}

/// At most `limit` problems to show, chosen by `seed` and in the order of `problems`.
pub(crate) fn shown(problems: &[Problem], limit: usize, seed: u64) -> Vec<&Problem> {
    let mut ranked: Vec<(Vec<u8>, usize)> = problems
        .iter()
        .enumerate()
        .map(|(index, problem)| {
            let mut hash = Sha256::new();
            hash.update(seed.to_le_bytes());
            hash.update(problem.problem_id.as_bytes());
            (hash.finalize().to_vec(), index)
        })
        .collect();
    ranked.sort();
    let mut chosen: Vec<usize> = ranked
        .into_iter()
        .take(limit)
        .map(|(_, index)| index)
        .collect();
    chosen.sort_unstable();
    chosen.into_iter().map(|index| &problems[index]).collect()
}

#[cfg(test)]
mod tests {
    use wmtp_records::{Audit, HeadLoss, Tests, Verdict};

    use super::*;

    fn problem(id: &str) -> Problem {
        Problem {
            problem_id: id.to_owned(),
            instruction: String::new(),
            input: String::new(),
            prompt: String::new(),
            tests: Tests::Asserts {
                setup: String::new(),
                asserts: Vec::new(),
            },
            reference: None,
            family: "sums".to_owned(),
            difficulty: 0,
        }
    }

    fn sample(id: &str, sample: Option<u32>, class: ErrorClass) -> GradedSample {
        GradedSample {
            completion: Completion {
                problem_id: id.to_owned(),
                sample,
                raw: String::new(),
                program: String::new(),
                num_tokens: Some(1),
                finished: Some(true),
            },
            verdict: Verdict {
                passed: class == ErrorClass::Passed,
                class,
                message: String::new(),
                stderr: String::new(),
                cpu_secs: 0.0,
                wall_secs: 0.0,
                cases: None,
                audit: None,
            },
            contamination: None,
        }
    }

    fn value(metrics: &[Metric], name: &str) -> Option<f64> {
        metrics
            .iter()
            .find(|metric| metric.name == name)
            .map(|metric| metric.value)
    }

    #[test]
    fn a_fixed_input_gives_the_known_score() {
        let problems = [problem("a"), problem("b")];
        let samples = [
            sample("a", None, ErrorClass::Passed),
            sample("a", Some(0), ErrorClass::Passed),
            sample("a", Some(1), ErrorClass::WrongAnswer),
            sample("b", None, ErrorClass::Runtime),
            sample("b", Some(0), ErrorClass::Syntax),
            sample("b", Some(1), ErrorClass::Passed),
        ];
        let counts = count(&problems, &samples, &Flags::new());
        let metrics = metrics(&counts, &samples, &Beside::default(), &[1, 2, 5]);
        assert_eq!(value(&metrics, "pass_at_1"), Some(0.5));
        assert_eq!(value(&metrics, "pass_at_2"), Some(1.0));
        assert_eq!(value(&metrics, "pass_at_5"), None, "k above n is left out");
        assert_eq!(value(&metrics, "greedy_pass_at_1"), Some(0.5));
        let passed = error_shares(&samples)[&ErrorClass::Passed];
        assert!((passed - 0.5).abs() < 1e-12, "{passed}");
    }

    #[test]
    fn a_pass_that_no_audit_confirmed_is_no_strict_one() {
        let problems = [problem("a"), problem("b")];
        let audited = |outcome| {
            let mut audited = sample("a", Some(0), ErrorClass::Passed);
            audited.verdict.audit = Some(Audit {
                outcome,
                message: String::new(),
                flags: Vec::new(),
            });
            audited
        };
        let mut from_outside = sample("b", Some(0), ErrorClass::Passed);
        from_outside.verdict.cases = Some(CaseCounts::default());
        let samples = [
            audited(AuditOutcome::Confirmed),
            audited(AuditOutcome::Refuted),
            audited(AuditOutcome::NotByValue),
            audited(AuditOutcome::NotRun),
            from_outside,
        ];
        let counts = count(&problems, &samples, &Flags::new());
        let metrics = metrics(&counts, &samples, &Beside::default(), &[1]);
        assert_eq!(value(&metrics, "pass_at_1"), Some(1.0));
        // A quarter of the first problem and all of the second.
        assert_eq!(value(&metrics, "strict_pass_at_1"), Some(0.625));
        assert_eq!(audits(&samples)[&AuditOutcome::Refuted], 1);
        let doubtful: Vec<_> = doubtful(&samples)
            .into_iter()
            .map(|pass| pass.audit.outcome)
            .collect();
        let expected = [
            AuditOutcome::Refuted,
            AuditOutcome::NotByValue,
            AuditOutcome::NotRun,
        ];
        assert_eq!(doubtful, expected);
    }

    #[test]
    fn flagged_problems_count_like_the_others_and_once_more_without_them() {
        let problems = [problem("a"), problem("b"), problem("c")];
        let samples = [
            sample("a", Some(0), ErrorClass::Passed),
            sample("b", Some(0), ErrorClass::WrongAnswer),
            sample("c", Some(0), ErrorClass::Passed),
        ];
        let flags = Flags::from([("c".to_owned(), Contamination::Program)]);
        let of = |flags: &Flags, knows_training| {
            let beside = Beside {
                knows_training,
                ..Beside::default()
            };
            let counts = count(&problems, &samples, flags);
            (metrics(&counts, &samples, &beside, &[1, 2]), counts)
        };
        let (found, counts) = of(&flags, true);
        assert_eq!(value(&found, "contaminated_problems"), Some(1.0));
        assert_eq!(value(&found, "pass_at_1"), Some(2.0 / 3.0));
        assert_eq!(value(&found, "clean_pass_at_1"), Some(0.5));
        assert_eq!(value(&found, "clean_pass_at_2"), None);
        assert_eq!(contaminated(&counts), [(Contamination::Program, 1)].into());

        let (clean, _) = of(&Flags::new(), true);
        assert_eq!(value(&clean, "contaminated_problems"), Some(0.0));
        assert_eq!(value(&clean, "clean_pass_at_1"), None, "it is pass_at_1");
        let (unknown, _) = of(&Flags::new(), false);
        assert_eq!(value(&unknown, "contaminated_problems"), None);
    }

    #[test]
    fn excess_is_the_heads_loss_less_the_references_on_its_targets() {
        let head = |horizon, ce_nats, reference_nats| HeadScore {
            loss: HeadLoss {
                horizon,
                ce_nats,
                accuracy: 0.5,
                num_targets: 4,
            },
            calibration_error: 0.1,
            reference_nats,
        };
        let heads = [head(1, 0.5, Some(0.75)), head(2, 1.5, Some(1.0))];
        let found = of_heads(&heads);
        assert_eq!(value(&found, "reference_ce"), Some(0.75));
        assert_eq!(value(&found, "excess_ce_head_1"), Some(-0.25));
        assert_eq!(value(&found, "excess_ce_head_2"), Some(0.5));
        let loss = reference_loss(&heads, "reference-ce-0").unwrap();
        assert_eq!((loss.ce_nats, loss.excess_nats), (0.75, vec![-0.25, 0.5]));

        let alone = of_heads(&[head(1, 0.5, None)]);
        assert_eq!(value(&alone, "reference_ce"), None);
        assert_eq!(value(&alone, "excess_ce_head_1"), None);
        assert_eq!(reference_loss(&[head(1, 0.5, None)], "x"), None);
    }

    #[test]
    fn what_the_grader_could_not_run_is_no_verdict_on_the_program() {
        let problems = [problem("a")];
        let samples = [
            sample("a", Some(0), ErrorClass::Passed),
            sample("a", Some(1), ErrorClass::Infrastructure),
        ];
        let counts = count(&problems, &samples, &Flags::new());
        assert_eq!((counts[0].num_samples, counts[0].num_passed), (1, 1));
        assert_eq!(num_ungraded(&samples), 1);
    }

    #[test]
    fn programs_that_print_are_scored_by_every_rule_and_by_tests() {
        let problems = [problem("a"), problem("b")];
        let with = |id: &str, deepmind, exact| {
            let mut sample = sample(id, Some(0), ErrorClass::Passed);
            sample.verdict.cases = Some(CaseCounts {
                total: 4,
                deepmind,
                tokens: deepmind,
                lines: exact,
                trimmed: exact,
                exact,
            });
            sample
        };
        let mut greedy = with("a", 0, 0);
        greedy.completion.sample = None;
        let samples = [with("a", 4, 3), with("a", 4, 4), with("b", 1, 0), greedy];
        let counts = count(&problems, &samples, &Flags::new());
        let metrics = metrics(&counts, &samples, &Beside::default(), &[1]);
        assert_eq!(value(&metrics, "pass_at_1_tokens"), Some(0.5));
        assert_eq!(value(&metrics, "pass_at_1_exact"), Some(0.25));
        assert_eq!(value(&metrics, "tests_passed_share"), Some(0.625));
        let of_asserts = [sample("a", Some(0), ErrorClass::Passed)];
        assert_eq!(tests_passed_share(&counts[..1], &of_asserts), None);
    }

    #[test]
    fn the_spread_is_over_problems() {
        let counted = |num_passed: u32| ProblemCount {
            problem_id: num_passed.to_string(),
            family: String::new(),
            num_samples: 4,
            num_passed,
            greedy_passed: None,
            contamination: None,
        };
        // 0, 1/2, 1: variance 1/4, over 3 problems 1/12.
        let spread_of_three = spread(&[counted(0), counted(2), counted(4)]).unwrap();
        let error = spread_of_three.standard_error.unwrap();
        assert!((error - (1.0_f64 / 12.0).sqrt()).abs() < 1e-12, "{error}");
        assert!(spread_of_three.low < 0.5 && spread_of_three.high > 0.5);
        assert_eq!(spread(&[counted(2)]).unwrap().standard_error, None);
        let ungraded = ProblemCount {
            num_samples: 0,
            ..counted(0)
        };
        assert_eq!(spread(&[counted(2), ungraded]), None);
    }

    #[test]
    fn proposals_are_told_by_head_and_left_out_where_none_were_made() {
        let tally = Tally {
            forwards: 4,
            proposed: vec![4, 2, 0],
            accepted: vec![3, 1, 0],
        };
        let expected = [
            ("tokens_per_forward", 2.0),
            ("accepted_head_2", 0.75),
            ("accepted_head_3", 0.5),
        ];
        assert_eq!(
            proposals(&tally),
            expected.map(|(name, value)| (name.to_owned(), value))
        );
        assert!(proposals(&Tally::default()).is_empty());
    }

    #[test]
    fn shown_problems_depend_on_the_seed_and_keep_their_order() {
        let problems: Vec<Problem> = (0..50)
            .map(|index| problem(&format!("p{index:02}")))
            .collect();
        let ids = |seed| -> Vec<String> {
            shown(&problems, 10, seed)
                .iter()
                .map(|problem| problem.problem_id.clone())
                .collect()
        };
        assert_eq!(ids(42).len(), 10);
        assert_eq!(ids(42), ids(42));
        assert_ne!(ids(42), ids(43));
        assert!(ids(42).is_sorted());
    }
}
