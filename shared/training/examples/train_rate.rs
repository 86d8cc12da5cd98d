//! Our side of `make bench-train`: whole optimiser steps of one model, timed one by one.
//!
//! `train_rate DIM TRUNK HEADS FFN ATTENTION_HEADS VOCAB SEQUENCE BATCH STEPS f32|bf16 [ACTIVATION_MIB]` prints one JSON
//! object with the seconds and the loss of every step (forward, backward, clipping, AdamW), and the most memory that was
//! held meanwhile. `WMTP_DEVICE=cuda` runs it on a device, `LORA=r` trains adapters of that rank in place of the weights,
//! `BASE=bf16` keeps these as a training keeps those of a bf16 file, and `DROPOUT=p` drops that share of the adapters'
//! input.

use std::error::Error;
use std::io::Write;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use wmtp_data_sets::PaddedBatch;
use wmtp_job_kit::peak_memory_bytes;
use wmtp_model::{
    Adapters, Dropout, Horizon, LoraSettings, LoraTarget, MtpModel, ParamStore, Params, Place,
    Products,
};
use wmtp_training::engine::Engine;
use wmtp_training::heads::{Learner, StepLoss, Target, accumulate};
use wmtp_training::optimizer::parameters;
use wmtp_training::scorer::{StepRow, StepStats};
use wmtp_training::{AdamWSettings, Gradients, OptimSettings, Result, Room, Scorer};

/// Weights that are not all equal, without the work of a real scorer.
struct Wave;

impl Scorer for Wave {
    fn begin_step(&mut self, _: u64, _: &[StepRow]) -> Result<()> {
        Ok(())
    }

    fn needs_policy_ce(&self) -> bool {
        false
    }

    fn weigh(&mut self, _: Horizon, targets: &[Target], _: Option<&[f64]>) -> Result<Vec<f64>> {
        let weight = |target: &Target| 0.5 + (target.index % 3) as f64 / 2.0;
        Ok(targets.iter().map(weight).collect())
    }

    fn end_step(&mut self) -> Vec<StepStats> {
        Vec::new()
    }
}

struct Size {
    params: Params,
    sequence: usize,
    batch: usize,
    steps: usize,
    products: Products,
    activation_bytes: Option<usize>,
}

fn size(arguments: &[String]) -> Option<Size> {
    let products = match arguments.get(9)?.as_str() {
        "f32" => Products::F32,
        "bf16" => Products::Bf16,
        _ => return None,
    };
    let numbers = arguments.iter().enumerate().filter(|(at, _)| *at != 9);
    let numbers: std::result::Result<Vec<usize>, _> =
        numbers.map(|(_, text)| text.parse()).collect();
    let numbers = numbers.ok()?;
    let (
        &[
            dim,
            trunk,
            heads,
            ffn,
            n_heads,
            vocab_size,
            sequence,
            batch,
            steps,
        ],
        rest,
    ) = numbers.split_first_chunk()?;
    let params = Params {
        dim,
        n_layers: trunk + heads,
        n_heads,
        n_kv_heads: n_heads,
        vocab_size,
        // One rounding step up to the wanted width, whatever two thirds of four times the width are.
        multiple_of: ffn,
        ffn_dim_multiplier: 1.0,
        norm_eps: 1e-5,
        rope_theta: 10_000.0,
        n_future_tokens: heads,
    };
    (params.ffn_dim() == ffn).then_some(Size {
        params,
        sequence,
        batch,
        steps,
        products,
        activation_bytes: rest.first().map(|mib| mib << 20),
    })
}

/// Every token but the first is a target.
fn batch(size: &Size) -> PaddedBatch {
    let vocab = size.params.vocab_size;
    PaddedBatch {
        ids: (0..size.batch * size.sequence)
            .map(|i| (i * 7919 % vocab) as u32)
            .collect(),
        rows: size.batch,
        width: size.sequence,
        lengths: vec![size.sequence; size.batch],
        prompt_lens: vec![1; size.batch],
    }
}

fn place() -> std::result::Result<Place, String> {
    std::env::var("WMTP_DEVICE").map_or(Ok(Place::Cpu), |name| name.parse())
}

/// Weights as a run on the CPU starts with; on a device random ones that are made there, which takes seconds where
/// billions of them would take minutes. The tensors that are named are in bf16.
fn weights(
    params: &Params,
    device: &Device,
    in_bf16: &[String],
) -> std::result::Result<ParamStore, Box<dyn Error>> {
    let kept = |(name, tensor): (String, Tensor)| -> candle_core::Result<(String, Tensor)> {
        let dtype = if in_bf16.contains(&name) {
            DType::BF16
        } else {
            DType::F32
        };
        Ok((name, tensor.to_dtype(dtype)?))
    };
    let tensors: candle_core::Result<Vec<_>> = if device.is_cpu() {
        let store = ParamStore::init(params, 42, DType::F32, device)?;
        let all = store.iter();
        all.map(|(name, var)| kept((name.to_owned(), var.as_detached_tensor())))
            .collect()
    } else {
        let random = |(name, shape): (String, Vec<usize>)| {
            let tensor = match shape[..] {
                [len] => Tensor::ones(len, DType::F32, device)?,
                [..] => Tensor::randn(0f32, 0.02, shape, device)?,
            };
            kept((name, tensor))
        };
        params.tensor_shapes().into_iter().map(random).collect()
    };
    Ok(ParamStore::from_frozen(tensors?, DType::F32)?)
}

/// The tensors of the base that are in bf16, as `BASE` says.
fn in_bf16(
    params: &Params,
    adapters: Option<&Adapters>,
) -> std::result::Result<Vec<String>, Box<dyn Error>> {
    match (std::env::var("BASE").as_deref(), adapters) {
        (Err(_) | Ok("f32"), _) => Ok(Vec::new()),
        (Ok("bf16"), Some(adapters)) => Ok(adapters.settings().widened(params)),
        _ => Err("BASE is f32, or bf16 with LORA".into()),
    }
}

/// Adapters on every linear layer, of the rank that `LORA` says.
fn adapters(
    params: &Params,
    device: &Device,
) -> std::result::Result<Option<Adapters>, Box<dyn Error>> {
    let Ok(rank) = std::env::var("LORA") else {
        return Ok(None);
    };
    let r = rank.parse()?;
    let settings = LoraSettings {
        r,
        alpha: 2.0 * r as f64,
        targets: LoraTarget::ALL.to_vec(),
    };
    Ok(Some(Adapters::init(
        params,
        settings,
        42,
        DType::F32,
        device,
    )?))
}

/// Has the system forget the most bytes that the process has held so far; whether it has.
fn forget_peak() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Dropout of the share that `DROPOUT` says.
fn dropout() -> std::result::Result<Option<Dropout>, Box<dyn Error>> {
    let share = std::env::var("DROPOUT").ok().map(|share| share.parse());
    let share = share.transpose()?;
    Ok(share.map(|share| Dropout { share, seed: 42 }))
}

/// The most bytes that tensors have held on the device.
fn device_bytes(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return wmtp_model::cuda::peak_memory(device).ok();
    }
    debug_assert!(device.is_cpu());
    None
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let size = size(&arguments).ok_or("usage: see the first lines of the source")?;
    // As in the jobs: the thread that asks for an operation works on it too.
    rayon::ThreadPoolBuilder::new()
        .use_current_thread()
        .build_global()?;
    let device = place()?.open()?;
    let adapters = adapters(&size.params, &device)?;
    let in_bf16 = in_bf16(&size.params, adapters.as_ref())?;
    let store = weights(&size.params, &device, &in_bf16)?;
    let dropout = dropout()?;
    let model = match &adapters {
        Some(adapters) => MtpModel::adapted(&size.params, &store, adapters)?,
        None => MtpModel::new(&size.params, &store)?,
    }
    .with_products(size.products);
    let trained = adapters.as_ref().map_or(&store, Adapters::store);
    let settings = OptimSettings {
        adamw: AdamWSettings {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.01,
        },
        grad_clip: 1.0,
        warmup_ratio: 0.03,
        min_lr_ratio: 0.005,
        micro_batch_sequences: size.batch,
        eval_every_steps: 0,
        early_stop: None,
        room: Room::Measured,
    };
    let mut engine = Engine::new(parameters(trained, 1e-3), &settings, size.steps as u64)?;
    let mut gradients = Gradients::zeros(engine.parameters())?;
    let batch = batch(&size);
    let counts: Vec<usize> = size
        .params
        .horizons()
        .map(|k| size.batch * (size.sequence - k.get()))
        .collect();
    let (mut secs, mut losses) = (Vec::new(), Vec::new());
    // What the weights took while they were made is not the steps'.
    let has_forgotten = forget_peak();
    for _ in 0..size.steps {
        let start = Instant::now();
        let mut loss = StepLoss::new(&counts);
        gradients.clear()?;
        let learner = Learner {
            model: &model,
            parameters: engine.parameters(),
            activation_bytes: size.activation_bytes,
            dropout: dropout.map(|dropout| dropout.of_step(engine.step())),
        };
        accumulate(&learner, &batch, 0, &mut Wave, &mut loss, &mut gradients)?;
        engine.apply(loss.weighted(), &mut gradients, true)?;
        device.synchronize()?;
        secs.push(start.elapsed().as_secs_f64());
        losses.push(loss.weighted());
    }
    let report = serde_json::json!({
        "parameters": size.params.num_params(),
        "tokens": size.batch * size.sequence,
        "secs": secs,
        "losses": losses,
        "peak_bytes": has_forgotten.then(peak_memory_bytes).flatten(),
        "device_bytes": device_bytes(&device),
    });
    writeln!(std::io::stdout(), "{report}")?;
    Ok(())
}
