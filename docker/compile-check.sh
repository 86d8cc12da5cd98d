#!/usr/bin/env bash
# Builds images from the sources without a registry, so that the stages that compile are run, and holds each against the job
# contract.
#
#   docker/compile-check.sh FOLDER BIN [IMAGE]...
#
#   FOLDER  everything lies here: storage of images and bases; a second call keeps what it can
#   BIN     folder with the compiled programs of this machine: wmtp-images, dev-store and what the contract needs
#   IMAGE   an image or a group of docker/bake.json; those for the CPU where none is named
#
# The bases are a bootstrapped Debian under the names that the Dockerfile gives them (docker/stand-ins.sh). The one that
# compiles gets this machine's Rust, which has to be of the version that its name tells. Environment: PROFILE (dev).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cd "$here/.."
mkdir -p "$1"
folder=$(cd "$1" && pwd) bin=$(cd "$2" && pwd)
shift 2
if [ $# = 0 ]; then set -- cpu; fi

. docker/stand-ins.sh
need podman runc mmdebstrap
images=$bin/wmtp-images

part "bases without a registry"
wanted=$(sed -n 's/^ARG RUST_BASE=.*rust:\([0-9.]*\)-.*/\1/p' docker/Dockerfile)
rust=$(rustc --print sysroot)
found=$(rustc --version | cut -d' ' -f2)
if [ "$found" != "$wanted" ]; then
  echo "error: this machine's Rust is $found, and the Dockerfile compiles with $wanted" >&2
  exit 69
fi
# As the real one has it: a linker, the C library, and Rust under /usr/local, without its manuals.
debian "$folder/rust.tar" --include=ca-certificates,gcc,libc6-dev \
  --customize-hook='mkdir -p "$1/usr/local/rust" "$1/usr/local/cargo/bin"' \
  --customize-hook="tar -C '$rust' --create --dereference --exclude=./share . | tar -C \"\$1/usr/local/rust\" --extract" \
  --customize-hook='ln -s /usr/local/rust/bin/cargo /usr/local/rust/bin/rustc /usr/local/rust/bin/rustdoc "$1/usr/local/cargo/bin/"' \
  --customize-hook='upload /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt'
stand_in RUST_BASE "$folder/rust.tar" --change ENV=CARGO_HOME=/usr/local/cargo \
  --change ENV=PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
debian "$folder/base.tar"
for name in CUDA_BASE CPU_BASE; do
  stand_in "$name" "$folder/base.tar"
done

part "images from the sources, by the Dockerfile alone"
export PROFILE=${PROFILE:-dev}
"$images" build --offline "$@" >"$folder/images.txt" 2>"$folder/build.log" || {
  tail -n 40 "$folder/build.log" >&2
  exit 70
}
cat "$folder/images.txt"
mapfile -t tags < <(cut -d' ' -f1 "$folder/images.txt")

part "the job contract"
"$images" conform --programs "$bin" "${tags[@]}"

part "done"
printf '%s images compiled and built without a registry (%s); all keep the job contract\n' "${#tags[@]}" "$PROFILE"
