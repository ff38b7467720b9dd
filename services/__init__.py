"""The doors and the processes: HTTP, the runner, the gateway. A door translates; it decides nothing."""
