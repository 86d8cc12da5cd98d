//! Strict reading of safetensors: one file, or several with an index beside them.
//!
//! In: `model.safetensors`, or `model.safetensors.index.json` whose `weight_map` says which shard holds which
//! tensor. Out: the tensors that a configuration demands. Every disagreement between index, shards and
//! configuration is an error that names file and tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use crate::tensor_file::TensorFile;
use crate::{Error, Result};

/// What is wanted of a file.
pub(crate) struct Wanted<'a> {
    /// Every tensor, in order.
    pub(crate) shapes: &'a [(String, Vec<usize>)],
    /// Tensors that may be there and are dropped.
    pub(crate) tolerated: &'a [String],
    /// Tensors that stay in the type they are stored in where that is smaller than `dtype`.
    pub(crate) kept: &'a [String],
    /// Stored f16, bf16, f32 and f64 values are converted to this type.
    pub(crate) dtype: DType,
    pub(crate) device: &'a Device,
}

/// Reads the file at `path`, or the shards of `path.index.json`; `path` may be the index itself.
pub(crate) fn read(path: &Path, wanted: &Wanted<'_>) -> Result<Vec<(String, Tensor)>> {
    if path.to_string_lossy().ends_with(INDEX) {
        return read_shards(path, wanted);
    }
    let mut index = path.as_os_str().to_owned();
    index.push(INDEX);
    let index = PathBuf::from(index);
    match (path.exists(), index.exists()) {
        (false, true) => read_shards(&index, wanted),
        (true, true) => {
            let reason = format!("{} lies beside it: one of them is stale", index.display());
            Err(Error::corrupt(path, reason))
        }
        _ => take(&TensorFile::open(path)?, wanted),
    }
}

const INDEX: &str = ".index.json";

/// The files that an index names, each once.
///
/// # Errors
/// An index that is none, or names a tensor twice or a file that does not lie beside it.
pub fn shard_files(index: &Path) -> Result<Vec<PathBuf>> {
    let named = Index::read(index)?.weight_map.0.into_values();
    let files: BTreeSet<PathBuf> = named.map(|shard| index.with_file_name(shard)).collect();
    Ok(files.into_iter().collect())
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    metadata: IndexMetadata,
    weight_map: WeightMap,
}

#[derive(Default, Deserialize)]
struct IndexMetadata {
    /// Bytes of all tensors.
    total_size: Option<u64>,
}

/// Shard by tensor. A tensor that stands there twice is an error, where a plain map would keep the last.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(WeightMapVisitor)
    }
}

struct WeightMapVisitor;

impl<'de> Visitor<'de> for WeightMapVisitor {
    type Value = WeightMap;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tensor names with the shard of each")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<WeightMap, M::Error> {
        let mut shards = BTreeMap::<String, String>::new();
        while let Some((name, shard)) = map.next_entry::<String, String>()? {
            if let Some(other) = shards.get(&name) {
                let reason = format!("tensor {name} is in two shards, {other} and {shard}");
                return Err(M::Error::custom(reason));
            }
            shards.insert(name, shard);
        }
        Ok(WeightMap(shards))
    }
}

impl Index {
    fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| Error::io(path, source))?;
        let index: Self =
            serde_json::from_slice(&bytes).map_err(|reason| Error::corrupt(path, reason))?;
        let outside = |shard: &&String| Path::new(shard).file_name() != Some(shard.as_ref());
        if let Some(shard) = index.weight_map.0.values().find(outside) {
            let reason = format!("shard {shard:?} is no file beside the index");
            return Err(Error::corrupt(path, reason));
        }
        Ok(index)
    }

    /// The index must list the tensors that are wanted, and no others but the tolerated.
    fn check(&self, path: &Path, wanted: &Wanted<'_>) -> Result<()> {
        let origin = path.display().to_string();
        let listed = &self.weight_map.0;
        if let Some(name) = stray(listed.keys().map(String::as_str), wanted) {
            return Err(Error::UnexpectedTensor { origin, name });
        }
        let missing = |(name, _): &&(String, Vec<usize>)| !listed.contains_key(name);
        match wanted.shapes.iter().find(missing) {
            Some((name, _)) => Err(Error::MissingTensor {
                origin,
                name: name.clone(),
            }),
            None => Ok(()),
        }
    }
}

/// Reads shard after shard.
fn read_shards(path: &Path, wanted: &Wanted<'_>) -> Result<Vec<(String, Tensor)>> {
    let index = Index::read(path)?;
    index.check(path, wanted)?;
    let shards: BTreeSet<&String> = index.weight_map.0.values().collect();
    let mut tensors = BTreeMap::new();
    let mut size = 0;
    for shard in shards {
        let (found, bytes) = read_shard(path, shard, &index.weight_map, wanted)?;
        tensors.extend(found);
        size += bytes;
    }
    if let Some(said) = index.metadata.total_size.filter(|said| *said != size) {
        let reason = format!("total_size is {said} bytes, the shards hold {size}");
        return Err(Error::corrupt(path, reason));
    }
    let in_order = wanted.shapes.iter().map(|(name, _)| {
        let found = tensors.remove_entry(name);
        found.expect("every listed tensor was taken out of its shard")
    });
    Ok(in_order.collect())
}

/// The tensors that the index places in one shard, and the bytes of all that the shard holds.
fn read_shard(
    index: &Path,
    shard: &str,
    WeightMap(weight_map): &WeightMap,
    wanted: &Wanted<'_>,
) -> Result<(Vec<(String, Tensor)>, u64)> {
    let path = index.with_file_name(shard);
    let of_shard = |name: &str| weight_map.get(name).is_some_and(|one| one == shard);
    let shapes = wanted.shapes.iter().filter(|(name, _)| of_shard(name));
    let shapes: Vec<_> = shapes.cloned().collect();
    if !path.exists() {
        let first = shapes.first().map_or("nothing", |(name, _)| name);
        let reason = format!("shard {shard}, which holds {first}, is missing");
        return Err(Error::corrupt(index, reason));
    }
    let file = TensorFile::open(&path)?;
    for name in file.names() {
        if let Some(other) = weight_map.get(&name).filter(|other| *other != shard) {
            let reason = format!("tensor {name} is in two shards, the index places it in {other}");
            return Err(Error::corrupt(&path, reason));
        }
    }
    let wanted = Wanted {
        shapes: &shapes,
        ..*wanted
    };
    Ok((take(&file, &wanted)?, file.num_bytes()))
}

/// The first name that nobody asked for.
fn stray<'a>(names: impl IntoIterator<Item = &'a str>, wanted: &Wanted<'_>) -> Option<String> {
    let known: BTreeSet<&str> = wanted
        .shapes
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    let mut names: Vec<_> = names.into_iter().collect();
    names.sort_unstable();
    let is_stray =
        |name: &&str| !known.contains(name) && !wanted.tolerated.iter().any(|one| one == name);
    names.into_iter().find(is_stray).map(str::to_owned)
}

/// Takes the wanted tensors out of an open file, which must hold no others but the tolerated.
pub(crate) fn take(file: &TensorFile<'_>, wanted: &Wanted<'_>) -> Result<Vec<(String, Tensor)>> {
    let origin = || file.path().display().to_string();
    let names = file.names();
    if let Some(name) = stray(names.iter().map(String::as_str), wanted) {
        let origin = origin();
        return Err(Error::UnexpectedTensor { origin, name });
    }
    let mut tensors = Vec::with_capacity(wanted.shapes.len());
    for (name, expected) in wanted.shapes {
        let Some(info) = file.info(name) else {
            return Err(Error::MissingTensor {
                origin: origin(),
                name: name.clone(),
            });
        };
        if info.shape != *expected {
            return Err(Error::TensorShape {
                origin: origin(),
                name: name.clone(),
                found: info.shape.clone(),
                expected: expected.clone(),
            });
        }
        let stored = match info.dtype {
            Dtype::F64 => DType::F64,
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => {
                let reason = format!("tensor {name} is stored as {other:?}");
                return Err(Error::corrupt(file.path(), reason));
            }
        };
        let is_kept = is_narrower(stored, wanted.dtype) && wanted.kept.contains(name);
        let dtype = if is_kept { stored } else { wanted.dtype };
        let tensor = Tensor::from_raw_buffer(&file.bytes(info)?, stored, expected, wanted.device)?
            .to_dtype(dtype)?;
        if !is_finite(&tensor)? {
            return Err(Error::NotFinite {
                origin: origin(),
                name: name.clone(),
            });
        }
        tensors.push((name.clone(), tensor));
    }
    Ok(tensors)
}

/// Whether a type is smaller than another that holds each of its values.
pub(crate) fn is_narrower(one: DType, other: DType) -> bool {
    match one {
        DType::BF16 | DType::F16 => matches!(other, DType::F32 | DType::F64),
        DType::F32 => other == DType::F64,
        _ => false,
    }
}

/// Whether every element is a number: a sum of x·0 is 0 exactly then.
fn is_finite(tensor: &Tensor) -> Result<bool> {
    let zero = tensor
        .affine(0.0, 0.0)?
        .sum_all()?
        .to_dtype(DType::F64)?
        .to_scalar::<f64>()?;
    Ok(zero == 0.0)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::{ParamStore, Params};

    const FIRST: &str = "model-00001-of-00002.safetensors";
    const SECOND: &str = "model-00002-of-00002.safetensors";

    /// A model in two shards, which hold alternate tensors.
    struct Sharded {
        dir: tempfile::TempDir,
        store: ParamStore,
        shards: [Vec<(String, Tensor)>; 2],
        index: serde_json::Value,
    }

    impl Sharded {
        fn new() -> Self {
            let store = ParamStore::init(&Params::small(), 1, DType::F32, &Device::Cpu).unwrap();
            let mut shards = [Vec::new(), Vec::new()];
            let mut weight_map = serde_json::Map::new();
            for (i, (name, var)) in store.iter().enumerate() {
                shards[i % 2].push((name.to_owned(), var.as_detached_tensor()));
                weight_map.insert(name.to_owned(), [FIRST, SECOND][i % 2].into());
            }
            let index = serde_json::json!({
                "metadata": {"total_size": 4 * store.num_elements()},
                "weight_map": weight_map,
            });
            let dir = tempfile::tempdir().unwrap();
            Self {
                dir,
                store,
                shards,
                index,
            }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn write(&self) {
            for (name, tensors) in [FIRST, SECOND].into_iter().zip(&self.shards) {
                let tensors: HashMap<_, _> = tensors.iter().cloned().collect();
                candle_core::safetensors::save(&tensors, self.path(name)).unwrap();
            }
            let index = serde_json::to_vec(&self.index).unwrap();
            std::fs::write(self.path("model.safetensors.index.json"), index).unwrap();
        }

        fn load(&self) -> Result<ParamStore> {
            let path = self.path("model.safetensors");
            ParamStore::load(&path, &Params::small(), DType::F32, &Device::Cpu)
        }

        fn refusal(&self) -> String {
            self.write();
            self.load().unwrap_err().to_string()
        }
    }

    fn says(message: &str, words: &[&str]) {
        for word in words {
            assert!(message.contains(word), "{word}: {message}");
        }
    }

    #[test]
    fn shards_load_as_the_model_that_was_split() {
        let sharded = Sharded::new();
        sharded.write();
        let loaded = sharded.load().unwrap();
        for ((name, a), (other, b)) in sharded.store.iter().zip(loaded.iter()) {
            let flat =
                |var: &candle_core::Var| var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!((name, flat(a)), (other, flat(b)));
        }
        let index = sharded.path("model.safetensors.index.json");
        assert!(ParamStore::load(&index, &Params::small(), DType::F32, &Device::Cpu).is_ok());
        sharded
            .store
            .save(&sharded.path("model.safetensors"))
            .unwrap();
        says(&sharded.load().unwrap_err().to_string(), &["stale"]);
    }

    #[test]
    fn a_missing_shard_is_named_with_a_tensor_that_it_holds() {
        let sharded = Sharded::new();
        sharded.write();
        std::fs::remove_file(sharded.path(SECOND)).unwrap();
        let message = sharded.load().unwrap_err().to_string();
        says(
            &message,
            &[SECOND, "layers.0.attention.wq.weight", "missing"],
        );
    }

    #[test]
    fn a_tensor_in_two_shards_is_named_with_both() {
        let mut sharded = Sharded::new();
        let twice = sharded.shards[0][0].clone();
        sharded.shards[1].push(twice);
        says(
            &sharded.refusal(),
            &["tok_embeddings.weight", FIRST, SECOND, "two shards"],
        );

        let sharded = Sharded::new();
        sharded.write();
        let text = sharded.index.to_string().replace(
            "\"weight_map\":{",
            &format!("\"weight_map\":{{\"output.weight\":\"{SECOND}\","),
        );
        std::fs::write(sharded.path("model.safetensors.index.json"), text).unwrap();
        let message = sharded.load().unwrap_err().to_string();
        says(&message, &["index.json", "output.weight", FIRST, SECOND]);
    }

    #[test]
    fn a_shard_that_lies_about_sizes_is_named_with_the_tensor() {
        let sharded = Sharded::new();
        sharded.write();
        let bytes = std::fs::read(sharded.path(SECOND)).unwrap();
        let name = "layers.0.attention.wv.weight";
        let honest = format!("\"{name}\":{{\"dtype\":\"F32\",\"shape\":[8,16]");
        let mut windows = bytes.windows(honest.len());
        let at = windows.position(|w| w == honest.as_bytes()).unwrap();
        let mut lying = bytes.clone();
        lying[at + honest.len() - 5] = b'9';
        std::fs::write(sharded.path(SECOND), lying).unwrap();
        let message = sharded.load().unwrap_err().to_string();
        says(
            &message,
            &[
                SECOND,
                "attention.wv.weight lies about its size: F32 [9, 16] in 512 bytes",
            ],
        );

        std::fs::write(sharded.path(SECOND), &bytes[..bytes.len() - 1]).unwrap();
        says(
            &sharded.load().unwrap_err().to_string(),
            &[SECOND, "damaged"],
        );

        let mut sharded = Sharded::new();
        let (_, tensor) = &mut sharded.shards[0][0];
        *tensor = tensor.narrow(0, 0, 22).unwrap().contiguous().unwrap();
        says(
            &sharded.refusal(),
            &[FIRST, "tok_embeddings.weight", "[22, 16]"],
        );

        let mut sharded = Sharded::new();
        sharded.index["metadata"]["total_size"] = 7.into();
        says(&sharded.refusal(), &["index.json", "total_size is 7"]);
    }

    #[test]
    fn index_and_configuration_must_name_the_same_tensors() {
        let mut sharded = Sharded::new();
        sharded.index["weight_map"]["output.bias"] = FIRST.into();
        says(
            &sharded.refusal(),
            &["index.json", "output.bias is not part"],
        );

        let mut sharded = Sharded::new();
        let map = sharded.index["weight_map"].as_object_mut().unwrap();
        map.remove("norm.weight");
        says(
            &sharded.refusal(),
            &["index.json", "norm.weight is missing"],
        );

        let mut sharded = Sharded::new();
        let (lost, _) = sharded.shards[1].remove(0);
        says(&sharded.refusal(), &[SECOND, &lost, "missing"]);

        let mut sharded = Sharded::new();
        sharded.index["weight_map"]["norm.weight"] = "../other.safetensors".into();
        says(&sharded.refusal(), &["no file beside the index"]);
    }
}
