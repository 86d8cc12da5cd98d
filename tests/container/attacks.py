"""`make test-container`: the attack suite in a container like Docker's.

    python attacks.py ATTACKS LAUNCH EVALUATE
    cargo test --workspace --test attacks --test launch --no-run --message-format json | python attacks.py -

ATTACKS and LAUNCH are the compiled tests `shared/grading/tests/attacks.rs` and `jobs/evaluate/tests/launch.rs`, EVALUATE the
job's binary, which the second starts: it launches its servers by itself, the first by a fork. They run under `runc`, as root and as user 1000, with the
capabilities that Docker grants and the seccomp profile that this machine's container tools ship (moby's, by way of
containers-common). Then once more with Landlock's calls taken out of the profile, as older profiles had it: there the grader
must refuse to start, because a layer is missing. The container's root file system is this machine's `/usr` for reading, a
few files of `/etc`, and a folder for `/tmp`; its network is a loopback device of its own.

Where `runc`, the profile or root is missing, it says SKIPPED and why, and ends well.
"""
import argparse, json, os, pathlib, platform, shutil, subprocess, sys, tempfile

PROFILE = pathlib.Path("/usr/share/containers/seccomp.json")
CAPABILITIES = (
    "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID SYS_CHROOT"
)
CAPABILITIES = [f"CAP_{name}" for name in CAPABILITIES.split()]
MASKED = "acpi asound kcore keys latency_stats sched_debug scsi timer_list timer_stats".split()
READ_ONLY = "bus fs irq sys sysrq-trigger".split()
ETC = "passwd group ld.so.cache ld.so.conf ld.so.conf.d nsswitch.conf localtime alternatives".split()
PLAIN_USER = 1000
# What the grader says where it refuses to start without Landlock.
REFUSAL = ("Degraded {", "landlock_abi: 0,", "tier: Degraded")


def applies(rule):
    """Whether a rule of the profile holds for our capabilities, architecture and a present kernel."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    needed, barred = includes.get("caps") or [], excludes.get("caps") or []
    return (
        all(capability in CAPABILITIES for capability in needed)
        and not any(capability in CAPABILITIES for capability in barred)
        and machine in (includes.get("arches") or [machine])
        and machine not in (excludes.get("arches") or [])
    )


def seccomp(has_landlock):
    """The profile as the runtime's specification has it."""
    profile = json.loads(PROFILE.read_text())
    rules = []
    for rule in filter(applies, profile["syscalls"]):
        names = [name for name in rule["names"] if has_landlock or not name.startswith("landlock_")]
        kept = {"names": names, "action": rule["action"]}
        if rule.get("errnoRet") is not None:
            kept["errnoRet"] = rule["errnoRet"]
        if rule.get("args"):
            kept["args"] = [{k: v for k, v in arg.items() if v is not None} for arg in rule["args"]]
        rules.append(kept)
    arch = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}[platform.machine()]
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile.get("defaultErrnoRet", 1),
        "architectures": [arch],
        "syscalls": rules,
    }


def bind(source, destination):
    return {"destination": destination, "type": "bind", "source": str(source), "options": ["rbind", "ro"]}


def mounts(test, evaluate):
    system = [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
    ]
    etc = [pathlib.Path("/etc") / name for name in ETC]
    # The test knows the binary by its path.
    files = [path for path in [*etc, evaluate] if path.exists()]
    return system + [bind("/usr", "/usr"), bind(test, "/attacks")] + [bind(path, str(path)) for path in files]


def config(test, evaluate, user, has_landlock):
    held = CAPABILITIES if user == 0 else []
    capabilities = {"bounding": CAPABILITIES, "effective": held, "permitted": held, "inheritable": [], "ambient": []}
    return {
        "ociVersion": "1.0.2",
        "hostname": "attacks",
        "root": {"path": "root"},
        "mounts": mounts(test, evaluate),
        "process": {
            "user": {"uid": user, "gid": user},
            "args": ["/attacks", "--test-threads=1"],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "RUST_BACKTRACE=0"],
            "cwd": "/",
            "capabilities": capabilities,
        },
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
            "maskedPaths": [f"/proc/{name}" for name in MASKED] + ["/sys/firmware"],
            "readonlyPaths": [f"/proc/{name}" for name in READ_ONLY],
            "seccomp": seccomp(has_landlock),
        },
    }


def make_root(bundle):
    """Folders that the mounts need, and links where this machine has links into /usr."""
    root = bundle / "root"
    root.mkdir()
    for name in ("proc", "sys", "dev", "etc", "usr", "tmp"):
        (root / name).mkdir()
    (root / "tmp").chmod(0o1777)
    (root / "attacks").touch()
    for name in ("bin", "sbin", "lib", "lib64"):
        path = pathlib.Path("/") / name
        if path.is_symlink():
            (root / name).symlink_to(os.readlink(path))


def run(test, evaluate, user, has_landlock):
    with tempfile.TemporaryDirectory(prefix="wmtp-container") as folder:
        bundle = pathlib.Path(folder)
        bundle.chmod(0o755)
        make_root(bundle)
        (bundle / "config.json").write_text(json.dumps(config(test, evaluate, user, has_landlock)))
        name = f"wmtp-attacks-{os.getpid()}-{user}"
        command = ["runc", "--root", str(bundle / "state"), "run", "--bundle", str(bundle), name]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def missing():
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        return f"no profile for {platform.system()} {platform.machine()}"
    if os.geteuid() != 0:
        return "only root starts a container"
    if shutil.which("runc") is None:
        return "runc is not there (Debian: apt-get install runc)"
    if not PROFILE.is_file():
        return f"{PROFILE} is not there (Debian: apt-get install golang-github-containers-common)"
    if not pathlib.Path("/usr/bin/python3").exists():
        return "/usr/bin/python3 is not there"
    return None


def executables_of(messages):
    """The paths of both tests and of the job in what `cargo --message-format json` prints."""
    found = {}
    for message in map(json.loads, messages):
        target = message.get("target", {})
        if message.get("executable") and target.get("kind") in (["test"], ["bin"]):
            found[target["name"]] = message["executable"]
    wanted = ("attacks", "launch", "evaluate")
    if lacking := [name for name in wanted if name not in found]:
        sys.exit(f"no executable of {', '.join(lacking)} among cargo's messages")
    return [found[name] for name in wanted]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("paths", nargs="+", help="ATTACKS LAUNCH EVALUATE, or - for cargo's messages on standard input")
    paths = parser.parse_args().paths
    paths = executables_of(sys.stdin) if paths == ["-"] else paths
    if len(paths) != 3:
        parser.error("give three paths, or -")
    attacks, launch, evaluate = (pathlib.Path(path).resolve() for path in paths)
    if reason := missing():
        print(f"SKIPPED: {reason}")
        return 0
    num_failed = 0
    # Without Landlock the grader refuses to start, whoever launches its servers.
    for test, has_landlock in ((attacks, True), (launch, True), (attacks, False)):
        for user in (0, PLAIN_USER):
            done = run(test, evaluate, user, has_landlock)
            said = done.stdout + done.stderr
            if has_landlock:
                is_good, sign = done.returncode == 0 and "test result: ok" in said, "test "
            else:
                is_good, sign = done.returncode != 0 and all(word in said for word in REFUSAL), "called `Result"
            launcher = ", launched by the job's binary" if test == launch else ""
            outcome = "as it should be" if is_good else "FAILED"
            print(f"user {user}, {'' if has_landlock else 'no '}Landlock{launcher}: {outcome}")
            shown = dict.fromkeys(line for line in said.splitlines() if line.startswith(sign))
            print("\n".join(f"  {line}" for line in shown) if is_good else said)
            num_failed += not is_good
    return num_failed


if __name__ == "__main__":
    sys.exit(main())
