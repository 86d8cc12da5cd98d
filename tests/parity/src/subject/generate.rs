//! Greedy decoding with and without a cache, and the sampling filter. The cached path knows f32 alone, since
//! its fused operations do; the other one runs at the precision asked for.

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use wmtp_decoding::{Choice, Generator, InferenceModel, Prompt, Sampling};
use wmtp_model::{Horizon, MtpModel, ParamStore, Params, Products, RowSetup};

use super::Run;
use super::batch::ModelConfig;
use crate::{Error, Precision, Values};

#[derive(Deserialize)]
struct Config {
    new_tokens: usize,
    sampling: Vec<Protocol>,
}

#[derive(Deserialize)]
struct Protocol {
    name: String,
    temperature: f64,
    top_p: f64,
}

pub(super) fn run(run: &mut Run) -> Result<(), Error> {
    let config: Config = run.case.config()?;
    record_greedy(run, config.new_tokens)?;
    let logits = run.case.input("logits")?.data.iter().map(|x| *x as f32);
    let logits_v: Vec<f32> = logits.collect();
    for protocol in config.sampling {
        let sampling = Sampling {
            temperature: protocol.temperature,
            top_k: None,
            top_p: protocol.top_p,
        };
        let filtered = sampling
            .probabilities(&logits_v)
            .ok_or_else(|| run.case.bad("no logit is finite"))?;
        run.record(
            format!("probability.{}", protocol.name),
            Values::vector(filtered),
        );
    }
    Ok(())
}

fn record_greedy(run: &mut Run, new_tokens: usize) -> Result<(), Error> {
    let params = run.case.config::<ModelConfig>()?.params(run.case)?;
    let model = MtpModel::frozen(&params, &store(run, &params, run.precision)?)?;
    let single = store(run, &params, Precision::F32)?;
    let case = run.case;
    for key in case.inputs.keys() {
        let Some(name) = key.strip_prefix("prompt.") else {
            continue;
        };
        let prompt = case.ids(key, params.vocab_size)?;
        let room = prompt.len() + new_tokens;
        let setup = RowSetup {
            device: run.device.clone(),
            products: Products::F32,
        };
        let inference = InferenceModel::new(&params, &single, room, &setup)?;
        // No token of the vocabulary ends the text.
        let generator = Generator::new(inference, u32::MAX, new_tokens);
        let cached = generator.generate(&Prompt {
            ids: &prompt,
            choices: vec![Choice::Greedy],
            beam: None,
        })?;
        run.record(format!("ids.cached.{name}"), of_ids(&cached[0].ids));
        let full = without_cache(&model, &prompt, new_tokens)?;
        run.record(format!("ids.full.{name}"), of_ids(&full));
    }
    Ok(())
}

fn store(run: &Run, params: &Params, precision: Precision) -> Result<ParamStore, Error> {
    let names = params.tensor_shapes().into_iter();
    let tensors = names.map(|(name, shape)| {
        let weight = run.case.weight_of(&name, &shape)?;
        let tensor = weight.tensor(precision.dtype(), &Device::Cpu)?;
        Ok((name, tensor))
    });
    Ok(ParamStore::from_tensors(
        tensors.collect::<Result<_, Error>>()?,
    )?)
}

/// Greedy decoding by the training model, the whole sequence again for every token.
fn without_cache(model: &MtpModel, prompt: &[u32], new_tokens: usize) -> Result<Vec<u32>, Error> {
    let mut ids = prompt.to_vec();
    for _ in 0..new_tokens {
        let ids_1s = Tensor::from_slice(&ids, (1, ids.len()), &Device::Cpu)?;
        let hidden = model.head_hidden(Horizon::NEXT, &model.trunk(&ids_1s)?)?;
        let last = hidden.narrow(1, ids.len() - 1, 1)?;
        let logits = model.logits(&last)?.flatten_all()?.to_dtype(DType::F32)?;
        let picked = Choice::Greedy.pick(&logits.to_vec1()?, ids.len() - 1);
        ids.push(picked.ok_or(wmtp_decoding::Error::NotFinite {
            position: ids.len() - 1,
        })?);
    }
    Ok(ids.split_off(prompt.len()))
}

fn of_ids(ids: &[u32]) -> Values {
    Values::vector(ids.iter().map(|id| f64::from(*id)).collect())
}
