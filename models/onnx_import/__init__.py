"""Import of ONNX files: checked in a child process with limits, then made into an artifact."""
