//! MLflow's calls that we need, within its limits.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::line::Point;
use crate::names::{CHECKPOINT, RUN_ID, STORE};
use crate::{Error, Server};

/// Most metrics of a batch, and most entries of all three sorts together.
const MOST_METRICS: usize = 1000;
/// Most parameters, and most tags.
const MOST_PAIRS: usize = 100;
/// Most bytes of a batch: some servers refuse a request of 1 MB.
const MOST_BYTES: usize = 900_000;
/// Bytes of one point without its name, at most.
const POINT_BYTES: usize = 120;

/// An experiment on the server.
#[derive(Debug, Clone)]
pub(crate) struct Experiment {
    pub(crate) id: String,
}

/// A run on the server.
#[derive(Debug, Clone)]
pub(crate) struct Tracked {
    pub(crate) id: String,
    pub(crate) artifact_uri: String,
    /// Parameters that it has: they cannot be changed.
    pub(crate) params: BTreeMap<String, String>,
    pub(crate) tags: BTreeMap<String, String>,
}

/// How a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Running,
    Finished,
    Failed,
    Killed,
}

impl State {
    /// In MLflow's words: a word that it does not know it would pass over in silence.
    fn as_str(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Finished => "FINISHED",
            Self::Failed => "FAILED",
            Self::Killed => "KILLED",
        }
    }
}

/// A data set that a run read.
#[derive(Debug, Clone)]
pub(crate) struct DataSet {
    pub(crate) name: String,
    pub(crate) digest: String,
    pub(crate) source: String,
    pub(crate) context: String,
    pub(crate) profile: Option<String>,
}

impl Server {
    /// The experiment of a name, created where there is none; its artifacts lie at `location`.
    pub(crate) async fn experiment(&self, name: &str, location: &str) -> Result<Experiment, Error> {
        loop {
            if let Some(experiment) = self.find_experiment(name).await? {
                return Ok(experiment);
            }
            let body = json!({"name": name, "artifact_location": location});
            match self.post("experiments/create", &body).await {
                // Another job was faster.
                Err(error) if !error.has_code("RESOURCE_ALREADY_EXISTS") => return Err(error),
                _ => {}
            }
        }
    }

    pub(crate) async fn find_experiment(&self, name: &str) -> Result<Option<Experiment>, Error> {
        let call = "experiments/get-by-name";
        let reply = match self.get(call, &[("experiment_name", name)]).await {
            Err(error) if error.has_code("RESOURCE_DOES_NOT_EXIST") => return Ok(None),
            reply => reply?,
        };
        if reply["experiment"]["lifecycle_stage"] == "deleted" {
            let detail = format!("experiment {name} was deleted there: restore it");
            return Err(self.refused(call, "deleted", detail));
        }
        let id = self.text(&reply, "/experiment/experiment_id", call)?;
        Ok(Some(Experiment { id }))
    }

    /// The run of an experiment that stands for a run of a store.
    pub(crate) async fn find_run(
        &self,
        experiment: &Experiment,
        run_id: &str,
        store: &str,
    ) -> Result<Option<Tracked>, Error> {
        let call = "runs/search";
        let filter = format!("tags.`{RUN_ID}` = '{run_id}' and tags.`{STORE}` = '{store}'");
        let body = json!({
            "experiment_ids": [experiment.id],
            "filter": filter,
            "max_results": 100,
            "order_by": ["attributes.start_time ASC"],
        });
        let reply = self.post(call, &body).await?;
        let runs = reply["runs"].as_array().into_iter().flatten();
        // Two processes may have created it at once; all of them choose the same one.
        let key = |run: &&Value| {
            let info = &run["info"];
            (
                info["start_time"].as_i64(),
                info["run_id"].as_str().map(str::to_owned),
            )
        };
        runs.min_by_key(key)
            .map(|run| self.tracked(run, call))
            .transpose()
    }

    pub(crate) async fn create_run(
        &self,
        experiment: &Experiment,
        start_ms: i64,
        name: &str,
        tags: &BTreeMap<String, String>,
    ) -> Result<Tracked, Error> {
        let call = "runs/create";
        let body = json!({
            "experiment_id": experiment.id,
            "start_time": start_ms,
            "run_name": name,
            "tags": pairs(tags),
        });
        let reply = self.post_once(call, &body).await?;
        self.tracked(&reply["run"], call)
    }

    fn tracked(&self, run: &Value, call: &str) -> Result<Tracked, Error> {
        Ok(Tracked {
            id: self.text(run, "/info/run_id", call)?,
            artifact_uri: self.text(run, "/info/artifact_uri", call)?,
            params: unpaired(&run["data"]["params"]),
            tags: unpaired(&run["data"]["tags"]),
        })
    }

    /// Records points, as many a request as it may hold.
    pub(crate) async fn log_points(&self, run: &str, points: &[Point]) -> Result<(), Error> {
        for batch in batches(points) {
            let metrics: Vec<Value> = batch
                .iter()
                .map(|point| {
                    json!({
                        "key": point.name,
                        "value": point.value,
                        "timestamp": point.at_ms,
                        "step": point.step,
                    })
                })
                .collect();
            let body = json!({"run_id": run, "metrics": metrics});
            self.post("runs/log-batch", &body).await?;
        }
        Ok(())
    }

    /// Records parameters and tags.
    pub(crate) async fn log_pairs(
        &self,
        run: &str,
        params: &BTreeMap<String, String>,
        tags: &BTreeMap<String, String>,
    ) -> Result<(), Error> {
        for (key, entries) in [("params", pairs(params)), ("tags", pairs(tags))] {
            for batch in by_bytes(entries) {
                let body = json!({"run_id": run, key: batch});
                self.post("runs/log-batch", &body).await?;
            }
        }
        Ok(())
    }

    pub(crate) async fn log_inputs(&self, run: &str, sets: &[DataSet]) -> Result<(), Error> {
        if sets.is_empty() {
            return Ok(());
        }
        let datasets: Vec<Value> = sets
            .iter()
            .map(|set| {
                json!({
                    "tags": [{"key": "mlflow.data.context", "value": set.context}],
                    "dataset": {
                        "name": set.name,
                        "digest": set.digest,
                        "source_type": "s3",
                        "source": set.source,
                        "profile": set.profile,
                    },
                })
            })
            .collect();
        let body = json!({"run_id": run, "datasets": datasets});
        self.post("runs/log-inputs", &body).await.map(|_| ())
    }

    pub(crate) async fn update_run(
        &self,
        run: &str,
        state: State,
        end_ms: Option<i64>,
    ) -> Result<(), Error> {
        let mut body = json!({"run_id": run, "status": state.as_str()});
        if let Some(end) = end_ms {
            body["end_time"] = end.into();
        }
        self.post("runs/update", &body).await.map(|_| ())
    }

    pub(crate) async fn register_model(&self, name: &str) -> Result<(), Error> {
        let body = json!({"name": name});
        match self.post("registered-models/create", &body).await {
            Err(error) if !error.has_code("RESOURCE_ALREADY_EXISTS") => Err(error),
            _ => Ok(()),
        }
    }

    /// The version of a model that holds a checkpoint.
    pub(crate) async fn find_version(
        &self,
        model: &str,
        checkpoint: &str,
    ) -> Result<Option<String>, Error> {
        let call = "model-versions/search";
        let filter = format!("name = '{model}'");
        let mut token = String::new();
        loop {
            let mut query = vec![("filter", filter.as_str()), ("max_results", "200")];
            if !token.is_empty() {
                query.push(("page_token", &token));
            }
            let reply = self.get(call, &query).await?;
            let versions = reply["model_versions"].as_array().into_iter().flatten();
            for found in versions {
                let tags = unpaired(&found["tags"]);
                if tags.get(CHECKPOINT).is_some_and(|id| id == checkpoint) {
                    return self.text(found, "/version", call).map(Some);
                }
            }
            match reply["next_page_token"].as_str() {
                Some(next) if !next.is_empty() => next.clone_into(&mut token),
                _ => return Ok(None),
            }
        }
    }

    pub(crate) async fn create_version(
        &self,
        model: &str,
        source: &str,
        run: Option<&str>,
        description: &str,
        tags: &BTreeMap<String, String>,
    ) -> Result<String, Error> {
        let call = "model-versions/create";
        let mut body = json!({
            "name": model,
            "source": source,
            "description": description,
            "tags": pairs(tags),
        });
        if let Some(run) = run {
            body["run_id"] = run.into();
        }
        let reply = self.post_once(call, &body).await?;
        self.text(&reply, "/model_version/version", call)
    }

    pub(crate) async fn set_alias(
        &self,
        model: &str,
        alias: &str,
        version: &str,
    ) -> Result<(), Error> {
        let body = json!({"name": model, "alias": alias, "version": version});
        self.post("registered-models/alias", &body)
            .await
            .map(|_| ())
    }

    /// A text of a reply that must be there.
    fn text(&self, reply: &Value, pointer: &str, call: &str) -> Result<String, Error> {
        let text = reply.pointer(pointer).and_then(Value::as_str);
        text.map(str::to_owned)
            .ok_or_else(|| self.unreachable(call, format!("its reply has no {pointer}")))
    }
}

fn pairs(entries: &BTreeMap<String, String>) -> Vec<Value> {
    entries
        .iter()
        .map(|(key, value)| json!({"key": key, "value": value}))
        .collect()
}

fn unpaired(entries: &Value) -> BTreeMap<String, String> {
    let text = |entry: &Value, key: &str| entry[key].as_str().map(str::to_owned);
    entries
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| Some((text(entry, "key")?, text(entry, "value")?)))
        .collect()
}

/// Points as they go together into one request.
fn batches(points: &[Point]) -> Vec<&[Point]> {
    let mut batches = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, point) in points.iter().enumerate() {
        let size = point.name.len() + POINT_BYTES;
        if index - start == MOST_METRICS || (index > start && bytes + size > MOST_BYTES) {
            batches.push(&points[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += size;
    }
    if start < points.len() {
        batches.push(&points[start..]);
    }
    batches
}

/// Parameters or tags as they go together into one request.
fn by_bytes(entries: Vec<Value>) -> Vec<Vec<Value>> {
    let mut batches: Vec<Vec<Value>> = Vec::new();
    let mut bytes = 0;
    for entry in entries {
        let size = entry.to_string().len() + 1;
        match batches.last_mut() {
            Some(batch) if batch.len() < MOST_PAIRS && bytes + size <= MOST_BYTES => {
                bytes += size;
                batch.push(entry);
            }
            _ => {
                bytes = size;
                batches.push(vec![entry]);
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(count: usize, name: &str) -> Vec<Point> {
        let point = |step| Point {
            name: name.to_owned(),
            value: -f64::MAX,
            at_ms: i64::MAX,
            step,
        };
        (0..count as i64).map(point).collect()
    }

    #[test]
    fn batches_stay_within_the_limits_and_lose_nothing() {
        let sizes = |points: &[Point]| {
            batches(points)
                .iter()
                .map(|batch| batch.len())
                .collect::<Vec<_>>()
        };
        assert_eq!(sizes(&points(2001, "train/loss")), [1000, 1000, 1]);
        assert!(sizes(&[]).is_empty());
        assert_eq!(sizes(&points(1000, &"x".repeat(250))), [1000]);
        // The most that a point can take is counted.
        let longest =
            json!({"key": "", "value": -f64::MAX, "timestamp": i64::MAX, "step": i64::MAX});
        assert!(longest.to_string().len() < POINT_BYTES);
    }

    #[test]
    fn long_values_are_spread_over_requests() {
        let many: BTreeMap<String, String> = (0..250)
            .map(|n| (format!("k{n:03}"), "v".repeat(6000)))
            .collect();
        let batches = by_bytes(pairs(&many));
        assert!(batches.iter().all(|batch| batch.len() <= 100));
        assert!(
            batches
                .iter()
                .all(|batch| json!(batch).to_string().len() <= MOST_BYTES + 2)
        );
        assert_eq!(batches.concat().len(), 250);
    }
}
