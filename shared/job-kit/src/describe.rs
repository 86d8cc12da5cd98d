//! `--dry-run` and `--explain`: what a job would do, in words.

use serde_json::{Value, json};
use wmtp_artifacts::CacheLookup;
use wmtp_recipe::{Origin, Resolved};

use crate::life::{Session, Task};
use crate::report::bytes;
use crate::tool::to_stdout;

/// Prints what would be read, computed and written, and with `--explain` every setting.
pub(crate) fn print<W>(session: &Session, task: &Task<'_, W>, lookup: &CacheLookup) {
    let is_needed = session.common.force || !matches!(lookup, CacheLookup::Hit(_));
    if session.common.json {
        let inputs: serde_json::Map<String, Value> = task
            .inputs
            .iter()
            .map(|input| (input.role.clone(), json!(input.id)))
            .collect();
        let result = json!({
            "job": task.job,
            "dry_run": true,
            "cache_key": task.key,
            "work_needed": is_needed,
            "inputs": inputs,
        });
        to_stdout(&result.to_string());
        return;
    }
    if session.common.explain {
        let none = || vec!["no recipe given".to_owned()];
        for line in session.resolved.as_ref().map_or_else(none, settings) {
            to_stdout(&line);
        }
        to_stdout("");
    }
    for line in plan(task, &reason(session.common.force, lookup)) {
        to_stdout(&line);
    }
}

/// One line per setting: key, value, source, and why the algorithm does not read it where somebody set it all the same.
fn settings(resolved: &Resolved) -> Vec<String> {
    let tree = resolved.recipe.to_json();
    let mut lines = vec!["settings:".to_owned()];
    for (key, origin) in &resolved.origins {
        let pointer = format!("/{}", key.replace('.', "/"));
        let value = tree.pointer(&pointer).unwrap_or(&Value::Null);
        let unread = resolved.recipe.unread(key);
        let unread = unread.filter(|_| *origin != Origin::Default);
        let unread = unread.map_or_else(String::new, |reason| format!(" (no effect: {reason})"));
        lines.push(format!(
            "  {key:<30} {:<24} {origin}{unread}",
            value.to_string()
        ));
    }
    lines
}

fn reason(force: bool, lookup: &CacheLookup) -> String {
    match lookup {
        CacheLookup::Hit(entry) if force => {
            format!(
                "work is done again because of --force; run {} has a result",
                entry.run_id
            )
        }
        CacheLookup::Hit(entry) => format!(
            "no work is needed: run {} has a result for the same inputs and settings, and it is whole",
            entry.run_id
        ),
        CacheLookup::Miss => {
            "work is needed: no result for these inputs and settings is stored".to_owned()
        }
        CacheLookup::Damaged { reason, .. } => {
            format!("work is needed: the stored result is damaged: {reason}")
        }
    }
}

fn plan<W>(task: &Task<'_, W>, reason: &str) -> Vec<String> {
    let mut lines = vec![format!("{} would read:", task.job)];
    for input in &task.inputs {
        let manifest = &task.manifests[&input.role];
        let files = manifest.content.files.len();
        let size = bytes(manifest.size());
        lines.push(format!(
            "  {:<12} {} ({files} files, {size})",
            input.role, input.id
        ));
    }
    if task.inputs.is_empty() {
        lines.push("  no artifacts".to_owned());
    }
    lines.push("would compute:".to_owned());
    for note in &task.plan.notes {
        lines.push(format!("  {note}"));
    }
    if let Some(options) = task.plan.options.as_object() {
        for (key, value) in options {
            lines.push(format!("  {key} = {value}"));
        }
    }
    lines.push("would write:".to_owned());
    for (role, kind) in &task.plan.outputs {
        lines.push(format!("  {role:<12} {kind}"));
    }
    lines.push(format!("cache key {}", task.key));
    lines.push(reason.to_owned());
    lines.push("nothing was touched".to_owned());
    lines
}
