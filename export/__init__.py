"""Export: torch weights to an artifact, with its parity against torch measured."""
