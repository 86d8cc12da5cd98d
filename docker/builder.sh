#!/usr/bin/env bash
# Prints the folders of this machine that nothing which is given away may name, as options of wmtp-images, one a line.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
mine=("$here" "$(realpath "${CARGO_TARGET_DIR:-$here/target}")" "${CARGO_HOME:-$HOME/.cargo}" "$(rustc --print sysroot)")
if [ "$HOME" != / ]; then mine+=("$HOME"); fi
printf -- '--without=%s\n' "${mine[@]}"
