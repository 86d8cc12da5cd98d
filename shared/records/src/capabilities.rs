//! What a model can do, by its own files, and what a job needs of it.

use serde::{Deserialize, Serialize};

/// What a model can do. Read from a base model or a checkpoint, which hold it in files that they have anyway: by jobs before
/// they start, by `wmtp-store model` and by the site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Prediction heads.
    pub heads: usize,
    /// Distance of the farthest token that one of them predicts.
    pub horizon: usize,
    /// Token ids that it knows.
    pub vocab: usize,
    /// The longest row that it was trained on, in tokens, where that is known; rotary positions set no end.
    pub context: Option<usize>,
    /// Number format of its stored weights, where its files say.
    pub dtype: Option<String>,
    /// Whether it has heads that propose tokens for the first one to verify.
    pub speculative_decoding: bool,
}

/// What of a model's `params.json` decides them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct ModelSizes {
    /// Token ids that it knows.
    pub vocab_size: usize,
    /// Prediction heads; Meta's files leave the number out where there is one.
    pub n_future_tokens: Option<usize>,
}

impl From<ModelSizes> for Capabilities {
    fn from(sizes: ModelSizes) -> Self {
        let heads = sizes.n_future_tokens.unwrap_or(1);
        Self {
            heads,
            horizon: heads,
            vocab: sizes.vocab_size,
            context: None,
            dtype: None,
            speculative_decoding: heads > 1,
        }
    }
}

impl Capabilities {
    /// The same with the number format of the weights of a checkpoint, whose training keeps 32 bits for all but `f64`.
    #[must_use]
    pub fn trained_as(mut self, dtype: &str) -> Self {
        let stored = if dtype == "f64" { "float64" } else { "float32" };
        self.dtype = Some(stored.to_owned());
        self
    }

    /// Checks that it can do what a job needs.
    ///
    /// # Errors
    /// The first thing that it lacks.
    pub fn check(&self, needs: Needs) -> Result<(), Lack> {
        let Self { heads, vocab, .. } = *self;
        match needs {
            Needs {
                vocab: Some(asked), ..
            } if asked > vocab => Err(Lack::Vocabulary { asked, vocab }),
            Needs {
                heads: Some(asked), ..
            } if asked != heads => Err(Lack::Heads { asked, heads }),
            _ => Ok(()),
        }
    }
}

/// What a job needs of a model, as far as it matters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// Token ids of the data.
    pub vocab: Option<usize>,
    /// Heads, as many and no more.
    pub heads: Option<usize>,
}

/// What a model cannot do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lack {
    /// Ids of the data that it does not know.
    #[error("the data set's vocabulary has {asked} tokens, the model's {vocab}")]
    Vocabulary {
        /// Of the data.
        asked: usize,
        /// Of the model.
        vocab: usize,
    },
    /// Another number of prediction heads.
    #[error("{asked} prediction heads are needed, and the model has n_future_tokens {heads}")]
    Heads {
        /// What is needed.
        asked: usize,
        /// What there is.
        heads: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(params: &str) -> Result<Capabilities, serde_json::Error> {
        serde_json::from_str::<ModelSizes>(params).map(Capabilities::from)
    }

    #[test]
    fn a_model_without_the_number_has_one_head_and_proposes_nothing() {
        let plain = model(r#"{"vocab_size": 32000, "dim": 8}"#).unwrap();
        assert_eq!((plain.heads, plain.speculative_decoding), (1, false));
        assert_eq!(
            plain.clone().trained_as("bf16").dtype.as_deref(),
            Some("float32")
        );
        assert_eq!(plain.trained_as("f64").dtype.as_deref(), Some("float64"));
        for broken in ["", "{}", r#"{"vocab_size": "many"}"#] {
            assert!(model(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn what_a_model_lacks_is_named() {
        let model = model(r#"{"vocab_size": 64, "n_future_tokens": 4}"#).unwrap();
        assert_eq!((model.horizon, model.speculative_decoding), (4, true));
        let lack = |vocab, heads| model.check(Needs { vocab, heads }).err();
        assert_eq!(lack(None, None), None);
        assert_eq!(lack(Some(64), Some(4)), None);
        let vocabulary = Lack::Vocabulary {
            asked: 65,
            vocab: 64,
        };
        assert_eq!(lack(Some(65), Some(4)), Some(vocabulary));
        let heads = Lack::Heads { asked: 2, heads: 4 };
        assert_eq!(lack(Some(8), Some(2)), Some(heads));
    }
}
