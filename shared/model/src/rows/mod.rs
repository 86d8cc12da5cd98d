//! Blocks of a frozen model that read row by row, with keys and values kept: the forward pass of decoding, in f32 on one
//! thread of the host or on a device.
//!
//! A row is one position of one sequence; the rows of a call may belong to any sequences at any positions. What
//! comes out for a row is the same to the bit whatever rows are read beside it, and however the positions before it
//! were cut into calls: batches and speculation cannot change a text.

mod attend;
#[cfg(feature = "cuda")]
mod device;
mod host;
mod packed;

use candle_core::{DType, Device, Var};

use crate::{Error, ParamStore, Params, Products, Result, Rotary};
use attend::HostCache;
#[cfg(feature = "cuda")]
use device::{DeviceAngles, DeviceBlock, DeviceCache, DeviceEmbedding, DeviceOutput, DeviceRows};
use host::{HostBlock, HostEmbedding, HostOutput};

/// Where a frozen model reads, and how it multiplies there.
#[derive(Debug, Clone)]
pub struct RowSetup {
    /// The host's processor, or a device.
    pub device: Device,
    /// Factors of the products on a device; the host multiplies f32.
    pub products: Products,
}

impl RowSetup {
    /// On one thread of the host.
    pub const HOST: Self = Self {
        device: Device::Cpu,
        products: Products::F32,
    };
}

/// Rows of numbers where the model reads.
#[derive(Debug)]
pub enum Rows {
    /// `[rows, width]`, row-major.
    Host(Vec<f32>),
    /// The same on a device.
    #[cfg(feature = "cuda")]
    Device(DeviceRows),
}

impl Rows {
    /// The numbers, row-major.
    ///
    /// # Errors
    /// When the device cannot hand them over.
    pub fn into_host(self) -> Result<Vec<f32>> {
        match self {
            Self::Host(values) => Ok(values),
            #[cfg(feature = "cuda")]
            Self::Device(rows) => rows.to_host(),
        }
    }

    /// Puts other rows behind these.
    ///
    /// # Errors
    /// When the others lie elsewhere, or the device has no room.
    pub fn append(&mut self, more: Self) -> Result<()> {
        match (self, more) {
            (Self::Host(all), Self::Host(more)) => {
                all.extend(more);
                Ok(())
            }
            #[cfg(feature = "cuda")]
            (Self::Device(all), Self::Device(more)) => all.append(&more),
            #[cfg(feature = "cuda")]
            _ => Err(elsewhere("rows")),
        }
    }
}

/// Keys and values of the positions that one block has read of one sequence.
#[derive(Debug)]
pub enum KeyValues {
    /// Read by the host.
    Host(HostCache),
    /// Read by a device.
    #[cfg(feature = "cuda")]
    Device(DeviceCache),
}

impl KeyValues {
    /// Positions read so far.
    pub fn len(&self) -> usize {
        match self {
            Self::Host(cache) => cache.len(),
            #[cfg(feature = "cuda")]
            Self::Device(cache) => cache.len(),
        }
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first `len` positions, as a cache of their own.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn fork(&self, len: usize) -> Result<Self> {
        Ok(match self {
            Self::Host(cache) => Self::Host(cache.fork(len)),
            #[cfg(feature = "cuda")]
            Self::Device(cache) => Self::Device(cache.fork(len)?),
        })
    }

    /// Forgets what lies behind the first `len` positions.
    pub fn truncate(&mut self, len: usize) {
        match self {
            Self::Host(cache) => cache.truncate(len),
            #[cfg(feature = "cuda")]
            Self::Device(cache) => cache.truncate(len),
        }
    }

    #[cfg_attr(
        not(feature = "cuda"),
        expect(
            clippy::unnecessary_wraps,
            reason = "without a device there is no other cache"
        )
    )]
    fn host(&mut self) -> Result<&mut HostCache> {
        match self {
            Self::Host(cache) => Ok(cache),
            #[cfg(feature = "cuda")]
            Self::Device(_) => Err(elsewhere("keys and values")),
        }
    }
}

/// The next positions of one sequence, as a block reads them.
#[derive(Debug)]
pub struct Span<'a> {
    /// What this block has read of the sequence; the span follows it.
    pub cache: &'a mut KeyValues,
    /// Positions to read.
    pub rows: usize,
    /// How many of them, from the last back, have an output. The others leave keys and values only.
    pub kept: usize,
}

/// A frozen block.
#[derive(Debug)]
pub enum RowBlock {
    /// For the host.
    Host(HostBlock),
    /// For a device.
    #[cfg(feature = "cuda")]
    Device(DeviceBlock),
}

impl RowBlock {
    /// Makes the block ready whose parameters are called `prefix.…`.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] when the store lacks one of them, or when the device has no room.
    pub fn new(
        params: &Params,
        store: &ParamStore,
        prefix: &str,
        setup: &RowSetup,
    ) -> Result<Self> {
        match &setup.device {
            Device::Cpu => HostBlock::new(params, store, prefix).map(Self::Host),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => {
                DeviceBlock::new(params, store, prefix, device, setup.products).map(Self::Device)
            }
            other => Err(unknown(other)),
        }
    }

    /// A cache that has read nothing.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn empty_cache(&self) -> Result<KeyValues> {
        Ok(match self {
            Self::Host(block) => KeyValues::Host(block.empty_cache()),
            #[cfg(feature = "cuda")]
            Self::Device(block) => KeyValues::Device(block.empty_cache()?),
        })
    }

    /// Reads `x [rows, d]`, the spans behind each other; returns the outputs `[kept rows, d]`.
    ///
    /// # Errors
    /// When rows, caches and block do not lie in one place, or the device fails.
    ///
    /// # Panics
    /// When the rows of the spans are not those of `x`, or lie behind the end of `angles`.
    pub fn forward(&self, x: &Rows, spans: &mut [Span<'_>], angles: &Angles) -> Result<Rows> {
        match (self, x) {
            (Self::Host(block), Rows::Host(x)) => block.forward(x, spans, angles).map(Rows::Host),
            #[cfg(feature = "cuda")]
            (Self::Device(block), Rows::Device(x)) => {
                let angles = angles.on_device()?;
                block.forward(x, spans, angles).map(Rows::Device)
            }
            #[cfg(feature = "cuda")]
            _ => Err(elsewhere("rows")),
        }
    }
}

/// The embeddings of a frozen model.
#[derive(Debug)]
pub enum RowEmbedding {
    /// On the host.
    Host(HostEmbedding),
    /// On a device.
    #[cfg(feature = "cuda")]
    Device(DeviceEmbedding),
}

impl RowEmbedding {
    /// Copies `tok_embeddings.weight`.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] when the store lacks it, or when the device has no room.
    pub fn new(store: &ParamStore, setup: &RowSetup) -> Result<Self> {
        match &setup.device {
            Device::Cpu => HostEmbedding::new(store).map(Self::Host),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => DeviceEmbedding::new(store, device).map(Self::Device),
            other => Err(unknown(other)),
        }
    }

    /// Width d of a row.
    pub fn dim(&self) -> usize {
        match self {
            Self::Host(embedding) => embedding.dim(),
            #[cfg(feature = "cuda")]
            Self::Device(embedding) => embedding.dim(),
        }
    }

    /// Rows `[ids, d]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for an id outside the vocabulary.
    pub fn read(&self, ids: &[u32]) -> Result<Rows> {
        match self {
            Self::Host(embedding) => embedding.read(ids).map(Rows::Host),
            #[cfg(feature = "cuda")]
            Self::Device(embedding) => embedding.read(ids).map(Rows::Device),
        }
    }

    /// Rows `[.., d]` of the host where the model reads.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn place(&self, rows: Vec<f32>) -> Result<Rows> {
        match self {
            Self::Host(_) => Ok(Rows::Host(rows)),
            #[cfg(feature = "cuda")]
            Self::Device(embedding) => embedding.place(rows).map(Rows::Device),
        }
    }
}

/// The shared norm and the unembedding.
#[derive(Debug)]
pub enum RowOutput {
    /// On the host.
    Host(HostOutput),
    /// On a device.
    #[cfg(feature = "cuda")]
    Device(DeviceOutput),
}

impl RowOutput {
    /// Makes `norm.weight` and `output.weight` ready.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] when the store lacks a parameter, or when the device has no room.
    pub fn new(params: &Params, store: &ParamStore, setup: &RowSetup) -> Result<Self> {
        match &setup.device {
            Device::Cpu => HostOutput::new(params, store).map(Self::Host),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => {
                DeviceOutput::new(params, store, device, setup.products).map(Self::Device)
            }
            other => Err(unknown(other)),
        }
    }

    /// Logits of a row, v.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Host(output) => output.vocab_size(),
            #[cfg(feature = "cuda")]
            Self::Device(output) => output.vocab_size(),
        }
    }

    /// Logits `[rows, v]`, on the host, of a head's output `x [rows, d]`.
    ///
    /// # Errors
    /// When rows and output do not lie in one place, or the device fails.
    pub fn logits(&self, x: &Rows) -> Result<Vec<f32>> {
        match (self, x) {
            (Self::Host(output), Rows::Host(x)) => Ok(output.logits(x)),
            #[cfg(feature = "cuda")]
            (Self::Device(output), Rows::Device(x)) => output.logits(x),
            #[cfg(feature = "cuda")]
            _ => Err(elsewhere("rows")),
        }
    }
}

/// Cosines and sines of the positions that a model may read, in f32.
#[derive(Debug)]
pub struct Angles {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
    #[cfg(feature = "cuda")]
    on_device: Option<DeviceAngles>,
}

impl Angles {
    /// The table for `positions` positions, computed in f64 and rounded once.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(params: &Params, positions: usize, setup: &RowSetup) -> Result<Self> {
        let rotary = Rotary::with_positions(params, positions);
        let rounded = |table: &[f64]| -> Vec<f32> { table.iter().map(|x| *x as f32).collect() };
        let (cos, sin) = (
            rounded(rotary.cos(positions)),
            rounded(rotary.sin(positions)),
        );
        match &setup.device {
            Device::Cpu => Ok(Self {
                half: rotary.half(),
                cos,
                sin,
                #[cfg(feature = "cuda")]
                on_device: None,
            }),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => Ok(Self {
                half: rotary.half(),
                on_device: Some(DeviceAngles::new(device, &cos, &sin)?),
                cos,
                sin,
            }),
            other => Err(unknown(other)),
        }
    }

    /// Positions of the table.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half
    }

    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let own = position * self.half..(position + 1) * self.half;
        (&self.cos[own.clone()], &self.sin[own])
    }

    #[cfg(feature = "cuda")]
    fn on_device(&self) -> Result<&DeviceAngles> {
        self.on_device.as_ref().ok_or_else(|| elsewhere("angles"))
    }
}

#[cfg(feature = "cuda")]
fn elsewhere(what: &str) -> Error {
    Error::Shape(format!("{what} lie in another place than the model"))
}

fn unknown(device: &Device) -> Error {
    Error::Shape(format!("decoding knows the CPU and CUDA, not {device:?}"))
}

fn parameter<'a>(store: &'a ParamStore, name: &str) -> Result<&'a Var> {
    let var = store.require(name)?;
    match var.dtype() {
        DType::F32 => Ok(var),
        other => Err(Error::Shape(format!(
            "decoding reads f32, {name} is {other:?}"
        ))),
    }
}
