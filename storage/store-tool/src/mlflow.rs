//! `wmtp-store mlflow replay`: what the store knows of runs and promotions, told to an MLflow server.

use serde_json::json;
use wmtp_artifacts::RunId;
use wmtp_job_kit::tracking::{Error, Replayed, Server, Totals, replay_aliases, replay_run, runs};
use wmtp_job_kit::{JobError, Tool, ToolCx};

use crate::counted;
use crate::stop::unless_stopped_with;

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
            let mut totals = Totals::default();
            let mut sent = Vec::new();
            for id in &ids {
                let run = replay_run(&server, &store, id).await?;
                totals.add(run.as_ref());
                sent.extend(run);
                bar.inc(1);
            }
            let aliases = if self.runs.is_empty() {
                replay_aliases(&server, &store).await?
            } else {
                Vec::new()
            };
            Ok((totals, sent, aliases))
        };
        let outcome: Result<_, Error> = unless_stopped_with(cx, async { Ok(work.await) }, hint)?;
        drop(bar);
        let (totals, sent, aliases) = outcome.map_err(told)?;
        tell(cx, &totals, &sent, &aliases);
        Ok(())
    }
}

/// A server that does not answer may do so later; one that refuses needs somebody to look.
fn told(error: Error) -> JobError {
    match error {
        Error::Settings(_) => JobError::usage(error),
        Error::Store(error) => error.into(),
        Error::GivenUp(_) => JobError::internal(error),
        Error::Refused { ref code, .. } if ["401", "403"].contains(&code.as_str()) => {
            JobError::unavailable(error).hint(
                "set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; a server that \
                 answers 403 may not know the name that it was asked under",
            )
        }
        _ => JobError::unavailable(error)
            .hint("the same command goes on, and sends nothing twice"),
    }
}

fn tell(
    cx: &mut ToolCx<'_>,
    totals: &Totals,
    sent: &[Replayed],
    aliases: &[(String, &'static str, String)],
) {
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
    cx.json_result(json!({
        "totals": totals,
        "runs": sent,
        "aliases": aliases.collect::<Vec<_>>(),
    }));
}
