"""Segment Anything, measured beside the package and a plain ONNX loop: ``python -m bench.sam``."""
