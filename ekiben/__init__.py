"""What all packages share: refusals, settings, ids, logs, the protocol of child processes; and the Python client."""

__version__ = "0.1.0"
