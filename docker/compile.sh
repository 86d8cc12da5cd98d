#!/usr/bin/env bash
# Runs what compiles programs that are given away: they tell neither where nor when they were compiled, so that the same
# sources give the same bytes on every machine.
#
#   CARGO_TARGET_DIR=FOLDER docker/compile.sh COMMAND...
#
# FOLDER is to be one of its own: with other flags every dependency is compiled anew, and those of `make build` are not these.
set -euo pipefail

checkout=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "${CARGO_TARGET_DIR:?is to name a folder for what is compiled}"
CARGO_TARGET_DIR=$(cd "$CARGO_TARGET_DIR" && pwd)

# Of several that fit, compilers take the last: folders come before those that may lie in them.
renamed=(
  "${CARGO_HOME:-$HOME/.cargo}=/cargo"
  "$(rustc --print sysroot)/lib/rustlib/src/rust=/rustc/$(rustc -vV | sed -n 's/^commit-hash: //p')"
  "$checkout=/wmtp"
  "$CARGO_TARGET_DIR=/target"
)
for folder in "${renamed[@]}"; do
  [[ $folder != *[[:space:]]* ]] || {
    echo "error: ${folder%=*} has a blank in its name, which compilers of C cannot be told: compile elsewhere" >&2
    exit 2
  }
done
CFLAGS="${CFLAGS:-} ${renamed[*]/#/-ffile-prefix-map=}"
CXXFLAGS="${CXXFLAGS:-} ${renamed[*]/#/-ffile-prefix-map=}"
RUSTFLAGS="${RUSTFLAGS:-} ${renamed[*]/#/--remap-path-prefix=}"
# One time for all commits: with another one everything written in C and all that stands on it is compiled anew, which is half
# of the dependencies and would be no layer of its own in an image.
SOURCE_DATE_EPOCH=0
export CARGO_TARGET_DIR CFLAGS CXXFLAGS RUSTFLAGS SOURCE_DATE_EPOCH
exec "$@"
