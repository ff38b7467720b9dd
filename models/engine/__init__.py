"""The engine: models in memory, the batcher that runs them, and cancellation of runs."""
