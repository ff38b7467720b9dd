"""Keras and TensorFlow models to ONNX. A child process in an environment of its own (``make keras``) converts them."""
