//! A training step of adapters on a frozen base: forward pass, the gradients of the adapters alone, the merged
//! model, clipping, optimizer and trace.

use serde::Deserialize;
use wmtp_model::{Adapters, LoraSettings, LoraTarget, MtpModel, ParamStore, Params, Rotary};

use super::batch::{Batch, ModelConfig, shared_rotary};
use super::model::{self, TargetWeights};
use super::step::{Fixed, Learned};
use super::{Mutation, Run, step};
use crate::{Error, Values};

#[derive(Deserialize)]
struct Config {
    r: usize,
    alpha: f64,
}

pub(super) fn run(run: &mut Run) -> Result<(), Error> {
    let params = run.case.config::<ModelConfig>()?.params(run.case)?;
    let batch = Batch::new(run.case, &params)?;
    let rotary = shared_rotary(run.case, &params, batch.sequence)?;
    model::record_tokens(run, &batch, &params)?;
    model::record_rotary(run, &batch, &params);
    let base = run.store(&params, "")?;
    let scaled = !run.has(&Mutation::LoraScale);
    let adapters = adapters(run, &params, scaled)?;
    let policy = MtpModel::adapted(&params, &base, &adapters)?
        .with_rotary(rotary.clone())
        .with_products(run.products());
    let hidden = model::record_forward(run, &policy, &batch)?;

    let shape = [batch.responses.len(), batch.sequence];
    let weights = TargetWeights::new(run, &batch, run.case.input_of("weights", &shape)?)?;
    let leak = base
        .get("output.weight")
        .filter(|_| run.has(&Mutation::LoraLeak));
    let unembedding = leak.map_or(policy.unembedding(), |trained| trained.as_tensor());
    let total = model::record_loss(run, &hidden, unembedding, &batch, &weights)?;
    let scorer = || Ok::<_, Error>(Fixed::boxed(&batch, &weights));
    let learned = Learned {
        policy: &policy,
        trained: adapters.store(),
        frozen: Some(&base),
        batch: &batch,
        scorer: &scorer,
    };
    let first = step::first_gradients(run, &learned, Some(&total))?;
    record_merged(run, &params, &base, rotary, &batch)?;
    step::record(run, &learned, &first)
}

/// The golden's adapters on every matrix.
fn adapters(run: &Run, params: &Params, scaled: bool) -> Result<Adapters, Error> {
    let Config { r, alpha } = run.case.config()?;
    let settings = LoraSettings {
        r,
        alpha: if scaled { alpha } else { r as f64 },
        targets: LoraTarget::ALL.to_vec(),
    };
    let adapters = Adapters::init(params, settings, 0, run.precision.dtype(), &run.device)?;
    for (name, var) in adapters.store().iter() {
        let mut value = run.weight_of(name, var.dims())?;
        if run.has(&Mutation::LoraSwap) {
            let (matrix, side) = name.split_at(name.len() - 1);
            let other = format!("{matrix}{}", if side == "a" { "b" } else { "a" });
            let swapped = run.weight(&other)?.t()?;
            if swapped.dims() == value.dims() {
                value = swapped.contiguous()?;
            }
        }
        var.set(&value)?;
    }
    Ok(adapters)
}

/// Every weight that merging changed, and the logits of the plain model that it makes.
fn record_merged(
    run: &mut Run,
    params: &Params,
    base: &ParamStore,
    rotary: Rotary,
    batch: &Batch,
) -> Result<(), Error> {
    let scaled = !(run.has(&Mutation::LoraScale) || run.has(&Mutation::LoraMerge));
    let merged = adapters(run, params, scaled)?.merge(base)?;
    for ((name, merged), (_, base)) in merged.iter().zip(base.iter()) {
        let merged = Values::of(merged)?;
        if merged != Values::of(base)? {
            run.record(format!("merged.{name}"), merged);
        }
    }
    let plain = MtpModel::frozen(params, &merged)?
        .with_rotary(rotary)
        .with_products(run.products());
    let trunk = plain.trunk(&batch.ids_bs)?;
    for horizon in params.horizons() {
        let logits = plain.logits(&plain.head_hidden(horizon, &trunk)?)?;
        run.record(
            format!("merged.head.{horizon}.logits"),
            Values::of(&logits)?,
        );
    }
    Ok(())
}
