//! Pages as plain functions of the input: one file per kind.

mod algorithms;
mod analysis;
mod changes;
mod compare;
mod cost;
mod documents;
mod index;
mod lineage;
mod log;
mod method;
mod present;
mod runs;
mod samples;
mod search;
mod sections;
mod sweeps;
mod task;
mod version;

use std::cell::RefCell;
use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, UndefinedBehavior, context};
use std::sync::Arc;

use crate::charts::Plot;
use crate::cost::{Cost, Totals};
use crate::facts::Facts;
use crate::input::{SiteInput, VersionInput};
use crate::output::{Press, Sink, Tray};
use crate::words::{Language, Words};
use crate::{Error, Site, data, text};

/// How a site is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// Languages of the interface; the first stands at the top.
    pub languages: Vec<Language>,
    /// Names of snapshots that lie in the folder already, for the list of changes.
    pub snapshots: Vec<String>,
    /// Whether a snapshot of the whole is added below `r/`.
    pub snapshot: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            languages: Language::ALL.to_vec(),
            snapshots: Vec::new(),
            snapshot: true,
        }
    }
}

/// Renders every file of the site into memory.
///
/// # Errors
/// As [`render_to`].
pub fn render(input: &SiteInput, options: &Options) -> Result<Site, Error> {
    let mut site = Site::default();
    render_to(input, options, &mut site)?;
    Ok(site)
}

/// Renders every file of the site and hands each on as it is made, so that no more than one is in memory.
///
/// # Errors
/// A template or table fails, which is a defect; what the sink says.
pub fn render_to(input: &SiteInput, options: &Options, sink: &mut dyn Sink) -> Result<(), Error> {
    let facts = Facts::of(input);
    let shared = Shared::of(input, &facts);
    let snapshot = options
        .snapshot
        .then(|| snapshot_name(&input.board.created_at));
    let mut press = Press::new(sink, snapshot);
    for (name, style) in [
        ("style.css", include_str!("../templates/style.css")),
        ("pages.css", include_str!("../templates/pages.css")),
    ] {
        press.add(name, squeezed_style(style).as_bytes())?;
    }
    let script = squeezed(include_str!("../templates/site.js"));
    press.add("site.js", script.as_bytes())?;
    data::add(&mut press, input, &facts)?;
    press.add("feed.atom", changes::feed(input, &facts).as_bytes())?;
    let press = RefCell::new(press);
    let mut books = Vec::new();
    for language in &options.languages {
        books.push(Book::open(
            input, &facts, &shared, *language, options, &press,
        )?);
    }
    write_all(&mut books)?;
    drop(books);
    press.into_inner().finish(&inputs(input), &warnings(input))
}

/// Renders the leaderboard's page alone, in English.
///
/// # Errors
/// As [`render_to`].
pub fn leaderboard(input: &SiteInput) -> Result<Site, Error> {
    let facts = Facts::of(input);
    let shared = Shared::of(input, &facts);
    let options = Options::default();
    let mut site = Site::default();
    let press = RefCell::new(Press::new(&mut site, None));
    let mut book = Book::open(input, &facts, &shared, Language::English, &options, &press)?;
    index::write(&mut book)?;
    drop(book);
    drop(press);
    Ok(site)
}

/// Writes every page. The languages take turns page by page, because they share what has no words in it.
fn write_all(books: &mut [Book<'_>]) -> Result<(), Error> {
    type Write = fn(&mut Book<'_>) -> Result<(), Error>;
    fn each(books: &mut [Book<'_>], write: Write) -> Result<(), Error> {
        books.iter_mut().try_for_each(write)
    }
    const OF_THE_WHOLE: [Write; 10] = [
        algorithms::write,
        lineage::write,
        sweeps::write,
        cost::write,
        method::write,
        documents::write,
        present::write,
        runs::write,
        changes::write,
        search::write,
    ];
    each(books, index::write)?;
    let Some(facts) = books.first().map(|book| book.facts) else {
        return Ok(());
    };
    for version in &facts.lineage {
        for book in books.iter_mut() {
            version::write(book, version)?;
            analysis::write(book, version)?;
            samples::write(book, version)?;
            log::write(book, version)?;
        }
    }
    each(books, task::write)?;
    each(books, compare::overview)?;
    for pair in &facts.pairs {
        for book in books.iter_mut() {
            compare::one(book, pair)?;
        }
    }
    OF_THE_WHOLE
        .into_iter()
        .try_for_each(|write| each(books, write))
}

/// English sentences of the interface that a site of this input shows in Korean for want of a translation.
pub fn untranslated(input: &SiteInput) -> Result<Vec<String>, Error> {
    let facts = Facts::of(input);
    let shared = Shared::of(input, &facts);
    let options = Options::default();
    let mut site = Site::default();
    let press = RefCell::new(Press::new(&mut site, None));
    let mut books = [Book::open(
        input,
        &facts,
        &shared,
        Language::Korean,
        &options,
        &press,
    )?];
    write_all(&mut books)?;
    Ok(books[0].words.missing())
}

/// `2026-11-21_12-05` of the newest score: snapshots are named as report folders are.
fn snapshot_name(created_at: &str) -> String {
    let plain: String = created_at
        .chars()
        .take(16)
        .map(|c| match c {
            'T' => '_',
            '0'..='9' => c,
            _ => '-',
        })
        .collect();
    if plain.is_empty() {
        "undated".to_owned()
    } else {
        plain
    }
}

/// What was made for the pages of one version or pair and has no words in it; forgotten when another's is asked for.
struct Memo<T> {
    owner: String,
    made: BTreeMap<String, T>,
}

impl<T> Default for Memo<T> {
    fn default() -> Self {
        Self {
            owner: String::new(),
            made: BTreeMap::new(),
        }
    }
}

impl<T: Clone> Memo<T> {
    fn get(&mut self, owner: &str, key: &str, make: impl FnOnce() -> T) -> T {
        if self.owner != owner {
            owner.clone_into(&mut self.owner);
            self.made.clear();
        }
        match self.made.get(key) {
            Some(made) => made.clone(),
            None => self.made.entry(key.to_owned()).or_insert(make()).clone(),
        }
    }
}

/// What is the same in every language.
struct Shared<'a> {
    plots: RefCell<Memo<Option<Plot>>>,
    analyses: RefCell<Memo<Value>>,
    costs: BTreeMap<&'a str, Cost>,
    /// Highest rate of the common scale.
    top: f64,
    actions: BTreeMap<String, crate::action::Action>,
    sweeps: Vec<(String, crate::recipe::Sweep<'a>)>,
}

impl<'a> Shared<'a> {
    fn of(input: &'a SiteInput, facts: &'a Facts<'a>) -> Self {
        let costs = input
            .versions
            .iter()
            .map(|version| (version.row.version_id.as_str(), Cost::of(input, version)))
            .collect();
        let mut taken = std::collections::BTreeSet::new();
        let sweeps = crate::recipe::sweeps(facts)
            .into_iter()
            .map(|sweep| (sweep.stem(&mut taken), sweep))
            .collect();
        let actions = input.versions.iter().filter_map(|version| {
            let action = crate::action::Action::parse(version.action.as_deref()?);
            Some((version.row.version_id.clone(), action))
        });
        Self {
            plots: RefCell::default(),
            analyses: RefCell::default(),
            costs,
            top: crate::charts::rate_top(&input.board),
            actions: actions.collect(),
            sweeps,
        }
    }

    /// A curve of a version or of two.
    fn plot(&self, owner: &str, key: &str, make: impl FnOnce() -> Option<Plot>) -> Option<Plot> {
        self.plots.borrow_mut().get(owner, key, make)
    }

    /// The analysis of a version.
    fn analysis(&self, version: &VersionInput) -> Value {
        let make = || markup(text::markdown(&version.analysis));
        let mut made = self.analyses.borrow_mut();
        made.get(&version.row.version_id, "analysis", make)
    }

    /// The action that made a version.
    fn action_behind(&self, id: &str) -> Option<&crate::action::Action> {
        self.actions
            .values()
            .find(|action| action.next.as_deref() == Some(id))
    }
}

/// Pages of one language in the making.
struct Book<'a> {
    input: &'a SiteInput,
    facts: &'a Facts<'a>,
    shared: &'a Shared<'a>,
    words: Arc<Words>,
    options: &'a Options,
    templates: Environment<'static>,
    tray: &'a RefCell<dyn Tray + 'a>,
    /// The page in the making; kept, because fresh memory costs more than what is written into it.
    page: Vec<u8>,
    /// Links to other pages, by the one of them that is marked and how.
    links: BTreeMap<(&'static str, &'static str), (Value, Value)>,
    entries: Vec<search::Entry>,
}

/// Where a page stands among others.
const NAVIGATION: [(&str, &str); 5] = [
    ("Leaderboard", "index.html"),
    ("Versions", "lineage.html"),
    ("Compare", "compare/index.html"),
    ("Cost", "cost.html"),
    ("Method", "method.html"),
];

/// Pages that the first line does not name.
const MORE: [(&str, &str); 9] = [
    ("Algorithms", "algorithms.html"),
    ("Tasks", "t/index.html"),
    ("Sweeps", "sweeps/index.html"),
    ("Runs", "runs/index.html"),
    ("Final analysis", "final.html"),
    ("Model card", "card.html"),
    ("Present", "present.html"),
    ("Changes", "changes.html"),
    ("Search", "search.html"),
];

impl<'a> Book<'a> {
    fn open(
        input: &'a SiteInput,
        facts: &'a Facts<'a>,
        shared: &'a Shared<'a>,
        language: Language,
        options: &'a Options,
        tray: &'a RefCell<dyn Tray + 'a>,
    ) -> Result<Self, Error> {
        let words = Arc::new(Words::of(language));
        Ok(Self {
            input,
            facts,
            shared,
            templates: environment(&words)?,
            words,
            options,
            tray,
            page: Vec::new(),
            links: BTreeMap::new(),
            entries: Vec::new(),
        })
    }

    /// A sentence of the interface.
    fn say(&self, sentence: &str, values: &[(&str, &str)]) -> String {
        self.words.say(sentence, values)
    }

    /// Renders a page. `path` is relative to the root of the language.
    fn page(
        &mut self,
        path: &str,
        template: &str,
        title: &str,
        values: Value,
    ) -> Result<(), Error> {
        self.rendered(path, template, title, values)?;
        let path = format!("{}{path}", self.words.language().folder());
        self.tray.borrow_mut().add(&path, &self.page)
    }

    /// Renders a page that says something else in a snapshot.
    fn page_of_two(
        &mut self,
        path: &str,
        template: &str,
        title: &str,
        top: Value,
        copy: Value,
    ) -> Result<(), Error> {
        self.rendered(path, template, title, copy)?;
        let copy = std::mem::take(&mut self.page);
        self.rendered(path, template, title, top)?;
        let path = format!("{}{path}", self.words.language().folder());
        self.tray.borrow_mut().add_two(&path, &self.page, &copy)
    }

    /// Renders a page into the buffer.
    fn rendered(
        &mut self,
        path: &str,
        template: &str,
        title: &str,
        values: Value,
    ) -> Result<(), Error> {
        let language = self.words.language();
        let root = "../".repeat(path.matches('/').count());
        let top = root.clone() + &"../".repeat(language.folder().matches('/').count());
        let other = language.other();
        let (nav, more) = self.links(path);
        // Parts of logs exist once; the other language has the page of their run.
        let twin = match (template, path.rsplit_once('/')) {
            ("logpart.html", Some((folder, _))) => format!("{folder}/index.html"),
            _ => path.to_owned(),
        };
        let other_path = if self.options.languages.contains(&other) {
            format!("{top}{}{twin}", other.folder())
        } else {
            format!("{root}{path}")
        };
        let page = context! {
            lang => language.code(),
            root => markup(root.clone()),
            top => markup(top),
            title => title,
            nav => nav,
            more => more,
            other_language => context! {
                code => other.code(),
                name => other.name(),
                path => markup(text::escape(&other_path)),
                shown => self.options.languages.contains(&other),
            },
            script => matches!(template, "index.html" | "search.html"),
            // What most readers open needs one style sheet.
            more_style => !matches!(template, "index.html" | "version.html" | "samples.html" | "task.html" | "method.html"),
            dataset => self.input.board.dataset_id.as_str(),
            moment => moment(&self.input.board.created_at),
        };
        let template = self.templates.get_template(template)?;
        self.page.clear();
        template.render_captured_to(context! { ..values, ..page }, &mut self.page)?;
        Ok(())
    }

    /// Links of the first line and of the foot of a page; the one that the page belongs to is marked.
    fn links(&mut self, path: &str) -> (Value, Value) {
        let here = match (path, path.split_once('/')) {
            (_, Some(("v", _))) => ("lineage.html", "true"),
            ("compare/index.html", _) => ("compare/index.html", "page"),
            (_, Some(("compare", _))) => ("compare/index.html", "true"),
            _ => NAVIGATION
                .iter()
                .find(|(_, entry)| *entry == path)
                .map_or(("", ""), |(_, entry)| (*entry, "page")),
        };
        if let Some(links) = self.links.get(&here) {
            return links.clone();
        }
        let of = |list: &[(&str, &'static str)]| -> Vec<Value> {
            list.iter()
                .filter(|(_, path)| {
                    *path != "card.html" || self.input.documents.model_card.is_some()
                })
                .map(|(name, path)| {
                    let mark = if *path == here.0 { here.1 } else { "" };
                    context! { name => self.say(name, &[]), path => markup(*path), here => mark }
                })
                .collect()
        };
        let links = (Value::from(of(&NAVIGATION)), Value::from(of(&MORE)));
        self.links.insert(here, links.clone());
        links
    }

    fn totals(&self) -> Totals {
        let runs = self.input.runs.as_deref().unwrap_or_default();
        Totals::of(runs, self.shared.costs.values())
    }

    fn cost(&self, id: &str) -> Cost {
        self.shared.costs.get(id).cloned().unwrap_or_default()
    }

    /// What the one change of a version was, in a few words.
    fn change(&self, version: &VersionInput) -> String {
        let row = &version.row;
        let of_action = || {
            let action = self.shared.action_behind(&row.version_id)?;
            action.field("Change").map(str::to_owned)
        };
        match row.change.clone().or_else(of_action) {
            Some(change) => text::visible(&change),
            None if row.is_base() => self.say("the model before training", &[]),
            None if row.is_external() => self.say("a model from outside", &[]),
            None => self.say("starting point", &[]),
        }
    }
}

/// Path from a page that lies `depth` folders deep to the page of a version.
fn version_link(depth: usize, id: &str) -> String {
    format!("{}v/{id}/index.html", "../".repeat(depth))
}

/// The leaderboard's warnings and those of reading it.
fn warnings(input: &SiteInput) -> Vec<String> {
    input
        .board
        .warnings
        .iter()
        .chain(&input.warnings)
        .map(|warning| text::visible(warning))
        .collect()
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
            let model = run.checkpoint.clone();
            inputs.extend(model.map(|id| (format!("model of {name}"), id)));
        }
    }
    inputs
}

macro_rules! templates {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../templates/", $name)))),*]
    };
}

fn environment(words: &Arc<Words>) -> Result<Environment<'static>, minijinja::Error> {
    let mut templates = Environment::new();
    templates.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?,
    );
    templates.set_auto_escape_callback(|_| AutoEscape::Html);
    templates.set_undefined_behavior(UndefinedBehavior::Strict);
    // One rule of escaping for templates and for what is written without them; slashes of links stay as they are.
    templates.set_formatter(|out, _, value| {
        match value.as_str() {
            Some(text) if value.is_safe() => out.write_str(text)?,
            Some(text) => out.write_str(&text::escape(text))?,
            None => out.write_str(&text::escape(&value.to_string()))?,
        }
        Ok(())
    });
    let words = Arc::clone(words);
    templates.add_function(
        "t",
        move |sentence: String, values: Kwargs| -> Result<String, minijinja::Error> {
            let mut pairs = Vec::new();
            for key in values.args() {
                pairs.push((key, values.get::<Value>(key)?.to_string()));
            }
            let pairs: Vec<(&str, &str)> = pairs
                .iter()
                .map(|(key, value)| (*key, value.as_str()))
                .collect();
            Ok(words.say(&sentence, &pairs))
        },
    );
    for (name, source) in templates![
        "base.html",
        "facts.html",
        "warnings.html",
        "sample.html",
        "verdict.html",
        "crumbs.html",
        "forest.html",
        "index.html",
        "version.html",
        "analysis.html",
        "samples.html",
        "log.html",
        "logpart.html",
        "loglines.html",
        "task.html",
        "tasks.html",
        "compare.html",
        "compares.html",
        "algorithms.html",
        "lineage.html",
        "sweep.html",
        "sweeps.html",
        "cost.html",
        "method.html",
        "document.html",
        "present.html",
        "changes.html",
        "runs.html",
        "run.html",
        "search.html",
    ] {
        templates.add_template(name, source)?;
    }
    Ok(templates)
}

/// A style sheet or script without its indentation, blank lines and whole-line comments.
fn squeezed(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let is_comment =
        |line: &str| line.starts_with("//") || (line.starts_with("/*") && line.ends_with("*/"));
    let kept = source
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !is_comment(line));
    for line in kept {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// A style sheet without blanks and zeros that mean nothing. A colon keeps the blank before it, which is part of a selector.
fn squeezed_style(source: &str) -> String {
    let mut text = squeezed(source);
    let pairs = [
        (" {", "{"),
        ("{ ", "{"),
        ("; }", "}"),
        (" }", "}"),
        ("; ", ";"),
        (": ", ":"),
        (", ", ","),
        (";\n", ";"),
        ("{\n", "{"),
        ("\n}", "}"),
        (",\n", ","),
        (" 0.", " ."),
        (":0.", ":."),
        (",0.", ",."),
        ("(0.", "(."),
    ];
    for (from, to) in pairs {
        text = text.replace(from, to);
    }
    text
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
