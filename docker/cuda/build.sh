#!/usr/bin/env bash
# Builds what uses a GPU, with feature `cuda`, on a machine that has none.
#
#   docker/cuda/build.sh FOLDER [PROFILE]
#
#   FOLDER   toolchain and build live here, apart from every other build; FOLDER/bin has what a GPU machine needs
#   PROFILE  dev, or release, which optimises each program as a whole and takes many times as long
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
folder=$1 profile=${2:-dev}
jobs=(train-stage1 train-stage2 evaluate parity)
benches=(train_rate)
mkdir -p "$folder/bin"
folder=$(cd "$folder" && pwd)

"$here/toolchain.sh" "$folder/toolchain"
# shellcheck disable=SC1091
. "$folder/toolchain/env"
with_toolchain() {
  local command
  read -r -a command <<<"$1"
  shift
  cargo "${command[@]}" --config "$folder/toolchain/cargo.toml" --locked --offline --target-dir "$folder" "$@"
}

cd "$here/../.."
# Cargo does not see that another compiler would make other kernels.
kernels=$(cat "$here/nvcc" "$here/wheels.txt" "$here/toolchain.sh" | sha256sum)
if [ "$(cat "$folder/kernels-from" 2>/dev/null)" != "$kernels" ]; then
  with_toolchain clean -q --profile "$profile" -p candle-kernels -p wmtp-model
  echo "$kernels" >"$folder/kernels-from"
fi
# Where the tool is there, programs name what they are made of.
build=build
if command -v cargo-auditable >/dev/null; then build='auditable build'; fi
with_toolchain "$build" --profile "$profile" --features cuda --bins --examples \
  -p train-stage1 -p train-stage2 -p evaluate -p parity -p wmtp-training

# Copies PROGRAM without symbols, proves that it starts here, and says what it weighs.
deliver() {
  local built=$1 program=$folder/bin/$2 linked
  strip -o "$program" "$built"
  linked=$(objdump -p "$program" | sed -n 's/^ *NEEDED *//p' | xargs)
  if [[ $linked =~ lib(cu|nv|nccl) ]]; then
    printf 'error: %s asks for CUDA at its start (%s): without a driver it does not start\n' "$2" "$linked" >&2
    exit 70
  fi
  [ "$2" != "${2//_/}" ] || "$program" --help >/dev/null
  printf '%-18s %6.1f MB, %5.1f MB gzipped, needs %s\n' "$2" "$(megabytes <"$program")" \
    "$(gzip -c "$program" | megabytes)" "$linked"
}

megabytes() {
  wc -c | awk '{ print $1 / 1e6 }'
}

built=$folder/${profile/#dev/debug}
for job in "${jobs[@]}"; do
  deliver "$built/$job" "$job"
done
for bench in "${benches[@]}"; do
  deliver "$built/examples/$bench" "$bench"
done
install "$here/with-cuda" "$folder/bin/with-cuda"
cat <<END
All are in $folder/bin: one build for CUDA 12.1 and every newer driver, glibc 2.34 or newer.
Carry the folder to the GPU machine and start a job there by
  bin/with-cuda train-stage2 --device cuda ...
END
