//! Training the value model: at each response position, how likely is this solution to be correct?

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::Tensor;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use wmtp_data_sets::{PaddedBatch, TokenFile, pad_batch};
use wmtp_model::{Adapters, HeadKind, ParamStore, Params, Products, ValueModel};
use wmtp_weighting::{gae, td_errors};

use crate::buffer::Buffer;
use crate::engine::{
    Engine, OptimSettings, Scored, Side, StepReport, Trainer, Validation, as_room_allows, end_step,
};
use crate::error::{Error, Result};
use crate::heads::ids_tensor;
use crate::inference::{largest_batch, mean, passing_bytes, pieces, raw_values};
use crate::lines::Lines;
use crate::optimizer::{Gradients, parameters};
use crate::policy::{Rows, StepPlan, check_lengths, plan};
use crate::ranks::{Exact, Ranks};
use crate::scores::TokenScores;
use crate::throughput::{Learning, Work};

/// What the head's output means and what it is trained with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objective {
    /// The output is the value; squared distance to the reward.
    MseMc,
    /// The output is a logit, its sigmoid the value; binary cross-entropy with the reward.
    Bce,
}

impl Objective {
    /// From the head's output to a value.
    pub fn value(self, output: f64) -> f64 {
        match self {
            Self::MseMc => output,
            Self::Bce => 1.0 / (1.0 + (-output).exp()),
        }
    }

    /// Loss of one output and its derivative.
    pub fn loss(self, output: f64, reward: f64) -> (f64, f64) {
        match self {
            Self::MseMc => {
                let distance = output - reward;
                (distance * distance, 2.0 * distance)
            }
            Self::Bce => {
                let softplus = output.max(0.0) + (-output.abs()).exp().ln_1p();
                (softplus - reward * output, self.value(output) - reward)
            }
        }
    }

    /// Where the head's bias starts: an even chance.
    pub fn bias(self) -> f64 {
        match self {
            Self::MseMc => 0.5,
            Self::Bce => 0.0,
        }
    }
}

/// Settings of a value run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ValueSettings {
    /// The objective.
    pub objective: Objective,
    /// The head.
    pub head: HeadKind,
    /// Peak learning rate of the trunk, or of the adapters upon it; 0 freezes it.
    pub lr_trunk: f64,
    /// Peak learning rate of the head.
    pub lr_head: f64,
    /// The optimiser.
    pub optim: OptimSettings,
    /// Passes over the training rows; fractions are fine.
    pub epochs: f64,
    /// Sequences per optimizer step.
    pub batch_sequences: usize,
    /// How products with weights are computed in training steps; validation is f32.
    pub products: Products,
    /// Bytes that the activations of a trunk that learns may take; blocks beyond them are computed again on the way
    /// back. `None` keeps all. It changes no bit of the result.
    pub activation_bytes: Option<usize>,
    /// Seed of the order of rows.
    pub order_seed: u64,
}

/// Parameters of a value model: a trunk of its own and a head.
#[derive(Debug)]
pub struct ValueParameters {
    /// Embedding, trunk blocks and norm.
    pub trunk: ParamStore,
    /// Adapters upon the trunk, which are then what learns of it.
    pub adapters: Option<Adapters>,
    /// The head.
    pub head: ParamStore,
}

/// A value model in training.
pub struct ValueTrainer<'a> {
    engine: Engine,
    gradients: Gradients,
    params: &'a Params,
    store: &'a ValueParameters,
    model: ValueModel,
    train: Rows<'a>,
    validation: Rows<'a>,
    plan: StepPlan,
    settings: ValueSettings,
}

impl<'a> ValueTrainer<'a> {
    /// Prepares a run of these ranks; nothing is computed yet.
    ///
    /// # Errors
    /// [`Error::BadData`] when there are no labelled training rows, or rows that are longer than the model reads.
    pub fn new(
        params: &'a Params,
        store: &'a ValueParameters,
        train: Rows<'a>,
        validation: Rows<'a>,
        settings: ValueSettings,
        ranks: &Arc<Ranks>,
    ) -> Result<Self> {
        if train.rows.is_empty() {
            let reason = "the training split holds no row with a label";
            return Err(Error::BadData(reason.to_owned()));
        }
        check_lengths(&train, &validation)?;
        let plan = plan(
            &train,
            settings.epochs,
            settings.batch_sequences,
            settings.order_seed,
        );
        let ValueParameters {
            trunk,
            adapters,
            head,
        } = store;
        let (kind, lr) = (settings.head, settings.lr_trunk);
        let (model, mut trainable) = match adapters {
            _ if lr <= 0.0 => (
                ValueModel::frozen_trunk(params, kind, trunk, head)?,
                Vec::new(),
            ),
            Some(adapters) => (
                ValueModel::adapted(params, kind, trunk, adapters, head)?,
                parameters(adapters.store(), lr),
            ),
            None => (
                ValueModel::new(params, kind, trunk, head)?,
                parameters(trunk, lr),
            ),
        };
        let model = model.with_products(settings.products);
        trainable.extend(parameters(head, settings.lr_head));
        let total = plan.steps.len() as u64;
        let engine = Engine::among(ranks, trainable, &settings.optim, total)?;
        Ok(Self {
            gradients: Gradients::zeros(engine.parameters())?,
            engine,
            params,
            store,
            model,
            train,
            validation,
            plan,
            settings,
        })
    }

    /// Makes sure that there is room for the largest micro-batch of a step.
    fn admit(&mut self, rows: &[usize]) -> Result<()> {
        let micro = rows.chunks(self.engine.micro_batch_sequences());
        let positions = micro.map(|rows| pad_batch(self.train.file, rows).ids.len());
        let bytes = self.peak_bytes(positions.max().unwrap_or(0));
        self.engine.admit(bytes)
    }

    /// Bytes that a micro-batch of so many positions takes at its peak, on top of weights, gradient sums and optimiser.
    /// A trunk that learns takes what the policy's does, see [`crate::heads::Learner`], and at the end the gradient of
    /// its embeddings; one under adapters has the weights of one block made at a time, and of others those packed that no
    /// adapter is on; a frozen one takes a block and the stream. The stream is wide behind the trunk: the norm's output, the head's graph
    /// and the gradients of both.
    fn peak_bytes(&self, positions: usize) -> usize {
        let (params, dtype) = (self.params, self.store.trunk.dtype());
        let (kept, embeddings) = (self.num_kept(positions), params.vocab_size * params.dim);
        let trunk = self.store.trunk.num_elements() - embeddings - params.dim;
        let of_block = trunk / params.num_trunk_blocks();
        let made = kept * self.model.num_packed_in_block() + 2 * of_block;
        let (blocks, inputs, weights) = match self.learning() {
            Learning::Trained => (kept + 2, params.num_trunk_blocks(), made + embeddings),
            Learning::Through => (kept + 2, params.num_trunk_blocks(), made),
            Learning::Frozen => (2, 0, 0),
        };
        let stream = (inputs + 8) * positions * params.dim;
        let of_block = params.block_activation_bytes(positions, dtype);
        blocks * of_block + (stream + weights) * dtype.size_in_bytes()
    }

    /// What a step makes of the trunk's weights.
    fn learning(&self) -> Learning {
        match self.store.adapters {
            _ if self.settings.lr_trunk <= 0.0 => Learning::Frozen,
            Some(_) => Learning::Through,
            None => Learning::Trained,
        }
    }

    /// Trunk blocks whose activations are kept for a batch of so many positions.
    fn num_kept(&self, positions: usize) -> usize {
        let (dtype, packed) = (self.store.trunk.dtype(), self.model.num_packed_in_block());
        let bytes = self.settings.activation_bytes;
        self.params.num_kept_blocks(bytes, positions, packed, dtype)
    }

    /// Sum of the loss over this rank's value positions of one optimizer step, `count` in all; gradients are left in
    /// `self.gradients`.
    fn step_part(&mut self, rows: &[usize], count: usize) -> Result<(Exact, Work)> {
        self.gradients.clear()?;
        let ranks = Arc::clone(self.engine.ranks());
        let (mut sum, mut work) = (0.0, Work::default());
        let learning = self.learning();
        let micro = rows.chunks(self.engine.micro_batch_sequences());
        for (number, micro) in micro.enumerate() {
            let batch = pad_batch(self.train.file, micro);
            work = work.with_batch(
                &batch,
                (self.params.num_trunk_blocks(), learning),
                self.params,
            );
            if ranks.takes(number) {
                sum += self.accumulate(micro, &batch, count)?;
            }
        }
        if let (Learning::Through, Some(adapters)) = (learning, &self.store.adapters) {
            let positions = work.positions as usize;
            work = work.with_adapters(adapters.product_flops(self.params, positions, &[]));
        }
        Ok((sum.into(), work))
    }

    /// Mean loss over the value positions of one optimizer step on all ranks.
    fn step_loss(&mut self, rows: &[usize]) -> Result<(f64, Work)> {
        let file = self.train.file;
        let count: usize = rows.iter().map(|&row| file.row(row).response_len()).sum();
        self.admit(rows)?;
        let part = self.step_part(rows, count);
        let mut work = Work::default();
        let sum = part.map(|(sum, of_all)| {
            work = of_all;
            sum
        });
        let sums = self.engine.ranks().agree(sum)?;
        let sum: f64 = sums.into_iter().map(f64::from).sum();
        Ok((sum / count as f64, work))
    }

    /// Sum of the loss over one micro-batch. The derivative for each output is computed on the host and
    /// goes back through the model as a plain tensor.
    fn accumulate(&mut self, rows: &[usize], batch: &PaddedBatch, count: usize) -> Result<f64> {
        let device = self.store.head.device();
        let num_kept = self.num_kept(batch.ids.len());
        let tape = self.model.taped(&ids_tensor(batch, device)?, num_kept)?;
        let outputs = Buffer::of(tape.values())?.into_f64()?;
        let (mut sum, mut derivatives) = (0.0, vec![0.0; outputs.len()]);
        for (slot, &row) in rows.iter().enumerate() {
            let start = slot * batch.width;
            let (prompt, length) = (batch.prompt_lens[slot], batch.lengths[slot]);
            let reward = label(self.train.file, row)?;
            for position in start + prompt - 1..start + length - 1 {
                let (loss, derivative) = self.settings.objective.loss(outputs[position], reward);
                sum += loss;
                derivatives[position] = derivative / count as f64;
            }
        }
        let derivatives = Tensor::from_vec(derivatives, tape.values().dims(), device)?;
        let derivatives = derivatives.to_dtype(tape.values().dtype())?;
        let (parameters, gradients) = (self.engine.parameters(), &mut self.gradients);
        tape.backward(&derivatives, |id, gradient| {
            gradients.add(parameters, id, gradient)
        })?;
        Ok(sum)
    }

    /// Mean loss over the value positions of the validation rows, which all ranks ask for together; `None` when there are none.
    pub fn validate(&self) -> Result<Option<f64>> {
        let (file, rows) = (self.validation.file, &self.validation.rows);
        let mut losses = self.outputs(file, rows)?;
        for (row, outputs) in rows.iter().zip(&mut losses) {
            let reward = label(file, *row)?;
            for output in outputs {
                *output = self.settings.objective.loss(*output, reward).0;
            }
        }
        Ok(mean(&losses))
    }

    /// The validation behind a step.
    fn validated(&mut self) -> Result<Validation> {
        let (file, rows) = (self.validation.file, self.validation.rows.clone());
        self.admit_passing(file, &rows)?;
        Ok(Validation {
            loss: self.validate()?,
            ..Validation::default()
        })
    }

    /// Makes sure that there is room for these rows on their way through the frozen model, on all ranks.
    fn admit_passing(&mut self, file: &TokenFile, rows: &[usize]) -> Result<()> {
        let positions = largest_batch(file, rows, self.engine.micro_batch_sequences());
        let bytes = passing_bytes(self.params, positions, self.store.head.dtype());
        self.engine.admit(bytes)
    }

    fn outputs(&self, file: &TokenFile, rows: &[usize]) -> Result<Vec<Vec<f64>>> {
        let ValueParameters {
            trunk,
            adapters,
            head,
        } = self.store;
        let (params, kind) = (self.params, self.settings.head);
        let model = match adapters {
            Some(adapters) => ValueModel::adapted_frozen(params, kind, trunk, adapters, head)?,
            None => ValueModel::frozen(params, kind, trunk, head)?,
        };
        let (ranks, size) = (self.engine.ranks(), self.engine.micro_batch_sequences());
        raw_values(ranks, &model, head.device(), file, rows, size)
    }

    /// Metrics as JSON lines, one per step.
    pub fn metrics(&self) -> &Lines {
        self.engine.metrics()
    }
}

impl Trainer for ValueTrainer<'_> {
    fn engine(&self) -> &Engine {
        &self.engine
    }

    fn engine_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }

    fn steps_per_epoch(&self) -> u64 {
        self.plan.per_epoch
    }

    fn num_held_out(&self) -> usize {
        self.validation.rows.len()
    }

    fn advance(&mut self) -> Result<StepReport> {
        let index = self.engine.step() as usize;
        let Some(rows) = self.plan.steps.get(index).cloned() else {
            return Err(Error::BadData(format!("the run has only {index} steps")));
        };
        let (loss, work) = as_room_allows(self, |this| this.step_loss(&rows))?;
        // A head that starts at zero gives the trunk a gradient of zero at first, yet it does give one.
        let update = self.engine.apply(loss, &mut self.gradients, true)?;
        let report = StepReport {
            step: self.engine.step(),
            work,
            update,
            halved: Vec::new(),
            metrics: vec![("train_loss".to_owned(), loss)],
            live: Vec::new(),
        };
        end_step(self, report, Self::validated)
    }

    fn save(&self, dir: &Path) -> Result<()> {
        self.engine.save(dir)
    }

    fn restore(&mut self, dir: &Path) -> Result<()> {
        self.engine.restore(dir)
    }

    /// Values at the value positions p - 1 ..= T - 2 of each row.
    fn score(&mut self, side: Side, rows: &[usize]) -> Result<Scored> {
        let file = side.of(self.train.file, self.validation.file);
        let mut values = as_room_allows(self, |this| {
            this.admit_passing(file, rows)?;
            this.outputs(file, rows)
        })?;
        for output in values.iter_mut().flatten() {
            *output = self.settings.objective.value(*output);
        }
        Ok(Scored {
            of_rows: values,
            halved: self.engine.take_halved(),
        })
    }

    fn pieces(&self, side: Side, rows: &[usize]) -> Vec<Vec<usize>> {
        let file = side.of(self.train.file, self.validation.file);
        pieces(
            self.ranks(),
            file,
            rows,
            self.engine.micro_batch_sequences(),
        )
    }
}

fn label(file: &TokenFile, row: usize) -> Result<f64> {
    match file.row(row).is_correct {
        Some(correct) => Ok(f64::from(u8::from(correct))),
        None => Err(Error::BadData(format!("row {row} has no label"))),
    }
}

/// Labelled rows with as many correct as incorrect ones of each problem, drawn by the seed.
///
/// A problem with one label only is left out, since it says nothing about what makes a solution right.
/// Where no problem has both labels (a data set of reference solutions alone), every labelled row stays.
pub fn balanced_rows(file: &TokenFile, problems: &[String], seed: u64) -> Vec<usize> {
    let mut by_problem: BTreeMap<&str, [Vec<usize>; 2]> = BTreeMap::new();
    for row in file.labelled_rows() {
        let label = usize::from(file.row(row).is_correct == Some(true));
        by_problem.entry(&problems[row]).or_default()[label].push(row);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut rows = Vec::new();
    for sides in by_problem.values_mut() {
        let count = sides[0].len().min(sides[1].len());
        for side in sides {
            side.shuffle(&mut rng);
            rows.extend(&side[..count]);
        }
    }
    if rows.is_empty() {
        return file.labelled_rows();
    }
    rows.sort_unstable();
    rows
}

/// Advantages of the response tokens of correct rows, from the values before each of them.
pub fn advantages(
    rows: &[usize],
    values: &[Vec<f64>],
    reward: f64,
    gamma: f64,
    lambda: f64,
) -> TokenScores {
    let of = |values: &Vec<f64>| {
        let advantages = gae(&td_errors(values, reward, gamma), gamma, lambda);
        advantages
            .into_iter()
            .map(|advantage| advantage as f32)
            .collect()
    };
    TokenScores::new(rows.iter().copied().zip(values.iter().map(of)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn worked_losses() {
        assert_eq!(Objective::MseMc.loss(0.5, 1.0), (0.25, -1.0));
        let (loss, derivative) = Objective::Bce.loss(0.0, 1.0);
        assert!((loss - 2f64.ln()).abs() < 1e-15 && (derivative + 0.5).abs() < 1e-15);
        let (loss, _) = Objective::Bce.loss(800.0, 0.0);
        assert!((loss - 800.0).abs() < 1e-9);
    }

    #[test]
    fn the_worked_advantages_are_stored_by_row() {
        let scores = advantages(&[4], &[vec![0.5, 0.55, 0.4, 0.7]], 1.0, 1.0, 0.95);
        let expected = [0.435_462, 0.405_750, 0.585_000, 0.300_000];
        for (found, expected) in scores.of_row(4, 4).unwrap().iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 1e-6);
        }
    }

    proptest! {
        #[test]
        fn derivatives_match_differences(output in -6.0f64..6.0, reward in prop::sample::select(vec![0.0, 1.0])) {
            for objective in [Objective::MseMc, Objective::Bce] {
                let h = 1e-6;
                let slope = (objective.loss(output + h, reward).0 - objective.loss(output - h, reward).0) / (2.0 * h);
                prop_assert!((objective.loss(output, reward).1 - slope).abs() < 1e-6);
            }
        }
    }
}
