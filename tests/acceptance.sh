#!/usr/bin/env bash
# Walks README.md as a third party does: every command of its `sh` blocks, in their order, as it stands there, in one shell and
# in a fresh clone of what is committed. Ends with a table of the commands, and with 1 where one did not do what README says.
#
#   tests/acceptance.sh FOLDER [WITHOUT]   walks; FOLDER is made anew and has the clone, what each command said, and the table
#   tests/acceptance.sh --list [README]    lists the commands, and what is not walked; reads the file alone
#
#   WITHOUT  a command that begins so is left out of this walk, and the table says so
#
# A comment in front of a block says what is not walked in it, and why; it is not seen by who reads README:
#
#   <!-- not walked | BEGINNING OF A COMMAND | REASON -->
#
# What can be neither walked nor left out fails: a block of an unknown language, a comment that fits no command, something
# below that fits none either. CARGO_TARGET_DIR is used as it is, so that dependencies are not compiled from nothing.
set -euo pipefail

repository=$(cd "$(dirname "$0")/.." && pwd)

# The commands of a file, one a line: its line, the reason why it is not walked or `-`, and the command.
commands_of() {
  awk '
    function fail(what) { printf "error: %s:%d: %s\n", FILENAME, FNR, what > "/dev/stderr"; failed = 1; exit 1 }
    function reason(command,  i) {
      for (i = 1; i <= marks; i++) if (index(command " ", beginning[i] " ") == 1) { used[i] = 1; return why[i] }
      return "-"
    }
    /^<!-- not walked/ {
      if (split($0, part, / \| /) != 3 || $0 !~ / -->$/) fail("expected <!-- not walked | BEGINNING | REASON -->")
      marks++; beginning[marks] = part[2]; why[marks] = part[3]; sub(/ -->$/, "", why[marks]); used[marks] = 0
      next
    }
    /^ *```/ {
      if (inside) {
        for (i = 1; i <= marks; i++) if (!used[i]) fail("no command of the block above begins with \"" beginning[i] "\"")
        inside = 0; marks = 0
      } else {
        language = $0; sub(/^ *```/, "", language)
        if (language !~ /^(sh|text|yaml)$/) fail("a block of the language \"" language "\" is neither commands (sh) nor shown (text, yaml)")
        inside = 1
      }
      next
    }
    inside && language == "sh" {
      if (open == "") begun = FNR
      if (sub(/\\$/, "")) { sub(/^ +/, ""); open = open $0; next }
      if (open != "") sub(/^ +/, "")
      command = open $0; open = ""
      if (command != "") printf "%d\t%s\t%s\n", begun, reason(command), command
      next
    }
    !inside && marks && NF { fail("a comment on what is not walked is to stand in front of its block") }
    END { if (!failed && (inside || marks)) fail("a block has no end") }
  ' "$1"
}

# A command without the remark behind it.
bare() {
  sed -E 's/[[:space:]]+# .*$//' <<<"$1"
}

if [ "${1:-}" = --list ]; then
  listed=$(commands_of "${2:-$repository/README.md}")
  while IFS=$'\t' read -r line reason command; do
    [ "$reason" = - ] || reason="not walked: $reason"
    printf '%5s  %s  [%s]\n' "$line" "$(bare "$command")" "${reason/#-/walked}"
  done <<<"$listed"
  exit
fi

# Only what a stranger's shell has.
if [ -z "${WALKS_ALONE:-}" ]; then
  kept=()
  for name in HOME PATH USER LANG TMPDIR CARGO_HOME RUSTUP_HOME CARGO_TARGET_DIR CARGO_INCREMENTAL; do
    [ -z "${!name:-}" ] || kept+=("$name=${!name}")
  done
  exec env -i "${kept[@]}" WALKS_ALONE=yes "$0" "$@"
fi

rm -rf "$1"
mkdir -p "$1/said"
folder=$(cd "$1" && pwd) without=${2:-}
git clone -q "$repository" "$folder/wmtp"
cd "$folder/wmtp"
if [ -n "${CARGO_TARGET_DIR:-}" ]; then
  # Where README's commands look for programs.
  mkdir -p "$CARGO_TARGET_DIR"
  ln -s "$(realpath "$CARGO_TARGET_DIR")" target
fi
listed=$(commands_of README.md)

# What README's reader puts in place of a word, by the word.
declare -A fills=([RUN]=a_run [leaderboard-ID]=the_leaderboard)
a_run() { target/debug/wmtp-store runs --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["runs"][0]["run_id"])'; }
the_leaderboard() { target/debug/wmtp-store names micropy --kind leaderboard --json | grep -o 'leaderboard-[0-9a-f]*' | head -n 1; }

# What a reader has or does before a command, by its beginning.
declare -A brings=(
  ["target/debug/evaluate external"]=a_model_from_outside
  ["target/debug/evaluate --recipe storage/recipes/micropy/v002.yaml --data micropy --checkpoint micropy-v002-s42 --merge"]=the_other_shards
  ["target/debug/evaluate complete"]=prompts
  ["target/debug/evaluate grade"]=problems_and_samples
)
a_model_from_outside() {
  mkdir -p external/big-model
  cat >external/big-model/infer <<'END'
#!/usr/bin/env python3
import json, sys

for line in sys.stdin:
    problem = json.loads(line)
    for _ in range(problem["num_samples"]):
        print(json.dumps({"task_id": problem["task_id"], "completion": "def f(x):\n    return x\n"}))
END
  chmod +x external/big-model/infer
}
the_other_shards() {
  local shard
  for shard in {1..8}; do
    target/debug/evaluate infer --recipe storage/recipes/micropy/v002.yaml --data micropy --checkpoint micropy-v002-s42 \
      --shard "$shard/8" --name "micropy-v002-s42-$shard" || return
  done
}
prompts() {
  printf '%s\n' '{"instruction": "Return the sum of the list.", "input": ""}' '{"prompt": "def add(a, b):\n"}' >prompts.jsonl
}
problems_and_samples() {
  cat >HumanEval.jsonl <<'END'
{"task_id": "HumanEval/0", "prompt": "def add(a, b):\n", "entry_point": "add", "canonical_solution": "    return a + b\n", "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n"}
END
  cat >samples.jsonl <<'END'
{"task_id": "HumanEval/0", "completion": "    return a + b\n"}
{"task_id": "HumanEval/0", "completion": "    return a - b\n"}
END
}

# What a command has to have said ($said is the file) or left, by its beginning.
declare -A checks=(
  ["make demo"]=the_demo
  ["make test"]=the_tests
  ["target/debug/train-stage2"]=a_dry_run
  ["make pipeline RECIPE=storage/recipes/micropy"]=nothing_to_do
  ["target/debug/sync-storage pull"]=the_problems
  ["target/debug/build-site --leaderboard micropy --out pages"]=the_pages
  ["target/debug/wmtp-store fsck"]=all_is_there
  ["target/debug/evaluate --recipe"]=a_score
  ["target/debug/evaluate complete"]=completions
  ["target/debug/evaluate grade"]=verdicts
)
# Five versions, the untrained base, and the heading.
the_demo() { test -s .wmtp/micropy/site/index.html && test "$(wc -l <.wmtp/micropy/site/data/leaderboard.csv)" = 7; }
the_tests() { grep -q '^test result: ok' "$said"; }
a_dry_run() { grep -q 'would write' "$said"; }
nothing_to_do() { grep -q 'already done' "$said"; }
the_problems() { test "$(wc -l <data/problems/validation.jsonl)" = 100; }
the_pages() { test -s pages/index.html && test -s pages/data/manifest.json; }
all_is_there() { grep -q 'nothing' "$said"; }
a_score() { target/debug/wmtp-store names micropy-v002-s42-sharded; }
completions() { test "$(grep -c '"completions"' completed.jsonl)" = 2; }
verdicts() { test "$(grep -c '"passed": *true' results.jsonl)" = 1; }

# Tells by which of a table's beginnings a command begins; the longest counts.
declare -A met=()
entry() {
  local -n table=$1
  local beginning found=
  for beginning in "${!table[@]}"; do
    if [[ "$2 " == "$beginning "* ]] && [ ${#beginning} -gt ${#found} ]; then found=$beginning; fi
  done
  if [ -n "$found" ]; then
    met[$1 $found]=yes
    entry=${table[$found]}
  else
    entry=
  fi
}

# Puts in place of words what stands for it here.
filled() {
  local word value
  for word in "${!fills[@]}"; do
    if [[ " $typed " == *" $word "* ]]; then
      met[fills $word]=yes
      value=$("${fills[$word]}") || value=
      typed=" $typed "
      typed=${typed/" $word "/" $value "}
      typed=${typed# } typed=${typed% }
    fi
  done
}

row() {
  printf '%-7s %6s  %s\n' "$1" "$2" "$3" | tee -a "$folder/table.txt"
}

failed=0 number=0 lines=()
mapfile -t lines <<<"$listed"
trap 'jobs -p | xargs -r kill 2>/dev/null || true' EXIT
row verdict took command
for each in "${lines[@]}"; do
  IFS=$'\t' read -r line reason command <<<"$each"
  typed=$(bare "$command")
  number=$((number + 1))
  said=$folder/said/$(printf '%02d' "$number").txt
  entry brings "$typed"
  bring=$entry
  entry checks "$typed"
  check=$entry
  if [ -n "$without" ] && [[ "$typed " == "$without "* ]]; then reason="left out by WITHOUT"; fi
  if [ "$reason" != - ]; then
    row - - "README.md:$line: $typed  (not walked: $reason)"
    continue
  fi
  began=$SECONDS verdict=ok status=0
  if [ -n "$bring" ]; then "$bring" >"$said" 2>&1 || verdict=FAILED; fi
  filled
  # In this shell, for what it leaves behind: variables, a server.
  set +eu
  eval "$typed" </dev/null >>"$said" 2>&1
  status=$?
  set -eu
  if [ "$status" != 0 ] || { [ -n "$check" ] && ! "$check" >>"$said" 2>&1; }; then verdict=FAILED; fi
  row "$verdict" "$((SECONDS - began)) s" "README.md:$line: $typed"
  if [ "$verdict" != ok ]; then
    failed=$((failed + 1))
    printf 'ended with %s%s; the last of what it said, all of it in %s:\n' "$status" "${check:+ (checked: $check)}" "$said"
    tail -n 15 "$said" | sed 's/^/    /'
  fi
done
for table in fills brings checks; do
  declare -n known=$table
  for beginning in "${!known[@]}"; do
    if [ -z "${met[$table $beginning]:-}" ]; then
      row FAILED - "README.md has no longer a command for tests/acceptance.sh: $table $beginning"
      failed=$((failed + 1))
    fi
  done
done
printf '\n%s\n' "the walk through README.md:"
cat "$folder/table.txt"
if [ "$failed" -gt 0 ]; then
  printf 'error: %s of %s commands did not do what README.md says\n' "$failed" "$number" >&2
  exit 1
fi
