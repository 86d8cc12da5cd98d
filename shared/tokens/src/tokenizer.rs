//! A byte-level byte-pair encoding over pieces that suit short Python programs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::tokenizer::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

use crate::Error;
use crate::learn::learn_merges;

/// Id of the padding token in tokenizers trained here.
pub const PAD: u32 = 0;
/// Id of the begin token in tokenizers trained here.
pub const BOS: u32 = 1;
/// Id of the end token in tokenizers trained here.
pub const EOS: u32 = 2;

const SPECIALS: [&str; 3] = ["<pad>", "<bos>", "<eos>"];
const BEGIN_NAMES: [&str; 2] = ["<bos>", "<s>"];
const END_NAMES: [&str; 2] = ["<eos>", "</s>"];

/// Tokens that a trained vocabulary has in any case: the special ones and every byte.
pub const SMALLEST_VOCAB: usize = 256 + SPECIALS.len();

/// How text is cut before merging; no token crosses a cut.
///
/// A newline stands alone, so a prompt that ends in one always ends at a token boundary. Runs of blanks
/// (indentation) stay whole; digits are single, so that numbers are copied digit by digit; words and runs of
/// punctuation take one blank before them along.
const PIECES: &str = r"\n|[ \t]{2,}| ?[\p{L}_]+|\p{N}| ?[^\s\p{L}\p{N}_]+|\s";

/// A tokenizer: text to ids and back. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    pad: u32,
    bos: u32,
    eos: u32,
}

impl Tokenizer {
    /// Learns a vocabulary of at most `vocab_size` tokens from `texts`: special tokens, all bytes, merges.
    ///
    /// The order of the texts does not matter, and the same texts give the same tokenizer in every process.
    ///
    /// # Errors
    /// [`Error::VocabTooSmall`] below [`SMALLEST_VOCAB`].
    pub fn train<S: AsRef<str>>(texts: &[S], vocab_size: usize) -> Result<Self, Error> {
        let Some(num_merges) = vocab_size.checked_sub(SMALLEST_VOCAB) else {
            return Err(Error::VocabTooSmall {
                wanted: vocab_size,
                smallest: SMALLEST_VOCAB,
            });
        };
        let untrained = Self::from_vocabulary(&base_tokens(), &[])?;
        let words = untrained.count_pieces(texts)?;
        let mut tokens = base_tokens();
        let merges = learn_merges(&words, &mut tokens, num_merges);
        Self::from_vocabulary(&tokens, &merges)
    }

    /// Reads a `tokenizer.json`, trained here or elsewhere.
    ///
    /// # Errors
    /// [`Error::Format`] when it is none, [`Error::NoSpecial`] when it has no begin or end token.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(path).map_err(|source| Error::Io {
            path: path.to_owned(),
            source,
        })?;
        Self::from_json(&bytes, &path.display().to_string())
    }

    /// Writes `tokenizer.json`, creating the parent folder; the same tokenizer gives the same bytes.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let io = |source| Error::Io {
            path: path.to_owned(),
            source,
        };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(io)?;
        }
        let mut text = self.inner.to_string(true).map_err(|error| Error::Format {
            origin: path.display().to_string(),
            reason: error.to_string(),
        })?;
        text.push('\n');
        std::fs::write(path, text).map_err(io)
    }

    /// Number of ids, special ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The padding token's id; the end token's where there is no padding token.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// The begin token's id.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// The end token's id.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The ids of a text, without special tokens; the characters `<eos>` in a text stay characters.
    ///
    /// # Panics
    /// Never for tokenizers trained here: every byte is in the vocabulary. A loaded one without an unknown
    /// token may refuse characters outside its alphabet.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        self.inner
            .encode_fast(text, false)
            .expect("a vocabulary with every byte encodes any text")
            .get_ids()
            .to_vec()
    }

    /// The text of a sequence; special tokens are dropped, bytes that form no character become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.inner.decode(ids, true).unwrap_or_default()
    }

    /// One token for display: its text, or the name of a special one.
    pub fn token_text(&self, id: u32) -> String {
        let special = [self.pad, self.bos, self.eos].contains(&id);
        self.inner.decode(&[id], !special).unwrap_or_default()
    }

    fn from_vocabulary(tokens: &[String], merges: &[(String, String)]) -> Result<Self, Error> {
        let document = tokenizer_json(tokens, merges).to_string();
        Self::from_json(document.as_bytes(), "the trained vocabulary")
    }

    fn from_json(bytes: &[u8], origin: &str) -> Result<Self, Error> {
        let mut inner =
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| Error::Format {
                origin: origin.to_owned(),
                reason: error.to_string(),
            })?;
        inner.set_encode_special_tokens(true);
        let find = |role, names: &[&str]| {
            names
                .iter()
                .find_map(|name| inner.token_to_id(name))
                .ok_or_else(|| Error::NoSpecial {
                    origin: origin.to_owned(),
                    role,
                    names: names.join(", "),
                })
        };
        let bos = find("begin", &BEGIN_NAMES)?;
        let eos = find("end", &END_NAMES)?;
        let pad = inner.token_to_id(SPECIALS[0]).unwrap_or(eos);
        Ok(Self {
            inner: Arc::new(inner),
            pad,
            bos,
            eos,
        })
    }

    /// Every piece of the texts as byte ids, with its number of occurrences.
    fn count_pieces<S: AsRef<str>>(&self, texts: &[S]) -> Result<BTreeMap<Vec<u32>, i64>, Error> {
        let format = |error: tokenizers::Error| Error::Format {
            origin: "the piece pattern".to_owned(),
            reason: error.to_string(),
        };
        let splitter = self
            .inner
            .get_pre_tokenizer()
            .expect("a vocabulary built here has a splitter");
        let mut pieces: BTreeMap<String, i64> = BTreeMap::new();
        for text in texts {
            let mut split = PreTokenizedString::from(text.as_ref());
            splitter.pre_tokenize(&mut split).map_err(format)?;
            for (piece, _, _) in split.get_splits(OffsetReferential::Normalized, OffsetType::None) {
                *pieces.entry(piece.to_owned()).or_default() += 1;
            }
        }
        let id = |c: char| {
            self.inner
                .token_to_id(&c.to_string())
                .expect("every byte is in the base vocabulary")
        };
        Ok(pieces
            .into_iter()
            .map(|(piece, count)| (piece.chars().map(id).collect(), count))
            .collect())
    }
}

/// Special tokens, then the 256 characters that stand for bytes, in a fixed order.
fn base_tokens() -> Vec<String> {
    let mut bytes: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    bytes.sort_unstable();
    SPECIALS
        .iter()
        .map(ToString::to_string)
        .chain(bytes.iter().map(ToString::to_string))
        .collect()
}

fn tokenizer_json(tokens: &[String], merges: &[(String, String)]) -> serde_json::Value {
    let vocab: serde_json::Map<_, _> = tokens
        .iter()
        .enumerate()
        .map(|(id, token)| (token.clone(), json!(id)))
        .collect();
    let added: Vec<_> = SPECIALS
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PIECES}, "behavior": "Isolated", "invert": false},
            byte_level,
        ]},
        "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "ignore_merges": false, "vocab": vocab, "merges": merges},
    })
}
