//! `wmtp-store mlflow replay`: what the store knows of runs and promotions, told to an MLflow server.

use serde_json::json;
use wmtp_artifacts::RunId;
use wmtp_job_kit::tracking::{Error, Replayed, Server, Totals, replay_aliases, replay_run, runs};
use wmtp_job_kit::{JobError, Tool, ToolCx};

use crate::counted;
use crate::stop::unless_stopped_with;

/// Runs in a row that may fail for the moment before the server, or the store, counts as away.
const MOST_FOR_NOW: u32 = 3;

/// Command line of `mlflow`.
#[derive(Debug, clap::Args)]
pub struct Mlflow {
    /// What to do
    #[arg(value_enum, value_name = "ACTION")]
    action: Action,
    /// Runs to send; all of the store, and the aliases of its models, when left out
    #[arg(value_name = "RUN")]
    runs: Vec<String>,
    /// The server: https://HOST[/PATH]. MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and
    /// MLFLOW_TRACKING_PASSWORD, log in there
    #[arg(
        long,
        value_name = "URI",
        env = "MLFLOW_TRACKING_URI",
        hide_env_values = true
    )]
    tracking_uri: Option<String>,
}

/// What can be done with a server.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Action {
    /// Send runs and aliases; what the server has already it keeps once
    Replay,
}

impl Tool for Mlflow {
    const ABOUT: &'static str =
        "Brings an MLflow server to what the store knows of runs and promoted models.";
    const EXAMPLES: &'static str = "\
        wmtp-store mlflow replay --store s3://wmtp/demo --tracking-uri https://mlflow.example.org
        wmtp-store mlflow replay --store s3://wmtp/demo train-stage2-0123456789abcdef";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        match self.action {
            Action::Replay => self.replay(cx),
        }
    }
}

impl Mlflow {
    fn replay(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let uri = self.tracking_uri.as_deref().ok_or_else(|| {
            JobError::usage("no tracking server given")
                .hint("add --tracking-uri https://HOST or set MLFLOW_TRACKING_URI")
        })?;
        let server = Server::at(uri).map_err(told)?.patient();
        let store = cx.store()?.store().clone();
        let wanted: Vec<RunId> = self
            .runs
            .iter()
            .map(|run| run.parse().map_err(JobError::from))
            .collect::<Result<_, _>>()?;
        let hint = "what arrived stays; the same command goes on, and sends nothing twice";
        let mut bar = None;
        let work = async {
            let ids = if wanted.is_empty() {
                runs(&store).await?
            } else {
                wanted
            };
            let bar = bar.insert(cx.progress("replaying", "runs", ids.len() as u64));
            let mut outcome = Outcome::default();
            for id in &ids {
                let replayed = replay_run(&server, &store, id).await;
                outcome.add(cx, id, replayed, self.runs.is_empty())?;
                bar.inc(1);
            }
            if self.runs.is_empty() {
                match replay_aliases(&server, &store).await {
                    Ok(aliases) => outcome.aliases = aliases,
                    Err(error) => outcome.fail(cx, "the aliases of models".to_owned(), error)?,
                }
            }
            Ok(outcome)
        };
        let outcome: Result<_, Error> = unless_stopped_with(cx, async { Ok(work.await) }, hint)?;
        drop(bar);
        let outcome = outcome.map_err(told)?;
        tell(cx, &outcome);
        outcome.verdict()
    }
}

/// What came of a replay.
#[derive(Default)]
struct Outcome {
    totals: Totals,
    sent: Vec<Replayed>,
    aliases: Vec<(String, &'static str, String)>,
    /// What could not be sent, and why.
    failed: Vec<(String, Error)>,
    /// How many of them in a row may succeed later.
    num_for_now: u32,
}

impl Outcome {
    /// Counts a run. One that fails keeps no other from being sent; `may_go` is whether it may have been collected since it
    /// was found.
    fn add(
        &mut self,
        cx: &ToolCx<'_>,
        id: &RunId,
        replayed: Result<Option<Replayed>, Error>,
        may_go: bool,
    ) -> Result<(), Error> {
        match replayed {
            Ok(run) => {
                self.num_for_now = 0;
                self.totals.add(run.as_ref());
                self.sent.extend(run);
                Ok(())
            }
            Err(Error::Store(error @ wmtp_artifacts::Error::NotFound { .. })) if may_go => {
                cx.warning(format!("{id} is left out: {error}"));
                Ok(())
            }
            Err(error) => self.fail(cx, id.to_string(), error),
        }
    }

    /// Notes what failed; gives up where all that follows would fail, too.
    fn fail(&mut self, cx: &ToolCx<'_>, what: String, error: Error) -> Result<(), Error> {
        let is_everywhere =
            is_login(&error) || matches!(error, Error::Settings(_) | Error::GivenUp(_));
        self.num_for_now = if error.is_transient() {
            self.num_for_now + 1
        } else {
            0
        };
        if is_everywhere || self.num_for_now >= MOST_FOR_NOW {
            return Err(error);
        }
        cx.warning(format!("{what} is left out: {error}"));
        self.failed.push((what, error));
        Ok(())
    }

    /// An error that names all that failed, with the exit code of one that may succeed later, if there is such a one.
    fn verdict(mut self) -> Result<(), JobError> {
        let names: Vec<String> = self.failed.iter().map(|(what, _)| what.clone()).collect();
        let later = self
            .failed
            .iter()
            .position(|(_, error)| error.is_transient());
        if self.failed.is_empty() {
            return Ok(());
        }
        let (_, error) = self.failed.swap_remove(later.unwrap_or(0));
        Err(told(error).context(format!("not sent: {}", names.join(", "))))
    }
}

/// Whether a server wants another name or password.
fn is_login(error: &Error) -> bool {
    matches!(error, Error::Refused { code, .. } if ["401", "403"].contains(&code.as_str()))
}

/// A server that does not answer may do so later; one that refuses needs somebody to look.
fn told(error: Error) -> JobError {
    match error {
        Error::Settings(_) => JobError::usage(error),
        Error::Store(error) => error.into(),
        Error::GivenUp(_) => JobError::internal(error),
        error @ Error::Refused { .. } if is_login(&error) => {
            JobError::unavailable(error).hint(
                "set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; a server that \
                 answers 403 may not know the name that it was asked under",
            )
        }
        Error::Refused { .. } => JobError::refused(error).hint(
            "the server would refuse it again: mend what it names there, then give the same command, which sends nothing \
             twice",
        ),
        error @ Error::Unreachable { .. } => JobError::unavailable(error)
            .hint("the same command goes on, and sends nothing twice"),
    }
}

fn tell(cx: &mut ToolCx<'_>, outcome: &Outcome) {
    let Outcome {
        totals,
        sent,
        aliases,
        failed,
        ..
    } = outcome;
    cx.print(format!(
        "{} new, {} known before, {}",
        counted(totals.created, "run"),
        totals.found,
        counted(totals.points, "point")
    ));
    if totals.without_recipe > 0 {
        cx.print(format!(
            "{} without a recipe, which belong to no experiment, left out",
            counted(totals.without_recipe, "run")
        ));
    }
    for (model, alias, version) in aliases {
        cx.print(format!("{alias} of model {model} is version {version}"));
    }
    let aliases = aliases
        .iter()
        .map(|(model, alias, version)| json!({"model": model, "alias": alias, "version": version}));
    let failed = failed
        .iter()
        .map(|(what, error)| json!({"what": what, "error": error.to_string()}));
    cx.json_result(json!({
        "totals": totals,
        "runs": sent,
        "aliases": aliases.collect::<Vec<_>>(),
        "failed": failed.collect::<Vec<_>>(),
    }));
}
