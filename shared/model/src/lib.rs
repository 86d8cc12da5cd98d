//! The model room: trunk, prediction heads, value head, parameters and the kernels that train them.
//!
//! In: `params.json` and safetensors under Meta's tensor names. Out: differentiable hidden states, the
//! weighted cross-entropy, values. Rows are processed in parallel with a reduction order that depends on
//! shapes alone, so 1 and 2 threads give the same bytes. Set `CANDLE_NUM_THREADS=1`: candle's own worker
//! pool spins while it waits and gains nothing here. With feature `cuda` the same operations run on a device, see
//! `src/cuda`.
//!
//! Shape letters: b batch, s sequence, d hidden, n query heads, g key/value heads, e head dim, f
//! feed-forward width, v vocabulary.

mod cast;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dropout;
mod error;
mod float;
mod gguf;
mod kernels;
mod layout;
mod lora;
mod model;
mod observer;
mod params;
mod place;
mod rotary;
mod rows;
mod shards;
mod store;
mod tape;
mod tensor_file;
mod value;

pub mod function_vectors;
pub mod loss;
pub mod ops;

#[cfg(test)]
mod composed;

/// Element type and place of tensors, so that jobs need not see candle themselves.
pub use candle_core::{DType, Device};
pub use cast::{Element, cast};
pub use dropout::{Dropout, StepDropout};
pub use error::{Error, Result};
pub use gguf::{GgufFacts, save_gguf};
pub use layout::{
    Renamed, hugging_face_tables, hugging_face_tensors, load_hugging_face, next_token,
    save_hugging_face,
};
pub use lora::{Adapters, LoraSettings, LoraTarget};
pub use model::MtpModel;
pub use observer::{Observer, Point, Site, Unobserved};
pub use ops::Products;
pub use params::{Horizon, Params};
pub use place::{Place, device_uuid};
pub use rotary::Rotary;
pub use rows::{Angles, KeyValues, RowBlock, RowEmbedding, RowOutput, RowSetup, Rows, Span};
pub use shards::shard_files;
pub use store::ParamStore;
pub use tape::{HeadTape, TrunkTape};
pub use value::{HeadKind, ValueModel, ValueTape};
