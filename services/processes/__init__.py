"""The processes of a machine: supervision, shutdown, preflight and health checks."""
