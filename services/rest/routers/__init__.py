"""The routes of the HTTP API, one resource a file. Each translates; the operations and the records decide."""
