//! Checkpoints become safetensors files; whatever is hostile in one is refused, each with its own message, and nothing
//! is written.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;
use trial::Ended;
use wmtp_model::{DType, Device, ParamStore, Params, save_hugging_face};
use wmtp_tokens::Tokenizer;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Written by `fixtures/save.py` with PyTorch: `ramp` holds 0, 1, … 11 in 3 rows, `view` rows 1 and 2 of it, `one` the
/// number 1.5.
const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

/// A folder with a checkpoint, and where it is to be written.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn convert(&self, from: &[&Path], more: &[&str]) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sync-storage"));
        command.arg("convert").arg("--json").args(more);
        for path in from {
            command.arg("--from").arg(path);
        }
        command
            .arg("--to")
            .arg(self.path("out/model.safetensors"))
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        Ended::of(&mut command)
    }

    /// Converts what must be refused: with the message, and without a trace.
    fn refuses(&self, from: &Path, message: &str) {
        let ended = self.convert(&[from], &[]);
        assert_eq!(ended.code, Some(65), "{message}: {}", ended.stderr);
        assert!(
            ended.stderr.contains(message),
            "{message}: {}",
            ended.stderr
        );
        assert!(
            !self.path("out").exists(),
            "{message}: something was written"
        );
    }

    fn written(&self) -> Vec<u8> {
        fs::read(self.path("out/model.safetensors")).unwrap()
    }
}

/// An archive as torch.save writes it, with this pickle and these storages.
fn archive(path: &Path, pickle: &[u8], storages: &[(&str, &[u8])]) {
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut zip = ZipWriter::new(fs::File::create(path).unwrap());
    zip.start_file("archive/data.pkl", stored).unwrap();
    zip.write_all(pickle).unwrap();
    for (name, bytes) in storages {
        zip.start_file(*name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

/// Pushes a short text.
fn text(text: &str) -> Vec<u8> {
    let mut code = vec![b'X'];
    code.extend((text.len() as u32).to_le_bytes());
    code.extend(text.as_bytes());
    code
}

/// Pushes a tensor of one row in storage 0.
fn tensor(length: u8, storage: u8) -> Vec<u8> {
    let mut code = b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec();
    code.extend(text("storage"));
    code.extend(b"ctorch\nFloatStorage\n");
    code.extend(text("0"));
    code.extend(text("cpu"));
    code.extend([
        b'K', storage, b't', b'Q', b'K', 0, b'K', length, 0x85, b'K', 1, 0x85, 0x89,
    ]);
    code.extend(b"ccollections\nOrderedDict\n)RtR");
    code
}

/// A program that leaves a dictionary with this one entry.
fn pickle(name: &str, value: &[u8]) -> Vec<u8> {
    let mut code = vec![0x80, 2, b'}', b'('];
    code.extend(text(name));
    code.extend(value);
    code.extend(b"u.");
    code
}

#[test]
fn a_checkpoint_of_pytorch_is_read_to_the_last_bit() {
    for (file, dtype, width) in [
        ("f32.pth", Dtype::F32, 4),
        ("f16.pth", Dtype::F16, 2),
        ("bf16.pth", Dtype::BF16, 2),
    ] {
        let place = Place::new();
        let ended = place.convert(&[&Path::new(FIXTURES).join(file)], &[]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let bytes = place.written();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.names().len(), 3);
        let ramp = tensors.tensor("ramp").unwrap();
        assert_eq!((ramp.dtype(), ramp.shape()), (dtype, &[3, 4][..]));
        let view = tensors.tensor("view").unwrap();
        assert_eq!(
            (view.shape(), view.data()),
            (&[2, 4][..], &ramp.data()[4 * width..])
        );
        assert_eq!(tensors.tensor("one").unwrap().shape(), [0_usize; 0]);
    }
}

#[test]
fn every_type_becomes_the_same_numbers() {
    let floats = |bytes: &[u8]| -> Vec<f32> {
        let words = bytes.chunks_exact(4);
        words
            .map(|word| f32::from_le_bytes(word.try_into().unwrap()))
            .collect()
    };
    for file in ["f32.pth", "f16.pth", "bf16.pth", "parameters.pth"] {
        let place = Place::new();
        let ended = place.convert(&[&Path::new(FIXTURES).join(file)], &["--dtype", "float32"]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let bytes = place.written();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let ramp: Vec<f32> = (0_u8..12).map(f32::from).collect();
        assert_eq!(
            floats(tensors.tensor("ramp").unwrap().data()),
            ramp,
            "{file}"
        );
        assert_eq!(floats(tensors.tensor("one").unwrap().data()), [1.5]);
    }
    let place = Place::new();
    let f16 = Path::new(FIXTURES).join("f16.pth");
    let ended = place.convert(&[&f16], &["--dtype", "bfloat16"]);
    let result: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(
        (&result["source_dtype"], &result["dtype"]),
        (&json!("float16"), &json!("bfloat16"))
    );
    let (_, header) = SafeTensors::read_metadata(&place.written()).unwrap();
    assert_eq!(
        header.metadata().as_ref().unwrap()["source_dtype"],
        "float16"
    );
}

#[test]
fn shards_become_one_file_and_may_not_overlap() {
    let place = Place::new();
    let shards = ["a", "b"].map(|name| {
        let path = place.path(&format!("{name}.pth"));
        archive(
            &path,
            &pickle(name, &tensor(2, 2)),
            &[("archive/data/0", &[0; 8])],
        );
        path
    });
    let [a, b] = &shards;
    assert_eq!(place.convert(&[a, b], &[]).code, Some(0));
    let merged = place.path("merged.safetensors");
    fs::rename(place.path("out/model.safetensors"), &merged).unwrap();
    fs::remove_dir(place.path("out")).unwrap();
    let bytes = fs::read(&merged).unwrap();
    let mut names = SafeTensors::deserialize(&bytes)
        .unwrap()
        .names()
        .into_iter()
        .map(str::to_owned)
        .collect::<Vec<_>>();
    names.sort();
    assert_eq!(names, ["a", "b"]);
    let ended = place.convert(&[&merged, a], &[]);
    assert_eq!(ended.code, Some(65));
    assert!(
        ended.stderr.contains("tensor a is there twice"),
        "{}",
        ended.stderr
    );
    assert_eq!(
        place.convert(&[&merged], &["--dtype", "bfloat16"]).code,
        Some(0),
        "safetensors are read, too"
    );
}

#[test]
fn a_pickle_that_would_run_code_is_refused() {
    let place = Place::new();
    let path = place.path("evil.pth");
    let code = b"cposix\nsystem\n(X\x05\x00\x00\x00touch\x74R.";
    archive(&path, code, &[]);
    place.refuses(
        &path,
        "the pickle asks for posix.system, which could run code",
    );
    // Hidden as the value of a weight.
    archive(
        &path,
        &pickle("w", b"cbuiltins\neval\n(X\x01\x00\x00\x001tR"),
        &[],
    );
    place.refuses(&path, "the pickle asks for builtins.eval");
    // Instructions that import or call by other ways: STACK_GLOBAL, INST, OBJ, NEWOBJ, EXT1.
    for op in [0x93, b'i', b'o', 0x81, 0x82] {
        archive(&path, &[0x80, 2, op, b'.'], &[]);
        place.refuses(&path, &format!("instruction {op:#04x} at byte 2"));
    }
}

#[test]
fn a_pickle_that_is_no_dictionary_of_tensors_is_refused() {
    let place = Place::new();
    let path = place.path("odd.pth");
    for (code, message) in [
        (b"K\x01.".to_vec(), "not a dictionary of tensors"),
        (pickle("w", b"K\x01"), "an entry that is no tensor"),
        (b"}K".to_vec(), "it ends early"),
        (b"t.".to_vec(), "a mark is missing"),
        (b"h\x07.".to_vec(), "nothing was remembered there"),
        (
            pickle(&"w".repeat(300), &tensor(2, 2)),
            "more than 256 bytes",
        ),
    ] {
        archive(&path, &code, &[("archive/data/0", &[0; 8])]);
        place.refuses(&path, message);
    }
}

#[test]
fn a_tensor_beyond_its_storage_is_refused() {
    let place = Place::new();
    let path = place.path("short.pth");
    // The tensor is longer than its storage; the storage is longer than its bytes; there are no bytes.
    for (code, bytes) in [(tensor(3, 2), 8), (tensor(3, 3), 8)] {
        archive(
            &path,
            &pickle("w", &code),
            &[("archive/data/0", &vec![0; bytes])],
        );
        place.refuses(&path, "does not fit into its storage of 8 bytes");
    }
    archive(&path, &pickle("w", &tensor(2, 2)), &[]);
    place.refuses(&path, "the archive lacks archive/data/0");
}

#[test]
fn an_archive_that_could_grow_or_lead_elsewhere_is_refused() {
    let place = Place::new();
    let path = place.path("bad.pth");
    let good = pickle("w", &tensor(2, 2));
    archive(
        &path,
        &good,
        &[("archive/data/0", &[0; 8]), ("archive/../../etc/x", b"x")],
    );
    place.refuses(&path, "has a path that leads out of the archive");

    // A bomb is an entry that says it was compressed; the sizes in its record are written by hand.
    archive(&path, &good, &[("archive/data/0", &[0; 8])]);
    let sound = fs::read(&path).unwrap();
    let mut bomb = sound.clone();
    let record = sound
        .windows(4)
        .rposition(|word| word == b"PK\x01\x02")
        .unwrap();
    bomb[record + 10] = 8;
    fs::write(&path, &bomb).unwrap();
    place.refuses(&path, "is compressed, as torch.save never does");
    let mut bomb = sound.clone();
    bomb[record + 24..record + 28].copy_from_slice(&u32::to_le_bytes(1 << 30));
    fs::write(&path, &bomb).unwrap();
    place.refuses(&path, "is compressed, as torch.save never does");
    let mut bomb = sound.clone();
    bomb[record + 20..record + 24].copy_from_slice(&u32::to_le_bytes(1 << 30));
    bomb[record + 24..record + 28].copy_from_slice(&u32::to_le_bytes(1 << 30));
    fs::write(&path, &bomb).unwrap();
    place.refuses(&path, "larger than the archive");

    // A flipped bit in the weights.
    let mut flipped = sound.clone();
    let data = sound
        .windows(14)
        .position(|word| word == b"archive/data/0")
        .unwrap()
        + 14;
    flipped[data] ^= 1;
    fs::write(&path, &flipped).unwrap();
    place.refuses(&path, "archive/data/0");

    fs::write(&path, b"\x80\x02\x8a\x0al\xfc\x9cF").unwrap();
    place.refuses(&path, "no zip archive");
}

#[test]
fn a_link_and_a_lying_header_are_refused() {
    let place = Place::new();
    let path = place.path("good.pth");
    archive(
        &path,
        &pickle("w", &tensor(2, 2)),
        &[("archive/data/0", &[0; 8])],
    );
    let link = place.path("link.pth");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    place.refuses(&link, "is a symbolic link");

    let lying = place.path("lying.safetensors");
    for (header, message) in [
        (
            r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,8]}}"#,
            "no safetensors header",
        ),
        (
            r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#,
            "no safetensors header",
        ),
        (
            r#"{"w":{"dtype":"F32","shape":[4611686018427387904,8],"data_offsets":[0,8]}}"#,
            "no safetensors header",
        ),
        (
            r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#,
            "truncated",
        ),
    ] {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend([0; 8]);
        fs::write(&lying, bytes).unwrap();
        place.refuses(&lying, message);
    }
}

/// A model of two blocks in Hugging Face's layout, with a change to its `config.json`.
fn hugging_face(folder: &Path, change: impl FnOnce(&mut Value)) {
    fs::create_dir_all(folder).unwrap();
    let tokenizer = Tokenizer::train(&["def f(a, b):\n    return a + b\n"; 4], 300).unwrap();
    tokenizer.save(&folder.join("tokenizer.json")).unwrap();
    let params = Params {
        dim: 16,
        n_layers: 2,
        n_heads: 2,
        n_kv_heads: 1,
        multiple_of: 8,
        n_future_tokens: 1,
        ..Params::micro_mtp(tokenizer.vocab_size())
    };
    let store = ParamStore::init(&params, 1, DType::F32, &Device::Cpu).unwrap();
    save_hugging_face(&folder.join("model.safetensors"), &params, &store).unwrap();
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": params.ffn_dim(),
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": tokenizer.vocab_size(),
        "rms_norm_eps": 1e-5,
        "rope_scaling": null,
        "hidden_act": "silu",
    });
    change(&mut config);
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn a_model_that_computes_otherwise_than_ours_is_refused_by_the_key_that_says_so() {
    let place = Place::new();
    let folder = place.path("hub");
    hugging_face(&folder, |_| {});
    let ended = place.convert(&[&folder], &[]);
    assert_eq!(ended.code, Some(0), "as it is: {}", ended.stderr);
    fs::remove_dir_all(place.path("out")).unwrap();
    for (key, value, message) in [
        (
            "model_type",
            json!("mistral"),
            "model_type \"mistral\" (llama alone is) is not supported",
        ),
        ("hidden_act", json!("gelu"), "hidden_act \"gelu\""),
        (
            "attention_bias",
            json!(true),
            "attention_bias true is not supported",
        ),
        ("mlp_bias", json!(true), "mlp_bias true is not supported"),
        (
            "tie_word_embeddings",
            json!(true),
            "tie_word_embeddings true is not supported",
        ),
        (
            "quantization_config",
            json!({"bits": 4}),
            "quantization_config",
        ),
        (
            "rope_scaling",
            json!({"type": "linear", "factor": 2.0}),
            "rope_scaling linear",
        ),
        (
            "rope_scaling",
            json!({"rope_type": "llama3", "type": "llama3"}),
            "rope_scaling llama3",
        ),
        (
            "rope_parameters",
            json!({"rope_type": "yarn"}),
            "rope_parameters yarn",
        ),
        (
            "rope_parameters",
            json!({"partial_rotary_factor": 0.5}),
            "partial_rotary_factor 0.5",
        ),
        (
            "head_dim",
            json!(16),
            "head_dim is 16, and 16 over 2 heads is 8",
        ),
        (
            "num_attention_heads",
            json!(3),
            "does not split into 3 heads",
        ),
        ("num_hidden_layers", json!(1), "leaves no trunk"),
        ("hidden_size", Value::Null, "hidden_size"),
        (
            "num_hidden_layers",
            json!(3),
            "tensor model.layers.2.self_attn.q_proj.weight is missing",
        ),
        (
            "num_key_value_heads",
            json!(2),
            "tensor model.layers.0.self_attn.k_proj.weight has shape [8, 16], config.json demands [16, 16]",
        ),
        ("intermediate_size", json!(40), "demands [40, 16]"),
        ("vocab_size", json!(299), "says 299"),
    ] {
        hugging_face(&folder, |config| {
            let config = config.as_object_mut().unwrap();
            match value {
                Value::Null => config.remove(key),
                value => config.insert(key.to_owned(), value),
            };
        });
        place.refuses(&folder, message);
    }
    hugging_face(&folder, |_| {});
    let bias = folder.join("model-2.safetensors");
    let data = [0_u8; 64];
    let view = safetensors::tensor::TensorView::new(Dtype::F32, vec![16], &data).unwrap();
    let name = "model.layers.0.self_attn.q_proj.bias";
    fs::write(&bias, safetensors::serialize([(name, view)], None).unwrap()).unwrap();
    let index = folder.join("model.safetensors.index.json");
    fs::write(
        &index,
        json!({"weight_map": {name: "model-2.safetensors", "x": "model.safetensors"}}).to_string(),
    )
    .unwrap();
    place.refuses(
        &folder,
        "tensor model.layers.0.self_attn.q_proj.bias has no place",
    );
    fs::write(
        &index,
        json!({"weight_map": {name: "../model.safetensors"}}).to_string(),
    )
    .unwrap();
    place.refuses(&folder, "is no file beside the index");
    fs::remove_file(&index).unwrap();
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    place.refuses(
        &folder,
        "holds none of model.safetensors.index.json, model.safetensors",
    );
    fs::rename(
        folder.join("tokenizer.json"),
        folder.join("tokenizer.model"),
    )
    .unwrap();
    fs::write(folder.join("model.safetensors"), "").unwrap();
    place.refuses(
        &folder,
        "SentencePiece's tokenizer.model, which lies there, is not read",
    );
    fs::remove_file(folder.join("config.json")).unwrap();
    place.refuses(&folder, "config.json is missing");
    let ended = place.convert(
        &[&Path::new(FIXTURES).join("f32.pth")],
        &["--future-tokens", "2"],
    );
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
}
