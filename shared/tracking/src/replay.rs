//! What the store knows, told to a server once more: it ends with what it lacked, and with nothing twice.

use jiff::Timestamp;
use serde::Serialize;
use tokio::runtime::Handle;
use wmtp_artifacts::{Alias, ExitClass, Kind, RunId, Store};

use crate::line::Line;
use crate::recorder::Recorder;
use crate::registry::promote;
use crate::{Error, Server};

/// Jobs in the order of the data's way: what a run goes on from is told before it.
const ORDER: [&str; 6] = [
    "sync-storage",
    "prepare-data",
    "train-stage1",
    "train-stage2",
    "evaluate",
    "build-leaderboard",
];
/// Events sent between two looks at what a long run has to tell.
const LINES_AT_ONCE: usize = 5_000;

/// A run that was replayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Replayed {
    /// The run.
    pub run_id: String,
    /// Its experiment.
    pub experiment: String,
    /// Whether the server did not have it.
    pub is_new: bool,
    /// Points that were sent; those that it had it keeps once.
    pub points: u64,
}

/// What a replay did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Runs that the server did not have.
    pub created: u64,
    /// Runs that it had.
    pub found: u64,
    /// Runs without a recipe, which belong to no experiment.
    pub without_recipe: u64,
    /// Points sent.
    pub points: u64,
}

impl Totals {
    /// Counts a run; `None` is one without a recipe.
    pub fn add(&mut self, run: Option<&Replayed>) {
        let Some(run) = run else {
            self.without_recipe += 1;
            return;
        };
        self.points += run.points;
        if run.is_new {
            self.created += 1;
        } else {
            self.found += 1;
        }
    }
}

/// All runs of a store, each after those that it goes on from.
pub async fn runs(store: &Store) -> Result<Vec<RunId>, Error> {
    let mut runs = store.runs().await?;
    let place = |id: &RunId| {
        let of = |job: &&str| id.as_str().starts_with(*job);
        ORDER.iter().position(of).unwrap_or(ORDER.len())
    };
    runs.sort_by_key(|id| (place(id), id.as_str().to_owned()));
    Ok(runs)
}

/// Tells a server all that the store knows about a run; none for a run without a recipe.
pub async fn replay_run(
    server: &Server,
    store: &Store,
    id: &RunId,
) -> Result<Option<Replayed>, Error> {
    let view = store.run(id).await?;
    let io = Handle::current();
    let Some(mut recorder) = Recorder::new(store.clone(), io, view.request) else {
        return Ok(None);
    };
    let events = store.event_lines(id).await?;
    let lines: Vec<Line> = events.iter().filter_map(|line| Line::parse(line)).collect();
    let mut points = 0;
    for lines in lines.chunks(LINES_AT_ONCE) {
        points += recorder.record(server, lines).await?;
    }
    let last = lines.iter().rfind(|line| line.kind != "metrics");
    let is_done = last.is_some_and(|line| line.kind == "completed");
    match view.result {
        Some(result) if !is_done => {
            let at = result.finished_at.as_millisecond();
            points += recorder.finish(server, &result.outputs, at).await?;
        }
        _ if view.is_lost => {
            let beat = view.status.as_ref().map(|status| status.heartbeat_at);
            let at = beat.unwrap_or(Timestamp::UNIX_EPOCH).as_millisecond();
            recorder.lose(server, at).await?;
        }
        _ => {
            // A run that said nothing yet is there all the same.
            points += recorder.record(server, &[]).await?;
        }
    }
    Ok(Some(Replayed {
        run_id: id.to_string(),
        experiment: recorder.experiment().to_owned(),
        is_new: recorder.is_new(),
        points,
    }))
}

/// Gives every alias to the checkpoint whose name in the store says so; returns model, alias and version.
pub async fn replay_aliases(
    server: &Server,
    store: &Store,
) -> Result<Vec<(String, &'static str, String)>, Error> {
    let mut given = Vec::new();
    for (name, id) in store.names(Kind::Checkpoint).await? {
        let Some((model, alias)) = Alias::of_name(&name) else {
            continue;
        };
        match promote(server, store, model, alias, &id).await {
            Ok(version) => given.push((model.to_owned(), alias.as_str(), version)),
            // A checkpoint that was collected leaves its name behind.
            Err(Error::Store(error)) if error.exit_class() == ExitClass::BadInput => {
                tracing::warn!("{name} is left out: {error}");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(given)
}
