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
# OUT (folder for reports and site), BIN (folder of the job binaries). Every job is idempotent: run it again and
# only what is missing is done.
set -euo pipefail

recipes=$1 data=$2 raw=${3:-}
bin=${BIN:-target/debug} out=${OUT:-.wmtp/$data} seeds=${SEEDS:-1}
first=$recipes/v001.yaml
export CANDLE_NUM_THREADS=${CANDLE_NUM_THREADS:-1}
# Pages of freed tensors stay with the process, since the next step wants them: clearing fresh ones costs far more.
export MIMALLOC_PURGE_DELAY=${MIMALLOC_PURGE_DELAY:--1}

# Runs one job and says how long it took.
stage() {
  local label=$1 job=$2 began=$SECONDS
  shift 2
  printf '\n== %s\n' "$label"
  "$bin/$job" "$@"
  printf '   %s s\n' $((SECONDS - began))
}

if [ -n "$raw" ]; then
  stage 'raw data' sync-storage push --kind raw-data --folder "$raw" --name "$data"
  stage 'data set' prepare-data --recipe "$first" --raw "$data" --name "$data"
else
  stage 'data set' prepare-data --recipe "$first" --name "$data"
fi
stage 'base model' sync-storage create --model micro-mtp --data "$data" --name "$data-mtp"
stage 'reference model' sync-storage create --model micro-ref --data "$data" --name "$data-ref"
stage 'value model' train-stage1 --objective value --recipe "$first" --data "$data" --base "$data-mtp" --name "$data"
stage 'reference' train-stage1 --objective reference --recipe "$first" --data "$data" --base "$data-ref" --name "$data"
stage 'evaluate base' evaluate --recipe "$first" --data "$data" --base "$data-mtp" --name "$data-base"

scores=$data-base
for seed in $(seq 42 $((41 + seeds))); do
  for recipe in "$recipes"/v*.yaml; do
    version=$(basename "$recipe" .yaml)
    run=$data-$version-s$seed
    inputs=()
    case $(sed -n 's/^ *algo: *//p' "$recipe") in
      verifiable | random_matched | shuffled) inputs=(--advantages "$data") ;;
      rho1) inputs=(--reference-ce "$data") ;;
    esac
    stage "train $version, seed $seed" train-stage2 --recipe "$recipe" --set "seed=$seed" \
      --data "$data" --base "$data-mtp" ${inputs[@]+"${inputs[@]}"} --name "$run"
    stage "evaluate $version, seed $seed" evaluate --recipe "$recipe" --set "seed=$seed" \
      --data "$data" --checkpoint "$run" --name "$run"
    scores+=,$run
  done
done

stage 'leaderboard' build-leaderboard --recipe "$first" --scores "$scores" --report-dir "$out/reports" --name "$data"
stage 'site' build-site --leaderboard "$data" --out "$out/site"
printf '\nreports  %s\nsite     %s\n' "$out/reports" "$out/site/index.html"
