#!/usr/bin/env bash
# Counts the lines of the libraries that hold what this project exists for, and which of them their own tests run.
#
#   tests/coverage.sh FOLDER [PERCENT]
#
#   FOLDER   tools, build and report lie here, apart from every other build: instrumented programs are others
#   PERCENT  least share of lines of each library (80)
#
# A library's tests are those in its folder; chains, parity and the jobs' tests run more of it and do not count here. Lines of
# tests within src do count, as the compiler tells no difference.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd) least=${2:-80}
libraries=(artifacts data-sets grading model training weighting)
cd "$here/.."

# The reader of counts has to be of the compiler's version of LLVM.
major=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
LLVM_COV=$(command -v "llvm-cov-$major" || true) LLVM_PROFDATA=$(command -v "llvm-profdata-$major" || true)
if [ -z "$LLVM_COV" ] || [ -z "$LLVM_PROFDATA" ]; then
  printf 'error: %s\n' "llvm-cov-$major and llvm-profdata-$major are missing, which read what this compiler counts" \
    "hint: on Debian, apt-get install llvm-$major" >&2
  exit 69
fi
export LLVM_COV LLVM_PROFDATA
if ! cmp -s "$here/requirements-coverage.txt" "$folder/installed"; then
  python3 -m venv --clear "$folder/tools"
  "$folder/tools/bin/pip" install -q --disable-pip-version-check --require-hashes -r "$here/requirements-coverage.txt"
  cp "$here/requirements-coverage.txt" "$folder/installed"
fi
export PATH=$folder/tools/bin:$PATH

export CARGO_TARGET_DIR=$folder/target CARGO_INCREMENTAL=0
environment=$(cargo llvm-cov show-env --sh)
eval "$environment"
find "$CARGO_TARGET_DIR" -name '*.profraw' -delete 2>/dev/null || true
# With all packages, as everywhere: the same features of everything that they share.
cargo build --workspace --bins
tests=$(cargo test --workspace --lib --tests --no-run --message-format json |
  sed -n 's/.*"manifest_path":"\([^"]*\)".*"profile":{[^}]*"test":true}.*"executable":"\([^"]*\)".*/\1 \2/p')

for library in "${libraries[@]}"; do
  manifest=$PWD/shared/$library/Cargo.toml
  while read -r of executable; do
    [ "$of" = "$manifest" ] || continue
    printf '== %s\n' "$(basename "$executable")"
    (cd "shared/$library" && "$executable" --quiet)
  done <<<"$tests"
done

cargo llvm-cov report --lcov --output-path "$folder/lines.lcov"
cargo llvm-cov report --html --output-dir "$folder" >/dev/null
# Programs of another checkout may lie in the same folder, and are in the report as well.
awk -v least="$least" -v libraries="${libraries[*]}" -v shared="SF:$PWD/shared/" '
  /^SF:/ { name = ""; if (index($0, shared) == 1) { split(substr($0, length(shared) + 1), part, "/"); if (part[2] == "src") name = part[1] } }
  /^LF:/ { lines[name] += substr($0, 4) }
  /^LH:/ { run[name] += substr($0, 4) }
  END {
    count = split(libraries, wanted, " ")
    for (i = 1; i <= count; i++) {
      name = wanted[i]
      share = lines[name] ? 100 * run[name] / lines[name] : 0
      printf "%-10s %6d of %6d lines, %5.1f %%%s\n", name, run[name], lines[name], share, share < least ? "  BELOW " least " %" : ""
      if (share < least) failed = 1
    }
    exit failed
  }' "$folder/lines.lcov"
