//! Trunk, prediction heads, value head, checkpoints and kernels.
