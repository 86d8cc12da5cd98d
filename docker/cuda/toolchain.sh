#!/usr/bin/env bash
# Gets what a build with feature `cuda` needs on a machine without a GPU, from the package registries alone.
#
#   docker/cuda/toolchain.sh FOLDER
#
# Afterwards FOLDER holds nvcc, the dependencies that Cargo.lock names with two files of candle edited, and
#   env         to source: where the compiler is, and for which cards and drivers it compiles
#   cargo.toml  for cargo's --config: takes the dependencies from FOLDER
# What is there and still right is kept: the second call takes no time.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
workspace=$(cd "$here/../.." && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)
nvcc=$folder/nvcc crates=$folder/crates

refuse() {
  printf 'error: %s\n' "$@" >&2
  exit 69
}

# Says whether FOLDER was made from what standard input holds.
made_from() {
  [ "$(cat "$1/made-from" 2>/dev/null)" = "$(sha256sum)" ]
}

# The compiler: wheels pinned by version and digest. They are unpacked; nothing is installed.
get_nvcc() {
  made_from "$nvcc" <"$here/wheels.txt" && return
  echo "nvcc: fetches 180 MB of wheels"
  rm -rf "$nvcc" && mkdir "$nvcc"
  python3 -m venv "$nvcc/pip" || refuse "python3 cannot make a virtual environment: install python3-venv"
  # The platform is spelled out so that every pip takes just these wheels.
  "$nvcc/pip/bin/pip" download -q --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
    --python-version 3.12 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux_2_12_x86_64 --platform manylinux1_x86_64 --dest "$nvcc/wheels" --requirement "$here/wheels.txt"
  local wheel
  for wheel in "$nvcc"/wheels/*.whl; do
    python3 -m zipfile -e "$wheel" "$nvcc"
  done
  chmod +x "$nvcc"/nvidia/{cu13,cu13/nvvm,cuda_nvcc}/bin/*
  rm -rf "$nvcc/wheels" "$nvcc/pip"
  sha256sum <"$here/wheels.txt" >"$nvcc/made-from"
}

# The dependencies: a copy, because two files of candle are edited and Cargo.lock must stay as it is.
get_crates() {
  cat "$workspace/Cargo.lock" "$here/toolchain.sh" | made_from "$crates" && return
  echo "crates: copies the dependencies that Cargo.lock names"
  rm -rf "$crates"
  cargo vendor -q --locked --versioned-dirs --manifest-path "$workspace/Cargo.toml" "$crates" >/dev/null
  # The driver is opened at run time. Linked, as candle has it, a program does not start on a machine without one.
  edit candle-core-0.11.1 Cargo.toml 's/"dynamic-linking"/"dynamic-loading"/' \
    21c8c9f0801fa67c559dc96334f4b479240f4e8225542b09df5b591e2080c472 \
    a4912d8c6b146d643877e3d9083214e34af3e8fa7fdf3ad9719d2ce3c4066b42
  # No kernels for quantised models and mixtures of experts: no job calls them, and they are nine tenths of the size.
  edit candle-kernels-0.11.1 build.rs '/^    let mut moe_sources/,/^    Ok(())/{/^    Ok(())/!d}' \
    aab4cf3bf981980e3a907692138122d9a5e50c293de7e4813443f23132efb49e \
    0be7bbad1b66020fe8938c5592d40083de4fc6162a1386253f27440962d412a6
  cat "$workspace/Cargo.lock" "$here/toolchain.sh" | sha256sum >"$crates/made-from"
}

# edit CRATE FILE SED BEFORE AFTER: digests of the file before and after say that the edit fits the file.
edit() {
  local file=$crates/$1/$2
  echo "$4  $file" | sha256sum --check --status 2>/dev/null || refuse \
    "$1/$2 is not the file that docker/cuda/toolchain.sh knows how to edit (SHA-256 $4)." \
    "If candle has a new version, read what changed in the file, then renew the edit and its digests."
  sed -i "$3" "$file"
  echo "$5  $file" | sha256sum --check --status || refuse "$1/$2 did not become what it should by its edit."
  # Cargo compares every file of the copy with this list.
  sed -i "s/$4/$5/" "$crates/$1/.cargo-checksum.json"
}

command -v g++ >/dev/null || refuse "nvcc needs a C++ compiler: install g++"
get_nvcc
get_crates

cat >"$folder/cargo.toml" <<END
[source.crates-io]
replace-with = "wmtp-cuda"

[source.wmtp-cuda]
directory = "$crates"
END

# 8.0: its PTX runs on every card from A100 on, where that of 9.0 runs on Hopper alone. 12.1: newer drivers keep what its
# driver had.
cat >"$folder/env" <<END
export CUDA_HOME="$nvcc/nvidia/cu13" CUDA_PATH="$nvcc/nvidia/cu13"
export PATH="$nvcc/nvidia/cu13/bin:\$PATH"
export NVCC="$here/nvcc"
export CUDA_COMPUTE_CAP=80 CUDARC_CUDA_VERSION=12010
export CUDAFORGE_THREADS=$(nproc)
END
