//! The specs in the repository are those that the model renders, and the plan says what they cost.

use std::collections::BTreeMap;
use std::path::Path;

use crate::place::{Place, home};

/// Experiments whose specs are in the repository, each with its profile.
const EXPERIMENTS: [(&str, &str); 8] = [
    ("baseline", "example.yaml"),
    ("verifiable", "example.yaml"),
    ("rho1", "example.yaml"),
    ("random-matched", "example.yaml"),
    ("shuffled", "example.yaml"),
    ("beside-outside", "example.yaml"),
    ("sharded", "example.yaml"),
    ("mbpp-7b", "four-gpus.yaml"),
];

fn files(folder: &Path) -> BTreeMap<String, String> {
    std::fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("files have names");
            let text = std::fs::read_to_string(&path).expect("a text");
            (name.to_string_lossy().into_owned(), text)
        })
        .collect()
}

#[test]
fn specs_in_the_repository_are_those_that_the_model_renders() {
    let place = Place::new();
    for (experiment, profile) in EXPERIMENTS {
        place
            .with("render", experiment, profile, &["--out", experiment])
            .expect(0);
        let (made, kept) = (
            files(&place.path(experiment)),
            files(&home().join("specs").join(experiment)),
        );
        let names = |files: &BTreeMap<String, String>| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(
            names(&made),
            names(&kept),
            "`make vessl-specs` renders them anew"
        );
        for (name, text) in made {
            assert_eq!(
                text, kept[&name],
                "{experiment}/{name}: `make vessl-specs` renders it anew"
            );
        }
    }
}

#[test]
fn other_forms_in_the_repository_are_those_that_the_model_renders() {
    let place = Place::new();
    for form in ["cloud", "argo"] {
        for experiment in ["verifiable", "sharded"] {
            let arguments = ["--form", form, "--out", form];
            place
                .with("render", experiment, "example.yaml", &arguments)
                .expect(0);
        }
        let kept = files(&home().join(form));
        assert_eq!(
            files(&place.path(form)),
            kept,
            "`make vessl-specs` renders it anew"
        );
    }
}

#[test]
fn the_client_of_vessl_cloud_is_given_what_the_spec_says() {
    let place = Place::new();
    place
        .with(
            "render",
            "verifiable",
            "profile.yaml",
            &["--form", "cloud", "--out", "cloud"],
        )
        .expect(0);
    let calls: serde_json::Value =
        serde_json::from_str(&place.read("cloud/verifiable.json")).expect("a list");
    let calls = calls.as_array().expect("a list");
    let ids: Vec<&str> = calls
        .iter()
        .filter_map(|call| call["id"].as_str())
        .collect();
    assert_eq!(ids.last(), Some(&"site"), "{ids:?}");
    let train = calls
        .iter()
        .find(|call| call["id"] == "train-v002-s42")
        .expect("the step");
    let arguments: Vec<&str> = train["arguments"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(serde_json::Value::as_str)
        .collect();
    let follows = |flag: &str, value: &str| arguments.windows(2).any(|pair| pair == [flag, value]);
    assert!(follows("-r", "resourcespec-a100x1"));
    assert!(follows("--env", "WMTP_DEVICE=cuda"));
    assert!(follows("--secret", "AWS_SECRET_ACCESS_KEY=wmtp-s3-secret"));
    assert!(follows(
        "--cmd",
        "train-stage2 --set seed=42 --data micropy --base micropy-mtp --advantages micropy --name micropy-v002-s42"
    ));
    place.write(
        "bare.yaml",
        &place
            .read("profile.yaml")
            .replace("one_gpu: resourcespec-a100x1", ""),
    );
    place
        .with(
            "render",
            "verifiable",
            "bare.yaml",
            &["--form", "cloud", "--out", "x"],
        )
        .expect(2)
        .says(&["cloud.one_gpu: is missing"]);
}

/// A stored model has a tokenizer of its own: the data set is made with it, and every model shares it.
#[test]
fn a_stored_policy_lends_its_tokenizer_and_trains_on_four_cards() {
    let place = Place::new();
    place
        .with("render", "mbpp-7b", "four-gpus.yaml", &["--out", "specs"])
        .expect(0);
    let specs: Vec<serde_json::Value> = files(&place.path("specs"))
        .values()
        .map(|text| serde_saphyr::from_str(text).expect("a spec"))
        .collect();
    let command = |spec: &serde_json::Value| spec["run"][0]["command"].clone();
    let commands: Vec<_> = specs.iter().map(command).collect();
    let base = "--data mbpp --base meta-llama-mtp";
    let small = "--data mbpp --base ref-sheared-llama-2.7b";
    assert_eq!(
        commands[..5],
        [
            "prepare-data --raw mbpp --tokenizer meta-llama-mtp --name mbpp".to_owned(),
            format!("train-stage1 --objective value {small} --name mbpp"),
            format!("train-stage1 --objective reference {small} --name mbpp"),
            format!("evaluate {base} --reference-ce mbpp --name mbpp-base"),
            format!("train-stage2 --set seed=42 {base} --name mbpp-v001-s42"),
        ]
    );
    for spec in &specs {
        let is_training = command(spec)
            .as_str()
            .is_some_and(|words| words.starts_with("train-"));
        let is_shared =
            spec["resources"]["preset"] == "gpu-a100-80g-large" && spec["env"]["WMTP_RANKS"] == "4";
        assert_eq!(is_shared, is_training, "{spec}");
    }

    // What is created gets the tokenizer of a stored reference through the data set, where a version compares with it.
    let home = crate::place::home();
    let text = std::fs::read_to_string(home.join("experiments/rho1.yaml")).expect("the experiment");
    let recipes = home.join("../storage").display().to_string();
    let text = text.replace("../../storage", &recipes);
    let first = |text: &str| {
        place.write("e.yaml", text);
        let inputs = [
            "--experiment",
            "e.yaml",
            "--profile",
            "profile.yaml",
            "--out",
            "e",
        ];
        place.run(&[&["render"], &inputs[..]].concat()).expect(0);
        let spec: serde_json::Value =
            serde_saphyr::from_str(&place.read("e/01-data-set.yaml")).expect("a spec");
        command(&spec)
    };
    let stored = text.replace(
        "reference: {create: micro-ref}",
        "reference: {stored: big-ref}",
    );
    assert_eq!(
        first(&stored),
        "prepare-data --tokenizer big-ref --name micropy"
    );
    let unused = stored.replace(&format!("  - {recipes}/recipes/micropy/v003.yaml\n"), "");
    assert_ne!(unused, stored);
    assert_eq!(first(&unused), "prepare-data --name micropy");
}

/// The example for four cards says nothing else than the other one.
#[test]
fn the_profiles_differ_in_the_machines_of_training_alone() {
    let place = Place::new();
    let one_card = place.read("example.yaml");
    let jobs = "jobs: {train-stage1: four_gpus, train-stage2: four_gpus}\n";
    assert_eq!(
        place.read("four-gpus.yaml"),
        one_card.replace("jobs: {}\n", jobs)
    );
}

/// Runs are tracked where the profile names a server; its token stands nowhere but at VESSL.
#[test]
fn a_profile_leads_every_run_to_a_tracking_server() {
    let place = Place::new();
    let profile = place
        .read("example.yaml")
        .replacen(
            "env:\n",
            "env:\n  MLFLOW_TRACKING_URI: https://mlflow.example.org\n",
            1,
        )
        .replacen(
            "secrets:\n",
            "secrets:\n  MLFLOW_TRACKING_TOKEN: wmtp-mlflow\n",
            1,
        );
    place.write("tracked.yaml", &profile);
    place
        .with("render", "verifiable", "tracked.yaml", &["--out", "specs"])
        .expect(0);
    for (name, spec) in files(&place.path("specs")) {
        assert!(
            spec.contains("  MLFLOW_TRACKING_URI: https://mlflow.example.org\n"),
            "{name}: {spec}"
        );
        assert!(
            spec.contains("  MLFLOW_TRACKING_TOKEN:\n    secret: wmtp-mlflow\n"),
            "{name}: {spec}"
        );
    }
    let written_down =
        profile.replacen("env:\n", "env:\n  MLFLOW_TRACKING_PASSWORD: anything\n", 1);
    place.write("bad.yaml", &written_down);
    place
        .with("render", "verifiable", "bad.yaml", &["--out", "x"])
        .expect(2)
        .says(&["env.MLFLOW_TRACKING_PASSWORD: a secret must not be written down"]);
}

/// Executing programs needs no GPU, whatever evaluating a model runs on.
#[test]
fn a_model_from_outside_is_judged_on_a_machine_without_a_gpu() {
    let place = Place::new();
    let spec = |profile: &str, out: &str| -> serde_json::Value {
        place
            .with("render", "beside-outside", profile, &["--out", out])
            .expect(0);
        let name = format!("{out}/04-evaluate-external-big-model.yaml");
        serde_saphyr::from_str(&place.read(&name)).expect("a spec")
    };
    let usual = spec("profile.yaml", "usual");
    assert_eq!(
        usual["run"][0]["command"],
        "evaluate external --data micropy --stored big-model --name micropy-external-big-model"
    );
    assert_eq!(usual["resources"]["preset"], "cpu-small");
    assert!(usual["env"]["WMTP_DEVICE"].is_null());
    let leaderboard = place.read("usual/07-leaderboard.yaml");
    assert!(
        leaderboard.contains("--scores micropy-base,micropy-external-big-model,micropy-v001-s42 "),
        "{leaderboard}"
    );
    let profile = place
        .read("profile.yaml")
        .replace("jobs: {}", "jobs: {evaluate-external: one_gpu}");
    place.write("large.yaml", &profile);
    let large = spec("large.yaml", "large");
    assert_eq!(large["resources"]["preset"], "gpu-a100-80g-small");
}

/// Texts of different devices are not parts of one whole, so shards go where `evaluate` goes.
#[test]
fn an_evaluation_is_cut_into_runs_that_one_run_puts_together() {
    let place = Place::new();
    let profile = place
        .read("profile.yaml")
        .replace("jobs: {}", "jobs: {evaluate: cpu}");
    place.write("cpu.yaml", &profile);
    for (profile, preset, device) in [
        ("profile.yaml", "gpu-a100-80g-small", "cuda"),
        ("cpu.yaml", "cpu-small", "cpu"),
    ] {
        place
            .with("render", "sharded", profile, &["--out", preset])
            .expect(0);
        let spec = |name: &str| -> serde_json::Value {
            let text = place.read(&format!("{preset}/{name}.yaml"));
            serde_saphyr::from_str(&text).expect("a spec")
        };
        let parts = [
            spec("07-evaluate-v001-s42-1-of-2"),
            spec("08-evaluate-v001-s42-2-of-2"),
        ];
        let whole = spec("09-evaluate-v001-s42");
        let command = |spec: &serde_json::Value| spec["run"][0]["command"].clone();
        let model = "--set seed=42 --data micropy --checkpoint micropy-v001-s42";
        for (number, part) in (1..).zip(&parts) {
            let expected = format!(
                "evaluate infer {model} --shard {number}/2 --name micropy-v001-s42-{number}-of-2"
            );
            assert_eq!(command(part), expected);
        }
        let expected = format!(
            "evaluate {model} --merge micropy-v001-s42-1-of-2 micropy-v001-s42-2-of-2 --name micropy-v001-s42"
        );
        assert_eq!(command(&whole), expected);
        for spec in parts.iter().chain([&whole]) {
            assert_eq!(spec["resources"]["preset"], preset);
            assert_eq!(spec["env"]["WMTP_DEVICE"], device);
        }
        // Shards are no scores.
        let leaderboard = command(&spec("10-leaderboard"));
        let words = leaderboard.as_str().expect("a command");
        assert!(
            words.contains("--scores micropy-base,micropy-v001-s42 "),
            "{words}"
        );
    }
}

#[test]
fn one_shard_is_the_whole() {
    let place = Place::new();
    let home = crate::place::home();
    let read = |name: &str| std::fs::read_to_string(home.join("experiments").join(name));
    let recipes = home.join("../storage").display().to_string();
    let text = read("baseline.yaml").expect("the experiment");
    let text = text.replace("../../storage", &recipes);
    place.write("plain.yaml", &text);
    place.write("one.yaml", &format!("{text}evaluation: {{shards: 1}}\n"));
    for name in ["plain", "one"] {
        let experiment = format!("{name}.yaml");
        let inputs = ["--experiment", &experiment, "--profile", "profile.yaml"];
        place
            .run(&[&["render", "--out", name], &inputs[..]].concat())
            .expect(0);
    }
    assert_eq!(files(&place.path("one")), files(&place.path("plain")));
}

#[test]
fn names_that_kubernetes_does_not_take_are_refused() {
    let place = Place::new();
    place.write(
        "r.yaml",
        "version: {id: V001}\nexperiment: {algo: baseline}\n",
    );
    place.write(
        "e.yaml",
        "{name: x_y, data: micropy, policy: {create: micro-mtp}, recipes: [r.yaml], seeds: [42]}",
    );
    let arguments = [
        "render",
        "--experiment",
        "e.yaml",
        "--profile",
        "profile.yaml",
        "--out",
        "x",
    ];
    place.run(&arguments).expect(0);
    let ended = place
        .run(&[&arguments[..], &["--form", "argo"]].concat())
        .expect(2);
    ended
        .says(&["train-V001-s42: expected lower-case"])
        .says(&["x_y: expected lower-case"]);
}

#[test]
fn rendered_specs_pass_the_check_of_specs() {
    let place = Place::new();
    place
        .with("render", "all", "profile.yaml", &["--out", "specs"])
        .expect(0);
    let specs: Vec<String> = files(&place.path("specs"))
        .into_keys()
        .map(|name| format!("specs/{name}"))
        .collect();
    // Data set, two models, value model, reference, base, five versions with three seeds, leaderboard, site.
    assert_eq!(specs.len(), 6 + 5 * 3 * 2 + 2);
    let mut arguments = vec!["check"];
    arguments.extend(specs.iter().map(String::as_str));
    let ended = place.run(&arguments).expect(0);
    assert_eq!(ended.stdout.lines().count(), specs.len());
}

#[test]
fn a_plan_reads_as_this() {
    let place = Place::new();
    let prices = place.write(
        "prices.yaml",
        "{as_of: 2099-01-01, currency: USD, source: a test, per_hour: {gpu-a100-80g-small: 2.0}}",
    );
    let prices = prices.display().to_string();
    let ended = place
        .with("plan", "verifiable", "example.yaml", &["--prices", &prices])
        .expect(0);
    insta::assert_snapshot!(ended.stdout);
}

/// Of `submit` not one run is begun; of `plan` all is shown first.
#[test]
fn a_chain_that_is_expected_to_take_more_than_its_budget_is_refused() {
    let place = Place::new();
    let home = crate::place::home();
    let text = std::fs::read_to_string(home.join("experiments/verifiable.yaml"));
    let recipes = home.join("../storage").display().to_string();
    let text = text
        .expect("the experiment")
        .replace("../../storage", &recipes);
    let (text, budget) = text.split_once("budget:").expect("it has a budget");
    assert_eq!(budget, " {gpu_hours: 2}\n");
    place.write(
        "prices.yaml",
        "{as_of: 2099-01-01, currency: USD, source: a test, per_hour: {gpu-a100-80g-small: 2.0, cpu-small: 0.5}}",
    );
    place.write(
        "few.yaml",
        "{as_of: 2099-01-01, currency: USD, source: a test, per_hour: {gpu-a100-80g-small: 2.0}}",
    );
    let command = |name: &str, budget: &str, prices: &[&str]| {
        place.write("e.yaml", &format!("{text}budget: {budget}\n"));
        let inputs = [name, "--experiment", "e.yaml", "--profile", "profile.yaml"];
        place.run(&[&inputs[..], prices].concat())
    };
    // 6 runs of 0.2 hours on a GPU, 4 of 0.1 hours without: 1.2 hours of GPUs, 2.60 USD.
    for (budget, prices, why) in [
        (
            "{gpu_hours: 1.1}",
            "prices.yaml",
            "1.20 hours of GPUs are expected, and its budget is 1.10",
        ),
        (
            "{cost: {amount: 2.5, currency: USD}}",
            "prices.yaml",
            "2.60 USD are expected, and its budget is 2.50",
        ),
        (
            "{cost: {amount: 9, currency: EUR}}",
            "prices.yaml",
            "no prices in EUR are given",
        ),
        (
            "{cost: {amount: 9, currency: USD}}",
            "few.yaml",
            "no price of cpu-small is known",
        ),
    ] {
        let prices = ["--prices", prices];
        let planned = command("plan", budget, &prices).expect(77).says(&[why]);
        assert!(
            planned.stdout.contains("train-v002-s42"),
            "{}",
            planned.stdout
        );
        command("submit", budget, &prices).expect(77).says(&[why]);
    }
    command("submit", "{cost: {amount: 9, currency: USD}}", &[])
        .expect(77)
        .says(&["no prices in USD are given"]);
    assert_eq!(place.read("calls"), "", "VESSL's client was not asked");
    for budget in ["{gpu_hours: 1.2, cost: {amount: 2.6, currency: USD}}", "{}"] {
        let prices = ["--prices", "prices.yaml"];
        command("plan", budget, &prices).expect(0);
    }
    let without = text.replace("  build-site: 0.1\n", "");
    place.write("e.yaml", &format!("{without}budget: {{gpu_hours: 9}}\n"));
    let inputs = [
        "plan",
        "--experiment",
        "e.yaml",
        "--profile",
        "profile.yaml",
    ];
    place
        .run(&[&inputs[..], &["--prices", "prices.yaml"]].concat())
        .expect(77)
        .says(&["no hours are expected of build-site"]);
}

#[test]
fn the_cost_counts_every_run_once() {
    let place = Place::new();
    let prices = place.write(
        "prices.yaml",
        "{as_of: 2020-01-01, currency: EUR, source: a test, per_hour: {gpu-a100-80g-small: 2.0, cpu-small: 0.5}}",
    );
    let prices = prices.display().to_string();
    let ended = place
        .with(
            "plan",
            "verifiable",
            "profile.yaml",
            &["--prices", &prices, "--json"],
        )
        .expect(0);
    let plan: serde_json::Value = serde_json::from_str(&ended.stdout).expect("an object");
    // Value model, base, two trainings, two evaluations, 0.2 hours each; four runs of 0.1 hours on the CPU.
    let near = |value: &serde_json::Value, expected: f64| {
        (value.as_f64().expect("a number") - expected).abs() < 1e-9
    };
    assert!(near(&plan["gpu_hours"], 6.0 * 0.2), "{plan}");
    assert!(
        near(&plan["cost"], 6.0 * 0.2 * 2.0 + 4.0 * 0.1 * 0.5),
        "{plan}"
    );
    let ended = place
        .with("plan", "verifiable", "profile.yaml", &["--prices", &prices])
        .expect(0);
    assert!(
        ended.stdout.contains("days old: look them up again"),
        "{}",
        ended.stdout
    );
}
