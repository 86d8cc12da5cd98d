# What jobs/chain.sh and jobs/loop.sh share: how a job is run and shown, and jobs beside each other. Sourced.
#
# Wants: bin (folder of the job binaries), data (name of the data set), lanes (jobs at a time), scores (names, separated by
# commas, of all scores so far).
# Environment: BASE, REFERENCE (names of base models in the store; left out, micro models are created).
# shellcheck shell=bash disable=SC2154

policy=${BASE:-$data-mtp} reference=${REFERENCE:-$data-ref}
# All models and the data set share one tokenizer: that of the stored model, which created ones get through the data set.
tokenizer=${BASE:-${REFERENCE:-}}

if [[ ! $lanes =~ ^[1-9][0-9]*$ ]]; then
  echo "error: LANES is '$lanes', expected a whole number of at least 1" >&2
  exit 2
fi
# Programs cannot know which commit they were built from: where this is its checkout, they are told, and record it.
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
if [ -z "${WMTP_REVISION:-}" ] && [ "$(git -C "$checkout" rev-parse --show-toplevel 2>/dev/null)" = "$checkout" ]; then
  WMTP_REVISION=$(git -C "$checkout" describe --always --abbrev=40 --exclude='*' --dirty 2>/dev/null) || WMTP_REVISION=
  export WMTP_REVISION
fi
# Pages of freed tensors stay with the process, since the next step wants them: clearing fresh ones costs far more.
export MIMALLOC_PURGE_DELAY=${MIMALLOC_PURGE_DELAY:--1}

# Runs one job, says how long it took, and ends as it did.
stage() {
  local label=$1 job=$2 began=$SECONDS status=0 has_terminal=
  shift 2
  printf '\n== %s\n' "$label"
  if [ "$BASHPID" -eq $$ ] && [ -t 2 ]; then has_terminal=yes; fi
  if [ "$BASHPID" -eq $$ ] && [ "$lanes" -gt 1 ]; then
    # Waited for, since a signal for this script would else be kept until the job has ended.
    apart shown "$label" "$job" "$@"
    wait -f "$!" || status=$?
    unset "groups[$!]"
  else
    shown "$label" "$job" "$@" || status=$?
  fi
  if [ "$status" -ne 0 ]; then printf '   %s: ended with exit status %s\n' "$label" "$status" >&2; fi
  printf '   %s: %s s\n' "$label" $((SECONDS - began))
  return "$status"
}

# Runs a job, which draws its bars itself where it has a terminal to itself.
shown() {
  local label=$1 job=$2
  shift 2
  if [ -n "$has_terminal" ]; then
    "$bin/$job" "$@"
  else
    "$bin/$job" "$@" 2>&1 | told "$label"
  fi
}

# Shows the messages of a job that has no terminal to itself, where it would draw bars: progress becomes a line now
# and then, under the name of the stage.
told() {
  # A job that is told to stop has still something to say: its end is that of its output.
  trap '' INT TERM
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

# Process groups in the background, by their first process, and how many of them are lanes.
declare -A groups=()
running=0

# Runs a function in the background, as a process group, so that it ends as one: told to stop, behind its job, which saves
# its state first.
apart() {
  {
    trap 'exit 143' TERM
    trap 'exit 130' INT
    "$@"
  } &
  groups[$!]=1
}

# Runs a function beside others, as soon as a lane is free.
lane() {
  if [ "$lanes" -eq 1 ]; then
    "$@"
    return
  fi
  if [ "$running" -ge "$lanes" ]; then lane_end; fi
  apart sharing "$@"
  running=$((running + 1))
}

# Runs a function whose jobs share the cores with those of other lanes.
sharing() {
  export RAYON_NUM_THREADS=$threads
  "$@"
}

# Waits until a lane ends. One that failed ends the chain with its exit status; the others are told to stop.
lane_end() {
  local status ended=
  # A lane that was only stopped for a while ends a wait as well, under no name.
  while
    status=0
    wait -n -p ended "${!groups[@]}" || status=$?
    [ -z "${ended-}" ]
  do sleep 1; done
  unset "groups[$ended]"
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

# Tells every group to stop and waits until its job has saved its state. A second signal is handed on, too: jobs end at
# once with it, and are waited for even so, since the store may end with this script.
stop() {
  trap tell_groups INT TERM
  tell_groups
  local group
  for group in "${!groups[@]}"; do
    while kill -0 "$group" 2>/dev/null; do wait -f "$group" || true; done
  done
}

tell_groups() {
  local group
  for group in "${!groups[@]}"; do kill -TERM -- "-$group" 2>/dev/null || true; done
}

# Behind the job that runs, which Ctrl-C reaches as well: one that was told to stop is not to be begun again.
trap 'exit 130' INT
trap 'exit 143' TERM
if [ "$lanes" -gt 1 ]; then
  set -m
  trap 'stop; exit 130' INT
  trap 'stop; exit 143' TERM
  cores=$(getconf _NPROCESSORS_ONLN)
  threads=$((cores > lanes ? cores / lanes : 1))
fi

# The algorithm of a recipe, its own or of the one that it extends.
algo_of() {
  local algo parent
  algo=$(sed -n 's/^ *algo: *//p' "$1" | tr -d \"\')
  parent=$(sed -n 's/^extends: *//p' "$1")
  if [ -z "$algo" ] && [ -n "$parent" ]; then
    algo_of "$(dirname "$1")/$parent"
  else
    printf '%s\n' "${algo:-baseline}"
  fi
}

# The value model begins as the reference, where that is a model of the user's and mostly the smaller one, else as the policy.
value_model() {
  stage "value model${3:+ of $3}" train-stage1 --objective value --recipe "$1" --data "$data" \
    --base "${REFERENCE:-$policy}" --name "$2"
}

tuned_reference() {
  stage "reference${3:+ of $3}" train-stage1 --objective reference --recipe "$1" --data "$data" --base "$reference" \
    --name "$2"
}

# Trains a recipe with one seed under a label; advantages or reference cross-entropies are those of a name.
train() {
  local label=$1 recipe=$2 seed=$3 run=$4 scores=$5 inputs=()
  shift 5
  case $(algo_of "$recipe") in
    verifiable | random_matched | shuffled) inputs=(--advantages "$scores") ;;
    rho1) inputs=(--reference-ce "$scores") ;;
  esac
  stage "$label" train-stage2 --recipe "$recipe" --set "seed=$seed" \
    --data "$data" --base "$policy" ${inputs[@]+"${inputs[@]}"} --name "$run" "$@"
}

# The data set and the models that training starts from.
beginnings() {
  local recipe=$1 raw=$2 inputs=()
  if [ -n "$raw" ]; then
    stage 'raw data' sync-storage push --kind raw-data --folder "$raw" --name "$data"
    inputs=(--raw "$data")
  fi
  stage 'data set' prepare-data --recipe "$recipe" ${inputs[@]+"${inputs[@]}"} ${tokenizer:+--tokenizer "$tokenizer"} \
    --name "$data"
  if [ -z "${BASE:-}" ]; then
    stage 'base model' sync-storage create --model micro-mtp --data "$data" --name "$policy"
  fi
  if [ -z "${REFERENCE:-}" ]; then
    stage 'reference model' sync-storage create --model micro-ref --data "$data" --name "$reference"
  fi
}

base() {
  local recipe=$1
  shift
  stage 'evaluate base' evaluate --recipe "$recipe" --data "$data" --base "$policy" "$@" --name "$data-base"
}

outsider() {
  stage "evaluate $3, from outside" evaluate external --recipe "$1" --data "$data" --folder "$2" --name "$data-external-$3"
}

# Evaluates the models from outside, each a folder below EXTERNAL (external), and adds their names to the scores.
outsiders() {
  local folder name
  for folder in "${EXTERNAL:-external}"/*/; do
    if [ ! -d "$folder" ]; then continue; fi
    name=$(basename "$folder")
    lane outsider "$1" "$folder" "$name"
    scores+=,$data-external-$name
  done
}
