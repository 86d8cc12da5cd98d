//! The stages behind the contract in their fixed order, their keys and gates, and the judgement of a run.

use std::collections::BTreeSet;

use candle_core::Device;

use crate::compare::{Comparison, Gate};
use crate::contract::{self, Compared};
use crate::floor::Floor;
use crate::golden::{GOLDEN_FILE, INPUTS_FILE, Kind};
use crate::report::{Divergence, Report, StageReport, Status, Worst};
use crate::subject::{MEAN_WEIGHT, ModelConfig, NO_TARGET, Outcome, Results, is_wide};
use crate::{Case, Error, Mode, Precision, Values};

/// What a gate depends on besides its key.
#[derive(Debug, Clone, Copy)]
struct Arithmetic {
    precision: Precision,
    /// Whether the model is as wide as the wide one of `spec/parity.md` 4.8, whose residual stream rounds coarser.
    wide: bool,
}

/// One stage: which keys it owns and what they must satisfy.
struct Stage {
    name: &'static str,
    file: &'static str,
    prefixes: &'static [&'static str],
    gate: fn(&str, Arithmetic) -> Gate,
}

const fn golden(
    name: &'static str,
    prefixes: &'static [&'static str],
    gate: fn(&str, Arithmetic) -> Gate,
) -> Stage {
    Stage {
        name,
        file: GOLDEN_FILE,
        prefixes,
        gate,
    }
}

const fn inputs(
    name: &'static str,
    prefixes: &'static [&'static str],
    gate: fn(&str, Arithmetic) -> Gate,
) -> Stage {
    Stage {
        file: INPUTS_FILE,
        ..golden(name, prefixes, gate)
    }
}

// Stages of `spec/parity.md` 4.2 that several kinds of case have.
const TOKENS: Stage = inputs("tokens", &["ids", "mask", "target."], exact);
// Our own tables; later stages share the golden's.
const ROTARY: Stage = inputs("rotary", &["rope."], |_, _| Gate::Tables);
const EMBED: Stage = golden("embed", &["embed"], exact);
const TRUNK: Stage = golden("trunk", &["trunk."], activations);
const HEADS: Stage = golden("heads", &["head."], activations);
const TOKEN_LOSS: Stage = golden("token-loss", &["ce."], token_loss);
const LOSS: Stage = golden("loss", &["loss."], |_, p| {
    products(p, 2e-3).unwrap_or(relative(p.precision, 1e-11, 1e-6, 1e-6))
});
const GRADIENTS: Stage = golden("gradients", &["grad."], |_, p| {
    products_by_size(p, [0.05, 0.15], 0.99).unwrap_or(relative(p.precision, 1e-9, 3e-5, 3e-5))
});
const CLIP: Stage = golden("clip", &["clip."], gradient_norm);
const STEP: Stage = golden("optimizer", &["param.step1.", "step."], |key, p| {
    if key.starts_with("step.") {
        steps(p)
    } else {
        parameters(key, p)
    }
});
const TRACE: Stage = golden("trace", &["trace."], |key, p| match key {
    "trace.grad_norm" => gradient_norm(key, p),
    _ => products(p, 6e-3).unwrap_or(whole(p.precision, 1e-10, 2e-6)),
});

/// What isolated mode computes twice: by the pass that trains, and by its plain twin upon the golden's activations.
const HAVE_TWINS: [&str; 2] = [LOSS.name, GRADIENTS.name];

/// `spec/parity.md` 4.2 in order, behind the contract.
const MODEL: [Stage; 13] = [
    TOKENS,
    ROTARY,
    EMBED,
    TRUNK,
    HEADS,
    TOKEN_LOSS,
    golden("value", &["value."], |_, p| {
        relative(p.precision, 1e-9, 1e-5, 1e-5)
    }),
    golden("weighting", &["td.", "weight."], weighting),
    LOSS,
    GRADIENTS,
    CLIP,
    STEP,
    TRACE,
];

const LORA: [Stage; 12] = [
    TOKENS,
    ROTARY,
    EMBED,
    TRUNK,
    HEADS,
    TOKEN_LOSS,
    LOSS,
    GRADIENTS,
    golden("merge", &["merged."], activations),
    CLIP,
    STEP,
    TRACE,
];

const FV: [Stage; 6] = [
    golden("trials", &["trial."], exact),
    golden("means", &["mean_activations"], activations),
    golden("effects", &["effect."], |key, p| match key {
        "effect.defined" => Gate::Exact,
        _ => effects(p.precision),
    }),
    golden("top-heads", &["top."], |key, p| match key {
        "top.heads" => Gate::Exact,
        _ => effects(p.precision),
    }),
    golden("vector", &["fv_by_block_resid", "fv_resid"], |key, p| {
        zeros_exact(activations(key, p))
    }),
    golden("injection", &["injected."], activations),
];

const ROPE: [Stage; 1] = [golden("rotary", &["cos.", "sin."], double)];

const WEIGHTING: [Stage; 2] = [
    golden("advantage", &["td."], double),
    golden("weighting", &["weight."], double),
];

const RHO1_LOSSES: Stage = golden(
    "token-loss",
    &["rho1.policy_ce", "rho1.reference_ce"],
    token_loss,
);
const RHO1_EXCESS: Stage = golden("excess", &["rho1.excess", "rho1.abs_excess"], weighting);
const RHO1_WEIGHTS: Stage = golden("weighting", &["rho1.weight", "rho1.topk"], weighting);

const RHO1: [Stage; 3] = [RHO1_LOSSES, RHO1_EXCESS, RHO1_WEIGHTS];

const RHO1_STEP: [Stage; 8] = [
    RHO1_LOSSES,
    RHO1_EXCESS,
    RHO1_WEIGHTS,
    LOSS,
    GRADIENTS,
    CLIP,
    STEP,
    TRACE,
];

const ADAMW: [Stage; 3] = [
    golden("schedule", &["schedule."], double),
    CLIP,
    golden("optimizer", &["param."], parameters),
];

const LAYOUT: [Stage; 3] = [
    golden("rows", &["rows."], exact),
    golden("logits", &["logits."], activations),
    golden("casts", &["bits.", "widened."], exact),
];

const GENERATE: [Stage; 2] = [
    golden("greedy", &["ids."], exact),
    golden("sampling", &["probability."], double),
];

const TOKENIZER: [Stage; 2] = [
    golden("encode", &["ids."], exact),
    golden("decode", &["back."], exact),
];

const PASSK: [Stage; 1] = [golden("passk", &["passk."], double)];

fn stages(kind: Kind) -> &'static [Stage] {
    match kind {
        Kind::Model => &MODEL,
        Kind::Lora => &LORA,
        Kind::Fv => &FV,
        Kind::Rope => &ROPE,
        Kind::Weighting => &WEIGHTING,
        Kind::Rho1 => &RHO1,
        Kind::Rho1Step => &RHO1_STEP,
        Kind::AdamW => &ADAMW,
        Kind::Layout => &LAYOUT,
        Kind::Generate => &GENERATE,
        Kind::Tokenizer => &TOKENIZER,
        Kind::PassK => &PASSK,
    }
}

fn exact(_: &str, _: Arithmetic) -> Gate {
    Gate::Exact
}

fn activations(_: &str, p: Arithmetic) -> Gate {
    products_by_size(p, [0.03, 0.10], 0.998).unwrap_or(relative(p.precision, 1e-9, 1e-5, 2e-5))
}

fn token_loss(_: &str, p: Arithmetic) -> Gate {
    products(p, 0.02).unwrap_or(relative(p.precision, 1e-10, 2e-6, 5e-6))
}

fn gradient_norm(_: &str, p: Arithmetic) -> Gate {
    products(p, 3e-2).unwrap_or(whole(p.precision, 1e-10, 5e-6))
}

/// The gate of what bf16 products reach, where the run has any: its tensors are judged as wholes.
fn products(p: Arithmetic, rel_l2: f64) -> Option<Gate> {
    as_wholes(p, rel_l2, None)
}

/// The same for what rounds coarser in a wide model: the distances of a small one and of a wide one, and the least cosine.
fn products_by_size(p: Arithmetic, [small, wide]: [f64; 2], cosine: f64) -> Option<Gate> {
    as_wholes(p, if p.wide { wide } else { small }, Some(cosine))
}

fn as_wholes(p: Arithmetic, rel_l2: f64, cosine: Option<f64>) -> Option<Gate> {
    (p.precision == Precision::Bf16).then_some(Gate::Relative {
        rel_l2,
        scaled_max: None,
        cosine,
        zeros_exact: false,
    })
}

/// No element gate: Adam's first step is nearly the sign of the gradient, so an element whose gradient is
/// about eps moves by up to the learning rate for a rounding of it.
fn parameters(_: &str, p: Arithmetic) -> Gate {
    products(p, 1e-2).unwrap_or(whole(p.precision, 1e-9, 3e-5))
}

/// A step is some hundredth of its parameter: rounding the sum to f32 alone leaves it off by 3e-5, and elements with a
/// gradient about eps by more. PyTorch's own steps in f32 are off by up to 1.1e-4 in the goldens here, and by some 6e-4 in
/// the wide model of `spec/parity.md` 4.8. In bf16 the signs of small gradients differ: steps are not compared there.
fn steps(p: Arithmetic) -> Gate {
    whole(p.precision, 1e-9, 1e-3)
}

/// Numbers that we compute in f64 whatever the run's precision.
fn double(_: &str, _: Arithmetic) -> Gate {
    relative(Precision::F64, 1e-9, 1e-9, 1e-9)
}

/// Weights and what they are made of: nothing may leak off the mask, and the mean is 1.
fn weighting(key: &str, p: Arithmetic) -> Gate {
    if key == MEAN_WEIGHT {
        return Gate::Absolute(1e-6);
    }
    zeros_exact(relative(p.precision, 1e-9, 1e-5, 1e-5))
}

/// Differences of probabilities that are some ten times as large. What a block does not reach stays at 0.
fn effects(precision: Precision) -> Gate {
    zeros_exact(relative(precision, 1e-9, 3e-5, 3e-5))
}

fn zeros_exact(gate: Gate) -> Gate {
    match gate {
        Gate::Relative {
            rel_l2,
            scaled_max,
            cosine,
            ..
        } => Gate::Relative {
            rel_l2,
            scaled_max,
            cosine,
            zeros_exact: true,
        },
        other => other,
    }
}

fn relative(precision: Precision, f64_both: f64, f32_rel_l2: f64, f32_scaled_max: f64) -> Gate {
    let (rel_l2, scaled_max) = match precision {
        Precision::F64 => (f64_both, f64_both),
        Precision::F32 | Precision::Bf16 => (f32_rel_l2, f32_scaled_max),
    };
    Gate::Relative {
        rel_l2,
        scaled_max: Some(scaled_max),
        cosine: None,
        zeros_exact: false,
    }
}

/// A tensor judged as a whole.
fn whole(precision: Precision, f64_rel_l2: f64, f32_rel_l2: f64) -> Gate {
    Gate::Relative {
        rel_l2: match precision {
            Precision::F64 => f64_rel_l2,
            Precision::F32 | Precision::Bf16 => f32_rel_l2,
        },
        scaled_max: None,
        cosine: None,
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

/// Judges every stage. In chained mode those after the first failing one are marked; in isolated mode each
/// stands for itself.
pub(crate) fn judge(
    case: &Case,
    precision: Precision,
    mode: Mode,
    device: &Device,
    mut outcome: Outcome,
) -> Result<Report, Error> {
    let mut expected = expectations(case)?;
    if precision != Precision::Bf16 {
        add_steps(case, &mut expected);
        add_steps(case, &mut outcome.results);
    }
    let stages = stages(case.kind);
    let run = Judged {
        case,
        arithmetic: Arithmetic {
            precision,
            wide: is_wide(case)?,
        },
        expected,
        missing: match &outcome.stopped {
            Some(error) => format!("missing: {}", error.said()),
            None => "missing".to_owned(),
        },
        outcome,
    };
    let mut report = Report::new(case, precision, mode, device);
    report.stopped = run.outcome.stopped.as_ref().map(Error::said);
    let compared = |key: &str| run.compared(stages, key);
    let keys = case.golden.keys();
    report.not_compared = keys
        .filter(|key| compared(key) == Compared::Never)
        .cloned()
        .collect();
    let (contract, divergence) = contract::judge(case, precision, compared, &run.outcome.results);
    report.first_divergence = divergence;
    report.add_contract(contract);
    for stage in stages {
        let (mut judged, divergence) = run.judge(stage);
        if report.first_divergence.is_none() {
            report.first_divergence = divergence;
        } else if mode == Mode::Chained {
            judged.status = Status::AfterDivergence;
        }
        report.add(judged);
    }
    Ok(report)
}

/// All expected keys: the golden file and, for a training step, what follows from its inputs and its trace.
fn expectations(case: &Case) -> Result<Results, Error> {
    let mut expected = case.golden.clone();
    if matches!(case.kind, Kind::Model | Kind::Lora) {
        for key in ["ids", "mask", "rope.cos", "rope.sin"] {
            expected.insert(key.to_owned(), case.input(key)?.clone());
        }
        expect_targets(case, &mut expected)?;
    }
    if case.kind == Kind::Model {
        expected.insert(MEAN_WEIGHT.to_owned(), Values::vector(vec![1.0]));
    }
    if let Some(norm) = case
        .golden
        .get("trace.grad_norm")
        .and_then(|norms| norms.data.first())
    {
        let coefficient = (case.optimizer()?.clip / (norm + 1e-6)).min(1.0);
        expected.insert("clip.norm".to_owned(), Values::vector(vec![*norm]));
        expected.insert(
            "clip.coefficient".to_owned(),
            Values::vector(vec![coefficient]),
        );
    }
    Ok(expected)
}

/// `step.<name>`: how far the optimizer's first step moved each parameter. 0 where the gradient is too small beside its
/// largest for the step to be more than the sign of a rounding.
fn add_steps(case: &Case, results: &mut Results) {
    let step = |(key, after): (&String, &Values)| {
        let name = key.strip_prefix("param.step1.")?;
        let before = case.weights.get(name)?;
        let gradient = case.golden.get(&format!("grad.{name}"))?;
        if before.shape != after.shape || before.shape != gradient.shape {
            return None;
        }
        let top = gradient.data.iter().fold(0f64, |m, g| m.max(g.abs()));
        let moved = after.data.iter().zip(&before.data).zip(&gradient.data);
        let data = moved.map(|((after, before), g)| {
            let counts = g.abs() > 1e-6 * top;
            if counts { after - before } else { 0.0 }
        });
        let step = Values {
            dtype: after.dtype,
            ..Values::new(before.shape.clone(), data.collect())
        };
        Some((format!("step.{name}"), step))
    };
    let steps: Vec<_> = results.iter().filter_map(step).collect();
    results.extend(steps);
}

/// `target.k`: the id that horizon k predicts at each position, `[b, s-k]`; none where that token is no response target.
fn expect_targets(case: &Case, expected: &mut Results) -> Result<(), Error> {
    let (ids, mask) = (case.input("ids")?, case.input("mask")?);
    let [rows, sequence] = ids.shape[..] else {
        return Err(case.bad(format!("ids have shape {:?}", ids.shape)));
    };
    let target = |id: &f64, counts: &f64| if *counts > 0.0 { *id } else { NO_TARGET };
    for k in 1..=case.config::<ModelConfig>()?.n_future {
        let both = ids
            .data
            .chunks_exact(sequence)
            .zip(mask.data.chunks_exact(sequence));
        let of_row = |(ids, mask): (&[f64], &[f64])| {
            let reached = ids[k..].iter().zip(&mask[k..]);
            reached
                .map(|(id, counts)| target(id, counts))
                .collect::<Vec<_>>()
        };
        let data = both.flat_map(of_row).collect();
        let target = Values::new(vec![rows, sequence - k], data);
        expected.insert(format!("target.{k}"), target);
    }
    Ok(())
}

/// A run and what it is held to.
struct Judged<'a> {
    case: &'a Case,
    arithmetic: Arithmetic,
    expected: Results,
    outcome: Outcome,
    /// What is said of a key that the run does not have.
    missing: String,
}

impl Judged<'_> {
    /// How the stages compare a golden key.
    fn compared(&self, stages: &[Stage], key: &str) -> Compared {
        match stages.iter().find(|stage| stage.owns(key)) {
            None => Compared::Never,
            Some(stage) if (stage.gate)(key, self.arithmetic) == Gate::Exact => Compared::Exactly,
            Some(_) => Compared::ByDistance,
        }
    }

    /// Judges one stage. What is right in the pass that trains has to be right in its twin, too, where that ran.
    fn judge(&self, stage: &Stage) -> (StageReport, Option<Divergence>) {
        let judged = self.judge_results(stage, &self.outcome.results);
        match &self.outcome.twin {
            Some(twin) if judged.1.is_none() && HAVE_TWINS.contains(&stage.name) => {
                let of_twin = self.judge_results(stage, twin);
                if of_twin.1.is_some() { of_twin } else { judged }
            }
            _ => judged,
        }
    }

    fn judge_results(&self, stage: &Stage, actual: &Results) -> (StageReport, Option<Divergence>) {
        let owned = |results: &'_ Results| {
            let keys = results.keys().filter(|key| stage.owns(key));
            keys.cloned().collect::<BTreeSet<String>>()
        };
        let mut keys = owned(&self.expected);
        let num_expected = keys.len();
        keys.extend(owned(actual));
        let mut judged = StageReport::new(stage.name, num_expected);
        let mut first = None;
        for key in order(keys, &self.expected, actual) {
            let divergence = self.judge_key(stage, &key, actual.get(&key), &mut judged);
            first = first.or(divergence);
        }
        if judged.compared < num_expected.max(1) && first.is_none() {
            let reason = "nothing was compared";
            first = Some(Divergence::of_stage(stage.name, stage.file, reason));
            judged.mismatch_count += 1;
        }
        judged.status = Status::of(first.is_none());
        (judged, first)
    }

    fn judge_key(
        &self,
        stage: &Stage,
        key: &str,
        actual: Option<&Values>,
        judged: &mut StageReport,
    ) -> Option<Divergence> {
        let fail = |judged: &mut StageReport, reason: String| {
            judged.mismatched += 1;
            judged.mismatch_count += 1;
            Some(Divergence::of_key(stage.name, stage.file, key, reason))
        };
        let (expected, actual) = match (self.expected.get(key), actual) {
            (Some(expected), Some(actual)) => (expected, actual),
            (Some(_), None) => return fail(judged, self.missing.clone()),
            _ => return fail(judged, "unexpected".to_owned()),
        };
        if expected.shape != actual.shape {
            let (found, expected) = (&actual.shape, &expected.shape);
            return fail(judged, format!("shape {found:?}, expected {expected:?}"));
        }
        if expected.data.is_empty() {
            return fail(judged, "no elements".to_owned());
        }
        judged.compared += 1;
        let gate = (stage.gate)(key, self.arithmetic);
        let precision = self.arithmetic.precision;
        let floor = Floor::of(self.case, key, precision, &self.outcome.results);
        let comparison = Comparison::of(actual, expected, gate, floor.as_ref());
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
}

/// Names that only one side has come first, so that a set is judged before values; within a block, sites
/// come in forward order.
fn order(keys: BTreeSet<String>, expected: &Results, actual: &Results) -> Vec<String> {
    const SITES: [&str; 4] = ["attn_heads", "attn_out", "resid", "logits"];
    let mut keys: Vec<_> = keys.into_iter().collect();
    keys.sort_by_cached_key(|key| {
        let (stem, site) = key.rsplit_once('.').unwrap_or((key.as_str(), ""));
        let on_both = expected.contains_key(key) && actual.contains_key(key);
        match SITES.iter().position(|name| *name == site) {
            Some(place) => (on_both, stem.to_owned(), place),
            None => (on_both, key.clone(), 0),
        }
    });
    keys
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn steps_leave_out_what_has_next_to_no_gradient() {
        let mut case =
            Case::load(Path::new("goldens/nano")).expect("the committed golden is whole");
        let name = "layers.0.attention.wq.weight";
        let after = case.golden[&format!("param.step1.{name}")].data.clone();
        let gradient = case.golden.get_mut(&format!("grad.{name}")).unwrap();
        let top = gradient.data.iter().fold(0f64, |m, g| m.max(g.abs()));
        gradient.data[..3].copy_from_slice(&[-0.9e-6 * top, 0.0, -1.1e-6 * top]);
        let mut steps = case.golden.clone();
        add_steps(&case, &mut steps);
        let step = &steps[&format!("step.{name}")].data;
        let before = &case.weights[name].data;
        assert_eq!(step[..2], [0.0, 0.0]);
        for i in 2..step.len() {
            assert_eq!(step[i].to_bits(), (after[i] - before[i]).to_bits(), "{i}");
        }
        let count = |prefix| steps.keys().filter(|key| key.starts_with(prefix)).count();
        assert_eq!(count("step."), count("param.step1."));
    }

    #[test]
    fn what_a_run_did_not_reach_is_missing_for_its_reason() {
        let case = Case::load(Path::new("goldens/passk")).expect("the committed golden is whole");
        let reason = candle_core::Error::Msg("out of memory".to_owned());
        let outcome = Outcome {
            results: Results::new(),
            twin: None,
            stopped: Some(reason.into()),
        };
        let (mode, device) = (Mode::Chained, Device::Cpu);
        let report = judge(&case, Precision::F64, mode, &device, outcome).expect("a report");
        let first = report
            .first_divergence
            .as_ref()
            .expect("a stage is missing");
        let expected = ("passk", Some("passk.defined"));
        assert_eq!((first.stage, first.key.as_deref()), expected);
        let said = "the model under test failed: tensor operation failed: out of memory";
        assert_eq!(first.reason, format!("missing: {said}"));
        assert_eq!(report.stopped.as_deref(), Some(said));
        assert_eq!((report.mismatch_count, report.exit_code()), (2, 4));
        let ending = format!("The subject ended early: {said}.");
        assert!(report.markdown().contains(&ending));
    }

    #[test]
    fn bf16_is_bounded_by_the_width_of_the_model() {
        let bound = |gate: fn(&str, Arithmetic) -> Gate, wide, precision| match gate(
            "",
            Arithmetic { precision, wide },
        ) {
            Gate::Relative { rel_l2, cosine, .. } => (rel_l2, cosine),
            other => panic!("{other:?}"),
        };
        let half = |gate, wide| bound(gate, wide, Precision::Bf16);
        assert_eq!(half(activations, false), (0.03, Some(0.998)));
        assert_eq!(half(activations, true), (0.10, Some(0.998)));
        assert_eq!(half(GRADIENTS.gate, false), (0.05, Some(0.99)));
        assert_eq!(half(GRADIENTS.gate, true), (0.15, Some(0.99)));
        let gates: [fn(&str, Arithmetic) -> Gate; 2] = [activations, GRADIENTS.gate];
        for gate in gates {
            let single = |wide| bound(gate, wide, Precision::F32);
            assert_eq!(single(false), single(true));
        }
    }
}
