//! Criterion benches of the inner parts, on the bundled model; `marionette bench` measures a bundle of your own.
