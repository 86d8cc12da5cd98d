//! `convert`: the weights of PyTorch checkpoints or safetensors shards become one safetensors file.
//!
//! Reads whatever it is given as hostile: nothing in a pickle is executed, and nothing is written before everything was
//! checked. Memory holds one block of one tensor, whatever the size of the model.

mod pickle;
mod pth;
mod source;

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::{Map, Value, json};
use wmtp_artifacts::Digest;
use wmtp_job_kit::{JobError, Progress, Tool, ToolCx, bytes};
use wmtp_model::{Element, cast};

use self::source::{Source, Tensor};
use crate::folder;

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
    /// Checkpoint to read: .pth, .pt or .bin of torch.save, or .safetensors; again for each shard
    #[arg(long, value_name = "FILE", required = true)]
    from: Vec<PathBuf>,
    /// File to write, as safetensors/model.safetensors of a bundle
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Element type to write; weights never become float16, which overflows in training
    #[arg(long, value_enum, default_value_t = Dtype::Keep)]
    dtype: Dtype,
}

impl Tool for Convert {
    const ABOUT: &'static str = "Converts PyTorch checkpoints or safetensors shards into one safetensors file, executing nothing in them.";
    const EXAMPLES: &'static str = "
        sync-storage convert --from 7B_1T_4/consolidated.pth --to bundle/safetensors/model.safetensors
        sync-storage convert --from a.safetensors --from b.safetensors --to model.safetensors --dtype bfloat16";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let mut merged = Merged::open(&self.from, self.dtype)?;
        let total = merged
            .tensors
            .values()
            .map(|(_, tensor)| tensor.place.length)
            .sum();
        let progress = cx.progress("checking", "bytes", total);
        merged.check(&progress)?;
        progress.finish();
        let progress = cx.progress("converting", "bytes", total);
        let (count, source, target) = (merged.tensors.len(), merged.source, merged.target);
        let size = merged.write(&self.to, &progress)?;
        progress.finish();
        let sha256 = Digest::of_file(&self.to)?;
        cx.print(format!(
            "{}: {count} tensors, {} from {}, {}",
            self.to.display(),
            name_of(target),
            name_of(source),
            bytes(size)
        ));
        cx.json_result(json!({
            "tensors": count,
            "source_dtype": name_of(source),
            "dtype": name_of(target),
            "bytes": size,
            "sha256": sha256,
        }));
        Ok(())
    }
}

/// The tensors of all shards, by name, each with the number of its shard.
struct Merged {
    sources: Vec<Source>,
    tensors: BTreeMap<String, (usize, Tensor)>,
    source: Element,
    target: Element,
}

impl Merged {
    fn open(paths: &[PathBuf], dtype: Dtype) -> Result<Self, JobError> {
        let mut sources = Vec::new();
        let mut tensors: BTreeMap<String, (usize, Tensor)> = BTreeMap::new();
        for (index, path) in paths.iter().enumerate() {
            let (source, found) = Source::open(path)?;
            for tensor in found {
                let name = tensor.name.clone();
                if tensors.insert(name.clone(), (index, tensor)).is_some() {
                    let what = format!("{}: tensor {name} is there twice", path.display());
                    return Err(JobError::bad_input(what));
                }
            }
            sources.push(source);
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
        for (index, tensor) in self.tensors.values() {
            if let Source::Pth(pth) = &mut self.sources[*index] {
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
        for (index, tensor) in self.tensors.values() {
            let (from, to) = (tensor.element, self.target);
            self.sources[*index].read(&tensor.place, |block| {
                done += block.len() as u64;
                progress.set(done);
                writer.write_all(&cast(block, from, to)).map_err(at)
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
        for (name, (_, tensor)) in &self.tensors {
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

/// The one type of all tensors; what is to be converted may come in several.
fn one_type(
    tensors: &BTreeMap<String, (usize, Tensor)>,
    dtype: Dtype,
) -> Result<Element, JobError> {
    let mut all = tensors.values().map(|(_, tensor)| tensor);
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
            let widest = tensors.values().map(|(_, tensor)| tensor.element);
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
