//! The one tap of the forward pass: parity records, analyses read or replace, training ignores.

use std::fmt;

use candle_core::Tensor;

use crate::{Horizon, Result};

/// A place inside one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Input of the output projection, all heads side by side.
    AttnHeads,
    /// Output of the output projection, before the residual addition.
    AttnOut,
    /// The residual stream after the block.
    Resid,
}

/// A named place in the forward pass; `Display` gives the key of `spec/parity.md` 4.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// Token embeddings.
    Embed,
    /// A place in trunk block i.
    Trunk(usize, Point),
    /// A place in the block of a prediction head.
    Head(Horizon, Point),
    /// Logits of a prediction head.
    Logits(Horizon),
    /// Normalised trunk, the input of the value head.
    ValueHidden,
    /// Output of the value head.
    Value,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AttnHeads => "attn_heads",
            Self::AttnOut => "attn_out",
            Self::Resid => "resid",
        })
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embed => f.write_str("embed"),
            Self::Trunk(block, point) => write!(f, "trunk.{block}.{point}"),
            Self::Head(horizon, point) => write!(f, "head.{horizon}.{point}"),
            Self::Logits(horizon) => write!(f, "head.{horizon}.logits"),
            Self::ValueHidden => f.write_str("value.hidden"),
            Self::Value => f.write_str("value.v"),
        }
    }
}

/// Sees every site of a forward pass and returns the tensor to go on with: the same one or another.
pub trait Observer {
    /// Called once per site, in forward order.
    fn observe(&mut self, site: Site, tensor: Tensor) -> Result<Tensor>;
}

/// The observer of training: does nothing and compiles away.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn observe(&mut self, _site: Site, tensor: Tensor) -> Result<Tensor> {
        Ok(tensor)
    }
}
