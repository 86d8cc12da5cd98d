//! Tokenizers, the prompt template, masks and target alignment.
