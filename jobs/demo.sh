#!/usr/bin/env bash
# Runs jobs/chain.sh, or with CHAIN=loop jobs/loop.sh, against the embedded S3 server, which lives as long as this script.
#
#   jobs/demo.sh DATA [RAW]
#
# LANES (the number of cores, 5 at most; 1 with BASE, a model of the user's) says how many jobs run at a time.
set -euo pipefail

data=$1 raw=${2:-}
bin=${BIN:-target/debug} root=${WMTP_ROOT:-.wmtp}
began=$SECONDS
mkdir -p "$root"
rm -f "$root/store.env"
# In a session of its own where that can be had: Ctrl-C is for the jobs, which save their state to the store.
own_session=$(command -v setsid || true)
${own_session:+"$own_session"} "$bin/dev-store" serve --root "$root/store" --env-file "$root/store.env" --exit-with-parent &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true' EXIT
until [ -s "$root/store.env" ]; do
  kill -0 "$server" 2>/dev/null || { echo "error: the embedded store did not start" >&2; exit 69; }
  sleep 0.1
done
# shellcheck disable=SC1091
. "$root/store.env"
export WMTP_STORE=${WMTP_STORE:-s3://wmtp/$data}
export WMTP_SCRATCH=${WMTP_SCRATCH:-$root/scratch} WMTP_CACHE=${WMTP_CACHE:-$root/cache}
# A micro model is too small to keep two cores busy: two jobs with one core each get through much more.
cores=$(getconf _NPROCESSORS_ONLN)
if [ -n "${BASE:-}" ]; then cores=1; fi
export LANES=${LANES:-$((cores < 5 ? cores : 5))}
chain=${CHAIN:-chain} suffix=
if [ "$chain" = loop ]; then suffix=-loop; fi
export OUT=${OUT:-$root/$data$suffix}
# In this process, so that a signal for it reaches the jobs, and the store is there until they have ended.
# shellcheck disable=SC1090
. "$(dirname "$0")/$chain.sh" "storage/recipes/${RECIPES:-$data}" "$data" "$raw"
printf 'in all   %s s\n' $((SECONDS - began))
