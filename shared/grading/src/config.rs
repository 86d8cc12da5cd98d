//! What a grader is given and what it reports about its sandbox.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// What one program may use. Programs are judged on CPU time; the wall limit only ends those that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// CPU seconds; whole seconds, as the kernel counts them.
    pub cpu_secs: u64,
    /// Wall-clock seconds; several times the CPU limit, so that a busy machine fails nobody.
    pub wall_secs: u64,
    /// Address space in bytes.
    pub memory_bytes: u64,
    /// Bytes written to each of the standard streams.
    pub output_bytes: u64,
}

impl Limits {
    /// Of fractions of a second, rounded up to what the kernel counts, and of MiB; the other limits are the default ones.
    ///
    /// ```
    /// let limits = wmtp_grading::Limits::of(0.2, 2.5, 3);
    /// assert_eq!((limits.cpu_secs, limits.wall_secs, limits.memory_bytes), (1, 3, 3 << 20));
    /// ```
    pub fn of(cpu_secs: f64, wall_secs: f64, memory_mib: u64) -> Self {
        let whole = |secs: f64| secs.ceil().max(1.0) as u64;
        Self {
            cpu_secs: whole(cpu_secs),
            wall_secs: whole(wall_secs),
            memory_bytes: memory_mib << 20,
            ..Self::default()
        }
    }
}

impl Default for Limits {
    /// 3 CPU s, 30 s of wall time, 1 GiB of memory, 8 MiB of output: the limits of HumanEval.
    fn default() -> Self {
        Self {
            cpu_secs: 3,
            wall_secs: 30,
            memory_bytes: 1 << 30,
            output_bytes: 8 << 20,
        }
    }
}

/// How a [`Grader`](crate::Grader) is set up.
#[derive(Debug, Clone)]
pub struct GraderConfig {
    /// Programs graded at the same time; each worker is one server process.
    pub workers: NonZeroUsize,
    /// What one program may use.
    pub limits: Limits,
    /// Go on where the platform cannot enforce every layer.
    pub accept_degraded: bool,
    /// Run each program that passes once more, with its tests in a process of their own.
    pub audit: bool,
    /// The interpreter; `None` takes the first usable `python3.11` or `python3` on the search path.
    pub python: Option<PathBuf>,
}

impl Default for GraderConfig {
    /// One worker per available core, the default [`Limits`], every layer required, no audit.
    fn default() -> Self {
        Self {
            workers: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            limits: Limits::default(),
            accept_degraded: false,
            audit: false,
            python: None,
        }
    }
}

/// Whether every layer of the sandbox holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// Every layer that the design asks for.
    Full,
    /// Something is missing; [`SandboxReport`] says what.
    Degraded,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Degraded => "degraded",
        })
    }
}

/// What the sandbox enforces on this machine. Stored with the scores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxReport {
    /// Version of the Landlock interface in force; 0 where the kernel has none.
    pub landlock_abi: u32,
    /// How system calls are filtered.
    pub seccomp: String,
    /// Whether programs run under a spare user.
    pub uid_drop: String,
    /// How the network is denied.
    pub network: String,
    /// Whether servers start by way of this binary started anew, or as forks of the grader's process.
    pub launched: String,
    /// Version of the interpreter.
    pub python: String,
    /// What a program that tries the usual ways out reached at start.
    pub self_check: String,
    /// The sum of the above.
    pub tier: Tier,
}

impl SandboxReport {
    /// Layer to state, as stored in a score's summary.
    pub fn to_map(&self) -> BTreeMap<String, String> {
        [
            ("landlock_abi", self.landlock_abi.to_string()),
            ("seccomp", self.seccomp.clone()),
            ("uid_drop", self.uid_drop.clone()),
            ("network", self.network.clone()),
            ("launched", self.launched.clone()),
            ("python", self.python.clone()),
            ("self_check", self.self_check.clone()),
            ("tier", self.tier.to_string()),
        ]
        .into_iter()
        .map(|(layer, state)| (layer.to_owned(), state))
        .collect()
    }
}

impl fmt::Display for SandboxReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            landlock_abi,
            seccomp,
            uid_drop,
            network,
            launched,
            python,
            self_check,
            tier,
        } = self;
        write!(
            f,
            "tier {tier}; Landlock ABI {landlock_abi}; system calls: {seccomp}; user: {uid_drop}; \
             network: {network}; launched {launched}; Python {python}; self-check: {self_check}"
        )
    }
}
