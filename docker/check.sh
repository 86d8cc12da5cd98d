#!/usr/bin/env bash
# Builds every image without a registry, runs the whole chain in them and holds each against the job contract.
#
#   docker/check.sh FOLDER BIN
#
#   FOLDER  everything lies here: storage of images, the chain's store and site; a second call keeps what it can
#   BIN     folder with the compiled programs of this machine: jobs, wmtp-images, wmtp-store, dev-store
#
# The bases are a bootstrapped Debian under the names that the Dockerfile gives them (docker/stand-ins.sh). So the images with
# CUDA's name hold programs for the CPU here: the same targets, other programs. Environment: CHAIN_DATA (micropy),
# CHAIN_RECIPES (its name): what the chain runs.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cd "$here/.."
mkdir -p "$1"
folder=$(cd "$1" && pwd) bin=$(cd "$2" && pwd)
data=${CHAIN_DATA:-micropy}
mapfile -t jobs < <(docker/jobs.sh)

. docker/stand-ins.sh
need podman runc mmdebstrap strip
images=$bin/wmtp-images

part "Dockerfile and bake file"
"$images" lint "${jobs[@]}"
if python3 -m venv "$folder/linters" && "$folder/linters/bin/pip" install -q --disable-pip-version-check \
  --require-hashes -r docker/requirements.txt; then
  "$folder/linters/bin/hadolint" docker/Dockerfile
  echo "hadolint finds nothing"
else
  echo "SKIPPED: hadolint could NOT be installed, so it has read nothing" >&2
fi

part "bases without a registry"
debian "$folder/base.tar"
for name in CUDA_BASE CPU_BASE; do
  stand_in "$name" "$folder/base.tar"
done

# One time for all commits: layers that an earlier check left behind have it, too.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-0}
# Once, so that a commit that comes meanwhile makes no two images differ.
REVISION=${REVISION:-$(git rev-parse HEAD 2>/dev/null || echo unversioned)}
export REVISION
export VERSION=${VERSION:-$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)}

part "programs of this machine"
programs=$folder/programs
mkdir -p "$programs/bin"
for job in "${jobs[@]}"; do
  # Unchanged ones stay as they are, and so do the images that hold them.
  [ "$programs/bin/$job" -nt "$bin/$job" ] || strip -o "$programs/bin/$job" "$bin/$job"
done
sources=$(cat Cargo.lock ./*/*/Cargo.toml | sha256sum)
if [ "$(cat "$programs/sbom-from" 2>/dev/null)" != "$sources" ]; then
  docker/sbom.sh "$programs/sbom" "${jobs[@]}"
  echo "$sources" >"$programs/sbom-from"
fi
ls -s --block-size=M "$programs/bin"

part "images"
"$images" build --programs "$programs" --offline >"$folder/images.txt" 2>"$folder/build.log" || {
  tail -n 40 "$folder/build.log" >&2
  exit 70
}
cat "$folder/images.txt"
mapfile -t tags < <(cut -d' ' -f1 "$folder/images.txt")
for tag in "${tags[@]}"; do
  revision=$("${engine[@]}" image inspect --format '{{index .Config.Labels "org.opencontainers.image.revision"}}' "$tag")
  if [ "$revision" != "$REVISION" ]; then
    echo "error: $tag says that it is of $revision, expected $REVISION" >&2
    exit 70
  fi
done
echo "all say that they are of $REVISION"

part "the same image twice from nothing"
tag=localhost/wmtp/build-site:$VERSION-cpu
made=()
for _ in 1 2; do
  "$images" build --fresh --programs "$programs" --offline build-site-cpu >"$folder/again.txt" 2>"$folder/again.log" || {
    tail "$folder/again.log" >&2
    exit 70
  }
  made+=("$("${engine[@]}" image inspect --format '{{.Id}}' "$tag")")
done
if [ "${made[0]}" != "${made[1]}" ]; then
  echo "error: $tag is ${made[0]}, and once more ${made[1]}" >&2
  exit 70
fi
echo "$tag is ${made[0]} both times"

# The image of a job: the one for the CPU where there is one.
image_of() {
  local image=localhost/wmtp/$1:$VERSION
  if "${engine[@]}" image exists "$image-cpu"; then image+=-cpu; fi
  echo "$image"
}

part "the chain in the images, against the embedded store of this machine"
root=$folder/chain
# Scripts in the place of programs: the chain knows no difference.
mkdir -p "$folder/bin" "$root"/{scratch,cache,"$data"}
chmod 0777 "$root"/{scratch,cache,"$data"}
ln -sf "$bin/dev-store" "$folder/bin/dev-store"
for job in "${jobs[@]}"; do
  cat >"$folder/bin/$job" <<END
#!/bin/sh
exec "$images" run --mount "$PWD/storage/recipes" --mount "$root/scratch" --mount "$root/cache" --mount "$root/$data" \\
  "$(image_of "$job")" "\$@"
END
  chmod +x "$folder/bin/$job"
done
EXTERNAL=$root/external WMTP_ROOT=$root OUT=$root/$data BIN=$folder/bin RECIPES=${CHAIN_RECIPES:-$data} WMTP_DEVICE=cpu jobs/demo.sh "$data"
site=$root/$data/site
printf 'site built: %s files, %s, index.html belongs to user %s\n' "$(find "$site" -type f | wc -l)" \
  "$(du -sh "$site" | cut -f1)" "$(stat -c %u "$site/index.html")"

part "the job contract"
"$images" conform --programs "$bin" "${tags[@]}"

part "images that break it"
# Builds one of docker/tests/bad.Dockerfile from a job's image, and wants so many promises that begin so to be found broken.
refused() {
  local bad=localhost/wmtp/$1:check status=0
  "${engine[@]}" build -q --pull=never --tag "$bad" --target "$1" --build-arg "IMAGE=$(image_of "$2")" \
    --file docker/tests/bad.Dockerfile docker/tests >/dev/null
  "$images" conform --programs "$bin" "$bad" >"$folder/$1.txt" 2>/dev/null || status=$?
  cat "$folder/$1.txt"
  broken=$(grep -c "^  BROKEN $4" "$folder/$1.txt" || true)
  if [ "$status" != 77 ] || [ "$broken" -lt "$3" ]; then
    echo "error: expected exit code 77 and at least $3 broken promises of $1, found $status and $broken" >&2
    exit 70
  fi
}
refused bad prepare-data 3 ''
refused forgetful train-stage2 1 'stopped at work'

part "done"
printf '%s images built without a registry; the chain ran in them; all keep the job contract; two bad ones were refused\n' \
  "${#tags[@]}"
