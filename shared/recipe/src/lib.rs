//! Recipe and environment schema, precedence, versions and user rules.
