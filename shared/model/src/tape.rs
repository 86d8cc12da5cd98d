//! Training without candle's graph: a block runs, keeps what going back needs, and goes back on its own.
//!
//! One block's gradients are alive at a time, its activations go as soon as it is done, and a trunk block whose
//! activations were not kept is computed again from its input. The same operations run on the same numbers either way,
//! so what is kept changes memory and time, never a bit. candle's graph would cut a packed gradient into its parameters
//! with a pass that clears and one that adds for each of them; here every gradient is handed out as it was made.

use std::sync::OnceLock;

use candle_core::{DType, Tensor, TensorId};

use crate::loss::select_rows;
use crate::model::{Block, Body, packed};
use crate::ops::{BlockSetup, Layer, Wanted, scatter_rows, sum};
use crate::{Params, Result};

/// The weights of one operation.
pub(crate) struct Operand {
    /// The tensors that its gradient belongs to.
    parts: Vec<Tensor>,
    /// The parts behind each other, or the lone part as it is; made for operations that read them so.
    flat: OnceLock<Tensor>,
}

impl Operand {
    pub(crate) fn new(parts: &[Tensor]) -> Self {
        Self {
            parts: parts.to_vec(),
            flat: OnceLock::new(),
        }
    }

    /// The parts, for a device, whose products read them where they lie.
    #[cfg(feature = "cuda")]
    pub(crate) fn parts(&self) -> &[Tensor] {
        &self.parts
    }

    pub(crate) fn flat(&self) -> candle_core::Result<&Tensor> {
        if let Some(flat) = self.flat.get() {
            return Ok(flat);
        }
        let flat = packed(&self.parts)?.detach();
        Ok(self.flat.get_or_init(|| flat))
    }

    fn trained(&self) -> bool {
        self.parts.iter().any(Tensor::track_op)
    }

    /// Hands every part its piece of the gradient.
    fn hand_out<E: From<crate::Error>>(
        &self,
        gradient: &Tensor,
        take: &mut impl FnMut(TensorId, &Tensor) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let piece = |start, part: &Tensor| -> Result<Tensor> {
            let flat = gradient.flatten_all()?;
            Ok(flat
                .narrow(0, start, part.elem_count())?
                .reshape(part.shape())?)
        };
        let mut start = 0;
        for part in &self.parts {
            take(part.id(), &piece(start, part)?)?;
            start += part.elem_count();
        }
        Ok(())
    }
}

/// An operation that ran.
struct Step {
    layer: Box<dyn Layer>,
    input: Tensor,
    operand: Operand,
    output: Tensor,
}

impl Step {
    fn run((layer, operand): (Box<dyn Layer>, Operand), input: Tensor) -> Result<Self> {
        let output = layer.run(&input, &operand)?;
        Ok(Self {
            layer,
            input,
            operand,
            output,
        })
    }

    /// Hands out the gradients of the weights; returns that of the input where it is wanted.
    fn back<E: From<crate::Error>>(
        self,
        gradient: &Tensor,
        input: bool,
        take: &mut impl FnMut(TensorId, &Tensor) -> std::result::Result<(), E>,
    ) -> std::result::Result<Option<Tensor>, E> {
        let weights = self.operand.trained();
        let wanted = Wanted { input, weights };
        let (of_input, of_weights) = self
            .layer
            .back(&self.input, &self.operand, &self.output, gradient, wanted)
            .map_err(crate::Error::from)?;
        if let Some(of_weights) = of_weights {
            self.operand.hand_out(&of_weights, take)?;
        }
        Ok(of_input)
    }
}

/// A block that ran: `[b, s, d]` to the same, or to `[n, d]` at some rows.
struct BlockPass {
    attention: Step,
    rows: Option<Vec<u32>>,
    out: Step,
    feed_forward: Step,
}

impl BlockPass {
    fn record(block: &Block, x: &Tensor, rows: Option<&[u32]>, setup: &BlockSetup) -> Result<Self> {
        let masks = setup.masks(x, None)?;
        let attention = Step::run(block.attention_layer(setup, masks), x.clone())?;
        let masks = setup.masks(x, rows)?;
        let (x, heads) = match rows {
            None => (x.clone(), attention.output.clone()),
            Some(rows) => (select_rows(x, rows)?, select_rows(&attention.output, rows)?),
        };
        let out = Step::run(block.out_layer(setup, masks.clone()), heads)?;
        let middle = sum(&x, &out.output)?;
        let feed_forward = Step::run(block.feed_forward_layer(setup, masks), middle)?;
        Ok(Self {
            attention,
            rows: rows.map(<[u32]>::to_vec),
            out,
            feed_forward,
        })
    }

    fn output(&self) -> &Tensor {
        &self.feed_forward.output
    }

    /// Hands out the gradients of the weights; returns that of the input where it is wanted.
    fn back<E: From<crate::Error>>(
        self,
        gradient: &Tensor,
        input: bool,
        take: &mut impl FnMut(TensorId, &Tensor) -> std::result::Result<(), E>,
    ) -> std::result::Result<Option<Tensor>, E> {
        let made = |gradient: Option<Tensor>| gradient.expect("the input's gradient was wanted");
        let of_middle = made(self.feed_forward.back(gradient, true, take)?);
        let of_heads = made(self.out.back(&of_middle, true, take)?);
        let to_every_row = |gradient: Tensor| -> Result<Tensor> {
            let Some(rows) = &self.rows else {
                return Ok(gradient);
            };
            let (batch, sequence, _) = self.attention.input.dims3()?;
            let width = gradient.dim(1)?;
            let all = scatter_rows(&gradient, rows, batch * sequence)?;
            Ok(all.reshape((batch, sequence, width))?)
        };
        let (of_heads, of_middle) = (to_every_row(of_heads)?, to_every_row(of_middle)?);
        let through = self.attention.back(&of_heads, input, take)?;
        let both = through.map(|through| sum(&through, &of_middle).map_err(crate::Error::from));
        Ok(both.transpose()?)
    }
}

/// A forward pass through the trunk, and what going back needs.
pub struct TrunkTape {
    body: Body,
    ids: Vec<u32>,
    segments: Vec<Segment>,
    output_bsd: Tensor,
}

/// One block of the pass.
struct Segment {
    input_bsd: Tensor,
    /// `None` where the block is computed again.
    pass: Option<BlockPass>,
}

impl TrunkTape {
    /// Runs the trunk and keeps the activations of its last `num_kept` blocks, which going back needs first.
    pub(crate) fn record(body: &Body, ids_bs: &Tensor, num_kept: usize) -> Result<Self> {
        let mut output_bsd = body.embed(ids_bs)?.detach();
        let first_kept = body.num_blocks().saturating_sub(num_kept);
        let mut segments = Vec::with_capacity(body.num_blocks());
        for index in 0..body.num_blocks() {
            let pass = BlockPass::record(body.block(index), &output_bsd, None, body.setup())?;
            let input_bsd = std::mem::replace(&mut output_bsd, pass.output().clone());
            segments.push(Segment {
                input_bsd,
                pass: (index >= first_kept).then_some(pass),
            });
        }
        Ok(Self {
            body: body.clone(),
            ids: ids_bs.flatten_all()?.to_vec1()?,
            segments,
            output_bsd,
        })
    }

    /// The trunk's output `[b, s, d]`.
    pub fn output(&self) -> &Tensor {
        &self.output_bsd
    }

    /// Takes the gradient `[b, s, d]` of the output back to the embedding. `take` gets the gradient of one parameter
    /// after another, those of the last block first, each once.
    ///
    /// # Errors
    /// What `take` says, and what the operations say.
    pub fn backward<E: From<crate::Error>>(
        self,
        gradient_bsd: Tensor,
        mut take: impl FnMut(TensorId, &Tensor) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let table = self.body.embeddings();
        let mut gradient_bsd = gradient_bsd;
        for (index, segment) in self.segments.into_iter().enumerate().rev() {
            let pass = if let Some(kept) = segment.pass {
                kept
            } else {
                let (block, setup) = (self.body.block(index), self.body.setup());
                BlockPass::record(block, &segment.input_bsd, None, setup)?
            };
            let goes_on = index > 0 || table.track_op();
            match pass.back(&gradient_bsd, goes_on, &mut take)? {
                Some(gradient) => gradient_bsd = gradient,
                None => return Ok(()),
            }
        }
        if table.track_op() {
            let rows = table.dim(0).map_err(crate::Error::from)?;
            let gradient =
                scatter_rows(&gradient_bsd, &self.ids, rows).map_err(crate::Error::from)?;
            take(table.id(), &gradient)?;
        }
        Ok(())
    }
}

/// A forward pass through the trunk and the shared norm, and what going back needs.
pub(crate) struct NormedTape {
    trunk: TrunkTape,
    norm: Step,
}

impl NormedTape {
    /// [`TrunkTape::record`] with the norm behind it.
    pub(crate) fn record(body: &Body, ids_bs: &Tensor, num_kept: usize) -> Result<Self> {
        let trunk = TrunkTape::record(body, ids_bs, num_kept)?;
        let norm = Step::run(body.norm_layer(), trunk.output().clone())?;
        Ok(Self { trunk, norm })
    }

    /// The normed trunk output `[b, s, d]`.
    pub(crate) fn hidden(&self) -> &Tensor {
        &self.norm.output
    }

    /// [`TrunkTape::backward`] from the gradient of the normed output; `take` gets that of the norm first.
    pub(crate) fn backward<E: From<crate::Error>>(
        self,
        gradient_bsd: &Tensor,
        mut take: impl FnMut(TensorId, &Tensor) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let of_trunk = self.norm.back(gradient_bsd, true, &mut take)?;
        let of_trunk = of_trunk.expect("the input's gradient was wanted");
        self.trunk.backward(of_trunk, take)
    }
}

/// A forward pass of one prediction head at the rows that predict, and what going back needs.
pub struct HeadTape {
    block: BlockPass,
    norm: Step,
}

impl HeadTape {
    pub(crate) fn record(
        body: &Body,
        block: &Block,
        trunk_bsd: &Tensor,
        rows: &[u32],
    ) -> Result<Self> {
        let block = BlockPass::record(block, trunk_bsd, Some(rows), body.setup())?;
        let norm = Step::run(body.norm_layer(), block.output().clone())?;
        Ok(Self { block, norm })
    }

    /// The normed hidden states `[n, d]`.
    pub fn hidden(&self) -> &Tensor {
        &self.norm.output
    }

    /// Takes the gradient `[n, d]` of the hidden states back to the trunk's output, `[b, s, d]`. `take` gets the
    /// gradient of every parameter on the way, the shared norm first.
    ///
    /// # Errors
    /// What `take` says, and what the operations say.
    pub fn backward<E: From<crate::Error>>(
        self,
        gradient_nd: &Tensor,
        mut take: impl FnMut(TensorId, &Tensor) -> std::result::Result<(), E>,
    ) -> std::result::Result<Tensor, E> {
        let made = |gradient: Option<Tensor>| gradient.expect("the input's gradient was wanted");
        let of_block = made(self.norm.back(gradient_nd, true, &mut take)?);
        Ok(made(self.block.back(&of_block, true, &mut take)?))
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

    /// Trunk blocks that so many bytes are enough to keep, at `rows` positions; without a limit all of them. A block that
    /// is kept holds its activations and the copy of so many weights that it has `packed`.
    pub fn num_kept_blocks(
        &self,
        bytes: Option<usize>,
        rows: usize,
        packed: usize,
        dtype: DType,
    ) -> usize {
        let packed = packed * dtype.size_in_bytes();
        let of_block = (self.block_activation_bytes(rows, dtype) + packed).max(1);
        let fitting = bytes.map_or(usize::MAX, |bytes| bytes / of_block);
        fitting.min(self.num_trunk_blocks())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::{
        Adapters, Dropout, Error, Horizon, LoraSettings, LoraTarget, MtpModel, ParamStore,
        Products, loss,
    };

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

    fn numbers(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn bits(tensor: &Tensor) -> Vec<u32> {
        numbers(tensor).into_iter().map(f32::to_bits).collect()
    }

    fn name_of(store: &ParamStore, id: TensorId) -> String {
        let found = store.iter().find(|(_, var)| var.id() == id);
        found.expect("a parameter of the store").0.to_owned()
    }

    /// A frozen model under adapters that are not zero, as it drops some of what they read.
    fn dropping() -> (MtpModel, Adapters) {
        let params = tiny();
        let store = ParamStore::init(&params, 3, DType::F32, &Device::Cpu).unwrap();
        let settings = LoraSettings {
            r: 2,
            alpha: 4.0,
            targets: LoraTarget::ALL.to_vec(),
        };
        let adapters = Adapters::init(&params, settings, 5, DType::F32, &Device::Cpu).unwrap();
        for (_, var) in adapters.store().iter() {
            let values: Vec<f32> = (0..var.elem_count())
                .map(|at| (at * 37 % 11) as f32 * 0.05 - 0.25)
                .collect();
            let values = Tensor::from_vec(values, var.dims(), &Device::Cpu).unwrap();
            var.set(&values).unwrap();
        }
        let dropout = Dropout {
            share: 0.25,
            seed: 8,
        };
        let model = MtpModel::adapted(&params, &store, &adapters).unwrap();
        (model.with_dropout(dropout.of_step(3), 1), adapters)
    }

    #[test]
    fn every_way_of_keeping_gives_the_gradients_of_the_whole_graph() {
        let params = tiny();
        let store = ParamStore::init(&params, 3, DType::F32, &Device::Cpu).unwrap();
        let model = MtpModel::new(&params, &store).unwrap();
        // Three trunk blocks of nine tensors, and the embedding.
        check_every_way_of_keeping(&model, &store, 28);
    }

    #[test]
    fn a_block_that_is_computed_again_drops_what_it_had_dropped() {
        let (model, adapters) = dropping();
        // Three trunk blocks of seven matrices.
        check_every_way_of_keeping(&model, adapters.store(), 42);
    }

    #[test]
    fn adapters_beside_bf16_products_go_back_as_the_graph_does() {
        let (params, (_, adapters)) = (tiny(), dropping());
        let store = ParamStore::init(&params, 3, DType::F32, &Device::Cpu).unwrap();
        let model = MtpModel::adapted(&params, &store, &adapters).unwrap();
        let model = model.with_products(Products::Bf16);
        check_every_way_of_keeping(&model, adapters.store(), 42);
        check_a_head(&model, adapters.store(), 14);
    }

    fn check_every_way_of_keeping(model: &MtpModel, store: &ParamStore, num_gradients: usize) {
        let params = model.params();
        let ids = Tensor::new(&[[1u32, 5, 9, 2, 7], [3, 3, 8, 28, 0]], &Device::Cpu).unwrap();
        let seed = Tensor::arange(0f32, 160.0, &Device::Cpu)
            .and_then(|t| t.affine(0.01, -0.7)?.reshape((2, 5, 16)))
            .unwrap();

        let whole = model.trunk(&ids).unwrap();
        let product = (&whole * &seed).unwrap().sum_all().unwrap();
        let expected = product.backward().unwrap();
        let mut first = None;
        for num_kept in 0..=params.num_trunk_blocks() {
            let tape = model.trunk_taped(&ids, num_kept).unwrap();
            assert_eq!(bits(tape.output()), bits(&whole), "{num_kept} kept");
            let mut taken = Vec::new();
            tape.backward(seed.clone(), |id, gradient| {
                let name = name_of(store, id);
                let graph = expected.get_id(id).expect("the graph reaches it too");
                assert_eq!(gradient.dims(), graph.dims(), "{name}");
                // Equal numbers; the graph adds to zero, which makes a plus of a minus zero.
                assert_eq!(numbers(gradient), numbers(graph), "{name}, {num_kept} kept");
                taken.push((name, bits(gradient)));
                Ok::<(), Error>(())
            })
            .unwrap();
            assert_eq!(taken.len(), num_gradients, "{num_kept} kept");
            assert_eq!(&taken, first.get_or_insert_with(|| taken.clone()));
        }
    }

    #[test]
    fn a_taped_head_gives_what_the_graph_gives() {
        let params = tiny();
        let store = ParamStore::init(&params, 3, DType::F32, &Device::Cpu).unwrap();
        let model = MtpModel::new(&params, &store).unwrap();
        // The norm and the head's block.
        check_a_head(&model, &store, 10);
    }

    #[test]
    fn a_taped_head_drops_what_the_graph_drops() {
        let (model, adapters) = dropping();
        check_a_head(&model, adapters.store(), 14);
    }

    fn check_a_head(model: &MtpModel, store: &ParamStore, num_gradients: usize) {
        let ids = Tensor::new(&[[1u32, 5, 9, 2, 7], [3, 3, 8, 28, 0]], &Device::Cpu).unwrap();
        let trunk = Var::from_tensor(&model.trunk(&ids).unwrap().detach()).unwrap();
        let (rows, targets, weights) = ([0, 2, 3, 6], [9, 7, 4, 28], [0.5, 1.0, 0.0, 2.0]);
        let horizon = Horizon::new(2).unwrap();

        let hidden = model.head_hidden_at(horizon, &trunk, &rows).unwrap();
        let output = model.unembedding();
        let whole =
            loss::weighted_cross_entropy(&hidden, output, &targets, &weights, Products::F32)
                .unwrap();
        let expected = whole.sum.backward().unwrap();

        let tape = model.head_taped(horizon, &trunk, &rows).unwrap();
        assert_eq!(bits(tape.hidden()), bits(&hidden));
        let made =
            loss::cross_entropy_gradients(tape.hidden(), output, &targets, &weights, Products::F32)
                .unwrap();
        assert_eq!(made.ce, whole.ce);
        assert_eq!(
            made.unembedding.as_ref().map(numbers),
            expected.get(output).map(numbers)
        );
        let mut taken = 0;
        let of_trunk = tape.backward(&made.hidden, |id, gradient| {
            let graph = expected.get_id(id).expect("the graph reaches it too");
            assert_eq!(numbers(gradient), numbers(graph), "{}", name_of(store, id));
            taken += 1;
            Ok::<(), Error>(())
        });
        assert_eq!(
            numbers(&of_trunk.unwrap()),
            numbers(expected.get(&trunk).unwrap())
        );
        assert_eq!(taken, num_gradients);
    }

    #[test]
    fn a_kept_block_takes_its_activations_and_its_packed_weights_of_the_budget() {
        let params = tiny();
        let of_block = params.block_activation_bytes(10, DType::F32);
        let kept = |bytes, packed| params.num_kept_blocks(Some(bytes), 10, packed, DType::F32);
        assert_eq!([kept(of_block - 1, 0), kept(of_block, 0)], [0, 1]);
        assert_eq!(
            [kept(of_block + 399, 100), kept(of_block + 400, 100)],
            [0, 1]
        );
        assert_eq!(kept(usize::MAX, 100), params.num_trunk_blocks());
        let all = params.num_kept_blocks(None, 10, 100, DType::F32);
        assert_eq!(all, params.num_trunk_blocks());
    }

    /// What a block's operations hold of its weights is what is counted, with and without adapters.
    #[test]
    fn the_packed_weights_of_a_block_are_counted() {
        let params = tiny();
        let store = ParamStore::init(&params, 3, DType::F32, &Device::Cpu).unwrap();
        let ids = Tensor::new(&[[1u32, 5, 9, 2, 7]], &Device::Cpu).unwrap();
        let held = |model: &MtpModel| {
            let tape = model.trunk_taped(&ids, params.num_trunk_blocks()).unwrap();
            let pass = tape.segments[0].pass.as_ref().unwrap();
            let of = |step: &Step| {
                // Packed weights begin with a norm. A lone matrix is no copy, and adapters are matrices too.
                let is_packed = step.operand.parts[0].rank() == 1;
                let flat = step.operand.flat.get().filter(|_| is_packed);
                flat.map_or(0, Tensor::elem_count)
            };
            of(&pass.attention) + of(&pass.out) + of(&pass.feed_forward)
        };
        let plain = MtpModel::new(&params, &store).unwrap();
        assert_eq!(held(&plain), plain.num_packed_in_block());
        assert!(held(&plain) > 0);
        for targets in [&LoraTarget::ALL[..], &LoraTarget::ALL[..4]] {
            let settings = LoraSettings {
                r: 2,
                alpha: 4.0,
                targets: targets.to_vec(),
            };
            let adapters = Adapters::init(&params, settings, 5, DType::F32, &Device::Cpu).unwrap();
            let model = MtpModel::adapted(&params, &store, &adapters).unwrap();
            assert_eq!(held(&model), model.num_packed_in_block());
        }
    }

    #[test]
    fn the_activations_of_the_7b_block_are_counted() {
        let params = Params::meta_7b();
        // q, k, v and the heads: 4 x 4096; log-sums 32; two norms; residual sums and the projection: 3 x 4096;
        // gate and up: 2 x 11008.
        let width = 4 * 4096 + 32 + 2 + 3 * 4096 + 2 * 11_008;
        assert_eq!(
            params.block_activation_bytes(10, DType::F32),
            10 * width * 4
        );
    }
}
