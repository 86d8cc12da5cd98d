//! The memory of promotion: what a gate was asked for a model, what it found and what it answered.
//!
//! Numbered records that only grow in number. Aliases ([`Alias`]) are names and may move back by hand; these records say
//! what was let through, wherever the next question is asked.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::kind::check_name;
use crate::manifest::parse_strict;
use crate::{Alias, ArtifactId, AuditAct, Error, Result, Store, generations, layout};

/// One condition of a gate, and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateCheck {
    /// The condition, in words.
    pub condition: String,
    /// Whether it holds.
    pub holds: bool,
    /// What was found, in words.
    pub found: String,
}

/// One question to the gate with its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promotion {
    /// When, by the clock of whoever asked.
    pub at: Timestamp,
    /// The version that was to move.
    pub version_id: String,
    /// Its checkpoint; none where it has none here.
    pub checkpoint: Option<ArtifactId>,
    /// Where it was.
    pub from: Option<Alias>,
    /// Where it was to go.
    pub to: Alias,
    /// Whether it went.
    pub granted: bool,
    /// Every condition.
    pub gate: Vec<GateCheck>,
    /// The leaderboard that was read.
    pub leaderboard: ArtifactId,
}

/// All promotions of a model, as they were read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Promotions {
    /// The oldest first.
    pub entries: Vec<Promotion>,
    /// Number of the next.
    next: u64,
}

impl Promotions {
    /// Where a checkpoint was let through to last.
    pub fn stage_of(&self, checkpoint: &ArtifactId) -> Option<Alias> {
        let mut granted = self.entries.iter().rev().filter(|entry| entry.granted);
        let last = granted.find(|entry| entry.checkpoint.as_ref() == Some(checkpoint))?;
        Some(last.to)
    }
}

impl Store {
    /// What the gate was asked for a model so far.
    ///
    /// # Errors
    /// [`Error::Usage`] where the model's name could be no part of a name; [`Error::Corrupt`] where a record is none.
    pub async fn promotions(&self, model: &str) -> Result<Promotions> {
        check_name("model", model)?;
        let folder = layout::promotions(model);
        let records = generations::all(&self.bucket, &folder).await?;
        let next = records.last().map_or(0, |(number, _)| number + 1);
        let parse = |(number, bytes): &(u64, bytes::Bytes)| {
            serde_json::from_value(parse_strict(bytes)?).map_err(|error| {
                let what = format!("{folder} generation {number} in {}", self.bucket.place());
                Error::corrupt(what, error.to_string())
            })
        };
        let entries = records.iter().map(parse).collect::<Result<_>>()?;
        Ok(Promotions { entries, next })
    }

    /// Adds a promotion behind those that it was decided on.
    ///
    /// # Errors
    /// [`Error::NotYet`] where another was added meanwhile: this one has to be decided anew.
    pub async fn record_promotion(
        &self,
        model: &str,
        before: &Promotions,
        promotion: &Promotion,
    ) -> Result<()> {
        check_name("model", model)?;
        let request = json!({
            "model": model,
            "number": before.next,
            "version": promotion.version_id,
            "checkpoint": promotion.checkpoint,
            "to": promotion.to,
            "granted": promotion.granted,
        });
        self.audit(AuditAct::Promote, request).await?;
        let value = serde_json::to_value(promotion).expect("a promotion holds only text");
        let folder = layout::promotions(model);
        if generations::append_at(&self.bucket, &folder, before.next, value).await? {
            return Ok(());
        }
        Err(Error::NotYet {
            what: format!("promotion of model {model}"),
            detail: "another one was decided meanwhile".to_owned(),
            hint: "run the same command again: it decides on what holds now".to_owned(),
        })
    }

    /// All models that a gate was ever asked for, sorted.
    pub async fn promoted_models(&self) -> Result<Vec<String>> {
        self.bucket.list_folders(layout::PROMOTIONS).await
    }
}
