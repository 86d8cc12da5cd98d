//! The bake file: which images there are. The part of `docker buildx bake` that ours uses; anything else in it is an error,
//! so that no engine builds something else than buildx would.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::error::Error;

/// One image to build, all variables filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name on the command line.
    pub name: String,
    /// Folder that the Dockerfile copies from, seen from where the command runs.
    pub context: String,
    /// The Dockerfile.
    pub dockerfile: String,
    /// Stage of the Dockerfile.
    pub stage: String,
    /// Values of its ARGs.
    pub args: BTreeMap<String, String>,
    /// Labels beside those of the Dockerfile.
    pub labels: BTreeMap<String, String>,
    /// Names of the image.
    pub tags: Vec<String>,
    /// Machines that it is for.
    pub platforms: Vec<String>,
}

/// What a bake file says.
#[derive(Debug, Clone)]
pub struct Bake {
    targets: BTreeMap<String, Target>,
    groups: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    variable: BTreeMap<String, Variable>,
    #[serde(default)]
    group: BTreeMap<String, Group>,
    target: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    default: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    targets: Vec<String>,
}

#[derive(Deserialize, Clone, Default)]
#[serde(deny_unknown_fields, default)]
struct Block {
    inherits: Vec<String>,
    matrix: BTreeMap<String, Vec<String>>,
    name: Option<String>,
    context: Option<String>,
    dockerfile: Option<String>,
    target: Option<String>,
    args: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    tags: Vec<String>,
    platforms: Vec<String>,
}

impl Bake {
    /// Reads a bake file; `environment` gives variables other values, as it does for buildx.
    ///
    /// # Errors
    /// Where the file cannot be read, or uses what this reader does not know.
    pub fn read(path: &Path, environment: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::File {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, environment).map_err(|message| Error::Syntax {
            path: path.to_owned(),
            message,
        })
    }

    /// [`Bake::read`] of a text.
    ///
    /// # Errors
    /// What is wrong, and in which part.
    pub fn parse(text: &str, environment: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let file: File = typed(serde_json::from_str(text).map_err(|error| error.to_string())?)?;
        let variables: BTreeMap<String, String> = file
            .variable
            .into_iter()
            .map(|(name, variable)| {
                let value = environment(&name).unwrap_or(variable.default);
                (name, value)
            })
            .collect();
        let blocks = file
            .target
            .into_iter()
            .map(|(name, value)| {
                let block: Block =
                    typed(value).map_err(|error| format!("target.{name}: {error}"))?;
                Ok((name, block))
            })
            .collect::<Result<Vec<_>, String>>()?;
        let mut bake = Self {
            targets: BTreeMap::new(),
            groups: BTreeMap::new(),
        };
        for (name, group) in file.group {
            bake.groups.insert(name, group.targets);
        }
        let merged = blocks
            .iter()
            .map(|(name, block)| {
                let whole = with_parents(block, &blocks);
                Ok((
                    name,
                    whole.map_err(|error| format!("target.{name}: {error}"))?,
                ))
            })
            .collect::<Result<Vec<_>, String>>()?;
        let is_inherited = |name: &String| {
            blocks
                .iter()
                .any(|(_, block)| block.inherits.contains(name))
        };
        // What others inherit from is no image of its own.
        for (name, block) in merged.iter().filter(|(name, _)| !is_inherited(name)) {
            bake.expand(name, block, &variables)
                .map_err(|error| format!("target.{name}: {error}"))?;
        }
        Ok(bake)
    }

    fn expand(
        &mut self,
        name: &str,
        block: &Block,
        variables: &BTreeMap<String, String>,
    ) -> Result<(), String> {
        let mut members = Vec::new();
        for values in combinations(&block.matrix, variables) {
            let target = target(name, block, &values)?;
            members.push(target.name.clone());
            if let Some(twin) = self.targets.insert(target.name.clone(), target) {
                return Err(format!("{:?} is made twice", twin.name));
            }
        }
        if !block.matrix.is_empty() {
            self.groups.insert(name.to_owned(), members);
        }
        Ok(())
    }

    /// Every image, by name.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.targets.values()
    }

    /// The images of names of targets and groups; of the group `default` where there are no names.
    ///
    /// # Errors
    /// A name that the file does not have.
    pub fn select(&self, names: &[String]) -> Result<Vec<&Target>, Error> {
        let default = ["default".to_owned()];
        let mut open: Vec<&String> = if names.is_empty() { &default } else { names }
            .iter()
            .rev()
            .collect();
        let mut chosen: Vec<&Target> = Vec::new();
        while let Some(name) = open.pop() {
            if let Some(group) = self.groups.get(name) {
                open.extend(group.iter().rev());
            } else if let Some(target) = self.targets.get(name) {
                if !chosen.contains(&target) {
                    chosen.push(target);
                }
            } else {
                let known: Vec<&str> = self
                    .groups
                    .keys()
                    .chain(self.targets.keys())
                    .map(String::as_str)
                    .collect();
                return Err(Error::NoTarget {
                    name: name.clone(),
                    known: known.join(", "),
                });
            }
        }
        Ok(chosen)
    }

    /// What `docker buildx bake --print` says of the same file.
    pub fn print(&self) -> Value {
        let groups: Map<String, Value> = self
            .groups
            .iter()
            .map(|(name, members)| (name.clone(), json!({"targets": members})))
            .collect();
        let targets: Map<String, Value> = self
            .targets
            .values()
            .map(|target| {
                let value = json!({
                    "context": target.context,
                    "dockerfile": target.dockerfile,
                    "args": target.args,
                    "labels": target.labels,
                    "tags": target.tags,
                    "target": target.stage,
                    "platforms": target.platforms,
                });
                (target.name.clone(), value)
            })
            .collect();
        json!({"group": groups, "target": targets})
    }
}

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| error.to_string())
}

/// A block with what it inherits; its own values win.
fn with_parents(block: &Block, blocks: &[(String, Block)]) -> Result<Block, String> {
    let mut merged = Block::default();
    for parent in &block.inherits {
        let found = blocks.iter().find(|(name, _)| name == parent);
        let (_, found) = found.ok_or_else(|| format!("inherits {parent:?}, which is not there"))?;
        merged = overlaid(merged, &with_parents(found, blocks)?);
    }
    Ok(overlaid(merged, block))
}

fn overlaid(below: Block, above: &Block) -> Block {
    let list = |above: &Vec<String>, below: Vec<String>| {
        if above.is_empty() {
            below
        } else {
            above.clone()
        }
    };
    let (mut args, mut labels) = (below.args, below.labels);
    args.extend(above.args.clone());
    labels.extend(above.labels.clone());
    Block {
        inherits: Vec::new(),
        matrix: above.matrix.clone(),
        name: above.name.clone(),
        context: above.context.clone().or(below.context),
        dockerfile: above.dockerfile.clone().or(below.dockerfile),
        target: above.target.clone().or(below.target),
        args,
        labels,
        tags: list(&above.tags, below.tags),
        platforms: list(&above.platforms, below.platforms),
    }
}

/// The variables with each combination of a matrix' values beside them.
fn combinations(
    matrix: &BTreeMap<String, Vec<String>>,
    variables: &BTreeMap<String, String>,
) -> Vec<BTreeMap<String, String>> {
    let mut all = vec![variables.clone()];
    for (key, values) in matrix {
        all = all
            .iter()
            .flat_map(|known| {
                values.iter().map(|value| {
                    let mut more = known.clone();
                    more.insert(key.clone(), value.clone());
                    more
                })
            })
            .collect();
    }
    all
}

fn target(name: &str, block: &Block, values: &BTreeMap<String, String>) -> Result<Target, String> {
    let fill = |text: &str| filled(text, values);
    let needed = |field: &Option<String>, what: &str| {
        let text = field
            .as_deref()
            .ok_or_else(|| format!("{what} is missing"))?;
        fill(text)
    };
    let all = |texts: &[String]| -> Result<Vec<String>, String> {
        texts.iter().map(|text| fill(text)).collect()
    };
    let map = |texts: &BTreeMap<String, String>| {
        let filled = texts
            .iter()
            .map(|(key, text)| Ok((key.clone(), fill(text)?)));
        filled.collect::<Result<BTreeMap<_, _>, String>>()
    };
    Ok(Target {
        name: block.name.as_deref().map_or(Ok(name.to_owned()), fill)?,
        context: needed(&block.context, "context")?,
        dockerfile: needed(&block.dockerfile, "dockerfile")?,
        stage: needed(&block.target, "target")?,
        args: map(&block.args)?,
        labels: map(&block.labels)?,
        tags: all(&block.tags).and_then(|tags| {
            if tags.is_empty() {
                return Err("tags is missing: an image without a name cannot be found".to_owned());
            }
            Ok(tags)
        })?,
        platforms: all(&block.platforms)?,
    })
}

/// A text with its `${NAME}` replaced.
fn filled(text: &str, values: &BTreeMap<String, String>) -> Result<String, String> {
    let mut made = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, behind) = after
            .split_once('}')
            .ok_or_else(|| format!("{text:?}: ${{ is never closed"))?;
        let value = values
            .get(name)
            .ok_or_else(|| format!("{text:?}: there is no variable {name:?}"))?;
        made.push_str(before);
        made.push_str(value);
        rest = behind;
    }
    made.push_str(rest);
    Ok(made)
}
