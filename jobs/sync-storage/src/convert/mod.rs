//! `convert`: the weights of PyTorch checkpoints or safetensors shards become one safetensors file, a folder in Hugging Face's
//! layout a bundle.
//!
//! Reads whatever it is given as hostile: nothing in a pickle is executed, and nothing is written before everything was
//! checked. Memory holds one block of one tensor, or one head of it, whatever the size of the model.

mod hugging_face;
mod pairs;
mod pickle;
mod pth;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufWriter, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::{Map, Value, json};
use wmtp_artifacts::Digest;
use wmtp_job_kit::{JobError, Progress, Tool, ToolCx, bytes};
use wmtp_model::{Element, cast, hugging_face_tables};

use self::hugging_face::HuggingFace;
use self::pairs::Pairs;
use self::source::{Source, Tensor};
use crate::bundle;
use crate::folder::{self, Unfinished};

/// Headers are padded to whole words, so that the tensors behind them lie well.
const ALIGNMENT: usize = 8;

/// Element type of the written weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Dtype {
    /// The type that they have
    Keep,
    /// bfloat16, rounded to the nearest, ties to even
    Bfloat16,
    /// float32
    Float32,
}

/// Flags of `convert`.
#[derive(Debug, clap::Args)]
pub(crate) struct Convert {
    /// Checkpoint to read: .pth, .pt or .bin of torch.save, or .safetensors, again for each shard; or a folder with a Llama model
    /// in Hugging Face's layout (config.json, tokenizer.json, weights)
    #[arg(long, value_name = "FILE|FOLDER", required = true)]
    from: Vec<PathBuf>,
    /// File to write, as safetensors/model.safetensors of a bundle; of a folder the bundle itself, a folder to make
    #[arg(long, value_name = "FILE|FOLDER")]
    to: PathBuf,
    /// Prediction heads of a model in Hugging Face's layout, which has one: further ones begin as copies of its last block
    #[arg(long, value_name = "N", default_value = "1")]
    future_tokens: NonZeroUsize,
    /// Element type to write; weights never become float16, which overflows in training
    #[arg(long, value_enum, default_value_t = Dtype::Keep)]
    dtype: Dtype,
}

impl Tool for Convert {
    const ABOUT: &'static str = "Converts PyTorch checkpoints or safetensors shards into one safetensors file, a Llama model in Hugging Face's layout into a bundle, executing nothing in them.";
    const EXAMPLES: &'static str = "
        sync-storage convert --from 7B_1T_4/consolidated.pth --to bundle/safetensors/model.safetensors
        sync-storage convert --from a.safetensors --from b.safetensors --to model.safetensors --dtype bfloat16
        sync-storage convert --from hub/Sheared-LLaMA-2.7B --to models_v2/ref-sheared-llama-2.7b --dtype bfloat16
        sync-storage convert --from hub/Llama-2-7b-hf --to models_v2/llama-2-7b-4 --future-tokens 4";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        match self.from.as_slice() {
            [folder] if folder.is_dir() => self.folder(folder, cx),
            files if self.future_tokens.get() == 1 => {
                let merged = Merged::open(files, self.dtype, None)?;
                let told = converted(merged, &self.to, cx)?;
                told.print(&self.to, "", cx);
                Ok(())
            }
            _ => Err(
                JobError::usage("--future-tokens is for a folder in Hugging Face's layout")
                    .hint("a checkpoint's file has the heads that it has"),
            ),
        }
    }
}

impl Convert {
    fn folder(&self, from: &Path, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let heads = self.future_tokens.get();
        let model = HuggingFace::open(from, heads)?;
        let merged = Merged::open(&model.weights, self.dtype, Some(&model))?;
        let part = Unfinished::beside(&self.to)?;
        let file = part.path().join(bundle::MODEL);
        let told = converted(merged, &file, cx)?;
        model.write_rest(part.path())?;
        part.finish()?;
        let heads = match heads {
            1 => String::new(),
            _ => format!(
                ", {heads} heads of which {} begin as copies of head 1",
                heads - 1
            ),
        };
        let what = format!(", a model of {} blocks{heads}", model.num_blocks());
        told.print(&self.to, &what, cx);
        Ok(())
    }
}

/// What was written.
struct Written {
    tensors: usize,
    source: Element,
    target: Element,
    size: u64,
    sha256: Digest,
}

/// Checks the tensors and writes them.
fn converted(mut merged: Merged, to: &Path, cx: &ToolCx<'_>) -> Result<Written, JobError> {
    let parts = merged.tensors.values();
    let total = parts.map(|part| part.tensor.place.length).sum();
    let progress = cx.progress("checking", "bytes", total);
    merged.check(&progress)?;
    progress.finish();
    let progress = cx.progress("converting", "bytes", total);
    let (tensors, source, target) = (merged.tensors.len(), merged.source, merged.target);
    let size = merged.write(to, &progress)?;
    progress.finish();
    Ok(Written {
        tensors,
        source,
        target,
        size,
        sha256: Digest::of_file(to)?,
    })
}

impl Written {
    fn print(&self, to: &Path, more: &str, cx: &mut ToolCx<'_>) {
        cx.print(format!(
            "{}: {} tensors, {} from {}, {}{more}",
            to.display(),
            self.tensors,
            name_of(self.target),
            name_of(self.source),
            bytes(self.size)
        ));
        cx.json_result(json!({
            "tensors": self.tensors,
            "source_dtype": name_of(self.source),
            "dtype": name_of(self.target),
            "bytes": self.size,
            "sha256": self.sha256,
        }));
    }
}

/// The tensors of all shards, by the name that they get.
struct Merged {
    sources: Vec<Source>,
    tensors: BTreeMap<String, Part>,
    source: Element,
    target: Element,
}

/// A tensor, the number of its shard, and the heads whose rows change places.
#[derive(Clone)]
struct Part {
    shard: usize,
    tensor: Tensor,
    heads: Option<usize>,
}

impl Merged {
    fn open(
        paths: &[PathBuf],
        dtype: Dtype,
        layout: Option<&HuggingFace>,
    ) -> Result<Self, JobError> {
        let mut sources = Vec::new();
        let mut tensors: BTreeMap<String, Part> = BTreeMap::new();
        for (shard, path) in paths.iter().enumerate() {
            let (source, found) = Source::open(path)?;
            for tensor in found {
                let name = tensor.name.clone();
                let part = Part {
                    shard,
                    tensor,
                    heads: None,
                };
                if tensors.insert(name.clone(), part).is_some() {
                    let what = format!("{}: tensor {name} is there twice", path.display());
                    return Err(JobError::bad_input(what));
                }
            }
            sources.push(source);
        }
        if let Some(layout) = layout {
            tensors = renamed(tensors, layout)?;
        }
        let source = one_type(&tensors, dtype)?;
        let target = match dtype {
            Dtype::Keep => source,
            Dtype::Bfloat16 => Element::Bf16,
            Dtype::Float32 => Element::F32,
        };
        if source == Element::F64 && target != Element::F64 {
            return Err(
                JobError::bad_input("weights of float64 are kept as they are")
                    .hint("leave --dtype out, and convert them where they come from"),
            );
        }
        Ok(Self {
            sources,
            tensors,
            source,
            target,
        })
    }

    /// Reads everything whose checksum can be verified.
    fn check(&mut self, progress: &Progress) -> Result<(), JobError> {
        let mut done = 0;
        for Part { shard, tensor, .. } in self.tensors.values() {
            if let Source::Pth(pth) = &mut self.sources[*shard] {
                pth.read(&tensor.place, |_| Ok(()))?;
            }
            done += tensor.place.length;
            progress.set(done);
        }
        Ok(())
    }

    /// Writes the file; it appears when it is whole.
    fn write(mut self, path: &Path, progress: &Progress) -> Result<u64, JobError> {
        let at = |error: std::io::Error| JobError::from(error).context(path.display().to_string());
        folder::create_parent(path)?;
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or_else(|| Path::new("."));
        let file = tempfile::Builder::new()
            .prefix(".convert-")
            .tempfile_in(parent)
            .map_err(at)?;
        let mut writer = BufWriter::new(file);
        writer.write_all(&self.header()).map_err(at)?;
        let mut done = 0;
        for part in self.tensors.values() {
            let (from, to) = (part.tensor.element, self.target);
            let mut pairs = part.pairs();
            self.sources[part.shard].read(&part.tensor.place, |block| {
                done += block.len() as u64;
                progress.set(done);
                let mut give = |bytes: &[u8]| writer.write_all(&cast(bytes, from, to));
                match &mut pairs {
                    None => give(block),
                    Some(pairs) => pairs.take(block, give),
                }
                .map_err(at)
            })?;
        }
        let file = writer
            .into_inner()
            .map_err(|error| at(error.into_error()))?;
        file.as_file().sync_all().map_err(at)?;
        let size = file.as_file().metadata().map_err(at)?.len();
        file.persist(path).map_err(|error| at(error.error))?;
        Ok(size)
    }

    /// Length and text of the header.
    fn header(&self) -> Vec<u8> {
        let mut entries = Map::new();
        let facts = json!({"format": "pt", "source_dtype": name_of(self.source), "dtype": name_of(self.target)});
        entries.insert("__metadata__".to_owned(), facts);
        let mut offset = 0;
        for (name, Part { tensor, .. }) in &self.tensors {
            let end = offset + tensor.place.length / tensor.element.width() * self.target.width();
            let entry = json!({"dtype": code_of(self.target), "shape": tensor.shape, "data_offsets": [offset, end]});
            entries.insert(name.clone(), entry);
            offset = end;
        }
        let mut text = Value::Object(entries).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(ALIGNMENT), b' ');
        let mut header = (text.len() as u64).to_le_bytes().to_vec();
        header.extend(text);
        header
    }
}

impl Part {
    /// What brings its rows from Hugging Face's order into Meta's, where that is another.
    fn pairs(&self) -> Option<Pairs> {
        let (heads, rows) = (self.heads?, self.tensor.shape.first()?);
        Some(Pairs::new(self.tensor.place.length, *rows, heads as u64))
    }
}

/// The tensors of a bundle, made of those of a model in Hugging Face's layout: all of them and no others.
fn renamed(
    mut found: BTreeMap<String, Part>,
    layout: &HuggingFace,
) -> Result<BTreeMap<String, Part>, JobError> {
    for table in hugging_face_tables(&layout.params) {
        found.remove(&table);
    }
    let (mut tensors, mut used) = (BTreeMap::new(), BTreeSet::new());
    for (name, one) in layout.tensors() {
        let Some(part) = found.get(&one.hugging_face) else {
            let what = format!(
                "tensor {} is missing; config.json demands it",
                one.hugging_face
            );
            return Err(JobError::bad_input(what));
        };
        let shape: Vec<u64> = one.shape.iter().map(|&size| size as u64).collect();
        if part.tensor.shape != shape {
            let (found, name) = (&part.tensor.shape, &one.hugging_face);
            let what = format!("tensor {name} has shape {found:?}, config.json demands {shape:?}");
            return Err(JobError::bad_input(what));
        }
        let heads = one.heads;
        tensors.insert(
            name,
            Part {
                heads,
                ..part.clone()
            },
        );
        used.insert(one.hugging_face);
    }
    match found.keys().find(|name| !used.contains(*name)) {
        Some(stray) => Err(JobError::bad_input(format!(
            "tensor {stray} has no place in a Llama model of config.json"
        ))),
        None => Ok(tensors),
    }
}

/// The one type of all tensors; what is to be converted may come in several.
fn one_type(tensors: &BTreeMap<String, Part>, dtype: Dtype) -> Result<Element, JobError> {
    let mut all = tensors.values().map(|part| &part.tensor);
    let Some(first) = all.next() else {
        return Err(JobError::bad_input("the checkpoint holds no tensors"));
    };
    match all.find(|tensor| tensor.element != first.element) {
        Some(other) if dtype == Dtype::Keep => Err(JobError::bad_input(format!(
            "tensor {} is {}, {} is {}: there is no one type to keep",
            first.name,
            name_of(first.element),
            other.name,
            name_of(other.element)
        ))
        .hint("say with --dtype what they are to become")),
        // The widest tells what the weights were worth.
        Some(_) => {
            let widest = tensors.values().map(|part| part.tensor.element);
            Ok(widest
                .max_by_key(|element| element.width())
                .unwrap_or(first.element))
        }
        None => Ok(first.element),
    }
}

/// As `metadata.json` names it.
fn name_of(element: Element) -> &'static str {
    match element {
        Element::F16 => "float16",
        Element::Bf16 => "bfloat16",
        Element::F32 => "float32",
        Element::F64 => "float64",
    }
}

/// As safetensors names it.
fn code_of(element: Element) -> &'static str {
    match element {
        Element::F16 => "F16",
        Element::Bf16 => "BF16",
        Element::F32 => "F32",
        Element::F64 => "F64",
    }
}
