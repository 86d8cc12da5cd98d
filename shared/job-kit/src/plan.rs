//! What a job is about to do, decided before anything is computed.

use std::path::PathBuf;

use serde_json::{Map, Value};
use wmtp_artifacts::{ArtifactId, Input, Kind, Manifest};
use wmtp_recipe::{Origin, Recipe, Resolved};

use crate::{JobError, StoreHandle};

/// What a job reads, what determines its outputs, and what it writes.
#[derive(Debug, Clone)]
pub struct Plan<W> {
    /// Inputs by role, beside those of [`PlanCx::input`], which the kit adds.
    pub inputs: Vec<(String, ArtifactId)>,
    /// Every setting that can change a byte of the outputs; no floats, numbers as decimal strings.
    pub options: Value,
    /// Outputs by role.
    pub outputs: Vec<(String, Kind)>,
    /// What [`crate::Job::run`] is given.
    pub work: W,
    /// Sentences for `--dry-run` and `--explain`.
    pub notes: Vec<String>,
}

impl<W> Plan<W> {
    /// A plan without inputs, options and outputs.
    pub fn new(work: W) -> Self {
        Self {
            inputs: Vec::new(),
            options: Value::Object(Map::new()),
            outputs: Vec::new(),
            work,
            notes: Vec::new(),
        }
    }

    /// Adds one option.
    #[must_use]
    pub fn option(mut self, key: &str, value: impl Into<Value>) -> Self {
        let mut one = Map::new();
        one.insert(key.to_owned(), value.into());
        self.merge(one);
        self
    }

    /// Adds the members of an object, such as [`Recipe::section_options`].
    #[must_use]
    pub fn options(mut self, options: Value) -> Self {
        match options {
            Value::Object(members) => self.merge(members),
            other => {
                let mut one = Map::new();
                one.insert("options".to_owned(), other);
                self.merge(one);
            }
        }
        self
    }

    /// The same plan with other work.
    pub fn with_work<V>(self, work: V) -> Plan<V> {
        let Self {
            inputs,
            options,
            outputs,
            notes,
            ..
        } = self;
        Plan {
            inputs,
            options,
            outputs,
            work,
            notes,
        }
    }

    /// Adds an output.
    #[must_use]
    pub fn output(mut self, role: &str, kind: Kind) -> Self {
        self.outputs.push((role.to_owned(), kind));
        self
    }

    /// Adds a sentence for people.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    fn merge(&mut self, members: Map<String, Value>) {
        match &mut self.options {
            Value::Object(present) => present.extend(members),
            other => *other = Value::Object(members),
        }
    }
}

/// What a plan may look at: settings and the store, for reading only.
pub struct PlanCx<'a> {
    pub(crate) resolved: Option<&'a Resolved>,
    pub(crate) store: &'a StoreHandle,
    pub(crate) inputs: Vec<(Input, Manifest)>,
}

impl PlanCx<'_> {
    /// The resolved recipe.
    ///
    /// # Errors
    /// Exit code 2 when there is no `--recipe`.
    pub fn recipe(&self) -> Result<&Recipe, JobError> {
        recipe(self.resolved)
    }

    /// Whether something other than the schema gives this setting its value.
    pub fn is_set(&self, key: &str) -> bool {
        self.resolved
            .and_then(|resolved| resolved.origin(key))
            .is_some_and(|origin| *origin != Origin::Default)
    }

    /// Registers an input, given as artifact id or as name.
    ///
    /// # Errors
    /// Exit code 65 when the store does not have it.
    pub fn input(&mut self, role: &str, kind: Kind, reference: &str) -> Result<Manifest, JobError> {
        let read = || {
            let id = self.store.resolve(kind, reference)?;
            self.store.manifest(&id)
        };
        let manifest = read().map_err(|error| {
            let context = format!("input {role}: {kind} {reference:?}");
            error.context(context)
        })?;
        let input = Input {
            role: role.to_owned(),
            id: manifest.id.clone(),
        };
        self.inputs.push((input, manifest.clone()));
        Ok(manifest)
    }

    /// The inputs that are registered so far.
    pub fn inputs(&self) -> Vec<Input> {
        self.inputs.iter().map(|(input, _)| input.clone()).collect()
    }

    /// The files of an artifact, for plans that must look inside.
    pub fn fetch(&mut self, id: &ArtifactId) -> Result<PathBuf, JobError> {
        self.store.fetch(id)
    }

    /// The store, for reading only.
    pub fn store(&self) -> Result<&StoreHandle, JobError> {
        Ok(self.store)
    }
}

/// Attribute that data sets, bundles and everything made from them carry.
pub const TOKENIZER_SHA256: &str = "tokenizer_sha256";

/// Checks that two inputs, given with their roles, were made with the same tokenizer: a model reads ids, and those of another
/// one would be noise to it.
///
/// # Errors
/// Exit code 65 for other inputs, and for one that does not say.
pub fn check_tokenizers(one: (&str, &Manifest), other: (&str, &Manifest)) -> Result<(), JobError> {
    let of = |(role, manifest): (&str, &Manifest)| {
        manifest
            .attribute(TOKENIZER_SHA256)
            .map(str::to_owned)
            .ok_or_else(|| {
                let id = &manifest.id;
                JobError::bad_input(format!(
                    "the input {role} ({id}) does not say which tokenizer it is for"
                ))
            })
    };
    if of(one)? == of(other)? {
        return Ok(());
    }
    let error = format!(
        "the inputs {} ({}) and {} ({}) are for different tokenizers",
        one.0, one.1.id, other.0, other.1.id
    );
    Err(JobError::bad_input(error)
        .hint("token ids mean nothing under another tokenizer: make both from the same data set"))
}

pub(crate) fn recipe(resolved: Option<&Resolved>) -> Result<&Recipe, JobError> {
    resolved.map(|resolved| &resolved.recipe).ok_or_else(|| {
        JobError::usage("this needs a recipe")
            .hint("add --recipe FILE, such as storage/recipes/micropy/v001.yaml")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use wmtp_artifacts::Kind;

    use super::Plan;

    #[test]
    fn options_add_up() {
        let plan = Plan::new(())
            .option("a", "1")
            .options(json!({"b": "2"}))
            .option("a", "3")
            .output("data", Kind::ProcessedData)
            .note("as asked");
        assert_eq!(plan.options, json!({"a": "3", "b": "2"}));
        assert_eq!(plan.outputs, [("data".to_owned(), Kind::ProcessedData)]);
        assert_eq!(plan.notes, ["as asked"]);
    }
}
