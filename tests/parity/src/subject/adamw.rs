//! Schedule, clipping and the optimizer on plain tensors.

use candle_core::Var;
use serde::Deserialize;
use wmtp_training::optimizer::{Parameter, clip_coefficient};
use wmtp_training::{AdamW, AdamWSettings, Gradients, Schedule};

use super::{Run, step};
use crate::{Error, Values};

#[derive(Deserialize)]
struct Config {
    steps: usize,
    lr: f64,
    betas: (f64, f64),
    eps: f64,
    weight_decay: f64,
    /// Names of the tensors that decay.
    decays: Vec<String>,
    warmup_ratio: f64,
    min_lr_ratio: f64,
    runs: Vec<Descent>,
}

/// One pass over the same gradients.
#[derive(Deserialize)]
struct Descent {
    name: String,
    clip: f64,
}

pub(super) fn run(run: &mut Run) -> Result<(), Error> {
    let config: Config = run.case.config()?;
    let schedule = Schedule::new(
        config.steps as u64,
        config.warmup_ratio,
        config.min_lr_ratio,
    );
    let factors = (0..config.steps as u64).map(|step| schedule.factor(step));
    run.record("schedule.factor", Values::vector(factors.collect()));
    for descent in &config.runs {
        descend(run, &config, descent)?;
    }
    Ok(())
}

fn descend(run: &mut Run, config: &Config, descent: &Descent) -> Result<(), Error> {
    let mut adamw = optimizer(run, config)?;
    let (mut norms, mut coefficients) = (Vec::new(), Vec::new());
    let mut seen = vec![Vec::new(); adamw.parameters().len()];
    for step in 0..config.steps {
        let gradients = gradients(run, adamw.parameters(), config.steps, step)?;
        let norm = gradients.norm()?;
        let coefficient = clip_coefficient(norm, descent.clip);
        let factor = run.upstream("schedule.factor").data[step];
        adamw.update(&gradients, coefficient, factor)?;
        norms.push(norm);
        coefficients.push(coefficient);
        for (parameter, seen) in adamw.parameters().iter().zip(&mut seen) {
            seen.extend(Values::of(&parameter.var)?.data);
        }
    }
    let name = &descent.name;
    run.record(format!("clip.norm.{name}"), Values::vector(norms));
    run.record(
        format!("clip.coefficient.{name}"),
        Values::vector(coefficients),
    );
    for (parameter, data) in adamw.parameters().iter().zip(seen) {
        let shape = [&[config.steps], parameter.var.dims()].concat();
        let dtype = Some(parameter.var.dtype());
        let values = Values {
            dtype,
            ..Values::new(shape, data)
        };
        run.record(format!("param.{name}.{}", parameter.name), values);
    }
    Ok(())
}

fn optimizer(run: &Run, config: &Config) -> Result<AdamW, Error> {
    let parameter = |name: &String| {
        Ok(Parameter {
            name: name.clone(),
            var: Var::from_tensor(&run.weight(name)?)?,
            lr: config.lr,
            decays: config.decays.contains(name),
        })
    };
    let parameters = run.case.weights.keys().map(parameter);
    let constants = AdamWSettings {
        beta1: config.betas.0,
        beta2: config.betas.1,
        eps: config.eps,
        weight_decay: config.weight_decay,
    };
    Ok(AdamW::new(
        parameters.collect::<Result<_, Error>>()?,
        constants,
    )?)
}

/// The gradients `[steps, ..]` of the case at one step.
fn gradients(
    run: &Run,
    parameters: &[Parameter],
    steps: usize,
    step: usize,
) -> Result<Gradients, Error> {
    let mut gradients = Gradients::zeros(parameters)?;
    for parameter in parameters {
        let (key, dims) = (format!("grad.{}", parameter.name), parameter.var.dims());
        let all = run.case.input_of(&key, &[&[steps], dims].concat())?;
        let count = parameter.var.elem_count();
        let of_step = all.data[step * count..(step + 1) * count].to_vec();
        let gradient = Values::new(dims.to_vec(), of_step);
        step::give(&mut gradients, parameters, parameter, &gradient)?;
    }
    Ok(gradients)
}
