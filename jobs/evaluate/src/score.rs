//! From verdicts to scores.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};
use wmtp_decoding::Tally;
use wmtp_records::{
    AuditOutcome, DoubtfulPass, ErrorClass, GradedSample, HeadLoss, Metric, Problem, ProblemCount,
};
use wmtp_stats::mean_pass_at_k;

/// Counts per problem, in the order of `problems`. Samples that the grader could not run count for nothing.
pub(crate) fn count(problems: &[Problem], samples: &[GradedSample]) -> Vec<ProblemCount> {
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
            }
        })
        .collect()
}

fn is_graded(sample: &GradedSample) -> bool {
    sample.verdict.class != ErrorClass::Infrastructure
}

/// Every metric of a run: pass@k by execution first, then what helps to read it.
pub(crate) fn metrics(
    counts: &[ProblemCount],
    samples: &[GradedSample],
    heads: &[HeadLoss],
    ks: &[u32],
) -> Vec<Metric> {
    let n_and_c: Vec<(u64, u64)> = counts
        .iter()
        .map(|count| (count.num_samples.into(), count.num_passed.into()))
        .collect();
    let metric = |name: String, value, higher_is_better| Metric {
        name,
        value,
        higher_is_better,
    };
    // A k above the samples of some problem does not exist; it is left out, not guessed.
    let mut metrics: Vec<Metric> = ks
        .iter()
        .filter_map(|&k| {
            Some(metric(
                format!("pass_at_{k}"),
                mean_pass_at_k(&n_and_c, k.into())?,
                true,
            ))
        })
        .collect();
    if let Some(value) = mean_pass_at_k(&confirmed(counts, samples), 1) {
        metrics.push(metric("strict_pass_at_1".to_owned(), value, true));
    }
    if let Some(share) = share(counts.iter().filter_map(|count| count.greedy_passed)) {
        metrics.push(metric("greedy_pass_at_1".to_owned(), share, true));
    }
    for head in heads {
        metrics.push(metric(
            format!("ce_head_{}", head.horizon),
            head.ce_nats,
            false,
        ));
    }
    if let Some(finished) = share(samples.iter().map(|sample| sample.completion.finished)) {
        metrics.push(metric("finished_share".to_owned(), finished, true));
    }
    metrics
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
    use wmtp_records::{Audit, CaseCounts, Completion, Tests, Verdict};

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
                num_tokens: 1,
                finished: true,
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
        let counts = count(&problems, &samples);
        let metrics = metrics(&counts, &samples, &[], &[1, 2, 5]);
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
        let counts = count(&problems, &samples);
        let metrics = metrics(&counts, &samples, &[], &[1]);
        assert_eq!(value(&metrics, "pass_at_1"), Some(1.0));
        // A quarter of the first problem and all of the second.
        assert_eq!(value(&metrics, "strict_pass_at_1"), Some(0.625));
        assert_eq!(audits(&samples)[&AuditOutcome::Refuted], 1);
        let doubtful: Vec<_> = doubtful(&samples)
            .into_iter()
            .map(|pass| pass.audit.outcome)
            .collect();
        use AuditOutcome::{NotByValue, NotRun, Refuted};
        assert_eq!(doubtful, [Refuted, NotByValue, NotRun]);
    }

    #[test]
    fn what_the_grader_could_not_run_is_no_verdict_on_the_program() {
        let problems = [problem("a")];
        let samples = [
            sample("a", Some(0), ErrorClass::Passed),
            sample("a", Some(1), ErrorClass::Infrastructure),
        ];
        let counts = count(&problems, &samples);
        assert_eq!((counts[0].num_samples, counts[0].num_passed), (1, 1));
        assert_eq!(num_ungraded(&samples), 1);
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
