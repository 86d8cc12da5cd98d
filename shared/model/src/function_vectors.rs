//! Function vectors (Todd et al. 2024): which attention heads carry the task that a prompt's examples show, and
//! one vector of the residual stream that stands for it (`spec/parity.md` 2 and 5).
//!
//! In: fixed trials, each a prompt with right examples, the same with their answers shuffled, and the answer to the
//! query. Out, in this order: mean activation of every head, what putting it back does to the shuffled prompts, the
//! heads that help most, their vector, logits with the vector added. All of it listens and edits through the one
//! [`Observer`]; the model knows nothing of it. A frozen model saves the graph.
//!
//! The block axis of every result: trunk blocks, then the block of each horizon's head.

use std::collections::BTreeSet;
use std::fmt;

use candle_core::{DType, Device, Tensor};

use crate::{Error, Horizon, MtpModel, Observer, Params, Point, Result, Site, Unobserved};

/// Token ids, and for each the slot that it belongs to. Trials have the same slots whatever their words: the tokens
/// of one word share a slot, and the last slot is the token that predicts the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    ids: Vec<u32>,
    slots: Vec<usize>,
}

impl Prompt {
    /// Slots count from 0 in the order of the tokens, none is left out, and the last holds the last token alone.
    pub fn new(ids: Vec<u32>, slots: Vec<usize>) -> Result<Self> {
        let fail = |reason: String| Err(Error::Trials(reason));
        if ids.len() != slots.len() {
            let (tokens, slots) = (ids.len(), slots.len());
            return fail(format!("{tokens} tokens have {slots} slots"));
        }
        if slots.first() != Some(&0)
            || slots
                .windows(2)
                .any(|pair| pair[1].wrapping_sub(pair[0]) > 1)
        {
            return fail(format!("slots {slots:?} do not count up from 0 by 0 or 1"));
        }
        if let [.., before, last] = slots[..]
            && before == last
        {
            return fail(
                "the last slot has several tokens, expected the last token alone".to_owned(),
            );
        }
        Ok(Self { ids, slots })
    }

    /// Number of slots.
    pub fn num_slots(&self) -> usize {
        self.slots.last().map_or(0, |last| last + 1)
    }

    /// Averages tokens over their slots: `[slots, s]`, rows of sum 1.
    fn averaging(&self, like: &Tensor) -> Result<Tensor> {
        let (rows, columns) = (self.num_slots(), self.slots.len());
        let mut counts = vec![0usize; rows];
        self.slots.iter().for_each(|slot| counts[*slot] += 1);
        let mut shares = vec![0f64; rows * columns];
        for (token, slot) in self.slots.iter().enumerate() {
            shares[slot * columns + token] = 1.0 / counts[*slot] as f64;
        }
        Ok(Tensor::from_vec(shares, (rows, columns), like.device())?.to_dtype(like.dtype())?)
    }
}

/// One fixed trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// Its name in the trial file; together with its place the key of every row about it.
    pub id: u64,
    /// Examples with their right answers, then the query.
    pub clean: Prompt,
    /// Ids of the same examples with their answers shuffled, then the same query.
    pub corrupted: Vec<u32>,
    /// Ids of the answer; horizon k is asked for the k-th.
    pub answer: Vec<u32>,
}

/// Trials that may be averaged: no id twice, the same slots in each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trials(Vec<Trial>);

impl Trials {
    /// Refuses an empty set, a trial that comes twice, other slots than the first trial's, and a trial without a
    /// shuffled prompt or an answer.
    pub fn new(trials: Vec<Trial>) -> Result<Self> {
        let fail = |reason: String| Err(Error::Trials(reason));
        let Some(first) = trials.first() else {
            return fail("there are none".to_owned());
        };
        let num_slots = first.clean.num_slots();
        let mut seen = BTreeSet::new();
        for Trial {
            id,
            clean,
            corrupted,
            answer,
        } in &trials
        {
            if !seen.insert(id) {
                return fail(format!("trial {id} comes twice"));
            }
            if clean.num_slots() != num_slots {
                let found = clean.num_slots();
                return fail(format!(
                    "trial {id} has {found} slots, the first one {num_slots}"
                ));
            }
            if corrupted.is_empty() || answer.is_empty() {
                return fail(format!("trial {id} has no shuffled prompt or no answer"));
            }
        }
        Ok(Self(trials))
    }

    /// The trials in their order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Trial> {
        self.0.iter()
    }

    /// Slots of every clean prompt.
    pub fn num_slots(&self) -> usize {
        self.0[0].clean.num_slots()
    }
}

/// A block by its place in the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockAt {
    /// Trunk block i: what happens there reaches every horizon.
    Trunk(usize),
    /// The block of one horizon's head, and of no other.
    Head(Horizon),
}

impl BlockAt {
    /// Every block of a model in the order of the block axis.
    pub fn all(params: &Params) -> Vec<Self> {
        let trunk = (0..params.num_trunk_blocks()).map(Self::Trunk);
        trunk.chain(params.horizons().map(Self::Head)).collect()
    }

    fn site(self, point: Point) -> Site {
        match self {
            Self::Trunk(block) => Site::Trunk(block, point),
            Self::Head(horizon) => Site::Head(horizon, point),
        }
    }

    /// Whether an edit of this block can move a horizon's logits.
    pub fn reaches(self, horizon: Horizon) -> bool {
        match self {
            Self::Trunk(_) => true,
            Self::Head(own) => own == horizon,
        }
    }
}

impl fmt::Display for BlockAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trunk(block) => write!(f, "trunk.{block}"),
            Self::Head(horizon) => write!(f, "head.{horizon}"),
        }
    }
}

/// Keeps the input of every output projection, in forward order.
#[derive(Default)]
struct HeadOutputs(Vec<Tensor>);

impl Observer for HeadOutputs {
    fn observe(&mut self, site: Site, tensor: Tensor) -> Result<Tensor> {
        if let Site::Trunk(_, Point::AttnHeads) | Site::Head(_, Point::AttnHeads) = site {
            self.0.push(tensor.detach());
        }
        Ok(tensor)
    }
}

/// Replaces the last position of one site, `[b, 1, _]`, by what `edit` makes of it.
struct EditLast<F> {
    site: Site,
    edit: F,
}

impl<F: Fn(&Tensor) -> Result<Tensor>> Observer for EditLast<F> {
    fn observe(&mut self, site: Site, tensor: Tensor) -> Result<Tensor> {
        if site != self.site {
            return Ok(tensor);
        }
        let (_, s, _) = tensor.dims3()?;
        let last = (self.edit)(&tensor.narrow(1, s - 1, 1)?)?;
        let before = tensor.narrow(1, 0, s - 1)?;
        Ok(Tensor::cat(&[&before, &last], 1)?)
    }
}

/// Mean output of every head in every slot, `[blocks, n, slots, e]`, over the clean prompts: a word of several
/// tokens is averaged into its slot, then trials are averaged.
pub fn mean_head_activations(model: &MtpModel, trials: &Trials) -> Result<Tensor> {
    let params = model.params();
    let mut sum: Option<Tensor> = None;
    for Trial { clean, .. } in trials.iter() {
        let mut heard = HeadOutputs::default();
        let trunk = model.trunk_observed(&rows_of(model, &clean.ids, 1)?, &mut heard)?;
        for horizon in params.horizons() {
            model.head_hidden_observed(horizon, &trunk, &mut heard)?;
        }
        let averaging = clean.averaging(&trunk)?;
        let of_block = |heads_1sd: &Tensor| {
            let of_slots = averaging.matmul(&heads_1sd.squeeze(0)?)?;
            let shape = (trials.num_slots(), params.n_heads, params.head_dim());
            of_slots.reshape(shape)?.transpose(0, 1)
        };
        let blocks = heard.0.iter().map(of_block);
        let of_trial = Tensor::stack(&blocks.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
        sum = Some(match sum {
            Some(sum) => (sum + of_trial)?,
            None => of_trial,
        });
    }
    let sum = sum.expect("there is at least one trial");
    Ok((sum / trials.iter().len() as f64)?)
}

/// What patching does to the probability of the answer in the shuffled prompts, in f64.
#[derive(Debug, Clone)]
pub struct IndirectEffects {
    /// Probability of every answer token without a patch, `[trials, H]`; NaN where the answer is shorter than the
    /// horizon.
    pub base: Tensor,
    /// Change of it when one head's output at the last position is its mean activation in the last slot,
    /// `[trials, blocks, n, H]`; NaN as in `base`, 0 for the horizons that a block does not reach.
    pub change: Tensor,
}

impl IndirectEffects {
    /// Mean over the trials whose answer is long enough, `[blocks, n, H]`; NaN where none is.
    pub fn average(&self) -> Result<Tensor> {
        let present = self.change.eq(&self.change)?;
        let count = present.to_dtype(DType::F64)?.sum(0)?;
        let change = present.where_cond(&self.change, &self.change.zeros_like()?)?;
        Ok((change.sum(0)? / count)?)
    }
}

/// Patches every head of every block, one at a time. `means` are those of [`mean_head_activations`].
///
/// All heads of a block run as one batch: a row of it has one head patched. That is a pass of n rows through the
/// whole model for each trial and trunk block, and through the heads for each of theirs.
pub fn indirect_effects(
    model: &MtpModel,
    trials: &Trials,
    means: &Tensor,
) -> Result<IndirectEffects> {
    let params = model.params();
    let blocks = BlockAt::all(params);
    let patches = patches(params, means)?;
    let own_slice = own_slices(params, means.device())?;
    let (mut base, mut change) = (Vec::new(), Vec::new());
    for Trial {
        corrupted, answer, ..
    } in trials.iter()
    {
        // In as many rows as the patched passes: another batch may round otherwise.
        let rows = rows_of(model, corrupted, params.n_heads)?;
        let trunk = model.trunk(&rows)?;
        let before = answer_probabilities(model, &trunk, answer, &mut Unobserved)?;
        for (block, patch) in blocks.iter().zip(&patches) {
            let mut patching = EditLast {
                site: block.site(Point::AttnHeads),
                edit: |last: &Tensor| {
                    let patch = patch.broadcast_as(last.shape())?;
                    Ok(own_slice.where_cond(&patch, last)?)
                },
            };
            let trunk = match block {
                BlockAt::Trunk(_) => model.trunk_observed(&rows, &mut patching)?,
                BlockAt::Head(_) => trunk.clone(),
            };
            let after = answer_probabilities(model, &trunk, answer, &mut patching)?;
            let of_head = |head: usize| {
                let by_horizon = before.iter().zip(&after);
                by_horizon.map(move |(before, after)| after[head] - before[head])
            };
            change.extend((0..params.n_heads).flat_map(of_head));
        }
        base.extend(before.iter().map(|of_rows| of_rows[0]));
    }
    let (trials, horizons) = (trials.iter().len(), params.n_future_tokens);
    let shape = (trials, blocks.len(), params.n_heads, horizons);
    Ok(IndirectEffects {
        base: Tensor::from_vec(base, (trials, horizons), &Device::Cpu)?,
        change: Tensor::from_vec(change, shape, &Device::Cpu)?,
    })
}

/// A head of the trunk and the mean effect that ranked it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TopHead {
    /// Trunk block.
    pub block: usize,
    /// Query head.
    pub head: usize,
    /// Mean indirect effect.
    pub effect: f64,
}

/// The `count` heads of the trunk with the highest signed effect on a horizon, highest first; of equal ones the
/// earlier. `average` is that of [`IndirectEffects::average`]. Heads of prediction blocks serve one horizon and are
/// not ranked.
pub fn top_heads(
    params: &Params,
    average: &Tensor,
    horizon: Horizon,
    count: usize,
) -> Result<Vec<TopHead>> {
    let blocks = BlockAt::all(params).len();
    check_shape(
        "average effects",
        average,
        &[blocks, params.n_heads, params.n_future_tokens],
    )?;
    let (rows, column) = (params.num_trunk_blocks(), horizon.get() - 1);
    if column >= params.n_future_tokens || !(1..=rows * params.n_heads).contains(&count) {
        let heads = rows * params.n_heads;
        return Err(Error::Trials(format!(
            "{count} top heads for horizon {horizon} of {heads} in the trunk and {} horizons",
            params.n_future_tokens
        )));
    }
    let effects = average
        .narrow(0, 0, rows)?
        .narrow(2, column, 1)?
        .squeeze(2)?;
    let effects = effects.to_dtype(DType::F64)?.to_vec2::<f64>()?;
    let of_block = |(block, row): (usize, &Vec<f64>)| {
        let of_head = move |(head, effect): (usize, &f64)| TopHead {
            block,
            head,
            effect: *effect,
        };
        row.iter().enumerate().map(of_head).collect::<Vec<_>>()
    };
    let mut ranked: Vec<TopHead> = effects.iter().enumerate().flat_map(of_block).collect();
    if ranked.iter().any(|top| top.effect.is_nan()) {
        return Err(Error::Trials(format!(
            "no answer has a token for horizon {horizon}"
        )));
    }
    ranked.sort_by(|a, b| b.effect.total_cmp(&a.effect));
    ranked.truncate(count);
    Ok(ranked)
}

/// What some heads write into the residual stream at the end of a prompt that shows the task.
#[derive(Debug, Clone)]
pub struct FunctionVector {
    /// The sum over the heads, `[d]`: a vector of the residual stream, of no particular block.
    pub resid: Tensor,
    /// Its parts by the block of the head, `[blocks, d]`; 0 for blocks without one.
    pub by_block: Tensor,
}

impl FunctionVector {
    /// `Σ wo·m` over the heads, m a head's mean activation in the last slot in its own slice and 0 elsewhere.
    pub fn of(model: &MtpModel, means: &Tensor, heads: &[TopHead]) -> Result<Self> {
        let params = model.params();
        let patches = patches(params, means)?;
        let own_slice = own_slices(params, means.device())?;
        let mut by_block =
            vec![Tensor::zeros(params.dim, means.dtype(), means.device())?; patches.len()];
        for TopHead { block, head, .. } in heads {
            if *head >= params.n_heads || *block >= params.num_trunk_blocks() {
                return Err(Error::Trials(format!(
                    "the trunk has no head {head} of block {block}"
                )));
            }
            let patch = &patches[*block];
            let slice = own_slice.narrow(0, *head, 1)?;
            let placed = slice.where_cond(patch, &patch.zeros_like()?)?;
            let written = model.trunk_attention_out(*block, &placed)?.flatten_all()?;
            by_block[*block] = (&by_block[*block] + written)?;
        }
        let by_block = Tensor::stack(&by_block, 0)?;
        Ok(Self {
            resid: by_block.sum(0)?,
            by_block,
        })
    }
}

/// Logits `[v]` at the last position of `ids` after `coefficient · vector` was added to the residual stream behind
/// a block there, for each horizon that the block reaches. A coefficient of 0 changes no bit.
pub fn injected_logits(
    model: &MtpModel,
    ids: &[u32],
    block: BlockAt,
    vector: &Tensor,
    coefficient: f64,
) -> Result<Vec<(Horizon, Tensor)>> {
    check_shape("function vector", vector, &[model.params().dim])?;
    let mut injecting = EditLast {
        site: block.site(Point::Resid),
        edit: |last: &Tensor| Ok(last.broadcast_add(&(vector * coefficient)?)?),
    };
    let trunk = model.trunk_observed(&rows_of(model, ids, 1)?, &mut injecting)?;
    let reached = model
        .params()
        .horizons()
        .filter(|horizon| block.reaches(*horizon));
    let logits = reached.map(|horizon| {
        let logits = last_logits(model, horizon, &trunk, &mut injecting)?;
        Ok((horizon, logits.squeeze(0)?))
    });
    logits.collect()
}

/// The same ids in `count` rows, `[count, s]`.
fn rows_of(model: &MtpModel, ids: &[u32], count: usize) -> Result<Tensor> {
    let row = Tensor::from_slice(ids, (1, ids.len()), model.unembedding().device())?;
    Ok(row.repeat((count, 1))?)
}

/// Logits `[b, v]` of one horizon at the last position.
fn last_logits<O: Observer>(
    model: &MtpModel,
    horizon: Horizon,
    trunk_bsd: &Tensor,
    observer: &mut O,
) -> Result<Tensor> {
    let hidden = model.head_hidden_observed(horizon, trunk_bsd, observer)?;
    let last = hidden.narrow(1, hidden.dim(1)? - 1, 1)?;
    Ok(model.logits(&last.contiguous()?)?.squeeze(1)?)
}

/// For each horizon, the probability of its token of the answer in every row; NaN where the answer is shorter.
fn answer_probabilities<O: Observer>(
    model: &MtpModel,
    trunk_bsd: &Tensor,
    answer: &[u32],
    observer: &mut O,
) -> Result<Vec<Vec<f64>>> {
    let of_horizon = |horizon: Horizon| match answer.get(horizon.get() - 1) {
        Some(token) => probabilities(&last_logits(model, horizon, trunk_bsd, observer)?, *token),
        None => Ok(vec![f64::NAN; trunk_bsd.dim(0)?]),
    };
    model.params().horizons().map(of_horizon).collect()
}

/// Probability of a token in every row of `logits [b, v]`, computed in f64.
fn probabilities(logits_bv: &Tensor, token: u32) -> Result<Vec<f64>> {
    let rows = logits_bv.detach().to_dtype(DType::F64)?.to_vec2::<f64>()?;
    let of_row = |row: &Vec<f64>| {
        let Some(logit) = row.get(token as usize) else {
            return Err(Error::Trials(format!(
                "answer token {token} of a vocabulary of {}",
                row.len()
            )));
        };
        let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|x| (x - top).exp()).sum();
        Ok((logit - top).exp() / sum)
    };
    rows.iter().map(of_row).collect()
}

/// Every head's mean activation in the last slot, side by side as the output projection takes them: `[1, 1, n·e]`
/// for each block.
fn patches(params: &Params, means: &Tensor) -> Result<Vec<Tensor>> {
    let (blocks, slots) = (BlockAt::all(params).len(), means.dim(2)?);
    let shape = [blocks, params.n_heads, slots, params.head_dim()];
    check_shape("mean head activations", means, &shape)?;
    let last = means.narrow(2, slots - 1, 1)?;
    let flat = last.reshape((blocks, 1, 1, params.n_heads * params.head_dim()))?;
    (0..blocks).map(|block| Ok(flat.get(block)?)).collect()
}

/// Row h marks the slice of head h: `[n, 1, n·e]`.
fn own_slices(params: &Params, device: &Device) -> Result<Tensor> {
    let (n, e) = (params.n_heads, params.head_dim());
    let row = |head: usize| (0..n * e).map(move |i| u8::from(i / e == head));
    let marks = (0..n).flat_map(row).collect();
    Ok(Tensor::from_vec(marks, (n, 1, n * e), device)?)
}

fn check_shape(what: &str, tensor: &Tensor, expected: &[usize]) -> Result<()> {
    if tensor.dims() == expected {
        return Ok(());
    }
    let found = tensor.dims();
    Err(Error::Shape(format!(
        "{what} have shape {found:?}, expected {expected:?}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ParamStore;

    fn model(dtype: DType) -> MtpModel {
        let store = ParamStore::init(&Params::small(), 5, dtype, &Device::Cpu).unwrap();
        MtpModel::frozen(&Params::small(), &store).unwrap()
    }

    /// Every token is its own slot.
    fn prompt(ids: &[u32]) -> Prompt {
        Prompt::new(ids.to_vec(), (0..ids.len()).collect()).unwrap()
    }

    fn trial(id: u64, clean: &[u32], corrupted: &[u32]) -> Trial {
        Trial {
            id,
            clean: prompt(clean),
            corrupted: corrupted.to_vec(),
            answer: vec![7, 11],
        }
    }

    fn trials() -> Trials {
        let one = trial(8, &[1, 5, 9, 2, 6, 3], &[1, 5, 2, 9, 6, 3]);
        let mut two = trial(3, &[1, 14, 4, 20, 8, 3], &[1, 14, 20, 4, 8, 3]);
        two.answer.truncate(1);
        Trials::new(vec![one, two]).unwrap()
    }

    fn numbers(tensor: &Tensor) -> Vec<f64> {
        let flat = tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap();
        flat.to_vec1().unwrap()
    }

    fn assert_close(a: &Tensor, b: &Tensor, tolerance: f64) {
        assert_eq!(a.dims(), b.dims());
        for (a, b) in numbers(a).iter().zip(numbers(b)) {
            assert!((a - b).abs() <= tolerance, "{a} and {b}");
        }
    }

    /// What every head puts out at the last position in a batch of so many rows, as means of one slot.
    fn own_outputs(model: &MtpModel, ids: &[u32], rows: usize) -> Tensor {
        let mut heard = HeadOutputs::default();
        let trunk = model.trunk_observed(&rows_of(model, ids, rows).unwrap(), &mut heard);
        let trunk = trunk.unwrap();
        for horizon in Params::small().horizons() {
            model
                .head_hidden_observed(horizon, &trunk, &mut heard)
                .unwrap();
        }
        let last = |heads: &Tensor| heads.get(0)?.get(ids.len() - 1)?.reshape((4, 1, 4));
        let blocks = heard
            .0
            .iter()
            .map(last)
            .collect::<candle_core::Result<Vec<_>>>();
        Tensor::stack(&blocks.unwrap(), 0).unwrap()
    }

    #[test]
    fn a_head_replaced_by_its_own_output_changes_no_bit() {
        for dtype in [DType::F32, DType::F64] {
            let ids = [1, 5, 9, 2, 6, 3];
            let trials = Trials::new(vec![trial(0, &ids, &ids)]).unwrap();
            let own = own_outputs(&model(dtype), &ids, 4);
            let effects = indirect_effects(&model(dtype), &trials, &own).unwrap();
            assert_eq!(effects.change.dims(), [1, 4, 4, 2]);
            assert_eq!(numbers(&effects.change), [0.0; 32], "{dtype:?}");
        }
    }

    #[test]
    fn patches_equal_whole_passes_with_one_head_replaced() {
        let (model, trials) = (model(DType::F64), trials());
        let means = mean_head_activations(&model, &trials).unwrap();
        let effects = indirect_effects(&model, &trials, &means).unwrap();
        let first = &trials.0[0];
        let ids = Tensor::new(&first.corrupted[..], &Device::Cpu).unwrap();
        let ids = ids.unsqueeze(0).unwrap();
        for (block, head) in [(0, 2), (1, 3)] {
            let mean = means.get(block).unwrap().get(head).unwrap().get(5).unwrap();
            let mut by_hand = EditLast {
                site: Site::Trunk(block, Point::AttnHeads),
                edit: |last: &Tensor| {
                    let (left, right) = (last.narrow(2, 0, 4 * head)?, 12 - 4 * head);
                    let mean = mean.reshape((1, 1, 4))?;
                    Ok(Tensor::cat(
                        &[left, mean, last.narrow(2, 16 - right, right)?],
                        2,
                    )?)
                },
            };
            let trunk = model.trunk_observed(&ids, &mut by_hand).unwrap();
            let hidden = model.head_hidden(Horizon::NEXT, &trunk).unwrap();
            let logits = model
                .logits(&hidden)
                .unwrap()
                .get(0)
                .unwrap()
                .get(5)
                .unwrap();
            let weights = logits.exp().unwrap();
            let after = numbers(&weights)[7] / numbers(&weights).iter().sum::<f64>();
            let before = numbers(&effects.base)[0];
            let at = (block * 4 + head) * 2;
            assert!((numbers(&effects.change)[at] - (after - before)).abs() < 1e-14);
            assert!((after - before).abs() > 1e-6, "the patch does nothing");
        }
    }

    #[test]
    fn the_block_of_a_head_moves_its_own_horizon_alone() {
        let (model, trials) = (model(DType::F64), trials());
        let means = mean_head_activations(&model, &trials).unwrap();
        let change = indirect_effects(&model, &trials, &means).unwrap().change;
        for (block, own) in [(2, 0), (3, 1)] {
            let of_block = change.get(0).unwrap().get(block).unwrap();
            for row in of_block.to_vec2::<f64>().unwrap() {
                assert!(row[own] != 0.0 && row[1 - own] == 0.0, "{block}: {row:?}");
            }
        }
    }

    #[test]
    fn an_answer_outside_of_the_vocabulary_is_refused() {
        let mut foreign = trial(0, &[1, 5, 9], &[1, 5, 9]);
        foreign.answer = vec![7, 23];
        let trials = Trials::new(vec![foreign]).unwrap();
        let means = mean_head_activations(&model(DType::F32), &trials).unwrap();
        let refused = indirect_effects(&model(DType::F32), &trials, &means).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "trials: answer token 23 of a vocabulary of 23"
        );
    }

    #[test]
    fn a_short_answer_counts_for_the_horizons_that_it_has() {
        let (model, trials) = (model(DType::F64), trials());
        let means = mean_head_activations(&model, &trials).unwrap();
        let effects = indirect_effects(&model, &trials, &means).unwrap();
        let base = numbers(&effects.base);
        assert!(base[..3].iter().all(|p| (0.0..1.0).contains(p)) && base[3].is_nan());
        let change = numbers(&effects.change);
        let average = numbers(&effects.average().unwrap());
        for (i, mean) in average.iter().enumerate() {
            let (one, two) = (change[i], change[average.len() + i]);
            let expected = if i % 2 == 0 {
                f64::midpoint(one, two)
            } else {
                one
            };
            assert!((mean - expected).abs() < 1e-16);
        }
    }

    #[test]
    fn tokens_of_a_word_are_averaged_into_its_slot_whatever_the_order_of_trials() {
        let model = model(DType::F64);
        let split = |id, ids: &[u32], slots: &[usize]| Trial {
            clean: Prompt::new(ids.to_vec(), slots.to_vec()).unwrap(),
            ..trial(id, &[1], &[1])
        };
        let one = split(0, &[1, 5, 9, 2, 3], &[0, 1, 1, 1, 2]);
        let two = split(1, &[1, 6, 3], &[0, 1, 2]);
        let means = |trials: &[&Trial]| {
            let trials = trials.iter().copied().cloned().collect();
            mean_head_activations(&model, &Trials::new(trials).unwrap()).unwrap()
        };
        let plain = means(&[&trial(0, &[1, 5, 9, 2, 3], &[1])]);
        let word = (plain.narrow(2, 1, 3).unwrap().sum(2).unwrap() / 3.0).unwrap();
        let found = means(&[&one]);
        assert_eq!(found.dims(), [4, 4, 3, 4]);
        assert_close(
            &found.narrow(2, 1, 1).unwrap().squeeze(2).unwrap(),
            &word,
            1e-15,
        );
        assert_close(&means(&[&one, &two]), &means(&[&two, &one]), 1e-15);
        let both = ((means(&[&one]) + means(&[&two])).unwrap() / 2.0).unwrap();
        assert_close(&means(&[&one, &two]), &both, 1e-15);
    }

    /// Keeps what the attention of trunk block 1 wrote at the last position.
    struct Written(Option<Tensor>);

    impl Observer for Written {
        fn observe(&mut self, site: Site, tensor: Tensor) -> Result<Tensor> {
            if site == Site::Trunk(1, Point::AttnOut) {
                self.0 = Some(tensor.get(0)?.get(5)?);
            }
            Ok(tensor)
        }
    }

    #[test]
    fn all_heads_of_a_block_sum_to_what_its_attention_writes() {
        let model = model(DType::F64);
        let trials = Trials::new(vec![trial(0, &[1, 5, 9, 2, 6, 3], &[1])]).unwrap();
        let means = mean_head_activations(&model, &trials).unwrap();
        let mut written = Written(None);
        let ids = rows_of(&model, &trials.0[0].clean.ids, 1).unwrap();
        model.trunk_observed(&ids, &mut written).unwrap();
        let head = |head| TopHead {
            block: 1,
            head,
            effect: 0.0,
        };
        let vector = FunctionVector::of(&model, &means, &[0, 1, 2, 3].map(head)).unwrap();
        assert_close(&vector.resid, &written.0.unwrap(), 1e-14);
        assert_eq!(
            numbers(&vector.by_block.get(1).unwrap()),
            numbers(&vector.resid)
        );
        assert!(
            numbers(&vector.by_block.get(0).unwrap())
                .iter()
                .all(|x| *x == 0.0)
        );
    }

    #[test]
    fn a_coefficient_of_zero_changes_no_bit_and_another_one_the_horizons_that_it_reaches() {
        let (model, ids) = (model(DType::F32), [1, 5, 9]);
        let vector = Tensor::rand(-1f32, 1.0, 16, &Device::Cpu).unwrap();
        let trunk = model.trunk(&rows_of(&model, &ids, 1).unwrap()).unwrap();
        for block in BlockAt::all(&Params::small()) {
            let none = injected_logits(&model, &ids, block, &vector, 0.0).unwrap();
            let some = injected_logits(&model, &ids, block, &vector, 0.5).unwrap();
            let reached = if matches!(block, BlockAt::Trunk(_)) {
                2
            } else {
                1
            };
            assert_eq!((none.len(), some.len()), (reached, reached));
            for ((horizon, none), (_, some)) in none.iter().zip(&some) {
                let clean = last_logits(&model, *horizon, &trunk, &mut Unobserved).unwrap();
                assert_eq!(numbers(none), numbers(&clean));
                assert_ne!(numbers(some), numbers(&clean));
            }
        }
        let alone = injected_logits(&model, &[4], BlockAt::Trunk(0), &vector, 0.5).unwrap();
        assert_eq!(alone[0].1.dims(), [23]);
    }

    #[test]
    fn heads_are_ranked_by_signed_effect_within_the_trunk() {
        let mut effects = [0.0; 4 * 4 * 2];
        // Block, head: 0,1 hinders most; 0,3 and 1,0 are level; 2,0 belongs to a prediction head.
        for ((block, head), effect) in [
            ((0, 1), -0.9),
            ((0, 3), 0.2),
            ((1, 0), 0.2),
            ((1, 2), 0.4),
            ((2, 0), 0.8),
        ] {
            effects[(block * 4 + head) * 2] = effect;
        }
        let average = Tensor::from_slice(&effects, (4, 4, 2), &Device::Cpu).unwrap();
        let top = top_heads(&Params::small(), &average, Horizon::NEXT, 3).unwrap();
        let found = top.iter().map(|top| (top.block, top.head, top.effect));
        assert_eq!(
            found.collect::<Vec<_>>(),
            [(1, 2, 0.4), (0, 3, 0.2), (1, 0, 0.2)]
        );
        for (horizon, count) in [(1, 0), (1, 9), (3, 1)] {
            let horizon = Horizon::new(horizon).unwrap();
            let refused = top_heads(&Params::small(), &average, horizon, count).unwrap_err();
            assert!(
                refused
                    .to_string()
                    .contains("8 in the trunk and 2 horizons"),
                "{refused}"
            );
        }
        let unknown = (average * f64::NAN).unwrap();
        let refused = top_heads(&Params::small(), &unknown, Horizon::NEXT, 3).unwrap_err();
        assert!(refused.to_string().contains("no answer"), "{refused}");
    }

    #[test]
    fn prompts_and_trials_that_cannot_be_averaged_are_refused() {
        let slots = |slots: &[usize]| Prompt::new(vec![1; slots.len()], slots.to_vec());
        assert_eq!(slots(&[0, 1, 1, 2]).unwrap().num_slots(), 3);
        assert!(slots(&[0]).is_ok());
        for bad in [&[][..], &[1, 2], &[0, 2], &[0, 1, 0, 1], &[0, 1, 1]] {
            assert!(
                slots(bad).unwrap_err().to_string().contains("slot"),
                "{bad:?}"
            );
        }
        assert!(Prompt::new(vec![1, 2], vec![0]).is_err());
        let refusal = |trials| Trials::new(trials).unwrap_err().to_string();
        let good = trial(4, &[1, 2, 3], &[1, 2, 3]);
        assert!(refusal(vec![]).contains("none"));
        assert!(refusal(vec![good.clone(), good.clone()]).contains("trial 4 comes twice"));
        let longer = trial(5, &[1, 2, 2, 3], &[1, 2, 3]);
        assert!(refusal(vec![good.clone(), longer]).contains("trial 5 has 4 slots"));
        let silent = Trial {
            answer: vec![],
            ..good
        };
        assert!(refusal(vec![silent]).contains("no answer"));
    }
}
