"""Jobs and batches, measured: ``python -m bench.jobs``."""
