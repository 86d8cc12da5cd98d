//! Commit, names, claims, time and collection in any order, against a model of what each must answer. Collectors die at
//! their work, and what they sent may arrive late.

mod dead;

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use wmtp_artifacts::{GcPolicy, GcReport};

use self::dead::{Dead, Death, Object, death};
use super::*;

const KIND: Kind = Kind::ProcessedData;
/// Artifact `n` holds the contents `n` and `n + 1`, so neighbours share one.
const ARTIFACTS: usize = 3;
const GRACE: u64 = 7 * 86_400;
const NOTICE: u64 = 3_600;
const HEARTBEAT_TTL: u64 = 90;

#[derive(Debug, Clone)]
enum Step {
    Publish(usize),
    Name(usize, usize),
    /// After some seconds.
    Plan(u64),
    /// After some seconds.
    Apply(u64),
    Die(Death),
    Claim,
    Beat(bool),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..ARTIFACTS).prop_map(Step::Publish),
        2 => (0..2_usize, 0..ARTIFACTS).prop_map(|(name, artifact)| Step::Name(name, artifact)),
        // Most plans are made when there is something to collect.
        4 => prop_oneof![1 => Just(0), 3 => Just(GRACE + NOTICE)].prop_map(Step::Plan),
        4 => prop_oneof![1 => Just(0), 4 => Just(NOTICE + 10)].prop_map(Step::Apply),
        3 => death().prop_map(Step::Die),
        1 => Just(Step::Claim),
        1 => any::<bool>().prop_map(Step::Beat),
        2 => prop_oneof![Just(30), Just(100), Just(GRACE + NOTICE)].prop_map(Step::Wait),
    ]
}

/// A plan that was announced.
#[derive(Debug, Clone)]
struct Planned {
    number: u64,
    at: u64,
    is_void: bool,
    artifacts: BTreeSet<usize>,
    contents: BTreeSet<usize>,
}

impl Planned {
    fn objects(&self) -> BTreeSet<Object> {
        let artifacts = self.artifacts.iter().copied().map(Object::Manifest);
        let contents = self.contents.iter().copied().map(Object::Content);
        artifacts.chain(contents).collect()
    }
}

/// What a store must hold, and answer.
#[derive(Debug, Default)]
struct Model {
    now: u64,
    /// When each was written.
    artifacts: BTreeMap<usize, u64>,
    contents: BTreeMap<usize, u64>,
    names: BTreeMap<usize, usize>,
    plan: Option<Planned>,
    /// Collections that were begun and not brought to their end, the oldest first.
    dead: Vec<Dead>,
    /// The newest attempt: number, last heartbeat, whether it is over.
    attempt: Option<(u32, u64, bool)>,
}

fn contents(artifact: usize) -> [usize; 2] {
    [artifact, (artifact + 1) % ARTIFACTS]
}

/// What a commit relies on.
fn needs(artifact: usize) -> BTreeSet<Object> {
    let contents = contents(artifact).map(Object::Content);
    let manifest = [Object::Manifest(artifact)].into_iter();
    manifest.chain(contents).collect()
}

impl Model {
    fn is_old(&self, written: u64) -> bool {
        self.now - written > GRACE
    }

    /// What may go: all that is found, or of a plan.
    fn doomed(&self, plan: Option<&Planned>) -> (BTreeSet<usize>, BTreeSet<usize>) {
        let is_named = |artifact: &usize| self.names.values().any(|named| named == artifact);
        let old = self
            .artifacts
            .iter()
            .filter(|(_, written)| self.is_old(**written));
        let artifacts: BTreeSet<usize> = old
            .map(|(artifact, _)| *artifact)
            .filter(|artifact| !is_named(artifact))
            .filter(|artifact| plan.is_none_or(|plan| plan.artifacts.contains(artifact)))
            .collect();
        let stay = self
            .artifacts
            .keys()
            .filter(|artifact| !artifacts.contains(artifact));
        let needed: BTreeSet<usize> = stay.flat_map(|artifact| contents(*artifact)).collect();
        let old = self
            .contents
            .iter()
            .filter(|(_, written)| self.is_old(**written));
        let contents = old
            .map(|(content, _)| *content)
            .filter(|content| !needed.contains(content))
            .filter(|content| plan.is_none_or(|plan| plan.contents.contains(content)))
            .collect();
        (artifacts, contents)
    }

    /// Whoever needs something of a plan makes it void.
    fn need(&mut self, needs: &BTreeSet<Object>) {
        if let Some(plan) = &mut self.plan {
            plan.is_void |= !plan.objects().is_disjoint(needs);
        }
    }

    /// The collection that a process began and nobody ended.
    fn abandoned(&mut self) -> Option<&mut Dead> {
        self.dead.last_mut().filter(|dead| dead.is_open())
    }
}

/// The store beside its model.
struct Twin {
    world: World,
    model: Model,
    ids: Vec<ArtifactId>,
    claim: Option<Claim>,
    /// Whether writers take it that nothing arrives late. They do not: it shows what the checks find.
    is_hasty: bool,
}

impl Twin {
    async fn new() -> Self {
        let world = World::new().await;
        let elsewhere = World::new().await;
        let mut ids = Vec::new();
        for artifact in 0..ARTIFACTS {
            let root = Self::fill(&world, artifact);
            let draft = draft(root);
            ids.push(
                elsewhere
                    .store
                    .publish(&draft, &provenance(vec![]))
                    .await
                    .unwrap()
                    .id,
            );
        }
        Self {
            world,
            model: Model::default(),
            ids,
            claim: None,
            is_hasty: false,
        }
    }

    fn fill(world: &World, artifact: usize) -> PathBuf {
        let [one, two] =
            contents(artifact).map(|content| (format!("f{content}"), format!("content {content}")));
        let files = [
            (one.0.as_str(), one.1.as_bytes()),
            (two.0.as_str(), two.1.as_bytes()),
        ];
        world.folder(&format!("draft-{artifact}"), &files)
    }

    async fn step(&mut self, step: &Step) {
        match *step {
            Step::Die(ref death) => self.die(death).await,
            Step::Publish(artifact) => self.publish(artifact).await,
            Step::Name(name, artifact) => self.name(name, artifact).await,
            Step::Plan(secs) => {
                self.wait(secs).await;
                self.plan().await;
            }
            Step::Apply(secs) => {
                self.wait(secs).await;
                self.apply().await;
            }
            Step::Claim => self.take().await,
            Step::Beat(is_over) => self.beat(is_over).await,
            Step::Wait(secs) => self.wait(secs).await,
        }
    }

    async fn publish(&mut self, artifact: usize) {
        let draft = draft(self.world.dir.path().join(format!("draft-{artifact}")));
        let store = self.world.store.clone();
        let publish = tokio::spawn(async move { store.publish(&draft, &provenance(vec![])).await });
        self.model.need(&needs(artifact));
        let manifest = self.relying(&needs(artifact), publish).await.unwrap();
        assert_eq!(manifest.id, self.ids[artifact]);
        let model = &mut self.model;
        model.artifacts.entry(artifact).or_insert(model.now);
        for content in contents(artifact) {
            model.contents.entry(content).or_insert(model.now);
        }
    }

    async fn name(&mut self, name: usize, artifact: usize) {
        let (store, id) = (self.world.store.clone(), self.ids[artifact].clone());
        let set = tokio::spawn(async move { store.set_name(KIND, &format!("n{name}"), &id).await });
        let needs = BTreeSet::from([Object::Manifest(artifact)]);
        self.model.need(&needs);
        let named = self.relying(&needs, set).await;
        let is_there = self.model.artifacts.contains_key(&artifact);
        assert_eq!(named.is_ok(), is_there, "{named:?}");
        if is_there {
            self.model.names.insert(name, artifact);
        }
    }

    async fn plan(&mut self) {
        let planned = self.world.store.gc_plan(GcPolicy::default()).await;
        if self.model.abandoned().is_some() {
            assert_eq!(code(&planned.unwrap_err()), 75, "one is being carried out");
            return;
        }
        let planned = planned.unwrap();
        let (artifacts, contents) = self.model.doomed(None);
        self.model.plan = None;
        let Some((number, plan)) = planned else {
            assert_eq!(
                (artifacts.len(), contents.len()),
                (0, 0),
                "nothing was found"
            );
            return;
        };
        assert_eq!(
            (plan.manifests.len(), plan.contents.len()),
            (artifacts.len(), contents.len())
        );
        for artifact in &artifacts {
            let key = manifest_key(&self.ids[*artifact]);
            assert!(
                plan.manifests.iter().any(|doomed| doomed.key == key),
                "{key}"
            );
        }
        self.model.plan = Some(Planned {
            number,
            at: self.model.now,
            is_void: false,
            artifacts,
            contents,
        });
    }

    async fn apply(&mut self) {
        let applied = self.world.store.gc_apply(|_, _| {}).await;
        let now = self.model.now;
        if let Some(dead) = self.model.abandoned() {
            if !dead.is_taken_over(now) {
                assert_eq!(code(&applied.unwrap_err()), 75, "another carries it out");
                return;
            }
            dead.end(now);
            let plan = dead.plan().clone();
            self.collected(&applied.unwrap(), &plan);
            return;
        }
        let Some(plan) = self.model.plan.clone() else {
            assert_eq!(code(&applied.unwrap_err()), 65, "none is announced");
            return;
        };
        if now - plan.at < NOTICE {
            assert_eq!(code(&applied.unwrap_err()), 75, "before the notice is over");
            return;
        }
        self.model.plan = None;
        if plan.is_void {
            assert_eq!(code(&applied.unwrap_err()), 75, "it is void");
            return;
        }
        self.collected(&applied.unwrap(), &plan);
    }

    /// What a collection deleted of its plan.
    fn collected(&mut self, report: &GcReport, plan: &Planned) {
        let (artifacts, contents) = self.model.doomed(Some(plan));
        assert_eq!(
            (report.artifacts, report.contents),
            (artifacts.len() as u64, contents.len() as u64)
        );
        let model = &mut self.model;
        model
            .artifacts
            .retain(|artifact, _| !artifacts.contains(artifact));
        model
            .contents
            .retain(|content, _| !contents.contains(content));
    }

    async fn take(&mut self) {
        let claimed = Claim::take(&self.world.store, &request("work")).await;
        let now = self.model.now;
        let is_held =
            |(_, heard, is_over): (u32, u64, bool)| !is_over && now - heard < HEARTBEAT_TTL;
        if self.model.attempt.is_some_and(is_held) {
            assert_eq!(code(&claimed.unwrap_err()), 75);
            return;
        }
        let claim = claimed.unwrap();
        let number = self.model.attempt.map_or(1, |(number, ..)| number + 1);
        assert_eq!(claim.attempt(), number);
        self.model.attempt = Some((number, now, false));
        self.claim = Some(claim);
    }

    async fn beat(&mut self, is_over: bool) {
        let Some(claim) = &self.claim else {
            return;
        };
        claim.still_mine().await.unwrap();
        let state = if is_over {
            RunState::Preempted
        } else {
            RunState::Running
        };
        claim.heartbeat(&status(state)).await.unwrap();
        self.model.attempt = Some((claim.attempt(), self.model.now, is_over));
    }

    /// The store holds what the model does, whole.
    async fn compare(&self) {
        let found: BTreeSet<_> = self
            .world
            .store
            .artifacts(KIND)
            .await
            .unwrap()
            .into_iter()
            .collect();
        let expected: BTreeSet<_> = self
            .model
            .artifacts
            .keys()
            .map(|artifact| self.ids[*artifact].clone())
            .collect();
        assert_eq!(found, expected);
        let report = fsck(&self.world, FsckDepth::Full).await;
        assert!(report.is_sound(), "{report:?}");
        let orphans = self.model.contents.keys().filter(|content| {
            !self
                .model
                .artifacts
                .keys()
                .any(|artifact| contents(*artifact).contains(content))
        });
        assert_eq!(report.findings.len(), orphans.count());
    }
}

/// Waits are far from the limits that they stand beside, so that the seconds a step takes decide nothing.
#[test]
fn any_order_of_steps_is_answered_as_the_model_does() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = Config {
        cases: 8,
        max_shrink_iters: 60,
        failure_persistence: None,
        ..Config::default()
    };
    let steps = proptest::collection::vec(step(), 10..28);
    let run = TestRunner::new(config).run(&steps, |steps| {
        runtime.block_on(async {
            let mut twin = Twin::new().await;
            for step in &steps {
                twin.step(step).await;
            }
            // Whatever is under way arrives.
            twin.wait(GRACE).await;
            twin.compare().await;
        });
        Ok(())
    });
    run.unwrap_or_else(|error| panic!("{error}"));
}
