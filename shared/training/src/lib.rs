//! Loss, optimiser, schedule and the training engine.
