#!/usr/bin/env bash
# Makes what a release holds, looks whether it belongs together, and runs the demo from it alone.
#
#   docker/release.sh FOLDER PROFILE IMAGES
#
#   FOLDER   becomes the release, made anew: bin/PROGRAM, sbom/PROGRAM.cdx.json, revision, what README.md's commands read,
#            NOTES.md, SHA256SUMS
#   PROFILE  dev for a rehearsal, or release
#   IMAGES   the program wmtp-images
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
folder=$1 profile=$2 images=$(realpath "$3")
# Programs for people, beside those of the jobs.
tools=(dev-store wmtp-store wmtp-vessl wmtp-images)
# What their commands read, and what is read about them.
files=({.,docker,shared/tracking,storage,tests/bench}/README.md site/leaderboard.png jobs/{demo,chain,loop,stages}.sh
  storage/recipes storage/policies vessl/experiments vessl/{profile,profile-four-gpus,prices}.yaml)
rm -rf "$folder"
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cd "$here/.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
mapfile -t programs < <(docker/jobs.sh; printf '%s\n' "${tools[@]}")

docker/programs.sh "$folder" "$profile" "${programs[@]}"
# The commit, which the programs record with what they make.
git describe --always --abbrev=40 --exclude='*' --dirty >"$folder/revision"
git ls-files -z -- "${files[@]}" | xargs -0 cp --parents --target-directory "$folder"

# The oldest C library that all programs start with.
glibc=$(objdump -T "${programs[@]/#/$folder/bin/}" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1)

# Before the version has a section of its own, what is unreleased.
section=$version
grep -q "^## $version\$" CHANGELOG.md || section=Unreleased
{
  printf '# wmtp %s\n' "$version"
  [ "$section" = "$version" ] || printf '\nA rehearsal: these notes are not released.\n'
  printf '\nPrograms for Linux x86-64 with glibc %s or newer, which compute on the CPU; %s judge programs with python3.\n' \
    "${glibc#GLIBC_}" '`prepare-data` and `evaluate`'
  printf 'In this folder %s is %s, and %s is %s. Other targets of make need the sources.\n\n' '`target/debug/NAME` of README.md' \
    '`bin/NAME`' '`make demo`' '`BIN=bin jobs/demo.sh micropy`'
  for program in "${programs[@]}"; do
    printf -- '- `bin/%s`: %s\n' "$program" "$("$folder/bin/$program" --help | head -n 1)"
  done
  printf '\n%s names what each program is made of (CycloneDX); %s compares every file.\n' '`sbom/`' '`sha256sum --check SHA256SUMS`'
  awk -v section="## $section" '$0 == section { on = 1; next } /^## / { on = 0 } on' CHANGELOG.md
} >"$folder/NOTES.md"

sums=$(cd "$folder" && find -- * -type f -print0 | sort -z | xargs -0 sha256sum)
echo "$sums" >"$folder/SHA256SUMS"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
echo "the demo, from the release's folder alone"
(cd "$folder" && env -i PATH="$PATH" BIN=bin WMTP_ROOT="$scratch" jobs/demo.sh micropy) >"$scratch/demo.log" 2>&1 || {
  tail -n 40 "$scratch/demo.log" >&2
  exit 70
}
tail -n 2 "$scratch/demo.log"
(cd "$folder" && bin/wmtp-vessl plan --experiment vessl/experiments/all.yaml --profile vessl/profile.yaml \
  --prices vessl/prices.yaml) | head -n 1

# After all of that, so that what a command left in the folder is found, too.
mapfile -t mine < <(docker/builder.sh)
"$images" release "${mine[@]}" "$folder" "${programs[@]}"
echo "release $version ($profile): $folder"
