//! The layout of Hugging Face's Llama, in and out: the path through the trunk and head 1.
//!
//! Two things differ from Meta's layout: names, and the rows of wq and wk. Meta turns the interleaved pairs (2i, 2i+1)
//! of a head, Hugging Face the halves (i, e/2 + i), so each head's rows are reordered. The layout has no place for
//! the heads beyond the first: they are left out on the way out.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::shards::{self, Wanted};
use crate::tensor_file::{self, Planned};
use crate::{Error, ParamStore, Params, Result};

/// Order of the rows within a head of wq or wk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pairs {
    /// (0, 1), (2, 3), … as Meta has them.
    Interleaved,
    /// (0, e/2), (1, e/2 + 1), … as Hugging Face has them.
    Halves,
}

/// One tensor in both layouts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renamed {
    /// Meta's name.
    pub meta: String,
    /// That of the port.
    pub hugging_face: String,
    /// The same in both.
    pub shape: Vec<usize>,
    /// Heads of wq and wk, within each of which the port has the rows 0, 2, 4, … first and 1, 3, 5, … behind them; none for
    /// all other tensors, which are the same in both.
    pub heads: Option<usize>,
}

/// The next-token model inside a multi-token one: its trunk and head 1.
pub fn next_token(params: &Params) -> Params {
    Params {
        n_layers: params.num_trunk_blocks() + 1,
        n_future_tokens: 1,
        ..params.clone()
    }
}

/// Writes trunk and head 1 of a model as Hugging Face's `LlamaForCausalLM` names and orders them, in the store's
/// precision. The file holds the model of [`next_token`].
pub fn save_hugging_face(path: &Path, params: &Params, store: &ParamStore) -> Result<()> {
    let planned = hugging_face_tensors(params).into_iter().map(|one| Planned {
        name: one.hugging_face.clone(),
        shape: one.shape.clone(),
        source: one,
    });
    let make = |one: &Renamed| reordered(store.wide(&one.meta)?, one.heads, Pairs::Halves);
    // Transformers refuses files that do not say which library wrote them.
    let header = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    tensor_file::write(path, store.dtype(), Some(header), planned.collect(), make)
}

/// Reads a next-token model in the layout of Hugging Face: one file, or the shards of `path.index.json`. Names and
/// shapes must be exactly those of `params`; the rotary tables of older files are dropped.
///
/// # Errors
/// [`Error::Params`] for a model with more heads than the layout has.
pub fn load_hugging_face(
    path: &Path,
    params: &Params,
    dtype: DType,
    device: &Device,
) -> Result<ParamStore> {
    if params.num_horizons() != 1 {
        return Err(Error::Params(format!(
            "Hugging Face's layout has one head, the configuration {}",
            params.num_horizons()
        )));
    }
    let renamed = hugging_face_tensors(params);
    let shapes = renamed
        .iter()
        .map(|one| (one.hugging_face.clone(), one.shape.clone()));
    let wanted = Wanted {
        shapes: &shapes.collect::<Vec<_>>(),
        tolerated: &hugging_face_tables(params),
        kept: &[],
        dtype,
        device,
    };
    let tensors = shards::read(path, &wanted)?;
    let tensors = renamed.into_iter().zip(tensors).map(|(one, (_, weight))| {
        Ok((one.meta, reordered(weight, one.heads, Pairs::Interleaved)?))
    });
    ParamStore::from_tensors(tensors.collect::<Result<_>>()?)
}

/// Rotary tables, which older files hold and which are computed here.
pub fn hugging_face_tables(params: &Params) -> Vec<String> {
    (0..next_token(params).n_layers)
        .map(|block| format!("model.layers.{block}.self_attn.rotary_emb.inv_freq"))
        .collect()
}

/// All tensors of trunk and head 1 in canonical order.
pub fn hugging_face_tensors(params: &Params) -> Vec<Renamed> {
    let shapes = next_token(params).tensor_shapes().into_iter();
    let pair = |(meta, shape): (String, Vec<usize>)| Renamed {
        hugging_face: hugging_face_name(&meta),
        heads: match meta.rsplit('.').nth(1) {
            Some("wq") => Some(params.n_heads),
            Some("wk") => Some(params.n_kv_heads),
            _ => None,
        },
        meta,
        shape,
    };
    shapes.map(pair).collect()
}

/// The name that Hugging Face's port of Llama has for a tensor of Meta's.
fn hugging_face_name(meta: &str) -> String {
    let path = match meta {
        "tok_embeddings.weight" => return "model.embed_tokens.weight".to_owned(),
        "norm.weight" => return "model.norm.weight".to_owned(),
        "output.weight" => return "lm_head.weight".to_owned(),
        _ => meta,
    };
    let path = path
        .replace("attention.wq", "self_attn.q_proj")
        .replace("attention.wk", "self_attn.k_proj")
        .replace("attention.wv", "self_attn.v_proj")
        .replace("attention.wo", "self_attn.o_proj")
        .replace("feed_forward.w1", "mlp.gate_proj")
        .replace("feed_forward.w3", "mlp.up_proj")
        .replace("feed_forward.w2", "mlp.down_proj")
        .replace("attention_norm", "input_layernorm")
        .replace("ffn_norm", "post_attention_layernorm");
    format!("model.{path}")
}

/// Brings the rows of every head into the order `to`, from the other one.
fn reordered(weight: Tensor, heads: Option<usize>, to: Pairs) -> Result<Tensor> {
    let Some(heads) = heads else {
        return Ok(weight);
    };
    let (rows, inputs) = weight.dims2()?;
    let half = rows / heads / 2;
    let view = match to {
        Pairs::Halves => (heads, half, 2, inputs),
        Pairs::Interleaved => (heads, 2, half, inputs),
    };
    let swapped = weight.reshape(view)?.transpose(1, 2)?.contiguous()?;
    Ok(swapped.reshape((rows, inputs))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(tensor: &Tensor) -> Vec<f64> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn rows_of_each_head_are_reordered_as_by_hand() {
        // Two heads of four rows, one column; a row is its own number.
        let numbers = [0., 1., 2., 3., 10., 11., 12., 13.];
        let meta = Tensor::from_slice(&numbers, (8, 1), &Device::Cpu).unwrap();
        let halves = reordered(meta, Some(2), Pairs::Halves).unwrap();
        assert_eq!(rows(&halves), [0., 2., 1., 3., 10., 12., 11., 13.]);
        let back = reordered(halves, Some(2), Pairs::Interleaved).unwrap();
        assert_eq!(rows(&back), numbers);
    }

    #[test]
    fn turned_halves_of_reordered_rows_score_like_turned_pairs() {
        let (q, k) = (
            [0.3, -1.2, 0.7, 2.0, -0.4, 0.9],
            [1.1, 0.2, -0.8, 0.5, 1.7, -0.6],
        );
        let angle = |position: f64, i: usize| position / 10_f64.powi(i as i32);
        let turn = |x: &mut [f64; 6], i: usize, pair: (usize, usize), position: f64| {
            let (sin, cos) = angle(position, i).sin_cos();
            let (a, b) = (x[pair.0], x[pair.1]);
            (x[pair.0], x[pair.1]) = (a * cos - b * sin, a * sin + b * cos);
        };
        let score = |q: [f64; 6], k: [f64; 6], pairs: Pairs| {
            let [mut q, mut k] = [q, k];
            for i in 0..3 {
                let pair = match pairs {
                    Pairs::Interleaved => (2 * i, 2 * i + 1),
                    Pairs::Halves => (i, 3 + i),
                };
                turn(&mut q, i, pair, 7.0);
                turn(&mut k, i, pair, 4.0);
            }
            q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>()
        };
        let halves = |x: [f64; 6]| {
            let column = Tensor::from_slice(&x, (6, 1), &Device::Cpu).unwrap();
            let moved = rows(&reordered(column, Some(1), Pairs::Halves).unwrap());
            <[f64; 6]>::try_from(moved).unwrap()
        };
        let expected = score(q, k, Pairs::Interleaved);
        assert!((score(halves(q), halves(k), Pairs::Halves) - expected).abs() < 1e-12);
        assert!((score(q, k, Pairs::Halves) - expected).abs() > 0.1);
    }

    #[test]
    fn names_are_those_of_the_llama_port() {
        let names: Vec<_> = hugging_face_tensors(&Params::small())
            .into_iter()
            .map(|one| one.hugging_face)
            .collect();
        assert_eq!(names.len(), 3 + 3 * 9);
        assert_eq!(
            names[..10],
            [
                "model.embed_tokens.weight",
                "model.layers.0.self_attn.q_proj.weight",
                "model.layers.0.self_attn.k_proj.weight",
                "model.layers.0.self_attn.v_proj.weight",
                "model.layers.0.self_attn.o_proj.weight",
                "model.layers.0.mlp.gate_proj.weight",
                "model.layers.0.mlp.up_proj.weight",
                "model.layers.0.mlp.down_proj.weight",
                "model.layers.0.input_layernorm.weight",
                "model.layers.0.post_attention_layernorm.weight",
            ]
        );
        assert_eq!(names[28..], ["model.norm.weight", "lm_head.weight"]);
    }

    #[test]
    fn out_and_in_again_gives_every_bit_of_trunk_and_head_1() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        for dtype in [DType::F32, DType::F64] {
            let store = ParamStore::init(&Params::small(), 3, dtype, &Device::Cpu).unwrap();
            save_hugging_face(&path, &Params::small(), &store).unwrap();
            let params = next_token(&Params::small());
            let back = load_hugging_face(&path, &params, dtype, &Device::Cpu).unwrap();
            assert_eq!(back.num_elements(), params.num_params());
            for (name, var) in back.iter() {
                let bits = |tensor: &Tensor| rows(&tensor.to_dtype(DType::F64).unwrap());
                assert_eq!(bits(var), bits(store.get(name).unwrap()), "{name}");
            }
        }
    }

    #[test]
    fn unknown_and_missing_names_and_further_heads_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let params = next_token(&Params::small());
        let store = ParamStore::init(&params, 3, DType::F32, &Device::Cpu).unwrap();
        let load = |params: &Params| load_hugging_face(&path, params, DType::F32, &Device::Cpu);
        store.save(&path).unwrap();
        assert!(
            matches!(load(&params).unwrap_err(), Error::UnexpectedTensor { name, .. }
            if name.starts_with("layers.0."))
        );
        save_hugging_face(&path, &params, &store).unwrap();
        assert!(matches!(
            load(&Params::small()).unwrap_err(),
            Error::Params(_)
        ));
        let deeper = Params {
            n_layers: 4,
            ..params.clone()
        };
        assert!(
            matches!(load(&deeper).unwrap_err(), Error::MissingTensor { name, .. }
            if name == "model.layers.3.self_attn.q_proj.weight")
        );
        let bytes = std::fs::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let table = vec![0u8; 8];
        let table = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2], &table);
        let table = table.unwrap();
        let with = |name: &str| {
            let mut all = file.tensors();
            all.push((name.to_owned(), table.clone()));
            std::fs::write(&path, safetensors::serialize(all, None).unwrap()).unwrap();
        };
        with("model.layers.1.self_attn.rotary_emb.inv_freq");
        assert!(load(&params).is_ok());
        with("model.layers.1.self_attn.q_proj.bias");
        assert!(
            matches!(load(&params).unwrap_err(), Error::UnexpectedTensor { name, .. }
            if name == "model.layers.1.self_attn.q_proj.bias")
        );
    }
}
