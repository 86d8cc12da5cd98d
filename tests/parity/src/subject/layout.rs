//! Hugging Face's order of query and key rows, and casts to half precision.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use wmtp_model::{
    Element, Horizon, MtpModel, ParamStore, Params, cast, hugging_face_tensors, load_hugging_face,
};

use super::Run;
use super::batch::{ModelConfig, shared_rotary};
use crate::{Error, Values};

pub(super) fn run(run: &mut Run) -> Result<(), Error> {
    record_logits(run)?;
    record_casts(run)
}

/// The case's weights, which lie in Hugging Face's order under Meta's names, by way of a file of Hugging Face's layout.
fn imported(run: &Run, params: &Params) -> Result<ParamStore, Error> {
    let named = hugging_face_tensors(params).into_iter().map(|one| {
        let weight = run.case.weight_of(&one.meta, &one.shape)?;
        Ok((one.hugging_face, weight.tensor(DType::F32, &Device::Cpu)?))
    });
    let named = named.collect::<Result<HashMap<String, Tensor>, Error>>()?;
    let folder = tempfile::tempdir().map_err(|source| Error::Write {
        path: std::env::temp_dir().display().to_string(),
        source,
    })?;
    let path = folder.path().join("model.safetensors");
    candle_core::safetensors::save(&named, &path)?;
    let (dtype, device) = (run.precision.dtype(), &run.device);
    Ok(load_hugging_face(&path, params, dtype, device)?)
}

/// Brings the projections into Meta's order and runs the model on them.
fn record_logits(run: &mut Run) -> Result<(), Error> {
    let params = run.case.config::<ModelConfig>()?.params(run.case)?;
    let store = imported(run, &params)?;
    for (name, weight) in store.iter() {
        if name.ends_with("attention.wq.weight") || name.ends_with("attention.wk.weight") {
            run.record(format!("rows.{name}"), Values::of(weight)?);
        }
    }
    let shape = &run.case.input("ids")?.shape;
    let [_, sequence] = shape[..] else {
        return Err(run
            .case
            .bad(format!("input ids has shape {shape:?}, expected rows")));
    };
    let rotary = shared_rotary(run.case, &params, sequence)?;
    let model = MtpModel::frozen(&params, &store)?.with_rotary(rotary);
    let ids = run.case.ids("ids", params.vocab_size)?;
    let ids_bs = Tensor::from_vec(ids, shape.as_slice(), &Device::Cpu)?;
    let hidden = model.head_hidden(Horizon::NEXT, &model.trunk(&ids_bs)?)?;
    run.record("logits.head1", Values::of(&model.logits(&hidden)?)?);
    Ok(())
}

/// Bits of f32 values rounded to each half type, and the same widened again, as checkpoints are converted.
fn record_casts(run: &mut Run) -> Result<(), Error> {
    let values = run.case.input("values")?;
    let single = values.data.iter().flat_map(|x| (*x as f32).to_le_bytes());
    let single: Vec<u8> = single.collect();
    for (name, half) in [("bf16", Element::Bf16), ("f16", Element::F16)] {
        let rounded = cast(&single, Element::F32, half);
        let (pairs, _) = rounded.as_chunks::<2>();
        let bits = pairs
            .iter()
            .map(|pair| f64::from(u16::from_le_bytes(*pair)));
        run.record(format!("bits.{name}"), Values::vector(bits.collect()));
        let widened = cast(&rounded, half, Element::F32);
        let (words, _) = widened.as_chunks::<4>();
        let data = words
            .iter()
            .map(|word| f64::from(f32::from_le_bytes(*word)));
        let widened = Values::new(values.shape.clone(), data.collect());
        run.record(format!("widened.{name}"), widened);
    }
    Ok(())
}
