//! Planted mistakes are refused with a message that names the field.

use trial::Ended;

use crate::place::Place;

/// In the profile: what is replaced, by what, and what the refusal says.
const IN_PROFILES: [(&str, &str, &str); 26] = [
    (
        "cluster: vessl",
        "clusters: vessl",
        "clusters: unknown field `clusters`",
    ),
    ("store: s3://", "store: https://", "store: found \"https://"),
    (
        "gpus: 1}",
        "gpus: 4}",
        "presets.one_gpu.gpus: found 4, but evaluate computes on one GPU at most: 3 would be paid for and idle",
    ),
    (
        "jobs: {}",
        "jobs: {prepare-data: four_gpus}",
        "presets.four_gpus.gpus: found 4, but prepare-data computes on one",
    ),
    ("gpus: 0}", "gpus: none}", "presets.cpu.gpus: invalid type"),
    (
        "name: cpu-small",
        "name: cpu small",
        "presets.cpu.name: found \"cpu small\"",
    ),
    (
        "jobs: {}",
        "jobs: {evaluate: big}",
        "presets.big: evaluate runs on \"big\"",
    ),
    (
        "jobs: {}",
        "jobs: {evalute: cpu}",
        "jobs.evalute: is no job",
    ),
    (
        "jobs: {}",
        "jobs: {evaluate-infer: cpu}",
        "jobs.evaluate-infer: shards run where evaluate does",
    ),
    (
        "  cpu: resourcespec",
        "  cpus: resourcespec",
        "cloud.cpus: there is no such preset",
    ),
    (
        "spot: OnDemandOnly",
        "spot: Sometimes",
        "spot: unknown variant `Sometimes`",
    ),
    (
        "evaluate: sha256:0",
        "evaluate: latest",
        "images.digests.evaluate: found \"latest",
    ),
    (
        "    evaluate: sha256:",
        "    evaluates: sha256:",
        "images.digests.evaluate: is missing",
    ),
    (
        "  AWS_REGION: ap-northeast-2",
        "  AWS_SESSION_TOKEN: abc",
        "env.AWS_SESSION_TOKEN: a secret must not be",
    ),
    (
        "  AWS_REGION: ap-northeast-2",
        "  NOTE: AKIAIOSFODNN7EXAMPLE",
        "env.NOTE: holds what looks like an AWS access key",
    ),
    (
        "  AWS_REGION: ap-northeast-2",
        "  WMTP_STORE: s3://elsewhere/x",
        "env.WMTP_STORE: the chain sets it itself",
    ),
    (
        "  AWS_REGION: ap-northeast-2",
        "  WMTP_RANKS: '2'",
        "env.WMTP_RANKS: the chain sets it itself",
    ),
    (
        "  AWS_ACCESS_KEY_ID: ",
        "  WMTP_CONFIG: ",
        "secrets.WMTP_CONFIG: the chain sets it itself",
    ),
    (
        "  AWS_REGION: ap-northeast-2",
        "  AWS_ACCESS_KEY_ID: a",
        "env.AWS_ACCESS_KEY_ID: stands under secrets, too",
    ),
    (
        "site: s3://example-bucket/wmtp-site",
        "site: {bucket: example-bucket}",
        "site: invalid type",
    ),
    (
        "site: s3://example-bucket/wmtp-site",
        "site: example-bucket/wmtp-site",
        "site: found \"example-bucket",
    ),
    (
        "site: s3://example-bucket/wmtp-site",
        "site: s3://example-bucket/wmtp",
        "site: is the store",
    ),
    (
        "evaluate: {spot: SpotFirst}",
        "evaluate: {spot: Sometimes}",
        "overrides.evaluate.spot: unknown variant `Sometimes`",
    ),
    (
        "evaluate: {spot: SpotFirst}",
        "evaluate: {preset: cpu}",
        "overrides.evaluate.preset: unknown field `preset`",
    ),
    (
        "evaluate: {spot: SpotFirst}",
        "evaluate-infer: {spot: SpotFirst}",
        "overrides.evaluate-infer: shards run where evaluate does",
    ),
    (
        "      AWS_ACCESS_KEY_ID: wmtp-site-key-id",
        "      AWS_ACCESS_KEY_ID: a key",
        "overrides.build-site.secrets.AWS_ACCESS_KEY_ID: found \"a key\"",
    ),
];

/// In a spec.
const IN_SPECS: [(&str, &str, &str); 19] = [
    (
        "tags:",
        "max_runtime: 24h\ntags:",
        "max_runtime: refused: batch runs have no limit of time",
    ),
    (
        "tags:",
        "termination-protection: true\ntags:",
        "termination-protection: refused",
    ),
    (
        "tags:",
        "interactive: {runtime: 24h}\ntags:",
        "interactive: refused: a job is a batch run",
    ),
    (
        "tags:",
        "volumes: {/data: {import: x}}\ntags:",
        "volumes: refused: an old form",
    ),
    (
        "tags:",
        "import: {/in: hf://a/b}\ntags:",
        "import: refused: jobs read their inputs from S3",
    ),
    (
        "tags:",
        "ports: ['8080']\ntags:",
        "ports: refused: a job serves nothing",
    ),
    (
        "tags:",
        "retires: 3\ntags:",
        "retires: unknown field `retires`",
    ),
    (
        "tags:",
        "export: {/out/: s3://a/b}\ntags:",
        "export: refused: jobs write to S3 themselves",
    ),
    (
        "  preset: ",
        "  accelerators: ",
        "resources.accelerators: refused: an old form",
    ),
    (
        "  preset: ",
        "  preste: ",
        "resources.preste: unknown field `preste`",
    ),
    (
        "  spot: OnDemandOnly",
        "  spot: true",
        "resources.spot: invalid type",
    ),
    (
        "resources:",
        "resource:",
        "resource: unknown field `resource`",
    ),
    (
        "@sha256:",
        ":v1-",
        "image: found \"registry.example.com/wmtp/train-stage2:v1-",
    ),
    (
        "image:",
        "image: [a]\nimages:",
        "image: expected NAME@sha256:DIGEST",
    ),
    (
        "    secret: wmtp-s3-secret",
        "    value: abc\n    secret: true",
        "env.AWS_SECRET_ACCESS_KEY: an old form",
    ),
    (
        "    secret: wmtp-s3-secret",
        "    source: env",
        "env.AWS_SECRET_ACCESS_KEY: write text as it stands",
    ),
    (
        "- command: train-stage2",
        "- command: bash",
        "run[0].command: \"bash\" is no job",
    ),
    (
        "--data micropy",
        "--data micropy; env",
        "run[0].command: ';' means something to a shell",
    ),
    (
        "  workdir: /tmp",
        "  workdir: tmp",
        "run[0].workdir: found \"tmp\"",
    ),
];

fn planted(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from:?} is not in:\n{text}");
    text.replacen(from, to, 1)
}

#[test]
fn mistakes_in_a_profile_name_their_field() {
    let place = Place::new();
    let good = place.read("example.yaml");
    for (from, to, message) in IN_PROFILES {
        place.write("bad.yaml", &planted(&good, from, to));
        place
            .with("render", "verifiable", "bad.yaml", &["--out", "x"])
            .expect(2)
            .says(&[message]);
        assert!(!place.path("x").exists(), "nothing is written after {to:?}");
    }
}

#[test]
fn a_training_takes_all_gpus_of_its_machine_if_its_recipe_has_work_for_them() {
    let place = Place::new();
    let good = place.read("example.yaml");
    let four = "jobs: {train-stage1: four_gpus, train-stage2: four_gpus}";
    place.write("four.yaml", &planted(&good, "jobs: {}", four));
    place
        .with("render", "verifiable", "four.yaml", &["--out", "specs"])
        .expect(2)
        .says(&["train-v002-s42: resources.preset: its 4 GPUs share the micro-batches of an optimizer step, and its recipe makes 1"]);
    assert!(!place.path("specs").exists());

    place.write(
        "r.yaml",
        "version: {id: v001}\nexperiment: {algo: baseline}\noptim: {batch_sequences: 64, micro_batch_sequences: 16}\n",
    );
    place.write(
        "x.yaml",
        "name: x\ndata: micropy\npolicy: {create: micro-mtp}\nrecipes: [r.yaml]\nseeds: [42]\n",
    );
    let files = ["--experiment", "x.yaml", "--profile", "four.yaml"];
    let arguments = [&["render"], &files[..], &["--out", "specs"]].concat();
    place.run(&arguments).expect(0);
    let training = place.read("specs/04-train-v001-s42.yaml");
    for line in [
        "WMTP_RANKS: \"4\"",
        "preset: gpu-a100-80g-large",
        "WMTP_DEVICE: cuda",
    ] {
        assert!(training.contains(line), "{line} is not in:\n{training}");
    }
    let evaluation = place.read("specs/05-evaluate-v001-s42.yaml");
    assert!(!evaluation.contains("WMTP_RANKS"), "{evaluation}");
}

#[test]
fn mistakes_in_a_spec_name_their_field() {
    let place = Place::new();
    place
        .with("render", "verifiable", "profile.yaml", &["--out", "specs"])
        .expect(0);
    let good = place.read("specs/07-train-v002-s42.yaml");
    place.write("good.yaml", &good);
    place.run(&["check", "good.yaml"]).expect(0);
    for (from, to, message) in IN_SPECS {
        place.write("bad.yaml", &planted(&good, from, to));
        place.run(&["check", "bad.yaml"]).expect(2).says(&[message]);
    }
}

#[test]
fn mistakes_in_an_experiment_name_their_field() {
    let place = Place::new();
    let good =
        "name: x\ndata: micropy\npolicy: {create: micro-mtp}\nrecipes: [r.yaml]\nseeds: [42]\n";
    place.write(
        "r.yaml",
        "version: {id: v003, parent: v001, change: rho1}\nexperiment: {algo: rho1}\n",
    );
    for (from, to, message) in [
        ("name: x", "name: a b", "name: found \"a b\""),
        (
            "{create: micro-mtp}",
            "{made: micro-mtp}",
            "policy: unknown variant `made`",
        ),
        ("[42]", "[42, 42]", "seeds: found [42, 42]"),
        (
            "seeds",
            "value: {stored: big}\nseeds",
            "value: invalid type",
        ),
        ("seeds", "value: a/b\nseeds", "value: found \"a/b\""),
        (
            "seeds",
            "external: [v001]\nseeds",
            "external[0]: found \"v001\": its name is that of a version trained here",
        ),
        (
            "seeds",
            "external: [big, a/b, big]\nseeds",
            "external[1]: found \"a/b\": its name is no plain one",
        ),
        (
            "seeds",
            "external: [big, big]\nseeds",
            "external[1]: is \"big\" again",
        ),
        (
            "seeds",
            "external: {folder: external/big}\nseeds",
            "external: invalid type",
        ),
        (
            "seeds",
            "budget: {gpu_hours: -1}\nseeds",
            "budget.gpu_hours: found -1",
        ),
        (
            "seeds",
            "budget: {hours: 1}\nseeds",
            "budget.hours: unknown field `hours`",
        ),
        (
            "seeds",
            "budget: {cost: {amount: 1}}\nseeds",
            "budget.cost.currency: missing field `currency`",
        ),
        ("[r.yaml]", "[]", "recipes: expected at least one"),
        ("[r.yaml]", "[none.yaml]", "none.yaml"),
        (
            "seeds",
            "hours: {trian: 1}\nseeds",
            "hours.trian: is no job",
        ),
        (
            "seeds",
            "evaluation: {shards: 0}\nseeds",
            "evaluation.shards: invalid value: integer `0`",
        ),
        (
            "seeds",
            "evaluation: {shards: four}\nseeds",
            "evaluation.shards: invalid type",
        ),
        (
            "seeds",
            "evaluation: {at_once: 0}\nseeds",
            "evaluation.at_once: invalid value: integer `0`",
        ),
        (
            "seeds",
            "evaluation: {shard: 4}\nseeds",
            "evaluation.shard: unknown field `shard`",
        ),
        (
            "seeds",
            "raw: rows\nseeds",
            "raw: is given, and the recipes make their own data",
        ),
        ("name: x", "name: x", "reference: is missing"),
    ] {
        place.write("e.yaml", &planted(good, from, to));
        let arguments = [
            "render",
            "--experiment",
            "e.yaml",
            "--profile",
            "profile.yaml",
            "--out",
            "x",
        ];
        place.run(&arguments).expect(2).says(&[message]);
    }
}

#[test]
fn a_secret_of_this_machine_gets_into_no_spec() {
    let place = Place::new();
    let good = place.read("profile.yaml");
    place.write(
        "leaky.yaml",
        &planted(&good, "ap-northeast-2", "x-wJalrXUtnFEMI-y"),
    );
    let experiment = crate::place::home().join("experiments/baseline.yaml");
    let experiment = experiment.display().to_string();
    let arguments = [
        "render",
        "--experiment",
        &experiment,
        "--profile",
        "leaky.yaml",
        "--out",
        "x",
    ];
    place.run(&arguments).expect(0);
    let mut command = place.command(&arguments);
    command.env("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI");
    let ended = Ended::of(&mut command);
    let ended = ended
        .expect(2)
        .says(&["env.AWS_REGION: holds the value of this machine's AWS_SECRET_ACCESS_KEY"]);
    assert!(!ended.stderr.contains("wJalrXUtnFEMI"), "{}", ended.stderr);
}
