"""What each protocol costs: ``python -m bench.protocols`` and ``python -m bench.protocols.perf_analyzer``."""
