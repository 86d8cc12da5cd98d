use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use wmtp_artifacts::{Digest, canonical_json};

use crate::digest::at;
use crate::{Affects, Algo, Error, Leaf, Origin, Recipe, Resolved, Shape, Sources, leaves};

const MINIMAL: &str = "version: {id: v001}\n";

/// Resolves recipes held in memory; the first is the one asked for.
fn resolve(files: &[(&str, &str)], assignments: &[&str]) -> Result<Resolved, Error> {
    resolve_in(files, assignments, &[])
}

fn resolve_in(
    files: &[(&str, &str)],
    assignments: &[&str],
    environment: &[(&str, &str)],
) -> Result<Resolved, Error> {
    let texts: BTreeMap<&str, &str> = files.iter().copied().collect();
    let sources = Sources {
        recipe: files.first().map(|(name, _)| (*name).to_owned()),
        assignments: assignments
            .iter()
            .map(|given| (*given).to_owned())
            .collect(),
        environment: environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
    };
    sources.resolve_with(&|name| {
        texts
            .get(name)
            .map(|text| (*text).to_owned())
            .ok_or_else(|| "no such file".into())
    })
}

fn message(result: Result<Resolved, Error>) -> String {
    result.expect_err("the recipe is broken").to_string()
}

/// Another valid value for a leaf, as `--set` would take it, with the settings that must change along with it.
fn changed(leaf: &Leaf, recipe: &Recipe) -> Vec<String> {
    let tree = recipe.to_json();
    let current = at(&tree, leaf.key);
    let value = match (leaf.key, leaf.shape) {
        ("version.parent", _) => {
            return vec!["version.parent=v000".into(), "version.change=x".into()];
        }
        ("version.change", _) => {
            return vec!["version.parent=v000".into(), "version.change=y".into()];
        }
        ("optim.early_stop_min_delta", _) => {
            return vec![
                "optim.early_stop_patience=3".into(),
                "optim.early_stop_min_delta=0.01".into(),
            ];
        }
        ("lora.dropout", _) => return vec!["lora.r=4".into(), "lora.dropout=0.05".into()],
        ("evaluation.beams", _) => {
            return vec![
                "evaluation.temperature=0".into(),
                "evaluation.num_samples=1".into(),
                "evaluation.ks=[1]".into(),
                "evaluation.beams=4".into(),
            ];
        }
        ("evaluation.length_penalty", _) => {
            return vec![
                "evaluation.temperature=0".into(),
                "evaluation.num_samples=1".into(),
                "evaluation.ks=[1]".into(),
                "evaluation.beams=4".into(),
                "evaluation.length_penalty=0.6".into(),
            ];
        }
        ("rho1.hard", _) => {
            return vec!["rho1.weighting=topk".into(), "rho1.hard=true".into()];
        }
        ("optim.batch_sequences", _) => "120".to_owned(),
        ("optim.micro_batch_sequences", _) => "6".to_owned(),
        ("evaluation.ks", _) => "[1, 2]".to_owned(),
        ("stage1.objective", _) => "bce".to_owned(),
        ("weights.w_max", _) => "2".to_owned(),
        ("lora.targets", _) => "[wq, w2]".to_owned(),
        (_, Shape::Text | Shape::OptionalText) => "other".to_owned(),
        (_, Shape::Count) => (current.as_u64().expect("a count") + 1).to_string(),
        (_, Shape::OptionalCount) => "7".to_owned(),
        (_, Shape::Number) => (current.as_f64().expect("a number") * 0.5 + 0.001).to_string(),
        (_, Shape::Flag) => (!current.as_bool().expect("a flag")).to_string(),
        (_, Shape::Choice(words)) => words
            .iter()
            .copied()
            .find(|word| Some(*word) != current.as_str())
            .expect("two words at least")
            .to_owned(),
        (_, Shape::Counts | Shape::Words(_)) => unreachable!("every list is changed above"),
    };
    vec![format!("{}={value}", leaf.key)]
}

fn scored() -> [(&'static str, &'static str); 1] {
    [(
        "r.yaml",
        "version: {id: v001}\nexperiment: {algo: verifiable}\n",
    )]
}

#[test]
fn the_table_of_leaves_is_the_recipe() {
    let mut of_struct = BTreeSet::new();
    collect(&Recipe::default().to_json(), "", &mut of_struct);
    let of_table: BTreeSet<String> = leaves().map(|leaf| leaf.key.to_owned()).collect();
    assert_eq!(of_struct, of_table);
    assert!(leaves().all(|leaf| !leaf.doc.trim().is_empty()));
}

fn collect(tree: &Value, prefix: &str, keys: &mut BTreeSet<String>) {
    for (name, value) in tree.as_object().expect("sections are objects") {
        let key = format!("{prefix}{name}");
        if value.is_object() {
            collect(value, &format!("{key}."), keys);
        } else {
            keys.insert(key);
        }
    }
}

#[test]
fn every_leaf_changes_the_resolved_recipe_and_names_its_origin() {
    let before = resolve(&scored(), &[]).expect("valid").recipe;
    for leaf in leaves() {
        let assignments = changed(leaf, &before);
        let given: Vec<&str> = assignments.iter().map(String::as_str).collect();
        let after =
            resolve(&scored(), &given).unwrap_or_else(|error| panic!("{}: {error}", leaf.key));
        assert_ne!(
            at(&before.to_json(), leaf.key),
            at(&after.recipe.to_json(), leaf.key),
            "{} is ignored",
            leaf.key
        );
        assert_ne!(
            before.digest(),
            after.recipe.digest(),
            "{} is not hashed",
            leaf.key
        );
        assert_eq!(after.origin(leaf.key), Some(&Origin::Flag), "{}", leaf.key);
    }
}

#[test]
fn output_settings_change_the_options_of_their_section_and_runtime_settings_do_not() {
    let before = resolve(&scored(), &[]).expect("valid").recipe;
    for leaf in leaves() {
        let section = leaf.key.split('.').next().expect("a first part");
        let assignments = changed(leaf, &before);
        let given: Vec<&str> = assignments.iter().map(String::as_str).collect();
        let after = resolve(&scored(), &given).expect("valid").recipe;
        let differ = before.section_options(&[section]) != after.section_options(&[section]);
        assert_eq!(differ, leaf.affects == Affects::Output, "{}", leaf.key);
    }
}

#[test]
fn the_shared_digest_ignores_what_is_compared_and_nothing_else() {
    let before = resolve(&scored(), &[]).expect("valid").recipe;
    let compared = [
        "version.",
        "seed",
        "experiment.algo",
        "stage1.",
        "reference.",
        "score.",
        "rho1.",
        "weights.",
    ];
    for leaf in leaves() {
        let assignments = changed(leaf, &before);
        let given: Vec<&str> = assignments.iter().map(String::as_str).collect();
        let after = resolve(&scored(), &given).expect("valid").recipe;
        let is_compared = compared.iter().any(|name| leaf.key.starts_with(name));
        let same = before.shared_digest() == after.shared_digest();
        assert_eq!(same, is_compared, "{}", leaf.key);
    }
}

#[test]
fn a_recipe_reads_back_from_its_manifest() {
    let recipe = resolve(&scored(), &["optim.lr=2e-3", "weights.blend=0.5", "seed=7"])
        .expect("valid")
        .recipe;
    let stored = wmtp_artifacts::decimals_as_strings(&recipe.to_json());
    assert_eq!(stored["optim"]["lr"], json!("0.002"));
    assert_eq!(Recipe::from_stored(&stored).expect("a recipe"), recipe);
    let strange = json!({"optim": {"lr": "fast"}});
    assert!(Recipe::from_stored(&strange).is_err());
}

#[test]
fn differences_name_the_settings_in_the_order_of_the_schema() {
    let one = resolve(&scored(), &[]).expect("valid").recipe;
    let other = resolve(&scored(), &["weights.blend=0.5", "optim.lr=0.5"])
        .expect("valid")
        .recipe;
    assert_eq!(one.differences(&other), ["optim.lr", "weights.blend"]);
    assert!(one.differences(&one).is_empty());
    let renamed = resolve(&scored(), &["version.id=v009"])
        .expect("valid")
        .recipe;
    assert!(one.is_same_but_for_its_name(&renamed));
    assert!(!one.is_same_but_for_its_name(&other));
    assert_eq!(other.setting("weights.blend"), Some(json!(0.5)));
    assert_eq!(other.setting("weights"), None);
    assert!(crate::is_compared("weights.blend") && !crate::is_compared("optim.lr"));
}

#[test]
fn options_hold_numbers_as_decimal_strings() {
    let recipe = resolve(&[("r.yaml", MINIMAL)], &["optim.lr=2e-3"])
        .expect("valid")
        .recipe;
    let options = recipe.section_options(&["optim", "seed", "experiment.algo"]);
    assert_eq!(options["optim.lr"], json!("0.002"));
    assert_eq!(options["optim.eps"], json!("0.00000001"));
    assert_eq!(options["optim.batch_sequences"], json!("96"));
    assert_eq!(options["seed"], json!("42"));
    assert_eq!(options["experiment.algo"], json!("baseline"));
    assert_eq!(options.get("experiment.dataset"), None);
}

#[test]
fn stronger_sources_win() {
    let files = [
        ("dir/v002.yaml", "extends: v001.yaml\noptim: {lr: 0.02}\n"),
        (
            "dir/v001.yaml",
            "version: {id: v001}\noptim: {lr: 0.01, beta1: 0.5, beta2: 0.6, eps: 1e-6, weight_decay: 0.1}\n",
        ),
    ];
    let environment = [
        (
            "WMTP_CONFIG",
            r#"{"optim": {"beta2": 0.7, "eps": 1e-5, "weight_decay": 0.2}}"#,
        ),
        ("WMTP_SET_OPTIM__EPS", "1e-4"),
        ("WMTP_SET_OPTIM__WEIGHT_DECAY", "0.3"),
        ("WMTP_STORE", "s3://not-a-setting"),
    ];
    let resolved = resolve_in(&files, &["optim.weight_decay=0.4"], &environment).expect("valid");
    let optim = &resolved.recipe.optim;
    assert_eq!(
        [
            optim.grad_clip,
            optim.beta1,
            optim.lr,
            optim.beta2,
            optim.eps,
            optim.weight_decay
        ]
        .map(|value| value.to_string()),
        ["1", "0.5", "0.02", "0.7", "0.0001", "0.4"]
    );
    let origins = [
        "optim.grad_clip",
        "optim.beta1",
        "optim.lr",
        "optim.beta2",
        "optim.eps",
        "optim.weight_decay",
    ]
    .map(|key| resolved.origin(key).expect("a leaf").to_string());
    assert_eq!(
        origins,
        [
            "default",
            "dir/v001.yaml",
            "dir/v002.yaml",
            "WMTP_CONFIG",
            "WMTP_SET_OPTIM__EPS",
            "--set"
        ]
    );
}

#[test]
fn what_a_recipe_extends_lies_beside_it_in_a_bucket_too() {
    let files = [
        ("s3://bucket/a/v002.yaml", "extends: ../b/./v001.yaml\n"),
        ("s3://bucket/b/v001.yaml", "extends: ../../v000.yaml\n"),
    ];
    let text = message(resolve_in(
        &[
            ("r.yaml", "extends: s3://bucket/a/v002.yaml\n"),
            files[0],
            files[1],
        ],
        &[],
        &[],
    ));
    assert_eq!(text, "recipe s3://bucket/v000.yaml: cannot be read");
    let found = resolve_in(
        &[
            ("r.yaml", "extends: s3://bucket/a/v002.yaml\n"),
            files[0],
            ("s3://bucket/b/v001.yaml", MINIMAL),
        ],
        &[],
        &[],
    );
    assert_eq!(found.expect("valid").recipe.version.id, "v001");
}

#[test]
fn broken_recipes_are_named_with_key_and_source() {
    let broken = |text: &str| message(resolve(&[("r.yaml", text)], &[]));
    let set = |given: &str| message(resolve(&[("r.yaml", MINIMAL)], &[given]));
    let messages = [
        broken("version: {id: v001}\noptim: {learning_rat: 1}\n"),
        broken("version: {id: v001}\noptim: {lrr: 1}\n"),
        broken("version: {id: v001}\nweights: {gamma: 1}\n"),
        broken("version: {id: v001}\noptin: {lr: 1}\n"),
        broken("version: {id: v001}\noptim: {lr: fast}\n"),
        broken("version: {id: v001}\noptim: {batch_sequences: 2.5}\n"),
        broken("version: {id: v001}\noptim: 3\n"),
        broken("version: {id: v001}\nexperiment: {algo: rho2}\n"),
        broken("optim: {lr: 0.1}\n"),
        broken("version: {id: v001}\nweights: {w_max: 2}\n"),
        broken("extends: r.yaml\n"),
        broken("extends: absent.yaml\n"),
        broken("just a text\n"),
        set("optim.lr"),
        set("optim.lr=-1"),
        set("evaluation.ks=[10, 5]"),
        set("evaluation.ks=[50]"),
        set("evaluation.top_k=0"),
        broken("version: {id: v001}\nevaluation: {temperature: 0, top_k: 5}\n"),
        set("evaluation.beams=0"),
        set("evaluation.beams=4"),
        broken("version: {id: v001}\nevaluation: {temperature: 0, beams: 4}\n"),
        set("evaluation.length_penalty=0.6"),
        set("evaluation.length_penalty=-1"),
        set("optim.micro_batch_sequences=7"),
        set("optim.checkpoint_minutes=0"),
        set("optim.early_stop_patience=0"),
        set("optim.early_stop_min_delta=0.01"),
        set("stage1.objective=pairwise"),
        set("data.validation_share=0.9"),
        set("data.max_length=7"),
        set("data.max_length=4097"),
        set("stage1.lr_trunk=-1e-5"),
        broken("version: {id: v001}\nstage1: {lr_trunk: 0, lora_r: 8}\n"),
        broken(
            "version: {id: v001}\nexperiment: {algo: verifiable}\nweights: {entropy_floor: 1}\n",
        ),
        set("rho1.hard=1"),
        broken("version: {id: v001}\nexperiment: {algo: rho1}\nrho1: {hard: true}\n"),
        broken(
            "version: {id: v001}\nexperiment: {algo: rho1}\nrho1: {weighting: topk, ratio: 0.2, hard: true}\n",
        ),
        broken("version: {id: v001}\nexperiment: {algo: verifiable}\nweights: {whiten: ema}\n"),
        broken(
            "version: {id: v001}\nexperiment: {algo: shuffled}\nweights: {normalise: micro_batch}\n",
        ),
        broken("version: {id: v001}\nexperiment: {algo: rho1}\nweights: {whiten: dataset}\n"),
        broken("version: {id: v001}\nexperiment: {algo: rho1}\nweights: {normalise: step}\n"),
        broken(
            "version: {id: v001}\nexperiment: {algo: rho1}\nrho1: {weighting: topk}\nweights: {whiten: own}\n",
        ),
        broken(
            "version: {id: v001}\nexperiment: {algo: rho1}\nrho1: {weighting: topk}\nweights: {temperature: 2}\n",
        ),
        broken(
            "version: {id: v001}\nexperiment: {algo: rho1}\nrho1: {weighting: topk}\nweights: {entropy_floor: 0}\n",
        ),
        broken(
            "version: {id: v001}\nexperiment: {algo: rho1}\nrho1: {weighting: topk, hard: true}\nweights: {blend: 0.5}\n",
        ),
        broken("version: {id: v001}\nexperiment: {algo: verifiable}\nrho1: {min_ce_diff: 0.3}\n"),
        broken("version: {id: v001}\nexperiment: {algo: rho1}\nscore: {gamma: 0.9}\n"),
        broken("version: {id: v001}\nexperiment: {algo: rho1}\nrho1: {ratio: 0.3}\n"),
        set("lora.targets=[wq, w4]"),
        set("lora.targets=[w1, wq]"),
        set("lora.targets=[]"),
        set("lora.alpha=0"),
        set("lora.dropout=0.05"),
        set("lora.dropout=1"),
        set("model.dtype=f16"),
    ];
    insta::assert_snapshot!(messages.join("\n"), @r#"
    unknown key `optim.learning_rat` in r.yaml; did you mean `optim.lr`?
    unknown key `optim.lrr` in r.yaml; did you mean `optim.lr`?
    unknown key `weights.gamma` in r.yaml; did you mean `score.gamma`?
    unknown key `optin` in r.yaml; did you mean `optim`?
    `optim.lr` in r.yaml: found the text "fast", expected a number
    `optim.batch_sequences` in r.yaml: found the number 2.5, expected a whole number of at least 0
    `optim` in r.yaml: found the number 3, expected a section
    `experiment.algo` in r.yaml: found the text "rho2", expected one of baseline, verifiable, rho1, random_matched, shuffled
    `version.id` is "", which is not allowed: a version has a name of letters, digits, `-`, `_` and `.`, such as v001
    `weights.w_max` is set by r.yaml, which is not allowed: the baseline weighs every token the same, so its recipe sets no scores
    recipe r.yaml: extends itself through r.yaml
    recipe absent.yaml: cannot be read
    r.yaml: found the text "just a text", expected sections of settings
    `--set optim.lr`: expected key=value
    `optim.lr` is -1, which is not allowed: more than 0
    `evaluation.ks` is [10, 5], which is not allowed: rising numbers from 1 to evaluation.num_samples, 20
    `evaluation.ks` is [50], which is not allowed: rising numbers from 1 to evaluation.num_samples, 20
    `evaluation.top_k` is 0, which is not allowed: at least 1
    `evaluation.top_k` is 5, which is not allowed: it means something only where tokens are drawn, at an evaluation.temperature above 0
    `evaluation.beams` is 0, which is not allowed: at least 1
    `evaluation.beams` is 4, which is not allowed: a beam search draws nothing: evaluation.temperature must be 0, it is 0.2
    `evaluation.beams` is 4, which is not allowed: a beam search finds one text: evaluation.num_samples must be 1, it is 20
    `evaluation.length_penalty` is 0.6, which is not allowed: it means something only beside evaluation.beams above 1
    `evaluation.length_penalty` is -1, which is not allowed: at least 0
    `optim.micro_batch_sequences` is 7, which is not allowed: it divides optim.batch_sequences, 96
    `optim.checkpoint_minutes` is 0, which is not allowed: at least 1
    `optim.early_stop_patience` is 0, which is not allowed: at least 1
    `optim.early_stop_min_delta` is 0.01, which is not allowed: it means something only beside optim.early_stop_patience
    `stage1.objective` in --set: found the text "pairwise", expected one of mse_mc, bce
    `data.test_share` is 0.2, which is not allowed: validation and test together leave something to train on
    `data.max_length` is 7, which is not allowed: from 8 to 4096, where the positions of models end
    `data.max_length` is 4097, which is not allowed: from 8 to 4096, where the positions of models end
    `stage1.lr_trunk` is -0.00001, which is not allowed: at least 0, which freezes the trunk
    `stage1.lora_r` is 8, which is not allowed: the adapters of a trunk learn at stage1.lr_trunk, which is 0 and freezes it
    `weights.entropy_floor` is 1, which is not allowed: 0 <= floor < 1: only equal weights have an entropy of 1
    `rho1.hard` in --set: found the number 1, expected true or false
    `rho1.hard` is true, which is not allowed: it means something only beside rho1.weighting topk
    `rho1.ratio` is 0.2, which is not allowed: with rho1.hard a token that is kept weighs 1 / ratio, and weights.w_max is 3: raise one of the two
    `weights.whiten` is ema, which is not allowed: verifiable has scores of a data set: auto, dataset or own
    `weights.normalise` is micro_batch, which is not allowed: shuffled weighs all targets of a step at once: auto, step or sequence
    `weights.whiten` is dataset, which is not allowed: the excess of rho1 moves with the policy: auto, ema or own
    `weights.normalise` is step, which is not allowed: rho1 knows the excess of one micro-batch at a time: auto, micro_batch or sequence
    `weights.whiten` is own, which is not allowed: rho1.weighting topk compares scores and whitens none
    `weights.temperature` is 2, which is not allowed: rho1.weighting topk compares scores and takes no exponential of them: leave it at 1
    `weights.entropy_floor` is 0, which is not allowed: rho1.weighting topk compares scores and takes no exponential of them: leave it at 0.01
    `weights.blend` is 0.5, which is not allowed: with rho1.hard the tokens left out weigh nothing, and a blend would give them weight: leave it at 1
    `rho1.min_ce_diff` is set by r.yaml, which is not allowed: verifiable has no excess loss, and does not read it
    `score.gamma` is set by r.yaml, which is not allowed: rho1 has no advantages, and does not read it
    `rho1.ratio` is set by r.yaml, which is not allowed: it means something only beside rho1.weighting topk
    `lora.targets` in --set: found a list, expected a list of some of wq, wk, wv, wo, w1, w2, w3
    `lora.targets` is [w1, wq], which is not allowed: at least one, each once, in the order wq, wk, wv, wo, w1, w2, w3
    `lora.targets` is [], which is not allowed: at least one, each once, in the order wq, wk, wv, wo, w1, w2, w3
    `lora.alpha` is 0, which is not allowed: more than 0
    `lora.dropout` is 0.05, which is not allowed: it means something only beside lora.r above 0
    `lora.dropout` is 1, which is not allowed: 0 <= dropout < 1
    `model.dtype` is f16, which is not allowed: f16 ends at 65504 and loses gradients below 6e-8, and nothing here scales the loss; weights stored as f16 are widened when they are read, so train in f32 or bf16
    "#);
}

#[test]
fn a_changed_recipe_keeps_the_rules_of_a_recipe_file() {
    let of = |algo: &str, settings: &[&str]| {
        let text = format!("version: {{id: v001}}\nexperiment: {{algo: {algo}}}\n");
        let resolved = resolve(&[("r.yaml", text.as_str())], settings);
        resolved.expect("valid").recipe
    };
    let said = |recipe: &Recipe, key: &str, value: Value| {
        let changed = recipe.with_setting(key, &value);
        changed.expect_err("no such recipe").to_string()
    };
    let (baseline, verifiable, rho1) =
        (of("baseline", &[]), of("verifiable", &[]), of("rho1", &[]));
    for (key, value) in [
        ("weights.blend", json!(0.5)),
        ("score.gamma", json!(0.9)),
        ("rho1.ratio", json!(0.3)),
        ("weights.whiten", json!("own")),
    ] {
        let said = said(&baseline, key, value);
        assert!(
            said.contains(key) && said.contains("sets no scores"),
            "{said}"
        );
    }
    // Nothing changes, so nothing is wrong.
    assert_eq!(
        baseline
            .with_setting("weights.blend", &json!(1))
            .expect("the default"),
        baseline
    );
    let blended = of("verifiable", &["weights.blend=0.5"]);
    let back = said(&blended, "experiment.algo", json!("baseline"));
    assert!(back.contains("`weights.blend` is 0.5"), "{back}");
    assert!(said(&verifiable, "rho1.min_ce_diff", json!(0.3)).contains("no excess loss"));
    assert!(said(&rho1, "score.lambda_gae", json!(1.0)).contains("no advantages"));
    assert!(said(&rho1, "rho1.ratio", json!(0.3)).contains("beside rho1.weighting topk"));
    let selecting = of("rho1", &["rho1.weighting=topk"]);
    selecting
        .with_setting("rho1.ratio", &json!(0.3))
        .expect("it is read");
    selecting
        .with_setting("weights.blend", &json!(0.5))
        .expect("it is read");
    assert!(said(&selecting, "weights.temperature", json!(0.5)).contains("no exponential"));
    let warm = of("rho1", &["weights.temperature=2"]);
    assert!(said(&warm, "rho1.weighting", json!("topk")).contains("weights.temperature"));
    // What one algorithm learnt stays when the next one starts from its version.
    let rewards = of("verifiable", &["score.lambda_gae=1"]);
    rewards
        .with_setting("experiment.algo", &json!("rho1"))
        .expect("it is only unread");
}

#[test]
fn a_scope_that_auto_stands_for_is_no_change() {
    let named = |algo: &str, key: &str, word: &str| {
        let text = format!("version: {{id: v001}}\nexperiment: {{algo: {algo}}}\n");
        let recipe = resolve(&[("r.yaml", text.as_str())], &[])
            .expect("valid")
            .recipe;
        recipe
            .with_setting(key, &json!(word))
            .map_err(|error| error.to_string())
    };
    for (algo, key, word) in [
        ("verifiable", "weights.whiten", "dataset"),
        ("shuffled", "weights.normalise", "step"),
        ("rho1", "weights.whiten", "ema"),
        ("rho1", "weights.normalise", "micro_batch"),
    ] {
        let said = named(algo, key, word).expect_err("the same bytes");
        assert!(
            said.contains(&format!("`{key}` is {word}")) && said.contains("auto"),
            "{said}"
        );
    }
    for algo in ["verifiable", "rho1"] {
        named(algo, "weights.whiten", "own").expect("other bytes");
        named(algo, "weights.normalise", "sequence").expect("other bytes");
    }
    assert!(named("rho1", "weights.whiten", "dataset").is_err());
    assert!(named("verifiable", "weights.normalise", "micro_batch").is_err());
}

#[test]
fn what_an_algorithm_does_not_read_is_refused_in_its_own_file_and_nowhere_else() {
    let parent = (
        "v002.yaml",
        "version: {id: v002}\nexperiment: {algo: verifiable}\nscore: {gamma: 0.9}\n",
    );
    let child = |text: &'static str| [("v003.yaml", text), parent];
    let inherited = child("extends: v002.yaml\nexperiment: {algo: rho1}\n");
    let resolved = resolve(&inherited, &[]).expect("v002 has use of it");
    let unread = resolved
        .recipe
        .unread("score.gamma")
        .expect("rho1 has none");
    assert!(unread.contains("no advantages"), "{unread}");
    assert_eq!(resolved.recipe.unread("weights.blend"), None);
    // One set of settings for a chain of versions.
    resolve(&[parent], &["rho1.min_ce_diff=0.3"]).expect("v003 has use of it");
    resolve_in(&[parent], &[], &[("WMTP_SET_RHO1__MIN_CE_DIFF", "0.3")]).expect("likewise");
    // Another algorithm is tried on a recipe.
    resolve(&[parent], &["experiment.algo=rho1"]).expect("a trial");
    let own = child("extends: v002.yaml\nexperiment: {algo: rho1}\nscore: {gamma: 0.8}\n");
    assert!(message(resolve(&own, &[])).contains("`score.gamma` is set by v003.yaml"));
    let alone = child("extends: v002.yaml\nrho1: {min_ce_diff: 0.3}\n");
    assert!(message(resolve(&alone, &[])).contains("`rho1.min_ce_diff` is set by v003.yaml"));
    // Back to what the schema says.
    let back = child("extends: v002.yaml\nexperiment: {algo: rho1}\nscore: {gamma: 1}\n");
    resolve(&back, &[]).expect("a default");
}

#[test]
fn unknown_keys_name_what_was_probably_meant() {
    for (key, meant) in [
        ("optim.learning_rate", "did you mean `optim.lr`?"),
        ("training.learning_rate", "did you mean `optim.lr`?"),
        (
            "stage1.learning_rate",
            "did you mean `stage1.lr_trunk` or `stage1.lr_head`?",
        ),
        ("model.precision", "did you mean `model.dtype`?"),
        ("optim.batch_size", "did you mean `optim.batch_sequences`?"),
        ("optim.max_grad_norm", "did you mean `optim.grad_clip`?"),
        ("optim.num_epochs", "did you mean `optim.epochs`?"),
        ("optim.warmup", "did you mean `optim.warmup_ratio`?"),
        ("optim.beta", "did you mean `optim.beta1` or `optim.beta2`?"),
        ("lora.rank", "did you mean `lora.r`?"),
        ("score.lambda", "did you mean `score.lambda_gae`?"),
        ("score.gae", "did you mean `score.lambda_gae`?"),
        ("weights.lambda_gae", "did you mean `score.lambda_gae`?"),
        ("weights.wmax", "did you mean `weights.w_max`?"),
        ("weights.blendd", "did you mean `weights.blend`?"),
        ("optim.lrr", "did you mean `optim.lr`?"),
        ("training", "did you mean `optim`?"),
        ("eval", "did you mean `evaluation`?"),
        ("optmi", "did you mean `optim`?"),
        ("score.xyz", "the settings of `score` are gamma, lambda_gae"),
        (
            "xyz",
            "the sections are version, experiment, seed, model, data, optim, lora, stage1, reference, score, rho1, weights, \
             evaluation",
        ),
    ] {
        let said = crate::parse_setting(key, "1", "--set")
            .unwrap_err()
            .to_string();
        assert_eq!(said, format!("unknown key `{key}` in --set; {meant}"));
    }
}

#[test]
fn a_recipe_that_extends_itself_is_told_so_however_it_is_written() {
    let loops = |files: &[(&str, &str)]| {
        // As a file system finds them: behind every detour.
        let texts: BTreeMap<&str, &str> = files.iter().copied().collect();
        let sources = Sources {
            recipe: Some(files[0].0.to_owned()),
            ..Sources::default()
        };
        let load = |name: &str| {
            assert!(name.len() < 100, "it went on: {name}");
            let last = name.rsplit('/').next().unwrap_or(name);
            let text = texts.iter().find(|(name, _)| name.ends_with(last));
            text.map(|(_, text)| (*text).to_owned())
                .ok_or_else(|| "no such file".into())
        };
        message(sources.resolve_with(&load))
    };
    for parent in [
        "./v001.yaml",
        "v001.yaml",
        "../b/v001.yaml",
        ".././/b/./v001.yaml",
    ] {
        let text = format!("extends: {parent}\n");
        assert_eq!(
            loops(&[("a/b/v001.yaml", text.as_str())]),
            "recipe a/b/v001.yaml: extends itself through a/b/v001.yaml"
        );
    }
    assert_eq!(
        loops(&[("/b/v001.yaml", "extends: ../../b/v001.yaml\n")]),
        "recipe /b/v001.yaml: extends itself through /b/v001.yaml"
    );
    assert_eq!(
        loops(&[("v001.yaml", "extends: ./v001.yaml\n")]),
        "recipe v001.yaml: extends itself through v001.yaml"
    );
    let two = [
        ("a/v001.yaml", "extends: ./v002.yaml\n"),
        ("a/v002.yaml", "extends: ../a/v001.yaml\n"),
    ];
    assert_eq!(
        loops(&two),
        "recipe a/v001.yaml: extends itself through a/v002.yaml"
    );
}

/// Behind a linked folder, `..` is not where it is written.
#[cfg(unix)]
#[test]
fn a_recipe_behind_a_link_is_another_one() {
    let place = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = place.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, text).expect("written");
    };
    write(
        "a/v001.yaml",
        "extends: link/../v001.yaml\noptim: {lr: 0.5}\n",
    );
    write("b/v001.yaml", MINIMAL);
    write("b/c/unused", "");
    std::os::unix::fs::symlink("../b/c", place.path().join("a/link")).expect("linked");
    let sources = Sources {
        recipe: Some(place.path().join("a/v001.yaml").display().to_string()),
        ..Sources::default()
    };
    let recipe = sources.resolve().expect("two recipes").recipe;
    assert_eq!((recipe.version.id.as_str(), recipe.optim.lr), ("v001", 0.5));
}

#[test]
fn settings_at_the_ends_of_their_ranges_are_allowed() {
    for given in [
        "stage1.lr_trunk=0",
        "data.max_length=4096",
        "data.max_length=8",
    ] {
        resolve(&[("r.yaml", MINIMAL)], &[given])
            .unwrap_or_else(|error| panic!("{given}: {error}"));
    }
    let all_of_it = ["rho1.weighting=topk", "rho1.hard=true", "rho1.ratio=0.2"];
    resolve(&scored(), &[&all_of_it[..], &["weights.w_max=5"]].concat())
        .expect("a fifth weighs five");
    resolve(&scored(), &["weights.entropy_floor=0"]).expect("no floor");
}

#[test]
fn text_settings_are_taken_as_they_stand() {
    for text in ["y", "1e3", "a # b", "control: half", "[open"] {
        let change = format!("version.change={text}");
        let given = ["version.parent=v000", change.as_str()];
        let resolved = resolve(&[("r.yaml", MINIMAL)], &given).expect("valid");
        assert_eq!(resolved.recipe.version.change.as_deref(), Some(text));
    }
}

#[test]
fn a_duplicate_key_is_an_error() {
    let text = "version: {id: v001}\noptim: {lr: 0.1, lr: 0.2}\n";
    let said = message(resolve(&[("r.yaml", text)], &[]));
    assert!(said.contains("r.yaml") && said.contains("lr"), "{said}");
}

#[test]
fn the_resolved_tree_reads_back() {
    let recipe = resolve(&scored(), &[]).expect("valid").recipe;
    let text = recipe.to_json().to_string();
    assert_eq!(
        serde_json::from_str::<Recipe>(&text).expect("its own JSON"),
        recipe
    );
}

#[test]
fn shipped_recipes_differ_from_their_parent_in_the_algorithm_alone() {
    let folder = Path::new("../../storage/recipes");
    for set in ["micropy", "mbpp", "mbpp-7b", "codecontests"] {
        let read = |version: &str| {
            let path = folder.join(set).join(format!("{version}.yaml"));
            let sources = Sources {
                recipe: Some(path.display().to_string()),
                ..Sources::default()
            };
            sources
                .resolve()
                .unwrap_or_else(|error| panic!("{set}/{version}: {error}"))
                .recipe
        };
        let parent = read("v001");
        assert_eq!(parent.experiment.algo, Algo::Baseline);
        let algos = [
            Algo::Verifiable,
            Algo::Rho1,
            Algo::RandomMatched,
            Algo::Shuffled,
        ];
        for (version, algo) in ["v002", "v003", "v004", "v005"].into_iter().zip(algos) {
            let child = read(version);
            assert_eq!(child.experiment.algo, algo);
            assert_eq!(child.version.parent.as_deref(), Some("v001"));
            let mut same = child.clone();
            same.version = parent.version.clone();
            same.experiment.algo = Algo::Baseline;
            assert_eq!(same, parent, "{set}/{version}");
            assert_eq!(child.shared_digest(), parent.shared_digest());
        }
    }
}

#[test]
fn a_setting_that_came_later_leaves_the_digests_of_earlier_recipes_alone() {
    // As computed when `optim.activation_mib` was the newest setting.
    let recipe = Recipe::default();
    let optim = recipe.section_options(&["optim"]);
    let options = Digest::of(&canonical_json(&optim).expect("no floats"));
    assert_eq!(
        [recipe.digest(), recipe.shared_digest(), options].map(|digest| digest.to_string()),
        [
            "c4291c1cdbd544b3706d32b00aafe54d1bddda1202e1beba9a858ec302441c7b",
            "c37994d8f4236afe183108204c7e870c7ed199c952db15262d294c1032d5ede4",
            "7ed2fe6eee8d7f7a6972dbf910c6d94cd8ccaaddfb8a517874249065980e67b7",
        ]
    );
}

/// Where people read what can be set, beside the recipes.
const PAGE: &str = "../../storage/recipes/settings.md";

/// The schema as a page: a table for each section.
fn page() -> String {
    let defaults = Recipe::default().to_json();
    let mut page = "# Settings of a recipe\n\n\
        Made from the schema by a test of `shared/recipe`, which fails where they differ (`WMTP_SETTINGS=renew` writes it anew).\n"
        .to_owned();
    let mut section = "";
    for leaf in leaves() {
        let of = leaf.key.split('.').next().unwrap_or_default();
        if of != section {
            section = of;
            let _ = write!(
                page,
                "\n## {section}\n\n| setting | default | takes | meaning |\n|---|---|---|---|\n"
            );
        }
        let default = match at(&defaults, leaf.key) {
            Value::Null => "nothing".to_owned(),
            value => format!("`{value}`"),
        };
        let meaning: Vec<&str> = leaf.doc.split_whitespace().collect();
        let cells = [leaf.shape.describe(), meaning.join(" ")].map(|cell| cell.replace('|', "\\|"));
        let _ = writeln!(
            page,
            "| `{}` | {default} | {} | {} |",
            leaf.key, cells[0], cells[1]
        );
    }
    page
}

#[test]
fn the_page_of_settings_tells_the_schema() {
    if std::env::var("WMTP_SETTINGS").is_ok_and(|word| word == "renew") {
        std::fs::write(PAGE, page()).expect("the page can be written");
    }
    let stored = std::fs::read_to_string(PAGE).expect("storage/recipes/settings.md");
    assert_eq!(
        stored,
        page(),
        "storage/recipes/settings.md tells another schema"
    );
}

#[test]
fn a_resolved_recipe_crosses_as_text_and_no_number_is_rounded() {
    let resolved = resolve(&[("v001.yaml", MINIMAL)], &[]).unwrap();
    let mut recipe = resolved.recipe;
    let mut lr = 0.1 + 0.2;
    for _ in 0..500 {
        lr *= 0.1f64.sqrt().sqrt();
        recipe.optim.lr = lr;
        let back = Recipe::from_resolved(&recipe.to_json().to_string()).unwrap();
        assert_eq!(back.optim.lr.to_bits(), lr.to_bits());
        assert_eq!(back, recipe);
    }
    assert!(Recipe::from_resolved("{optim: {lr: none}}").is_err());
}
