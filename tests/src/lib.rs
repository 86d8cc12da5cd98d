//! What crosses rooms: the whole chain, faults and the house rules.
