//! `wmtp-store lineage`: the ancestors or descendants of an artifact as an indented tree.

use std::collections::BTreeSet;

use serde_json::json;
use wmtp_artifacts::{ArtifactId, Direction, Node, NodeState};
use wmtp_job_kit::{JobError, Tool, ToolCx, bytes};

use crate::counted;
use crate::stop::unless_stopped;

/// Command line of `lineage`.
#[derive(Debug, clap::Args)]
pub struct Lineage {
    /// Artifact to begin with: id, name, or KIND/NAME where several kinds share a name
    #[arg(value_name = "NAME_OR_ARTIFACT")]
    artifact: String,
    /// Show what was made from it, instead of what it was made from; reads every manifest of the store
    #[arg(long)]
    down: bool,
}

impl Tool for Lineage {
    const ABOUT: &'static str = "Shows what an artifact was made from, or what was made from it.";
    const EXAMPLES: &'static str = "wmtp-store lineage --store s3://wmtp/demo leaderboard/micropy
        wmtp-store lineage --store s3://wmtp/demo --down raw-data/micropy";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let direction = if self.down {
            Direction::Down
        } else {
            Direction::Up
        };
        let store = cx.store()?.store().clone();
        let lineage = unless_stopped(cx, async {
            let id = store.resolve_any(&self.artifact).await?;
            store.lineage(&id, direction).await
        })?;
        for line in tree(&lineage) {
            cx.print(line);
        }
        if !lineage.unreadable.is_empty() {
            let count = counted(lineage.unreadable.len() as u64, "manifest");
            cx.warning(format!(
                "{count} could not be read, so something may be left out; `wmtp-store fsck` names them"
            ));
        }
        cx.json_result(json!(lineage));
        Ok(())
    }
}

/// One line for each step; what was shown before is not unfolded again.
fn tree(lineage: &wmtp_artifacts::Lineage) -> Vec<String> {
    let mut lines = Vec::new();
    let mut shown = BTreeSet::new();
    // The next line to write is the last: depth, role, artifact.
    let mut waiting = vec![(0, None, &lineage.root)];
    while let Some((depth, role, id)) = waiting.pop() {
        let node = &lineage.nodes[id];
        let is_first = shown.insert(id);
        lines.push(line(depth, role, id, node, is_first));
        if is_first {
            let links = node.links.iter().rev();
            waiting.extend(links.map(|link| (depth + 1, Some(link.role.as_str()), &link.id)));
        }
    }
    lines
}

fn line(depth: usize, role: Option<&str>, id: &ArtifactId, node: &Node, is_first: bool) -> String {
    let indent = "  ".repeat(depth);
    let role = role.map_or_else(String::new, |role| format!("{role}: "));
    let facts = match &node.state {
        _ if !is_first => "shown above".to_owned(),
        NodeState::Present {
            job,
            created_at,
            files,
            bytes: size,
            ..
        } => format!(
            "{job}, {}, {}, {}",
            created_at.strftime("%Y-%m-%d %H:%M UTC"),
            counted(*files, "file"),
            bytes(*size)
        ),
        NodeState::Missing => "not in this store".to_owned(),
        NodeState::Unreadable { detail } => format!("unreadable: {detail}"),
    };
    format!("{indent}{role}{id}  ({facts})")
}
