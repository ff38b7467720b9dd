"""A user's ONNX file: checked in a limited child process and made into an artifact."""
