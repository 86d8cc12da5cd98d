#!/usr/bin/env bash
# Writes what each job is made of, as CycloneDX has it.
#
#   docker/sbom.sh OUT [FLAG OF cargo cyclonedx]...
#
# OUT gets JOB.cdx.json for every job. With SOURCE_DATE_EPOCH set, the same sources give the same bytes.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
# The tool writes beside each Cargo.toml, so it works on a copy.
cd "$here/.."
tar --create --exclude=./target --exclude=./.git --exclude=./.wmtp . | tar --extract --directory "$copy"
cd "$copy"
cargo cyclonedx -qq --manifest-path Cargo.toml --format json --spec-version 1.5 \
  --target "$(rustc -vV | sed -n 's/^host: //p')" "$@"
for job in $(docker/jobs.sh); do
  # Where the copy lay is nothing of the program's.
  find . -name "$job.cdx.json" -exec sed "s|file://$copy|file:///wmtp|g" {} + >"$out/$job.cdx.json"
  [ -s "$out/$job.cdx.json" ] || { echo "error: no dependency list of $job was written" >&2; exit 70; }
done
