#!/bin/bash
# What a build with feature `cuda` needs on a machine without a GPU, from the package registries alone:
#
#     toolchain.sh FOLDER
#
# FOLDER then holds nvcc, the dependencies of Cargo.lock with two files of candle edited, and `env`, a file to source: with
# it `cargo build $WMTP_CUDA_CARGO_ARGS --features …` builds. What stands already is kept.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
workspace=$(cd "$here/../.." && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)

# The compiler: wheels pinned by version and digest, unpacked; pip installs nothing.
wheels() {
    local stamp
    stamp=$(sha256sum <"$here/wheels.txt")
    [ "$(cat "$folder/nvcc.stamp" 2>/dev/null)" != "$stamp" ] || return 0
    echo "nvcc: 160 MB of wheels"
    rm -rf "$folder/wheels" "$folder/nvcc"
    # The platform is said, so that a pip of any machine takes these wheels and no other.
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
        --python-version 3.12 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
        --platform manylinux_2_12_x86_64 --dest "$folder/wheels" --requirement "$here/wheels.txt"
    python3 - "$folder" <<'PYTHON'
import pathlib, sys, zipfile
folder = pathlib.Path(sys.argv[1])
for wheel in sorted((folder / "wheels").glob("*.whl")):
    zipfile.ZipFile(wheel).extractall(folder / "nvcc")
PYTHON
    chmod +x "$folder"/nvcc/nvidia/cu13/bin/* "$folder"/nvcc/nvidia/cu13/nvvm/bin/*
    ln -sfn lib "$folder/nvcc/nvidia/cu13/lib64"
    rm -rf "$folder/wheels"
    echo "$stamp" >"$folder/nvcc.stamp"
}

# edit FILE BEFORE AFTER EXPRESSION: one file of a dependency, by sed. The digests are those of the file before and after:
# another version of the crate is refused, for the edit was not written for it.
edit() {
    local file=$1 before=$2 after=$3 expression=$4 digest
    local crate=$folder/crates/${file%%/*}
    digest=$(sha256sum "$folder/crates/$file" 2>/dev/null | cut -d' ' -f1)
    if [ "$digest" != "$before" ]; then
        echo "$file is not the file that $here/toolchain.sh edits (found ${digest:-none}, known $before)." >&2
        echo "After a new version of candle, read what changed there, then renew the edit and both digests." >&2
        exit 1
    fi
    sed -i "$expression" "$folder/crates/$file"
    digest=$(sha256sum "$folder/crates/$file" | cut -d' ' -f1)
    if [ "$digest" != "$after" ]; then
        echo "$file came out of its edit as $digest, not as $after." >&2
        exit 1
    fi
    # Cargo checks each file of a vendored crate against this list.
    sed -i "s/$before/$after/" "$crate/.cargo-checksum.json"
}

# The dependencies: a copy of what Cargo.lock names, so that two files can be edited and Cargo.lock stays as it is.
crates() {
    local stamp
    stamp=$(cat "$workspace/Cargo.lock" "$here/toolchain.sh" | sha256sum)
    [ "$(cat "$folder/crates.stamp" 2>/dev/null)" != "$stamp" ] || return 0
    echo "crates: a copy of all dependencies"
    rm -rf "$folder/crates" "$folder/crates.stamp"
    cargo vendor --quiet --locked --versioned-dirs --manifest-path "$workspace/Cargo.toml" "$folder/crates" >/dev/null
    # CUDA opened at run time: linked, the program would not start on a machine without a driver.
    edit candle-core-0.11.1/Cargo.toml \
        21c8c9f0801fa67c559dc96334f4b479240f4e8225542b09df5b591e2080c472 \
        a4912d8c6b146d643877e3d9083214e34af3e8fa7fdf3ad9719d2ce3c4066b42 \
        's/"dynamic-linking"/"dynamic-loading"/'
    # No quantised and no mixture-of-experts kernels: no job calls them, they are most of the size, and they link CUDA.
    edit candle-kernels-0.11.1/build.rs \
        aab4cf3bf981980e3a907692138122d9a5e50c293de7e4813443f23132efb49e \
        0be7bbad1b66020fe8938c5592d40083de4fc6162a1386253f27440962d412a6 \
        '/^    let mut moe_sources/,/^    Ok(())/{/^    Ok(())/!d}'
    echo "$stamp" >"$folder/crates.stamp"
}

environment() {
    cat <<ENV
export CUDA_HOME='$folder/nvcc/nvidia/cu13' CUDA_PATH='$folder/nvcc/nvidia/cu13'
export PATH="\$CUDA_HOME/bin:\$PATH"
# The wrapper that lowers the PTX version.
export NVCC='$here/nvcc'
# PTX of 8.0 runs on every card from A100 on; that of 9.0 on Hopper only.
export CUDA_COMPUTE_CAP=80
# Bindings of CUDA 12.1: newer drivers keep what it had.
export CUDARC_CUDA_VERSION=12010
export CUDAFORGE_THREADS=$(nproc)
export WMTP_CUDA_CARGO_ARGS='--locked --offline --config source.crates-io.replace-with="wmtp-cuda" --config source.wmtp-cuda.directory="$folder/crates"'
ENV
}

wheels
crates
environment >"$folder/env"
