# Images as they should not be, for `make images-check`. This one runs as root, starts by a shell that keeps signals from its
# program, says nothing of where it comes from, and a program of its own stands before the job.
ARG IMAGE
FROM ${IMAGE} AS bad
USER 0:0
LABEL org.opencontainers.image.revision="" wmtp.schema="wmtp.artifact/0"
ENTRYPOINT ["/bin/sh", "-c", "trap '' TERM; prepare-data \"$@\" || exit 1", "sh"]

# This one lets go of its work where it is told to stop, and says that it was preempted all the same.
FROM ${IMAGE} AS forgetful
ENTRYPOINT ["/bin/sh", "-c", "train-stage2 \"$@\" & job=$!; trap 'kill -KILL $job; exit 143' TERM; wait $job", "sh"]
