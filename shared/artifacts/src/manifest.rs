//! The manifest: what an artifact consists of and where it comes from.
//!
//! Reading is strict: sizes, paths, digests and part tables are checked before any content is fetched, and
//! the id, the recipe's hash and the cache key are computed again and must agree.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use unicode_normalization::UnicodeNormalization;

use crate::canonical::MAX_DEPTH;
use crate::digest::hex;
use crate::scan::{Crc64, part_size};
use crate::{
    ArtifactId, Digest, Error, Kind, Result, RunId, cache_key, canonical_json, decimals_as_strings,
};

/// Schema of the manifests that this version writes; images carry it as a label.
pub const SCHEMA: &str = "wmtp.artifact/1";

/// Largest manifest that is read: 64 MiB.
pub(crate) const MAX_BYTES: u64 = 64 << 20;
const MAX_FILES: usize = 100_000;
const MAX_FILE_SIZE: u64 = 5 << 40;
const MAX_PATH: usize = 512;

/// One file of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Relative path with `/`, normalised (NFC).
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Digest of the content, and thereby its key.
    pub sha256: Digest,
    /// Checksums of the parts; present only above one part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<Parts>,
}

/// Checksums of the equally long parts of a large file, so that each part can be checked on arrival.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// Bytes of each part but the last.
    pub size: u64,
    /// CRC64NVME of each part in order.
    pub crc64nvme: Vec<Crc64>,
}

/// What an artifact's id covers: its files and its attributes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Sorted by path.
    pub files: Vec<FileEntry>,
    /// Small facts about the content that a reader wants before fetching it.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

/// An artifact that another was made from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Input {
    /// What it was used as.
    pub role: String,
    /// Which artifact.
    pub id: ArtifactId,
}

/// Who made an artifact, from what, how. Not part of the id: equal content keeps the first maker's.
#[derive(Debug, Clone, PartialEq)]
pub struct Provenance {
    /// Job name.
    pub job: String,
    /// Its run.
    pub run_id: RunId,
    /// Attempt within the run, from 1.
    pub attempt: u32,
    /// Version of the program.
    pub code_version: String,
    /// The commit that it was built from, as [`RunRequest::code_revision`](crate::RunRequest::code_revision); none where
    /// an older program wrote it.
    pub code_revision: Option<String>,
    /// The job's hand-bumped number of output-changing code.
    pub recipe_version: u32,
    /// The resolved recipe, or null; stored with floats as decimal strings.
    pub recipe: Value,
    /// The options that went into the cache key.
    pub options: Value,
    /// Inputs by role.
    pub inputs: Vec<Input>,
    /// When the artifact was made.
    pub created_at: Timestamp,
}

impl Provenance {
    /// Digest of the resolved recipe.
    ///
    /// # Errors
    /// [`Error::Usage`] when the recipe is nested too deeply.
    pub fn recipe_hash(&self) -> Result<Digest> {
        let recipe = decimals_as_strings(&self.recipe);
        Ok(Digest::of(&canonical_json(&recipe)?))
    }

    /// The key under which the work is found again; see [`cache_key`].
    ///
    /// # Errors
    /// [`Error::Usage`] when the options hold a float or two inputs share a role.
    pub fn cache_key(&self) -> Result<Digest> {
        cache_key(&self.job, self.recipe_version, &self.inputs, &self.options)
    }
}

/// The commit object of an artifact.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// Name of the artifact, derived from kind and content.
    pub id: ArtifactId,
    /// Files and attributes.
    pub content: Content,
    /// Who made it.
    pub provenance: Provenance,
    /// Random mark of the one write that committed it.
    write_id: String,
}

/// The manifest as it is stored.
#[derive(Serialize, Deserialize)]
struct Document {
    schema: String,
    kind: Kind,
    id: ArtifactId,
    content: Content,
    producer: Producer,
    recipe: Value,
    recipe_hash: Digest,
    options: Value,
    cache_key: Digest,
    inputs: Vec<Input>,
    created_at: Timestamp,
    write_id: String,
}

#[derive(Serialize, Deserialize)]
struct Producer {
    job: String,
    run_id: RunId,
    attempt: u32,
    code: Code,
    recipe_version: u32,
}

#[derive(Serialize, Deserialize)]
struct Code {
    version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    commit: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    dirty: bool,
}

/// What follows a commit whose checkout had changes of its own.
const DIRTY: &str = "-dirty";

impl Code {
    fn of(provenance: &Provenance) -> Self {
        let revision = provenance.code_revision.as_deref();
        let commit = revision.map(|revision| revision.strip_suffix(DIRTY).unwrap_or(revision));
        Self {
            version: provenance.code_version.clone(),
            commit: commit.map(str::to_owned),
            dirty: revision.is_some_and(|revision| revision.ends_with(DIRTY)),
        }
    }

    fn revision(&self) -> Option<String> {
        let dirty = if self.dirty { DIRTY } else { "" };
        Some(format!("{}{dirty}", self.commit.as_ref()?))
    }
}

impl Manifest {
    /// The manifest of content that this process is about to commit.
    pub(crate) fn new(kind: Kind, content: Content, provenance: Provenance) -> Result<Self> {
        check_content(&content)
            .map_err(|detail| Error::bad_input(format!("new {kind} artifact"), detail))?;
        let value = serde_json::to_value(&content).expect("content holds only text and integers");
        let recipe = decimals_as_strings(&provenance.recipe);
        Ok(Self {
            id: content_id(kind, SCHEMA, &value)?,
            content,
            provenance: Provenance {
                recipe,
                ..provenance
            },
            write_id: new_write_id(),
        })
    }

    /// What the artifact holds.
    pub fn kind(&self) -> Kind {
        self.id.kind()
    }

    /// A fact about the content.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.content.attributes.get(name).map(String::as_str)
    }

    /// The entry of a file.
    pub fn file(&self, path: &str) -> Option<&FileEntry> {
        let files = &self.content.files;
        let index = files
            .binary_search_by(|file| file.path.as_str().cmp(path))
            .ok()?;
        files.get(index)
    }

    /// Bytes of all files together.
    pub fn size(&self) -> u64 {
        self.content.files.iter().map(|file| file.size).sum()
    }

    /// The stored form: canonical JSON.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        let provenance = &self.provenance;
        let document = Document {
            schema: SCHEMA.to_owned(),
            kind: self.kind(),
            id: self.id.clone(),
            content: self.content.clone(),
            producer: Producer {
                job: provenance.job.clone(),
                run_id: provenance.run_id.clone(),
                attempt: provenance.attempt,
                code: Code::of(provenance),
                recipe_version: provenance.recipe_version,
            },
            recipe: provenance.recipe.clone(),
            recipe_hash: provenance.recipe_hash()?,
            options: provenance.options.clone(),
            cache_key: provenance.cache_key()?,
            inputs: provenance.inputs.clone(),
            created_at: provenance.created_at,
            write_id: self.write_id.clone(),
        };
        let value = serde_json::to_value(document).expect("a manifest holds only JSON types");
        canonical_json(&value)
    }

    /// Reads and checks a stored manifest. Unknown fields are ignored.
    ///
    /// # Errors
    /// [`Error::BadInput`] when it breaks a rule of the format; [`Error::Corrupt`] when it is no JSON or when
    /// the id, recipe hash or cache key that it states is not what its own content gives.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() as u64 > MAX_BYTES {
            return Err(Error::bad_input(
                "manifest",
                format!("{} bytes; at most 64 MiB are read", bytes.len()),
            ));
        }
        let value = parse_strict(bytes)?;
        check_schema(&value)?;
        let document = Document::deserialize(&value)
            .map_err(|error| Error::bad_input("manifest", error.to_string()))?;
        let what = format!("manifest of {}", document.id);
        check_content(&document.content)
            .map_err(|detail| Error::bad_input(what.clone(), detail))?;
        let content = value.get("content").unwrap_or(&Value::Null);
        let id = content_id(document.kind, &document.schema, content)?;
        if id != document.id {
            return Err(Error::corrupt(
                what,
                format!("its content gives the id {id}"),
            ));
        }
        document.into_manifest(&what)
    }
}

impl Document {
    fn into_manifest(self, what: &str) -> Result<Manifest> {
        let provenance = Provenance {
            job: self.producer.job,
            run_id: self.producer.run_id,
            attempt: self.producer.attempt,
            code_revision: self.producer.code.revision(),
            code_version: self.producer.code.version,
            recipe_version: self.producer.recipe_version,
            recipe: self.recipe,
            options: self.options,
            inputs: self.inputs,
            created_at: self.created_at,
        };
        if provenance.recipe_hash()? != self.recipe_hash {
            return Err(Error::corrupt(
                what,
                "recipe_hash is not the digest of its recipe",
            ));
        }
        if provenance.cache_key()? != self.cache_key {
            return Err(Error::corrupt(
                what,
                "cache_key does not follow from job, inputs and options",
            ));
        }
        Ok(Manifest {
            id: self.id,
            content: self.content,
            provenance,
            write_id: self.write_id,
        })
    }
}

/// `<kind>-<first 40 digits of the digest over kind, schema and content>`.
fn content_id(kind: Kind, schema: &str, content: &Value) -> Result<ArtifactId> {
    let value = json!({"kind": kind, "schema": schema, "content": content});
    Ok(ArtifactId::new(kind, &Digest::of(&canonical_json(&value)?)))
}

/// 128 random bits: they tell our own write from an equal one of another process.
pub(crate) fn new_write_id() -> String {
    hex(&rand::random::<[u8; 16]>())
}

/// Refuses another major version; a minor one (`wmtp.artifact/1.3`) is read.
fn check_schema(value: &Value) -> Result<()> {
    let schema = value
        .get("schema")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let is_minor = |text: &str| {
        let digits = text.strip_prefix('.').unwrap_or_default();
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    match schema.strip_prefix(SCHEMA) {
        Some(rest) if rest.is_empty() || is_minor(rest) => Ok(()),
        _ => Err(Error::bad_input(
            "manifest",
            format!("schema {schema:?} is not read by this version; it reads {SCHEMA}"),
        )),
    }
}

/// The rules on files; the message says which file breaks which.
fn check_content(content: &Content) -> Result<(), String> {
    if content.files.len() > MAX_FILES {
        return Err(format!(
            "{} files; at most {MAX_FILES} are allowed",
            content.files.len()
        ));
    }
    let mut folded = BTreeSet::new();
    let mut previous: Option<&str> = None;
    for file in &content.files {
        check_path(&file.path).map_err(|detail| format!("file {:?}: {detail}", file.path))?;
        if previous.is_some_and(|previous| previous >= file.path.as_str()) {
            return Err(format!("file {:?} is not in sorted order", file.path));
        }
        previous = Some(&file.path);
        if !folded.insert(file.path.to_lowercase()) {
            return Err(format!(
                "file {:?} differs from another only in case",
                file.path
            ));
        }
        check_size(file).map_err(|detail| format!("file {:?}: {detail}", file.path))?;
    }
    Ok(())
}

/// Path rules: relative, `/`, NFC, no `.`, `..` or empty part, no control character, at most 512 bytes.
pub(crate) fn check_path(path: &str) -> Result<(), &'static str> {
    if path.is_empty() || path.len() > MAX_PATH {
        return Err("a path has 1 to 512 bytes");
    }
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err("a path has no empty, '.' or '..' part and does not begin with '/'");
    }
    if path.contains('\\') || path.chars().any(char::is_control) {
        return Err("a path has no backslash and no control character");
    }
    if !path.nfc().eq(path.chars()) {
        return Err("a path is in Unicode normal form C");
    }
    Ok(())
}

fn check_size(file: &FileEntry) -> Result<(), String> {
    if file.size > MAX_FILE_SIZE {
        return Err(format!("{} bytes; at most 5 TiB are allowed", file.size));
    }
    let expected = part_size(file.size);
    match &file.parts {
        None if file.size <= expected => Ok(()),
        None => Err("the part table is missing".to_owned()),
        Some(_) if file.size <= expected => Err("a file of one part has no part table".to_owned()),
        Some(parts) if parts.size != expected => Err(format!(
            "parts of {} bytes; expected {expected}",
            parts.size
        )),
        Some(parts) if parts.crc64nvme.len() as u64 != file.size.div_ceil(expected) => {
            Err(format!(
                "{} parts do not make {} bytes",
                parts.crc64nvme.len(),
                file.size
            ))
        }
        Some(_) => Ok(()),
    }
}

/// Parses JSON, refusing duplicate keys and deep nesting.
pub(crate) fn parse_strict(bytes: &[u8]) -> Result<Value> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde::de::DeserializeSeed::deserialize(Strict { depth: 0 }, &mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value));
    value.map_err(|error| match error.classify() {
        serde_json::error::Category::Data => {
            Error::bad_input("stored JSON object", error.to_string())
        }
        _ => Error::corrupt("stored JSON object", error.to_string()),
    })
}

/// Builds a value, at some depth.
struct Strict {
    depth: usize,
}

impl<'de> serde::de::DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.depth > MAX_DEPTH {
            return Err(serde::de::Error::custom(format!(
                "nested deeper than {MAX_DEPTH}"
            )));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Strict {
            depth: self.depth + 1,
        })? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(Strict {
                depth: self.depth + 1,
            })?;
            if map.contains_key(&key) {
                return Err(serde::de::Error::custom(format!(
                    "the key {key:?} occurs twice"
                )));
            }
            map.insert(key, value);
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(path: &str, bytes: &[u8]) -> FileEntry {
        FileEntry {
            path: path.to_owned(),
            size: bytes.len() as u64,
            sha256: Digest::of(bytes),
            parts: None,
        }
    }

    fn provenance() -> Provenance {
        Provenance {
            job: "prepare-data".to_owned(),
            run_id: "prepare-data-0123456789abcdef".parse().unwrap(),
            attempt: 1,
            code_version: "0.1.0".to_owned(),
            code_revision: None,
            recipe_version: 1,
            recipe: json!({"optim": {"lr": 0.001}}),
            options: json!({"seed": 42}),
            inputs: vec![],
            created_at: "2026-11-21T02:22:02Z".parse().unwrap(),
        }
    }

    fn manifest(files: Vec<FileEntry>) -> Manifest {
        let content = Content {
            files,
            attributes: BTreeMap::from([("rows".to_owned(), "2".to_owned())]),
        };
        Manifest::new(Kind::ProcessedData, content, provenance()).unwrap()
    }

    /// The stored form after an edit.
    fn edited(edit: impl FnOnce(&mut Value)) -> Result<Manifest> {
        let stored = manifest(vec![entry("a.json", b"{}"), entry("b/c.bin", b"x")])
            .to_bytes()
            .unwrap();
        let mut value: Value = serde_json::from_slice(&stored).unwrap();
        edit(&mut value);
        Manifest::parse(value.to_string().as_bytes())
    }

    #[test]
    fn a_manifest_reads_back_and_its_id_depends_on_content_alone() {
        let files = vec![entry("a.json", b"{}"), entry("b/c.bin", b"x")];
        let first = manifest(files.clone());
        let back = Manifest::parse(&first.to_bytes().unwrap()).unwrap();
        assert_eq!((&back.id, &back.content), (&first.id, &first.content));
        assert_eq!(back.file("b/c.bin").unwrap().size, 1);
        assert_eq!((back.size(), back.attribute("rows")), (3, Some("2")));
        let other = Provenance {
            job: "other".to_owned(),
            ..provenance()
        };
        let second = Manifest::new(Kind::ProcessedData, first.content.clone(), other).unwrap();
        assert_eq!(second.id, first.id);
        assert_ne!(second.write_id, first.write_id);
        assert_ne!(manifest(files[..1].to_vec()).id, first.id);
    }

    #[test]
    fn a_commit_is_told_with_whether_its_checkout_had_changes() {
        let content = Content::default();
        let stored = |revision: Option<&str>| {
            let provenance = Provenance {
                code_revision: revision.map(str::to_owned),
                ..provenance()
            };
            let made = Manifest::new(Kind::RawData, content.clone(), provenance).unwrap();
            let bytes = made.to_bytes().unwrap();
            let back = Manifest::parse(&bytes).unwrap();
            assert_eq!(back.provenance.code_revision.as_deref(), revision);
            let value: Value = serde_json::from_slice(&bytes).unwrap();
            (made.id, value["producer"]["code"].clone())
        };
        let (id, none) = stored(None);
        assert_eq!(none, json!({"version": "0.1.0"}));
        for (revision, code) in [
            (
                "0123abcd",
                json!({"version": "0.1.0", "commit": "0123abcd"}),
            ),
            (
                "0123abcd-dirty",
                json!({"version": "0.1.0", "commit": "0123abcd", "dirty": true}),
            ),
        ] {
            assert_eq!(stored(Some(revision)), (id.clone(), code));
        }
    }

    #[test]
    fn an_edited_manifest_is_damaged() {
        let edits: [fn(&mut Value); 4] = [
            |value| value["content"]["files"][0]["sha256"] = json!(Digest::of(b"?")),
            |value| value["content"]["attributes"]["rows"] = json!("3"),
            |value| value["recipe"]["optim"]["lr"] = json!("0.1"),
            |value| value["options"]["seed"] = json!(43),
        ];
        for edit in edits {
            let error = edited(edit).unwrap_err();
            assert_eq!(error.exit_class().code(), 76, "{error}");
        }
    }

    #[test]
    fn broken_rules_are_bad_input() {
        let edits: [fn(&mut Value); 8] = [
            |value| value["schema"] = json!("wmtp.artifact/2"),
            |value| value["schema"] = json!("wmtp.artifact/12"),
            |value| value["content"]["files"][0]["size"] = json!(-1),
            |value| value["content"]["files"][0]["size"] = json!(6_u64 << 40),
            |value| value["content"]["files"][0]["path"] = json!("../a"),
            |value| value["content"]["files"][1]["path"] = json!("A.JSON"),
            |value| value["content"]["files"][0]["sha256"] = json!("12"),
            |value| value["content"]["files"][0]["parts"] = json!({"size": 16, "crc64nvme": []}),
        ];
        for (number, edit) in edits.into_iter().enumerate() {
            let error = edited(edit).unwrap_err();
            assert_eq!(error.exit_class().code(), 65, "edit {number}: {error}");
        }
    }

    #[test]
    fn unknown_fields_and_minor_versions_are_read() {
        edited(|value| value["future"] = json!({"x": 1})).unwrap();
        assert!(check_schema(&json!({"schema": "wmtp.artifact/1.7"})).is_ok());
    }

    #[test]
    fn duplicate_keys_and_deep_nesting_are_refused() {
        assert_eq!(
            parse_strict(br#"{"a":1,"a":2}"#)
                .unwrap_err()
                .exit_class()
                .code(),
            65
        );
        let deep = format!("{}{}", "[".repeat(40), "]".repeat(40));
        assert_eq!(
            parse_strict(deep.as_bytes())
                .unwrap_err()
                .exit_class()
                .code(),
            65
        );
        assert_eq!(
            parse_strict(b"{\"a\":").unwrap_err().exit_class().code(),
            76
        );
    }

    #[test]
    fn two_paths_that_differ_in_case_only_are_refused() {
        let files = vec![entry("A", b"1"), entry("a", b"2")];
        let attributes = BTreeMap::new();
        assert!(check_content(&Content { files, attributes }).is_err());
    }

    #[test]
    fn path_rules() {
        for path in [
            "",
            "/a",
            "a//b",
            "a/",
            "./a",
            "a/..",
            "a\\b",
            "a\nb",
            "e\u{301}",
            &"a".repeat(513),
        ] {
            assert!(check_path(path).is_err(), "{path:?}");
        }
        for path in ["a", "a/b.c", "\u{e9}", "..a", &"a".repeat(512)] {
            check_path(path).unwrap();
        }
    }

    proptest! {
        #[test]
        fn an_accepted_path_stays_below_its_folder(path in "[a-z./\\\\]{1,12}") {
            if check_path(&path).is_ok() {
                let depth = std::path::Path::new(&path)
                    .components()
                    .all(|part| matches!(part, std::path::Component::Normal(_)));
                prop_assert!(depth, "{}", path);
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Manifest::parse(&bytes);
        }

        #[test]
        fn the_id_is_recomputed_from_any_content(names in prop::collection::btree_set("[a-z]{1,8}", 0..8)) {
            let files = names.iter().map(|name| entry(name, name.as_bytes())).collect();
            let first = manifest(files);
            prop_assert_eq!(Manifest::parse(&first.to_bytes().unwrap()).unwrap().id, first.id);
        }
    }

    /// What is accepted obeys the rules for paths and sizes, and is the same again when it is stored and read back.
    #[test]
    fn no_bytes_make_the_reader_fail() {
        let corpus = "tests/corpus/manifest";
        fuzzing::run(corpus.as_ref(), |bytes| match Manifest::parse(bytes) {
            Ok(manifest) => {
                for file in &manifest.content.files {
                    check_path(&file.path).unwrap();
                    assert!(file.size <= MAX_FILE_SIZE);
                }
                let again = Manifest::parse(&manifest.to_bytes().unwrap()).unwrap();
                assert_eq!(again, manifest);
                "a manifest".to_owned()
            }
            Err(error) => error.to_string(),
        });
    }
}
