"""The HTTP doors, one noun a file. Each translates; Vision and the records decide."""
