//! Finished texts, saved while generation goes on: a later attempt does not generate them again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use wmtp_job_kit::{JobError, Run};
use wmtp_records::{Completion, jsonl};

/// Time between two saves; a killed attempt loses no more of its finished texts.
const EVERY: Duration = Duration::from_secs(30);

/// The completions of whole problems, in parts: each save adds one, and the others are in the store already.
pub(crate) struct Saved<'a> {
    run: &'a Run,
    dir: PathBuf,
    num_parts: usize,
    num_completions: usize,
    fresh: Vec<Completion>,
    last: Duration,
}

impl<'a> Saved<'a> {
    /// Begins; returns what earlier attempts of this run have saved.
    pub(crate) fn open(run: &'a Run) -> Result<(Self, Vec<Completion>), JobError> {
        let dir = run.scratch().join("completions");
        std::fs::create_dir_all(&dir)?;
        let mut saved = Self {
            run,
            dir,
            num_parts: 0,
            num_completions: 0,
            fresh: Vec::new(),
            last: run.elapsed(),
        };
        let mut found = Vec::new();
        if let Some((_, folder)) = run.latest_checkpoint()? {
            while let Some(part) = read_part(&folder, saved.num_parts)? {
                saved.write_part(&part)?;
                found.extend(part);
            }
        }
        Ok((saved, found))
    }

    /// Takes the completions of a problem, and saves when that is due.
    pub(crate) fn add(&mut self, completions: &[Completion]) -> Result<(), JobError> {
        self.fresh.extend_from_slice(completions);
        if self.run.elapsed().saturating_sub(self.last) < EVERY {
            return Ok(());
        }
        self.save()
    }

    /// Saves what is not saved yet.
    pub(crate) fn save(&mut self) -> Result<(), JobError> {
        if self.fresh.is_empty() {
            return Ok(());
        }
        let part = std::mem::take(&mut self.fresh);
        self.write_part(&part)?;
        self.last = self.run.elapsed();
        self.run
            .save_checkpoint(self.num_completions as u64, &self.dir, None)
    }

    fn write_part(&mut self, part: &[Completion]) -> Result<(), JobError> {
        jsonl::write(&part_path(&self.dir, self.num_parts), part)?;
        self.num_parts += 1;
        self.num_completions += part.len();
        Ok(())
    }
}

fn read_part(folder: &Path, number: usize) -> Result<Option<Vec<Completion>>, JobError> {
    let path = part_path(folder, number);
    if !path.exists() {
        return Ok(None);
    }
    Ok(Some(jsonl::read(&path)?))
}

fn part_path(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("part-{number:05}.jsonl"))
}
