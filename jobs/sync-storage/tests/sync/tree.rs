//! A whole storage folder with one command.

use wmtp_artifacts::RunState;

use super::*;

impl Place {
    /// A storage folder: a bundle of somebody's, a micro model, a placeholder; two data sets, one without raw rows; and a
    /// small part for this machine.
    fn storage(&self) {
        self.data_set();
        self.id(&[&CREATE[..], &["seeded"]].concat());
        let pull = ["pull", "seeded", "--kind", "base-model", "--to"];
        self.id(&[&pull[..], &["storage/models_v2/micro-ref"]].concat());
        self.id(&[&pull[..], &["storage/models_v2/tuned"]].concat());
        // As from elsewhere: only weights, tokenizer and sizes.
        for file in ["metadata.json", "configs/meta_adapter.yaml"] {
            std::fs::remove_file(self.path("storage/models_v2/tuned").join(file)).unwrap();
        }
        self.file(
            "storage/models_v2/later/metadata.json",
            r#"{"status": "optional"}"#,
        );
        self.file("storage/models_v2/.tuned.part/half", "half");
        self.file("storage/models_v2/README.md", "text");
        self.file("storage/datasets_v2/rows/raw/rows.jsonl", "{}\n");
        self.file("storage/datasets_v2/rows/processed/train.jsonl", "{}\n");
        self.file("storage/datasets_v2/made/processed/train.jsonl", "{}\n");
        self.file(
            "storage/datasets_local_small/rows_small/train_small.jsonl",
            "{}\n",
        );
    }

    /// Runs the command and gives what `--json` says.
    fn push_tree(&self, flags: &[&str]) -> Value {
        let ended = self.run(&[&["push-tree", "storage", "--json"][..], flags].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended.result()
    }

    fn named(&self, kind: Kind, name: &str) -> Option<String> {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let store = trial::connect(&self.server, STORE).await;
            let id = store.name(kind, name).await.unwrap();
            id.map(|id| id.to_string())
        })
    }

    /// The state that the run that made an artifact ended in, and its kinds of events.
    fn life_of_maker(&self, id: &str) -> (RunState, Vec<String>) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let store = trial::connect(&self.server, STORE).await;
            let manifest = store.manifest(&id.parse().unwrap()).await.unwrap();
            let run = store.run(&manifest.provenance.run_id).await.unwrap();
            let events = run.events.iter();
            let kinds = events.map(|event| event["type"].as_str().unwrap().to_owned());
            (run.status.unwrap().state, kinds.collect())
        })
    }
}

fn column<'a>(result: &'a Value, rows: &str, field: &str) -> Vec<&'a Value> {
    let rows = result[rows].as_array().unwrap().iter();
    rows.map(|row| &row[field]).collect()
}

#[test]
fn a_storage_folder_goes_with_one_command_and_is_not_sent_twice() {
    let place = Place::new();
    place.storage();
    let dry = place.run(&["push-tree", "storage", "--dry-run"]);
    assert_eq!(dry.code, Some(0), "{}", dry.stderr);
    for line in [
        "would push: raw-data rows (1 files, 3 B); 3 B of it in 1 files are not stored yet",
        "left out: storage/models_v2/later: a placeholder without weights",
        "left out: storage/models_v2/micro-ref: `sync-storage create` makes it from a seed",
        "left out: storage/datasets_v2/made: it has no folder raw",
        "left out: storage/datasets_local_small/rows_small: a small part for this machine",
        "nothing was touched",
    ] {
        assert!(dry.stdout.contains(line), "{line}\n{}", dry.stdout);
    }
    // Its weights are those of the micro model, which the store has.
    assert!(
        dry.stdout.contains("base-model tuned (4 files"),
        "{}",
        dry.stdout
    );
    assert!(
        dry.stdout
            .contains("; 0 B of it in 0 files are not stored yet"),
        "{}",
        dry.stdout
    );
    assert_eq!(place.named(Kind::RawData, "rows"), None);

    let pushed = place.push_tree(&["--verify"]);
    assert_eq!(column(&pushed, "pushed", "name"), ["tuned", "rows"]);
    assert_eq!(column(&pushed, "pushed", "equal"), [false, false]);
    for row in pushed["pushed"].as_array().unwrap() {
        let (kind, name) = (row["kind"].as_str().unwrap(), row["name"].as_str().unwrap());
        let id = row["artifact"].as_str().unwrap();
        assert_eq!(
            place.named(kind.parse().unwrap(), name).as_deref(),
            Some(id)
        );
        let (state, events) = place.life_of_maker(id);
        assert_eq!(state, RunState::Completed, "{name}");
        assert_eq!(
            events.first().map(String::as_str),
            Some("started"),
            "{name}"
        );
        assert_eq!(
            events.last().map(String::as_str),
            Some("completed"),
            "{name}"
        );
    }
    assert_eq!(
        column(&place.push_tree(&[]), "pushed", "equal"),
        [true, true]
    );
    let dry = place.push_tree(&["--dry-run"]);
    assert_eq!(column(&dry, "pushed", "equal"), [true, true]);

    let all = place.push_tree(&["--include-local-small"]);
    let names = ["micro-ref", "tuned", "rows", "rows_small"];
    assert_eq!(column(&all, "pushed", "name"), names);
    assert_eq!(column(&all, "pushed", "equal"), [false, true, true, false]);
    assert_eq!(
        place.named(Kind::BaseModel, "micro-ref"),
        place.named(Kind::BaseModel, "seeded")
    );
}

#[test]
fn a_damaged_folder_is_named_and_the_rest_goes_on_once_it_is_mended() {
    let place = Place::new();
    for name in ["a", "b", "c"] {
        place.file(&format!("storage/datasets_v2/{name}/raw/rows.jsonl"), name);
    }
    place.file(
        "storage/datasets_v2/b/raw/SHA256SUMS",
        &format!("{}  rows.jsonl\n", "0".repeat(64)),
    );
    let ended = place.run(&["push-tree", "storage"]);
    assert_eq!(ended.code, Some(76), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("storage/datasets_v2/b/raw"),
        "{}",
        ended.stderr
    );
    assert!(place.named(Kind::RawData, "a").is_some() && place.named(Kind::RawData, "c").is_none());
    std::fs::remove_file(place.path("storage/datasets_v2/b/raw/SHA256SUMS")).unwrap();
    let result = place.push_tree(&[]);
    assert_eq!(column(&result, "pushed", "equal"), [true, false, false]);
}

#[test]
fn what_cannot_be_a_storage_folder_or_a_name_is_refused_before_anything_is_sent() {
    let place = Place::new();
    place.file("storage/other/file", "text");
    let other = place.run(&["push-tree", "storage"]);
    assert_eq!(other.code, Some(65), "{}", other.stderr);
    assert!(other.stderr.contains("models_v2"), "{}", other.stderr);
    for name in ["first", "with blank"] {
        place.file(
            &format!("storage/datasets_v2/{name}/raw/rows.jsonl"),
            "{}\n",
        );
    }
    let blank = place.run(&["push-tree", "storage"]);
    assert_eq!(blank.code, Some(2), "{}", blank.stderr);
    assert!(blank.stderr.contains("with blank"), "{}", blank.stderr);
    assert_eq!(place.named(Kind::RawData, "first"), None);
    let named = place.run(&["push-tree", "storage", "--name", "one"]);
    assert_eq!(named.code, Some(2), "{}", named.stderr);
}
