//! The walls: Landlock rules, system call filters, resource limits, spare user.
//!
//! Everything is prepared here before a process turns into a server; from then on only plain system calls run. The only
//! unsafe code of the crate is in this file.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, Scope, path_beneath_rules,
};
use libc::{c_long, c_ulong};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use serde::{Deserialize, Serialize};

use crate::{Error, Limits};

/// User and group that programs run under when the grader is root: `nobody` on most systems.
pub(crate) const SPARE_ID: u32 = 65_534;

/// Paths that programs may read besides the interpreter's own: all harmless, none required.
const READABLE: [&str; 5] = [
    "/etc/ld.so.cache",
    "/usr/share/zoneinfo",
    "/dev/null",
    "/dev/urandom",
    "/dev/zero",
];

/// File size that the server itself may write: reports are small, outputs have a lower limit of their own.
const SERVER_FILE_BYTES: u64 = 1 << 30;

/// What walls are made of: all that another process needs to make the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Files and folders that the interpreter reads.
    roots: Vec<PathBuf>,
    /// 0: without Landlock.
    landlock_abi: u32,
    output_bytes: u64,
    /// The process that starts servers, and with which they end.
    grader: u32,
}

/// Everything that a server is held in by, ready to be applied between fork and exec.
#[derive(Debug)]
pub(crate) struct Confinement {
    landlock: Option<OwnedFd>,
    base_filter: BpfProgram,
    fork_filter: BpfProgram,
    resource_limits: Vec<(libc::__rlimit_resource_t, u64)>,
    plan: Plan,
}

impl Confinement {
    /// Prepares the walls for an interpreter whose own files lie under `roots`.
    ///
    /// Without Landlock (`landlock_abi` 0) forks may open files for reading only, by their filter.
    pub(crate) fn new(
        roots: &[PathBuf],
        landlock_abi: u32,
        limits: &Limits,
    ) -> Result<Self, Error> {
        Self::of_plan(Plan {
            roots: roots.to_owned(),
            landlock_abi,
            output_bytes: limits.output_bytes,
            grader: std::process::id(),
        })
    }

    /// The walls of a plan that this or another process made.
    pub(crate) fn of_plan(plan: Plan) -> Result<Self, Error> {
        let unsupported = |what: String| Error::Unsupported { what };
        let landlock = if plan.landlock_abi > 0 {
            ruleset(&plan.roots).map_err(|error| unsupported(format!("Landlock rules: {error}")))?
        } else {
            None
        };
        let forks = fork_rules(landlock.is_none())
            .map_err(|error| unsupported(format!("system call filter: {error}")))?;
        let compile = |rules| {
            compile(rules).map_err(|error| unsupported(format!("system call filter: {error}")))
        };
        Ok(Self {
            landlock,
            base_filter: compile(server_rules(forks.clone()))?,
            fork_filter: compile_narrowing(&forks)
                .map_err(|error| unsupported(format!("system call filter: {error}")))?,
            resource_limits: vec![
                (libc::RLIMIT_CORE, 0),
                (libc::RLIMIT_NOFILE, 256),
                (libc::RLIMIT_STACK, 256 << 20),
                (libc::RLIMIT_MEMLOCK, 0),
                (libc::RLIMIT_MSGQUEUE, 0),
                (libc::RLIMIT_FSIZE, SERVER_FILE_BYTES.max(plan.output_bytes)),
            ],
            plan,
        })
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The filter that each fork adds before it runs a program, as the kernel reads it, in hexadecimal.
    pub(crate) fn fork_filter_hex(&self) -> String {
        use std::fmt::Write;

        let mut hex = String::new();
        for instruction in &self.fork_filter {
            let [code_low, code_high] = instruction.code.to_ne_bytes();
            let head = [code_low, code_high, instruction.jt, instruction.jf];
            for byte in head.into_iter().chain(instruction.k.to_ne_bytes()) {
                let _ = write!(hex, "{byte:02x}");
            }
        }
        hex
    }

    /// Makes `command` start behind the walls.
    ///
    /// The parent-death signal follows the thread that spawns: that thread must live as long as the child.
    #[expect(unsafe_code, reason = "walls go up between fork and exec")]
    pub(crate) fn apply(self: &Arc<Self>, command: &mut Command) {
        let walls = Arc::clone(self);
        // SAFETY: the closure runs in the forked child of a process that may have threads, so it may only do
        // what is async-signal-safe. `enter` makes plain system calls on memory and descriptors that were
        // prepared before the fork and that the moved `Arc` keeps alive in parent and child; it allocates
        // nothing, takes no lock, and reports failure by `io::Error::last_os_error`, which does not allocate.
        unsafe {
            command.pre_exec(move || walls.enter());
        }
    }

    /// Runs in the child between fork and exec: system calls only, see [`Self::apply`].
    #[expect(unsafe_code, reason = "raw system calls")]
    fn enter(&self) -> io::Result<()> {
        // SAFETY: every call takes plain numbers or pointers to live, correctly typed values: `limit` is on
        // the stack during its call, the filter program points into `self.base_filter` and has its length,
        // the ruleset descriptor is owned by `self`.
        unsafe {
            check(c_long::from(libc::setsid()))?;
            let kill = libc::SIGKILL as c_ulong;
            check(c_long::from(libc::prctl(libc::PR_SET_PDEATHSIG, kill)))?;
            if libc::getppid() != self.plan.grader as libc::pid_t {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            // Descriptors that some library left inheritable; an old kernel lacks the call, and the fork
            // server closes what it sees before a program runs.
            libc::syscall(
                libc::SYS_close_range,
                3 as c_ulong,
                c_ulong::from(u32::MAX),
                c_ulong::from(libc::CLOSE_RANGE_CLOEXEC),
            );
            for &(resource, value) in &self.resource_limits {
                let limit = libc::rlimit {
                    rlim_cur: value,
                    rlim_max: value,
                };
                check(c_long::from(libc::setrlimit(resource, &raw const limit)))?;
            }
            let zero: c_ulong = 0;
            check(c_long::from(libc::prctl(
                libc::PR_SET_NO_NEW_PRIVS,
                1 as c_ulong,
                zero,
                zero,
                zero,
            )))?;
            if let Some(ruleset) = &self.landlock {
                check(libc::syscall(
                    libc::SYS_landlock_restrict_self,
                    c_long::from(ruleset.as_raw_fd()),
                    zero,
                ))?;
            }
            let filter = libc::sock_fprog {
                len: self.base_filter.len() as libc::c_ushort,
                filter: self.base_filter.as_ptr().cast_mut().cast(),
            };
            check(c_long::from(libc::prctl(
                libc::PR_SET_SECCOMP,
                c_ulong::from(libc::SECCOMP_MODE_FILTER),
                &raw const filter,
            )))
        }
    }
}

fn check(result: c_long) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Version of the kernel's Landlock interface; 0 where it has none or forbids its use.
#[expect(unsafe_code, reason = "raw system call")]
pub(crate) fn landlock_abi() -> u32 {
    const VERSION_FLAG: c_ulong = 1;
    let (no_attributes, no_size): (c_ulong, c_ulong) = (0, 0);
    // SAFETY: with the version flag the kernel takes a null pointer and size 0 and only returns a number.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            no_attributes,
            no_size,
            VERSION_FLAG,
        )
    };
    u32::try_from(version).unwrap_or(0)
}

/// Whether the kernel filters system calls.
#[expect(unsafe_code, reason = "raw system call")]
pub(crate) fn has_seccomp() -> bool {
    const GET_ACTION_AVAILABLE: c_ulong = 2;
    let no_flags: c_ulong = 0;
    let action: u32 = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the kernel reads one u32 from the pointer, which outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            GET_ACTION_AVAILABLE,
            no_flags,
            &raw const action,
        )
    };
    result == 0
}

/// Whether this process may change its user.
#[expect(unsafe_code, reason = "raw system call")]
pub(crate) fn is_root() -> bool {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Read and execute below `roots` and [`READABLE`]; nothing writable; no TCP; no signals or abstract
/// sockets to the outside. The first version's file rights are required, newer rights best effort.
fn ruleset(roots: &[PathBuf]) -> Result<Option<OwnedFd>, RulesetError> {
    let read = AccessFs::from_read(ABI::V1);
    let created: RulesetCreated = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V7))?
        .handle_access(AccessNet::from_all(ABI::V7))?
        .scope(Scope::from_all(ABI::V7))?
        .create()?
        .add_rules(path_beneath_rules(roots, read))?
        .add_rules(path_beneath_rules(
            READABLE,
            AccessFs::ReadFile | AccessFs::ReadDir,
        ))?
        .add_rules(path_beneath_rules(["/dev/null"], AccessFs::WriteFile))?;
    Ok(created.into())
}

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// System calls that a program may make with any arguments.
const FORK_CALLS: &[c_long] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Descriptors and files; Landlock decides which.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_eventfd2,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getcwd,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_umask,
    // Waiting.
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    // Time and chance.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_times,
    libc::SYS_getrusage,
    libc::SYS_getrandom,
    libc::SYS_setitimer,
    libc::SYS_getitimer,
    // Own signals, own identity.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigsuspend,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getgroups,
    libc::SYS_getpgid,
    libc::SYS_getsid,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_sched_getaffinity,
    // Threads.
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Older forms of the above that exist on this architecture only.
#[cfg(target_arch = "x86_64")]
const FORK_CALLS_OF_ARCH: &[c_long] = &[
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_getdents,
    libc::SYS_pipe,
    libc::SYS_dup2,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_time,
    libc::SYS_alarm,
    libc::SYS_pause,
    libc::SYS_getpgrp,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const FORK_CALLS_OF_ARCH: &[c_long] = &[];

/// What the server needs besides: start, fork, wait, kill its forks, limit them.
const SERVER_CALLS: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_openat,
    libc::SYS_clone,
    libc::SYS_wait4,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_memfd_create,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
];

/// Commands of `fcntl` that change only the caller's own descriptors; above all not `F_SETOWN`.
const FCNTL_COMMANDS: [i32; 6] = [
    libc::F_DUPFD,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_DUPFD_CLOEXEC,
];

/// Requests of `ioctl` that Python makes on plain files: is it a terminal, how wide, do not block, close on exec.
const IOCTL_REQUESTS: [u64; 6] = [
    libc::TCGETS,
    libc::TIOCGWINSZ,
    libc::FIONBIO,
    libc::FIONREAD,
    libc::FIOCLEX,
    libc::FIONCLEX,
];

/// The allow-list of a fork. What is not on it fails with "operation not permitted": no fork, no exec, no
/// socket, no signal to anybody, no change to any file, no namespace, no tracing, no new kernel interface.
fn fork_rules(files_read_only: bool) -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = FORK_CALLS
        .iter()
        .chain(FORK_CALLS_OF_ARCH)
        .map(|&call| (call, Vec::new()))
        .collect();
    let opening = if files_read_only {
        let flags = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;
        vec![rule(&[masked(2, flags as u64, libc::O_RDONLY as u64)?])?]
    } else {
        Vec::new()
    };
    rules.insert(libc::SYS_openat, opening);
    rules.insert(libc::SYS_clone, vec![thread_only()?]);
    let read_own_limit = [equal(0, 0)?, equal_wide(2, 0)?];
    rules.insert(libc::SYS_prlimit64, vec![rule(&read_own_limit)?]);
    let commands = FCNTL_COMMANDS
        .iter()
        .map(|&command| rule(&[equal(1, command as u64)?]))
        .collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_fcntl, commands);
    let requests = IOCTL_REQUESTS
        .iter()
        .map(|&request| rule(&[equal(1, request)?]))
        .collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_ioctl, requests);
    Ok(rules)
}

/// A thread of this process, in the namespaces of this process.
fn thread_only() -> Result<SeccompRule, seccompiler::BackendError> {
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET;
    let mask = (libc::CLONE_THREAD | namespaces) as u64;
    rule(&[masked(0, mask, libc::CLONE_THREAD as u64)?])
}

/// The allow-list of the server: a fork's and its own.
fn server_rules(mut rules: Rules) -> Rules {
    rules.extend(SERVER_CALLS.iter().map(|&call| (call, Vec::new())));
    rules
}

fn rule(conditions: &[SeccompCondition]) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(conditions.to_vec())
}

fn equal(argument: u8, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

fn equal_wide(argument: u8, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, value)
}

fn masked(
    argument: u8,
    mask: u64,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    let operator = SeccompCmpOp::MaskedEq(mask);
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
}

const LOAD_NUMBER: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Compiles an allow-list. `clone3` is answered "no such call", so that the C library falls back to
/// `clone`, whose flags a filter can read.
fn compile(rules: Rules) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut program = vec![
        instruction(LOAD_NUMBER, 0, 0, 0),
        instruction(JUMP_EQUAL, 0, 1, libc::SYS_clone3 as u32),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
    ];
    program.extend(allow_list(rules)?);
    Ok(program)
}

/// Compiles what a fork adds to the server's filter, which stays in force: of the server's own calls, those alone that
/// a fork may make. Every fork installs it anew, and the kernel translates it each time, so it is short.
fn compile_narrowing(forks: &Rules) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut program = vec![instruction(LOAD_NUMBER, 0, 0, 0)];
    for (index, &call) in SERVER_CALLS.iter().enumerate() {
        // Over the checks that are left and over the return behind them, to the list.
        let to_list = (SERVER_CALLS.len() - index) as u8;
        program.push(instruction(JUMP_EQUAL, to_list, 0, call as u32));
    }
    program.push(instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    let own = forks
        .iter()
        .filter(|(call, _)| SERVER_CALLS.contains(call))
        .map(|(&call, rules)| (call, rules.clone()))
        .collect();
    program.extend(allow_list(own)?);
    Ok(program)
}

fn allow_list(rules: Rules) -> Result<BpfProgram, seccompiler::BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let denied = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, denied, SeccompAction::Allow, arch)?.try_into()
}

/// A wall that a test takes down to see what it holds back.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wall {
    /// What the kernel lets a server and its forks touch.
    Landlock,
    /// Both filters of system calls.
    Seccomp,
    /// What a fork adds to the server's filter.
    ForkFilter,
    /// The limits that server and forks share.
    Limits,
}

#[cfg(test)]
impl Confinement {
    /// These walls but for one.
    pub(crate) fn without(mut self, wall: Wall) -> Self {
        let open = || vec![instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW)];
        match wall {
            Wall::Landlock => self.landlock = None,
            Wall::Seccomp => (self.base_filter, self.fork_filter) = (open(), open()),
            Wall::ForkFilter => self.fork_filter = open(),
            Wall::Limits => self.resource_limits.clear(),
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_may_not_do_what_the_server_may() {
        let forks = fork_rules(false).unwrap();
        for call in [
            libc::SYS_execve,
            libc::SYS_wait4,
            libc::SYS_pidfd_open,
            libc::SYS_pidfd_send_signal,
            libc::SYS_memfd_create,
            libc::SYS_prctl,
            libc::SYS_kill,
            libc::SYS_socket,
            libc::SYS_ptrace,
        ] {
            assert!(!forks.contains_key(&call), "{call}");
        }
        let conditions = [
            libc::SYS_clone,
            libc::SYS_prlimit64,
            libc::SYS_fcntl,
            libc::SYS_ioctl,
        ];
        assert!(conditions.iter().all(|call| !forks[call].is_empty()));
    }

    #[test]
    fn filters_are_short() {
        let forks = fork_rules(true).unwrap();
        let limit_of_the_kernel = 4096;
        assert!(compile(server_rules(forks.clone())).unwrap().len() < limit_of_the_kernel);
        // Installed for every program; a whole allow-list would cost a tenth of a program's overhead.
        assert!(compile_narrowing(&forks).unwrap().len() < 150);
    }

    /// What a classic filter answers to a call with these arguments, by the kernel's rules.
    fn answer(program: &[sock_filter], call: c_long, arguments: [u64; 6]) -> u32 {
        let arch = if cfg!(target_arch = "x86_64") {
            0xC000_003E_u32
        } else {
            0xC000_00B7
        };
        let mut data = vec![call as u32, arch, 0, 0];
        data.extend(
            arguments
                .iter()
                .flat_map(|&value| [value as u32, (value >> 32) as u32]),
        );
        let (mut accumulator, mut at) = (0_u32, 0_usize);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let jump = |yes: bool| usize::from(if yes { jt } else { jf });
            match code {
                0x20 => accumulator = data[k as usize / 4],
                0x54 => accumulator &= k,
                0x05 => at += k as usize,
                0x15 => at += jump(accumulator == k),
                0x25 => at += jump(accumulator > k),
                0x35 => at += jump(accumulator >= k),
                0x06 => return k,
                _ => panic!("instruction {code:#x}"),
            }
        }
    }

    /// The two filters in force together allow what a fork's whole allow-list would, and nothing else.
    #[test]
    fn the_short_filter_over_the_servers_is_the_whole_list() {
        for files_read_only in [false, true] {
            let forks = fork_rules(files_read_only).unwrap();
            let whole = compile(forks.clone()).unwrap();
            let server = compile(server_rules(forks.clone())).unwrap();
            let narrowing = compile_narrowing(&forks).unwrap();
            let words = [
                0,
                1,
                2,
                4,
                6,
                8,
                0x241,
                0x5401,
                0x5421,
                0x1_0000,
                0x1000_0000,
                1 << 40,
            ];
            for call in (0..500).chain([0x4000_0000 + 57, 0x4000_0038]) {
                for first in words {
                    for second in words {
                        for third in words {
                            let arguments = [first, second, third, 0, 0, 0];
                            let allowed = |program: &[sock_filter]| {
                                answer(program, call, arguments) == libc::SECCOMP_RET_ALLOW
                            };
                            assert_eq!(
                                allowed(&server) && allowed(&narrowing),
                                allowed(&whole),
                                "{call} {arguments:x?}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_filter_travels_as_eight_bytes_an_instruction() {
        let walls = Confinement::new(&[], 0, &Limits::default()).unwrap();
        assert_eq!(
            walls.fork_filter_hex().len(),
            walls.fork_filter.len() * 8 * 2
        );
    }
}
