//! Execution of programs against the tests of their problems.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use wmtp_grading::{Grader, GraderConfig, Limits, Program};
use wmtp_job_kit::{JobError, Run};
use wmtp_recipe::{Evaluation, SandboxTier};
use wmtp_records::{Completion, GradedSample, Problem};

use crate::contamination::Flags;

/// Whether programs may be executed where a layer of the sandbox is missing.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct SandboxConsent {
    /// Go on where the platform cannot enforce every layer of the sandbox
    #[arg(long, env = "WMTP_ACCEPT_DEGRADED_SANDBOX", value_parser = clap::builder::BoolishValueParser::new())]
    pub(crate) accept_degraded_sandbox: bool,
}

impl SandboxConsent {
    /// Whether the user or the recipe consents.
    pub(crate) fn holds_for(self, evaluation: &Evaluation) -> bool {
        self.accept_degraded_sandbox || evaluation.sandbox == SandboxTier::Degraded
    }

    /// The lowest tier that is accepted, as it stands in the options of a job.
    pub(crate) fn tier(accept_degraded: bool) -> &'static str {
        if accept_degraded { "degraded" } else { "full" }
    }
}

/// The grader that a recipe asks for.
pub(crate) fn grader_config(
    evaluation: &Evaluation,
    accept_degraded: bool,
) -> Result<GraderConfig, JobError> {
    let whole = |secs: f64| secs.ceil().max(1.0) as u64;
    Ok(GraderConfig {
        workers: NonZeroUsize::new(rayon::current_num_threads())
            .ok_or_else(|| JobError::internal("the thread pool has no thread"))?,
        limits: Limits {
            cpu_secs: whole(evaluation.cpu_secs),
            wall_secs: whole(evaluation.wall_secs),
            memory_bytes: evaluation.memory_mib << 20,
            ..Limits::default()
        },
        accept_degraded,
        audit: true,
        python: None,
    })
}

/// Executes every program against the tests of its problem.
pub(crate) fn execute(
    problems: &[Problem],
    completions: Vec<Completion>,
    flags: &Flags,
    grader: &Grader,
    run: &Run,
) -> Result<Vec<GradedSample>, JobError> {
    // All programs of a problem share its tests, which can be large.
    let empty: BTreeMap<&str, Program> = problems
        .iter()
        .map(|problem| {
            let program = Program::from_tests("", &problem.tests);
            (problem.problem_id.as_str(), program)
        })
        .collect();
    let programs: Vec<Program> = completions
        .iter()
        .map(|completion| empty[completion.problem_id.as_str()].with_candidate(&completion.program))
        .collect();
    let progress = run.progress("execute", "programs", programs.len() as u64);
    let verdicts = grader.grade_all(&programs, |_, _| {
        progress.inc(1);
        run.flow()
    });
    if run.should_stop() {
        return Err(JobError::preempted());
    }
    Ok(completions
        .into_iter()
        .zip(verdicts)
        .map(|(completion, verdict)| GradedSample {
            contamination: flags.get(&completion.problem_id).copied(),
            completion,
            verdict,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_of_a_second_are_rounded_up_to_what_the_kernel_counts() {
        let evaluation = Evaluation {
            cpu_secs: 0.2,
            wall_secs: 2.5,
            memory_mib: 3,
            ..Evaluation::default()
        };
        let limits = grader_config(&evaluation, false).unwrap().limits;
        assert_eq!(
            (limits.cpu_secs, limits.wall_secs, limits.memory_bytes),
            (1, 3, 3 << 20)
        );
    }
}
