//! Collections whose process died: what it had deleted by then, and which of its requests arrive late.

use futures::{StreamExt, stream};
use tokio::task::JoinHandle;

use super::*;

/// Of the protocol: a collector that was silent for so long is dead, and one whose process has ended is after less.
const TAKEOVER: u64 = 1_800;
const TAKEOVER_OF_ENDED: u64 = 120;

/// Of the protocol: so long after a collection was ended in place of its process no request of it can arrive.
const SETTLE: u64 = 900;
/// When the last request arrives, and a writer still has to wait: far from [`SETTLE`], as a slow machine needs.
const LATEST: u64 = 600;
/// A writer that waits looks every half second whether it still has to.
const SEVERAL_LOOKS: Duration = Duration::from_millis(1_200);

/// An object that a collection deletes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Object {
    Manifest(usize),
    Content(usize),
}

/// How a collection dies.
#[derive(Debug, Clone)]
pub(super) struct Death {
    /// Whether others see that its process has ended; else it is only silent.
    pub(super) is_known: bool,
    /// So many objects it had deleted.
    pub(super) num_deleted: usize,
    /// Requests without an answer: which of those that can be, and seconds until each arrives.
    pub(super) late: Vec<(usize, u64)>,
}

pub(super) fn death() -> impl Strategy<Value = Death> {
    let delay = prop_oneof![Just(5), Just(500), Just(5_000)];
    let late = proptest::collection::vec((0..6_usize, delay), 0..4);
    (any::<bool>(), 0..6_usize, late).prop_map(|(is_known, num_deleted, late)| Death {
        is_known,
        num_deleted,
        late,
    })
}

/// A collection whose process died.
#[derive(Debug, Clone)]
pub(super) struct Dead {
    plan: Planned,
    is_known: bool,
    /// When it was last heard of.
    heard: u64,
    /// When another ended it.
    ended: Option<u64>,
    /// Requests that are under way, and when each arrives.
    late: Vec<(Object, u64)>,
}

impl Dead {
    fn new(plan: Planned, death: &Death, doomed: &[Object], now: u64) -> Self {
        // What it was at when it died; and of what is deleted a request that was sent twice.
        let is_manifest = |object: &Object| matches!(object, Object::Manifest(_));
        let at_work = doomed.get(death.num_deleted).is_some_and(is_manifest);
        let sent = doomed.iter().enumerate().filter(|(place, object)| {
            *place < death.num_deleted || !at_work || is_manifest(object)
        });
        let sent: Vec<_> = sent.map(|(_, object)| *object).collect();
        let late = death.late.iter().filter(|_| !sent.is_empty());
        Self {
            plan,
            is_known: death.is_known,
            heard: now,
            ended: None,
            late: late
                .map(|(place, delay)| (sent[place % sent.len()], now + delay))
                .collect(),
        }
    }

    /// So long after it was last heard of a writer takes it for dead.
    fn patience(&self) -> u64 {
        if self.is_known {
            TAKEOVER_OF_ENDED
        } else {
            TAKEOVER
        }
    }

    /// Ends it: what its process had sent until then arrives before long.
    pub(super) fn end(&mut self, now: u64) {
        self.ended = Some(now);
        for (_, due) in &mut self.late {
            *due = (*due).min(now + LATEST);
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.ended.is_none()
    }

    /// Whether a collector that comes for it takes it over.
    pub(super) fn is_taken_over(&self, now: u64) -> bool {
        self.is_known || now - self.heard >= TAKEOVER
    }

    pub(super) fn plan(&self) -> &Planned {
        &self.plan
    }

    /// Whether who needs these objects has to wait.
    fn is_in_the_way(&self, needs: &BTreeSet<Object>, now: u64) -> bool {
        let is_settled = self.ended.is_some_and(|ended| now - ended > SETTLE);
        !is_settled
            && self
                .plan
                .objects()
                .iter()
                .any(|object| needs.contains(object))
    }

    fn key(&self, part: &str) -> String {
        format!("v1/gc/{:04}/{part}.json", self.plan.number)
    }
}

impl Twin {
    /// A process begins to carry out the announced plan once its notice is over, and dies at that.
    pub(super) async fn die(&mut self, death: &Death) {
        self.wait(NOTICE + 10).await;
        let Some(plan) = self.model.plan.take_if(|plan| !plan.is_void) else {
            return;
        };
        let (artifacts, contents) = self.model.doomed(Some(&plan));
        let artifacts = artifacts.into_iter().map(Object::Manifest);
        let contents = contents.into_iter().map(Object::Content);
        let doomed: Vec<_> = artifacts.chain(contents).collect();
        let dead = Dead::new(plan, death, &doomed, self.model.now);
        let process = death.is_known.then(|| {
            json!({
                "boot_id": fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim(),
                "pid_namespace": fs::read_link("/proc/self/ns/pid").unwrap(),
                "pid": std::process::id(),
                // Another process had this number before.
                "started_ticks": 0,
            })
        });
        let holder = json!({"host": "collector", "process": process});
        let verdict = json!({"verdict": "apply", "holder": holder}).to_string();
        let key = dead.key("verdict");
        self.world.overwrite(&key, verdict.as_bytes()).await;
        for object in doomed.iter().take(death.num_deleted) {
            self.delete(*object).await;
        }
        self.model.dead.push(dead);
    }

    /// Lets a request of a collection take effect.
    async fn delete(&mut self, object: Object) {
        let key = match object {
            Object::Manifest(artifact) => {
                self.model.artifacts.remove(&artifact);
                manifest_key(&self.ids[artifact])
            }
            Object::Content(content) => {
                self.model.contents.remove(&content);
                let digest = Digest::of(format!("content {content}").as_bytes()).to_string();
                format!("v1/blobs/sha256/{}/{digest}", &digest[..2])
            }
        };
        self.world.delete(&key).await;
    }

    /// Lets time pass, in which late requests arrive.
    pub(super) async fn wait(&mut self, secs: u64) {
        let until = self.model.now + secs;
        let mut due = Vec::new();
        for dead in &mut self.model.dead {
            due.extend(dead.late.extract_if(.., |(_, due)| *due <= until));
        }
        due.sort_by_key(|(_, due)| *due);
        for (object, due) in due {
            self.advance(due);
            self.delete(object).await;
        }
        self.advance(until);
    }

    fn advance(&mut self, until: u64) {
        let secs = until.saturating_sub(self.model.now);
        self.world.server.advance(Duration::from_secs(secs));
        self.model.now += secs;
    }

    async fn wait_until(&mut self, until: u64) {
        self.wait(until.saturating_sub(self.model.now)).await;
    }

    /// Lets a piece of work end that relies on some objects: it waits as long as a collection may yet delete one of them.
    pub(super) async fn relying<T>(&mut self, needs: &BTreeSet<Object>, work: JoinHandle<T>) -> T {
        for place in 0..self.model.dead.len() {
            if self.model.dead[place].is_in_the_way(needs, self.model.now) {
                self.settle(place, || work.is_finished()).await;
            }
        }
        work.await.unwrap()
    }

    /// Lets the time pass that a writer waits for a dead collection, which it ends if nobody did before.
    async fn settle(&mut self, place: usize, is_done: impl Fn() -> bool) {
        let dead = self.model.dead[place].clone();
        let done = dead.key("done");
        if self.is_hasty {
            let at_once = json!({"settle_secs": 0, "ended_at": now()}).to_string();
            self.world.overwrite(&done, at_once.as_bytes()).await;
            self.model.dead[place].end(self.model.now);
            return;
        }
        if dead.is_open() {
            if !dead.is_known {
                self.wait_until(dead.heard + LATEST).await;
                assert!(self.world.is_absent(&done).await, "it may yet be at work");
            }
            self.wait_until(dead.heard + dead.patience() + 1).await;
            let ended = async {
                while self.world.is_absent(&done).await {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let in_time = tokio::time::timeout(Duration::from_mins(10), ended).await;
            in_time.expect("a writer ends it");
            self.model.dead[place].end(self.model.now);
        }
        let ended = self.model.dead[place].ended.unwrap_or(self.model.now);
        if self.model.now < ended + LATEST {
            // A writer that goes on too early does it before what it fails to wait for.
            tokio::time::sleep(SEVERAL_LOOKS).await;
            self.wait_until(ended + LATEST).await;
            assert!(!is_done(), "a late request may yet arrive");
        }
        self.wait_until(ended + SETTLE + 2).await;
    }
}

/// Each way in which a collection of one artifact can die, with one request that arrives as late as any; then a writer
/// who needs what is late, or something else of the plan.
fn deaths() -> Vec<(Death, usize)> {
    let mut found = Vec::new();
    for (is_known, writer) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
        for (num_deleted, num_sent) in [(0, 1), (1, 3), (2, 3), (3, 3)] {
            found.extend((0..num_sent).map(|late| {
                let death = Death {
                    is_known,
                    num_deleted,
                    late: vec![(late, u64::MAX / 2)],
                };
                (death, writer)
            }));
        }
    }
    found
}

/// Whether a writer's artifact is whole after a collection of artifact 0 died, and whether it needed what came late.
async fn outcome(death: Death, writer: usize, is_hasty: bool) -> (bool, bool) {
    let (late, _) = death.late[0];
    let late = [Object::Manifest(0), Object::Content(0), Object::Content(1)][late];
    let mut twin = Twin::new().await;
    twin.is_hasty = is_hasty;
    let steps = [
        Step::Publish(0),
        Step::Plan(GRACE + NOTICE),
        Step::Die(death),
        Step::Publish(writer),
        Step::Wait(SETTLE),
    ];
    for step in &steps {
        twin.step(step).await;
    }
    assert!(twin.model.dead[0].late.is_empty(), "it arrived");
    let committed = twin.world.store.artifacts(KIND).await.unwrap();
    let report = fsck(&twin.world, FsckDepth::Full).await;
    let is_whole = report.is_sound() && committed.contains(&twin.ids[writer]);
    (is_whole, needs(writer).contains(&late))
}

async fn outcomes(is_hasty: bool) -> Vec<(Death, usize, bool, bool)> {
    let outcomes = deaths().into_iter().map(|(death, writer)| async move {
        let (is_whole, is_needed) = outcome(death.clone(), writer, is_hasty).await;
        (death, writer, is_whole, is_needed)
    });
    stream::iter(outcomes).buffer_unordered(8).collect().await
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_dead_collector_left_under_way_harms_nobody() {
    for (death, writer, is_whole, _) in outcomes(false).await {
        assert!(is_whole, "writer of {writer} after {death:?}");
    }
}

/// The check sees what it is there for: a writer that goes on at once loses whatever it needs and comes late.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_does_not_wait_is_found_out() {
    for (death, writer, is_whole, is_needed) in outcomes(true).await {
        assert_eq!(is_whole, !is_needed, "writer of {writer} after {death:?}");
    }
}
