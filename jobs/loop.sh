#!/usr/bin/env bash
# Version after version: train, evaluate, analyse, choose one change, until the loop has its versions; then the report.
#
#   jobs/loop.sh RECIPES DATA [RAW]
#
#   RECIPES  folder with v001.yaml and, where the user binds the loop, user_defined_rules.json and user_instruction.md
#   DATA     name of the data set, and of everything that is made from it
#   RAW      folder of raw rows; left out for micropy, which makes its own
#
# Environment: as of jobs/chain.sh, and MAX (versions of the loop where the rules do not say, 4), PAUSE (seconds before
# something is tried again, 10). OUT is the loop's folder.
# Killed at any instant and started again it goes on where it was: jobs find what is done in the store, and files of the
# folder are there whole or not at all. A version that fails ends the loop, and the next start begins with that version.
set -euo pipefail

recipes=$1 data=$2 raw=${3:-}
bin=${BIN:-target/debug} out=${OUT:-.wmtp/$data-loop} seeds=${SEEDS:-1} lanes=${LANES:-1} max=${MAX:-4}
loop=$data-loop
# shellcheck source=jobs/stages.sh
. "$(dirname "$0")/stages.sh"

# Runs something again where its exit code says that it may help: store or device away, work held, preempted.
again() {
  local tries status
  for tries in 1 2 3; do
    status=0
    "$@" || status=$?
    case $status in
      69 | 75 | 143) [ "$tries" -eq 3 ] || sleep "${PAUSE:-10}" ;;
      *) break ;;
    esac
  done
  return "$status"
}

# Trains and evaluates one version with one seed. What the store knows of a training that fails is told before the end.
version() {
  local recipe=$1 seed=$2 version run status=0
  version=$(basename "$recipe" .yaml)
  run=$loop-$version-s$seed
  again train "train $version, seed $seed" "$recipe" "$seed" "$run" "$loop-$version" || status=$?
  if [ "$status" -ne 0 ]; then
    "$bin/build-leaderboard" retry-report --run "$run" --version "$version" --loop "$out" || true
    printf 'error: the training of %s failed; the next start of the loop begins with it again\n' "$version" >&2
    return "$status"
  fi
  again stage "evaluate $version, seed $seed" evaluate --recipe "$recipe" --set "seed=$seed" \
    --data "$data" --checkpoint "$run" --name "$run"
}

# The one question to the test split: of the winner, by each seed.
held_out() {
  local recipe=$1 seed=$2 run
  run=$loop-$(basename "$recipe" .yaml)-s$seed
  again stage "held-out score, seed $seed" evaluate --recipe "$recipe" --set "seed=$seed" --set evaluation.split=test \
    --data "$data" --checkpoint "$run" --name "$run-test"
}

mkdir -p "$out"
beginnings "$recipes/v001.yaml" "$raw"

smoke=()
if [ "$(algo_of "$recipes/v001.yaml")" = baseline ]; then
  train 'smoke run' "$recipes/v001.yaml" 42 "$loop-smoke" none --set version.id=smoke --set optim.epochs=0.01
  smoke=(--smoke "$loop-smoke")
fi
stage 'audit of the baseline' build-leaderboard audit-baseline --recipe "$recipes/v001.yaml" --rules "$recipes" \
  --loop "$out" --data "$data" --base "$policy" ${smoke[@]+"${smoke[@]}"}

first=$out/recipes/v001.yaml
seed=$(sed -n 's/^seed: *//p' "$first")
last_seed=$((${seed:=42} + seeds - 1))
scores=$data-base
lane base "$first"
outsiders "$first"
settle

version=v001
while [ -n "$version" ]; do
  recipe=$out/recipes/$version.yaml
  case $(algo_of "$recipe") in
    verifiable | random_matched | shuffled) value_model "$recipe" "$loop-$version" "$version" ;;
    rho1) tuned_reference "$recipe" "$loop-$version" "$version" ;;
  esac
  for each in $(seq "$seed" "$last_seed"); do
    lane version "$recipe" "$each"
    scores+=,$loop-$version-s$each
  done
  settle
  newest=$version
  again stage "analysis of $version" build-leaderboard --recipe "$first" --scores "$scores" --loop "$out" --name "$loop-$version"
  again stage "action after $version" build-leaderboard select-action --leaderboard "$loop-$version" --after "$version" \
    --loop "$out" --max-versions "$max"
  version=$(sed -n 's/^Next: *\(v[0-9]*\)$/\1/p' "$out/versions/$version/action-extract.md")
  if [ -n "$version" ]; then
    stage "recipe of $version" build-leaderboard next-version --loop "$out" --after "$newest"
  fi
done

# Asked once: a loop that goes on later keeps the answer of its first winner.
if [ ! -s "$out/held-out" ]; then
  "$bin/build-leaderboard" winner --leaderboard "$loop-$newest" >"$out/held-out.new"
  mv "$out/held-out.new" "$out/held-out"
fi
winner=$(cat "$out/held-out") asked=
for each in $(seq "$seed" "$last_seed"); do
  lane held_out "$out/recipes/$winner.yaml" "$each"
  asked+=,$loop-$winner-s$each-test
done
settle

again stage 'final report' build-leaderboard --recipe "$first" --scores "$scores" --held-out "${asked#,}" --loop "$out" \
  --report-dir "$out/reports" --name "$loop"
again stage 'site' build-site --leaderboard "$loop" --out "$out/site"
printf '\nloop     %s\nreports  %s\nsite     %s\n' "$out" "$out/reports" "$out/site/index.html"
