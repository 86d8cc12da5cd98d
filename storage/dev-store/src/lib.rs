//! The embedded S3 server: s3s protocol over a durable, conditional, content-checked backend.
