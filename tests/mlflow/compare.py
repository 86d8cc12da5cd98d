"""Holds what an MLflow server says of a store's runs against what the store itself holds.

    compare.py TRACKING_URI s3://BUCKET/PREFIX REVISION

Reads the server through MLflow's own client and its variables, and the store object by object through boto3 and the AWS ones. What is
expected is worked out here anew, from run requests, events, manifests and files, and shares no code with what sent it.
REVISION is the commit that the jobs were told they are of.
Prints what was compared as one JSON object; ends with 1 and every difference where there is one.
"""

import hashlib
import json
import math
import os
import sys
from collections import defaultdict
from datetime import datetime

import boto3
from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

LIVE = {
    "train_loss": "train/loss",
    "train_loss_unweighted": "train/loss_unweighted",
    "tokens_per_second": "perf/tokens_per_sec",
    "padded_tokens_per_second": "perf/padded_tokens_per_sec",
    "samples_per_second": "perf/samples_per_sec",
    "epoch_secs": "perf/epoch_time_sec",
    "step_secs": "perf/step_time_sec",
    "mfu": "perf/mfu",
}
FILES = {
    "value-model": ("summary.json", {
        "pairwise_accuracy": "value/pairwise_acc", "same_length_accuracy": "value/same_length_acc",
        "explained_variance": "value/explained_variance", "mean_value": "value/mean", "std_value": "value/std", "auc": "value/auc", "margin": "value/margin", "calibration_error": "value/ece",
        "best_validation_loss": "val/best_loss"}),
    "advantages": ("advantages.json", {"mean": "advantage/mean", "std": "advantage/std"}),
    "reference-ce": ("summary.json", {"mean_train_ce": "rho1/ref_ce", "best_validation_loss": "val/best_loss"}),
    "checkpoint": ("summary.json", {"best_validation_loss": "val/best_loss"}),
}
STAGES = {"train-stage1": "stage1", "train-stage2": "stage2"}


class Store:
    """The store's objects, read without the project's own code."""

    def __init__(self, uri):
        self.uri = uri.rstrip("/")
        self.bucket, _, self.prefix = self.uri[len("s3://"):].partition("/")
        self.client = boto3.client("s3")

    def keys(self, start):
        full = f"{self.prefix}/{start}"
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=full)
        found = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return sorted(key[len(self.prefix) + 1:] for key in found)

    def bytes(self, key):
        return self.client.get_object(Bucket=self.bucket, Key=f"{self.prefix}/{key}")["Body"].read()

    def json(self, key, **options):
        return json.loads(self.bytes(key), **options)

    def manifest_key(self, artifact):
        return f"v1/artifacts/{artifact.rsplit('-', 1)[0]}/{artifact}/manifest.json"

    def manifest(self, artifact):
        return self.json(self.manifest_key(artifact))

    def blob_key(self, digest):
        return f"v1/blobs/sha256/{digest[:2]}/{digest}"

    def file(self, manifest, path):
        for entry in manifest["content"]["files"]:
            if entry["path"] == path:
                return self.bytes(self.blob_key(entry["sha256"]))
        return None


def millis(text):
    """Whole milliseconds of a time with up to nine digits behind the point."""
    seconds, _, rest = text.rstrip("Z").partition(".")
    whole = datetime.fromisoformat(seconds + "+00:00").timestamp()
    return int(whole) * 1000 + int((rest + "000")[:3])


def metric_name(name):
    if name in LIVE:
        return LIVE[name]
    group, _, rest = name.partition("_")
    if group == "validation":
        return f"val/{rest}"
    return f"{group}/{rest}" if group in ("weight", "td", "value", "rho1", "system") else f"train/{name}"


class Spelled(str):
    """A number as it is spelled."""


def flat(value, key=""):
    if isinstance(value, dict):
        for name, member in value.items():
            yield from flat(member, f"{key}.{name}" if key else name)
    elif isinstance(value, str):
        yield key, str(value)
    else:
        yield key, json.dumps(value, separators=(",", ":"))


class Comparison:
    def __init__(self, tracking, store, revision):
        self.revision = revision
        self.client = MlflowClient(tracking)
        self.tracking = tracking
        self.store = Store(store)
        self.differences = []
        self.counted = defaultdict(int)

    def same(self, what, found, expected):
        if found == expected:
            return
        if isinstance(found, dict) and isinstance(expected, dict):
            for key in sorted(set(found) | set(expected)):
                self.same(f"{what} {key}", found.get(key), expected.get(key))
        else:
            self.differences.append(f"{what}: the server says {found!r}, the store {expected!r}")

    def all(self):
        # Decimals of a recipe as they are spelled.
        requests = [self.store.json(key, parse_float=Spelled) for key in self.store.keys("v1/runs/")
                    if key.endswith("/run.json")]
        with_recipe = [request for request in requests if request["recipe"]]
        experiments = self.client.search_experiments(view_type=ViewType.ACTIVE_ONLY, filter_string="name LIKE 'mtp/%'")
        runs = self.client.search_runs([experiment.experiment_id for experiment in experiments], max_results=5000)
        runs = [run for run in runs if run.data.tags["storage_sync"] == self.store.uri]
        self.by_id = {run.data.tags["wmtp.run_id"]: run for run in runs}
        self.same("number of runs", len(runs), len(with_recipe))
        self.same("runs", sorted(self.by_id), sorted(request["run_id"] for request in with_recipe))
        names = {experiment.experiment_id: experiment for experiment in experiments}
        for request in with_recipe:
            run = self.by_id.get(request["run_id"])
            if run is not None:
                self.run(request, run, names[run.info.experiment_id])
        self.registry()

    def run(self, request, run, experiment):
        self.counted["runs"] += 1
        name, of = request["run_id"], request["recipe"]["experiment"]
        self.same(f"{name}: experiment", experiment.name, f"mtp/{of['algo']}/{of['dataset']}")
        # In the store whose run was the experiment's first.
        folder = f"/mlflow/{experiment.name.replace('/', '-')}"
        self.same(f"{name}: artifacts of its experiment", experiment.artifact_location[-len(folder):], folder)
        events, attempts = self.events(name)
        result = self.result(name)
        self.state(name, run, request, events, result)
        self.params(name, run, request)
        self.tags(name, run, request, events, attempts, result)
        self.metrics(name, run, events, result)
        self.data_sets(name, run, request)
        if result:
            self.artifacts(name, run, request, result)

    def events(self, run):
        found, attempts = [], set()
        for key in self.store.keys(f"v1/runs/{run}/attempts/"):
            attempts.add(int(key.split("/")[4]))
            if "/events/" in key:
                found += [json.loads(line) for line in self.store.bytes(key).splitlines() if line]
        return found, attempts

    def result(self, run):
        return self.store.json(f"v1/runs/{run}/result.json") if f"v1/runs/{run}/result.json" in self.store.keys(
            f"v1/runs/{run}/result.json") else None

    def state(self, name, run, request, events, result):
        ends = [event for event in events if event["type"] in ("started", "completed", "failed", "preempted")]
        states = {"started": "RUNNING", "completed": "FINISHED", "failed": "FAILED", "preempted": "KILLED"}
        self.same(f"{name}: state", run.info.status, "FINISHED" if result else states[ends[-1]["type"]])
        completed = [event for event in events if event["type"] == "completed"]
        if completed:
            self.same(f"{name}: end", run.info.end_time, millis(completed[-1]["ts"]))
        self.same(f"{name}: name", run.info.run_name, request["labels"].get("name", name))

    def params(self, name, run, request):
        recipe = request["recipe"]
        expected = dict(flat(recipe))
        expected |= {f"input.{entry['role']}": entry["id"] for entry in request["inputs"]}
        expected["n_heads"] = str(recipe["model"]["horizon"])
        expected["code_revision"] = self.revision
        # Decimals are hashed as they are spelled.
        canonical = json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        expected["config_hash"] = hashlib.sha256(canonical.encode()).hexdigest()
        expected["cache_key"] = request["cache_key"]
        for entry in request["inputs"]:
            if entry["role"] == "data":
                expected["data_hash"] = entry["id"].rsplit("-", 1)[1]
        if request["job"].startswith("train-"):
            expected["optimizer"] = "adamw"
        found = dict(run.data.params)
        manifest = self.result(name)
        if manifest:
            made = self.store.manifest(next(iter(manifest["outputs"].values())))
            # The hash in the manifest is that of the artifact's first maker.
            if made["producer"]["run_id"] == name:
                self.same(f"{name}: hash of its recipe", expected["config_hash"], made["recipe_hash"])
                code = made["producer"]["code"]
                told = code["commit"] + ("-dirty" if code.get("dirty") else "")
                self.same(f"{name}: commit in its manifest", self.revision, told)
        self.same(f"{name}: parameters", found, expected)
        self.counted["parameters"] += len(found)

    def tags(self, name, run, request, events, attempts, result):
        recipe, found = request["recipe"], run.data.tags
        expected = {
            "algo": recipe["experiment"]["algo"],
            "dataset": recipe["experiment"]["dataset"],
            "stage": STAGES.get(request["job"], request["job"]),
            "model_version": recipe["version"]["id"],
            "storage_sync": self.store.uri,
            "wmtp.job": request["job"],
            "wmtp.attempt": str(max(attempts)),
            "parent_version": recipe["version"]["parent"],
        }
        for role, artifact in (result or {"outputs": {}})["outputs"].items():
            expected[f"artifact.{role}"] = f"{self.store.uri}/{self.store.manifest_key(artifact)}"
            if artifact.startswith("scores-"):
                judged = self.store.manifest(artifact)["content"]["attributes"]
                expected |= {"model_version": judged["version_id"], "algo": judged["algo"]}
        dull = {metric_name(key) for event in events if event["type"] == "metrics"
                for key, value in event["data"]["values"].items() if value is None}
        expected["non_finite_metrics"] = ", ".join(sorted(dull)) or None
        for kind in ("checkpoint", "advantages", "reference-ce"):
            of_kind = [entry["id"] for entry in request["inputs"] if entry["id"].startswith(f"{kind}-")]
            if of_kind:
                parent = self.store.manifest(of_kind[0])["producer"]["run_id"]
                expected["parent_run"] = parent
                other = self.by_id.get(parent)
                if other is not None and other.info.experiment_id == run.info.experiment_id:
                    expected["mlflow.parentRunId"] = other.info.run_id
                break
        for key, value in expected.items():
            self.same(f"{name}: tag {key}", found.get(key), value)
            self.counted["tags"] += 1

    def metrics(self, name, run, events, result):
        expected = defaultdict(set)
        for event in events:
            if event["type"] == "metrics":
                for key, value in event["data"]["values"].items():
                    if value is not None:
                        point = (millis(event["ts"]), event["data"]["step"], float(value))
                        expected[metric_name(key)].add(point)
        for artifact in (result or {"outputs": {}})["outputs"].values():
            manifest = self.store.manifest(artifact)
            at = millis(manifest["created_at"])
            for key, value in self.figures(manifest):
                if value is not None and math.isfinite(value):
                    expected[key].add((at, 0, float(value)))
            self.steps(name, manifest, expected)
        self.same(f"{name}: names of metrics", sorted(run.data.metrics), sorted(expected))
        for key, points in expected.items():
            history = self.client.get_metric_history(run.info.run_id, key)
            found = [(point.timestamp, point.step, point.value) for point in history]
            self.same(f"{name}: points of {key}", sorted(found), sorted(points))
            self.counted["points"] += len(found)

    def figures(self, manifest):
        kind = manifest["kind"]
        if kind == "scores":
            score = json.loads(self.store.file(manifest, "eval_score.json"))
            for metric in score["metrics"]:
                yield f"{score['dataset_id']}/{metric['name']}", metric["value"]
            yield f"{score['dataset_id']}/latency_ms", score["latency_ms"]
        elif kind in FILES:
            path, names = FILES[kind]
            found = json.loads(self.store.file(manifest, path))
            for own, theirs in names.items():
                if found.get(own) is not None:
                    yield theirs, found[own]

    def steps(self, name, manifest, expected):
        """Every step that the artifact itself tells of stands on the server with the same value."""
        files = {"metrics.jsonl": metric_name, "weights.jsonl": None}
        for path, naming in files.items():
            if manifest["producer"]["run_id"] != name:
                continue
            text = self.store.file(manifest, path)
            for line in (text or b"").splitlines():
                row = json.loads(line)
                step, head = row.pop("step"), row.pop("head", None)
                for key, value in row.items():
                    if naming is None:
                        key = {"clip_low": "clip_ratio_low", "clip_high": "clip_ratio_high"}.get(key, key)
                        if key == "count":
                            continue
                        theirs = f"weight/{key}" + (f"_head_{head}" if head is not None else "")
                    else:
                        theirs = naming(key)
                    values = {point[2] for point in expected[theirs] if point[1] == step}
                    self.same(f"{name}: {theirs} at step {step} of {path}", values, {float(value)})
                    self.counted["points of artifacts"] += 1

    def data_sets(self, name, run, request):
        expected = []
        for entry in request["inputs"]:
            kind, digits = entry["id"].rsplit("-", 1)
            if kind in ("raw-data", "processed-data"):
                named = request["recipe"]["experiment"]["dataset"] if entry["role"] == "data" else entry["role"]
                uri = f"{self.store.uri}/{self.store.manifest_key(entry['id'])}"
                expected.append((named, digits[:36], uri))
        found = [(entry.dataset.name, entry.dataset.digest, json.loads(entry.dataset.source)["uri"])
                 for entry in run.inputs.dataset_inputs]
        self.same(f"{name}: data sets", sorted(found), sorted(expected))
        self.counted["data sets"] += len(found)

    def artifacts(self, name, run, request, result):
        listed = [entry.path for entry in self.client.list_artifacts(run.info.run_id)]
        self.same(f"{name}: artifacts", listed, ["artifacts.json"])
        if not listed:
            return
        query = {"path": "artifacts.json", "run_uuid": run.info.run_id}
        reply = http_request(get_default_host_creds(self.tracking), "/get-artifact", "GET", params=query)
        if reply.status_code != 200:
            self.differences.append(f"{name}: artifacts.json: {reply.status_code} {reply.text[:200]}")
            return
        index = reply.json()
        self.same(f"{name}: run of the index", index["run_id"], name)
        outputs = {entry["role"]: entry["id"] for entry in index["outputs"]}
        self.same(f"{name}: outputs", outputs, result["outputs"])
        inputs = [(entry["role"], entry["id"]) for entry in index["inputs"]]
        self.same(f"{name}: inputs", inputs, [(entry["role"], entry["id"]) for entry in request["inputs"]])
        for entry in index["outputs"]:
            manifest = self.store.manifest(entry["id"])
            expected = [(file["path"], file["size"], file["sha256"]) for file in manifest["content"]["files"]]
            found = [(file["path"], file["size"], file["sha256"]) for file in entry["files"]]
            self.same(f"{name}: files of {entry['id']}", found, expected)
            self.same(f"{name}: attributes of {entry['id']}", entry["attributes"], manifest["content"]["attributes"])
            for file in entry["files"]:
                key = file["uri"][len(self.store.uri) + 1:]
                digest = hashlib.sha256(self.store.bytes(key)).hexdigest()
                self.same(f"{name}: content at {file['uri']}", digest, file["sha256"])
                self.counted["files by address"] += 1

    def registry(self):
        expected = defaultdict(dict)
        for key in self.store.keys("v1/names/checkpoint/"):
            name = key.split("/")[3]
            for alias in ("staging", "production"):
                if name.endswith(f"-{alias}"):
                    # Keys are sorted: the newest generation is the last.
                    expected[name[:-len(alias) - 1]][alias] = self.store.json(key)["artifact"]
        found = {}
        for model in self.client.search_registered_models():
            versions = self.client.search_model_versions(f"name = '{model.name}'")
            if any(version.source.startswith(f"{self.store.uri}/") for version in versions):
                found[model.name] = model
        self.same("registered models", sorted(found), sorted(expected))
        for model, aliases in expected.items():
            if model not in found:
                continue
            self.same(f"aliases of {model}", sorted(found[model].aliases), sorted(aliases))
            versions = self.client.search_model_versions(f"name = '{model}'")
            self.same(f"versions of {model}", len(versions), len(set(aliases.values())))
            for alias, checkpoint in aliases.items():
                if alias not in found[model].aliases:
                    continue
                version = self.client.get_model_version_by_alias(model, alias)
                manifest = self.store.manifest(checkpoint)
                self.same(f"{alias} of {model}", version.tags["wmtp.checkpoint"], checkpoint)
                source = f"{self.store.uri}/{self.store.manifest_key(checkpoint)}"
                self.same(f"source of {alias} of {model}", version.source, source)
                producer = self.by_id[manifest["producer"]["run_id"]]
                self.same(f"run of {alias} of {model}", version.run_id, producer.info.run_id)
                for key, value in manifest["content"]["attributes"].items():
                    self.same(f"tag {key} of {alias} of {model}", version.tags.get(key), value)
                self.counted["aliases"] += 1


def main():
    tracking, store, revision = sys.argv[1:]
    # boto3 finds its server under the name that the jobs use; MLflow's own artifact code wants another.
    os.environ.setdefault("MLFLOW_S3_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT_URL_S3", ""))
    comparison = Comparison(tracking.rstrip("/"), store, revision)
    comparison.all()
    print(json.dumps({"compared": comparison.counted, "differences": len(comparison.differences)}))
    for difference in comparison.differences[:50]:
        print(difference, file=sys.stderr)
    sys.exit(1 if comparison.differences else 0)


if __name__ == "__main__":
    main()
