"""`make bench-sync`: folders into a store and back, ours beside s5cmd, rclone and `aws s3 sync`.

    python sync.py RELEASE PEERS [--rounds 3] [--large-mib 1024] [--small 2000]

RELEASE holds our `dev-store` and `examples/transfer`, PEERS the other programs; one that is not there is named and left
out. All talk to one dev-store, on loopback, which waits for the disk before it answers a write. Each transfer is one
process from start to exit, in an order that turns every round; uploads go to a prefix and downloads to a folder of their
own. What arrives is compared with what was sent, after the clock has stopped.

Ours hashes what it sends (SHA-256), sends a CRC64 of every part, and checks both when it fetches; of the others, s5cmd
and rclone check nothing of what they fetch here. "then sha256" adds what one pass of SHA-256 over the files takes.
CPU time is the process's and its descendants', memory the largest resident size of one process.
"""
import argparse, filecmp, hashlib, json, os, pathlib, random, shutil, statistics, subprocess, sys, tempfile, time

MIB = 1 << 20
# The goals of the artifact protocol: load, direction, what ours is held against, least ratio.
GOALS = [
    ("large", "up", "s5cmd", 1.5),
    ("large", "down", "s5cmd then sha256", 1.2),
    ("small", "up", "s5cmd", 1.5),
    ("small", "down", "s5cmd", 1.2),
    ("small", "up", "aws s3 sync", 6.0),
    ("small", "down", "aws s3 sync", 6.0),
]
MOST_MB = 256


class Server:
    def __init__(self, program, root):
        self.process = subprocess.Popen([program, "serve", "--root", root], stderr=subprocess.DEVNULL)
        variables = pathlib.Path(root) / "dev-store.env"
        while not variables.exists():
            if self.process.poll() is not None:
                sys.exit("dev-store did not start")
            time.sleep(0.02)
        lines = variables.read_text().splitlines()
        self.environment = dict(os.environ) | dict(line.removeprefix("export ").split("=", 1) for line in lines)
        self.endpoint = self.environment["AWS_ENDPOINT_URL_S3"]

    def stop(self):
        self.process.terminate()
        self.process.wait()


class Ours:
    name = "ours"

    def __init__(self, program):
        self.program, self.ids = program, {}

    def up(self, folder, prefix, run):
        self.ids[prefix] = run([self.program, "put", f"s3://wmtp/{prefix}", folder]).strip()

    def down(self, prefix, folder, run):
        run([self.program, "get", f"s3://wmtp/{prefix}", self.ids[prefix], folder])

    def arrived(self, prefix, folder):
        return folder / "trees" / self.ids[prefix]


class Peer:
    """A program that copies a folder; `into` and `out` are its arguments."""

    def __init__(self, name, into, out):
        self.name, self.into, self.out = name, into, out

    def up(self, folder, prefix, run):
        run([part.format(folder=folder, url=f"s3://wmtp/{prefix}", path=f"wmtp/{prefix}") for part in self.into])

    def down(self, prefix, folder, run):
        run([part.format(folder=folder, url=f"s3://wmtp/{prefix}", path=f"wmtp/{prefix}") for part in self.out])

    def arrived(self, prefix, folder):
        return folder


def contenders(release, peers, endpoint):
    found = [Ours(str(release / "examples" / "transfer"))]
    s5cmd, rclone, aws = (peers / name for name in ("s5cmd", "rclone", "aws"))
    remote = f":s3,provider=Other,env_auth=true,endpoint='{endpoint}',region=us-east-1:"
    flags = ["--config", "/dev/null", "--s3-no-check-bucket", "--s3-list-version", "2", "--transfers", "16"]
    known = {
        s5cmd: Peer(
            "s5cmd",
            [str(s5cmd), "--endpoint-url", endpoint, "--log", "error", "cp", "{folder}/", "{url}/"],
            [str(s5cmd), "--endpoint-url", endpoint, "--log", "error", "cp", "{url}/*", "{folder}/"],
        ),
        rclone: Peer(
            "rclone",
            [str(rclone), *flags, "copy", "{folder}", remote + "{path}"],
            [str(rclone), *flags, "copy", remote + "{path}", "{folder}"],
        ),
        aws: Peer(
            "aws s3 sync",
            [str(aws), "s3", "sync", "--only-show-errors", "{folder}", "{url}"],
            [str(aws), "s3", "sync", "--only-show-errors", "{url}", "{folder}"],
        ),
    }
    for program, peer in known.items():
        if program.exists():
            found.append(peer)
        else:
            print(f"SKIPPED: {peer.name}, which could not be had here ({program})")
    return found


def measured(command, environment):
    """Runs a command to its end: output, seconds, CPU seconds, peak MB."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output, errors = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[0]} failed: {errors}")
    return output, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


def make(folder, files, size):
    folder.mkdir()
    generator = random.Random(42)
    for number in range(files):
        with open(folder / f"{number:05}.bin", "wb") as file:
            for start in range(0, size, MIB):
                file.write(generator.randbytes(min(MIB, size - start)))


def sha256_seconds(folder):
    begun = time.perf_counter()
    for path in sorted(folder.iterdir()):
        with open(path, "rb") as file:
            hashlib.file_digest(file, "sha256")
    return time.perf_counter() - begun


def same(sent, arrived):
    names = sorted(path.name for path in sent.iterdir())
    if names != sorted(path.name for path in arrived.iterdir()):
        return False
    return filecmp.cmpfiles(sent, arrived, names, shallow=False)[0] == names


def cpu():
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} cores of {names[0] if names else 'unknown'}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("release", type=pathlib.Path)
    parser.add_argument("peers", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large-mib", type=int, default=1024)
    parser.add_argument("--small", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        bench(options, pathlib.Path(temporary))


def bench(options, temporary):
    loads = {"large": (1, options.large_mib * MIB), "small": (options.small, 16 << 10)}
    for load, (files, size) in loads.items():
        make(temporary / load, files, size)
    server = Server(str(options.release / "dev-store"), str(temporary / "server"))
    try:
        runs = rounds(options, temporary, loads, server)
    finally:
        server.stop()
    limits = json.loads(measured([str(options.release / "examples" / "transfer"), "limits", str(temporary)], None)[0])
    hashing = {load: sha256_seconds(temporary / load) for load in loads}
    report(options, loads, runs, hashing, limits)


def rounds(options, temporary, loads, server):
    programs = contenders(options.release, options.peers, server.endpoint)
    runs, targets = {}, []
    for number in range(options.rounds):
        turned = programs[number % len(programs):] + programs[: number % len(programs)]
        for load in loads:
            for program in turned:
                prefix = f"{program.name.replace(' ', '-')}-{load}-{number}"
                # Nothing is deleted while others are measured: ext4 without a journal looks long at inodes that were just
                # deleted before it gives one to a new file.
                target = temporary / f"target-{len(targets)}"
                targets.append(target)
                target.mkdir()

                def run(command, direction):
                    output, *figures = measured(command, server.environment)
                    runs.setdefault((load, direction, program.name), []).append(figures)
                    return output

                program.up(str(temporary / load), prefix, lambda command: run(command, "up"))
                program.down(prefix, str(target), lambda command: run(command, "down"))
                if not same(temporary / load, program.arrived(prefix, target)):
                    sys.exit(f"{program.name} did not bring back what it sent")
                if loads[load][0] == 1:
                    shutil.rmtree(target)
                os.sync()
    return runs


def report(options, loads, runs, hashing, limits):
    print(f"{cpu()}; dev-store on loopback, waiting for the disk; median of {options.rounds} rounds")
    rate = {}
    for load, (files, size) in loads.items():
        unit, amount = ("MB/s", files * size / 1e6) if files == 1 else ("files/s", files)
        print(f"\n{files} x {size >> 10} KiB\n{'':22}{'up ' + unit:>14}{'CPU s':>8}{'MB':>6}{'down ' + unit:>16}{'CPU s':>8}{'MB':>6}")
        for name in dict.fromkeys(name for of, _, name in runs if of == load):
            line = f"{name:22}"
            for direction, width in (("up", 14), ("down", 16)):
                seconds, processor, memory = (statistics.median(run[i] for run in runs[load, direction, name]) for i in range(3))
                rate[load, direction, name] = amount / seconds
                rate[load, direction, f"{name} then sha256"] = amount / (seconds + hashing[load])
                line += f"{amount / seconds:>{width}.0f}{processor:>8.2f}{memory:>6.0f}"
            print(line)
    print(f"\nlimits of one thread: SHA-256 of a file {limits['hash'] / 1e6:.0f} MB/s, writing to the disk's cache {limits['write'] / 1e6:.0f} MB/s")
    for direction in ("up", "down"):
        ours = rate["large", direction, "ours"] * 1e6
        shares = ", ".join(f"{100 * ours / limits[kind]:.0f} % of {text}" for kind, text in (("hash", "hashing"), ("write", "writing")))
        print(f"ours {direction}: {shares}")
    missed = 0
    print("\ngoal" + " " * 40 + "least  here")
    for load, direction, other, least in GOALS:
        if (load, direction, other) not in rate:
            continue
        ratio = rate[load, direction, "ours"] / rate[load, direction, other]
        missed += ratio < least
        print(f"{load} {direction} over {other:28}{least:>8.1f}{ratio:>6.2f}{'' if ratio >= least else '  MISSED'}")
    peak = max(run[2] for (_, _, name), of in runs.items() if name == "ours" for run in of)
    missed += peak >= MOST_MB
    print(f"memory of ours: {peak:.0f} MB, goal {MOST_MB} MB{'' if peak < MOST_MB else '  MISSED'}")
    sys.exit(1 if missed else 0)


main()
