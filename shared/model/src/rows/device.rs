//! The forward pass of decoding on a device.
//!
//! Buffers hold whole products of 64 rows; what lies behind the last row is computed along and never read.

use candle_core::cuda::cudarc::driver::CudaSlice;
use candle_core::{CudaDevice, Tensor};
use half::bf16;

use super::{KeyValues, Span, elsewhere, parameter};
use crate::cuda::rows::{Lines, Places, attend, padded, store, times};
use crate::cuda::{Factor, empty, gather_rows, rms_norm, swiglu};
use crate::kernels::{HeadLayout, Write};
use crate::params::{ATTENTION_NORM, FFN_NORM, GATE_UP, QKV, W2, WO};
use crate::{Error, ParamStore, Params, Products, Result};

/// Rows `[rows, width]` on a device.
#[derive(Debug)]
pub struct DeviceRows {
    device: CudaDevice,
    /// `[padded, width]`
    data: CudaSlice<f32>,
    rows: usize,
    width: usize,
}

impl DeviceRows {
    pub(super) fn to_host(&self) -> Result<Vec<f32>> {
        let own = self.data.slice(..self.rows * self.width);
        Ok(self.device.clone_dtoh(&own)?)
    }

    pub(super) fn append(&mut self, more: &Self) -> Result<()> {
        let rows = self.rows + more.rows;
        let mut data = self.device.alloc_zeros::<f32>(padded(rows) * self.width)?;
        let (own, theirs) = (self.rows * self.width, more.rows * more.width);
        for (from, first, len) in [(&self.data, 0, own), (&more.data, own, theirs)] {
            let mut to = data.slice_mut(first..first + len);
            self.device.memcpy_dtod(&from.slice(..len), &mut to)?;
        }
        (self.data, self.rows) = (data, rows);
        Ok(())
    }

    /// The rows of these numbers, as rows of their own.
    fn gathered(&self, numbers: &[u32]) -> Result<Self> {
        Self::gather(&self.device, &self.data, self.width, numbers)
    }

    /// Rows of a table; the last fills up the last product.
    fn gather(
        device: &CudaDevice,
        table: &CudaSlice<f32>,
        width: usize,
        numbers: &[u32],
    ) -> Result<Self> {
        let mut all = numbers.to_vec();
        all.resize(padded(numbers.len()), numbers.last().copied().unwrap_or(0));
        Ok(Self {
            data: gather_rows(device, &table.as_view(), &all, width)?,
            device: device.clone(),
            rows: numbers.len(),
            width,
        })
    }
}

/// Keys and values on a device.
#[derive(Debug)]
pub struct DeviceCache {
    device: CudaDevice,
    lines: Lines,
    len: usize,
}

impl DeviceCache {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn fork(&self, len: usize) -> Result<Self> {
        let len = len.min(self.len);
        Ok(Self {
            device: self.device.clone(),
            lines: self.lines.copy(&self.device, len, len + 1)?,
            len,
        })
    }

    pub(super) fn truncate(&mut self, len: usize) {
        self.len = len.min(self.len);
    }

    /// Sees to room for more positions; what there is doubles at least, so that few copies are made.
    fn reserve(&mut self, rows: usize) -> Result<()> {
        let (needed, room) = (self.len + rows, self.lines.room());
        if needed > room {
            self.lines = self
                .lines
                .copy(&self.device, self.len, needed.max(2 * room))?;
        }
        Ok(())
    }
}

/// A frozen weight `[outputs, inputs]`.
#[derive(Debug)]
struct DeviceLinear {
    factors: Factors,
    outputs: usize,
    inputs: usize,
}

#[derive(Debug)]
enum Factors {
    F32(CudaSlice<f32>),
    Bf16(CudaSlice<bf16>),
}

impl DeviceLinear {
    /// Weights of one depth, their outputs behind each other.
    fn new(parts: &[&Tensor], device: &CudaDevice, products: Products) -> Result<Self> {
        let stacked = Tensor::cat(parts, 0)?;
        let (outputs, inputs) = stacked.dims2()?;
        let numbers = device.clone_htod(&stacked.flatten_all()?.to_vec1::<f32>()?)?;
        let factors = match products {
            Products::F32 => Factors::F32(numbers),
            Products::Bf16 => {
                let rounded = <bf16 as Factor<f32>>::of(device, numbers.as_view())?.made();
                Factors::Bf16(rounded.expect("bf16 factors are always made"))
            }
        };
        Ok(Self {
            factors,
            outputs,
            inputs,
        })
    }

    fn apply(
        &self,
        device: &CudaDevice,
        x: &CudaSlice<f32>,
        out: &mut CudaSlice<f32>,
        write: Write,
    ) -> Result<()> {
        let sides = (self.outputs, self.inputs);
        Ok(match &self.factors {
            Factors::F32(w) => times(device, x, w, sides, out, write),
            Factors::Bf16(w) => times(device, x, w, sides, out, write),
        }?)
    }

    /// `x · wᵀ`
    fn of(&self, device: &CudaDevice, x: &CudaSlice<f32>) -> Result<CudaSlice<f32>> {
        let mut out = empty::<f32>(device, x.len() / self.inputs * self.outputs)?;
        self.apply(device, x, &mut out, Write::Replace)?;
        Ok(out)
    }
}

/// Weights of an RMSNorm.
#[derive(Debug)]
struct DeviceNorm {
    weights: CudaSlice<f32>,
    eps: f64,
}

impl DeviceNorm {
    fn new(store: &ParamStore, name: &str, eps: f64, device: &CudaDevice) -> Result<Self> {
        let weights = parameter(store, name)?.to_vec1::<f32>()?;
        Ok(Self {
            weights: device.clone_htod(&weights)?,
            eps,
        })
    }

    fn of(&self, device: &CudaDevice, x: &CudaSlice<f32>) -> Result<CudaSlice<f32>> {
        let weights = self.weights.as_view();
        let (normed, _) = rms_norm::<f32, f32>(device, &x.as_view(), &weights, self.eps)?;
        Ok(normed)
    }
}

/// A frozen block.
#[derive(Debug)]
pub struct DeviceBlock {
    device: CudaDevice,
    layout: HeadLayout,
    attention_norm: DeviceNorm,
    qkv: DeviceLinear,
    wo: DeviceLinear,
    ffn_norm: DeviceNorm,
    gate_up: DeviceLinear,
    w2: DeviceLinear,
}

impl DeviceBlock {
    pub(super) fn new(
        params: &Params,
        store: &ParamStore,
        prefix: &str,
        device: &CudaDevice,
        products: Products,
    ) -> Result<Self> {
        let name = |name: &str| format!("{prefix}.{name}.weight");
        let stacked = |names: &[&str]| -> Result<DeviceLinear> {
            let parts: Vec<_> = names
                .iter()
                .map(|one| parameter(store, &name(one)))
                .collect::<Result<_>>()?;
            let parts: Vec<_> = parts.iter().map(|var| var.as_tensor()).collect();
            DeviceLinear::new(&parts, device, products)
        };
        let norm = |one: &str| DeviceNorm::new(store, &name(one), params.norm_eps, device);
        Ok(Self {
            layout: HeadLayout::new(params),
            attention_norm: norm(ATTENTION_NORM)?,
            qkv: stacked(&QKV)?,
            wo: stacked(&[WO])?,
            ffn_norm: norm(FFN_NORM)?,
            gate_up: stacked(&GATE_UP)?,
            w2: stacked(&[W2])?,
            device: device.clone(),
        })
    }

    pub(super) fn empty_cache(&self) -> Result<DeviceCache> {
        let line = self.layout.kv_heads * self.layout.head_dim;
        Ok(DeviceCache {
            lines: Lines::with_room(&self.device, line, 0)?,
            device: self.device.clone(),
            len: 0,
        })
    }

    /// See [`super::RowBlock::forward`].
    pub(super) fn forward(
        &self,
        x: &DeviceRows,
        spans: &mut [Span<'_>],
        angles: &DeviceAngles,
    ) -> Result<DeviceRows> {
        let rows: usize = spans.iter().map(|span| span.rows).sum();
        assert_eq!(x.rows, rows, "spans of {rows} rows");
        let device = &self.device;
        let mut qkv = self
            .qkv
            .of(device, &self.attention_norm.of(device, &x.data)?)?;
        let (places, kept) = self.places(spans)?;
        store(
            device,
            self.layout,
            &mut qkv,
            (&angles.cos, &angles.sin),
            &places,
        )?;
        let mixed = attend(device, self.layout, &qkv, &places.of(&kept))?;
        let mut out = x.gathered(&kept)?;
        self.wo.apply(device, &mixed, &mut out.data, Write::Add)?;
        self.feed_forward(&mut out.data)?;
        Ok(out)
    }

    /// Where the rows of the spans belong, and which of them are kept. The caches follow.
    fn places(&self, spans: &mut [Span<'_>]) -> Result<(Places, Vec<u32>)> {
        let (mut places, mut kept) = (Places::default(), Vec::new());
        for span in spans {
            let KeyValues::Device(cache) = &mut *span.cache else {
                return Err(elsewhere("keys and values"));
            };
            cache.reserve(span.rows)?;
            for row in 0..span.rows {
                let number = places.len();
                places.push(&self.device, &mut cache.lines, cache.len, number)?;
                cache.len += 1;
                if row + span.kept >= span.rows {
                    kept.push(number as u32);
                }
            }
        }
        Ok((places, kept))
    }

    fn feed_forward(&self, x: &mut CudaSlice<f32>) -> Result<()> {
        let device = &self.device;
        let gate_up = self.gate_up.of(device, &self.ffn_norm.of(device, x)?)?;
        let act = swiglu::<f32, f32>(device, &gate_up, self.gate_up.outputs / 2)?;
        self.w2.apply(device, &act, x, Write::Add)
    }
}

/// The embeddings of a frozen model.
#[derive(Debug)]
pub struct DeviceEmbedding {
    device: CudaDevice,
    table: CudaSlice<f32>,
    dim: usize,
}

impl DeviceEmbedding {
    pub(super) fn new(store: &ParamStore, device: &CudaDevice) -> Result<Self> {
        let table = parameter(store, "tok_embeddings.weight")?;
        Ok(Self {
            dim: table.dim(1)?,
            table: device.clone_htod(&table.flatten_all()?.to_vec1::<f32>()?)?,
            device: device.clone(),
        })
    }

    pub(super) fn dim(&self) -> usize {
        self.dim
    }

    pub(super) fn read(&self, ids: &[u32]) -> Result<DeviceRows> {
        let vocab = self.table.len() / self.dim;
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::Shape(format!("id {id} of a vocabulary of {vocab}")));
        }
        DeviceRows::gather(&self.device, &self.table, self.dim, ids)
    }

    pub(super) fn place(&self, mut numbers: Vec<f32>) -> Result<DeviceRows> {
        let rows = numbers.len() / self.dim;
        numbers.resize(padded(rows) * self.dim, 0.0);
        Ok(DeviceRows {
            data: self.device.clone_htod(&numbers)?,
            device: self.device.clone(),
            rows,
            width: self.dim,
        })
    }
}

/// The shared norm and the unembedding.
#[derive(Debug)]
pub struct DeviceOutput {
    device: CudaDevice,
    norm: DeviceNorm,
    output: DeviceLinear,
}

impl DeviceOutput {
    pub(super) fn new(
        params: &Params,
        store: &ParamStore,
        device: &CudaDevice,
        products: Products,
    ) -> Result<Self> {
        let output = parameter(store, "output.weight")?;
        Ok(Self {
            norm: DeviceNorm::new(store, "norm.weight", params.norm_eps, device)?,
            output: DeviceLinear::new(&[output.as_tensor()], device, products)?,
            device: device.clone(),
        })
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.output.outputs
    }

    pub(super) fn logits(&self, x: &DeviceRows) -> Result<Vec<f32>> {
        let logits = DeviceRows {
            data: self
                .output
                .of(&self.device, &self.norm.of(&self.device, &x.data)?)?,
            device: self.device.clone(),
            rows: x.rows,
            width: self.output.outputs,
        };
        logits.to_host()
    }
}

/// Cosines and sines `[positions, e / 2]` on a device.
#[derive(Debug)]
pub(super) struct DeviceAngles {
    cos: CudaSlice<f32>,
    sin: CudaSlice<f32>,
}

impl DeviceAngles {
    pub(super) fn new(device: &CudaDevice, cos: &[f32], sin: &[f32]) -> Result<Self> {
        Ok(Self {
            cos: device.clone_htod(cos)?,
            sin: device.clone_htod(sin)?,
        })
    }
}
