//! AdamW with decoupled decay, exact state and a fixed order of parameters.
//!
//! candle-nn's optimizer keeps its moments to itself, so a run could not be resumed, and passes over a
//! parameter without a gradient in silence. This one owns its moments by name and runs as one fused loop
//! over the parameter's own memory.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor, TensorId, Var};
use rayon::prelude::*;
use wmtp_model::ParamStore;

use crate::buffer::{self, Buffer, StateFile};
use crate::error::{Error, Result};
use crate::ranks::{Exact, Ranks, owners};

/// Constants of AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWSettings {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled decay of the parameters that decay.
    pub weight_decay: f64,
}

/// One trainable tensor with the rules that hold for it.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Name as in the model's file.
    pub name: String,
    /// The tensor that the model computes with.
    pub var: Var,
    /// Peak learning rate.
    pub lr: f64,
    /// Whether it decays.
    pub decays: bool,
}

/// The tensors of a store, all with one peak learning rate. Matrices decay; vectors (norm weights and
/// biases) do not, since decay would pull a norm weight to zero, not to one.
pub fn parameters(store: &ParamStore, lr: f64) -> Vec<Parameter> {
    store
        .iter()
        .map(|(name, var)| Parameter {
            name: name.to_owned(),
            var: var.clone(),
            lr,
            decays: var.rank() >= 2,
        })
        .collect()
}

/// Sums of gradients over the micro-batches of one optimizer step, in the order of the parameters.
#[derive(Debug)]
pub struct Gradients {
    sums: Vec<Buffer>,
    touched: Vec<bool>,
}

impl Gradients {
    /// Zeros for these parameters.
    pub fn zeros(parameters: &[Parameter]) -> Result<Self> {
        let sums = parameters
            .iter()
            .map(|p| Buffer::sum_beside(&p.var))
            .collect::<Result<_>>()?;
        Ok(Self {
            sums,
            touched: vec![false; parameters.len()],
        })
    }

    /// Back to zero, for the next optimizer step.
    pub fn clear(&mut self) -> Result<()> {
        let sums = self.sums.par_iter_mut().zip(&self.touched);
        sums.filter(|(_, touched)| **touched)
            .try_for_each(|(sum, _)| sum.clear())?;
        self.touched.fill(false);
        Ok(())
    }

    /// Adds the gradient of one tensor; tensors that are none of these parameters are passed over.
    pub fn add(&mut self, parameters: &[Parameter], id: TensorId, gradient: &Tensor) -> Result<()> {
        if let Some(index) = parameters.iter().position(|p| p.var.id() == id) {
            if self.touched[index] {
                self.sums[index].add(gradient)?;
            } else {
                self.sums[index].begin(gradient)?;
                self.touched[index] = true;
            }
        }
        Ok(())
    }

    /// Adds what a pass through candle's graph left for these parameters.
    pub fn add_store(&mut self, parameters: &[Parameter], store: &GradStore) -> Result<()> {
        for parameter in parameters {
            if let Some(gradient) = store.get(&parameter.var) {
                self.add(parameters, parameter.var.id(), gradient)?;
            }
        }
        Ok(())
    }

    /// Norm of all gradients as one vector, in double precision and a fixed order.
    pub fn norm(&self) -> Result<f64> {
        let sums: Vec<&Buffer> = self.sums.iter().collect();
        let squares = Buffer::sums_of_squares(&sums)?;
        Ok(squares.iter().sum::<f64>().sqrt())
    }

    /// Adds up the gradients of all ranks, each at its parameter's owner, and tells the norm of all.
    fn gather(&mut self, ranks: &Ranks, owners: &[usize]) -> Result<f64> {
        if !ranks.are_several() {
            return self.norm();
        }
        for touched in ranks.share(self.touched.clone())? {
            let both = self.touched.iter_mut().zip(touched);
            both.for_each(|(touched, theirs)| *touched |= theirs);
        }
        ranks.reduce(owners, &self.touched, &mut self.sums)?;
        let is_mine = |index: &usize| owners[*index] == ranks.rank();
        let mine: Vec<usize> = (0..self.sums.len()).filter(is_mine).collect();
        let sums: Vec<&Buffer> = mine.iter().map(|&index| &self.sums[index]).collect();
        let squares = Buffer::sums_of_squares(&sums)?;
        let squares: Vec<(usize, Exact)> = mine
            .into_iter()
            .zip(squares.into_iter().map(Exact::from))
            .collect();
        let mut all = ranks.share(squares)?.concat();
        all.sort_by_key(|(index, _)| *index);
        let sum: f64 = all.into_iter().map(|(_, square)| f64::from(square)).sum();
        Ok(sum.sqrt())
    }

    /// Index of the first parameter that got no gradient.
    pub fn first_untouched(&self) -> Option<usize> {
        self.touched.iter().position(|touched| !touched)
    }

    /// Whether the parameter at this index got a gradient.
    pub fn is_touched(&self, index: usize) -> bool {
        self.touched[index]
    }

    /// The gradient of the parameter at this index.
    pub fn get(&self, index: usize) -> &Buffer {
        &self.sums[index]
    }
}

/// Factor that brings a gradient of this norm to at most `max_norm`, as PyTorch computes it.
pub fn clip_coefficient(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}

/// First and second moment of one parameter.
#[derive(Debug, Clone)]
struct Moments {
    first: Buffer,
    second: Buffer,
}

/// The optimizer: parameters, their moments and the number of updates so far. Each rank updates the parameters that it owns.
#[derive(Debug)]
pub struct AdamW {
    settings: AdamWSettings,
    parameters: Vec<Parameter>,
    ranks: Arc<Ranks>,
    /// The rank that updates each parameter.
    owners: Vec<usize>,
    /// Moments of the parameters that this rank owns.
    moments: Vec<Option<Moments>>,
    updates: u64,
}

impl AdamW {
    /// Starts with zero moments.
    pub fn new(parameters: Vec<Parameter>, settings: AdamWSettings) -> Result<Self> {
        Self::among(&Ranks::alone(), parameters, settings)
    }

    /// Starts with zero moments of those parameters that this rank owns.
    pub(crate) fn among(
        ranks: &Arc<Ranks>,
        parameters: Vec<Parameter>,
        settings: AdamWSettings,
    ) -> Result<Self> {
        let lengths: Vec<usize> = parameters.iter().map(|p| p.var.elem_count()).collect();
        let owners = owners(&lengths, ranks.world());
        let zeros = |p: &Parameter| {
            Ok(Moments {
                first: Buffer::zeros_beside(&p.var)?,
                second: Buffer::zeros_beside(&p.var)?,
            })
        };
        let moments = parameters
            .iter()
            .zip(&owners)
            .map(|(p, owner)| (*owner == ranks.rank()).then(|| zeros(p)).transpose())
            .collect::<Result<_>>()?;
        Ok(Self {
            settings,
            parameters,
            ranks: Arc::clone(ranks),
            owners,
            moments,
            updates: 0,
        })
    }

    /// The ranks that share the work.
    pub(crate) fn ranks(&self) -> &Arc<Ranks> {
        &self.ranks
    }

    /// Adds up the gradients of all ranks and tells their norm.
    pub(crate) fn gather(&self, gradients: &mut Gradients) -> Result<f64> {
        gradients.gather(&self.ranks, &self.owners)
    }

    /// The parameters in their order.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Number of updates so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// One update: gradients times `scale` (clipping), learning rates times `lr_factor` (schedule).
    pub fn update(&mut self, gradients: &Gradients, scale: f64, lr_factor: f64) -> Result<()> {
        self.updates += 1;
        self.update_own(gradients, scale, lr_factor)?;
        self.ranks.spread(&self.owners, &self.parameters)
    }

    fn update_own(&mut self, gradients: &Gradients, scale: f64, lr_factor: f64) -> Result<()> {
        let (settings, updates) = (self.settings, self.updates);
        #[cfg(feature = "cuda")]
        if self.parameters.iter().any(|p| p.var.device().is_cuda()) {
            return self.update_on_device(gradients, scale, lr_factor);
        }
        self.parameters
            .par_iter()
            .zip(&mut self.moments)
            .zip(&gradients.sums)
            .try_for_each(|((parameter, moments), gradient)| {
                let Some(moments) = moments else {
                    return Ok(());
                };
                let lr = parameter.lr * lr_factor;
                let step = Step::new(&settings, updates, lr, parameter.decays, scale);
                let fused = Fused {
                    step,
                    gradient,
                    moments: RefCell::new(moments),
                };
                parameter.var.inplace_op1(&fused)
            })?;
        Ok(())
    }

    /// The update kernel by kernel on the device's stream.
    #[cfg(feature = "cuda")]
    fn update_on_device(&self, gradients: &Gradients, scale: f64, lr_factor: f64) -> Result<()> {
        let moments = self.moments.iter().zip(&gradients.sums);
        for (parameter, (moments, gradient)) in self.parameters.iter().zip(moments) {
            let Some(moments) = moments else {
                continue;
            };
            let lr = parameter.lr * lr_factor;
            let step = Step::new(&self.settings, self.updates, lr, parameter.decays, scale);
            let (Buffer::Device(gradient), Buffer::Device(first), Buffer::Device(second)) =
                (gradient, &moments.first, &moments.second)
            else {
                let name = &parameter.name;
                let reason = format!("{name}: gradient and moments lie on the host");
                return Err(Error::BadData(reason));
            };
            let step = wmtp_model::cuda::AdamWStep {
                keep: step.keep,
                first: [step.beta1, step.fresh1],
                second: [step.beta2, step.fresh2],
                rate: step.rate,
                root_correction2: step.root_correction2,
                eps: step.eps,
                scale: step.scale,
            };
            // Zeros of a parameter that no gradient reached are one zero, seen many times.
            let gradient = gradient.contiguous()?;
            wmtp_model::cuda::adamw_step(&parameter.var, &gradient, [first, second], step)?;
        }
        Ok(())
    }

    /// Writes the moments that this rank keeps.
    pub fn save(&self, path: &Path) -> Result<()> {
        let named = self.parameters.iter().zip(&self.moments);
        let tensors = named.flat_map(|(parameter, moments)| {
            let shape = parameter.var.dims();
            moments.iter().flat_map(move |moments| {
                [
                    (format!("first.{}", parameter.name), shape, &moments.first),
                    (format!("second.{}", parameter.name), shape, &moments.second),
                ]
            })
        });
        buffer::save(path, tensors)
    }

    /// Reads moments that [`AdamW::save`] wrote after `updates` updates.
    pub fn restore(&mut self, path: &Path, updates: u64) -> Result<()> {
        let mut file = StateFile::read(path)?;
        for (parameter, moments) in self.parameters.iter().zip(&mut self.moments) {
            let Some(moments) = moments else {
                continue;
            };
            for (prefix, moment) in [
                ("first", &mut moments.first),
                ("second", &mut moments.second),
            ] {
                let name = format!("{prefix}.{}", parameter.name);
                *moment = file.take(&name, parameter.var.dims(), moment)?;
            }
        }
        file.end()?;
        self.updates = updates;
        Ok(())
    }
}

/// Constants of one update of one parameter, in the precision of its arithmetic.
#[derive(Debug, Clone, Copy)]
struct Step<T> {
    keep: T,
    beta1: T,
    fresh1: T,
    beta2: T,
    fresh2: T,
    rate: T,
    root_correction2: T,
    eps: T,
    scale: T,
}

impl Step<f64> {
    fn new(settings: &AdamWSettings, updates: u64, lr: f64, decays: bool, scale: f64) -> Self {
        let power = i32::try_from(updates).unwrap_or(i32::MAX);
        let decay = if decays { settings.weight_decay } else { 0.0 };
        Self {
            keep: 1.0 - lr * decay,
            beta1: settings.beta1,
            fresh1: 1.0 - settings.beta1,
            beta2: settings.beta2,
            fresh2: 1.0 - settings.beta2,
            rate: lr / (1.0 - settings.beta1.powi(power)),
            root_correction2: (1.0 - settings.beta2.powi(power)).sqrt(),
            eps: settings.eps,
            scale,
        }
    }

    /// The same in single precision; every constant is rounded once.
    fn narrow(self) -> Step<f32> {
        Step {
            keep: self.keep as f32,
            beta1: self.beta1 as f32,
            fresh1: self.fresh1 as f32,
            beta2: self.beta2 as f32,
            fresh2: self.fresh2 as f32,
            rate: self.rate as f32,
            root_correction2: self.root_correction2 as f32,
            eps: self.eps as f32,
            scale: self.scale as f32,
        }
    }
}

/// The update as one pass over parameter, gradient and moments.
struct Fused<'a> {
    step: Step<f64>,
    gradient: &'a Buffer,
    moments: RefCell<&'a mut Moments>,
}

macro_rules! fused_loop {
    ($step:expr, $parameter:expr, $gradient:expr, $first:expr, $second:expr) => {{
        let step = $step;
        let state = $first.iter_mut().zip($second.iter_mut());
        for ((value, gradient), (first, second)) in $parameter.iter_mut().zip($gradient).zip(state)
        {
            let gradient = gradient * step.scale;
            *first = step.beta1 * *first + step.fresh1 * gradient;
            *second = step.beta2 * *second + step.fresh2 * gradient * gradient;
            let spread = second.sqrt() / step.root_correction2 + step.eps;
            *value = *value * step.keep - step.rate * *first / spread;
        }
    }};
}

impl InplaceOp1 for Fused<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("adamw: the parameter is not contiguous");
        };
        let mut moments = self.moments.borrow_mut();
        let moments = &mut **moments;
        match (
            storage,
            self.gradient,
            &mut moments.first,
            &mut moments.second,
        ) {
            (CpuStorage::F32(p), Buffer::F32(g), Buffer::F32(m), Buffer::F32(v)) => {
                fused_loop!(self.step.narrow(), p[start..end], g, m, v);
            }
            (CpuStorage::F64(p), Buffer::F64(g), Buffer::F64(m), Buffer::F64(v)) => {
                fused_loop!(self.step, p[start..end], g, m, v);
            }
            _ => candle_core::bail!("adamw: parameter, gradient and moments differ in kind"),
        }
        Ok(())
    }
}

/// Sets a parameter to the numbers of a buffer.
pub(crate) fn assign(parameter: &Parameter, values: &Buffer) -> Result<()> {
    let tensor = values.to_tensor(parameter.var.dims(), parameter.var.device())?;
    parameter.var.set(&tensor).map_err(Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    const SETTINGS: AdamWSettings = AdamWSettings {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
    };

    fn parameter(name: &str, values: &[f64], decays: bool) -> Parameter {
        let tensor = Tensor::new(values, &Device::Cpu).unwrap();
        Parameter {
            name: name.to_owned(),
            var: Var::from_tensor(&tensor).unwrap(),
            lr: 0.01,
            decays,
        }
    }

    fn gradient_of(parameters: &[Parameter], factors: &[f64]) -> Gradients {
        let mut gradients = Gradients::zeros(parameters).unwrap();
        let factors = Tensor::new(factors, &Device::Cpu).unwrap();
        for parameter in parameters {
            let loss = (parameter.var.as_tensor() * &factors)
                .unwrap()
                .sum_all()
                .unwrap();
            gradients
                .add_store(parameters, &loss.backward().unwrap())
                .unwrap();
        }
        gradients
    }

    /// Independent transcription of the published algorithm, one number at a time.
    fn by_hand(mut value: f64, gradients: &[f64], decay: f64) -> f64 {
        let (mut first, mut second) = (0.0, 0.0);
        for (index, gradient) in gradients.iter().enumerate() {
            let t = (index + 1) as i32;
            value -= 0.01 * decay * value;
            first = 0.9 * first + 0.1 * gradient;
            second = 0.95 * second + 0.05 * gradient * gradient;
            let first_hat = first / (1.0 - 0.9f64.powi(t));
            let second_hat = second / (1.0 - 0.95f64.powi(t));
            value -= 0.01 * first_hat / (second_hat.sqrt() + 1e-8);
        }
        value
    }

    #[test]
    fn three_updates_match_the_algorithm_by_hand() {
        let values = [0.5, -1.25, 3.0];
        let steps = [[0.3, -2.0, 1e-4], [-0.1, -1.5, 0.0], [0.7, 0.2, -5.0]];
        for decays in [true, false] {
            let parameters = vec![parameter("w", &values, decays)];
            let mut optimizer = AdamW::new(parameters, SETTINGS).unwrap();
            for factors in &steps {
                let gradients = gradient_of(optimizer.parameters(), factors);
                optimizer.update(&gradients, 1.0, 1.0).unwrap();
            }
            let found = optimizer.parameters()[0].var.to_vec1::<f64>().unwrap();
            for (index, value) in values.iter().enumerate() {
                let series: Vec<f64> = steps.iter().map(|step| step[index]).collect();
                let expected = by_hand(*value, &series, if decays { 0.1 } else { 0.0 });
                assert!(
                    (found[index] - expected).abs() < 1e-14,
                    "{} {expected}",
                    found[index]
                );
            }
        }
    }

    #[test]
    fn the_clip_coefficient_is_pytorchs() {
        assert!((clip_coefficient(5.0, 1.0) - 1.0 / 5.000_001).abs() < 1e-15);
        assert!((clip_coefficient(0.5, 1.0) - 1.0).abs() < 1e-15);
        assert!((clip_coefficient(0.0, 1.0) - 1.0).abs() < 1e-15);
    }

    #[test]
    fn the_norm_runs_over_all_parameters() {
        let parameters = vec![
            parameter("a", &[1.0, 1.0], true),
            parameter("b", &[1.0, 1.0], true),
        ];
        let gradients = gradient_of(&parameters, &[3.0, 4.0]);
        assert!((gradients.norm().unwrap() - 50.0f64.sqrt()).abs() < 1e-12);
        assert_eq!(gradients.first_untouched(), None);
    }

    #[test]
    fn saved_moments_continue_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("optimizer.safetensors");
        let steps = [[0.3, -2.0], [0.1, 0.4], [-1.0, 2.0]];
        let run = |resume_at: Option<usize>| {
            let mut optimizer =
                AdamW::new(vec![parameter("w", &[1.0, 2.0], true)], SETTINGS).unwrap();
            for (index, factors) in steps.iter().enumerate() {
                if resume_at == Some(index) {
                    optimizer.save(&path).unwrap();
                    let mut fresh = AdamW::new(optimizer.parameters().to_vec(), SETTINGS).unwrap();
                    fresh.restore(&path, optimizer.updates()).unwrap();
                    optimizer = fresh;
                }
                let gradients = gradient_of(optimizer.parameters(), factors);
                optimizer.update(&gradients, 0.5, 0.7).unwrap();
            }
            optimizer.parameters()[0].var.to_vec1::<f64>().unwrap()
        };
        assert_eq!(run(None), run(Some(2)));
    }

    #[test]
    fn foreign_moments_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("optimizer.safetensors");
        AdamW::new(vec![parameter("w", &[1.0, 2.0], true)], SETTINGS)
            .unwrap()
            .save(&path)
            .unwrap();
        let mut other = AdamW::new(vec![parameter("w", &[1.0], true)], SETTINGS).unwrap();
        assert!(matches!(
            other.restore(&path, 1),
            Err(Error::BadFile { .. })
        ));
        let mut other = AdamW::new(vec![parameter("x", &[1.0, 2.0], true)], SETTINGS).unwrap();
        assert!(matches!(
            other.restore(&path, 1),
            Err(Error::BadFile { .. })
        ));
    }
}
