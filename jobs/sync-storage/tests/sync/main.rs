//! Folders to artifacts and back, through the binary and a real store.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod tree;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use candle_core::{Tensor, Var};
use dev_store::TestServer;
use serde_json::Value;
use trial::Ended;
use wmtp_artifacts::{Draft, Kind, Provenance, RunId, cache_key};
use wmtp_model::{DType, Device, MtpModel, ParamStore, Params, load_hugging_face, next_token};
use wmtp_tokens::Tokenizer;

const STORE: &str = "s3://wmtp/test";
/// What makes a model from a seed, up to its name.
const CREATE: [&str; 6] = ["create", "--model", "micro-ref", "--data", "tiny", "--name"];

struct Place {
    folder: tempfile::TempDir,
    server: TestServer,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = TestServer::start(&folder.path().join("store"));
        Self { folder, server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn run(&self, args: &[&str]) -> Ended {
        self.run_with(args, &[])
    }

    fn run_with(&self, args: &[&str], variables: &[(&str, &Path)]) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sync-storage"));
        command
            .args(args)
            .current_dir(self.folder.path())
            .env_clear()
            .envs(trial::variables(&self.server))
            .env("WMTP_STORE", STORE)
            .envs(variables.iter().copied())
            .stdin(Stdio::null());
        Ended::of(&mut command)
    }

    fn id(&self, args: &[&str]) -> String {
        let mut args = args.to_vec();
        args.push("--json");
        let ended = self.run(&args);
        assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
        ended.result()["outputs"]["artifact"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Stores the part of a processed data set that `create` reads, under the name `tiny`.
    fn data_set(&self) {
        let root = self.path("data");
        let tokenizer = Tokenizer::train(&["def f(a, b):\n    return a + b\n"; 4], 300).unwrap();
        tokenizer
            .save(&root.join("tokenizer/tokenizer.json"))
            .unwrap();
        let draft = Draft {
            kind: Kind::ProcessedData,
            root,
            attributes: BTreeMap::from([(
                "vocab_size".to_owned(),
                tokenizer.vocab_size().to_string(),
            )]),
        };
        let key = cache_key("test", 1, &[], &Value::Null).unwrap();
        let provenance = Provenance {
            job: "test".to_owned(),
            run_id: RunId::for_work("test", &key),
            attempt: 1,
            code_version: "0".to_owned(),
            code_revision: None,
            recipe_version: 1,
            recipe: Value::Null,
            options: Value::Null,
            inputs: Vec::new(),
            created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
        };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let store = trial::connect(&self.server, STORE).await;
            let manifest = store.publish(&draft, &provenance).await.unwrap();
            store
                .set_name(Kind::ProcessedData, "tiny", &manifest.id)
                .await
                .unwrap();
        });
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn raw_data_goes_there_and_comes_back() {
    let place = Place::new();
    place.file("raw/rows.jsonl", "{}\n");
    place.file("raw/more/notes.txt", "notes");
    let push = [
        "push", "--kind", "raw-data", "--folder", "raw", "--name", "rows", "--verify",
    ];
    let dry = place.run(&[&push[..], &["--dry-run"]].concat());
    assert_eq!(dry.code, Some(0), "{}", dry.stderr);
    assert!(dry.stdout.contains("nothing was touched"), "{}", dry.stdout);
    let id = place.id(&push);
    assert_eq!(place.id(&push), id);

    let pull = [
        "pull", "rows", "--kind", "raw-data", "--to", "copy", "--verify",
    ];
    assert_eq!(place.id(&pull), id);
    assert_eq!(read(&place.path("copy/more/notes.txt")), "notes");
    assert!(read(&place.path("copy/SHA256SUMS")).contains("  more/notes.txt\n"));
    // What is there already is left alone; anything else is not overwritten.
    assert_eq!(place.id(&pull), id);
    place.file("copy/rows.jsonl", "changed");
    let refused = place.run(&pull);
    assert_eq!(refused.code, Some(65), "{}", refused.stderr);
}

#[test]
fn folders_that_are_no_data_are_refused() {
    let place = Place::new();
    let push = ["push", "--kind", "raw-data", "--folder", "raw"];
    assert_eq!(place.run(&push).code, Some(65));
    std::fs::create_dir(place.path("raw")).unwrap();
    let empty = place.run(&push);
    assert_eq!(empty.code, Some(65), "{}", empty.stderr);
    assert!(empty.stderr.contains("holds no files"), "{}", empty.stderr);
    place.file("raw/a", "a");
    place.file("raw/SHA256SUMS", &format!("{}  a\n", "0".repeat(64)));
    assert_eq!(place.run(&push).code, Some(76));
    let absent = place.run(&["pull", "nobody", "--kind", "base-model", "--to", "x"]);
    assert_eq!(absent.code, Some(65), "{}", absent.stderr);
    let kindless = place.run(&["pull", "nobody", "--to", "x"]);
    assert_eq!(kindless.code, Some(2), "{}", kindless.stderr);
}

#[test]
fn a_created_model_is_seeded_and_survives_a_round_trip() {
    let place = Place::new();
    place.data_set();
    let create = [&CREATE[..], &["ref"]].concat();
    let id = place.id(&create);
    assert_eq!(place.id(&[&create[..], &["--force"]].concat()), id);
    assert_ne!(place.id(&[&create[..], &["--seed", "43"]].concat()), id);

    place.id(&["pull", &id, "--to", "bundle"]);
    let metadata: Value = serde_json::from_str(&read(&place.path("bundle/metadata.json"))).unwrap();
    assert_eq!(metadata["model_name"], "micro-ref");
    assert_eq!(metadata["dtype"], "float32");
    let push = ["push", "--kind", "base-model", "--folder", "bundle"];
    assert_eq!(place.id(&push), id);

    let model = place.path("bundle/safetensors/model.safetensors");
    let bytes = std::fs::read(&model).unwrap();
    std::fs::write(&model, &bytes[..bytes.len() / 2]).unwrap();
    let truncated = place.run(&push);
    assert_eq!(truncated.code, Some(65), "{}", truncated.stderr);
    assert!(
        truncated.stderr.contains("truncated"),
        "{}",
        truncated.stderr
    );
}

#[test]
fn help_shows_modes_and_examples() {
    let place = Place::new();
    let all = place.run(&["--help"]).stdout;
    for mode in ["push", "push-tree", "create", "pull", "export"] {
        assert!(all.contains(mode), "{all}");
        let help = place.run(&[mode, "--help"]).stdout;
        assert!(help.contains(&format!("sync-storage {mode} ")), "{help}");
        assert!(help.contains("--store"), "{help}");
    }
}

/// A base model of these sizes under this name, as a bundle of a folder of its own.
fn push_model(place: &Place, name: &str, params: &Params) -> ParamStore {
    let root = place.path(name);
    for folder in ["safetensors", "configs", "tokenizer"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    let store = ParamStore::init(params, 7, DType::F32, &Device::Cpu).unwrap();
    store
        .save(&root.join("safetensors/model.safetensors"))
        .unwrap();
    params.save(&root.join("configs/params.json")).unwrap();
    let tokenizer = place.path("data/tokenizer/tokenizer.json");
    std::fs::copy(tokenizer, root.join("tokenizer/tokenizer.json")).unwrap();
    place.id(&[
        "push",
        "--kind",
        "base-model",
        "--folder",
        name,
        "--name",
        name,
    ]);
    store
}

/// One head and several, grouped keys, another rotary base, another norm, a feed-forward width that was rounded up.
fn configurations(vocab_size: usize) -> [(&'static str, Params); 3] {
    let micro = Params {
        dim: 32,
        n_layers: 5,
        n_heads: 4,
        n_kv_heads: 4,
        multiple_of: 16,
        n_future_tokens: 4,
        ..Params::micro_mtp(vocab_size)
    };
    let grouped = Params {
        n_kv_heads: 2,
        rope_theta: 500_000.0,
        n_layers: 4,
        n_future_tokens: 2,
        ..micro.clone()
    };
    let single = Params {
        dim: 48,
        n_heads: 3,
        n_kv_heads: 1,
        norm_eps: 1e-3,
        ffn_dim_multiplier: 1.3,
        n_layers: 3,
        n_future_tokens: 1,
        ..micro.clone()
    };
    [("micro", micro), ("grouped", grouped), ("single", single)]
}

fn vocab_size(place: &Place) -> usize {
    let path = place.path("data/tokenizer/tokenizer.json");
    Tokenizer::load(&path).unwrap().vocab_size()
}

#[test]
fn an_exported_model_reads_back_to_the_bit_and_says_what_is_left_out() {
    let place = Place::new();
    place.data_set();
    for (name, params) in configurations(vocab_size(&place)) {
        let store = push_model(&place, name, &params);
        let to = format!("exported/{name}");
        let export = ["export", name, "--kind", "base-model", "--to", &to];
        let dry = place.run(&[&export[..], &["--dry-run"]].concat());
        assert_eq!(dry.code, Some(0), "{}", dry.stderr);
        assert!(!place.path(&to).exists(), "a dry run touches nothing");
        let done = place.run(&export);
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        let left_out = format!("{} further heads are left out", params.num_horizons() - 1);
        assert!(done.stdout.contains(&left_out), "{}", done.stdout);
        let weights = place.path(&to).join("model.safetensors");
        let back = load_hugging_face(&weights, &next_token(&params), DType::F32, &Device::Cpu);
        for (tensor, var) in back.unwrap().iter() {
            let bits = |var: &Var| var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(bits(var), bits(store.get(tensor).unwrap()), "{tensor}");
        }
        let again = place.run(&export);
        assert_eq!(again.code, Some(65), "{}", again.stderr);
        assert!(
            again.stderr.contains("is there already"),
            "{}",
            again.stderr
        );
        let names: Vec<_> = std::fs::read_dir(place.path("exported")).unwrap().collect();
        assert!(names.len() <= 3, "nothing half-made is left: {names:?}");
    }
    let data = place.run(&["export", "tiny", "--kind", "processed-data", "--to", "x"]);
    assert_eq!(data.code, Some(2), "{}", data.stderr);
    assert!(data.stderr.contains("no language model"), "{}", data.stderr);
}

/// Puts the tensors of one safetensors file into two with an index beside them, as large models come.
fn shard(folder: &Path) {
    let whole = folder.join("model.safetensors");
    let bytes = std::fs::read(&whole).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes)
        .unwrap()
        .tensors();
    let mut index = serde_json::Map::new();
    for (number, part) in tensors.chunks(tensors.len().div_ceil(2)).enumerate() {
        let name = format!("model-{number}-of-2.safetensors");
        let text = safetensors::serialize(part.iter().cloned(), None).unwrap();
        std::fs::write(folder.join(&name), text).unwrap();
        index.extend(
            part.iter()
                .map(|(tensor, _)| (tensor.clone(), name.as_str().into())),
        );
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": index}).to_string();
    std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    std::fs::remove_file(whole).unwrap();
}

#[test]
fn an_exported_model_is_converted_back_to_the_bit_and_pushed() {
    let place = Place::new();
    place.data_set();
    for (name, params) in configurations(vocab_size(&place)) {
        let store = push_model(&place, name, &params);
        let heads = params.num_horizons().to_string();
        let from = format!("exported/{name}");
        let done = place.run(&["export", name, "--kind", "base-model", "--to", &from]);
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        if name == "grouped" {
            shard(&place.path(&from));
        }
        // Another writing of the same tokenizer: its bytes are kept.
        let tokenizer: Value =
            serde_json::from_str(&read(&place.path(&from).join("tokenizer.json"))).unwrap();
        place.file(&format!("{from}/tokenizer.json"), &tokenizer.to_string());
        let heads = heads.as_str();
        let runs = [("1", vec![]), (heads, vec!["--future-tokens", heads])];
        for (heads, more) in &runs {
            let to = format!("back/{name}-{heads}");
            let convert = [&["convert", "--from", &from, "--to", &to], &more[..]].concat();
            let done = place.run(&convert);
            assert_eq!(done.code, Some(0), "{}", done.stderr);
            let root = place.path(&to);
            let sizes = Params::load(&root.join("configs/params.json")).unwrap();
            assert_eq!(sizes.tensor_shapes().len(), 3 + 9 * sizes.n_layers);
            assert_eq!(sizes.n_future_tokens.to_string(), *heads);
            let expected = next_token(&params);
            let plain = |sizes: &Params| Params {
                multiple_of: 1,
                ffn_dim_multiplier: 1.0,
                ..next_token(sizes)
            };
            assert_eq!(plain(&sizes), plain(&expected), "{name}");
            assert_eq!(sizes.ffn_dim(), expected.ffn_dim(), "{name}");
            let model = root.join("safetensors/model.safetensors");
            let back = ParamStore::load(&model, &sizes, DType::F32, &Device::Cpu).unwrap();
            let first = format!("layers.{}", params.num_trunk_blocks());
            for (tensor, var) in back.iter() {
                let bits = |var: &Var| var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                // A further head begins as the block of the first.
                let head = tensor.strip_prefix("extra_heads.");
                let block = head.and_then(|rest| rest.split_once('.'));
                let origin = block.map_or(tensor.to_owned(), |(_, rest)| format!("{first}.{rest}"));
                assert_eq!(
                    bits(var),
                    bits(store.get(&origin).unwrap()),
                    "{name} {tensor}"
                );
            }
            assert_eq!(
                read(&root.join("tokenizer/tokenizer.json")),
                tokenizer.to_string()
            );
            place.id(&[
                "push",
                "--kind",
                "base-model",
                "--folder",
                &to,
                "--name",
                "again",
            ]);
            let again = place.run(&convert);
            assert_eq!(again.code, Some(65), "{}", again.stderr);
            assert!(
                again.stderr.contains("is there already"),
                "{}",
                again.stderr
            );
            if params.num_horizons() == 1 {
                break;
            }
        }
    }
    let names = std::fs::read_dir(place.path("back")).unwrap().count();
    assert_eq!(names, 5, "nothing half-made is left");

    // Weights alone, without the folder that says how they lie, are told apart.
    let root = place.path("bare");
    for folder in ["safetensors", "tokenizer"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    let from = place.path("exported/micro");
    for (file, to) in [
        ("model.safetensors", "safetensors"),
        ("tokenizer.json", "tokenizer"),
    ] {
        std::fs::copy(from.join(file), root.join(to).join(file)).unwrap();
    }
    let bare = place.run(&["push", "--kind", "base-model", "--folder", "bare"]);
    assert_eq!(bare.code, Some(65), "{}", bare.stderr);
    assert!(
        bare.stderr.contains("Hugging Face's names"),
        "{}",
        bare.stderr
    );
    assert!(
        bare.stderr.contains("sync-storage convert"),
        "{}",
        bare.stderr
    );
}

#[test]
fn transformers_gives_the_logits_of_head_1() {
    compare_with_transformers("hugging-face", &["transformers"]);
}

#[test]
fn transformers_gives_the_logits_of_head_1_from_gguf() {
    compare_with_transformers("gguf", &["transformers", "accelerate", "gguf"]);
}

/// Holds head 1 of three exported configurations against `transformers`, where Python has the modules for it.
#[expect(clippy::print_stderr, reason = "a skipped comparison must be seen")]
fn compare_with_transformers(format: &str, modules: &[&str]) {
    let python = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../.wmtp/pytorch/bin/python"
    );
    let has_modules = Command::new(python)
        .args(["-c", &format!("import {}", modules.join(", "))])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !has_modules {
        let modules = modules.join(" or ");
        eprintln!("SKIPPED: {modules} is not installed; `make test-full` installs it");
        return;
    }
    let place = Place::new();
    place.data_set();
    let text = "def f(a, b):\n    return a + b\n";
    let tokenizer = Tokenizer::load(&place.path("data/tokenizer/tokenizer.json")).unwrap();
    let mut ids = vec![tokenizer.bos()];
    ids.extend(tokenizer.encode(text));
    for (name, params) in configurations(tokenizer.vocab_size()) {
        let store = push_model(&place, name, &params);
        let to = format!("exported/{name}");
        let export = ["export", name, "--kind", "base-model", "--to", &to];
        let done = place.run(&[&export[..], &["--format", format]].concat());
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        let output = Command::new(python)
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/fixtures/logits.py"
            ))
            .arg(place.path(&to))
            .arg(text)
            .args(ids.iter().map(u32::to_string))
            .env("HF_HUB_OFFLINE", "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(found["problems"], serde_json::json!({}), "{name}");
        assert_eq!(found["ids"], serde_json::json!(ids[1..]), "{name}");
        let special = [tokenizer.bos(), tokenizer.eos()];
        assert_eq!(found["special"], serde_json::json!(special), "{name}");
        assert_eq!(found["dtype"], "torch.float32");

        let ours = logits_of_head_1(&params, &store, &ids);
        let theirs = found["logits"].as_array().unwrap();
        assert_eq!(ours.len(), theirs.len(), "{name}");
        let gap = ours
            .iter()
            .zip(theirs)
            .map(|(ours, theirs)| (f64::from(*ours) - theirs.as_f64().unwrap()).abs())
            .fold(0.0, f64::max);
        let largest = ours
            .iter()
            .fold(0.0_f32, |most, logit| most.max(logit.abs()));
        eprintln!("{format} {name}: head-1 logits up to {largest:.2} differ by at most {gap:.1e}");
        assert!(largest > 0.1, "{name}: logits that say nothing");
        assert!(gap <= 1e-4, "{name}: {gap}");
    }
}

fn logits_of_head_1(params: &Params, store: &ParamStore, ids: &[u32]) -> Vec<f32> {
    let model = MtpModel::frozen(params, store).unwrap();
    let input = Tensor::new(ids, &Device::Cpu)
        .unwrap()
        .unsqueeze(0)
        .unwrap();
    let trunk = model.trunk(&input).unwrap();
    let first = params.horizons().next().unwrap();
    let hidden = model.head_hidden(first, &trunk).unwrap();
    let logits = model.logits(&hidden).unwrap().flatten_all().unwrap();
    logits.to_vec1().unwrap()
}

#[test]
fn a_model_in_gguf_says_what_it_takes_and_is_one_file_beside_its_tokenizer() {
    let place = Place::new();
    place.data_set();
    let (name, params) = configurations(vocab_size(&place))
        .into_iter()
        .next()
        .unwrap();
    push_model(&place, name, &params);
    let export = ["export", name, "--kind", "base-model", "--to", "to"];
    let done = place.run(&[&export[..], &["--format", "gguf", "--json"]].concat());
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(
        done.stdout.contains("\"format\":\"gguf\""),
        "{}",
        done.stdout
    );
    assert!(
        done.stderr.contains("takes token ids alone"),
        "{}",
        done.stderr
    );
    let mut names: Vec<_> = std::fs::read_dir(place.path("to"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["model.gguf", "tokenizer.json", "tokenizer_config.json"]
    );
    let wrong = place.run(&[&export[..], &["--format", "onnx"]].concat());
    assert_eq!(wrong.code, Some(2), "{}", wrong.stderr);
}

/// Puts files into a server under `plain/`, as another program would.
fn put_plain(server: &TestServer, files: &[(&str, &[u8])]) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = trial::connect(server, "s3://wmtp/plain").await;
        for (path, bytes) in files {
            let sent = store.put_page(path, bytes.to_vec().into(), "text/plain", "no-store");
            sent.await.unwrap();
        }
    });
}

/// The source has an endpoint and a key of its own; the variables are those of our store.
#[test]
fn objects_of_another_store_become_a_folder() {
    let place = Place::new();
    let other = TestServer::start(&place.path("other"));
    let large = vec![7; (16 << 20) + 1];
    let sums = format!("{}  a/large.bin\n", wmtp_artifacts::Digest::of(&large));
    put_plain(
        &other,
        &[
            ("a/large.bin", &large),
            ("b.txt", b"text"),
            ("SHA256SUMS", sums.as_bytes()),
        ],
    );
    let keys = format!(
        "[other]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        other.access_key(),
        other.secret_key()
    );
    place.file("credentials", &keys);
    let (credentials, config) = (place.path("credentials"), place.path("config"));
    let variables = [
        ("AWS_SHARED_CREDENTIALS_FILE", credentials.as_path()),
        ("AWS_CONFIG_FILE", config.as_path()),
    ];
    place.file("config", "");
    let endpoint = other.endpoint();
    let args = [
        "download",
        "s3://wmtp/plain",
        "--to",
        "got",
        "--endpoint",
        endpoint,
    ];
    let with_keys = [&args[..], &["--profile", "other"]].concat();
    let dry = place.run_with(&[&with_keys[..], &["--dry-run"]].concat(), &variables);
    assert_eq!(dry.code, Some(0), "{}", dry.stderr);
    assert!(!place.path("got").exists());
    for answer in ["is in got", "already there"] {
        let ended = place.run_with(&with_keys, &variables);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let said = ended.stdout + &ended.stderr;
        assert!(said.contains(answer), "{said}");
    }
    assert!(std::fs::read(place.path("got/a/large.bin")).unwrap() == large);
    assert_eq!(std::fs::read(place.path("got/b.txt")).unwrap(), b"text");
    // With the keys of our store the other does not let us in, and says whose keys it were.
    std::fs::remove_dir_all(place.path("got")).unwrap();
    let refused = place.run(&args);
    assert_eq!(refused.code, Some(69), "{}", refused.stderr);
    assert!(!refused.stderr.contains(place.server.secret_key()));
    // What does not have the digest that its checksum file states never becomes the folder.
    put_plain(&other, &[("a/large.bin", b"altered")]);
    let altered = place.run_with(&with_keys, &variables);
    assert_eq!(altered.code, Some(76), "{}", altered.stderr);
    assert!(!place.path("got").exists());
}

#[test]
fn a_profile_needs_the_endpoint_that_it_is_for() {
    let place = Place::new();
    let ended = place.run(&["download", "s3://wmtp/x", "--to", "got", "--profile", "p"]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("--endpoint"), "{}", ended.stderr);
}
