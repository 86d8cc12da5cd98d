//! `wmtp-store model`: what a model can do.

use serde_json::json;
use wmtp_job_kit::{JobError, Tool, ToolCx};

use crate::stop::unless_stopped;

/// Command line of `model`.
#[derive(Debug, clap::Args)]
pub struct Model {
    /// Base model or checkpoint: id, name, or KIND/NAME where several kinds share a name
    #[arg(value_name = "NAME_OR_ARTIFACT")]
    artifact: String,
}

impl Tool for Model {
    const ABOUT: &'static str =
        "Shows what a model can do: heads, vocabulary, context, number format.";
    const EXAMPLES: &'static str = "wmtp-store model --store s3://wmtp/demo base-model/micro-mtp
        wmtp-store model --store s3://wmtp/demo --json v001-s42";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let store = cx.store()?.store().clone();
        let id = unless_stopped(cx, store.resolve_any(&self.artifact))?;
        let store = cx.store()?;
        let found = store.capabilities(&store.manifest(&id)?)?;
        let known = |value: Option<String>| value.unwrap_or_else(|| "not known".to_owned());
        let speculates = if found.speculative_decoding {
            "yes"
        } else {
            "no"
        };
        let lines = [
            ("model", id.to_string()),
            ("prediction heads", found.heads.to_string()),
            ("predicts ahead", format!("{} tokens", found.horizon)),
            ("vocabulary", format!("{} tokens", found.vocab)),
            (
                "longest trained row",
                known(found.context.map(|tokens| format!("{tokens} tokens"))),
            ),
            ("stored numbers", known(found.dtype.clone())),
            ("speculative decoding", speculates.to_owned()),
        ];
        for (name, value) in lines {
            cx.print(format!("{name:<21} {value}"));
        }
        cx.json_result(json!({"model": id, "capabilities": found}));
        Ok(())
    }
}
