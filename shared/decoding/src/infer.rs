//! Forward pass of trunk and heads with kept keys and values, for many sequences at once.

use wmtp_model::{
    Angles, Device, KeyValues, ParamStore, Params, RowBlock, RowEmbedding, RowOutput, RowSetup,
    Span,
};

use crate::error::Result;

/// A model ready for decoding: its weights are copied to where it reads, in the layout that few rows are multiplied with
/// fastest.
#[derive(Debug)]
pub struct InferenceModel {
    embedding: RowEmbedding,
    trunk: Vec<RowBlock>,
    /// Head 1, then those that propose.
    heads: Vec<RowBlock>,
    output: RowOutput,
    angles: Angles,
    reads_on_host: bool,
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
    /// The trunk's output for every id, `[ids, d]`; nothing where no head proposes.
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
    pub(crate) fn fork(&self, len: usize) -> Result<Self> {
        let fork = |caches: &[KeyValues]| -> Result<Vec<KeyValues>> {
            let forks = caches.iter().map(|cache| cache.fork(len));
            Ok(forks.collect::<wmtp_model::Result<_>>()?)
        };
        Ok(Self {
            trunk: fork(&self.trunk)?,
            heads: fork(&self.heads)?,
        })
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
    /// When the store does not hold the parameters, or holds them in another type than f32, or when the device has no
    /// room for them.
    pub fn new(
        params: &Params,
        store: &ParamStore,
        max_tokens: usize,
        setup: &RowSetup,
    ) -> Result<Self> {
        Self::with_heads(params, store, max_tokens, 1, setup)
    }

    /// Trunk and every head: those after the first propose tokens that head 1 then verifies.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn speculative(
        params: &Params,
        store: &ParamStore,
        max_tokens: usize,
        setup: &RowSetup,
    ) -> Result<Self> {
        Self::with_heads(params, store, max_tokens, params.num_horizons(), setup)
    }

    fn with_heads(
        params: &Params,
        store: &ParamStore,
        max_tokens: usize,
        num_heads: usize,
        setup: &RowSetup,
    ) -> Result<Self> {
        let block = |prefix: String| RowBlock::new(params, store, &prefix, setup);
        Ok(Self {
            embedding: RowEmbedding::new(store, setup)?,
            trunk: (0..params.num_trunk_blocks())
                .map(|index| block(format!("layers.{index}")))
                .collect::<wmtp_model::Result<_>>()?,
            heads: params
                .horizons()
                .take(num_heads)
                .map(|horizon| block(params.head_prefix(horizon)))
                .collect::<wmtp_model::Result<_>>()?,
            output: RowOutput::new(params, store, setup)?,
            angles: Angles::new(params, max_tokens, setup)?,
            reads_on_host: matches!(setup.device, Device::Cpu),
        })
    }

    /// Whether every thread of the host may read for itself; a device serves one.
    pub(crate) fn reads_on_host(&self) -> bool {
        self.reads_on_host
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

    pub(crate) fn empty_sequence(&self) -> Result<Sequence> {
        let empty = |blocks: &[RowBlock]| -> Result<Vec<KeyValues>> {
            let empty = blocks.iter().map(RowBlock::empty_cache);
            Ok(empty.collect::<wmtp_model::Result<_>>()?)
        };
        Ok(Sequence {
            trunk: empty(&self.trunk)?,
            heads: empty(&self.heads)?,
        })
    }

    /// Reads what comes next in each text.
    pub(crate) fn read(&self, readings: &mut [Reading<'_>]) -> Result<Read> {
        let ids: Vec<u32> = readings
            .iter()
            .flat_map(|reading| reading.ids)
            .copied()
            .collect();
        let mut trunk = self.embedding.read(&ids)?;
        for (index, block) in self.trunk.iter().enumerate() {
            let mut spans: Vec<Span<'_>> = readings
                .iter_mut()
                .map(|reading| Span {
                    cache: &mut reading.sequence.trunk[index],
                    rows: reading.ids.len(),
                    kept: reading.ids.len(),
                })
                .collect();
            trunk = block.forward(&trunk, &mut spans, &self.angles)?;
        }
        let mut spans: Vec<Span<'_>> = readings
            .iter_mut()
            .map(|reading| Span {
                cache: &mut reading.sequence.heads[0],
                rows: reading.ids.len(),
                kept: reading.places,
            })
            .collect();
        let hidden = self.heads[0].forward(&trunk, &mut spans, &self.angles)?;
        let asked = self.num_proposing() > 0;
        Ok(Read {
            logits: self.output.logits(&hidden)?,
            trunk: if asked {
                trunk.into_host()?
            } else {
                Vec::new()
            },
        })
    }

    /// Asks the proposing heads what follows each text's next token: logits `[heads, texts, v]`.
    pub(crate) fn propose(&self, questions: &mut [Question<'_>]) -> Result<Vec<f32>> {
        let trunk = questions
            .iter()
            .flat_map(|question| question.trunk)
            .copied()
            .collect();
        let trunk = self.embedding.place(trunk)?;
        let mut hidden = None;
        for (index, head) in self.heads.iter().enumerate().skip(1) {
            let mut spans: Vec<Span<'_>> = questions
                .iter_mut()
                .map(|question| Span {
                    cache: &mut question.sequence.heads[index],
                    rows: question.trunk.len() / self.dim(),
                    kept: 1,
                })
                .collect();
            let more = head.forward(&trunk, &mut spans, &self.angles)?;
            match &mut hidden {
                None => hidden = Some(more),
                Some(hidden) => hidden.append(more)?,
            }
        }
        Ok(match hidden {
            Some(hidden) => self.output.logits(&hidden)?,
            None => Vec::new(),
        })
    }
}
