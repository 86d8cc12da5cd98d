//! The life of a run: settings, plan, cache, claim, work, publication, and every way to end.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use wmtp_artifacts::{
    Agent, ArtifactId, CacheEntry, CacheLookup, Claim, Digest, Draft, Input, Manifest, Outcome,
    Provenance, RunId, RunRequest, RunResult, RunState, Store, fault,
};
use wmtp_recipe::{CONFIG_VARIABLE, Resolved, Sources};
use wmtp_tracking::{Missing, Sink};

use crate::args::{Common, refuse_alias};
use crate::journal::{Journal, Sender};
use crate::report::{Reporter, duration};
use crate::revision::{image, revision};
use crate::run::{Run, remove_folder};
use crate::tool::{ToolCx, to_stdout};
use crate::usage::Account;
use crate::{
    Exit, Job, JobError, Output, Plan, PlanCx, StoreHandle, crew, describe, logging, recipes,
    secrets, signals,
};

/// How long an upload of outputs, or a record that goes with it, is waited for behind a signal: what is nearly done is done, and a
/// launcher, which kills after 30 s, sees how the run ended. What has arrived is not sent again.
const LAST_UPLOAD: Duration = Duration::from_secs(5);
/// What the journal has behind the grace of a stop at most: a launcher kills 10 s behind it by default, and tracking has its own
/// last words.
const BEHIND_GRACE: Duration = Duration::from_secs(6);

/// One start of a program: its arguments and settings.
pub(crate) struct Session {
    pub(crate) common: Common,
    pub(crate) resolved: Option<Resolved>,
    pub(crate) reporter: Arc<Reporter>,
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) stop: signals::Stop,
    /// This program, as the store's records tell it.
    pub(crate) agent: Agent,
    /// Whether a signal has to wait: there is a claim, or a tool that does something.
    pub(crate) at_work: Arc<AtomicBool>,
}

impl Session {
    fn start(name: &str, common: Common) -> Result<Self, JobError> {
        logging::install()?;
        settle_threads();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        // The process that leads a run tells the others what it has resolved.
        let resolved = match crew::rank()? {
            None => resolve(&common, &runtime)?,
            Some(_) => None,
        };
        let agent = Agent {
            program: name.to_owned(),
            revision: revision()?,
            image: image(),
            host: host(),
        };
        let at_work = Arc::new(AtomicBool::new(false));
        Ok(Self {
            stop: signals::listen(&runtime, name, &at_work),
            at_work,
            reporter: Reporter::new(name),
            runtime: Arc::new(runtime),
            agent,
            resolved,
            common,
        })
    }

    /// The address that `--store` gives.
    pub(crate) fn store_address(&self) -> Result<&str, JobError> {
        self.common.store.as_deref().ok_or_else(|| {
            JobError::usage("no store given")
                .hint("add --store s3://BUCKET/PREFIX or set WMTP_STORE")
        })
    }

    /// Connects to the store of the arguments.
    pub(crate) fn open_store(&self, reupload: bool) -> Result<StoreHandle, JobError> {
        let uri = self.store_address()?;
        let data_store = self.common.data_store.as_deref();
        StoreHandle::open(
            &self.runtime,
            uri,
            data_store,
            reupload || self.common.force,
            &self.stop.flag,
            &self.agent,
        )
    }

    fn is_dry(&self) -> bool {
        self.common.dry_run || self.common.explain
    }
}

fn resolve(common: &Common, runtime: &Runtime) -> Result<Option<Resolved>, JobError> {
    let environment: BTreeMap<String, String> = secrets::variables().collect();
    if common.recipe.is_none() && !environment.contains_key(CONFIG_VARIABLE) {
        if common.assignments.is_empty() {
            return Ok(None);
        }
        return Err(
            JobError::usage("--set changes a recipe, and none is given").hint("add --recipe FILE")
        );
    }
    let sources = Sources {
        recipe: common.recipe.clone(),
        assignments: common.assignments.clone(),
        environment,
    };
    recipes::resolve(&sources, runtime).map(Some)
}

/// candle's own workers are one thread: small models lose more to hand-over than they gain. Rayon's, which rows,
/// problems and candle's matrix products are spread over, are as many as cores; this thread is one of them, or it
/// would hand each small operation over and sleep until it is done.
///
/// candle counts the cores anew at every matrix product, from `/proc/cpuinfo`, unless rayon's variable tells it.
#[expect(
    unsafe_code,
    reason = "the environment can only be changed through an unsafe function"
)]
fn settle_threads() {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    for (variable, threads) in [("CANDLE_NUM_THREADS", 1), ("RAYON_NUM_THREADS", cores)] {
        if std::env::var_os(variable).is_none() {
            // SAFETY: called before the process starts its first thread, so nobody reads the environment meanwhile.
            unsafe { std::env::set_var(variable, threads.to_string()) };
        }
    }
    // Fails where the process has its workers already, which then stay as they are.
    let _ = rayon::ThreadPoolBuilder::new()
        .use_current_thread()
        .build_global();
}

static LAST_PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Runs a mode; a panic becomes an error with exit code 70.
pub(crate) fn guarded(
    name: &str,
    common: Common,
    body: impl FnOnce(Session) -> Result<(), JobError>,
) -> Result<(), JobError> {
    std::panic::set_hook(Box::new(|info| {
        let message = info.to_string();
        *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
    }));
    caught(|| body(Session::start(name, common)?))
}

fn caught<T>(body: impl FnOnce() -> Result<T, JobError>) -> Result<T, JobError> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        let message = LAST_PANIC
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .unwrap_or_else(|| "a panic without a message".to_owned());
        Err(JobError::internal(message)
            .context("the program made a mistake")
            .hint("nothing was published; please report this with the command line"))
    })
}

/// Prints an error for people.
pub(crate) fn print_error(error: &JobError) {
    crate::report::to_stderr(error.render().trim_end());
}

/// Without a terminal, the exit code as a JSON line before the error: launchers that see a program's output, but not
/// how it ended, find it there.
pub(crate) fn print_exit(name: &str, exit: Exit) {
    let data = json!({"class": exit.as_str(), "exit_code": exit.code()});
    crate::report::to_machines("ended", name, &data);
}

/// What determines a run, ready to look up, to claim and to record.
pub(crate) struct Task<'a, W> {
    pub(crate) job: &'static str,
    pub(crate) version: u32,
    pub(crate) plan: &'a Plan<W>,
    pub(crate) inputs: Vec<Input>,
    pub(crate) manifests: BTreeMap<String, Manifest>,
    pub(crate) key: Digest,
}

/// What a job ended with.
pub(crate) struct Done {
    pub(crate) outputs: Outputs,
    pub(crate) run_id: RunId,
    /// Whether the result was there before.
    pub(crate) is_cached: bool,
}

/// Runs a job from its plan to its result.
pub(crate) fn run_job<J: Job>(job: &J, session: &Session) -> Result<(), JobError> {
    refuse_alias(session.common.name.as_deref())?;
    let store = session.open_store(false)?;
    if session.is_dry() {
        return with_task(job, session, &store, |task, lookup| {
            describe::print(session, task, &lookup);
            Ok(())
        });
    }
    let done = result_of(job, session, &store, session.common.name.as_deref())?;
    let mut cx = ToolCx::new(session, Some(store));
    job.deliver(&done.outputs, &mut cx)?;
    if session.common.json {
        let result = json!({
            "job": J::NAME,
            "run_id": done.run_id,
            "cached": done.is_cached,
            "outputs": done.outputs,
        });
        to_stdout(&result.to_string());
    }
    Ok(())
}

/// Plans a job, looks its result up and hands both on.
fn with_task<J: Job, T>(
    job: &J,
    session: &Session,
    store: &StoreHandle,
    then: impl FnOnce(&Task<'_, J::Work>, CacheLookup) -> Result<T, JobError>,
) -> Result<T, JobError> {
    let mut cx = PlanCx {
        resolved: session.resolved.as_ref(),
        store,
        inputs: Vec::new(),
    };
    let mut plan = job.plan(&mut cx)?;
    let registered = std::mem::take(&mut cx.inputs);
    let task = task::<J>(&mut plan, registered, store)?;
    let lookup = store.block_on(store.store().lookup(task.job, &task.key))?;
    then(&task, lookup)
}

/// The result of a job that the store has, whole.
pub(crate) fn stored_result_of<J: Job>(
    job: &J,
    session: &Session,
    store: &StoreHandle,
) -> Result<Option<Outputs>, JobError> {
    with_task(job, session, store, |_, lookup| match lookup {
        CacheLookup::Hit(entry) if !session.common.force => Ok(Some(entry.outputs)),
        _ => Ok(None),
    })
}

/// The result of a job, which is made where the store does not have it, under a name.
pub(crate) fn result_of<J: Job>(
    job: &J,
    session: &Session,
    store: &StoreHandle,
    name: Option<&str>,
) -> Result<Done, JobError> {
    with_task(job, session, store, |task, lookup| match lookup {
        CacheLookup::Hit(entry) if !session.common.force => {
            say_done(session, &entry);
            make_up_result(session, store, &entry);
            store.block_on(name_outputs(name, store.store(), entry.outputs.values()))?;
            Ok(Done {
                outputs: entry.outputs,
                run_id: entry.run_id,
                is_cached: true,
            })
        }
        CacheLookup::Damaged { reason, .. } => {
            let message = format!("the stored result is damaged and made again: {reason}");
            session.reporter.say("warning", &message);
            compute::<J>(session, &session.open_store(true)?, task, name)
        }
        _ => compute::<J>(session, store, task, name),
    })
}

fn task<'a, J: Job>(
    plan: &'a mut Plan<J::Work>,
    registered: Vec<(Input, Manifest)>,
    store: &StoreHandle,
) -> Result<Task<'a, J::Work>, JobError> {
    let mut manifests = BTreeMap::new();
    let mut inputs = Vec::new();
    for (input, manifest) in registered {
        manifests.insert(input.role.clone(), manifest);
        inputs.push(input);
    }
    for (role, id) in std::mem::take(&mut plan.inputs) {
        if !manifests.contains_key(&role) {
            manifests.insert(role.clone(), store.manifest(&id)?);
            inputs.push(Input { role, id });
        }
    }
    inputs.sort_by(|a, b| a.role.cmp(&b.role));
    if let Some(pair) = inputs.windows(2).find(|pair| pair[0].role == pair[1].role) {
        return Err(JobError::internal(format!(
            "the plan has two inputs {:?}",
            pair[0].role
        )));
    }
    let key = wmtp_artifacts::cache_key(J::NAME, J::VERSION, &inputs, &plan.options)?;
    Ok(Task {
        job: J::NAME,
        version: J::VERSION,
        plan,
        inputs,
        manifests,
        key,
    })
}

fn say_done(session: &Session, entry: &CacheEntry) {
    let ids: Vec<String> = entry.outputs.values().map(ToString::to_string).collect();
    let message = format!("already done: {} (run {})", ids.join(", "), entry.run_id);
    session.reporter.say("info", &message);
    session.reporter.event(
        "cache_hit",
        &json!({"run_id": entry.run_id, "outputs": entry.outputs}),
    );
}

/// A run that was killed right behind its cache entry has no result yet, and no other start of it will write one.
fn make_up_result(session: &Session, store: &StoreHandle, entry: &CacheEntry) {
    let missed = store.block_on(store.store().make_up_result(entry));
    let (level, message) = match missed {
        Ok(false) => return,
        Ok(true) => (
            "info",
            format!("run {} had not said how it ended; now it has", entry.run_id),
        ),
        Err(error) => (
            "warning",
            format!(
                "run {} has no result, and none can be written: {error}",
                entry.run_id
            ),
        ),
    };
    session.reporter.say(level, &message);
}

async fn name_outputs<'a>(
    name: Option<&str>,
    store: &Store,
    ids: impl Iterator<Item = &'a ArtifactId>,
) -> Result<(), JobError> {
    let Some(name) = name else {
        return Ok(());
    };
    for id in ids {
        // Names are numbered generations: an equal one need not be written again.
        let present = store.name(id.kind(), name).await?;
        if present.as_ref() != Some(id) {
            store.set_name(id.kind(), name, id).await?;
        }
    }
    Ok(())
}

/// Artifacts by role.
pub(crate) type Outputs = BTreeMap<String, ArtifactId>;

/// Claims the run, works, publishes.
fn compute<J: Job>(
    session: &Session,
    store: &StoreHandle,
    task: &Task<'_, J::Work>,
    name: Option<&str>,
) -> Result<Done, JobError> {
    store.block_on(store.store().preflight())?;
    session.at_work.store(true, Ordering::SeqCst);
    let mut run = claim(session, store, task, name)?;
    fault::point("job:early");
    let data = json!({
        "inputs": task.inputs,
        "attempt": run.claim.attempt(),
        "cache_key": task.key,
        "code_revision": session.agent.revision,
    });
    session.reporter.event("started", &data);

    let done = caught(|| {
        clean(&run.scratch)?;
        if !run.may_resume {
            remove_folder(&run.kept)?;
        }
        std::fs::create_dir_all(&run.scratch).map_err(|error| {
            JobError::from(error).context(format!("creating {}", run.scratch.display()))
        })?;
        let outputs = J::run(&task.plan.work, &mut run)?;
        publish(session, task, &run, &outputs, name)
    });
    let cleaned = clean(&run.scratch).and_then(|()| match &done {
        Ok(_) => remove_folder(&run.kept),
        Err(_) => Ok(()),
    });
    if let Err(error) = cleaned {
        run.warning(format!("scratch files are left behind: {error}"));
    }
    run.tell_usage();
    let state = match &done {
        Ok(outputs) => {
            let elapsed = duration(run.elapsed().as_secs_f64());
            session.reporter.say("info", &summary(outputs, &elapsed));
            session
                .reporter
                .event("completed", &json!({"outputs": outputs}));
            RunState::Completed
        }
        Err(error) if error.exit() == Exit::Preempted => {
            session
                .reporter
                .event("preempted", &json!({"message": error.to_string()}));
            RunState::Preempted
        }
        Err(error) => {
            let exit = error.exit();
            if let Some(journal) = session.reporter.journal() {
                journal.log("error", &error.to_string());
            }
            let data = json!({"class": exit.as_str(), "message": error.to_string(), "exit_code": exit.code()});
            session.reporter.event("failed", &data);
            RunState::Failed
        }
    };
    let patience = if run.should_stop() {
        run.grace_left() + BEHIND_GRACE
    } else {
        Duration::MAX
    };
    let missing = session
        .reporter
        .detach()
        .and_then(|journal| journal.close(state, patience));
    if let Some(missing) = missing {
        tell_missing(session, run.claim.run_id(), &missing);
    }
    Ok(Done {
        outputs: done?,
        run_id: run.claim.run_id().clone(),
        is_cached: false,
    })
}

/// Tracking never fails a run: what is missing is said, and how to make up for it.
fn tell_missing(session: &Session, run: &RunId, missing: &Missing) {
    let message = format!(
        "tracking: {} events of this run are not on the server ({}); `wmtp-store mlflow replay {run}` sends them",
        missing.lines, missing.reason
    );
    session.reporter.say("warning", &message);
}

/// The follower of a run on the tracking server of the environment, if there is one.
fn tracking(session: &Session, store: &StoreHandle, request: &RunRequest) -> Option<Sink> {
    let reporter = Arc::clone(&session.reporter);
    let server = match wmtp_tracking::Server::from_environment() {
        Ok(server) => server?,
        Err(error) => {
            reporter.say("warning", &format!("this run is not tracked: {error}"));
            return None;
        }
    };
    let say = move |level: &str, message: &str| reporter.say(level, message);
    Sink::start(
        server,
        store.store().clone(),
        session.runtime.handle().clone(),
        request.clone(),
        Arc::new(say),
    )
}

fn summary(outputs: &Outputs, elapsed: &str) -> String {
    let made: Vec<String> = outputs
        .iter()
        .map(|(role, id)| format!("{role} {id}"))
        .collect();
    format!("done in {elapsed}: {}", made.join(", "))
}

fn claim<W>(
    session: &Session,
    store: &StoreHandle,
    task: &Task<'_, W>,
    name: Option<&str>,
) -> Result<Run, JobError> {
    // Asked before the claim: between it and the first heartbeat nothing of ours may fail.
    let scratch_root = std::path::absolute(&session.common.scratch)?;
    let recipe = session
        .resolved
        .as_ref()
        .map(|resolved| resolved.recipe.clone());
    let recipe_json = recipe
        .as_ref()
        .map_or(Value::Null, wmtp_recipe::Recipe::to_json);
    let run_id = RunId::for_work(task.job, &task.key);
    let started_at = jiff::Timestamp::now();
    let labels = name
        .iter()
        .map(|name| ("name".to_owned(), (*name).to_owned()))
        .collect();
    let request = RunRequest {
        run_id: run_id.clone(),
        job: task.job.to_owned(),
        cache_key: task.key,
        inputs: task.inputs.clone(),
        recipe: recipe_json.clone(),
        code_version: env!("CARGO_PKG_VERSION").to_owned(),
        code_revision: Some(session.agent.revision.clone()),
        host: session.agent.host.clone(),
        labels,
        started_at,
    };
    let sender = Sender::ready()?;
    let account = Account::open(session.common.rates.clone());
    let taken = async { Ok(Claim::take(store.store(), &request).await?) };
    let claim = store.unless_stopped(LAST_UPLOAD, taken)?;
    let tracking = tracking(session, store, &request);
    let runtime = session.runtime.handle().clone();
    let journal = Journal::start(sender, claim.clone(), task.job, runtime, tracking);
    session.reporter.attach(Arc::new(journal));
    // Two stores may share the folder, and a run of the same id in the other must find its own.
    let folder = format!("{run_id}-{}", &claim.mark().to_string()[..8]);
    let scratch = scratch_root
        .join(&folder)
        .join(format!("attempt-{}", claim.attempt()));
    let kept = scratch_root.join(format!("{folder}.kept"));
    let provenance = Provenance {
        job: task.job.to_owned(),
        run_id,
        attempt: claim.attempt(),
        code_version: request.code_version,
        code_revision: request.code_revision,
        recipe_version: task.version,
        recipe: recipe_json,
        options: task.plan.options.clone(),
        inputs: task.inputs.clone(),
        created_at: started_at,
    };
    Ok(Run {
        recipe: recipe.unwrap_or_default(),
        inputs: task.manifests.clone(),
        fetched: std::cell::RefCell::default(),
        store: store.clone(),
        claim,
        provenance,
        reporter: Arc::clone(&session.reporter),
        scratch,
        kept,
        stop: session.stop.clone(),
        grace: session.common.grace,
        started: Instant::now(),
        account,
        may_resume: !session.common.force,
    })
}

/// Removes what attempts of this run left on this disk: what counts is in the store.
fn clean(scratch: &Path) -> Result<(), JobError> {
    remove_folder(scratch.parent().unwrap_or(scratch))
}

fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}

fn publish<W>(
    session: &Session,
    task: &Task<'_, W>,
    run: &Run,
    outputs: &[Output],
    name: Option<&str>,
) -> Result<Outputs, JobError> {
    check_roles(&task.plan.outputs, outputs)?;
    if session.stop.flag.load(Ordering::SeqCst) {
        run.log("publishing before the stop takes effect");
    }
    let store = run.store.store();
    let mut published = Outputs::new();
    for output in outputs {
        let draft = Draft {
            kind: output.kind,
            root: output.dir.clone(),
            attributes: output.attributes.clone(),
        };
        let publication = async { Ok(store.publish(&draft, &run.provenance).await?) };
        let manifest = run
            .store
            .unless_stopped(LAST_UPLOAD, publication)
            .map_err(|error| error.context(format!("publishing output {}", output.role)))?;
        run.account.has_written(manifest.size());
        published.insert(output.role.clone(), manifest.id);
    }
    let finished_at = jiff::Timestamp::now();
    let entry = CacheEntry {
        outputs: published.clone(),
        run_id: run.claim.run_id().clone(),
        created_at: finished_at,
    };
    let recorded = async {
        run.claim.still_mine().await?;
        store.record_cache(task.job, &task.key, &entry).await?;
        name_outputs(name, store, published.values()).await
    };
    run.store.unless_stopped(LAST_UPLOAD, recorded)?;
    let result = RunResult {
        outputs: published.clone(),
        attempt: run.claim.attempt(),
        finished_at,
        // An earlier attempt, which the request tells of, may have been another program's.
        summary: json!({
            "elapsed_secs": run.elapsed().as_secs(),
            "code_revision": session.agent.revision,
            "usage": run.tell_usage(),
        }),
    };
    let finished = async { Ok(run.claim.finish(&result).await?) };
    if let Outcome::TheirsDifferent = run.store.unless_stopped(LAST_UPLOAD, finished)? {
        run.warning("an earlier attempt of this run ended with other outputs; both are kept");
    }
    Ok(published)
}

/// Outputs are what the plan said: roles and kinds.
fn check_roles(
    planned: &[(String, wmtp_artifacts::Kind)],
    outputs: &[Output],
) -> Result<(), JobError> {
    let mut planned: Vec<_> = planned
        .iter()
        .map(|(role, kind)| (role.as_str(), *kind))
        .collect();
    let mut made: Vec<_> = outputs
        .iter()
        .map(|output| (output.role.as_str(), output.kind))
        .collect();
    planned.sort_unstable();
    made.sort_unstable();
    if planned == made {
        return Ok(());
    }
    Err(JobError::internal(format!(
        "the job planned the outputs {planned:?} and made {made:?}"
    )))
}
