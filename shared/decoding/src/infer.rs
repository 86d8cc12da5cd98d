//! Forward pass of trunk and heads with kept keys and values, for many sequences at once.

use wmtp_model::{Angles, KeyValues, ParamStore, Params, RowBlock, RowEmbedding, RowOutput, Span};

use crate::error::Result;

/// A model ready for decoding: its weights are copied into the layout that few rows are multiplied with fastest.
#[derive(Debug)]
pub struct InferenceModel {
    embedding: RowEmbedding,
    trunk: Vec<RowBlock>,
    /// Head 1, then those that propose.
    heads: Vec<RowBlock>,
    output: RowOutput,
    angles: Angles,
}

/// Keys and values of the positions that a model has read of one text.
#[derive(Debug)]
pub(crate) struct Sequence {
    trunk: Vec<KeyValues>,
    /// The heads that propose may be behind head 1.
    heads: Vec<KeyValues>,
}

/// What comes next in one text.
pub(crate) struct Reading<'a> {
    pub(crate) sequence: &'a mut Sequence,
    pub(crate) ids: &'a [u32],
    /// How many of the ids, from the last back, have logits.
    pub(crate) places: usize,
}

/// What reading gave, the texts behind each other.
pub(crate) struct Read {
    /// The trunk's output for every id, `[ids, d]`.
    pub(crate) trunk: Vec<f32>,
    /// Head 1's logits, `[places, v]`.
    pub(crate) logits: Vec<f32>,
}

/// A text that the other heads are asked about.
pub(crate) struct Question<'a> {
    pub(crate) sequence: &'a mut Sequence,
    /// The trunk's output at the positions that these heads have not read, `[positions, d]`.
    pub(crate) trunk: &'a [f32],
}

impl Sequence {
    /// Positions that trunk and head 1 have read.
    pub(crate) fn len(&self) -> usize {
        self.trunk[0].len()
    }

    /// A copy that has read `len` positions.
    pub(crate) fn fork(&self, len: usize) -> Self {
        let fork = |caches: &[KeyValues]| caches.iter().map(|cache| cache.fork(len)).collect();
        Self {
            trunk: fork(&self.trunk),
            heads: fork(&self.heads),
        }
    }

    /// Forgets all but the first `len` positions.
    pub(crate) fn truncate(&mut self, len: usize) {
        for cache in self.trunk.iter_mut().chain(&mut self.heads) {
            cache.truncate(len);
        }
    }
}

impl InferenceModel {
    /// Trunk and head 1: plain decoding needs no more.
    ///
    /// `max_tokens` bounds prompt and continuation together; the rotary table is made for it.
    ///
    /// # Errors
    /// When the store does not hold the parameters, or holds them in another type than f32.
    pub fn new(params: &Params, store: &ParamStore, max_tokens: usize) -> Result<Self> {
        Self::with_heads(params, store, max_tokens, 1)
    }

    /// Trunk and every head: those after the first propose tokens that head 1 then verifies.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn speculative(params: &Params, store: &ParamStore, max_tokens: usize) -> Result<Self> {
        Self::with_heads(params, store, max_tokens, params.num_horizons())
    }

    fn with_heads(
        params: &Params,
        store: &ParamStore,
        max_tokens: usize,
        num_heads: usize,
    ) -> Result<Self> {
        let block = |prefix: String| RowBlock::new(params, store, &prefix);
        Ok(Self {
            embedding: RowEmbedding::new(store)?,
            trunk: (0..params.num_trunk_blocks())
                .map(|index| block(format!("layers.{index}")))
                .collect::<wmtp_model::Result<_>>()?,
            heads: params
                .horizons()
                .take(num_heads)
                .map(|horizon| block(params.head_prefix(horizon)))
                .collect::<wmtp_model::Result<_>>()?,
            output: RowOutput::new(params, store)?,
            angles: Angles::new(params, max_tokens),
        })
    }

    /// Positions that prompt and continuation may take together.
    pub fn max_tokens(&self) -> usize {
        self.angles.positions()
    }

    /// Heads that propose.
    pub(crate) fn num_proposing(&self) -> usize {
        self.heads.len() - 1
    }

    pub(crate) fn dim(&self) -> usize {
        self.embedding.dim()
    }

    pub(crate) fn vocab_size(&self) -> usize {
        self.output.vocab_size()
    }

    pub(crate) fn empty_sequence(&self) -> Sequence {
        let empty = |blocks: &[RowBlock]| blocks.iter().map(RowBlock::empty_cache).collect();
        Sequence {
            trunk: empty(&self.trunk),
            heads: empty(&self.heads),
        }
    }

    /// Reads what comes next in each text.
    pub(crate) fn read(&self, readings: &mut [Reading<'_>]) -> Result<Read> {
        let mut trunk = Vec::new();
        for reading in readings.iter() {
            self.embedding.read(reading.ids, &mut trunk)?;
        }
        for (index, block) in self.trunk.iter().enumerate() {
            let mut spans: Vec<Span<'_>> = readings
                .iter_mut()
                .map(|reading| Span {
                    cache: &mut reading.sequence.trunk[index],
                    rows: reading.ids.len(),
                    kept: reading.ids.len(),
                })
                .collect();
            trunk = block.forward(&trunk, &mut spans, &self.angles);
        }
        let mut spans: Vec<Span<'_>> = readings
            .iter_mut()
            .map(|reading| Span {
                cache: &mut reading.sequence.heads[0],
                rows: reading.ids.len(),
                kept: reading.places,
            })
            .collect();
        let hidden = self.heads[0].forward(&trunk, &mut spans, &self.angles);
        Ok(Read {
            logits: self.output.logits(&hidden),
            trunk,
        })
    }

    /// Asks the proposing heads what follows each text's next token: logits `[heads, texts, v]`.
    pub(crate) fn propose(&self, questions: &mut [Question<'_>]) -> Vec<f32> {
        let trunk: Vec<f32> = questions
            .iter()
            .flat_map(|question| question.trunk)
            .copied()
            .collect();
        let mut hidden = Vec::new();
        for (index, head) in self.heads.iter().enumerate().skip(1) {
            let mut spans: Vec<Span<'_>> = questions
                .iter_mut()
                .map(|question| Span {
                    cache: &mut question.sequence.heads[index],
                    rows: question.trunk.len() / self.dim(),
                    kept: 1,
                })
                .collect();
            hidden.extend(head.forward(&trunk, &mut spans, &self.angles));
        }
        self.output.logits(&hidden)
    }
}
