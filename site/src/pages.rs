//! Pages as plain functions of the input.

mod index;
mod method;
mod sections;
mod version;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, UndefinedBehavior};

use crate::{Error, Site, SiteInput};

/// Renders every file of the site.
pub fn render(input: &SiteInput) -> Result<Site, Error> {
    let templates = environment()?;
    let mut site = Site::default();
    site.add("style.css", include_str!("../templates/style.css"));
    site.add(
        "index.html",
        templates
            .get_template("index.html")?
            .render(index::context(input))?,
    );
    site.add(
        "method.html",
        templates
            .get_template("method.html")?
            .render(method::context(input))?,
    );
    let page = templates.get_template("version.html")?;
    for version in &input.versions {
        let path = format!("v/{}/index.html", version.row.version_id);
        site.add(path, page.render(version::context(input, version))?);
    }
    for (name, bytes) in &input.downloads {
        site.add(format!("data/{name}"), bytes.clone());
    }
    site.add_manifest(&inputs(input), &input.board.warnings);
    Ok(site)
}

/// Artifacts that the site was made from, with what they are for.
fn inputs(input: &SiteInput) -> Vec<(String, String)> {
    let mut inputs = vec![
        ("leaderboard".to_owned(), input.leaderboard_id.clone()),
        ("data".to_owned(), input.board.data.clone()),
    ];
    for row in &input.board.rows {
        for run in &row.runs {
            let name = match run.seed {
                Some(seed) => format!("{} seed {seed}", row.version_id),
                None => row.version_id.clone(),
            };
            inputs.push((format!("scores of {name}"), run.scores.clone()));
            inputs.push((format!("model of {name}"), run.checkpoint.clone()));
        }
    }
    inputs
}

fn environment() -> Result<Environment<'static>, minijinja::Error> {
    let mut templates = Environment::new();
    templates.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?,
    );
    templates.set_auto_escape_callback(|_| AutoEscape::Html);
    templates.set_undefined_behavior(UndefinedBehavior::Strict);
    templates.add_template("base.html", include_str!("../templates/base.html"))?;
    templates.add_template("index.html", include_str!("../templates/index.html"))?;
    templates.add_template("version.html", include_str!("../templates/version.html"))?;
    templates.add_template("method.html", include_str!("../templates/method.html"))?;
    Ok(templates)
}

/// Markup made by this crate from escaped text.
fn markup(html: impl Into<String>) -> Value {
    Value::from_safe_string(html.into())
}

/// `2026-11-21T12:05:31Z` as `2026-11-21 12:05 UTC`; anything else as it is.
fn moment(created_at: &str) -> String {
    match (created_at.get(..10), created_at.get(11..16)) {
        (Some(day), Some(time)) => format!("{day} {time} UTC"),
        _ => created_at.to_owned(),
    }
}

/// Size of a file in words.
fn file_size(bytes: usize) -> String {
    if bytes < 1024 {
        format!("{bytes} bytes")
    } else {
        format!("{} KB", bytes.div_ceil(1024))
    }
}
