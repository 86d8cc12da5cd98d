//! A Dockerfile as stages of instructions.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::Error;

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// First line, from 1.
    pub line: usize,
    /// In capitals.
    pub word: String,
    /// What follows, lines joined.
    pub rest: String,
}

/// A `FROM` and what follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Line of its `FROM`.
    pub line: usize,
    /// Its name.
    pub name: String,
    /// Image or earlier stage.
    pub base: String,
    /// The instructions behind `FROM`.
    pub instructions: Vec<Instruction>,
}

/// A whole file.
#[derive(Debug, Clone)]
pub struct Dockerfile {
    /// Defaults of the ARGs before the first stage.
    pub args: BTreeMap<String, String>,
    /// In the order of the file.
    pub stages: Vec<Stage>,
}

impl Dockerfile {
    /// Reads a file.
    ///
    /// # Errors
    /// Where it cannot be read, or an instruction stands where none may.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::File {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|message| Error::Syntax {
            path: path.to_owned(),
            message,
        })
    }

    /// [`Dockerfile::read`] of a text.
    ///
    /// # Errors
    /// The line, and what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut file = Self {
            args: BTreeMap::new(),
            stages: Vec::new(),
        };
        for instruction in instructions(text) {
            match (instruction.word.as_str(), file.stages.last_mut()) {
                ("FROM", _) => file.stages.push(stage(&instruction)?),
                (_, Some(stage)) => stage.instructions.push(instruction),
                ("ARG", None) => {
                    let (name, default) = instruction
                        .rest
                        .split_once('=')
                        .unwrap_or((&instruction.rest, ""));
                    file.args.insert(name.to_owned(), default.to_owned());
                }
                (word, None) => {
                    return Err(format!(
                        "line {}: {word} stands before the first FROM",
                        instruction.line
                    ));
                }
            }
        }
        Ok(file)
    }

    /// A stage by its name.
    pub fn stage(&self, name: &str) -> Option<&Stage> {
        self.stages.iter().find(|stage| stage.name == name)
    }

    /// A stage and those that it stands on, the upmost first; the last one's base is an image.
    pub fn line_of(&self, name: &str) -> Vec<&Stage> {
        let mut line: Vec<&Stage> = self.stage(name).into_iter().collect();
        while let Some(below) = line.last().and_then(|stage| self.stage(&stage.base)) {
            if line.contains(&below) {
                break;
            }
            line.push(below);
        }
        line
    }

    /// The image that a stage stands on, with the file's own ARGs filled in.
    pub fn base_image(&self, name: &str) -> Option<String> {
        let base = &self.line_of(name).last()?.base;
        let variable = base
            .strip_prefix("${")
            .and_then(|rest| rest.strip_suffix('}'));
        match variable {
            Some(variable) => self.args.get(variable).cloned(),
            None => Some(base.clone()),
        }
    }
}

fn stage(from: &Instruction) -> Result<Stage, String> {
    let words: Vec<&str> = from
        .rest
        .split_whitespace()
        .filter(|word| !word.starts_with("--"))
        .collect();
    match words[..] {
        [base, keyword, name] if keyword.eq_ignore_ascii_case("as") => Ok(Stage {
            line: from.line,
            name: name.to_owned(),
            base: base.to_owned(),
            instructions: Vec::new(),
        }),
        _ => Err(format!(
            "line {}: expected FROM BASE AS NAME, found FROM {}",
            from.line, from.rest
        )),
    }
}

fn instructions(text: &str) -> Vec<Instruction> {
    let mut found: Vec<Instruction> = Vec::new();
    let mut is_open = false;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (part, goes_on) = match line.strip_suffix('\\') {
            Some(part) => (part.trim_end(), true),
            None => (line, false),
        };
        if let Some(open) = found.last_mut().filter(|_| is_open) {
            open.rest.push(' ');
            open.rest.push_str(part);
        } else {
            let (word, rest) = part.split_once(char::is_whitespace).unwrap_or((part, ""));
            found.push(Instruction {
                line: index + 1,
                word: word.to_ascii_uppercase(),
                rest: rest.trim_start().to_owned(),
            });
        }
        is_open = goes_on;
    }
    found
}
