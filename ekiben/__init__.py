"""Words every room uses: refusals, settings, ids, logs."""

__version__ = "0.1.0"
