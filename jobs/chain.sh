#!/usr/bin/env bash
# Chains the jobs, from raw data to the report site, against the store that the environment names.
#
#   jobs/chain.sh RECIPES DATA [RAW]
#
#   RECIPES  folder of recipes: v001.yaml is the first version, the others extend it
#   DATA     name of the data set, and of everything that is made from it
#   RAW      folder of raw rows; left out for micropy, which makes its own
#
# Environment: WMTP_STORE (s3://bucket/prefix), the usual AWS variables, SEEDS (number of training seeds, 1),
# LANES (jobs at a time, 1; they share the cores), OUT (folder for reports and site), BIN (folder of the job
# binaries). Every job is idempotent: run it again and only what is missing is done.
set -euo pipefail

recipes=$1 data=$2 raw=${3:-}
bin=${BIN:-target/debug} out=${OUT:-.wmtp/$data} seeds=${SEEDS:-1} lanes=${LANES:-1}
first=$recipes/v001.yaml
if [[ ! $lanes =~ ^[1-9][0-9]*$ ]]; then
  echo "error: LANES is '$lanes', expected a whole number of at least 1" >&2
  exit 2
fi
# Pages of freed tensors stay with the process, since the next step wants them: clearing fresh ones costs far more.
export MIMALLOC_PURGE_DELAY=${MIMALLOC_PURGE_DELAY:--1}

# Runs one job and says how long it took.
stage() {
  local label=$1 job=$2 began=$SECONDS
  shift 2
  printf '\n== %s\n' "$label"
  if [ "$BASHPID" -eq $$ ] && [ -t 2 ]; then
    "$bin/$job" "$@"
  else
    "$bin/$job" "$@" 2>&1 | told "$label"
  fi
  printf '   %s: %s s\n' "$label" $((SECONDS - began))
}

# Shows the messages of a job that has no terminal to itself, where it would draw bars: progress becomes a line now
# and then, under the name of the stage.
told() {
  local name=$1 line shown=$((SECONDS - 20))
  local progress='"label":"([^"]*)","done":([0-9]+),"total":([0-9]+),"unit":"([^"]*)".*"eta_secs":([0-9]*).*"detail":"([^"]*)"'
  local message='"type":"log".*"level":"([a-z]*)","message":"(.*)"\}\}$'
  while IFS= read -r line; do
    if [[ $line =~ ^\{.*\"type\":\"progress\" && $line =~ $progress ]]; then
      local of=("${BASH_REMATCH[@]:1}")
      if [ "${of[1]}" != "${of[2]}" ] && [ $((SECONDS - shown)) -lt 20 ]; then continue; fi
      shown=$SECONDS
      printf '   %s: %s/%s %s%s%s\n' "$name" "${of[1]}" "${of[2]}" "${of[3]}" \
        "${of[4]:+, ${of[4]} s left}" "${of[5]:+, ${of[5]}}"
    elif [[ $line =~ ^\{ && $line =~ $message ]]; then
      [ "${BASH_REMATCH[1]}" = info ] || name+=", ${BASH_REMATCH[1]}"
      printf '   %s: %s\n' "$name" "${BASH_REMATCH[2]//\\\"/\"}"
      name=$1
    elif [[ ! $line =~ ^\{.*\"job\": ]]; then
      printf '   %s: %s\n' "$name" "$line"
    fi
  done
}

running=0
groups=()

# Runs a function beside others, as soon as a lane is free. Each lane is a process group, so that it ends as one.
lane() {
  if [ "$lanes" -eq 1 ]; then
    "$@"
    return
  fi
  if [ "$running" -ge "$lanes" ]; then lane_end; fi
  {
    export RAYON_NUM_THREADS=$threads
    "$@"
  } &
  groups+=("$!")
  running=$((running + 1))
}

# Waits until a lane ends. One that failed ends the chain with its exit status; the others are told to stop.
lane_end() {
  local status=0
  wait -n || status=$?
  running=$((running - 1))
  if [ "$status" -ne 0 ]; then
    stop
    exit "$status"
  fi
}

# Waits for every lane.
settle() {
  while [ "$running" -gt 0 ]; do lane_end; done
}

# Tells every lane to stop and waits until its job has saved its state.
stop() {
  local group
  for group in "${groups[@]}"; do kill -TERM -- "-$group" 2>/dev/null || true; done
  wait
}

if [ "$lanes" -gt 1 ]; then
  set -m
  trap 'stop; exit 130' INT
  trap 'stop; exit 143' TERM
  cores=$(getconf _NPROCESSORS_ONLN)
  threads=$((cores > lanes ? cores / lanes : 1))
fi

value_model() {
  stage 'value model' train-stage1 --objective value --recipe "$first" --data "$data" --base "$data-mtp" --name "$data"
}

reference() {
  stage 'reference' train-stage1 --objective reference --recipe "$first" --data "$data" --base "$data-ref" \
    --name "$data"
}

base() {
  stage 'evaluate base' evaluate --recipe "$first" --data "$data" --base "$data-mtp" --reference-ce "$data" \
    --name "$data-base"
}

# Trains and evaluates one version with one seed.
version() {
  local recipe=$1 seed=$2 version run inputs=()
  version=$(basename "$recipe" .yaml)
  run=$data-$version-s$seed
  case $(sed -n 's/^ *algo: *//p' "$recipe") in
    verifiable | random_matched | shuffled) inputs=(--advantages "$data") ;;
    rho1) inputs=(--reference-ce "$data") ;;
  esac
  stage "train $version, seed $seed" train-stage2 --recipe "$recipe" --set "seed=$seed" \
    --data "$data" --base "$data-mtp" ${inputs[@]+"${inputs[@]}"} --name "$run"
  stage "evaluate $version, seed $seed" evaluate --recipe "$recipe" --set "seed=$seed" \
    --data "$data" --checkpoint "$run" --reference-ce "$data" --name "$run"
}

if [ -n "$raw" ]; then
  stage 'raw data' sync-storage push --kind raw-data --folder "$raw" --name "$data"
  stage 'data set' prepare-data --recipe "$first" --raw "$data" --name "$data"
else
  stage 'data set' prepare-data --recipe "$first" --name "$data"
fi
stage 'base model' sync-storage create --model micro-mtp --data "$data" --name "$data-mtp"
stage 'reference model' sync-storage create --model micro-ref --data "$data" --name "$data-ref"
lane reference
lane value_model
settle

scores=$data-base
lane base
for seed in $(seq 42 $((41 + seeds))); do
  for recipe in "$recipes"/v*.yaml; do
    lane version "$recipe" "$seed"
    scores+=,$data-$(basename "$recipe" .yaml)-s$seed
  done
done
settle

stage 'leaderboard' build-leaderboard --recipe "$first" --scores "$scores" --report-dir "$out/reports" --name "$data"
stage 'site' build-site --leaderboard "$data" --out "$out/site"
printf '\nreports  %s\nsite     %s\n' "$out/reports" "$out/site/index.html"
