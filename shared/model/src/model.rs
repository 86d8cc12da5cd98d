//! The MTP policy: a shared trunk and parallel prediction heads under one norm and unembedding.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use crate::dropout::Masks;
use crate::kernels::HeadLayout;
use crate::loss::select_rows;
use crate::observer::{Observer, Point, Site, Unobserved};
use crate::ops::{self, AttentionHeads, BlockSetup, FeedForward, Layer, Linear, LowRank, RmsNorm};
use crate::params::{ATTENTION_NORM, FFN_NORM, GATE_UP, QKV, W2, WO, trunk_prefix};
use crate::tape::{HeadTape, Operand};
use crate::{
    Adapters, Error, Horizon, LoraTarget, ParamStore, Params, Products, Result, Rotary,
    StepDropout, TrunkTape,
};

/// Whether a model's tensors take gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tracking {
    Trained,
    Frozen,
}

impl Tracking {
    /// A store's tensor as this model sees it. Either way storage is shared: an update of the variable
    /// is seen by the model.
    pub(crate) fn tensor(self, store: &ParamStore, name: &str) -> Result<Tensor> {
        let var = store.require(name)?;
        Ok(match self {
            Self::Trained => var.as_tensor().clone(),
            Self::Frozen => var.as_detached_tensor(),
        })
    }
}

/// One pre-norm block.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    attention_in: [Tensor; 4],
    wo: Tensor,
    feed_forward: [Tensor; 4],
    adapters: BlockAdapters,
}

/// The adapters of a block by operation.
#[derive(Debug, Clone, Default)]
struct BlockAdapters {
    attention_in: Option<LowRank>,
    wo: Option<LowRank>,
    feed_forward: Option<LowRank>,
}

/// Names of the weights that a block's operations pack, in their order; between the two comes [`WO`].
const ATTENTION_IN: [&str; 4] = [ATTENTION_NORM, QKV[0], QKV[1], QKV[2]];
const FEED_FORWARD: [&str; 4] = [FFN_NORM, GATE_UP[0], GATE_UP[1], W2];

/// Names of the weights that a block's operations with adapters on these matrices read.
pub(crate) fn read_with(targets: &[LoraTarget]) -> Vec<&'static str> {
    let operations: [&[&str]; 3] = [&ATTENTION_IN, &[WO], &FEED_FORWARD];
    let has_adapter = |names: &&[&str]| {
        targets
            .iter()
            .any(|target| names.contains(&target.matrix()))
    };
    operations
        .into_iter()
        .filter(has_adapter)
        .flatten()
        .copied()
        .collect()
}

impl Block {
    fn new(store: &ParamStore, prefix: &str, tracking: Tracking) -> Result<Self> {
        let get = |name: &str| tracking.tensor(store, &format!("{prefix}.{name}.weight"));
        let all = |[a, b, c, d]: [&str; 4]| Ok::<_, Error>([get(a)?, get(b)?, get(c)?, get(d)?]);
        Ok(Self {
            attention_in: all(ATTENTION_IN)?,
            wo: get(WO)?,
            feed_forward: all(FEED_FORWARD)?,
            adapters: BlockAdapters::default(),
        })
    }

    /// Puts adapters upon the block's weights.
    fn adapt(&mut self, adapters: &Adapters, prefix: &str, tracking: Tracking) -> Result<()> {
        let on = |names: &[&str], weights: &[Tensor]| {
            let names: Vec<_> = names
                .iter()
                .map(|name| format!("{prefix}.{name}"))
                .collect();
            let named: Vec<_> = names.iter().map(String::as_str).zip(weights).collect();
            adapters.on(&named, tracking)
        };
        self.adapters = BlockAdapters {
            attention_in: on(&ATTENTION_IN, &self.attention_in)?,
            wo: on(&[WO], std::slice::from_ref(&self.wo))?,
            feed_forward: on(&FEED_FORWARD, &self.feed_forward)?,
        };
        Ok(())
    }

    /// Whether adapters of this block take gradients.
    fn has_trained_adapters(&self) -> bool {
        let BlockAdapters {
            attention_in,
            wo,
            feed_forward,
        } = &self.adapters;
        let mut all = [attention_in, wo, feed_forward].into_iter().flatten();
        all.any(|low_rank| low_rank.tensors().iter().any(Tensor::track_op))
    }

    fn forward<O: Observer>(
        &self,
        x: &Tensor,
        setup: &BlockSetup,
        site: impl Fn(Point) -> Site,
        observer: &mut O,
    ) -> Result<Tensor> {
        let heads = observer.observe(site(Point::AttnHeads), self.attention_heads(x, setup)?)?;
        let masks = setup.masks(x, None)?;
        self.after_attention(x, &heads, (setup, masks), site, observer)
    }

    /// The block's output `[n, d]` at some rows of `x [b, s, d]`: every position is attended to, the rest is computed
    /// for these rows alone.
    fn forward_at(
        &self,
        x: &Tensor,
        rows: &[u32],
        setup: &BlockSetup,
        site: impl Fn(Point) -> Site,
    ) -> Result<Tensor> {
        let heads = select_rows(&self.attention_heads(x, setup)?, rows)?;
        let (masks, x) = (setup.masks(x, Some(rows))?, select_rows(x, rows)?);
        self.after_attention(&x, &heads, (setup, masks), site, &mut Unobserved)
    }

    /// What follows the heads' outputs: output projection, feed-forward half and both residual sums.
    fn after_attention<O: Observer>(
        &self,
        x: &Tensor,
        heads: &Tensor,
        (setup, masks): (&BlockSetup, Option<Masks>),
        site: impl Fn(Point) -> Site,
        observer: &mut O,
    ) -> Result<Tensor> {
        let out = self.attention_out(heads, setup.products, masks.clone())?;
        let out = observer.observe(site(Point::AttnOut), out)?;
        let middle = (x + out)?;
        let resid = match &self.adapters.feed_forward {
            Some(low_rank) => {
                let low_rank = low_rank.masked(masks);
                ops::adapted_feed_forward(&middle, &self.feed_forward, &low_rank, setup)?
            }
            None => ops::feed_forward(&middle, &packed(&self.feed_forward)?, setup)?,
        };
        observer.observe(site(Point::Resid), resid)
    }

    fn attention_heads(&self, x: &Tensor, setup: &BlockSetup) -> Result<Tensor> {
        Ok(match &self.adapters.attention_in {
            Some(low_rank) => {
                let low_rank = low_rank.masked(setup.masks(x, None)?);
                ops::adapted_attention_heads(x, &self.attention_in, &low_rank, setup)?
            }
            None => ops::attention_heads(x, &packed(&self.attention_in)?, setup)?,
        })
    }

    fn attention_out(
        &self,
        heads: &Tensor,
        products: Products,
        masks: Option<Masks>,
    ) -> Result<Tensor> {
        Ok(match &self.adapters.wo {
            Some(low_rank) => {
                ops::adapted_linear(heads, &self.wo, &low_rank.masked(masks), products)?
            }
            None => ops::linear_with(heads, &self.wo, products)?,
        })
    }

    /// Weights that the operations without adapters pack. The output projection has one matrix, which it reads as it is.
    fn num_packed(&self) -> usize {
        let of = |parts: &[Tensor], adapters: Option<&LowRank>| match adapters {
            Some(_) => 0,
            None => parts.iter().map(Tensor::elem_count).sum(),
        };
        let adapters = &self.adapters;
        of(&self.attention_in, adapters.attention_in.as_ref())
            + of(&self.feed_forward, adapters.feed_forward.as_ref())
    }

    /// Norm, q/k/v and attention, for a tape.
    pub(crate) fn attention_layer(
        &self,
        setup: &BlockSetup,
        masks: Option<Masks>,
    ) -> (Box<dyn Layer>, Operand) {
        let layer = AttentionHeads::new(setup, true);
        let adapters = self.adapters.attention_in.as_ref();
        taped(layer, &self.attention_in, adapters, masks)
    }

    /// The output projection, for a tape.
    pub(crate) fn out_layer(
        &self,
        setup: &BlockSetup,
        masks: Option<Masks>,
    ) -> (Box<dyn Layer>, Operand) {
        let (layer, parts) = (Linear(setup.products), std::slice::from_ref(&self.wo));
        taped(layer, parts, self.adapters.wo.as_ref(), masks)
    }

    /// The feed-forward half with its residual sum, for a tape.
    pub(crate) fn feed_forward_layer(
        &self,
        setup: &BlockSetup,
        masks: Option<Masks>,
    ) -> (Box<dyn Layer>, Operand) {
        let layer = FeedForward::new(setup, true);
        let adapters = self.adapters.feed_forward.as_ref();
        taped(layer, &self.feed_forward, adapters, masks)
    }
}

/// An operation with its weights, or upon them with the adapters that are trained in their place.
fn taped<O: ops::Fused + candle_core::CustomOp2 + 'static>(
    op: O,
    parts: &[Tensor],
    adapters: Option<&LowRank>,
    masks: Option<Masks>,
) -> (Box<dyn Layer>, Operand) {
    match adapters {
        Some(low_rank) => (
            Box::new(low_rank.masked(masks).upon_parts(parts, op)),
            Operand::new(low_rank.tensors()),
        ),
        None => (Box::new(op), Operand::new(parts)),
    }
}

/// The weights of one fused operation behind each other. Copying them costs far less than the extra
/// passes over activations that separate operations would need.
pub(crate) fn packed(weights: &[Tensor]) -> candle_core::Result<Tensor> {
    if let [one] = weights {
        return Ok(one.clone());
    }
    let flat = weights
        .iter()
        .map(Tensor::flatten_all)
        .collect::<candle_core::Result<Vec<_>>>()?;
    Tensor::cat(&flat, 0)
}

/// Embeddings, trunk blocks and the final norm: what the policy and the value model have in common.
#[derive(Debug, Clone)]
pub(crate) struct Body {
    embeddings: Tensor,
    blocks: Vec<Block>,
    norm: Tensor,
    setup: BlockSetup,
}

impl Body {
    pub(crate) fn new(params: &Params, store: &ParamStore, tracking: Tracking) -> Result<Self> {
        params.validate()?;
        let blocks =
            (0..params.num_trunk_blocks()).map(|i| Block::new(store, &trunk_prefix(i), tracking));
        Ok(Self {
            embeddings: tracking.tensor(store, "tok_embeddings.weight")?,
            blocks: blocks.collect::<Result<_>>()?,
            norm: tracking.tensor(store, "norm.weight")?,
            setup: BlockSetup {
                layout: HeadLayout::new(params),
                eps: params.norm_eps,
                rotary: Arc::new(Rotary::new(params)),
                products: Products::F32,
                dropout: None,
            },
        })
    }

    /// Puts adapters upon the trunk's blocks. The caller checks that none is left over.
    pub(crate) fn adapt(&mut self, adapters: &Adapters, tracking: Tracking) -> Result<()> {
        for (i, block) in self.blocks.iter_mut().enumerate() {
            block.adapt(adapters, &trunk_prefix(i), tracking)?;
        }
        Ok(())
    }

    /// See [`MtpModel::num_packed_in_block`].
    pub(crate) fn num_packed_in_block(&self) -> usize {
        match self.blocks.first() {
            Some(block) if self.embeddings.device().is_cpu() => block.num_packed(),
            _ => 0,
        }
    }

    pub(crate) fn set_products(&mut self, products: Products) {
        self.setup.products = products;
    }

    pub(crate) fn set_rotary(&mut self, rotary: Rotary) {
        self.setup.rotary = Arc::new(rotary);
    }

    /// Embeddings `[b, s, d]` of `ids [b, s]`.
    pub(crate) fn embed(&self, ids_bs: &Tensor) -> Result<Tensor> {
        let (batch, sequence) = match ids_bs.dims() {
            [b, s] if ids_bs.dtype() == DType::U32 => (*b, *s),
            dims => {
                return Err(Error::Shape(format!(
                    "ids are {:?} {dims:?}, expected U32 [b, s]",
                    ids_bs.dtype()
                )));
            }
        };
        let ids = ids_bs.flatten_all()?.to_vec1::<u32>()?;
        let rows = ops::embedding(&self.embeddings, &ids)?;
        Ok(rows.reshape((batch, sequence, self.embeddings.dim(1)?))?)
    }

    pub(crate) fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    pub(crate) fn block(&self, index: usize) -> &Block {
        &self.blocks[index]
    }

    pub(crate) fn embeddings(&self) -> &Tensor {
        &self.embeddings
    }

    /// Whether the body's own tensors, or adapters upon them, take gradients.
    pub(crate) fn is_trained(&self) -> bool {
        self.embeddings.track_op() || self.blocks.iter().any(Block::has_trained_adapters)
    }

    pub(crate) fn setup(&self) -> &BlockSetup {
        &self.setup
    }

    /// The shared norm, for a tape.
    pub(crate) fn norm_layer(&self) -> (Box<dyn Layer>, Operand) {
        let operand = Operand::new(std::slice::from_ref(&self.norm));
        (Box::new(RmsNorm::new(self.setup.eps)), operand)
    }

    pub(crate) fn trunk<O: Observer>(&self, ids_bs: &Tensor, observer: &mut O) -> Result<Tensor> {
        let mut x = observer.observe(Site::Embed, self.embed(ids_bs)?)?;
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, &self.setup, |point| Site::Trunk(i, point), observer)?;
        }
        Ok(x)
    }

    pub(crate) fn normed(&self, x_bsd: &Tensor) -> Result<Tensor> {
        Ok(ops::rms_norm(x_bsd, &self.norm, self.setup.eps)?)
    }
}

/// A multi-token-prediction model under Meta's layout: every head takes the same trunk output.
///
/// `h = trunk(ids)`, `logits_k = output(norm(head_k(h)))` for k = 1…H.
#[derive(Debug, Clone)]
pub struct MtpModel {
    params: Params,
    body: Body,
    heads: Vec<Block>,
    output: Tensor,
}

impl MtpModel {
    /// A model whose parameters take gradients; it shares the store's variables.
    pub fn new(params: &Params, store: &ParamStore) -> Result<Self> {
        Self::build(params, store, Tracking::Trained)
    }

    /// The same values without a graph: evaluation, reference losses.
    pub fn frozen(params: &Params, store: &ParamStore) -> Result<Self> {
        Self::build(params, store, Tracking::Frozen)
    }

    /// A frozen base under adapters that take gradients. Of a base that keeps tensors in a smaller type
    /// ([`ParamStore::load_adapted`]) it is the same to the last bit.
    pub fn adapted(params: &Params, store: &ParamStore, adapters: &Adapters) -> Result<Self> {
        Self::frozen(params, store)?.with_adapters(adapters, Tracking::Trained)
    }

    /// The same values as [`Self::adapted`] without a graph.
    pub fn adapted_frozen(
        params: &Params,
        store: &ParamStore,
        adapters: &Adapters,
    ) -> Result<Self> {
        Self::frozen(params, store)?.with_adapters(adapters, Tracking::Frozen)
    }

    fn with_adapters(mut self, adapters: &Adapters, tracking: Tracking) -> Result<Self> {
        let tensors = self.params.tensor_shapes();
        adapters.check_all_used(tensors.iter().map(|(name, _)| name.as_str()))?;
        self.body.adapt(adapters, tracking)?;
        for (block, horizon) in self.heads.iter_mut().zip(self.params.horizons()) {
            block.adapt(adapters, &self.params.head_prefix(horizon), tracking)?;
        }
        Ok(self)
    }

    fn build(params: &Params, store: &ParamStore, tracking: Tracking) -> Result<Self> {
        let heads = params
            .horizons()
            .map(|k| Block::new(store, &params.head_prefix(k), tracking));
        Ok(Self {
            params: params.clone(),
            body: Body::new(params, store, tracking)?,
            heads: heads.collect::<Result<_>>()?,
            output: tracking.tensor(store, "output.weight")?,
        })
    }

    /// Uses rotary tables from outside.
    #[must_use]
    pub fn with_rotary(mut self, rotary: Rotary) -> Self {
        self.body.set_rotary(rotary);
        self
    }

    /// Computes the products with weights in another way.
    #[must_use]
    pub fn with_products(mut self, products: Products) -> Self {
        self.body.set_products(products);
        self
    }

    /// Drops some of what the adapters read, as a training step does in a pass through some of its sequences; the first of
    /// these has the place `first_slot` among all of them.
    #[must_use]
    pub fn with_dropout(mut self, dropout: StepDropout, first_slot: usize) -> Self {
        self.body.setup.dropout = Some(dropout.of_pass(first_slot));
        self
    }

    /// How the products with weights are computed.
    pub fn products(&self) -> Products {
        self.body.setup.products
    }

    /// Weights of which a trunk block whose activations are kept holds a packed copy: none of those under adapters, which
    /// are packed anew on the way back, and none on a device, which reads them where they lie.
    pub fn num_packed_in_block(&self) -> usize {
        self.body.num_packed_in_block()
    }

    /// The configuration.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The shared trunk's output `[b, s, d]`, before the final norm, for `ids [b, s]` (u32).
    pub fn trunk(&self, ids_bs: &Tensor) -> Result<Tensor> {
        self.trunk_observed(ids_bs, &mut Unobserved)
    }

    /// [`Self::trunk`] with an observer at every site.
    pub fn trunk_observed<O: Observer>(&self, ids_bs: &Tensor, observer: &mut O) -> Result<Tensor> {
        self.body.trunk(ids_bs, observer)
    }

    /// [`Self::trunk`] for training: goes back block by block, with the activations of the last `num_kept` blocks
    /// kept and the others computed again.
    pub fn trunk_taped(&self, ids_bs: &Tensor, num_kept: usize) -> Result<TrunkTape> {
        TrunkTape::record(&self.body, ids_bs, num_kept)
    }

    /// What a trunk block's attention writes for these outputs of its heads, `[b, s, n·e]` to `[b, s, d]`.
    pub(crate) fn trunk_attention_out(&self, block: usize, heads_bsd: &Tensor) -> Result<Tensor> {
        self.body.blocks[block].attention_out(heads_bsd, self.products(), None)
    }

    /// Hidden state `[b, s, d]` of one head after the shared norm.
    pub fn head_hidden(&self, horizon: Horizon, trunk_bsd: &Tensor) -> Result<Tensor> {
        self.head_hidden_observed(horizon, trunk_bsd, &mut Unobserved)
    }

    /// [`Self::head_hidden`] with an observer at every site.
    pub fn head_hidden_observed<O: Observer>(
        &self,
        horizon: Horizon,
        trunk_bsd: &Tensor,
        observer: &mut O,
    ) -> Result<Tensor> {
        let x = self.head(horizon)?.forward(
            trunk_bsd,
            &self.body.setup,
            |point| Site::Head(horizon, point),
            observer,
        )?;
        self.body.normed(&x)
    }

    /// [`Self::head_hidden`] at some positions, as `[n, d]`; `rows` count over the flattened batch. A head predicts
    /// from the positions of the response only, so training and scoring need no others.
    pub fn head_hidden_at(
        &self,
        horizon: Horizon,
        trunk_bsd: &Tensor,
        rows: &[u32],
    ) -> Result<Tensor> {
        let site = |point| Site::Head(horizon, point);
        let block = self.head(horizon)?;
        self.body
            .normed(&block.forward_at(trunk_bsd, rows, &self.body.setup, site)?)
    }

    /// [`Self::head_hidden_at`] for training, upon the trunk's output without its graph.
    pub fn head_taped(
        &self,
        horizon: Horizon,
        trunk_bsd: &Tensor,
        rows: &[u32],
    ) -> Result<HeadTape> {
        HeadTape::record(&self.body, self.head(horizon)?, trunk_bsd, rows)
    }

    fn head(&self, horizon: Horizon) -> Result<&Block> {
        self.heads.get(horizon.get() - 1).ok_or_else(|| {
            let heads = self.heads.len();
            Error::Shape(format!("horizon {horizon} of a model with {heads}"))
        })
    }

    /// The unembedding `[v, d]`.
    pub fn unembedding(&self) -> &Tensor {
        &self.output
    }

    /// Logits `[.., v]` of normed hidden states `[.., d]`. Training never needs them: see [`crate::loss`].
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(ops::linear(hidden, &self.output)?)
    }
}
