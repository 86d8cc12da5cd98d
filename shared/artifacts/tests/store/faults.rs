//! Seeded runs against a server that misbehaves, with clients that die at any await point; then the invariants.
//!
//! In each run two writers, two processes with the same work, a reader and a collector use one store at a time. After it
//! the server behaves, and: every manifest has all its content, rightly; every acknowledged name leads to what it was
//! given or what was asked for after it; the work was never done by two at a time; what a reader was given is right;
//! and one collection later nothing is left that nobody needs, unfinished uploads among it.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Instant;

use dev_store::Faults;
use futures::future::join_all;
use futures::{StreamExt, stream};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// Runs of `make test`, and of `make test-full`.
const FEW: u64 = 6;
const MANY: u64 = 10_000;
/// Runs at a time: most of their time they wait.
const AT_A_TIME: usize = 6;
/// Between a plan and its first deletion; a writer has half of it from its look to its commit.
const NOTICE: Duration = Duration::from_millis(800);
const KIND: Kind = Kind::ProcessedData;
const WRITERS: usize = 2;
const WORKERS: usize = 2;
/// After so long a writer is waiting for a collection whose process died.
const LONG: Duration = Duration::from_secs(10);
const ARTIFACTS: usize = 5;

/// A client that dies after some polls, wherever it then is.
struct Mortal<F> {
    inner: Option<Pin<Box<F>>>,
    polls_left: usize,
}

impl<F: Future> Future for Mortal<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.polls_left == 0 {
            self.inner = None;
        }
        self.polls_left = self.polls_left.saturating_sub(1);
        match &mut self.inner {
            Some(inner) => inner.as_mut().poll(cx).map(Some),
            None => Poll::Ready(None),
        }
    }
}

/// One run.
struct Scene {
    seed: u64,
    dir: TempDir,
    server: TestServer,
    faults: Arc<Faults>,
    store: Store,
    /// For what is checked afterwards: it waits as long as a slow machine needs.
    patient: Store,
    drafts: Vec<Draft>,
    /// Changes with every leap of the clock, after which a living holder counts as dead.
    leaps: AtomicU64,
    /// Who is at work: the leaps that each had seen when it began.
    at_work: Mutex<Vec<u64>>,
    finished: Mutex<BTreeSet<ArtifactId>>,
    /// Who may come to wait for a collection: writers and workers that are not done.
    under_way: AtomicUsize,
}

/// What a writer knows of its name.
#[derive(Default)]
struct Acknowledged {
    last: Option<ArtifactId>,
    /// What was asked for since; each may have taken effect.
    since: Vec<ArtifactId>,
}

impl Scene {
    async fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut random = StdRng::seed_from_u64(seed);
        let rate = [0.0, 0.03, 0.1, 0.25][random.random_range(0..4)];
        let faults = Arc::new(Faults::seeded(seed, rate));
        let server = TestServer::start_faulty(&dir.path().join("server"), Arc::clone(&faults));
        let store = connect(&server, "main", |options| {
            options.max_attempts = Some(4);
            options.first_backoff = Some(Duration::from_millis(2));
            options.read_timeout = Some(Duration::from_millis(300));
            options.collection_notice = Some(NOTICE);
        })
        .await;
        let patient = connect(&server, "main", |options| {
            options.collection_notice = Some(NOTICE);
        })
        .await;
        let drafts = (0..ARTIFACTS).map(|number| {
            let root = dir.path().join(format!("draft-{number}"));
            fs::create_dir(&root).unwrap();
            // Neighbours share a content.
            for content in [number, (number + 1) % ARTIFACTS] {
                fs::write(
                    root.join(format!("f{content}")),
                    format!("content {content}"),
                )
                .unwrap();
            }
            if number == 0 && seed % 16 == 1 {
                fs::write(root.join("large"), vec![7; (16 << 20) + 1]).unwrap();
            }
            draft(root)
        });
        let drafts = drafts.collect();
        Self {
            seed,
            dir,
            server,
            faults,
            store,
            patient,
            drafts,
            leaps: AtomicU64::new(0),
            at_work: Mutex::default(),
            finished: Mutex::default(),
            under_way: AtomicUsize::new(WRITERS + WORKERS),
        }
    }

    fn random(&self, actor: u64) -> StdRng {
        StdRng::seed_from_u64(self.seed ^ (actor << 56))
    }

    /// Lets a client run to its end or die on its way.
    async fn mortal<T>(
        &self,
        random: &mut StdRng,
        client: impl Future<Output = Result<T, Error>>,
    ) -> Option<T> {
        let dies = random.random_bool(0.3);
        let mortal = Mortal {
            inner: Some(Box::pin(client)),
            polls_left: if dies {
                random.random_range(1..80)
            } else {
                usize::MAX
            },
        };
        match mortal.await? {
            Ok(value) => Some(value),
            Err(error) => {
                // Neither faults nor other clients are ever a reason for these.
                assert!(
                    ![2, 70, 73].contains(&code(&error)),
                    "seed {}: {error}",
                    self.seed
                );
                None
            }
        }
    }

    /// Publishes, and names half of it, as long as the collector is about: what nobody named it may take, and another
    /// writer may come to need it just then.
    async fn write(&self, actor: u64) -> (String, Acknowledged) {
        let mut random = self.random(actor);
        let name = format!("writer-{actor}");
        let mut known = Acknowledged::default();
        for _ in 0..7 {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..350))).await;
            let draft = &self.drafts[random.random_range(0..ARTIFACTS)];
            let provenance = provenance(vec![]);
            let published = self
                .mortal(&mut random, self.store.publish(draft, &provenance))
                .await;
            let Some(Manifest { id, .. }) = published else {
                continue;
            };
            if random.random_bool(0.5) {
                continue;
            }
            known.since.push(id.clone());
            if self
                .mortal(&mut random, self.store.set_name(KIND, &name, &id))
                .await
                .is_some()
            {
                known = Acknowledged {
                    last: Some(id),
                    since: Vec::new(),
                };
            }
        }
        (name, known)
    }

    /// Does a piece of work unless another does it.
    async fn work(&self, actor: u64) {
        let mut random = self.random(actor);
        for _ in 0..2 {
            let leaps = self.leaps.load(Ordering::SeqCst);
            let request = request("work");
            let claimed = self
                .mortal(&mut random, Claim::take(&self.store, &request))
                .await;
            let Some(claim) = claimed else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            self.begin_work(leaps);
            self.mortal(&mut random, self.finish(&claim)).await;
            let mut at_work = self.at_work.lock().unwrap();
            let place = at_work.iter().position(|other| *other == leaps).unwrap();
            at_work.swap_remove(place);
        }
    }

    /// Nobody else may be at it, but who had its claim before the clock leapt.
    fn begin_work(&self, leaps: u64) {
        let mut at_work = self.at_work.lock().unwrap();
        let is_now = self.leaps.load(Ordering::SeqCst) == leaps;
        let is_double = is_now && at_work.contains(&leaps);
        assert!(!is_double, "seed {}: two do the same work", self.seed);
        at_work.push(leaps);
    }

    async fn finish(&self, claim: &Claim) -> Result<(), Error> {
        claim.heartbeat(&status(RunState::Running)).await?;
        let manifest = self
            .store
            .publish(&self.drafts[1], &provenance(vec![]))
            .await?;
        claim.still_mine().await?;
        let result = RunResult {
            outputs: BTreeMap::from([("data".to_owned(), manifest.id.clone())]),
            attempt: claim.attempt(),
            finished_at: now(),
            summary: json!({}),
        };
        let outcome = claim.finish(&result).await?;
        assert_ne!(outcome, Outcome::TheirsDifferent, "seed {}", self.seed);
        self.finished.lock().unwrap().insert(manifest.id);
        Ok(())
    }

    /// Fetches what there is; what it is given is right.
    async fn read(&self, actor: u64) {
        let mut random = self.random(actor);
        let mirror = Mirror::open(&self.dir.path().join("mirror")).unwrap();
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..60))).await;
            let Some(ids) = self.mortal(&mut random, self.store.artifacts(KIND)).await else {
                continue;
            };
            for id in ids {
                if let Some(folder) = self
                    .mortal(&mut random, self.store.fetch(&id, &mirror))
                    .await
                {
                    self.compare(&folder);
                }
            }
        }
    }

    /// A fetched folder is that of one of the drafts.
    fn compare(&self, folder: &Path) {
        let files = |folder: &Path| -> BTreeMap<_, _> {
            let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
            let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
            files
                .map(|entry| (entry.file_name(), fs::read(entry.path()).unwrap()))
                .collect()
        };
        let found = files(folder);
        let is_known = self.drafts.iter().any(|draft| files(&draft.root) == found);
        assert!(
            is_known,
            "seed {}: {} holds {found:?}",
            self.seed,
            folder.display()
        );
    }

    /// Plans, waits, deletes.
    async fn collect(&self, actor: u64) {
        let mut random = self.random(actor);
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..150))).await;
            if random.random_bool(0.8) {
                self.leap();
            }
            let planned = self.store.gc_plan(GcPolicy::default());
            if self.mortal(&mut random, planned).await.is_some() {
                tokio::time::sleep(NOTICE).await;
                // Past the whole second that an age may be off.
                self.server.advance(Duration::from_secs(2));
            }
            self.mortal(&mut random, self.store.gc_apply(|_, _| {}))
                .await;
        }
        // As in life, the next collector ends what one that died had begun; else a writer waits half an hour.
        while self.under_way.load(Ordering::SeqCst) > 0 {
            let looked = Instant::now();
            while looked.elapsed() < LONG && self.under_way.load(Ordering::SeqCst) > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            if looked.elapsed() >= LONG {
                self.leap();
                self.mortal(&mut random, self.store.gc_apply(|_, _| {}))
                    .await;
            }
        }
    }

    /// Days pass: whatever is not needed may go.
    fn leap(&self) {
        self.leaps.fetch_add(1, Ordering::SeqCst);
        self.server.advance(Duration::from_hours(8 * 24));
    }

    /// What holds after everything.
    async fn check(&self, names: Vec<(String, Acknowledged)>) {
        let seed = self.seed;
        self.faults.calm();
        // A look that lags is shown for a moment.
        tokio::time::sleep(Duration::from_millis(60)).await;
        let report = self
            .patient
            .fsck(FsckDepth::Full, |_, _, _| {})
            .await
            .unwrap();
        assert!(report.is_sound(), "seed {seed}: {report:?}");
        for _ in 0..6 {
            self.leap();
            match self.patient.gc_plan(GcPolicy::default()).await {
                Ok(None) => break,
                Ok(Some(_)) => tokio::time::sleep(NOTICE).await,
                // A collector died at its work, and is to be followed.
                Err(error) => assert_eq!(code(&error), 75, "seed {seed}: {error}"),
            }
            self.server.advance(Duration::from_hours(1));
            self.patient.gc_apply(|_, _| {}).await.unwrap();
        }
        let survey = self.patient.gc_survey(GcPolicy::default()).await.unwrap();
        assert!(survey.plan.is_empty(), "seed {seed}: {survey:?}");
        let report = self
            .patient
            .fsck(FsckDepth::Full, |_, _, _| {})
            .await
            .unwrap();
        assert_eq!(report.findings, [], "seed {seed}");
        let mirror = Mirror::open(&self.dir.path().join("fresh")).unwrap();
        for (name, known) in names {
            let found = self.patient.name(KIND, &name).await.unwrap();
            let is_right =
                found == known.last || found.as_ref().is_some_and(|id| known.since.contains(id));
            assert!(
                is_right,
                "seed {seed}: {name} leads to {found:?} instead of {:?}",
                known.last
            );
            if let Some(id) = found {
                self.compare(&self.patient.fetch(&id, &mirror).await.unwrap());
            }
        }
        let finished = self.finished.lock().unwrap().clone();
        for id in finished {
            self.patient.fetch(&id, &mirror).await.unwrap();
        }
    }
}

async fn run(seed: u64) -> BTreeMap<String, u64> {
    let scene = Scene::new(seed).await;
    let scene_ref = &scene;
    let done = || scene_ref.under_way.fetch_sub(1, Ordering::SeqCst);
    let writers = join_all((0..WRITERS as u64).map(|actor| async move {
        let known = scene_ref.write(actor).await;
        done();
        known
    }));
    let workers = join_all((0..WORKERS as u64).map(|actor| async move {
        scene_ref.work(10 + actor).await;
        done();
    }));
    let (names, ..) = tokio::join!(writers, workers, scene.read(20), scene.collect(30));
    scene.check(names).await;
    let counts = scene.faults.counts().into_iter();
    counts
        .map(|(fault, count)| (format!("{fault:?}"), count))
        .collect()
}

/// Runs some seeds, and tells how often each fault was injected. Of many it says how far it is.
async fn runs(seeds: std::ops::Range<u64>) -> BTreeMap<String, u64> {
    let mut total: BTreeMap<String, u64> = BTreeMap::new();
    let mut done = stream::iter(seeds)
        .map(|seed| tokio::spawn(run(seed)))
        .buffer_unordered(AT_A_TIME)
        .enumerate();
    while let Some((index, counts)) = done.next().await {
        for (fault, count) in counts.unwrap() {
            *total.entry(fault).or_default() += count;
        }
        if (index + 1) % 100 == 0 {
            #[expect(
                clippy::print_stderr,
                reason = "a test of an hour should say how far it is"
            )]
            {
                eprintln!("{} runs; faults: {total:?}", index + 1);
            }
        }
    }
    total
}

#[tokio::test(flavor = "multi_thread")]
async fn invariants_hold_under_faults_and_kills() {
    let counts = runs(0..FEW).await;
    assert_eq!(
        counts.len(),
        dev_store::Fault::ALL.len(),
        "each fault came: {counts:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "10,000 runs take more than half an hour"]
async fn invariants_hold_under_ten_thousand_schedules() {
    // Not those of the short test.
    let first = std::env::var("WMTP_FIRST_SEED").map_or(FEW, |seed| seed.parse().unwrap());
    let last = std::env::var("WMTP_NUM_SEEDS").map_or(MANY, |count| count.parse().unwrap()) + first;
    runs(first..last).await;
}
