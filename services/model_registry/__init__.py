"""Models of this process: index, repository, reconciler, version files, ONNX imports."""
