#!/usr/bin/env bash
# Holds what is rendered against the classes of VESSL's client and of Argo Workflows; see strict.py and argo.py.
#
#   vessl/check/run.sh FOLDER RENDERED
#
#   FOLDER     the classes are installed here
#   RENDERED   folder with specs/*/*.yaml and argo/*.yaml
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
folder=$1 rendered=$2

# VESSL's client starts under these only.
for minor in 12 11 10 9; do
  python=python3.$minor
  ! "$python" -c 'import venv' 2>/dev/null || break
  python=
done
if [ -z "$python" ]; then
  echo 'skipped: the specs were NOT held against the classes of VESSL: they need one of python3.9 to python3.12' >&2
  exit 0
fi
if ! cmp -s "$here/requirements.txt" "$folder/installed"; then
  "$python" -m venv --clear "$folder"
  "$folder/bin/pip" install -q -r "$here/requirements.txt"
  cp "$here/requirements.txt" "$folder/installed"
fi
export VESSL_DATA_COLLECTION_OPT_OUT=true
"$folder/bin/python" "$here/strict.py" "$rendered"/specs/*/*.yaml
"$folder/bin/python" "$here/argo.py" "$rendered"/argo/*.yaml
