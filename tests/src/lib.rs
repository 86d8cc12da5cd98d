//! What crosses rooms: the house rules, the whole chain, faults. All of it lives in `tests/`.
