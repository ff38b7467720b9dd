"""Export: torch weights and Keras models to an artifact, with its parity against torch or Keras measured."""
