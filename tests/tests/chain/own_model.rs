//! A model that was not created on the data set, as one from a hub is: brought in, and through the chain by the scripts and by
//! what VESSL is given.

use serde_json::Value;

use trial::Ended;

use crate::place::Place;
use crate::steps::{TINY, beginning};
use crate::vessl;

const PREFIX: &str = "vessl";

/// Makes a folder as a hub has it and pushes the bundle that it becomes as `outside`. Its tokenizer is another writing of the
/// one that the data set `d` was made with: a program of somebody else wrote it.
fn bring_in(place: &Place) {
    place.chain(PREFIX, beginning());
    let export = ["export", "base", "--kind=base-model", "--to=hub"];
    place.run(PREFIX, "sync-storage", &export).expect(0);
    let tokenizer = place.path("hub/tokenizer.json");
    let text = std::fs::read_to_string(&tokenizer).expect("the tokenizer");
    let json: Value = serde_json::from_str(&text).expect("JSON");
    place.write("hub/tokenizer.json", &json.to_string());
    let convert = ["convert", "--from=hub", "--to=bundle", "--future-tokens=4"];
    place.run(PREFIX, "sync-storage", &convert).expect(0);
    let push = [
        "push",
        "--kind=base-model",
        "--folder=bundle",
        "--name=outside",
    ];
    place.run(PREFIX, "sync-storage", &push).expect(0);
}

#[test]
fn a_model_from_a_hub_goes_through_the_chain() {
    let place = Place::new();
    bring_in(&place);
    // Trained on a data set with another tokenizer, however alike, it would learn nothing.
    let train = [
        "--data=d",
        "--base=outside",
        "--recipe=tiny.yaml",
        "--name=x",
    ];
    place
        .run(PREFIX, "train-stage2", &train)
        .expect(65)
        .says(&["different tokenizers"]);

    place.write("recipes/v001.yaml", TINY);
    let script = |recipes: &str, data: &str, variable: &str| {
        let mut chain = place.script(PREFIX, "chain.sh", &[recipes, data]);
        chain.env("OUT", place.path(data)).env(variable, "outside");
        let told = Ended::of(&mut chain).expect(0).stdout;
        assert!(place.path(data).join("site/index.html").is_file(), "{told}");
        told
    };
    let told = script("recipes", "own", "BASE");
    assert!(told.contains("== train v001, seed 42"), "{told}");
    for needless in ["== base model", "== value model", "== reference\n"] {
        assert!(!told.contains(needless), "nothing reads it: {told}");
    }

    // What VESSL is given are the same jobs: the data set is there already, and the training begins with the same model.
    place.write("v001.yaml", TINY);
    place.write(
        "experiment.yaml",
        "{name: own, data: own, policy: {stored: outside}, recipes: [v001.yaml], seeds: [42]}",
    );
    let steps = vessl::plan_of(&place, "experiment.yaml");
    let ids: Vec<&str> = steps
        .iter()
        .filter_map(|step| step["id"].as_str())
        .collect();
    assert_eq!(ids[..3], ["data-set", "evaluate-base", "train-v001-s42"]);
    for step in [0, 2] {
        let again = vessl::run(&place, &steps[step]["spec"]).expect(0);
        again.says(&["already done"]);
    }

    // The reference alone is the user's: what is created shares its tokenizer, and so does the value model that it becomes.
    place.write(
        "both/v002.yaml",
        "extends: v001.yaml\nversion: {id: v002, parent: v001, change: weights}\nexperiment:\n  algo: verifiable\n",
    );
    std::fs::rename(
        place.path("recipes/v001.yaml"),
        place.path("both/v001.yaml"),
    )
    .expect("a move");
    let told = script("both", "beside", "REFERENCE");
    assert!(
        told.contains("== base model") && told.contains("== value model"),
        "{told}"
    );
}
