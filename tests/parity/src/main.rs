//! Compares our numbers with PyTorch goldens, stage by stage.

fn main() {}
