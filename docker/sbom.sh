#!/usr/bin/env bash
# Writes what programs are made of, as CycloneDX has it.
#
#   docker/sbom.sh OUT PROGRAM... [-- FLAG OF cargo cyclonedx...]
#
# OUT gets PROGRAM.cdx.json for each. With SOURCE_DATE_EPOCH set, the same sources give the same bytes.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
programs=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  programs+=("$1")
  shift
done
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
# The tool writes beside each Cargo.toml, so it works on a copy.
cd "$here/.."
tar --create --exclude=./target --exclude=./.git --exclude=./.wmtp . | tar --extract --directory "$copy"
cd "$copy"
cargo cyclonedx -qq --manifest-path Cargo.toml --format json --spec-version 1.5 \
  --target "$(rustc -vV | sed -n 's/^host: //p')" "${@:2}"
for program in "${programs[@]}"; do
  # The list is called like the package, which may be called otherwise than its program.
  manifest=$(grep -lx "name = \"$program\"" ./*/Cargo.toml ./*/*/Cargo.toml | head -n 1) || {
    echo "error: $program is no program of this workspace" >&2
    exit 2
  }
  package=$(sed -n 's/^name = "\(.*\)"/\1/p' "$manifest" | head -n 1)
  # Where the copy lay is nothing of the program's.
  sed "s|file://$copy|file:///wmtp|g" "${manifest%/*}/$package.cdx.json" >"$out/$program.cdx.json"
done
