#!/usr/bin/env bash
# Makes what a release holds, and looks whether it belongs together.
#
#   docker/release.sh FOLDER PROFILE IMAGES
#
#   FOLDER   becomes the release, made anew: bin/JOB, sbom/JOB.cdx.json, NOTES.md, SHA256SUMS
#   PROFILE  dev for a rehearsal, or release
#   IMAGES   the program wmtp-images
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
folder=$1 profile=$2 images=$(realpath "$3")
rm -rf "$folder"
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cd "$here/.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
mapfile -t jobs < <(docker/jobs.sh)

docker/programs.sh "$folder" "$profile"

# Before the version has a section of its own, what is unreleased.
section=$version
grep -q "^## $version\$" CHANGELOG.md || section=Unreleased
{
  printf '# wmtp %s\n' "$version"
  [ "$section" = "$version" ] || printf '\nA rehearsal: these notes are not released.\n'
  awk -v section="## $section" '$0 == section { on = 1; next } /^## / { on = 0 } on' CHANGELOG.md
} >"$folder/NOTES.md"

sums=$(cd "$folder" && find -- * -type f -print0 | sort -z | xargs -0 sha256sum)
echo "$sums" >"$folder/SHA256SUMS"
"$images" release "$folder" "${jobs[@]}"
echo "release $version ($profile): $folder"
