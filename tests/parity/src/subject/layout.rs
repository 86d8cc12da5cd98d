//! Hugging Face's order of query and key rows, and casts to half precision.

use candle_core::{DType, Device, Tensor};
use wmtp_model::{Horizon, MtpModel, ParamStore};

use super::Run;
use super::batch::{ModelConfig, shared_rotary};
use crate::{Error, Values};

pub(super) fn run(run: &mut Run) -> Result<(), Error> {
    record_logits(run)?;
    record_casts(run)
}

/// Rows of a query or key projection from half-split to interleaved order: in each head row i of the first
/// half goes to 2i, row i of the second half to 2i + 1.
pub(super) fn interleaved(weight: &Tensor, head_dim: usize) -> Result<Tensor, Error> {
    let (rows, dim) = weight.dims2()?;
    let halves = weight.reshape((rows / head_dim, 2, head_dim / 2, dim))?;
    Ok(halves.transpose(1, 2)?.contiguous()?.reshape((rows, dim))?)
}

/// Brings the projections into Meta's order and runs the model on them.
fn record_logits(run: &mut Run) -> Result<(), Error> {
    let params = run.case.config::<ModelConfig>()?.params(run.case)?;
    let mut tensors = Vec::new();
    for (name, _) in params.tensor_shapes() {
        let mut tensor = run.weight(&name)?;
        if name.ends_with("attention.wq.weight") || name.ends_with("attention.wk.weight") {
            tensor = interleaved(&tensor, params.head_dim())?;
            run.record(format!("rows.{name}"), Values::of(&tensor)?);
        }
        tensors.push((name, tensor));
    }
    let store = ParamStore::from_tensors(tensors)?;
    let model = MtpModel::frozen(&params, &store)?.with_rotary(shared_rotary(run.case)?);
    let ids = run.case.input("ids")?;
    let ids_bs = Tensor::from_vec(ids.ids(), ids.shape.as_slice(), &Device::Cpu)?;
    let next = Horizon::new(1).expect("1 is a horizon");
    let hidden = model.head_hidden(next, &model.trunk(&ids_bs)?)?;
    run.record("logits.head1", Values::of(&model.logits(&hidden)?)?);
    Ok(())
}

/// Bits of f32 values rounded to each half type, and the same read back as a checkpoint is.
fn record_casts(run: &mut Run) -> Result<(), Error> {
    let values = run.case.input("values")?.tensor(DType::F32, &Device::Cpu)?;
    for (name, dtype) in [("bf16", DType::BF16), ("f16", DType::F16)] {
        let mut bytes = Vec::new();
        values.to_dtype(dtype)?.write_bytes(&mut bytes)?;
        let (pairs, _) = bytes.as_chunks::<2>();
        let bits = pairs
            .iter()
            .map(|pair| f64::from(u16::from_le_bytes(*pair)));
        run.record(format!("bits.{name}"), Values::vector(bits.collect()));
        let read = Tensor::from_raw_buffer(&bytes, dtype, values.dims(), &Device::Cpu)?;
        let widened = Values::of(&read.to_dtype(DType::F32)?)?;
        run.record(format!("widened.{name}"), widened);
    }
    Ok(())
}
