//! `wmtp-store promotions`: what the gate was asked for models, what it found and what it answered.

use serde_json::json;
use wmtp_artifacts::Promotion;
use wmtp_job_kit::{JobError, Tool, ToolCx};

use crate::counted;
use crate::stop::unless_stopped;

/// Command line of `promotions`.
#[derive(Debug, clap::Args)]
pub struct ListPromotions {
    /// Only those of this model
    #[arg(value_name = "MODEL")]
    model: Option<String>,
}

impl Tool for ListPromotions {
    const ABOUT: &'static str = "Lists what `build-leaderboard promote` was asked, the oldest first, and which conditions of \
                                 its gate did not hold.";
    const EXAMPLES: &'static str = "wmtp-store promotions --store s3://wmtp/demo
        wmtp-store promotions --store s3://wmtp/demo micropy --json";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let store = cx.store()?.store().clone();
        let found = unless_stopped(cx, async {
            let models = match &self.model {
                Some(model) => vec![model.clone()],
                None => store.promoted_models().await?,
            };
            let mut found = Vec::new();
            for model in models {
                let entries = store.promotions(&model).await?.entries.into_iter();
                found.extend(entries.map(|entry| (model.clone(), entry)));
            }
            Ok(found)
        })?;
        for (model, entry) in &found {
            // Whoever may write to the store wrote these words.
            cx.print(line(model, entry).escape_debug().to_string());
            for check in entry.gate.iter().filter(|check| !check.holds) {
                let text = format!("{}: {}", check.condition, check.found);
                cx.print(format!("    {}", text.escape_debug()));
            }
        }
        cx.print(counted(found.len() as u64, "promotion"));
        let rows: Vec<_> = found
            .iter()
            .map(|(model, entry)| json!({"model": model, "promotion": entry}))
            .collect();
        cx.json_result(json!({ "promotions": rows }));
        Ok(())
    }
}

fn line(model: &str, entry: &Promotion) -> String {
    let answer = if entry.granted { "granted" } else { "refused" };
    let at = entry.at.strftime("%Y-%m-%d %H:%M UTC");
    let (version, to) = (&entry.version_id, entry.to);
    format!("{at}  {model}  {version} to {to}: {answer}")
}
