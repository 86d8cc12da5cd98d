#!/usr/bin/env bash
# Builds the programs of all jobs with their dependency lists, as images hold them.
#
#   docker/programs.sh OUT PROFILE [CUDA]
#
#   OUT      gets bin/JOB, which names its dependencies (`cargo auditable`), and sbom/JOB.cdx.json (CycloneDX)
#   PROFILE  dev, or release
#   CUDA     folder for toolchain and build of docker/cuda/build.sh: jobs with feature `cuda` are built with it there
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1/bin" "$1/sbom"
out=$(cd "$1" && pwd) profile=$2 cuda=${3:-}
cd "$here/.."
mapfile -t jobs < <("$here/jobs.sh")

for tool in auditable cyclonedx; do
  command -v "cargo-$tool" >/dev/null || {
    echo "error: cargo-$tool is missing; docker/Dockerfile names its version: cargo install --locked cargo-$tool@VERSION" >&2
    exit 69
  }
done

# Compilers of C are told a fixed time, and only the lists of dependencies that of the commit: with another time everything
# written in C and all that stands on it is compiled anew, which is half of the dependencies and would be no layer of its own.
compile() {
  SOURCE_DATE_EPOCH=0 "$@"
}

compile cargo auditable build --locked --workspace --profile "$profile" "${jobs[@]/#/--bin=}"
built=${CARGO_TARGET_DIR:-target}/${profile/#dev/debug}
for job in "${jobs[@]}"; do
  strip -o "$out/bin/$job" "$built/$job"
done
if [ -n "$cuda" ]; then
  compile docker/cuda/build.sh "$cuda" "$profile"
  # What it made replaces what knows nothing of CUDA: which jobs these are is known there.
  for job in "${jobs[@]}"; do
    if [ -e "$cuda/bin/$job" ]; then install "$cuda/bin/$job" "$out/bin/$job"; fi
  done
fi
"$here/sbom.sh" "$out/sbom" ${cuda:+--all-features}
