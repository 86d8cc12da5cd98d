//! Going back through a trunk block by block.
//!
//! The graph is cut between blocks: on the way back one block's gradients are alive at a time, its activations go as
//! soon as it is done, and a block whose activations were not kept is computed again from its input. The same
//! operations run on the same numbers either way, so what is kept changes memory and time, never a bit.

use candle_core::backend::BackendStorage;
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor, Var};

use crate::model::Body;
use crate::{Params, Result};

/// A forward pass through the trunk, and what going back needs.
#[derive(Debug)]
pub struct TrunkTape {
    body: Body,
    embedded_bsd: Tensor,
    segments: Vec<Segment>,
    output_bsd: Tensor,
}

/// One block of the pass.
#[derive(Debug)]
struct Segment {
    input_bsd: Var,
    /// The block's output with its graph; `None` where it is computed again.
    output_bsd: Option<Tensor>,
}

impl TrunkTape {
    /// Runs the trunk and keeps the activations of its last `num_kept` blocks, which going back needs first.
    pub(crate) fn record(body: &Body, ids_bs: &Tensor, num_kept: usize) -> Result<Self> {
        let embedded_bsd = body.embed(ids_bs)?;
        let mut output_bsd = embedded_bsd.detach();
        let first_kept = body.num_blocks().saturating_sub(num_kept);
        let mut segments = Vec::with_capacity(body.num_blocks());
        for index in 0..body.num_blocks() {
            let input_bsd = Var::from_tensor(&output_bsd)?;
            let graph = body.block(index, &input_bsd)?;
            output_bsd = graph.detach();
            segments.push(Segment {
                input_bsd,
                output_bsd: (index >= first_kept).then_some(graph),
            });
        }
        Ok(Self {
            body: body.clone(),
            embedded_bsd,
            segments,
            output_bsd,
        })
    }

    /// The trunk's output `[b, s, d]` without a graph.
    pub fn output(&self) -> &Tensor {
        &self.output_bsd
    }

    /// Takes the gradient `[b, s, d]` of the output back to the embedding. `take` gets the gradients of one block
    /// after another, last block first, each parameter once.
    ///
    /// # Errors
    /// What `take` says, and what the operations say.
    pub fn backward<E: From<crate::Error>>(
        self,
        gradient_bsd: Tensor,
        mut take: impl FnMut(&GradStore) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let mut gradient_bsd = gradient_bsd;
        for (index, segment) in self.segments.into_iter().enumerate().rev() {
            let output_bsd = match segment.output_bsd {
                Some(kept) => kept,
                None => self.body.block(index, &segment.input_bsd)?,
            };
            let store = backward_from(&output_bsd, gradient_bsd)?;
            take(&store)?;
            let input = store.get(&segment.input_bsd).cloned();
            gradient_bsd = match input {
                Some(gradient) => gradient,
                None => segment.input_bsd.zeros_like().map_err(crate::Error::from)?,
            };
        }
        take(&backward_from(&self.embedded_bsd, gradient_bsd)?)
    }
}

impl Params {
    /// Bytes that one trunk block keeps for going back, for `rows` positions: norms, q/k/v, attention, both residual
    /// sums and the gated projection.
    pub fn block_activation_bytes(&self, rows: usize, dtype: DType) -> usize {
        let heads = (self.n_heads + 2 * self.n_kv_heads) * self.head_dim() + self.dim;
        let width = heads + self.n_heads + 2 + 3 * self.dim + 2 * self.ffn_dim();
        rows * width * dtype.size_in_bytes()
    }
}

/// The backward pass of `output` that starts from `gradient`.
fn backward_from(output: &Tensor, gradient: Tensor) -> Result<GradStore> {
    let start = output.apply_op1(Start(gradient))?;
    Ok(start.backward()?)
}

/// Nothing forward; backward hands out a gradient that was computed elsewhere.
struct Start(Tensor);

impl CustomOp1 for Start {
    fn name(&self) -> &'static str {
        "start-backward"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let zero = match storage.dtype() {
            DType::F64 => CpuStorage::F64(vec![0.0]),
            _ => CpuStorage::F32(vec![0.0]),
        };
        Ok((zero, Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::{Error, MtpModel, ParamStore};

    fn tiny() -> Params {
        Params {
            dim: 16,
            n_layers: 5,
            n_heads: 4,
            n_kv_heads: 2,
            vocab_size: 29,
            multiple_of: 8,
            ffn_dim_multiplier: 1.0,
            norm_eps: 1e-5,
            rope_theta: 10_000.0,
            n_future_tokens: 2,
        }
    }

    fn bytes(tensor: &Tensor) -> Vec<u32> {
        let flat = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        flat.into_iter().map(f32::to_bits).collect()
    }

    #[test]
    fn every_way_of_keeping_gives_the_gradients_of_the_whole_graph_bit_for_bit() {
        let params = tiny();
        let store = ParamStore::init(&params, 3, DType::F32, &Device::Cpu).unwrap();
        let model = MtpModel::new(&params, &store).unwrap();
        let ids = Tensor::new(&[[1u32, 5, 9, 2, 7], [3, 3, 8, 28, 0]], &Device::Cpu).unwrap();
        let seed = Tensor::arange(0f32, 160.0, &Device::Cpu)
            .and_then(|t| t.affine(0.01, -0.7)?.reshape((2, 5, 16)))
            .unwrap();

        let whole = model.trunk(&ids).unwrap();
        let expected = (&whole * &seed)
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap();
        for num_kept in 0..=params.num_trunk_blocks() {
            let tape = model.trunk_taped(&ids, num_kept).unwrap();
            assert_eq!(bytes(tape.output()), bytes(&whole), "{num_kept} kept");
            let mut taken = 0;
            tape.backward(seed.clone(), |grads| {
                for (name, var) in store.iter() {
                    let Some(found) = grads.get(var) else {
                        continue;
                    };
                    let expected = expected.get(var).expect("the whole graph reaches it too");
                    assert_eq!(bytes(found), bytes(expected), "{name}, {num_kept} kept");
                    taken += 1;
                }
                Ok::<(), Error>(())
            })
            .unwrap();
            // Three trunk blocks of nine tensors, and the embedding.
            assert_eq!(taken, 28, "{num_kept} kept");
        }
    }

    #[test]
    fn the_activations_of_the_7b_block_are_counted() {
        let params = Params {
            dim: 4096,
            n_layers: 32,
            n_heads: 32,
            n_kv_heads: 32,
            vocab_size: 32_000,
            multiple_of: 256,
            ffn_dim_multiplier: 1.0,
            norm_eps: 1e-5,
            rope_theta: 10_000.0,
            n_future_tokens: 4,
        };
        // q, k, v and the heads: 4 x 4096; log-sums 32; two norms; residual sums and the projection: 3 x 4096;
        // gate and up: 2 x 11008.
        let width = 4 * 4096 + 32 + 2 + 3 * 4096 + 2 * 11_008;
        assert_eq!(
            params.block_activation_bytes(10, DType::F32),
            10 * width * 4
        );
    }
}
