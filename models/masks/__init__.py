"""Masks: run lengths, polygons, cut-outs, rendering, non-maximum suppression."""
