//! The life of a run: arguments, cache, claims, events, logs, progress, signals and exit codes.
