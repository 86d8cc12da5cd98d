//! The stages in their fixed order, their keys and gates, and the judgement of a run.

use std::collections::BTreeSet;

use crate::compare::{Comparison, Gate};
use crate::report::{Divergence, Report, StageReport, Status, Worst};
use crate::subject::Results;
use crate::{Case, Precision, Values};

/// One stage: which keys it owns and what they must satisfy.
struct Stage {
    name: &'static str,
    file: &'static str,
    prefixes: &'static [&'static str],
    gate: fn(Precision) -> Gate,
}

/// `spec/parity.md` 4.2 in order, up to the loss and the gradients.
const STAGES: [Stage; 10] = [
    Stage {
        name: "tokens",
        file: "inputs.safetensors",
        prefixes: &["ids", "mask", "target."],
        gate: |_| Gate::Exact,
    },
    // Tables of another routine: 2e-6 below position 32. Later stages share the golden's tables.
    Stage {
        name: "rotary",
        file: "inputs.safetensors",
        prefixes: &["rope."],
        gate: |_| Gate::Absolute(2e-6),
    },
    Stage {
        name: "embed",
        file: GOLDEN,
        prefixes: &["embed"],
        gate: |_| Gate::Exact,
    },
    Stage {
        name: "trunk",
        file: GOLDEN,
        prefixes: &["trunk."],
        gate: activations,
    },
    Stage {
        name: "heads",
        file: GOLDEN,
        prefixes: &["head."],
        gate: activations,
    },
    Stage {
        name: "token-loss",
        file: GOLDEN,
        prefixes: &["ce."],
        gate: |p| relative(p, 1e-10, 2e-6, 5e-6),
    },
    Stage {
        name: "value",
        file: GOLDEN,
        prefixes: &["value."],
        gate: |p| relative(p, 1e-9, 1e-5, 1e-5),
    },
    Stage {
        name: "weighting",
        file: GOLDEN,
        prefixes: &["td.", "weight."],
        gate: weighting,
    },
    Stage {
        name: "loss",
        file: GOLDEN,
        prefixes: &["loss."],
        gate: |p| relative(p, 1e-11, 1e-6, 1e-6),
    },
    Stage {
        name: "gradients",
        file: GOLDEN,
        prefixes: &["grad."],
        gate: |p| relative(p, 1e-9, 3e-5, 3e-5),
    },
];

const GOLDEN: &str = "golden.safetensors";

fn activations(precision: Precision) -> Gate {
    relative(precision, 1e-9, 1e-5, 2e-5)
}

fn weighting(precision: Precision) -> Gate {
    match relative(precision, 1e-9, 1e-5, 1e-5) {
        Gate::Relative {
            rel_l2, scaled_max, ..
        } => Gate::Relative {
            rel_l2,
            scaled_max,
            zeros_exact: true,
        },
        other => other,
    }
}

fn relative(precision: Precision, double: f64, single: f64, single_max: f64) -> Gate {
    let (rel_l2, scaled_max) = match precision {
        Precision::F64 => (double, double),
        Precision::F32 => (single, single_max),
    };
    Gate::Relative {
        rel_l2,
        scaled_max,
        zeros_exact: false,
    }
}

impl Stage {
    fn owns(&self, key: &str) -> bool {
        self.prefixes.iter().any(|prefix| {
            if prefix.ends_with('.') {
                key.starts_with(prefix)
            } else {
                key == *prefix
            }
        })
    }
}

/// Judges every stage; those after the first failing one are listed and marked.
pub(crate) fn judge(case: &Case, precision: Precision, actual: &Results) -> Report {
    let expected = expectations(case);
    let mut report = Report::new(case, precision);
    for stage in &STAGES {
        let (mut judged, divergence) = judge_stage(stage, case, precision, &expected, actual);
        if report.first_divergence.is_some() {
            judged.status = Status::AfterDivergence;
        } else {
            report.first_divergence = divergence;
        }
        report.add(judged);
    }
    let owned = |key: &str| STAGES.iter().any(|stage| stage.owns(key));
    report.not_compared = case
        .golden
        .keys()
        .filter(|key| !owned(key))
        .cloned()
        .collect();
    report
}

/// All expected keys: the golden file, and the inputs that our side reproduces.
fn expectations(case: &Case) -> Results {
    let mut expected = case.golden.clone();
    for key in ["ids", "mask", "rope.cos", "rope.sin"] {
        if let Some(values) = case.inputs.get(key) {
            expected.insert(key.to_owned(), values.clone());
        }
    }
    if let Some(ids) = case.inputs.get("ids") {
        let sequence = ids.shape[1];
        for k in 1..=case.config.n_future {
            let data = ids
                .data
                .chunks_exact(sequence)
                .flat_map(|row| row[k..].to_vec())
                .collect();
            let shape = vec![ids.shape[0], sequence - k];
            expected.insert(format!("target.{k}"), Values { shape, data });
        }
    }
    expected
}

fn judge_stage(
    stage: &Stage,
    case: &Case,
    precision: Precision,
    expected: &Results,
    actual: &Results,
) -> (StageReport, Option<Divergence>) {
    let mut keys: BTreeSet<&String> = expected.keys().filter(|key| stage.owns(key)).collect();
    let num_expected = keys.len();
    keys.extend(actual.keys().filter(|key| stage.owns(key)));
    let gate = (stage.gate)(precision);
    let mut judged = StageReport::new(stage.name, num_expected);
    let mut first = None;
    for key in order(keys, expected, actual) {
        let floor = if precision == Precision::F32 {
            case.noise_floor(key, precision)
        } else {
            None
        };
        let divergence = judge_key(
            stage,
            key,
            expected.get(key),
            actual.get(key),
            gate,
            floor,
            &mut judged,
        );
        first = first.or(divergence);
    }
    if judged.compared < num_expected.max(1) && first.is_none() {
        first = Some(Divergence::of_stage(
            stage.name,
            stage.file,
            "nothing was compared",
        ));
        judged.mismatch_count += 1;
    }
    judged.status = if first.is_none() {
        Status::Pass
    } else {
        Status::Fail
    };
    (judged, first)
}

/// Names that only one side has come first, so that a set is judged before values; within a block, sites
/// come in forward order.
fn order<'a>(keys: BTreeSet<&'a String>, expected: &Results, actual: &Results) -> Vec<&'a String> {
    const SITES: [&str; 4] = ["attn_heads", "attn_out", "resid", "logits"];
    let mut keys: Vec<_> = keys.into_iter().collect();
    keys.sort_by_cached_key(|key| {
        let (stem, site) = key.rsplit_once('.').unwrap_or((key, ""));
        let on_both = expected.contains_key(*key) && actual.contains_key(*key);
        match SITES.iter().position(|name| *name == site) {
            Some(place) => (on_both, stem.to_owned(), place),
            None => (on_both, (*key).clone(), 0),
        }
    });
    keys
}

fn judge_key(
    stage: &Stage,
    key: &str,
    expected: Option<&Values>,
    actual: Option<&Values>,
    gate: Gate,
    floor: Option<f64>,
    judged: &mut StageReport,
) -> Option<Divergence> {
    let fail = |judged: &mut StageReport, reason: String| {
        judged.mismatched += 1;
        judged.mismatch_count += 1;
        Some(Divergence::of_key(stage.name, stage.file, key, reason))
    };
    let (expected, actual) = match (expected, actual) {
        (Some(expected), Some(actual)) => (expected, actual),
        (Some(_), None) => return fail(judged, "missing".to_owned()),
        _ => return fail(judged, "unexpected".to_owned()),
    };
    if expected.shape != actual.shape {
        return fail(
            judged,
            format!("shape {:?}, expected {:?}", actual.shape, expected.shape),
        );
    }
    if expected.data.is_empty() {
        return fail(judged, "no elements".to_owned());
    }
    judged.compared += 1;
    let comparison = Comparison::of(actual, expected, gate, floor);
    judged.consider(Worst::of(key, &comparison));
    comparison.failed?;
    judged.mismatched += 1;
    judged.mismatch_count += comparison.mismatch_count;
    Some(Divergence::of_values(
        stage.name,
        stage.file,
        key,
        &comparison,
        expected,
        actual,
    ))
}
