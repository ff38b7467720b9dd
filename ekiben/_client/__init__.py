"""The parts of ekiben/client.py: operations, transports and results. Imported by clients of a server alone."""
