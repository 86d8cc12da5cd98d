#!/usr/bin/env bash
# Prints the jobs that docker/Dockerfile has images of, one a line.
sed -n 's/^ *wmtp\.job="\(.*\)"$/\1/p' "$(dirname "$0")/Dockerfile" | sort -u
