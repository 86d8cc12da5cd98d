//! Recipes: the settings of an experiment, where each comes from, and which of them hashes hold.
//!
//! A recipe is YAML, may extend another and holds only what differs from the defaults. [`Sources`] resolves it
//! with the precedence `--set` > `WMTP_SET_*` > `WMTP_CONFIG` > recipe > default. Unknown keys, wrong types and
//! broken rules are errors that name the key and its source.
//!
//! ```
//! use wmtp_recipe::{Algo, Sources};
//!
//! let sources = Sources {
//!     recipe: Some("v002.yaml".to_owned()),
//!     assignments: vec!["optim.lr=2e-3".to_owned()],
//!     ..Sources::default()
//! };
//! let resolved = sources.resolve_with(&|_| {
//!     Ok("version: {id: v002, parent: v001, change: verifiable weights}\nexperiment: {algo: verifiable}".into())
//! })?;
//! assert_eq!(resolved.recipe.experiment.algo, Algo::Verifiable);
//! assert_eq!(resolved.recipe.optim.lr, 2e-3);
//! # Ok::<(), wmtp_recipe::Error>(())
//! ```

mod digest;
mod error;
mod layer;
mod resolve;
mod rules;
mod schema;
pub mod seed;
mod setting;
mod validate;

pub use digest::is_compared;
pub use error::Error;
pub use resolve::{CONFIG_VARIABLE, Loader, Origin, Resolved, SETTING_PREFIX, Sources};
pub use rules::{Allowed, INSTRUCTION_FILE, RULES_FILE, Rules};
pub use schema::{
    Algo, Data, DataSource, Dtype, Evaluation, ExcessScore, Experiment, Lora, LoraTarget, Model,
    Normalise, Optim, Recipe, Reference, Rho1, Rho1Weighting, SandboxTier, Score, SplitBy, Stage1,
    ValueHeadKind, ValueObjective, Version, Weights, Whiten, leaves,
};
pub use setting::{Affects, Leaf, Shape};
pub use validate::MAX_LENGTH;

/// The value of `KEY=VALUE`, checked against the schema: a YAML scalar or flow list, as `--set` takes it.
///
/// # Errors
/// An unknown key, with the nearest one, or a value of another type than the key's.
pub fn parse_setting(
    key: &str,
    text: &str,
    origin: &str,
) -> Result<(&'static str, serde_json::Value), Error> {
    layer::scalar(key, text, origin)
}

#[cfg(test)]
mod tests;
