//! GGUF, llama.cpp's format: trunk and head 1 as its architecture `llama`.
//!
//! llama.cpp turns the pairs (2i, 2i+1) of a head, as Meta does, so rows stay as they are; its converter reorders those
//! of Hugging Face's halves to get here. The format's tokenizers are told by names of fixed cutting rules, and none
//! cuts as ours do: the file says that it has no vocabulary, so that a reader refuses text instead of cutting it
//! wrongly, and carries the whole `tokenizer.json` under the key that the format has for it.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use candle_core::DType;
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};

use crate::layout::next_token;
use crate::{Error, ParamStore, Params, Result};

/// What a GGUF file says besides shapes and weights.
#[derive(Debug, Clone, Copy)]
pub struct GgufFacts<'a> {
    /// What the model is called.
    pub name: &'a str,
    /// Positions that a sequence may have.
    pub context_length: usize,
    /// The tokenizer as Hugging Face's library writes it.
    pub tokenizer_json: &'a str,
    /// Id of the begin token.
    pub bos: u32,
    /// Id of the end token.
    pub eos: u32,
    /// Id of the padding token.
    pub pad: u32,
}

/// Writes trunk and head 1 of a model as one GGUF file, matrices in the store's precision (f64 as f32) and norms in f32,
/// which is what llama.cpp computes them in. Nothing is quantized; the same values give the same bytes.
pub fn save_gguf(
    path: &Path,
    params: &Params,
    store: &ParamStore,
    facts: &GgufFacts<'_>,
) -> Result<()> {
    let stored = match store.dtype() {
        DType::F16 => GgmlDType::F16,
        DType::BF16 => GgmlDType::BF16,
        _ => GgmlDType::F32,
    };
    let exported = next_token(params);
    let tensors = exported.tensor_shapes().into_iter().map(|(name, shape)| {
        let dtype = if shape.len() == 1 {
            GgmlDType::F32
        } else {
            stored
        };
        let weight = QTensor::quantize(&store.wide(&name)?, dtype)?;
        Ok((gguf_name(&name), weight))
    });
    let tensors: Vec<(String, QTensor)> = tensors.collect::<Result<_>>()?;
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, weight)| (name.as_str(), weight))
        .collect();
    let metadata = metadata(&exported, stored, facts)?;
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let at = |source| Error::io(path, source);
    let mut file = BufWriter::new(File::create(path).map_err(at)?);
    gguf_file::write(&mut file, &metadata, &tensors)?;
    file.flush().map_err(at)
}

/// The format's keys, in the order of the file.
fn metadata(
    exported: &Params,
    stored: GgmlDType,
    facts: &GgufFacts<'_>,
) -> Result<Vec<(&'static str, Value)>> {
    let text = |text: &str| Value::String(text.to_owned());
    let count = |what: &str, count: usize| {
        let too_many = |_| Error::Params(format!("GGUF has no room for {count} {what}"));
        u32::try_from(count).map(Value::U32).map_err(too_many)
    };
    // The format's number for the type of most tensors.
    let file_type = match stored {
        GgmlDType::F16 => 1,
        GgmlDType::BF16 => 32,
        _ => 0,
    };
    Ok(vec![
        ("general.architecture", text("llama")),
        ("general.name", text(facts.name)),
        ("general.file_type", Value::U32(file_type)),
        ("llama.vocab_size", count("tokens", exported.vocab_size)?),
        (
            "llama.context_length",
            count("positions", facts.context_length)?,
        ),
        ("llama.embedding_length", count("columns", exported.dim)?),
        ("llama.block_count", count("blocks", exported.n_layers)?),
        (
            "llama.feed_forward_length",
            count("columns", exported.ffn_dim())?,
        ),
        (
            "llama.attention.head_count",
            count("heads", exported.n_heads)?,
        ),
        (
            "llama.attention.head_count_kv",
            count("heads", exported.n_kv_heads)?,
        ),
        (
            "llama.attention.layer_norm_rms_epsilon",
            Value::F32(exported.norm_eps as f32),
        ),
        (
            "llama.rope.dimension_count",
            count("columns", exported.head_dim())?,
        ),
        (
            "llama.rope.freq_base",
            Value::F32(exported.rope_theta as f32),
        ),
        ("tokenizer.ggml.model", text("no_vocab")),
        ("tokenizer.ggml.bos_token_id", Value::U32(facts.bos)),
        ("tokenizer.ggml.eos_token_id", Value::U32(facts.eos)),
        ("tokenizer.ggml.padding_token_id", Value::U32(facts.pad)),
        ("tokenizer.huggingface.json", text(facts.tokenizer_json)),
    ])
}

fn gguf_name(meta: &str) -> String {
    match meta {
        "tok_embeddings.weight" => "token_embd.weight".to_owned(),
        "norm.weight" => "output_norm.weight".to_owned(),
        _ => meta
            .replace("layers.", "blk.")
            .replace("attention.wq", "attn_q")
            .replace("attention.wk", "attn_k")
            .replace("attention.wv", "attn_v")
            .replace("attention.wo", "attn_output")
            .replace("feed_forward.w1", "ffn_gate")
            .replace("feed_forward.w3", "ffn_up")
            .replace("feed_forward.w2", "ffn_down")
            .replace("attention_norm", "attn_norm"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use candle_core::{Device, Tensor};

    use super::*;

    const FACTS: GgufFacts<'_> = GgufFacts {
        name: "tiny",
        context_length: 64,
        tokenizer_json: r#"{"version": "1.0"}"#,
        bos: 1,
        eos: 2,
        pad: 0,
    };

    /// A store of a precision, its file, and what candle's reader finds in it.
    fn written(dtype: DType) -> (ParamStore, Vec<u8>, gguf_file::Content) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        let store = ParamStore::init(&Params::small(), 3, dtype, &Device::Cpu).unwrap();
        save_gguf(&path, &Params::small(), &store, &FACTS).unwrap();
        let bytes = std::fs::read(path).unwrap();
        let content = gguf_file::Content::read(&mut std::io::Cursor::new(&bytes)).unwrap();
        (store, bytes, content)
    }

    fn numbers(tensor: &Tensor) -> Vec<f32> {
        let tensor = tensor.to_dtype(DType::F32).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn every_weight_of_trunk_and_head_1_is_there_to_the_bit_and_no_other() {
        for (dtype, stored) in [
            (DType::F32, GgmlDType::F32),
            (DType::F64, GgmlDType::F32),
            (DType::F16, GgmlDType::F16),
            (DType::BF16, GgmlDType::BF16),
        ] {
            let (store, bytes, content) = written(dtype);
            let shapes = next_token(&Params::small()).tensor_shapes();
            assert_eq!(content.tensor_infos.len(), shapes.len());
            let mut file = std::io::Cursor::new(&bytes);
            for (name, shape) in shapes {
                let found = content
                    .tensor(&mut file, &gguf_name(&name), &Device::Cpu)
                    .unwrap();
                let expected = if shape.len() == 1 {
                    GgmlDType::F32
                } else {
                    stored
                };
                assert_eq!(found.dtype(), expected, "{name}");
                assert_eq!(found.shape().dims(), shape, "{name}");
                let found = found.dequantize(&Device::Cpu).unwrap();
                assert_eq!(
                    numbers(&found),
                    numbers(store.get(&name).unwrap()),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn names_are_those_of_llama_cpp() {
        let (_, _, content) = written(DType::F32);
        let of_a_block = [
            "attn_q",
            "attn_k",
            "attn_v",
            "attn_output",
            "ffn_gate",
            "ffn_up",
            "ffn_down",
            "attn_norm",
            "ffn_norm",
        ];
        let blocks = (0..3).flat_map(|block| {
            of_a_block
                .iter()
                .map(move |part| format!("blk.{block}.{part}.weight"))
        });
        let whole = ["token_embd", "output_norm", "output"].map(|part| format!("{part}.weight"));
        let expected: BTreeSet<String> = blocks.chain(whole).collect();
        assert_eq!(
            content.tensor_infos.into_keys().collect::<BTreeSet<_>>(),
            expected
        );
    }

    #[test]
    fn what_llama_cpp_needs_to_know_is_told_and_text_is_refused_rather_than_cut_wrongly() {
        let (_, _, content) = written(DType::BF16);
        let number = |key: &str| content.metadata[key].to_u32().unwrap();
        let text = |key: &str| content.metadata[key].to_string().unwrap().as_str();
        assert_eq!(text("general.architecture"), "llama");
        assert_eq!(number("general.file_type"), 32);
        assert_eq!(number("llama.block_count"), 3);
        assert_eq!(number("llama.vocab_size"), 23);
        assert_eq!(number("llama.attention.head_count"), 4);
        assert_eq!(number("llama.attention.head_count_kv"), 2);
        assert_eq!(number("llama.rope.dimension_count"), 4);
        assert_eq!(
            number("llama.feed_forward_length") as usize,
            Params::small().ffn_dim()
        );
        assert_eq!(text("tokenizer.ggml.model"), "no_vocab");
        assert_eq!(text("tokenizer.huggingface.json"), FACTS.tokenizer_json);
    }

    #[test]
    fn the_same_weights_give_the_same_bytes() {
        assert!(written(DType::F32).1 == written(DType::F32).1);
    }
}
