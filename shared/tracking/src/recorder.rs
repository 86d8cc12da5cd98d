//! One run of the store as one run on the server: what is told when, the same live and in a replay.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use wmtp_artifacts::{
    ArtifactId, ExitClass, FileEntry, Input, Kind, Manifest, RunRequest, Store, StoreOptions,
    StoreUri, TRACKED,
};
use wmtp_records::EvalScore;

use crate::api::{DataSet, Experiment, State, Tracked};
use crate::line::{Line, Point};
use crate::names::{self, plain};
use crate::{Error, Server, exact};

/// The file beside the run that names all its artifacts.
const INDEX: &str = "artifacts.json";
/// Longest digest of a data set.
const LONGEST_DIGEST: usize = 36;
/// Scheme of artifacts that the server itself stores.
const PROXIED: &str = "mlflow-artifacts:";

/// Artifacts by role.
type Outputs = BTreeMap<String, ArtifactId>;

/// Tells a server about one run.
pub(crate) struct Recorder {
    store: Store,
    /// Where requests to the store run: its connections belong there.
    io: Handle,
    request: RunRequest,
    experiment: String,
    open: Option<Open>,
    non_finite: BTreeSet<String>,
}

struct Open {
    run: Tracked,
    is_new: bool,
}

impl Recorder {
    /// For a run of a store; none where it belongs to no experiment.
    pub(crate) fn new(store: Store, io: Handle, request: RunRequest) -> Option<Self> {
        let experiment = names::experiment(&request.recipe)?;
        Some(Self {
            store,
            io,
            request,
            experiment,
            open: None,
            non_finite: BTreeSet::new(),
        })
    }

    pub(crate) fn experiment(&self) -> &str {
        &self.experiment
    }

    /// Whether the server did not have the run before.
    pub(crate) fn is_new(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.is_new)
    }

    /// The server may have lost the run meanwhile: it is looked for anew.
    pub(crate) fn forget(&mut self) {
        self.open = None;
    }

    /// Tells what some events say, in their order; returns how many points they hold. Telling it twice changes nothing.
    pub(crate) async fn record(&mut self, server: &Server, lines: &[Line]) -> Result<u64, Error> {
        let run = self.open(server).await?;
        let mut points = Vec::new();
        for line in lines {
            let (finite, non_finite) = line.points();
            points.extend(finite);
            self.non_finite.extend(non_finite);
        }
        server.log_points(&run.id, &points).await?;
        let mut tags = BTreeMap::new();
        if !self.non_finite.is_empty() {
            let names = names::non_finite(&self.non_finite);
            tags.insert(names::NON_FINITE.to_owned(), names);
        }
        let newest = |kind: &str| lines.iter().rfind(|line| line.kind == kind);
        if let Some(failed) = newest("failed") {
            let message = failed.data["message"].as_str().unwrap_or("unknown");
            tags.insert(names::ERROR.to_owned(), names::cut(message));
        }
        server.log_pairs(&run.id, &BTreeMap::new(), &tags).await?;
        let mut count = points.len() as u64;
        if let Some(completed) = newest("completed") {
            let outputs: Result<Outputs, _> =
                serde_json::from_value(completed.data["outputs"].clone());
            count += self
                .conclude(server, &run, &outputs.unwrap_or_default())
                .await?;
        }
        if let Some(last) = lines.iter().rfind(|line| line.kind != "metrics") {
            self.stand(server, &run, last).await?;
        }
        Ok(count)
    }

    /// Tells of a result whose event is missing.
    pub(crate) async fn finish(
        &mut self,
        server: &Server,
        outputs: &Outputs,
        at_ms: i64,
    ) -> Result<u64, Error> {
        let run = self.open(server).await?;
        let count = self.conclude(server, &run, outputs).await?;
        server
            .update_run(&run.id, State::Finished, Some(at_ms))
            .await?;
        Ok(count)
    }

    /// Tells that the process is gone.
    pub(crate) async fn lose(&mut self, server: &Server, at_ms: i64) -> Result<(), Error> {
        let run = self.open(server).await?;
        server.update_run(&run.id, State::Killed, Some(at_ms)).await
    }

    /// The run on the server, found or created, with all that is known from its beginning.
    async fn open(&mut self, server: &Server) -> Result<Tracked, Error> {
        if let Some(open) = &self.open {
            return Ok(open.run.clone());
        }
        let folder = self.experiment.replace('/', "-");
        let location = format!("{}/{TRACKED}{folder}", self.store.uri());
        let experiment = server.experiment(&self.experiment, &location).await?;
        let inputs = self.manifests(&self.request.inputs).await?;
        let mut tags = names::tags(&self.request, self.store.uri());
        tags.extend(self.lineage(server, &experiment, &inputs).await?);
        let (run, is_new) = self.find_or_create(server, &experiment, &tags).await?;
        let mut params = names::params(&self.request);
        // What a run has stays: an earlier attempt may have had other settings of no consequence.
        params.retain(|name, _| !run.params.contains_key(name));
        let known = run.tags.get(names::NON_FINITE).map_or("", String::as_str);
        let known = known.split(", ").filter(|name| !name.is_empty());
        self.non_finite.extend(known.map(str::to_owned));
        server.log_pairs(&run.id, &params, &tags).await?;
        server.log_inputs(&run.id, &self.data_sets(&inputs)).await?;
        self.open = Some(Open {
            run: run.clone(),
            is_new,
        });
        Ok(run)
    }

    /// A reply that is lost leaves a run behind: it is looked for again before another is created.
    async fn find_or_create(
        &self,
        server: &Server,
        experiment: &Experiment,
        tags: &BTreeMap<String, String>,
    ) -> Result<(Tracked, bool), Error> {
        let single = server.single();
        let store = names::store_tag(self.store.uri());
        let id = self.request.run_id.as_str();
        let start = self.request.started_at.as_millisecond();
        let name = names::run_name(&self.request);
        server
            .retrying(async || {
                if let Some(run) = single.find_run(experiment, id, &store).await? {
                    return Ok((run, false));
                }
                let run = single.create_run(experiment, start, &name, tags).await?;
                Ok((run, true))
            })
            .await
    }

    /// Which run made what this one goes on from.
    async fn lineage(
        &self,
        server: &Server,
        experiment: &Experiment,
        inputs: &[(Input, Option<Manifest>)],
    ) -> Result<BTreeMap<String, String>, Error> {
        const ORDER: [Kind; 3] = [Kind::Checkpoint, Kind::Advantages, Kind::ReferenceCe];
        let made = |kind: &Kind| {
            let of_kind = |(input, _): &&(Input, Option<Manifest>)| input.id.kind() == *kind;
            inputs.iter().find(of_kind)?.1.as_ref()
        };
        let Some(manifest) = ORDER.iter().find_map(made) else {
            return Ok(BTreeMap::new());
        };
        let parent = &manifest.provenance.run_id;
        let mut tags = BTreeMap::from([("parent_run".to_owned(), parent.to_string())]);
        let store = names::store_tag(self.store.uri());
        if let Some(run) = server.find_run(experiment, parent.as_str(), &store).await? {
            tags.insert("mlflow.parentRunId".to_owned(), run.id);
        }
        Ok(tags)
    }

    fn data_sets(&self, inputs: &[(Input, Option<Manifest>)]) -> Vec<DataSet> {
        let is_data = |kind| matches!(kind, Kind::RawData | Kind::ProcessedData);
        let context = match self.request.job.as_str() {
            "train-stage1" | "train-stage2" => "training",
            "evaluate" | "evaluate-external" => "evaluation",
            _ => "input",
        };
        let name = self.request.recipe["experiment"]["dataset"].as_str();
        inputs
            .iter()
            .filter(|(input, _)| is_data(input.id.kind()))
            .map(|(input, manifest)| {
                let id = input.id.to_string();
                let digits = id.rsplit('-').next().unwrap_or_default();
                let uri = match manifest {
                    Some(_) => self.store.address(&input.id),
                    None => id.clone(),
                };
                let name = name.filter(|_| input.role == "data").unwrap_or(&input.role);
                DataSet {
                    name: plain(name),
                    digest: digits.chars().take(LONGEST_DIGEST).collect(),
                    source: json!({"uri": uri, "artifact": id}).to_string(),
                    context: context.to_owned(),
                    profile: manifest
                        .as_ref()
                        .map(|manifest| json!(manifest.content.attributes).to_string()),
                }
            })
            .collect()
    }

    /// What came of the run: its artifacts by address, the figures in them.
    async fn conclude(
        &self,
        server: &Server,
        run: &Tracked,
        outputs: &Outputs,
    ) -> Result<u64, Error> {
        let made: Vec<Input> = outputs
            .iter()
            .map(|(role, id)| Input {
                role: role.clone(),
                id: id.clone(),
            })
            .collect();
        let made = self.manifests(&made).await?;
        let mut points = Vec::new();
        let mut tags = BTreeMap::new();
        for (output, manifest) in &made {
            tags.insert(
                plain(&format!("artifact.{}", output.role)),
                names::cut(&self.store.address(&output.id)),
            );
            if let Some(manifest) = manifest {
                points.extend(self.figures(manifest).await?);
                tags.extend(judged(manifest));
            }
        }
        server.log_points(&run.id, &points).await?;
        server.log_pairs(&run.id, &BTreeMap::new(), &tags).await?;
        let inputs = self.manifests(&self.request.inputs).await?;
        let index = json!({
            "run_id": self.request.run_id,
            "job": self.request.job,
            "store": self.store.uri().to_string(),
            "inputs": self.index(&inputs),
            "outputs": self.index(&made),
        });
        // The tags have the addresses of the artifacts all the same, and a run that has no index must still end.
        if let Err(error) = self.put_index(server, run, &index).await {
            tracing::warn!("tracking: {INDEX} is not at {}: {error}", run.artifact_uri);
        }
        Ok(points.len() as u64)
    }

    fn index(&self, artifacts: &[(Input, Option<Manifest>)]) -> Vec<Value> {
        let file = |entry: &FileEntry| {
            json!({
                "path": entry.path,
                "size": entry.size,
                "sha256": entry.sha256,
                "uri": self.store.content_address(&entry.sha256),
            })
        };
        artifacts
            .iter()
            .map(|(artifact, manifest)| {
                let content = manifest.as_ref().map(|manifest| &manifest.content);
                json!({
                    "role": artifact.role,
                    "id": artifact.id,
                    "uri": manifest.as_ref().map(|_| self.store.address(&artifact.id)),
                    "attributes": content.map(|content| &content.attributes),
                    "files": content.map(|content| content.files.iter().map(file).collect::<Vec<_>>()),
                })
            })
            .collect()
    }

    /// Puts the index where the server looks for artifacts of the run.
    async fn put_index(&self, server: &Server, run: &Tracked, index: &Value) -> Result<(), Error> {
        let bytes = Bytes::from(format!("{index:#}\n"));
        let own = format!("{}/", self.store.uri());
        if let Some(path) = run.artifact_uri.strip_prefix(&own) {
            let (store, path) = (self.store.clone(), format!("{path}/{INDEX}"));
            return self
                .on_store(async move { put(&store, &path, bytes).await })
                .await;
        }
        let proxied = run.artifact_uri.strip_prefix(PROXIED);
        if let Some(path) = proxied.filter(|path| !path.starts_with("//")) {
            let path = format!("{}/{INDEX}", path.trim_start_matches('/'));
            return server.put_artifact(&path, bytes).await;
        }
        // The experiment was created for another store.
        let place = run.artifact_uri.clone();
        let elsewhere = async move {
            let uri: StoreUri = place.parse()?;
            let store = Store::connect(&uri, StoreOptions::default()).await?;
            put(&store, INDEX, bytes).await
        };
        self.on_store(elsewhere).await
    }

    /// The numbers that an artifact holds beside the events of its run. Their time is that of the artifact.
    async fn figures(&self, manifest: &Manifest) -> Result<Vec<Point>, Error> {
        let named = match manifest.kind() {
            Kind::Scores => match self.json(manifest, "eval_score.json").await? {
                Some(score) => scores(&score),
                None => Vec::new(),
            },
            Kind::ValueModel => {
                let names = [
                    ("pairwise_accuracy", "value/pairwise_acc"),
                    ("same_length_accuracy", "value/same_length_acc"),
                    ("explained_variance", "value/explained_variance"),
                    ("mean_value", "value/mean"),
                    ("std_value", "value/std"),
                    ("auc", "value/auc"),
                    ("margin", "value/margin"),
                    ("calibration_error", "value/ece"),
                    ("best_validation_loss", "val/best_loss"),
                ];
                self.members(manifest, "summary.json", &names).await?
            }
            Kind::Advantages => {
                let names = [("mean", "advantage/mean"), ("std", "advantage/std")];
                self.members(manifest, "advantages.json", &names).await?
            }
            Kind::ReferenceCe => {
                let names = [
                    ("mean_train_ce", "rho1/ref_ce"),
                    ("best_validation_loss", "val/best_loss"),
                ];
                self.members(manifest, "summary.json", &names).await?
            }
            Kind::Checkpoint => {
                let names = [("best_validation_loss", "val/best_loss")];
                self.members(manifest, "summary.json", &names).await?
            }
            _ => Vec::new(),
        };
        let at_ms = manifest.provenance.created_at.as_millisecond();
        let point = |(name, value): (String, f64)| Point {
            name,
            value,
            at_ms,
            step: 0,
        };
        Ok(named
            .into_iter()
            .filter(|(_, value)| value.is_finite())
            .map(point)
            .collect())
    }

    async fn members(
        &self,
        manifest: &Manifest,
        file: &str,
        names: &[(&str, &str)],
    ) -> Result<Vec<(String, f64)>, Error> {
        let found = self.json(manifest, file).await?.unwrap_or_default();
        Ok(names
            .iter()
            .filter_map(|(own, theirs)| Some(((*theirs).to_owned(), found[own].as_f64()?)))
            .collect())
    }

    /// A JSON file of an artifact; none where there is none, or no JSON.
    async fn json(&self, manifest: &Manifest, file: &str) -> Result<Option<Value>, Error> {
        let (store, manifest, file) = (self.store.clone(), manifest.clone(), file.to_owned());
        let bytes = self
            .on_store(async move { store.read(&manifest, &file).await })
            .await?;
        Ok(bytes.and_then(|bytes| exact::parse(std::str::from_utf8(&bytes).ok()?)))
    }

    /// How the run stands after an event.
    async fn stand(&self, server: &Server, run: &Tracked, line: &Line) -> Result<(), Error> {
        let (state, end) = match line.kind.as_str() {
            "completed" => (State::Finished, Some(line.at_ms)),
            "failed" => (State::Failed, Some(line.at_ms)),
            "preempted" => (State::Killed, Some(line.at_ms)),
            _ => (State::Running, None),
        };
        let attempt = BTreeMap::from([("wmtp.attempt".to_owned(), line.attempt.to_string())]);
        server
            .log_pairs(&run.id, &BTreeMap::new(), &attempt)
            .await?;
        server.update_run(&run.id, state, end).await
    }

    /// Artifacts with their manifests; none for those of another store, or collected meanwhile.
    async fn manifests(&self, wanted: &[Input]) -> Result<Vec<(Input, Option<Manifest>)>, Error> {
        let mut found = Vec::new();
        for input in wanted {
            let (store, id) = (self.store.clone(), input.id.clone());
            let manifest = self
                .on_store(async move { store.manifest(&id).await })
                .await;
            let manifest = match manifest {
                Ok(manifest) => Some(manifest),
                Err(Error::Store(error)) if error.exit_class() == ExitClass::BadInput => None,
                Err(error) => return Err(error),
            };
            found.push((input.clone(), manifest));
        }
        Ok(found)
    }

    /// Waits for the store where its connections live.
    async fn on_store<T: Send + 'static>(
        &self,
        work: impl Future<Output = wmtp_artifacts::Result<T>> + Send + 'static,
    ) -> Result<T, Error> {
        Ok(self.io.spawn(work).await??)
    }
}

async fn put(store: &Store, path: &str, bytes: Bytes) -> wmtp_artifacts::Result<()> {
    store
        .put_page(path, bytes, "application/json", "no-cache")
        .await
}

/// What scores are scores of: not the recipe's version where the untrained model was judged.
fn judged(manifest: &Manifest) -> Vec<(String, String)> {
    if manifest.kind() != Kind::Scores {
        return Vec::new();
    }
    [("model_version", "version_id"), ("algo", "algo")]
        .into_iter()
        .filter_map(|(tag, attribute)| {
            let value = manifest.attribute(attribute)?;
            Some((tag.to_owned(), names::cut(value)))
        })
        .collect()
}

/// Scores under the name of their evaluation set, so that no split is taken for another.
fn scores(found: &Value) -> Vec<(String, f64)> {
    let Ok(score) = serde_json::from_value::<EvalScore>(found.clone()) else {
        return Vec::new();
    };
    let set = &score.dataset_id;
    let latency = score
        .latency_ms
        .map(|millis| (plain(&format!("{set}/latency_ms")), millis));
    let metrics = score.metrics.iter();
    metrics
        .map(|metric| (plain(&format!("{set}/{}", metric.name)), metric.value))
        .chain(latency)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_stand_under_their_evaluation_set() {
        let found = json!({
            "dataset_id": "mbpp-test",
            "created_at": "2026-11-21T10:00:00Z",
            "num_samples": 3,
            "metrics": [{"name": "pass_at_1", "value": 0.25, "higher_is_better": true}],
            "latency_ms": 12.5,
        });
        let expected = [
            ("mbpp-test/pass_at_1", 0.25),
            ("mbpp-test/latency_ms", 12.5),
        ];
        assert_eq!(
            scores(&found),
            expected.map(|(name, value)| (name.to_owned(), value))
        );
        // Of a model from outside the time may not be known.
        let mut untimed = found;
        untimed["latency_ms"] = Value::Null;
        assert_eq!(scores(&untimed), [("mbpp-test/pass_at_1".to_owned(), 0.25)]);
        assert!(scores(&json!({"metrics": "none"})).is_empty());
    }
}
