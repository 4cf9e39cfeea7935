//! Whole-program and parity tests.
