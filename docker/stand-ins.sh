# Sourced by what builds images without a registry: an engine of its own under $folder, and bootstrapped bases.
#
# Storage and state of its own, so that nothing else on this machine takes a stand-in for the real base. RUN instructions go
# without a container, which a confined machine may not start as they want it; what is started at the end is started by runc.

part() {
  printf '\n== %s\n' "$*"
}

# Ends with what this machine lacks of root and of the programs named.
need() {
  local lacking=() program
  [ "$(id -u)" = 0 ] || lacking+=("root, which starts the containers")
  for program in "$@"; do
    command -v "$program" >/dev/null || lacking+=("$program")
  done
  if [ ${#lacking[@]} -gt 0 ]; then
    printf 'error: this machine lacks what builds and runs images: %s\n' "$(IFS=,; echo "${lacking[*]}")" \
      'hint: on Debian, apt-get install podman runc mmdebstrap binutils' >&2
    exit 69
  fi
}

storage=$folder/storage
export WMTP_ENGINE="podman --root $storage/root --runroot $storage/run --tmpdir $storage/tmp --runtime runc --cgroup-manager cgroupfs"
export BUILDAH_ISOLATION=chroot
read -r -a engine <<<"$WMTP_ENGINE"

# Imports a tar under the name that the Dockerfile gives a base, once.
#
#   stand_in ARG TAR FLAG OF podman import...
stand_in() {
  local base
  base=$(sed -n "s/^ARG $1=//p" docker/Dockerfile)
  if ! "${engine[@]}" image exists "$base"; then
    # A file of its own in each: of two bases that hold the same, one's layers would be taken for the other's.
    echo "$base" >"$folder/stand-in"
    cp "$2" "$folder/base.part"
    tar --append --file "$folder/base.part" --directory "$folder" --transform 's|^|etc/|' stand-in
    "${engine[@]}" import -q "${@:3}" "$folder/base.part" "$base" >/dev/null
    rm "$folder/base.part"
  fi
  echo "$base is Debian 12, bootstrapped"
}

# Bootstraps a Debian once.
#
#   debian TAR ARGUMENT OF mmdebstrap...
debian() {
  if [ ! -s "$1" ]; then
    mmdebstrap --quiet --variant=minbase --format=tar "${@:2}" bookworm "$1.part"
    mv "$1.part" "$1"
  fi
}
