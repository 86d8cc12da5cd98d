//! Function vectors of fixed trials: mean head activations, indirect effects, top heads, the vector, its injection.

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use wmtp_model::function_vectors::{
    BlockAt, FunctionVector, IndirectEffects, Prompt, TopHead, Trial, Trials, indirect_effects,
    injected_logits, mean_head_activations, top_heads,
};
use wmtp_model::{Horizon, MtpModel, Params};

use super::batch::{ModelConfig, shared_rotary};
use super::{Mutation, Run};
use crate::{Error, Values};

#[derive(Deserialize)]
struct Config {
    trial_ids: Vec<u64>,
    top_k: usize,
    coefficient: f64,
}

pub(super) fn run(run: &mut Run) -> Result<(), Error> {
    let params = run.case.config::<ModelConfig>()?.params(run.case)?;
    let config: Config = run.case.config()?;
    let trials = trials(run, &config.trial_ids, params.vocab_size)?;
    let prompts = run.case.inputs.iter();
    let is_prompt = |key: &str| matches!(key.rsplit('.').next(), Some("clean" | "corrupted"));
    let prompts = prompts.filter(|(key, _)| is_prompt(key));
    let longest = prompts.map(|(_, ids)| ids.data.len()).max().unwrap_or(0);
    let model = MtpModel::frozen(&params, &run.store(&params, "")?)?;
    let model = model.with_rotary(shared_rotary(run.case, &params, longest)?);
    record_keys(run, &trials);
    let means = mean_head_activations(&model, &trials)?;
    run.record("mean_activations", Values::of(&means)?);
    record_effects(run, &model, &trials)?;
    record_top_heads(run, &params, config.top_k)?;
    record_vector(run, &model)?;
    record_injection(run, &model, &trials, config.coefficient)
}

fn trials(run: &Run, ids: &[u64], vocab: usize) -> Result<Trials, Error> {
    let trial = |(index, id): (usize, &u64)| {
        let input = |name: &str, bound| run.case.ids(&format!("trial.{index}.{name}"), bound);
        let tokens = |name: &str| input(name, vocab);
        let clean = tokens("clean")?;
        let slots = input("slots", clean.len())?;
        let mut slots: Vec<usize> = slots.into_iter().map(|slot| slot as usize).collect();
        if run.has(&Mutation::WordSlots) {
            leave_words(&mut slots);
        }
        Ok(Trial {
            id: *id,
            clean: Prompt::new(clean, slots)
                .map_err(|e| run.case.bad(format!("trial {index}: {e}")))?,
            corrupted: tokens("corrupted")?,
            answer: tokens("answer")?,
        })
    };
    let trials = ids.iter().enumerate().map(trial);
    Trials::new(trials.collect::<Result<_, Error>>()?).map_err(|e| run.case.bad(e))
}

/// The last token of every word of several goes to the slot behind it.
fn leave_words(slots: &mut [usize]) {
    for i in (1..slots.len()).rev() {
        if slots[i] == slots[i - 1] {
            slots[i] += 1;
        }
    }
}

/// The key of every row about a trial: its id and its place.
fn record_keys(run: &mut Run, trials: &Trials) {
    let key = |(index, trial): (usize, &Trial)| [trial.id as f64, index as f64];
    let data = trials.iter().enumerate().flat_map(key).collect();
    run.record("trial.key", Values::new(vec![trials.iter().len(), 2], data));
}

/// What later stages take for `key`, as a tensor of the model.
fn upstream(run: &Run, key: &str) -> Result<Tensor, Error> {
    Ok(run
        .upstream(key)
        .tensor(run.precision.dtype(), &run.device)?)
}

/// What later stages take for `key`, as statistics are kept: on the host, in double precision.
fn statistics(run: &Run, key: &str) -> Result<Tensor, Error> {
    Ok(run.upstream(key).tensor(DType::F64, &Device::Cpu)?)
}

fn record_effects(run: &mut Run, model: &MtpModel, trials: &Trials) -> Result<(), Error> {
    let mut means = upstream(run, "mean_activations")?;
    if run.has(&Mutation::PatchSlot) {
        means = means.narrow(2, 0, means.dim(2)? - 1)?;
    }
    let effects = indirect_effects(model, trials, &means)?;
    let defined = effects.base.eq(&effects.base)?;
    run.record("effect.defined", Values::of(&defined)?);
    run.record("effect.base", known(&effects.base)?);
    run.record("effect.indirect", known(&effects.change)?);

    let change = statistics(run, "effect.indirect")?;
    let shape = change.shape();
    let undefined = (change.zeros_like()? * f64::NAN)?;
    let (trials, horizons) = defined.dims2()?;
    let defined = defined.reshape((trials, 1, 1, horizons))?;
    let change = defined
        .broadcast_as(shape)?
        .where_cond(&change, &undefined)?;
    let average = IndirectEffects { change, ..effects }.average()?;
    run.record("effect.average", Values::statistics(&average)?);
    Ok(())
}

/// The golden has 0 where a number is not defined.
fn known(numbers: &Tensor) -> Result<Values, Error> {
    let mut values = Values::statistics(numbers)?;
    let undefined = values.data.iter_mut().filter(|x| x.is_nan());
    undefined.for_each(|x| *x = 0.0);
    Ok(values)
}

fn record_top_heads(run: &mut Run, params: &Params, count: usize) -> Result<(), Error> {
    let mut average = statistics(run, "effect.average")?;
    if run.has(&Mutation::AbsoluteRanking) {
        average = average.abs()?;
    }
    let top = top_heads(params, &average, Horizon::NEXT, count)?;
    let heads = top
        .iter()
        .flat_map(|top| [top.block as f64, top.head as f64]);
    run.record("top.heads", Values::new(vec![count, 2], heads.collect()));
    run.record(
        "top.effects",
        Values::vector(top.iter().map(|top| top.effect).collect()),
    );
    Ok(())
}

fn record_vector(run: &mut Run, model: &MtpModel) -> Result<(), Error> {
    let means = upstream(run, "mean_activations")?;
    let heads = run.upstream("top.heads").data.chunks_exact(2);
    let heads: Vec<TopHead> = heads
        .map(|pair| TopHead {
            block: pair[0] as usize,
            head: pair[1] as usize,
            effect: f64::NAN,
        })
        .collect();
    let mut vector = FunctionVector::of(model, &means, &heads)?;
    if run.has(&Mutation::HeadSpace) {
        vector = unprojected(model.params(), &means, &heads)?;
    }
    run.record("fv_by_block_resid", Values::of(&vector.by_block)?);
    run.record("fv_resid", Values::of(&vector.resid)?);
    Ok(())
}

/// The mean activations of the heads, side by side, as if they were of the residual stream.
fn unprojected(
    params: &Params,
    means: &Tensor,
    heads: &[TopHead],
) -> Result<FunctionVector, Error> {
    let last = means.narrow(2, means.dim(2)? - 1, 1)?.squeeze(2)?;
    let mut kept = vec![0.0; last.elem_count() / params.head_dim()];
    for top in heads {
        kept[top.block * params.n_heads + top.head] = 1.0;
    }
    let shape = (BlockAt::all(params).len(), params.n_heads, 1);
    let kept = Tensor::from_vec(kept, shape, means.device())?.to_dtype(means.dtype())?;
    let by_block = last.broadcast_mul(&kept)?.flatten_from(1)?;
    Ok(FunctionVector {
        resid: by_block.sum(0)?,
        by_block,
    })
}

/// Logits `[trials, v]` of the shuffled prompts with the vector behind each block.
fn record_injection(
    run: &mut Run,
    model: &MtpModel,
    trials: &Trials,
    coefficient: f64,
) -> Result<(), Error> {
    let vector = upstream(run, "fv_resid")?;
    let mut before = None;
    for block in BlockAt::all(model.params()) {
        let early = before.filter(|_| run.has(&Mutation::InjectBefore));
        let mut by_horizon = vec![Vec::new(); model.params().n_future_tokens];
        for trial in trials.iter() {
            let at = early.unwrap_or(block);
            for (k, logits) in injected_logits(model, &trial.corrupted, at, &vector, coefficient)? {
                by_horizon[k.get() - 1].push(logits);
            }
        }
        for horizon in model.params().horizons().filter(|k| block.reaches(*k)) {
            let logits = Tensor::stack(&by_horizon[horizon.get() - 1], 0)?;
            run.record(
                format!("injected.{block}.logits.{horizon}"),
                Values::of(&logits)?,
            );
        }
        if let BlockAt::Trunk(_) = block {
            before = Some(block);
        }
    }
    Ok(())
}
