//! Stages model bundles and raw data sets, checks them and moves them to and from the store.
