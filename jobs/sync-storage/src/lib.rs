//! Stages model bundles and raw data sets, checks them and moves them to and from the store.
//!
//! | mode | reads | writes |
//! |---|---|---|
//! | `push` | a folder | a raw-data or base-model artifact |
//! | `push-tree` | a storage folder | an artifact for each model bundle and data set in it |
//! | `create` | a data set's tokenizer | a base-model artifact, seeded |
//! | `pull` | any artifact | a folder |
//! | `export` | a checkpoint or base-model artifact | a folder for Hugging Face's transformers, or with a GGUF file for llama.cpp |
//! | `download` | a revision of the Hugging Face hub, objects of another S3 store | a folder |
//! | `convert` | PyTorch checkpoints or safetensors shards; a folder in Hugging Face's layout | one safetensors file; a bundle |
//!
//! The layout of a base-model bundle is that of storage v2 (specification 2.1 to 2.4); [`bundle`] knows it.

pub mod bundle;
mod convert;
mod create;
mod download;
mod export;
mod folder;
mod header;
mod hub;
mod pull;
mod push;
mod source;
mod tree;

use wmtp_job_kit::Mode;

/// Name of the program.
pub const NAME: &str = "sync-storage";
/// One sentence for `--help`.
pub const ABOUT: &str =
    "Stages model bundles and raw data sets, checks them and moves them to and from the store.";

/// What the program can do.
pub fn modes() -> Vec<Mode> {
    vec![
        Mode::job::<push::Push>("push"),
        Mode::tool::<tree::PushTree>("push-tree"),
        Mode::job::<create::Create>("create"),
        Mode::tool::<pull::Pull>("pull"),
        Mode::tool::<export::Export>("export"),
        Mode::tool::<download::Download>("download"),
        Mode::store_tool::<convert::Convert>("convert"),
    ]
}
