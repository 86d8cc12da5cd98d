//! Execution of programs against the tests of their problems.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use wmtp_grading::{Grader, GraderConfig, Program};
use wmtp_job_kit::{JobError, Run};
use wmtp_recipe::Evaluation;
use wmtp_records::{Completion, GradedSample, Problem};

use crate::contamination::Flags;

/// Starts the grader that a recipe asks for.
pub(crate) fn start_grader(
    evaluation: &Evaluation,
    accept_degraded: bool,
) -> Result<Grader, JobError> {
    wmtp_execution::start(GraderConfig {
        workers: NonZeroUsize::new(rayon::current_num_threads()).unwrap_or(NonZeroUsize::MIN),
        limits: wmtp_execution::limits(evaluation),
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
