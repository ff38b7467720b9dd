"""Small concurrency primitives, each under its usual name."""
