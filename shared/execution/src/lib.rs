//! How a job runs programs: its user's consent, the recipe's limits, and what a sandbox that does not hold means.
//!
//! Grading knows neither recipes nor exit codes; every job that executes programs asks for it here, so that the same machine
//! ends each of them in the same way.

use wmtp_grading::{Grader, GraderConfig, Limits};
use wmtp_job_kit::JobError;
use wmtp_recipe::{Evaluation, SandboxTier};

/// Whether programs may be executed where a layer of the sandbox is missing.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct SandboxConsent {
    /// Go on where the platform cannot enforce every layer of the sandbox
    #[arg(long, env = "WMTP_ACCEPT_DEGRADED_SANDBOX", value_parser = clap::builder::BoolishValueParser::new())]
    pub accept_degraded_sandbox: bool,
}

impl SandboxConsent {
    /// Whether the user or the recipe consents.
    pub fn holds_for(self, evaluation: &Evaluation) -> bool {
        self.accept_degraded_sandbox || evaluation.sandbox == SandboxTier::Degraded
    }

    /// The lowest tier that is accepted, as it stands in the options of a job.
    pub fn tier(accept_degraded: bool) -> &'static str {
        if accept_degraded { "degraded" } else { "full" }
    }
}

/// What a recipe lets a program use.
pub fn limits(evaluation: &Evaluation) -> Limits {
    Limits::of(
        evaluation.cpu_secs,
        evaluation.wall_secs,
        evaluation.memory_mib,
    )
}

/// Starts a grader.
///
/// # Errors
/// Refused (77) where programs cannot be held, or not by every layer and nobody consents; unavailable (69) without an
/// interpreter.
pub fn start(config: GraderConfig) -> Result<Grader, JobError> {
    Grader::start(config).map_err(job_error)
}

/// A sandbox that does not hold is a refusal; anything else that keeps the grader from starting is the machine's.
pub fn job_error(error: wmtp_grading::Error) -> JobError {
    use wmtp_grading::Error;
    match error {
        Error::Degraded { .. } => JobError::refused(error).hint(
            "run on a kernel with Landlock and seccomp, or accept the gaps with --accept-degraded-sandbox or, in a job, \
             evaluation.sandbox=degraded",
        ),
        Error::Unsupported { .. } => JobError::refused(error).hint(
            "programs run only in the sandbox, and no consent makes up for this: run on a kernel with seccomp",
        ),
        Error::Interpreter { .. } => JobError::unavailable(error).hint(
            "install CPython 3.9 or newer as python3; `evaluate grade` takes another one with --python",
        ),
        Error::Rows(error) => error.into(),
        Error::Short { .. } => JobError::bad_input(error),
        Error::Stopped { .. } => JobError::preempted().context(error.to_string()),
        Error::Busy { .. } => JobError::held(error),
        Error::Io { source, path } => JobError::from(source).context(path.display().to_string()),
        error => JobError::unavailable(error),
    }
}

#[cfg(test)]
mod tests {
    use wmtp_job_kit::Exit;

    use super::*;

    #[test]
    fn the_user_or_the_recipe_consents() {
        let consent = |accept_degraded_sandbox| SandboxConsent {
            accept_degraded_sandbox,
        };
        let recipe = |sandbox| Evaluation {
            sandbox,
            ..Evaluation::default()
        };
        let (full, degraded) = (recipe(SandboxTier::Full), recipe(SandboxTier::Degraded));
        assert!(!consent(false).holds_for(&full));
        assert!(consent(true).holds_for(&full));
        assert!(consent(false).holds_for(&degraded));
    }

    #[test]
    fn what_cannot_be_held_is_refused_and_a_missing_interpreter_is_the_machines() {
        let what = "no seccomp".to_owned();
        let error = job_error(wmtp_grading::Error::Unsupported { what });
        assert_eq!(error.exit(), Exit::Refused);
        let error = job_error(wmtp_grading::Error::Interpreter { tried: Vec::new() });
        assert_eq!(error.exit(), Exit::Unavailable);
        let what = "killed".to_owned();
        let error = job_error(wmtp_grading::Error::Start { what });
        assert_eq!(error.exit(), Exit::Unavailable);
    }
}
