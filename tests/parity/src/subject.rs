//! Our side of the comparison: the model, the weighting and the loss on a case's inputs.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use wmtp_model::{
    HeadKind, Horizon, MtpModel, Observer, ParamStore, Rotary, Site, ValueModel, loss,
};
use wmtp_weighting::{WeightSettings, Whitening, gae, td_errors, token_weights};

use crate::{Case, Error, Values};

/// Element type of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Single precision, as training computes.
    F32,
    /// Double precision, the golden's own.
    F64,
}

impl Precision {
    /// The name used in manifests, reports and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
        }
    }

    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F64 => DType::F64,
        }
    }
}

/// A deliberate fault in the subject (`spec/parity.md` 4.10).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mutation {
    /// Norm epsilon 1e-6 for 1e-5.
    NormEpsilon,
    /// Every position takes the angles of the next one and the first pair none: a wrong table.
    RotaryTable,
    /// A horizon's weight taken at the source position instead of the target.
    WeightAtSource,
    /// One parameter takes no gradient, as behind an operation that cuts the graph.
    CutGradient(String),
}

/// What our code computed, by golden key.
pub(crate) type Results = BTreeMap<String, Values>;

/// Keeps a copy of what passes each site.
struct Recorder<'a>(&'a mut Results);

impl Observer for Recorder<'_> {
    fn observe(&mut self, site: Site, tensor: Tensor) -> wmtp_model::Result<Tensor> {
        self.0.insert(site.to_string(), Values::of(&tensor)?);
        Ok(tensor)
    }
}

/// The response targets of a case: row `b` owns `first[b] .. last[b]`.
struct Batch {
    ids: Vec<u32>,
    ids_bs: Tensor,
    sequence: usize,
    responses: Vec<(usize, usize)>,
}

impl Batch {
    fn new(case: &Case) -> Result<Self, Error> {
        let (ids, mask) = (case.input("ids")?, case.input("mask")?);
        let [batch, sequence] = ids.shape[..] else {
            return Err(Error::Golden {
                path: case.name.clone(),
                reason: format!("ids have shape {:?}", ids.shape),
            });
        };
        let tokens: Vec<u32> = ids.data.iter().map(|id| *id as u32).collect();
        let responses = mask.data.chunks_exact(sequence).map(|row| {
            let first = row.iter().position(|m| *m > 0.0).unwrap_or(sequence);
            let count = row.iter().filter(|m| **m > 0.0).count();
            (first, first + count)
        });
        let responses: Vec<(usize, usize)> = responses.collect();
        if responses
            .iter()
            .any(|(first, last)| *first == 0 && last > first)
        {
            let reason = "a response starts at position 0 and has no state before it".to_owned();
            return Err(Error::Golden {
                path: case.name.clone(),
                reason,
            });
        }
        let ids_bs = Tensor::from_slice(&tokens, (batch, sequence), &Device::Cpu)?;
        Ok(Self {
            ids: tokens,
            ids_bs,
            sequence,
            responses,
        })
    }

    fn is_target(&self, row: usize, j: usize) -> bool {
        let (first, last) = self.responses[row];
        (first..last).contains(&j)
    }

    /// Every (row, target) pair a horizon can reach, in row order, masked or not.
    fn places(&self, horizon: Horizon) -> Vec<(usize, usize)> {
        let rows = 0..self.responses.len();
        rows.flat_map(|b| (horizon.get()..self.sequence).map(move |j| (b, j)))
            .collect()
    }

    /// Spreads one number per response target over `[b, s]`, 0 elsewhere.
    fn spread(&self, numbers: &[f64]) -> Values {
        let mut numbers = numbers.iter();
        let mut data = vec![0.0; self.ids.len()];
        for (b, (first, last)) in self.responses.iter().enumerate() {
            for j in *first..*last {
                data[b * self.sequence + j] =
                    *numbers.next().expect("one number per response target");
            }
        }
        Values {
            shape: vec![self.responses.len(), self.sequence],
            data,
        }
    }
}

/// Runs everything up to the gradients; each step uses our own earlier results.
pub(crate) fn run(
    case: &Case,
    precision: Precision,
    mutation: Option<Mutation>,
) -> Result<Results, Error> {
    let dtype = precision.dtype();
    let mut results = Results::new();
    let mut params = case.config.params();
    if mutation == Some(Mutation::NormEpsilon) {
        params.norm_eps = 1e-6;
    }
    let batch = Batch::new(case)?;
    record_tokens(&batch, &params, &mut results);

    let own_table = Rotary::new(&params);
    let half = own_table.half();
    let table = |data: &[f64]| Values {
        shape: vec![batch.sequence, half],
        data: data.to_vec(),
    };
    results.insert("rope.cos".to_owned(), table(own_table.cos(batch.sequence)));
    results.insert("rope.sin".to_owned(), table(own_table.sin(batch.sequence)));
    let shared = shared_rotary(case, half, mutation == Some(Mutation::RotaryTable))?;

    let names = params.tensor_shapes().into_iter();
    let tensors = names.map(|(name, _)| Ok((name.clone(), case.weight(&name, dtype)?)));
    let store = ParamStore::from_tensors(tensors.collect::<Result<_, Error>>()?)?;
    let policy = MtpModel::new(&params, &store)?.with_rotary(shared.clone());
    let mut recorder = Recorder(&mut results);
    let trunk = policy.trunk_observed(&batch.ids_bs, &mut recorder)?;
    let mut hidden = Vec::new();
    for horizon in params.horizons() {
        let head = policy.head_hidden_observed(horizon, &trunk, &mut recorder)?;
        recorder.observe(Site::Logits(horizon), policy.logits(&head)?)?;
        hidden.push(head);
    }

    let weight = case.weight("value_head.weight", dtype)?;
    let bias = Tensor::zeros(1, dtype, &Device::Cpu)?;
    let head = vec![
        ("value_head.weight".to_owned(), weight),
        ("value_head.bias".to_owned(), bias),
    ];
    let value_head = ParamStore::from_tensors(head)?;
    record_values(&params, &store, &value_head, shared, &batch, &mut results)?;
    let weights = record_weights(case, &batch, &mut results)?;
    let at_source = mutation == Some(Mutation::WeightAtSource);
    let total = record_loss(&policy, &hidden, &batch, &weights, at_source, &mut results)?;

    let grads = total.backward()?;
    let cut = |name: &str| matches!(&mutation, Some(Mutation::CutGradient(cut)) if cut == name);
    for (name, var) in store
        .iter()
        .chain(value_head.iter())
        .filter(|(name, _)| !cut(name))
    {
        if let Some(gradient) = grads.get(var) {
            results.insert(format!("grad.{name}"), Values::of(gradient)?);
        }
    }
    Ok(results)
}

fn shared_rotary(case: &Case, half: usize, shifted: bool) -> Result<Rotary, Error> {
    let (mut cos, mut sin) = (
        case.input("rope.cos")?.data.clone(),
        case.input("rope.sin")?.data.clone(),
    );
    if shifted {
        cos.rotate_left(half);
        sin.rotate_left(half);
        cos.iter_mut().step_by(half).for_each(|c| *c = 1.0);
        sin.iter_mut().step_by(half).for_each(|s| *s = 0.0);
    }
    Ok(Rotary::from_tables(half, cos, sin)?)
}

fn record_tokens(batch: &Batch, params: &wmtp_model::Params, results: &mut Results) {
    let shape = vec![batch.responses.len(), batch.sequence];
    let ids = batch.ids.iter().map(|id| f64::from(*id)).collect();
    results.insert("ids".to_owned(), Values { shape, data: ids });
    let num_targets: usize = batch
        .responses
        .iter()
        .map(|(first, last)| last - first)
        .sum();
    results.insert("mask".to_owned(), batch.spread(&vec![1.0; num_targets]));
    for horizon in params.horizons() {
        let places = batch.places(horizon);
        let targets = places
            .iter()
            .map(|(b, j)| f64::from(batch.ids[b * batch.sequence + j]))
            .collect();
        let shape = vec![batch.responses.len(), batch.sequence - horizon.get()];
        results.insert(
            format!("target.{horizon}"),
            Values {
                shape,
                data: targets,
            },
        );
    }
}

fn record_values(
    params: &wmtp_model::Params,
    store: &ParamStore,
    value_head: &ParamStore,
    rotary: Rotary,
    batch: &Batch,
    results: &mut Results,
) -> Result<(), Error> {
    let trunk = ParamStore::value_trunk_from(params, store)?;
    let model =
        ValueModel::frozen(params, HeadKind::Linear, &trunk, value_head)?.with_rotary(rotary);
    let mut recorded = Results::new();
    model.values_observed(&batch.ids_bs, &mut Recorder(&mut recorded))?;
    results.extend(
        recorded
            .into_iter()
            .filter(|(key, _)| key.starts_with("value.")),
    );
    Ok(())
}

/// TD errors, advantages and token weights from our own values; returns the weights `[b, s]`.
fn record_weights(case: &Case, batch: &Batch, results: &mut Results) -> Result<Values, Error> {
    let config = &case.config;
    let rewards = &case.input("reward")?.data;
    let values = &results["value.v"].data;
    let (mut deltas, mut advantages) = (Vec::new(), Vec::new());
    for (b, (first, last)) in batch.responses.iter().enumerate() {
        let states = &values[b * batch.sequence + first - 1..b * batch.sequence + last - 1];
        let delta = td_errors(states, rewards[b], config.gamma);
        advantages.extend(gae(&delta, config.gamma, config.lam));
        deltas.extend(delta);
    }
    let whitening = Whitening::of(&advantages);
    let whitened: Vec<f64> = advantages.iter().map(|a| whitening.apply(*a)).collect();
    let settings = WeightSettings {
        temperature: config.temp,
        eps: config.w_min,
        w_max: config.w_max,
        entropy_floor: 0.0,
        blend: 1.0,
    };
    let open = WeightSettings {
        eps: 1e-9,
        w_max: 1e9,
        ..settings
    };
    let raw = token_weights(&advantages, &whitening, &open)?.weights;
    let projected = batch.spread(&token_weights(&advantages, &whitening, &settings)?.weights);
    results.insert("td.delta".to_owned(), batch.spread(&deltas));
    results.insert("td.advantage".to_owned(), batch.spread(&advantages));
    results.insert("weight.z".to_owned(), batch.spread(&whitened));
    results.insert("weight.raw".to_owned(), batch.spread(&raw));
    results.insert("weight.projected".to_owned(), projected.clone());
    Ok(projected)
}

/// Mean over heads of `Σ w·ce / count`; records every cross-entropy and loss.
fn record_loss(
    policy: &MtpModel,
    hidden: &[Tensor],
    batch: &Batch,
    weights: &Values,
    at_source: bool,
    results: &mut Results,
) -> Result<Tensor, Error> {
    let mut losses = Vec::new();
    for (horizon, hidden) in policy.params().horizons().zip(hidden) {
        let (k, s) = (horizon.get(), batch.sequence);
        let places = batch.places(horizon);
        let rows: Vec<u32> = places.iter().map(|(b, j)| (b * s + j - k) as u32).collect();
        let targets: Vec<u32> = places.iter().map(|(b, j)| batch.ids[b * s + j]).collect();
        let weight_of =
            |b: usize, j: usize| weights.data[b * s + if at_source { j - k } else { j }];
        let row_weights: Vec<f64> = places
            .iter()
            .map(|(b, j)| {
                if batch.is_target(*b, *j) {
                    weight_of(*b, *j)
                } else {
                    0.0
                }
            })
            .collect();
        let count = places
            .iter()
            .filter(|(b, j)| batch.is_target(*b, *j))
            .count();
        let selected = loss::select_rows(hidden, &rows)?;
        let head =
            loss::weighted_cross_entropy(&selected, policy.unembedding(), &targets, &row_weights)?;
        results.insert(
            format!("ce.{k}"),
            Values {
                shape: vec![batch.responses.len(), s - k],
                data: head.ce,
            },
        );
        let mean = (head.sum / count as f64)?.reshape(1)?;
        results.insert(format!("loss.head.{k}"), Values::of(&mean)?);
        losses.push(mean);
    }
    let total = (Tensor::cat(&losses, 0)?.sum_all()? / losses.len() as f64)?;
    results.insert("loss.total".to_owned(), Values::of(&total.reshape(1)?)?);
    Ok(total)
}
