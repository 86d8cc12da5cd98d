//! `wmtp-store names` and `wmtp-store name`: what artifacts are called, and what a name pointed to before.

use serde_json::json;
use wmtp_artifacts::{Alias, ArtifactId, Kind, Naming};
use wmtp_job_kit::{JobError, Tool, ToolCx};

use crate::counted;
use crate::stop::unless_stopped;

/// Command line of `names`.
#[derive(Debug, clap::Args)]
pub struct Names {
    /// What this name pointed to over time, the newest last, instead of all names
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Only names of artifacts of this kind
    #[arg(long, value_name = "KIND")]
    kind: Option<Kind>,
}

/// Command line of `name`.
#[derive(Debug, clap::Args)]
pub struct Name {
    /// The artifact: its id, another name of it, or KIND/NAME where several kinds share a name
    #[arg(value_name = "NAME_OR_ARTIFACT")]
    artifact: String,
    /// What it is called from now on; what the name pointed to before stays on record
    #[arg(value_name = "NAME")]
    name: String,
}

impl Tool for Names {
    const ABOUT: &'static str =
        "Lists the names of artifacts, or what one name pointed to over time.";
    const EXAMPLES: &'static str = "wmtp-store names --store s3://wmtp/demo --kind checkpoint
        wmtp-store names --store s3://wmtp/demo micropy-production";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let kinds = self
            .kind
            .map_or_else(|| Kind::ALL.to_vec(), |kind| vec![kind]);
        match &self.name {
            Some(name) => history(cx, &kinds, name),
            None => list(cx, &kinds),
        }
    }
}

fn list(cx: &mut ToolCx<'_>, kinds: &[Kind]) -> Result<(), JobError> {
    let store = cx.store()?.store().clone();
    let found = unless_stopped(cx, async {
        let mut found = Vec::new();
        for &kind in kinds {
            let names = store.names(kind).await?.into_iter();
            found.extend(names.map(|(name, id)| (kind, name, id)));
        }
        Ok(found)
    })?;
    for (kind, name, id) in &found {
        cx.print(format!("{kind}/{name}  {id}"));
    }
    cx.print(counted(found.len() as u64, "name"));
    let row = |(kind, name, id): &(Kind, String, ArtifactId)| json!({"kind": kind, "name": name, "artifact": id});
    let rows: Vec<_> = found.iter().map(row).collect();
    cx.json_result(json!({ "names": rows }));
    Ok(())
}

fn history(cx: &mut ToolCx<'_>, kinds: &[Kind], name: &str) -> Result<(), JobError> {
    let store = cx.store()?.store().clone();
    let found = unless_stopped(cx, async {
        let mut found = Vec::new();
        for &kind in kinds {
            let namings = store.namings(kind, name).await?.into_iter();
            found.extend(namings.map(|naming| (kind, naming)));
        }
        Ok(found)
    })?;
    if found.is_empty() {
        let error = format!("nothing in this store is or was called {name:?}");
        return Err(JobError::bad_input(error).hint("`wmtp-store names` lists all names"));
    }
    for (kind, Naming { artifact, at, .. }) in &found {
        let at = at.strftime("%Y-%m-%d %H:%M UTC");
        cx.print(format!("{at}  {kind}/{name}  {artifact}"));
    }
    let rows: Vec<_> = found.iter().map(|(_, naming)| naming).collect();
    cx.json_result(json!({ "name": name, "namings": rows }));
    Ok(())
}

impl Tool for Name {
    const ABOUT: &'static str = "Gives an artifact a name. The aliases that `build-leaderboard promote` moves through its \
                                 gate move by hand only back to where they were.";
    const EXAMPLES: &'static str =
        "wmtp-store name --store s3://wmtp/demo checkpoint/micropy-v002-s42 paper-model
        wmtp-store name --store s3://wmtp/demo checkpoint/micropy-v001-s42 micropy-production";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let store = cx.store()?.store().clone();
        let (id, before) = unless_stopped(cx, async {
            let id = store.resolve_any(&self.artifact).await?;
            let before = store.namings(id.kind(), &self.name).await?;
            Ok((id, before))
        })?;
        let is_alias = Alias::of_name(&self.name).is_some();
        if is_alias && before.iter().all(|naming| naming.artifact != id) {
            let error = format!("{} never pointed to {id}", self.name);
            return Err(JobError::refused(error)
                .hint("`build-leaderboard promote --name` moves it there, if its gate lets the version through"));
        }
        unless_stopped(cx, store.set_name(id.kind(), &self.name, &id))?;
        cx.print(format!("{}/{} is {id} now", id.kind(), self.name));
        if let Some(last) = before.last().filter(|last| last.artifact != id) {
            cx.print(format!("before it was {}", last.artifact));
        }
        if is_alias {
            cx.print("a tracking server learns of it by `wmtp-store mlflow replay`");
        }
        let before = before.last().map(|naming| &naming.artifact);
        cx.json_result(json!({ "name": self.name, "artifact": id, "before": before }));
        Ok(())
    }
}
