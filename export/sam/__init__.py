"""Segment Anything: published or seeded weights to three ONNX graphs, with parity against the package measured."""
