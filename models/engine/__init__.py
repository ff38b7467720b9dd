"""The engine: models in memory, the batcher that feeds them, and runs that can be cancelled."""
