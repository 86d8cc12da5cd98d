use std::collections::BTreeMap;

use serde_json::json;
use wmtp_recipe::{Algo, Recipe, Rules, Version};

use super::*;
use crate::figures::{Comparison, Figures};
use crate::table::tests::{run, tasks};
use crate::table::{Judged, judge};
use crate::training::{TrainingFacts, WeightFacts};

const BY_A_PERSON: &str = "\
# What I would try

From: v002
Next: v003

## Selected Action

- **Goal:** less noise
- Change: weights.blend: 1 \u{2192} 0.5
- **Where**: v003.yaml
- **Expected impact**: pass_at_1 +1 point
- **Risk**: none to speak of
- **Verification**: compare with v002
";

fn recipe(id: &str, algo: Algo) -> Recipe {
    let mut recipe = Recipe {
        version: Version {
            id: id.to_owned(),
            ..Version::default()
        },
        ..Recipe::default()
    };
    recipe.experiment.algo = algo;
    recipe
}

fn error(text: &str) -> Error {
    Action::parse(text, "v002").unwrap_err()
}

#[test]
fn an_action_of_a_person_is_read_and_applied() {
    let action = Action::parse(BY_A_PERSON, "v002").unwrap();
    assert_eq!(action.entry, BY_HAND);
    let from = recipe("v002", Algo::Verifiable);
    let next = action.apply(&from, &Rules::default()).unwrap();
    assert_eq!(
        from.differences(&next),
        [
            "version.id",
            "version.parent",
            "version.change",
            "weights.blend"
        ]
    );
    assert_eq!(next.version.parent.as_deref(), Some("v002"));
    assert_eq!(
        next.version.change.as_deref(),
        Some("weights.blend from 1 to 0.5")
    );
}

#[test]
fn a_second_change_is_refused_however_it_is_written() {
    let line = "- Change: weights.blend: 1 \u{2192} 0.5";
    let twice = BY_A_PERSON.replace(
        line,
        &format!("{line}\n- **Change**: `weights.eps`: `0.1` -> `0.2`"),
    );
    assert_eq!(error(&twice), Error::SecondChange { line: 10 });
    let chained = BY_A_PERSON.replace("0.5", "0.5, weights.eps: 0.1 -> 0.2");
    assert_eq!(error(&chained), Error::SecondChange { line: 9 });
}

#[test]
fn what_is_missing_or_strange_is_named() {
    let without = |line: &str| error(&BY_A_PERSON.replace(line, "")).to_string();
    assert!(
        without("- **Risk**: none to speak of").contains("Risk of the selected action is missing")
    );
    assert!(without("- Change: weights.blend: 1 \u{2192} 0.5").contains("Change"));
    assert!(without("Next: v003").contains("Next"));
    assert!(without("From: v002").contains("From"));
    let strange = |from: &str, to: &str| error(&BY_A_PERSON.replace(from, to)).to_string();
    assert!(strange("Risk", "Danger").contains("line 12: the field \"Danger\""));
    assert!(strange("From: v002", "From: ../x").contains("no version"));
    assert!(strange("weights.blend: 1 \u{2192} 0.5", "half the blend").contains("expected `key`"));
}

#[test]
fn an_action_that_does_not_fit_is_refused_with_the_reason() {
    let refused = |change: &str, rules: &str| {
        let text = BY_A_PERSON.replace("weights.blend: 1 \u{2192} 0.5", change);
        let rules = Rules::parse(Some(rules), None).unwrap();
        let action = Action::parse(&text, "v002").unwrap();
        let error = action
            .apply(&recipe("v002", Algo::Verifiable), &rules)
            .unwrap_err();
        error.to_string()
    };
    let free = "{}";
    assert!(refused("weights.blend: 0.9 -> 0.5", free).contains("it is 1.0 in v002, not 0.9"));
    assert!(refused("weights.blend: 1 -> 7", free).contains("from 0 to 1"));
    assert!(refused("weights.blend: 1 -> 1.0", free).contains("already"));
    assert!(refused("weights.blendd: 1 -> 0.5", free).contains("did you mean `weights.blend`"));
    assert!(refused("optim.lr: 0.00001 -> 0.1", free).contains("begin another loop"));
    assert!(refused("version.id: v002 -> v009", free).contains("names are no change"));
    let fixed = r#"{"training_config": {"weights.blend": 1.0}}"#;
    assert!(refused("weights.blend: 1 -> 0.5", fixed).contains("fixes weights.blend"));
    let bounded = r#"{"training_config": {"weights.blend": {"min": 0.75}}}"#;
    assert!(refused("weights.blend: 1 -> 0.5", bounded).contains("0.5 became 0.75"));
}

#[test]
fn an_action_that_would_train_the_same_bytes_is_refused() {
    let said = |algo: Algo, change: &str| {
        let text = BY_A_PERSON
            .replace("weights.blend: 1 \u{2192} 0.5", change)
            .replace("From: v002", "From: v001");
        let action = Action::parse(&text, "v001").unwrap();
        let from = recipe("v001", algo);
        action
            .apply(&from, &Rules::default())
            .unwrap_err()
            .to_string()
    };
    let blend = said(Algo::Baseline, "weights.blend: 1 -> 0.5");
    assert!(blend.contains("sets no scores"), "{blend}");
    assert!(said(Algo::Rho1, "score.gamma: 1 -> 0.9").contains("no advantages"));
    assert!(said(Algo::Rho1, "weights.whiten: auto -> ema").contains("already"));
    assert!(said(Algo::Verifiable, "rho1.min_ce_diff: 0.01 -> 0.1").contains("no excess loss"));
}

/// A loop whose versions solve so many of 20 samples a task; all but the first descend from the one before.
struct World {
    judged: Judged,
    figures: BTreeMap<String, Figures>,
    recipes: BTreeMap<String, Recipe>,
    rules: Rules,
}

impl World {
    fn new(versions: &[(Recipe, u32)], weights: WeightFacts, rules: &str) -> Self {
        let mut runs = vec![run("base", "base", None, None, &tasks(0))];
        let mut before: Option<String> = None;
        let mut recipes = BTreeMap::new();
        let mut training = BTreeMap::new();
        for (recipe, level) in versions {
            let id = recipe.version.id.clone();
            let algo = recipe.experiment.algo.as_str();
            runs.push(run(&id, algo, before.as_deref(), Some(42), &tasks(*level)));
            recipes.insert(id.clone(), recipe.clone());
            let facts = TrainingFacts {
                weights: Some(weights),
                ..TrainingFacts::default()
            };
            training.insert(id.clone(), facts);
            before = Some(id);
        }
        let judged = judge(&runs).unwrap();
        let mut comparison = Comparison::default();
        let figures = judged
            .versions
            .iter()
            .map(|version| {
                let parent = judged
                    .versions
                    .iter()
                    .find(|other| Some(&other.version_id) == version.parent.as_ref());
                let figures = comparison.figures(version, parent, &training).unwrap();
                (version.version_id.clone(), figures)
            })
            .collect();
        Self {
            judged,
            figures,
            recipes,
            rules: Rules::parse(Some(rules), None).unwrap(),
        }
    }

    fn select(&self, max_versions: u32) -> Action {
        let after = self.recipes.keys().next_back().unwrap();
        let action = select(
            after,
            &Loop {
                board: &self.judged.board,
                figures: &self.figures,
                recipes: &self.recipes,
                rules: &self.rules,
                max_versions,
            },
        );
        // What is written reads back as it was.
        assert_eq!(Action::parse(&action.render(), after).unwrap(), action);
        action
    }
}

const SPREAD: WeightFacts = WeightFacts {
    std: 0.8,
    entropy: 0.9,
    clip_low: 0.1,
    clip_high: 0.01,
};

fn change(action: &Action) -> String {
    action.selected.as_ref().unwrap().change.words()
}

#[test]
fn a_baseline_is_weighed_by_advantages_first() {
    let world = World::new(&[(recipe("v001", Algo::Baseline), 8)], SPREAD, "{}");
    let action = world.select(4);
    assert_eq!(action.entry, "weigh-by-advantage");
    assert_eq!(
        change(&action),
        "experiment.algo from baseline to verifiable"
    );
    assert_eq!(
        (action.from.as_str(), action.next.as_deref()),
        ("v001", Some("v002"))
    );
    assert!(
        action
            .deferred
            .iter()
            .any(|(name, _)| name == "weigh-by-excess")
    );
    let next = action.apply(&world.recipes["v001"], &world.rules).unwrap();
    assert_eq!(next.experiment.algo, Algo::Verifiable);
}

#[test]
fn a_loss_halves_the_share_of_the_weights() {
    let versions = [
        (recipe("v001", Algo::Baseline), 12),
        (recipe("v002", Algo::Verifiable), 8),
    ];
    let action = World::new(&versions, SPREAD, "{}").select(4);
    assert_eq!(action.entry, "halve-blend");
    assert_eq!(change(&action), "weights.blend from 1.0 to 0.5");
    assert_eq!(action.from, "v002", "what mends a version starts from it");
    let impact = &action.selected.as_ref().unwrap().expected_impact;
    assert!(
        impact.contains("+10.0 points"),
        "half of 20 points: {impact}"
    );
}

#[test]
fn a_gain_asks_for_a_control() {
    let versions = [
        (recipe("v001", Algo::Baseline), 8),
        (recipe("v002", Algo::Verifiable), 12),
    ];
    let action = World::new(&versions, SPREAD, "{}").select(4);
    assert_eq!(
        change(&action),
        "experiment.algo from verifiable to shuffled"
    );
}

#[test]
fn what_does_not_mend_a_dead_end_starts_from_its_last_live_ancestor() {
    let mut blended = recipe("v003", Algo::Verifiable);
    blended.weights.blend = 0.15;
    let versions = [
        (recipe("v001", Algo::Baseline), 14),
        (recipe("v002", Algo::Verifiable), 10),
        (blended, 5),
    ];
    let action = World::new(&versions, SPREAD, "{}").select(9);
    assert_eq!(action.entry, "weigh-by-excess");
    assert_eq!(action.from, "v001");
    assert!(
        action.selection.contains("v002 lies below its parent v001"),
        "{}",
        action.selection
    );
    let reason = &action
        .deferred
        .iter()
        .find(|(name, _)| name == "weigh-by-advantage")
        .unwrap()
        .1;
    assert!(reason.contains("v002 has this recipe"), "{reason}");
}

/// Names of what the catalogue proposes for a version of Rho-1 that lost, whether it is taken or not.
fn proposed(change: impl Fn(&mut Recipe), weights: WeightFacts) -> Vec<String> {
    let mut rho1 = recipe("v002", Algo::Rho1);
    change(&mut rho1);
    let versions = [(recipe("v001", Algo::Baseline), 12), (rho1, 8)];
    let action = World::new(&versions, weights, "{}").select(9);
    let deferred = action.deferred.into_iter().map(|(name, _)| name);
    deferred.chain([action.entry]).collect()
}

#[test]
fn what_a_selection_does_not_read_is_not_proposed_for_it() {
    let crowded = WeightFacts {
        std: 0.2,
        entropy: 0.7,
        clip_low: 0.4,
        clip_high: 0.2,
    };
    let has = |names: &[String], name: &str| names.iter().any(|one| one == name);
    let continuous = proposed(|_| {}, crowded);
    for name in [
        "halve-blend",
        "soften-weights",
        "sharpen-weights",
        "narrow-weights",
    ] {
        assert!(has(&continuous, name), "{name}: {continuous:?}");
    }
    let topk = |recipe: &mut Recipe| recipe.rho1.weighting = wmtp_recipe::Rho1Weighting::Topk;
    let soft = proposed(topk, crowded);
    assert!(
        has(&soft, "halve-blend") && has(&soft, "narrow-weights"),
        "{soft:?}"
    );
    assert!(
        !has(&soft, "soften-weights") && !has(&soft, "sharpen-weights"),
        "{soft:?}"
    );
    let hard = |recipe: &mut Recipe| {
        topk(recipe);
        recipe.rho1.hard = true;
    };
    let below = WeightFacts {
        clip_high: 0.0,
        ..crowded
    };
    let hard = proposed(hard, below);
    for name in [
        "halve-blend",
        "soften-weights",
        "sharpen-weights",
        "narrow-weights",
    ] {
        assert!(!has(&hard, name), "{name}: {hard:?}");
    }
}

#[test]
fn rules_drop_and_move_candidates_and_say_so() {
    let versions = [
        (recipe("v001", Algo::Baseline), 12),
        (recipe("v002", Algo::Verifiable), 8),
    ];
    let moved = World::new(
        &versions,
        SPREAD,
        r#"{"training_config": {"weights.blend": {"min": 0.75}}}"#,
    )
    .select(4);
    assert_eq!(change(&moved), "weights.blend from 1.0 to 0.75");
    assert!(
        moved.selection.contains("0.5 became 0.75"),
        "{}",
        moved.selection
    );

    let fixed = r#"{"training_config": {"weights.blend": 1.0}}"#;
    let crowded = WeightFacts {
        clip_high: 0.2,
        ..SPREAD
    };
    let dropped = World::new(&versions, crowded, fixed).select(4);
    assert_eq!(dropped.entry, "soften-weights");
    let mut deferred = dropped.deferred.iter();
    let (_, reason) = deferred.find(|(name, _)| name == "halve-blend").unwrap();
    assert!(
        reason.contains("dropped: user_defined_rules.json"),
        "{reason}"
    );
}

#[test]
fn the_loop_ends_when_all_versions_are_made_or_nothing_is_left() {
    let versions = [
        (recipe("v001", Algo::Baseline), 12),
        (recipe("v002", Algo::Verifiable), 8),
    ];
    let world = World::new(&versions, SPREAD, "{}");
    let full = world.select(2);
    assert_eq!((full.next.as_ref(), full.selected.as_ref()), (None, None));
    assert!(full.selection.contains("All 2 versions"));
    let rules = r#"{"training_config": {"experiment.algo": "baseline"}}"#;
    let stuck = World::new(&versions[..1], SPREAD, rules).select(9);
    assert_eq!(stuck.next, None);
    assert!(stuck.selection.contains("None is left"));
    assert_eq!(stuck.deferred.len(), 2, "{:?}", stuck.deferred);
}

#[test]
fn every_entry_names_a_setting_and_a_name_of_its_own() {
    let recipe = Recipe::default();
    let mut names: Vec<&str> = catalogue::CATALOGUE
        .iter()
        .map(|entry| entry.name)
        .collect();
    for entry in &catalogue::CATALOGUE {
        assert!(recipe.setting(entry.key).is_some(), "{}", entry.key);
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), catalogue::CATALOGUE.len());
    assert_eq!(scalar(&json!("verifiable")), "verifiable");
}
