//! What the server keeps, and its recorded answers.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

const API: &str = "/api/2.0/mlflow/";
const ARTIFACTS: &str = "/api/2.0/mlflow-artifacts/artifacts/";
const LARGEST_REQUEST: usize = 1_000_000;

#[derive(Default)]
pub(crate) struct Model {
    experiments: Vec<Value>,
    runs: Vec<Run>,
    models: BTreeMap<String, Registered>,
    /// Files that were handed over.
    artifacts: BTreeMap<String, String>,
}

#[derive(Default)]
struct Run {
    info: Map<String, Value>,
    metrics: Vec<Value>,
    params: BTreeMap<String, String>,
    tags: BTreeMap<String, String>,
    datasets: Vec<Value>,
}

#[derive(Default)]
struct Registered {
    versions: Vec<Value>,
    aliases: BTreeMap<String, String>,
}

/// A refusal: status, code, message.
struct Refusal(u16, &'static str, String);

type Answer = Result<Value, Refusal>;

fn absent(message: String) -> Refusal {
    Refusal(404, "RESOURCE_DOES_NOT_EXIST", message)
}

fn invalid(message: String) -> Refusal {
    Refusal(400, "INVALID_PARAMETER_VALUE", message)
}

fn exists(message: String) -> Refusal {
    Refusal(400, "RESOURCE_ALREADY_EXISTS", message)
}

impl Model {
    pub(crate) fn answer(
        &mut self,
        method: &str,
        path: &str,
        query: &str,
        body: &[u8],
    ) -> (u16, String) {
        if let (Some(path), "PUT") = (path.strip_prefix(ARTIFACTS), method) {
            let text = String::from_utf8_lossy(body).into_owned();
            self.artifacts.insert(path.to_owned(), text);
            return (200, "{}".to_owned());
        }
        let Some(call) = path.strip_prefix(API) else {
            return (
                404,
                "<!doctype html><title>404 Not Found</title>".to_owned(),
            );
        };
        if body.len() > LARGEST_REQUEST {
            return (413, String::new());
        }
        let query: BTreeMap<String, String> = form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect();
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        match self.call(method, call, &query, &body) {
            Ok(reply) => (200, reply.to_string()),
            Err(Refusal(status, code, message)) => (
                status,
                json!({"error_code": code, "message": message}).to_string(),
            ),
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        let runs: Vec<Value> = self.runs.iter().map(Run::to_json).collect();
        let models: BTreeMap<&String, Value> = self
            .models
            .iter()
            .map(|(name, model)| {
                let held = json!({"versions": model.versions, "aliases": model.aliases});
                (name, held)
            })
            .collect();
        json!({
            "experiments": self.experiments,
            "runs": runs,
            "models": models,
            "artifacts": self.artifacts,
        })
    }

    fn call(
        &mut self,
        method: &str,
        call: &str,
        query: &BTreeMap<String, String>,
        body: &Value,
    ) -> Answer {
        let asked = |name: &str| query.get(name).cloned().unwrap_or_default();
        match (method, call) {
            ("GET", "experiments/get-by-name") => self.experiment(&asked("experiment_name")),
            ("POST", "experiments/create") => self.create_experiment(body),
            ("POST", "runs/create") => self.create_run(body),
            ("POST", "runs/search") => self.search_runs(body),
            ("POST", "runs/log-batch") => self.log_batch(body),
            ("POST", "runs/log-inputs") => self.log_inputs(body),
            ("POST", "runs/update") => self.update_run(body),
            ("GET", "runs/get") => Ok(json!({"run": self.run(&asked("run_id"))?.to_json()})),
            ("GET", "metrics/get-history") => self.history(&asked("run_id"), &asked("metric_key")),
            ("POST", "registered-models/create") => self.register(body),
            ("GET", "model-versions/search") => self.search_versions(&asked("filter")),
            ("POST", "model-versions/create") => self.create_version(body),
            ("POST", "registered-models/alias") => self.set_alias(body),
            ("GET", "registered-models/alias") => self.alias(&asked("name"), &asked("alias")),
            _ => Err(Refusal(404, "ENDPOINT_NOT_FOUND", call.to_owned())),
        }
    }

    fn experiment(&self, name: &str) -> Answer {
        let found = self.experiments.iter().find(|found| found["name"] == name);
        found
            .map(|found| json!({"experiment": found}))
            .ok_or_else(|| absent(format!("Could not find experiment with name '{name}'")))
    }

    fn create_experiment(&mut self, body: &Value) -> Answer {
        let name = text(body, "name");
        if self.experiment(&name).is_ok() {
            return Err(exists(format!("Experiment(name={name}) already exists.")));
        }
        let id = (self.experiments.len() + 1).to_string();
        let default = json!(format!("mlflow-artifacts:/{id}"));
        self.experiments.push(json!({
            "experiment_id": id,
            "name": name,
            "artifact_location": body.get("artifact_location").unwrap_or(&default),
            "lifecycle_stage": "active",
        }));
        Ok(json!({"experiment_id": id}))
    }

    fn create_run(&mut self, body: &Value) -> Answer {
        let experiment = text(body, "experiment_id");
        let found = self
            .experiments
            .iter()
            .find(|found| found["experiment_id"] == experiment.as_str())
            .ok_or_else(|| absent(format!("No Experiment with id={experiment} exists")))?;
        let id = format!("{:032x}", self.runs.len() + 1);
        let location = text(found, "artifact_location");
        let info = json!({
            "run_uuid": id,
            "run_id": id,
            "experiment_id": experiment,
            "run_name": body["run_name"],
            "status": "RUNNING",
            "start_time": body["start_time"],
            "artifact_uri": format!("{location}/{id}/artifacts"),
            "lifecycle_stage": "active",
        });
        let mut run = Run {
            info: info.as_object().cloned().unwrap_or_default(),
            tags: pairs(&body["tags"]),
            ..Run::default()
        };
        run.tags
            .insert("mlflow.runName".to_owned(), text(body, "run_name"));
        let reply = json!({"run": run.to_json()});
        self.runs.push(run);
        Ok(reply)
    }

    /// Of filters it knows conjunctions of equal tags.
    fn search_runs(&self, body: &Value) -> Answer {
        let filter = text(body, "filter");
        let mut wanted = Vec::new();
        for term in filter.split(" and ").filter(|term| !term.is_empty()) {
            let parsed = term
                .strip_prefix("tags.`")
                .and_then(|rest| rest.split_once("` = '"))
                .and_then(|(name, rest)| Some((name, rest.strip_suffix('\'')?)));
            wanted.push(
                parsed.ok_or_else(|| {
                    invalid(format!("Invalid clause(s) in filter string: '{term}'"))
                })?,
            );
        }
        let experiments = body["experiment_ids"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let found: Vec<Value> = self
            .runs
            .iter()
            .filter(|run| experiments.contains(&run.info["experiment_id"]))
            .filter(|run| {
                let has = |(name, value): &(&str, &str)| {
                    run.tags.get(*name).is_some_and(|own| own == value)
                };
                wanted.iter().all(has)
            })
            .map(Run::to_json)
            .collect();
        Ok(if found.is_empty() {
            json!({})
        } else {
            json!({"runs": found})
        })
    }

    fn run(&self, id: &str) -> Result<&Run, Refusal> {
        let found = self.runs.iter().find(|run| run.info["run_id"] == id);
        found.ok_or_else(|| absent(format!("Run with id={id} not found")))
    }

    fn run_mut(&mut self, body: &Value) -> Result<&mut Run, Refusal> {
        let id = text(body, "run_id");
        let found = self
            .runs
            .iter_mut()
            .find(|run| run.info["run_id"] == id.as_str());
        found.ok_or_else(|| absent(format!("Run with id={id} not found")))
    }

    fn log_batch(&mut self, body: &Value) -> Answer {
        let list = |name: &str| body[name].as_array().cloned().unwrap_or_default();
        let (metrics, params, tags) = (list("metrics"), list("params"), list("tags"));
        for (what, found, most) in [
            ("metrics", metrics.len(), 1000),
            ("params", params.len(), 100),
            ("tags", tags.len(), 100),
            (
                "metrics, params, and tags",
                metrics.len() + params.len() + tags.len(),
                1000,
            ),
        ] {
            if found > most {
                return Err(invalid(format!(
                    "A batch logging request can contain at most {most} {what}. Got {found} {what}. Please split up \
                     {what} across multiple requests and try again."
                )));
            }
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_-. :/".contains(c);
        for entry in metrics.iter().chain(&params).chain(&tags) {
            let key = text(entry, "key");
            if key.is_empty() || key.len() > 250 || !key.chars().all(allowed) {
                return Err(invalid(format!(
                    "Invalid value \"{key}\" for parameter 'metrics[0].name' supplied"
                )));
            }
        }
        let run = self.run_mut(body)?;
        for (key, value) in pairs(&body["params"]) {
            if run.params.get(&key).is_some_and(|old| *old != value) {
                return Err(invalid(format!(
                    "Changing param values is not allowed. Params were already logged='[{{'key': '{key}'"
                )));
            }
        }
        for metric in metrics {
            let point = json!({
                "key": metric["key"],
                "value": metric["value"],
                "timestamp": metric["timestamp"],
                "step": metric["step"],
            });
            if !run.metrics.contains(&point) {
                run.metrics.push(point);
            }
        }
        run.params.extend(pairs(&body["params"]));
        run.tags.extend(pairs(&body["tags"]));
        Ok(json!({}))
    }

    fn log_inputs(&mut self, body: &Value) -> Answer {
        let datasets = body["datasets"].as_array().cloned().unwrap_or_default();
        if let Some(set) = datasets
            .iter()
            .find(|set| text(&set["dataset"], "digest").len() > 36)
        {
            return Err(invalid(format!(
                "Dataset digest exceeds the maximum length of 36: {set}"
            )));
        }
        let run = self.run_mut(body)?;
        for set in datasets {
            if !run.datasets.contains(&set) {
                run.datasets.push(set);
            }
        }
        Ok(json!({}))
    }

    fn update_run(&mut self, body: &Value) -> Answer {
        let run = self.run_mut(body)?;
        // A status that it does not know it passes over.
        let known = ["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"];
        if known.iter().any(|status| body["status"] == *status) {
            run.info.insert("status".to_owned(), body["status"].clone());
        }
        if let Some(end) = body.get("end_time") {
            run.info.insert("end_time".to_owned(), end.clone());
        }
        Ok(json!({"run_info": run.info}))
    }

    fn history(&self, run: &str, key: &str) -> Answer {
        let metrics = &self.run(run)?.metrics;
        let of_key: Vec<&Value> = metrics.iter().filter(|point| point["key"] == key).collect();
        Ok(json!({"metrics": of_key}))
    }

    fn register(&mut self, body: &Value) -> Answer {
        let name = text(body, "name");
        if self.models.contains_key(&name) {
            return Err(exists(format!(
                "Registered Model (name={name}) already exists."
            )));
        }
        self.models.insert(name.clone(), Registered::default());
        Ok(json!({"registered_model": {"name": name}}))
    }

    fn search_versions(&self, filter: &str) -> Answer {
        let name = filter
            .strip_prefix("name = '")
            .and_then(|rest| rest.strip_suffix('\''))
            .ok_or_else(|| invalid(format!("Invalid filter '{filter}'")))?;
        let versions = self.models.get(name).map(|model| &model.versions);
        Ok(match versions {
            Some(versions) if !versions.is_empty() => json!({"model_versions": versions}),
            _ => json!({}),
        })
    }

    fn create_version(&mut self, body: &Value) -> Answer {
        let name = text(body, "name");
        let model = self
            .models
            .get_mut(&name)
            .ok_or_else(|| absent(format!("Registered Model with name={name} not found")))?;
        let mut version = body.clone();
        version["version"] = (model.versions.len() + 1).to_string().into();
        version["status"] = "READY".into();
        model.versions.push(version.clone());
        Ok(json!({"model_version": version}))
    }

    fn set_alias(&mut self, body: &Value) -> Answer {
        let (name, alias, version) = (
            text(body, "name"),
            text(body, "alias"),
            text(body, "version"),
        );
        let is_there = |version_of: &Value| version_of["version"] == version.as_str();
        let model = self.models.get_mut(&name);
        let model = model.filter(|model| model.versions.iter().any(is_there));
        let model = model.ok_or_else(|| {
            absent(format!(
                "Model Version (name={name}, version={version}) not found"
            ))
        })?;
        model.aliases.insert(alias, version);
        Ok(json!({}))
    }

    fn alias(&self, name: &str, alias: &str) -> Answer {
        let model = self.models.get(name);
        let version = model.and_then(|model| {
            let number = model.aliases.get(alias)?;
            model
                .versions
                .iter()
                .find(|version| version["version"] == number.as_str())
        });
        version
            .map(|version| json!({"model_version": version}))
            .ok_or_else(|| invalid(format!("Registered model alias {alias} not found.")))
    }
}

impl Run {
    fn to_json(&self) -> Value {
        // Of each metric the point of the largest step, and of those the latest.
        let mut newest: BTreeMap<String, &Value> = BTreeMap::new();
        let order = |point: &Value| (point["step"].as_i64(), point["timestamp"].as_i64());
        for point in &self.metrics {
            let slot = newest.entry(text(point, "key")).or_insert(point);
            if order(point) >= order(slot) {
                *slot = point;
            }
        }
        json!({
            "info": self.info,
            "data": {
                "metrics": newest.values().collect::<Vec<_>>(),
                "params": listed(&self.params),
                "tags": listed(&self.tags),
            },
            "inputs": {"dataset_inputs": self.datasets},
            "history": self.metrics,
        })
    }
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

fn pairs(entries: &Value) -> BTreeMap<String, String> {
    let entries = entries.as_array().into_iter().flatten();
    entries
        .map(|entry| (text(entry, "key"), text(entry, "value")))
        .collect()
}

fn listed(entries: &BTreeMap<String, String>) -> Vec<Value> {
    let entry = |(key, value): (&String, &String)| json!({"key": key, "value": value});
    entries.iter().map(entry).collect()
}
