"""The processes and the transports. A transport translates; it decides nothing."""
