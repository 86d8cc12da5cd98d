//! Tokens per second of one forward and backward pass at the demo's size.
//!
//! `CANDLE_NUM_THREADS=1 cargo run -p wmtp-model --example step_rate -- [dim] [batch] [sequence] [rank]`
//!
//! A rank above 0 trains adapters on every matrix instead of the weights.

use std::error::Error;
use std::io::Write;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use wmtp_model::{Adapters, LoraSettings, LoraTarget, MtpModel, ParamStore, Params, loss};

/// The jobs' allocator: it decides how much of the time goes to fresh pages.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const STEPS: usize = 6;

fn main() -> Result<(), Box<dyn Error>> {
    // As in the jobs: the thread that asks for an operation works on it too.
    rayon::ThreadPoolBuilder::new()
        .use_current_thread()
        .build_global()?;
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let mut next = |default: usize| numbers.next().unwrap_or(Ok(default));
    let micro = Params::micro_mtp(512);
    let (dim, batch, sequence) = (next(micro.dim)?, next(32)?, next(96)?);
    let rank = next(0)?;
    let params = Params { dim, ..micro };
    let store = ParamStore::init(&params, 42, DType::F32, &Device::Cpu)?;
    let adapters = match rank {
        0 => None,
        r => Some(fresh_adapters(&params, r)?),
    };
    let model = match &adapters {
        Some(adapters) => MtpModel::adapted(&params, &store, adapters)?,
        None => MtpModel::new(&params, &store)?,
    };
    let trained = adapters.as_ref().map_or(&store, Adapters::store);
    let ids: Vec<u32> = (0..batch * sequence)
        .map(|i| (i * 7919 % 512) as u32)
        .collect();
    let ids_bs = Tensor::from_vec(ids, (batch, sequence), &Device::Cpu)?;

    let mut best = f64::INFINITY;
    let (mut forward_secs, mut backward_secs) = (0.0, 0.0);
    for _ in 0..STEPS {
        let start = Instant::now();
        let total = step_loss(&model, &ids_bs)?;
        let middle = start.elapsed().as_secs_f64();
        let grads = total.backward()?;
        let secs = start.elapsed().as_secs_f64();
        assert!(
            trained.iter().all(|(_, var)| grads.get(var).is_some()),
            "every parameter gets a gradient"
        );
        if secs < best {
            (best, forward_secs, backward_secs) = (secs, middle, secs - middle);
        }
    }
    let tokens = (batch * sequence) as f64;
    writeln!(
        std::io::stdout(),
        "{:.0} tokens/s ({} of {} parameters trained, dim {dim}, ffn {}, batch {batch}, sequence {sequence}; forward {forward_secs:.3} s, backward {backward_secs:.3} s)",
        tokens / best,
        trained.num_elements(),
        params.num_params(),
        params.ffn_dim(),
    )?;
    Ok(())
}

fn fresh_adapters(params: &Params, r: usize) -> wmtp_model::Result<Adapters> {
    let settings = LoraSettings {
        r,
        alpha: 2.0 * r as f64,
        targets: LoraTarget::ALL.to_vec(),
    };
    Adapters::init(params, settings, 42, DType::F32, &Device::Cpu)
}

/// Mean over heads of the mean cross-entropy over the second half of each sequence.
fn step_loss(model: &MtpModel, ids_bs: &Tensor) -> Result<Tensor, Box<dyn Error>> {
    let (batch, sequence) = ids_bs.dims2()?;
    let ids = ids_bs.to_vec2::<u32>()?;
    let trunk = model.trunk(ids_bs)?;
    let mut total = None;
    for horizon in model.params().horizons() {
        let k = horizon.get();
        let places: Vec<(usize, usize)> = (0..batch)
            .flat_map(|b| (sequence / 2..sequence).map(move |j| (b, j)))
            .collect();
        let rows: Vec<u32> = places
            .iter()
            .map(|(b, j)| (b * sequence + j - k) as u32)
            .collect();
        let targets: Vec<u32> = places.iter().map(|(b, j)| ids[*b][*j]).collect();
        let hidden = loss::select_rows(&model.head_hidden(horizon, &trunk)?, &rows)?;
        let weights = vec![1.0; rows.len()];
        let head = loss::weighted_cross_entropy(&hidden, model.unembedding(), &targets, &weights)?;
        let mean = (head.sum / (rows.len() * model.params().num_horizons()) as f64)?;
        total = Some(match total {
            None => mean,
            Some(sum) => (sum + mean)?,
        });
    }
    Ok(total.ok_or("a model has at least one horizon")?)
}
