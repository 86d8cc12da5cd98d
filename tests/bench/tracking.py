"""`make bench-tracking`: what tracking costs a training run.

    python3 tracking.py BIN [--rounds 3] [--uri URI]

BIN is the folder of our binaries. The first training of the demo (micropy, 630 steps of the smallest model) runs with
tracking off, on a server that takes every request and never answers, on an address where nobody listens and, with --uri,
on an MLflow server; in an order that turns every round, each from nothing, on the embedded store. Printed are CPU time and
wall time of the process from start to exit, and the time that half and 9 in 10 of its steps took at most, as it tells them
itself: medians over the rounds. Ends with 1 where an artifact id differs.
"""
import argparse, json, os, pathlib, re, resource, socket, statistics, subprocess, tempfile, threading, time

STEPS = re.compile(r"steps of ([\d.]+) (m?s) \(half\), ([\d.]+) (m?s) \(9 in 10\)")


def silent_server():
    """Reads what comes and says nothing."""
    listener = socket.create_server(("127.0.0.1", 0))

    def hold(connection):
        while connection.recv(65536):
            pass

    def accept():
        while True:
            threading.Thread(target=hold, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def nowhere():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def served(binaries, folder):
    """The embedded store, which ends with this process, and the environment that leads to it."""
    file = folder / "store.env"
    subprocess.Popen([binaries / "dev-store", "serve", "--root", folder / "store", "--env-file", file, "--exit-with-parent"])
    while not file.exists() or not file.read_text():
        time.sleep(0.1)
    lines = (line.removeprefix("export ").partition("=") for line in file.read_text().splitlines())
    return dict(os.environ, WMTP_SCRATCH=str(folder / "scratch"), WMTP_CACHE=str(folder / "cache"),
                **{name: value for name, _, value in lines})


def run(binaries, environment, prefix, job, *arguments, uri=None):
    environment = dict(environment, WMTP_STORE=f"s3://wmtp/{prefix}")
    environment.pop("MLFLOW_TRACKING_URI", None)
    if uri:
        environment["MLFLOW_TRACKING_URI"] = uri
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    recipe = ["--recipe", "storage/recipes/micropy/v001.yaml", "--json"]
    ended = subprocess.run([binaries / job, *arguments, *recipe], env=environment, capture_output=True, text=True)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode != 0:
        raise SystemExit(f"{job}: {ended.stderr[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return ended, {"wall_secs": wall, "cpu_secs": cpu}


def training(binaries, environment, prefix, uri):
    run(binaries, environment, prefix, "prepare-data", "--name", "d")
    run(binaries, environment, prefix, "sync-storage", "create", "--model", "micro-mtp", "--data", "d", "--name", "base")
    ended, figures = run(binaries, environment, prefix, "train-stage2", "--data", "d", "--base", "base", uri=uri)
    half, unit, nine, unit_of_nine = STEPS.search(ended.stderr).groups()
    scale = {"ms": 1.0, "s": 1000.0}
    figures["half_ms"] = float(half) * scale[unit]
    figures["nine_in_ten_ms"] = float(nine) * scale[unit_of_nine]
    return json.loads(ended.stdout.splitlines()[-1])["outputs"], figures


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binaries", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--uri")
    arguments = parser.parse_args()
    binaries = arguments.binaries.resolve()
    cases = [("off", None), ("never answers", silent_server()), ("nobody listens", nowhere())]
    if arguments.uri:
        cases.append(("MLflow", arguments.uri))
    found, ids = {name: [] for name, _ in cases}, set()
    with tempfile.TemporaryDirectory() as folder:
        environment = served(binaries, pathlib.Path(folder))
        for turn in range(arguments.rounds):
            for place in range(len(cases)):
                name, uri = cases[(turn + place) % len(cases)]
                outputs, figures = training(binaries, environment, f"{turn}-{place}", uri)
                ids.add(json.dumps(outputs))
                found[name].append(figures)
    for name, rounds in found.items():
        median = {key: round(statistics.median(figures[key] for figures in rounds), 2) for key in rounds[0]}
        print(json.dumps({"server": name, "rounds": len(rounds), **median}))
    print(json.dumps({"checkpoints": len(ids), "load": round(os.getloadavg()[0], 1)}))
    raise SystemExit(0 if len(ids) == 1 else 1)


if __name__ == "__main__":
    main()
