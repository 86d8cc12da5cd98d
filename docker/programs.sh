#!/usr/bin/env bash
# Builds programs with their dependency lists, as images and releases hold them.
#
#   docker/programs.sh OUT PROFILE [--cuda FOLDER] [PROGRAM]...
#
#   OUT      gets bin/PROGRAM, which names its dependencies (`cargo auditable`), and sbom/PROGRAM.cdx.json (CycloneDX)
#   PROFILE  dev, or release
#   FOLDER   for toolchain and build of docker/cuda/build.sh: jobs with feature `cuda` are built with it there
#   PROGRAM  those of all jobs where none is named
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1/bin" "$1/sbom"
out=$(cd "$1" && pwd) profile=$2 cuda=
shift 2
if [ "${1:-}" = --cuda ]; then
  cuda=$2
  shift 2
fi
cd "$here/.."
programs=("$@")
if [ $# = 0 ]; then mapfile -t programs < <("$here/jobs.sh"); fi

for tool in auditable cyclonedx; do
  command -v "cargo-$tool" >/dev/null || {
    echo "error: cargo-$tool is missing; docker/Dockerfile names its version: cargo install --locked cargo-$tool@VERSION" >&2
    exit 69
  }
done

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/programs
docker/compile.sh cargo auditable build --locked --workspace --profile "$profile" "${programs[@]/#/--bin=}"
built=$CARGO_TARGET_DIR/${profile/#dev/debug}
# Without its debug information and the digest that the linker took of that, which differs between machines.
bare() {
  strip --remove-section=.note.gnu.build-id -o "$out/bin/$2" "$1/$2"
}
for program in "${programs[@]}"; do
  bare "$built" "$program"
done
if [ -n "$cuda" ]; then
  CARGO_TARGET_DIR=$cuda docker/compile.sh docker/cuda/build.sh "$cuda" "$profile"
  # What it made replaces what knows nothing of CUDA: which programs these are is known there.
  for program in "${programs[@]}"; do
    if [ -e "$cuda/bin/$program" ]; then bare "$cuda/bin" "$program"; fi
  done
fi
"$here/sbom.sh" "$out/sbom" "${programs[@]}" ${cuda:+-- --all-features}
