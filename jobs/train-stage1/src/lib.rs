//! Trains the value model and stores advantages, or tunes the reference and stores its cross-entropies.
