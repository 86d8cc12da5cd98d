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
# binaries), EXTERNAL (folder of models from outside, a folder each; "external"), BASE (name of the base model in the store that is
# trained, and whose tokenizer the data set gets; left out, a micro model is created) and REFERENCE (likewise, for Rho-1 and the
# value model). Every job is idempotent: run it again and only what is missing is done.
set -euo pipefail

recipes=$1 data=$2 raw=${3:-}
bin=${BIN:-target/debug} out=${OUT:-.wmtp/$data} seeds=${SEEDS:-1} lanes=${LANES:-1}
first=$recipes/v001.yaml beside=()
# shellcheck source=jobs/stages.sh
. "$(dirname "$0")/stages.sh"

# Whether a recipe of the folder has one of these algorithms.
compares() {
  local recipe
  for recipe in "$recipes"/v*.yaml; do
    case " $* " in *" $(algo_of "$recipe") "*) return 0 ;; esac
  done
  return 1
}

# Trains and evaluates one version with one seed.
version() {
  local recipe=$1 seed=$2 version run
  version=$(basename "$recipe" .yaml)
  run=$data-$version-s$seed
  train "train $version, seed $seed" "$recipe" "$seed" "$run" "$data"
  stage "evaluate $version, seed $seed" evaluate --recipe "$recipe" --set "seed=$seed" \
    --data "$data" --checkpoint "$run" ${beside[@]+"${beside[@]}"} --name "$run"
}

beginnings "$first" "$raw"
if compares rho1; then
  lane tuned_reference "$first" "$data"
  beside=(--reference-ce "$data")
fi
if compares verifiable random_matched shuffled; then lane value_model "$first" "$data"; fi
settle

scores=$data-base
lane base "$first" ${beside[@]+"${beside[@]}"}
outsiders "$first"
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
