//! Finished texts, saved while generation goes on: a later attempt does not generate them again.
//!
//! The thread that finished a text puts it into the journal on this disk before it goes on, so a killed process loses
//! none. All but those of the last half minute are in the store, so a machine that dies costs no more than that.

use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wmtp_job_kit::{JobError, Run};
use wmtp_records::jsonl;

use crate::journal::Journal;
use crate::texts::{Text, Texts};

/// Time between two saves to the store; a machine that dies loses no more of its finished texts.
const EVERY: Duration = Duration::from_secs(30);

/// The state of a run in parts: each save adds one, and the others are in the store already.
pub(crate) struct Saved<'a> {
    run: &'a Run,
    dir: PathBuf,
    num_parts: usize,
    num_texts: usize,
    /// Not in the store yet.
    fresh: Vec<Text>,
    last: Duration,
}

impl<'a> Saved<'a> {
    /// Begins; returns the journal to write to, and what earlier attempts of this run have finished.
    pub(crate) fn open(run: &'a Run) -> Result<(Self, Journal, Texts), JobError> {
        let dir = run.scratch().join("texts");
        std::fs::create_dir_all(&dir)?;
        let (journal, on_disk) = Journal::open(&run.kept_dir()?.join("texts.jsonl"))?;
        let mut saved = Self {
            run,
            dir,
            num_parts: 0,
            num_texts: 0,
            fresh: Vec::new(),
            last: run.elapsed(),
        };
        let mut found = Texts::new();
        if let Some((_, folder)) = run.latest_checkpoint()? {
            while let Some(part) = read_part(&folder, saved.num_parts)? {
                saved.write_part(&part)?;
                found.extend(part.into_iter().map(|text| (text.key(), text)));
            }
        }
        for text in on_disk {
            if let Entry::Vacant(place) = found.entry(text.key()) {
                saved.fresh.push(text.clone());
                place.insert(text);
            }
        }
        Ok((saved, journal, found))
    }

    /// Takes a text that is in the journal, and saves to the store when that is due.
    pub(crate) fn add(&mut self, text: Text) -> Result<(), JobError> {
        self.fresh.push(text);
        if self.run.elapsed().saturating_sub(self.last) < EVERY {
            return Ok(());
        }
        self.save()
    }

    /// Saves to the store what is not there yet.
    pub(crate) fn save(&mut self) -> Result<(), JobError> {
        if self.fresh.is_empty() {
            return Ok(());
        }
        let part = std::mem::take(&mut self.fresh);
        self.write_part(&part)?;
        self.last = self.run.elapsed();
        self.run
            .save_checkpoint(self.num_texts as u64, &self.dir, None)
    }

    fn write_part(&mut self, part: &[Text]) -> Result<(), JobError> {
        jsonl::write(&part_path(&self.dir, self.num_parts), part)?;
        self.num_parts += 1;
        self.num_texts += part.len();
        Ok(())
    }
}

fn read_part(folder: &Path, number: usize) -> Result<Option<Vec<Text>>, JobError> {
    let path = part_path(folder, number);
    if !path.exists() {
        return Ok(None);
    }
    Ok(Some(jsonl::read(&path)?))
}

fn part_path(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("texts-{number:05}.jsonl"))
}
