//! Artifacts over S3: digests, manifests, create-only commit, names, claims, cache and transfer.
