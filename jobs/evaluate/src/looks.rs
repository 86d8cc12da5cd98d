//! Looks at the test set: each is registered in the store before a program is judged, and a second one is told as such.
//!
//! The test set serves the final report, once per version and protocol; checkpoint and temperature are chosen on
//! validation. Who judges again by another key (another checkpoint of the version, other settings) has seen what came of the
//! first. The same work begun again, or cut into shards, is the same look.

use serde_json::json;
use wmtp_artifacts::{Digest, Input, Touch, cache_key};
use wmtp_job_kit::{JobError, Manifest, PlanCx, Run};
use wmtp_recipe::Recipe;
use wmtp_records::{EarlierTouch, Split, TestTouch, data_files};

/// A look that is planned.
#[derive(Debug)]
pub(crate) struct Look {
    /// The problems of the test split.
    set: Digest,
    /// The version with its training seed, or the name of a model from outside.
    by: String,
    key: Digest,
    protocol: Digest,
}

impl Look {
    /// The look of somebody that judging by these inputs and options is; `None` where another split is judged.
    pub(crate) fn planned(
        recipe: &Recipe,
        data: &Manifest,
        by: String,
        (job, version): (&str, u32),
        inputs: &[Input],
        options: &serde_json::Value,
    ) -> Result<Option<Self>, JobError> {
        if recipe.evaluation.split != Split::Test {
            return Ok(None);
        }
        let problems = data_files::problems(Split::Test);
        let file = data.content.files.iter().find(|file| file.path == problems);
        let file = file.ok_or_else(|| {
            JobError::bad_input(format!("{} has no file {problems}", data.id))
                .hint("make the data set anew with prepare-data")
        })?;
        Ok(Some(Self {
            set: file.sha256,
            by,
            key: cache_key(job, version, inputs, options)?,
            protocol: protocol(recipe),
        }))
    }

    /// What `--dry-run` says of it.
    pub(crate) fn note(&self, cx: &PlanCx<'_>) -> Result<String, JobError> {
        let store = cx.store()?;
        let mut found = store.block_on(store.store().touches(&self.set, &self.by))?;
        if let Some(place) = found.iter().position(|touch| touch.key == self.key) {
            found.truncate(place);
        }
        Ok(self.told(&self.record(&found)))
    }

    /// Registers it, and says what was registered before.
    pub(crate) fn register(&self, run: &Run) -> Result<TestTouch, JobError> {
        let touch = Touch {
            key: self.key,
            protocol: self.protocol,
            run_id: run.run_id().parse()?,
            begun_at: run.now(),
        };
        let store = run.store();
        let mut found =
            store.block_on(store.store().register_touch(&self.set, &self.by, &touch))?;
        found.pop();
        let record = self.record(&found);
        run.event("test_touch", &json!(record));
        if record.earlier.is_empty() {
            run.log(self.told(&record));
        } else {
            run.warning(self.told(&record));
        }
        Ok(record)
    }

    fn record(&self, earlier: &[Touch]) -> TestTouch {
        let earlier: Vec<EarlierTouch> = earlier
            .iter()
            .map(|touch| EarlierTouch {
                run_id: touch.run_id.to_string(),
                begun_at: touch.begun_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                same_protocol: touch.protocol == self.protocol,
            })
            .collect();
        let same = earlier.iter().filter(|touch| touch.same_protocol).count();
        TestTouch {
            number: same + 1,
            earlier,
        }
    }

    fn told(&self, record: &TestTouch) -> String {
        let by = &self.by;
        if record.earlier.is_empty() {
            return format!("first look of {by} at this test set");
        }
        let runs: Vec<&str> = record
            .earlier
            .iter()
            .map(|touch| touch.run_id.as_str())
            .collect();
        format!(
            "no first look of {by} at this test set: touch {} under this protocol, and {} under others; earlier runs: {}",
            record.number,
            record.earlier.len() + 1 - record.number,
            runs.join(", ")
        )
    }
}

/// How is judged: the settings of the evaluation but which k are printed, for which the same programs are counted.
fn protocol(recipe: &Recipe) -> Digest {
    let mut settings = recipe.section_options(&["evaluation"]);
    if let Some(settings) = settings.as_object_mut() {
        settings.remove("evaluation.ks");
    }
    Digest::of(settings.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_protocol_is_how_is_sampled_and_judged() {
        let recipe = Recipe::default();
        let changed = |change: fn(&mut Recipe)| {
            let mut changed = recipe.clone();
            change(&mut changed);
            protocol(&changed) != protocol(&recipe)
        };
        assert!(changed(|recipe| recipe.evaluation.temperature = 0.8));
        assert!(changed(|recipe| recipe.evaluation.num_samples = 1));
        assert!(changed(|recipe| recipe.evaluation.max_problems = Some(10)));
        // Neither another training nor another draw is another protocol.
        assert!(!changed(|recipe| recipe.seed += 1));
        assert!(!changed(|recipe| recipe.optim.lr *= 2.0));
        assert!(!changed(|recipe| recipe.evaluation.ks = vec![1]));
        assert!(!changed(|recipe| recipe.evaluation.speculate = false));
    }

    #[test]
    fn touches_are_counted_under_the_protocol_and_all_are_listed() {
        let (set, key) = (Digest::of(b"set"), Digest::of(b"key"));
        let look = Look {
            set,
            by: "v001-s42".to_owned(),
            key,
            protocol: Digest::of(b"0.2"),
        };
        let touch = |protocol: &[u8], run: &str| Touch {
            key: Digest::of(run.as_bytes()),
            protocol: Digest::of(protocol),
            run_id: run.parse().unwrap(),
            begun_at: "2026-11-21T12:00:00.5Z".parse().unwrap(),
        };
        let first = look.record(&[]);
        assert_eq!((first.number, first.earlier.len()), (1, 0));
        assert_eq!(look.told(&first), "first look of v001-s42 at this test set");
        let third = look.record(&[touch(b"0.2", "evaluate-1"), touch(b"0.8", "evaluate-2")]);
        assert_eq!(third.number, 2);
        assert_eq!(third.earlier[0].begun_at, "2026-11-21T12:00:00Z");
        assert_eq!(
            look.told(&third),
            "no first look of v001-s42 at this test set: touch 2 under this protocol, and 1 under others; earlier runs: \
             evaluate-1, evaluate-2"
        );
    }
}
