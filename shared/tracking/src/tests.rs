//! The whole way, from a run of a real store to a server: the recorded one in every test, MLflow itself where it is
//! installed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dev_store::TestServer;
use mlflow_double::{Double, Fault};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use wmtp_artifacts::{
    Alias, ArtifactId, Claim, Digest, Draft, Input, Kind, Provenance, RunId, RunRequest, RunResult,
    Store,
};

use crate::api::{DataSet, State};
use crate::line::Point;
use crate::server::Access;
use crate::{Missing, Server, Sink, promote, replay_aliases, replay_run, runs};

const STARTED: &str = "2026-11-21T10:00:00Z";

/// A store with a data set and a checkpoint that was trained on it.
struct Place {
    // Dropped first: it stops before its folder goes.
    _server: TestServer,
    store: Store,
    folder: tempfile::TempDir,
}

/// A run as a job makes it, without the job.
struct Worked {
    request: RunRequest,
    lines: Vec<String>,
}

impl Place {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = TestServer::start(&folder.path().join("store"));
        let store = trial::connect(&server, "s3://wmtp/test").await;
        Self {
            _server: server,
            store,
            folder,
        }
    }

    async fn publish(
        &self,
        kind: Kind,
        made: (&str, &RunRequest),
        files: &[(&str, &str)],
        attributes: &[(&str, &str)],
    ) -> ArtifactId {
        let (role, request) = made;
        let root = self
            .folder
            .path()
            .join(format!("{}-{role}", request.run_id));
        std::fs::create_dir_all(&root).unwrap();
        for (name, text) in files {
            std::fs::write(root.join(name), text).unwrap();
        }
        let attributes = attributes.iter();
        let draft = Draft {
            kind,
            root,
            attributes: attributes
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        };
        let provenance = Provenance {
            job: request.job.clone(),
            run_id: request.run_id.clone(),
            attempt: 1,
            code_version: request.code_version.clone(),
            code_revision: request.code_revision.clone(),
            recipe_version: 1,
            recipe: request.recipe.clone(),
            options: json!({}),
            inputs: request.inputs.clone(),
            created_at: request.started_at,
        };
        self.store.publish(&draft, &provenance).await.unwrap().id
    }

    /// Claims a run, writes its events and its result.
    async fn work(
        &self,
        request: RunRequest,
        data: &[Value],
        outputs: BTreeMap<String, ArtifactId>,
    ) -> Worked {
        let claim = Claim::take(&self.store, &request).await.unwrap();
        let line = |(seq, (kind, data)): (usize, (&str, &Value))| {
            json!({
                "schema": 1,
                "run_id": request.run_id,
                "attempt": claim.attempt(),
                "seq": seq,
                "ts": format!("2026-11-21T10:00:{:02}.5Z", seq % 60),
                "type": kind,
                "job": request.job,
                "data": data,
            })
            .to_string()
        };
        let (started, completed) = (json!({}), json!({"outputs": outputs}));
        let events = std::iter::once(("started", &started))
            .chain(data.iter().map(|data| ("metrics", data)))
            .chain([("progress", &started), ("completed", &completed)]);
        let lines: Vec<String> = events.enumerate().map(line).collect();
        claim.events(0, &lines).await.unwrap();
        let result = RunResult {
            outputs,
            attempt: claim.attempt(),
            finished_at: "2026-11-21T10:05:00Z".parse().unwrap(),
            summary: Value::Null,
        };
        claim.finish(&result).await.unwrap();
        Worked { request, lines }
    }

    /// A data set, a training run on it with that many steps, and an evaluation of what it made.
    async fn chain(&self, steps: u64) -> [Worked; 3] {
        let request = request("prepare-data", &[]);
        let rows = [("records.jsonl", "{}\n")];
        let data = self
            .publish(
                Kind::ProcessedData,
                ("data", &request),
                &rows,
                &[("rows_train", "7")],
            )
            .await;
        let outputs = BTreeMap::from([("data".to_owned(), data.clone())]);
        let prepared = self.work(request, &[], outputs).await;

        let request = self::request("train-stage2", &[("data", &data)]);
        let summary = [("summary.json", r#"{"best_validation_loss": 1.25}"#)];
        let attributes = [("version", "v002"), ("algo", "rho1"), ("seed", "42")];
        let checkpoint = self
            .publish(
                Kind::Checkpoint,
                ("checkpoint", &request),
                &summary,
                &attributes,
            )
            .await;
        let outputs = BTreeMap::from([("checkpoint".to_owned(), checkpoint.clone())]);
        let metrics: Vec<Value> = (1..=steps)
            .map(|step| {
                let loss = 1.0 / step as f64;
                json!({"step": step, "values": {"train_loss": loss, "weight_entropy_head_2": 0.5, "mfu": null}})
            })
            .collect();
        let trained = self.work(request, &metrics, outputs).await;

        let request = self::request("evaluate", &[("checkpoint", &checkpoint), ("data", &data)]);
        let score = json!({
            "dataset_id": "micropy-validation", "created_at": STARTED, "num_samples": 3, "latency_ms": 2.5,
            "metrics": [{"name": "pass_at_1", "value": 0.25, "higher_is_better": true}],
        })
        .to_string();
        let scores = self
            .publish(
                Kind::Scores,
                ("scores", &request),
                &[("eval_score.json", &score)],
                &[("version_id", "base"), ("algo", "base")],
            )
            .await;
        let outputs = BTreeMap::from([("scores".to_owned(), scores)]);
        let evaluated = self.work(request, &[], outputs).await;
        [prepared, trained, evaluated]
    }

    async fn replay(&self, server: &Server) -> u64 {
        let mut points = 0;
        for id in runs(&self.store).await.unwrap() {
            let run = replay_run(server, &self.store, &id).await.unwrap();
            points += run.map_or(0, |run| run.points);
        }
        points
    }

    async fn replay_one(&self, server: &Server, worked: &Worked) {
        let replayed = replay_run(server, &self.store, &worked.request.run_id).await;
        replayed.unwrap().unwrap();
    }

    fn follow(&self, server: Server, worked: &Worked, said: &Said) -> Sink {
        let said = Arc::clone(said);
        let say = move |level: &str, message: &str| {
            said.lock().unwrap().push(format!("{level}: {message}"));
        };
        let (store, io) = (self.store.clone(), Handle::current());
        Sink::start(server, store, io, worked.request.clone(), Arc::new(say)).unwrap()
    }

    /// Tells a sink the run as a job would, and ends it on a thread of its own: ending waits.
    async fn live(&self, server: Server, worked: &Worked) -> (Option<Missing>, Vec<String>) {
        let said = Said::default();
        let sink = self.follow(server, worked, &said);
        for line in &worked.lines {
            let kind = serde_json::from_str::<Value>(line).unwrap()["type"].clone();
            sink.event(kind.as_str().unwrap(), line);
        }
        let missing = tokio::task::spawn_blocking(move || sink.close())
            .await
            .unwrap();
        let said = said.lock().unwrap().clone();
        (missing, said)
    }
}

type Said = Arc<Mutex<Vec<String>>>;

fn request(job: &str, inputs: &[(&str, &ArtifactId)]) -> RunRequest {
    let key = Digest::of(job.as_bytes());
    let input = |(role, id): &(&str, &ArtifactId)| Input {
        role: (*role).to_owned(),
        id: (*id).clone(),
    };
    RunRequest {
        run_id: RunId::for_work(job, &key),
        job: job.to_owned(),
        cache_key: key,
        inputs: inputs.iter().map(input).collect(),
        recipe: json!({
            "version": {"id": "v002", "parent": "v001"},
            "experiment": {"algo": "rho1", "dataset": "micropy"},
            "model": {"horizon": 4},
            "seed": 42,
            "optim": {"lr": 0.002},
        }),
        code_version: "0.1.0".to_owned(),
        code_revision: None,
        host: "here".to_owned(),
        labels: BTreeMap::from([("name".to_owned(), format!("{job}-s42"))]),
        started_at: STARTED.parse().unwrap(),
    }
}

fn server(double: &Double) -> Server {
    at(double.endpoint())
}

fn at(endpoint: &str) -> Server {
    Server::new(endpoint, &Access::default())
        .unwrap()
        .hasty(Duration::from_millis(400))
}

/// The runs that a server holds, by job.
fn held(double: &Double) -> BTreeMap<String, Value> {
    let runs = double.holds()["runs"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    runs.into_iter()
        .map(|run| (pair(&run["data"]["tags"], "wmtp.job").unwrap(), run))
        .collect()
}

fn pair(entries: &Value, key: &str) -> Option<String> {
    let mut entries = entries.as_array()?.iter();
    let entry = entries.find(|entry| entry["key"] == key)?;
    Some(entry["value"].as_str()?.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_told_with_all_that_the_store_knows_of_it() {
    let place = Place::new().await;
    let [prepared, trained, evaluated] = place.chain(3).await;
    let double = Double::start();
    for worked in [&prepared, &trained, &evaluated] {
        let (missing, said) = place.live(server(&double), worked).await;
        assert_eq!(missing, None, "{said:?}");
        assert_eq!(said.len(), 1);
        assert!(
            said[0].starts_with("info: tracked in experiment mtp/rho1/micropy"),
            "{said:?}"
        );
    }
    let holds = double.holds();
    assert_eq!(holds["experiments"].as_array().unwrap().len(), 1);
    assert_eq!(
        holds["experiments"][0]["artifact_location"],
        "s3://wmtp/test/mlflow/mtp-rho1-micropy"
    );

    let runs = held(&double);
    let run = &runs["train-stage2"];
    assert_eq!(run["info"]["status"], "FINISHED");
    assert_eq!(run["info"]["run_name"], "train-stage2-s42");
    assert_eq!(run["info"]["start_time"], 1_795_255_200_000_i64);
    // The time of its last event, not that of the request.
    assert_eq!(run["info"]["end_time"], 1_795_255_205_500_i64);
    let params = &run["data"]["params"];
    assert_eq!(pair(params, "optim.lr").as_deref(), Some("0.002"));
    assert_eq!(pair(params, "n_heads").as_deref(), Some("4"));
    let tags = &run["data"]["tags"];
    for (key, value) in [
        ("algo", "rho1"),
        ("dataset", "micropy"),
        ("stage", "stage2"),
        ("model_version", "v002"),
        ("storage_sync", "s3://wmtp/test"),
        ("wmtp.attempt", "1"),
        ("non_finite_metrics", "perf/mfu"),
    ] {
        assert_eq!(pair(tags, key).as_deref(), Some(value), "{key}");
    }
    let checkpoint = pair(tags, "artifact.checkpoint").unwrap();
    assert!(checkpoint.starts_with("s3://wmtp/test/v1/artifacts/checkpoint/checkpoint-"));
    let losses: Vec<&Value> = run["history"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|point| point["key"] == "train/loss")
        .collect();
    assert_eq!(losses.len(), 3);
    assert_eq!(
        *losses[1],
        json!({"key": "train/loss", "value": 0.5, "timestamp": 1_795_255_202_500_i64, "step": 2})
    );
    let data = &run["inputs"]["dataset_inputs"][0];
    assert_eq!(data["dataset"]["name"], "micropy");
    assert_eq!(data["dataset"]["profile"], r#"{"rows_train":"7"}"#);
    assert_eq!(data["tags"][0]["value"], "training");

    let evaluation = &runs["evaluate"];
    assert_eq!(
        pair(&evaluation["data"]["tags"], "mlflow.parentRunId").as_deref(),
        run["info"]["run_id"].as_str()
    );
    let scores: Vec<&Value> = evaluation["history"]
        .as_array()
        .unwrap()
        .iter()
        .map(|point| &point["key"])
        .collect();
    assert_eq!(
        scores,
        [
            "micropy-validation/pass_at_1",
            "micropy-validation/latency_ms"
        ]
    );

    // What was judged was the untrained model, whatever the recipe is called.
    let tags = &evaluation["data"]["tags"];
    assert_eq!(pair(tags, "model_version").as_deref(), Some("base"));
    assert_eq!(pair(tags, "algo").as_deref(), Some("base"));

    // The index lies where the server looks for artifacts, and says where each file is.
    let folder = run["info"]["artifact_uri"].as_str().unwrap();
    let path = format!(
        "{}/artifacts.json",
        folder.strip_prefix("s3://wmtp/test/").unwrap()
    );
    let index = place.store.page(&path).await.unwrap().unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    assert_eq!(index["outputs"][0]["uri"], checkpoint);
    assert_eq!(index["outputs"][0]["files"][0]["path"], "summary.json");
    let blob = index["outputs"][0]["files"][0]["uri"].as_str().unwrap();
    assert!(
        blob.ends_with(index["outputs"][0]["files"][0]["sha256"].as_str().unwrap()),
        "{blob}"
    );
    assert_eq!(index["inputs"][0]["role"], "data");
}

/// What was sent live, and what is sent from the store afterwards, are the same.
#[tokio::test(flavor = "multi_thread")]
async fn live_and_replay_say_the_same_and_twice_is_once() {
    let place = Place::new().await;
    let chain = place.chain(40).await;
    let (live, replayed) = (Double::start(), Double::start());
    for worked in &chain {
        assert_eq!(place.live(server(&live), worked).await.0, None);
    }
    let points = place.replay(&server(&replayed).patient()).await;
    assert_eq!(points, 40 * 2 + 1 + 2);
    assert_eq!(replayed.holds(), live.holds());

    place.replay(&server(&live).patient()).await;
    place.replay(&server(&live).patient()).await;
    assert_eq!(live.holds(), replayed.holds());
    let largest = live.asked().iter().map(|asked| asked.size).max();
    assert!(largest.unwrap() < 1_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fails_for_a_while_misses_nothing() {
    let place = Place::new().await;
    let [_, trained, _] = place.chain(3).await;
    let calm = Double::start();
    assert_eq!(place.live(server(&calm), &trained).await.0, None);
    for fault in [
        Fault::Status(429),
        Fault::Status(500),
        Fault::Status(503),
        Fault::Garbage,
        Fault::Hang,
        Fault::LostReply,
    ] {
        // Each of the first requests meets it once: the creation of the run among them.
        for place_of_fault in 0..8 {
            let double = Double::start();
            let patient = server(&double).patient();
            let healthy = std::iter::repeat_n(None, place_of_fault);
            arm(&double, healthy.chain([Some(fault)]));
            replay_run(&patient, &place.store, &trained.request.run_id)
                .await
                .unwrap();
            assert_eq!(
                double.holds(),
                calm.holds(),
                "{fault:?} at request {place_of_fault}"
            );
        }
    }
}

/// Faults of single requests; `None` lets one through.
fn arm(double: &Double, faults: impl Iterator<Item = Option<Fault>>) {
    double.fail(faults.map(|fault| fault.unwrap_or(Fault::None)));
}

/// Nothing of the job's waits for the server: all events are taken before it answers to anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_answers_holds_nothing_up_and_is_told_of() {
    let place = Place::new().await;
    let [_, trained, _] = place.chain(3).await;
    for fault in [
        Fault::Hang,
        Fault::Status(500),
        Fault::Status(429),
        Fault::Garbage,
        Fault::LostReply,
    ] {
        let double = Double::start();
        double.fail_always(Some(fault));
        let (missing, _) = place.live(server(&double), &trained).await;
        let missing = missing.unwrap();
        assert_eq!(
            missing.lines, 5,
            "{fault:?}: started, three steps, completed"
        );
        assert!(
            missing.reason.contains(double.endpoint()),
            "{fault:?}: {}",
            missing.reason
        );
        // Later the store still has everything.
        double.fail_always(None);
        double.forget();
        replay_run(&server(&double), &place.store, &trained.request.run_id)
            .await
            .unwrap();
        assert_eq!(held(&double)["train-stage2"]["info"]["status"], "FINISHED");
    }
    let (missing, _) = place.live(at(&Double::nowhere()), &trained).await;
    assert_eq!(missing.unwrap().lines, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_full_drops_the_oldest_and_counts_them() {
    let place = Place::new().await;
    let [_, trained, _] = place.chain(1).await;
    let double = Double::start();
    double.fail_always(Some(Fault::Hang));
    let said = Said::default();
    let sink = place.follow(server(&double), &trained, &said);
    let line = &trained.lines[1];
    for _ in 0..25_000 {
        sink.event("metrics", line);
    }
    sink.event("progress", line);
    let missing = tokio::task::spawn_blocking(move || sink.close())
        .await
        .unwrap();
    assert_eq!(missing.unwrap().lines, 25_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_told_once_with_its_reason_and_without_secrets() {
    let place = Place::new().await;
    let [_, trained, _] = place.chain(3).await;
    let double = Double::start();
    double.fail_always(Some(Fault::Status(401)));
    let login = Access {
        user: Some("me".to_owned()),
        password: Some("planted-password".to_owned()),
        ..Access::default()
    };
    let server = Server::new(double.endpoint(), &login).unwrap();
    let (missing, said) = place.live(server, &trained).await;
    let missing = missing.unwrap();
    assert!(missing.reason.contains("401"), "{}", missing.reason);
    let told = format!("{said:?}{missing:?}");
    assert!(
        !told.contains("planted-password") && !told.contains("bWU6"),
        "{told}"
    );
    // printf 'me:planted-password' | base64
    let header = "Basic bWU6cGxhbnRlZC1wYXNzd29yZA==";
    assert_eq!(double.asked()[0].authorization.as_deref(), Some(header));

    let double = Double::start();
    let token = Access {
        token: Some("planted-token".to_owned()),
        ..Access::default()
    };
    let token = Server::new(double.endpoint(), &token).unwrap();
    assert_eq!(place.live(token, &trained).await.0, None);
    let asked = double.asked();
    assert!(
        asked
            .iter()
            .all(|asked| asked.authorization.as_deref() == Some("Bearer planted-token"))
    );
}

/// A server that comes back with an empty database gets all of it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lost_everything_is_filled_again() {
    let place = Place::new().await;
    let chain = place.chain(4).await;
    let double = Double::start();
    for worked in &chain {
        place.live(server(&double), worked).await;
    }
    let before = double.holds();
    double.forget();
    place.replay(&server(&double)).await;
    assert_eq!(double.holds(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_attempt_and_a_lost_one_say_so() {
    let place = Place::new().await;
    let [_, trained, _] = place.chain(1).await;
    let double = Double::start();
    let event = |kind: &str, attempt: u32, data: Value| {
        json!({"type": kind, "ts": STARTED, "attempt": attempt, "data": data}).to_string()
    };
    let told = |lines: Vec<String>| Worked {
        request: trained.request.clone(),
        lines,
    };
    let failed = told(vec![
        event("started", 1, json!({})),
        event("failed", 1, json!({"message": "loss is NaN"})),
    ]);
    place.live(server(&double), &failed).await;
    let run = &held(&double)["train-stage2"];
    assert_eq!(run["info"]["status"], "FAILED");
    assert_eq!(
        pair(&run["data"]["tags"], "error").as_deref(),
        Some("loss is NaN")
    );

    let preempted = told(vec![
        event("started", 2, json!({})),
        event("preempted", 2, json!({})),
    ]);
    place.live(server(&double), &preempted).await;
    let run = &held(&double)["train-stage2"];
    assert_eq!(run["info"]["status"], "KILLED");
    assert_eq!(
        pair(&run["data"]["tags"], "wmtp.attempt").as_deref(),
        Some("2")
    );
    assert_eq!(held(&double).len(), 1, "attempts of a run are one run");

    let again = told(vec![event("started", 3, json!({}))]);
    place.live(server(&double), &again).await;
    assert_eq!(held(&double)["train-stage2"]["info"]["status"], "RUNNING");
}

/// Parameters stand for good, so the settings of the first attempt do.
#[tokio::test(flavor = "multi_thread")]
async fn another_attempt_with_other_settings_is_no_error() {
    let place = Place::new().await;
    let [_, mut trained, _] = place.chain(1).await;
    let double = Double::start();
    place.live(server(&double), &trained).await;
    trained.request.recipe["optim"]["lr"] = json!(0.5);
    trained.request.recipe["optim"]["new"] = json!(1);
    assert_eq!(place.live(server(&double), &trained).await.0, None);
    let params = &held(&double)["train-stage2"]["data"]["params"];
    assert_eq!(pair(params, "optim.lr").as_deref(), Some("0.002"));
    assert_eq!(pair(params, "optim.new").as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_experiment_whose_artifacts_the_server_stores_gets_the_index_from_it() {
    let place = Place::new().await;
    let [_, trained, _] = place.chain(1).await;
    let double = Double::start();
    let body = json!({"name": "mtp/rho1/micropy"});
    server(&double)
        .post("experiments/create", &body)
        .await
        .unwrap();
    assert_eq!(place.live(server(&double), &trained).await.0, None);
    let files = double.holds()["artifacts"].clone();
    let (path, text) = files.as_object().unwrap().iter().next().unwrap();
    assert!(
        path.starts_with("1/") && path.ends_with("/artifacts/artifacts.json"),
        "{path}"
    );
    let index: Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
    assert_eq!(index["run_id"], trained.request.run_id.as_str());
}

/// A key that may not write there, a gateway without a bucket behind it: the index is missing, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_index_cannot_be_written_ends_all_the_same() {
    let place = Place::new().await;
    let [_, trained, _] = place.chain(1).await;
    // The store lets nobody write between its own records; the server refuses at the one request for the file.
    for (location, refused) in [
        (Some("s3://wmtp/test/v1/runs"), None),
        (None, Some(Fault::Status(403))),
        (None, Some(Fault::Status(500))),
    ] {
        let prepared = async || {
            let double = Double::start();
            let mut body = json!({"name": "mtp/rho1/micropy"});
            if let Some(location) = location {
                body["artifact_location"] = json!(location);
            }
            let created = server(&double).post("experiments/create", &body).await;
            created.unwrap();
            double
        };
        let mut double = prepared().await;
        if refused.is_some() {
            place.replay_one(&server(&double), &trained).await;
            let asked = double.asked();
            let file = asked.iter().position(|asked| asked.method == "PUT");
            double = prepared().await;
            // The first request has created the experiment.
            arm(
                &double,
                std::iter::repeat_n(None, file.unwrap() - 1).chain([refused]),
            );
        }
        place.replay_one(&server(&double), &trained).await;
        let run = &held(&double)["train-stage2"];
        assert_eq!(
            run["info"]["status"], "FINISHED",
            "{location:?} {refused:?}"
        );
        assert!(pair(&run["data"]["tags"], "artifact.checkpoint").is_some());
        assert_eq!(double.holds()["artifacts"], json!({}), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_follows_the_name_in_the_store() {
    let place = Place::new().await;
    let [_, trained, _] = place.chain(1).await;
    let double = Double::start();
    place.live(server(&double), &trained).await;
    let server = server(&double);
    let id: ArtifactId = place
        .store
        .artifacts(Kind::Checkpoint)
        .await
        .unwrap()
        .remove(0);
    // Before and after the reply of the creation is lost: one version.
    double.fail([
        Fault::None,
        Fault::None,
        Fault::None,
        Fault::None,
        Fault::LostReply,
    ]);
    let patient = server.clone().patient();
    for _ in 0..2 {
        let version = promote(&patient, &place.store, "micropy", Alias::Staging, &id).await;
        assert_eq!(version.unwrap(), "1");
    }
    let model = double.holds()["models"]["micropy"].clone();
    assert_eq!(model["aliases"], json!({"staging": "1"}));
    let version = &model["versions"][0];
    assert_eq!(version["source"], place.store.address(&id));
    assert_eq!(
        version["run_id"],
        held(&double)["train-stage2"]["info"]["run_id"]
    );
    assert_eq!(
        pair(&version["tags"], "wmtp.checkpoint"),
        Some(id.to_string())
    );
    assert_eq!(pair(&version["tags"], "seed").as_deref(), Some("42"));

    let empty = Double::start();
    for alias in Alias::ALL {
        let name = alias.name_in_store("micropy");
        place
            .store
            .set_name(Kind::Checkpoint, &name, &id)
            .await
            .unwrap();
    }
    place
        .store
        .set_name(Kind::Checkpoint, "v002-s42", &id)
        .await
        .unwrap();
    let empty_server = at(empty.endpoint());
    place.replay(&empty_server).await;
    let given = replay_aliases(&empty_server, &place.store).await.unwrap();
    assert_eq!(given.len(), 2);
    let models = empty.holds()["models"].clone();
    assert_eq!(
        models["micropy"]["aliases"],
        json!({"staging": "1", "production": "1"})
    );
    assert_eq!(models.as_object().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_without_a_recipe_belongs_to_no_experiment() {
    let place = Place::new().await;
    let mut request = request("sync-storage", &[]);
    request.recipe = Value::Null;
    let worked = place.work(request, &[], BTreeMap::new()).await;
    let double = Double::start();
    let replayed = replay_run(&server(&double), &place.store, &worked.request.run_id).await;
    assert_eq!(replayed.unwrap(), None);
    assert!(double.asked().is_empty());
}

/// What the double and the real server must agree on: everything that we rely on.
async fn contract(endpoint: &str) {
    let server = Server::new(endpoint, &Access::default()).unwrap().patient();
    assert!(
        server
            .find_experiment("mtp/none/none")
            .await
            .unwrap()
            .is_none()
    );
    let location = "s3://wmtp/test/mlflow/mtp-a-b";
    let experiment = server.experiment("mtp/a/b", location).await.unwrap();
    assert_eq!(
        server.experiment("mtp/a/b", location).await.unwrap().id,
        experiment.id
    );
    let again = server
        .post("experiments/create", &json!({"name": "mtp/a/b"}))
        .await;
    assert!(again.unwrap_err().has_code("RESOURCE_ALREADY_EXISTS"));

    let tags = BTreeMap::from([
        ("wmtp.run_id".to_owned(), "a-1".to_owned()),
        ("storage_sync".to_owned(), "s3://wmtp/test".to_owned()),
    ]);
    let find = async |id: &str| {
        server
            .find_run(&experiment, id, "s3://wmtp/test")
            .await
            .unwrap()
    };
    assert!(find("a-1").await.is_none());
    let run = server
        .create_run(&experiment, 1000, "name", &tags)
        .await
        .unwrap();
    assert_eq!(run.artifact_uri, format!("{location}/{}/artifacts", run.id));
    assert_eq!(find("a-1").await.unwrap().id, run.id);
    assert!(find("a-2").await.is_none());

    // A thousand points in one request, and again.
    let points: Vec<Point> = (1..=2500)
        .map(|step| Point {
            name: "train/loss".to_owned(),
            value: f64::from(step) / 3.0,
            at_ms: 5,
            step: step.into(),
        })
        .collect();
    for _ in 0..2 {
        server.log_points(&run.id, &points).await.unwrap();
    }
    let history = [
        ("run_id", run.id.as_str()),
        ("metric_key", "train/loss"),
        ("max_results", "5000"),
    ];
    let history = server.get("metrics/get-history", &history).await.unwrap();
    let values = history["metrics"].as_array().unwrap();
    assert_eq!(values.len(), 2500);
    let third = values.iter().find(|point| point["step"] == 7).unwrap();
    assert_eq!(third["value"].as_f64(), Some(7.0 / 3.0));
    assert_eq!(third["timestamp"], 5);

    let point = json!({"key": "pass@1", "value": 0.5, "timestamp": 1, "step": 1});
    let refused = [
        json!({"metrics": [point]}),
        json!({"metrics": vec![json!({"key": "m", "value": 0.5, "timestamp": 1, "step": 1}); 1001]}),
        json!({"params": (0..101).map(|n| json!({"key": format!("k{n}"), "value": ""})).collect::<Vec<_>>()}),
    ];
    for mut body in refused {
        body["run_id"] = run.id.clone().into();
        let error = server.post("runs/log-batch", &body).await.unwrap_err();
        assert!(error.has_code("INVALID_PARAMETER_VALUE"), "{error}");
    }
    let none = json!({"run_id": "0".repeat(32), "tags": [{"key": "a", "value": "b"}]});
    let error = server.post("runs/log-batch", &none).await.unwrap_err();
    assert!(error.has_code("RESOURCE_DOES_NOT_EXIST"), "{error}");

    let pairs = |value: &str| {
        let many = (0..150).map(|n| (format!("key.{n:03}"), value.to_owned()));
        many.chain([("empty".to_owned(), String::new())])
            .collect::<BTreeMap<_, _>>()
    };
    let long = "p".repeat(6000);
    server
        .log_pairs(&run.id, &pairs(&long), &pairs("1"))
        .await
        .unwrap();
    server
        .log_pairs(&run.id, &pairs(&long), &pairs("2"))
        .await
        .unwrap();
    let other = server
        .log_pairs(&run.id, &pairs("other"), &BTreeMap::new())
        .await;
    assert!(
        other.unwrap_err().has_code("INVALID_PARAMETER_VALUE"),
        "parameters stand for good"
    );
    let found = find("a-1").await.unwrap();
    assert_eq!(found.params, pairs(&long));

    let set = DataSet {
        name: "micropy".to_owned(),
        digest: "d".repeat(36),
        source: json!({"uri": "s3://x"}).to_string(),
        context: "training".to_owned(),
        profile: None,
    };
    for _ in 0..2 {
        server
            .log_inputs(&run.id, std::slice::from_ref(&set))
            .await
            .unwrap();
    }
    server
        .update_run(&run.id, State::Finished, Some(2000))
        .await
        .unwrap();
    server
        .update_run(&run.id, State::Running, None)
        .await
        .unwrap();
    server
        .update_run(&run.id, State::Killed, Some(3000))
        .await
        .unwrap();
    let got = server
        .get("runs/get", &[("run_id", &run.id)])
        .await
        .unwrap();
    let info = &got["run"]["info"];
    assert_eq!(
        (info["status"].as_str(), info["end_time"].as_i64()),
        (Some("KILLED"), Some(3000))
    );
    assert_eq!(
        got["run"]["inputs"]["dataset_inputs"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        pair(&got["run"]["data"]["tags"], "key.149").as_deref(),
        Some("2")
    );
    assert_eq!(
        pair(&got["run"]["data"]["tags"], "mlflow.runName").as_deref(),
        Some("name")
    );

    server.register_model("m").await.unwrap();
    server.register_model("m").await.unwrap();
    assert_eq!(
        server.find_version("m", "checkpoint-1").await.unwrap(),
        None
    );
    for number in ["1", "2"] {
        let checkpoint = format!("checkpoint-{number}");
        let tags = BTreeMap::from([("wmtp.checkpoint".to_owned(), checkpoint.clone())]);
        let version = server
            .create_version("m", "s3://wmtp/a/b", Some(&run.id), "text", &tags)
            .await;
        assert_eq!(version.unwrap(), number);
        assert_eq!(
            server
                .find_version("m", &checkpoint)
                .await
                .unwrap()
                .as_deref(),
            Some(number)
        );
        server.set_alias("m", "staging", number).await.unwrap();
        let alias = server
            .get(
                "registered-models/alias",
                &[("name", "m"), ("alias", "staging")],
            )
            .await;
        assert_eq!(alias.unwrap()["model_version"]["version"], number);
    }
    assert!(
        server
            .set_alias("m", "staging", "7")
            .await
            .unwrap_err()
            .has_code("RESOURCE_DOES_NOT_EXIST")
    );
    let elsewhere = server.get("no/such-call", &[]).await.unwrap_err();
    assert!(!elsewhere.is_transient(), "{elsewhere}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contract_holds_on_the_recorded_server() {
    contract(Double::start().endpoint()).await;
}

/// A process that ends with its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_mlflow(environment: &Path, folder: &Path, port: u16) -> Process {
    let database = format!("sqlite:///{}", folder.join("mlflow.db").display());
    let server = Command::new(environment.join("bin/mlflow"))
        .args([
            "server",
            "--backend-store-uri",
            &database,
            "--workers",
            "1",
            "--host",
            "127.0.0.1",
            "--port",
        ])
        .arg(port.to_string())
        .current_dir(folder)
        .env("MLFLOW_DISABLE_TELEMETRY", "true")
        .env("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Process(server.unwrap())
}

#[expect(clippy::print_stderr, reason = "what is not tested must be seen")]
fn installed() -> Option<PathBuf> {
    let environment = std::env::var_os("WMTP_MLFLOW").map(PathBuf::from);
    if environment.is_none() {
        eprintln!("SKIPPED: MLflow; WMTP_MLFLOW does not name its environment");
    }
    environment
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it needs MLflow, which `make test-full` installs"]
async fn the_contract_holds_on_mlflow() {
    let Some(environment) = installed() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let port = Double::nowhere()
        .rsplit(':')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let _server = start_mlflow(&environment, folder.path(), port);
    let endpoint = format!("http://127.0.0.1:{port}");
    let probe = Server::new(&endpoint, &Access::default()).unwrap();
    for _ in 0..600 {
        if probe.find_experiment("Default").await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    contract(&endpoint).await;
}
