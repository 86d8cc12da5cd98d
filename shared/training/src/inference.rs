//! Passing rows through a frozen model: cross-entropies and values per response target.

use candle_core::DType;
use wmtp_data_sets::{TokenFile, pad_batch};
use wmtp_model::loss::cross_entropy;
use wmtp_model::{Horizon, MtpModel, Params, ValueModel};

use crate::buffer::Buffer;
use crate::error::Result;
use crate::heads::{HeadTargets, ids_tensor};
use crate::memory::allocator;
use crate::ranks::Ranks;

/// Groups positions of `rows` into batches of similar length, so that little is spent on padding.
fn batches(file: &TokenFile, rows: &[usize], size: usize) -> Vec<Vec<usize>> {
    let mut positions: Vec<usize> = (0..rows.len()).collect();
    positions.sort_by_key(|&position| (file.row(rows[position]).ids.len(), position));
    positions
        .chunks(size.max(1))
        .map(<[usize]>::to_vec)
        .collect()
}

/// Positions of the largest batch that these rows make.
pub(crate) fn largest_batch(file: &TokenFile, rows: &[usize], size: usize) -> usize {
    let batches = batches(file, rows, size).into_iter();
    let longest = |batch: &[usize]| batch.iter().map(|&at| file.row(rows[at]).ids.len()).max();
    let positions = batches.map(|batch| batch.len() * longest(&batch).unwrap_or(0));
    positions.max().unwrap_or(0)
}

/// Bytes that a batch of so many positions takes at its peak in the blocks of a frozen model: the activations of one, what
/// it has packed of its weights, and the stream beside it.
pub(crate) fn passing_bytes(params: &Params, positions: usize, dtype: DType) -> usize {
    let outside = 2 * params.vocab_size * params.dim + params.dim;
    let weights = (params.num_params() - outside) / params.n_layers;
    let beside = 2 * weights + 4 * positions * params.dim;
    params.block_activation_bytes(positions, dtype) + beside * dtype.size_in_bytes()
}

/// Batches of each rank whose answers cross to the others at once: messages stay small however many rows there are, and
/// nobody waits long for a stop to be seen.
const POOLED_BATCHES: usize = 16;

/// The batches of `rows` that are pooled at once, one after another.
fn pools(ranks: &Ranks, file: &TokenFile, rows: &[usize], size: usize) -> Vec<Vec<Vec<usize>>> {
    let batches = batches(file, rows, size);
    let pools = batches.chunks(POOLED_BATCHES * ranks.world());
    pools.map(<[_]>::to_vec).collect()
}

/// Positions of `rows` in pieces which, passed through one after another, make the same batches as all rows at once.
pub(crate) fn pieces(
    ranks: &Ranks,
    file: &TokenFile,
    rows: &[usize],
    size: usize,
) -> Vec<Vec<usize>> {
    let pools = pools(ranks, file, rows, size).into_iter();
    pools.map(|batches| batches.concat()).collect()
}

/// One row's answers: a list of numbers for each of its heads.
type Answer = Vec<Vec<f64>>;

/// Calls `of_batch` for every batch of rows, those of other ranks there, and puts its answers, one per row, back into their
/// order.
fn by_row(
    ranks: &Ranks,
    file: &TokenFile,
    rows: &[usize],
    size: usize,
    mut of_batch: impl FnMut(&[usize]) -> Result<Vec<Answer>>,
) -> Result<Vec<Answer>> {
    let mut answers = vec![Vec::new(); rows.len()];
    for pooled in pools(ranks, file, rows, size) {
        let mut mine = || {
            let mut found = Vec::new();
            for (number, positions) in pooled.iter().enumerate() {
                if ranks.takes(number) {
                    allocator("train:inference")?;
                    let batch: Vec<usize> = positions.iter().map(|&at| rows[at]).collect();
                    found.extend(positions.iter().copied().zip(of_batch(&batch)?));
                }
            }
            Ok(found)
        };
        for (position, answer) in ranks.pool(mine())? {
            answers[position] = answer;
        }
    }
    Ok(answers)
}

/// Unweighted cross-entropy of one head per response target, one entry per row.
///
/// For head k a row lacks its targets before position k, if there are any.
pub fn head_cross_entropies(
    model: &MtpModel,
    file: &TokenFile,
    rows: &[usize],
    size: usize,
    horizon: Horizon,
) -> Result<Vec<Vec<f64>>> {
    let of_rows = all_cross_entropies(&Ranks::alone(), model, file, rows, size, &[horizon])?;
    Ok(of_rows.into_iter().map(|heads| heads.concat()).collect())
}

/// The same of several heads behind one pass through the trunk, which the ranks share: per row one list for each head.
pub(crate) fn all_cross_entropies(
    ranks: &Ranks,
    model: &MtpModel,
    file: &TokenFile,
    rows: &[usize],
    size: usize,
    horizons: &[Horizon],
) -> Result<Vec<Answer>> {
    by_row(ranks, file, rows, size, |rows| {
        batch_cross_entropies(model, file, rows, horizons)
    })
}

/// The same of rows that go through the model together.
pub(crate) fn batch_cross_entropies(
    model: &MtpModel,
    file: &TokenFile,
    rows: &[usize],
    horizons: &[Horizon],
) -> Result<Vec<Answer>> {
    let batch = pad_batch(file, rows);
    let mut answers = vec![vec![Vec::new(); horizons.len()]; rows.len()];
    let of_head = |&horizon: &Horizon| HeadTargets::of(&batch, horizon, 0);
    let targets: Vec<HeadTargets> = horizons.iter().map(of_head).collect();
    if targets.iter().all(|targets| targets.ids.is_empty()) {
        return Ok(answers);
    }
    let trunk = model.trunk(&ids_tensor(&batch, model.unembedding().device())?)?;
    for (head, (&horizon, targets)) in horizons.iter().zip(&targets).enumerate() {
        if targets.ids.is_empty() {
            continue;
        }
        let hidden = model.head_hidden_at(horizon, &trunk, &targets.sources)?;
        let losses = cross_entropy(&hidden, model.unembedding(), &targets.ids, model.products())?;
        for (target, loss) in targets.targets.iter().zip(losses) {
            answers[target.slot][head].push(loss);
        }
    }
    Ok(answers)
}

/// Raw output of the value head at the value positions p - 1 ..= T - 2, one entry per row: as many
/// numbers as the row has response targets. The ranks share the rows.
pub(crate) fn raw_values(
    ranks: &Ranks,
    model: &ValueModel,
    device: &candle_core::Device,
    file: &TokenFile,
    rows: &[usize],
    size: usize,
) -> Result<Vec<Vec<f64>>> {
    let answers = by_row(ranks, file, rows, size, |rows| {
        let batch = pad_batch(file, rows);
        let values = model.values(&ids_tensor(&batch, device)?)?;
        let values = Buffer::of(&values)?.into_f64()?;
        let of_row = |(row, (&length, &prompt)): (usize, (&usize, &usize))| {
            let start = row * batch.width;
            vec![values[start + prompt - 1..start + length - 1].to_vec()]
        };
        let bounds = batch.lengths.iter().zip(&batch.prompt_lens);
        Ok(bounds.enumerate().map(of_row).collect())
    })?;
    Ok(answers.into_iter().map(|lists| lists.concat()).collect())
}

/// Mean over all numbers of all rows, in their order.
pub fn mean(rows: &[Vec<f64>]) -> Option<f64> {
    mean_of(rows.iter())
}

/// Mean of each head over all its targets of all rows, where it has any.
pub(crate) fn head_means(rows: &[Vec<Vec<f64>>], num_heads: usize) -> Vec<Option<f64>> {
    let of_head = |head: usize| mean_of(rows.iter().map(|row| &row[head]));
    (0..num_heads).map(of_head).collect()
}

fn mean_of<'a>(rows: impl Iterator<Item = &'a Vec<f64>> + Clone) -> Option<f64> {
    let count: usize = rows.clone().map(Vec::len).sum();
    let sum: f64 = rows.flatten().sum();
    (count > 0).then(|| sum / count as f64)
}
